//! Our state in the hands of a real etcd, and back: etcd is started on a snapshot that we made, as it is after a leader has
//! sent it one, goes on from there, and its data directory then becomes ours again.
//!
//! Needs `etcd` and `etcdctl` (3.4 or 3.5) on the path, or in the directory that `REAL_ETCD_DIR` names; without them the
//! test says so and passes.

mod recorded;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use disk::{Disk, MemDisk, Open, RealDisk};
use keelson_state::{Image, Incoming, LogEntry, Member, Reader, State, import_etcd_db, members};
use prost::Message;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::request_op::Request as Op;
use proto::{membershippb, raftpb};
use recorded::open;
use store::{Options, Store};
use wal::snap::{self, SnapFile};
use wal::{EntryKind, HardState, Identity, SnapshotMark, Wal};

const KEYS: usize = 100_000;
const KEYS_PER_TXN: usize = 100;

fn program(name: &str) -> PathBuf {
    std::env::var_os("REAL_ETCD_DIR").map_or_else(|| name.into(), |dir| Path::new(&dir).join(name))
}

/// `3.4` or `3.5`, if such an etcd is there.
fn installed() -> Option<String> {
    let output = Command::new(program("etcd")).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.lines().next()?.strip_prefix("etcd Version: ")?.to_owned();
    Command::new(program("etcdctl")).arg("version").output().ok()?;
    version.rsplit_once('.').map(|(minor, _)| minor.to_owned())
}

