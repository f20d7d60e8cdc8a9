//! Replacing everything that a store holds: what another member's snapshot brings takes the place of what was there.
//!
//! The new content is built beside the old one: versions go into merged segments, the index and the tables into a
//! checkpoint, and an empty log segment follows. None of these files counts before one manifest names them all; that
//! manifest is the moment of the change on disk. In memory the change is one pointer. What still reads the old content
//! keeps it, and its files, which lose only their names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::checkpoint::{self, Beginning, CheckpointFile, Cursor, checkpoint_id};
use crate::frame::{self, Kind, StoredKey};
use crate::index::{Index, Version};
use crate::log::{Files, Progress, Tail};
use crate::maintain::Maintenance;
use crate::manifest::{Listed, Manifest};
use crate::open::Content;
use crate::segment::{HEAD_BYTES, Head, Origin, Position, Segment, segment_id};
use crate::tables::Tables;
use crate::{Inner, KeyMeta, Location, Mark, Revision, Store, StoreError, Table, Writer};

/// Bytes written at a time.
const WRITE_BYTES: usize = 1 << 20;

/// Bytes after which a segment is synced, so that no sync has much to write: the write-ahead log's syncs wait behind it.
const SYNC_BYTES: u32 = 4 << 20;

/// Rows in one frame of the checkpoint, and bytes above which it ends early.
const ROWS: usize = 128;
const ROWS_BYTES: usize = 1 << 20;

/// Keys in one frame of the checkpoint.
const KEYS: usize = 1024;

/// Versions and rows must stay well below the length of a frame.
const MAX_BYTES: usize = 1 << 29;

/// A store's next content while it is being filled. Dropped before it is installed, it leaves everything as it was.
#[derive(Debug)]
pub struct Replacement<'w> {
    building: Building<'w>,
    index: Index,
    tables: Tables,
    segments: BTreeMap<u32, Arc<Segment>>,
    current: Option<Arc<Segment>>,
    /// Frames of `current` that are not in its file yet.
    pending: Vec<u8>,
    last: Revision,
}

/// A store's next content, complete and on disk, but not in force.
#[derive(Debug)]
pub struct Ready<'w> {
    building: Building<'w>,
    /// A view of the new content.
    store: Store,
    manifest: Manifest,
    tail: Arc<Segment>,
    mark: Mark,
}

/// Keeps background work out while a replacement is being made, and cleans up after one that is given up.
#[derive(Debug)]
struct Building<'w> {
    writer: &'w mut Writer,
    /// The content to be replaced.
    old: Arc<Inner>,
    /// Files from this number on belong to the replacement.
    first_id: u32,
    is_installed: bool,
}

impl Building<'_> {
    /// Removes the files made so far. Their numbers are noted first, so that they are not used again.
    fn clean_up(&self) -> Result<(), StoreError> {
        let files = &self.old.files;
        let mut work = self.old.maintenance.lock();
        work.suspended = false;
        let next_id = files.next_id.load(Ordering::Relaxed);
        if next_id == self.first_id || files.check_sound().is_err() {
            return Ok(());
        }
        work.manifest.next_id = next_id;
        work.manifest.write(&*files.disk, &files.dir)?;
        for name in files.disk.list(&files.dir).map_err(|e| StoreError::io(".", "list directory", e))? {
            if file_id(&name).is_some_and(|id| id >= self.first_id) {
                files.disk.remove(&files.dir.join(&name)).map_err(|e| StoreError::io(&name, "remove", e))?;
            }
        }
        Ok(())
    }
}

impl Drop for Building<'_> {
    fn drop(&mut self) {
        if !self.is_installed {
            // The next call that writes reports a failure.
            let _kept = self.old.files.break_on(self.clean_up());
        }
    }
}

fn file_id(name: &str) -> Option<u32> {
    segment_id(name).or_else(|| checkpoint_id(name))
}

impl Writer {
    /// Begins to replace the whole content. The old one can be read until the new one is installed, and no background
    /// work is done meanwhile. What has been written since the last mark is given up with the rest.
    ///
    /// # Panics
    /// In a transaction.
    pub fn replace(&mut self) -> Result<Replacement<'_>, StoreError> {
        assert!(self.sub == 0, "a replacement inside a transaction");
        let old = self.store.fixed.clone().unwrap_or_else(|| self.store.current.read().clone());
        old.files.check_sound()?;
        old.maintenance.lock().suspended = true;
        let first_id = old.files.next_id.load(Ordering::Relaxed);
        Ok(Replacement {
            building: Building { writer: self, old, first_id, is_installed: false },
            index: Index::new(),
            tables: Tables::default(),
            segments: BTreeMap::new(),
            current: None,
            pending: Vec::new(),
            last: Revision { main: 0, sub: -1 },
        })
    }
}

