//! What an operator asks for: flags, environment and config file in, a checked [`Config`] out.
//!
//! Start reading at [`load`]. The table of all flags is in [`flags`]; the defaults are in [`Config`].
//!
//! # Invariants
//! - Texts, precedence and exit codes are etcd's: a flag beats the environment, the environment beats the default, a
//!   config file beats them all, and the same setting in flag *and* environment is an error.
//! - Nothing here reads a clock, opens a socket or writes a line: what is worth a line is handed back as [`Notice`]s.
//! - A [`Config`] has passed every check that needs no network and no data directory.

mod argv;
mod check;
mod cluster;
pub mod duration;
mod file;
pub mod flags;
mod gates;
mod help;
mod notice;
mod start;
mod url;

pub use check::{ConfigError, Stage};
pub use cluster::ClusterError;
pub use gates::FeatureGates;
pub use help::{USAGE, architecture, help, version};
pub use notice::Notice;
pub use start::Unsupported;
pub use url::{Scheme, Url, UrlError, texts};

use crate::logging::LogConfig;
use flags::Typed;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name of a member that was given none.
pub const DEFAULT_NAME: &str = "default";
/// `--initial-cluster` when nothing is typed.
pub(crate) const DEFAULT_INITIAL_CLUSTER: &str = "default=http://localhost:2380";
/// `--quota-backend-bytes=0` means this: 2 GiB.
pub const DEFAULT_QUOTA_BYTES: u64 = 2 << 30;

/// Declares a struct whose fields carry their defaults, so that each setting is described in one place.
macro_rules! settings {
    ($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$field_meta:meta])* $field:ident: $type:ty = $default:expr,)*
    }) => {
        $(#[$meta])*
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                $name { $($field: $default,)* }
            }
        }
    };
}

