//! A member's whole life.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use api::{AuthOptions, Authenticator, HttpOptions};
use api::{Identity, Limits, Metrics};
use disk::{Disk, RealDisk, UnsyncedDisk};
use proto::membershippb;

use crate::applier::{self, Applier, Runner};
use crate::bootstrap::{self, BootError, Booted};
use crate::compactor::{Compactor, Retention};
use crate::config::{AutoCompaction, ClusterError, ClusterState, Config, ProxyMode, Url, texts};
use crate::consensus::{Consensus, Event, Ticks};
use crate::corruption::{self, Inconsistent};
use crate::discovery::{self, DiscoveryError};
use crate::dns_cluster;
use crate::downgrade;
use crate::drive::{self, Core};
use crate::host::{Network, System};
use crate::listen::{self, Purpose, Way, Workers};
use crate::log_writer::{self, LogJob};
use crate::member::{Node, Settings};
use crate::peers::{self, Link};
use crate::permissions;
use crate::proxy::{self, Proxy};
use crate::registry;
use crate::security::Security;
use crate::upkeep::{self, Upkeep};
use crate::versions;

/// Why a running member ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By a signal, of this number.
    Signal(i32),
}

/// Why a member could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its data directory.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Its `--initial-cluster`.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The members that found the cluster with it.
    #[error("failed to join discovery cluster ({0})")]
    Discovery(#[from] DiscoveryError),
    /// One of its addresses.
    #[error("cannot listen on {url}: {source} (is another etcd running there?)")]
    Listen {
        /// The URL.
        url: String,
        /// Why.
        source: io::Error,
    },
    /// Its certificates.
    #[error("{what}: {error}")]
    Tls {
        /// What could not be done.
        what: &'static str,
        /// Why.
        #[source]
        error: tls::TlsError,
    },
    /// Its data is not what the other members have.
    #[error(transparent)]
    Inconsistent(#[from] Inconsistent),
    /// The operating system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Its `--auth-token`.
    #[error(transparent)]
    Auth(#[from] api::AuthOptionsError),
    /// It was running and had to stop.
    #[error("{0}")]
    Failed(String),
}

/// Runs a member until it is told to stop. Logging must be set up before.
///
/// # Errors
/// When it cannot start, or its disk fails.
pub fn run(config: Config) -> Result<Exit, StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| StartError::System { what: "cannot start the runtime", source })?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, live(config))
}

/// The peer URLs to begin with, if this is to be a proxy and no member: what the data directory is used for counts more
/// than flags.
async fn peers_of_proxy(config: &Config) -> Result<Option<Vec<String>>, StartError> {
    let failed = |error: io::Error| StartError::Failed(format!("proxy: cannot read the cluster file: {error}"));
    let (is_member, is_proxy) = (config.is_initialized(), config.data_dir.join("proxy").is_dir());
    if is_member && is_proxy {
        return Err(StartError::Failed("invalid datadir. Both member and proxy directories exist.".into()));
    }
    if is_member || (!is_proxy && config.proxy.mode == ProxyMode::Off) {
        return Ok(None);
    }
    if let Some(known) = proxy::known(&config.data_dir).map_err(failed)? {
        tracing::info!(peers = ?known, "proxy: using peer urls from cluster file");
        return Ok(Some(known));
    }
    let members = if config.discovery.url.is_empty() {
        config.other_members()?
    } else {
        let place = discovery::Place::parse(&config.discovery.url, &config.discovery.proxy)?;
        let list = aside("discovery", move || place.founders()).await??;
        Config { initial_cluster: list, ..config.clone() }.other_members()?
    };
    Ok(Some(members.values().flat_map(|urls| texts(urls)).collect()))
}

/// Runs something that may take for ever on a thread of its own, which is nothing that the end of the process waits for.
async fn aside<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<T, StartError> {
    let (done, result) = tokio::sync::oneshot::channel();
    let spawned = std::thread::Builder::new().name(name.into()).spawn(move || {
        // Nobody listens any more once the process is told to stop.
        drop(done.send(work()));
    });
    spawned.map_err(|source| StartError::System { what: "cannot start a thread", source })?;
    result.await.map_err(|error| StartError::Failed(error.to_string()))
}

