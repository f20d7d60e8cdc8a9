//! From what was typed to what it means: the checks that make a [`Config`].

use super::duration::{self, GoDuration};
use super::flags::Typed;
use super::notice::Notice;
use super::url::{Scheme, Url, texts};
use super::{
    AutoCompaction, ClusterState, Config, DEFAULT_INITIAL_CLUSTER, DEFAULT_NAME, ProxyMode, Surroundings, TlsVersion,
};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The longest `--election-timeout`, in milliseconds: members on several continents.
const MAX_ELECTION_MS: u64 = 50_000;
/// The shortest `--raft-read-timeout` and `--raft-write-timeout`; a shorter one is raised.
const MIN_RAFT_TIMEOUT: Duration = Duration::from_secs(5);
/// The shortest `--watch-progress-notify-interval`; a shorter one is raised.
const MIN_PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Why a configuration does not work, in etcd's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each text says what its fields are
pub enum ConfigError {
    #[error("{0:?} is not a valid flag")]
    Stray(String),
    #[error("invalid value {value:?} for {variable}: {reason}")]
    Environment { variable: String, value: String, reason: String },
    #[error(
        "conflicting environment variable is shadowed by corresponding command-line flag (either unset environment \
         variable or disable flag))"
    )]
    ShadowedVariable(String),
    #[error("open {path}: {reason}")]
    File { path: String, reason: String },
    #[error("{0}")]
    FileSyntax(String),
    #[error("unexpected error setting up {key}: {reason}")]
    FileUrl { key: String, reason: String },
    #[error("unexpected error setting up {key}: {reason}")]
    FileValue { key: String, reason: String },
    #[error("unrecognized level: {0:?}")]
    LogLevel(String),
    #[error("unknown log format {0:?}: choose \"json\" or \"console\"")]
    LogFormat(String),
    #[error("--logger=capnslog is removed in v3.5")]
    Capnslog,
    #[error("unknown logger option {0:?}")]
    Logger(String),
    #[error("multi logoutput for {0:?} is not supported yet")]
    MultipleOutputs(String),
    #[error("--log-outputs requires a single file path when --log-rotate-config-json is defined")]
    RotationOutputs,
    #[error("improperly formatted log rotation config: {0}")]
    Rotation(String),
    #[error("expected IP in URL for binding ({0})")]
    Binding(String),
    #[error("--{flag} {urls:?} must be \"host:port\" (unexpected empty host ({url}))")]
    EmptyHost { flag: &'static str, urls: String, url: String },
    #[error(
        "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \
             \"discovery-endpoints\" or \"discovery-srv\""
    )]
    ConflictingBootstrap,
    #[error("both --discovery-token and --discovery-endpoints must be set")]
    HalfDiscovery,
    #[error("--heartbeat-interval must be >0 (set to {0}ms)")]
    Heartbeat(u64),
    #[error("--election-timeout must be >0 (set to {0}ms)")]
    Election(u64),
    #[error(
        "--election-timeout[{election_ms}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat_ms}ms]"
    )]
    ElectionTooShort { election_ms: u64, heartbeat_ms: u64 },
    #[error("--election-timeout[{0}ms] is too long, and should be set less than {MAX_ELECTION_MS}ms")]
    ElectionTooLong(u64),
    #[error("--advertise-client-urls is required when --listen-client-urls is set explicitly")]
    NoAdvertisedClientUrls,
    #[error("unknown auto-compaction-mode {0:?}")]
    AutoCompactionMode(String),
    #[error("error parsing CompactionRetention: {0}")]
    AutoCompactionRetention(String),
    #[error("unexpected clusterState {0:?}")]
    ClusterState(String),
    #[error("--compact-hash-check-time must be >0 (set to {0})")]
    CompactHashCheckTime(String),
    #[error("unexpected TLS version {0:?}")]
    TlsVersion(String),
    #[error("min version ({min}) is greater than max version ({max})")]
    TlsVersions { min: String, max: String },
    #[error("cipher suites cannot be configured when only TLS1.3 is enabled")]
    CipherSuitesTls13,
    #[error("unexpected TLS cipher suite {0:?}")]
    CipherSuite(String),
    #[error("{0}")]
    FeatureGates(String),
    #[error("enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint")]
    CheckpointPersist,
    #[error("distributed tracing sampling rate must be positive")]
    SamplingRateNegative,
    #[error("distributed tracing sampling rate must be less than 1e6")]
    SamplingRateTooHigh,
    #[error("TLS key/cert (--cert-file, --key-file) must be provided for client url {0} with HTTPS scheme")]
    NoClientCertificate(String),
    #[error("cannot listen on TLS for {0}: KeyFile and CertFile are not presented")]
    NoPeerCertificate(String),
    #[error("cannot bind both --listen-client-urls and --listen-client-http-urls on the same url {0}")]
    SameClientUrl(String),
    #[error("AllowedCNs and AllowedHostnames are mutually exclusive (cns={cns:?}, hostnames={hostnames:?})")]
    AllowedNames { cns: Vec<String>, hostnames: Vec<String> },
}

