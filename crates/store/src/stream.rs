//! Reading many versions: neighbours together, and histories in revision order.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use crate::frame::{self, HEADER, Kind};
use crate::log::Files;
use crate::recent::Recent;
use crate::segment::{Frames, Origin, Position, Segment, segment_name};
use crate::{Change, HashKv, KeyRange, Location, Pin, RangeEnd, Revision, Store, StoreError};

/// Frames nearer than this are read together, unused bytes between them included.
const GAP_BYTES: u32 = 4 << 10;

/// Most bytes of one read.
const RUN_BYTES: u32 = 256 << 10;

impl Files {
    /// Reads versions in the given order; see [`crate::Store::read_many`].
    pub(crate) fn read_many(&self, locations: &[Location], each: &mut dyn FnMut(Bytes)) -> Result<(), StoreError> {
        let mut rest = locations;
        while let Some((&first, behind)) = rest.split_first() {
            let in_memory = self.recent.read().get(first).cloned();
            if let Some(payload) = in_memory {
                each(payload);
                rest = behind;
                continue;
            }
            let (segment, resolved) = self.resolve(first)?;
            // Neighbours of a version that has been moved are no longer its neighbours.
            let run = if resolved == first { run_length(rest, segment.written()) } else { 1 };
            let (now, later) = rest.split_at(run);
            let last = now[run - 1];
            let end = if run == 1 { resolved.offset + resolved.len } else { last.offset + last.len };
            let bytes = Bytes::from(segment.bytes(resolved.offset, (end - resolved.offset) as usize)?);
            for location in now {
                let offset = if run == 1 { resolved.offset } else { location.offset };
                let start = (offset - resolved.offset) as usize;
                let frame = bytes.slice(start..start + location.len as usize);
                segment.check(&frame, offset)?;
                each(frame.slice(HEADER..));
            }
            rest = later;
        }
        Ok(())
    }
}

/// How many of the first locations lie so close together, in order and in the file, that one read serves them.
fn run_length(locations: &[Location], written: u32) -> usize {
    let first = locations[0];
    let follows = |pair: &[Location]| {
        let (one, next) = (pair[0], pair[1]);
        let end = one.offset + one.len;
        next.segment == first.segment
            && next.offset >= end
            && next.offset - end <= GAP_BYTES
            && next.offset + next.len <= written
            && next.offset + next.len - first.offset <= RUN_BYTES
    };
    1 + locations.windows(2).take_while(|pair| follows(pair)).count()
}

/// A version met in a walk through the history.
#[derive(Clone, Copy, Debug)]
struct Met {
    revision: Revision,
    deleted: bool,
    location: Location,
}

/// One segment being walked through, at its next version.
#[derive(Debug)]
struct Source {
    frames: Frames,
    next: Met,
}

impl Source {
    /// `None` if there is no version in these frames.
    fn start(mut frames: Frames) -> Result<Option<Self>, StoreError> {
        Ok(Self::find(&mut frames)?.map(|next| Self { frames, next }))
    }

    fn find(frames: &mut Frames) -> Result<Option<Met>, StoreError> {
        while let Some((offset, len)) = frames.advance_sound()? {
            let frame = frames.frame((offset, len))?;
            if matches!(frame.kind, Kind::Put | Kind::Tombstone) {
                let revision = Revision { main: frame.main, sub: frame.sub.into() };
                let location = Location { segment: frames.segment().id, offset, len };
                return Ok(Some(Met { revision, deleted: frame.kind == Kind::Tombstone, location }));
            }
        }
        Ok(None)
    }

    fn payload(&self) -> &[u8] {
        let Location { offset, len, .. } = self.next.location;
        &self.frames.bytes((offset, len))[HEADER..]
    }
}

/// Takes a version's revision, whether it is a tombstone, where it is, and its bytes.
type Visit<'a> = dyn FnMut(Revision, bool, Location, Payload<'_>) -> Result<ControlFlow<()>, StoreError> + 'a;

/// All versions in the files and in memory, dropped ones that are not reclaimed yet included, in revision order. It
/// sees the state of the moment it was made.
///
/// Log segments follow each other, merged ones lie across them: so a few segments at a time are merged.
#[derive(Debug)]
pub(crate) struct History {
    /// Segments not reached yet, the first one last.
    waiting: Vec<(i64, Arc<Segment>, u32)>,
    reached: Vec<Source>,
    /// Versions that were not in a file yet.
    unwritten: VecDeque<Recent>,
    from: i64,
    last: Option<Revision>,
}

