//! The real etcd takes over data directories that this crate has written to, and gives them back.
//!
//! Needs an etcd 3.4 at `/usr/bin/etcd` (or where `ETCD_3_4` says) with its etcdctl beside it; otherwise these tests say so
//! and pass.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use disk::{Disk, RealDisk};
use keelson_wal as wal;
use prost::Message;
use proto::{etcdserverpb, raftpb};
use wal::{Entry, EntryKind, HardState, Identity, SnapshotMark, Wal};

/// The etcd to test against, or why there is none.
fn etcd() -> Option<PathBuf> {
    let path = std::env::var_os("ETCD_3_4").map_or_else(|| PathBuf::from("/usr/bin/etcd"), PathBuf::from);
    let version = Command::new(&path).arg("--version").output();
    let found = version.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains("etcd Version: 3.4."));
    if !found {
        eprintln!("skipped: {} is not an etcd 3.4", path.display());
    }
    found.then_some(path)
}

/// A running etcd, killed when dropped.
struct Etcd {
    process: Child,
    program: PathBuf,
    client_url: String,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Etcd {
    /// Starts it on a data directory and waits until it serves clients.
    fn start(program: &Path, data_dir: &Path) -> Etcd {
        let [client_url, peer_url] = [(); 2].map(|()| {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            format!("http://127.0.0.1:{port}")
        });
        let mut process = Command::new(program)
            .env_clear()
            .args(["--name", "n1", "--logger", "zap", "--data-dir"])
            .arg(data_dir)
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        let etcd = Etcd { process, program: program.to_owned(), client_url };
        // A thread reads on to the end, or etcd would block on a full pipe.
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || log.lines().map_while(Result::ok).for_each(|line| sender.send(line).unwrap_or(())));
        let mut said = String::new();
        while !said.contains("serving client traffic insecurely") {
            match lines.recv_timeout(Duration::from_secs(30)) {
                Ok(line) => said += &line,
                Err(e) => panic!("etcd does not serve ({e}):\n{said}"),
            }
        }
        etcd
    }

    fn ctl(&self, args: &[&str]) -> String {
        let ctl = self.program.with_file_name("etcdctl");
        let out = Command::new(ctl)
            .env_clear()
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.client_url])
            .args(args)
            .output()
            .unwrap();
        assert!(out.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Ends it as an operator would.
    fn stop(mut self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.process.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "etcd does not stop");
            std::thread::yield_now();
        }
    }
}

fn put(index: u64, term: u64, key: &str, value: &str) -> Entry {
    let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
    let request = etcdserverpb::InternalRaftRequest {
        header: Some(etcdserverpb::RequestHeader { id: 1_000_000 + index, ..Default::default() }),
        put: Some(etcdserverpb::PutRequest { key, value, ..Default::default() }),
        ..Default::default()
    };
    Entry { kind: EntryKind::Normal, term, index, data: request.encode_to_vec().into() }
}

/// Appends `entries` one batch each, as a member that is alone would.
fn append_all(wal: &mut Wal, vote: u64, entries: &[Entry]) {
    for entry in entries {
        let state = HardState { term: entry.term, vote, commit: entry.index - 1 };
        let receipt = wal.append(std::slice::from_ref(entry), Some(&state)).unwrap();
        assert_eq!(receipt.index(), entry.index);
    }
}

