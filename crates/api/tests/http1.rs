//! HTTP/1.1 on the wire: what a connection may ask, in which pieces, and what is refused.

mod support;

use std::time::Duration;

use support::Server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);
/// The form of a set.
const FORM: &str = "Host: h\r\nContent-Type: application/x-www-form-urlencoded\r\n";

struct Client(TcpStream);

impl Client {
    async fn connect(server: &Server) -> Self {
        Self(TcpStream::connect(server.address).await.expect("the server listens"))
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.expect("sent");
    }

    /// Reads until the answers so far end like this.
    async fn until(&mut self, end: &str) -> String {
        let mut answer = Vec::new();
        while !answer.ends_with(end.as_bytes()) {
            let read = timeout(PATIENCE, self.0.read_buf(&mut answer)).await;
            let read = read.unwrap_or_else(|_| panic!("{end:?} never came: {}", String::from_utf8_lossy(&answer)));
            assert_ne!(read.expect("read"), 0, "the end came before {end:?}: {}", String::from_utf8_lossy(&answer));
        }
        String::from_utf8(answer).expect("text")
    }

    /// Reads until the server closes.
    async fn rest(&mut self) -> String {
        let mut answer = Vec::new();
        // A reset after the answer is an end, too.
        let _ = timeout(PATIENCE, self.0.read_to_end(&mut answer)).await.expect("the server closes");
        String::from_utf8(answer).expect("text")
    }
}

/// All that comes back for these bytes, which are the last.
async fn talk(server: &Server, bytes: impl AsRef<[u8]>) -> String {
    let mut client = Client::connect(server).await;
    client.send(bytes).await;
    client.0.shutdown().await.expect("half closed");
    client.rest().await
}

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or_default()
}

async fn value(server: &Server, key: &str) -> String {
    let answer = server.http1("GET", &format!("/v2/keys/{key}")).await;
    let body = answer.split_once("\r\n\r\n").expect("a head and a body").1;
    let json: serde_json::Value = serde_json::from_str(body).expect("JSON");
    json["node"]["value"].as_str().unwrap_or("(none)").to_owned()
}

#[tokio::test]
async fn requests_that_come_together_are_answered_in_their_order() {
    let server = Server::start();
    let put = format!("PUT /v2/keys/a HTTP/1.1\r\n{FORM}Content-Length: 7\r\n\r\nvalue=1");
    let get = "GET /v2/keys/a HTTP/1.1\r\nHost: h\r\n\r\n";
    let last = "GET /v2/keys/none HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let answer = talk(&server, [get, &put, get, "\r\n", get, last, get].concat()).await;
    let statuses: Vec<&str> = answer.split("HTTP/1.1 ").skip(1).map(|one| &one[..3]).collect();
    assert_eq!(statuses, ["404", "201", "200", "200", "404"], "{answer}");
    assert_eq!(answer.matches("\r\nConnection: close\r\n").count(), 1);
}

/// A request that is cut off in the next one's first line is not kept waiting for the rest of that.
#[tokio::test]
async fn an_answer_does_not_wait_for_the_rest_of_the_next_request() {
    let server = Server::start();
    let mut client = Client::connect(&server).await;
    client.send("GET /version HTTP/1.1\r\nHost: h\r\n\r\nGET /ver").await;
    client.until("\"storage\":\"3.7.0\"}").await;
    client.send("sion HTTP/1.1\r\nHost: h\r\n\r\n").await;
    client.until("\"storage\":\"3.7.0\"}").await;
}

#[tokio::test]
async fn a_body_may_come_in_any_pieces() {
    let server = Server::start();
    let mut client = Client::connect(&server).await;
    let known = format!("PUT /v2/keys/known HTTP/1.1\r\n{FORM}Content-Length: 11\r\n\r\nvalue=hello");
    let chunks = "6;ext=1\r\nvalue=\r\n1\r\nh\r\n04\r\nello\r\n0\r\nTrailer: t\r\n\r\n";
    let chunked = format!("PUT /v2/keys/chunked HTTP/1.1\r\n{FORM}Transfer-Encoding: chunked\r\n\r\n{chunks}");
    client.0.set_nodelay(true).expect("a TCP socket");
    for request in [known, chunked] {
        for byte in request.as_bytes() {
            client.send([*byte]).await;
            tokio::task::yield_now().await;
        }
        let answer = client.until("}\n").await;
        assert_eq!(status(&answer), "201", "{answer}");
    }
    assert_eq!((value(&server, "known").await.as_str(), value(&server, "chunked").await.as_str()), ("hello", "hello"));
}

