//! Consensus: drives raft-rs and is the only crate that sees it.
//!
//! [`Driver`] is a value without clock, threads or I/O. Everything that happens to a member's consensus is a method call
//! (a tick, a proposal, a message, a receipt from the disk), and everything that has to be done about it comes out of
//! [`Driver::ready`] as [`Effects`]. Randomness comes from a seed handed in at construction.
//!
//! # What the caller owes
//! - `Effects` come in order and are carried out in order; the order within one is told at [`Effects`].
//! - [`Driver::persisted`] is called only when everything that an `Effects` wants on disk is synced, and *before* its
//!   promises leave. [`Driver::applied`] is called only when the committed entries are applied.
//! - Every MsgSnap that comes out is answered by [`Driver::report_snapshot`], whatever becomes of it; until then
//!   nothing else is sent to that member.
//!
//! # What raft-rs leaves to us
//! raft-rs is the port of etcd's library, for a network of its own kind. The differences are met here:
//!
//! - **Messages** from peers are checked before it sees them (`message.rs`): it stops the process when one is impossible.
//! - **Membership changes** keep etcd's bytes in the log and on the wire, though raft-rs numbers two types differently and
//!   refuses a proposal with a number that it does not know. What a change means is decided from our own decoding
//!   (`conf_change.rs`), and raft-rs is kept from parsing any.
//! - **A leader that was removed** goes on as one until somebody else leads, so that the others learn of the removal;
//!   raft-rs would panic at the next acknowledgement. It hears of the change when the leadership ends. Until then we
//!   drop proposals and reads.
//! - **A term is on disk before anybody hears of it.** raft-rs lets a leader's messages go at once; a sole voter, which
//!   elects itself without a word to anybody, could then lead the same term twice with different entries.
//! - **Heartbeat answers do not wait for the disk** and neither do forwarded requests: they promise nothing about it. raft-rs
//!   holds back everything a follower says.
//! - **Reads in a term's first moments** are kept until an entry of the term is committed; raft-rs drops them.
//! - **Elections** start only when the log's end is known to be on disk wherever raft-rs takes that for granted, and
//!   the jitter of their timeouts is drawn from our seed.

mod conf_change;
mod log;
mod message;
mod status;

use std::collections::VecDeque;

use bytes::Bytes;
use proto::raftpb;
use raft::eraftpb::{self, MessageType};
use raft::{RawNode, ReadOnlyOption, SnapshotStatus, StateRole};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wal::{Entry, EntryKind, HardState};

pub use conf_change::{ConfChangeError, next_conf_state};
use log::Log;
pub use message::MessageError;
pub use status::{Progress, ProgressState, Role, Status};

/// Reads that a leader keeps for later, or has asked its followers about. Beyond it they are dropped, and asked again.
const MAX_READS: usize = 4096;

/// How this member takes part in consensus.
#[derive(Clone, Debug)]
pub struct Config {
    /// Member ID, not 0.
    pub id: u64,
    /// Ticks without hearing from a leader after which a follower campaigns; the real wait is drawn from
    /// `election_ticks..2 * election_ticks`.
    pub election_ticks: usize,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Ask before campaigning, so that a member that was cut off does not depose a working leader.
    pub pre_vote: bool,
    /// Bytes of entries in one append message.
    pub max_message_bytes: u64,
    /// Append messages in flight to one follower.
    pub max_inflight: usize,
    /// Bytes of committed entries handed out at once.
    pub max_committed_bytes: u64,
    /// Bytes of proposals that wait for a quorum before new ones are dropped.
    pub max_uncommitted_bytes: u64,
    /// Index up to which the state machine has applied the log.
    pub applied: u64,
    /// Seed of the election jitter.
    pub seed: u64,
}

/// What a member remembers when it starts.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// Last hard state.
    pub hard_state: HardState,
    /// Membership at `Config::applied`.
    pub conf_state: raftpb::ConfState,
    /// Index and term just before the first of `entries`.
    pub base: (u64, u64),
    /// The log after `base`, without gaps.
    pub entries: Vec<Entry>,
}

/// A snapshot from the leader, in place of the log before it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Index of the last entry in it.
    pub index: u64,
    /// Term of that entry.
    pub term: u64,
    /// Membership at that index.
    pub conf_state: raftpb::ConfState,
    /// What came in the message; with etcd, the v2 store. The v3 store came beside the message.
    pub data: Bytes,
}

