//! Whatever comes in over the socket or lies on the disk: etcd's error, or a sentence that says what to do, and the
//! server goes on. Never a panic, never a wrong answer.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use keelson_tests::harness::{Options, Server, connect, ours};
use prost::Message as _;
use proto::etcdserverpb::{PutRequest, RangeRequest, WatchCreateRequest, WatchRequest, watch_request::RequestUnion};
use tonic::Code;

/// How long a server that must refuse to start may take to say so.
const REFUSED_WITHIN: Duration = Duration::from_secs(30);
/// The first bytes of every HTTP/2 connection.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An empty SETTINGS frame.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

fn start() -> Server {
    Server::start(&ours(), Options::default()).expect("the server starts")
}

/// The process runs, and a new client can write and read.
async fn must_be_alive(server: &mut Server, after: &str) {
    let ended = server.ended().expect("the process can be looked after");
    assert!(ended.is_none(), "after {after} the server ended: {ended:?}\n{}", server.log());
    let client = connect(server.client_addr()).await;
    let mut client = client.unwrap_or_else(|problem| panic!("after {after}: {problem}"));
    let (key, value) = (Bytes::from_static(b"alive"), Bytes::copy_from_slice(after.as_bytes()));
    let put = PutRequest { key: key.clone(), value: value.clone(), ..PutRequest::default() };
    client.kv.put(put).await.unwrap_or_else(|status| panic!("after {after}: {status}"));
    let range = RangeRequest { key, ..RangeRequest::default() };
    let response = client.kv.range(range).await.unwrap_or_else(|status| panic!("after {after}: {status}"));
    assert_eq!(response.into_inner().kvs[0].value, value, "after {after}");
    assert!(!server.log().contains("panicked at"), "after {after}: {}", server.log());
}

/// A gRPC answer as it is on the wire.
#[derive(Debug, Default)]
struct RawAnswer {
    http_status: u16,
    grpc_status: Option<i32>,
    message: String,
}

/// One request by hand: `body` is what the DATA frames carry. An `Err` is a reset stream or connection.
async fn call(server: SocketAddr, path: &str, body: Bytes) -> Result<RawAnswer, Box<dyn std::error::Error>> {
    let socket = tokio::net::TcpStream::connect(server).await?;
    let (sender, connection) = h2::client::handshake(socket).await?;
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("http://{server}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("a request");
    let (response, mut stream) = sender.ready().await?.send_request(request, false)?;
    // The server may answer and reset before it has read everything.
    stream.send_data(body, true).ok();
    let (head, mut body) = response.await?.into_parts();
    let mut answer = RawAnswer { http_status: head.status.as_u16(), ..RawAnswer::default() };
    let mut headers = head.headers;
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data?.len())?;
    }
    headers.extend(body.trailers().await?.unwrap_or_default());
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    answer.grpc_status = text("grpc-status").parse().ok();
    answer.message = text("grpc-message").to_owned();
    connection.abort();
    Ok(answer)
}

/// `message` with the five bytes before it that say how long it is.
fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

#[tokio::test]
async fn oversized_requests_get_etcds_two_errors() {
    let mut server = start();
    let mut client = connect(server.client_addr()).await.expect("a connection");
    let put = |size: usize| PutRequest {
        key: Bytes::from_static(b"k"),
        value: Bytes::from(vec![b'v'; size]),
        ..PutRequest::default()
    };
    client.kv.put(put(1_500_000)).await.expect("1.5 MB fit into 1.5 MiB");
    // over --max-request-bytes, under the limit of the transport
    let status = client.kv.put(put(1_700_000)).await.expect_err("too large");
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "etcdserver: request is too large"));
    // over both
    let status = client.kv.put(put(3_000_000)).await.expect_err("far too large");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("received message larger than max (3000"), "{status}");
    assert!(status.message().ends_with(" vs. 2097152)"), "{status}");
    must_be_alive(&mut server, "oversized requests").await;
}

