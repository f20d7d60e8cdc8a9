//! The open log: creating it, reading it back, and writing to its end.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use disk::{Disk, File, Open};

use crate::prepare::{self, Floor, NextFile, Prepare, Prepared, Ticket, Work};
use crate::record::{Encoder, Record};
use crate::segment::{self, BLOCK, Name};
use crate::{Entry, HardState, Identity, SnapshotMark, WalError, io_error};

/// A segment that has reached this size is left for the next. etcd's number.
const SEGMENT_BYTES: u64 = 64_000_000;
/// Zeros that a segment gets at once when there was no time to prepare it; the rest follows as a [`Prepare`].
const FIRST_ZEROS: u64 = BLOCK as u64;

/// How far the zeros are kept ahead of the log: what it writes in a third of a second when it is busiest.
const AHEAD: u64 = 8 << 20;

/// How much of them is written and synced at a time.
const PIECE: u64 = 1 << 20;
/// There is never more than this behind the last sync: a longer batch is synced in between. So whoever opens the log knows
/// which part of it a failed sync may have kept from the disk.
const SUSPECT_BYTES: u64 = 8 << 20;
/// A write buffer that has grown beyond this for one large batch is given back.
const BUFFER_KEPT: usize = 4 << 20;

/// An open log, positioned at its end. There is no half-replayed log to misuse: [`Wal::open`] hands back what it read.
#[derive(Debug)]
pub struct Wal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    identity: Identity,
    /// The segments that may still be needed, oldest first, each locked. The last one is written to; never empty.
    segments: VecDeque<Segment>,
    /// Where the next record goes in the last segment.
    offset: u64,
    /// How many of the bytes before `offset` are not synced yet.
    unsynced: u64,
    /// The checksum chain, and the one buffer that all records go through.
    encoder: Encoder,
    hard_state: HardState,
    /// Index of the last entry, or of a snapshot beyond it.
    last_index: u64,
    /// Index of the newest snapshot that was recorded since the log was opened. Its mark counts only once a hard state says
    /// that so much is committed.
    marked: u64,
    segment_bytes: u64,
    next: Option<NextFile>,
    preparing: Arc<AtomicBool>,
    /// Up to where the last segment has been (or is being) filled with zeros, and the fence between filler and log.
    filled: u64,
    floor: Floor,
    /// A write or sync has failed: the file may hold anything behind the last sync.
    closed: bool,
    stats: Stats,
}

#[derive(Debug)]
struct Segment {
    name: Name,
    /// Open for writing and locked; closing it releases the lock.
    file: Arc<dyn File>,
}

/// What a log said when it was opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// Who wrote it.
    pub identity: Identity,
    /// The last hard state.
    pub hard_state: HardState,
    /// The entries after the snapshot that the log was opened from: contiguous, terms never going down.
    pub entries: Vec<Entry>,
    /// What had to be cut off the end.
    pub repaired: Option<Repair>,
}

/// A torn record was cut off the end of the log. It was never acknowledged: nothing is lost that was promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The repaired segment.
    pub file: PathBuf,
    /// Where its last good record ends, in bytes.
    pub at: u64,
    /// The segment as it was before.
    pub kept_as: PathBuf,
}

/// The receipt for an append: with it, and not before, a member may say that it has the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synced {
    index: u64,
    waited: bool,
}

impl Synced {
    /// The last entry of the log; it and all before it are durable.
    pub fn index(self) -> u64 {
        self.index
    }

    /// Whether the disk was waited for. A commit index alone is written without: it can be learnt again.
    pub fn waited(self) -> bool {
        self.waited
    }
}

/// Counters since the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of records written.
    pub bytes_written: u64,
    /// Syncs of segments.
    pub syncs: u64,
    /// Segments begun.
    pub cuts: u64,
}