/// What has to be done now. The fields stand in the order in which they are carried out:
///
/// 1. `messages` leave.
/// 2. `snapshot` is made durable, then a mark of it in the log, so that a log's mark never stands for nothing.
/// 3. `hard_state` and `entries` are written, in one piece, and synced if `must_sync`.
/// 4. [`Driver::persisted`] is called, then `promises` leave.
/// 5. `snapshot` is installed, and `committed` is applied. Both may come any time later, in order.
///
/// Steps 1 to 4 of an `Effects` may begin before 5 of the one before.
#[derive(Debug, Default)]
pub struct Effects {
    /// Name of this batch for [`Driver::persisted`].
    pub number: u64,
    /// Messages that may leave now. A MsgSnap among them says where the receiver needs one; the server fills in its data
    /// and corrects its metadata to what the image holds, which must be that index or a later one.
    pub messages: Vec<raftpb::Message>,
    /// A snapshot that replaces state and log. There are no `committed` entries beside one.
    pub snapshot: Option<Snapshot>,
    /// To be written, if it changed.
    pub hard_state: Option<HardState>,
    /// To be appended to the log; may replace a tail.
    pub entries: Vec<Entry>,
    /// Whether `promises` and the commit of `entries` wait for a sync. False only for a moved commit index.
    pub must_sync: bool,
    /// Messages that may leave once this batch is persisted: votes, acknowledgements, and what a leader says in a term
    /// that is not yet on disk.
    pub promises: Vec<raftpb::Message>,
    /// Entries to apply, in order.
    pub committed: Vec<Entry>,
    /// Answered read requests: context and the index that must be applied first.
    pub reads: Vec<(u64, u64)>,
}

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// There is no leader, leadership is being moved, or too much waits for a quorum.
    #[error("raft proposal dropped")]
    Dropped,
    /// This leader has a membership change that is not applied yet; the next must wait for it.
    #[error("another membership change is not yet applied")]
    ConfChangePending,
    /// A message that no peer may send.
    #[error("message refused: {0}")]
    Refused(#[from] MessageError),
    /// The leader knows that this member had acknowledged more than its log holds. What it promised is lost; it must not go
    /// on as the same member.
    #[error(
        "index {commit} is committed and was acknowledged here, but the log ends at {last}: was it damaged, truncated or lost?"
    )]
    LogLost {
        /// What the leader says is committed.
        commit: u64,
        /// Where our log ends.
        last: u64,
    },
    /// What was read from disk does not fit together.
    #[error("cannot start consensus: {0}")]
    Start(String),
    /// A conf change that cannot be applied.
    #[error(transparent)]
    ConfChange(#[from] ConfChangeError),
}

/// One member's consensus.
pub struct Driver {
    node: RawNode<Log>,
    config: Config,
    random: StdRng,
    /// The jitter that was last set, to notice that raft-rs has drawn its own.
    timeout_ticks: usize,
    /// The newest batch that is persisted.
    persisted: u64,
    /// The newest batch that changed term or vote.
    vote_batch: u64,
    /// The newest batch with entries or a snapshot.
    log_batch: u64,
    /// How far the state machine is; raft-rs is told as far as it can take it.
    applied: u64,
    /// A snapshot that raft-rs counts as applied once its batch is persisted: batch and index.
    snapshot: Option<(u64, u64)>,
    /// Changes that took this leader's vote away, and what came after them; raft-rs gets them when it leads no more.
    postponed: Vec<eraftpb::ConfChange>,
    /// Reads that came before this leader committed anything in its term.
    early_reads: VecDeque<eraftpb::Message>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("id", &self.config.id).field("status", &self.status()).finish()
    }
}

