//! Consensus: drives raft-rs and is the only crate that sees it.
//!
//! [`Driver`] is a value without clock, threads or I/O. Everything that happens to a member's consensus is a method call
//! (a tick, a proposal, a message, a receipt from the disk), and everything that has to be done about it comes out of
//! [`Driver::ready`] as [`Effects`]. Randomness comes from a seed handed in at construction.
//!
//! # What the caller owes
//! - `Effects` come in order and are carried out in order; `persisted` is called only when the entries and the hard state
//!   of that `Effects` are synced, `applied` only when the committed entries are applied.
//! - `messages` may leave at once (raft thesis 10.2.1: a leader replicates in parallel with its own disk). `promises`
//!   (votes, acknowledgements) may leave only after the `Effects` they came with are persisted.
//!
//! # Bridging to etcd (design section 9)
//! Log entries hold etcd's bytes, in memory, in the WAL and on the wire. raft-rs reads an entry's data only to see
//! whether a proposed conf change is empty, and with the rust-protobuf codec an unknown enum value there does no harm; what a
//! conf change means is decided by [`conf_change`], from our own decoding.

mod conf_change;
mod log;

use bytes::Bytes;
use proto::raftpb;
use raft::eraftpb;
use raft::{RawNode, ReadOnlyOption, StateRole};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wal::{Entry, EntryKind, HardState};

pub use conf_change::{ConfChangeError, next_conf_state};
use log::Log;
pub use raft::eraftpb::Message;

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

/// A member's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Role {
    /// Follows a leader, or waits for one.
    #[default]
    Follower,
    /// Asks whether it would win an election.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// Where consensus stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Status {
    /// Current term.
    pub term: u64,
    /// The leader of that term, 0 if unknown.
    pub leader: u64,
    /// This member's part.
    pub role: Role,
    /// Highest index known to be committed.
    pub commit_index: u64,
    /// Index of the newest entry in the log.
    pub last_index: u64,
    /// Whether this member is the only voter.
    pub sole_voter: bool,
    /// Whether there is no other member at all, so that nobody else needs the log.
    pub alone: bool,
    /// Whether this member is a learner.
    pub learner: bool,
    /// Whether an entry of the leader's own term is committed: only then may it answer reads.
    pub committed_in_term: bool,
}

/// What has to be done now.
#[derive(Debug, Default)]
pub struct Effects {
    /// Name of this batch for [`Driver::persisted`].
    pub number: u64,
    /// To be written, if it changed.
    pub hard_state: Option<HardState>,
    /// To be appended to the log; may replace a tail.
    pub entries: Vec<Entry>,
    /// Whether `promises` and the commit of `entries` wait for a sync. False only for a moved commit index.
    pub must_sync: bool,
    /// Messages that may leave now.
    pub messages: Vec<Message>,
    /// Messages that may leave once this batch is persisted.
    pub promises: Vec<Message>,
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
    /// A message that no peer may send.
    #[error("message refused: {0}")]
    Refused(raft::Error),
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
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("id", &self.config.id).field("status", &self.status()).finish()
    }
}

impl Driver {
    /// Starts from what the disk holds.
    pub fn new(config: Config, start: Start) -> Result<Self, DriverError> {
        let log = Log::new(&config, start)?;
        let raft_config = raft::Config {
            id: config.id,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            applied: config.applied,
            max_size_per_msg: config.max_message_bytes,
            max_inflight_msgs: config.max_inflight,
            check_quorum: true,
            pre_vote: config.pre_vote,
            read_only_option: ReadOnlyOption::Safe,
            max_uncommitted_size: config.max_uncommitted_bytes,
            max_committed_size_per_ready: config.max_committed_bytes,
            ..raft::Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&raft_config, log, &logger).map_err(|e| DriverError::Start(e.to_string()))?;
        let random = StdRng::seed_from_u64(config.seed);
        let mut driver = Self { node, config, random, timeout_ticks: 0 };
        driver.reseed();
        Ok(driver)
    }

    /// raft-rs draws its election jitter from a thread-local generator; ours replaces it wherever it may have been drawn
    /// again, so that a run is a function of its seed.
    fn reseed(&mut self) {
        if self.node.raft.randomized_election_timeout() != self.timeout_ticks {
            let base = self.config.election_ticks;
            self.timeout_ticks = self.random.random_range(base..2 * base);
            self.node.raft.set_randomized_election_timeout(self.timeout_ticks);
        }
    }

    /// One tick of the clock.
    pub fn tick(&mut self) {
        self.node.tick();
        self.reseed();
    }

    /// Campaigns now, without waiting for the election timeout. For a sole voter, which waits for nobody.
    pub fn campaign(&mut self) {
        // The only error is a local message refused, which a campaign is not.
        drop(self.node.campaign());
        self.reseed();
    }

    /// Proposes entries, all or none.
    ///
    /// # Errors
    /// [`DriverError::Dropped`] when there is no leader to take them.
    pub fn propose(&mut self, data: Vec<Bytes>) -> Result<(), DriverError> {
        self.propose_entries(data.into_iter().map(|d| (eraftpb::EntryType::EntryNormal, d)))
    }

