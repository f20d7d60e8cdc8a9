//! Each flag from the command line, the environment and the config file; then precedence, refusals and defaults. The
//! texts were compared with what etcd 3.4.23 and 3.5.1 print for the same input.

use super::flags::{FLAGS, Flag, Life, Slot};
use super::*;

const URLS: &str = "http://127.0.0.7:7,http://127.0.0.7:8";

/// Loads with this environment, these files, and 10.1.2.3 as this host's address.
fn load_with(arguments: &[&str], environment: &[(&str, &str)], file: Option<&str>) -> Loaded {
    let arguments: Vec<_> = ["etcd"].iter().chain(arguments).map(|a| (*a).to_owned()).collect();
    let file = file.map(str::to_owned);
    let around = Surroundings {
        environment: environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        read_file: &|_| file.clone().ok_or_else(|| std::io::ErrorKind::NotFound.into()),
        default_host: &|| Ok("10.1.2.3".parse().unwrap()),
    };
    load(&arguments, &around)
}

fn run(loaded: Loaded) -> Config {
    match loaded.wish {
        Wish::Run(config) => *config,
        other => panic!("{other:?}"),
    }
}

fn from_args(arguments: &[&str]) -> Config {
    run(load_with(arguments, &[], None))
}

fn failure(loaded: Loaded) -> (String, Stage) {
    match loaded.wish {
        Wish::Fail(error) => (error.to_string(), error.stage()),
        other => panic!("{other:?}"),
    }
}

fn usage(arguments: &[&str]) -> String {
    match load_with(arguments, &[], None).wish {
        Wish::Usage(text) => text,
        other => panic!("{other:?}"),
    }
}

/// A value that is valid for the flag and not its default: as text, and as it stands in a config file.
fn sample(flag: &Flag) -> Option<(&'static str, &'static str)> {
    Some(match (flag.name, &flag.slot) {
        ("version" | "config-file", _) => return None,
        // Accepted values that are errors in combination, or change nothing.
        ("proxy" | "discovery-fallback" | "experimental-enable-lease-checkpoint-persist", _) => return None,
        ("log-level", _) => ("warn", "warn"),
        ("log-format", _) => ("console", "console"),
        ("logger", _) => return None,
        ("enable-log-rotation", _) => return None,
        ("log-rotation-config-json", _) => return None,
        ("metrics", _) => ("extensive", "extensive"),
        ("auto-compaction-mode", _) => return None,
        ("auto-compaction-retention", _) => ("5m", "5m"),
        ("feature-gates", _) => ("PriorityRequest=true", "PriorityRequest=true"),
        ("initial-cluster-state", _) => ("existing", "existing"),
        ("cipher-suites", _) => ("TLS_AES_128_GCM_SHA256", "[TLS_AES_128_GCM_SHA256]"),
        ("tls-min-version", _) => ("TLS1.3", "TLS1.3"),
        ("tls-max-version", _) => ("TLS1.2", "TLS1.2"),
        ("discovery-token" | "discovery-endpoints", _) => return None,
        ("experimental-distributed-tracing-sampling-rate" | "distributed-tracing-sampling-rate", _) => ("77", "77"),
        ("raft-read-timeout" | "raft-write-timeout", _) => ("9s", "9000000000"),
        ("bcrypt-cost", _) => ("12", "12"),
        ("election-timeout", _) => ("7777", "7777"),
        ("heartbeat-interval", _) => ("77", "77"),
        (_, Slot::Bool(_)) if flag.default_text() == "true" => ("false", "false"),
        (_, Slot::Bool(_)) => ("true", "true"),
        (_, Slot::Uint(_) | Slot::Uint32(_) | Slot::Int(_)) => ("77", "77"),
        (_, Slot::Duration(_)) => ("1m17s", "77000000000"),
        (_, Slot::Text(_)) => ("other", "other"),
        (_, Slot::Words(_)) => ("b,a", "b,a"),
        (_, Slot::List(_)) => ("one,two", "[one, two]"),
        (_, Slot::Urls(_) | Slot::OptionalUrls(_) | Slot::Origins(_)) => (URLS, URLS),
        ("ca-file" | "peer-ca-file", _) => ("ca.pem", "ca.pem"),
        (_, Slot::Choice(..) | Slot::Custom(_) | Slot::Nothing) => return None,
    })
}

/// What else has to be typed for the sample to pass the checks.
fn company(flag: &Flag) -> Vec<(&'static str, &'static str)> {
    match flag.name {
        "listen-client-urls" => vec![("advertise-client-urls", "http://127.0.0.7:7")],
        _ => vec![],
    }
}