/// When etcd finds an error, which decides how it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// While reading flags: `failed to verify flags`, exit code 1.
    Verify,
    /// While starting: `failed to start etcd` and a fatal line, exit code 1.
    Start,
    /// A bare line on stderr, exit code 1.
    Bare,
    /// A fatal log line, exit code 1.
    Fatal,
    /// A panic, exit code 2.
    Panic,
}

impl ConfigError {
    /// When etcd finds this error.
    pub fn stage(&self) -> Stage {
        match self {
            ConfigError::FileUrl { .. } => Stage::Bare,
            ConfigError::ShadowedVariable(_) => Stage::Fatal,
            ConfigError::LogLevel(_) => Stage::Panic,
            ConfigError::AutoCompactionRetention(_)
            | ConfigError::NoClientCertificate(_)
            | ConfigError::NoPeerCertificate(_)
            | ConfigError::CipherSuite(_)
            | ConfigError::SameClientUrl(_)
            | ConfigError::AllowedNames { .. } => Stage::Start,
            _ => Stage::Verify,
        }
    }

    /// Whether the logging flags are not known yet, or wrong themselves, when this error is told.
    pub(super) fn precedes_logging(&self) -> bool {
        matches!(
            self,
            ConfigError::Stray(_)
                | ConfigError::Environment { .. }
                | ConfigError::ShadowedVariable(_)
                | ConfigError::File { .. }
                | ConfigError::FileSyntax(_)
                | ConfigError::FileUrl { .. }
                | ConfigError::FileValue { .. }
                | ConfigError::LogLevel(_)
                | ConfigError::LogFormat(_)
                | ConfigError::Capnslog
                | ConfigError::Logger(_)
                | ConfigError::MultipleOutputs(_)
                | ConfigError::RotationOutputs
                | ConfigError::Rotation(_)
        )
    }
}

