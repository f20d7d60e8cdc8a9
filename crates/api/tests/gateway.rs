//! The v3 API in JSON: over HTTP/1.1, HTTP/2 and WebSockets.

mod support;

use std::collections::HashMap;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use keelson_api::grpc::method::Method;
use keelson_api::{HttpOptions, Limits};
use serde_json::{Value, json};
use support::Server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// How long an answer may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection over which one request is made by hand.
struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Client {
    async fn connect(server: &Server) -> Self {
        Self { stream: TcpStream::connect(server.address).await.expect("the server listens"), read: Vec::new() }
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("sent");
    }

    /// Begins a request whose body comes in chunks.
    async fn post_in_chunks(server: &Server, path: &str) -> Self {
        let mut client = Self::connect(server).await;
        client.send(format!("POST {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")).await;
        client
    }

    async fn chunk(&mut self, text: &str) {
        self.send(format!("{:x}\r\n{text}\r\n", text.len())).await;
    }

    async fn more(&mut self) -> usize {
        timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await.expect("an answer").expect("read")
    }

    /// The next line of the answer.
    async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return String::from_utf8(line).expect("text").trim_end().to_owned();
            }
            assert_ne!(self.more().await, 0, "the end came early: {}", String::from_utf8_lossy(&self.read));
        }
    }

    /// The head of the answer.
    async fn head(&mut self) -> String {
        let mut head = String::new();
        loop {
            match self.line().await.as_str() {
                "" => return head,
                line => head.extend([line, "\n"]),
            }
        }
    }

    /// The next line of JSON in an answer that comes in chunks.
    async fn result(&mut self) -> Value {
        loop {
            let line = self.line().await;
            if line.starts_with('{') {
                return serde_json::from_str(&line).expect("JSON");
            }
        }
    }

    /// Reads until the server closes.
    async fn rest(&mut self) -> String {
        let _ = timeout(PATIENCE, self.stream.read_to_end(&mut self.read)).await.expect("the server closes");
        String::from_utf8(std::mem::take(&mut self.read)).expect("text")
    }
}

/// Status, head, body.
async fn ask(server: &Server, method: &str, path: &str, fields: &str, body: &str) -> (u16, String, String) {
    let mut client = Client::connect(server).await;
    let length = body.len();
    client
        .send(format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{fields}\r\n{body}"
        ))
        .await;
    let answer = client.rest().await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head ends with an empty line");
    (head[9..12].parse().expect("a status"), head.to_lowercase(), body.to_owned())
}

async fn post(server: &Server, path: &str, body: &str) -> (u16, String) {
    let (status, _, body) = ask(server, "POST", path, "", body).await;
    (status, body)
}

fn error(code: u32, message: &str) -> String {
    json!({"code": code, "message": message}).to_string()
}

