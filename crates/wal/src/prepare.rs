//! Zeros written ahead of need.
//!
//! A sync into a file whose blocks were already written with zeros costs about half of one into a file that has yet to
//! grow or to turn reserved blocks into written ones. A segment's zeros are tens of megabytes in all,
//! so a thread of the caller's writes them, from a [`Prepare`] that [`crate::Wal::prepare_next`] hands out.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use disk::{Disk, File, Open};

/// Zeros are synced in portions, so that a sync of the log that comes in between finds little to wait for.
const SYNC_EVERY: u64 = 1 << 20;

/// Slow work that makes later appends fast; run it on any thread, then hand the result to [`crate::Wal::prepared`].
/// Dropping it (or failing) does no harm: the log goes on, only slower.
#[derive(Debug)]
pub struct Prepare {
    pub(crate) work: Work,
    pub(crate) ticket: Ticket,
}

#[derive(Debug)]
pub(crate) enum Work {
    /// Make the file that the next cut will turn into a segment.
    Next { disk: Arc<dyn Disk>, path: PathBuf, bytes: u64 },
    /// Fill the rest of the segment that is being written. Through a handle of its own: an error that a sync reports is
    /// reported once per handle, and the log must not miss one.
    Rest { file: Arc<dyn File>, from: u64, to: u64, floor: Floor },
}

/// What a [`Prepare`] has made.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) next: Option<NextFile>,
    /// Held until the log has taken the result, so that the work is not handed out twice.
    _ticket: Ticket,
}

/// A file that waits to become a segment. All zeros.
#[derive(Debug)]
pub(crate) struct NextFile {
    pub file: Arc<dyn File>,
    pub path: PathBuf,
}

impl Prepare {
    /// Writes the zeros.
    pub fn run(self) -> io::Result<Prepared> {
        let next = match self.work {
            Work::Next { disk, path, bytes } => match next_file(disk.as_ref(), path.clone(), bytes) {
                Ok(next) => Some(next),
                Err(e) => {
                    // Half a file would only take space that seems to be short.
                    if let Err(leftover) = disk.remove(&path)
                        && leftover.kind() != io::ErrorKind::NotFound
                    {
                        return Err(io::Error::new(e.kind(), format!("{e}; and removing it failed: {leftover}")));
                    }
                    return Err(e);
                }
            },
            Work::Rest { file, from, to, floor } => {
                fill_rest(file.as_ref(), from, to, &floor)?;
                None
            }
        };
        Ok(Prepared { next, _ticket: self.ticket })
    }
}

/// Zeros are written a page at a time. The page cache keeps what one large write brings in as one large folio, and a
/// later sync of a few bytes in it then goes through, and is accounted as, all of it: with pieces of 1 MiB each sync
/// of the log counted 310 KiB and cost its thread 120 us of CPU.
pub(crate) const ZERO_WRITE: usize = 4096;

/// Makes a file of `bytes` zeros, ready to be renamed.
pub(crate) fn next_file(disk: &dyn Disk, path: PathBuf, bytes: u64) -> io::Result<NextFile> {
    let file = disk.open(&path, Open::Truncate)?;
    let zeros = [0; ZERO_WRITE];
    for at in (0..bytes).step_by(ZERO_WRITE) {
        let len = (bytes - at).min(ZERO_WRITE as u64);
        file.write_at(&zeros[..len as usize], at)?;
        if (at + len).is_multiple_of(SYNC_EVERY) {
            file.sync()?;
        }
    }
    file.sync()?;
    Ok(NextFile { file, path })
}

fn fill_rest(file: &dyn File, from: u64, to: u64, floor: &Floor) -> io::Result<()> {
    let zeros = [0; ZERO_WRITE];
    let mut at = from;
    let mut synced = from;
    while at < to {
        {
            // The log cannot raise the floor into this block while the zeros are on their way.
            let floor = floor.lock();
            at = at.max(*floor);
            if at >= to {
                break;
            }
            let len = (to - at).min(zeros.len() as u64);
            file.write_at(&zeros[..len as usize], at)?;
            at += len;
        }
        if at - synced >= SYNC_EVERY {
            file.sync()?;
            synced = at;
        }
    }
    file.sync()
}

/// Bytes below the floor belong to the log, bytes above it to whoever fills the rest with zeros.
#[derive(Clone, Debug, Default)]
pub(crate) struct Floor(Arc<Mutex<u64>>);

impl Floor {
    /// To be called *before* the log writes bytes up to `end`.
    pub fn raise(&self, end: u64) {
        let mut floor = self.lock();
        *floor = end.max(*floor);
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        // A number cannot be half changed, so a panic elsewhere leaves nothing to fear here.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// There is at most one at a time; it comes back when it is dropped, wherever that happens.
#[derive(Debug)]
pub(crate) struct Ticket(Arc<AtomicBool>);

impl Ticket {
    pub fn take(taken: &Arc<AtomicBool>) -> Option<Ticket> {
        (!taken.swap(true, Ordering::AcqRel)).then(|| Ticket(taken.clone()))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
