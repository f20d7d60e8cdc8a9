//! One request and its answer over HTTP/1.1, on a connection that is kept for the next. Errors are in the words of Go's
//! `net` and `net/http`, which people know from the original.

use super::endpoint::Endpoint;
use super::secure::Tls;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The longest head of an answer that is read, in bytes.
const HEAD_BOUND: usize = 1 << 20;
/// The longest body, in bytes: the bound of an answer in the v3 tool.
const BODY_BOUND: usize = 2 << 30;
/// An attempt to connect takes no longer than this.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// A step of a TLS handshake takes no longer than this.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How much is read at once, in bytes.
const CHUNK: usize = 32 << 10;

/// What is sent.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// `GET`, `PUT`…
    pub method: &'static str,
    /// Path and query, escaped.
    pub target: String,
    /// What the body is; none: there is no body.
    pub content_type: Option<&'static str>,
    /// The body.
    pub body: Vec<u8>,
    /// The value of `Authorization`.
    pub authorization: Option<String>,
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// `X-Etcd-Index`.
    pub index: Option<String>,
    /// `Location`.
    pub location: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// Until when something must have happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deadlines {
    /// The answer's head.
    pub head: Option<Instant>,
    /// Everything.
    pub whole: Option<Instant>,
}

/// Why there is no answer. Displays as Go's error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection was made.
    #[error("dial {0}")]
    Dial(String),
    /// A connection broke while it was read from.
    #[error("read tcp {0}")]
    Read(String),
    /// A deadline passed: that of the head.
    #[error("no answer in time")]
    HeadTimeout,
    /// A deadline passed: that of everything.
    #[error("context deadline exceeded")]
    Timeout,
    /// What came is no answer, or it is cut off.
    #[error("{0}")]
    Malformed(String),
}

/// What bytes travel on.
pub trait Stream: Read + Write {
    /// How long a read or a write may wait.
    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(timeout).and_then(|()| self.set_write_timeout(timeout))
    }
}

impl Stream for UnixStream {
    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(timeout).and_then(|()| self.set_write_timeout(timeout))
    }
}

/// A connection to a member.
pub struct Connection {
    stream: Box<dyn Stream>,
    /// Both ends, for errors.
    ends: String,
    /// What was received and not yet taken.
    received: Vec<u8>,
    /// Whether it has carried an answer before.
    is_used: bool,
    /// Whether it can carry another.
    pub is_open: bool,
}

/// What the system says, in Go's words.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_ascii_lowercase().to_string() + chars.as_str())
}

/// Whether a read or a write has waited for too long.
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

impl Deadlines {
    /// How long may be waited until the next of them; `None`: for ever.
    fn left(&self, in_head: bool) -> Result<Option<Duration>, Error> {
        let left = |deadline: Instant| deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
        let whole = self.whole.map(|deadline| left(deadline).ok_or(Error::Timeout)).transpose()?;
        let head = self.head.filter(|_| in_head);
        let head = head.map(|deadline| left(deadline).ok_or(Error::HeadTimeout)).transpose()?;
        Ok(match (whole, head) {
            (Some(whole), Some(head)) => Some(whole.min(head)),
            (whole, head) => whole.or(head),
        })
    }
}

impl Connection {
    /// Connects to a member.
    pub fn open(endpoint: &Endpoint, tls: &Tls, deadlines: Deadlines) -> Result<Connection, Error> {
        let (stream, ends): (Box<dyn Stream>, String) = match endpoint.scheme.as_str() {
            "http" | "https" | "unix" | "unixs" if endpoint.host.is_empty() => {
                return Err(Error::Malformed("http: no Host in request URL".to_owned()));
            }
            "http" => {
                let (stream, ends) = dial(&endpoint.address(), deadlines)?;
                (Box::new(stream), ends)
            }
            "https" => {
                let (stream, ends) = dial(&endpoint.address(), deadlines)?;
                (secure(stream.try_clone(), stream, endpoint, tls, deadlines)?, ends)
            }
            "unix" => (Box::new(dial_unix(&endpoint.address())?), endpoint.address()),
            "unixs" => {
                let stream = dial_unix(&endpoint.address())?;
                (secure(stream.try_clone(), stream, endpoint, tls, deadlines)?, endpoint.address())
            }
            scheme => return Err(Error::Malformed(format!("unsupported protocol scheme {scheme:?}"))),
        };
        Ok(Connection { stream, ends, received: Vec::new(), is_used: false, is_open: true })
    }

    /// Whether a failure may only mean that the other side closed the connection while it was not in use.
    pub fn was_used(&self) -> bool {
        self.is_used
    }

