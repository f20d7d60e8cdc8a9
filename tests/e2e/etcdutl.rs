//! Snapshots on their way between ours and real etcds: HashKV is the same at each stage.

use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use keelson_tests::harness::{
    Binary, Client, Options, Seat, Server, connect, etcdutl, free_addresses, ours, peer_folders,
};
use proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest, PutRequest, SnapshotRequest,
};
use tempfile::TempDir;

async fn client(server: &Server) -> Client {
    connect(server.client_addr()).await.expect("it can be reached")
}

/// Keys with a history, some deleted and compacted, and one with a lease.
async fn fill(server: &Server) {
    let mut client = client(server).await;
    let put = |key: &'static str, value: String, lease| PutRequest {
        key: Bytes::from(key),
        value: value.into(),
        lease,
        ..PutRequest::default()
    };
    let lease = LeaseGrantRequest { ttl: 5_000, id: 77 };
    client.lease.lease_grant(lease).await.expect("a lease is granted");
    for round in 0..20 {
        for key in ["a", "b", "c"] {
            client.kv.put(put(key, format!("{key}{round}"), 0)).await.expect("a put");
        }
        if round == 10 {
            let delete = DeleteRangeRequest { key: Bytes::from("b"), ..DeleteRangeRequest::default() };
            client.kv.delete_range(delete).await.expect("a delete");
            let compaction = CompactionRequest { revision: 25, physical: true };
            client.kv.compact(compaction).await.expect("a compaction");
        }
    }
    client.kv.put(put("leased", "x".into(), 77)).await.expect("a put");
    let delete = DeleteRangeRequest { key: Bytes::from("c"), ..DeleteRangeRequest::default() };
    client.kv.delete_range(delete).await.expect("a delete");
}

/// Hash, revision and compacted revision.
async fn hash(server: &Server) -> (u32, i64, i64) {
    let answer = client(server).await.maintenance.hash_kv(HashKvRequest { revision: 0 }).await.expect("a hash");
    let answer = answer.into_inner();
    let revision = answer.header.expect("a header").revision;
    (answer.hash, revision, answer.compact_revision)
}

/// What `etcdctl snapshot save` writes.
async fn save(server: &Server, path: &Path) {
    let answer = client(server).await.maintenance.snapshot(SnapshotRequest {}).await.expect("a snapshot");
    let mut answer = answer.into_inner();
    let mut file = Vec::new();
    while let Some(piece) = answer.message().await.expect("the stream goes on") {
        file.extend_from_slice(&piece.blob);
    }
    std::fs::write(path, file).expect("it can be written");
}

/// A tool that restores.
#[derive(Clone, Debug)]
struct Tool(PathBuf);

impl Tool {
    fn restore(&self, snapshot: &Path, into: &Path, seat: &Seat, more: &[&str]) {
        let mut command = Command::new(&self.0);
        command.env("ETCDCTL_API", "3").args(["snapshot", "restore"]).arg(snapshot).arg("--data-dir").arg(into);
        command.args(["--name", &seat.name, "--initial-cluster", &seat.initial_cluster]);
        command.args(["--initial-advertise-peer-urls", &format!("http://{}", seat.peer)]).args(more);
        let output = command.output().expect("it starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{self:?}: {stderr}");
    }
}

/// What our tool says of a file or a data directory.
fn offline_hash(path: &Path) -> (u32, i64, i64) {
    let output = Command::new(etcdutl()).arg("hashkv").arg(path).output().expect("it starts");
    let line = String::from_utf8(output.stdout).expect("text");
    let numbers: Vec<i64> = line.trim().split(", ").map(|number| number.parse().expect("a number")).collect();
    (u32::try_from(numbers[0]).expect("a CRC"), numbers[1], numbers[2])
}

fn seats(names: &[&str]) -> Vec<Seat> {
    let mut seats: Vec<Seat> = names
        .iter()
        .map(|name| {
            let [client, peer] = free_addresses().expect("ports are free");
            Seat { name: (*name).into(), client, peer, namespace: None, initial_cluster: String::new() }
        })
        .collect();
    let all: Vec<String> = seats.iter().map(|seat| format!("{}=http://{}", seat.name, seat.peer)).collect();
    seats.iter_mut().for_each(|seat| seat.initial_cluster = all.join(","));
    seats
}