#[tokio::test]
async fn malformed_http2_ends_its_connection_and_nothing_else() {
    let mut server = start();
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let mut frame = vec![0, (payload.len() >> 8) as u8, payload.len() as u8, kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    };
    let (data, headers, priority, reset, settings, ping, goaway, window, continuation) = (0, 1, 2, 3, 4, 6, 7, 8, 9);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("bytes that are no protocol at all", vec![0xff; 4096]),
        ("a TLS hello", vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03]),
        ("half a preface", PREFACE[..12].to_vec()),
        ("a frame longer than allowed", [PREFACE, SETTINGS, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat()),
        ("no settings first", [PREFACE, &frame(data, 0, 1, b"x")].concat()),
        ("data on stream 0", [PREFACE, SETTINGS, &frame(data, 0, 0, b"x")].concat()),
        ("data on a stream nobody opened", [PREFACE, SETTINGS, &frame(data, 0, 5, b"x")].concat()),
        ("headers that do not decode", [PREFACE, SETTINGS, &frame(headers, 4, 1, &[0xff; 40])].concat()),
        ("headers on an even stream", [PREFACE, SETTINGS, &frame(headers, 5, 2, &[0x82])].concat()),
        ("settings on a stream", [PREFACE, &frame(settings, 0, 1, &[])].concat()),
        ("settings of a wrong length", [PREFACE, &frame(settings, 0, 0, &[1, 2, 3])].concat()),
        ("a ping of a wrong length", [PREFACE, SETTINGS, &frame(ping, 0, 0, &[1])].concat()),
        ("a window update of zero", [PREFACE, SETTINGS, &frame(window, 0, 0, &[0; 4])].concat()),
        ("a reset of a stream nobody opened", [PREFACE, SETTINGS, &frame(reset, 0, 7, &[0; 4])].concat()),
        ("a priority of a wrong length", [PREFACE, SETTINGS, &frame(priority, 0, 1, &[0])].concat()),
        ("a continuation of nothing", [PREFACE, SETTINGS, &frame(continuation, 4, 1, &[0x82])].concat()),
        ("a goaway cut short", [PREFACE, SETTINGS, &frame(goaway, 0, 0, &[0; 3])].concat()),
        ("a frame that never ends", [PREFACE, SETTINGS, &[0, 0x40, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3]].concat()),
        ("a pseudo header of HTTP/1", b"GET /\0\0 HTTP/9.9\r\n\r\n".to_vec()),
    ];
    for (name, bytes) in cases {
        let mut socket = TcpStream::connect(server.client_addr()).expect("a connection");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        socket.write_all(&bytes).expect("the server reads");
        // It closes, or it waits for more: both are fine, as long as it serves the others.
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).ok();
        drop(socket);
        must_be_alive(&mut server, name).await;
    }
}

#[tokio::test]
async fn protobufs_that_do_not_decode_are_refused() {
    let mut server = start();
    let put = PutRequest {
        key: Bytes::from_static(b"key"),
        value: Bytes::from_static(b"a value"),
        lease: 0,
        ..PutRequest::default()
    };
    let whole = put.encode_to_vec();
    for cut in 1..whole.len() {
        // A cut between two fields leaves a message that is only shorter.
        let fits = PutRequest::decode(&whole[..cut]).is_ok();
        let answer = call(server.client_addr(), "/etcdserverpb.KV/Put", framed(&whole[..cut])).await;
        let answer = answer.expect("an answer");
        let expected = if fits { 0 } else { Code::Internal as i32 };
        assert_eq!(answer.grpc_status, Some(expected), "cut at {cut}: {answer:?}");
    }
    let methods = ["KV/Range", "KV/DeleteRange", "KV/Txn", "KV/Compact", "Lease/LeaseGrant", "Maintenance/HashKV"];
    for method in methods {
        // field 1, ten bytes long, two of them there
        let answer = call(server.client_addr(), &format!("/etcdserverpb.{method}"), framed(&[0x0a, 10, 1, 2])).await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.grpc_status, Some(Code::Internal as i32), "{method}: {answer:?}");
    }
    for method in ["Watch/Watch", "Lease/LeaseKeepAlive"] {
        let answer = call(server.client_addr(), &format!("/etcdserverpb.{method}"), framed(&[0x0a, 10, 1, 2])).await;
        let refused = answer.as_ref().map_or(true, |answer| answer.grpc_status != Some(0));
        assert!(refused, "{method}: {answer:?}");
    }
    must_be_alive(&mut server, "truncated messages").await;
}