settings! {
    /// Everything that can be set, under the flags' names. The default is what `etcd` without arguments runs with.
    #[derive(Debug, Clone, PartialEq)]
    pub struct Config {
        // --- member ---
        /// `--name`.
        name: String = DEFAULT_NAME.into(),
        /// `--data-dir`; `NAME.etcd` when not given.
        data_dir: PathBuf = PathBuf::new(),
        /// `--wal-dir`; inside the data directory when none.
        wal_dir: Option<PathBuf> = None,
        /// `--snapshot-count`: applied entries between snapshots.
        snapshot_count: u64 = 10_000,
        /// `--snapshot-catchup-entries`: entries kept in memory behind a snapshot.
        snapshot_catchup_entries: u64 = 5_000,
        /// `--heartbeat-interval`, in milliseconds: the length of a raft tick.
        heartbeat_ms: u64 = 100,
        /// `--election-timeout`, in milliseconds.
        election_ms: u64 = 1_000,
        /// `--initial-election-tick-advance`.
        initial_election_tick_advance: bool = true,
        /// `--listen-peer-urls`.
        listen_peer_urls: Vec<Url> = urls("http://localhost:2380"),
        /// `--listen-client-urls`.
        listen_client_urls: Vec<Url> = urls("http://localhost:2379"),
        /// `--listen-client-http-urls`: HTTP without gRPC; if any, the other client listeners serve gRPC only.
        listen_client_http_urls: Vec<Url> = Vec::new(),
        /// `--max-snapshots`: `.snap` files kept, 0 = all.
        max_snapshots: u64 = 5,
        /// `--max-wals`: WAL files kept, 0 = all.
        max_wals: u64 = 5,
        /// `--quota-backend-bytes` as typed: 0 = default, negative = none. See [`Config::quota_bytes`].
        quota_backend_bytes: i64 = 0,
        /// `--max-txn-ops`.
        max_txn_ops: u64 = 128,
        /// `--max-request-bytes`.
        max_request_bytes: u64 = 1_572_864,
        /// `--max-concurrent-streams`: HTTP/2 streams per connection.
        max_concurrent_streams: u32 = u32::MAX,
        /// `--grpc-keepalive-min-time`: clients that ping more often are cut off.
        grpc_keepalive_min_time: Duration = Duration::from_secs(5),
        /// `--grpc-keepalive-interval`: the server pings so often, 0 = never.
        grpc_keepalive_interval: Duration = Duration::from_secs(7_200),
        /// `--grpc-keepalive-timeout`: how long a ping may stay unanswered, 0 = for ever.
        grpc_keepalive_timeout: Duration = Duration::from_secs(20),
        /// `--raft-read-timeout`: on peer connections.
        raft_read_timeout: Duration = Duration::from_secs(5),
        /// `--raft-write-timeout`: on peer connections.
        raft_write_timeout: Duration = Duration::from_secs(5),
        /// `--socket-reuse-port`.
        socket_reuse_port: bool = false,
        /// `--socket-reuse-address`.
        socket_reuse_address: bool = false,
        /// `--compaction-batch-limit`, 0 = our own choice.
        compaction_batch_limit: i64 = 0,
        /// `--compaction-sleep-interval`, 0 = our own choice.
        compaction_sleep_interval: Duration = Duration::ZERO,
        /// `--max-learners`.
        max_learners: i64 = 1,
        // --- cluster ---
        /// `--initial-advertise-peer-urls`.
        advertise_peer_urls: Vec<Url> = urls("http://localhost:2380"),
        /// `--advertise-client-urls`.
        advertise_client_urls: Vec<Url> = urls("http://localhost:2379"),
        /// `--initial-cluster` as typed; [`Config::initial_members`] reads it.
        initial_cluster: String = DEFAULT_INITIAL_CLUSTER.into(),
        /// `--initial-cluster-state`.
        initial_cluster_state: ClusterState = ClusterState::New,
        /// `--initial-cluster-token`.
        initial_cluster_token: String = "etcd-cluster".into(),
        /// `--strict-reconfig-check`.
        strict_reconfig_check: bool = true,
        /// `--pre-vote`.
        pre_vote: bool = true,
        /// `--auto-compaction-mode` and `--auto-compaction-retention`.
        auto_compaction: AutoCompaction = AutoCompaction::Off,
        /// `--discovery*`.
        discovery: Discovery = Discovery::default(),
        /// `--proxy*`.
        proxy: Proxy = Proxy::default(),
        /// `--enable-v2`. Off in etcd 3.4 and 3.5, gone since; on here, because its data and clients still exist.
        enable_v2: bool = true,
        /// `--downgrade-check-time`.
        downgrade_check_time: Duration = Duration::from_secs(5),
        // --- security ---
        /// `--cert-file` and so on.
        client_tls: Tls = Tls::default(),
        /// `--peer-cert-file` and so on.
        peer_tls: Tls = Tls::default(),
        /// `--cipher-suites`: Go's names; empty = our own choice.
        cipher_suites: Vec<String> = Vec::new(),
        /// `--tls-min-version`.
        tls_min_version: TlsVersion = TlsVersion::Tls12,
        /// `--tls-max-version`.
        tls_max_version: TlsVersion = TlsVersion::Tls13,
        /// `--self-signed-cert-validity`, in years.
        self_signed_cert_validity_years: u64 = 1,
        /// `--cors`: origins, `*` = all.
        cors: Vec<String> = vec!["*".into()],
        /// `--host-whitelist`: Host headers accepted over plain HTTP, `*` = all.
        host_whitelist: Vec<String> = vec!["*".into()],
        /// `--auth-token`.
        auth_token: String = "simple".into(),
        /// `--auth-token-ttl`, in seconds.
        auth_token_ttl_s: u64 = 300,
        /// `--bcrypt-cost`.
        bcrypt_cost: u64 = 10,
        // --- watching the member ---
        /// `--enable-pprof`.
        enable_pprof: bool = false,
        /// `--metrics=extensive`: histograms of gRPC handling times.
        extensive_metrics: bool = false,
        /// `--listen-metrics-urls`.
        listen_metrics_urls: Vec<Url> = Vec::new(),
        /// `--warning-apply-duration`.
        warning_apply_duration: Duration = Duration::from_millis(100),
        /// `--warning-unary-request-duration`.
        warning_unary_request_duration: Duration = Duration::from_millis(300),
        /// `--watch-progress-notify-interval`.
        watch_progress_notify_interval: Duration = Duration::from_secs(600),
        /// `--corrupt-check-time`, 0 = off. Off in etcd; what is done about its cost is in [`crate::corruption`].
        corrupt_check_time: Duration = Duration::from_secs(3600),
        /// `--compact-hash-check-time`.
        compact_hash_check_time: Duration = Duration::from_secs(60),
        /// `--log-*`.
        log: LogConfig = LogConfig::default(),
        /// `--*distributed-tracing*`.
        tracing: DistributedTracing = DistributedTracing::default(),
        // --- the rest ---
        /// `--enable-grpc-gateway`: the JSON API under `/v3`.
        enable_grpc_gateway: bool = true,
        /// `--memory-mlock`.
        memory_mlock: bool = false,
        /// `--feature-gates`.
        features: FeatureGates = FeatureGates::default(),
        /// `--force-new-cluster`.
        force_new_cluster: bool = false,
        /// `--unsafe-no-fsync`.
        unsafe_no_fsync: bool = false,
    }
}