/// Checks what was typed, in etcd's order, and works out what it means.
pub(super) fn finish(
    typed: &mut Typed,
    around: &Surroundings<'_>,
    notices: &mut Vec<Notice>,
) -> Result<Config, ConfigError> {
    let from_file = typed.from_file;
    logging(typed)?;
    let given = std::mem::take(&mut typed.given);
    let is_given = |flag: &str| given.contains(flag);
    let config = &mut typed.config;

    if !is_given("initial-cluster")
        && (is_given("discovery") || is_given("discovery-endpoints") || is_given("discovery-srv"))
    {
        config.initial_cluster.clear();
    }
    if is_given("listen-client-urls") && !is_given("advertise-client-urls") && !from_file {
        config.advertise_client_urls.clear();
    }
    addresses(config)?;
    let bootstraps = ["initial-cluster", "discovery", "discovery-endpoints", "discovery-srv"];
    if bootstraps.iter().filter(|flag| is_given(flag)).count() > 1 {
        return Err(ConfigError::ConflictingBootstrap);
    }
    if config.discovery.token.is_empty() != config.discovery.endpoints.is_empty() {
        return Err(ConfigError::HalfDiscovery);
    }
    timing(config)?;
    config.discovery.falls_back = typed.discovery_fallback == "proxy";
    config.proxy.mode = match typed.proxy.as_str() {
        "on" => ProxyMode::On,
        "readonly" => ProxyMode::Readonly,
        _ => ProxyMode::Off,
    };
    // A proxy advertises nothing.
    let may_be_proxy = config.proxy.mode != ProxyMode::Off || config.discovery.falls_back;
    if config.advertise_client_urls.is_empty() && !may_be_proxy {
        return Err(ConfigError::NoAdvertisedClientUrls);
    }
    config.auto_compaction = auto_compaction(&typed.auto_compaction_mode, &typed.auto_compaction_retention)?;
    config.initial_cluster_state = match typed.initial_cluster_state.as_str() {
        "new" => ClusterState::New,
        "existing" => ClusterState::Existing,
        other => return Err(ConfigError::ClusterState(other.into())),
    };
    features(typed)?;
    let config = &mut typed.config;
    tls(config, &typed.tls_min_version, &typed.tls_max_version)?;
    if !(4..=31).contains(&config.bcrypt_cost) {
        notices.push(Notice::BcryptCost(config.bcrypt_cost));
        config.bcrypt_cost = Config::default().bcrypt_cost;
    }
    match config.tracing.sampling_rate_per_million {
        ..0 => return Err(ConfigError::SamplingRateNegative),
        1_000_001.. => return Err(ConfigError::SamplingRateTooHigh),
        _ => {}
    }
    config.extensive_metrics = typed.metrics == "extensive";
    config.wal_dir = (!typed.wal_dir.is_empty()).then(|| PathBuf::from(&typed.wal_dir));
    config.data_dir = PathBuf::from(&typed.data_dir);
    config.raft_read_timeout = config.raft_read_timeout.max(MIN_RAFT_TIMEOUT);
    config.raft_write_timeout = config.raft_write_timeout.max(MIN_RAFT_TIMEOUT);
    if config.watch_progress_notify_interval.is_zero() {
        config.watch_progress_notify_interval = Duration::from_secs(600);
    }
    config.watch_progress_notify_interval = config.watch_progress_notify_interval.max(MIN_PROGRESS_INTERVAL);
    default_hosts(config, around, notices);
    if config.listen_client_http_urls.is_empty() {
        notices.push(Notice::SinglePort);
    }
    if config.data_dir.as_os_str().is_empty() {
        config.data_dir = PathBuf::from(format!("{}.etcd", config.name));
        notices.push(Notice::DefaultDataDir(config.data_dir.display().to_string()));
    }
    if config.name == DEFAULT_NAME {
        notices.push(Notice::DefaultName);
    }
    certificates(config)?;
    Ok(config.clone())
}

fn logging(typed: &mut Typed) -> Result<(), ConfigError> {
    use crate::logging::{Format, Level, Rotation};
    let log = &mut typed.config.log;
    match typed.logger.as_str() {
        "zap" => {}
        "capnslog" => return Err(ConfigError::Capnslog),
        other => return Err(ConfigError::Logger(other.into())),
    }
    log.level = Level::named(&typed.log_level).ok_or_else(|| ConfigError::LogLevel(typed.log_level.clone()))?;
    if typed.debug {
        log.level = Level::Debug;
    }
    log.format = match typed.log_format.as_str() {
        "json" => Format::Json,
        "console" => Format::Console,
        other => return Err(ConfigError::LogFormat(other.into())),
    };
    if log.outputs.len() > 1 && log.outputs.iter().any(|output| output == "default") {
        return Err(ConfigError::MultipleOutputs("default".into()));
    }
    if typed.enable_log_rotation {
        let is_path = |output: &String| !matches!(output.as_str(), "default" | "stderr" | "stdout" | "systemd/journal");
        if log.outputs.len() != 1 || !log.outputs.iter().all(is_path) {
            return Err(ConfigError::RotationOutputs);
        }
        let rotation: Rotation = serde_json::from_str(&typed.log_rotation_config_json)
            .map_err(|error| ConfigError::Rotation(error.to_string()))?;
        log.rotation = Some(rotation);
    }
    Ok(())
}

