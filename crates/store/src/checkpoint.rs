//! Index checkpoints, `NNNNNNNN.idx`: the index and the tables, so that an open need not read the whole log.
//!
//! A checkpoint is written in steps while the writer goes on, so it shows no single moment. It need not: it is read
//! together with the log from the place noted before its first step, and taking a frame in twice changes nothing.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use disk::{Disk, File, Open};

use crate::frame::{self, Frame, HEADER, Kind};
use crate::index::{Index, Version};
use crate::open::Recovered;
use crate::segment::{Origin, Position, Segment, Span};
use crate::tables::{self, Tables};
use crate::{KeyMeta, Location, Mark, Revision, StoreError, Table};

/// The layout that this code writes and reads.
const LAYOUT: u32 = 1;

/// The file name of checkpoint `id`.
pub(crate) fn checkpoint_name(id: u32) -> String {
    format!("{id:08}.idx")
}

/// The id in a checkpoint's file name.
pub(crate) fn checkpoint_id(name: &str) -> Option<u32> {
    let id = name.strip_suffix(".idx")?.parse().ok()?;
    (checkpoint_name(id) == name).then_some(id)
}

/// What a checkpoint begins with.
#[derive(Clone, Debug)]
pub(crate) struct Beginning {
    /// The mark from which the log must be read on top, and the revision there.
    pub mark: Mark,
    pub revision: i64,
    /// Newest compaction asked for, and newest one that had been carried out before the first step.
    pub compacted: i64,
    pub swept: i64,
}

/// A checkpoint being written.
#[derive(Debug)]
pub(crate) struct CheckpointFile {
    pub id: u32,
    file: Arc<dyn File>,
    len: u64,
    buffer: Vec<u8>,
    keys: u64,
    rows: u64,
}

impl CheckpointFile {
    pub(crate) fn create(disk: &dyn Disk, dir: &Path, id: u32, beginning: &Beginning) -> Result<Self, StoreError> {
        let name = checkpoint_name(id);
        let file = disk.open(&dir.join(&name), Open::CreateNew).map_err(|e| StoreError::io(&name, "create", e))?;
        let mut this = Self { id, file, len: 0, buffer: Vec::new(), keys: 0, rows: 0 };
        frame::append(&mut this.buffer, Kind::Checkpoint, beginning.revision, 0, |out| {
            out.put_u32_le(LAYOUT);
            out.put_u32_le(id);
            out.put_i64_le(beginning.compacted);
            out.put_i64_le(beginning.swept);
            out.put_u64_le(beginning.mark.index);
            out.put_u64_le(beginning.mark.term);
            out.put_slice(&beginning.mark.conf_state);
        });
        Ok(this)
    }

    pub(crate) fn len(&self) -> u64 {
        self.len + self.buffer.len() as u64
    }

    pub(crate) fn add_rows(&mut self, rows: &[(Table, Bytes, Bytes)]) {
        self.rows += rows.len() as u64;
        frame::append(&mut self.buffer, Kind::Rows, 0, 0, |out| {
            for (table, key, value) in rows {
                let mut row = Vec::new();
                tables::encode_row(&mut row, *table, key, value);
                frame::put_bytes(out, &row);
            }
        });
    }

    /// Adds the keys from `cursor` on, about `keys` of them. Returns where to go on.
    pub(crate) fn add_keys(&mut self, index: &Index, cursor: &Cursor, keys: usize) -> Option<Cursor> {
        let mut next = Some(cursor.clone());
        let mut count = 0;
        let mut before: &[u8] = &[];
        frame::append(&mut self.buffer, Kind::Keys, 0, 0, |out| {
            while count < keys as u64 {
                let Some(cursor) = next.take() else { break };
                let Some(chunk) = index.chunk(&cursor.key) else { break };
                next = chunk.next.map(Cursor::at);
                for (key, slot) in chunk.iter() {
                    let resumed = if *key == *cursor.key { cursor.after } else { None };
                    let mut versions = slot.versions().filter(|v| resumed.is_none_or(|after| v.revision() > after));
                    let now: Vec<_> = versions.by_ref().take(KEY_VERSIONS).collect();
                    let Some(last) = now.last() else { continue };
                    let shared = shared_bytes(before, key);
                    frame::put_varint(out, shared as u64);
                    frame::put_bytes(out, &key[shared..]);
                    frame::put_varint(out, now.len() as u64);
                    now.iter().for_each(|version| encode_version(out, version));
                    before = key;
                    count += 1;
                    if versions.next().is_some() {
                        next = Some(Cursor { key: key.into(), after: Some(last.revision()) });
                        return;
                    }
                }
            }
        });
        self.keys += count;
        next
    }

    pub(crate) fn add_spans(&mut self, segments: &[(u32, Span)]) {
        frame::append(&mut self.buffer, Kind::Segments, 0, 0, |out| {
            for (id, span) in segments {
                let Some((first, last)) = span.range else { continue };
                frame::put_varint(out, (*id).into());
                frame::put_varint(out, first as u64);
                frame::put_varint(out, last as u64);
                frame::put_varint(out, span.waypoints.len() as u64);
                for (main, offset) in &span.waypoints {
                    frame::put_varint(out, *main as u64);
                    frame::put_varint(out, (*offset).into());
                }
            }
        });
    }

