//! The load connection: gRPC over HTTP/2 written by hand, so that the load client takes little of the cores it shares
//! with the server.
//!
//! It does what a measured call needs and no more. Requests are compressed like every other client's (the first use of
//! a header enters the table, later uses are one byte); answers' headers are not decoded at all: a call that brought a
//! message before its stream ended has succeeded, because a failed unary gRPC call brings none. Whoever wants to know
//! why a call failed repeats it over [`crate::control`].

use crate::place::Place;
use bytes::{Buf, BytesMut};
use std::collections::{HashMap, VecDeque};
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;
use tls::Socket;
use tokio::io::{AsyncReadExt, AsyncWrite as _, Interest};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
/// Compression flag and length before each gRPC message.
const GRPC_PREFIX: usize = 5;
/// Frames that we send, and that a server may send before we allow more (RFC 9113, 4.2).
const MAX_FRAME: usize = 16_384;
/// Window of a new stream or connection until settings say otherwise (RFC 9113, 6.9.2).
const DEFAULT_WINDOW: i64 = 65_535;
const LARGEST_WINDOW: u32 = 0x7fff_ffff;
/// The connection's receive window is topped up each time this much has arrived.
const WINDOW_STEP: usize = 64 << 20;
/// The longest answer that is put together; anything longer is a broken server.
const MAX_MESSAGE: usize = 256 << 20;
const READ_BUFFER: usize = 256 << 10;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// Why a load connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The server closed the connection while calls were open.
    #[error("closed by the server with {open} calls open")]
    Closed {
        /// Calls without an answer.
        open: usize,
    },
    /// The server told us to go.
    #[error("GOAWAY, error code {code}: {text}")]
    GoAway {
        /// HTTP/2 error code.
        code: u32,
        /// The server's debug data.
        text: String,
    },
    /// The server broke HTTP/2, or asked for something that this client does not do.
    #[error("{0}")]
    Protocol(&'static str),
    /// Nothing like HTTP/2 settings came.
    #[error("no HTTP/2 settings from the server within {0:?}")]
    NoSettings(Duration),
}

/// The calls that are used under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `KV.Put`
    Put,
    /// `KV.Range`
    Range,
    /// `KV.Txn`
    Txn,
    /// `Lease.LeaseGrant`
    LeaseGrant,
    /// `Lease.LeaseKeepAlive`
    LeaseKeepAlive,
    /// `Watch.Watch`
    Watch,
}

impl Method {
    /// The request's path.
    pub fn path(self) -> &'static str {
        match self {
            Method::Put => "/etcdserverpb.KV/Put",
            Method::Range => "/etcdserverpb.KV/Range",
            Method::Txn => "/etcdserverpb.KV/Txn",
            Method::LeaseGrant => "/etcdserverpb.Lease/LeaseGrant",
            Method::LeaseKeepAlive => "/etcdserverpb.Lease/LeaseKeepAlive",
            Method::Watch => "/etcdserverpb.Watch/Watch",
        }
    }
}

/// What a load does with its answers. Called from [`Connection::drive`]; may start and continue calls.
pub trait Driver {
    /// A whole gRPC message came on the stream of `client`.
    fn message(&mut self, calls: &mut Calls, stream: StreamId, client: usize, message: &[u8]);
    /// The stream of `client` has ended; `answered` if it brought a message.
    fn ended(&mut self, calls: &mut Calls, client: usize, answered: bool);
    /// Everything that one read brought has been handed out.
    fn batch_done(&mut self) {}
}

/// An HTTP/2 stream's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamId(u32);

struct Stream {
    client: usize,
    answered: bool,
    /// What the server still allows us to send.
    window: i64,
    /// The beginning of a message whose rest has not come.
    partial: Vec<u8>,
}

struct Blocked {
    stream: StreamId,
    /// gRPC message with its prefix.
    data: Vec<u8>,
    /// How much of it has gone out.
    sent: usize,
    end: bool,
}

