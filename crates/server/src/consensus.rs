//! The raft actor: turns events into log writes, messages, committed entries and answered reads.
//!
//! It never touches a disk, a socket or a clock. The thread that owns it (`member::run_consensus`) takes events from
//! a queue and passes on what comes out.

use std::collections::{BTreeMap, VecDeque};

use api::{Answer, Outbox as Replies, Reply};
use bytes::Bytes;
use raft_driver::{Driver, DriverError, Role, Status};
use state::Error;
use wal::{Entry, HardState};

/// Everything that can happen to a member's consensus.
#[derive(Debug)]
pub(crate) enum Event {
    /// An encoded request to be put into the log.
    Propose(Bytes),
    /// A linearizable read wants to know when this member's state is recent enough.
    Read(Reply),
    /// The log batch of this number is synced.
    Persisted(u64),
    /// The state machine may have moved on; look at the applied index.
    Applied,
    /// The state machine has accepted a committed conf change.
    ConfChange(Entry),
    /// Everything up to this index is in a snapshot.
    Compact(u64),
    /// One heartbeat interval has passed.
    Tick,
}

/// A batch for the log's thread.
#[derive(Debug)]
pub(crate) struct LogBatch {
    pub(crate) number: u64,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) entries: Vec<Entry>,
}

/// What the raft actor wants done.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub(crate) log: Vec<LogBatch>,
    pub(crate) committed: Vec<Entry>,
    pub(crate) replies: Replies,
}

/// Proposals that are kept while there is no leader. How long is not decided here: their clients' waiters give up after
/// the request timeout.
const MAX_WITHOUT_LEADER: usize = 4096;

/// Applied entries that a member without peers keeps in memory before it lets them go.
const COMPACT_ALONE: u64 = 1000;

/// The raft actor.
#[derive(Debug)]
pub(crate) struct Consensus {
    driver: Driver,
    /// Proposals that arrived in this turn; proposed as one message.
    batch: Vec<Bytes>,
    /// Proposals that arrived while there was no leader.
    held: VecDeque<Bytes>,
    /// Reads that no read index has been asked for yet.
    reads: Vec<Reply>,
    /// Reads whose read index is on its way, by context.
    asked: BTreeMap<u64, Asked>,
    /// Reads that wait until this index is applied.
    behind: BTreeMap<u64, Vec<Reply>>,
    next_context: u64,
    /// A commit index that moved without anything to sync; written with the next batch. Losing it costs nothing: it
    /// is learned again from the log.
    lazy_hard_state: Option<HardState>,
    /// Since when this member leads alone: everything that was acknowledged before lies at or below this index.
    alone_from: Option<u64>,
    /// How far the state machine was when last looked at.
    applied: u64,
    ticks: u64,
    /// Ticks after which an unanswered read index is asked for again.
    retry_ticks: u64,
}

#[derive(Debug)]
struct Asked {
    at: u64,
    replies: Vec<Reply>,
}

impl Consensus {
    pub(crate) fn new(driver: Driver, retry_ticks: u64, seed: u64) -> Self {
        Self {
            driver,
            batch: Vec::new(),
            held: VecDeque::new(),
            reads: Vec::new(),
            asked: BTreeMap::new(),
            behind: BTreeMap::new(),
            // Contexts must be unique among members and restarts: raft-rs drops a repeated one silently.
            next_context: seed,
            lazy_hard_state: None,
            alone_from: None,
            applied: 0,
            ticks: 0,
            retry_ticks,
        }
    }

    pub(crate) fn status(&self) -> Status {
        self.driver.status()
    }

    /// A sole voter need not wait for an election timeout: nobody else can lead.
    fn campaign_if_alone(&mut self) {
        let status = self.driver.status();
        if status.sole_voter && status.role != Role::Leader {
            self.driver.campaign();
        }
    }

    pub(crate) fn handle(&mut self, event: Event) {
        match event {
            Event::Propose(data) => self.batch.push(data),
            Event::Read(reply) => self.reads.push(reply),
            Event::Persisted(number) => self.driver.persisted(number),
            Event::Applied => {}
            Event::ConfChange(entry) => {
                if let Err(error) = self.driver.apply_conf_change(&entry) {
                    tracing::error!(error = %error, "failed to apply conf change");
                }
            }
            Event::Compact(index) => self.driver.compact(index),
            Event::Tick => {
                self.ticks += 1;
                self.driver.tick();
                self.retry_reads();
            }
        }
    }