fn addresses(config: &Config) -> Result<(), ConfigError> {
    let listeners = [
        &config.listen_peer_urls,
        &config.listen_client_urls,
        &config.listen_client_http_urls,
        &config.listen_metrics_urls,
    ];
    for url in listeners.into_iter().flatten().filter(|url| !url.scheme().is_unix()) {
        // A name would have to be looked up, and could be another host's.
        if url.host() != "localhost" && url.host().parse::<IpAddr>().is_err() {
            return Err(ConfigError::Binding(url.to_string()));
        }
    }
    let advertised = [
        ("initial-advertise-peer-urls", &config.advertise_peer_urls),
        ("advertise-client-urls", &config.advertise_client_urls),
    ];
    for (flag, urls) in advertised {
        if let Some(url) = urls.iter().find(|url| !url.scheme().is_unix() && url.host().is_empty()) {
            return Err(ConfigError::EmptyHost { flag, urls: texts(urls).join(","), url: url.to_string() });
        }
    }
    Ok(())
}

fn timing(config: &Config) -> Result<(), ConfigError> {
    let (heartbeat_ms, election_ms) = (config.heartbeat_ms, config.election_ms);
    if heartbeat_ms == 0 {
        return Err(ConfigError::Heartbeat(heartbeat_ms));
    }
    if election_ms == 0 {
        return Err(ConfigError::Election(election_ms));
    }
    if heartbeat_ms.saturating_mul(5) > election_ms {
        return Err(ConfigError::ElectionTooShort { election_ms, heartbeat_ms });
    }
    if election_ms > MAX_ELECTION_MS {
        return Err(ConfigError::ElectionTooLong(election_ms));
    }
    Ok(())
}

fn auto_compaction(mode: &str, retention: &str) -> Result<AutoCompaction, ConfigError> {
    let refuse = |reason: String| ConfigError::AutoCompactionRetention(reason);
    let count = retention.parse::<u64>().ok();
    match (mode, count) {
        ("periodic" | "revision" | "", Some(0)) => Ok(AutoCompaction::Off),
        ("periodic" | "", Some(hours)) => {
            let seconds = hours.checked_mul(3600).filter(|seconds| *seconds <= i64::MAX as u64 / 1_000_000_000);
            let seconds = seconds.ok_or_else(|| refuse(format!("time: invalid duration {retention:?}")))?;
            Ok(AutoCompaction::Periodic(Duration::from_secs(seconds)))
        }
        ("periodic" | "", None) => {
            let retention = duration::parse(retention).map_err(|error| refuse(error.to_string()))?;
            Ok(if retention.is_zero() { AutoCompaction::Off } else { AutoCompaction::Periodic(retention) })
        }
        ("revision", Some(count)) => {
            let count = i64::try_from(count).map_err(|_| refuse(format!("{retention:?} is out of range")))?;
            Ok(AutoCompaction::Revision(count))
        }
        ("revision", None) => Err(refuse(format!("{retention:?} is not a number of revisions"))),
        (other, _) => Err(ConfigError::AutoCompactionMode(other.into())),
    }
}

fn features(typed: &mut Typed) -> Result<(), ConfigError> {
    let features = &mut typed.config.features;
    features.set_list(&typed.feature_gates).map_err(ConfigError::FeatureGates)?;
    if features.lease_checkpoint_persist && !features.lease_checkpoint {
        return Err(ConfigError::CheckpointPersist);
    }
    let every = typed.config.compact_hash_check_time;
    if every.is_zero() {
        return Err(ConfigError::CompactHashCheckTime(GoDuration(every).to_string()));
    }
    Ok(())
}

