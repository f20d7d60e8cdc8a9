//! `MANIFEST`: which files count. It is the only file that is replaced, and always in one step.

use std::path::Path;

use bytes::{Buf, BufMut};
use disk::{Disk, Open};

use crate::StoreError;
use crate::frame::{self, HEADER, Kind};
use crate::segment::{Origin, Position};

/// The file's name.
pub(crate) const MANIFEST: &str = "MANIFEST";
const TEMPORARY: &str = "MANIFEST.tmp";

/// The layout that this code writes and reads.
const LAYOUT: u32 = 1;

/// Far more than any list of segments needs.
const MAX_BYTES: u64 = 64 << 20;

/// A segment that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub id: u32,
    pub origin: Origin,
    /// Whether it was merged after the checkpoint was begun, so that the checkpoint's locations must be corrected by
    /// reading it.
    pub replay: bool,
}

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// All files ever made have numbers below this, except log segments begun since.
    pub next_id: u32,
    /// The checkpoint's file number; 0 if there is none yet.
    pub checkpoint: u32,
    /// From where the log must be read on top of the checkpoint. Log segments from this one on are not listed: each
    /// names the one before it.
    pub start: Position,
    /// How far the log was durable.
    pub durable: Position,
    pub segments: Vec<Listed>,
}

impl Manifest {
    /// Reads it; `None` if there is no such file.
    pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = dir.join(MANIFEST);
        let failed = |action| move |e| StoreError::io(MANIFEST, action, e);
        if !disk.exists(&path).map_err(failed("look for"))? {
            return Ok(None);
        }
        let file = disk.open(&path, Open::Read).map_err(failed("open"))?;
        let len = file.len().map_err(failed("measure"))?;
        let corrupt = |what: &str| StoreError::corrupt(MANIFEST, 0, what);
        if !(HEADER as u64..=MAX_BYTES).contains(&len) {
            return Err(corrupt("impossible length"));
        }
        let mut bytes = vec![0; len as usize];
        let count = file.read_at(&mut bytes, 0).map_err(failed("read"))?;
        let frame = frame::parse(&bytes[..count]).map_err(corrupt)?;
        if frame.kind != Kind::Manifest {
            return Err(corrupt("not a manifest"));
        }
        Self::decode(frame.payload).map(Some).ok_or_else(|| corrupt("unknown layout"))
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        if bytes.len() < 32 || bytes.get_u32_le() != LAYOUT {
            return None;
        }
        let mut manifest = Self {
            next_id: bytes.get_u32_le(),
            checkpoint: bytes.get_u32_le(),
            start: Position::decode(&mut bytes),
            durable: Position::decode(&mut bytes),
            segments: Vec::new(),
        };
        let count = bytes.get_u32_le() as usize;
        if bytes.len() != count.checked_mul(5)? {
            return None;
        }
        for _ in 0..count {
            let id = bytes.get_u32_le();
            let flags = bytes.get_u8();
            let origin = if flags & 1 == 0 { Origin::Log } else { Origin::Merged };
            manifest.segments.push(Listed { id, origin, replay: flags & 2 != 0 });
        }
        Some(manifest)
    }

    /// Replaces the file; when this returns, the new one is durable. Everything it names must be durable already.
    pub(crate) fn write(&self, disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
        let mut bytes = Vec::new();
        frame::append(&mut bytes, Kind::Manifest, 0, 0, |out| {
            out.put_u32_le(LAYOUT);
            out.put_u32_le(self.next_id);
            out.put_u32_le(self.checkpoint);
            self.start.encode(out);
            self.durable.encode(out);
            out.put_u32_le(self.segments.len() as u32);
            for listed in &self.segments {
                out.put_u32_le(listed.id);
                out.put_u8(listed.origin as u8 | u8::from(listed.replay) << 1);
            }
        });
        let temporary = dir.join(TEMPORARY);
        let failed = |action| move |e| StoreError::io(TEMPORARY, action, e);
        let file = disk.open(&temporary, Open::Truncate).map_err(failed("create"))?;
        file.write_at(&bytes, 0).map_err(failed("write"))?;
        file.sync().map_err(failed("sync"))?;
        // The names of the files it lists must not become durable after it.
        disk.sync_dir(dir).map_err(|e| StoreError::io(".", "sync directory", e))?;
        disk.rename(&temporary, &dir.join(MANIFEST)).map_err(failed("rename"))?;
        disk.sync_dir(dir).map_err(|e| StoreError::io(".", "sync directory", e))
    }
}