impl Wal {
    /// Whether a log is in this directory.
    pub fn exists(disk: &dyn Disk, dir: &Path) -> io::Result<bool> {
        match disk.list(dir) {
            Ok(names) => Ok(names.iter().any(|name| name.ends_with(".wal"))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Makes a new log: all of it or, after a crash, nothing. It is built in `<dir>.tmp` and renamed.
    pub fn create(disk: Arc<dyn Disk>, dir: &Path, identity: Identity) -> Result<Wal, WalError> {
        if Wal::exists(disk.as_ref(), dir).map_err(io_error(dir, "list the log's directory"))? {
            return Err(WalError::Exists { dir: dir.to_owned() });
        }
        let mut tmp = dir.to_owned().into_os_string();
        tmp.push(".tmp");
        let tmp = PathBuf::from(tmp);
        let grown = growing_directories(disk.as_ref(), dir)?;
        disk.create_dir_all(&tmp).map_err(io_error(&tmp, "make the log's directory"))?;
        for leftover in disk.list(&tmp).map_err(io_error(&tmp, "list the log's directory"))? {
            let leftover = tmp.join(leftover);
            disk.remove(&leftover).map_err(io_error(&leftover, "remove what an earlier start has left"))?;
        }

        let name = Name { sequence: 0, index: 0 };
        let path = name.path(&tmp);
        let file = disk.open(&path, Open::CreateNew).map_err(io_error(&path, "create the first segment"))?;
        lock(file.as_ref(), &path)?;
        let mut wal = Wal::at(disk, dir, identity, VecDeque::from([Segment { name, file: file.clone() }]));
        wal.encoder.checksum();
        wal.encoder.metadata(identity);
        wal.encoder.snapshot(&SnapshotMark::START);
        wal.offset = wal.encoder.buffer.len() as u64;
        wal.encoder.buffer.resize(FIRST_ZEROS as usize, 0);
        for (at, piece) in (0u64..).step_by(prepare::ZERO_WRITE).zip(wal.encoder.buffer.chunks(prepare::ZERO_WRITE)) {
            file.write_at(piece, at).map_err(io_error(&path, "write the first records"))?;
        }
        file.sync().map_err(io_error(&path, "sync the first records"))?;
        wal.encoder.buffer.clear();
        wal.filled = FIRST_ZEROS;
        wal.stats.bytes_written = wal.offset;

        let disk = wal.disk.as_ref();
        disk.sync_dir(&tmp).map_err(io_error(&tmp, "sync the log's directory"))?;
        disk.rename(&tmp, dir).map_err(io_error(dir, "put the new log in its place"))?;
        for parent in grown {
            disk.sync_dir(&parent).map_err(io_error(&parent, "sync a directory above the log"))?;
        }
        Ok(wal)
    }

    /// Opens a log for writing and reads back what follows `from`, which must be a snapshot that the log has recorded
    /// (or [`SnapshotMark::START`]).
    ///
    /// A torn record at the very end is what a power cut leaves behind; it is cut off, after the segment has been copied to
    /// `<segment>.broken`. Every other fault is refused with file and offset: somebody has to look at it.
    ///
    /// A hard state may name a commit index beyond the last entry, if a crash came between a snapshot from the leader and
    /// its record. The caller judges that.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, from: SnapshotMark) -> Result<(Wal, Replay), WalError> {
        let names = segment::names(disk.as_ref(), dir)?;
        if names.is_empty() {
            return Err(WalError::NotFound { dir: dir.to_owned() });
        }
        let Some(first) = names.iter().rposition(|name| name.index <= from.index) else {
            return Err(WalError::StartsLater { dir: dir.to_owned(), index: from.index });
        };
        let names = &names[first..];
        segment::check_row(dir, names)?;

        let mut segments = VecDeque::new();
        for &name in names {
            let path = name.path(dir);
            let file = disk.open(&path, Open::Write).map_err(io_error(&path, "open a segment"))?;
            lock(file.as_ref(), &path)?;
            segments.push_back(Segment { name, file });
        }

        let mut reader = Reader::new(dir, &from);
        let mut checksum = 0;
        let mut offset = 0;
        let mut repaired = None;
        for (number, segment) in segments.iter().enumerate() {
            let path = segment.name.path(dir);
            let end = segment::read(segment.file.as_ref(), &path, &mut checksum, |record, offset| {
                reader.take(record, &path, offset)
            })?;
            offset = end.offset;
            let is_last = number + 1 == segments.len();
            match end.torn {
                Some(error) if !is_last => return Err(error),
                torn if is_last => {
                    let file = segment.file.as_ref();
                    let later = segment::later_batch(file, offset).map_err(io_error(&path, "read a segment"))?;
                    if let Some(later) = later {
                        return Err(WalError::LostRecord { file: path, offset, later });
                    }
                    if torn.is_some() {
                        let kept_as = set_aside(disk.as_ref(), file, &path)?;
                        repaired = Some(Repair { file: path, at: offset, kept_as });
                    }
                }
                _ => {}
            }
        }
        let (identity, hard_state, entries, last_index) = reader.finish()?;

        let mut wal = Wal::at(disk, dir, identity, segments);
        wal.encoder.checksum = checksum;
        wal.offset = offset;
        wal.hard_state = hard_state;
        wal.last_index = last_index;
        wal.settle()?;
        Ok((wal, Replay { identity, hard_state, entries, repaired }))
    }

    /// Reads back what follows `from`, as [`Wal::open`] does, from a log that may be in use: nothing is locked, cut off or
    /// written. A torn end is passed over.
    pub fn read(disk: &dyn Disk, dir: &Path, from: SnapshotMark) -> Result<Replay, WalError> {
        let names = segment::names(disk, dir)?;
        if names.is_empty() {
            return Err(WalError::NotFound { dir: dir.to_owned() });
        }
        let Some(first) = names.iter().rposition(|name| name.index <= from.index) else {
            return Err(WalError::StartsLater { dir: dir.to_owned(), index: from.index });
        };
        let names = &names[first..];
        segment::check_row(dir, names)?;
        let mut reader = Reader::new(dir, &from);
        let mut checksum = 0;
        for (number, name) in names.iter().enumerate() {
            let path = name.path(dir);
            let file = disk.open(&path, Open::Read).map_err(io_error(&path, "open a segment"))?;
            let end = segment::read(file.as_ref(), &path, &mut checksum, |record, offset| {
                reader.take(record, &path, offset)
            })?;
            if let Some(error) = end.torn.filter(|_| number + 1 < names.len()) {
                return Err(error);
            }
        }
        let (identity, hard_state, entries, _) = reader.finish()?;
        Ok(Replay { identity, hard_state, entries, repaired: None })
    }

    /// The snapshots that the log knows and that are safe to start from, oldest first: those at or below the last
    /// known commit index. A mark beyond it was written by a member that crashed before it had made the rest durable.
    ///
    /// Only reads; a torn end is passed over.
    pub fn snapshots(disk: &dyn Disk, dir: &Path) -> Result<Vec<SnapshotMark>, WalError> {
        let names = segment::names(disk, dir)?;
        if names.is_empty() {
            return Err(WalError::NotFound { dir: dir.to_owned() });
        }
        segment::check_row(dir, &names)?;
        let mut marks = Vec::new();
        let mut commit = 0;
        let mut checksum = 0;
        for (number, name) in names.iter().enumerate() {
            let path = name.path(dir);
            let file = disk.open(&path, Open::Read).map_err(io_error(&path, "open a segment"))?;
            let end = segment::read(file.as_ref(), &path, &mut checksum, |record, _| {
                match record {
                    Record::Snapshot(mark) => marks.push(mark),
                    Record::State(state) => commit = state.commit,
                    Record::Metadata(_) | Record::Entry(_) | Record::Checksum => {}
                }
                Ok(())
            })?;
            if let Some(error) = end.torn.filter(|_| number + 1 < names.len()) {
                return Err(error);
            }
        }
        marks.retain(|mark| mark.index <= commit);
        Ok(marks)
    }

    /// Writes a batch, entries first, with one write; then waits for the disk if the batch holds an entry, a vote, a term,
    /// or the commit index that makes a snapshot's mark count. When this returns, everything that the receipt names is durable.
    ///
    /// A hard state that is empty or has not changed is not written again. The entries may be those of several batches, so
    /// that one may replace another before it.
    ///
    /// # Panics
    /// If the entries leave a gap or their terms go down: a log like that could not be opened again.
    pub fn append(&mut self, entries: &[Entry], hard_state: Option<&HardState>) -> Result<Synced, WalError> {
        self.check_open()?;
        let state = hard_state.copied().filter(|&state| state != HardState::default() && state != self.hard_state);
        if entries.is_empty() && state.is_none() {
            return Ok(Synced { index: self.last_index, waited: false });
        }
        let (mut last_index, mut last_term) = (self.last_index, 0);
        for &Entry { index, term, .. } in entries {
            assert!(index <= last_index + 1, "entry {index} would leave a gap behind {last_index}");
            // What replaces an entry may have an older term than the replaced one.
            assert!(index <= last_index || term >= last_term, "term {term} of entry {index} follows term {last_term}");
            (last_index, last_term) = (index, term);
        }

        for entry in entries {
            self.encoder.entry(entry);
        }
        let mut must_sync = !entries.is_empty();
        if let Some(state) = state {
            let vote = if mutant::on(mutant::VoteForgotten) { 0 } else { state.vote };
            self.encoder.state(&HardState { vote, ..state });
            must_sync |= state.term != self.hard_state.term || state.vote != self.hard_state.vote;
            // A received snapshot is about to be acknowledged; without this commit index its mark would be passed over.
            must_sync |= self.hard_state.commit < self.marked && self.marked <= state.commit;
            self.hard_state = state;
        }
        self.last_index = last_index;
        self.write()?;
        if self.offset >= self.segment_bytes {
            self.cut()?;
            must_sync = true;
        } else if must_sync {
            self.sync()?;
        }
        Ok(Synced { index: self.last_index, waited: must_sync })
    }

    /// Records that a snapshot file is safely on disk, and waits until the record is as well.
    pub fn save_snapshot(&mut self, mark: &SnapshotMark) -> Result<(), WalError> {
        self.check_open()?;
        self.encoder.snapshot(mark);
        self.write()?;
        self.sync()?;
        // A snapshot from the leader may lie beyond all entries here; the log goes on behind it.
        self.last_index = self.last_index.max(mark.index);
        self.marked = self.marked.max(mark.index);
        Ok(())
    }

    /// Gives up the segments that hold only entries before `index`. They stay on disk until [`Wal::purge`].
    pub fn release_before(&mut self, index: u64) -> Result<(), WalError> {
        self.check_open()?;
        // The segment that begins last before `index` may hold it, and the mark of a snapshot there.
        let needed = self.segments.iter().rposition(|segment| segment.name.index < index).unwrap_or(0);
        self.segments.drain(..needed);
        Ok(())
    }

    /// Removes the oldest released segments until at most `keep` segments are left (0: keeps all); returns how many went.
    /// Stops at a segment that somebody else has locked.
    pub fn purge(&mut self, keep: usize) -> Result<usize, WalError> {
        self.check_open()?;
        if keep == 0 {
            return Ok(0);
        }
        let names = segment::names(self.disk.as_ref(), &self.dir)?;
        let held_from = self.segments[0].name;
        let mut removed = 0;
        for name in names.iter().take(names.len().saturating_sub(keep)).take_while(|&&name| name < held_from) {
            let path = name.path(&self.dir);
            let file = self.disk.open(&path, Open::Write).map_err(io_error(&path, "open a segment"))?;
            if !file.try_lock().map_err(io_error(&path, "lock a segment"))? {
                break;
            }
            self.disk.remove(&path).map_err(io_error(&path, "remove an old segment"))?;
            removed += 1;
        }
        if removed > 0 {
            self.disk.sync_dir(&self.dir).map_err(io_error(&self.dir, "sync the log's directory"))?;
        }
        Ok(removed)
    }

    /// Work to be done on another thread, if there is any and none is under way: keeping a stretch of zeros ahead of the
    /// log, or making the next segment. Ask again after each append.
    ///
    /// The stretch is short and written in small pieces: the device is the log's, and whoever waits for a sync must not
    /// wait for tens of megabytes of zeros as well. A log that hardly grows needs hardly any.
    pub fn prepare_next(&mut self) -> Option<Prepare> {
        let ahead = (self.offset + AHEAD).min(self.segment_bytes);
        let fill = self.filled < ahead;
        let early = self.offset < self.segment_bytes / 2;
        if self.closed || (!fill && (early || self.next.is_some())) {
            return None;
        }
        let ticket = Ticket::take(&self.preparing)?;
        let work = if fill {
            let current = self.current();
            let path = current.name.path(&self.dir);
            // Without a second handle the segment just stays as it is.
            let file = self.disk.open(&path, Open::Write).ok()?;
            let from = self.filled.max(self.offset);
            let to = (from + PIECE).min(self.segment_bytes);
            self.filled = to;
            self.floor.raise(self.offset);
            Work::Rest { file, from, to, floor: self.floor.clone() }
        } else {
            let path = self.dir.join(PREPARED_NAME);
            Work::Next { disk: self.disk.clone(), path, bytes: AHEAD.min(self.segment_bytes) }
        };
        Some(Prepare { work, ticket })
    }

    /// Takes what a [`Prepare`] of this log has made.
    pub fn prepared(&mut self, prepared: Prepared) {
        self.next = prepared.next.or(self.next.take());
    }

    /// Who writes this log.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The last hard state written.
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// Index of the last entry, or of a snapshot beyond it.
    pub fn last_index(&self) -> u64 {
        self.last_index
    }

    /// What was written since the log was opened. There is no clock in here; whoever calls can measure how long it takes.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Makes segments end at another size than etcd's, for tests and simulations that want many of them.
    pub fn set_segment_bytes(&mut self, bytes: u64) {
        self.segment_bytes = bytes;
    }

    fn at(disk: Arc<dyn Disk>, dir: &Path, identity: Identity, segments: VecDeque<Segment>) -> Wal {
        Wal {
            disk,
            dir: dir.to_owned(),
            identity,
            segments,
            offset: 0,
            unsynced: 0,
            encoder: Encoder::default(),
            hard_state: HardState::default(),
            last_index: 0,
            marked: 0,
            segment_bytes: SEGMENT_BYTES,
            next: None,
            preparing: Arc::default(),
            filled: 0,
            floor: Floor::default(),
            closed: false,
            stats: Stats::default(),
        }
    }

    /// Makes durable what was read, and clears what lies behind it. The process that wrote it may have died before its sync,
    /// so until now it may be in the operating system's memory only, or behind the end in pieces.
    ///
    /// A sync is not enough for that. If one has failed, the operating system shows data as if they were on disk, and never
    /// writes them again unless somebody else does. What can be meant lies at the end: see [`SUSPECT_BYTES`].
    fn settle(&mut self) -> Result<(), WalError> {
        let current = self.current();
        let path = current.name.path(&self.dir);
        let suspect = if mutant::on(mutant::LogEndNotRewritten) { 0 } else { SUSPECT_BYTES };
        let from = self.offset.saturating_sub(suspect);
        segment::rewrite(current.file.as_ref(), from, self.offset)
            .map_err(io_error(&path, "write the end of the log again"))?;
        let rest = if mutant::on(mutant::LogTailNotCleared) { u64::MAX } else { self.offset };
        segment::zero_from(current.file.as_ref(), rest).map_err(io_error(&path, "clear the end of the log"))?;
        current.file.sync().map_err(io_error(&path, "sync the last segment"))?;
        self.filled = current.file.len().map_err(io_error(&path, "read the last segment's length"))?;
        for name in self.disk.list(&self.dir).map_err(io_error(&self.dir, "list the log's directory"))? {
            if is_prepared_name(&name) {
                let path = self.dir.join(name);
                self.disk.remove(&path).map_err(io_error(&path, "remove a segment prepared by an earlier run"))?;
            }
        }
        self.disk.sync_dir(&self.dir).map_err(io_error(&self.dir, "sync the log's directory"))?;
        match parent_of(&self.dir) {
            Some(parent) => self.disk.sync_dir(&parent).map_err(io_error(&parent, "sync a directory above the log")),
            None => Ok(()),
        }
    }

    fn current(&self) -> &Segment {
        self.segments.back().expect("a log has at least one segment")
    }

    fn check_open(&self) -> Result<(), WalError> {
        if self.closed { Err(WalError::Closed { dir: self.dir.clone() }) } else { Ok(()) }
    }

    /// Runs a step that touches the disk. If it fails, the log is closed: trying again could succeed without the
    /// data being there.
    fn step<T>(
        &mut self,
        action: &'static str,
        step: impl FnOnce(&mut Wal) -> Result<T, io::Error>,
    ) -> Result<T, WalError> {
        step(self).map_err(|source| {
            self.closed = true;
            WalError::Io { file: self.current().name.path(&self.dir), action, source }
        })
    }

    /// Writes the buffer to the end of the log.
    fn write(&mut self) -> Result<(), WalError> {
        self.step("write to the log", |wal| {
            wal.floor.raise(wal.offset + wal.encoder.buffer.len() as u64);
            let mut rest = &wal.encoder.buffer[..];
            while !rest.is_empty() {
                if wal.unsynced == SUSPECT_BYTES {
                    wal.stats.syncs += 1;
                    wal.current().file.sync()?;
                    wal.unsynced = 0;
                }
                let (piece, later) = rest.split_at(rest.len().min((SUSPECT_BYTES - wal.unsynced) as usize));
                wal.current().file.write_at(piece, wal.offset)?;
                wal.stats.bytes_written += piece.len() as u64;
                wal.offset += piece.len() as u64;
                wal.unsynced += piece.len() as u64;
                rest = later;
            }
            wal.encoder.buffer.clear();
            wal.encoder.buffer.shrink_to(BUFFER_KEPT);
            Ok(())
        })
    }

    fn sync(&mut self) -> Result<(), WalError> {
        self.step("sync the log", |wal| {
            wal.stats.syncs += 1;
            let synced = if mutant::on(mutant::LogUnsynced) { Ok(()) } else { wal.current().file.sync() };
            synced.or_else(|error| if mutant::on(mutant::FailedSyncTrusted) { Ok(()) } else { Err(error) })?;
            wal.unsynced = 0;
            Ok(())
        })
    }

    /// Ends the current segment and begins the next. The order holds at every crash: the old one is complete and durable
    /// before the new one has its name, and the new one has its first records before it has its name.
    fn cut(&mut self) -> Result<(), WalError> {
        // Whoever still fills the old segment with zeros must not make it long again.
        self.floor.raise(u64::MAX);
        self.step("end a segment", |wal| wal.current().file.set_len(wal.offset))?;
        self.sync()?;

        let (next, filled) = match self.next.take() {
            Some(next) => (next, AHEAD.min(self.segment_bytes)),
            None => {
                let path = self.dir.join(UNPREPARED_NAME);
                let next =
                    self.step("make a segment", |wal| prepare::next_file(wal.disk.as_ref(), path, FIRST_ZEROS))?;
                (next, FIRST_ZEROS)
            }
        };
        let name = Name { sequence: self.current().name.sequence + 1, index: self.last_index + 1 };
        self.encoder.checksum();
        self.encoder.metadata(self.identity);
        if self.hard_state != HardState::default() {
            let state = self.hard_state;
            self.encoder.state(&state);
        }
        self.step("begin a segment", |wal| {
            if !next.file.try_lock()? {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "the new segment is locked by another process"));
            }
            next.file.write_at(&wal.encoder.buffer, 0)?;
            next.file.sync()?;
            wal.disk.rename(&next.path, &name.path(&wal.dir))?;
            wal.disk.sync_dir(&wal.dir)
        })?;
        self.offset = self.encoder.buffer.len() as u64;
        self.encoder.buffer.clear();
        self.segments.push_back(Segment { name, file: next.file });
        self.filled = filled;
        self.floor = Floor::default();
        self.stats.bytes_written += self.offset;
        self.stats.syncs += 1;
        self.stats.cuts += 1;
        Ok(())
    }
}