/// A header field of our requests and where it stands in the server's table.
struct Header {
    /// The literal's first bytes: name reference or name, as HPACK has it.
    name: Vec<u8>,
    value: String,
    /// How many entries had entered the table before it; `None` while it has not.
    entered: Option<u8>,
}

/// The sending half: open calls, windows, and the bytes that wait for the socket.
pub struct Calls {
    output: Vec<u8>,
    streams: HashMap<StreamId, Stream>,
    next_stream: u32,
    window: i64,
    stream_window: i64,
    max_streams: usize,
    blocked: VecDeque<Blocked>,
    common: [Header; 3],
    paths: Vec<(Method, Header)>,
    table_entries: u8,
}

impl Calls {
    fn new(authority: &str) -> Calls {
        let common = [
            Header { name: vec![0x41], value: authority.to_owned(), entered: None },
            Header { name: vec![0x5f], value: "application/grpc".to_owned(), entered: None },
            Header { name: b"\x40\x02te".to_vec(), value: "trailers".to_owned(), entered: None },
        ];
        Calls {
            output: Vec::new(),
            streams: HashMap::new(),
            next_stream: 1,
            window: DEFAULT_WINDOW,
            stream_window: DEFAULT_WINDOW,
            max_streams: usize::MAX,
            blocked: VecDeque::new(),
            common,
            paths: Vec::new(),
            table_entries: 0,
        }
    }

    /// Opens a call for `client` with its first message; `end` if it is the only one.
    pub fn start(&mut self, client: usize, method: Method, message: &[u8], end: bool) -> StreamId {
        let stream = StreamId(self.next_stream);
        self.next_stream += 2;
        let window = self.stream_window;
        self.streams.insert(stream, Stream { client, answered: false, window, partial: Vec::new() });
        let at = self.output.len();
        frame_header(&mut self.output, 0, HEADERS, END_HEADERS, stream.0);
        self.request_headers(method);
        let length = self.output.len() - at - FRAME_HEADER;
        self.output[at..at + 3].copy_from_slice(&(length as u32).to_be_bytes()[1..]);
        self.send(stream, message, end);
        stream
    }

    /// Sends one more message on an open call, as soon as the server's windows allow; nothing if the call has ended.
    pub fn send(&mut self, stream: StreamId, message: &[u8], end: bool) {
        let length = message.len() + GRPC_PREFIX;
        if length <= MAX_FRAME && self.blocked.is_empty() && self.take_window(stream, length) {
            frame_header(&mut self.output, length, DATA, if end { END_STREAM } else { 0 }, stream.0);
            grpc_prefix(&mut self.output, message.len());
            self.output.extend_from_slice(message);
            return;
        }
        let mut data = Vec::with_capacity(length);
        grpc_prefix(&mut data, message.len());
        data.extend_from_slice(message);
        self.blocked.push_back(Blocked { stream, data, sent: 0, end });
        self.send_blocked();
    }

    /// Tells the server that no more messages follow on a call.
    pub fn finish(&mut self, stream: StreamId) {
        frame_header(&mut self.output, 0, DATA, END_STREAM, stream.0);
    }

    /// Calls that have not ended.
    pub fn open(&self) -> usize {
        self.streams.len()
    }

    /// Sends what the windows held back, in order. One full stream holds up the others behind it; that costs nothing
    /// here, because all streams of a load are alike.
    fn send_blocked(&mut self) {
        while let Some(mut first) = self.blocked.pop_front() {
            while first.sent < first.data.len() {
                let Some(stream) = self.streams.get_mut(&first.stream) else { break };
                let allowed = self.window.min(stream.window).max(0) as usize;
                let length = (first.data.len() - first.sent).min(MAX_FRAME).min(allowed);
                if length == 0 {
                    self.blocked.push_front(first);
                    return;
                }
                self.window -= length as i64;
                stream.window -= length as i64;
                let next = first.sent + length;
                let flags = if first.end && next == first.data.len() { END_STREAM } else { 0 };
                frame_header(&mut self.output, length, DATA, flags, first.stream.0);
                self.output.extend_from_slice(&first.data[first.sent..next]);
                first.sent = next;
            }
        }
    }

