//! Background work, in small steps: carrying compactions out, saving the index, reclaiming space.
//!
//! One piece of work at a time, a step per call of [`Store::maintain`]; only compaction goes in between. A piece ends by
//! replacing the manifest, and before that the log must be durable up to where it was when the last step was done:
//! nothing that depends on the end of the log may outlive it.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::RwLockWriteGuard;

use crate::checkpoint::{self, Beginning, CheckpointFile, Cursor, checkpoint_name};
use crate::frame::{self, Kind};
use crate::log::{Files, Forward};
use crate::manifest::{Listed, Manifest};
use crate::pins::Ticket;
use crate::segment::{HEAD_BYTES, Head, Origin, Position, Segment};
use crate::stream::{History, key_of};
use crate::{Inner, Location, Revision, Store, StoreError, Table};

/// Keys looked at under one hold of the index lock.
const KEYS_PER_HOLD: usize = 128;

/// Keys searched for and changed under one hold of the index lock.
const MOVES_PER_HOLD: usize = 64;

/// Holds of the index lock in one step.
const HOLDS_PER_STEP: usize = 8;

/// Bytes walked through in one step of reclaiming, and live bytes after which the copy is synced, so that no sync
/// has much to write: the write-ahead log's syncs wait behind it.
const RECLAIM_STEP_BYTES: u64 = 512 << 10;
const RECLAIM_SYNC_BYTES: u32 = 4 << 20;

/// Dead bytes that every segment may have: its head and a few marks.
const NOT_WORTH_RECLAIMING: u64 = 512;

/// Removed segments whose forwards are kept although no pin asks for it, for readers without one.
const KEPT_FORWARDS: usize = 16;

/// The work in progress.
#[derive(Debug)]
pub(crate) struct Maintenance {
    /// As it stands on disk.
    pub manifest: Manifest,
    /// Nothing may be done while a replacement is being made, nor ever after it has been made.
    pub suspended: bool,
    /// Files of the content before this one, to be removed.
    pub leftovers: Vec<String>,
    /// Bytes of the newest checkpoint.
    checkpoint_bytes: u64,
    sweep: Option<Sweep>,
    job: Option<Job>,
    /// Removed segments with the first pin that cannot know them, oldest first.
    removed: VecDeque<(Ticket, u32)>,
}

/// A compaction being carried out.
#[derive(Debug)]
struct Sweep {
    compacted: i64,
    cursor: Box<[u8]>,
}

#[derive(Debug)]
enum Job {
    Checkpoint(CheckpointJob),
    Reclaim(ReclaimJob),
}

/// A checkpoint being written.
#[derive(Debug)]
struct CheckpointJob {
    file: CheckpointFile,
    start: Position,
    next: Part,
}

/// What comes next in a checkpoint.
#[derive(Debug)]
enum Part {
    Rows(Option<(Table, Bytes)>),
    Keys(Cursor),
    /// The log must become durable up to here.
    Durable(Position),
}

/// Segments being replaced by a copy of what lives in them.
#[derive(Debug)]
struct ReclaimJob {
    sources: Vec<Arc<Segment>>,
    merged: Arc<Segment>,
    history: History,
    forwards: Vec<(u32, Forward)>,
    /// Set once everything is copied: the log must become durable up to here.
    durable: Option<Position>,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// There may be more to do.
    Worked,
    /// Nothing can be done now.
    Idle,
}

impl Maintenance {
    pub(crate) fn new(manifest: Manifest, checkpoint_bytes: u64) -> Self {
        Self {
            manifest,
            suspended: false,
            leftovers: Vec::new(),
            checkpoint_bytes,
            sweep: None,
            job: None,
            removed: VecDeque::new(),
        }
    }
}

impl Store {
    /// Does one bounded step of background work (compaction of the index, checkpoint, space reclaim), at most about a
    /// millisecond under any lock. Returns whether there is more to do now; if not, ask again after the next flush.
    ///
    /// Best called from a thread of its own that pauses for about a millisecond after every step: a thread that the
    /// scheduler takes off its core while it holds the index lock keeps the writer waiting, so it should hold it seldom.
    pub fn maintain(&self) -> Result<bool, StoreError> {
        let inner = self.inner();
        let mut work = inner.maintenance.lock();
        inner.files.check_sound()?;
        if work.suspended {
            return Ok(false);
        }
        let step = inner.step(&mut work);
        Ok(inner.files.break_on(step)? == Step::Worked)
    }
}