impl Driver {
    /// Starts from what the disk holds.
    ///
    /// # Errors
    /// [`DriverError::Start`] when that does not fit together.
    pub fn new(config: Config, start: Start) -> Result<Self, DriverError> {
        let log = Log::new(&config, start)?;
        let raft_config = raft::Config {
            id: config.id,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            // raft-rs's own draws: far outside of ours, so that we notice each of them and replace it.
            min_election_tick: config.election_ticks,
            max_election_tick: config.election_ticks.saturating_add(1 << 40),
            applied: config.applied,
            max_size_per_msg: config.max_message_bytes,
            max_inflight_msgs: config.max_inflight,
            check_quorum: true,
            pre_vote: config.pre_vote,
            read_only_option: if mutant::on(mutant::ReadsByLease) {
                ReadOnlyOption::LeaseBased
            } else {
                ReadOnlyOption::Safe
            },
            max_uncommitted_size: config.max_uncommitted_bytes,
            max_committed_size_per_ready: config.max_committed_bytes,
            ..raft::Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&raft_config, log, &logger).map_err(|e| DriverError::Start(e.to_string()))?;
        let random = StdRng::seed_from_u64(config.seed);
        let mut driver = Self {
            node,
            random,
            timeout_ticks: 0,
            persisted: 0,
            vote_batch: 0,
            log_batch: 0,
            applied: config.applied,
            snapshot: None,
            postponed: Vec::new(),
            early_reads: VecDeque::new(),
            config,
        };
        driver.after_step();
        Ok(driver)
    }

    /// One tick of the clock.
    pub fn tick(&mut self) {
        // An election timeout waits while it could not be acted upon: a moment, unless the disk hangs.
        if self.leads() || self.may_campaign() {
            self.node.tick();
            self.after_step();
        }
    }

    /// Campaigns now, without waiting for the election timeout; asks with a pre-vote first if that is configured. For a sole
    /// voter, which waits for nobody, and after [`Driver::leader_lost`]. Does nothing where this member cannot lead.
    pub fn campaign(&mut self) {
        if self.node.raft.promotable() && self.may_campaign() {
            // The only error is a local message refused, which a campaign is not.
            drop(self.node.campaign());
            self.after_step();
        }
    }

    /// The leader's process is known to be gone: it is forgotten, so that it no longer keeps this member from granting
    /// pre-votes. A wrong belief does no harm to a leader that works: its next heartbeat makes it known again, and the members
    /// that hear from it refuse the pre-votes of those who do not.
    ///
    /// Answers this member's place in the line of succession: 0 campaigns now, others after that many heartbeat intervals
    /// in which still no leader is known, so that they do not take each other's votes. None for members that must not:
    /// learners, and all where pre-vote is off, because a wrong belief would then depose the leader.
    pub fn leader_lost(&mut self) -> Option<usize> {
        let leader = self.node.raft.leader_id;
        if self.leads() || leader == 0 {
            return None;
        }
        self.node.raft.leader_id = 0;
        self.after_step();
        if !self.config.pre_vote || !self.node.raft.promotable() {
            return None;
        }
        // In a ring, so that the same member does not come first every time.
        let own = self.config.id;
        let voters = &self.conf_state().voters;
        let distance = |id: u64| id.wrapping_sub(leader);
        Some(voters.iter().filter(|id| **id != leader && distance(**id) < distance(own)).count())
    }

    /// A leader that can no longer keep its promises (its disk hangs) follows nobody in the same term. It has voted in that
    /// term and its next campaign is a promise like any other, so it cannot lead before its disk answers.
    pub fn step_down(&mut self) {
        if self.leads() {
            let term = self.node.raft.term;
            self.node.raft.become_follower(term, raft::INVALID_ID);
            self.after_step();
        }
    }

    /// Hands leadership over to another voter, as soon as it has all of the log. Gives up after an election timeout.
    /// Answers whether that is under way: not if this member does not lead, or `to` is no other voter.
    pub fn transfer_leader(&mut self, to: u64) -> bool {
        if !self.leads() {
            return false;
        }
        self.node.transfer_leader(to);
        self.node.raft.lead_transferee == Some(to)
    }

    /// Proposes entries, all or none. A follower forwards them to its leader, and then nobody tells what became of them.
    ///
    /// # Errors
    /// [`DriverError::Dropped`] when there is no leader to take them.
    pub fn propose(&mut self, data: Vec<Bytes>) -> Result<(), DriverError> {
        self.propose_entries(
            data.into_iter().map(|data| message::entry_of(eraftpb::EntryType::EntryNormal, data)).collect(),
        )
    }

