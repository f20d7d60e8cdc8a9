//! An etcd's bbolt file: opening it, and what its rows mean.

use crate::log;
use bolt::{ReadError, Reader};
use bytes::Bytes;
use disk::{Disk, File, Open, RealDisk};
use prost::Message as _;
use proto::mvccpb::KeyValue;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::Revision;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// It cannot be opened or read.
    #[error("{action} {}: {}", path.display(), cause(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// A process works on it.
    #[error("{} is in use: stop the etcd that runs on this data directory", .0.display())]
    InUse(PathBuf),
    /// It does not follow the format of bbolt.
    #[error("{}: {}", path.display(), whole(source))]
    Format {
        /// The file.
        path: PathBuf,
        /// Where, and what is wrong there.
        source: ReadError,
    },
    /// It follows the format, but holds what no etcd writes.
    #[error("{}: bucket {bucket}, key {}: {what}", path.display(), key.escape_ascii())]
    Content {
        /// The file.
        path: PathBuf,
        /// The bucket.
        bucket: String,
        /// The key.
        key: Bytes,
        /// What is wrong.
        what: String,
    },
}

/// What Go says, where scripts may look for it.
fn cause(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::IsADirectory => "is a directory".to_owned(),
        _ => error.to_string(),
    }
}

fn whole(error: &ReadError) -> String {
    match error {
        ReadError::Io { source, .. } => format!("{error}: {source}"),
        other => other.to_string(),
    }
}

/// An open file.
#[derive(Debug)]
pub struct Db {
    path: PathBuf,
    /// Its pages.
    pub reader: Reader<Arc<dyn File>>,
}

impl Db {
    /// Opens a file for reading and keeps its writers out meanwhile. Waits for one that works on it as long as `patience`
    /// says (`None`: for ever).
    pub fn open(path: &Path, patience: Option<Duration>) -> Result<Self, DbError> {
        let failed = |source| DbError::Io { path: path.to_owned(), action: "open", source };
        let disk = RealDisk;
        // A lock needs a handle that may write; a file that nobody may write to needs no lock.
        let file = match disk.open(path, Open::Write) {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) =>
            {
                disk.open(path, Open::Read).map_err(failed)?
            }
            opened => {
                let file = opened.map_err(failed)?;
                lock(file.as_ref(), path, patience)?;
                file
            }
        };
        Self::of(path, file)
    }

    /// A file that is open and not worked on.
    pub fn of(path: &Path, file: Arc<dyn File>) -> Result<Self, DbError> {
        let reader = Reader::open(file).map_err(|source| DbError::Format { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), reader })
    }

    /// Visits every row of the file in order, and every bucket before its rows.
    pub fn walk<E: From<DbError>>(&self, visit: &mut dyn FnMut(Met<'_>) -> Result<(), E>) -> Result<(), E> {
        for bucket in self.reader.buckets() {
            let bucket = bucket.map_err(|source| self.unreadable(source))?;
            visit(Met::Bucket(bucket.name()))?;
            for item in bucket.items() {
                let (key, value) = item.map_err(|source| self.unreadable(source))?;
                visit(Met::Row(bucket.name(), &key, &value))?;
            }
        }
        Ok(())
    }

    /// The rows of a bucket; none if there is no such bucket.
    pub fn rows(&self, bucket: &str) -> Result<Vec<(Bytes, Bytes)>, DbError> {
        let found = self.reader.bucket(bucket.as_bytes()).map_err(|source| self.unreadable(source))?;
        let rows = found.iter().flat_map(|bucket| bucket.items()).collect::<Result<_, _>>();
        rows.map_err(|source| self.unreadable(source))
    }

    /// A row of bucket `meta`.
    pub fn meta(&self, key: &str) -> Result<Option<Bytes>, DbError> {
        let found = self.reader.bucket(b"meta").map_err(|source| self.unreadable(source))?;
        match found {
            Some(bucket) => bucket.get(key.as_bytes()).map_err(|source| self.unreadable(source)),
            None => Ok(None),
        }
    }

    fn unreadable(&self, source: ReadError) -> DbError {
        DbError::Format { path: self.path.clone(), source }
    }

    /// What a row of bucket `key` says.
    pub fn version(&self, key: &Bytes, value: &Bytes) -> Result<Version, DbError> {
        let wrong = |what| DbError::Content { path: self.path.clone(), bucket: "key".into(), key: key.clone(), what };
        let (revision, is_tombstone) = revision(key).ok_or_else(|| wrong("not a revision".to_owned()))?;
        let kv = KeyValue::decode(value.clone()).map_err(|error| wrong(error.to_string()))?;
        Ok(Version { revision, is_tombstone, key: kv.key })
    }

    /// The newest compaction that was asked for; -1 is never.
    pub fn compact_revision(&self) -> Result<i64, DbError> {
        let mut compacted = -1;
        for name in ["scheduledCompactRev", "finishedCompactRev"] {
            let Some(value) = self.meta(name)? else { continue };
            let (revision, _) = revision(&value).ok_or_else(|| DbError::Content {
                path: self.path.clone(),
                bucket: "meta".into(),
                key: Bytes::from(name),
                what: "not a revision".into(),
            })?;
            compacted = compacted.max(revision.main);
        }
        Ok(compacted)
    }
}

/// What a walk meets.
pub enum Met<'a> {
    /// A bucket begins.
    Bucket(&'a Bytes),
    /// A row: its bucket, key and value.
    Row(&'a Bytes, &'a Bytes, &'a Bytes),
}

/// A row of bucket `key`.
#[derive(Debug)]
pub struct Version {
    /// When.
    pub revision: Revision,
    /// Whether the key was deleted then.
    pub is_tombstone: bool,
    /// Whose version it is.
    pub key: Bytes,
}

/// Reads main, `_`, sub, and `t` for a tombstone.
pub fn revision(key: &[u8]) -> Option<(Revision, bool)> {
    let (main, rest) = key.split_first_chunk::<8>()?;
    let (sub, rest) = rest.strip_prefix(b"_")?.split_first_chunk::<8>()?;
    let deleted = match rest {
        [] => false,
        b"t" => true,
        _ => return None,
    };
    Some((Revision { main: i64::from_be_bytes(*main), sub: i64::from_be_bytes(*sub) }, deleted))
}

/// Takes a file's lock, as etcd does while it runs.
pub fn lock(file: &dyn File, path: &Path, patience: Option<Duration>) -> Result<(), DbError> {
    const NOTICE: Duration = Duration::from_secs(1);
    let begun = Instant::now();
    let mut has_told = false;
    loop {
        let locked = file.try_lock();
        if locked.map_err(|source| DbError::Io { path: path.to_owned(), action: "lock", source })? {
            return Ok(());
        }
        let waited = begun.elapsed();
        if patience.is_some_and(|patience| waited >= patience) {
            return Err(DbError::InUse(path.to_owned()));
        }
        if waited >= NOTICE && !has_told {
            has_told = true;
            log("warn", "waiting for the etcd that uses this file to stop", &[("path", &path.display().to_string())]);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