settings! {
    /// TLS of one kind of listener, and of connections to it.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Tls {
        /// Certificate shown to who connects.
        cert_file: String = String::new(),
        /// Its key.
        key_file: String = String::new(),
        /// Certificate shown when connecting; `cert_file` when empty.
        client_cert_file: String = String::new(),
        /// Its key.
        client_key_file: String = String::new(),
        /// Ask for a certificate and verify it.
        client_cert_auth: bool = false,
        /// Who may sign certificates.
        trusted_ca_file: String = String::new(),
        /// Revoked certificates.
        crl_file: String = String::new(),
        /// Make a certificate at start.
        auto: bool = false,
        /// Common names that are let in; empty = all.
        allowed_cns: Vec<String> = Vec::new(),
        /// Names in the certificate that are let in; empty = all.
        allowed_hostnames: Vec<String> = Vec::new(),
        /// Do not compare a client certificate's names with where it comes from.
        skip_client_san_verification: bool = false,
    }
}

settings! {
    /// How a new member finds the others, other than by `--initial-cluster`.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Discovery {
        /// `--discovery`: a v2 discovery URL.
        url: String = String::new(),
        /// `--discovery-proxy`.
        proxy: String = String::new(),
        /// `--discovery-fallback`: becomes a proxy if the cluster has its members.
        falls_back: bool = false,
        /// `--discovery-srv`.
        srv: String = String::new(),
        /// `--discovery-srv-name`.
        srv_name: String = String::new(),
        /// `--discovery-token`.
        token: String = String::new(),
        /// `--discovery-endpoints`.
        endpoints: Vec<String> = Vec::new(),
        /// `--discovery-dial-timeout`.
        dial_timeout: Duration = Duration::from_secs(2),
        /// `--discovery-request-timeout`.
        request_timeout: Duration = Duration::from_secs(5),
        /// `--discovery-keepalive-time`.
        keepalive_time: Duration = Duration::from_secs(2),
        /// `--discovery-keepalive-timeout`.
        keepalive_timeout: Duration = Duration::from_secs(6),
        /// `--discovery-insecure-transport`.
        insecure_transport: bool = true,
        /// `--discovery-insecure-skip-tls-verify`.
        insecure_skip_tls_verify: bool = false,
        /// `--discovery-cert`.
        cert_file: String = String::new(),
        /// `--discovery-key`.
        key_file: String = String::new(),
        /// `--discovery-cacert`.
        ca_file: String = String::new(),
        /// `--discovery-user`.
        user: String = String::new(),
        /// `--discovery-password`.
        password: String = String::new(),
    }
}

/// Whether this is a member, or a proxy of the v2 API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyMode {
    /// A member.
    Off,
    /// A proxy that passes reads on, and nothing else.
    Readonly,
    /// A proxy.
    On,
}

settings! {
    /// A proxy of the v2 API.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Proxy {
        /// `--proxy`.
        mode: ProxyMode = ProxyMode::Off,
        /// `--proxy-failure-wait`: for so long an endpoint that did not answer is not asked.
        failure_wait_ms: u64 = 5_000,
        /// `--proxy-refresh-interval`: how often the members are asked who they are.
        refresh_interval_ms: u64 = 30_000,
        /// `--proxy-dial-timeout`, 0 = none.
        dial_timeout_ms: u64 = 1_000,
        /// `--proxy-write-timeout`, 0 = none.
        write_timeout_ms: u64 = 5_000,
        /// `--proxy-read-timeout`: for the beginning of an answer; 0 = none.
        read_timeout_ms: u64 = 0,
    }
}

settings! {
    /// Where traces go.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct DistributedTracing {
        /// `--enable-distributed-tracing`.
        enabled: bool = false,
        /// `--distributed-tracing-address`.
        address: String = "localhost:4317".into(),
        /// `--distributed-tracing-service-name`.
        service_name: String = "etcd".into(),
        /// `--distributed-tracing-instance-id`.
        instance_id: String = String::new(),
        /// `--distributed-tracing-sampling-rate`: of a million requests.
        sampling_rate_per_million: i64 = 0,
    }
}

/// Whether the member founds a cluster or joins one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    /// It is among the first.
    New,
    /// It has been added to a cluster that runs.
    Existing,
}

/// What is compacted without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Nothing.
    Off,
    /// What is older than this.
    Periodic(Duration),
    /// All but this many revisions.
    Revision(i64),
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2
    Tls12,
    /// 1.3
    Tls13,
}

impl Config {
    /// The bound on live bytes; none if `--quota-backend-bytes` is negative.
    pub fn quota_bytes(&self) -> Option<u64> {
        match self.quota_backend_bytes {
            0 => Some(DEFAULT_QUOTA_BYTES),
            quota => u64::try_from(quota).ok(),
        }
    }

    /// Where the write-ahead log is.
    pub fn wal_dir(&self) -> PathBuf {
        self.wal_dir.clone().unwrap_or_else(|| self.member_dir().join("wal"))
    }

    /// The directory with everything that belongs to the member.
    pub fn member_dir(&self) -> PathBuf {
        self.data_dir.join("member")
    }
}