#[tokio::test]
async fn a_txn_nested_ten_thousand_deep_is_refused() {
    let mut server = start();
    // txn { success: request_op { request_txn: txn { ... } } }, built from the inside out
    let mut message = Vec::new();
    for _ in 0..10_000 {
        for tag in [0x22, 0x12] {
            let mut outer = vec![tag];
            prost::encoding::encode_varint(message.len() as u64, &mut outer);
            outer.append(&mut message);
            message = outer;
        }
    }
    let answer = call(server.client_addr(), "/etcdserverpb.KV/Txn", framed(&message)).await.expect("an answer");
    assert_ne!(answer.grpc_status, Some(0), "{answer:?}");
    must_be_alive(&mut server, "a deep txn").await;
}

#[tokio::test]
async fn frames_that_lie_about_themselves_are_refused() {
    let mut server = start();
    let range = RangeRequest { key: Bytes::from_static(b"k"), ..RangeRequest::default() }.encode_to_vec();
    let with_header = |header: [u8; 5]| Bytes::from([&header[..], &range].concat());
    let cases = [
        ("longer than what comes", with_header([0, 0, 0, 0, 100])),
        ("longer than allowed", with_header([0, 0x7f, 0xff, 0xff, 0xff])),
        ("compressed without saying how", with_header([1, 0, 0, 0, range.len() as u8])),
        ("half a frame header", Bytes::from_static(&[0, 0, 0])),
        ("nothing", Bytes::new()),
    ];
    for (name, body) in cases {
        let answer = call(server.client_addr(), "/etcdserverpb.KV/Range", body).await;
        let refused = answer.as_ref().map_or(true, |answer| answer.grpc_status != Some(0));
        assert!(refused, "{name}: {answer:?}");
        must_be_alive(&mut server, name).await;
    }
}

#[tokio::test]
async fn unknown_methods_and_services_are_unimplemented() {
    let mut server = start();
    let cases = [
        ("/etcdserverpb.KV/Nope", "unknown method Nope for service etcdserverpb.KV"),
        ("/etcdserverpb.Nope/Range", "unknown service etcdserverpb.Nope"),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "unknown service grpc.reflection.v1alpha"),
    ];
    for (path, text) in cases {
        let answer = call(server.client_addr(), path, framed(&[])).await.expect("an answer");
        assert_eq!(answer.grpc_status, Some(Code::Unimplemented as i32), "{path}: {answer:?}");
        assert_eq!(answer.http_status, 200, "{path}: {answer:?}");
        assert!(answer.message.starts_with(text), "{path}: {answer:?}");
    }
    let answer = call(server.client_addr(), "/nonsense", framed(&[])).await;
    let refused = answer.as_ref().map_or(true, |answer| answer.grpc_status != Some(0));
    assert!(refused, "{answer:?}");
    must_be_alive(&mut server, "unknown methods").await;
}

#[tokio::test]
async fn a_huge_header_is_refused() {
    let mut server = start();
    let client = connect(server.client_addr()).await.expect("a connection");
    for size in [20_000, 200_000, 20_000_000] {
        let mut request = tonic::Request::new(RangeRequest { key: Bytes::from_static(b"k"), ..Default::default() });
        request.metadata_mut().insert("x-huge", "h".repeat(size).parse().expect("plain text"));
        // Whether it is refused, and by which of the two sides, depends on the size; that it ends does not.
        let mut client = client.clone();
        let answer = tokio::time::timeout(Duration::from_secs(20), client.kv.range(request)).await;
        assert!(answer.is_ok(), "a header of {size} bytes hangs");
        must_be_alive(&mut server, "a huge header").await;
    }
}

