//! Opening: the checkpoint, and on top of it the log up to its last mark.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Buf, Bytes};
use disk::{Disk, Open};

use crate::checkpoint;
use crate::frame::{self, Frame, HEADER, Kind, StoredKey};
use crate::index::{Index, Version};
use crate::log::{Files, Progress};
use crate::maintain::Maintenance;
use crate::manifest::{Listed, MANIFEST, Manifest};
use crate::segment::{Frames, HEAD_BYTES, Head, Origin, Position, Segment, Stop, segment_id, segment_name};
use crate::tables::{self, Tables};
use crate::{KeyMeta, Location, Mark, Options, Revision, StoreError};

/// What an open found.
#[derive(Debug)]
pub(crate) struct Opened {
    pub tail: Arc<Segment>,
    pub mark: Mark,
    pub content: Content,
}

/// What a store begins with. All compactions have been carried out.
#[derive(Debug)]
pub(crate) struct Content {
    pub files: Arc<Files>,
    pub index: Index,
    pub tables: Tables,
    pub revision: i64,
    pub compacted: i64,
    pub maintenance: Maintenance,
}

/// What the frames read so far amount to.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub index: Index,
    pub tables: Tables,
    pub mark: Mark,
    /// How far the log says that it was durable.
    pub durable: Position,
    pub revision: i64,
    pub compacted: i64,
    /// Newest compaction known to have been carried out.
    pub swept: i64,
}

impl Recovered {
    pub(crate) fn empty() -> Self {
        Self {
            index: Index::new(),
            tables: Tables::default(),
            mark: Mark::default(),
            durable: Position::default(),
            revision: 1,
            compacted: -1,
            swept: -1,
        }
    }

    /// Takes the effect of a frame in. Doing so twice changes nothing: a checkpoint may already contain it.
    fn apply(&mut self, frame: Frame<'_>, location: Location) -> Result<(), &'static str> {
        match frame.kind {
            Kind::Put | Kind::Tombstone => {
                let StoredKey { key, create_revision, version, leased } =
                    frame::decode_key_value(frame.payload).ok_or("not a KeyValue")?;
                let modified = Revision { main: frame.main, sub: frame.sub.into() };
                let version = if frame.kind == Kind::Put {
                    Version::put(KeyMeta { create_revision, modified, version, leased }, location)
                } else {
                    Version::tombstone(modified, location)
                };
                self.index.insert(key, version);
            }
            Kind::SetRow => {
                let (table, key, value) = tables::decode_row(frame.payload).ok_or("not a row")?;
                self.tables.set(table, key, value);
            }
            Kind::RemoveRow => {
                let (table, key, _) = tables::decode_row(frame.payload).ok_or("not a row")?;
                self.tables.remove(table, key);
            }
            Kind::Compaction if mutant::on(mutant::CompactionForgotten) => {}
            Kind::Compaction => self.compacted = self.compacted.max(frame.main),
            Kind::Mark => {
                let (mark, durable) = decode_mark(frame.payload).ok_or("not a mark")?;
                self.mark = mark;
                self.durable = self.durable.max(durable);
                self.revision = self.revision.max(frame.main - i64::from(mutant::on(mutant::RevisionFallsBack)));
            }
            _ => return Err("out of place"),
        }
        Ok(())
    }
}

/// A mark, and how far the log was durable when it was written.
fn decode_mark(mut payload: &[u8]) -> Option<(Mark, Position)> {
    if payload.len() < 24 {
        return None;
    }
    let index = payload.get_u64_le();
    let term = payload.get_u64_le();
    let durable = Position::decode(&mut payload);
    Some((Mark { index, term, conf_state: Bytes::copy_from_slice(payload) }, durable))
}

pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path, options: Options) -> Result<Opened, StoreError> {
    disk.create_dir_all(dir).map_err(|e| StoreError::io(".", "create directory", e))?;
    let manifest = match Manifest::read(&*disk, dir)? {
        Some(manifest) => manifest,
        None => create(&*disk, dir)?,
    };
    let names = disk.list(dir).map_err(|e| StoreError::io(".", "list directory", e))?;
    let opened = Opening { disk, dir, manifest, segments: BTreeMap::new(), next_id: 0 };
    opened.run(&names, options)
}

