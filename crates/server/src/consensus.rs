//! The raft actor: turns events into log writes, messages, committed entries and answered reads.
//!
//! It never touches a disk, a socket or a clock. Whoever brings an event takes its turn with it and passes on what comes
//! out (`drive`).

use std::collections::{BTreeMap, VecDeque};

use api::{Answer, Outbox as Replies, Reply};
use bytes::Bytes;
use proto::raftpb;
use raft_driver::{Driver, DriverError, Progress, Role, Snapshot, Status};
use state::Error;
use wal::{Entry, HardState};

/// Everything that can happen to a member's consensus.
#[derive(Debug)]
pub(crate) enum Event {
    /// An encoded request to be put into the log.
    Propose(Bytes),
    /// The same, but only while this member leads in this term. For what a leader decides on the strength of leading, such as
    /// the end of a lease: handed to the next leader later, it would be wrong.
    ProposeAsLeader(Bytes, u64),
    /// An encoded `raftpb.ConfChange` to be put into the log, and whom to tell when that is refused.
    ProposeConfChange(Bytes, u64),
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
    /// A message from a peer.
    Step(Box<raftpb::Message>),
    /// A message to this peer was lost.
    Unreachable(u64),
    /// What became of a snapshot on its way to this peer.
    SnapshotSent { to: u64, delivered: bool },
    /// This peer's process is dead, as far as its connections tell.
    Gone(u64),
    /// The leadership is to be handed to this member.
    Transfer { to: u64, reply: Reply },
    /// The leadership is to be handed to whoever is fittest: this member is about to stop.
    HandOver(Reply),
    /// Where this leader's followers are.
    Progress(tokio::sync::oneshot::Sender<Vec<Progress>>),
}

/// A batch for the log's thread.
#[derive(Debug, Default)]
pub(crate) struct LogBatch {
    pub(crate) number: u64,
    /// A snapshot from the leader; comes before everything else in the batch.
    pub(crate) snapshot: Option<Snapshot>,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) entries: Vec<Entry>,
    /// Messages that leave once the batch is synced.
    pub(crate) promises: Vec<raftpb::Message>,
}

/// What the raft actor wants done.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Messages that leave at once.
    pub(crate) messages: Vec<raftpb::Message>,
    pub(crate) log: Vec<LogBatch>,
    pub(crate) committed: Vec<Entry>,
    pub(crate) replies: Replies,
    /// Proposed conf changes, by request ID, that did not even reach the log.
    pub(crate) refused: Vec<(u64, Error)>,
    /// Why this member must stop.
    pub(crate) fatal: Option<String>,
}

/// Proposals that are kept while there is no leader. How long is not decided here: their clients' waiters give up after
/// the request timeout.
const MAX_WITHOUT_LEADER: usize = 4096;

/// Applied entries that a member without peers keeps in memory before it lets them go.
const COMPACT_ALONE: u64 = 1000;

/// How long things may take, in ticks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks {
    /// After so long an unanswered read index is asked for again.
    pub(crate) retry: u64,
    /// The election timeout.
    pub(crate) election: u64,
    /// After so long a read that nobody answers is given up.
    pub(crate) timeout: u64,
}

/// The raft actor.
#[derive(Debug)]
pub(crate) struct Consensus {
    driver: Driver,
    /// Proposals that arrived in this turn; proposed as one message.
    batch: Vec<Bytes>,
    /// What this member has decided as the leader of a term.
    decisions: Vec<(Bytes, u64)>,
    /// Proposals that arrived while there was no leader, with the tick of their arrival.
    held: VecDeque<(u64, Bytes)>,
    /// Reads that no read index has been asked for yet, with the tick of their arrival.
    reads: Vec<(u64, Reply)>,
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
    limits: Ticks,
    /// The newest batch that was given to the log, and the newest that is synced.
    log_sent: u64,
    log_synced: u64,
    /// Since when the log has made no headway although it has something to sync.
    log_stalled_at: u64,
    /// Membership changes to propose, in the order of their arrival.
    conf_changes: Vec<ConfProposal>,
    /// A handing over of the leadership under way.
    transfer: Option<Transfer>,
    /// The leader when last looked at.
    leader: u64,
    /// The leader is dead; this member campaigns at this tick if there is still none.
    succession: Option<u64>,
    refused: Vec<(u64, Error)>,
    fatal: Option<String>,
}

