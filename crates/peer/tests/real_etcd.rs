//! A transport beside a real etcd 3.4 (or 3.5): the same answers to the same requests, and a learner that follows it.
//!
//! Needs one at `/usr/bin/etcd` (or where `ETCD_3_4` says); otherwise these tests say so and pass.

mod support;

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use peer::{
    BoxFuture, Caller, Config, HashError, HashKv, LeaseError, Local, PromoteError, RemainingLease, StepError,
    Transport, blocking,
};
use prost::Message as _;
use proto::etcdserverpb::{InternalRaftRequest, PutRequest, RequestHeader};
use proto::raftpb::{Entry, Message, MessageType};
use support::{Member, PATIENCE, Recorder, Reply, exchange, heartbeat, introduction, request, wait_until};

struct Etcd {
    process: Child,
    client: SocketAddr,
    peer: SocketAddr,
    cluster_id: u64,
    id: u64,
    _dir: tempfile::TempDir,
}

impl Etcd {
    /// A cluster of one, or `None` where there is no etcd.
    fn start(flags: &[&str]) -> Option<Self> {
        let program = std::env::var_os("ETCD_3_4").map_or_else(|| PathBuf::from("/usr/bin/etcd"), PathBuf::from);
        if !program.exists() {
            println!("skipped: no etcd at {}", program.display());
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (client, peer) = (free(), free());
        let process = Command::new(program)
            .args(["--name=a", "--log-level=error", "--logger=zap"])
            .args([format!("--listen-client-urls=http://{client}"), format!("--advertise-client-urls=http://{client}")])
            .args([format!("--listen-peer-urls=http://{peer}"), format!("--initial-advertise-peer-urls=http://{peer}")])
            .arg(format!("--initial-cluster=a=http://{peer}"))
            .args(flags)
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut etcd = Self { process, client, peer, cluster_id: 0, id: 0, _dir: dir };
        let caller = Caller::new(Duration::from_secs(1));
        wait_until("etcd has told its cluster its name", || {
            let Ok(found) = blocking(caller.members(&etcd.peer_url())).unwrap() else { return false };
            (etcd.cluster_id, etcd.id) = (found.cluster_id, found.members[0].id);
            !found.members[0].client_urls.is_empty()
        });
        Some(etcd)
    }

    fn peer_url(&self) -> String {
        format!("http://{}", self.peer)
    }

    /// Calls the JSON gateway. A server that says that it has too much to do is asked again.
    fn call(&self, path: &str, body: &serde_json::Value) -> serde_json::Value {
        let request = request("POST", path, &[], &[], body.to_string().as_bytes());
        let mut reply = Reply::default();
        wait_until("the server has time", || {
            reply = exchange(self.client, &request);
            !reply.body.contains("too many requests")
        });
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        serde_json::from_str(&reply.body).unwrap()
    }

    /// Removes a member. The real server may never answer this on a machine with much to do: then it is looked at what
    /// came of it.
    fn remove(&self, id: u64) {
        let body = serde_json::json!({"ID": id.to_string()}).to_string();
        let reply = exchange(self.client, &request("POST", "/v3/cluster/member/remove", &[], &[], body.as_bytes()));
        assert!(matches!(reply.status, 0 | 200), "{reply:?}");
        let members = self.call("/v3/cluster/member/list", &serde_json::json!({}));
        assert_eq!(members["members"].as_array().map(Vec::len), Some(1), "{members}");
    }

    /// Adds a member that listens at `address`; gives its ID.
    fn add_learner(&self, address: SocketAddr) -> u64 {
        let body = serde_json::json!({"peerURLs": [format!("http://{address}")], "isLearner": true});
        let added = self.call("/v3/cluster/member/add", &body);
        added["member"]["ID"].as_str().unwrap().parse().unwrap()
    }

    fn put(&self, number: usize) {
        // base64 of "key" and of three digits
        let body = serde_json::json!({"key": "a2V5", "value": base64_of_three(&format!("{number:03}"))});
        self.call("/v3/kv/put", &body);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn base64_of_three(text: &str) -> String {
    let alphabet: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']).collect();
    let bits = text.bytes().take(3).fold(0u32, |bits, byte| bits << 8 | u32::from(byte));
    (0..4).map(|place| alphabet[(bits >> (18 - 6 * place) & 63) as usize]).collect()
}

/// The rows on which 3.4 and 3.7 agree.
#[test]
fn the_peer_port_answers_as_the_real_one_does() {
    let Some(etcd) = Etcd::start(&[]) else { return };
    let version = blocking(Caller::new(PATIENCE).version(&etcd.peer_url())).unwrap().unwrap().server.leak();
    let ours = Member::start_at(etcd.id, TcpListener::bind("127.0.0.1:0").unwrap(), |config| {
        config.cluster_id = etcd.cluster_id;
        config.server_version = version;
    });
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let learner = etcd.add_learner(nobody);
    ours.transport.add_peer(learner, vec![format!("http://{nobody}")]);

    let known = introduction(etcd.cluster_id, learner, etcd.id);
    let mut requests: Vec<Vec<u8>> = Vec::new();
    for method in ["GET", "POST", "PUT", "HEAD"] {
        for path in [
            "/",
            "/raft",
            "/raft/",
            "/raft/snapshot",
            "/raft/stream/",
            "/raft/stream/message/1",
            "/members/",
            "/members/promote/12",
            "/members/promote/zz",
            "/leases",
            "/lease",
            "/health",
            "/metrics",
            "/v2/keys",
        ] {
            requests.push(request(method, path, &[], &[], b""));
        }
    }
    for path in ["/members", "/members/hashkv", "/version"] {
        requests.push(request("POST", path, &[], &[], b""));
    }
    let stream = |kind: &str, from: u64| format!("/raft/stream/{kind}/{from:x}");
    for (path, changes) in [
        (stream("message", learner), &[("X-Server-Version", "2.3.8")][..]),
        (stream("message", learner), &[("X-Min-Cluster-Version", "3.8.0")]),
        (stream("msgapp", learner), &[("X-Etcd-Cluster-Id", "1")]),
        (stream("msgapp", learner), &[("X-Etcd-Cluster-Id", "")]),
        (stream("message", learner), &[("X-Server-Version", "x")]),
        (stream("other", learner), &[]),
        ("/raft/stream/message".into(), &[("X-Raft-To", "1")]),
        ("/raft/stream/message/xyz".into(), &[]),
        ("/raft/stream/message/".into(), &[]),
        (stream("message", 77), &[]),
        (stream("message", learner), &[("X-Raft-To", "1")]),
        (stream("msgapp", learner), &[("X-Raft-To", "")]),
    ] {
        requests.push(request("GET", &path, &known, changes, b""));
    }
    let framed = |content: &[u8]| [&(content.len() as u64).to_be_bytes()[..], content].concat();
    let message = heartbeat(learner, etcd.id, 0).encode_to_vec();
    for (path, changes, body) in [
        ("/raft", &[("X-Etcd-Cluster-Id", "1")][..], &message),
        ("/raft", &[("X-Server-Version", "2.3.8")], &message),
        ("/raft", &[], &b"\xff\xff".to_vec()),
        ("/raft", &[], &Message { term: Some(0), ..heartbeat(77, etcd.id, 0) }.encode_to_vec()),
        ("/raft/snapshot", &[("X-Etcd-Cluster-Id", "1")], &framed(&message)),
        ("/raft/snapshot", &[], &framed(&message)),
        ("/raft/snapshot", &[], &100u64.to_be_bytes().to_vec()),
        ("/leases", &[], &b"\x08\x07".to_vec()),
        ("/leases", &[], &b"\xff".to_vec()),
        ("/leases/internal", &[], &b"\x0a\x02\x08\x07".to_vec()),
        ("/leases/internal", &[], &b"\xff".to_vec()),
    ] {
        requests.push(request("POST", path, &known, changes, body));
    }
    for body in ["{", r#"{"revision":99999}"#] {
        requests.push(request("GET", "/members/hashkv", &[], &[], body.as_bytes()));
    }
    // The peer is there once the port gives another reason than that it is not.
    let probe = request("GET", &stream("message", learner), &known, &[("X-Raft-To", "1")], b"");
    wait_until("both know the peer", || {
        [ours.address, etcd.peer].iter().all(|&address| exchange(address, &probe).status == 412)
    });
    for request in requests {
        let (expected, found) = (exchange(etcd.peer, &request), exchange(ours.address, &request));
        if request.starts_with(b"GET /members/hashkv") && found.body.contains("hash") {
            continue; // ours has no such revisions to refuse
        }
        assert_eq!(found, expected, "{}", String::from_utf8_lossy(&request));
    }
    // Answers that hold their own values: the same shape.
    for path in ["/raft/probing", "/members", "/version"] {
        let ask = |address| exchange(address, &request("GET", path, &[], &[], b""));
        let shape = |reply: Reply| {
            let headers: Vec<_> =
                reply.headers.into_iter().filter(|line| !line.starts_with("Content-Length")).collect();
            (reply.status, headers, reply.body.ends_with('\n'))
        };
        assert_eq!(shape(ask(ours.address)), shape(ask(etcd.peer)), "{path}");
    }
}

/// A learner of few words: it keeps entries and acknowledges them.
#[derive(Default)]
struct Learner {
    recorder: Recorder,
    id: OnceLock<u64>,
    transport: OnceLock<Transport>,
    log: Mutex<Vec<Entry>>,
    /// Appends find no answer.
    ignores_appends: AtomicBool,
}

/// Is this an append of an entry with such data?
fn holds(data: &'static [u8]) -> impl Fn(&Message) -> bool {
    move |message| {
        let contains = |entry: &Entry| entry.data().windows(data.len()).any(|window| window == data);
        message.r#type() == MessageType::MsgApp && message.entries.iter().any(contains)
    }
}

impl Learner {
    /// Joins the cluster; gives its ID too.
    fn start(etcd: &Etcd) -> (Arc<Self>, u64) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let id = etcd.add_learner(address);
        let learner = Arc::new(Self::default());
        learner.id.set(id).unwrap();
        let config = Config::new(etcd.cluster_id, id, vec![format!("http://{address}")], "3.7.1");
        let transport = Transport::start(config, vec![listener.into()], learner.clone()).unwrap();
        transport.add_peer(etcd.id, vec![etcd.peer_url()]);
        assert!(learner.transport.set(transport).is_ok());
        (learner, id)
    }

    /// Waits for a message.
    fn wait_for(&self, what: &str, wanted: impl Fn(&Message) -> bool) -> Message {
        self.recorder.wait_for(what, |told| told.messages.iter().find(|message| wanted(message)).cloned())
    }

    /// Has the leader put a value once for each request ID.
    fn propose(&self, etcd: &Etcd, ids: std::ops::Range<u64>, value: &'static str) {
        let entry = |id| {
            let request = InternalRaftRequest {
                header: Some(RequestHeader { id, ..Default::default() }),
                put: Some(PutRequest { key: "forwarded".into(), value: value.into(), ..Default::default() }),
                ..Default::default()
            };
            Entry { data: Some(request.encode_to_vec().into()), ..Entry::default() }
        };
        self.send(Message {
            r#type: Some(MessageType::MsgProp as i32),
            to: Some(etcd.id),
            entries: ids.map(entry).collect(),
            ..Message::default()
        });
    }

    /// What the learner answers to a message, as raft has it.
    fn answer(&self, message: &Message) -> Option<Message> {
        let mut log = self.log.lock();
        let mut answer = Message { from: message.to, to: message.from, term: message.term, ..Message::default() };
        match message.r#type() {
            MessageType::MsgHeartbeat => {
                answer.r#type = Some(MessageType::MsgHeartbeatResp as i32);
                answer.context = message.context.clone();
            }
            MessageType::MsgApp if self.ignores_appends.load(Ordering::Relaxed) => return None,
            MessageType::MsgApp => {
                answer.r#type = Some(MessageType::MsgAppResp as i32);
                let last = log.len() as u64;
                if message.index() > last {
                    (answer.index, answer.reject, answer.reject_hint) = (message.index, Some(true), Some(last));
                    return Some(answer);
                }
                log.truncate(message.index() as usize);
                log.extend(message.entries.iter().cloned());
                answer.index = Some(log.len() as u64);
            }
            MessageType::MsgSnap => {
                let index = message.snapshot.as_ref()?.metadata.as_ref()?.index();
                log.resize(index as usize, Entry::default());
                answer.r#type = Some(MessageType::MsgAppResp as i32);
                answer.index = Some(index);
            }
            _ => return None,
        }
        Some(answer)
    }

    fn send(&self, message: Message) {
        self.transport.wait().send(vec![Message { from: self.id.get().copied(), ..message }]);
    }
}

impl Local for Learner {
    fn step(&self, message: Message) -> Result<(), StepError> {
        if let Some(answer) = self.answer(&message) {
            self.send(answer);
        }
        self.recorder.step(message)
    }
    fn report_unreachable(&self, id: u64) {
        self.recorder.report_unreachable(id);
    }
    fn report_snapshot(&self, id: u64, delivered: bool) {
        self.recorder.report_snapshot(id, delivered);
    }
    fn peer_gone(&self, id: u64) {
        self.recorder.peer_gone(id);
    }
    fn removed(&self, by: u64) {
        self.recorder.removed(by);
    }
    fn is_removed(&self, id: u64) -> bool {
        self.recorder.is_removed(id)
    }
    fn members(&self) -> Vec<u8> {
        self.recorder.members()
    }
    fn version(&self) -> Vec<u8> {
        self.recorder.version()
    }
    fn save_snapshot(&self, message: &Message, body: &mut dyn Read) -> Result<(), String> {
        self.recorder.save_snapshot(message, body)
    }
    fn renew_lease(&self, id: i64) -> BoxFuture<Result<i64, LeaseError>> {
        self.recorder.renew_lease(id)
    }
    fn remaining_lease(&self, id: i64, keys: bool) -> BoxFuture<Result<RemainingLease, LeaseError>> {
        self.recorder.remaining_lease(id, keys)
    }
    fn promote(&self, id: u64) -> BoxFuture<Result<Vec<u8>, PromoteError>> {
        self.recorder.promote(id)
    }
    fn v2_digest(&self, log_index: u64) -> BoxFuture<Option<u64>> {
        self.recorder.v2_digest(log_index)
    }