    fn take_window(&mut self, stream: StreamId, length: usize) -> bool {
        let length = length as i64;
        match self.streams.get_mut(&stream) {
            Some(open) if open.window >= length && self.window >= length => {
                open.window -= length;
                self.window -= length;
                true
            }
            _ => false,
        }
    }

    /// Appends a request's header block: static entries for method and scheme, then ours from the table.
    fn request_headers(&mut self, method: Method) {
        self.output.extend_from_slice(&[0x83, 0x86]);
        let path = match self.paths.iter().position(|(known, _)| *known == method) {
            Some(index) => index,
            None => {
                let header = Header { name: vec![0x44], value: method.path().to_owned(), entered: None };
                self.paths.push((method, header));
                self.paths.len() - 1
            }
        };
        let headers = std::iter::once(&mut self.paths[path].1).chain(&mut self.common);
        for header in headers {
            match header.entered {
                // 61 static entries, then the table, newest first (RFC 7541, 2.3.3).
                Some(entered) => self.output.push(0x80 | (62 + self.table_entries - 1 - entered)),
                None => {
                    self.output.extend_from_slice(&header.name);
                    self.output.push(header.value.len() as u8);
                    self.output.extend_from_slice(header.value.as_bytes());
                    header.entered = Some(self.table_entries);
                    self.table_entries += 1;
                }
            }
        }
    }

    fn window_update(&mut self, stream: u32, increment: u32) {
        frame_header(&mut self.output, 4, WINDOW_UPDATE, 0, stream);
        self.output.extend_from_slice(&increment.to_be_bytes());
    }

    fn settings(&mut self, payload: &[u8]) -> Result<(), WireError> {
        for setting in payload.chunks_exact(6) {
            let value = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
            match u16::from_be_bytes([setting[0], setting[1]]) {
                // Our few headers stay far below any sensible table; a smaller one would need an update we never send.
                1 if value < 1024 => return Err(WireError::Protocol("the server wants a tiny header table")),
                3 => self.max_streams = value as usize,
                4 => {
                    let change = i64::from(value) - self.stream_window;
                    self.stream_window = i64::from(value);
                    self.streams.values_mut().for_each(|stream| stream.window += change);
                }
                _ => {}
            }
        }
        frame_header(&mut self.output, 0, SETTINGS, ACK, 0);
        self.send_blocked();
        Ok(())
    }

    fn data<D: Driver>(&mut self, id: StreamId, payload: &[u8], driver: &mut D) -> Result<(), WireError> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let client = stream.client;
        if !stream.partial.is_empty() {
            stream.partial.extend_from_slice(payload);
            let buffered = std::mem::take(&mut stream.partial);
            let used = self.messages(id, client, &buffered, driver)?;
            match self.streams.get_mut(&id) {
                Some(stream) if used == 0 => stream.partial = buffered, // moved back: a long message is copied once
                _ => self.keep_partial(id, &buffered[used..]),
            }
        } else {
            let used = self.messages(id, client, payload, driver)?;
            self.keep_partial(id, &payload[used..]);
        }
        Ok(())
    }

    /// Hands out the whole messages at the front of `data`; returns how many bytes they took.
    fn messages<D: Driver>(
        &mut self,
        id: StreamId,
        client: usize,
        data: &[u8],
        driver: &mut D,
    ) -> Result<usize, WireError> {
        let mut used = 0;
        while let Some(prefix) = data.get(used..used + GRPC_PREFIX) {
            let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
            if length > MAX_MESSAGE || prefix[0] != 0 {
                return Err(WireError::Protocol("a compressed or absurdly long gRPC message"));
            }
            let start = used + GRPC_PREFIX;
            let Some(message) = data.get(start..start + length) else { break };
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.answered = true;
            }
            driver.message(self, id, client, message);
            used = start + length;
        }
        Ok(used)
    }

    fn keep_partial(&mut self, id: StreamId, rest: &[u8]) {
        if rest.is_empty() {
            return;
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.partial.extend_from_slice(rest);
        }
    }

    fn end<D: Driver>(&mut self, id: StreamId, clean: bool, driver: &mut D) {
        if let Some(stream) = self.streams.remove(&id) {
            driver.ended(self, stream.client, stream.answered && clean);
        }
    }
}

