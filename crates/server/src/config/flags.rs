//! The table of all flags: those of etcd 3.7, and those of older versions that are still understood.
//!
//! A flag keeps its name, its help, where its value goes and its key in the config file together, on one line or two.
//! Its default is not here but in [`Config`]; the help shows what is found there.

use super::url::Url;
use super::{Config, argv, duration};
use std::collections::BTreeSet;
use std::time::Duration;

/// What was typed: settings that already mean something, and texts that are understood only together.
#[derive(Debug, Clone)]
pub struct Typed {
    /// What can be understood alone.
    pub config: Config,
    /// The flags that were set, from wherever.
    pub given: BTreeSet<&'static str>,
    /// Whether all of this comes from a config file.
    pub from_file: bool,
    pub(super) version: bool,
    pub(super) config_file: String,
    pub(super) data_dir: String,
    pub(super) wal_dir: String,
    pub(super) initial_cluster_state: String,
    pub(super) auto_compaction_mode: String,
    pub(super) auto_compaction_retention: String,
    pub(super) feature_gates: String,
    pub(super) tls_min_version: String,
    pub(super) tls_max_version: String,
    pub(super) metrics: String,
    pub(super) logger: String,
    pub(super) log_level: String,
    pub(super) log_format: String,
    pub(super) debug: bool,
    pub(super) enable_log_rotation: bool,
    pub(super) log_rotation_config_json: String,
    pub(super) discovery_fallback: String,
    pub(super) proxy: String,
}

impl Default for Typed {
    fn default() -> Self {
        Typed {
            config: Config::default(),
            given: BTreeSet::new(),
            from_file: false,
            version: false,
            config_file: String::new(),
            data_dir: String::new(),
            wal_dir: String::new(),
            initial_cluster_state: "new".into(),
            auto_compaction_mode: "periodic".into(),
            auto_compaction_retention: "0".into(),
            feature_gates: String::new(),
            tls_min_version: "TLS1.2".into(),
            tls_max_version: String::new(),
            metrics: "basic".into(),
            logger: "zap".into(),
            log_level: "info".into(),
            log_format: "json".into(),
            debug: false,
            enable_log_rotation: false,
            log_rotation_config_json:
                r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#.into(),
            discovery_fallback: "exit".into(),
            proxy: "off".into(),
        }
    }
}

type Field<T> = fn(&mut Typed) -> &mut T;

/// Where a flag's value goes, and by that what values it takes.
#[derive(Clone, Copy)]
pub enum Slot {
    /// `--flag` or `--flag=false`.
    Bool(Field<bool>),
    /// A whole number that is not negative.
    Uint(Field<u64>),
    /// The same, of 32 bits.
    Uint32(Field<u32>),
    /// A whole number.
    Int(Field<i64>),
    /// A duration as Go writes it; whole nanoseconds in the config file.
    Duration(Field<Duration>),
    /// Any text.
    Text(Field<String>),
    /// One of these texts.
    Choice(&'static [&'static str], Field<String>),
    /// URLs separated by commas.
    Urls(Field<Vec<Url>>),
    /// The same, or nothing.
    OptionalUrls(Field<Vec<Url>>),
    /// `*`, or URLs separated by commas.
    Origins(Field<Vec<String>>),
    /// Words separated by commas, sorted; a comma-separated text in the config file.
    Words(Field<Vec<String>>),
    /// Words separated by commas, in their order; a list in the config file.
    List(Field<Vec<String>>),
    /// A text with consequences of its own.
    Custom(fn(&mut Typed, &str) -> Result<(), String>),
    /// Nowhere. Like a boolean flag it takes no argument of its own.
    Nothing,
}

impl Slot {
    /// Whether the flag needs no value, as Go's boolean flags.
    pub fn stands_alone(&self) -> bool {
        matches!(self, Slot::Bool(_) | Slot::Nothing)
    }

