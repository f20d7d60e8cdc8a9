//! A file that we wrote in the hands of a real etcd: `etcdctl snapshot status` reads it, `etcdctl snapshot restore` makes
//! a data directory of it, and etcd serves it, deletes from it, compacts and defragments it.
//!
//! Needs `etcd` and `etcdctl` (3.4 or 3.5) on the path, or in the directory that `REAL_ETCD_DIR` names; without them the
//! test says so and passes.

use bolt::{HashScope, Plan, Reader, Writer, hash};
use bytes::Bytes;
use prost::Message;
use proto::mvccpb::KeyValue;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const KEYS: i64 = 20_000;

type Items = Vec<(Vec<u8>, Vec<u8>)>;

/// The contents of a member: revisions 2 to `KEYS + 1`, one key each, some of them larger than a page.
fn contents() -> BTreeMap<&'static str, Items> {
    let names =
        ["alarm", "auth", "authRoles", "authUsers", "cluster", "key", "lease", "members", "members_removed", "meta"];
    let mut buckets: BTreeMap<_, _> = names.map(|name| (name, Vec::new())).into();
    buckets.insert("cluster", vec![(b"clusterVersion".to_vec(), b"3.4.0".to_vec())]);
    buckets.insert("meta", vec![(b"consistent_index".to_vec(), 7u64.to_be_bytes().to_vec())]);
    let revisions = (0..KEYS).map(|number| {
        let revision = number + 2;
        let value_len = match number {
            777 => 1_400_000,
            number if number % 1000 == 5 => 10_000,
            number => number as usize * 7 % 500,
        };
        let kv = KeyValue {
            key: Bytes::from(format!("key/{number:06}")),
            value: Bytes::from(vec![b'v'; value_len]),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: 0,
        };
        let key = [&revision.to_be_bytes()[..], b"_", &0i64.to_be_bytes()].concat();
        (key, kv.encode_to_vec())
    });
    buckets.insert("key", revisions.collect());
    buckets
}

/// Writes a snapshot file as etcd streams it, SHA-256 at the end.
fn write_snapshot(path: &Path) -> Bytes {
    let contents = contents();
    let mut plan = Plan::new();
    for (name, items) in &contents {
        plan.bucket(name.as_bytes()).unwrap();
        for (key, value) in items {
            plan.item(key.len(), value.len()).unwrap();
        }
    }
    let layout = plan.finish().unwrap();
    let mut writer = Writer::new(Vec::new(), layout).unwrap();
    for (name, items) in &contents {
        writer.bucket(name.as_bytes()).unwrap();
        for (key, value) in items {
            writer.item(key, value).unwrap();
        }
    }
    let mut file = writer.finish().unwrap();
    let sum = Sha256::digest(&file);
    file.extend(sum);
    std::fs::write(path, &file).unwrap();
    Bytes::from(file)
}

/// Stops the server when the test ends, however it ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(name: &str) -> PathBuf {
    std::env::var_os("REAL_ETCD_DIR").map_or_else(|| name.into(), |dir| Path::new(&dir).join(name))
}

fn is_installed(name: &str) -> bool {
    Command::new(program(name)).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

fn etcdctl(args: &[&str]) -> Command {
    let mut command = Command::new(program("etcdctl"));
    command.env("ETCDCTL_API", "3").args(args);
    command
}

fn json(args: &[&str]) -> serde_json::Value {
    let output = etcdctl(args).args(["-w", "json"]).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn free_url() -> String {
    let listener = TcpListener::bind("127.0.0.9:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn a_real_etcd_takes_our_file_for_its_own() {
    if !is_installed("etcd") || !is_installed("etcdctl") {
        eprintln!("skipped: no etcd and etcdctl on the path");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let snapshot = dir.path().join("snapshot.db");
    let written = write_snapshot(&snapshot);
    let snapshot = snapshot.to_str().unwrap();

    let status = json(&["snapshot", "status", snapshot]);
    assert_eq!(status["hash"], hash(&Reader::open(written).unwrap(), HashScope::File).unwrap());
    assert_eq!(status["revision"], KEYS + 1);
    assert_eq!(status["totalKey"], KEYS + 2);

    let data_dir = dir.path().join("data");
    let (client, peer) = (free_url(), free_url());
    let cluster = format!("m={peer}");
    let member = ["--name", "m", "--initial-cluster", &cluster, "--initial-advertise-peer-urls", &peer];
    let restored =
        etcdctl(&["snapshot", "restore", snapshot, "--data-dir"]).arg(&data_dir).args(member).output().unwrap();
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));

    let mut server = Command::new(program("etcd"));
    server.arg("--data-dir").arg(&data_dir).args(member);
    server.args(["--listen-peer-urls", &peer, "--listen-client-urls", &client, "--advertise-client-urls", &client]);
    let server = Server(server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let deadline = Instant::now() + Duration::from_secs(30);
    while !etcdctl(&["endpoint", "health", "--endpoints", &client]).output().unwrap().status.success() {
        assert!(Instant::now() < deadline, "etcd does not come up on the restored directory");
    }

    let ask = |args: &[&str]| json(&[&["--endpoints", client.as_str()], args].concat());
    assert_eq!(ask(&["get", "key/", "--prefix", "--keys-only", "--limit", "1"])["count"], KEYS);
    let large = ask(&["get", "key/000777"]);
    assert_eq!(large["kvs"][0]["value"].as_str().unwrap().len(), 1_400_000usize.div_ceil(3) * 4);
    assert_eq!(large["kvs"][0]["mod_revision"], 779);
    assert_eq!(ask(&["del", "key/001", "key/019"])["deleted"], 18_000);

    // Takes bbolt through our pages: it deletes the revisions of 18,000 keys and merges what is left of their pages.
    let revision = (KEYS + 2).to_string();
    let compacted = etcdctl(&["--endpoints", &client, "compaction", "--physical", &revision]).output().unwrap();
    assert!(compacted.status.success(), "{}", String::from_utf8_lossy(&compacted.stderr));
    let defragmented = etcdctl(&["--endpoints", &client, "defrag"]).output().unwrap();
    assert!(defragmented.status.success(), "{}", String::from_utf8_lossy(&defragmented.stderr));
    assert_eq!(ask(&["get", "key/", "--prefix", "--keys-only", "--limit", "1"])["count"], KEYS - 18_000);
    drop(server);

    let theirs = Reader::open(Bytes::from(std::fs::read(data_dir.join("member/snap/db")).unwrap())).unwrap();
    let left = theirs.bucket(b"key").unwrap().unwrap().items().filter(|item| item.is_ok()).count() as i64;
    assert!((KEYS - 18_000..=KEYS - 17_999).contains(&left), "{left} revisions left"); // 3.4 drops the tombstones
}
