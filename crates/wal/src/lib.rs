//! What a member has promised to remember: etcd's write-ahead log and its `.snap` files, byte for byte.
//!
//! A vote or an acknowledgement is a promise, and a promise outlives a crash only if it is on disk first. Replaying the
//! log at start rebuilds every promise made since the last snapshot. Start reading at [`Wal::open`].
//!
//! # What lies on disk
//!
//! A directory of segments, `<sequence>-<index>.wal` (16 hex digits each), where `index` is that of the first entry the
//! segment may hold. A segment is a row of frames and then zeros:
//!
//! ```text
//! frame   = length, body, 0 to 7 zero bytes up to a multiple of 8
//! length  = 8 bytes little-endian: low 56 bits the body's length; top byte 0x80 | padding if there is padding
//! body    = protobuf { 1: record type, 2: checksum, 3: data }
//! records = metadata (1), entry (2), hard state (3), checksum (4), snapshot mark (5)
//! ```
//!
//! A length of zero is the end of a segment. The checksum is CRC-32C over the data of *all* records so far, so that a
//! lost record cannot go unseen; a checksum record carries it from one segment into the next.
//!
//! # Invariants
//!
//! - As read back, indexes are contiguous and terms never go down; both are checked on append *and* on replay.
//! - An entry written again at an index replaces that one and everything after it.
//! - Only the last segment may end in a torn record; anywhere else that is damage, and we refuse to start. A record that
//!   later ones prove to have been synced was not torn either (etcd would cut it off, and them with it).
//! - Behind the last record there are only zeros, durably, before anything is appended.
//! - After a failed write or sync nothing more is written: nobody knows what the disk holds, and asking it again
//!   may give a wrong "yes".
//!
//! # Absent
//!
//! This crate does not know what an entry means, has no thread and no clock: the slow part of making a segment is
//! handed out as [`Prepare`], for a thread of the caller's.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use proto::raftpb;

mod log;
mod prepare;
mod record;
mod segment;
pub mod snap;
#[cfg(test)]
mod tests;

pub use log::{Repair, Replay, Stats, Synced, Wal};
pub use prepare::{Prepare, Prepared};

/// Who wrote a log: the first record of every segment. Opening somebody else's log is the caller's to notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The member's ID.
    pub node_id: u64,
    /// The cluster's ID.
    pub cluster_id: u64,
}

/// Where a snapshot stands in the log: everything up to `index` is in the snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SnapshotMark {
    /// Index of the last entry in the snapshot.
    pub index: u64,
    /// Term of that entry.
    pub term: u64,
    /// Who voted at that index. etcd 3.4 does not write it.
    pub conf_state: Option<raftpb::ConfState>,
}

impl SnapshotMark {
    /// The mark that every new log begins with: a log from its very beginning.
    pub const START: SnapshotMark = SnapshotMark { index: 0, term: 0, conf_state: None };
}

/// What an entry's data is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EntryKind {
    /// A request, or nothing (a new leader's first entry).
    #[default]
    Normal,
    /// A `raftpb.ConfChange`.
    ConfChange,
    /// A `raftpb.ConfChangeV2`.
    ConfChangeV2,
}

/// One entry of the replicated log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// What `data` is.
    pub kind: EntryKind,
    /// Term of the leader that made it.
    pub term: u64,
    /// Position in the log, from 1.
    pub index: u64,
    /// The bytes that are agreed upon.
    pub data: Bytes,
}

/// What a member must not forget besides entries. All zero means: nothing yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The newest term seen.
    pub term: u64,
    /// Whom this member voted for in that term; 0 for nobody.
    pub vote: u64,
    /// The highest index known to be committed.
    pub commit: u64,
}

