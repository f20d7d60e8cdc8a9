//! Writing a bbolt file anew, with changes: what is not named stays as it is.

use crate::db::{Db, DbError, Met};
use bolt::{Layout, Plan, WriteError, Writer};
use bytes::Bytes;
use cli::{go, terminal};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The rows of a bucket.
pub type Rows = BTreeMap<Bytes, Bytes>;

/// What is different in the copy.
#[derive(Debug, Default)]
pub struct Changes {
    /// All rows of these buckets.
    pub buckets: BTreeMap<&'static str, Rows>,
    /// One more row behind the last one of bucket `key`.
    pub last_version: Option<(Bytes, Bytes)>,
}

/// Why a file could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The original cannot be read.
    #[error("{0}")]
    Read(#[from] DbError),
    /// The copy cannot be written.
    #[error("{}: {source}", path.display())]
    Write {
        /// The copy.
        path: PathBuf,
        /// Why.
        source: WriteError,
    },
    /// The copy cannot be made or synced.
    #[error("{}: {source}", path.display())]
    Io {
        /// The copy.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Writes `original` with `changes` to a new file, durably; the caller syncs the directory. Checks every row of the
/// history on the way. Shows how far it is, if `title` is given and a person looks.
pub fn copy(original: &Db, changes: &Changes, path: &Path, title: &str) -> Result<(), CopyError> {
    let failed = |source| CopyError::Write { path: path.to_owned(), source };
    let io = |source| CopyError::Io { path: path.to_owned(), source };
    let mut meter = Meter { title, done: 0, shown: 0, total: 2 * original.reader.size_bytes() };
    let mut plan = Plan::new();
    walk(original, changes, &mut |met| {
        match met {
            Met::Bucket(name) => plan.bucket(name),
            Met::Row(bucket, key, value) => {
                if bucket.as_ref() == b"key" && !is_added(changes, key) {
                    original.version(key, value)?;
                }
                meter.advance(key, value);
                plan.item(key.len(), value.len())
            }
        }
        .map_err(failed)
    })?;
    let layout = plan.finish().map_err(failed)?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
    let file = write(original, changes, file, layout, &mut meter).map_err(|error| match error {
        CopyError::Write { source, .. } => failed(source),
        other => other,
    })?;
    file.sync_all().map_err(io)?;
    meter.end();
    Ok(())
}

fn is_added(changes: &Changes, key: &Bytes) -> bool {
    changes.last_version.as_ref().is_some_and(|(added, _)| added == key)
}

fn write(
    original: &Db,
    changes: &Changes,
    file: File,
    layout: Layout,
    meter: &mut Meter<'_>,
) -> Result<File, CopyError> {
    let failed = |source| CopyError::Write { path: PathBuf::new(), source };
    let mut out = Writer::new(BufWriter::with_capacity(1 << 20, file), layout).map_err(failed)?;
    walk(original, changes, &mut |met| {
        match met {
            Met::Bucket(name) => out.bucket(name),
            Met::Row(_, key, value) => {
                meter.advance(key, value);
                out.item(key, value)
            }
        }
        .map_err(failed)
    })?;
    let mut out = out.finish().map_err(failed)?;
    out.flush().map_err(|source| failed(WriteError::Io { page: 0, source }))?;
    out.into_inner().map_err(|error| failed(WriteError::Io { page: 0, source: error.into_error() }))
}

/// Visits the copy's rows in order.
fn walk(
    original: &Db,
    changes: &Changes,
    visit: &mut dyn FnMut(Met<'_>) -> Result<(), CopyError>,
) -> Result<(), CopyError> {
    let mut added = changes.buckets.iter().peekable();
    let mut in_key = false;
    original.walk(&mut |met| match met {
        Met::Bucket(name) => {
            leave_bucket(&mut in_key, changes, visit)?;
            while let Some((bucket, rows)) = added.next_if(|(bucket, _)| bucket.as_bytes() <= name.as_ref()) {
                whole_bucket(bucket, rows, visit)?;
            }
            in_key = name.as_ref() == b"key";
            if is_changed(changes, name) { Ok(()) } else { visit(Met::Bucket(name)) }
        }
        Met::Row(bucket, ..) if is_changed(changes, bucket) => Ok(()),
        row => visit(row),
    })?;
    leave_bucket(&mut in_key, changes, visit)?;
    added.try_for_each(|(bucket, rows)| whole_bucket(bucket, rows, visit))
}

fn is_changed(changes: &Changes, bucket: &Bytes) -> bool {
    changes.buckets.keys().any(|changed| changed.as_bytes() == bucket.as_ref())
}

fn whole_bucket(
    name: &str,
    rows: &Rows,
    visit: &mut dyn FnMut(Met<'_>) -> Result<(), CopyError>,
) -> Result<(), CopyError> {
    let name = Bytes::copy_from_slice(name.as_bytes());
    visit(Met::Bucket(&name))?;
    rows.iter().try_for_each(|(key, value)| visit(Met::Row(&name, key, value)))
}

fn leave_bucket(
    in_key: &mut bool,
    changes: &Changes,
    visit: &mut dyn FnMut(Met<'_>) -> Result<(), CopyError>,
) -> Result<(), CopyError> {
    match &changes.last_version {
        Some((key, value)) if std::mem::take(in_key) => visit(Met::Row(&Bytes::from_static(b"key"), key, value)),
        _ => Ok(()),
    }
}

/// Shows how much has been gone through, in bytes of the file.
struct Meter<'a> {
    title: &'a str,
    done: u64,
    shown: u64,
    total: u64,
}

impl Meter<'_> {
    const STEP: u64 = 4 << 20;

    fn advance(&mut self, key: &[u8], value: &[u8]) {
        self.done += (key.len() + value.len()) as u64;
        if self.done >= self.shown + Self::STEP {
            self.shown = self.done;
            terminal::progress(self.title, self.done.min(self.total), self.total, &go::human_bytes);
        }
    }

    fn end(&self) {
        if self.shown > 0 {
            terminal::progress(self.title, self.total, self.total, &go::human_bytes);
            terminal::end_progress();
        }
    }
}
