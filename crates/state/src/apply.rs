//! One log entry in, one answer out.

use bytes::Bytes;
use proto::etcdserverpb as pb;
use proto::raftpb;
use store::{Mark, Store, StoreError, Writer};

use crate::{Error, Member, Reader};

/// What a member knows of itself when it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member.
    pub member_id: u64,
    /// Its cluster.
    pub cluster_id: u64,
    /// Space quota in bytes: 0 = the default of 2 GiB, negative = none.
    pub quota_bytes: i64,
    /// Heartbeat interval in milliseconds.
    pub heartbeat_ms: u64,
    /// Election timeout in milliseconds; leases last at least 1.5 of it.
    pub election_timeout_ms: u64,
}

/// Why a member must stop: its own disk or log failed it, so it cannot go on agreeing with its peers.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The store failed.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// A committed entry cannot be read.
    #[error("log entry {index}: {what}")]
    BadEntry {
        /// Index of the entry.
        index: u64,
        /// What is wrong with it.
        what: String,
    },
    /// A row of a table cannot be read.
    #[error("table {table}, row {key}: {what}")]
    BadRow {
        /// The table.
        table: &'static str,
        /// The row's key, printable.
        key: String,
        /// What is wrong with it.
        what: String,
    },
}

/// A successful answer to a logged request.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Response {
    Put(pb::PutResponse),
    DeleteRange(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Range(pb::RangeResponse),
    /// `physical`: the client wants to wait until [`State::compaction_done`].
    Compact {
        response: pb::CompactionResponse,
        physical: bool,
    },
    LeaseGrant(pb::LeaseGrantResponse),
    LeaseRevoke(pb::LeaseRevokeResponse),
    LeaseCheckpoint(pb::LeaseCheckpointResponse),
    Alarm(pb::AlarmResponse),
    /// For entries nobody waits for with more than "done": member attributes, versions, a leader's empty entry.
    None,
}

/// What applying a normal entry gave.
#[derive(Clone, Debug)]
pub struct Applied {
    /// `header.ID` of the request, by which its client is found; 0 = none.
    pub request_id: u64,
    /// The answer.
    pub result: Result<Response, Error>,
    /// The store is over its quota after this entry and no NOSPACE alarm is set: the server should propose one.
    pub raise_no_space: bool,
}

/// What a configuration change did to the member table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// Refused or without effect: the raft layer must be told to change nothing (node 0).
    None,
    /// A voter or learner was added.
    Added(Member),
    /// A learner became a voter.
    Promoted(Member),
    /// A member's peer URLs changed.
    Updated(Member),
    /// A member is gone for good.
    Removed(u64),
}

/// What applying a configuration change gave.
#[derive(Clone, Debug)]
pub struct ConfChanged {
    /// `ConfChange.id`, by which its client is found; 0 = none.
    pub request_id: u64,
    /// The effect.
    pub change: MemberChange,
    /// All members, sorted by ID, after the change; or why it was refused.
    pub result: Result<Vec<Member>, Error>,
}

/// The applying side; one owner.
#[derive(Debug)]
pub struct State {}

#[allow(unused_variables)]
impl State {
    /// Takes over an opened store and reads its tables.
    pub fn open(store: Store, writer: Writer, mark: &Mark, config: Config) -> Result<(Self, Reader), Fatal> {
        todo!()
    }

    /// Applies a committed normal entry. Deterministic: the same entries give the same answers and the same store on
    /// every member.
    pub fn apply(&mut self, index: u64, term: u64, data: &Bytes) -> Result<Applied, Fatal> {
        todo!()
    }

    /// Applies a committed configuration change to the member table.
    pub fn apply_conf_change(
        &mut self,
        index: u64,
        term: u64,
        change: &raftpb::ConfChange,
    ) -> Result<ConfChanged, Fatal> {
        todo!()
    }

    /// Notes the encoded `raftpb.ConfState`, which goes into the mark of the entry just applied and all later ones.
    pub fn set_conf_state(&mut self, conf_state: Bytes) {
        todo!()
    }

    /// Index of the last applied entry.
    pub fn applied_index(&self) -> u64 {
        todo!()
    }

    /// Hands buffered bytes to the file system; see [`Writer::flush`].
    pub fn flush(&mut self) -> Result<(), Fatal> {
        todo!()
    }

    /// Makes everything applied so far durable; the log up to the returned mark may be released.
    pub fn sync(&mut self) -> Result<Mark, Fatal> {
        todo!()
    }

    /// Whether all compactions that were asked for have been carried out.
    pub fn compaction_done(&self) -> bool {
        todo!()
    }

    /// Syncs and writes an index checkpoint for a fast next start.
    pub fn close(self) -> Result<(), Fatal> {
        todo!()
    }
}
