//! Debian's etcdctl 3.4 does its everyday work on our server. Skipped where it is not installed (`.ci/peers`).

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use keelson_tests::harness::{Options, Server, etcdctl, ours};

/// How long a line that must come may take.
const LINE_WITHIN: Duration = Duration::from_secs(15);

/// A server and the tool to talk to it.
struct Cluster {
    server: Server,
    tool: PathBuf,
}

/// What a command wrote, and how it ended.
struct Outcome {
    stdout: String,
    stderr: String,
    code: Option<i32>,
}

impl Cluster {
    fn start(flags: &[&str]) -> Option<Cluster> {
        let Some(tool) = etcdctl() else {
            eprintln!("skipped: there is no etcdctl; .ci/peers fetches it");
            return None;
        };
        let options = Options { flags: flags.iter().map(Into::into).collect(), ..Options::default() };
        Some(Cluster { server: Server::start(&ours(), options).expect("the server starts"), tool })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.tool);
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(self.server.client_addr().to_string());
        command.args(arguments);
        command
    }

    fn run_with_input(&self, arguments: &[&str], input: &str) -> Outcome {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("etcdctl starts");
        child.stdin.take().expect("stdin is a pipe").write_all(input.as_bytes()).expect("etcdctl reads its input");
        let output = child.wait_with_output().expect("etcdctl ends");
        Outcome {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code(),
        }
    }

    /// What a command that must succeed writes to stdout.
    fn run(&self, arguments: &[&str]) -> String {
        let Outcome { stdout, stderr, code } = self.run_with_input(arguments, "");
        assert_eq!(code, Some(0), "etcdctl {arguments:?}: {stdout}{stderr}");
        stdout
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let text = self.run(&[arguments, &["--write-out=json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|problem| panic!("{arguments:?}: {problem}: {text}"))
    }
}

/// A command that goes on until it is killed, line by line.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(mut command: Command) -> Running {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("etcdctl starts");
        let output = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let lines = output.lines().map_while(Result::ok);
            lines.take_while(|line| sender.send(line.clone()).is_ok()).for_each(drop);
        });
        Running { child, lines }
    }

    fn expect(&self, lines: &[&str]) {
        for expected in lines {
            let line = self.lines.recv_timeout(LINE_WITHIN);
            assert_eq!(line.as_deref(), Ok(*expected), "of {lines:?}");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn keys_are_put_read_and_deleted() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    assert_eq!(cluster.run(&["put", "a", "1"]), "OK\n");
    assert_eq!(cluster.run(&["put", "a", "2", "--prev-kv"]), "OK\na\n1\n");
    assert_eq!(cluster.run_with_input(&["put", "b"], "from stdin").stdout, "OK\n");
    assert_eq!(cluster.run(&["get", "a"]), "a\n2\n");
    assert_eq!(cluster.run(&["get", "missing"]), "");
    assert_eq!(cluster.run(&["get", "", "--prefix"]), "a\n2\nb\nfrom stdin\n");
    assert_eq!(cluster.run(&["get", "a", "--rev=2"]), "a\n1\n");
    assert_eq!(cluster.run(&["get", "", "--prefix", "--keys-only", "--order=DESCEND"]), "b\n\na\n\n");
    assert_eq!(cluster.run(&["get", "a", "z", "--limit=1", "--print-value-only"]), "2\n");
    assert_eq!(cluster.run(&["put", "a", "--ignore-value"]), "OK\n");
    assert_eq!(cluster.run(&["del", "a", "--prev-kv"]), "1\na\n2\n");
    assert_eq!(cluster.run(&["del", "missing"]), "0\n");
    assert_eq!(cluster.run(&["del", "", "--prefix"]), "1\n");
}

#[test]
fn errors_keep_their_texts_and_exit_codes() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    cluster.run(&["put", "a", "1"]);
    let future = cluster.run_with_input(&["get", "a", "--rev=100"], "");
    assert_eq!(future.code, Some(1));
    assert!(future.stderr.contains("etcdserver: mvcc: required revision is a future revision"), "{}", future.stderr);
    assert_eq!(cluster.run(&["compaction", "2"]), "compacted revision 2\n");
    let compacted = cluster.run_with_input(&["compaction", "2"], "");
    assert_eq!(compacted.code, Some(1));
    assert!(compacted.stderr.contains("mvcc: required revision has been compacted"), "{}", compacted.stderr);
    let empty = cluster.run_with_input(&["put", "", "1"], "");
    assert!(empty.stderr.contains("etcdserver: key is not provided"), "{}", empty.stderr);
    let lease = cluster.run_with_input(&["put", "a", "1", "--lease=1234"], "");
    assert!(lease.stderr.contains("etcdserver: requested lease not found"), "{}", lease.stderr);
}