/// Why a log could not be created, read or written. Files are named with their directory, offsets are those of the frame.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The directory holds no log.
    #[error("{}: no log segments here", dir.display())]
    NotFound {
        /// Where we looked.
        dir: PathBuf,
    },
    /// A log is already there; it is never overwritten.
    #[error("{}: a log is already here", dir.display())]
    Exists {
        /// Where it is.
        dir: PathBuf,
    },
    /// Another process works on this log.
    #[error("{}: locked by another process", file.display())]
    Locked {
        /// The locked segment.
        file: PathBuf,
    },
    /// A segment is missing in the row.
    #[error("{}: segment {missing:016x} is missing before {}", dir.display(), before)]
    MissingSegment {
        /// The log's directory.
        dir: PathBuf,
        /// Sequence number that is not there.
        missing: u64,
        /// Name of the segment behind the hole.
        before: String,
    },
    /// The snapshot to start from is older than everything that is still in the log.
    #[error("{}: the log begins behind index {index}", dir.display())]
    StartsLater {
        /// The log's directory.
        dir: PathBuf,
        /// The snapshot's index.
        index: u64,
    },
    /// A record's checksum does not fit the records up to it.
    #[error("{}: record at byte {offset}: checksum {found:08x}, expected {expected:08x}", file.display())]
    ChecksumMismatch {
        /// The damaged segment.
        file: PathBuf,
        /// Where the record's frame begins.
        offset: u64,
        /// What the bytes before call for.
        expected: u32,
        /// What the record says.
        found: u32,
    },
    /// A record near the end is missing or damaged, and it is not a torn write: what follows it was written later.
    #[error(
        "{}: record at byte {offset} is lost, though it had been synced before the one at byte {later} was written",
        file.display()
    )]
    LostRecord {
        /// The damaged segment.
        file: PathBuf,
        /// Where the lost record's frame begins.
        offset: u64,
        /// Where a record of a later batch begins.
        later: u64,
    },
    /// A frame or record that makes no sense.
    #[error("{}: record at byte {offset}: {problem}", file.display())]
    Malformed {
        /// The damaged segment.
        file: PathBuf,
        /// Where the record's frame begins.
        offset: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Entries are missing from the log.
    #[error("{}: record at byte {offset}: entry {found} where {expected} or an earlier one should follow", file.display())]
    MissingEntries {
        /// The segment.
        file: PathBuf,
        /// Where the record's frame begins.
        offset: u64,
        /// The index that would have followed.
        expected: u64,
        /// The index found.
        found: u64,
    },
    /// Segments of different members or clusters in one log.
    #[error("{}: record at byte {offset}: written by {found:?}, but the log began as {expected:?}", file.display())]
    ConflictingIdentity {
        /// The segment.
        file: PathBuf,
        /// Where the record's frame begins.
        offset: u64,
        /// Who wrote the beginning.
        expected: Identity,
        /// Who wrote this segment.
        found: Identity,
    },
    /// No segment says who wrote it.
    #[error("{}: no metadata record in the log", dir.display())]
    NoIdentity {
        /// The log's directory.
        dir: PathBuf,
    },
    /// The snapshot to start from was never recorded in this log.
    #[error("{}: no record of a snapshot at index {index}", dir.display())]
    SnapshotNotFound {
        /// The log's directory.
        dir: PathBuf,
        /// The snapshot's index.
        index: u64,
    },
    /// The log knows a snapshot at this index, but of another term.
    #[error("{}: the snapshot at index {index} has term {found} in the log, not {wanted}", dir.display())]
    SnapshotMismatch {
        /// The log's directory.
        dir: PathBuf,
        /// The snapshot's index.
        index: u64,
        /// The term asked for.
        wanted: u64,
        /// The term in the log.
        found: u64,
    },
    /// An earlier write or sync has failed; this log takes no more.
    #[error("{}: the log is closed, because an earlier write or sync failed", dir.display())]
    Closed {
        /// The log's directory.
        dir: PathBuf,
    },
    /// The disk refused.
    #[error("{}: {action}", file.display())]
    Io {
        /// The file or directory.
        file: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
}

/// For `map_err`: an I/O error together with where it happened.
fn io_error<'a>(file: &'a Path, action: &'static str) -> impl FnOnce(io::Error) -> WalError + 'a {
    move |source| WalError::Io { file: file.to_owned(), action, source }
}