/// The file that a [`Prepare`] works on, and the one that a cut makes for itself; etcd's names for the same purpose, so
/// that each program cleans up behind the other.
const PREPARED_NAME: &str = "0.tmp";
const UNPREPARED_NAME: &str = "1.tmp";

fn is_prepared_name(name: &str) -> bool {
    name == PREPARED_NAME || name == UNPREPARED_NAME
}

fn lock(file: &dyn File, path: &Path) -> Result<(), WalError> {
    match file.try_lock() {
        Ok(true) => Ok(()),
        Ok(false) => Err(WalError::Locked { file: path.to_owned() }),
        Err(e) => Err(io_error(path, "lock a segment")(e)),
    }
}

fn parent_of(path: &Path) -> Option<PathBuf> {
    let parent = path.parent()?;
    Some(if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() })
}

/// The directories that get a new name in them when `dir` is made: its parent, and the parent of each that is made as well.
/// A log is durable only if the whole path to it is.
fn growing_directories(disk: &dyn Disk, dir: &Path) -> Result<Vec<PathBuf>, WalError> {
    let mut grown = Vec::new();
    let mut at = dir.to_owned();
    while let Some(parent) = parent_of(&at) {
        let exists = disk.exists(&parent).map_err(io_error(&parent, "look for the directory above the log"))?;
        grown.push(parent.clone());
        if exists {
            break;
        }
        at = parent;
    }
    Ok(grown)
}