/// The paths of etcd 3.7 and the methods behind them.
const PATHS: &[(&str, &str)] = &[
    ("/v3/kv/range", "KV/Range"),
    ("/v3/kv/put", "KV/Put"),
    ("/v3/kv/deleterange", "KV/DeleteRange"),
    ("/v3/kv/txn", "KV/Txn"),
    ("/v3/kv/compaction", "KV/Compact"),
    ("/v3/watch", "Watch/Watch"),
    ("/v3/lease/grant", "Lease/LeaseGrant"),
    ("/v3/lease/revoke", "Lease/LeaseRevoke"),
    ("/v3/kv/lease/revoke", "Lease/LeaseRevoke"),
    ("/v3/lease/keepalive", "Lease/LeaseKeepAlive"),
    ("/v3/lease/timetolive", "Lease/LeaseTimeToLive"),
    ("/v3/kv/lease/timetolive", "Lease/LeaseTimeToLive"),
    ("/v3/lease/leases", "Lease/LeaseLeases"),
    ("/v3/kv/lease/leases", "Lease/LeaseLeases"),
    ("/v3/cluster/member/add", "Cluster/MemberAdd"),
    ("/v3/cluster/member/remove", "Cluster/MemberRemove"),
    ("/v3/cluster/member/update", "Cluster/MemberUpdate"),
    ("/v3/cluster/member/list", "Cluster/MemberList"),
    ("/v3/cluster/member/promote", "Cluster/MemberPromote"),
    ("/v3/maintenance/alarm", "Maintenance/Alarm"),
    ("/v3/maintenance/status", "Maintenance/Status"),
    ("/v3/maintenance/defragment", "Maintenance/Defragment"),
    ("/v3/maintenance/hash", "Maintenance/Hash"),
    ("/v3/maintenance/hashkv", "Maintenance/HashKV"),
    ("/v3/maintenance/snapshot", "Maintenance/Snapshot"),
    ("/v3/maintenance/transfer-leadership", "Maintenance/MoveLeader"),
    ("/v3/maintenance/downgrade", "Maintenance/Downgrade"),
    ("/v3/auth/enable", "Auth/AuthEnable"),
    ("/v3/auth/disable", "Auth/AuthDisable"),
    ("/v3/auth/status", "Auth/AuthStatus"),
    ("/v3/auth/authenticate", "Auth/Authenticate"),
    ("/v3/auth/user/add", "Auth/UserAdd"),
    ("/v3/auth/user/get", "Auth/UserGet"),
    ("/v3/auth/user/list", "Auth/UserList"),
    ("/v3/auth/user/delete", "Auth/UserDelete"),
    ("/v3/auth/user/changepw", "Auth/UserChangePassword"),
    ("/v3/auth/user/grant", "Auth/UserGrantRole"),
    ("/v3/auth/user/revoke", "Auth/UserRevokeRole"),
    ("/v3/auth/role/add", "Auth/RoleAdd"),
    ("/v3/auth/role/get", "Auth/RoleGet"),
    ("/v3/auth/role/list", "Auth/RoleList"),
    ("/v3/auth/role/delete", "Auth/RoleDelete"),
    ("/v3/auth/role/grant", "Auth/RoleGrantPermission"),
    ("/v3/auth/role/revoke", "Auth/RoleRevokePermission"),
    ("/v3/lock/lock", "Lock/Lock"),
    ("/v3/lock/unlock", "Lock/Unlock"),
    ("/v3/election/campaign", "Election/Campaign"),
    ("/v3/election/proclaim", "Election/Proclaim"),
    ("/v3/election/leader", "Election/Leader"),
    ("/v3/election/observe", "Election/Observe"),
    ("/v3/election/resign", "Election/Resign"),
];