impl History {
    /// The versions at or above `from`.
    pub(crate) fn new(files: &Files, from: i64) -> Self {
        // Held so that nothing moves from memory to file unseen.
        let recent = files.recent.read();
        let segments: Vec<_> = files.segments.read().values().map(|s| (s.clone(), s.written())).collect();
        let last_log = segments.iter().rev().find(|(segment, _)| segment.origin == Origin::Log);
        let written = last_log.map(|(segment, written)| Position { segment: segment.id, offset: *written });
        let unwritten = recent.behind(written.unwrap_or_default()).filter(|v| v.revision.main >= from);
        let unwritten = unwritten.cloned().collect();
        drop(recent);
        Self { waiting: Self::waiting(segments, from), reached: Vec::new(), unwritten, from, last: None }
    }

    /// The versions in these segments, which are whole.
    pub(crate) fn of(segments: Vec<Arc<Segment>>) -> Self {
        let segments = segments.into_iter().map(|segment| (segment.clone(), segment.written())).collect();
        let waiting = Self::waiting(segments, i64::MIN);
        Self { waiting, reached: Vec::new(), unwritten: VecDeque::new(), from: i64::MIN, last: None }
    }

    fn waiting(segments: Vec<(Arc<Segment>, u32)>, from: i64) -> Vec<(i64, Arc<Segment>, u32)> {
        let mut waiting: Vec<_> = segments
            .into_iter()
            .filter_map(|(segment, end)| {
                let (first, last) = segment.span.lock().range?;
                (last >= from).then_some((first, segment, end))
            })
            .collect();
        waiting.sort_by_key(|(first, segment, _)| std::cmp::Reverse((*first, segment.id)));
        waiting
    }

