//! Revisions on disk: an append-only, checksummed segment log and an ordered in-memory key index.
//!
//! This file is the agreed interface between `store` and `state`; bodies are being written.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use disk::Disk;

/// A point in the history of the store. A transaction that writes advances `main` by one, however many keys it
/// touches; `sub` counts its changes, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// The transaction.
    pub main: i64,
    /// The change within it.
    pub sub: i64,
}

/// What the index knows of one version of a key without reading its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyMeta {
    /// `main` of the revision that created the key.
    pub create_revision: i64,
    /// The revision that wrote this version.
    pub modified: Revision,
    /// 1 for the creating put, one more for each later one.
    pub version: i64,
    /// Whether this version is attached to a lease.
    pub leased: bool,
}

/// Where a version's `mvccpb.KeyValue` bytes lie. Valid while the version is in the index (hold a [`Pin`] across
/// several calls to be sure of that).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// A version found in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its revisions.
    pub meta: KeyMeta,
    /// Its bytes.
    pub location: Location,
}

/// Keys from `start` to `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// First key, inclusive.
    pub start: Bytes,
    /// Where it ends.
    pub end: RangeEnd,
}

/// The end of a [`KeyRange`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeEnd {
    /// Only `start` itself.
    Single,
    /// All keys at or after `start`.
    Unbounded,
    /// Up to this key, exclusive; at or before `start` the range is empty.
    Before(Bytes),
}

impl KeyRange {
    /// The range that `key` and `range_end` of the API mean: empty end = one key, a single zero byte = to the end.
    pub fn from_wire(key: Bytes, range_end: Bytes) -> Self {
        let end = match range_end.as_ref() {
            [] => RangeEnd::Single,
            [0] => RangeEnd::Unbounded,
            _ => RangeEnd::Before(range_end),
        };
        Self { start: key, end }
    }
}

/// The small tables beside the keys; `newest wins`, held in memory, saved in the same log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Table {
    Meta = 1,
    Lease = 2,
    Alarm = 3,
    Cluster = 4,
    Members = 5,
    MembersRemoved = 6,
    Auth = 7,
    AuthUsers = 8,
    AuthRoles = 9,
    /// The v2 tree's own snapshot records.
    V2 = 10,
}

/// Up to where the log has been applied. Every flush ends with one; recovery goes back to the newest valid one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Index of the last applied log entry.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Encoded `raftpb.ConfState`.
    pub conf_state: Bytes,
}

/// Sizes in bytes, as the quota and `Status` see them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes of all segment files.
    pub total: u64,
    /// Bytes of frames that are still reachable.
    pub live: u64,
}

/// One change of one key, as a watcher needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// When.
    pub revision: Revision,
    /// Whether the key was deleted.
    pub deleted: bool,
    /// The KeyValue bytes (a tombstone's hold only the key).
    pub location: Location,
}

/// HashKV's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct HashKv {
    pub hash: u32,
    pub compact_revision: i64,
    pub hash_revision: i64,
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The revision asked for is below the compaction.
    #[error("required revision has been compacted")]
    Compacted,
    /// The revision asked for does not exist yet.
    #[error("required revision is a future revision")]
    FutureRevision,
    /// A frame does not match its checksum.
    #[error("{file}: frame at byte {offset}: {what}")]
    Corrupt {
        /// File name.
        file: String,
        /// Byte offset of the frame.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The disk refused.
    #[error("{file}: {action}")]
    Io {
        /// File name.
        file: String,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// Segment size in bytes at which a new one is begun.
    pub segment_bytes: u32,
    /// Bytes buffered before they are written to the file.
    pub flush_bytes: usize,
    /// Bytes of the newest frames kept in memory.
    pub recent_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, flush_bytes: 256 << 10, recent_bytes: 16 << 20 }
    }
}