    /// Proposes an encoded `raftpb.ConfChange`.
    ///
    /// # Errors
    /// As [`Driver::propose`]; when this member leads and an earlier change is not applied yet; and when the change
    /// cannot be understood. A follower cannot know of an earlier change: its leader puts an empty entry in place of this one.
    pub fn propose_conf_change(&mut self, data: Bytes) -> Result<(), DriverError> {
        conf_change::decode(&data)?;
        if self.leads() && self.node.raft.has_pending_conf() {
            return Err(DriverError::ConfChangePending);
        }
        self.propose_entries(vec![message::entry_of(eraftpb::EntryType::EntryConfChange, data)])
    }

    fn propose_entries(&mut self, entries: Vec<eraftpb::Entry>) -> Result<(), DriverError> {
        if entries.is_empty() {
            return Ok(());
        }
        if self.is_removed_leader() {
            return Err(DriverError::Dropped);
        }
        let mut message = eraftpb::Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.config.id;
        message.set_entries(entries.into());
        self.node.raft.step(message).map_err(|_| DriverError::Dropped)
    }

    /// Asks for a read index. The answer comes as `Effects::reads` with the same context, or not at all when
    /// a leader or a message is lost: ask again with a new context, which must be unique among members and restarts.
    pub fn read_index(&mut self, context: u64) {
        let mut message = eraftpb::Message::default();
        message.set_msg_type(MessageType::MsgReadIndex);
        message.from = self.config.id;
        let context = Bytes::copy_from_slice(&context.to_le_bytes());
        message.set_entries(vec![message::entry_of(eraftpb::EntryType::EntryNormal, context)].into());
        self.step_read(message);
    }

    fn step_read(&mut self, message: eraftpb::Message) {
        if self.leads() {
            // A removed leader has no say in who confirms it.
            if self.is_removed_leader() || self.node.raft.pending_read_count() >= MAX_READS {
                return;
            }
            if !self.node.raft.commit_to_current_term() {
                if self.early_reads.len() < MAX_READS {
                    self.early_reads.push_back(message);
                }
                return;
            }
        }
        // raft-rs refuses no read.
        drop(self.node.raft.step(message));
    }

    /// Handles a message from a peer.
    ///
    /// # Errors
    /// - [`DriverError::Refused`] for what no peer may send. Nothing has changed.
    /// - [`DriverError::Dropped`] for a proposal that found no leader here.
    /// - [`DriverError::LogLost`]: this member must stop.
    pub fn step(&mut self, message: raftpb::Message) -> Result<(), DriverError> {
        let message = message::from_wire(message, self.config.id)?;
        let raft = &self.node.raft;
        let last = raft.raft_log.last_index();
        match message.get_msg_type() {
            MessageType::MsgPropose if self.is_removed_leader() => return Err(DriverError::Dropped),
            // Two members that take each other for the leader would play it back and forth.
            MessageType::MsgPropose if message.from == raft.leader_id => return Err(DriverError::Dropped),
            MessageType::MsgReadIndex => {
                if message.from != raft.leader_id {
                    self.step_read(message);
                }
                return Ok(());
            }
            MessageType::MsgHeartbeat if message.commit > last => {
                let heard = message.term > raft.term || (message.term == raft.term && !self.leads());
                return if heard { Err(DriverError::LogLost { commit: message.commit, last }) } else { Ok(()) };
            }
            // Only a leader is concerned: one that lost its tail in a crash may still get the answers to it.
            MessageType::MsgAppendResponse
                if self.leads() && !message.reject && message.term == raft.term && message.index > last =>
            {
                return Err(MessageError::BeyondLog { index: message.index, last }.into());
            }
            MessageType::MsgRequestVoteResponse if message.term == raft.term => {
                // The vote was asked for only once it was persisted; the receipt may still be on its way to us.
                if raft.state == StateRole::Candidate {
                    self.persisted(self.vote_batch);
                }
                if !self.log_is_persisted() {
                    return Ok(());
                }
            }
            // It is for leaders; raft-rs panics when it is to pass one on.
            MessageType::MsgTransferLeader if !self.leads() => return Ok(()),
            // Either may make a sole voter lead at once, and a member campaign.
            MessageType::MsgTimeoutNow | MessageType::MsgRequestPreVoteResponse if !self.may_campaign() => {
                return Ok(());
            }
            _ => {}
        }
        if mutant::on(mutant::QuorumOfTwo) && message.get_msg_type() == MessageType::MsgAppendResponse {
            self.count_for_all(&message);
        }
        let result = self.node.step(message);
        self.after_step();
        match result {
            // An answer from a member that is no more; it comes too late, that is all.
            Ok(()) | Err(raft::Error::StepPeerNotFound) => Ok(()),
            Err(raft::Error::ProposalDropped) => Err(DriverError::Dropped),
            Err(error) => Err(MessageError::Raft(error.to_string()).into()),
        }
    }