impl Inner {
    fn step(&self, work: &mut Maintenance) -> Result<Step, StoreError> {
        if self.sweep_step(work) == Step::Worked {
            return Ok(Step::Worked);
        }
        if self.remove_leftover(work)? == Step::Worked {
            return Ok(Step::Worked);
        }
        self.forget_forwards(work);
        if let Some(job) = work.job.take() {
            return self.job_step(work, job);
        }
        if self.prepare_segment()? == Step::Worked || self.sync_sealed()? == Step::Worked {
            return Ok(Step::Worked);
        }
        work.job = self.next_job(work)?;
        Ok(if work.job.is_some() { Step::Worked } else { Step::Idle })
    }

    /// Removes a file of the content before this one.
    fn remove_leftover(&self, work: &mut Maintenance) -> Result<Step, StoreError> {
        let Some(name) = work.leftovers.pop() else { return Ok(Step::Idle) };
        let removed = self.files.disk.remove(&self.files.dir.join(&name));
        removed.map_err(|e| StoreError::io(&name, "remove", e))?;
        Ok(Step::Worked)
    }

    /// Saves the index now; nothing may be written meanwhile. For a clean stop.
    pub(crate) fn checkpoint_now(&self) -> Result<(), StoreError> {
        let mut work = self.maintenance.lock();
        let files = &self.files;
        files.check_sound()?;
        while let Some(job) = work.job.take() {
            if files.break_on(self.job_step(&mut work, job))? == Step::Idle {
                return Ok(());
            }
        }
        while files.break_on(self.remove_leftover(&mut work))? == Step::Worked {}
        while self.sweep_step(&mut work) == Step::Worked {}
        if files.progress.lock().marked == work.manifest.start {
            return Ok(());
        }
        work.job = Some(self.begin_checkpoint()?);
        while let Some(job) = work.job.take() {
            if files.break_on(self.job_step(&mut work, job))? == Step::Idle {
                // Something stands behind the last mark, so the log cannot become durable up to there.
                break;
            }
        }
        Ok(())
    }

    fn sweep_step(&self, work: &mut Maintenance) -> Step {
        let compacted = self.compact_revision();
        if work.sweep.is_none() {
            // Someone still reads what would be dropped. Nobody new can: those revisions are refused already.
            if self.compaction_done() || self.pins.any_below(compacted) {
                return Step::Idle;
            }
            work.sweep = Some(Sweep { compacted, cursor: Box::default() });
        }
        let Some(sweep) = &mut work.sweep else { return Step::Idle };
        let segments = self.files.segments.read().clone();
        let mut dropped = 0;
        for _ in 0..HOLDS_PER_STEP {
            let mut index = self.index.write();
            let compacted = sweep.compacted + i64::from(mutant::on(mutant::SweepTooFar));
            let next = index.sweep(&sweep.cursor, compacted, KEYS_PER_HOLD, &mut |version| {
                dropped += 1;
                let location = version.location();
                if let Some(segment) = segments.get(&location.segment) {
                    segment.live.fetch_sub(location.len.into(), Ordering::Relaxed);
                }
            });
            // The writer, if it waits, goes next: this thread would be back before it has woken up.
            RwLockWriteGuard::unlock_fair(index);
            let Some(cursor) = next else {
                self.swept.store(sweep.compacted, Ordering::Release);
                work.sweep = None;
                break;
            };
            sweep.cursor = cursor;
        }
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
        Step::Worked
    }

    /// Makes the file that the writer will go on in, so that it need not wait for the file system's journal.
    fn prepare_segment(&self) -> Result<Step, StoreError> {
        let files = &self.files;
        let is_needed = files.appended().offset >= files.options.segment_bytes / 2;
        let is_made = is_needed && files.prepare_segment()?;
        Ok(if is_made { Step::Worked } else { Step::Idle })
    }