/// As the metrics tell: a request in JSON is a call like any other.
#[tokio::test]
async fn every_path_makes_the_call_of_its_method() {
    let server = Server::start();
    let mut calls = HashMap::new();
    for (path, name) in PATHS {
        let method = Method::ALL.iter().find(|method| method.path().ends_with(&format!(".{name}"))).expect("a method");
        let mut client = Client::connect(&server).await;
        client.send(format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{{}}")).await;
        let count = calls.entry(method.path()).and_modify(|count| *count += 1).or_insert(1);
        let (service, name, kind) = (method.service(), method.name(), method.kind().label());
        let labels = format!("grpc_method=\"{name}\",grpc_service=\"{service}\",grpc_type=\"{kind}\"");
        server.wait_for_metric(&format!("grpc_server_started_total{{{labels}}} {count}")).await;
    }
    let without = ["RangeStream", "Check", "List", "Watch"];
    for method in Method::ALL.iter().filter(|method| !calls.contains_key(method.path())) {
        assert!(without.contains(&method.name()), "{} has no path", method.path());
    }
}

#[tokio::test]
async fn values_come_and_go_in_protobufs_json() {
    let server = Server::start();
    let header = |revision: &str| {
        let (cluster_id, member_id) = (support::CLUSTER_ID.to_string(), support::MEMBER_ID.to_string());
        json!({"cluster_id": cluster_id, "member_id": member_id, "revision": revision, "raft_term": "2"}).to_string()
    };
    // Numbers as text or as numbers, either alphabet of base64, either name of a field, nulls and unknown fields.
    let (status, head, body) =
        ask(&server, "POST", "/v3/kv/put", "", r#"{"key":"_-8","value":"YQ==","lease":"0","prevKv":null,"x":[{}]}"#)
            .await;
    assert_eq!((status, body.as_str()), (200, format!(r#"{{"header":{}}}"#, in_order(&header("2"))).as_str()));
    for field in [
        "content-type: application/json",
        "grpc-metadata-content-type: application/grpc",
        "access-control-allow-origin: *",
    ] {
        assert!(head.contains(field), "{field} is not in {head}");
    }
    let (status, body) = post(&server, "/v3/kv/range", r#"{"key":"/+8=","limit":1e1}"#).await;
    let kv = r#"{"key":"/+8=","create_revision":"2","mod_revision":"2","version":"1","value":"YQ=="}"#;
    let expected = format!(r#"{{"header":{},"kvs":[{kv}],"count":"1"}}"#, in_order(&header("2")));
    assert_eq!((status, body), (200, expected));
    // No body is a request without fields; what follows the first object is not looked at.
    assert_eq!(post(&server, "/v3/cluster/member/list", "").await.0, 200);
    assert_eq!(post(&server, "/v3/kv/range", "{\"key\":\"eA==\"} and so on").await.0, 200);
}

/// A header's fields as they are declared.
fn in_order(header: &str) -> String {
    let header: Value = serde_json::from_str(header).expect("JSON");
    let fields =
        ["cluster_id", "member_id", "revision", "raft_term"].map(|name| format!("\"{name}\":{}", header[name]));
    format!("{{{}}}", fields.join(","))
}

#[tokio::test]
async fn the_prefixes_of_older_versions_lead_to_the_same_place() {
    let server = Server::start();
    for prefix in ["/v3", "/v3beta", "/v3alpha"] {
        assert_eq!(post(&server, &format!("{prefix}/kv/put"), r#"{"key":"YQ=="}"#).await.0, 200, "{prefix}");
    }
}

#[tokio::test]
async fn errors_have_the_status_of_their_code() {
    let server = Server::start();
    for (path, body, status, expected) in [
        ("/v3/kv/put", "{}", 400, error(3, "etcdserver: key is not provided")),
        ("/v3/lease/revoke", r#"{"ID":"5"}"#, 404, error(5, "etcdserver: requested lease not found")),
        ("/v3/kv/nosuch", "{}", 404, error(5, "Not Found")),
        ("/v3/", "{}", 404, error(5, "Not Found")),
        ("/v3/election/resign", "{}", 500, error(2, "\"leader\" field must be provided")),
        ("/v3/kv/range", "{", 400, error(3, "unexpected EOF")),
        (
            "/v3/kv/range",
            r#"{"limit":"x"}"#,
            400,
            error(3, "proto: (line 1:10): invalid value for int64 field limit: \"x\""),
        ),
    ] {
        assert_eq!(post(&server, path, body).await, (status, expected), "{path} {body}");
    }
    for method in ["GET", "PUT", "DELETE"] {
        let (status, _, body) = ask(&server, method, "/v3/kv/range", "", "{}").await;
        assert_eq!((status, body), (501, error(12, "Method Not Allowed")), "{method}");
    }
    // Nobody is asked before the client's own web page.
    let (status, head, body) = ask(&server, "OPTIONS", "/v3/kv/range", "", "").await;
    assert_eq!((status, body.as_str()), (200, ""));
    assert!(head.contains("access-control-allow-methods: post, get, options, put, delete"), "{head}");
}

#[tokio::test]
async fn metadata_and_timeouts_come_in_headers() {
    let server = Server::start();
    server.member.leader.store(0, std::sync::atomic::Ordering::Relaxed);
    let asked = ask(&server, "POST", "/v3/kv/put", "Grpc-Metadata-Hasleader: true\r\n", r#"{"key":"YQ=="}"#).await;
    assert_eq!((asked.0, asked.2), (503, error(14, "etcdserver: no leader")));
    let asked = ask(&server, "POST", "/v3/kv/put", "Grpc-Timeout: 5x\r\n", "{}").await;
    assert_eq!((asked.0, asked.2), (400, error(3, "invalid grpc-timeout: 5x")));

    // The second in line waits until its time is up, and then no longer stands there.
    assert_eq!(post(&server, "/v3/lease/grant", r#"{"ID":7,"TTL":600}"#).await.0, 200);
    assert_eq!(post(&server, "/v3/lock/lock", r#"{"name":"bQ==","lease":7}"#).await.0, 200);
    let asked = ask(&server, "POST", "/v3/lock/lock", "Grpc-Timeout: 50m\r\n", r#"{"name":"bQ=="}"#).await;
    assert_eq!((asked.0, asked.2), (504, error(4, "context deadline exceeded")));
    let in_line = r#"{"key":"bS8=","range_end":"bTA=","count_only":true}"#;
    for _ in 0..1000 {
        if post(&server, "/v3/kv/range", in_line).await.1.ends_with(r#""count":"1"}"#) {
            return;
        }
    }
    panic!("who gave up waiting still stands in line");
}

#[tokio::test]
async fn without_the_gateway_there_is_nothing() {
    let server = Server::with(Limits::default(), HttpOptions { gateway: false, ..HttpOptions::default() });
    assert_eq!(post(&server, "/v3/kv/range", "{}").await, (404, "404 page not found\n".into()));
}

// --- streams ---

/// All in one request, while its answer comes.
#[tokio::test]
async fn a_watch_is_created_cancelled_and_asked_for_progress_in_one_body() {
    let server = Server::start();
    let mut watch = Client::post_in_chunks(&server, "/v3/watch").await;
    watch.chunk("{\"create_request\":{\"key\":\"YQ==\"}}\n{\"create_req").await;
    let head = watch.head().await;
    assert!(head.starts_with("HTTP/1.1 200 OK\n") && head.contains("Transfer-Encoding: chunked\n"), "{head}");
    assert_eq!(watch.result().await["result"]["created"], true);
    post(&server, "/v3/kv/put", r#"{"key":"YQ==","value":"MQ=="}"#).await;
    let event = watch.result().await;
    assert_eq!(event["result"]["events"][0]["kv"]["value"], "MQ==", "{event}");
    watch.chunk("uest\":{\"key\":\"Yg==\",\"watch_id\":5}}").await;
    assert_eq!(watch.result().await["result"]["watch_id"], "5");
    watch.chunk("{\"cancel_request\":{\"watch_id\":5}} {\"progress_request\":{}}").await;
    let (first, second) = (watch.result().await, watch.result().await);
    assert_eq!((&first["result"]["watch_id"], &first["result"]["canceled"]), (&json!("5"), &json!(true)), "{first}");
    assert_eq!((&second["result"]["watch_id"], &second["result"]["header"]["revision"]), (&json!("-1"), &json!("2")));
    // Who has nothing more to ask goes on listening.
    watch.send("0\r\n\r\n").await;
    post(&server, "/v3/kv/deleterange", r#"{"key":"YQ=="}"#).await;
    assert_eq!(watch.result().await["result"]["events"][0]["type"], "DELETE");
    server.wait_for_metric("etcd_debugging_mvcc_watch_stream_total 1").await;
    drop(watch);
    server.wait_for_metric("etcd_debugging_mvcc_watch_stream_total 0").await;
}

#[tokio::test]
async fn what_is_no_request_ends_a_stream_with_an_error() {
    let server = Server::start();
    let mut watch = Client::post_in_chunks(&server, "/v3/watch").await;
    watch.chunk("{\"create_request\":{\"key\":\"YQ==\"}}").await;
    assert_eq!(watch.result().await["result"]["created"], true);
    watch.chunk("nonsense").await;
    let fault = "Failed to decode request: invalid character 'o' in literal null (expecting 'u')";
    assert_eq!(watch.result().await, json!({"error": {"code": 3, "message": fault}}));
    assert!(watch.rest().await.ends_with("\r\n0\r\n\r\n"));
    server.wait_for_metric("etcd_debugging_mvcc_watch_stream_total 0").await;

    let (status, body) = post(&server, "/v3/lease/keepalive", "x").await;
    let fault = "Failed to decode request: invalid character 'x' looking for beginning of value";
    let body = body.lines().find(|line| line.starts_with('{')).expect("an error");
    assert_eq!(
        (status, serde_json::from_str::<Value>(body).expect("JSON")),
        (400, json!({"error": {"code": 3, "message": fault}}))
    );
}

#[tokio::test]
async fn each_renewal_is_answered_in_its_turn() {
    let server = Server::start();
    post(&server, "/v3/lease/grant", r#"{"ID":7,"TTL":600}"#).await;
    let (status, body) = post(&server, "/v3/lease/keepalive", "{\"ID\":7}{\"ID\":\"8\"}\n{\"ID\":7}").await;
    let ttls: Vec<Value> = body
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["result"]["TTL"].take())
        .collect();
    assert_eq!((status, ttls), (200, vec![json!("600"), Value::Null, json!("600")]));
}

#[tokio::test]
async fn a_snapshot_comes_in_lines() {
    let server = Server::start();
    let (_, body) = post(&server, "/v3/maintenance/snapshot", "").await;
    let pieces: Vec<Value> = body
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let length =
        |piece: &Value| piece["result"]["blob"].as_str().map_or(0, |blob| blob.trim_end_matches('=').len() * 3 / 4);
    assert_eq!(pieces.iter().map(length).sum::<usize>(), 45_000 + 32);
    assert_eq!(pieces[0]["result"]["remaining_bytes"], (45_000 - 32_768).to_string());
    assert!(body.ends_with("0\r\n\r\n"));
}

/// A client that reads nothing of what it is told takes no memory for it.
#[tokio::test]
async fn a_slow_reader_holds_nobody_up() {
    let server = Server::start();
    let mut slow = Client::post_in_chunks(&server, "/v3/watch").await;
    slow.chunk("{\"create_request\":{\"key\":\"YQ==\",\"progress_notify\":true}}").await;
    slow.head().await;
    let value = "A".repeat(400_000);
    for _ in 0..40 {
        let put = format!(r#"{{"key":"YQ==","value":"{value}"}}"#);
        assert_eq!(post(&server, "/v3/kv/put", &put).await.0, 200);
    }
    // It gets all of it when it begins to read.
    let mut events = 0;
    while events < 40 {
        let result = slow.result().await;
        events += result["result"]["events"].as_array().map_or(0, Vec::len);
    }
}

// --- limits ---

#[tokio::test]
async fn a_request_that_is_too_large_is_refused_before_it_is_kept() {
    let limits = Limits { max_request_bytes: 1000, ..Limits::default() };
    let server = Server::with_limits(limits);
    let max = 1000 + (512 << 10);
    let value = "A".repeat(max / 3 * 4 + 1000);
    let (status, body) = post(&server, "/v3/kv/put", &format!(r#"{{"key":"YQ==","value":"{value}"}}"#)).await;
    assert_eq!(status, 429, "{body}");
    assert!(body.contains("grpc: received message larger than max ("), "{body}");
    // One that never ends.
    let mut client = Client::post_in_chunks(&server, "/v3/kv/put").await;
    client.chunk(r#"{"key":""#).await;
    let chunk = "A".repeat(64 << 10);
    let chunk = format!("{:x}\r\n{chunk}\r\n", chunk.len());
    for _ in 0..1000 {
        if client.stream.write_all(chunk.as_bytes()).await.is_err() {
            break;
        }
    }
    assert!(client.rest().await.starts_with("HTTP/1.1 429 "));
    assert_eq!(post(&server, "/v3/kv/range", r#"{"key":"YQ=="}"#).await.0, 200);
}

/// CVE-2018-1099: a page whose name is made to point to us is told apart by the name that its visitors' browsers ask for.
#[tokio::test]
async fn cve_2018_1099_a_rebound_name_reaches_nothing() {
    let http = HttpOptions { host_whitelist: vec!["localhost".into()], ..HttpOptions::default() };
    let server = Server::with(Limits::default(), http);
    assert_eq!(post(&server, "/v3/kv/range", r#"{"key":"YQ=="}"#).await.0, 200);
    for path in ["/v3/kv/put", "/v3beta/kv/put", "/v3/watch", "/v2/keys/a", "/version"] {
        let mut client = Client::connect(&server).await;
        let body = r#"{"key":"YQ=="}"#;
        client
            .send(format!(
                "POST {path} HTTP/1.1\r\nHost: evil.example:2379\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ))
            .await;
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 421 ") && answer.contains("evil.example"), "{path}: {answer}");
    }
    let mut upgrade = "ws://evil.example/v3/watch".into_client_request().expect("a request");
    upgrade.headers_mut().insert("host", "evil.example".parse().expect("a name"));
    let stream = TcpStream::connect(server.address).await.expect("the server listens");
    assert!(tokio_tungstenite::client_async(upgrade, stream).await.is_err(), "a WebSocket was opened");
    assert!(post(&server, "/v3/kv/range", r#"{"key":"YQ=="}"#).await.1.find("kvs").is_none(), "something was written");
}

/// CVE-2018-1098: pages of other origins are given no leave to read, and their browsers ask for it before they write.
#[tokio::test]
async fn cve_2018_1098_only_origins_that_are_named_may_read() {
    let http = HttpOptions { cors: vec!["https://ours.example".into()], ..HttpOptions::default() };
    let server = Server::with(Limits::default(), http);
    for (origin, is_welcome) in [("https://ours.example", true), ("https://evil.example", false)] {
        for method in ["POST", "OPTIONS"] {
            let asked =
                ask(&server, method, "/v3/kv/range", &format!("Origin: {origin}\r\n"), r#"{"key":"YQ=="}"#).await;
            let allowed = asked.1.contains(&format!("access-control-allow-origin: {origin}"));
            assert_eq!(allowed, is_welcome, "{method} {origin}: {}", asked.1);
        }
        let mut upgrade = format!("ws://{}/v3/watch", server.address).into_client_request().expect("a request");
        upgrade.headers_mut().insert("origin", origin.parse().expect("an origin"));
        let stream = TcpStream::connect(server.address).await.expect("the server listens");
        assert_eq!(tokio_tungstenite::client_async(upgrade, stream).await.is_ok(), is_welcome, "{origin}");
    }
}

// --- HTTP/2 ---

#[tokio::test]
async fn http2_offers_the_same() {
    let server = Server::start();
    let (head, body) = server.raw_call("/v3/kv/put", &[], br#"{"key":"YQ==","value":"MQ=="}"#.to_vec()).await;
    assert_eq!(
        (&head["http-status"], &head["content-type"]),
        (&"200".parse().unwrap(), &"application/json".parse().unwrap())
    );
    assert!(String::from_utf8_lossy(&body).contains(r#""revision":"2""#));
    let (head, body) = server.raw_call("/v3/kv/put", &[], b"{".to_vec()).await;
    assert_eq!((&head["http-status"], body), (&"400".parse().unwrap(), error(3, "unexpected EOF").into_bytes()));
    let (head, body) = server.raw_call("/v3/lease/keepalive", &[], br#"{"ID":1}{"ID":2}"#.to_vec()).await;
    assert_eq!(
        (&head["http-status"], body.iter().filter(|byte| **byte == b'\n').count()),
        (&"200".parse().unwrap(), 2)
    );
    // And what is not JSON as well.
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let (head, body) = server.raw_call("/v2/keys/a", &form, b"value=1".to_vec()).await;
    assert_eq!(head["http-status"], "201", "{}", String::from_utf8_lossy(&body));
}

// --- WebSockets ---

type Socket = tokio_tungstenite::WebSocketStream<TcpStream>;

async fn socket(server: &Server, path: &str, protocol: Option<&str>) -> (Socket, http::HeaderMap) {
    let mut request = format!("ws://{}{path}", server.address).into_client_request().expect("a request");
    if let Some(protocol) = protocol {
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().expect("a protocol"));
    }
    let stream = TcpStream::connect(server.address).await.expect("the server listens");
    let (socket, response) = tokio_tungstenite::client_async(request, stream).await.expect("it opens");
    (socket, response.into_parts().0.headers)
}

async fn next(socket: &mut Socket) -> Option<Value> {
    loop {
        match timeout(PATIENCE, socket.next()).await.expect("an answer")? {
            Ok(Message::Text(text)) => return Some(serde_json::from_str(&text).expect("JSON")),
            Ok(Message::Close(_)) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

#[tokio::test]
async fn a_watch_over_a_websocket() {
    let server = Server::start();
    let (mut watch, _) = socket(&server, "/v3/watch", None).await;
    watch.send(Message::text(r#"{"create_request":{"key":"YQ=="}}"#)).await.expect("sent");
    assert_eq!(next(&mut watch).await.expect("created")["result"]["created"], true);
    watch.send(Message::Ping("still there?".into())).await.expect("sent");
    post(&server, "/v3/kv/put", r#"{"key":"YQ==","value":"MQ=="}"#).await;
    assert_eq!(next(&mut watch).await.expect("an event")["result"]["events"][0]["kv"]["value"], "MQ==");
    watch.send(Message::text(r#"{"cancel_request":{"watch_id":0}}"#)).await.expect("sent");
    assert_eq!(next(&mut watch).await.expect("cancelled")["result"]["canceled"], true);
    watch.close(None).await.expect("closed");
    server.wait_for_metric("etcd_debugging_mvcc_watch_stream_total 0").await;
}

#[tokio::test]
async fn renewals_and_single_requests_over_a_websocket() {
    let server = Server::start();
    let (mut grant, _) = socket(&server, "/v3/lease/grant", None).await;
    grant.send(Message::binary(r#"{"ID":7,"TTL":600}"#.as_bytes())).await.expect("sent");
    assert_eq!(next(&mut grant).await.expect("granted")["TTL"], "600");
    assert_eq!(next(&mut grant).await, None, "one request, one answer");
    let (mut renew, _) = socket(&server, "/v3/lease/keepalive", None).await;
    for _ in 0..3 {
        renew.send(Message::text(r#"{"ID":7}"#)).await.expect("sent");
        assert_eq!(next(&mut renew).await.expect("renewed")["result"]["TTL"], "600");
    }
    let (mut nowhere, _) = socket(&server, "/v3/nowhere", None).await;
    assert_eq!(next(&mut nowhere).await, Some(json!({"code": 5, "message": "Not Found"})));
}

#[tokio::test]
async fn a_token_comes_as_a_protocol() {
    let server = Server::start();
    let (_socket, headers) = socket(&server, "/v3/watch", Some("Bearer, abc.1")).await;
    assert_eq!(headers["sec-websocket-protocol"], "Bearer");
}

#[tokio::test]
async fn what_is_no_handshake_is_refused() {
    let server = Server::start();
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    for (method, fields, expected) in [
        ("GET", format!("{upgrade}Sec-WebSocket-Version: 13\r\n"), 400),
        ("GET", format!("{upgrade}Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), 400),
        ("POST", format!("{upgrade}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), 405),
    ] {
        assert_eq!(ask(&server, method, "/v3/watch", &fields, "").await.0, expected, "{method} {fields}");
    }
    // The example of RFC 6455.
    let mut client = Client::connect(&server).await;
    let fields = format!("{upgrade}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n");
    client.send(format!("GET /v3/watch HTTP/1.1\r\nHost: h\r\n{fields}\r\n")).await;
    let head = client.head().await.to_lowercase();
    assert!(
        head.starts_with("http/1.1 101 ") && head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\n"),
        "{head}"
    );
    // Frames of clients are masked; one that is not ends it.
    client.send(b"\x81\x02{}").await;
    client.rest_bytes().await;
    server.wait_for_metric("etcd_debugging_mvcc_watch_stream_total 0").await;
}

impl Client {
    async fn rest_bytes(&mut self) -> Vec<u8> {
        let _ = timeout(PATIENCE, self.stream.read_to_end(&mut self.read)).await.expect("the server closes");
        std::mem::take(&mut self.read)
    }
}
