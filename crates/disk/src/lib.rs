//! The disk as the rest of the system sees it: a few calls that can each fail, and nothing else.
//!
//! `wal` and `store` reach files only through [`Disk`] and [`File`], so the same code runs on a real file system and on
//! a simulated one that loses unsynced writes. Paths are plain [`Path`]s; every write names its offset, so there is
//! no hidden cursor.

use std::io;
use std::path::Path;
use std::sync::Arc;

mod background;
pub mod mem;
mod real;

pub use background::{in_background, in_background_and_wait};
pub use mem::MemDisk;
pub use real::{RealDisk, UnsyncedDisk};

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// For reading; the file must exist.
    Read,
    /// For reading and writing; the file must exist.
    Write,
    /// For reading and writing; a new, empty file that must not exist yet. Mode 0600.
    CreateNew,
    /// For reading and writing; emptied if it exists, made if it does not. Mode 0600.
    Truncate,
}

/// A directory tree on stable storage.
pub trait Disk: Send + Sync + std::fmt::Debug + 'static {
    /// Opens a file.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>>;
    /// The names (not paths) in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Whether anything stands at this path.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Makes a directory and its parents, each with mode 0700.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Renames a file or directory, replacing a file in the way.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. A file that is still open stays readable through its handle.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in this directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file. All calls may run from several threads at once.
pub trait File: Send + Sync + std::fmt::Debug {
    /// Fills `buf` from `offset`. Returns fewer bytes than asked only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf` at `offset`, growing the file where needed.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file holds no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or grows (with zeros) the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Returns when all written data is durable (fdatasync).
    fn sync(&self) -> io::Result<()>;
    /// Takes an exclusive lock that ends with this handle; `false` if another holds it.
    fn try_lock(&self) -> io::Result<bool>;
}