/// Makes a new store: one empty segment and a manifest.
fn create(disk: &dyn Disk, dir: &Path) -> Result<Manifest, StoreError> {
    let first = segment_name(1);
    for name in disk.list(dir).map_err(|e| StoreError::io(".", "list directory", e))? {
        // A crash may have interrupted an earlier attempt, which leaves at most the first segment's head.
        let path = dir.join(&name);
        if name == first && file_len(disk, &path, &name)? <= HEAD_BYTES.into() {
            disk.remove(&path).map_err(|e| StoreError::io(&name, "remove", e))?;
        } else if segment_id(&name).is_some() {
            return Err(StoreError::corrupt(MANIFEST, 0, "missing, although there are segments"));
        }
    }
    let segment = Segment::create(disk, dir, 1, Origin::Log)?;
    let mut head = Vec::new();
    Head { id: 1, origin: Origin::Log, previous: Position::default(), durable: Position::default() }.append(&mut head);
    segment.write(&head)?;
    segment.sync()?;
    disk.sync_dir(dir).map_err(|e| StoreError::io(".", "sync directory", e))?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        disk.sync_dir(parent).map_err(|e| StoreError::io("..", "sync directory", e))?;
    }
    let start = Position { segment: 1, offset: HEAD_BYTES };
    let manifest = Manifest { next_id: 2, checkpoint: 0, start, durable: start, segments: Vec::new() };
    manifest.write(disk, dir)?;
    Ok(manifest)
}

fn file_len(disk: &dyn Disk, path: &Path, name: &str) -> Result<u64, StoreError> {
    let file = disk.open(path, Open::Read).map_err(|e| StoreError::io(name, "open", e))?;
    file.len().map_err(|e| StoreError::io(name, "measure", e))
}

struct Opening<'a> {
    disk: Arc<dyn Disk>,
    dir: &'a Path,
    manifest: Manifest,
    segments: BTreeMap<u32, Arc<Segment>>,
    next_id: u32,
}