    /// A deliberate bug: what one follower acknowledges, all have acknowledged.
    fn count_for_all(&mut self, message: &eraftpb::Message) {
        for id in self.conf_state().voters.clone() {
            drop(self.node.step(eraftpb::Message { from: id, ..message.clone() }));
        }
    }

    /// A message could not be delivered. The leader then feels its way to where that member is.
    pub fn report_unreachable(&mut self, id: u64) {
        self.node.report_unreachable(id);
    }

    /// What became of a MsgSnap: whether its receiver has it. After a failure the next one is sent when a heartbeat of that
    /// member is answered, so failures cannot follow one another faster than that.
    pub fn report_snapshot(&mut self, id: u64, delivered: bool) {
        self.node.report_snapshot(id, if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
    }

    /// What has to be done now, if anything.
    pub fn ready(&mut self) -> Option<Effects> {
        self.ask_early_reads();
        if !self.node.has_ready() {
            return None;
        }
        let mut ready = self.node.ready();
        let number = ready.number();
        let entries = ready.take_entries();
        let snapshot = (!ready.snapshot().is_empty()).then(|| snapshot_from_raft(ready.snapshot()));
        if !entries.is_empty() || snapshot.is_some() {
            self.log_batch = number;
        }
        // raft-rs reads entries back from storage as soon as the batch is handed over; that they are not yet synced is
        // what `persisted` is for.
        let store = self.node.mut_store();
        if let Some(snapshot) = &snapshot {
            store.reset(snapshot.index, snapshot.term, snapshot.conf_state.clone());
            self.snapshot = Some((number, snapshot.index));
            self.postponed.clear();
        }
        let store = self.node.mut_store();
        let mut effects = Effects {
            number,
            snapshot,
            hard_state: ready.hs().map(|h| HardState { term: h.term, vote: h.vote, commit: h.commit }),
            must_sync: ready.must_sync(),
            entries: entries.iter().map(from_raft).collect(),
            committed: ready.take_committed_entries().iter().map(from_raft).collect(),
            reads: ready
                .take_read_states()
                .into_iter()
                .filter_map(|r| Some((u64::from_le_bytes(r.request_ctx.as_slice().try_into().ok()?), r.index)))
                .collect(),
            ..Effects::default()
        };
        store.append(entries);
        if let Some(hard_state) = ready.hs()
            && store.set_hard_state(hard_state)
        {
            self.vote_batch = number;
        }
        let term_is_persisted = self.vote_batch <= self.persisted;
        for message in ready.take_messages().into_iter().chain(ready.take_persisted_messages()) {
            let out = match message.get_msg_type() {
                // Nothing in these speaks of our disk. A member that answers a heartbeat of term t has not voted in a later
                // one; were it to forget t, it would still not have.
                MessageType::MsgHeartbeatResponse
                | MessageType::MsgPropose
                | MessageType::MsgReadIndex
                | MessageType::MsgTransferLeader => &mut effects.messages,
                // A leader replicates in parallel with its own disk (raft thesis 10.2.1).
                MessageType::MsgAppend
                | MessageType::MsgHeartbeat
                | MessageType::MsgSnapshot
                | MessageType::MsgTimeoutNow
                | MessageType::MsgReadIndexResp
                    if term_is_persisted =>
                {
                    &mut effects.messages
                }
                _ if mutant::on(mutant::AckBeforeSync) => &mut effects.messages,
                _ => &mut effects.promises,
            };
            out.push(message::to_wire(message));
        }
        self.node.advance_append_async(ready);
        if mutant::on(mutant::LeaderCountsUnsynced) && self.leads() {
            self.persisted(number);
        }
        Some(effects)
    }

    fn ask_early_reads(&mut self) {
        if self.early_reads.is_empty() {
            return;
        }
        if !self.leads() {
            // Those who asked will ask the next leader.
            self.early_reads.clear();
        } else if self.node.raft.commit_to_current_term() {
            for read in std::mem::take(&mut self.early_reads) {
                self.step_read(read);
            }
        }
    }

    /// The batch of that number, and all before it, are synced.
    pub fn persisted(&mut self, number: u64) {
        if number <= self.persisted {
            return;
        }
        self.persisted = number;
        self.node.on_persist_ready(number);
        // The state machine may take its time to install a snapshot; for raft-rs the log simply begins there.
        if let Some((batch, index)) = self.snapshot
            && batch <= number
        {
            self.snapshot = None;
            self.applied = self.applied.max(index);
        }
        self.advance_applied();
    }

    /// The log is applied up to `index`.
    pub fn applied(&mut self, index: u64) {
        self.applied = self.applied.max(index);
        self.advance_applied();
    }

    fn advance_applied(&mut self) {
        let log = &self.node.raft.raft_log;
        let index = self.applied.min(log.committed).min(log.persisted);
        if index > log.applied {
            self.node.advance_apply_to(index);
            self.node.mut_store().set_applied(index);
        }
    }

    /// Puts a committed conf change into force. Returns the new membership, as etcd stores it. An entry that a snapshot
    /// has overtaken changes nothing.
    ///
    /// # Errors
    /// When it cannot be understood or would leave no voter; every member fails alike, so the caller logs it
    /// and goes on with the membership unchanged.
    pub fn apply_conf_change(&mut self, entry: &Entry) -> Result<raftpb::ConfState, DriverError> {
        if entry.index < self.node.store().first() {
            return Ok(self.conf_state().clone());
        }
        let change = conf_change::decode(&entry.data)?;
        let next = next_conf_state(self.conf_state(), &change);
        if next.voters.is_empty() {
            return Err(ConfChangeError("would remove the last voter".to_owned()).into());
        }
        let change = conf_change::to_raft(&change);
        let votes = next.voters.binary_search(&self.config.id).is_ok();
        if self.leads() && (!votes || self.is_removed_leader()) {
            self.postponed.push(change);
        } else {
            self.put_in_force(&change)?;
            let raft = &mut self.node.raft;
            if !votes && matches!(raft.state, StateRole::Candidate | StateRole::PreCandidate) {
                let term = raft.term;
                raft.become_follower(term, raft::INVALID_ID);
            }
            let agreed = conf_change::conf_state_from_raft(&self.node.raft.prs().conf().to_conf_state());
            assert_eq!((&agreed.voters, &agreed.learners), (&next.voters, &next.learners), "two readings of {entry:?}");
        }
        self.node.mut_store().set_conf_state(next.clone());
        self.after_step();
        Ok(next)
    }

    fn put_in_force(&mut self, change: &eraftpb::ConfChange) -> Result<(), ConfChangeError> {
        self.node.apply_conf_change(change).map(drop).map_err(|e| ConfChangeError(e.to_string()))
    }

    /// Forgets the log up to and including `index`, as far as it is applied.
    pub fn compact(&mut self, index: u64) {
        let index = index.min(self.node.raft.raft_log.applied);
        self.node.mut_store().compact(index);
    }

    /// First index still in the log.
    pub fn first_index(&self) -> u64 {
        self.node.store().first()
    }

    /// Term of a log entry still held, or of the one just before the first.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        // raft-rs answers 0 for an index outside the log.
        self.node.raft.raft_log.term(index).ok().filter(|term| *term != 0 || index == 0)
    }