    /// Writes what has been added.
    pub(crate) fn write(&mut self) -> Result<(), StoreError> {
        self.file
            .write_at(&self.buffer, self.len)
            .map_err(|e| StoreError::io(&checkpoint_name(self.id), "write", e))?;
        self.len += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Ends the file and makes its content durable.
    pub(crate) fn finish(&mut self) -> Result<(), StoreError> {
        let (keys, rows) = (self.keys, self.rows);
        frame::append(&mut self.buffer, Kind::End, 0, 0, |out| {
            out.put_u64_le(keys);
            out.put_u64_le(rows);
        });
        self.write()?;
        self.file.sync().map_err(|e| StoreError::io(&checkpoint_name(self.id), "sync", e))
    }
}

/// Versions of one key in one entry; a longer history takes several.
const KEY_VERSIONS: usize = 4096;

/// How far the keys have been written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cursor {
    key: Box<[u8]>,
    /// Within that key, the versions up to this one have been written.
    after: Option<Revision>,
}

impl Cursor {
    fn at(key: &[u8]) -> Self {
        Self { key: key.into(), after: None }
    }
}

/// How many bytes two keys have in common at their beginnings.
fn shared_bytes(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

/// What a version's first byte says.
mod flag {
    pub(super) const TOMBSTONE: u8 = 1;
    pub(super) const LEASED: u8 = 2;
    /// It created the key: the create revision is its own, the version is 1, and both are left out.
    pub(super) const CREATED: u8 = 4;
    /// It was not the first change of its revision: `sub` follows.
    pub(super) const SUB: u8 = 8;
}

fn encode_version(out: &mut Vec<u8>, version: &Version) {
    let KeyMeta { create_revision, modified, version: count, leased } = version.meta();
    let Location { segment, offset, len } = version.location();
    let is_created = create_revision == modified.main && count == 1;
    let flags = [
        (version.is_tombstone(), flag::TOMBSTONE),
        (leased, flag::LEASED),
        (is_created, flag::CREATED),
        (modified.sub != 0, flag::SUB),
    ];
    out.push(flags.iter().filter(|(is_set, _)| *is_set).map(|(_, bit)| bit).sum());
    frame::put_varint(out, modified.main as u64);
    if modified.sub != 0 {
        frame::put_varint(out, modified.sub as u64);
    }
    if !version.is_tombstone() && !is_created {
        frame::put_varint(out, create_revision as u64);
        frame::put_varint(out, count as u64);
    }
    for number in [segment, offset, len] {
        frame::put_varint(out, number.into());
    }
}

fn decode_version(bytes: &mut &[u8]) -> Option<Version> {
    let (&flags, rest) = bytes.split_first()?;
    *bytes = rest;
    let has = |bit| flags & bit != 0;
    let main = frame::get_varint(bytes)? as i64;
    let sub = if has(flag::SUB) { frame::get_u32(bytes)? } else { 0 };
    let modified = Revision { main, sub: sub.into() };
    let (create_revision, version) = if has(flag::CREATED) || has(flag::TOMBSTONE) {
        (main, 1)
    } else {
        (frame::get_varint(bytes)? as i64, frame::get_varint(bytes)? as i64)
    };
    let location =
        Location { segment: frame::get_u32(bytes)?, offset: frame::get_u32(bytes)?, len: frame::get_u32(bytes)? };
    if location.len >= 1 << 30 {
        return None;
    }
    Some(if has(flag::TOMBSTONE) {
        Version::tombstone(modified, location)
    } else {
        Version::put(KeyMeta { create_revision, modified, version, leased: has(flag::LEASED) }, location)
    })
}

/// Loads a checkpoint. What it says of segments goes into `segments`.
pub(crate) fn read(
    disk: &dyn Disk,
    dir: &Path,
    id: u32,
    segments: &BTreeMap<u32, Arc<Segment>>,
) -> Result<Recovered, StoreError> {
    let name = checkpoint_name(id);
    let file = disk.open(&dir.join(&name), Open::Read).map_err(|e| StoreError::io(&name, "open", e))?;
    let len = file.len().map_err(|e| StoreError::io(&name, "measure", e))?;
    let mut reader = Reader { name: &name, file: &*file, len, next: 0, window: Vec::new(), window_at: 0 };
    let mut loading = Loading::default();
    while !loading.ended {
        let at = reader.next;
        let corrupt = |what: &str| StoreError::corrupt(&name, at, what);
        let frame = reader.frame()?;
        loading.apply(frame, id, segments).ok_or_else(|| corrupt("not what a checkpoint holds here"))?;
    }
    if reader.next != len {
        return Err(StoreError::corrupt(&name, reader.next, "goes on behind its end"));
    }
    loading.recovered.ok_or_else(|| StoreError::corrupt(&name, 0, "has no beginning"))
}

#[derive(Default)]
struct Loading {
    recovered: Option<Recovered>,
    keys: u64,
    rows: u64,
    ended: bool,
}

impl Loading {
    fn apply(&mut self, frame: Frame<'_>, id: u32, segments: &BTreeMap<u32, Arc<Segment>>) -> Option<()> {
        let mut payload = frame.payload;
        if frame.kind == Kind::Checkpoint {
            if self.recovered.is_some()
                || payload.len() < 40
                || payload.get_u32_le() != LAYOUT
                || payload.get_u32_le() != id
            {
                return None;
            }
            let (compacted, swept) = (payload.get_i64_le(), payload.get_i64_le());
            let (index, term) = (payload.get_u64_le(), payload.get_u64_le());
            self.recovered = Some(Recovered {
                index: Index::new(),
                tables: Tables::default(),
                mark: Mark { index, term, conf_state: Bytes::copy_from_slice(payload) },
                durable: Position::default(),
                revision: frame.main,
                compacted,
                swept,
            });
            return Some(());
        }
        let recovered = self.recovered.as_mut()?;
        match frame.kind {
            Kind::Rows => {
                while !payload.is_empty() {
                    let (table, key, value) = tables::decode_row(frame::get_bytes(&mut payload)?)?;
                    recovered.tables.set(table, key, value);
                    self.rows += 1;
                }
            }
            Kind::Keys => {
                let mut key = Vec::new();
                while !payload.is_empty() {
                    let shared = frame::get_u32(&mut payload)? as usize;
                    (shared <= key.len()).then_some(())?;
                    key.truncate(shared);
                    key.extend_from_slice(frame::get_bytes(&mut payload)?);
                    let count = frame::get_varint(&mut payload)?;
                    let mut versions = VecDeque::new();
                    for _ in 0..count {
                        versions.push_back(decode_version(&mut payload)?);
                    }
                    recovered.index.push(&key, versions).then_some(())?;
                    self.keys += 1;
                }
            }
            Kind::Segments => {
                while !payload.is_empty() {
                    let id = frame::get_u32(&mut payload)?;
                    let range = (frame::get_varint(&mut payload)? as i64, frame::get_varint(&mut payload)? as i64);
                    let count = frame::get_varint(&mut payload)?;
                    let mut waypoints = Vec::new();
                    for _ in 0..count {
                        let main = frame::get_varint(&mut payload)? as i64;
                        waypoints.push((main, frame::get_u32(&mut payload)?));
                    }
                    if let Some(segment) = segments.get(&id) {
                        let mut span = segment.span.lock();
                        *span = Span { range: Some(range), waypoints };
                    }
                }
            }
            Kind::End => {
                let complete =
                    payload.len() == 16 && payload.get_u64_le() == self.keys && payload.get_u64_le() == self.rows;
                complete.then_some(())?;
                self.ended = true;
            }
            _ => return None,
        }
        Some(())
    }
}

/// Reads a checkpoint from its first to its last byte. It may be longer than a segment can be.
struct Reader<'a> {
    name: &'a str,
    file: &'a dyn File,
    len: u64,
    next: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl Reader<'_> {
    const WINDOW_BYTES: usize = 1 << 20;

    fn frame(&mut self) -> Result<Frame<'_>, StoreError> {
        let at = self.next;
        let first = *self.fill(HEADER)?.first_chunk::<4>().expect("a header was asked for");
        let length = frame::length(first).map_err(|what| self.corrupt(at, what))?;
        self.fill(length)?;
        self.next += length as u64;
        let start = (at - self.window_at) as usize;
        frame::parse(&self.window[start..start + length]).map_err(|what| self.corrupt(at, what))
    }

    fn fill(&mut self, count: usize) -> Result<&[u8], StoreError> {
        let left = self.len - self.next;
        if count as u64 > left {
            return Err(self.corrupt(self.next, "cut short"));
        }
        let mut start = (self.next - self.window_at) as usize;
        if start + count > self.window.len() {
            self.window.resize(count.max(Self::WINDOW_BYTES).min(left as usize), 0);
            self.window_at = self.next;
            start = 0;
            let read =
                self.file.read_at(&mut self.window, self.next).map_err(|e| StoreError::io(self.name, "read", e))?;
            if read < self.window.len() {
                return Err(self.corrupt(self.next, "the file has become shorter"));
            }
        }
        Ok(&self.window[start..start + count])
    }

    fn corrupt(&self, at: u64, what: &str) -> StoreError {
        StoreError::corrupt(self.name, at, what)
    }
}

/// What a checkpoint begun at `start` says of the segments that are not read again when it is
/// loaded, and of the beginning of the one it is in.
pub(crate) fn spans(segments: &BTreeMap<u32, Arc<Segment>>, start: Position) -> Vec<(u32, Span)> {
    let span_of = |segment: &Arc<Segment>| {
        let mut span = segment.span.lock().clone();
        if segment.id == start.segment {
            // What lies behind is noted again when the log is read.
            span.waypoints.retain(|&(_, offset)| offset < start.offset);
        }
        (segment.id, span)
    };
    let is_covered = |s: &&Arc<Segment>| s.origin == Origin::Merged || s.id <= start.segment;
    segments.values().filter(is_covered).map(span_of).collect()
}