impl Opening<'_> {
    fn run(mut self, names: &[String], options: Options) -> Result<Opened, StoreError> {
        let ids = names.iter().filter_map(|name| segment_id(name).or_else(|| checkpoint::checkpoint_id(name)));
        self.next_id = ids.fold(self.manifest.next_id, |next, id| next.max(id.saturating_add(1)));

        for listed in self.manifest.segments.clone() {
            self.open_segment(listed.id, listed.origin)?;
        }
        let log = self.log_segments(names)?;
        let mut recovered = match self.manifest.checkpoint {
            0 => Recovered::empty(),
            id => checkpoint::read(&*self.disk, self.dir, id, &self.segments)?,
        };
        let checkpoint_bytes = match self.manifest.checkpoint {
            0 => 0,
            id => {
                let name = checkpoint::checkpoint_name(id);
                file_len(&*self.disk, &self.dir.join(&name), &name)?
            }
        };
        for Listed { id, replay, .. } in self.manifest.segments.clone() {
            if replay {
                self.replay_merged(id, &mut recovered)?;
            }
        }

        let end = self.replay_log(&log, &mut recovered)?;
        let heads = log.iter().map(|(_, head)| head.durable);
        let durable = heads.fold(recovered.durable.max(self.manifest.durable), Position::max);
        let tail = self.settle(&log, end, durable)?;
        self.remove_leftovers(names)?;

        if recovered.compacted > recovered.swept {
            let mut cursor = Some(Box::from(&[][..]));
            while let Some(from) = cursor {
                cursor = recovered.index.sweep(&from, recovered.compacted, usize::MAX, &mut |_| {});
            }
        }
        recovered.revision = recovered.revision.max(recovered.compacted);
        self.count_live(&recovered.index)?;

        let mark = recovered.mark;
        let progress = Progress { marked: end, mark: mark.clone(), revision: recovered.revision, durable: end };
        let files = Files::new(
            self.disk,
            self.dir.to_path_buf(),
            options,
            self.segments,
            self.next_id,
            progress,
            recovered.revision,
        );
        let content = Content {
            files: Arc::new(files),
            index: recovered.index,
            tables: recovered.tables,
            revision: recovered.revision,
            compacted: recovered.compacted,
            maintenance: Maintenance::new(self.manifest, checkpoint_bytes),
        };
        Ok(Opened { tail, mark, content })
    }

    /// Opens a segment that must be there.
    fn open_segment(&mut self, id: u32, origin: Origin) -> Result<Arc<Segment>, StoreError> {
        let name = segment_name(id);
        let file = self.disk.open(&self.dir.join(&name), Open::Write).map_err(|e| StoreError::io(&name, "open", e))?;
        let len = file.len().map_err(|e| StoreError::io(&name, "measure", e))?;
        let len = u32::try_from(len).map_err(|_| StoreError::corrupt(&name, 0, "longer than a segment can be"))?;
        let head = Head::read(&*file, &name)?;
        if head.id != id || head.origin != origin {
            return Err(StoreError::corrupt(&name, 0, "the head of another segment"));
        }
        let segment = Arc::new(Segment::new(id, origin, file, len));
        self.segments.insert(id, segment.clone());
        Ok(segment)
    }

    /// Corrects the checkpoint's locations by the copies made after it.
    fn replay_merged(&mut self, id: u32, recovered: &mut Recovered) -> Result<(), StoreError> {
        let segment = self.segments[&id].clone();
        let mut frames = Frames::new(segment.clone(), HEAD_BYTES, segment.end());
        while let Some(at) = frames.advance_sound()? {
            let frame = frames.frame(at)?;
            segment.span.lock().note(frame.main, at.0);
            let location = Location { segment: id, offset: at.0, len: at.1 };
            recovered.apply(frame, location).map_err(|what| segment.corrupt(at.0, what))?;
        }
        segment.synced.store(segment.end(), Ordering::Release);
        Ok(())
    }

    /// The log's segments from the start position on, found by following from each to the one that names it as the
    /// previous one. Files without a readable head are nobody's yet.
    fn log_segments(&mut self, names: &[String]) -> Result<Vec<(Arc<Segment>, Head)>, StoreError> {
        let mut heads = BTreeMap::new();
        for id in names.iter().filter_map(|name| segment_id(name)) {
            if id < self.manifest.start.segment || self.segments.contains_key(&id) {
                continue;
            }
            let name = segment_name(id);
            let file =
                self.disk.open(&self.dir.join(&name), Open::Read).map_err(|e| StoreError::io(&name, "open", e))?;
            match Head::read(&*file, &name) {
                Ok(head) if head.id == id => {
                    heads.insert(id, head);
                }
                Ok(_) | Err(StoreError::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let start = self.manifest.start.segment;
        let mut log = vec![(self.open_segment(start, Origin::Log)?, heads.get(&start).copied())];
        for (&id, head) in &heads {
            let before = log.last().map_or(0, |(segment, _)| segment.id);
            if id > start && head.origin == Origin::Log && head.previous.segment >= before {
                log.push((self.open_segment(id, Origin::Log)?, Some(*head)));
            }
        }
        let missing = |id| StoreError::corrupt(&segment_name(id), 0, "not a segment's head");
        log.into_iter().map(|(segment, head)| Ok((segment.clone(), head.ok_or_else(|| missing(segment.id))?))).collect()
    }

    /// Reads the log and returns where its last whole mark ends.
    fn replay_log(&self, log: &[(Arc<Segment>, Head)], recovered: &mut Recovered) -> Result<Position, StoreError> {
        let mut end = self.manifest.start;
        let mut unmarked = Unmarked::default();
        for (place, (segment, head)) in log.iter().enumerate() {
            let mut from = HEAD_BYTES;
            if place == 0 {
                from = self.manifest.start.offset;
                if from > segment.end() {
                    return Err(segment.corrupt(segment.end(), "shorter than the manifest says"));
                }
            } else {
                // A missing segment, or one whose end is missing, is as good as a broken frame there.
                let (before, _) = &log[place - 1];
                let reached = Position { segment: before.id, offset: before.end() };
                if head.previous != reached {
                    self.refuse_damage(log, place - 1, reached, "the end of the segment is missing")?;
                    return Ok(end);
                }
            }
            let mut frames = Frames::new(segment.clone(), from, segment.end());
            loop {
                let at = match frames.advance() {
                    Ok(None) => break,
                    Ok(Some(at)) => at,
                    Err(Stop::Failed(error)) => return Err(error),
                    Err(Stop::Broken(what)) => {
                        let broken = Position { segment: segment.id, offset: frames.offset() };
                        self.refuse_damage(log, place, broken, what)?;
                        return Ok(end);
                    }
                };
                let location = Location { segment: segment.id, offset: at.0, len: at.1 };
                let frame = frames.frame(at)?;
                unmarked.push(frame, location);
                if frame.kind == Kind::Mark {
                    unmarked.apply(recovered, &self.segments)?;
                    end = Position { segment: segment.id, offset: at.0 + at.1 };
                }
            }
        }
        Ok(end)
    }

    /// The log cannot be read at `broken`. That is how an unfinished write looks, unless something says that the log was
    /// durable beyond: then it is damage, and going on would lose what has been promised.
    fn refuse_damage(
        &self,
        log: &[(Arc<Segment>, Head)],
        place: usize,
        broken: Position,
        what: &str,
    ) -> Result<(), StoreError> {
        let segment = &log[place].0;
        let later = log[place + 1..].iter().map(|(_, head)| head.durable).max();
        let claimed = later.max(Some(self.manifest.durable)).max(later_mark(segment, broken.offset)?);
        if claimed > Some(broken) {
            return Err(segment.corrupt(broken.offset, what));
        }
        Ok(())
    }

    /// Takes away what is behind `end`, makes durable what is before it, and returns the segment to go on with.
    ///
    /// What is behind `durable` may be in the page cache only. If a sync of it has failed, another one would not write it.
    fn settle(
        &mut self,
        log: &[(Arc<Segment>, Head)],
        end: Position,
        durable: Position,
    ) -> Result<Arc<Segment>, StoreError> {
        let mut tail = None;
        for (segment, _) in log {
            if segment.id == end.segment {
                if segment.end() > end.offset {
                    segment.cut(end.offset)?;
                }
                tail = Some(segment.clone());
            } else if segment.id > end.segment {
                // Gone from the map, it is removed with the other files that do not count.
                self.segments.remove(&segment.id);
            }
            if segment.id <= end.segment {
                let kept = if segment.id == durable.segment { durable.offset } else { 0 };
                if segment.id >= durable.segment && !mutant::on(mutant::StoreEndNotRewritten) {
                    segment.rewrite(kept)?;
                }
                segment.sync()?;
            }
        }
        self.disk.sync_dir(self.dir).map_err(|e| StoreError::io(".", "sync directory", e))?;
        tail.ok_or_else(|| StoreError::corrupt(MANIFEST, 0, "the log's first segment is missing"))
    }

    /// Removes files that a crash has left behind.
    fn remove_leftovers(&mut self, names: &[String]) -> Result<(), StoreError> {
        let leftovers: Vec<_> = names
            .iter()
            .filter(|name| {
                segment_id(name).is_some_and(|id| !self.segments.contains_key(&id))
                    || checkpoint::checkpoint_id(name).is_some_and(|id| id != self.manifest.checkpoint)
            })
            .collect();
        if leftovers.is_empty() {
            return Ok(());
        }
        // First, so that their numbers are not used again.
        self.manifest.next_id = self.next_id;
        self.manifest.write(&*self.disk, self.dir)?;
        for name in leftovers {
            self.disk.remove(&self.dir.join(name)).map_err(|e| StoreError::io(name, "remove", e))?;
        }
        self.disk.sync_dir(self.dir).map_err(|e| StoreError::io(".", "sync directory", e))
    }

    /// Counts the bytes that the index points at, and checks that it points into segments that exist.
    fn count_live(&self, index: &Index) -> Result<(), StoreError> {
        let mut cursor = Vec::new();
        while let Some(chunk) = index.chunk(&cursor) {
            for (_, slot) in chunk.iter() {
                for version in slot.versions() {
                    let Location { segment, offset, len } = version.location();
                    let Some(segment) = self.segments.get(&segment) else {
                        let name = segment_name(segment);
                        return Err(StoreError::corrupt(&name, offset.into(), "a version in a segment that is gone"));
                    };
                    segment.live.fetch_add(len.into(), Ordering::Relaxed);
                }
            }
            let Some(next) = chunk.next else { break };
            cursor.clear();
            cursor.extend_from_slice(next);
        }
        Ok(())
    }
}

/// Frames read behind the last mark: they count only once another mark follows.
#[derive(Debug, Default)]
struct Unmarked {
    frames: Vec<(Kind, i64, u32, Location, std::ops::Range<usize>)>,
    payloads: Vec<u8>,
}

impl Unmarked {
    fn push(&mut self, frame: Frame<'_>, location: Location) {
        let start = self.payloads.len();
        self.payloads.extend_from_slice(frame.payload);
        self.frames.push((frame.kind, frame.main, frame.sub, location, start..self.payloads.len()));
    }

    fn apply(&mut self, recovered: &mut Recovered, segments: &BTreeMap<u32, Arc<Segment>>) -> Result<(), StoreError> {
        for (kind, main, sub, location, payload) in self.frames.drain(..) {
            let segment = &segments[&location.segment];
            if matches!(kind, Kind::Put | Kind::Tombstone) {
                segment.span.lock().note(main, location.offset);
            }
            let frame = Frame { kind, main, sub, payload: &self.payloads[payload] };
            recovered.apply(frame, location).map_err(|what| segment.corrupt(location.offset, what))?;
        }
        self.payloads.clear();
        Ok(())
    }
}

/// Looks behind a broken frame for a whole mark, and returns how far it says the log was durable. Marks are short, so
/// this tries few places in earnest.
fn later_mark(segment: &Segment, broken: u32) -> Result<Option<Position>, StoreError> {
    const LONGEST_MARK: usize = 64 << 10;
    let bytes = segment.bytes(broken, (segment.end() - broken) as usize)?;
    let mut newest = None;
    for start in 1..bytes.len().saturating_sub(HEADER) {
        if bytes[start + 8] != Kind::Mark as u8 {
            continue;
        }
        let first = [bytes[start], bytes[start + 1], bytes[start + 2], bytes[start + 3]];
        let Ok(length) = frame::length(first) else { continue };
        if length > LONGEST_MARK || start + length > bytes.len() {
            continue;
        }
        if let Ok(frame) = frame::parse(&bytes[start..start + length]) {
            newest = newest.max(decode_mark(frame.payload).map(|(_, durable)| durable));
        }
    }
    Ok(newest)
}
