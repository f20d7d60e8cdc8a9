//! From a data directory to a member that is ready to run.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use disk::{Disk, File, Open};
use prost::Message as _;
use proto::raftpb;
use raft_driver::{Driver, Start};
use state::members;
use state::{Reader, State};
use store::{Mark, Options, Store};
use wal::{Entry, EntryKind, HardState, Identity, SnapshotMark, Wal, WalError};

/// What has to be known to start a member.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) wal_dir: PathBuf,
    /// Name and peer URLs of every initial member.
    pub(crate) initial_cluster: Vec<(String, Vec<String>)>,
    pub(crate) token: String,
    pub(crate) quota_bytes: i64,
    pub(crate) heartbeat_ms: u64,
    pub(crate) election_ms: u64,
    pub(crate) pre_vote: bool,
}

/// Why a member cannot start. Every text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The data directory cannot be used.
    #[error("cannot use data directory {path}: {source} (check that it exists and that this user may write to it)")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The write-ahead log cannot be read.
    #[error("write-ahead log: {0}")]
    Wal(#[from] wal::WalError),
    /// The store cannot be read.
    #[error("store: {0}")]
    Store(#[from] store::StoreError),
    /// What is in the store cannot be understood.
    #[error("{0}")]
    State(#[from] state::Fatal),
    /// Log and store do not fit together.
    #[error(
        "{0}; the data directory is damaged or mixed from two: restore it from a snapshot, or remove it and let the member join again"
    )]
    Mismatch(String),
    /// Consensus cannot start.
    #[error("{0}")]
    Driver(#[from] raft_driver::DriverError),
    /// The flags ask for what this version cannot do.
    #[error("{0}")]
    Unsupported(String),
}

/// A member that is ready to run.
#[derive(Debug)]
pub(crate) struct Booted {
    pub(crate) identity: Identity,
    pub(crate) wal: Wal,
    pub(crate) driver: Driver,
    pub(crate) state: State,
    pub(crate) reader: Reader,
    pub(crate) mark: Mark,
    pub(crate) conf_state: raftpb::ConfState,
    pub(crate) snapshot_index: u64,
    pub(crate) fresh: bool,
    /// Keeps other processes out of the data directory.
    pub(crate) lock: Arc<dyn File>,
}

/// How often a second process says that it waits for the first.
const LOCK_NOTICE: Duration = Duration::from_secs(10);

/// Opens or makes the data directory.
pub(crate) fn boot(disk: &Arc<dyn Disk>, plan: &Plan, seed: u64) -> Result<Booted, BootError> {
    let member_dir = plan.data_dir.join("member");
    let snap_dir = member_dir.join("snap");
    let store_dir = member_dir.join("store");
    for dir in [&snap_dir, &store_dir] {
        disk.create_dir_all(dir).map_err(|source| BootError::DataDir { path: plan.data_dir.clone(), source })?;
    }
    let lock = lock(disk.as_ref(), &member_dir, &plan.data_dir)?;
    let exists = Wal::exists(disk.as_ref(), &plan.wal_dir)
        .map_err(|source| BootError::DataDir { path: plan.wal_dir.clone(), source })?;
    let (store, writer, mark) = Store::open(Arc::clone(disk), &store_dir, Options::default())?;
    tracing::info!(path = %store_dir.display(), "opened backend db");
    let opened = if exists { open(disk, plan, &mark)? } else { create(disk, plan, &mark)? };
    let config = state::Config {
        member_id: opened.identity.node_id,
        cluster_id: opened.identity.cluster_id,
        quota_bytes: plan.quota_bytes,
        heartbeat_ms: plan.heartbeat_ms,
        election_timeout_ms: plan.election_ms,
    };
    let (state, reader) = State::open(store, writer, &mark, config)?;
    tracing::info!("current-rev" = reader.revision(), "kvstore restored");
    let election_ticks = usize::try_from(plan.election_ms / plan.heartbeat_ms).unwrap_or(10);
    let driver = Driver::new(
        raft_driver::Config {
            id: opened.identity.node_id,
            election_ticks,
            heartbeat_ticks: 1,
            pre_vote: plan.pre_vote,
            max_message_bytes: 1 << 20,
            max_inflight: 512,
            max_committed_bytes: 4 << 20,
            max_uncommitted_bytes: 1 << 30,
            applied: mark.index,
            seed,
        },
        opened.start.clone(),
    )?;
    Ok(Booted {
        identity: opened.identity,
        wal: opened.wal,
        driver,
        state,
        reader,
        conf_state: opened.start.conf_state,
        mark,
        snapshot_index: opened.snapshot_index,
        fresh: !exists,
        lock,
    })
}

struct Opened {
    identity: Identity,
    wal: Wal,
    start: Start,
    snapshot_index: u64,
}

/// Takes the data directory's lock; waits, as etcd does, while another process has it.
fn lock(disk: &dyn Disk, member_dir: &Path, data_dir: &Path) -> Result<Arc<dyn File>, BootError> {
    let failed = |source| BootError::DataDir { path: data_dir.to_path_buf(), source };
    let path = member_dir.join("LOCK");
    let file = disk.open(&path, Open::Truncate).map_err(failed)?;
    let mut next_notice = Instant::now() + Duration::from_millis(500);
    while !file.try_lock().map_err(failed)? {
        if Instant::now() >= next_notice {
            tracing::warn!(
                path = %path.display(),
                "db file is flocked by another process, or taking too long; stop the other etcd that uses this data directory"
            );
            next_notice = Instant::now() + LOCK_NOTICE;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(file)
}

/// A member that has lived before: its log says who it is.
fn open(disk: &Arc<dyn Disk>, plan: &Plan, mark: &Mark) -> Result<Opened, BootError> {
    // The newest snapshot that the store has fully applied; the log may be gone before it. Its file's name tells which
    // that is; only if the log does not know it, all of the log is searched.
    let named = newest_snapshot(disk.as_ref(), &plan.data_dir.join("member").join("snap"), mark.index);
    let opened = Wal::open(Arc::clone(disk), &plan.wal_dir, named.clone());
    let (from, (wal, mut replay)) = match opened {
        Err(WalError::SnapshotNotFound { .. } | WalError::SnapshotMismatch { .. } | WalError::StartsLater { .. }) => {
            let known = Wal::snapshots(disk.as_ref(), &plan.wal_dir)?;
            let from = known.into_iter().filter(|s| s.index <= mark.index).max_by_key(|s| s.index).unwrap_or_default();
            (from.clone(), Wal::open(Arc::clone(disk), &plan.wal_dir, from)?)
        }
        opened => (named, opened?),
    };
    if let Some(repair) = &replay.repaired {
        tracing::warn!(repair = ?repair, "repaired the torn end of the write-ahead log");
    }
    if replay.entries.is_empty() && from.index == 0 {
        // The process ended between making the log and writing the initial members into it: nothing was promised yet.
        return begin(plan, mark, wal, replay.identity);
    }
    let last = replay.entries.last().map_or(from.index, |e| e.index);
    if mark.index > last {
        return Err(BootError::Mismatch(format!(
            "the store has applied entry {}, but the write-ahead log in {} ends at {last}",
            mark.index,
            plan.wal_dir.display()
        )));
    }
    let conf_state = raftpb::ConfState::decode(mark.conf_state.clone())
        .map_err(|e| BootError::Mismatch(format!("the store's membership cannot be read ({e})")))?;
    // What is applied is only of use to members that lag, and there may be none.
    let mut base = (from.index, from.term);
    if conf_state.voters == [replay.identity.node_id] && conf_state.learners.is_empty() && mark.index > base.0 {
        base = (mark.index, mark.term);
        replay.entries.retain(|entry| entry.index > mark.index);
    }
    for entry in &mut replay.entries {
        // As read they share the memory of their whole segment.
        entry.data = Bytes::copy_from_slice(&entry.data);
    }
    Ok(Opened {
        identity: replay.identity,
        wal,
        start: Start { hard_state: replay.hard_state, conf_state, base, entries: replay.entries },
        snapshot_index: from.index,
    })
}

/// The newest `.snap` file at or below an index, by its name: term and index in hex.
fn newest_snapshot(disk: &dyn Disk, dir: &Path, up_to: u64) -> SnapshotMark {
    let names = disk.list(dir).unwrap_or_default();
    let marks = names.iter().filter_map(|name| {
        let (term, index) = name.strip_suffix(".snap")?.split_once('-')?;
        let (term, index) = (u64::from_str_radix(term, 16).ok()?, u64::from_str_radix(index, 16).ok()?);
        (index <= up_to).then_some(SnapshotMark { index, term, conf_state: None })
    });
    marks.max_by_key(|mark| mark.index).unwrap_or_default()
}

/// A new member of a new cluster: its log begins with the initial members.
fn create(disk: &Arc<dyn Disk>, plan: &Plan, mark: &Mark) -> Result<Opened, BootError> {
    let members = initial_members(plan)?;
    let ids: Vec<u64> = members.iter().map(|m| m.id).collect();
    let own = members.iter().find(|m| m.name == plan.name).ok_or_else(|| {
        BootError::Unsupported(format!("couldn't find local name {:?} in the initial cluster configuration", plan.name))
    })?;
    if members.len() > 1 {
        return Err(BootError::Unsupported(format!(
            "this version runs clusters of one member, and --initial-cluster names {}; start it with --initial-cluster {}=<its own peer URL>",
            members.len(),
            plan.name
        )));
    }
    let identity = Identity { node_id: own.id, cluster_id: members::cluster_id(&ids) };
    let wal = Wal::create(Arc::clone(disk), &plan.wal_dir, identity)?;
    begin(plan, mark, wal, identity)
}

fn initial_members(plan: &Plan) -> Result<Vec<members::Member>, BootError> {
    let mut initial: Vec<members::Member> = plan
        .initial_cluster
        .iter()
        .map(|(name, urls)| members::Member {
            id: members::member_id(urls, &plan.token),
            name: name.clone(),
            peer_urls: urls.clone(),
            ..Default::default()
        })
        .collect();
    initial.sort_by_key(|m| m.id);
    Ok(initial)
}

/// Writes the first entries of a new log, committed by decree: every initial member starts from the same ones.
fn begin(plan: &Plan, mark: &Mark, mut wal: Wal, identity: Identity) -> Result<Opened, BootError> {
    if *mark != Mark::default() {
        return Err(BootError::Mismatch(format!(
            "the write-ahead log in {} is empty, but the store has applied entry {}",
            plan.wal_dir.display(),
            mark.index
        )));
    }
    let entries: Vec<Entry> = initial_members(plan)?
        .iter()
        .zip(1u64..)
        .map(|(member, index)| Entry {
            kind: EntryKind::ConfChange,
            term: 1,
            index,
            data: raftpb::ConfChange {
                r#type: Some(raftpb::ConfChangeType::ConfChangeAddNode as i32),
                node_id: Some(member.id),
                context: Some(members::add_context(member).into()),
                id: Some(0),
            }
            .encode_to_vec()
            .into(),
        })
        .collect();
    let hard_state = HardState { term: 1, vote: 0, commit: entries.len() as u64 };
    // Synced here, and known to nobody else yet.
    let _synced = wal.append(&entries, Some(&hard_state))?;
    Ok(Opened { identity, wal, start: Start { hard_state, entries, ..Start::default() }, snapshot_index: 0 })
}