    /// Syncs a segment that the writer has left behind, so that the next sync has less to do.
    fn sync_sealed(&self) -> Result<Step, StoreError> {
        let tail = self.files.tail_id();
        let sealed = self.files.segments.read().values().find(|s| s.id < tail && !s.is_synced()).cloned();
        let Some(segment) = sealed else { return Ok(Step::Idle) };
        self.files.sync_sealed(&segment)?;
        Ok(Step::Worked)
    }

    fn job_step(&self, work: &mut Maintenance, job: Job) -> Result<Step, StoreError> {
        match job {
            Job::Checkpoint(job) => self.checkpoint_step(work, job),
            Job::Reclaim(job) => self.reclaim_step(work, job),
        }
    }

    /// Decides what is worth doing.
    fn next_job(&self, work: &Maintenance) -> Result<Option<Job>, StoreError> {
        let files = &self.files;
        let floor = u64::from(files.options.segment_bytes / 64).max(NOT_WORTH_RECLAIMING);
        let size = self.size();
        let tail = files.tail_id();
        let start = work.manifest.start;
        let segments: Vec<_> = files.segments.read().values().cloned().collect();
        let is_covered = |s: &Segment| s.origin == Origin::Merged || s.id < start.segment;
        let dead = |s: &Segment| u64::from(s.end()).saturating_sub(s.live());
        let too_big = size.total > size.live + size.live * 3 / 10 + floor;

        let mut sources: Vec<_> = segments
            .iter()
            .filter(|s| is_covered(s))
            .filter(|s| dead(s) * 2 > s.end().into() || (too_big && dead(s) * 10 > s.end().into()))
            .collect();
        sources.sort_by_key(|s| (s.live() * 1000 / u64::from(s.end()).max(1), s.id));
        let mut room = u64::from(files.options.segment_bytes);
        let mut chosen: Vec<Arc<Segment>> = Vec::new();
        for source in sources {
            if source.live() > room && !chosen.is_empty() {
                break;
            }
            room = room.saturating_sub(source.live());
            chosen.push(source.clone());
        }
        if chosen.iter().map(|s| dead(s)).sum::<u64>() > floor {
            return self.begin_reclaim(chosen).map(Some);
        }

        let uncovered: Vec<_> = segments.iter().filter(|s| !is_covered(s)).collect();
        if too_big && uncovered.iter().map(|s| dead(s)).sum::<u64>() > floor {
            // What is to be reclaimed must lie before a checkpoint, and so before the segment being written.
            let marked = files.progress.lock().marked;
            if uncovered.iter().any(|s| s.id == tail && dead(s) > floor && dead(s) * 2 > s.end().into()) {
                files.want_roll.store(true, Ordering::Release);
                return Ok(None);
            }
            if marked.segment > start.segment {
                return self.begin_checkpoint().map(Some);
            }
        }

        let since: u64 = uncovered.iter().map(|s| u64::from(s.end())).sum();
        let since = since.saturating_sub(start.offset.into());
        if since > files.options.checkpoint_bytes.max(4 * work.checkpoint_bytes) {
            return self.begin_checkpoint().map(Some);
        }
        Ok(None)
    }

    fn begin_checkpoint(&self) -> Result<Job, StoreError> {
        let files = &self.files;
        // Before the index is read: it must not hold more than this says.
        let swept = self.swept.load(Ordering::Acquire);
        let (start, mark, revision) = {
            let progress = files.progress.lock();
            (progress.marked, progress.mark.clone(), progress.revision)
        };
        // After the place in the log: a compaction that the log holds before that place must not be missed.
        let compacted = self.compact_revision();
        let beginning = Beginning { mark, revision, compacted, swept };
        let file = CheckpointFile::create(&*files.disk, &files.dir, files.new_id(), &beginning)?;
        Ok(Job::Checkpoint(CheckpointJob { file, start, next: Part::Rows(None) }))
    }