    /// Sends a request and reads its answer.
    pub fn call(&mut self, host: &str, request: &Request, deadlines: Deadlines) -> Result<Response, Error> {
        let mut head = format!("{} {} HTTP/1.1\r\nHost: {host}\r\n", request.method, request.target);
        if let Some(authorization) = &request.authorization {
            head.push_str(&format!("Authorization: {authorization}\r\n"));
        }
        if let Some(content_type) = request.content_type {
            head.push_str(&format!("Content-Type: {content_type}\r\n"));
        }
        if request.method != "GET" {
            head.push_str(&format!("Content-Length: {}\r\n", request.body.len()));
        }
        head.push_str("\r\n");
        self.is_open = false;
        self.stream.set_timeout(deadlines.left(true)?).map_err(|error| self.broken(&error))?;
        let sent = [head.as_bytes(), &request.body].concat();
        // A member may answer and close before it has taken all; its answer tells more than the broken pipe.
        let written = self.stream.write_all(&sent);
        let response = match (self.read_response(deadlines), written) {
            (Ok(response), _) => response,
            (Err(_), Err(error)) if !is_timeout(&error) => return Err(self.broken(&error)),
            (Err(error), _) => return Err(error),
        };
        self.is_used = true;
        Ok(response)
    }

    fn broken(&self, error: &io::Error) -> Error {
        if error.kind() == io::ErrorKind::InvalidData {
            return Error::Malformed(error.to_string()); // of TLS: the connection works, the other side will not have it
        }
        Error::Read(format!("{}: read: {}", self.ends, reason(error)))
    }

    /// Receives more. 0: there is no more.
    fn receive(&mut self, deadlines: Deadlines, in_head: bool) -> Result<usize, Error> {
        let start = self.received.len();
        self.received.resize(start + CHUNK, 0);
        let result = loop {
            let left = match deadlines.left(in_head) {
                Ok(left) => left,
                Err(error) => break Err(error),
            };
            if let Err(error) = self.stream.set_timeout(left) {
                break Err(self.broken(&error));
            }
            match self.stream.read(&mut self.received[start..]) {
                Ok(count) => break Ok(count),
                Err(error) if is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(self.broken(&error)),
            }
        };
        self.received.truncate(start + result.as_ref().copied().unwrap_or(0));
        result
    }

    fn read_response(&mut self, deadlines: Deadlines) -> Result<Response, Error> {
        // Interim answers (1xx) come before the one that counts.
        for _ in 0..100 {
            let head = self.read_head(deadlines)?;
            if (100..200).contains(&head.status) {
                continue;
            }
            let body = if matches!(head.status, 204 | 304) {
                Vec::new()
            } else if head.is_chunked {
                self.read_chunks(deadlines)?
            } else if let Some(length) = head.length {
                self.read_exactly(length, deadlines)?
            } else {
                self.read_to_end(deadlines)?
            };
            let is_delimited = head.is_chunked || head.length.is_some() || matches!(head.status, 204 | 304);
            self.is_open = is_delimited && !head.closes;
            return Ok(Response { body, ..head.response });
        }
        Err(malformed("too many 1xx informational responses"))
    }

    fn read_head(&mut self, deadlines: Deadlines) -> Result<Head, Error> {
        let mut searched = 0;
        loop {
            if let Some(at) = find(&self.received[searched..], b"\r\n\r\n") {
                let rest = self.received.split_off(searched + at + 4);
                let head = std::mem::replace(&mut self.received, rest);
                return parse_head(&head);
            }
            // A line that cannot begin an answer is refused at once; its sender may not close.
            if let Some(line) = self.received.split(|byte| *byte == b'\n').next()
                && line.len() < self.received.len()
            {
                parse_status(line)?;
            }
            searched = self.received.len().saturating_sub(3);
            if self.received.len() > HEAD_BOUND {
                return Err(malformed("server response headers exceeded 1048576 bytes; aborted"));
            }
            if self.receive(deadlines, true)? == 0 {
                let is_empty = self.received.is_empty();
                return Err(Error::Malformed(if is_empty { "EOF" } else { "unexpected EOF" }.to_owned()));
            }
        }
    }

    fn need(&mut self, count: usize, deadlines: Deadlines) -> Result<(), Error> {
        if count > BODY_BOUND {
            return Err(Error::Malformed(format!("the answer is longer than {BODY_BOUND} bytes")));
        }
        while self.received.len() < count {
            if self.receive(deadlines, false)? == 0 {
                return Err(Error::Malformed("unexpected EOF".to_owned()));
            }
        }
        Ok(())
    }

    fn read_exactly(&mut self, count: usize, deadlines: Deadlines) -> Result<Vec<u8>, Error> {
        self.need(count, deadlines)?;
        let rest = self.received.split_off(count);
        Ok(std::mem::replace(&mut self.received, rest))
    }

