//! Revisions on disk: an append-only, checksummed segment log and an ordered in-memory key index.
//!
//! Every version of every key is one frame of the log, whose payload is the `mvccpb.KeyValue` that readers, watchers,
//! snapshots and HashKV all want. The index says which versions there are and where; it lives in memory and is saved
//! from time to time as a checkpoint, so that an open reads only the log behind it. Compaction edits the index;
//! the bytes of dropped versions are reclaimed by copying what is left of the emptiest segments.
//!
//! Nothing here waits for an fsync except [`Writer::sync`], [`Writer::close`], [`Store::sync`], [`Store::maintain`] and
//! what replaces the whole content ([`Replacement`], [`Ready::install`]). What a crash
//! takes from the log's end is told by the [`Mark`] that [`Store::open`] returns: the caller applies its own log again
//! from there.
//!
//! # Invariants
//! - Readers see published revisions only; a revision is published when the transaction that made it ends.
//! - What [`Store::open`] finds is the effect of the caller's log up to exactly the mark it returns.
//! - A location found in the index stays readable while a [`Pin`] taken before lives, whatever is reclaimed.
//! - File numbers are never used twice.
//! - A segment is removed only when the log that made its versions dead or moved is durable.
//! - After a failed write or sync nothing is written any more.
//! - The whole content may be replaced by another ([`Writer::replace`]). A call, a [`Pin`] and a [`Store::view`] see the
//!   old content or the new one, never some of both; what they see stays readable as long as they live.
//!
//! The bytes on disk are described in `FORMAT.md`.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use bytes::Bytes;
use disk::Disk;
use parking_lot::{Mutex, RwLock};

use crate::frame::Kind;
use crate::index::{Index, Version};
use crate::log::{Files, Tail};
use crate::maintain::Maintenance;
use crate::pins::Pins;
use crate::recent::Recent;
use crate::tables::Tables;

mod checkpoint;
mod frame;
mod index;
mod log;
mod maintain;
mod manifest;
mod open;
mod pins;
mod recent;
mod replace;
mod segment;
mod stream;
mod tables;

pub use replace::{Ready, Replacement};
pub use stream::{Versions, bucket_key};

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

    /// Whether `key` is in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &*self.start && !self.ends_before(key)
    }

    /// Whether `key`, which is at or above the start, is behind the end.
    fn ends_before(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => key != self.start,
            RangeEnd::Unbounded => false,
            RangeEnd::Before(end) => key >= &**end,
        }
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

impl Table {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Meta,
            2 => Self::Lease,
            3 => Self::Alarm,
            4 => Self::Cluster,
            5 => Self::Members,
            6 => Self::MembersRemoved,
            7 => Self::Auth,
            8 => Self::AuthUsers,
            9 => Self::AuthRoles,
            10 => Self::V2,
            _ => return None,
        })
    }
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

impl StoreError {
    fn io(file: &str, action: &'static str, source: io::Error) -> Self {
        Self::Io { file: file.to_owned(), action, source }
    }

    fn corrupt(file: &str, offset: u64, what: &str) -> Self {
        Self::Corrupt { file: file.to_owned(), offset, what: what.to_owned() }
    }
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
    /// Bytes of log behind the last checkpoint at which a new one is written: what an open after a crash must read.
    pub checkpoint_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, flush_bytes: 256 << 10, recent_bytes: 16 << 20, checkpoint_bytes: 256 << 20 }
    }
}

/// The reading side; cheap to clone, used by many threads while the one [`Writer`] writes.
///
/// Its content can be replaced as a whole ([`Writer::replace`]). Each call sees one content from its beginning to its end;
/// calls that must see the same one, because what one of them found is looked up by the next, are made on a [`Store::view`]
/// or on [`Pin::store`].
#[derive(Clone, Debug)]
pub struct Store {
    current: Arc<RwLock<Arc<Inner>>>,
    /// Set in a view, and the only one looked at there.
    fixed: Option<Arc<Inner>>,
}

/// One content: what [`Store::open`] finds, or what a [`Replacement`] brings.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) files: Arc<Files>,
    index: RwLock<Index>,
    tables: RwLock<Tables>,
    /// Newest published revision.
    revision: AtomicI64,
    /// Newest compaction asked for, and newest one carried out; -1 for none.
    compacted: AtomicI64,
    swept: AtomicI64,
    /// Versions that compactions have dropped since the store was opened.
    dropped: AtomicU64,
    pins: Pins,
    maintenance: Mutex<Maintenance>,
}

