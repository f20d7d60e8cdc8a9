//! Segment files, and reading frames from them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bytes::{Buf, BufMut, Bytes};
use disk::{Disk, File, Open};
use parking_lot::Mutex;

use crate::StoreError;
use crate::frame::{self, Frame, HEADER, Kind};

/// A place in the log: behind it nothing has been looked at yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub segment: u32,
    pub offset: u32,
}

impl Position {
    /// Writes 8 bytes.
    pub(crate) fn encode(self, out: &mut Vec<u8>) {
        out.put_u32_le(self.segment);
        out.put_u32_le(self.offset);
    }

    /// Reads 8 bytes, which must be there.
    pub(crate) fn decode(bytes: &mut &[u8]) -> Self {
        let segment = bytes.get_u32_le();
        Self { segment, offset: bytes.get_u32_le() }
    }
}

/// Who wrote a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The writer: part of the log, which runs through these segments in id order.
    Log,
    /// Space reclaim: versions copied from older segments, in revision order.
    Merged,
}

/// What a segment's first frame says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub id: u32,
    pub origin: Origin,
    /// The log segment before this one, and its length. 0 for the first segment and for merged ones. Segments are
    /// not synced when the next is begun, so after a power cut one may have lost its end although the next is there.
    pub previous: Position,
    /// How far the log was durable when the segment was begun. A broken frame before that place is damage, not the
    /// torn end of an unfinished write.
    pub durable: Position,
}

/// Bytes of a segment's first frame.
pub(crate) const HEAD_BYTES: u32 = HEADER as u32 + 21;

impl Head {
    pub(crate) fn append(&self, out: &mut Vec<u8>) {
        frame::append(out, Kind::Segment, 0, 0, |out| {
            out.push(self.origin as u8);
            out.put_u32_le(self.id);
            self.previous.encode(out);
            self.durable.encode(out);
        });
    }

    /// Reads the head of an open segment file.
    pub(crate) fn read(file: &dyn File, name: &str) -> Result<Self, StoreError> {
        let mut bytes = [0; HEAD_BYTES as usize];
        let count = file.read_at(&mut bytes, 0).map_err(|e| StoreError::io(name, "read", e))?;
        let corrupt = |what: &str| StoreError::corrupt(name, 0, what);
        let frame = frame::parse(&bytes[..count]).map_err(corrupt)?;
        let mut payload = frame.payload;
        let head = (frame.kind == Kind::Segment && payload.len() == 21).then(|| {
            let origin = if payload.get_u8() == 0 { Origin::Log } else { Origin::Merged };
            let id = payload.get_u32_le();
            Self { id, origin, previous: Position::decode(&mut payload), durable: Position::decode(&mut payload) }
        });
        head.ok_or_else(|| corrupt("not a segment's head"))
    }
}

/// The file name of segment `id`.
pub(crate) fn segment_name(id: u32) -> String {
    format!("{id:08}.seg")
}

/// The id in a segment's file name.
pub(crate) fn segment_id(name: &str) -> Option<u32> {
    let id = name.strip_suffix(".seg")?.parse().ok()?;
    (segment_name(id) == name).then_some(id)
}

/// Bytes between two waypoints of a segment.
const WAYPOINT_BYTES: u32 = 64 << 10;

/// Which revisions lie where in a segment, coarsely: what lets a catching-up watcher start in the middle.
#[derive(Clone, Debug, Default)]
pub(crate) struct Span {
    /// Smallest and largest `main` of a version in it.
    pub range: Option<(i64, i64)>,
    /// From time to time the `main` and offset of a version. Within a segment both only grow.
    pub waypoints: Vec<(i64, u32)>,
}

impl Span {
    /// Notes a version; they come in order.
    pub(crate) fn note(&mut self, main: i64, offset: u32) {
        let first = self.range.map_or(main, |(first, _)| first);
        self.range = Some((first, main));
        if self.waypoints.last().is_none_or(|&(_, last)| offset - last >= WAYPOINT_BYTES) {
            self.waypoints.push((main, offset));
        }
    }