    /// Proposes an encoded `raftpb.ConfChange`.
    ///
    /// # Errors
    /// As [`Driver::propose`]; and when the change cannot be understood.
    pub fn propose_conf_change(&mut self, data: Bytes) -> Result<(), DriverError> {
        conf_change::decode(&data)?;
        self.propose_entries(std::iter::once((eraftpb::EntryType::EntryConfChange, data)))
    }

    fn propose_entries(&mut self, data: impl Iterator<Item = (eraftpb::EntryType, Bytes)>) -> Result<(), DriverError> {
        let entries: Vec<eraftpb::Entry> = data
            .map(|(kind, data)| {
                let mut entry = eraftpb::Entry::default();
                entry.set_entry_type(kind);
                entry.data = data;
                entry
            })
            .collect();
        if entries.is_empty() {
            return Ok(());
        }
        let mut message = Message::default();
        message.set_msg_type(eraftpb::MessageType::MsgPropose);
        message.from = self.config.id;
        message.set_entries(entries.into());
        self.node.raft.step(message).map_err(|_| DriverError::Dropped)
    }

    /// Asks for a read index. The answer comes as `Effects::reads` with the same context, or not at all when
    /// leadership is lost: ask again with a new context.
    pub fn read_index(&mut self, context: u64) {
        self.node.read_index(context.to_le_bytes().to_vec());
    }

    /// Handles a message from a peer.
    ///
    /// # Errors
    /// [`DriverError::Refused`] for types that only a member itself may produce, and for an empty proposal (which would
    /// bring a real etcd down, too).
    pub fn step(&mut self, message: Message) -> Result<(), DriverError> {
        if message.get_msg_type() == eraftpb::MessageType::MsgPropose && message.get_entries().is_empty() {
            return Err(DriverError::Refused(raft::Error::ProposalDropped));
        }
        let result = self.node.step(message).map_err(DriverError::Refused);
        self.reseed();
        result
    }

    /// What has to be done now, if anything.
    pub fn ready(&mut self) -> Option<Effects> {
        if !self.node.has_ready() {
            return None;
        }
        let mut ready = self.node.ready();
        let entries = ready.take_entries();
        let effects = Effects {
            number: ready.number(),
            hard_state: ready.hs().map(|h| HardState { term: h.term, vote: h.vote, commit: h.commit }),
            must_sync: ready.must_sync(),
            entries: entries.iter().map(from_raft).collect(),
            messages: ready.take_messages(),
            promises: ready.take_persisted_messages(),
            committed: ready.take_committed_entries().iter().map(from_raft).collect(),
            reads: ready
                .take_read_states()
                .into_iter()
                .filter_map(|r| Some((u64::from_le_bytes(r.request_ctx.as_slice().try_into().ok()?), r.index)))
                .collect(),
        };
        // raft-rs reads entries back from storage as soon as the batch is handed over; that they are not yet synced is
        // what `persisted` is for.
        let store = self.node.mut_store();
        store.append(entries);
        if let Some(hard_state) = ready.hs() {
            store.set_hard_state(hard_state.clone());
        }
        self.node.advance_append_async(ready);
        Some(effects)
    }

    /// The batch of that number, and all before it, are synced.
    pub fn persisted(&mut self, number: u64) {
        self.node.on_persist_ready(number);
    }

    /// The log is applied up to `index`.
    pub fn applied(&mut self, index: u64) {
        self.node.advance_apply_to(index);
    }

    /// Puts a committed conf change (encoded `raftpb.ConfChange`) into force. Returns the new membership, encoded as etcd
    /// stores it.
    ///
    /// # Errors
    /// When it cannot be understood or would leave no voter; every member fails alike, so the caller logs it
    /// and goes on with the membership unchanged.
    pub fn apply_conf_change(&mut self, data: &[u8]) -> Result<raftpb::ConfState, DriverError> {
        let change = conf_change::decode(data)?;
        let conf_state =
            self.node.apply_conf_change(&conf_change::to_raft(&change)).map_err(|e| ConfChangeError(e.to_string()))?;
        self.node.mut_store().set_conf_state(conf_state.clone());
        Ok(conf_change::conf_state_from_raft(&conf_state))
    }

    /// Forgets the log up to and including `index`, which must be applied.
    pub fn compact(&mut self, index: u64) {
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

    /// Where consensus stands.
    pub fn status(&self) -> Status {
        let raft = &self.node.raft;
        let voters = raft.prs().conf().voters().ids();
        let mut voter_ids = voters.iter();
        let sole_voter = voter_ids.next() == Some(self.config.id) && voter_ids.next().is_none();
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
            sole_voter,
            alone: sole_voter && raft.prs().iter().count() == 1,
            learner: raft.prs().conf().learners().contains(&self.config.id),
            committed_in_term: raft.commit_to_current_term(),
        }
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
        data: entry.data.clone(),
    }
}

fn to_raft(entry: Entry) -> eraftpb::Entry {
    let mut out = eraftpb::Entry::default();
    out.set_entry_type(match entry.kind {
        EntryKind::Normal => eraftpb::EntryType::EntryNormal,
        EntryKind::ConfChange => eraftpb::EntryType::EntryConfChange,
        EntryKind::ConfChangeV2 => eraftpb::EntryType::EntryConfChangeV2,
    });
    out.term = entry.term;
    out.index = entry.index;
    out.data = entry.data;
    out
}

#[cfg(test)]
mod tests;