/// One HTTP/2 connection under load.
pub struct Connection {
    socket: tls::Stream,
    input: BytesMut,
    calls: Calls,
    unreported: usize,
    settled: bool,
}

impl Connection {
    /// Connects and exchanges settings.
    pub async fn open(place: Place) -> Result<Connection, WireError> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let socket = place.connect().await?;
        let mut calls = Calls::new(&place.to_string());
        calls.output.extend_from_slice(PREFACE);
        frame_header(&mut calls.output, 12, SETTINGS, 0, 0);
        for (id, value) in [(2u16, 0u32), (4, LARGEST_WINDOW)] {
            calls.output.extend_from_slice(&id.to_be_bytes());
            calls.output.extend_from_slice(&value.to_be_bytes());
        }
        calls.window_update(0, LARGEST_WINDOW - DEFAULT_WINDOW as u32);
        let input = BytesMut::with_capacity(READ_BUFFER);
        let mut connection = Connection { socket, input, calls, unreported: 0, settled: false };
        let settle = async {
            while !connection.settled {
                connection.exchange(&mut NoCalls).await?;
            }
            Ok(connection)
        };
        tokio::time::timeout(PATIENCE, settle).await.unwrap_or(Err(WireError::NoSettings(PATIENCE)))
    }

    /// Where calls are started before [`Connection::drive`].
    pub fn calls(&mut self) -> &mut Calls {
        &mut self.calls
    }

    /// How many calls the server allows at a time.
    pub fn max_streams(&self) -> usize {
        self.calls.max_streams
    }

    /// Runs until no call is open.
    pub async fn drive<D: Driver>(&mut self, driver: &mut D) -> Result<(), WireError> {
        while self.calls.open() > 0 {
            self.exchange(driver).await?;
            driver.batch_done();
        }
        Ok(())
    }

    /// Writes what waits, then waits for bytes and handles them.
    async fn exchange<D: Driver>(&mut self, driver: &mut D) -> Result<(), WireError> {
        if self.input.capacity() - self.input.len() < READ_BUFFER / 4 {
            self.input.reserve(READ_BUFFER);
        }
        let came = match &self.socket {
            tls::Stream::Plain(Socket::Tcp(_)) => self.pass_plain().await?,
            _ => self.pass_secure().await?,
        };
        match came {
            None => return Ok(()),
            Some(0) => return Err(WireError::Closed { open: self.calls.open() }),
            Some(_) => {}
        }
        self.handle(driver)
    }

    /// Writes what waits and reads; in TLS.
    async fn pass_secure(&mut self) -> io::Result<Option<usize>> {
        let Self { socket, calls, input, .. } = self;
        poll_fn(|cx| {
            let mut written = 0;
            while written < calls.output.len() {
                match Pin::new(&mut *socket).poll_write(cx, &calls.output[written..])? {
                    Poll::Ready(count) => written += count,
                    Poll::Pending => break,
                }
            }
            calls.output.drain(..written);
            if let Poll::Ready(flushed) = Pin::new(&mut *socket).poll_flush(cx) {
                flushed?;
            }
            // Gives nothing up when it is dropped: what it has read is in `input`.
            pin!(socket.read_buf(input)).poll(cx).map_ok(Some)
        })
        .await
    }

    /// Writes what waits, then waits for bytes; none if there was only room to write more.
    async fn pass_plain(&mut self) -> io::Result<Option<usize>> {
        let tls::Stream::Plain(Socket::Tcp(socket)) = &mut self.socket else { unreachable!("asked for before") };
        let mut written = 0;
        while written < self.calls.output.len() {
            match socket.try_write(&self.calls.output[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.calls.output.drain(..written);
        if !self.calls.output.is_empty() {
            let ready = socket.ready(Interest::READABLE | Interest::WRITABLE).await?;
            if !ready.is_readable() {
                return Ok(None);
            }
        }
        Ok(Some(socket.read_buf(&mut self.input).await?))
    }

    /// Handles whole frames.
    fn handle<D: Driver>(&mut self, driver: &mut D) -> Result<(), WireError> {
        // Taken out, so that frames can be borrowed from it while the calls change.
        let mut input = std::mem::take(&mut self.input);
        let mut used = 0;
        while let Some(header) = input.get(used..used + FRAME_HEADER) {
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            if length > MAX_FRAME {
                return Err(WireError::Protocol("a frame longer than the allowed 16 KiB"));
            }
            let (kind, flags) = (header[3], header[4]);
            let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]) & LARGEST_WINDOW;
            let start = used + FRAME_HEADER;
            let Some(payload) = input.get(start..start + length) else { break };
            self.frame(kind, flags, StreamId(stream), payload, driver)?;
            used = start + length;
        }
        input.advance(used);
        self.input = input;
        Ok(())
    }

    fn frame<D: Driver>(
        &mut self,
        kind: u8,
        flags: u8,
        id: StreamId,
        payload: &[u8],
        driver: &mut D,
    ) -> Result<(), WireError> {
        match kind {
            DATA => {
                self.unreported += payload.len();
                if self.unreported >= WINDOW_STEP {
                    self.calls.window_update(0, self.unreported as u32);
                    self.unreported = 0;
                }
                let content = if flags & PADDED != 0 { unpadded(payload)? } else { payload };
                self.calls.data(id, content, driver)?;
                if flags & END_STREAM != 0 {
                    self.calls.end(id, true, driver);
                }
            }
            HEADERS if flags & END_STREAM != 0 => self.calls.end(id, true, driver),
            RST_STREAM => self.calls.end(id, false, driver),
            SETTINGS if flags & ACK == 0 => {
                self.calls.settings(payload)?;
                self.settled = true;
            }
            PING if flags & ACK == 0 => {
                frame_header(&mut self.calls.output, payload.len(), PING, ACK, 0);
                self.calls.output.extend_from_slice(payload);
            }
            GOAWAY => {
                let code = payload.get(4..8).map_or(0, |code| u32::from_be_bytes([code[0], code[1], code[2], code[3]]));
                let text = String::from_utf8_lossy(payload.get(8..).unwrap_or(&[])).into_owned();
                return Err(WireError::GoAway { code, text });
            }
            WINDOW_UPDATE => {
                let &[a, b, c, d] = payload else { return Err(WireError::Protocol("a malformed WINDOW_UPDATE")) };
                let increment = i64::from(u32::from_be_bytes([a, b, c, d]) & LARGEST_WINDOW);
                if id.0 == 0 {
                    self.calls.window += increment;
                } else if let Some(stream) = self.calls.streams.get_mut(&id) {
                    stream.window += increment;
                }
                self.calls.send_blocked();
            }
            HEADERS | CONTINUATION => {} // nothing in them is looked at, see the module's comment
            _ => {}
        }
        Ok(())
    }
}