    /// Ends a turn: proposes what has gathered, collects what has to be done. `applied` is how far the state machine is.
    pub(crate) fn finish(&mut self, applied: u64, out: &mut Outbox) {
        self.applied = applied;
        self.driver.applied(applied);
        self.campaign_if_alone();
        self.propose_batch();
        self.ask_for_reads();
        while let Some(effects) = self.driver.ready() {
            // Until members talk to each other there is nobody to send anything to.
            debug_assert!(effects.messages.is_empty() && effects.promises.is_empty());
            if effects.must_sync {
                let hard_state = effects.hard_state.or(self.lazy_hard_state.take());
                self.lazy_hard_state = None;
                out.log.push(LogBatch { number: effects.number, hard_state, entries: effects.entries });
            } else if effects.hard_state.is_some() {
                self.lazy_hard_state = effects.hard_state;
            }
            out.committed.extend(effects.committed);
            for (context, index) in effects.reads {
                if let Some(asked) = self.asked.remove(&context) {
                    self.behind.entry(index).or_default().extend(asked.replies);
                }
            }
        }
        let status = self.driver.status();
        if status.sole_voter && status.role == Role::Leader && status.committed_in_term {
            self.alone_from.get_or_insert(status.commit_index);
        } else {
            self.alone_from = None;
        }
        // What is applied and synced is only kept for members that lag; alone, it would be dead weight (megabytes with
        // large values).
        if status.alone && applied >= self.driver.first_index() + COMPACT_ALONE {
            self.driver.compact(applied);
        }
        while let Some(first) = self.behind.first_entry() {
            if *first.key() > applied {
                break;
            }
            for reply in first.remove() {
                out.replies.push(reply, Ok(Answer::Done));
            }
        }
    }

    /// Whether something waits for the state machine, so that it should tell when it has moved.
    pub(crate) fn wants_applied(&self) -> bool {
        !self.behind.is_empty() || self.alone_from.is_some_and(|from| self.applied < from)
    }

    /// Whether a linearizable read may be answered from the state as it is. A sole voter that leads answers every
    /// write itself, and only after applying it; what its earlier lives acknowledged is applied once it has applied what
    /// was committed when its term began. A pending conf change ends this before it can take effect.
    pub(crate) fn reads_are_local(&self) -> bool {
        self.alone_from.is_some_and(|from| self.applied >= from)
    }

    /// The hard state with the newest commit index, for a clean stop.
    pub(crate) fn hard_state(&self) -> HardState {
        self.driver.hard_state()
    }

    fn propose_batch(&mut self) {
        let has_leader = self.driver.status().leader != 0;
        if has_leader && !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            self.batch.splice(0..0, held);
        }
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        if !has_leader {
            // They wait for a leader, as in etcd, until their clients' deadlines pass. What does not fit is dropped, and
            // its client is told `request timed out`.
            let room = MAX_WITHOUT_LEADER.saturating_sub(self.held.len());
            self.held.extend(batch.into_iter().take(room));
            return;
        }
        match self.driver.propose(batch) {
            Ok(()) => {}
            Err(DriverError::Dropped) => tracing::warn!("raft proposal dropped"),
            Err(error) => tracing::error!(error = %error, "raft proposal failed"),
        }
    }

    fn ask_for_reads(&mut self) {
        if self.reads.is_empty() || !self.driver.status().committed_in_term {
            return;
        }
        let replies = std::mem::take(&mut self.reads);
        self.ask(replies);
    }

    fn ask(&mut self, replies: Vec<Reply>) {
        let context = self.next_context;
        self.next_context = self.next_context.wrapping_add(1);
        self.asked.insert(context, Asked { at: self.ticks, replies });
        self.driver.read_index(context);
    }

    /// A read index may be lost with a leader; it is asked for again under a new context.
    fn retry_reads(&mut self) {
        let overdue: Vec<u64> = self
            .asked
            .iter()
            .filter(|(_, asked)| self.ticks - asked.at >= self.retry_ticks)
            .map(|(context, _)| *context)
            .collect();
        for context in overdue {
            if let Some(asked) = self.asked.remove(&context) {
                self.reads.extend(asked.replies);
            }
        }
    }

    /// Answers whatever still waits; the member is stopping.
    pub(crate) fn stop(&mut self) {
        let asked = std::mem::take(&mut self.asked).into_values().flat_map(|a| a.replies);
        let behind = std::mem::take(&mut self.behind).into_values().flatten();
        for reply in self.reads.drain(..).chain(asked).chain(behind) {
            reply.send(Err(Error::Stopped));
        }
    }
}
