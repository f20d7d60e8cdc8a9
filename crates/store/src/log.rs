//! The log: segments that are written one after the other, and the end of it that is still in memory.
//!
//! [`Files`] is what everybody shares; [`Tail`] belongs to the one writer. The writer never waits for an fsync: it
//! appends to memory, and from time to time hands everything to the operating system in one write.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use disk::Disk;
use parking_lot::{Mutex, RwLock};

use crate::frame::{self, HEADER, Kind};
use crate::recent::RecentVersions;
use crate::segment::{HEAD_BYTES, Head, Origin, Position, Segment};
use crate::{Location, Mark, Options, StoreError};

/// How far the log has come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// Behind the newest mark that is in a file, that mark, and the revision there.
    pub marked: Position,
    pub mark: Mark,
    pub revision: i64,
    /// Behind a mark that is durable.
    pub durable: Position,
}

/// Where the versions of a removed segment are now: old offset, new place. In offset order.
pub(crate) type Forward = Vec<(u32, Position)>;

/// The open segments and what is known of them.
#[derive(Debug)]
pub(crate) struct Files {
    pub disk: Arc<dyn Disk>,
    pub dir: PathBuf,
    pub options: Options,
    pub segments: RwLock<BTreeMap<u32, Arc<Segment>>>,
    /// Segments removed not long ago, for readers that still hold locations in them.
    pub forwards: RwLock<BTreeMap<u32, Forward>>,
    pub recent: RwLock<RecentVersions>,
    pub progress: Mutex<Progress>,
    pub next_id: AtomicU32,
    /// An empty file for the log's next segment. Held while a number is given to one, so that the log's segments are
    /// numbered in the order in which they are written.
    spare: Mutex<Option<Arc<Segment>>>,
    /// Set by background work that waits for a mark; the writer then writes one early.
    pub want_mark: AtomicBool,
    /// Set by background work that wants to reclaim the segment at the log's end.
    pub want_roll: AtomicBool,
    /// Whether files have been created whose directory entries are not durable yet.
    dir_changed: AtomicBool,
    /// Held while syncing, so that what is durable is only said once it is.
    syncing: Mutex<()>,
    /// The first write or sync that failed. Nothing is written after it: the operating system may have dropped the
    /// data and forgotten the error, so a retry that succeeds proves nothing.
    broken: OnceLock<String>,
}

