//! What a client may do to us: the memory that it takes is bounded, and others do not notice.
//!
//! HTTP/2 is spoken by hand here, because no library would send what these clients send.

mod support;

use std::time::Duration;

use keelson_api::{HttpOptions, Limits};
use support::{Server, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

/// How long an answer may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(30);
/// When a peer that does not take what is sent is held to push back.
const PUSHED_BACK: Duration = Duration::from_millis(500);
/// What a test may take of memory; each sends several times as much.
const BOUND_BYTES: usize = 24 << 20;

/// Memory is counted for the whole process, so the tests take turns.
async fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("a number of pages") * 4096
}

/// Whether another client is served, and how much memory was taken since `before`.
async fn check_others(server: &Server, before: usize) {
    let put = proto::etcdserverpb::PutRequest { key: "k".into(), ..Default::default() };
    let call = server.raw_call("/etcdserverpb.KV/Put", &[("content-type", "application/grpc")], frame(&put));
    let (head, _) = timeout(PATIENCE, call).await.expect("others are served");
    assert_eq!(head["grpc-status"], "0");
    let taken = resident_bytes().saturating_sub(before);
    assert!(taken < BOUND_BYTES, "{taken} bytes were taken");
}

// --- HTTP/2 by hand ---

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn http2_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A request's fields, without compression.
fn fields(path: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    let (post, http) = (&[0x83][..], &[0x86][..]);
    let path = [&[0x04][..], &text(path)].concat();
    let authority = [&[0x01][..], &text("localhost")].concat();
    let content_type = [&[0x0f, 0x10][..], &text("application/grpc")].concat();
    let te = [&[0x00][..], &text("te"), &text("trailers")].concat();
    [post, http, &path, &authority, &content_type, &te].concat()
}

struct Hostile(TcpStream);

impl Hostile {
    async fn connect(server: &Server) -> Self {
        let mut stream = TcpStream::connect(server.address).await.expect("the server listens");
        let greeting = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &http2_frame(SETTINGS, 0, 0, &[])[..]].concat();
        stream.write_all(&greeting).await.expect("sent");
        Self(stream)
    }

    /// Sends what `make` makes, again and again and without reading, until so many bytes are sent, the server closes the
    /// connection or takes no more.
    async fn flood(&mut self, bytes: usize, mut make: impl FnMut(u32) -> Vec<u8>) {
        let mut sent = 0;
        for turn in 0.. {
            // Many at once, so that it is a flood.
            let batch: Vec<u8> = (0..64).flat_map(|n| make(turn * 64 + n)).collect();
            match timeout(PUSHED_BACK, self.0.write_all(&batch)).await {
                Ok(Ok(())) => sent += batch.len(),
                Ok(Err(_)) | Err(_) => return,
            }
            if sent >= bytes {
                return;
            }
        }
    }

    /// Reads until the server closes, and says whether it said why.
    async fn is_sent_away(&mut self) -> bool {
        let mut read = Vec::new();
        let _ = timeout(PATIENCE, self.0.read_to_end(&mut read)).await.expect("the server closes");
        let mut rest = &read[..];
        while rest.len() >= 9 {
            if rest[3] == GOAWAY {
                return true;
            }
            let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
            rest = rest.get(9 + length..).unwrap_or_default();
        }
        false
    }
}

/// CVE-2023-44487: a request that is taken back at once makes room for another, while the server still works on it. A limit of
/// streams limits what is in work, too.
#[tokio::test]
async fn cve_2023_44487_rapid_resets_are_bounded() {
    let _turn = alone().await;
    let server = Server::with_limits(Limits { max_concurrent_streams: 100, ..Limits::default() });
    check_others(&server, resident_bytes()).await;
    let before = resident_bytes();
    // As without a leader: linearizable reads wait.
    server.member.local_reads.store(false, std::sync::atomic::Ordering::Relaxed);
    let mut hostile = Hostile::connect(&server).await;
    let fields = fields("/etcdserverpb.KV/Range");
    let range = frame(&proto::etcdserverpb::RangeRequest { key: "k".into(), ..Default::default() });
    hostile
        .flood(32 << 20, |n| {
            let stream = 2 * n + 1;
            let reset = http2_frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
            let ask = http2_frame(DATA, END_STREAM, stream, &range);
            [http2_frame(HEADERS, END_HEADERS, stream, &fields), ask, reset].concat()
        })
        .await;
    assert!(hostile.is_sent_away().await, "the connection was closed without a word");
    let metrics = server.http1("GET", "/metrics").await;
    let begun =
        "grpc_server_started_total{grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} ";
    let begun: usize = metrics.lines().find_map(|line| line.strip_prefix(begun)?.parse().ok()).expect("counted");
    assert!(begun < 1000, "{begun} reads were begun");
    check_others(&server, before).await;
    server.pass_barriers();
}