    fn checkpoint_step(&self, work: &mut Maintenance, mut job: CheckpointJob) -> Result<Step, StoreError> {
        let files = &self.files;
        job.next = match job.next {
            Part::Rows(after) => {
                let rows = self.tables.read().behind(after.as_ref(), KEYS_PER_HOLD);
                match rows.last() {
                    None => Part::Keys(Cursor::default()),
                    Some((table, key, _)) => {
                        let after = Some((*table, key.clone()));
                        job.file.add_rows(&rows);
                        job.file.write()?;
                        Part::Rows(after)
                    }
                }
            }
            Part::Keys(cursor) => {
                let mut next = Some(cursor);
                for _ in 0..HOLDS_PER_STEP {
                    let Some(cursor) = next.take() else { break };
                    next = job.file.add_keys(&self.index.read(), &cursor, KEYS_PER_HOLD);
                }
                job.file.write()?;
                match next {
                    Some(cursor) => Part::Keys(cursor),
                    None => {
                        job.file.add_spans(&checkpoint::spans(&files.segments.read(), job.start));
                        job.file.finish()?;
                        Part::Durable(files.appended())
                    }
                }
            }
            Part::Durable(position) => {
                if !mutant::on(mutant::CheckpointUnwaited) && !self.is_durable(position)? {
                    job.next = Part::Durable(position);
                    work.job = Some(Job::Checkpoint(job));
                    return Ok(Step::Idle);
                }
                self.publish_checkpoint(work, &job)?;
                return Ok(Step::Worked);
            }
        };
        work.job = Some(Job::Checkpoint(job));
        Ok(Step::Worked)
    }

    /// Syncs the log if that makes it durable up to `position`; otherwise asks the writer for a mark.
    fn is_durable(&self, position: Position) -> Result<bool, StoreError> {
        let files = &self.files;
        let (marked, durable) = {
            let progress = files.progress.lock();
            (progress.marked, progress.durable)
        };
        if durable >= position {
            return Ok(true);
        }
        if marked < position {
            files.want_mark.store(true, Ordering::Release);
            return Ok(false);
        }
        files.sync_marked()?;
        Ok(true)
    }

    fn publish_checkpoint(&self, work: &mut Maintenance, job: &CheckpointJob) -> Result<(), StoreError> {
        let files = &self.files;
        let segments = files.segments.read().clone();
        let listed = segments
            .values()
            .filter(|s| s.origin == Origin::Merged || s.id < job.start.segment)
            .map(|s| Listed { id: s.id, origin: s.origin, replay: false })
            .collect();
        let manifest = Manifest {
            next_id: files.next_id.load(Ordering::Relaxed),
            checkpoint: job.file.id,
            start: job.start,
            durable: files.progress.lock().durable,
            segments: listed,
        };
        manifest.write(&*files.disk, &files.dir)?;
        let old = std::mem::replace(&mut work.manifest, manifest).checkpoint;
        work.checkpoint_bytes = job.file.len();
        if old != 0 {
            let name = checkpoint_name(old);
            files.disk.remove(&files.dir.join(&name)).map_err(|e| StoreError::io(&name, "remove", e))?;
        }
        Ok(())
    }

    fn begin_reclaim(&self, sources: Vec<Arc<Segment>>) -> Result<Job, StoreError> {
        let files = &self.files;
        let id = files.new_id();
        let merged = Arc::new(Segment::create(&*files.disk, &files.dir, id, Origin::Merged)?);
        let mut head = Vec::new();
        let durable = files.progress.lock().durable;
        Head { id, origin: Origin::Merged, previous: Position::default(), durable }.append(&mut head);
        merged.write(&head)?;
        files.segments.write().insert(id, merged.clone());
        let forwards = sources.iter().map(|source| (source.id, Forward::new())).collect();
        let history = History::of(sources.clone());
        Ok(Job::Reclaim(ReclaimJob { sources, merged, history, forwards, durable: None }))
    }

    fn reclaim_step(&self, work: &mut Maintenance, mut job: ReclaimJob) -> Result<Step, StoreError> {
        match job.durable {
            None => {
                if self.copy_some(&mut job)? {
                    job.merged.sync()?;
                    job.durable = Some(self.files.appended());
                }
            }
            Some(position) => {
                if !self.is_durable(position)? {
                    work.job = Some(Job::Reclaim(job));
                    return Ok(Step::Idle);
                }
                self.publish_reclaim(work, job)?;
                return Ok(Step::Worked);
            }
        }
        work.job = Some(Job::Reclaim(job));
        Ok(Step::Worked)
    }

