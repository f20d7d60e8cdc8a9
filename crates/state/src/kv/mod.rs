//! Keys and values: ranges, puts, deletes and transactions over the store's revisions.

pub(crate) mod range;
pub(crate) mod stream;
pub(crate) mod txn;
pub(crate) mod write;

use prost::Message;
use proto::mvccpb::KeyValue;
use store::{Found, Store, StoreError};

use crate::Error;

/// Why an operation did not happen. A refusal is an answer, the same on every member; trouble with the own disk is not.
#[derive(Debug)]
pub(crate) enum Failure {
    Refused(Error),
    Store(StoreError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Compacted => Self::Refused(Error::Compacted),
            StoreError::FutureRevision => Self::Refused(Error::FutureRev),
            other => Self::Store(other),
        }
    }
}

/// For a reader, trouble with the disk is one more answer.
impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(error) => error,
            Failure::Store(error) => Self::Internal(error.to_string()),
        }
    }
}

/// The pair a version holds. The caller has pinned its revision.
pub(crate) fn read(store: &Store, found: &Found) -> Result<KeyValue, Failure> {
    decode(store.read(found.location)?)
}

/// Decodes stored bytes. They have passed their checksum, so they can only be wrong if we wrote them so; still nothing
/// that comes from a disk may panic.
pub(crate) fn decode(payload: bytes::Bytes) -> Result<KeyValue, Failure> {
    KeyValue::decode(payload).map_err(|error| {
        let what = format!("the pair in it does not decode: {error}");
        Failure::Store(StoreError::Corrupt { file: "store".into(), offset: 0, what })
    })
}
