//! Clients: what they have asked, and what they make of the answers.

use proto::etcdserverpb as pb;
use state::{Error, Response};

use crate::locker::Locker;
use crate::workload::Ask;

/// What came of an operation.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A write was answered.
    Wrote(Result<Response, Error>),
    /// A range was answered.
    Ranged(Result<pb::RangeResponse, Error>),
    /// A transaction that only reads was answered.
    ReadTxn(Result<pb::TxnResponse, Error>),
    /// A lease was renewed for so many seconds; 0 if it is not there.
    Renewed(Result<i64, Error>),
    /// It never reached the member.
    Unsent,
    /// Nobody will ever say.
    Lost,
}

impl Outcome {
    /// Whether the cluster has done what was asked.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Wrote(result) => result.is_ok(),
            Self::Ranged(result) => result.is_ok(),
            Self::ReadTxn(result) => result.is_ok(),
            Self::Renewed(result) => result.is_ok(),
            Self::Unsent | Self::Lost => false,
        }
    }
}

/// An operation under way.
#[derive(Clone, Debug)]
pub struct Op {
    /// Whose.
    pub client: usize,
    /// Counted per client.
    pub number: u64,
    /// What it is called in the log, if it goes there.
    pub tag: String,
    /// What is asked.
    pub ask: Ask,
    /// The newest index of the log that anybody had been told of when it was asked.
    pub floor: u64,
    /// When, in microseconds of true time.
    pub asked_us: u64,
}

/// A client, with at most one operation under way.
#[derive(Debug, Default)]
pub struct Client {
    /// What it waits for.
    pub waiting: Option<Op>,
    /// How many operations it has begun.
    pub begun: u64,
    /// The seat it talks to.
    pub seat: usize,
    /// What it wants, if that is a lock.
    pub locker: Option<Locker>,
}

/// Whether an error tells what the request came to when it was applied; any other leaves that open.
pub fn is_verdict(error: &Error) -> bool {
    matches!(
        error,
        Error::KeyNotFound
            | Error::LeaseNotFound
            | Error::LeaseExist
            | Error::LeaseTTLTooLarge
            | Error::Compacted
            | Error::FutureRev
    )
}
