//! `migrate`: makes the data directory of an etcd fit another version of it.
//!
//! All that distinguishes 3.5, 3.6 and 3.7 in the file is the row that names the version; the log may hold what an older
//! version cannot read.

use crate::copy::{Changes, CopyError, Rows};
use crate::data_dir::DataDir;
use crate::db::{Db, DbError};
use crate::{command, defrag, log};
use bytes::Bytes;
use cli::flags::Parsed;
use cli::{Failure, exit};
use disk::RealDisk;
use prost::Message as _;
use proto::etcdserverpb::InternalRaftRequest;
use std::fmt;
use std::sync::Arc;
use wal::snap;
use wal::{EntryKind, SnapshotMark, Wal};

const VERSION_ROW: &str = "storageVersion";

/// A version without its patch, as storages have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    major: u64,
    minor: u64,
}

/// The first that can be told apart, the first that writes its version down, and the last that is known.
const V3_5: Version = Version { major: 3, minor: 5 };
const V3_6: Version = Version { major: 3, minor: 6 };
const V3_7: Version = Version { major: 3, minor: 7 };

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.0", self.major, self.minor)
    }
}

impl Version {
    /// `X.Y`, or `X.Y.Z` whose patch does not count.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(|part| part.parse().ok());
        Some(Self { major: parts.next()??, minor: parts.next()?? })
    }

    fn short(self) -> String {
        format!("{}.{}", self.major, self.minor)
    }
}

/// Why a data directory stays as it is.
#[derive(Debug, thiserror::Error)]
enum MigrateError {
    #[error("{0}")]
    Db(#[from] DbError),
    #[error("{0}")]
    Copy(#[from] CopyError),
    #[error("failed to get the lastest snapshot: {0}")]
    Snap(String),
    #[error("failed to open wal: {0}")]
    Wal(String),
    #[error("cannot detect storage schema version: missing {0} information")]
    Unknown(&'static str),
    #[error("changing major storage version is not supported")]
    Major,
    #[error("version {:?} is not supported", .0.to_string())]
    NoSuchVersion(Version),
    #[error(
        "cannot downgrade storage, WAL contains newer entries, as the target version ({target}) is lower than the version \
         ({found}) detected from WAL logs"
    )]
    NewerLog { target: Version, found: Version },
}

pub fn run(call: &Parsed) -> Result<(), Failure> {
    let dir = DataDir::new(call.text("data-dir"));
    let typed = call.text("target-version");
    if typed.matches('.').count() != 1 {
        let text = format!("wrong target version format, expected \"X.Y\", got {typed:?}");
        return Err(Failure::arguments(text));
    }
    let target = Version::parse(typed)
        .ok_or_else(|| Failure::arguments(format!("failed to parse target version: {typed}.0 is not a version")))?;
    if target < V3_5 {
        let text = format!("target version {:?} not supported. Minimal \"3.5\"", target.short());
        return Err(Failure::arguments(text));
    }
    if dir.is_ours() {
        return ours(target);
    }
    let db = Db::open(&dir.db(), command::lock_timeout(call))?;
    let log_version = log_version(&dir).map_err(Failure::arguments)?;
    Ok(migrate(&dir, &db, log_version, target, call.is("force"))?)
}

/// Our store has one form, whatever version its cluster is at; an etcd cannot read it.
fn ours(target: Version) -> Result<(), Failure> {
    if target == V3_7 {
        log("info", "storage version up-to-date", &[("storage-version", &target.short())]);
        return Ok(());
    }
    let text = "this data directory holds no file of etcd's: to go to another etcd, save a snapshot and restore it with that \
                etcd's etcdutl, or add that etcd to the cluster as a member";
    Err(Failure::new(exit::ERROR, text))
}

fn migrate(dir: &DataDir, db: &Db, log: Version, target: Version, is_forced: bool) -> Result<(), MigrateError> {
    let current = detect(db)?;
    if current == target {
        crate::log("info", "storage version up-to-date", &[("storage-version", &current.short())]);
        return Ok(());
    }
    if let Err(reason) = check(current, log, target) {
        if !is_forced {
            return Err(reason);
        }
        crate::log("info", "normal migrate failed, trying with force", &[("error", &reason.to_string())]);
    }
    let mut meta: Rows = db.rows("meta")?.into_iter().collect();
    if target < V3_6 {
        meta.remove(VERSION_ROW.as_bytes());
    } else {
        meta.insert(Bytes::from(VERSION_ROW), target.to_string().into());
    }
    let mut changes = Changes::default();
    changes.buckets.insert("meta", meta);
    defrag::replace(db, &changes, &dir.db(), "migrate")?;
    crate::log("info", "updated storage version", &[("new-storage-version", &target.to_string())]);
    Ok(())
}

fn detect(db: &Db) -> Result<Version, MigrateError> {
    if let Some(row) = db.meta(VERSION_ROW)? {
        let version = std::str::from_utf8(&row).ok().and_then(Version::parse);
        return version.ok_or(MigrateError::Unknown("storage version"));
    }
    // From 3.5 on both are written.
    for (row, what) in [("term", "term"), ("confState", "confstate")] {
        if db.meta(row)?.is_none() {
            return Err(MigrateError::Unknown(what));
        }
    }
    Ok(V3_5)
}

/// Whether there is a way from one version to the other.
fn check(current: Version, log: Version, target: Version) -> Result<(), MigrateError> {
    if current.major != target.major {
        return Err(MigrateError::Major);
    }
    let highest = current.max(target);
    if highest > V3_7 {
        return Err(MigrateError::NoSuchVersion(highest));
    }
    if target < current && log > target {
        return Err(MigrateError::NewerLog { target, found: log });
    }
    Ok(())
}

/// The oldest version that can read what is in the log behind the newest snapshot.
fn log_version(dir: &DataDir) -> Result<Version, MigrateError> {
    let disk = RealDisk;
    let known = Wal::snapshots(&disk, &dir.wal()).map_err(|error| MigrateError::Snap(error.to_string()))?;
    let newest = snap::load_newest_available(&disk, &dir.snap(), &known);
    let newest = newest.map_err(|error| MigrateError::Snap(error.to_string()))?;
    let from = newest.map_or(SnapshotMark::START, |snap| SnapshotMark {
        index: snap.index,
        term: snap.term,
        conf_state: None,
    });
    let opened = Wal::open(Arc::new(disk), &dir.wal(), from);
    let (_, replay) = opened.map_err(|error| MigrateError::Wal(error.to_string()))?;
    let normal = replay.entries.iter().filter(|entry| entry.kind == EntryKind::Normal);
    Ok(normal.filter_map(|entry| needs(&entry.data)).max().unwrap_or(V3_5).max(V3_5))
}

/// The version that an entry asks for.
fn needs(data: &Bytes) -> Option<Version> {
    // Requests of the v2 API do not parse; any version before 3.7 reads them.
    let request = InternalRaftRequest::decode(data.clone()).ok()?;
    let set = request.cluster_version_set?;
    Version::parse(&set.ver)
}
