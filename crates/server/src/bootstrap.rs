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

use crate::applier;
use crate::host::Neighbours;
use crate::takeover::{self, TakeoverError};
use crate::versions;

/// What has to be known to start a member.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) wal_dir: PathBuf,
    /// Name and peer URLs of every initial member.
    pub(crate) initial_cluster: Vec<(String, Vec<String>)>,
    pub(crate) token: String,
    /// Whether a new member joins a cluster that runs, instead of founding one.
    pub(crate) joins: bool,
    pub(crate) force_new_cluster: bool,
    pub(crate) quota_bytes: i64,
    pub(crate) heartbeat_ms: u64,
    pub(crate) election_ms: u64,
    pub(crate) pre_vote: bool,
    pub(crate) store: Options,
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
    /// The data of an etcd cannot be taken over.
    #[error("{0}")]
    Takeover(#[from] TakeoverError),
    /// Consensus cannot start.
    #[error("{0}")]
    Driver(#[from] raft_driver::DriverError),
    /// A snapshot that was received before the last stop cannot be installed.
    #[error("snapshot {file}: {source}")]
    Install {
        /// The bbolt file.
        file: String,
        /// Why.
        source: state::InstallError,
    },
    /// The other members were asked, and this one cannot be what its flags say.
    #[error("{0}")]
    Cluster(String),
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
    /// Members that are known before the state knows them: ID and peer URLs.
    pub(crate) remotes: Vec<(u64, Vec<String>)>,
    /// Keeps other processes out of the data directory.
    pub(crate) lock: Arc<dyn File>,
}

/// One append message to a follower, and how many may be on their way: together less than what may wait for a connection.
const MAX_MESSAGE_BYTES: u64 = 512 << 10;
const MAX_INFLIGHT: usize = 256;
/// See [`MAX_INFLIGHT`].
pub(crate) const MAX_QUEUED_BYTES: usize = 160 << 20;

/// How often a second process says that it waits for the first.
const LOCK_NOTICE: Duration = Duration::from_secs(10);

/// Opens or makes the data directory.
pub(crate) fn boot(
    disk: &Arc<dyn Disk>,
    neighbours: &dyn Neighbours,
    plan: &Plan,
    seed: u64,
) -> Result<Booted, BootError> {
    let member_dir = plan.data_dir.join("member");
    let snap_dir = member_dir.join("snap");
    let store_dir = member_dir.join("store");
    let unusable = |source| BootError::DataDir { path: plan.data_dir.clone(), source };
    let grown = growing(disk.as_ref(), &plan.data_dir).map_err(unusable)?;
    for dir in [&snap_dir, &store_dir] {
        disk.create_dir_all(dir).map_err(unusable)?;
    }
    let lock = lock(disk.as_ref(), &member_dir, &plan.data_dir)?;
    applier::remove_partial(disk.as_ref(), &snap_dir);
    let exists = Wal::exists(disk.as_ref(), &plan.wal_dir)
        .map_err(|source| BootError::DataDir { path: plan.wal_dir.clone(), source })?;
    let (store, mut writer, mut mark) = Store::open(Arc::clone(disk), &store_dir, plan.store.clone())?;
    tracing::info!(path = %store_dir.display(), "opened backend db");
    if exists && let Some(taken) = takeover::take_over(disk, &snap_dir, &plan.wal_dir, &mark, &mut writer)? {
        mark = taken.mark;
    }
    if !exists {
        // Durable all the way up: a log that is synced inside of it is lost all the same when a power cut takes one of the
        // directories above.
        for dir in [&member_dir, &plan.data_dir].into_iter().chain(&grown) {
            disk.sync_dir(dir).map_err(unusable)?;
        }
    }
    let founding = if exists { None } else { Some(found(plan, neighbours)?) };
    let config = state::Config {
        quota_bytes: plan.quota_bytes,
        heartbeat_ms: plan.heartbeat_ms,
        election_timeout_ms: plan.election_ms,
    };
    let (mut state, reader) = State::open(store, writer, &mark, config)?;
    if exists {
        install_received(disk, plan, &snap_dir, &mut state, &mut mark)?;
    }
    applier::remove_received(disk.as_ref(), &snap_dir, mark.index);
    tracing::info!("current-rev" = reader.revision(), "kvstore restored");
    let opened = match &founding {
        Some(founding) => create(disk, plan, &mark, founding)?,
        None => open(disk, plan, &mark)?,
    };
    let remotes = founding.map(|founding| founding.remotes).unwrap_or_default();
    let election_ticks = usize::try_from(plan.election_ms / plan.heartbeat_ms).unwrap_or(10);
    let driver = Driver::new(
        raft_driver::Config {
            id: opened.identity.node_id,
            election_ticks,
            heartbeat_ticks: 1,
            pre_vote: plan.pre_vote,
            max_message_bytes: MAX_MESSAGE_BYTES,
            max_inflight: MAX_INFLIGHT,
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
        remotes,
        lock,
    })
}

/// The directories in which new ones appear when this one is made with all that is missing above it.
fn growing(disk: &dyn Disk, dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut growing = Vec::new();
    for (dir, parent) in dir.ancestors().zip(dir.ancestors().skip(1)) {
        if disk.exists(dir)? {
            break;
        }
        // An empty path stands for the current directory.
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        growing.push(parent.to_path_buf());
    }
    Ok(growing)
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
    let (from, (mut wal, mut replay)) = match opened {
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
    if replay.entries.is_empty() && from.index == 0 && founds(plan, &replay.identity) {
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
    let mut conf_state = raftpb::ConfState::decode(mark.conf_state.clone())
        .map_err(|e| BootError::Mismatch(format!("the store's membership cannot be read ({e})")))?;
    if mark.index == 0 {
        conf_state = founders(&replay.entries);
    }
    if plan.force_new_cluster {
        force_new_cluster(&mut wal, &mut replay, mark, &conf_state)?;
    }
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

/// What a member without a log has found out before it makes one.
#[derive(Debug)]
struct Founding {
    identity: Identity,
    /// The other members, where they are.
    remotes: Vec<(u64, Vec<String>)>,
}

/// How long another member may take to say who is in the cluster: one that founds it, and one that is joined.
const ASK_FOUNDER: Duration = Duration::from_secs(1);
const ASK_MEMBER: Duration = Duration::from_secs(10);

/// Finds out who this member is: from the flags, and from the members that run already.
fn found(plan: &Plan, neighbours: &dyn Neighbours) -> Result<Founding, BootError> {
    let members = initial_members(plan)?;
    let own = members.iter().find(|m| m.name == plan.name).ok_or_else(|| {
        BootError::Cluster(format!("couldn't find local name {:?} in the initial cluster configuration", plan.name))
    })?;
    let others: Vec<&str> =
        members.iter().filter(|m| m.name != plan.name).flat_map(|m| &m.peer_urls).map(String::as_str).collect();
    if plan.joins {
        return join(&members, own, &others, neighbours);
    }
    for url in others {
        // One that does not answer may not be running yet.
        let Ok(known) = neighbours.members(url, ASK_FOUNDER) else { continue };
        if known.members.iter().any(|m| m.id == own.id && !m.client_urls.is_empty()) {
            return Err(BootError::Cluster(format!(
                "member {:x} has already been bootstrapped; if its data is lost, remove it with `etcdctl member remove {:x}`, \
                 add it again, and start it with --initial-cluster-state existing",
                own.id, own.id
            )));
        }
        break;
    }
    let ids: Vec<u64> = members.iter().map(|m| m.id).collect();
    let identity = Identity { node_id: own.id, cluster_id: members::cluster_id(&ids) };
    let remotes = members.into_iter().filter(|m| m.id != identity.node_id).map(|m| (m.id, m.peer_urls)).collect();
    Ok(Founding { identity, remotes })
}

/// Takes identity and company from a cluster that runs: the list of the flags must be its list.
fn join(
    listed: &[members::Member],
    own: &members::Member,
    others: &[&str],
    neighbours: &dyn Neighbours,
) -> Result<Founding, BootError> {
    let mut known = None;
    for url in others {
        match neighbours.members(url, ASK_MEMBER) {
            Ok(members) => {
                known = Some(members);
                break;
            }
            Err(error) => tracing::warn!(address = %url, %error, "failed to get cluster response"),
        }
    }
    let Some(known) = known else {
        return Err(BootError::Cluster(
            "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs; check that \
             a member of --initial-cluster runs and can be reached"
                .to_string(),
        ));
    };
    let invalid = |what: &str| {
        let urls: Vec<String> = known.members.iter().map(|m| format!("{:x}={:?}", m.id, m.peer_urls)).collect();
        BootError::Cluster(format!("error validating peerURLs {{{}}}: {what}", urls.join(" ")))
    };
    if known.members.len() != listed.len() {
        return Err(invalid("member count is unequal"));
    }
    let sorted = |urls: &[String]| {
        let mut urls = urls.to_vec();
        urls.sort_unstable();
        urls
    };
    let mut node_id = None;
    for member in listed {
        let matching = known.members.iter().find(|m| sorted(&m.peer_urls) == sorted(&member.peer_urls));
        let Some(matching) = matching else {
            return Err(invalid(&format!("PeerURLs: no match found for existing member ({:?})", member.peer_urls)));
        };
        if member.name == own.name {
            node_id = Some(matching.id);
        }
    }
    let node_id = node_id.ok_or_else(|| invalid("this member is not among them"))?;
    check_versions(&known, neighbours)?;
    let remotes = known.members.into_iter().filter(|m| m.id != node_id).map(|m| (m.id, m.peer_urls)).collect();
    Ok(Founding { identity: Identity { node_id, cluster_id: known.cluster_id }, remotes })
}

/// A cluster whose version is above ours uses what we do not know.
fn check_versions(known: &peer::Members, neighbours: &dyn Neighbours) -> Result<(), BootError> {
    for url in known.members.iter().filter(|m| !m.client_urls.is_empty()).flat_map(|m| &m.peer_urls) {
        let Ok(version) = neighbours.version(url, ASK_FOUNDER) else { continue };
        if versions::parse(&version.cluster) > versions::parse(crate::CLUSTER_VERSION) {
            return Err(BootError::Cluster(format!(
                "incompatible with current running cluster: its version is {}, and this is etcd {}",
                version.cluster,
                crate::ETCD_VERSION
            )));
        }
    }
    Ok(())
}

/// A new member: its log begins with the initial members, or, when it joins, with nothing.
fn create(disk: &Arc<dyn Disk>, plan: &Plan, mark: &Mark, founding: &Founding) -> Result<Opened, BootError> {
    let identity = founding.identity;
    let wal = Wal::create(Arc::clone(disk), &plan.wal_dir, identity)?;
    if plan.joins {
        return Ok(Opened { identity, wal, start: Start::default(), snapshot_index: 0 });
    }
    begin(plan, mark, wal, identity)
}

/// The founders of a cluster: the changes that its log begins with. They are committed by decree, and consensus knows them
/// from the start: a member that took the first of them for the only one would elect itself.
fn founders(entries: &[Entry]) -> raftpb::ConfState {
    let mut conf_state = raftpb::ConfState { auto_leave: Some(false), ..Default::default() };
    for entry in entries.iter().take_while(|e| e.kind == EntryKind::ConfChange && e.term == 1) {
        if let Ok(change) = raftpb::ConfChange::decode(entry.data.clone()) {
            conf_state = raft_driver::next_conf_state(&conf_state, &change);
        }
    }
    conf_state
}

/// Installs a snapshot that was received, and recorded in the log, before the last stop.
fn install_received(
    disk: &Arc<dyn Disk>,
    plan: &Plan,
    snap_dir: &Path,
    state: &mut State,
    mark: &mut Mark,
) -> Result<(), BootError> {
    let received: Vec<u64> = disk
        .list(snap_dir)
        .unwrap_or_default()
        .iter()
        .filter_map(|name| applier::received_index(name))
        .filter(|index| *index > mark.index)
        .collect();
    if received.is_empty() {
        return Ok(());
    }
    // Without a record in the log nothing was promised on the strength of it, and the leader will send another.
    let known = Wal::snapshots(disk.as_ref(), &plan.wal_dir)?;
    let Some(newest) = known.into_iter().rev().find(|m| received.contains(&m.index)) else { return Ok(()) };
    let path = snap_dir.join(applier::snapshot_file_name(newest.index));
    tracing::info!(path = %path.display(), "installing a snapshot that was received before the last stop");
    let failed = |source| BootError::Install { file: path.display().to_string(), source };
    let snap = wal::snap::load_newest_available(disk.as_ref(), snap_dir, std::slice::from_ref(&newest))
        .map_err(|e| BootError::Mismatch(e.to_string()))?
        .ok_or_else(|| BootError::Mismatch(format!("there is no .snap file for {}", path.display())))?;
    let installed = applier::install_file(disk.as_ref(), state, &path, &snap).map_err(failed)?;
    *mark = installed.mark;
    Ok(())
}

/// Makes this member the only one of its cluster: what is not committed is forgotten, everybody else is removed.
fn force_new_cluster(
    wal: &mut Wal,
    replay: &mut wal::Replay,
    mark: &Mark,
    conf_state: &raftpb::ConfState,
) -> Result<(), BootError> {
    let own = replay.identity.node_id;
    let commit = replay.hard_state.commit.max(mark.index);
    replay.entries.retain(|entry| entry.index <= commit);
    let mut members = conf_state.clone();
    for entry in replay.entries.iter().filter(|e| e.index > mark.index && e.kind == EntryKind::ConfChange) {
        if let Ok(change) = raftpb::ConfChange::decode(entry.data.clone()) {
            members = raft_driver::next_conf_state(&members, &change);
        }
    }
    tracing::warn!(
        "local-member-id" = %format!("{own:x}"),
        "commit-index" = commit,
        "forcing restart member: all other members are removed from the cluster, and what they alone know is lost"
    );
    let term = replay.hard_state.term;
    // It comes first where it is not a member yet (a copy made by `etcdctl backup`): no voter may be the last to go.
    let mut changes = Vec::new();
    if !members.voters.contains(&own) {
        let member =
            members::Member { id: own, peer_urls: vec!["http://localhost:2380".into()], ..members::Member::default() };
        changes.push(raftpb::ConfChange {
            r#type: Some(raftpb::ConfChangeType::ConfChangeAddNode as i32),
            node_id: Some(own),
            context: Some(members::add_context(&member).into()),
            ..Default::default()
        });
    }
    let others = members.voters.iter().chain(&members.learners).filter(|id| **id != own);
    changes.extend(others.map(|id| raftpb::ConfChange {
        r#type: Some(raftpb::ConfChangeType::ConfChangeRemoveNode as i32),
        node_id: Some(*id),
        ..Default::default()
    }));
    let entries: Vec<Entry> = changes
        .into_iter()
        .zip(commit + 1..)
        .map(|(change, index)| Entry { kind: EntryKind::ConfChange, term, index, data: change.encode_to_vec().into() })
        .collect();
    replay.hard_state.commit = commit + entries.len() as u64;
    // Synced here, and known to nobody else yet.
    let _synced = wal.append(&entries, Some(&replay.hard_state))?;
    replay.entries.extend(entries);
    Ok(())
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

/// Whether the log of this member belongs to the cluster that the flags describe, and was to begin it. One that has joined
/// a cluster gets its first entries from the others, whatever the flags say by now.
fn founds(plan: &Plan, identity: &Identity) -> bool {
    !plan.joins
        && initial_members(plan).is_ok_and(|members| {
            let ids: Vec<u64> = members.iter().map(|m| m.id).collect();
            ids.contains(&identity.node_id) && members::cluster_id(&ids) == identity.cluster_id
        })
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
    let members = initial_members(plan)?;
    if members.is_empty() {
        return Err(BootError::Mismatch(format!(
            "the write-ahead log in {} is empty, and the flags do not name the initial members",
            plan.wal_dir.display()
        )));
    }
    let entries: Vec<Entry> = members
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
    let conf_state = founders(&entries);
    Ok(Opened {
        identity,
        wal,
        start: Start { hard_state, conf_state, entries, ..Start::default() },
        snapshot_index: 0,
    })
}

#[cfg(test)]
mod tests {
    use disk::MemDisk;
    use disk::mem::Crash;

    use super::*;
    use crate::host::Network;

    fn plan() -> Plan {
        Plan {
            name: "n1".into(),
            data_dir: "/var/lib/etcd".into(),
            wal_dir: "/var/lib/etcd/member/wal".into(),
            initial_cluster: vec![("n1".into(), vec!["http://localhost:2380".into()])],
            token: "t".into(),
            joins: false,
            force_new_cluster: false,
            quota_bytes: 0,
            heartbeat_ms: 100,
            election_ms: 1_000,
            pre_vote: true,
            store: Options::default(),
        }
    }

    /// A member that has started remembers what it promised, whatever a power cut takes that is not synced: the
    /// directories above its log are part of that. Found by simulation.
    #[test]
    fn a_power_cut_after_the_first_start_leaves_the_data_directory_in_its_place() {
        let disk = MemDisk::new();
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let booted = boot(&shared, &Network::default(), &plan(), 1).expect("starts");
        let left: Arc<dyn Disk> = Arc::new(disk.crash(Crash::LoseUnsynced));
        let again = boot(&left, &Network::default(), &plan(), 2).expect("starts again");
        assert!(booted.fresh && !again.fresh, "the log is gone");
    }
}