    /// Takes a value in as typed on a command line. The error is Go's, without the flag's name.
    pub fn set(&self, typed: &mut Typed, text: &str) -> Result<(), String> {
        const SYNTAX: &str = "parse error";
        const RANGE: &str = "value out of range";
        let words = || text.split(',').map(str::to_owned).collect::<Vec<_>>();
        match self {
            Slot::Bool(field) => *field(typed) = argv::parse_bool(text).ok_or(SYNTAX)?,
            Slot::Uint(field) => {
                let number = argv::parse_int(text)?;
                *field(typed) = u64::try_from(number).map_err(|_| if number < 0 { SYNTAX } else { RANGE })?;
            }
            Slot::Uint32(field) => {
                let number = argv::parse_int(text)?;
                *field(typed) = u32::try_from(number).map_err(|_| if number < 0 { SYNTAX } else { RANGE })?;
            }
            Slot::Int(field) => *field(typed) = i64::try_from(argv::parse_int(text)?).map_err(|_| RANGE)?,
            Slot::Duration(field) => *field(typed) = duration::parse(text).map_err(|_| SYNTAX)?,
            Slot::Text(field) => *field(typed) = text.to_owned(),
            Slot::Choice(choices, field) => {
                if !choices.contains(&text) {
                    return Err("invalid value".into());
                }
                *field(typed) = text.to_owned();
            }
            Slot::OptionalUrls(field) if text.is_empty() => field(typed).clear(),
            Slot::Urls(field) | Slot::OptionalUrls(field) => {
                *field(typed) = Url::parse_list(text).map_err(|error| error.to_string())?;
            }
            Slot::Origins(field) if text == "*" => *field(typed) = vec![text.to_owned()],
            Slot::Origins(field) => {
                *field(typed) = super::texts(&Url::parse_list(text).map_err(|error| error.to_string())?);
            }
            Slot::Words(field) => {
                let mut words = words();
                words.sort();
                words.dedup();
                *field(typed) = words;
            }
            Slot::List(field) => *field(typed) = words(),
            Slot::Custom(set) => set(typed, text)?,
            Slot::Nothing => {}
        }
        Ok(())
    }
}

/// Whether a flag belongs to the etcd that we match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It does.
    Current,
    /// An older one's. It still works; this is what to write instead.
    Replaced(&'static str),
    /// An older one's, without effect.
    Ignored,
}

/// A part of the help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // their titles are in `Section::title`
pub enum Section {
    Member,
    Clustering,
    Security,
    Auth,
    Monitoring,
    Logging,
    Tracing,
    Features,
    Unsafe,
    Old,
}

impl Section {
    /// In the order of the help.
    pub const ALL: [Section; 10] = [
        Section::Member,
        Section::Clustering,
        Section::Security,
        Section::Auth,
        Section::Monitoring,
        Section::Logging,
        Section::Tracing,
        Section::Features,
        Section::Unsafe,
        Section::Old,
    ];

    /// The heading.
    pub fn title(self) -> &'static str {
        match self {
            Section::Member => "Member",
            Section::Clustering => "Clustering",
            Section::Security => "Security",
            Section::Auth => "Auth",
            Section::Monitoring => "Profiling and Monitoring",
            Section::Logging => "Logging",
            Section::Tracing => "Distributed tracing",
            Section::Features => "Features",
            Section::Unsafe => "Unsafe feature",
            Section::Old => "From older versions, accepted with a warning",
        }
    }
}

/// A flag.
pub struct Flag {
    /// Without dashes.
    pub name: &'static str,
    /// Where the help shows it.
    pub section: Section,
    /// Where its value goes.
    pub slot: Slot,
    /// Its key in the config file, `section.key` where it is in a section there; empty if it has none.
    pub file_key: &'static str,
    /// One or two sentences.
    pub help: &'static str,
    /// Whether it is current.
    pub life: Life,
}

impl Flag {
    /// The flag of this name.
    pub fn named(name: &str) -> Option<&'static Flag> {
        FLAGS.iter().find(|flag| flag.name == name)
    }

    /// The name of its environment variable.
    pub fn variable(&self) -> String {
        format!("ETCD_{}", self.name.to_ascii_uppercase().replace('-', "_"))
    }

    /// Takes a value in as typed, and remembers that it was.
    pub fn set(&self, typed: &mut Typed, text: &str) -> Result<(), String> {
        self.slot.set(typed, text)?;
        typed.given.insert(self.name);
        Ok(())
    }

    /// The value that it has without being set, as the help shows it.
    pub fn default_text(&self) -> String {
        let mut typed = Typed::default();
        match self.slot {
            Slot::Bool(field) => field(&mut typed).to_string(),
            Slot::Uint(field) => field(&mut typed).to_string(),
            Slot::Uint32(field) => field(&mut typed).to_string(),
            Slot::Int(field) => field(&mut typed).to_string(),
            Slot::Duration(field) => duration::GoDuration(*field(&mut typed)).to_string(),
            Slot::Text(_) if self.name == "data-dir" => "${name}.etcd".into(),
            Slot::Text(field) | Slot::Choice(_, field) => field(&mut typed).clone(),
            Slot::Urls(field) | Slot::OptionalUrls(field) => super::texts(field(&mut typed)).join(","),
            Slot::Words(field) | Slot::List(field) | Slot::Origins(field) => field(&mut typed).join(","),
            Slot::Custom(_) | Slot::Nothing => String::new(),
        }
    }
}

