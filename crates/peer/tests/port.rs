//! Every answer of the peer port, byte for byte, and what it does with requests that mean no good.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use peer::{CallError, Caller, HashKv, blocking};
use prost::Message as _;
use proto::raftpb::{Message, MessageType};
use support::{CLUSTER, Member, PATIENCE, Reply, exchange, heartbeat, introduction, request};

/// Member 1, which has 2 as a peer and has seen 9 removed.
fn member() -> Member {
    let member = Member::start(1);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    member.transport.add_peer(2, vec![format!("http://{nobody}")]);
    member.local.removed.lock().insert(9);
    // Orders are taken in turn: once this one is reported, the peer is there.
    let snapshot = Message { r#type: Some(MessageType::MsgSnap as i32), ..heartbeat(1, 2, 0) };
    member.transport.send(vec![snapshot]);
    member.local.wait_for("the orders", |told| told.snapshots.pop());
    member
}

/// A text answer, with the headers that all of them have.
fn text(status: u16, more: &[&str], body: &str) -> Reply {
    let mut headers = vec![
        "Content-Type: text/plain; charset=utf-8".to_owned(),
        "X-Content-Type-Options: nosniff".to_owned(),
        format!("Content-Length: {}", body.len() + 1),
    ];
    headers.extend(more.iter().map(|&line| line.to_owned()));
    headers.sort();
    Reply { status, headers, body: format!("{body}\n") }
}

const CLUSTER_LINE: &str = "X-Etcd-Cluster-Id: c1";
const VERSION_LINE: &str = "X-Server-Version: 3.7.1";

#[test]
fn a_wrong_method_is_refused_before_anything_else() {
    let member = member();
    let ask = |method, path| exchange(member.address, &request(method, path, &[], &[], b""));
    for (method, path, allow) in [
        ("GET", "/raft", "Allow: POST"),
        ("PUT", "/raft/snapshot", "Allow: POST"),
        ("POST", "/raft/stream/message/2", "Allow: GET"),
        ("POST", "/members", "Allow: GET"),
        ("POST", "/members/hashkv", "Allow: GET"),
        ("GET", "/members/promote/1", "Allow: POST"),
        ("POST", "/version", "Allow: GET"),
        ("POST", "/downgrade/enabled", "Allow: GET"),
    ] {
        assert_eq!(ask(method, path), text(405, &[allow], "Method Not Allowed"), "{method} {path}");
    }
    for path in ["/leases", "/leases/internal"] {
        assert_eq!(ask("GET", path), text(405, &[], "Method Not Allowed"), "{path}");
    }
    for path in ["/", "/raft/", "/lease", "/health", "/metrics", "/v2/keys", "/members/"] {
        assert_eq!(ask("GET", path), text(404, &[], "404 page not found"), "{path}");
    }
}

#[test]
fn version_and_cluster_are_checked_on_all_ways_of_messages() {
    let member = member();
    for (method, path, more) in [
        ("POST", "/raft", &[CLUSTER_LINE][..]),
        ("POST", "/raft/snapshot", &[CLUSTER_LINE]),
        ("GET", "/raft/stream/message/2", &[CLUSTER_LINE, VERSION_LINE]),
        ("GET", "/raft/stream/msgapp/2", &[CLUSTER_LINE, VERSION_LINE]),
    ] {
        let ask = |changes: &[(&str, &str)]| {
            exchange(member.address, &request(method, path, &introduction(CLUSTER, 2, 1), changes, b""))
        };
        assert_eq!(exchange(member.address, &request(method, path, &[], &[], b"")).status, 412, "nothing at all");
        let incompatible = text(412, more, "incompatible version");
        assert_eq!(ask(&[("X-Server-Version", "2.3.8")]), incompatible, "{path}");
        assert_eq!(ask(&[("X-Server-Version", "")]), incompatible, "{path}");
        assert_eq!(ask(&[("X-Server-Version", "3.9.0"), ("X-Min-Cluster-Version", "3.8.0")]), incompatible, "{path}");
        let mismatch = text(412, more, "cluster ID mismatch");
        assert_eq!(ask(&[("X-Etcd-Cluster-Id", "")]), mismatch, "{path}");
        assert_eq!(ask(&[("X-Etcd-Cluster-Id", "c2")]), mismatch, "{path}");
        assert_eq!(ask(&[("X-Server-Version", "nonsense")]), Reply::default(), "{path}: closed without an answer");
    }
}

#[test]
fn a_stream_is_given_only_to_a_peer_that_means_this_member() {
    let member = member();
    let ask = |path: &str, from, changes: &[(&str, &str)]| {
        exchange(member.address, &request("GET", path, &introduction(CLUSTER, from, 1), changes, b""))
    };
    let refusal = |status, body| text(status, &[CLUSTER_LINE, VERSION_LINE], body);
    for path in ["/raft/stream/", "/raft/stream/message", "/raft/stream/msgapp2/2"] {
        assert_eq!(ask(path, 2, &[]), refusal(404, "invalid path"), "{path}");
    }
    for path in ["/raft/stream/message/", "/raft/stream/msgapp/zz", "/raft/stream/message/+2"] {
        assert_eq!(ask(path, 2, &[]), refusal(404, "invalid from"), "{path}");
    }
    assert_eq!(ask("/raft/stream/message/9", 9, &[]), refusal(410, "removed member"));
    assert_eq!(ask("/raft/stream/message/5", 5, &[]), refusal(404, "error sender not found"));
    assert_eq!(ask("/raft/stream/message/2", 2, &[("X-Raft-To", "7")]), refusal(412, "to field mismatch"));
    assert_eq!(ask("/raft/stream/message/2", 2, &[("X-Raft-To", "")]), refusal(412, "to field mismatch"));
}

/// A newer stream takes the place of the older, which ends properly.
#[test]
fn a_stream_begins_with_its_head_and_ends_when_replaced() {
    let member = member();
    let open = || {
        let mut stream = TcpStream::connect(member.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&request("GET", "/raft/stream/msgapp/2", &introduction(CLUSTER, 2, 1), &[], b"")).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        (stream, String::from_utf8(head).unwrap())
    };
    let (mut first, head) = open();
    let mut lines: Vec<_> = head.trim_end().lines().filter(|line| !line.starts_with("Date: ")).collect();
    lines[1..].sort_unstable();
    assert_eq!(lines, ["HTTP/1.1 200 OK", "Transfer-Encoding: chunked", CLUSTER_LINE, VERSION_LINE]);

    let (mut second, _) = open();
    let mut rest = Vec::new();
    first.read_to_end(&mut rest).unwrap();
    assert!(rest.ends_with(b"0\r\n\r\n"), "{rest:?}");

    // The new one works, and an idle one shows a sign of life well before anybody gives it up.
    let mut chunk = [0; 6];
    second.read_exact(&mut chunk).unwrap();
    assert_eq!(chunk, *b"1\r\n\0\r\n");
}

#[test]
fn a_posted_message_is_answered_as_3_7_does() {
    let member = member();
    let post = |message: &[u8]| {
        exchange(member.address, &request("POST", "/raft", &introduction(CLUSTER, 2, 1), &[], message))
    };
    let taken = Reply { status: 204, headers: vec![CLUSTER_LINE.into()], body: String::new() };
    let refusal = |status, body| text(status, &[CLUSTER_LINE], body);
    assert_eq!(post(&heartbeat(2, 1, 7).encode_to_vec()), taken);
    assert_eq!(member.local.take_messages(1), [heartbeat(2, 1, 7)]);
    // Nobody's, and of types that do not travel: no error, and nothing happens.
    let proposal = Message { r#type: Some(MessageType::MsgProp as i32), ..heartbeat(2, 1, 0) };
    assert_eq!(post(&proposal.encode_to_vec()), taken);
    let local_only = Message { r#type: Some(MessageType::MsgHup as i32), ..heartbeat(2, 1, 0) };
    assert_eq!(post(&local_only.encode_to_vec()), taken);

    assert_eq!(post(b"\xff\xff"), refusal(400, "error unmarshalling raft message"));
    let refused = refusal(500, "error processing raft message");
    assert_eq!(post(b""), refused);
    assert_eq!(post(&heartbeat(2, 77, 0).encode_to_vec()), refused);
    assert_eq!(post(&heartbeat(9, 1, 0).encode_to_vec()), refused);
    assert!(member.local.look(|told| told.messages.is_empty()));
}

#[test]
fn a_snapshot_that_is_none_is_refused() {
    let member = member();
    let post = |body: &[u8]| {
        exchange(member.address, &request("POST", "/raft/snapshot", &introduction(CLUSTER, 2, 1), &[], body))
    };
    let framed = |content: &[u8]| [&(content.len() as u64).to_be_bytes()[..], content].concat();
    let refusal = |body: &str| text(400, &[CLUSTER_LINE], body);
    assert_eq!(post(b""), refusal("failed to decode raft message (EOF)"));
    assert_eq!(post(&[0, 0, 0]), refusal("failed to decode raft message (unexpected EOF)"));
    assert_eq!(post(&100u64.to_be_bytes()), refusal("failed to decode raft message (EOF)"));
    assert_eq!(post(&framed(b"half")[..10]), refusal("failed to decode raft message (unexpected EOF)"));
    let limit = refusal("failed to decode raft message (rafthttp: error limit exceeded)");
    assert_eq!(post(&((64u64 << 20) + 1).to_be_bytes()), limit);
    let malformed = refusal("failed to decode raft message (proto: cannot parse invalid wire-format data)");
    assert_eq!(post(&framed(b"\xff")), malformed);
    assert_eq!(post(&framed(&heartbeat(2, 1, 0).encode_to_vec())), refusal("wrong raft message type"));

    // As 3.7.1 sent it, but to another member.
    let recorded = include_bytes!("data/snapshot-head-3.7.1.bin");
    assert_eq!(
        post(recorded),
        text(500, &[CLUSTER_LINE], "failed to process raft message (not addressed to this member)")
    );
    assert!(member.local.look(|told| told.files.is_empty() && told.messages.is_empty()));
}

#[test]
fn members_ask_one_another() {
    let member = member();
    let caller = Caller::new(PATIENCE);
    let url = &member.url();
    let members = blocking(caller.members(url)).unwrap().unwrap();
    assert_eq!((members.cluster_id, members.members.len(), members.members[0].id), (CLUSTER, 1, 2));
    let version = blocking(caller.version(url)).unwrap().unwrap();
    assert_eq!((version.server.as_str(), version.storage.as_deref()), ("3.7.1", Some("3.7.0")));
    assert!(!blocking(caller.downgrade_enabled(url)).unwrap().unwrap());

    assert_eq!(blocking(caller.renew_lease(url, 12345)).unwrap().unwrap(), 60);
    let lease = blocking(caller.remaining_lease(url, 12345, true)).unwrap().unwrap();
    assert_eq!((lease.ttl, lease.granted_ttl, lease.keys.len()), (59, 60, 1));
    assert_eq!(blocking(caller.promote(url, 1)).unwrap().unwrap(), members.members);
    let hash = blocking(caller.hash_kv(url, CLUSTER, 3)).unwrap().unwrap();
    let expected = HashKv { revision: 12, hash: 758021467, compact_revision: -1, hash_revision: Some(3) };
    assert_eq!(hash, expected);

    fn refusal<T: std::fmt::Debug>(outcome: std::io::Result<Result<T, CallError>>) -> (u16, String) {
        match outcome.unwrap().unwrap_err() {
            CallError::Refused { status, text } => (status, text),
            other => panic!("{other:?}"),
        }
    }
    for (id, status, text) in [
        (1, 400, "not a primary lessor"),
        (2, 408, "waiting for node to catch up its applied index has timed out"),
        (3, 500, "disk on fire"),
        (7, 404, "lease not found"),
    ] {
        assert_eq!(refusal(blocking(caller.renew_lease(url, id))), (status, text.into()));
    }
    for (id, status, text) in [
        (2, 412, "membership: can only promote a learner member"),
        (3, 412, "etcdserver: can only promote a learner member which is in sync with leader"),
        (4, 500, r#"{"message":"Internal Server Error"}"#),
        (7, 404, "membership: ID not found"),
    ] {
        assert_eq!(refusal(blocking(caller.promote(url, id))), (status, text.into()));
    }
    for (cluster, revision, status, text) in [
        (CLUSTER, 1, 400, "mvcc: required revision has been compacted"),
        (CLUSTER, 99, 400, "mvcc: required revision is a future revision"),
        (CLUSTER + 1, 3, 412, "cluster ID mismatch"),
    ] {
        assert_eq!(refusal(blocking(caller.hash_kv(url, cluster, revision))), (status, text.into()));
    }
    assert_eq!(blocking(caller.v2_digest(url, CLUSTER, 3)).unwrap().unwrap(), 0xfedc_ba98_7654_3210);
    for (cluster, log_index, status, text) in
        [(CLUSTER, 99, 409, "not known any more, or not yet"), (CLUSTER + 1, 3, 412, "cluster ID mismatch")]
    {
        assert_eq!(refusal(blocking(caller.v2_digest(url, cluster, log_index))), (status, text.into()));
    }
    assert!(matches!(blocking(caller.version("http://x")).unwrap(), Err(CallError::Url(_))));
    member.transport.stop();
    assert!(matches!(blocking(caller.version(url)).unwrap(), Err(CallError::Io(_))));
}

/// The bytes of lease requests as members of all versions send them.
#[test]
fn lease_requests_are_those_of_the_wire() {
    let member = member();
    let post = |path, body: &[u8]| exchange(member.address, &request("POST", path, &[], &[], body));
    let protobuf = |body: &[u8]| Reply {
        status: 200,
        headers: vec![format!("Content-Length: {}", body.len()), "Content-Type: application/protobuf".into()],
        body: String::from_utf8_lossy(body).into_owned(),
    };
    assert_eq!(post("/leases", b"\x08\xb9\x60"), protobuf(b"\x10\xb9\x60\x18\x3c"));
    let remaining = post("/leases/internal", b"\x0a\x05\x08\xb9\x60\x10\x00");
    assert_eq!(remaining, protobuf(b"\x0a\x09\x0a\x00\x10\xb9\x60\x18\x3b\x20\x3c"));
    for path in ["/leases", "/leases/internal"] {
        assert_eq!(post(path, b"\xff"), text(400, &[], "error unmarshalling request"));
        assert_eq!(post(path, b""), text(404, &[], "lease not found"));
    }
}

#[test]
fn requests_that_mean_no_good_are_bounded() {
    let member = member();
    // A head that does not end.
    let endless = [b"GET /version HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; 1 << 20]].concat();
    assert!(matches!(exchange(member.address, &endless).status, 0 | 400 | 431));
    // Lengths that nobody will send.
    let announced = |path, length: &str| {
        let mut request = request("POST", path, &introduction(CLUSTER, 2, 1), &[("Content-Length", length)], b"");
        request.push(1);
        exchange(member.address, &request)
    };
    assert_eq!(announced("/raft", "99999999999999"), text(400, &[CLUSTER_LINE], "error reading raft message"));
    assert_eq!(announced("/leases", "99999999"), text(400, &[], "error reading body"));
    // A body that does not come, and a connection that stays silent after a request: both are given up.
    let begun = Instant::now();
    assert_eq!(announced("/raft", "1000"), text(400, &[CLUSTER_LINE], "error reading raft message"));
    let mut idle = TcpStream::connect(member.address).unwrap();
    idle.set_read_timeout(Some(PATIENCE)).unwrap();
    idle.write_all(&request("GET", "/version", &[], &[], b"")).unwrap();
    let mut answer = Vec::new();
    idle.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    assert!(begun.elapsed().as_secs() < 25);
}