/// A proxy's whole life.
async fn live_as_proxy(config: &Config, peer_urls: Vec<String>, signals: &mut Signals) -> Result<Exit, StartError> {
    tracing::info!("proxy: this proxy supports v2 API only!");
    let dir = config.data_dir.join("proxy");
    let made = std::fs::create_dir_all(&dir).and_then(|()| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700))
    });
    made.map_err(|source| StartError::System { what: "cannot make the proxy's directory", source })?;
    tracing::info!(peers = ?peer_urls, "proxy: using peer urls");
    let security = Security::of(config)?;
    let listeners = security.bind_proxy(config)?;
    tracing::info!(urls = ?texts(&config.listen_client_urls), "v2 proxy started listening on client requests");
    let proxy = Proxy::new(config, &security, peer_urls)
        .map_err(|error| StartError::Tls { what: "cannot use the TLS settings", error })?;
    tokio::select! {
        () = proxy.ask() => {}
        signal = signals.next() => return Ok(Exit::Signal(signal)),
    }
    tokio::task::spawn_local(Arc::clone(&proxy).keep_asking());
    for listener in listeners {
        tokio::task::spawn_local(Arc::clone(&proxy).accept(listener));
    }
    crate::notify::ready();
    Ok(Exit::Signal(signals.next().await))
}

/// Name and peer URLs of every initial member: from the flags, or from the discovery service that they name.
async fn founders(config: &Config) -> Result<BTreeMap<String, Vec<Url>>, StartError> {
    if !config.discovery.srv.is_empty() && !config.is_initialized() {
        let asking = config.clone();
        let list = aside("discovery", move || dns_cluster::founders(&asking, &srv::look_up, &resolve)).await?;
        let list = list.map_err(StartError::Failed)?;
        return Ok(Config { initial_cluster: list, ..config.clone() }.initial_members()?);
    }
    if !config.discovery.token.is_empty() && !config.is_initialized() {
        let (id, pairs) = registration(config);
        let list = registry::join(&config.discovery, id, &pairs).await?;
        return Ok(Config { initial_cluster: list, ..config.clone() }.initial_members()?);
    }
    if config.discovery.url.is_empty() || config.is_initialized() {
        return Ok(config.initial_members()?);
    }
    let place = discovery::Place::parse(&config.discovery.url, &config.discovery.proxy)?;
    let (id, pairs) = registration(config);
    let list = aside("discovery", move || place.join(id, &pairs)).await??;
    Ok(Config { initial_cluster: list, ..config.clone() }.initial_members()?)
}

/// What this member tells where members find each other: its ID, and `name=url` for each of its URLs.
fn registration(config: &Config) -> (u64, String) {
    let urls = texts(&config.advertise_peer_urls);
    let pairs: Vec<String> = urls.iter().map(|url| format!("{}={url}", config.name)).collect();
    (state::members::member_id(&urls, config.cluster_token()), pairs.join(","))
}