/// A log made by us from its first byte, in many segments, is a member's log to etcd, and what etcd adds is one to us.
#[test]
fn etcd_starts_on_a_log_that_we_have_made() {
    let Some(program) = etcd() else { return };
    let temp = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let dir = temp.path().join("member/wal");
    disk.create_dir_all(&temp.path().join("member/snap")).unwrap();

    let identity = Identity { node_id: 0x1234_5678_9abc, cluster_id: 0xcafe };
    let mut wal = Wal::create(disk.clone(), &dir, identity).unwrap();
    wal.set_segment_bytes(20_000);
    let context = format!(r#"{{"id":{},"peerURLs":["http://127.0.0.1:1"],"name":"n1"}}"#, identity.node_id);
    let join = raftpb::ConfChange {
        id: Some(0),
        r#type: Some(raftpb::ConfChangeType::ConfChangeAddNode as i32),
        node_id: Some(identity.node_id),
        context: Some(context.into()),
    };
    let mut entries = vec![
        Entry { kind: EntryKind::ConfChange, term: 1, index: 1, data: join.encode_to_vec().into() },
        Entry { kind: EntryKind::Normal, term: 2, index: 2, data: Bytes::new() },
    ];
    let value = "v".repeat(1000);
    entries.extend((3..=100).map(|index| put(index, 2, &format!("k{index}"), &value)));
    append_all(&mut wal, identity.node_id, &entries);
    assert!(wal.stats().cuts >= 4);
    drop(wal);

    let etcd = Etcd::start(&program, temp.path());
    // The revision of the first put is 2.
    assert!(etcd.ctl(&["get", "k100", "-w", "json"]).contains(r#""mod_revision":99"#));
    assert_eq!(etcd.ctl(&["get", "k3", "--print-value-only"]).trim_end(), value);
    etcd.ctl(&["put", "from", "etcd"]);
    etcd.stop();

    let (mut wal, replay) = Wal::open(disk.clone(), &dir, SnapshotMark::START).unwrap();
    assert_eq!((replay.identity, replay.repaired), (identity, None));
    assert_eq!(replay.entries[..100], entries);
    let last = replay.entries.last().unwrap();
    assert!(last.index > 101 && last.term > 2, "etcd has added entries of its own term");

    // And back once more.
    let term = replay.hard_state.term;
    append_all(&mut wal, identity.node_id, &[put(last.index + 1, term, "from", "us")]);
    drop(wal);
    let etcd = Etcd::start(&program, temp.path());
    assert_eq!(etcd.ctl(&["get", "from", "--print-value-only"]).trim_end(), "us");
}

/// A member that etcd has run goes on with what we append, from its own snapshot.
#[test]
fn etcd_goes_on_where_we_have_appended() {
    let Some(program) = etcd() else { return };
    let temp = tempfile::tempdir().unwrap();
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/datadir-3.4.23.tar.gz");
    let packed = flate2::read::GzDecoder::new(std::fs::File::open(packed).unwrap());
    tar::Archive::new(packed).unpack(temp.path()).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let dir = temp.path().join("member/wal");

    let marks = Wal::snapshots(disk.as_ref(), &dir).unwrap();
    let newest = wal::snap::load_newest_available(disk.as_ref(), &temp.path().join("member/snap"), &marks).unwrap();
    let newest = newest.unwrap();
    let mark = SnapshotMark { index: newest.index, term: newest.term, conf_state: None };
    let (mut wal, replay) = Wal::open(disk.clone(), &dir, mark.clone()).unwrap();
    assert_eq!((replay.entries.len(), wal.last_index()), (10, 212));
    let us = replay.identity.node_id;
    let added: Vec<Entry> = (213..=220).map(|index| put(index, 3, &format!("added/{index}"), "by us")).collect();
    append_all(&mut wal, us, &added);
    let size = std::fs::metadata(dir.join("0000000000000000-0000000000000000.wal")).unwrap().len();
    assert_eq!(size, 64_000_000, "the segment keeps its size");
    drop(wal);

    let etcd = Etcd::start(&program, temp.path());
    assert_eq!(etcd.ctl(&["get", "added/", "--prefix", "--keys-only"]).split_whitespace().count(), 8);
    assert!(etcd.ctl(&["get", "added/220", "-w", "json"]).contains(r#""mod_revision":180"#), "172 + 8");
    etcd.stop();
    let (_, replay) = Wal::open(disk, &dir, mark).unwrap();
    assert_eq!(replay.entries[10..18], added);
}