#[derive(Debug)]
struct ConfProposal {
    /// The tick of its arrival.
    at: u64,
    data: Bytes,
    /// The request to tell when it is refused; 0 = nobody here.
    request: u64,
}

#[derive(Debug)]
struct Transfer {
    to: u64,
    until: u64,
    reply: Reply,
}

#[derive(Debug)]
struct Asked {
    at: u64,
    replies: Vec<(u64, Reply)>,
}

impl Consensus {
    pub(crate) fn new(driver: Driver, limits: Ticks, seed: u64) -> Self {
        Self {
            driver,
            batch: Vec::new(),
            decisions: Vec::new(),
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
            limits,
            log_sent: 0,
            log_synced: 0,
            log_stalled_at: 0,
            conf_changes: Vec::new(),
            transfer: None,
            leader: 0,
            succession: None,
            refused: Vec::new(),
            fatal: None,
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
            Event::Read(reply) => self.reads.push((self.ticks, reply)),
            Event::ProposeAsLeader(data, term) => self.decisions.push((data, term)),
            Event::ProposeConfChange(data, request) => {
                self.conf_changes.push(ConfProposal { at: self.ticks, data, request });
            }
            Event::Persisted(number) => {
                self.driver.persisted(number);
                self.log_synced = self.log_synced.max(number);
                self.log_stalled_at = self.ticks;
            }
            Event::Applied => {}
            Event::ConfChange(entry) => {
                if let Err(error) = self.driver.apply_conf_change(&entry) {
                    tracing::error!(error = %error, "failed to apply conf change");
                }
                let status = self.driver.status();
                // A leader that was removed takes no more requests; the sooner another one leads, the better.
                if status.role == Role::Leader
                    && !status.voter
                    && status.transfer_to == 0
                    && let Some(to) = self.fittest()
                {
                    self.driver.transfer_leader(to);
                }
            }
            Event::Compact(index) => self.driver.compact(index),
            Event::Tick => self.tick(),
            Event::Step(message) => match self.step(*message) {
                Ok(()) | Err(DriverError::Dropped) => {}
                Err(error @ DriverError::LogLost { .. }) => self.fatal = Some(error.to_string()),
                Err(error) => tracing::warn!(error = %error, "refused a raft message"),
            },
            Event::Unreachable(id) => self.driver.report_unreachable(id),
            Event::SnapshotSent { to, delivered } => self.driver.report_snapshot(to, delivered),
            Event::Gone(id) => self.peer_gone(id),
            Event::Transfer { to, reply } => self.transfer(to, reply),
            Event::HandOver(reply) => match self.fittest() {
                Some(to) => self.transfer(to, reply),
                None => reply.send(Ok(Answer::Done)),
            },
            Event::Progress(asker) => drop(asker.send(self.driver.progress())),
        }
    }