fn tls(config: &mut Config, min: &str, max: &str) -> Result<(), ConfigError> {
    let version = |text: &str, default| match text {
        "" => Ok(default),
        "TLS1.2" => Ok(TlsVersion::Tls12),
        "TLS1.3" => Ok(TlsVersion::Tls13),
        other => Err(ConfigError::TlsVersion(other.into())),
    };
    config.tls_min_version = version(min, TlsVersion::Tls12)?;
    config.tls_max_version = version(max, TlsVersion::Tls13)?;
    if config.tls_min_version > config.tls_max_version {
        return Err(ConfigError::TlsVersions { min: min.into(), max: max.into() });
    }
    config.cipher_suites.retain(|suite| !suite.is_empty());
    if !config.cipher_suites.is_empty() {
        if config.tls_min_version == TlsVersion::Tls13 {
            return Err(ConfigError::CipherSuitesTls13);
        }
        if let Some(unknown) = config.cipher_suites.iter().find(|suite| !CIPHER_SUITES.contains(&suite.as_str())) {
            return Err(ConfigError::CipherSuite(unknown.clone()));
        }
    }
    Ok(())
}

fn certificates(config: &Config) -> Result<(), ConfigError> {
    for (tls, urls, make) in [
        (&config.peer_tls, &config.listen_peer_urls, no_peer_certificate as fn(&Url) -> ConfigError),
        (&config.client_tls, &config.listen_client_urls, no_client_certificate),
        (&config.client_tls, &config.listen_client_http_urls, no_client_certificate),
    ] {
        let has_certificate = tls.auto || (!tls.cert_file.is_empty() && !tls.key_file.is_empty());
        if let Some(url) = urls.iter().find(|url| url.scheme().is_secure() && !has_certificate) {
            return Err(make(url));
        }
        if !tls.allowed_cns.is_empty() && !tls.allowed_hostnames.is_empty() {
            let (cns, hostnames) = (tls.allowed_cns.clone(), tls.allowed_hostnames.clone());
            return Err(ConfigError::AllowedNames { cns, hostnames });
        }
    }
    let http: BTreeSet<_> = config.listen_client_http_urls.iter().collect();
    match config.listen_client_urls.iter().find(|url| http.contains(url)) {
        Some(url) => Err(ConfigError::SameClientUrl(url.to_string())),
        None => Ok(()),
    }
}

fn no_peer_certificate(url: &Url) -> ConfigError {
    ConfigError::NoPeerCertificate(url.address().to_owned())
}

fn no_client_certificate(url: &Url) -> ConfigError {
    ConfigError::NoClientCertificate(url.to_string())
}

/// A member that listens everywhere and says nothing about how to reach it is reached at this host's own address, and one
/// that has only a name founds a cluster of its own under that name.
fn default_hosts(config: &mut Config, around: &Surroundings<'_>, notices: &mut Vec<Notice>) {
    let rewrites = |advertised: &[Url], default: &str, listen: &[Url]| {
        let is_default = matches!(advertised, [url] if url.scheme() == Scheme::Http && url.address() == default);
        is_default && listen.first().is_some_and(|url| url.host() == "0.0.0.0")
    };
    let peer = rewrites(&config.advertise_peer_urls, "localhost:2380", &config.listen_peer_urls);
    let client = rewrites(&config.advertise_client_urls, "localhost:2379", &config.listen_client_urls);
    if peer || client {
        match (around.default_host)() {
            Ok(host) => {
                if peer {
                    let url = config.advertise_peer_urls[0].with_host(host, config.listen_peer_urls[0].port());
                    config.advertise_peer_urls = vec![url];
                }
                if client {
                    let url = config.advertise_client_urls[0].with_host(host, config.listen_client_urls[0].port());
                    config.advertise_client_urls = vec![url];
                }
                notices.push(Notice::DefaultHost(host.to_string()));
            }
            Err(error) => notices.push(Notice::NoDefaultHost(error.to_string())),
        }
    }
    if config.name != DEFAULT_NAME && config.initial_cluster == DEFAULT_INITIAL_CLUSTER {
        let pairs: Vec<_> = config.advertise_peer_urls.iter().map(|url| format!("{}={url}", config.name)).collect();
        config.initial_cluster = pairs.join(",");
    }
}

/// Go's names of cipher suites up to TLS 1.3, secure ones first.
const CIPHER_SUITES: &[&str] = &[
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];