/// Copies a segment to `<path>.broken` before it is repaired, so that nothing is destroyed that somebody may want to see.
fn set_aside(disk: &dyn Disk, file: &dyn File, path: &Path) -> Result<PathBuf, WalError> {
    let mut kept_as = path.to_owned().into_os_string();
    kept_as.push(".broken");
    let kept_as = PathBuf::from(kept_as);
    let copy = || -> io::Result<()> {
        let copy = disk.open(&kept_as, Open::Truncate)?;
        copy.set_len(file.len()?)?;
        let mut block = vec![0; BLOCK];
        let zeros = vec![0; BLOCK];
        let mut at = 0;
        loop {
            let got = file.read_at(&mut block, at)?;
            if got == 0 {
                return copy.sync();
            }
            // Most of a segment is zeros, and they are there already.
            if block[..got] != zeros[..got] {
                copy.write_at(&block[..got], at)?;
            }
            at += got as u64;
        }
    };
    copy().map_err(io_error(&kept_as, "keep a copy of the torn segment"))?;
    Ok(kept_as)
}

/// Puts the records of a log together.
struct Reader<'a> {
    dir: &'a Path,
    from: &'a SnapshotMark,
    identity: Option<Identity>,
    hard_state: HardState,
    entries: Vec<Entry>,
    found: bool,
}