impl<'w> Replacement<'w> {
    fn files(&self) -> &Files {
        &self.building.old.files
    }

    /// Adds a version as [`Store::export`] gives it, in the same order.
    ///
    /// [`StoreError::Corrupt`], naming the revision, if the bytes are no `mvccpb.KeyValue` or the order is another.
    pub fn version(&mut self, revision: Revision, deleted: bool, payload: &[u8]) -> Result<(), StoreError> {
        let Revision { main, sub } = revision;
        let corrupt = |what: &str| StoreError::corrupt("replacement", 0, &format!("revision {main}/{sub}: {what}"));
        let stored = frame::decode_key_value(payload).ok_or_else(|| corrupt("not a KeyValue"))?;
        let (Ok(sub), true, true) = (u32::try_from(sub), main > 0, stored.version >= 0) else {
            return Err(corrupt("impossible revision"));
        };
        if revision <= self.last {
            return Err(corrupt("out of order"));
        }
        if payload.len() > MAX_BYTES {
            return Err(corrupt("far larger than a request can be"));
        }
        self.last = revision;
        let segment = self.segment()?;
        let kind = if deleted { Kind::Tombstone } else { Kind::Put };
        let offset = segment.end();
        let len = frame::append(&mut self.pending, kind, main, sub, |out| out.extend_from_slice(payload));
        segment.end.store(offset + len, Ordering::Release);
        segment.live.fetch_add(len.into(), Ordering::Relaxed);
        segment.span.lock().note(main, offset);
        let location = Location { segment: segment.id, offset, len };
        let StoredKey { create_revision, version, leased, .. } = stored;
        let version = if deleted {
            Version::tombstone(revision, location)
        } else {
            Version::put(KeyMeta { create_revision, modified: revision, version, leased }, location)
        };
        self.index.insert(stored.key, version);
        if self.pending.len() >= WRITE_BYTES { self.write_out() } else { Ok(()) }
    }

    /// The segment that takes the next version.
    fn segment(&mut self) -> Result<Arc<Segment>, StoreError> {
        match &self.current {
            Some(segment) if segment.end() < self.files().options.segment_bytes => return Ok(segment.clone()),
            Some(_) => self.seal_segment()?,
            None => {}
        }
        let id = self.files().new_id();
        let created = Segment::create(&*self.files().disk, &self.files().dir, id, Origin::Merged);
        let segment = Arc::new(self.files().break_on(created)?);
        let durable = Position::default();
        Head { id, origin: Origin::Merged, previous: Position::default(), durable }.append(&mut self.pending);
        segment.end.store(HEAD_BYTES, Ordering::Release);
        self.segments.insert(id, segment.clone());
        self.current = Some(segment.clone());
        Ok(segment)
    }

    fn write_out(&mut self) -> Result<(), StoreError> {
        let Some(segment) = &self.current else { return Ok(()) };
        let files = &self.building.old.files;
        files.break_on(segment.write(&self.pending))?;
        self.pending.clear();
        if segment.written() - segment.synced.load(Ordering::Acquire) >= SYNC_BYTES {
            files.break_on(segment.sync())?;
        }
        Ok(())
    }

    fn seal_segment(&mut self) -> Result<(), StoreError> {
        self.write_out()?;
        match self.current.take() {
            Some(segment) => self.files().break_on(segment.sync()),
            None => Ok(()),
        }
    }

    /// Sets a row of a table.
    ///
    /// [`StoreError::Corrupt`] if it is far larger than a row can be.
    pub fn row(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        if key.len().saturating_add(value.len()) > MAX_BYTES {
            return Err(StoreError::corrupt("replacement", 0, &format!("a row of table {table:?} is too large")));
        }
        self.tables.set(table, key, value);
        Ok(())
    }

    /// Completes the content. `revision` is its newest one (at least that of its newest version), `compacted` its last
    /// compaction (-1 for none), which is carried out here as far as it has not been; `mark` says up to where the log
    /// has been applied in it. When this returns, all of it is on disk, and still nothing has changed.
    pub fn finish(mut self, revision: i64, compacted: i64, mark: Mark) -> Result<Ready<'w>, StoreError> {
        self.seal_segment()?;
        let revision = revision.max(self.last.main).max(compacted).max(1);
        let compacted = compacted.max(-1);
        let segments = &self.segments;
        let mut cursor = (compacted >= 0).then(|| Box::from(&[][..]));
        while let Some(from) = cursor {
            cursor = self.index.sweep(&from, compacted, usize::MAX, &mut |version| {
                let Location { segment, len, .. } = version.location();
                segments[&segment].live.fetch_sub(len.into(), Ordering::Relaxed);
            });
        }
        let old = self.building.old.clone();
        let written = self.write_rest(&Beginning { mark: mark.clone(), revision, compacted, swept: compacted });
        let (checkpoint, tail) = old.files.break_on(written)?;