/// A current flag whose key in the config file is its name.
const fn flag(section: Section, name: &'static str, slot: Slot, help: &'static str) -> Flag {
    Flag { name, section, slot, file_key: name, help, life: Life::Current }
}

/// A current flag with another key in the config file; none if empty.
const fn keyed(section: Section, name: &'static str, file_key: &'static str, slot: Slot, help: &'static str) -> Flag {
    Flag { name, section, slot, file_key, help, life: Life::Current }
}

/// A flag of an older version that another one has replaced.
const fn replaced(name: &'static str, by: &'static str, slot: Slot) -> Flag {
    Flag { name, section: Section::Old, slot, file_key: name, help: by, life: Life::Replaced(by) }
}

/// A flag of an older version that takes a value and does nothing with it.
const fn ignored(name: &'static str) -> Flag {
    let slot = Slot::Custom(|_, _| Ok(()));
    Flag { name, section: Section::Old, slot, file_key: name, help: "ignored", life: Life::Ignored }
}

/// A flag of the oldest versions that etcd itself still takes, without a value, and ignores.
const fn ancient(name: &'static str) -> Flag {
    Flag { name, section: Section::Old, slot: Slot::Nothing, file_key: "", help: "ignored", life: Life::Ignored }
}

use Section::{Auth, Clustering, Features, Logging, Member, Monitoring, Security, Tracing, Unsafe};
use Slot::{Bool, Choice, Custom, Duration as Time, Int, List, OptionalUrls, Origins, Text, Uint, Uint32, Urls, Words};

const V2_DEPRECATION: &[&str] = &["not-yet", "write-only", "write-only-skip-check", "write-only-drop-data", "gone"];