#[tokio::test]
async fn ten_thousand_cancelled_requests_harm_nobody() {
    const REQUESTS: usize = 10_000;
    let mut server = start();
    let mut cancelled = 0;
    while cancelled < REQUESTS {
        // The server may end a connection that resets so much; then the next one goes on.
        let socket = tokio::net::TcpStream::connect(server.client_addr()).await.expect("a connection");
        let (mut sender, connection) = h2::client::handshake(socket).await.expect("a handshake");
        let connection = tokio::spawn(connection);
        let watch = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
                key: Bytes::from_static(b"k"),
                ..WatchCreateRequest::default()
            })),
        };
        let watch = framed(&watch.encode_to_vec());
        while cancelled < REQUESTS {
            let Ok(ready) = sender.ready().await else { break };
            sender = ready;
            let path = ["/etcdserverpb.Watch/Watch", "/etcdserverpb.KV/Range"][cancelled % 2];
            let request = http::Request::post(format!("http://{}{path}", server.client_addr()))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())
                .expect("a request");
            let Ok((response, mut stream)) = sender.send_request(request, false) else { break };
            if cancelled % 3 == 0 {
                stream.send_data(watch.clone(), false).ok();
            }
            stream.send_reset(h2::Reason::CANCEL);
            drop(response);
            cancelled += 1;
            if cancelled % 50 == 0 {
                // lets the connection write
                tokio::task::yield_now().await;
            }
        }
        connection.abort();
    }
    must_be_alive(&mut server, "cancelled requests").await;
}

// --- what lies on the disk ---

#[tokio::test]
async fn a_second_process_leaves_a_data_directory_in_use_alone() {
    let mut first = start();
    let options = Options {
        data_dir: Some(first.data_dir().to_owned()),
        flags: vec!["--log-level=info".into()],
        ..Options::default()
    };
    let mut second = Server::spawned(&ours(), options).expect("a second process starts");
    let deadline = Instant::now() + REFUSED_WITHIN;
    loop {
        assert!(!second.is_healthy(), "two servers serve one directory");
        if let Some(status) = second.ended().expect("the process can be looked after") {
            assert!(!status.success(), "it gave up without saying so");
            break;
        }
        // etcd waits for the lock, and says that it does
        if second.log().contains("lock") {
            break;
        }
        assert!(Instant::now() < deadline, "it neither ends nor says what it waits for:\n{}", second.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(second.log().contains("lock"), "no word about the lock:\n{}", second.log());
    must_be_alive(&mut first, "a second process on its directory").await;
}

#[tokio::test]
async fn a_data_directory_keeps_its_cluster_whatever_the_flags_say() {
    let mut first = start();
    must_be_alive(&mut first, "the first start").await;
    let header = cluster_of(&first).await;
    first.stop().expect("SIGTERM ends it");
    let options = Options {
        data_dir: Some(first.data_dir().to_owned()),
        flags: vec!["--initial-cluster-token=another-cluster".into()],
        ..Options::default()
    };
    let mut second = Server::start(&ours(), options).expect("the flag is for new members only");
    assert_eq!(cluster_of(&second).await, header);
    must_be_alive(&mut second, "a start with another cluster's token").await;
}

async fn cluster_of(server: &Server) -> (u64, u64) {
    let mut client = connect(server.client_addr()).await.expect("a connection");
    let response = client.kv.range(RangeRequest { key: Bytes::from_static(b"alive"), ..RangeRequest::default() }).await;
    let response = response.expect("an answer").into_inner();
    assert_eq!(response.kvs.len(), 1, "the key from before is there");
    let header = response.header.expect("a header");
    (header.cluster_id, header.member_id)
}

#[test]
fn a_data_directory_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("a-file");
    std::fs::write(&file, "not a directory").expect("a file");
    let options = Options { data_dir: Some(file.join("data")), ..Options::default() };
    let mut server = Server::spawned(&ours(), options).expect("the process starts");
    let status = server.wait_ended(REFUSED_WITHIN).expect("it cannot run");
    assert!(!status.success());
    assert!(server.log().contains("a-file"), "it does not say where:\n{}", server.log());
}

/// Root may write anywhere, so this needs an ordinary user.
#[test]
fn a_read_only_data_directory_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a temporary directory");
    let data = folder.path().join("read-only");
    std::fs::create_dir(&data).expect("a directory");
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o500)).expect("permissions");
    if std::fs::write(data.join("probe"), "").is_ok() {
        eprintln!("skipped: this user may write into read-only directories");
        return;
    }
    let mut server =
        Server::spawned(&ours(), Options { data_dir: Some(data), ..Options::default() }).expect("a process");
    let status = server.wait_ended(REFUSED_WITHIN).expect("it cannot run");
    assert!(!status.success());
    assert!(server.log().contains("read-only"), "it does not say where:\n{}", server.log());
}