    /// An offset before which there is no version at or above `main`.
    fn start(&self, main: i64) -> u32 {
        // The versions of one revision may lie on both sides of a waypoint, hence `<` and the one before.
        let above = self.waypoints.partition_point(|&(at, _)| at < main);
        above.checked_sub(1).map_or(HEAD_BYTES, |before| self.waypoints[before].1)
    }
}

/// An open segment. Readers keep it readable after its file has been removed.
#[derive(Debug)]
pub(crate) struct Segment {
    pub id: u32,
    pub name: String,
    pub origin: Origin,
    file: Arc<dyn File>,
    /// Bytes appended, of which the last may still be in memory.
    pub end: AtomicU32,
    /// Bytes that are in the file.
    pub written: AtomicU32,
    /// Bytes that are known to be durable.
    pub synced: AtomicU32,
    /// Bytes of frames that the index points at.
    pub live: AtomicU64,
    pub span: Mutex<Span>,
}

impl Segment {
    pub(crate) fn new(id: u32, origin: Origin, file: Arc<dyn File>, len: u32) -> Self {
        Self {
            id,
            name: segment_name(id),
            origin,
            file,
            end: AtomicU32::new(len),
            written: AtomicU32::new(len),
            synced: AtomicU32::new(0),
            live: AtomicU64::new(0),
            span: Mutex::default(),
        }
    }

    /// Makes a new, empty file.
    pub(crate) fn create(disk: &dyn Disk, dir: &Path, id: u32, origin: Origin) -> Result<Self, StoreError> {
        let name = segment_name(id);
        let file = disk.open(&dir.join(&name), Open::CreateNew).map_err(|e| StoreError::io(&name, "create", e))?;
        Ok(Self::new(id, origin, file, 0))
    }

    pub(crate) fn end(&self) -> u32 {
        self.end.load(Ordering::Acquire)
    }

    pub(crate) fn written(&self) -> u32 {
        self.written.load(Ordering::Acquire)
    }

    pub(crate) fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire) >= self.written()
    }

    /// Writes at the end of what is written.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<(), StoreError> {
        let at = self.written();
        self.file.write_at(bytes, u64::from(at)).map_err(|e| StoreError::io(&self.name, "write", e))?;
        let written = at + bytes.len() as u32;
        self.written.store(written, Ordering::Release);
        self.end.fetch_max(written, Ordering::AcqRel);
        Ok(())
    }

    /// Makes what is written durable.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        let written = self.written();
        self.file.sync().map_err(|e| StoreError::io(&self.name, "sync", e))?;
        self.synced.fetch_max(written, Ordering::AcqRel);
        Ok(())
    }

    /// Writes everything from `offset` on once more, as it is. The next sync has to write it then, even if an earlier one
    /// failed and the operating system has forgotten about it.
    pub(crate) fn rewrite(&self, offset: u32) -> Result<(), StoreError> {
        let mut at = offset;
        while at < self.written() {
            let bytes = self.bytes(at, ((self.written() - at) as usize).min(WINDOW_BYTES))?;
            self.file.write_at(&bytes, at.into()).map_err(|e| StoreError::io(&self.name, "write again", e))?;
            at += bytes.len() as u32;
        }
        Ok(())
    }

    /// Cuts the file and makes that durable.
    pub(crate) fn cut(&self, len: u32) -> Result<(), StoreError> {
        self.file.set_len(u64::from(len)).map_err(|e| StoreError::io(&self.name, "cut", e))?;
        self.end.store(len, Ordering::Release);
        self.written.store(len, Ordering::Release);
        self.sync()
    }

    /// Reads `len` bytes that were written earlier.
    pub(crate) fn bytes(&self, offset: u32, len: usize) -> Result<Vec<u8>, StoreError> {
        if offset as usize + len > self.written() as usize {
            return Err(self.corrupt(offset, "runs past the end of the file"));
        }
        let mut bytes = vec![0; len];
        let count =
            self.file.read_at(&mut bytes, u64::from(offset)).map_err(|e| StoreError::io(&self.name, "read", e))?;
        if count < len {
            return Err(self.corrupt(offset, "the file has become shorter"));
        }
        Ok(bytes)
    }

    /// The payload of the version's frame at `offset`.
    pub(crate) fn payload(&self, offset: u32, len: u32) -> Result<Bytes, StoreError> {
        let bytes = self.bytes(offset, len as usize)?;
        self.check(&bytes, offset)?;
        Ok(Bytes::from(bytes).slice(HEADER..))
    }

    /// Verifies the frame of a version.
    pub(crate) fn check<'a>(&self, bytes: &'a [u8], offset: u32) -> Result<Frame<'a>, StoreError> {
        let frame = frame::parse(bytes).map_err(|what| self.corrupt(offset, what))?;
        match frame.kind {
            Kind::Put | Kind::Tombstone => Ok(frame),
            _ => Err(self.corrupt(offset, "not a version of a key")),
        }
    }

    pub(crate) fn corrupt(&self, offset: u32, what: &str) -> StoreError {
        StoreError::corrupt(&self.name, offset.into(), what)
    }

    /// Where to start looking for versions at or above `main`.
    pub(crate) fn start(&self, main: i64) -> u32 {
        self.span.lock().start(main)
    }
}