fn free_url() -> String {
    let listener = TcpListener::bind("127.0.0.10:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Applies a log that it makes up.
struct Log {
    state: State,
    index: u64,
}

const TERM: u64 = 3;

impl Log {
    fn apply(&mut self, request: pb::InternalRaftRequest) {
        self.index += 1;
        let applied = self.state.apply(self.index, TERM, &request.encode_to_vec().into()).unwrap();
        applied.result.unwrap();
    }

    fn put(&mut self, puts: impl Iterator<Item = (String, String, i64)>) {
        let op = |(key, value, lease): (String, String, i64)| {
            let put = pb::PutRequest { key: key.into(), value: value.into(), lease, ..Default::default() };
            pb::RequestOp { request: Some(Op::RequestPut(put)) }
        };
        let txn = pb::TxnRequest { success: puts.map(op).collect(), ..Default::default() };
        self.apply(pb::InternalRaftRequest { txn: Some(txn), ..Default::default() });
    }

    fn delete(&mut self, key: &str, end: &str) {
        let request = pb::DeleteRangeRequest {
            key: key.to_owned().into(),
            range_end: end.to_owned().into(),
            ..Default::default()
        };
        self.apply(pb::InternalRaftRequest { delete_range: Some(request), ..Default::default() });
    }
}

/// A member with some history: keys, some of them deleted or with a lease, and a compaction.
fn with_history(member: &Member, version: &str) -> (Log, Reader) {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let (state, reader) = open(&disk);
    let mut log = Log { state, index: 1 };
    let change = raftpb::ConfChange {
        r#type: Some(raftpb::ConfChangeType::ConfChangeAddNode as i32),
        node_id: Some(member.id),
        context: Some(members::add_context(member).into()),
        id: Some(0),
    };
    log.state.apply_conf_change(1, TERM, &change, Bytes::new()).unwrap().result.unwrap();
    let attributes = membershippb::Attributes { name: "m".into(), client_urls: member.client_urls.clone() };
    log.apply(pb::InternalRaftRequest {
        cluster_member_attr_set: Some(membershippb::ClusterMemberAttrSetRequest {
            member_id: member.id,
            member_attributes: Some(attributes),
        }),
        ..Default::default()
    });
    let ver = format!("{version}.0");
    let request = membershippb::ClusterVersionSetRequest { ver };
    log.apply(pb::InternalRaftRequest { cluster_version_set: Some(request), ..Default::default() });
    for id in [7001, 7002] {
        let grant = pb::LeaseGrantRequest { id, ttl: 86_400 };
        log.apply(pb::InternalRaftRequest { lease_grant: Some(grant), ..Default::default() });
    }
    for first in (0..KEYS).step_by(KEYS_PER_TXN) {
        let lease = |n: usize| if n.is_multiple_of(1_000) { 7001 } else { 0 };
        log.put((first..first + KEYS_PER_TXN).map(|n| (format!("key/{n:06}"), format!("value {n}"), lease(n))));
    }
    log.delete("key/0100", "key/0105");
    log.put((0..50).map(|n| (format!("key/{n:06}"), "again".to_owned(), 0)));
    let revision = reader.revision() - 5;
    let compaction = pb::CompactionRequest { revision, physical: false };
    log.apply(pb::InternalRaftRequest { compaction: Some(compaction), ..Default::default() });
    log.put((0..50).map(|n| (format!("late/{n:06}"), "v".repeat(n * 100), 7002)));
    log.delete("late/000007", "");
    (log, reader)
}

/// Makes the data directory of a member that has just received this snapshot.
fn write_data_dir(dir: &Path, member: &Member, image: Image) {
    let (index, term, conf_state) = (image.index(), image.term(), image.conf_state().clone());
    let snap_dir = dir.join("member/snap");
    RealDisk.create_dir_all(&snap_dir).unwrap();
    let data = image.v2_json().clone();
    snap::save(&RealDisk, &snap_dir, &SnapFile { index, term, conf_state: conf_state.clone(), data }).unwrap();
    let file = RealDisk.open(&snap_dir.join("db"), Open::CreateNew).unwrap();
    let mut end = 0;
    for piece in image.into_pieces() {
        let piece = piece.unwrap();
        file.write_at(&piece, end).unwrap();
        end += piece.len() as u64;
    }
    file.sync().unwrap();
    let identity = Identity { node_id: member.id, cluster_id: members::cluster_id(&[member.id]) };
    let mut wal = Wal::create(Arc::new(RealDisk), &dir.join("member/wal"), identity).unwrap();
    wal.save_snapshot(&SnapshotMark { index, term, conf_state: Some(conf_state) }).unwrap();
    let _synced = wal.append(&[], Some(&HardState { term, vote: member.id, commit: index })).unwrap();
}

/// Stops the server when the test ends, however it ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    fn start(dir: &Path, member: &Member) -> Self {
        let (peer, client) = (&member.peer_urls[0], &member.client_urls[0]);
        let mut server = Command::new(program("etcd"));
        server.args(["--name", "m", "--data-dir"]).arg(dir);
        server.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
        server.args(["--initial-cluster", &format!("m={peer}")]);
        server.args(["--listen-client-urls", client, "--advertise-client-urls", client]);
        let log = std::fs::File::create(dir.join("etcd.log")).unwrap();
        server.stdout(Stdio::null()).stderr(log);
        let server = Self(server.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        while !etcdctl(client, &["endpoint", "health"]).output().unwrap().status.success() {
            let log = || std::fs::read_to_string(dir.join("etcd.log")).unwrap();
            assert!(Instant::now() < deadline, "etcd does not come up on our snapshot:\n{}", log());
        }
        server
    }

    fn stop(mut self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        self.0.wait().unwrap();
    }
}

fn etcdctl(client: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program("etcdctl"));
    command.env("ETCDCTL_API", "3").args(["--endpoints", client]).args(args);
    command
}