/// The reading side; cheap to clone, used by many threads while the one [`Writer`] writes.
#[derive(Clone, Debug)]
pub struct Store(#[allow(dead_code)] Arc<()>);

/// The one writing side.
#[derive(Debug)]
pub struct Writer(#[allow(dead_code)] Store);

/// Keeps versions visible at its revision from being dropped or moved out of reach while it lives.
#[derive(Debug)]
pub struct Pin(#[allow(dead_code)] Store);

/// A version just written.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its revisions.
    pub meta: KeyMeta,
    /// Its `mvccpb.KeyValue` bytes, shared with the store's own buffer.
    pub payload: Bytes,
    /// What it replaced.
    pub previous: Option<Found>,
}

/// A key just deleted.
#[derive(Clone, Debug)]
pub struct Deleted {
    /// The tombstone's revision.
    pub revision: Revision,
    /// The tombstone's `mvccpb.KeyValue` bytes as stored: only the key (events add mod_revision).
    pub payload: Bytes,
    /// What it removed.
    pub previous: Found,
}

impl Store {
    /// Opens or creates a store in `dir`. Everything behind the last valid mark is cut; the caller replays its log from
    /// there.
    pub fn open(_disk: Arc<dyn Disk>, _dir: &Path, _options: Options) -> Result<(Self, Writer, Mark), StoreError> {
        todo!()
    }
    /// The newest published revision; 1 on an empty store.
    pub fn revision(&self) -> i64 {
        todo!()
    }
    /// The revision of the last compaction that was asked for; -1 if there never was one.
    pub fn compact_revision(&self) -> i64 {
        todo!()
    }
    /// The version of `key` visible at `at`.
    pub fn get(&self, _key: &[u8], _at: i64) -> Option<Found> {
        todo!()
    }
    /// Visits the keys of `range` that live at `at`, in key order, until `visit` breaks. The index lock is given up
    /// between chunks, and `visit` runs under it, so it must be quick and must not call the store.
    pub fn scan(&self, _range: &KeyRange, _at: i64, _visit: &mut dyn FnMut(&[u8], Found) -> ControlFlow<()>) {
        todo!()
    }
    /// How many keys of `range` live at `at`.
    pub fn count(&self, _range: &KeyRange, _at: i64) -> i64 {
        todo!()
    }
    /// The `mvccpb.KeyValue` bytes at `location`, checked against their checksum.
    pub fn read(&self, _location: Location) -> Result<Bytes, StoreError> {
        todo!()
    }
    /// The same for many, in the given order, with neighbouring frames read together.
    pub fn read_many(&self, _locations: &[Location], _each: &mut dyn FnMut(Bytes)) -> Result<(), StoreError> {
        todo!()
    }
    /// The changes of keys in `range` with `from <= main <= to`, in revision order: whole revisions only, at least one
    /// and about `max` changes. Second value: whether there are more after the last one.
    pub fn changes(
        &self,
        _range: &KeyRange,
        _from: i64,
        _to: i64,
        _max: usize,
    ) -> Result<(Vec<Change>, bool), StoreError> {
        todo!()
    }
    /// Holds everything visible at `at` until dropped.
    pub fn pin(&self, _at: i64) -> Pin {
        todo!()
    }
    /// etcd's HashKV at `at` (0 = newest).
    pub fn hash_kv(&self, _at: i64) -> Result<HashKv, StoreError> {
        todo!()
    }
    /// One row of a table.
    pub fn row(&self, _table: Table, _key: &[u8]) -> Option<Bytes> {
        todo!()
    }
    /// All rows of a table in key order.
    pub fn rows(&self, _table: Table) -> Vec<(Bytes, Bytes)> {
        todo!()
    }
    /// Sizes now.
    pub fn size(&self) -> Size {
        todo!()
    }
    /// Every version in the index in revision order up to `at`, as bbolt's `key` bucket would hold them: revision,
    /// whether it is a tombstone, KeyValue bytes. For snapshots.
    pub fn export(
        &self,
        _at: i64,
        _each: &mut dyn FnMut(Revision, bool, Bytes) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        todo!()
    }
    /// Does one bounded step of background work (compaction of the index, space reclaim, checkpoint, scrub), at most
    /// about a millisecond under any lock. Returns whether there is more to do now.
    pub fn maintain(&self) -> Result<bool, StoreError> {
        todo!()
    }
}

impl Writer {
    /// The reading side.
    pub fn store(&self) -> &Store {
        todo!()
    }
    /// The revision at which reads inside the running transaction see its own writes.
    pub fn in_progress(&self) -> i64 {
        todo!()
    }
    /// Writes a version of `key` in the running transaction. Readers do not see it before [`Writer::commit`].
    pub fn put(&mut self, _key: &Bytes, _value: &[u8], _lease: i64) -> Result<Written, StoreError> {
        todo!()
    }
    /// Deletes `key` in the running transaction; `None` if it does not live.
    pub fn delete(&mut self, _key: &[u8]) -> Result<Option<Deleted>, StoreError> {
        todo!()
    }
    /// Ends the running transaction and publishes its revision. Returns the current revision.
    pub fn commit(&mut self) -> i64 {
        todo!()
    }
    /// Records a compaction at `revision` (checked: above the last one, not in the future). The work is done by
    /// [`Store::maintain`].
    pub fn compact(&mut self, _revision: i64) -> Result<(), StoreError> {
        todo!()
    }
    /// Whether all asked-for compactions have been carried out.
    pub fn compaction_done(&self) -> bool {
        todo!()
    }
    /// Writes a row.
    pub fn set_row(&mut self, _table: Table, _key: &[u8], _value: &[u8]) -> Result<(), StoreError> {
        todo!()
    }
    /// Removes a row.
    pub fn remove_row(&mut self, _table: Table, _key: &[u8]) -> Result<(), StoreError> {
        todo!()
    }
    /// Notes how far the log has been applied; written with the next flush.
    pub fn mark(&mut self, _mark: Mark) {
        todo!()
    }
    /// Writes what is buffered, ending with the newest mark. Does not sync.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        todo!()
    }
    /// Flushes and makes everything durable; the log behind the returned mark may be released.
    pub fn sync(&mut self) -> Result<Mark, StoreError> {
        todo!()
    }
    /// Flushes, syncs and writes an index checkpoint, so that the next open is fast. For a clean stop.
    pub fn close(self) -> Result<(), StoreError> {
        todo!()
    }
}