#[tokio::test]
async fn a_damaged_wal_is_refused_by_name() {
    let mut server = start();
    put_needles(&server).await;
    server.kill().expect("SIGKILL");
    let file = damage(&server.data_dir().join("member/wal"), "needle-25-in-the-haystack").expect("the log has it");
    server.spawn().expect("the process starts");
    let status = server.wait_ended(REFUSED_WITHIN).expect("a damaged log must not be served");
    assert!(!status.success());
    let log = server.log();
    let name = file.file_name().expect("a name").to_string_lossy().into_owned();
    // etcd says only that a sum is wrong; we say where.
    assert!(log.contains(&name) || log.contains("walpb: crc mismatch"), "no word about {name}:\n{log}");
}

/// A damaged segment: refused by name, or healed from the log, or an error for what was in it. Never a wrong value.
#[tokio::test]
async fn a_damaged_segment_gives_no_wrong_answer() {
    let mut server = start();
    put_needles(&server).await;
    server.stop().expect("SIGTERM ends it");
    let Some(file) = damage(&server.data_dir().join("member/store"), "needle-25-in-the-haystack") else {
        assert!(!server.data_dir().join("member/store").is_dir(), "no segment holds the value");
        eprintln!("skipped: this server keeps its data elsewhere");
        return;
    };
    let name = file.file_name().expect("a name").to_string_lossy().into_owned();
    server.spawn().expect("the process starts");
    if server.wait_ready().is_err() {
        assert!(server.log().contains(&name), "it does not name {name}:\n{}", server.log());
        return;
    }
    // It may refuse to answer rather than answer wrongly, and says why.
    if let Err(status) = needles_must_be_there(&server).await {
        let log = server.log();
        assert!(status.message().contains(&name) || log.contains(&name), "{status}, not a word of {name}:\n{log}");
    }
}

/// Reads what [`put_needles`] wrote. An error is an answer; a wrong value is not.
async fn needles_must_be_there(server: &Server) -> Result<(), tonic::Status> {
    let mut client = connect(server.client_addr()).await.expect("a connection");
    for number in 0..50 {
        let key = Bytes::from(format!("key{number}"));
        let response = client.kv.range(RangeRequest { key, ..RangeRequest::default() }).await?;
        let value = response.into_inner().kvs.first().map(|pair| pair.value.clone());
        assert_eq!(value.as_deref(), Some(format!("needle-{number}-in-the-haystack").as_bytes()));
    }
    Ok(())
}

/// A crash in the middle of the last write: its sectors are zeros. It was never acknowledged as far as the next start
/// can know, so it may be gone; nothing before it may.
#[tokio::test]
async fn a_torn_end_of_the_wal_takes_nothing_else_with_it() {
    let mut server = start();
    put_needles(&server).await;
    let mut client = connect(server.client_addr()).await.expect("a connection");
    let last = Bytes::from("last-".repeat(2_000));
    let put = PutRequest { key: Bytes::from_static(b"last"), value: last.clone(), ..PutRequest::default() };
    client.kv.put(put).await.expect("a put");
    server.kill().expect("SIGKILL");
    tear(&server.data_dir().join("member/wal"), &last);
    server.spawn().and_then(|()| server.wait_ready()).expect("a torn end is no corruption");
    needles_must_be_there(&server).await.expect("the server answers");
    let mut client = connect(server.client_addr()).await.expect("a connection");
    let range = RangeRequest { key: Bytes::from_static(b"last"), ..RangeRequest::default() };
    let pairs = client.kv.range(range).await.expect("an answer").into_inner().kvs;
    assert!(pairs.is_empty() || pairs[0].value == last, "half a value: {pairs:?}");
    must_be_alive(&mut server, "a torn end of its log").await;
}