/// All flags, in the order of the help.
#[rustfmt::skip] // one flag, one line or two
pub const FLAGS: &[Flag] = &[
    flag(Member, "name", Text(|t| &mut t.config.name), "The member's name, for people."),
    flag(Member, "data-dir", Text(|t| &mut t.data_dir), "Directory for everything that the member keeps."),
    flag(Member, "wal-dir", Text(|t| &mut t.wal_dir), "Directory for the write-ahead log, if it is to be on another disk than the rest."),
    flag(Member, "snapshot-count", Uint(|t| &mut t.config.snapshot_count), "Changes that are applied between two snapshots."),
    flag(Member, "snapshot-catchup-entries", Uint(|t| &mut t.config.snapshot_catchup_entries), "Log entries that are kept behind a snapshot, for followers that lag a little."),
    flag(Member, "heartbeat-interval", Uint(|t| &mut t.config.heartbeat_ms), "Milliseconds between the leader's heartbeats."),
    flag(Member, "election-timeout", Uint(|t| &mut t.config.election_ms), "Milliseconds without a heartbeat after which a member stands for election. At least five heartbeats."),
    flag(Member, "initial-election-tick-advance", Bool(|t| &mut t.config.initial_election_tick_advance), "Shorten the wait for the first election after a start."),
    flag(Member, "listen-peer-urls", Urls(|t| &mut t.config.listen_peer_urls), "URLs to listen on for the other members."),
    flag(Member, "listen-client-urls", Urls(|t| &mut t.config.listen_client_urls), "URLs to listen on for clients, gRPC and HTTP alike. Needs --advertise-client-urls."),
    flag(Member, "listen-client-http-urls", OptionalUrls(|t| &mut t.config.listen_client_http_urls), "URLs to listen on for HTTP clients only. If set, --listen-client-urls serves gRPC only."),
    flag(Member, "max-snapshots", Uint(|t| &mut t.config.max_snapshots), "Snapshot files that are kept (0 = all)."),
    flag(Member, "max-wals", Uint(|t| &mut t.config.max_wals), "Write-ahead log files that are kept (0 = all)."),
    flag(Member, "quota-backend-bytes", Int(|t| &mut t.config.quota_backend_bytes), "Bytes of data above which writes are refused (0 = 2 GiB, negative = no bound)."),
    flag(Member, "max-txn-ops", Uint(|t| &mut t.config.max_txn_ops), "Operations that a transaction may have."),
    flag(Member, "max-request-bytes", Uint(|t| &mut t.config.max_request_bytes), "Bytes that a client's request may have."),
    flag(Member, "max-concurrent-streams", Uint32(|t| &mut t.config.max_concurrent_streams), "HTTP/2 streams that a client's connection may have open."),
    flag(Member, "grpc-keepalive-min-time", Time(|t| &mut t.config.grpc_keepalive_min_time), "Clients that ping more often than this are cut off."),
    flag(Member, "grpc-keepalive-interval", Time(|t| &mut t.config.grpc_keepalive_interval), "How often the server pings a client (0 = never)."),
    flag(Member, "grpc-keepalive-timeout", Time(|t| &mut t.config.grpc_keepalive_timeout), "How long a ping may stay unanswered before the connection is closed (0 = for ever)."),
    keyed(Member, "socket-reuse-port", "socket-options.reuse-port", Bool(|t| &mut t.config.socket_reuse_port), "Set SO_REUSEPORT on listeners, so that another process can take over the port."),
    keyed(Member, "socket-reuse-address", "socket-options.reuse-address", Bool(|t| &mut t.config.socket_reuse_address), "Set SO_REUSEADDR on listeners, so that an address can be bound that was in use a moment ago."),
    flag(Member, "raft-read-timeout", Time(|t| &mut t.config.raft_read_timeout), "Read timeout of connections between members (at least 5s)."),
    flag(Member, "raft-write-timeout", Time(|t| &mut t.config.raft_write_timeout), "Write timeout of connections between members (at least 5s)."),
    flag(Member, "compaction-batch-limit", Int(|t| &mut t.config.compaction_batch_limit), "Revisions that a compaction removes at a time (0 = chosen by the server)."),
    flag(Member, "compaction-sleep-interval", Time(|t| &mut t.config.compaction_sleep_interval), "Pause between such batches (0 = chosen by the server)."),
    flag(Member, "max-learners", Int(|t| &mut t.config.max_learners), "Learners that the cluster may have."),
    flag(Member, "enable-grpc-gateway", Bool(|t| &mut t.config.enable_grpc_gateway), "Serve the JSON API under /v3."),
    flag(Member, "enable-v2", Bool(|t| &mut t.config.enable_v2), "Serve the v2 API under /v2."),
    flag(Member, "memory-mlock", Bool(|t| &mut t.config.memory_mlock), "Keep the member's memory from being swapped out."),
    keyed(Member, "backend-bbolt-freelist-type", "backend-bbolt-freelist-type", Custom(|_, _| Ok(())), "Accepted for compatibility; this server's store has no such list."),
    keyed(Member, "backend-batch-interval", "backend-batch-interval", Custom(|_, _| Ok(())), "Accepted for compatibility; this server does not commit in batches by time."),
    keyed(Member, "backend-batch-limit", "backend-batch-limit", Custom(|_, _| Ok(())), "Accepted for compatibility; this server does not commit in batches by count."),
    keyed(Member, "bootstrap-defrag-threshold-megabytes", "bootstrap-defrag-threshold-megabytes", Custom(|_, _| Ok(())), "Accepted for compatibility; this server gives space back while it runs."),
    keyed(Member, "config-file", "", Text(|t| &mut t.config_file), "Read all settings from this YAML or JSON file; flags and environment are ignored then."),
    keyed(Member, "version", "", Bool(|t| &mut t.version), "Print the version and end."),

    flag(Clustering, "initial-advertise-peer-urls", Urls(|t| &mut t.config.advertise_peer_urls), "URLs at which the other members reach this one."),
    flag(Clustering, "advertise-client-urls", Urls(|t| &mut t.config.advertise_client_urls), "URLs at which clients reach this member."),
    flag(Clustering, "initial-cluster", Text(|t| &mut t.config.initial_cluster), "All founding members as name=peer-url,name=peer-url. Looked at only when the member first starts."),
    flag(Clustering, "initial-cluster-state", Choice(&["new", "existing"], |t| &mut t.initial_cluster_state), "'new' to found a cluster, 'existing' to join one that runs."),
    flag(Clustering, "initial-cluster-token", Text(|t| &mut t.config.initial_cluster_token), "A word that sets this cluster apart from others that are founded with the same URLs."),
    flag(Clustering, "strict-reconfig-check", Bool(|t| &mut t.config.strict_reconfig_check), "Refuse membership changes that would cost the cluster its quorum."),
    flag(Clustering, "pre-vote", Bool(|t| &mut t.config.pre_vote), "Before an election, ask whether it could be won, so that a member that comes back does not disturb the others."),
    flag(Clustering, "auto-compaction-mode", Text(|t| &mut t.auto_compaction_mode), "How --auto-compaction-retention is meant: 'periodic' (a time) or 'revision' (a number of revisions)."),
    flag(Clustering, "auto-compaction-retention", Text(|t| &mut t.auto_compaction_retention), "History that is kept: '5m', '1h', hours if without a unit, or a number of revisions (0 = everything)."),
    flag(Clustering, "discovery-token", Text(|t| &mut t.config.discovery.token), "Token of this cluster in a discovery service."),
    flag(Clustering, "discovery-endpoints", List(|t| &mut t.config.discovery.endpoints), "The discovery service: client URLs of an etcd cluster."),
    flag(Clustering, "discovery-dial-timeout", Time(|t| &mut t.config.discovery.dial_timeout), "Timeout of connecting to it."),
    flag(Clustering, "discovery-request-timeout", Time(|t| &mut t.config.discovery.request_timeout), "Timeout of a request to it."),
    flag(Clustering, "discovery-keepalive-time", Time(|t| &mut t.config.discovery.keepalive_time), "How often it is pinged."),
    flag(Clustering, "discovery-keepalive-timeout", Time(|t| &mut t.config.discovery.keepalive_timeout), "How long such a ping may stay unanswered."),
    flag(Clustering, "discovery-insecure-transport", Bool(|t| &mut t.config.discovery.insecure_transport), "Talk to it without TLS."),
    flag(Clustering, "discovery-insecure-skip-tls-verify", Bool(|t| &mut t.config.discovery.insecure_skip_tls_verify), "Do not verify its certificate. For tests."),
    flag(Clustering, "discovery-cert", Text(|t| &mut t.config.discovery.cert_file), "Certificate to show it."),
    flag(Clustering, "discovery-key", Text(|t| &mut t.config.discovery.key_file), "Key of that certificate."),
    flag(Clustering, "discovery-cacert", Text(|t| &mut t.config.discovery.ca_file), "Authority that its certificate is verified with."),
    flag(Clustering, "discovery-user", Text(|t| &mut t.config.discovery.user), "User name there, or name:password."),
    flag(Clustering, "discovery-password", Text(|t| &mut t.config.discovery.password), "Password there."),
    flag(Clustering, "discovery-fallback", Choice(&["exit", "proxy"], |t| &mut t.discovery_fallback), "What to do when the cluster that was discovered has its members: exit, or be a proxy of it."),
    flag(Clustering, "discovery-srv", Text(|t| &mut t.config.discovery.srv), "DNS domain whose SRV records name the founding members."),
    flag(Clustering, "discovery-srv-name", Text(|t| &mut t.config.discovery.srv_name), "Suffix of the service name in those records."),
    flag(Clustering, "downgrade-check-time", Time(|t| &mut t.config.downgrade_check_time), "How often the state of a downgrade is looked at."),

    keyed(Security, "cert-file", "client-transport-security.cert-file", Text(|t| &mut t.config.client_tls.cert_file), "Certificate shown to clients."),
    keyed(Security, "key-file", "client-transport-security.key-file", Text(|t| &mut t.config.client_tls.key_file), "Key of that certificate."),
    keyed(Security, "client-cert-file", "client-transport-security.client-cert-file", Text(|t| &mut t.config.client_tls.client_cert_file), "Certificate to use as a client where clients need one (--cert-file if empty)."),
    keyed(Security, "client-key-file", "client-transport-security.client-key-file", Text(|t| &mut t.config.client_tls.client_key_file), "Key of that certificate."),
    keyed(Security, "client-cert-auth", "client-transport-security.client-cert-auth", Bool(|t| &mut t.config.client_tls.client_cert_auth), "Let in only clients with a certificate that can be verified."),
    flag(Security, "client-crl-file", Text(|t| &mut t.config.client_tls.crl_file), "List of revoked client certificates."),
    keyed(Security, "client-cert-allowed-hostname", "client-transport-security.allowed-hostname", List(|t| &mut t.config.client_tls.allowed_hostnames), "Names of which a client's certificate must have one."),
    keyed(Security, "trusted-ca-file", "client-transport-security.trusted-ca-file", Text(|t| &mut t.config.client_tls.trusted_ca_file), "Authority that client certificates are verified with."),
    keyed(Security, "auto-tls", "client-transport-security.auto-tls", Bool(|t| &mut t.config.client_tls.auto), "Make a certificate for clients at start."),
    keyed(Security, "peer-cert-file", "peer-transport-security.cert-file", Text(|t| &mut t.config.peer_tls.cert_file), "Certificate shown to other members, and used to connect to them."),
    keyed(Security, "peer-key-file", "peer-transport-security.key-file", Text(|t| &mut t.config.peer_tls.key_file), "Key of that certificate."),
    keyed(Security, "peer-client-cert-file", "peer-transport-security.client-cert-file", Text(|t| &mut t.config.peer_tls.client_cert_file), "Certificate to connect to other members with (--peer-cert-file if empty)."),
    keyed(Security, "peer-client-key-file", "peer-transport-security.client-key-file", Text(|t| &mut t.config.peer_tls.client_key_file), "Key of that certificate."),
    keyed(Security, "peer-client-cert-auth", "peer-transport-security.client-cert-auth", Bool(|t| &mut t.config.peer_tls.client_cert_auth), "Let in only members with a certificate that can be verified."),
    keyed(Security, "peer-trusted-ca-file", "peer-transport-security.trusted-ca-file", Text(|t| &mut t.config.peer_tls.trusted_ca_file), "Authority that members' certificates are verified with."),
    keyed(Security, "peer-cert-allowed-cn", "peer-transport-security.allowed-cn", List(|t| &mut t.config.peer_tls.allowed_cns), "Common names of which a member's certificate must have one."),
    keyed(Security, "peer-cert-allowed-hostname", "peer-transport-security.allowed-hostname", List(|t| &mut t.config.peer_tls.allowed_hostnames), "Names of which a member's certificate must have one."),
    keyed(Security, "peer-auto-tls", "peer-transport-security.auto-tls", Bool(|t| &mut t.config.peer_tls.auto), "Make a certificate for other members at start."),
    flag(Security, "peer-crl-file", Text(|t| &mut t.config.peer_tls.crl_file), "List of revoked member certificates."),
    keyed(Security, "peer-skip-client-san-verification", "peer-transport-security.skip-client-san-verification", Bool(|t| &mut t.config.peer_tls.skip_client_san_verification), "Do not compare the names in a member's certificate with where it connects from."),
    flag(Security, "self-signed-cert-validity", Uint(|t| &mut t.config.self_signed_cert_validity_years), "Years for which --auto-tls and --peer-auto-tls make their certificates."),
    flag(Security, "cipher-suites", List(|t| &mut t.config.cipher_suites), "TLS cipher suites under Go's names, separated by commas (empty = chosen by the server)."),
    flag(Security, "tls-min-version", Text(|t| &mut t.tls_min_version), "Lowest TLS version: TLS1.2 or TLS1.3."),
    flag(Security, "tls-max-version", Text(|t| &mut t.tls_max_version), "Highest TLS version: TLS1.2 or TLS1.3 (empty = the highest)."),
    flag(Security, "cors", Origins(|t| &mut t.config.cors), "Origins from which scripts may come, separated by commas ('*' = all)."),
    flag(Security, "host-whitelist", Words(|t| &mut t.config.host_whitelist), "Host names under which clients may address an insecure server ('*' = all)."),

    flag(Auth, "auth-token", Text(|t| &mut t.config.auth_token), "Kind of token and its options: 'simple' or 'jwt,...'."),
    flag(Auth, "auth-token-ttl", Uint(|t| &mut t.config.auth_token_ttl_s), "Seconds for which a simple token is good."),
    flag(Auth, "bcrypt-cost", Uint(|t| &mut t.config.bcrypt_cost), "Cost of hashing a password, 4 to 31; each step doubles it."),

    flag(Monitoring, "enable-pprof", Bool(|t| &mut t.config.enable_pprof), "Serve profiles under /debug/pprof/."),
    flag(Monitoring, "metrics", Text(|t| &mut t.metrics), "'basic', or 'extensive' for histograms of gRPC handling times."),
    flag(Monitoring, "listen-metrics-urls", OptionalUrls(|t| &mut t.config.listen_metrics_urls), "Further URLs for metrics and health."),
    flag(Monitoring, "warning-apply-duration", Time(|t| &mut t.config.warning_apply_duration), "Changes that take longer than this to apply are logged."),
    flag(Monitoring, "warning-unary-request-duration", Time(|t| &mut t.config.warning_unary_request_duration), "Requests that take longer than this are logged."),
    flag(Monitoring, "watch-progress-notify-interval", Time(|t| &mut t.config.watch_progress_notify_interval), "How often watchers that asked for it are told the revision (at least 100ms)."),
    flag(Monitoring, "corrupt-check-time", Time(|t| &mut t.config.corrupt_check_time), "How often members compare their data (0 = never)."),
    flag(Monitoring, "compact-hash-check-time", Time(|t| &mut t.config.compact_hash_check_time), "How often they compare hashes taken at compactions (needs the gate CompactHashCheck)."),

    flag(Logging, "logger", Text(|t| &mut t.logger), "Only 'zap', the name of the line format."),
    flag(Logging, "log-outputs", List(|t| &mut t.config.log.outputs), "Where lines go: 'default' (stderr), 'stdout', 'stderr', 'systemd/journal', or files; separated by commas."),
    flag(Logging, "log-level", Text(|t| &mut t.log_level), "debug, info, warn, error, panic or fatal."),
    flag(Logging, "log-format", Text(|t| &mut t.log_format), "'json' or 'console'."),
    flag(Logging, "enable-log-rotation", Bool(|t| &mut t.enable_log_rotation), "Begin a new file when the log has grown large; needs a single file in --log-outputs."),
    flag(Logging, "log-rotation-config-json", Text(|t| &mut t.log_rotation_config_json), "When and how: maxsize (MB), maxage (days), maxbackups, localtime, compress."),

    flag(Tracing, "enable-distributed-tracing", Bool(|t| &mut t.config.tracing.enabled), "Send traces to an OpenTelemetry collector."),
    flag(Tracing, "distributed-tracing-address", Text(|t| &mut t.config.tracing.address), "The collector's address."),
    flag(Tracing, "distributed-tracing-service-name", Text(|t| &mut t.config.tracing.service_name), "Name of the service, the same on all members."),
    flag(Tracing, "distributed-tracing-instance-id", Text(|t| &mut t.config.tracing.instance_id), "Name of this member, different on each."),
    flag(Tracing, "distributed-tracing-sampling-rate", Int(|t| &mut t.config.tracing.sampling_rate_per_million), "Traced requests among a million."),

    flag(Features, "feature-gates", Text(|t| &mut t.feature_gates), "Name=true or Name=false, separated by commas; see the names below."),

    flag(Unsafe, "force-new-cluster", Bool(|t| &mut t.config.force_new_cluster), "Start from this member's data as a new cluster with no other members."),
    flag(Unsafe, "unsafe-no-fsync", Bool(|t| &mut t.config.unsafe_no_fsync), "Do not wait for the disk. A crash loses data that was acknowledged."),

    replaced("ca-file", "--trusted-ca-file and --client-cert-auth", Custom(|t, text| {
        t.config.client_tls.trusted_ca_file = text.into();
        t.config.client_tls.client_cert_auth |= !text.is_empty();
        Ok(())
    })),
    replaced("peer-ca-file", "--peer-trusted-ca-file and --peer-client-cert-auth", Custom(|t, text| {
        t.config.peer_tls.trusted_ca_file = text.into();
        t.config.peer_tls.client_cert_auth |= !text.is_empty();
        Ok(())
    })),
    replaced("debug", "--log-level=debug", Bool(|t| &mut t.debug)),
    replaced("log-output", "--log-outputs", List(|t| &mut t.config.log.outputs)),
    replaced("discovery", "--discovery-token and --discovery-endpoints", Text(|t| &mut t.config.discovery.url)),
    replaced("discovery-proxy", "--discovery-endpoints", Text(|t| &mut t.config.discovery.proxy)),
    replaced("proxy", "etcd gateway", Choice(&["off", "readonly", "on"], |t| &mut t.proxy)),
    replaced("proxy-failure-wait", "etcd gateway", Uint(|t| &mut t.config.proxy.failure_wait_ms)),
    replaced("proxy-refresh-interval", "etcd gateway", Uint(|t| &mut t.config.proxy.refresh_interval_ms)),
    replaced("proxy-dial-timeout", "etcd gateway", Uint(|t| &mut t.config.proxy.dial_timeout_ms)),
    replaced("proxy-write-timeout", "etcd gateway", Uint(|t| &mut t.config.proxy.write_timeout_ms)),
    replaced("proxy-read-timeout", "etcd gateway", Uint(|t| &mut t.config.proxy.read_timeout_ms)),
    replaced("experimental-compact-hash-check-enabled", "--feature-gates=CompactHashCheck=true", Bool(|t| &mut t.config.features.compact_hash_check)),
    replaced("experimental-compact-hash-check-time", "--compact-hash-check-time", Time(|t| &mut t.config.compact_hash_check_time)),
    replaced("experimental-compaction-batch-limit", "--compaction-batch-limit", Int(|t| &mut t.config.compaction_batch_limit)),
    replaced("experimental-compaction-sleep-interval", "--compaction-sleep-interval", Time(|t| &mut t.config.compaction_sleep_interval)),
    replaced("experimental-corrupt-check-time", "--corrupt-check-time", Time(|t| &mut t.config.corrupt_check_time)),
    replaced("experimental-distributed-tracing-address", "--distributed-tracing-address", Text(|t| &mut t.config.tracing.address)),
    replaced("experimental-distributed-tracing-instance-id", "--distributed-tracing-instance-id", Text(|t| &mut t.config.tracing.instance_id)),
    replaced("experimental-distributed-tracing-sampling-rate", "--distributed-tracing-sampling-rate", Int(|t| &mut t.config.tracing.sampling_rate_per_million)),
    replaced("experimental-distributed-tracing-service-name", "--distributed-tracing-service-name", Text(|t| &mut t.config.tracing.service_name)),
    replaced("experimental-downgrade-check-time", "--downgrade-check-time", Time(|t| &mut t.config.downgrade_check_time)),
    replaced("experimental-enable-distributed-tracing", "--enable-distributed-tracing", Bool(|t| &mut t.config.tracing.enabled)),
    replaced("experimental-enable-lease-checkpoint", "--feature-gates=LeaseCheckpoint=true", Bool(|t| &mut t.config.features.lease_checkpoint)),
    replaced("experimental-enable-lease-checkpoint-persist", "--feature-gates=LeaseCheckpointPersist=true", Bool(|t| &mut t.config.features.lease_checkpoint_persist)),
    replaced("experimental-initial-corrupt-check", "--feature-gates=InitialCorruptCheck=true", Bool(|t| &mut t.config.features.initial_corrupt_check)),
    replaced("experimental-max-learners", "--max-learners", Int(|t| &mut t.config.max_learners)),
    replaced("experimental-memory-mlock", "--memory-mlock", Bool(|t| &mut t.config.memory_mlock)),
    replaced("experimental-peer-skip-client-san-verification", "--peer-skip-client-san-verification", Bool(|t| &mut t.config.peer_tls.skip_client_san_verification)),
    replaced("experimental-snapshot-catchup-entries", "--snapshot-catchup-entries", Uint(|t| &mut t.config.snapshot_catchup_entries)),
    replaced("experimental-stop-grpc-service-on-defrag", "--feature-gates=StopGRPCServiceOnDefrag=true", Bool(|t| &mut t.config.features.stop_grpc_service_on_defrag)),
    replaced("experimental-txn-mode-write-with-shared-buffer", "--feature-gates=TxnModeWriteWithSharedBuffer=true", Bool(|t| &mut t.config.features.txn_mode_write_with_shared_buffer)),
    replaced("experimental-warning-apply-duration", "--warning-apply-duration", Time(|t| &mut t.config.warning_apply_duration)),
    replaced("experimental-warning-unary-request-duration", "--warning-unary-request-duration", Time(|t| &mut t.config.warning_unary_request_duration)),
    replaced("experimental-watch-progress-notify-interval", "--watch-progress-notify-interval", Time(|t| &mut t.config.watch_progress_notify_interval)),
    ignored("experimental-backend-bbolt-freelist-type"),
    ignored("experimental-bootstrap-defrag-threshold-megabytes"),
    ignored("experimental-enable-v2v3"),
    ignored("log-package-levels"),
    Flag { name: "v2-deprecation", section: Section::Old, file_key: "v2-deprecation", help: "ignored", life: Life::Ignored,
        slot: Custom(|_, text| if V2_DEPRECATION.contains(&text) { Ok(()) } else { Err("invalid value".into()) }) },
    ancient("cluster-active-size"),
    ancient("cluster-remove-delay"),
    ancient("cluster-sync-interval"),
    ancient("config"),
    ancient("force"),
    ancient("max-result-buffer"),
    ancient("max-retry-attempts"),
    ancient("peer-heartbeat-interval"),
    ancient("peer-election-timeout"),
    ancient("retry-interval"),
    ancient("snapshot"),
    ancient("v"),
    ancient("vv"),
    ancient("test.coverprofile"),
    ancient("test.outputdir"),
];