fn urls(text: &str) -> Vec<Url> {
    Url::parse_list(text).expect("the default URLs are well-formed")
}

/// What [`load`] may look at outside of itself; tests hand in their own.
pub struct Surroundings<'a> {
    /// The environment.
    pub environment: BTreeMap<String, String>,
    /// Reads a file as text.
    pub read_file: &'a dyn Fn(&Path) -> std::io::Result<String>,
    /// This host's address on the way to others, for the advertised URLs of a member that listens everywhere.
    pub default_host: &'a dyn Fn() -> std::io::Result<IpAddr>,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Wish {
    /// Run a member.
    Run(Box<Config>),
    /// Print the version.
    Version,
    /// Print the help.
    Help,
    /// Nothing: the command line cannot be understood. The text goes to stderr before the usage; exit code 2.
    Usage(String),
    /// Nothing: what is asked for does not work.
    Fail(ConfigError),
}

/// The outcome of [`load`].
#[derive(Debug)]
pub struct Loaded {
    /// How to log whatever comes next, be it the failure.
    pub log: LogConfig,
    /// What to log first, in this order.
    pub notices: Vec<Notice>,
    /// What to do.
    pub wish: Wish,
}

/// Reads the command line (the program's name first), the environment and the config file.
pub fn load(command: &[String], around: &Surroundings<'_>) -> Loaded {
    let mut loading = Loading { typed: Typed::default(), notices: Vec::new(), before_check: None };
    let arguments = command.get(1..).unwrap_or_default();
    let wish = loading.wish(arguments, around).unwrap_or_else(Wish::Fail);
    let tells_arguments = match &wish {
        Wish::Run(_) => true,
        Wish::Fail(error) => matches!(error.stage(), Stage::Verify | Stage::Start),
        _ => false,
    };
    if tells_arguments {
        // What was found out while reading comes before this line, what was found out while checking after it.
        let at = loading.before_check.unwrap_or(loading.notices.len());
        loading.notices.insert(at, Notice::Running(command.to_vec()));
    }
    let log = match &wish {
        Wish::Run(config) => config.log.clone(),
        // Before the flags have been checked, etcd logs with its defaults.
        Wish::Fail(error) if error.precedes_logging() => LogConfig::default(),
        _ => loading.typed.config.log.clone(),
    };
    Loaded { log, notices: loading.notices, wish }
}

struct Loading {
    typed: Typed,
    notices: Vec<Notice>,
    /// How many notices there were when the settings had been read.
    before_check: Option<usize>,
}

impl Loading {
    fn wish(&mut self, arguments: &[String], around: &Surroundings<'_>) -> Result<Wish, ConfigError> {
        let parsed = match argv::parse(arguments, &mut self.typed) {
            Ok(parsed) => parsed,
            Err(argv::ArgumentError::Help) => return Ok(Wish::Help),
            Err(argv::ArgumentError::Usage(text)) => return Ok(Wish::Usage(text)),
        };
        if let Some(stray) = parsed.stray {
            return Err(ConfigError::Stray(stray));
        }
        if self.typed.version {
            return Ok(Wish::Version);
        }
        let mut path = self.typed.config_file.clone();
        if path.is_empty() {
            path = around.environment.get("ETCD_CONFIG_FILE").cloned().unwrap_or_default();
        }
        if path.is_empty() {
            argv::apply_environment(&around.environment, &parsed.given, &mut self.typed, &mut self.notices)?;
            self.note_old_flags();
        } else {
            // All that was typed beside the file is forgotten.
            self.typed = Typed { from_file: true, ..Typed::default() };
            let text = (around.read_file)(Path::new(&path))
                .map_err(|source| ConfigError::File { path: path.clone(), reason: go_io_error(&source) })?;
            file::apply(&text, &mut self.typed)?;
            self.note_old_flags();
            self.notices.push(Notice::FileLoaded { path });
        }
        self.before_check = Some(self.notices.len());
        let config = check::finish(&mut self.typed, around, &mut self.notices)?;
        Ok(Wish::Run(Box::new(config)))
    }

    fn note_old_flags(&mut self) {
        for flag in flags::FLAGS.iter().filter(|flag| self.typed.given.contains(flag.name)) {
            match flag.life {
                flags::Life::Current => {}
                flags::Life::Replaced(by) => self.notices.push(Notice::Replaced { flag: flag.name, by }),
                flags::Life::Ignored => self.notices.push(Notice::Ignored { flag: flag.name }),
            }
        }
    }
}

/// The texts that Go gives to the common errors.
fn go_io_error(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".into(),
        std::io::ErrorKind::PermissionDenied => "permission denied".into(),
        std::io::ErrorKind::IsADirectory => "is a directory".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