impl Files {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        options: Options,
        segments: BTreeMap<u32, Arc<Segment>>,
        next_id: u32,
        progress: Progress,
        revision: i64,
    ) -> Self {
        let recent = RecentVersions::new(options.recent_bytes, revision);
        Self {
            disk,
            dir,
            options,
            segments: RwLock::new(segments),
            forwards: RwLock::default(),
            recent: RwLock::new(recent),
            progress: Mutex::new(progress),
            next_id: AtomicU32::new(next_id),
            spare: Mutex::new(None),
            want_mark: AtomicBool::new(false),
            want_roll: AtomicBool::new(false),
            dir_changed: AtomicBool::new(false),
            syncing: Mutex::new(()),
            broken: OnceLock::new(),
        }
    }

    /// A number for a new file. Never given twice, not even over restarts: a location must never come to mean
    /// something else.
    pub(crate) fn new_id(&self) -> u32 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes the file that the log will go on in, if there is none yet.
    pub(crate) fn prepare_segment(&self) -> Result<bool, StoreError> {
        let mut spare = self.spare.lock();
        if spare.is_some() {
            return Ok(false);
        }
        *spare = Some(self.create_log_segment()?);
        Ok(true)
    }

    /// The file that the log goes on in.
    fn take_segment(&self) -> Result<Arc<Segment>, StoreError> {
        let mut spare = self.spare.lock();
        spare.take().map_or_else(|| self.create_log_segment(), Ok)
    }

    fn create_log_segment(&self) -> Result<Arc<Segment>, StoreError> {
        let created = Segment::create(&*self.disk, &self.dir, self.new_id(), Origin::Log);
        Ok(Arc::new(self.break_on(created)?))
    }

    /// Fails if writing has failed before.
    pub(crate) fn check_sound(&self) -> Result<(), StoreError> {
        match self.broken.get() {
            None => Ok(()),
            Some(first) => Err(StoreError::Io {
                file: self.dir.display().to_string(),
                action: "refused, because an earlier write failed",
                source: std::io::Error::other(first.clone()),
            }),
        }
    }

    /// Notes a failed write or sync for good.
    pub(crate) fn break_on<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error) = &result {
            let text = match error {
                StoreError::Io { source, .. } => format!("{error}: {source}"),
                _ => error.to_string(),
            };
            // Only the first failure counts.
            let _first = self.broken.set(text);
        }
        result
    }

    pub(crate) fn segment(&self, id: u32) -> Option<Arc<Segment>> {
        self.segments.read().get(&id).cloned()
    }

    /// Where a version is that used to be at `location`, if that segment is gone; `None` if it has been dropped.
    fn follow(&self, location: Location) -> Option<Location> {
        let forwards = self.forwards.read();
        let forward = forwards.get(&location.segment)?;
        let place = forward.binary_search_by_key(&location.offset, |&(old, _)| old).ok()?;
        let (_, Position { segment, offset }) = forward[place];
        Some(Location { segment, offset, len: location.len })
    }

    /// The segment that holds a version now, and the version's place in it. A version that compaction has dropped in
    /// the meantime is [`StoreError::Compacted`].
    pub(crate) fn resolve(&self, mut location: Location) -> Result<(Arc<Segment>, Location), StoreError> {
        loop {
            if let Some(segment) = self.segment(location.segment) {
                return Ok((segment, location));
            }
            location = self.follow(location).ok_or(StoreError::Compacted)?;
        }
    }

    /// A version's payload.
    pub(crate) fn read(&self, location: Location) -> Result<Bytes, StoreError> {
        if let Some(payload) = self.recent.read().get(location) {
            return Ok(payload.clone());
        }
        let (segment, location) = self.resolve(location)?;
        segment.payload(location.offset, location.len)
    }

    /// Makes everything up to the newest written mark durable.
    pub(crate) fn sync_marked(&self) -> Result<Mark, StoreError> {
        let _one_at_a_time = self.syncing.lock();
        // Only now: somebody's failed sync may have been what this one waited for.
        self.check_sound()?;
        let (marked, mark, durable) = {
            let progress = self.progress.lock();
            (progress.marked, progress.mark.clone(), progress.durable)
        };
        let unsynced: Vec<_> = self
            .segments
            .read()
            .range(durable.segment..=marked.segment)
            .filter(|(_, segment)| segment.origin == Origin::Log && !segment.is_synced())
            .filter(|_| !mutant::on(mutant::StoreUnsynced))
            .map(|(_, segment)| segment.clone())
            .collect();
        for segment in unsynced {
            self.break_on(segment.sync())?;
        }
        self.sync_dir()?;
        let mut progress = self.progress.lock();
        progress.durable = marked;
        Ok(mark)
    }

    /// Makes a segment durable that the writer has left behind.
    pub(crate) fn sync_sealed(&self, segment: &Segment) -> Result<(), StoreError> {
        let _one_at_a_time = self.syncing.lock();
        self.check_sound()?;
        self.break_on(segment.sync())
    }

    /// Makes new files' names durable.
    fn sync_dir(&self) -> Result<(), StoreError> {
        if self.dir_changed.swap(false, Ordering::AcqRel) && !mutant::on(mutant::SegmentNamesUnsynced) {
            self.break_on(self.disk.sync_dir(&self.dir).map_err(|e| StoreError::io(".", "sync directory", e)))?;
        }
        Ok(())
    }
}

/// Bytes of one allocation that payloads of small versions share.
const ARENA_BYTES: usize = 64 << 10;

/// The end of the log.
#[derive(Debug)]
pub(crate) struct Tail {
    files: Arc<Files>,
    segment: Arc<Segment>,
    /// Frames that are not in the file yet.
    pending: Vec<u8>,
    arena: BytesMut,
    mark: Mark,
    /// Where the log ended when `mark` was noted. The mark is true only there.
    noted: Option<Position>,
    /// The newest mark frame that is pending, and where it ends.
    appended_mark: Option<(Position, Mark, i64)>,
}

impl Tail {
    /// The end of a log that `mark` is true of.
    pub(crate) fn new(files: Arc<Files>, segment: Arc<Segment>, mark: Mark) -> Self {
        let noted = Some(Position { segment: segment.id, offset: segment.end() });
        Self { files, segment, pending: Vec::new(), arena: BytesMut::new(), mark, noted, appended_mark: None }
    }

    /// Where the next frame will be.
    pub(crate) fn position(&self) -> Position {
        Position { segment: self.segment.id, offset: self.segment.end() }
    }