    /// The hard state as it would be written now.
    pub fn hard_state(&self) -> HardState {
        let h = self.node.raft.hard_state();
        HardState { term: h.term, vote: h.vote, commit: h.commit }
    }

    /// The membership that is in force. IDs are sorted.
    pub fn conf_state(&self) -> &raftpb::ConfState {
        self.node.store().conf_state()
    }

    /// Where consensus stands.
    pub fn status(&self) -> Status {
        let raft = &self.node.raft;
        let conf_state = self.conf_state();
        let voter = conf_state.voters.binary_search(&self.config.id).is_ok();
        let sole_voter = voter && conf_state.voters.len() == 1;
        Status {
            term: raft.term,
            leader: raft.leader_id,
            role: match raft.state {
                StateRole::Follower => Role::Follower,
                StateRole::PreCandidate => Role::PreCandidate,
                StateRole::Candidate => Role::Candidate,
                StateRole::Leader => Role::Leader,
            },
            commit_index: raft.raft_log.committed,
            last_index: raft.raft_log.last_index(),
            voters: conf_state.voters.len(),
            voter,
            sole_voter,
            alone: sole_voter && conf_state.learners.is_empty(),
            learner: conf_state.learners.binary_search(&self.config.id).is_ok(),
            committed_in_term: raft.commit_to_current_term(),
            transfer_to: raft.lead_transferee.unwrap_or(0),
        }
    }