/// The content that a call works on.
enum Held<'a> {
    Fixed(&'a Inner),
    Current(Arc<Inner>),
}

impl std::ops::Deref for Held<'_> {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        match self {
            Self::Fixed(inner) => inner,
            Self::Current(inner) => inner,
        }
    }
}

impl Inner {
    pub(crate) fn new(found: open::Content) -> Self {
        Self {
            files: found.files,
            index: RwLock::new(found.index),
            tables: RwLock::new(found.tables),
            revision: AtomicI64::new(found.revision),
            compacted: AtomicI64::new(found.compacted),
            swept: AtomicI64::new(found.compacted),
            dropped: AtomicU64::new(0),
            pins: Pins::default(),
            maintenance: Mutex::new(found.maintenance),
        }
    }

    fn compact_revision(&self) -> i64 {
        self.compacted.load(Ordering::Acquire)
    }

    fn compaction_done(&self) -> bool {
        self.swept.load(Ordering::Acquire) >= self.compact_revision()
    }

    fn size(&self) -> Size {
        let mut size = Size { total: 0, live: self.tables.read().live_bytes() };
        for segment in self.files.segments.read().values() {
            size.total += u64::from(segment.end());
            size.live += segment.live();
        }
        size
    }
}

/// The one writing side.
#[derive(Debug)]
pub struct Writer {
    /// A view of the newest content.
    store: Store,
    tail: Tail,
    /// Changes in the running transaction.
    sub: u32,
    /// Bytes of the keys and values put since the store was opened.
    put_bytes: u64,
}

/// Keeps versions visible at its revision from being dropped or moved out of reach while it lives.
#[derive(Debug)]
pub struct Pin {
    /// A view.
    store: Store,
    ticket: pins::Ticket,
}