/// The address that `host:port` stands for; IPv4 where there is a choice.
pub(crate) fn resolve(address: &str) -> io::Result<SocketAddr> {
    let addresses = address.to_socket_addrs()?;
    addresses.min_by_key(SocketAddr::is_ipv6).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

/// The disk. Without syncs nothing that is promised is kept, so whoever asks for that is told.
fn disk(config: &Config) -> Arc<dyn Disk> {
    if !config.unsafe_no_fsync {
        return Arc::new(RealDisk);
    }
    tracing::warn!(
        "--unsafe-no-fsync: nothing is synced to disk; when this machine loses power, acknowledged writes are lost and the \
         data may be damaged beyond repair. Never use this for data that matters"
    );
    Arc::new(UnsyncedDisk)
}

async fn live(config: Config) -> Result<Exit, StartError> {
    let mut signals = Signals::new().map_err(|source| StartError::System { what: "cannot handle signals", source })?;
    let peers = tokio::select! {
        peers = peers_of_proxy(&config) => peers?,
        signal = signals.next() => return Ok(Exit::Signal(signal)),
    };
    if let Some(peers) = peers {
        return live_as_proxy(&config, peers, &mut signals).await;
    }
    let security = Security::of(&config)?;
    let for_peers = security.bind_peers(&config)?;
    let bound = security.bind_clients(&config)?;
    let (member_dir, wal_dir) = (config.member_dir(), config.wal_dir());
    permissions::check(&[&config.data_dir, &member_dir, &member_dir.join("snap"), &wal_dir]);
    let disk = disk(&config);
    let auth = Arc::new(Authenticator::new(&AuthOptions {
        token: config.auth_token.clone(),
        token_ttl: Duration::from_secs(config.auth_token_ttl_s),
        // Looked at when the configuration was.
        bcrypt_cost: u32::try_from(config.bcrypt_cost).unwrap_or(u32::MAX),
    })?);
    let founders = tokio::select! {
        founders = founders(&config) => founders,
        signal = signals.next() => return Ok(Exit::Signal(signal)),
    };
    if matches!(founders, Err(StartError::Discovery(DiscoveryError::Full))) && config.discovery.falls_back {
        tracing::info!("discovery cluster full, falling back to proxy");
        // The addresses are bound anew, for the proxy.
        drop((for_peers, bound));
        let mut config = config;
        config.proxy.mode = ProxyMode::On;
        let peers = tokio::select! {
            peers = peers_of_proxy(&config) => peers?,
            signal = signals.next() => return Ok(Exit::Signal(signal)),
        };
        return live_as_proxy(&config, peers.unwrap_or_default(), &mut signals).await;
    }
    let founders = founders?;
    let plan = bootstrap::Plan {
        name: config.name.clone(),
        data_dir: config.data_dir.clone(),
        wal_dir: config.wal_dir(),
        initial_cluster: founders.into_iter().map(|(name, urls)| (name, texts(&urls))).collect(),
        token: config.cluster_token().to_owned(),
        joins: config.initial_cluster_state == ClusterState::Existing,
        force_new_cluster: config.force_new_cluster,
        quota_bytes: config.quota_backend_bytes,
        heartbeat_ms: config.heartbeat_ms,
        election_ms: config.election_ms,
        pre_vote: config.pre_vote,
        store: store::Options::default(),
    };
    let seed = rand::random();
    let booting = tokio::task::spawn_blocking({
        let (disk, network) = (Arc::clone(&disk), Network(security.dialer.clone()));
        move || bootstrap::boot(&disk, &network, &plan, seed)
    });
    let booted = tokio::select! {
        booted = booting => booted.map_err(|e| StartError::Failed(e.to_string()))??,
        signal = signals.next() => return Ok(Exit::Signal(signal)),
    };
    let metrics = Metrics::new(config.extensive_metrics);
    let for_peers = (for_peers, security.dialer);
    let starting = start(&config, disk, Arc::clone(&metrics), booted, for_peers, seed, auth.token_ttl_ms());
    let Started { node, transport, mut threads, lock } = tokio::select! {
        started = starting => started?,
        signal = signals.next() => return Ok(Exit::Signal(signal)),
    };

    tokio::task::spawn_local(reload_keys(Arc::clone(&auth)));
    let (close, closing) = tokio::sync::watch::channel(false);
    let shared = Arc::new(api::Shared {
        member: Arc::clone(&node) as Arc<dyn api::Member>,
        metrics,
        auth: Arc::clone(&auth),
        http: HttpOptions {
            cors: config.cors.clone(),
            host_whitelist: config.host_whitelist.clone(),
            v2: config.enable_v2,
            gateway: config.enable_grpc_gateway,
            ..HttpOptions::default()
        },
        closing,
    });
    let workers =
        Workers::start(&shared).map_err(|source| StartError::System { what: "cannot start a worker", source })?;
    let workers = Rc::new(tokio::sync::Mutex::new(workers));
    let mut acceptors = Vec::new();
    let mut clients = Vec::new();
    for bound in bound {
        if bound.purpose != Purpose::Metrics {
            clients.push(bound);
        } else {
            acceptors.push(tokio::task::spawn_local(listen::accept(bound, Rc::clone(&workers))));
        }
    }

    let ready = wait_on_thread(&node, Node::wait_ready);
    let (ready, stopped) = tokio::select! {
        ready = ready => (ready, None),
        signal = signals.next() => (None, Some(signal)),
    };
    let signal = if ready == Some(true) {
        tracing::info!("ready to serve client requests");
        for bound in clients {
            let (traffic, address) = (bound.purpose.traffic(), bound.address());
            if !matches!(bound.way, Way::Secure(_)) {
                tracing::info!(traffic, address, "serving client traffic insecurely; this is strongly discouraged!");
            }
            if !matches!(bound.way, Way::Plain) {
                tracing::info!(traffic, address, "serving client traffic securely");
            }
            acceptors.push(tokio::task::spawn_local(listen::accept(bound, Rc::clone(&workers))));
        }
        crate::notify::ready();
        let failed = wait_on_thread(&node, Node::wait_stopped);
        tokio::select! {
            signal = signals.next() => Some(signal),
            _ = failed => None,
        }
    } else {
        stopped
    };
    if let Some(signal) = signal {
        tracing::info!(signal = signal_name(signal), "received signal; shutting down");
    }
    hand_over(&node).await;
    tracing::info!(name = config.name.as_str(), "data-dir" = %config.data_dir.display(), "closing etcd server");
    for acceptor in acceptors {
        acceptor.abort();
    }
    // Clients first: they are told that the server stops while their answers can still be sent.
    node.stop();
    close.send_replace(true);
    let joined = tokio::task::spawn_blocking(move || {
        let failure = |node: &Node| node.failure();
        transport.stop();
        for thread in threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the member panicked");
            }
        }
        // The data directory is another process's from here on.
        drop(lock);
        failure(&node)
    });
    let failure = joined.await.unwrap_or_else(|e| Some(e.to_string()));
    if let Ok(workers) = Rc::try_unwrap(workers) {
        workers.into_inner().join();
    }
    if let Some(reason) = failure {
        return Err(StartError::Failed(reason));
    }
    tracing::info!(name = config.name.as_str(), "data-dir" = %config.data_dir.display(), "closed etcd server");
    Ok(Exit::Signal(signal.unwrap_or(0)))
}