fn ask(client: &str, args: &[&str]) -> serde_json::Value {
    let output = etcdctl(client, args).args(["-w", "json"]).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn hash_kv(client: &str, revision: i64) -> (u64, i64) {
    let answer = ask(client, &["endpoint", "hashkv", "--rev", &revision.to_string()]);
    let answer = &answer[0]["HashKV"];
    (answer["hash"].as_u64().unwrap(), answer["compact_revision"].as_i64().unwrap())
}

#[test]
fn a_real_etcd_goes_on_from_our_snapshot_and_we_from_its_data() {
    let Some(version) = installed() else {
        eprintln!("skipped: no etcd and etcdctl on the path");
        return;
    };
    let (peer, client) = (free_url(), free_url());
    let member =
        Member { id: 0xabc_def0, peer_urls: vec![peer], client_urls: vec![client.clone()], ..Default::default() };
    let (log, reader) = with_history(&member, &version);
    let conf_state = raftpb::ConfState { voters: vec![member.id], ..Default::default() };
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    write_data_dir(dir, &member, Image::take(&reader, log.index, &conf_state));
    let status = ask(&client, &["snapshot", "status", dir.join("member/snap/db").to_str().unwrap()]);
    assert_eq!(status["revision"], reader.revision());

    let server = Server::start(dir, &member);
    let newest = reader.revision();
    for revision in [newest - 3, newest] {
        let ours = reader.hash_kv(revision).unwrap();
        assert_eq!(hash_kv(&client, revision), (u64::from(ours.hash), ours.compact_revision), "at {revision}");
    }
    let listed = ask(&client, &["member", "list"]);
    assert_eq!((&listed["members"][0]["ID"], &listed["members"][0]["name"]), (&member.id.into(), &"m".into()));
    let keys = |id: &str| ask(&client, &["lease", "timetolive", id, "--keys"])["keys"].as_array().map_or(0, Vec::len);
    // 7001 and 7002 in hex. Of the first one's keys one was deleted and one lost it, of the second one's one was deleted.
    assert_eq!([keys("1b59"), keys("1b5a")], [98, 49]);

    // It goes on, and then we do.
    for n in 0..20 {
        ask(&client, &["put", &format!("theirs/{n}"), "value"]);
    }
    ask(&client, &["del", "key/0200", "key/0201"]);
    assert!(etcdctl(&client, &["compaction", &(newest + 5).to_string()]).status().unwrap().success());
    ask(&client, &["put", "theirs/last", "value", "--lease", "1b59"]);
    let theirs = hash_kv(&client, newest + 22);
    server.stop();

    let snap_dir = dir.join("member/snap");
    let marks = Wal::snapshots(&RealDisk, &dir.join("member/wal")).unwrap();
    let snap = snap::load_newest_available(&RealDisk, &snap_dir, &marks).unwrap().unwrap();
    let from = SnapshotMark { index: snap.index, term: snap.term, conf_state: None };
    let (wal, replay) = Wal::open(Arc::new(RealDisk), &dir.join("member/wal"), from).unwrap();
    drop(wal);
    let entries: Vec<LogEntry> = replay
        .entries
        .into_iter()
        .map(|entry| LogEntry {
            index: entry.index,
            term: entry.term,
            is_conf_change: entry.kind == EntryKind::ConfChange,
            data: entry.data,
        })
        .collect();
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let (_, mut writer, _) = Store::open(disk.clone(), Path::new("/store"), Options::default()).unwrap();
    let file = RealDisk.open(&snap_dir.join("db"), Open::Read).unwrap();
    let incoming = Incoming { name: "db", file, v2_json: &snap.data, index: snap.index, term: snap.term };
    let installed = import_etcd_db(&mut writer, &incoming, &entries).unwrap();
    drop(writer);
    let (mut state, reader) = open(&disk);
    for entry in &entries {
        assert!(!entry.is_conf_change);
        state.apply(entry.index, entry.term, &entry.data).unwrap();
    }
    assert_eq!(installed.mark.index, entries.last().unwrap().index, "etcd stopped cleanly");
    assert_eq!((reader.revision(), reader.compact_revision()), (newest + 22, newest + 5));
    let ours = reader.hash_kv(newest + 22).unwrap();
    assert_eq!((u64::from(ours.hash), ours.compact_revision), theirs);
    let keys = |id| reader.lessor().time_to_live(id, true, 0).unwrap().keys.len();
    assert_eq!([keys(7001), keys(7002)], [98, 49], "one came and one went");
    assert_eq!(reader.members().len(), 1);
    assert_eq!(reader.cluster_version(), Some(format!("{version}.0")));
}