    /// Copies some living versions and points the index at the copies. Returns whether all are copied.
    fn copy_some(&self, job: &mut ReclaimJob) -> Result<bool, StoreError> {
        let mut copied = Vec::new();
        let mut moves: Vec<Move> = Vec::new();
        let mut walked = 0;
        let begin = job.merged.end();
        let ended = job.history.walk(&mut |revision, deleted, from, payload| {
            walked += u64::from(from.len);
            let key = key_of(&payload, from)?;
            if self.index.read().is_at(key, revision, from) {
                let offset = begin + copied.len() as u32;
                let kind = if deleted { Kind::Tombstone } else { Kind::Put };
                let len = frame::append(&mut copied, kind, revision.main, revision.sub as u32, |out| {
                    out.extend_from_slice(&payload)
                });
                let to = Location { segment: job.merged.id, offset, len };
                moves.push(Move { key: key.into(), revision, from, to });
            }
            let stop = walked >= RECLAIM_STEP_BYTES;
            Ok(if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        job.merged.write(&copied)?;
        for group in moves.chunks(MOVES_PER_HOLD) {
            let mut index = self.index.write();
            for Move { key, revision, from, to } in group {
                let moved = index.relocate(key, *revision, *from, *to);
                assert!(moved, "{revision:?} of a key is no longer at {from:?}: only compaction may drop it");
            }
            RwLockWriteGuard::unlock_fair(index);
        }
        for Move { revision, from, to, .. } in moves {
            job.merged.span.lock().note(revision.main, to.offset);
            job.merged.live.fetch_add(to.len.into(), Ordering::Relaxed);
            if let Some(source) = job.sources.iter().find(|s| s.id == from.segment) {
                source.live.fetch_sub(from.len.into(), Ordering::Relaxed);
            }
            if let Some((_, forward)) = job.forwards.iter_mut().find(|(id, _)| *id == from.segment) {
                forward.push((from.offset, Position { segment: to.segment, offset: to.offset }));
            }
        }
        if job.merged.written() - job.merged.synced.load(Ordering::Acquire) >= RECLAIM_SYNC_BYTES {
            job.merged.sync()?;
        }
        Ok(ended)
    }

    fn publish_reclaim(&self, work: &mut Maintenance, job: ReclaimJob) -> Result<(), StoreError> {
        let files = &self.files;
        for source in &job.sources {
            assert!(source.live() == 0, "{}: {} bytes still live after reclaiming", source.name, source.live());
        }
        let mut manifest = work.manifest.clone();
        manifest.next_id = files.next_id.load(Ordering::Relaxed);
        manifest.durable = files.progress.lock().durable;
        manifest.segments.retain(|listed| job.sources.iter().all(|source| source.id != listed.id));
        let is_empty = job.merged.end() == HEAD_BYTES;
        if !is_empty {
            manifest.segments.push(Listed { id: job.merged.id, origin: Origin::Merged, replay: true });
        }
        manifest.write(&*files.disk, &files.dir)?;
        work.manifest = manifest;

        let ticket = self.pins.next();
        for (id, forward) in job.forwards {
            files.forwards.write().insert(id, forward);
            work.removed.push_back((ticket, id));
        }
        let gone = job.sources.into_iter().chain(is_empty.then_some(job.merged));
        for segment in gone {
            files.segments.write().remove(&segment.id);
            files
                .disk
                .remove(&files.dir.join(&segment.name))
                .map_err(|e| StoreError::io(&segment.name, "remove", e))?;
        }
        Ok(())
    }

    /// Drops forwards that nobody can need.
    fn forget_forwards(&self, work: &mut Maintenance) {
        while work.removed.len() > KEPT_FORWARDS
            && let Some(&(ticket, id)) = work.removed.front()
            && !self.pins.any_before(ticket)
        {
            work.removed.pop_front();
            self.files.forwards.write().remove(&id);
        }
    }
}

/// A version copied to a new place.
#[derive(Debug)]
struct Move {
    key: Box<[u8]>,
    revision: Revision,
    from: Location,
    to: Location,
}

impl Files {
    /// The segment being written.
    fn tail_id(&self) -> u32 {
        self.appended().segment
    }

    /// Where the log ends, unwritten frames included.
    fn appended(&self) -> Position {
        let segments = self.segments.read();
        let tail = segments.values().rev().find(|segment| segment.origin == Origin::Log);
        tail.map_or(Position::default(), |tail| Position { segment: tail.id, offset: tail.end() })
    }
}