/// Key files are looked at this often.
const RELOAD: Duration = Duration::from_secs(1);

/// Follows the key files of signed tokens.
async fn reload_keys(auth: Arc<Authenticator>) {
    loop {
        tokio::time::sleep(RELOAD).await;
        auth.reload_keys();
    }
}

/// A leader that stops hands over first: a cluster whose leader just goes is without one for a moment.
async fn hand_over(node: &Arc<Node>) {
    if !node.is_leader() || node.failed() || node.state_members() < 2 {
        return;
    }
    let patience = Duration::from_millis(node.settings.limits.election_timeout_ms);
    let asked = peers::ask(|reply| node.tell(Event::HandOver(reply)));
    match tokio::time::timeout(patience, asked).await {
        Ok(Ok(_)) => tracing::info!("leadership transfer finished"),
        Ok(Err(error)) => tracing::warn!(%error, "failed to transfer leadership"),
        Err(_) => tracing::warn!("leadership transfer took too long; stopping without it"),
    }
}

/// Runs a blocking wait on a thread of its own and resolves when it is over.
async fn wait_on_thread<T: Send + 'static>(node: &Arc<Node>, wait: fn(&Node) -> T) -> Option<T> {
    let (done, over) = tokio::sync::oneshot::channel();
    let node = Arc::clone(node);
    let spawned = std::thread::Builder::new().name("wait".into()).spawn(move || {
        // Nobody listens any more when a signal came first.
        let _nobody_waits = done.send(wait(&node));
    });
    spawned.ok()?;
    // An error means that the thread is gone, and with it what it waited for.
    over.await.ok()
}