        let start = Position { segment: tail.id, offset: tail.end() };
        let listed = |segment: &Arc<Segment>| Listed { id: segment.id, origin: Origin::Merged, replay: false };
        let manifest = Manifest {
            next_id: old.files.next_id.load(Ordering::Relaxed),
            checkpoint: checkpoint.id,
            start,
            durable: start,
            segments: self.segments.values().map(listed).collect(),
        };
        let mut segments = self.segments;
        segments.insert(tail.id, tail.clone());
        let files = Files::new(
            old.files.disk.clone(),
            old.files.dir.clone(),
            old.files.options.clone(),
            segments,
            manifest.next_id,
            Progress { marked: start, mark: mark.clone(), revision, durable: start },
            revision,
        );
        let inner = Inner::new(Content {
            files: Arc::new(files),
            index: self.index,
            tables: self.tables,
            revision,
            compacted,
            maintenance: Maintenance::new(manifest.clone(), checkpoint.len()),
        });
        let store = Store { current: self.building.writer.store.current.clone(), fixed: Some(Arc::new(inner)) };
        Ok(Ready { building: self.building, store, manifest, tail, mark })
    }

    /// The checkpoint, and the log's first segment.
    fn write_rest(&self, beginning: &Beginning) -> Result<(CheckpointFile, Arc<Segment>), StoreError> {
        let files = self.files();
        let mut checkpoint = CheckpointFile::create(&*files.disk, &files.dir, files.new_id(), beginning)?;
        let mut after = None;
        loop {
            let rows = self.tables.behind(after.as_ref(), ROWS);
            let mut bytes = 0;
            let fitting = rows.iter().take_while(|(_, key, value)| {
                let fits = bytes == 0 || bytes + key.len() + value.len() <= ROWS_BYTES;
                bytes += key.len() + value.len() + 1;
                fits
            });
            let rows = &rows[..fitting.count()];
            let Some((table, key, _)) = rows.last() else { break };
            checkpoint.add_rows(rows);
            checkpoint.write()?;
            after = Some((*table, key.clone()));
        }
        let mut next = Some(Cursor::default());
        while let Some(cursor) = next {
            next = checkpoint.add_keys(&self.index, &cursor, KEYS);
            checkpoint.write()?;
        }
        checkpoint.add_spans(&checkpoint::spans(&self.segments, Position::default()));
        checkpoint.finish()?;

        let id = files.new_id();
        let tail = Segment::create(&*files.disk, &files.dir, id, Origin::Log)?;
        let mut head = Vec::new();
        // It follows no segment, so that an open that finds it beside the old manifest does not take it for the log's.
        let nothing = Position::default();
        Head { id, origin: Origin::Log, previous: nothing, durable: nothing }.append(&mut head);
        tail.write(&head)?;
        tail.sync()?;
        Ok((checkpoint, Arc::new(tail)))
    }
}

impl Ready<'_> {
    /// The new content, to be looked at before it is in force.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Puts the new content in force: first on disk, then, when `around` calls the function it is given, for all readers.
    /// `around` can thus change other things in the same step; it must call the function exactly once. After a power cut
    /// at any moment the next open finds the old content or the new one.
    pub fn install<R>(self, around: impl FnOnce(&mut dyn FnMut()) -> R) -> Result<R, StoreError> {
        let Ready { mut building, store, manifest, tail, mark } = self;
        let files = &building.old.files;
        files.break_on(manifest.write(&*files.disk, &files.dir))?;
        building.is_installed = true;
        let names =
            files.break_on(files.disk.list(&files.dir).map_err(|e| StoreError::io(".", "list directory", e)))?;
        let inner = store.fixed.clone().expect("a replacement's store is a view");
        let counts =
            |id| id == manifest.checkpoint || id == tail.id || manifest.segments.iter().any(|listed| listed.id == id);
        inner.maintenance.lock().leftovers =
            names.into_iter().filter(|name| file_id(name).is_some_and(|id| !counts(id))).collect();

        let mut switched = 0;
        let result = around(&mut || {
            *store.current.write() = inner.clone();
            switched += 1;
        });
        assert!(switched == 1, "a replacement was put in force {switched} times");
        let writer = &mut *building.writer;
        writer.tail = Tail::new(inner.files.clone(), tail, mark);
        writer.store = store;
        Ok(result)
    }
}