/// The same settings have the same result, wherever they come from; and every flag has a result at all.
#[test]
fn every_flag_works_from_the_command_line_the_environment_and_the_config_file() {
    let mut tried = 0;
    for flag in FLAGS {
        let Some((text, in_file)) = sample(flag) else { continue };
        let mut settings = company(flag);
        settings.push((flag.name, text));

        let joined: Vec<_> = settings.iter().map(|(name, value)| format!("--{name}={value}")).collect();
        let by_flag = from_args(&joined.iter().map(String::as_str).collect::<Vec<_>>());
        assert_ne!(by_flag, run(load_with(&[], &[], None)), "--{} has no effect", flag.name);

        if !flag.slot.stands_alone() {
            let split: Vec<_> =
                settings.iter().flat_map(|(name, value)| [format!("-{name}"), (*value).into()]).collect();
            let by_two_words = from_args(&split.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(by_two_words, by_flag, "-{} as two words", flag.name);
        }

        let variables: Vec<_> =
            settings.iter().map(|(name, value)| (Flag::named(name).unwrap().variable(), *value)).collect();
        let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert_eq!(run(load_with(&[], &variables, None)), by_flag, "{}", flag.variable());

        if !flag.file_key.is_empty() {
            let mut yaml = String::new();
            for (name, value) in company(flag) {
                yaml.push_str(&format!("{name}: {value}\n"));
            }
            match flag.file_key.split_once('.') {
                Some((section, key)) => yaml.push_str(&format!("{section}:\n  {key}: {in_file}\n")),
                None => yaml.push_str(&format!("{}: {in_file}\n", flag.file_key)),
            }
            let by_file = run(load_with(&["--config-file=f"], &[], Some(&yaml)));
            assert_eq!(by_file, by_flag, "in a file: {yaml}");
        }
        tried += 1;
    }
    assert!(tried > 110, "only {tried} of {} flags were tried", FLAGS.len());
}

#[test]
fn flags_have_distinct_names_and_keys() {
    for (index, flag) in FLAGS.iter().enumerate() {
        for other in &FLAGS[index + 1..] {
            assert_ne!(flag.name, other.name);
            assert!(flag.file_key.is_empty() || flag.file_key != other.file_key, "{}", flag.name);
        }
    }
}

#[test]
fn without_arguments_the_defaults_are_etcds() {
    let config = from_args(&[]);
    assert_eq!(config.data_dir, Path::new("default.etcd"));
    assert_eq!(config.wal_dir(), Path::new("default.etcd/member/wal"));
    assert_eq!(texts(&config.listen_client_urls), ["http://localhost:2379"]);
    assert_eq!(config.initial_cluster, "default=http://localhost:2380");
    assert_eq!(config.quota_bytes(), Some(2 << 30));
    assert_eq!(config.auto_compaction, AutoCompaction::Off);
    assert_eq!((config.heartbeat_ms, config.election_ms), (100, 1000));
    assert_eq!(config, Config { data_dir: "default.etcd".into(), ..Config::default() });
}

#[test]
fn go_flag_syntax() {
    assert_eq!(from_args(&["-name", "a", "--name=b"]).name, "b", "the last one counts");
    assert!(!from_args(&["--pre-vote=F"]).pre_vote);
    assert_eq!(from_args(&["--max-txn-ops", "0x10"]).max_txn_ops, 16);
    for (arguments, error) in [
        (vec!["--nope"], "flag provided but not defined: -nope"),
        (vec!["-nope=1"], "flag provided but not defined: -nope"),
        (vec!["---name=x"], "bad flag syntax: ---name=x"),
        (vec!["--=x"], "bad flag syntax: --=x"),
        (vec!["--heartbeat-interval"], "flag needs an argument: -heartbeat-interval"),
        (vec!["--heartbeat-interval=abc"], "invalid value \"abc\" for flag -heartbeat-interval: parse error"),
        (vec!["--snapshot-count=-5"], "invalid value \"-5\" for flag -snapshot-count: parse error"),
        (
            vec!["--max-concurrent-streams=4294967296"],
            "invalid value \"4294967296\" for flag -max-concurrent-streams: value out of range",
        ),
        (vec!["--pre-vote=maybe"], "invalid boolean value \"maybe\" for -pre-vote: parse error"),
        (vec!["--grpc-keepalive-timeout=5"], "invalid value \"5\" for flag -grpc-keepalive-timeout: parse error"),
        (vec!["--initial-cluster-state=foo"], "invalid value \"foo\" for flag -initial-cluster-state: invalid value"),
        (
            vec!["--listen-client-urls=foo"],
            "invalid value \"foo\" for flag -listen-client-urls: URL scheme must be http, https, unix, or unixs: foo",
        ),
    ] {
        assert_eq!(usage(&arguments), error);
    }
    assert!(usage(&["--cors="]).starts_with("invalid value \"\" for flag -cors: "));
    assert!(matches!(load_with(&["--name=a", "-h"], &[], None).wish, Wish::Help));
    assert!(matches!(load_with(&["--version"], &[], None).wish, Wish::Version));
}

#[test]
fn what_does_not_work_is_refused_in_etcds_words() {
    use Stage::{Start, Verify};
    for (arguments, error, stage) in [
        (vec!["stray"], "\"stray\" is not a valid flag", Verify),
        (vec!["--pre-vote", "foo"], "\"foo\" is not a valid flag", Verify),
        (
            vec!["--listen-client-urls=http://127.0.0.1:2379"],
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
            Verify,
        ),
        (
            vec!["--listen-peer-urls=http://foo.bar:2380"],
            "expected IP in URL for binding (http://foo.bar:2380)",
            Verify,
        ),
        (vec!["--heartbeat-interval=0"], "--heartbeat-interval must be >0 (set to 0ms)", Verify),
        (vec!["--election-timeout=0"], "--election-timeout must be >0 (set to 0ms)", Verify),
        (
            vec!["--election-timeout=100"],
            "--election-timeout[100ms] should be at least as 5 times as --heartbeat-interval[100ms]",
            Verify,
        ),
        (
            vec!["--election-timeout=60000"],
            "--election-timeout[60000ms] is too long, and should be set less than 50000ms",
            Verify,
        ),
        (vec!["--auto-compaction-mode=foo"], "unknown auto-compaction-mode \"foo\"", Verify),
        (
            vec!["--auto-compaction-retention=foo"],
            "error parsing CompactionRetention: time: invalid duration \"foo\"",
            Start,
        ),
        (vec!["--logger=capnslog"], "--logger=capnslog is removed in v3.5", Verify),
        (vec!["--logger=foo"], "unknown logger option \"foo\"", Verify),
        (
            vec!["--enable-log-rotation"],
            "--log-outputs requires a single file path when --log-rotate-config-json is defined",
            Verify,
        ),
        (
            vec!["--discovery-token=t", "--discovery-endpoints=e", "--initial-cluster=a=http://localhost:2380"],
            "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \
             \"discovery-endpoints\" or \"discovery-srv\"",
            Verify,
        ),
        (vec!["--discovery-token=t"], "both --discovery-token and --discovery-endpoints must be set", Verify),
        (vec!["--compact-hash-check-time=0s"], "--compact-hash-check-time must be >0 (set to 0s)", Verify),
        (
            vec!["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
            "min version (TLS1.3) is greater than max version (TLS1.2)",
            Verify,
        ),
        (
            vec!["--tls-min-version=TLS1.3", "--cipher-suites=TLS_AES_128_GCM_SHA256"],
            "cipher suites cannot be configured when only TLS1.3 is enabled",
            Verify,
        ),
        (vec!["--cipher-suites=NOPE"], "unexpected TLS cipher suite \"NOPE\"", Start),
        (
            vec!["--feature-gates=LeaseCheckpoint=false,LeaseCheckpointPersist=true"],
            "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint",
            Verify,
        ),
        (vec!["--feature-gates=Nope=true"], "unrecognized feature gate: Nope", Verify),
        (
            vec!["--listen-peer-urls=https://127.0.0.1:2380"],
            "cannot listen on TLS for 127.0.0.1:2380: KeyFile and CertFile are not presented",
            Start,
        ),
        (
            vec!["--listen-client-urls=https://127.0.0.1:1", "--advertise-client-urls=https://127.0.0.1:1"],
            "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:1 with HTTPS scheme",
            Start,
        ),
        (
            vec!["--listen-client-http-urls=http://localhost:2379"],
            "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url http://localhost:2379",
            Start,
        ),
        (vec!["--log-level=foo"], "unrecognized level: \"foo\"", Stage::Panic),
        (vec!["--config-file=/nope"], "open /nope: no such file or directory", Verify),
    ] {
        assert_eq!(failure(load_with(&arguments, &[], None)), (error.to_owned(), stage), "{arguments:?}");
    }
}

#[test]
fn a_flag_and_its_variable_must_not_both_be_set() {
    let (error, stage) = failure(load_with(&["--name=y"], &[("ETCD_NAME", "x")], None));
    assert!(error.starts_with("conflicting environment variable is shadowed"), "{error}");
    assert_eq!(stage, Stage::Fatal);
}

#[test]
fn the_environment_is_used_and_what_was_used_is_told() {
    let environment =
        [("ETCD_NAME", "x"), ("ETCD_VERSION", "1"), ("ETCD_FOO", "y"), ("ETCD_DATA_DIR", ""), ("HOME", "/")];
    let loaded = load_with(&[], &environment, None);
    assert_eq!(
        loaded.notices[..4],
        [
            Notice::SpecialVariable { name: "ETCD_VERSION".into(), value: "1".into() },
            Notice::Environment { name: "ETCD_NAME".into(), value: "x".into() },
            Notice::UnknownVariable("ETCD_FOO=y".into()),
            Notice::Running(vec!["etcd".into()]),
        ]
    );
    let config = run(loaded);
    assert_eq!((config.name.as_str(), config.data_dir.to_str()), ("x", Some("x.etcd")));
    let (error, _) = failure(load_with(&[], &[("ETCD_HEARTBEAT_INTERVAL", "x")], None));
    assert_eq!(error, "invalid value \"x\" for ETCD_HEARTBEAT_INTERVAL: parse error");
}

/// The texts are those of 3.5.1.
#[test]
fn a_config_file_is_read_strictly() {
    let verify = |yaml: &str| failure(load_with(&["--config-file=f"], &[], Some(yaml)));
    let decoding = "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal ";
    for (yaml, error) in [
        ("heartbeat-interval: abc", "string into Go struct field configYAML.heartbeat-interval of type uint"),
        ("heartbeat-interval: \"7\"", "string into Go struct field configYAML.heartbeat-interval of type uint"),
        ("listen-client-urls: [foo]", "array into Go struct field configYAML.listen-client-urls of type string"),
        (
            "grpc-keepalive-min-time: 5s",
            "string into Go struct field configYAML.grpc-keepalive-min-time of type time.Duration",
        ),
        ("log-outputs: stderr", "string into Go struct field configYAML.log-outputs of type []string"),
        ("name: 5", "number into Go struct field configYAML.name of type string"),
        ("snapshot-count: 1.5", "number 1.5 into Go struct field configYAML.snapshot-count of type uint"),
        (
            "peer-transport-security:\n  auto-tls: 1",
            "number into Go struct field securityConfig.peer-transport-security.auto-tls of type bool",
        ),
    ] {
        assert_eq!(verify(yaml), (format!("{decoding}{error}"), Stage::Verify), "{yaml}");
    }
    assert_eq!(
        verify("listen-client-urls: foo"),
        (
            "unexpected error setting up listen-client-urls: URL scheme must be http, https, unix, or unixs: foo"
                .into(),
            Stage::Bare
        )
    );
    assert_eq!(verify("initial-cluster-state: foo").0, "unexpected clusterState \"foo\"");
    assert!(verify("name: [x").0.starts_with("error converting YAML to JSON: yaml: "));
}

#[test]
fn a_config_file_hides_flags_and_environment() {
    let yaml = "name: from-file\nunknown-key: 3\nlisten-client-urls: http://127.0.0.1:2379\npre-vote: no\n";
    let loaded =
        load_with(&["--name=x", "--config-file=f"], &[("ETCD_MAX_TXN_OPS", "7"), ("ETCD_NAME", "y")], Some(yaml));
    assert_eq!(loaded.notices[0], Notice::FileLoaded { path: "f".into() });
    let config = run(loaded);
    assert_eq!((config.name.as_str(), config.max_txn_ops, config.pre_vote), ("from-file", 128, false));
    let by_variable = run(load_with(&[], &[("ETCD_CONFIG_FILE", "f")], Some("{\"name\": \"json\"}")));
    assert_eq!(by_variable.name, "json");
    assert_eq!(run(load_with(&["--config-file=f"], &[], Some(""))).name, "default");
}

#[test]
fn the_default_cluster_follows_name_and_address() {
    assert_eq!(from_args(&["--name=abc"]).initial_cluster, "abc=http://localhost:2380");
    assert_eq!(from_args(&["--name=abc", "--initial-cluster=x=http://a:1"]).initial_cluster, "x=http://a:1");
    let everywhere = from_args(&[
        "--name=abc",
        "--listen-peer-urls=http://0.0.0.0:7777",
        "--listen-client-urls=http://0.0.0.0:8888",
        "--advertise-client-urls=http://localhost:2379",
    ]);
    assert_eq!(texts(&everywhere.advertise_peer_urls), ["http://10.1.2.3:7777"]);
    assert_eq!(texts(&everywhere.advertise_client_urls), ["http://10.1.2.3:8888"]);
    assert_eq!(everywhere.initial_cluster, "abc=http://10.1.2.3:7777");
    assert_eq!(from_args(&["--discovery-srv=example.com"]).initial_cluster, "");
}

#[test]
fn retention_is_hours_a_duration_or_a_number_of_revisions() {
    let retention = |mode: &str, text: &str| {
        let (mode, text) = (format!("--auto-compaction-mode={mode}"), format!("--auto-compaction-retention={text}"));
        from_args(&[&mode, &text]).auto_compaction
    };
    assert_eq!(retention("periodic", "2"), AutoCompaction::Periodic(Duration::from_secs(7200)));
    assert_eq!(retention("periodic", "5m"), AutoCompaction::Periodic(Duration::from_secs(300)));
    assert_eq!(retention("periodic", "0s"), AutoCompaction::Off);
    assert_eq!(retention("revision", "1000"), AutoCompaction::Revision(1000));
    assert_eq!(retention("revision", "0"), AutoCompaction::Off);
}

#[test]
fn flags_of_older_versions_work_and_say_what_has_replaced_them() {
    let loaded = load_with(
        &[
            "--experimental-compact-hash-check-enabled",
            "--experimental-warning-apply-duration=1s",
            "--snapshot",
            "--v2-deprecation=gone",
        ],
        &[],
        None,
    );
    let replaced = |flag, by| Notice::Replaced { flag, by };
    for notice in [
        replaced("experimental-compact-hash-check-enabled", "--feature-gates=CompactHashCheck=true"),
        replaced("experimental-warning-apply-duration", "--warning-apply-duration"),
        Notice::Ignored { flag: "snapshot" },
        Notice::Ignored { flag: "v2-deprecation" },
    ] {
        assert!(loaded.notices.contains(&notice), "{notice:?}");
    }
    let config = run(loaded);
    assert!(config.features.compact_hash_check);
    assert_eq!(config.warning_apply_duration, Duration::from_secs(1));
}

#[test]
fn a_proxy_of_the_v2_api_can_be_asked_for() {
    for (text, mode) in [("on", ProxyMode::On), ("readonly", ProxyMode::Readonly), ("off", ProxyMode::Off)] {
        assert_eq!(from_args(&[&format!("--proxy={text}")]).proxy.mode, mode);
    }
    assert!(usage(&["--proxy=other"]).contains("proxy"));
    assert!(from_args(&["--discovery-fallback=proxy"]).discovery.falls_back);
    assert!(!from_args(&["--discovery-fallback=exit"]).discovery.falls_back);
}

#[test]
fn the_help_shows_every_flag_with_its_default() {
    let text = help();
    for flag in FLAGS {
        assert!(text.contains(&format!("  --{}", flag.name)), "{}", flag.name);
        assert!(flag.life != Life::Current || flag.help.ends_with('.'), "{}", flag.name);
    }
    assert!(text.contains("--data-dir '${name}.etcd'"));
    assert!(text.contains("--snapshot-count '10000'"));
    assert_eq!(version().lines().next(), Some("etcd Version: 3.7.1"));
}

/// `docs/flags.md` names every flag once, in the order of the help, and says of old ones what has become of them.
#[test]
fn the_documented_flags_are_those_of_the_table() {
    let document = include_str!("../../../../docs/flags.md");
    let rows: Vec<[&str; 3]> = document
        .lines()
        .filter(|line| line.starts_with("| `--"))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            cells.try_into().unwrap_or_else(|_| panic!("not three cells: {line}"))
        })
        .collect();
    let documented: Vec<&str> = rows.iter().map(|[name, ..]| name.trim_matches('`').trim_start_matches('-')).collect();
    let table: Vec<&str> = flags::FLAGS.iter().map(|flag| flag.name).collect();
    assert_eq!(documented, table);
    for (flag, [name, _, here]) in flags::FLAGS.iter().zip(rows) {
        match flag.life {
            Life::Current => {
                let kind = here.split([';', ':', ',']).next().unwrap_or_default();
                assert!(["works", "accepted", "refused"].contains(&kind), "{name}: {here}");
            }
            Life::Replaced(by) => assert_eq!(here, format!("old name: {by}"), "{name}"),
            Life::Ignored => assert_eq!(here, "ignored", "{name}"),
        }
    }
    for title in flags::Section::ALL.map(flags::Section::title) {
        assert!(document.contains(&format!("## {title}\n")), "{title}");
    }
}