    /// A proposal that a follower has forwarded while this leader is handing over is kept like one of our own.
    fn step(&mut self, message: raftpb::Message) -> Result<(), DriverError> {
        let handing_over = message.r#type() == raftpb::MessageType::MsgProp && self.driver.status().transfer_to != 0;
        if !handing_over {
            return self.driver.step(message);
        }
        for entry in message.entries {
            let kind = entry.r#type();
            match entry.data {
                Some(data) if kind == raftpb::EntryType::EntryNormal => self.hold(std::iter::once(data)),
                Some(data) if kind == raftpb::EntryType::EntryConfChange => {
                    self.conf_changes.push(ConfProposal { at: self.ticks, data, request: 0 });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.driver.tick();
        self.retry_reads();
        self.give_up_late();
        let status = self.driver.status();
        // Heartbeats need no disk, so the others would follow a leader that can commit nothing.
        let stalled = self.log_sent != self.log_synced && self.ticks - self.log_stalled_at > self.limits.election;
        if stalled && status.role == Role::Leader && !status.sole_voter {
            tracing::warn!("the write-ahead log has not been synced for an election timeout; stepping down");
            self.driver.step_down();
            self.log_stalled_at = self.ticks;
        }
        if self.succession.is_some_and(|at| at <= self.ticks) && status.leader == 0 {
            self.succession = Some(self.ticks + status.voters as u64);
            self.driver.campaign();
        }
        if self.transfer.as_ref().is_some_and(|transfer| transfer.until <= self.ticks)
            && let Some(transfer) = self.transfer.take()
        {
            transfer
                .reply
                .send(Err(Error::Internal("etcdserver: request timed out, leader transfer took too long".to_string())));
        }
    }

    /// The leader is gone, and everybody else's connections to it broke as well: there is no need to wait for a timeout.
    fn peer_gone(&mut self, id: u64) {
        let status = self.driver.status();
        if id != status.leader || status.leader == 0 {
            return;
        }
        if let Some(place) = self.driver.leader_lost() {
            tracing::info!(leader = %format!("{id:x}"), place, "the leader's process is gone; electing another one");
            self.succession = Some(self.ticks + place as u64 + 1);
            if place == 0 {
                self.driver.campaign();
            }
        }
    }

    /// The other voter that was heard of and has most of this leader's log; none if this member does not lead, or is the
    /// only voter. Raft forgets who was heard of whenever it checks its quorum, so that alone rules nobody out.
    fn fittest(&self) -> Option<u64> {
        let own = self.driver.status().leader;
        let others = self.driver.progress().into_iter().filter(|p| !p.learner && p.id != own);
        others.max_by_key(|p| (p.recent_active, p.matched)).map(|p| p.id)
    }

    fn transfer(&mut self, to: u64, reply: Reply) {
        if let Some(earlier) = self.transfer.take() {
            earlier.reply.send(Err(Error::Canceled));
        }
        if self.driver.transfer_leader(to) {
            self.transfer = Some(Transfer { to, until: self.ticks + 2 * self.limits.election, reply });
        } else {
            reply.send(Err(Error::NotLeader));
        }
    }

    /// Ends a turn: proposes what has gathered, collects what has to be done. `applied` is how far the state machine is.
    pub(crate) fn finish(&mut self, applied: u64, out: &mut Outbox) {
        self.applied = applied;
        self.driver.applied(applied);
        self.campaign_if_alone();
        self.notice_leader();
        self.propose_batch();
        self.propose_conf_changes();
        self.ask_for_reads();
        while let Some(effects) = self.driver.ready() {
            out.messages.extend(effects.messages);
            // Promises of a batch that needs no sync of its own may still speak of entries in one that is not yet synced.
            let waits = effects.must_sync || effects.snapshot.is_some();
            let overtakes = mutant::on(mutant::PromisesOvertake) || self.log_sent == self.log_synced;
            if waits || (!effects.promises.is_empty() && !overtakes) {
                let hard_state = effects.hard_state.or(self.lazy_hard_state.take());
                self.lazy_hard_state = None;
                if self.log_sent == self.log_synced {
                    self.log_stalled_at = self.ticks;
                }
                self.log_sent = effects.number;
                out.log.push(LogBatch {
                    number: effects.number,
                    snapshot: effects.snapshot,
                    hard_state,
                    entries: effects.entries,
                    promises: effects.promises,
                });
            } else {
                out.messages.extend(effects.promises);
                if effects.hard_state.is_some() {
                    self.lazy_hard_state = effects.hard_state;
                }
            }
            out.committed.extend(effects.committed);
            for (context, index) in effects.reads {
                if let Some(asked) = self.asked.remove(&context) {
                    let replies = asked.replies.into_iter().map(|(_, reply)| reply);
                    let index = if mutant::on(mutant::ReadsBeforeApply) { 0 } else { index };
                    self.behind.entry(index).or_default().extend(replies);
                }
            }
        }
        let status = self.driver.status();
        if status.leader != 0 {
            self.succession = None;
        }
        if self.transfer.as_ref().is_some_and(|transfer| transfer.to == status.leader)
            && let Some(transfer) = self.transfer.take()
        {
            out.replies.push(transfer.reply, Ok(Answer::Done));
        }
        out.refused.append(&mut self.refused);
        out.fatal = self.fatal.take();
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
        let leads = || self.driver.status().role == Role::Leader;
        self.alone_from.is_some_and(|from| self.applied >= from || mutant::on(mutant::SoleVoterTooSoon))
            || mutant::on(mutant::ReadsUnconfirmed) && leads()
    }

    /// The hard state with the newest commit index, for a clean stop.
    pub(crate) fn hard_state(&self) -> HardState {
        self.driver.hard_state()
    }

    /// What was asked of the last leader is asked again: it may have been lost with it.
    fn notice_leader(&mut self) {
        let leader = self.driver.status().leader;
        if leader != self.leader {
            self.leader = leader;
            let asked = std::mem::take(&mut self.asked).into_values();
            self.reads.extend(asked.flat_map(|asked| asked.replies));
        }
    }

    fn propose_batch(&mut self) {
        let status = self.driver.status();
        // Looked at only now, when all that has happened is known: a member that was paused finds out in one turn what it
        // would have decided as the leader, and that it has not been one for long.
        let leads = |term: u64| {
            mutant::on(mutant::LeaseEndedByOldLeader)
                || status.role == Role::Leader && status.term == term && status.transfer_to == 0
        };
        self.batch.extend(self.decisions.drain(..).filter(|(_, term)| leads(*term)).map(|(data, _)| data));
        // A leader that hands over takes nothing more; its successor will.
        let can_propose = status.leader != 0 && status.transfer_to == 0;
        if can_propose && !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            if mutant::on(mutant::ProposedTwice) {
                self.held.clone_from(&held);
            }
            self.batch.splice(0..0, held.into_iter().map(|(_, data)| data));
        }
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        if !can_propose {
            return self.hold(batch.into_iter());
        }
        match self.driver.propose(batch) {
            Ok(()) => {}
            Err(DriverError::Dropped) => tracing::warn!("raft proposal dropped"),
            Err(error) => tracing::error!(error = %error, "raft proposal failed"),
        }
    }

    /// Proposals wait for a leader, as in etcd, until their clients' deadlines pass. What does not fit is dropped, and its
    /// client is told `request timed out`.
    fn hold(&mut self, proposals: impl Iterator<Item = Bytes>) {
        let room = MAX_WITHOUT_LEADER.saturating_sub(self.held.len());
        let now = self.ticks;
        self.held.extend(proposals.take(room).map(|data| (now, data)));
    }

    /// What has waited for a leader for as long as a request may take is forgotten: its client was told that it timed out,
    /// and has perhaps written something else since.
    fn give_up_late(&mut self) {
        let late = |at: u64| self.ticks - at >= self.limits.timeout;
        self.held.retain(|(at, _)| !late(*at));
        for late in self.conf_changes.extract_if(.., |proposal| late(proposal.at)) {
            self.refused.push((late.request, Error::Timeout));
        }
    }

    fn propose_conf_changes(&mut self) {
        let status = self.driver.status();
        if status.leader == 0 || status.transfer_to != 0 {
            return;
        }
        for ConfProposal { data, request, .. } in std::mem::take(&mut self.conf_changes) {
            if let Err(error) = self.driver.propose_conf_change(data) {
                self.refused.push((request, Error::Internal(error.to_string())));
            }
        }
    }

    fn ask_for_reads(&mut self) {
        // The driver keeps what comes before an entry of the term is committed; without a leader there is nobody to ask.
        if self.reads.is_empty() || self.driver.status().leader == 0 {
            return;
        }
        let replies = std::mem::take(&mut self.reads);
        self.ask(replies);
    }

    fn ask(&mut self, replies: Vec<(u64, Reply)>) {
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
            .filter(|(_, asked)| self.ticks - asked.at >= self.limits.retry)
            .map(|(context, _)| *context)
            .collect();
        for context in overdue {
            if let Some(asked) = self.asked.remove(&context) {
                self.reads.extend(asked.replies);
            }
        }
        let late = |at: u64| self.ticks - at >= self.limits.timeout;
        for (_, reply) in self.reads.extract_if(.., |(at, _)| late(*at)) {
            reply.send(Err(Error::Timeout));
        }
    }

    /// Answers whatever still waits; the member is stopping.
    pub(crate) fn stop(&mut self) {
        let asked = std::mem::take(&mut self.asked).into_values().flat_map(|a| a.replies);
        let reads = asked.chain(self.reads.drain(..)).map(|(_, reply)| reply);
        let behind = std::mem::take(&mut self.behind).into_values().flatten();
        let transfer = self.transfer.take().map(|transfer| transfer.reply);
        for reply in reads.chain(behind).chain(transfer) {
            reply.send(Err(Error::Stopped));
        }
    }
}

#[cfg(test)]
mod tests;