fn server(binary: &Binary, seat: &Seat, data_dir: &Path) -> Server {
    let options = Options { data_dir: Some(data_dir.into()), seat: Some(seat.clone()), ..Options::default() };
    Server::start(binary, options).expect("it starts on what was restored")
}

#[tokio::test]
async fn three_members_start_from_one_snapshot() {
    let home = TempDir::new().expect("a directory");
    let snapshot = home.path().join("snapshot");
    let before = {
        let server = Server::start(&ours(), Options::default()).expect("the server starts");
        fill(&server).await;
        save(&server, &snapshot).await;
        hash(&server).await
    };
    assert_eq!(offline_hash(&snapshot), before);
    let seats = seats(&["m1", "m2", "m3"]);
    let dir = |seat: &Seat| home.path().join(&seat.name);
    let spawned: Vec<Server> = seats
        .iter()
        .map(|seat| {
            Tool(etcdutl()).restore(&snapshot, &dir(seat), seat, &[]);
            let options = Options { data_dir: Some(dir(seat)), seat: Some(seat.clone()), ..Options::default() };
            Server::spawned(&ours(), options).expect("it starts")
        })
        .collect();
    let mut members = spawned;
    members.iter_mut().for_each(|member| member.wait_ready().expect("it serves"));
    for member in &members {
        assert_eq!(hash(member).await, before);
    }
    let put = PutRequest { key: Bytes::from("new"), ..PutRequest::default() };
    client(&members[2]).await.kv.put(put).await.expect("the new cluster takes writes");
    let after = hash(&members[2]).await;
    for member in &mut members {
        member.stop().expect("it stops");
    }
    // What has run is ours, and says the same while it is stopped.
    assert_eq!(offline_hash(&dir(&seats[2])), after);
}

/// Clients of the old cluster that wait for its next revision would wait for ever otherwise.
#[tokio::test]
async fn a_raised_revision_is_where_the_new_cluster_goes_on() {
    let home = TempDir::new().expect("a directory");
    let snapshot = home.path().join("snapshot");
    let (_, revision, _) = {
        let server = Server::start(&ours(), Options::default()).expect("the server starts");
        fill(&server).await;
        save(&server, &snapshot).await;
        hash(&server).await
    };
    let seat = &seats(&["m1"])[0];
    let dir = home.path().join("restored");
    Tool(etcdutl()).restore(&snapshot, &dir, seat, &["--bump-revision", "1000", "--mark-compacted"]);
    let server = server(&ours(), seat, &dir);
    let found = hash(&server).await;
    assert_eq!((found.1, found.2), (revision + 1_000, revision + 1_000));
}

/// Real to ours and back, through every tool that restores and every server that starts from it.
#[tokio::test]
async fn snapshots_travel_between_ours_and_real_etcds() {
    let peers = peer_folders();
    if peers.is_empty() {
        eprintln!("skipped: there is no real etcd; .ci/peers fetches some");
        return;
    }
    let mut tools = vec![Tool(etcdutl())];
    let mut binaries = vec![ours()];
    for folder in &peers {
        let tool = [folder.join("etcdutl"), folder.join("etcdctl")].into_iter().find(|tool| tool.is_file());
        tools.extend(tool.map(Tool));
        binaries.push(Binary::at(folder.join("etcd")));
    }
    let home = TempDir::new().expect("a directory");
    for origin in &binaries {
        let snapshot = home.path().join("snapshot");
        let expected = {
            let server = Server::start(origin, Options::default()).expect("the server starts");
            fill(&server).await;
            save(&server, &snapshot).await;
            hash(&server).await
        };
        assert_eq!(offline_hash(&snapshot), expected, "saved by {}", origin.name);
        for tool in &tools {
            for binary in &binaries {
                let way = format!("{}, {tool:?}, {}", origin.name, binary.name);
                let dir = TempDir::new().expect("a directory");
                let seat = &seats(&["m1"])[0];
                let restored = dir.path().join("restored");
                tool.restore(&snapshot, &restored, seat, &[]);
                let server = server(binary, seat, &restored);
                assert_eq!(hash(&server).await, expected, "{way}");
                let again = dir.path().join("snapshot");
                save(&server, &again).await;
                assert_eq!(offline_hash(&again), expected, "{way}, saved again");
            }
        }
    }
}