#[tokio::test]
async fn a_client_gets_leave_to_send_its_body_unless_it_is_too_large() {
    let server = Server::start();
    let mut client = Client::connect(&server).await;
    client.send(format!("PUT /v2/keys/a HTTP/1.1\r\n{FORM}Expect: 100-continue\r\nContent-Length: 7\r\n\r\n")).await;
    assert_eq!(client.until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("value=1").await;
    assert_eq!(status(&client.until("}\n").await), "201");
    client
        .send(format!("PUT /v2/keys/a HTTP/1.1\r\n{FORM}Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"))
        .await;
    let answer = client.rest().await;
    assert!(status(&answer) == "400" && answer.contains("http: POST too large"), "{answer}");
}

#[tokio::test]
async fn a_head_is_what_a_get_would_begin_with() {
    let server = Server::start();
    let answer = talk(&server, "HEAD /v2/keys/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(body.is_empty() && head.contains("\r\nContent-Length: 37\r\n"), "{answer}");
    for field in ["Date", "X-Etcd-Index", "X-Etcd-Cluster-Id", "Content-Type"] {
        assert!(head.contains(&format!("\r\n{field}: ")), "{field} is missing in {head}");
    }
}

#[tokio::test]
async fn clients_of_http_1_0_get_one_answer_unless_they_ask_for_more() {
    let server = Server::start();
    let answer = talk(&server, "GET /v2/keys/ HTTP/1.0\r\n\r\nGET /v2/keys/ HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.matches("HTTP/1.0").count() == 1, "{answer}");
    let kept = "GET /v2/keys/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    let answer = talk(&server, format!("{kept}{kept}")).await;
    assert_eq!(answer.matches("\r\nConnection: keep-alive\r\n").count(), 2, "{answer}");
}

/// Each is refused, and what stands behind it is not taken for a request: that is how one client's request is smuggled
/// into another's connection.
#[tokio::test]
async fn what_can_be_read_in_two_ways_ends_the_connection() {
    let server = Server::start();
    let smuggled = "GET /v2/keys/ HTTP/1.1\r\nHost: h\r\n\r\n";
    let set = |fields: &str, body: &str| format!("PUT /v2/keys/a HTTP/1.1\r\n{FORM}{fields}\r\n{body}{smuggled}");
    let te = "Transfer-Encoding: chunked\r\n";
    for (what, request, expected) in [
        ("two lengths", set("Content-Length: 7\r\nContent-Length: 0\r\n", "value=1"), "400"),
        ("a length beside chunks", set(&format!("Content-Length: 4\r\n{te}"), "0\r\n\r\n"), "400"),
        ("chunks beside a length", set(&format!("{te}Content-Length: 4\r\n"), "0\r\n\r\n"), "400"),
        ("a space before the colon", set("Content-Length : 7\r\n", "value=1"), "400"),
        ("a signed length", set("Content-Length: +7\r\n", "value=1"), "400"),
        ("a list of lengths", set("Content-Length: 7, 7\r\n", "value=1"), "400"),
        ("a folded field", set("A: b\r\n c\r\n", ""), "400"),
        ("another encoding", set("Transfer-Encoding: gzip\r\n", ""), "501"),
        ("an encoding on top", set("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), "501"),
        ("a chunk of no size", set(te, "\r\n\r\n"), "400"),
        ("a chunk of a signed size", set(te, "+7\r\nvalue=1\r\n0\r\n\r\n"), "400"),
        ("a chunk of a size with a prefix", set(te, "0x7\r\nvalue=1\r\n0\r\n\r\n"), "400"),
        ("a chunk that is longer than it says", set(te, "6\r\nvalue=1\r\n0\r\n\r\n"), "400"),
        ("a chunk whose line ends differently", set(te, "7\nvalue=1\r\n0\r\n\r\n"), "400"),
        ("a chunk with an endless extension", set(te, &format!("7;{}\r\n", "x".repeat(9_000))), "400"),
        ("endless trailers", set(te, &format!("0\r\n{}", "A: b\r\n".repeat(2_000))), "400"),
        ("a chunk that is too large", set(te, "ffffffffffffffff\r\n"), "400"),
        ("a chunk of too many digits", set(te, "10000000000000000\r\n"), "400"),
        ("two hosts", format!("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n{smuggled}"), "400"),
        ("no host", format!("GET / HTTP/1.1\r\n\r\n{smuggled}"), "400"),
        ("a NUL", format!("GET /\0 HTTP/1.1\r\nHost: h\r\n\r\n{smuggled}"), "400"),
        ("no protocol", format!("GET /\r\nHost: h\r\n\r\n{smuggled}"), "400"),
        ("another protocol", format!("GET / HTTP/3.0\r\nHost: h\r\n\r\n{smuggled}"), "505"),
        ("many fields", format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n{smuggled}", "A: b\r\n".repeat(500)), "431"),
    ] {
        let answer = talk(&server, request).await;
        assert_eq!((status(&answer), answer.matches("HTTP/1.1 ").count()), (expected, 1), "{what}: {answer}");
    }
    assert_eq!(value(&server, "a").await, "(none)", "nothing of that was carried out");
}

#[tokio::test]
async fn a_head_without_end_is_refused_once_it_is_too_large() {
    let server = Server::start();
    let mut client = Client::connect(&server).await;
    client.send("GET / HTTP/1.1\r\nHost: h\r\nA: ").await;
    // More than is kept; the server may stop reading before all of it is sent.
    let _ = client.0.write_all(&vec![b'a'; 2 << 20]).await;
    let answer = client.rest().await;
    assert_eq!(status(&answer), "431", "{answer}");
}

#[tokio::test]
async fn a_body_that_is_cut_off_is_told_so() {
    let server = Server::start();
    for fields in ["Content-Length: 100\r\n\r\nvalue=1", "Transfer-Encoding: chunked\r\n\r\n64\r\nvalue=1"] {
        let answer = talk(&server, format!("PUT /v2/keys/a HTTP/1.1\r\n{FORM}{fields}")).await;
        assert!(status(&answer) == "400" && answer.contains("unexpected EOF"), "{answer}");
    }
    assert_eq!(value(&server, "a").await, "(none)");
    assert_eq!(talk(&server, "GET /v2/keys/ HTTP/1.1\r\nHos").await, "", "half a head is no request");
}

#[tokio::test]
async fn a_wait_ends_with_its_event_and_the_connection_goes_on() {
    let server = Server::start();
    let mut client = Client::connect(&server).await;
    let wait = "GET /v2/keys/a?wait=true HTTP/1.1\r\nHost: h\r\n\r\n";
    client.send(format!("{wait}GET /version HTTP/1.1\r\nHost: h\r\n\r\n")).await;
    assert!(client.until("\r\n\r\n").await.contains("\r\nTransfer-Encoding: chunked\r\n"));
    server.http1("PUT", "/v2/keys/a?value=1").await;
    let rest = client.until("\"storage\":\"3.7.0\"}").await;
    let (event, version) = rest.split_once("\r\n0\r\n\r\n").expect("the end of the chunks");
    assert!(event.contains(r#""action":"set""#) && version.starts_with("HTTP/1.1 200 OK\r\n"), "{rest}");
}

#[tokio::test]
async fn a_wait_whose_client_goes_is_forgotten() {
    let server = Server::start();
    let mut client = Client::connect(&server).await;
    client.send("GET /v2/keys/a?wait=true&stream=true HTTP/1.1\r\nHost: h\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    let waiting = async || server.http1("GET", "/v2/stats/store").await.contains(r#""watchers":1"#);
    assert!(waiting().await);
    drop(client);
    let gone = async {
        while waiting().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("the watcher is gone");
}