impl Pin {
    /// The content that is pinned: ask this one, so that nothing changes if the content is replaced meanwhile.
    pub fn store(&self) -> &Store {
        &self.store
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.store.inner().pins.release(self.ticket);
    }
}

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
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: Options) -> Result<(Self, Writer, Mark), StoreError> {
        let opened = open::open(disk, dir, options)?;
        let tail = Tail::new(opened.content.files.clone(), opened.tail, opened.mark.clone());
        let inner = Arc::new(Inner::new(opened.content));
        let store = Self { current: Arc::new(RwLock::new(inner)), fixed: None };
        let writer = Writer { store: store.view(), tail, sub: 0, put_bytes: 0 };
        Ok((store, writer, opened.mark))
    }

    fn inner(&self) -> Held<'_> {
        match &self.fixed {
            Some(inner) => Held::Fixed(inner),
            None => Held::Current(self.current.read().clone()),
        }
    }

    /// The content as it is now, for good: a replacement does not show in it, writing and compaction do.
    pub fn view(&self) -> Self {
        let inner = match &self.fixed {
            Some(inner) => inner.clone(),
            None => self.current.read().clone(),
        };
        Self { current: self.current.clone(), fixed: Some(inner) }
    }

    /// The newest published revision; 1 on an empty store.
    pub fn revision(&self) -> i64 {
        self.inner().revision.load(Ordering::Acquire)
    }

    /// The revision of the last compaction that was asked for; -1 if there never was one.
    pub fn compact_revision(&self) -> i64 {
        self.inner().compact_revision()
    }

    /// Whether all asked-for compactions have been carried out.
    pub fn compaction_done(&self) -> bool {
        self.inner().compaction_done()
    }

    /// The version of `key` visible at `at`.
    pub fn get(&self, key: &[u8], at: i64) -> Option<Found> {
        self.inner().index.read().at(key, at)?.found()
    }

    /// Visits the keys of `range` that live at `at`, in key order, until `visit` breaks. The index lock is given up
    /// between chunks, and `visit` runs under it, so it must be quick and must not call the store.
    pub fn scan(&self, range: &KeyRange, at: i64, visit: &mut dyn FnMut(&[u8], Found) -> ControlFlow<()>) {
        let inner = self.inner();
        if range.end == RangeEnd::Single {
            let index = inner.index.read();
            if let Some(found) = index.at(&range.start, at).and_then(Version::found) {
                // There is no next key to stop before.
                let _whatever_comes = visit(&range.start, found);
            }
            return;
        }
        let mut cursor = range.start.to_vec();
        loop {
            let index = inner.index.read();
            let Some(chunk) = index.chunk(&cursor) else { return };
            for (key, slot) in chunk.iter() {
                if range.ends_before(key) {
                    return;
                }
                if let Some(found) = slot.at(at).and_then(Version::found)
                    && visit(key, found).is_break()
                {
                    return;
                }
            }
            let Some(next) = chunk.next else { return };
            cursor.clear();
            cursor.extend_from_slice(next);
        }
    }

    /// How many keys of `range` live at `at`.
    pub fn count(&self, range: &KeyRange, at: i64) -> i64 {
        let mut count = 0;
        self.scan(range, at, &mut |_, _| {
            count += 1;
            ControlFlow::Continue(())
        });
        count
    }

    /// The `mvccpb.KeyValue` bytes at `location`, checked against their checksum. [`StoreError::Compacted`] if the
    /// version has been dropped since it was found.
    pub fn read(&self, location: Location) -> Result<Bytes, StoreError> {
        self.inner().files.read(location)
    }

    /// The same for many, in the given order, with neighbouring frames read together.
    pub fn read_many(&self, locations: &[Location], each: &mut dyn FnMut(Bytes)) -> Result<(), StoreError> {
        self.inner().files.read_many(locations, each)
    }

    /// Holds everything visible at `at` until dropped.
    pub fn pin(&self, at: i64) -> Pin {
        let store = self.view();
        let ticket = store.inner().pins.take(at);
        Pin { store, ticket }
    }

    /// One row of a table.
    pub fn row(&self, table: Table, key: &[u8]) -> Option<Bytes> {
        self.inner().tables.read().row(table, key)
    }

    /// All rows of a table in key order.
    pub fn rows(&self, table: Table) -> Vec<(Bytes, Bytes)> {
        self.inner().tables.read().rows(table)
    }

    /// Sizes now.
    pub fn size(&self) -> Size {
        self.inner().size()
    }

    /// Versions that compactions have dropped since the store was opened.
    pub fn versions_dropped(&self) -> u64 {
        self.inner().dropped.load(Ordering::Relaxed)
    }

    /// How many keys the index holds, deleted ones that are not compacted yet included.
    pub fn indexed_keys(&self) -> usize {
        self.inner().index.read().len()
    }

    /// Whether background work waits for the writer to flush. A writer with nothing to write should flush then, too.
    pub fn wants_flush(&self) -> bool {
        let inner = self.inner();
        let files = &inner.files;
        files.want_mark.load(Ordering::Acquire) || files.want_roll.load(Ordering::Acquire)
    }

    /// Makes everything up to the newest *flushed* mark durable and returns that mark: the log behind it may be
    /// released. Unlike [`Writer::sync`] it may run on any thread, beside the writer, and does not flush.
    pub fn sync(&self) -> Result<Mark, StoreError> {
        self.inner().files.sync_marked()
    }
}

impl Writer {
    /// A view of what is being written to, to be asked for again after a replacement.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The revision at which reads inside the running transaction see its own writes.
    pub fn in_progress(&self) -> i64 {
        self.store.revision() + 1
    }

    fn next_revision(&self) -> Revision {
        Revision { main: self.in_progress(), sub: self.sub.into() }
    }

    /// Writes a version of `key` in the running transaction. Readers do not see it before [`Writer::commit`].
    pub fn put(&mut self, key: &Bytes, value: &[u8], lease: i64) -> Result<Written, StoreError> {
        let modified = self.next_revision();
        let previous = self.store.get(key, i64::MAX);
        let (create_revision, version) = match &previous {
            Some(found) => (found.meta.create_revision, found.meta.version + 1),
            None => (modified.main, 1),
        };
        let (location, payload) = self.tail.append_version(Kind::Put, modified.main, self.sub, |out| {
            frame::encode_key_value(out, key, create_revision, modified.main, version, value, lease);
        })?;
        let meta = KeyMeta { create_revision, modified, version, leased: lease != 0 };
        self.add(key, Version::put(meta, location), payload.clone());
        self.put_bytes += (key.len() + value.len()) as u64;
        Ok(Written { meta, payload, previous })
    }