/// What a thread of the member does.
type ThreadBody = Box<dyn FnOnce(&Arc<Node>) + Send>;

/// A member at work.
struct Started {
    node: Arc<Node>,
    transport: peer::Transport,
    threads: Vec<JoinHandle<()>>,
    /// Held as long as any of the threads may touch the data directory.
    lock: Arc<dyn disk::File>,
}

/// Starts the member's threads.
async fn start(
    config: &Config,
    disk: Arc<dyn Disk>,
    metrics: Arc<Metrics>,
    booted: Booted,
    (peer_listeners, dialer): (Vec<peer::Listener>, peer::Dialer),
    seed: u64,
    token_ttl_ms: u64,
) -> Result<Started, StartError> {
    let Booted { identity, wal, driver, state, reader, mark, conf_state, snapshot_index, fresh, remotes, lock } =
        booted;
    let quota_bytes = reader.quota_bytes();
    let settings = Settings {
        limits: Limits {
            max_request_bytes: usize::try_from(config.max_request_bytes).unwrap_or(usize::MAX),
            max_txn_ops: usize::try_from(config.max_txn_ops).unwrap_or(usize::MAX),
            max_concurrent_streams: config.max_concurrent_streams,
            request_timeout_ms: 5_000 + 2 * config.election_ms,
            election_timeout_ms: config.election_ms,
            watch_progress_interval_ms: millis(config.watch_progress_notify_interval),
            keepalive_interval_ms: millis(config.grpc_keepalive_interval),
            keepalive_timeout_ms: millis(config.grpc_keepalive_timeout),
            warning_apply: config.warning_apply_duration,
            warning_unary_request: config.warning_unary_request_duration,
        },
        attributes: membershippb::Attributes {
            name: config.name.clone(),
            client_urls: texts(&config.advertise_client_urls),
        },
        data_dir: config.data_dir.clone(),
        snap_dir: config.data_dir.join("member").join("snap"),
        strict_reconfig_check: config.strict_reconfig_check,
        checkpoints_leases: config.features.lease_checkpoint,
        max_wals: usize::try_from(config.max_wals).unwrap_or(usize::MAX),
        max_snapshots: usize::try_from(config.max_snapshots).unwrap_or(usize::MAX),
        token_ttl_ms,
        snapshot_catchup_entries: config.snapshot_catchup_entries,
        tick: Duration::from_millis(config.heartbeat_ms),
        quota_bytes,
        dialer: dialer.clone(),
    };
    let identity = Identity { cluster_id: identity.cluster_id, member_id: identity.node_id };
    let ticks = |ms: u64| (ms / config.heartbeat_ms).max(1);
    let limits = Ticks {
        retry: ticks(500),
        election: ticks(config.election_ms),
        timeout: ticks(settings.limits.request_timeout_ms),
    };
    let consensus = Consensus::new(driver, limits, seed);
    let applier =
        Applier::new(state, reader.clone(), mark.index, conf_state.clone(), snapshot_index, config.snapshot_count);
    let node = Arc::new_cyclic(|this| {
        Node::new(
            this,
            settings,
            Arc::new(System::of_this_thread()),
            disk,
            metrics,
            identity,
            reader.clone(),
            mark.index,
            conf_state,
            Core::new(consensus),
            Runner::new(applier),
        )
    });
    let hex = |id: u64| format!("{id:x}");
    tracing::info!(
        "local-member-id" = %hex(identity.member_id),
        "cluster-id" = %hex(identity.cluster_id),
        "{}",
        if fresh { "starting local member" } else { "restarting local member" }
    );
    tracing::info!(
        "local-member-id" = %hex(identity.member_id),
        "local-server-version" = crate::ETCD_VERSION,
        "cluster-id" = %hex(identity.cluster_id),
        "cluster-version" = %reader.cluster_version().unwrap_or_else(|| "to_be_decided".into()),
        "starting etcd server"
    );
    let retention = match config.auto_compaction {
        AutoCompaction::Off => None,
        AutoCompaction::Periodic(retention) => Some(Retention::Time(retention)),
        AutoCompaction::Revision(keep) => Some(Retention::Revisions(keep)),
    };
    let upkeep = Upkeep::new(retention.map(Compactor::new));

    let mut peer_config = peer::Config::new(
        identity.cluster_id,
        identity.member_id,
        texts(&config.advertise_peer_urls),
        crate::ETCD_VERSION,
    );
    peer_config.dialer = dialer;
    peer_config.max_queued_bytes = bootstrap::MAX_QUEUED_BYTES;
    let link = Arc::new(Link(Arc::clone(&node)));
    let transport = peer::Transport::start(peer_config, peer_listeners, link)
        .map_err(|source| StartError::System { what: "cannot start the peer thread", source })?;
    for (id, urls) in remotes {
        transport.add_remote(id, urls);
    }
    for member in reader.members().into_iter().filter(|m| m.id != identity.member_id) {
        tracing::info!(
            "remote-peer-id" = %hex(member.id),
            "remote-peer-urls" = ?member.peer_urls,
            "starting remote peer"
        );
        transport.add_peer(member.id, member.peer_urls);
    }
    // Set here and nowhere else.
    let _first = node.peers.set(Arc::new(transport.clone()));
    // A member that has no data yet has nothing to compare.
    if config.features.initial_corrupt_check && !fresh {
        corruption::check_initially(&node).await?;
    }
    node.held_back.store(false, Ordering::Release);
    tokio::spawn(versions::watch(Arc::clone(&node)));
    tokio::spawn(downgrade::watch(Arc::clone(&node), config.downgrade_check_time));
    let schedule = corruption::Schedule {
        every: Some(config.corrupt_check_time).filter(|every| !every.is_zero()),
        after_compaction: config.features.compact_hash_check.then_some(config.compact_hash_check_time),
    };
    tokio::spawn(corruption::watch(Arc::clone(&node), schedule));
    for (name, stage, is_on) in config.features.list() {
        node.metrics.feature_enabled.with_label_values(&[name, stage]).set(i64::from(is_on));
    }

    let mut threads = Vec::new();
    let mut spawn = |name: &str, body: ThreadBody| {
        let node = Arc::clone(&node);
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || body(&node))
            .map_err(|source| StartError::System { what: "cannot start a thread", source })?;
        threads.push(thread);
        Ok::<(), StartError>(())
    };
    spawn("raft", Box::new(drive::run_consensus))?;
    spawn("log", Box::new(move |node| log_writer::run(node, wal)))?;
    spawn(
        "apply",
        Box::new(move |node| {
            applier::run(node);
            node.upkeep_queue.close();
            node.spare_queue.close();
            node.waiters.stop();
        }),
    )?;
    spawn("upkeep", Box::new(move |node| upkeep::run(node, upkeep)))?;
    spawn("spare", Box::new(zero_ahead))?;
    Ok(Started { node, transport, threads, lock })
}

/// The thread that writes the zeros of the log's next segment.
fn zero_ahead(node: &Arc<Node>) {
    let mut jobs = VecDeque::new();
    while node.spare_queue.take_all(&mut jobs, None) {
        for prepare in jobs.drain(..) {
            match prepare.run() {
                Ok(prepared) => node.log_queue.push(LogJob::Prepared(prepared)),
                // The log makes the segment itself when it needs one, and reports what is wrong then.
                Err(error) => tracing::warn!(error = %error, "cannot prepare the next log segment"),
            }
        }
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => 15,
            _ = self.interrupt.recv() => 2,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn signal_name(signal: i32) -> &'static str {
    if signal == 2 { "interrupt" } else { "terminated" }
}