/// The driver of a connection that has no calls yet.
struct NoCalls;

impl Driver for NoCalls {
    fn message(&mut self, _: &mut Calls, _: StreamId, _: usize, _: &[u8]) {}
    fn ended(&mut self, _: &mut Calls, _: usize, _: bool) {}
}

fn frame_header(output: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    output.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
    output.extend_from_slice(&[kind, flags]);
    output.extend_from_slice(&stream.to_be_bytes());
}

fn grpc_prefix(output: &mut Vec<u8>, length: usize) {
    output.push(0);
    output.extend_from_slice(&(length as u32).to_be_bytes());
}

fn unpadded(payload: &[u8]) -> Result<&[u8], WireError> {
    payload
        .split_first()
        .and_then(|(&padding, rest)| rest.get(..rest.len().checked_sub(usize::from(padding))?))
        .ok_or(WireError::Protocol("a DATA frame shorter than its padding"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tokio::net::TcpListener;

    /// Repeats its call until each client has made `left` calls; notes what came.
    struct Repeat {
        left: usize,
        message: Vec<u8>,
        answers: usize,
        refused: usize,
        longest: usize,
    }

    impl Driver for Repeat {
        fn message(&mut self, _: &mut Calls, _: StreamId, _: usize, message: &[u8]) {
            self.answers += 1;
            self.longest = self.longest.max(message.len());
        }
        fn ended(&mut self, calls: &mut Calls, client: usize, answered: bool) {
            self.refused += usize::from(!answered);
            if self.left > 0 {
                self.left -= 1;
                calls.start(
                    client,
                    if self.left.is_multiple_of(2) { Method::Put } else { Method::Txn },
                    &self.message,
                    true,
                );
            }
        }
    }

    /// A server on the `h2` crate that answers each call with `answer` repeated to the request's length, or with
    /// trailers only where the path is not one that a driver sends.
    async fn echo(listener: TcpListener, window: u32) {
        let (socket, _) = listener.accept().await.expect("a client connects");
        let mut builder = h2::server::Builder::new();
        builder.initial_window_size(window).initial_connection_window_size(65_535);
        let mut connection = builder.handshake::<_, Bytes>(socket).await.expect("preface");
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                assert_eq!(request.headers()["content-type"], "application/grpc");
                assert_eq!(request.headers()["te"], "trailers");
                let path = request.uri().path().to_owned();
                let mut body = request.into_body();
                let mut received = BytesMut::new();
                while let Some(chunk) = body.data().await {
                    let chunk = chunk.expect("a whole request");
                    body.flow_control().release_capacity(chunk.len()).expect("received before");
                    received.extend_from_slice(&chunk);
                }
                let response = http::Response::builder().header("content-type", "application/grpc");
                if path == Method::Watch.path() {
                    let refused = response.header("grpc-status", "12").body(()).expect("a response");
                    respond.send_response(refused, true).expect("sent");
                    return;
                }
                let mut send = respond.send_response(response.body(()).expect("a response"), false).expect("sent");
                send.send_data(received.freeze(), false).expect("sent");
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().expect("a value"));
                send.send_trailers(trailers).expect("sent");
            });
        }
    }

    async fn echoed(message_length: usize, window: u32, clients: usize, calls: usize) -> Repeat {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let server = tokio::spawn(echo(listener, window));
        let mut connection = Connection::open(address.into()).await.expect("the server answers");
        let message = vec![7; message_length];
        let mut driver = Repeat { left: calls - clients, message, answers: 0, refused: 0, longest: 0 };
        for client in 0..clients {
            connection.calls().start(client, Method::Put, &driver.message.clone(), true);
        }
        connection.drive(&mut driver).await.expect("all calls are answered");
        server.abort();
        driver
    }

    #[tokio::test]
    async fn every_call_is_answered_once_with_its_own_bytes() {
        let driver = echoed(300, 65_535, 16, 1000).await;
        assert_eq!((driver.answers, driver.refused, driver.longest), (1000, 0, 300));
    }

    /// Messages above the frame size and above the server's windows go out in pieces as the windows open.
    #[tokio::test]
    async fn a_message_larger_than_the_windows_is_sent_in_pieces() {
        let driver = echoed(200_000, 30_000, 4, 12).await;
        assert_eq!((driver.answers, driver.refused, driver.longest), (12, 0, 200_000));
    }

    #[tokio::test]
    async fn a_call_that_ends_without_a_message_counts_as_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let server = tokio::spawn(echo(listener, 65_535));
        let mut connection = Connection::open(address.into()).await.expect("the server answers");
        let mut driver = Repeat { left: 0, message: vec![], answers: 0, refused: 0, longest: 0 };
        connection.calls().start(0, Method::Watch, b"x", true);
        connection.drive(&mut driver).await.expect("the call ends");
        assert_eq!((driver.answers, driver.refused), (0, 1));
        server.abort();
    }
}