    /// Bytes of the keys and values put since the store was opened.
    pub fn put_bytes(&self) -> u64 {
        self.put_bytes
    }

    /// Deletes `key` in the running transaction; `None` if it does not live.
    pub fn delete(&mut self, key: &[u8]) -> Result<Option<Deleted>, StoreError> {
        let Some(previous) = self.store.get(key, i64::MAX) else { return Ok(None) };
        let revision = self.next_revision();
        let (location, payload) = self.tail.append_version(Kind::Tombstone, revision.main, self.sub, |out| {
            frame::encode_key_value(out, key, 0, 0, 0, &[], 0);
        })?;
        self.add(key, Version::tombstone(revision, location), payload.clone());
        Ok(Some(Deleted { revision, payload, previous }))
    }

    fn add(&mut self, key: &[u8], version: Version, payload: Bytes) {
        let inner = self.store.inner();
        // In memory first: who finds it in the index must be able to read it.
        inner.files.recent.write().push(Recent {
            revision: version.revision(),
            deleted: version.is_tombstone(),
            location: version.location(),
            payload,
        });
        let replaced = inner.index.write().insert(key, version);
        assert!(replaced.is_none(), "revision {:?} was written twice", version.revision());
        self.sub += 1;
    }

    /// Ends the running transaction and publishes its revision. Returns the current revision.
    pub fn commit(&mut self) -> i64 {
        let mut revision = self.store.revision();
        if self.sub > 0 {
            revision += 1;
            self.sub = 0;
            self.store.inner().revision.store(revision, Ordering::Release);
        }
        revision
    }

    /// Records a compaction at `revision` (checked: above the last one, not in the future). The work is done by
    /// [`Store::maintain`].
    pub fn compact(&mut self, revision: i64) -> Result<(), StoreError> {
        if revision <= self.store.compact_revision() {
            return Err(StoreError::Compacted);
        }
        if revision > self.store.revision() {
            return Err(StoreError::FutureRevision);
        }
        self.tail.append(Kind::Compaction, revision, 0, |_| {})?;
        self.store.inner().compacted.store(revision, Ordering::Release);
        Ok(())
    }

    /// Whether all asked-for compactions have been carried out.
    pub fn compaction_done(&self) -> bool {
        self.store.compaction_done()
    }

    /// Writes a row.
    pub fn set_row(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.tail.append(Kind::SetRow, 0, 0, |out| tables::encode_row(out, table, key, value))?;
        self.store.inner().tables.write().set(table, key, value);
        Ok(())
    }

    /// Removes a row.
    pub fn remove_row(&mut self, table: Table, key: &[u8]) -> Result<(), StoreError> {
        self.tail.append(Kind::RemoveRow, 0, 0, |out| tables::encode_row(out, table, key, &[]))?;
        self.store.inner().tables.write().remove(table, key);
        Ok(())
    }

    /// Notes how far the log has been applied: everything written so far, and nothing else, is the effect of the log
    /// up to `mark`. It is written with the next flush, unless more is appended first: so note one after every applied
    /// entry. A failure to write shows in the next call that returns an error.
    pub fn mark(&mut self, mark: Mark) {
        assert!(self.sub == 0, "a mark inside a transaction would make recovery keep half of it");
        self.tail.note(mark);
        if self.tail.is_due() {
            // The failure is kept: every later call returns it.
            let _kept = self.flush();
        }
    }

    /// Writes what is buffered, ending with the newest mark. Does not sync. What was appended after the newest mark is
    /// written, but a crash takes it back.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        self.tail.flush(self.store.revision())
    }

    /// Flushes and makes everything durable; the log behind the returned mark may be released.
    pub fn sync(&mut self) -> Result<Mark, StoreError> {
        self.flush()?;
        self.store.inner().files.sync_marked()
    }

    /// Flushes, syncs and writes an index checkpoint, so that the next open is fast. For a clean stop.
    pub fn close(mut self) -> Result<(), StoreError> {
        self.sync()?;
        self.store.inner().checkpoint_now()
    }
}