#[test]
fn a_txn_runs_one_of_its_branches() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    cluster.run(&["put", "a", "1"]);
    let txn = "value(\"a\") = \"1\"\nversion(\"b\") = \"0\"\n\nput b 2\nget a\n\nput c 3\n\n";
    assert_eq!(cluster.run_with_input(&["txn"], txn).stdout, "SUCCESS\n\nOK\n\na\n1\n");
    assert_eq!(cluster.run_with_input(&["txn"], txn).stdout, "FAILURE\n\nOK\n");
    assert_eq!(cluster.run(&["get", "", "--prefix"]), "a\n1\nb\n2\nc\n3\n");
    let duplicate = cluster.run_with_input(&["txn"], "\nput a 1\nput a 2\n\n\n");
    assert!(duplicate.stderr.contains("etcdserver: duplicate key given in txn request"), "{}", duplicate.stderr);
}

#[test]
fn a_watch_shows_the_past_and_what_comes() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    cluster.run(&["put", "a/1", "old"]);
    cluster.run(&["put", "other", "unseen"]);
    let watch = Running::start(cluster.command(&["watch", "a/", "--prefix", "--rev=1", "--prev-kv"]));
    watch.expect(&["PUT", "a/1", "old"]);
    cluster.run(&["put", "a/1", "new"]);
    watch.expect(&["PUT", "a/1", "old", "a/1", "new"]);
    cluster.run(&["del", "a/1"]);
    watch.expect(&["DELETE", "a/1", "new", "a/1", ""]);
}

#[test]
fn a_lease_takes_its_keys_with_it() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let granted = cluster.run(&["lease", "grant", "500"]);
    let lease = granted.split(' ').nth(1).expect("an ID").to_owned();
    assert_eq!(granted, format!("lease {lease} granted with TTL(500s)\n"));
    for key in ["a", "b"] {
        cluster.run(&["put", key, "1", &format!("--lease={lease}")]);
    }
    assert_eq!(cluster.run(&["lease", "list"]), format!("found 1 leases\n{lease}\n"));
    let left = cluster.run(&["lease", "timetolive", &lease, "--keys"]);
    assert!(left.starts_with(&format!("lease {lease} granted with TTL(500s), remaining(")), "{left}");
    assert!(left.ends_with("s), attached keys([a b])\n"), "{left}");
    let remaining = left.split("remaining(").nth(1).and_then(|rest| rest.split('s').next()?.parse::<u32>().ok());
    assert!(remaining.is_some_and(|seconds| (480..=500).contains(&seconds)), "{left}");
    let renewed = cluster.run(&["lease", "keep-alive", "--once", &lease]);
    assert_eq!(renewed, format!("lease {lease} keepalived with TTL(500)\n"));
    assert_eq!(cluster.run(&["lease", "revoke", &lease]), format!("lease {lease} revoked\n"));
    assert_eq!(cluster.run(&["get", "", "--prefix"]), "");
    assert_eq!(cluster.run(&["lease", "timetolive", &lease]), format!("lease {lease} already expired\n"));
}

#[test]
fn a_lease_that_nobody_renews_expires() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let watch = Running::start(cluster.command(&["watch", "", "--prefix", "--rev=1"]));
    let granted = cluster.run(&["lease", "grant", "1"]);
    let lease = granted.split(' ').nth(1).expect("an ID").to_owned();
    cluster.run(&["put", "session", "alive", &format!("--lease={lease}")]);
    watch.expect(&["PUT", "session", "alive", "DELETE", "session", ""]);
}

#[test]
fn a_snapshot_is_one_that_etcd_accepts() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    for number in 0..20 {
        cluster.run(&["put", &format!("key{number}"), "value"]);
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("backup.db");
    let path = file.to_str().expect("a plain path");
    let saved = cluster.run(&["snapshot", "save", path]);
    assert!(saved.contains(&format!("Snapshot saved at {path}")), "{saved}");
    let status = cluster.json(&["snapshot", "status", path]);
    assert_eq!(status["revision"], 21, "{status}");
    assert!(status["totalKey"].as_u64() >= Some(20), "{status}");
    // A restore checks the SHA-256 at the end of the file.
    let restored = folder.path().join("restored");
    cluster.run(&["snapshot", "restore", path, "--data-dir", restored.to_str().expect("a plain path")]);
    assert!(Path::new(&restored).join("member/snap/db").is_file());
}