    fn hash_kv(&self, revision: i64) -> BoxFuture<Result<HashKv, HashError>> {
        self.recorder.hash_kv(revision)
    }
    fn downgrade_enabled(&self) -> BoxFuture<Result<bool, String>> {
        self.recorder.downgrade_enabled()
    }
}

/// Appends and heartbeats come by both streams and are acknowledged; a proposal and a read index go the other way; in
/// the end the learner is removed and told so.
#[test]
fn a_learner_follows_a_real_leader() {
    let Some(etcd) = Etcd::start(&[]) else { return };
    let (learner, id) = Learner::start(&etcd);
    for number in 0..150 {
        etcd.put(number);
    }
    learner.wait_for("the last put", holds(b"149"));
    learner.wait_for("a heartbeat", |message| message.r#type() == MessageType::MsgHeartbeat);
    let log = learner.log.lock().clone();
    assert!(log.iter().enumerate().all(|(at, entry)| entry.index() == at as u64 + 1), "no gaps");
    assert!(log.len() > 150);

    learner.propose(&etcd, 42..43, "by the learner");
    learner.wait_for("the proposal as an entry", holds(b"by the learner"));

    let entries = vec![Entry { data: Some("12345678".into()), ..Entry::default() }];
    let to = Some(etcd.id);
    learner.send(Message { r#type: Some(MessageType::MsgReadIndex as i32), to, entries, ..Message::default() });
    let read = learner.wait_for("the read index", |message| message.r#type() == MessageType::MsgReadIndexResp);
    assert_eq!(read.entries[0].data()[..], *b"12345678");
    assert!(read.index() > 150);

    let caller = Caller::new(PATIENCE);
    let refused = blocking(caller.promote(&etcd.peer_url(), 12)).unwrap().unwrap_err();
    assert_eq!(refused.status(), Some(404));
    assert!(!blocking(caller.downgrade_enabled(&etcd.peer_url())).unwrap().unwrap(), "3.4 does not know the question");
    let hash = blocking(caller.hash_kv(&etcd.peer_url(), etcd.cluster_id, 0)).unwrap().unwrap();
    let digest = blocking(caller.v2_digest(&etcd.peer_url(), etcd.cluster_id, 1)).unwrap();
    assert_eq!(digest.unwrap_err().status(), Some(404), "it does not know the question, and that is all");
    assert!(hash.revision > 150);

    etcd.remove(id);
    learner.recorder.wait_for("the removal", |told| told.removed_by.contains(&etcd.id).then_some(()));
    learner.transport.wait().stop();
}

/// A leader that has dropped the entries that a learner needs sends what they led to, and goes on from there.
#[test]
fn a_real_leader_sends_a_snapshot() {
    let Some(etcd) = Etcd::start(&["--snapshot-count=100"]) else { return };
    let (learner, id) = Learner::start(&etcd);
    learner.ignores_appends.store(true, Ordering::Relaxed);
    wait_until("there are streams", || learner.transport.wait().open_streams(etcd.id) == 2);
    // It keeps 5000 entries behind its last snapshot. The last proposal is in a later snapshot than the others.
    for round in 0..6 {
        learner.propose(&etcd, 1000 * round + 1..1000 * round + 1000, "one of many");
    }
    etcd.put(1);
    for _ in 0..150 {
        etcd.put(2);
    }
    learner.ignores_appends.store(false, Ordering::Relaxed);
    let message = learner.wait_for("a snapshot", |message| message.r#type() == MessageType::MsgSnap);
    let index = message.snapshot.as_ref().unwrap().metadata.as_ref().unwrap().index();
    assert!(index > 5000, "{index}");
    learner.recorder.look(|told| {
        let (saved, file) = &told.files[0];
        assert_eq!(*saved, index);
        let file = file.as_ref().unwrap();
        assert_eq!(file[16..20], [0xed, 0xda, 0x0c, 0xed], "a bbolt file");
        assert!(file.len() > 100_000 && file.len() % 4096 == 0);
    });
    etcd.put(777);
    learner.wait_for("what follows the snapshot", holds(b"777"));
    wait_until("the learner has it", || learner.log.lock().len() as u64 > index);
    etcd.remove(id);
    learner.transport.wait().stop();
}