impl Reader<'_> {
    fn new<'a>(dir: &'a Path, from: &'a SnapshotMark) -> Reader<'a> {
        Reader { dir, from, identity: None, hard_state: HardState::default(), entries: Vec::new(), found: false }
    }

    fn take(&mut self, record: Record, path: &Path, offset: u64) -> Result<(), WalError> {
        match record {
            Record::Checksum => {}
            Record::Metadata(found) => {
                let expected = *self.identity.get_or_insert(found);
                if expected != found {
                    return Err(WalError::ConflictingIdentity { file: path.to_owned(), offset, expected, found });
                }
            }
            Record::State(state) => self.hard_state = state,
            Record::Snapshot(mark) if mark.index == self.from.index => {
                if mark.term != self.from.term {
                    let (dir, index) = (self.dir.to_owned(), mark.index);
                    return Err(WalError::SnapshotMismatch { dir, index, wanted: self.from.term, found: mark.term });
                }
                self.found = true;
            }
            Record::Snapshot(_) => {}
            Record::Entry(entry) if entry.index <= self.from.index => {}
            Record::Entry(entry) => {
                // What a new leader has replaced is still in the file; the later record counts.
                let position = entry.index - self.from.index - 1;
                if position > self.entries.len() as u64 {
                    let expected = self.from.index + 1 + self.entries.len() as u64;
                    let (file, found) = (path.to_owned(), entry.index);
                    return Err(WalError::MissingEntries { file, offset, expected, found });
                }
                self.entries.truncate(position as usize);
                if self.entries.last().is_some_and(|last| entry.term < last.term) {
                    let problem = "an entry of an older term than the one before it";
                    return Err(WalError::Malformed { file: path.to_owned(), offset, problem });
                }
                self.entries.push(entry);
            }
        }
        Ok(())
    }

    /// Identity, hard state, entries, last index.
    fn finish(self) -> Result<(Identity, HardState, Vec<Entry>, u64), WalError> {
        let dir = || self.dir.to_owned();
        if !self.found {
            return Err(WalError::SnapshotNotFound { dir: dir(), index: self.from.index });
        }
        let identity = self.identity.ok_or_else(|| WalError::NoIdentity { dir: dir() })?;
        let last_index = self.entries.last().map_or(self.from.index, |last| last.index);
        Ok((identity, self.hard_state, self.entries, last_index))
    }
}