    /// Calls `each` with the versions in order, until it breaks. Returns whether the end has been reached; if not, the
    /// next walk goes on with the next version.
    pub(crate) fn walk(&mut self, each: &mut Visit<'_>) -> Result<bool, StoreError> {
        loop {
            let least = self.reached.iter().enumerate().min_by_key(|(_, source)| source.next.revision);
            let least = least.map(|(place, source)| (place, source.next));
            // A waiting segment may begin before.
            if let Some((first, _, _)) = self.waiting.last()
                && least.is_none_or(|(_, met)| *first <= met.revision.main)
                && let Some((_, segment, end)) = self.waiting.pop()
            {
                let start = segment.start(self.from).min(end);
                self.reached.extend(Source::start(Frames::new(segment, start, end))?);
                continue;
            }
            // What is not in a file yet is newer than what is.
            let Some((place, met)) = least else { break };
            let source = &mut self.reached[place];
            let mut flow = ControlFlow::Continue(());
            // While a segment is being replaced by its copy, both are there.
            if met.revision.main >= self.from && self.last != Some(met.revision) {
                self.last = Some(met.revision);
                flow = each(met.revision, met.deleted, met.location, Payload::Borrowed(source.payload()))?;
            }
            match Source::find(&mut source.frames)? {
                Some(next) => source.next = next,
                None => drop(self.reached.swap_remove(place)),
            }
            if flow.is_break() {
                return Ok(false);
            }
        }
        while let Some(version) = self.unwritten.pop_front() {
            let payload = Payload::Shared(&version.payload);
            if each(version.revision, version.deleted, version.location, payload)?.is_break() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A version's bytes, on loan.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Payload<'a> {
    Borrowed(&'a [u8]),
    Shared(&'a Bytes),
}

impl std::ops::Deref for Payload<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

/// The key in a stored version.
pub(crate) fn key_of(payload: &[u8], location: Location) -> Result<&[u8], StoreError> {
    frame::decode_key_value(payload)
        .map(|stored| stored.key)
        .ok_or_else(|| StoreError::corrupt(&segment_name(location.segment), location.offset.into(), "not a KeyValue"))
}

/// Collects changes until there are enough.
#[derive(Debug)]
struct Collected {
    changes: Vec<Change>,
    max: usize,
    more: bool,
}

impl Collected {
    /// Takes a change that is in the range. Breaks if it belongs to the next slice.
    fn take(&mut self, change: Change) -> ControlFlow<()> {
        if self.changes.len() >= self.max
            && self.changes.last().is_some_and(|last| last.revision.main < change.revision.main)
        {
            self.more = true;
            return ControlFlow::Break(());
        }
        self.changes.push(change);
        ControlFlow::Continue(())
    }
}

/// Versions in memory looked at under one hold of their lock.
const RECENT_CHUNK: usize = 1024;

impl Store {
    /// The changes of keys in `range` with `from <= main <= to`, in revision order: whole revisions only, at least one
    /// and about `max` changes. Second value: whether there are more after the last one.
    ///
    /// [`StoreError::Compacted`] if `from` is below the compaction.
    pub fn changes(&self, range: &KeyRange, from: i64, to: i64, max: usize) -> Result<(Vec<Change>, bool), StoreError> {
        let store = self.view();
        let to = to.min(store.revision());
        let mut found = Collected { changes: Vec::new(), max, more: false };
        if range.end == RangeEnd::Single {
            store.changes_of_key(&range.start, from, to, &mut found);
        } else if !store.recent_changes(range, from, to, &mut found)? {
            found.changes.clear();
            found.more = false;
            History::new(&store.inner().files, from).walk(&mut |revision, deleted, location, payload| {
                if revision.main > to {
                    return Ok(ControlFlow::Break(()));
                }
                if !range.contains(key_of(&payload, location)?) {
                    return Ok(ControlFlow::Continue(()));
                }
                Ok(found.take(Change { revision, deleted, location }))
            })?;
        }
        // Asked last: had a compaction taken something from the answer, it would show here.
        if from < store.compact_revision() {
            return Err(StoreError::Compacted);
        }
        Ok((found.changes, found.more))
    }

    fn changes_of_key(&self, key: &[u8], from: i64, to: i64, found: &mut Collected) {
        let inner = self.inner();
        let index = inner.index.read();
        let Some(slot) = index.slot(key) else { return };
        for version in slot.versions_from(from) {
            let (revision, deleted, location) = (version.revision(), version.is_tombstone(), version.location());
            if revision.main > to || found.take(Change { revision, deleted, location }).is_break() {
                return;
            }
        }
    }

    /// Answers from memory; `false` if not all of the answer is there.
    fn recent_changes(&self, range: &KeyRange, from: i64, to: i64, found: &mut Collected) -> Result<bool, StoreError> {
        let inner = self.inner();
        let mut after = Revision { main: from, sub: -1 };
        loop {
            let recent = inner.files.recent.read();
            let Some(versions) = recent.since(after) else { return Ok(false) };
            let mut seen = 0;
            for Recent { revision, deleted, location, payload } in versions.take(RECENT_CHUNK) {
                if revision.main > to {
                    return Ok(true);
                }
                seen += 1;
                after = *revision;
                if range.contains(key_of(payload, *location)?) {
                    let change = Change { revision: *revision, deleted: *deleted, location: *location };
                    if found.take(change).is_break() {
                        return Ok(true);
                    }
                }
            }
            if seen < RECENT_CHUNK {
                return Ok(true);
            }
        }
    }

    /// The newest compaction, pinned: none later than it is carried out while the pin lives.
    pub fn pin_compacted(&self) -> (i64, Pin) {
        loop {
            let compacted = self.compact_revision();
            let pin = self.pin(compacted);
            // Otherwise a later one may have been begun before it could see the pin, or it is another content's.
            if compacted == pin.store().compact_revision() {
                return (compacted, pin);
            }
        }
    }

    /// What `at` means for HashKV and export: 0 is the newest revision.
    fn checked_revision(&self, at: i64) -> Result<i64, StoreError> {
        if at <= 0 {
            return Ok(self.revision());
        }
        if at < self.compact_revision() {
            return Err(StoreError::Compacted);
        }
        if at > self.revision() {
            return Err(StoreError::FutureRevision);
        }
        Ok(at)
    }

    /// etcd's HashKV at `at` (0 = newest): a CRC-32C over the history that every member must have, so that members
    /// that are at different points of the same compaction agree.
    ///
    /// etcd also answers for the compacted revision itself with a value noted while compacting; that value is not kept
    /// here, and the answer is the hash of what is left.
    pub fn hash_kv(&self, at: i64) -> Result<HashKv, StoreError> {
        let found = self.hash_kv_in_steps(at, &mut |_| ControlFlow::Continue(()))?;
        Ok(found.unwrap_or_else(|| unreachable!("nobody has stopped it")))
    }

    /// The same; `step` is told after each version how many bytes it had. It may take its time, as nothing is locked
    /// meanwhile, though compactions wait; or end the matter, and then there is no answer.
    pub fn hash_kv_in_steps(
        &self,
        at: i64,
        step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<HashKv>, StoreError> {
        let (compacted, pin) = self.pin_compacted();
        let store = pin.store();
        if at < 0 {
            // Only 0 means the newest here: etcd hashes what lies at or below a negative revision, which is nothing.
            return Ok(Some(HashKv { hash: crc32c::crc32c(b"key"), compact_revision: compacted, hash_revision: at }));
        }
        let at = store.checked_revision(at)?;
        let everything = KeyRange { start: Bytes::new(), end: RangeEnd::Unbounded };
        let mut anything_lives = false;
        store.scan(&everything, at, &mut |_, _| {
            anything_lives = true;
            ControlFlow::Break(())
        });
        let mut hash = crc32c::crc32c(b"key");
        let mut stopped = false;
        History::new(&store.inner().files, i64::MIN).walk(&mut |revision, deleted, location, payload| {
            if revision.main > at {
                return Ok(ControlFlow::Break(()));
            }
            if step(payload.len()).is_break() {
                stopped = true;
                return Ok(ControlFlow::Break(()));
            }
            if revision.main <= compacted && !mutant::on(mutant::HashUnswept) {
                let key = key_of(&payload, location)?;
                let counts = if anything_lives {
                    store.get(key, at).is_some_and(|found| found.meta.modified == revision)
                } else {
                    store.inner().index.read().survives(key, revision, compacted)
                };
                if !counts || (deleted && revision.main == compacted) {
                    return Ok(ControlFlow::Continue(()));
                }
            }
            let (key, len) = bucket_key(revision, deleted);
            hash = crc32c::crc32c_append(hash, &key[..len]);
            hash = crc32c::crc32c_append(hash, &payload);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok((!stopped).then_some(HashKv { hash, compact_revision: compacted, hash_revision: at }))
    }

    /// Every version in the index in revision order up to `at` (0 = newest), as bbolt's `key` bucket would hold them:
    /// revision, whether it is a tombstone, KeyValue bytes. For snapshots.
    pub fn export(
        &self,
        at: i64,
        each: &mut dyn FnMut(Revision, bool, Bytes) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let (compacted, pin) = self.pin_compacted();
        let mut versions = pin.store().versions(compacted, pin.store().checked_revision(at)?);
        versions.walk(|revision, deleted, payload| each(revision, deleted, Bytes::copy_from_slice(payload)))?;
        Ok(())
    }

    /// The same as it was when `compacted` was the newest compaction, to be walked through in parts; two walks give the
    /// same versions although another compaction is asked for in between. The caller holds a [`Pin`] at `compacted` over
    /// all of them, and asks its store.
    pub fn versions(&self, compacted: i64, at: i64) -> Versions {
        let store = self.view();
        let history = History::new(&store.inner().files, i64::MIN);
        Versions { store, history, compacted, at }
    }
}

/// A walk through all versions in revision order; see [`Store::versions`].
#[derive(Debug)]
pub struct Versions {
    store: Store,
    history: History,
    compacted: i64,
    at: i64,
}

impl Versions {
    /// Visits versions from where the last walk stopped, until `each` breaks. Whether the end has been reached.
    pub fn walk(&mut self, mut each: impl FnMut(Revision, bool, &[u8]) -> ControlFlow<()>) -> Result<bool, StoreError> {
        let (inner, compacted, at) = (self.store.inner(), self.compacted, self.at);
        let mut is_beyond = false;
        let ended = self.history.walk(&mut |revision, deleted, location, payload| {
            if revision.main > at {
                is_beyond = true;
                return Ok(ControlFlow::Break(()));
            }
            if revision.main <= compacted
                && !inner.index.read().survives(key_of(&payload, location)?, revision, compacted)
            {
                return Ok(ControlFlow::Continue(()));
            }
            Ok(each(revision, deleted, &payload))
        })?;
        Ok(ended || is_beyond)
    }
}

/// A version's key in bbolt's `key` bucket, and its length: main, `_`, sub, and `t` for a tombstone.
pub fn bucket_key(revision: Revision, deleted: bool) -> ([u8; 18], usize) {
    let mut key = [0; 18];
    key[..8].copy_from_slice(&revision.main.to_be_bytes());
    key[8] = b'_';
    key[9..17].copy_from_slice(&revision.sub.to_be_bytes());
    key[17] = b't';
    (key, if deleted { 18 } else { 17 })
}