#[test]
fn endpoints_and_members_are_listed() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    cluster.run(&["put", "a", "1"]);
    let health = cluster.run_with_input(&["endpoint", "health"], "");
    assert!((health.stdout + &health.stderr).contains("is healthy: successfully committed proposal"));
    let status = cluster.json(&["endpoint", "status"]);
    let status = &status[0]["Status"];
    assert_eq!(status["header"]["revision"], 2, "{status}");
    assert_eq!(status["leader"], status["header"]["member_id"], "{status}");
    assert!(status["dbSize"].as_u64() > Some(0), "{status}");
    assert!(status["raftIndex"].as_u64() >= status["raftAppliedIndex"].as_u64(), "{status}");
    let members = cluster.run(&["member", "list"]);
    let url = cluster.server.client_url();
    assert!(members.contains(", started, default, http://127.0.0.1:"), "{members}");
    assert!(members.ends_with(&format!(", {url}, false\n")), "{members}");
    let hash = cluster.json(&["endpoint", "hashkv"]);
    assert!(hash[0]["HashKV"]["hash"].as_u64() > Some(0), "{hash}");
}

#[test]
fn a_full_store_says_so_and_works_again_after_making_room() {
    let Some(cluster) = Cluster::start(&["--quota-backend-bytes=4000000"]) else { return };
    let value = "x".repeat(100_000);
    let full = (0..100).find_map(|number| {
        let put = cluster.run_with_input(&["put", &format!("key{number}")], &value);
        (put.code != Some(0)).then_some(put.stderr)
    });
    let full = full.expect("4 MB hold no 100 values of 100 kB");
    assert!(full.contains("etcdserver: mvcc: database space exceeded"), "{full}");
    let alarms = cluster.run(&["alarm", "list"]);
    assert!(alarms.starts_with("memberID:") && alarms.contains(" alarm:NOSPACE"), "{alarms}");

    // Reads, deletes and compactions still work, and make room.
    assert_eq!(cluster.run(&["get", "key0", "--print-value-only"]).trim_end(), value);
    let deleted = cluster.run(&["del", "key", "--prefix"]);
    assert!(deleted.trim_end().parse::<u32>().is_ok_and(|keys| keys > 10), "{deleted}");
    let revision = cluster.json(&["get", "key0"])["header"]["revision"].to_string();
    cluster.run(&["compaction", "--physical", &revision]);
    cluster.run(&["defrag"]);
    cluster.run(&["alarm", "disarm"]);
    assert_eq!(cluster.run(&["alarm", "list"]), "");
    assert_eq!(cluster.run(&["put", "again", "1"]), "OK\n");
}

#[test]
fn a_lock_is_held_while_its_command_runs() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    assert_eq!(cluster.run(&["lock", "mutex", "echo", "locked"]), "locked\n");
    let holder = Running::start(cluster.command(&["elect", "leadership", "me"]));
    let key = holder.lines.recv_timeout(LINE_WITHIN).expect("the key of the leadership");
    assert!(key.starts_with("leadership/"), "{key}");
    holder.expect(&["me"]);
    assert_eq!(cluster.run(&["get", &key]), format!("{key}\nme\n"));
}

#[test]
fn a_clean_stop_and_a_second_start_keep_everything() {
    let Some(mut cluster) = Cluster::start(&[]) else { return };
    cluster.run(&["put", "a", "1"]);
    cluster.run(&["put", "a", "2"]);
    let before = cluster.json(&["endpoint", "hashkv"])[0]["HashKV"]["hash"].clone();
    cluster.server.stop().expect("SIGTERM ends it");
    cluster.server.spawn().and_then(|()| cluster.server.wait_ready()).expect("it starts again");
    assert_eq!(cluster.run(&["get", "a"]), "a\n2\n");
    assert_eq!(cluster.run(&["get", "a", "--rev=2"]), "a\n1\n");
    assert_eq!(cluster.json(&["endpoint", "hashkv"])[0]["HashKV"]["hash"], before);
}