    /// Appends a frame and returns its place; its payload is the end of `pending`.
    pub(crate) fn append(
        &mut self,
        kind: Kind,
        main: i64,
        sub: u32,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Location, StoreError> {
        self.files.check_sound()?;
        if self.segment.end() >= self.files.options.segment_bytes {
            self.roll()?;
        }
        // Far more than a transaction of ordinary size: do not wait for its end.
        if self.pending.len() >= self.files.options.flush_bytes.saturating_mul(4) {
            self.write_out()?;
        }
        let Position { segment, offset } = self.position();
        let len = frame::append(&mut self.pending, kind, main, sub, encode);
        self.segment.end.store(offset + len, Ordering::Release);
        Ok(Location { segment, offset, len })
    }

    /// Appends a version of a key; its payload is shared with the readers.
    pub(crate) fn append_version(
        &mut self,
        kind: Kind,
        main: i64,
        sub: u32,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(Location, Bytes), StoreError> {
        let location = self.append(kind, main, sub, encode)?;
        self.segment.live.fetch_add(location.len.into(), Ordering::Relaxed);
        self.segment.span.lock().note(main, location.offset);
        let payload = &self.pending[self.pending.len() - location.len as usize + HEADER..];
        if payload.len() > ARENA_BYTES / 4 {
            return Ok((location, Bytes::copy_from_slice(payload)));
        }
        if self.arena.capacity() - self.arena.len() < payload.len() {
            self.arena = BytesMut::with_capacity(ARENA_BYTES);
        }
        self.arena.extend_from_slice(payload);
        Ok((location, self.arena.split().freeze()))
    }

    /// Notes that everything up to here is the effect of the log up to `mark`.
    pub(crate) fn note(&mut self, mark: Mark) {
        self.mark = mark;
        self.noted = Some(self.position());
    }

    /// Whether it is time for [`Tail::flush`].
    pub(crate) fn is_due(&self) -> bool {
        self.pending.len() >= self.files.options.flush_bytes
            || self.files.want_mark.load(Ordering::Acquire)
            || self.files.want_roll.load(Ordering::Acquire)
    }

    /// Writes what is pending, ending with the noted mark if nothing has been appended since. Does not sync.
    pub(crate) fn flush(&mut self, revision: i64) -> Result<(), StoreError> {
        self.files.check_sound()?;
        self.append_mark(revision)?;
        self.write_out()?;
        if self.noted == Some(self.position()) && self.files.want_roll.swap(false, Ordering::AcqRel) {
            self.roll()?;
            self.append_mark(revision)?;
            self.write_out()?;
        }
        Ok(())
    }

    fn append_mark(&mut self, revision: i64) -> Result<(), StoreError> {
        let is_written = {
            let progress = self.files.progress.lock();
            progress.marked == self.position() && progress.mark == self.mark
        };
        if self.noted != Some(self.position()) || is_written {
            return Ok(());
        }
        let durable = self.files.progress.lock().durable;
        let mark = self.mark.clone();
        self.append(Kind::Mark, revision, 0, |out| {
            out.put_u64_le(mark.index);
            out.put_u64_le(mark.term);
            durable.encode(out);
            out.put_slice(&mark.conf_state);
        })?;
        self.noted = Some(self.position());
        self.appended_mark = Some((self.position(), self.mark.clone(), revision));
        Ok(())
    }

    fn write_out(&mut self) -> Result<(), StoreError> {
        if !self.pending.is_empty() {
            self.files.break_on(self.segment.write(&self.pending))?;
            self.pending.clear();
            self.pending.shrink_to(self.files.options.flush_bytes.saturating_mul(2));
            self.files.recent.write().trim(self.position());
        }
        if let Some((position, mark, revision)) = self.appended_mark.take() {
            let mut progress = self.files.progress.lock();
            progress.marked = position;
            progress.mark = mark;
            progress.revision = revision;
            self.files.want_mark.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Goes on in a new segment.
    fn roll(&mut self) -> Result<(), StoreError> {
        self.write_out()?;
        let was_noted = self.noted == Some(self.position());
        let previous = self.position();
        let durable = self.files.progress.lock().durable;
        self.segment = self.files.take_segment()?;
        let id = self.segment.id;
        assert!(id > previous.segment, "the log went on from segment {} in segment {id}", previous.segment);
        self.files.dir_changed.store(true, Ordering::Release);
        Head { id, origin: Origin::Log, previous, durable }.append(&mut self.pending);
        self.segment.end.store(HEAD_BYTES, Ordering::Release);
        self.files.segments.write().insert(id, self.segment.clone());
        if was_noted {
            self.noted = Some(self.position());
        }
        Ok(())
    }
}
