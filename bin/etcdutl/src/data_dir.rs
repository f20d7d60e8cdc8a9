//! A data directory while no member runs: where its parts are, and whose it is.

use crate::db::{DbError, lock};
use disk::{Disk, File, Open, RealDisk};
use state::{Reader, State};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use store::{Mark, Store};

/// Its parts.
#[derive(Clone, Debug)]
pub struct DataDir {
    /// The directory itself.
    pub path: PathBuf,
}

impl DataDir {
    /// The directory of this name; it need not exist.
    pub fn new(path: &str) -> Self {
        Self { path: PathBuf::from(path) }
    }

    /// The data directory that a path means: itself, or the one in which this `member/snap/db` would be.
    pub fn meant_by(path: &Path) -> Option<Self> {
        let root = if path.is_dir() {
            Some(path)
        } else if path.ends_with("member/snap/db") {
            path.ancestors().nth(3)
        } else {
            None
        };
        root.map(|root| Self { path: root.to_owned() })
    }

    /// An etcd's keys, or those that a restore left for us.
    pub fn db(&self) -> PathBuf {
        self.snap().join("db")
    }

    /// Snapshots of the log.
    pub fn snap(&self) -> PathBuf {
        self.path.join("member").join("snap")
    }

    /// The write-ahead log, unless it was put somewhere else.
    pub fn wal(&self) -> PathBuf {
        self.path.join("member").join("wal")
    }

    fn store(&self) -> PathBuf {
        self.path.join("member").join("store")
    }

    /// Whether its keys are in our store: a member of ours has run here. A `db` beside it does not count any more.
    pub fn is_ours(&self) -> bool {
        self.store().join("MANIFEST").exists()
    }

    /// Opens our store. What is in the log only is not in it yet.
    pub fn open(&self, patience: Option<Duration>) -> Result<Opened, OpenError> {
        let member = self.path.join("member");
        let lock_path = member.join("LOCK");
        let failed = |source| DbError::Io { path: lock_path.clone(), action: "open", source };
        let held = RealDisk.open(&lock_path, Open::Truncate).map_err(failed)?;
        lock(held.as_ref(), &lock_path, patience)?;
        let (store, writer, mark) = Store::open(Arc::new(RealDisk), &self.store(), store::Options::default())?;
        let config = state::Config { quota_bytes: -1, heartbeat_ms: 100, election_timeout_ms: 1_000 };
        let (state, reader) = State::open(store, writer, &mark, config)?;
        Ok(Opened { reader, mark, _state: state, _lock: held })
    }
}

/// Our store, open; nobody else has it.
#[derive(Debug)]
pub struct Opened {
    /// Its content.
    pub reader: Reader,
    /// Up to where the log is in it.
    pub mark: Mark,
    _state: State,
    _lock: Arc<dyn File>,
}

/// Why our store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its lock cannot be taken.
    #[error("{0}")]
    Lock(#[from] DbError),
    /// It cannot be read.
    #[error("store: {0}")]
    Store(#[from] store::StoreError),
    /// It does not make sense.
    #[error("{0}")]
    State(#[from] state::Fatal),
}