/// Bytes read at a time when walking through a segment.
const WINDOW_BYTES: usize = 256 << 10;

/// Walks through the frames of a segment, verifying each.
#[derive(Debug)]
pub(crate) struct Frames {
    segment: Arc<Segment>,
    window: Vec<u8>,
    /// Offset of the window's first byte in the file.
    window_at: u32,
    /// Offset of the next frame.
    next: u32,
    /// Where to stop.
    end: u32,
}

/// Why a walk cannot go on.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The frame at the walk's position is not whole.
    Broken(&'static str),
    /// Anything else.
    Failed(StoreError),
}

impl Frames {
    /// The frames from `offset` up to `end`, which is in the file.
    pub(crate) fn new(segment: Arc<Segment>, offset: u32, end: u32) -> Self {
        Self { segment, window: Vec::new(), window_at: offset, next: offset, end }
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Where the next frame begins.
    pub(crate) fn offset(&self) -> u32 {
        self.next
    }

    /// The next frame's offset and length. Its bytes are in the window then: see [`Frames::frame`].
    pub(crate) fn advance(&mut self) -> Result<Option<(u32, u32)>, Stop> {
        let left = (self.end - self.next) as usize;
        if left == 0 {
            return Ok(None);
        }
        if left < HEADER {
            return Err(Stop::Broken("cut short"));
        }
        let head = self.fill(HEADER)?;
        let length = frame::length([head[0], head[1], head[2], head[3]]).map_err(Stop::Broken)?;
        if length > left {
            return Err(Stop::Broken("runs past the end"));
        }
        let at = self.next;
        frame::parse(self.fill(length)?).map_err(Stop::Broken)?;
        self.next += length as u32;
        Ok(Some((at, length as u32)))
    }

    /// The bytes of the frame that [`Frames::advance`] found.
    pub(crate) fn bytes(&self, (offset, length): (u32, u32)) -> &[u8] {
        let start = (offset - self.window_at) as usize;
        &self.window[start..start + length as usize]
    }

    /// The next `count` bytes, which are before the end.
    fn fill(&mut self, count: usize) -> Result<&[u8], Stop> {
        let start = (self.next - self.window_at) as usize;
        if start + count > self.window.len() {
            let length = count.max(WINDOW_BYTES).min((self.end - self.next) as usize);
            self.window = self.segment.bytes(self.next, length).map_err(Stop::Failed)?;
            self.window_at = self.next;
            return Ok(&self.window[..count]);
        }
        Ok(&self.window[start..start + count])
    }

    /// [`Frames::advance`] where a broken frame is damage.
    pub(crate) fn advance_sound(&mut self) -> Result<Option<(u32, u32)>, StoreError> {
        let at = self.next;
        self.advance().map_err(|stop| match stop {
            Stop::Broken(what) => self.segment.corrupt(at, what),
            Stop::Failed(error) => error,
        })
    }

    /// Reads a verified frame again from the window.
    pub(crate) fn frame(&self, at: (u32, u32)) -> Result<Frame<'_>, StoreError> {
        frame::parse_verified(self.bytes(at)).map_err(|what| self.segment.corrupt(at.0, what))
    }
}