    fn read_to_end(&mut self, deadlines: Deadlines) -> Result<Vec<u8>, Error> {
        while self.receive(deadlines, false)? > 0 {
            if self.received.len() > BODY_BOUND {
                return Err(Error::Malformed(format!("the answer is longer than {BODY_BOUND} bytes")));
            }
        }
        Ok(std::mem::take(&mut self.received))
    }

    /// RFC 9112, 7.1. Extensions and trailers are passed over.
    fn read_chunks(&mut self, deadlines: Deadlines) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        loop {
            let line = self.read_line(deadlines)?;
            let digits = line.split(|byte| matches!(byte, b';' | b' ' | b'\t')).next().unwrap_or_default();
            let length = std::str::from_utf8(digits).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
            let length = length.ok_or_else(|| Error::Malformed("invalid byte in chunk length".to_owned()))?;
            if length == 0 {
                while !self.read_line(deadlines)?.is_empty() {}
                return Ok(body);
            }
            if length > BODY_BOUND - body.len() {
                return Err(Error::Malformed(format!("the answer is longer than {BODY_BOUND} bytes")));
            }
            let mut chunk = self.read_exactly(length + 2, deadlines)?;
            if !chunk.ends_with(b"\r\n") {
                return Err(Error::Malformed("malformed chunked encoding".to_owned()));
            }
            chunk.truncate(length);
            body.append(&mut chunk);
        }
    }

    fn read_line(&mut self, deadlines: Deadlines) -> Result<Vec<u8>, Error> {
        let mut wanted = 1;
        loop {
            self.need(wanted, deadlines)?;
            if let Some(at) = self.received.iter().position(|byte| *byte == b'\n') {
                let mut line = self.read_exactly(at + 1, deadlines)?;
                line.truncate(line.len() - if line.ends_with(b"\r\n") { 2 } else { 1 });
                return Ok(line);
            }
            wanted = self.received.len() + 1;
            if wanted > HEAD_BOUND {
                return Err(Error::Malformed("header line too long".to_owned()));
            }
        }
    }
}

/// Tries all addresses of a host, one after the other. The first error counts, as in Go.
fn dial(address: &str, deadlines: Deadlines) -> Result<(TcpStream, String), Error> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let resolved: Vec<SocketAddr> = match address.to_socket_addrs() {
        Ok(resolved) => resolved.collect(),
        Err(_) => Vec::new(),
    };
    let mut failure = Error::Dial(format!("tcp: lookup {host}: no such host"));
    for (i, address) in resolved.into_iter().enumerate() {
        let timeout = deadlines.left(true)?.unwrap_or(DIAL_TIMEOUT).min(DIAL_TIMEOUT);
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => {
                // A request is one write; nothing may wait for more of it.
                let _best_effort = stream.set_nodelay(true);
                let local = stream.local_addr().map_or(String::new(), |local| local.to_string());
                return Ok((stream, format!("{local}->{address}")));
            }
            Err(error) if is_timeout(&error) => {
                deadlines.left(true)?;
                failure = Error::Dial(format!("tcp {address}: i/o timeout"));
            }
            Err(error) if i == 0 => failure = Error::Dial(format!("tcp {address}: connect: {}", reason(&error))),
            Err(_) => {}
        }
    }
    Err(failure)
}

/// The name of the socket is what would be host and port.
fn dial_unix(name: &str) -> Result<UnixStream, Error> {
    UnixStream::connect(name).map_err(|error| Error::Dial(format!("unix {name}: connect: {}", reason(&error))))
}

/// Makes TLS of a connection; `again` is the same one.
fn secure<S: Stream + 'static>(
    again: io::Result<S>,
    stream: S,
    endpoint: &Endpoint,
    tls: &Tls,
    deadlines: Deadlines,
) -> Result<Box<dyn Stream>, Error> {
    let failed = |error: io::Error| Error::Dial(reason(&error));
    let again = again.map_err(failed)?;
    let timeout = deadlines.left(true)?.unwrap_or(HANDSHAKE_TIMEOUT).min(HANDSHAKE_TIMEOUT);
    stream.set_timeout(Some(timeout)).map_err(failed)?;
    let made = tls.connect(stream, again, endpoint.host_name());
    // A deadline that has passed tells more than the handshake that was waited for.
    if made.is_err() {
        deadlines.left(true)?;
    }
    made
}

/// The head of an answer.
#[derive(Debug, Default)]
struct Head {
    status: u16,
    response: Response,
    length: Option<usize>,
    is_chunked: bool,
    closes: bool,
}