    /// The members as this leader sees them, itself among them, by ID. Nothing from a member that does not lead.
    pub fn progress(&self) -> Vec<Progress> {
        if !self.leads() {
            return Vec::new();
        }
        let trackers = self.node.raft.prs();
        let mut members: Vec<Progress> = trackers
            .iter()
            .map(|(id, progress)| Progress {
                id: *id,
                matched: progress.matched,
                next: progress.next_idx,
                learner: trackers.conf().learners().contains(id),
                recent_active: progress.recent_active || *id == self.config.id,
                state: match progress.state {
                    raft::ProgressState::Probe => ProgressState::Probe,
                    raft::ProgressState::Replicate => ProgressState::Replicate,
                    raft::ProgressState::Snapshot => ProgressState::Snapshot,
                },
            })
            .collect();
        members.sort_unstable_by_key(|member| member.id);
        members
    }

    fn leads(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    fn is_removed_leader(&self) -> bool {
        !self.postponed.is_empty()
    }

    /// Whether all of the log is on disk. raft-rs takes that for granted when it becomes a leader.
    fn log_is_persisted(&self) -> bool {
        let log = &self.node.raft.raft_log;
        self.log_batch <= self.persisted && log.persisted == log.last_index()
    }

    /// Whether an election could begin now. It reads what is committed and not applied, which a snapshot that is not yet
    /// persisted has taken from the log; and a sole voter wins it at once.
    fn may_campaign(&self) -> bool {
        let sole_voter = self.node.raft.prs().is_singleton();
        self.snapshot.is_none() && (!sole_voter || self.log_is_persisted())
    }

    /// After everything that may have changed this member's role.
    fn after_step(&mut self) {
        if !self.postponed.is_empty() && !self.leads() {
            for change in std::mem::take(&mut self.postponed) {
                // Their effect has been worked out before they were postponed.
                let result = self.put_in_force(&change);
                assert!(result.is_ok(), "postponed change failed: {result:?}");
            }
        }
        // raft-rs draws its election jitter from a thread-local generator; ours replaces it wherever it may have been
        // drawn again, so that a run is a function of its seed.
        if self.node.raft.randomized_election_timeout() != self.timeout_ticks {
            let base = self.config.election_ticks;
            self.timeout_ticks = self.random.random_range(base..2 * base);
            self.node.raft.set_randomized_election_timeout(self.timeout_ticks);
        }
    }
}

fn snapshot_from_raft(snapshot: &eraftpb::Snapshot) -> Snapshot {
    let metadata = snapshot.get_metadata();
    Snapshot {
        index: metadata.index,
        term: metadata.term,
        conf_state: conf_change::conf_state_from_raft(metadata.get_conf_state()),
        data: snapshot.data.clone(),
    }
}

fn from_raft(entry: &eraftpb::Entry) -> Entry {
    Entry {
        kind: match entry.get_entry_type() {
            eraftpb::EntryType::EntryNormal => EntryKind::Normal,
            eraftpb::EntryType::EntryConfChange => EntryKind::ConfChange,
            eraftpb::EntryType::EntryConfChangeV2 => EntryKind::ConfChangeV2,
        },
        term: entry.term,
        index: entry.index,
        data: message::data_of(entry).clone(),
    }
}

fn to_raft(entry: Entry) -> eraftpb::Entry {
    let kind = match entry.kind {
        EntryKind::Normal => eraftpb::EntryType::EntryNormal,
        EntryKind::ConfChange => eraftpb::EntryType::EntryConfChange,
        EntryKind::ConfChangeV2 => eraftpb::EntryType::EntryConfChangeV2,
    };
    let mut out = message::entry_of(kind, entry.data);
    out.term = entry.term;
    out.index = entry.index;
    out
}

#[cfg(test)]
mod tests;