/// A head that never ends.
#[tokio::test]
async fn a_flood_of_continuations_ends_the_connection() {
    let _turn = alone().await;
    let server = Server::start();
    check_others(&server, resident_bytes()).await;
    let before = resident_bytes();
    let mut hostile = Hostile::connect(&server).await;
    hostile.0.write_all(&http2_frame(HEADERS, END_STREAM, 1, &fields("/etcdserverpb.KV/Put"))).await.expect("sent");
    let field = [&[0x00, 1, b'a', 100][..], &[b'x'; 100]].concat();
    let piece = http2_frame(CONTINUATION, 0, 1, &field.repeat(100));
    hostile.flood(64 << 20, |_| piece.clone()).await;
    check_others(&server, before).await;
    let _ = hostile.is_sent_away().await;
    // Empty ones are as endless.
    let mut hostile = Hostile::connect(&server).await;
    hostile.0.write_all(&http2_frame(HEADERS, END_STREAM, 1, &fields("/etcdserverpb.KV/Put"))).await.expect("sent");
    hostile.flood(16 << 20, |_| http2_frame(CONTINUATION, 0, 1, &[])).await;
    check_others(&server, before).await;
}

/// Each wants an answer, and nobody reads them.
#[tokio::test]
async fn floods_of_settings_and_pings_take_no_memory() {
    let _turn = alone().await;
    let server = Server::start();
    check_others(&server, resident_bytes()).await;
    let before = resident_bytes();
    let window = [&4_u16.to_be_bytes()[..], &65_535_u32.to_be_bytes()].concat();
    let mut settings = Hostile::connect(&server).await;
    settings.flood(32 << 20, |_| http2_frame(SETTINGS, 0, 0, &window)).await;
    check_others(&server, before).await;
    let mut pings = Hostile::connect(&server).await;
    pings.flood(32 << 20, |n| http2_frame(PING, 0, 0, &u64::from(n).to_be_bytes())).await;
    check_others(&server, before).await;
}

/// Streams that are opened and left, up to `--max-concurrent-streams`.
#[tokio::test]
async fn no_more_streams_are_open_than_may_be() {
    let _turn = alone().await;
    let server = Server::with_limits(Limits { max_concurrent_streams: 100, ..Limits::default() });
    check_others(&server, resident_bytes()).await;
    let before = resident_bytes();
    let mut hostile = Hostile::connect(&server).await;
    let fields = fields("/etcdserverpb.Watch/Watch");
    hostile.flood(8 << 20, |n| http2_frame(HEADERS, END_HEADERS, 2 * n + 1, &fields)).await;
    check_others(&server, before).await;
    let open = server.http1("GET", "/metrics").await;
    let open = open.lines().find_map(|line| line.strip_prefix("etcd_debugging_mvcc_watch_stream_total "));
    let open: usize = open.expect("counted").parse().expect("a number");
    assert!(open <= 100, "{open} streams are open");
}

/// Connections that say half of something and then nothing.
#[tokio::test]
async fn who_does_not_finish_a_head_or_a_greeting_is_closed_in_time() {
    let _turn = alone().await;
    let http = HttpOptions { request_timeout: Duration::from_millis(300), ..HttpOptions::default() };
    let server = Server::with(Limits::default(), http);
    check_others(&server, resident_bytes()).await;
    let before = resident_bytes();
    let halves: [&[u8]; 6] = [
        b"",
        b"PRI * HTTP/2.0\r\n",
        b"GET /version HTTP/1.1\r\nHost: h\r\nX",
        b"PUT /v2/keys/a HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nvalue",
        b"POST /v3/kv/put HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"key",
        b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n",
    ];
    let mut open = Vec::new();
    for _ in 0..40 {
        for half in halves {
            let mut stream = TcpStream::connect(server.address).await.expect("the server listens");
            stream.write_all(half).await.expect("sent");
            open.push(stream);
        }
    }
    check_others(&server, before).await;
    for mut stream in open {
        // A reset is an end as well.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("the server closes");
    }
}

/// A body of any length is kept only as far as it may count.
#[tokio::test]
async fn endless_bodies_are_cut_off() {
    let _turn = alone().await;
    let server = Server::start();
    check_others(&server, resident_bytes()).await;
    let before = resident_bytes();
    for (path, begin) in
        [("/v2/keys/a", "value="), ("/v3/kv/put", "{\"key\":\""), ("/v3/watch", "{\"create_request\":{\"key\":\"")]
    {
        let mut stream = TcpStream::connect(server.address).await.expect("the server listens");
        let head = format!(
            "PUT {path} HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        let head = if path.starts_with("/v3") { head.replacen("PUT", "POST", 1) } else { head };
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream.write_all(format!("{:x}\r\n{begin}\r\n", begin.len()).as_bytes()).await.expect("sent");
        let chunk = format!("10000\r\n{}\r\n", "A".repeat(0x10000));
        let mut sent = 0;
        while sent < 96 << 20 {
            match timeout(PUSHED_BACK, stream.write_all(chunk.as_bytes())).await {
                Ok(Ok(())) => sent += chunk.len(),
                Ok(Err(_)) | Err(_) => break,
            }
        }
        assert!(sent < 96 << 20, "{path} took all of it");
        check_others(&server, before).await;
    }
}