fn malformed(what: &str) -> Error {
    Error::Malformed(format!("net/http: HTTP/1.x transport connection broken: {what}"))
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn parse_status(line: &[u8]) -> Result<(u16, bool), Error> {
    let line = String::from_utf8_lossy(line);
    let line = line.trim_end_matches('\r');
    let Some((version, status)) = line.split_once(' ') else {
        return Err(malformed(&format!("malformed HTTP response {line:?}")));
    };
    let code = status.trim_start_matches(' ').split(' ').next().unwrap_or_default();
    let status = code.parse().ok().filter(|_| code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit()));
    let status = status.ok_or_else(|| malformed(&format!("malformed HTTP status code {code:?}")))?;
    match version {
        "HTTP/1.1" => Ok((status, false)),
        "HTTP/1.0" => Ok((status, true)),
        _ => Err(malformed(&format!("malformed HTTP version {version:?}"))),
    }
}

fn parse_head(head: &[u8]) -> Result<Head, Error> {
    let end = find(head, b"\r\n").unwrap_or(head.len());
    let (status, closes) = parse_status(&head[..end])?;
    let mut out = Head { status, closes, response: Response { status, ..Response::default() }, ..Head::default() };
    for line in head[end..].split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let text = String::from_utf8_lossy(line);
        let Some((name, value)) = text.split_once(':') else {
            return Err(malformed(&format!("malformed MIME header line: {text}")));
        };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let length = value.parse().map_err(|_| malformed(&format!("bad Content-Length {value:?}")))?;
                out.length = Some(length);
            }
            "transfer-encoding" if value.eq_ignore_ascii_case("chunked") => out.is_chunked = true,
            "transfer-encoding" => return Err(malformed(&format!("unsupported transfer encoding: {value:?}"))),
            "connection" => out.closes |= value.eq_ignore_ascii_case("close"),
            "x-etcd-index" => out.response.index = Some(value.to_owned()),
            "location" => out.response.location = Some(value.to_owned()),
            _ => {}
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// What a connection makes of an answer that is written to it in pieces and then closed.
    fn answer(pieces: &[&[u8]]) -> Result<Response, Error> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            for piece in pieces {
                // The client may have seen enough.
                let _may_fail = stream.write_all(&piece);
            }
        });
        let whole = Some(Instant::now() + Duration::from_secs(20));
        let deadlines = Deadlines { head: None, whole };
        let request = Request { method: "GET", target: "/".to_owned(), ..Request::default() };
        let tls = Tls::new(tls::Settings::default()).unwrap();
        let response = Connection::open(&endpoint, &tls, deadlines).unwrap().call("host", &request, deadlines);
        server.join().unwrap();
        response
    }

    fn body(pieces: &[&[u8]]) -> Vec<u8> {
        answer(pieces).unwrap().body
    }

    #[test]
    fn a_body_ends_by_its_length_its_chunks_or_with_the_connection() {
        assert_eq!(body(&[b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd"]), b"abc");
        assert_eq!(body(&[b"HTTP/1.1 200 OK\r\n\r\nab", b"c"]), b"abc");
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(body(&[chunked, b"2;x=y\r\nab\r\n1\r\nc\r", b"\n0\r\nTrailer: x\r\n\r\n"]), b"abc");
        assert_eq!(body(&[b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 X\r\n\r\n"]), b"");
    }

    #[test]
    fn the_headers_that_count_are_found_in_any_case() {
        let response = answer(&[b"HTTP/1.1 301 X\r\nx-etcd-INDEX: 7\r\nLocation:  /a\r\nContent-Length: 0\r\n\r\n"]);
        let response = response.unwrap();
        assert_eq!(
            (response.status, response.index.as_deref(), response.location.as_deref()),
            (301, Some("7"), Some("/a"))
        );
    }

    #[test]
    fn what_is_no_answer_is_told_in_gos_words() {
        let broken = "net/http: HTTP/1.x transport connection broken: ";
        for (sent, text) in [
            (&b""[..], "EOF".to_owned()),
            (b"HTTP/1.1 200 OK\r\n", "unexpected EOF".to_owned()),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", "unexpected EOF".to_owned()),
            (b"hello\r\n\r\n", format!("{broken}malformed HTTP response \"hello\"")),
            (b"hello world\n", format!("{broken}malformed HTTP status code \"world\"")),
            (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", format!("{broken}bad Content-Length \"x\"")),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "invalid byte in chunk length".to_owned()),
        ] {
            assert_eq!(answer(&[sent]).unwrap_err().to_string(), text);
        }
        let long = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n";
        assert!(answer(&[long]).unwrap_err().to_string().contains("longer than"), "nothing is allocated for it");
    }
}
