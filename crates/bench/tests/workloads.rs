//! Runs workloads once, tiny, against the etcd installed here, so that none rots. Without an etcd nothing is tested,
//! which is said.

use serde_json::Value;
use std::path::Path;
use std::process::Command;

const ETCD: &str = "/usr/bin/etcd";

/// One workload of each kind ends with figures for both servers, and nothing is left behind.
#[test]
fn workloads_of_every_kind_give_figures() {
    if !Path::new(ETCD).exists() {
        eprintln!("skipped: there is no {ETCD}");
        return;
    }
    let dir = std::env::temp_dir().join(format!("keelson-bench-test-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory for this test");
    let json = dir.join("figures.json");
    let workloads = ["put_256b_64", "txn_compare", "watch_fanout", "lease_keepalive", "list_100k_pages", "fill_1m"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_keelson-bench"));
    command.args(["compare", "--rounds", "1", "--seconds", "0.2", "--scale", "0.001"]);
    command.args(["--server", &format!("one={ETCD}"), "--server", &format!("two={ETCD} --max-wals=3")]);
    command.arg("--dir").arg(&dir).arg("--json").arg(&json);
    workloads.iter().for_each(|workload| {
        command.args(["--workload", workload]);
    });
    let output = command.output().expect("keelson-bench runs");
    let stderr = String::from_utf8_lossy(&output.stderr);

    let text = std::fs::read_to_string(&json).expect(&stderr);
    let figures: Value = serde_json::from_str(&text).expect("well-formed figures");
    let measured = figures["workloads"].as_array().expect("a list");
    assert_eq!(measured.len(), workloads.len());
    for workload in measured {
        let failures = workload["failures"].as_array().expect("a list");
        for failure in failures {
            // On a machine that stalls for longer than this test measures, there is nothing to measure.
            assert_eq!(failure["error"], "nothing was answered within the measured time", "{stderr}");
        }
        for metric in workload["metrics"].as_array().expect("a list") {
            for server in ["one", "two"] {
                let rounds = metric["servers"][server]["rounds"].as_array().map_or(0, Vec::len);
                assert!(rounds == 1 || failures.iter().any(|failure| failure["server"] == server), "{workload}");
            }
        }
    }
    std::fs::remove_file(&json).expect("the file is ours");
    let left = std::fs::read_dir(&dir).expect("our directory").count();
    std::fs::remove_dir_all(&dir).expect("our directory");
    assert_eq!(left, 0, "data directories were left behind");
}

/// A program that is no server is reported with the end of its log, not waited for.
#[test]
fn a_server_that_exits_is_reported_at_once() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keelson-bench"));
    command.args(["compare", "--rounds", "1", "--workload", "put_256b_1", "--server", "broken=/bin/false"]);
    let output = command.output().expect("keelson-bench runs");
    assert!(!output.status.success());
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("the server exited (exit status: 1)"), "{stdout}");
}