/// Zeroes what lies behind the first half of `needle` in the file that has it, as if those sectors never arrived.
fn tear(folder: &Path, needle: &[u8]) {
    for entry in std::fs::read_dir(folder).expect("a directory") {
        let path = entry.expect("an entry").path();
        let mut bytes = std::fs::read(&path).expect("a file");
        if let Some(at) = bytes.windows(needle.len()).position(|window| window == needle) {
            let middle = (at + needle.len() / 2).next_multiple_of(512);
            bytes[middle..].fill(0);
            std::fs::write(&path, bytes).expect("the file can be written");
            return;
        }
    }
    panic!("the value is in no file of {}", folder.display());
}

/// The disk fills up: writes fail or the member stops, and what was acknowledged is there when there is room again.
#[tokio::test]
async fn a_full_disk_loses_no_acknowledged_write() {
    let Some(disk) = SmallDisk::mount("300m") else {
        eprintln!("skipped: this user may not mount a small disk");
        return;
    };
    let options = Options { data_dir: Some(disk.0.path().join("data")), ..Options::default() };
    let mut server = Server::start(&ours(), options).expect("the server starts");
    let ballast = disk.0.path().join("ballast");
    let mut file = std::fs::File::create(&ballast).expect("a file");
    while file.write_all(&[1; 65536]).is_ok() {}
    drop(file);

    let mut client = connect(server.client_addr()).await.expect("a connection");
    let mut acknowledged = Vec::new();
    let value = Bytes::from(vec![b'v'; 100_000]);
    // What is allocated ahead holds some; nothing that fits on this disk holds all.
    for number in 0..3_000 {
        let key = Bytes::from(format!("key{number}"));
        let put = client.kv.put(PutRequest { key: key.clone(), value: value.clone(), ..PutRequest::default() });
        match tokio::time::timeout(Duration::from_secs(30), put).await {
            Ok(Ok(_)) => acknowledged.push(key),
            Ok(Err(_)) => break,
            Err(_) => panic!("a put hangs on a full disk:\n{}", server.log()),
        }
    }
    assert!(acknowledged.len() < 3_000, "300 MB on a disk of 300 MB");
    server.kill().expect("SIGKILL, if it has not stopped by itself");
    std::fs::remove_file(&ballast).expect("the ballast goes");
    server.spawn().and_then(|()| server.wait_ready()).expect("with room again it starts");
    let mut client = connect(server.client_addr()).await.expect("a connection");
    for key in acknowledged {
        let response = client.kv.range(RangeRequest { key: key.clone(), ..RangeRequest::default() }).await;
        let pairs = response.expect("an answer").into_inner().kvs;
        assert!(pairs.len() == 1 && pairs[0].value == value, "lost: {key:?}");
    }
    must_be_alive(&mut server, "a full disk").await;
}

/// A file system of its own, in memory, that goes away with its value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Option<SmallDisk> {
        let folder = tempfile::tempdir().ok()?;
        let option = format!("size={size}");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &option, "keelson-test"]).arg(folder.path());
        mount.output().ok()?.status.success().then_some(SmallDisk(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, since a server of a failed test may still be there; a failure only leaves a mount behind.
        std::process::Command::new("umount").arg("-l").arg(self.0.path()).output().ok();
    }
}

async fn put_needles(server: &Server) {
    let mut client = connect(server.client_addr()).await.expect("a connection");
    for number in 0..50 {
        let (key, value) = (format!("key{number}"), format!("needle-{number}-in-the-haystack"));
        let put = PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
        client.kv.put(put).await.expect("a put");
    }
}

/// Flips a bit in the middle of `needle` in the file of `folder` that has it.
fn damage(folder: &Path, needle: &str) -> Option<PathBuf> {
    for entry in std::fs::read_dir(folder).ok()? {
        let path = entry.ok()?.path();
        let mut bytes = std::fs::read(&path).unwrap_or_default();
        if let Some(at) = bytes.windows(needle.len()).position(|window| window == needle.as_bytes()) {
            bytes[at + needle.len() / 2] ^= 0x10;
            std::fs::write(&path, bytes).expect("the file can be written");
            return Some(path);
        }
    }
    None
}
