//! HTTP/1.1, as far as this server needs it: requests of a connection are answered one after the other, whole bodies in,
//! whole bodies or lines of events out.
//!
//! It is our own because of two things that a general library cannot give: a connection that waits (for its next request,
//! or for an event) holds no buffers, of which ten thousand waiting watchers would have many; and a request costs one
//! read, one write and no task.
//!
//! # Limits
//! A head has at most 1 MiB and 128 fields, a body 10 MiB; both have to arrive within five minutes. At most one request
//! of a connection is in work, and nothing is read ahead of it but what came in the same read.

mod answer;
mod body;
mod head;

use std::cell::RefCell;
use std::fmt::Write;
use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::request::Parts;
use http::{Method, Response, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::conn::closed;
use crate::gateway::{Exchange, Piece, websocket};
use crate::ops::{self, Port};
use crate::v2::{Body, Watching};
use crate::worker::Worker;
pub(crate) use answer::{Answer, Fields};
use head::{Fault, Head, Length};

/// The largest head, with the address and all fields; Go's bound.
const MAX_HEAD_BYTES: usize = 1 << 20;
/// The largest body; Go's own bound on forms.
pub(crate) const MAX_BODY_BYTES: usize = 10 << 20;
/// What is read at once.
const READ_BYTES: usize = 16 << 10;
/// What may come from a client while it waits for events; beyond that it is no longer noticed when it goes.
const MAX_AHEAD_BYTES: usize = 16 << 10;
/// A body at least this large is not copied behind its head.
const OWN_WRITE_BYTES: usize = 16 << 10;
/// How long, and up to how much, the rest of a refused request is read, so that its refusal arrives: a connection that is
/// closed with bytes unread loses what was sent on it.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 1 << 20;

/// A request's body, or what is wrong with it in Go's words.
pub(crate) type Payload = Result<Bytes, &'static str>;

/// Serves a connection until it ends. `greeting` was read from it before.
pub(crate) async fn serve<I>(io: I, greeting: Bytes, worker: &Rc<Worker>, port: Port) -> io::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = Connection {
        io,
        input: greeting.into(),
        output: BytesMut::new(),
        deadline: Instant::now() + worker.shared.http.request_timeout,
        alarm: Box::pin(sleep(worker.shared.http.request_timeout)),
        closing: Box::pin(closed(worker.shared.closing.clone())),
        is_closing: false,
    };
    while connection.serve_one(worker, port).await? {}
    // In TLS, an end that is not told looks like one that somebody on the way has made.
    connection.io.shutdown().await
}

struct Connection<I> {
    io: I,
    /// What was read and not yet used. Without an allocation when it is empty.
    input: BytesMut,
    /// What is to be written. The same.
    output: BytesMut,
    /// When the request that is being read must have arrived.
    deadline: Instant,
    /// Rings at the deadline or before: it is only set again when it rings, which is cheaper than for every request.
    alarm: Pin<Box<Sleep>>,
    closing: Pin<Box<dyn Future<Output = ()>>>,
    is_closing: bool,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Connection<I> {
    /// Answers the next request. Says whether there may be another one. An error: the connection cannot be used any more.
    async fn serve_one(&mut self, worker: &Rc<Worker>, port: Port) -> io::Result<bool> {
        self.deadline = Instant::now() + worker.shared.http.request_timeout;
        let Head { parts, length, keep_alive, waits_for_leave } = match self.head().await? {
            Some(Ok(head)) => head,
            Some(Err(fault)) => return self.refuse(fault).await,
            None => return Ok(false),
        };
        if websocket::is_wanted(&parts.headers)
            && let Some(name) = ops::gateway_method(worker, port, &parts)
        {
            return Box::pin(self.websocket(worker, &name, parts)).await;
        }
        if let Some(begun) = ops::begin_gateway(worker, port, &parts) {
            // In a box, as below.
            let (keep_alive, reader) = (keep_alive, body::Reader::new(length));
            return match begun {
                Ok(exchange) => {
                    Box::pin(self.exchange(worker, &parts, exchange, reader, keep_alive, waits_for_leave)).await
                }
                Err(response) => {
                    let read_whole = self.body(length, waits_for_leave).await.is_ok();
                    self.give_back();
                    let (is_head, is_1_1) = (parts.method == Method::HEAD, parts.version == Version::HTTP_11);
                    self.response(is_head, is_1_1, response, keep_alive && read_whole, read_whole).await
                }
            };
        }
        let (payload, read_whole) = match self.body(length, waits_for_leave).await {
            Ok(body) => (Ok(body), true),
            Err(Unread::Fault(fault)) => return self.refuse(fault).await,
            Err(Unread::TooLarge) => (Err("http: POST too large"), false),
            Err(Unread::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => (Err("unexpected EOF"), false),
            Err(Unread::Io(error)) => return Err(error),
        };
        self.give_back();
        let (is_head, is_1_1) = (parts.method == Method::HEAD, parts.version == Version::HTTP_11);
        // In a box: a connection that only waits afterwards must not keep room for what it did before.
        let Answer { status, fields, body } = Box::pin(ops::serve(worker, port, parts, payload)).await;
        let mut keep_alive = keep_alive && read_whole && !*worker.shared.closing.borrow();
        match body {
            Body::Whole(body) => {
                return self.whole(is_head, is_1_1, (status, &fields, body), keep_alive, read_whole).await;
            }
            Body::Watch(watching) => {
                keep_alive = keep_alive && is_1_1;
                self.write_head(status, &fields, is_1_1, Frame { length: None, keep_alive });
                drop(fields);
                self.flush().await?;
                keep_alive &= self.events(watching, is_1_1).await?;
            }
        }
        if !keep_alive {
            self.end(!read_whole).await?;
        }
        Ok(keep_alive)
    }

    /// Answers with all there is to say. Says whether there may be another request.
    async fn whole(
        &mut self,
        is_head: bool,
        is_1_1: bool,
        (status, fields, body): (StatusCode, &Fields, Bytes),
        keep_alive: bool,
        read_whole: bool,
    ) -> io::Result<bool> {
        let length = Some(body.len()).filter(|_| status != StatusCode::NO_CONTENT);
        self.write_head(status, fields, is_1_1, Frame { length, keep_alive });
        if !is_head {
            if body.len() >= OWN_WRITE_BYTES {
                self.flush().await?;
                self.io.write_all(&body).await?;
                self.io.flush().await?;
            } else {
                self.output.extend_from_slice(&body);
            }
        }
        // What was asked in one go is answered in one go.
        if self.input.is_empty() || !keep_alive || self.output.len() >= OWN_WRITE_BYTES {
            self.flush().await?;
        }
        if !keep_alive {
            self.end(!read_whole).await?;
        }
        Ok(keep_alive)
    }

    /// The same, of an answer whose fields are a map.
    async fn response(
        &mut self,
        is_head: bool,
        is_1_1: bool,
        response: Response<Bytes>,
        keep_alive: bool,
        read_whole: bool,
    ) -> io::Result<bool> {
        let (head, body) = response.into_parts();
        let answer = (head.status, &Fields::from(&head.headers), body);
        self.whole(is_head, is_1_1, answer, keep_alive, read_whole).await
    }

    // --- the gateway ---

    /// Turns the connection into a WebSocket and serves that. No other request follows.
    async fn websocket(&mut self, worker: &Rc<Worker>, name: &str, request: Parts) -> io::Result<bool> {
        match websocket::accept(&request, &worker.shared.http) {
            Err(status) => self.response(false, true, websocket::refusal(status), false, true).await,
            Ok(response) => {
                let fields = Fields::from(response.headers());
                self.write_head(response.status(), &fields, true, Frame { length: None, keep_alive: true });
                self.flush().await?;
                let ahead = std::mem::take(&mut self.input);
                websocket::serve(&mut self.io, ahead, worker, name, request).await;
                Ok(false)
            }
        }
    }

    /// Answers a request to the gateway, whose body may come while the answer goes. Says whether there may be another one.
    async fn exchange(
        &mut self,
        worker: &Rc<Worker>,
        request: &Parts,
        mut exchange: Box<Exchange>,
        mut reader: body::Reader,
        keep_alive: bool,
        waits_for_leave: bool,
    ) -> io::Result<bool> {
        let is_1_1 = request.version == Version::HTTP_11;
        if waits_for_leave && self.input.is_empty() && !reader.is_done() {
            self.output.extend_from_slice(CONTINUE);
        }
        let mut has_head = false;
        loop {
            let step = poll_fn(|cx| self.poll_exchange(&mut exchange, &mut reader, has_head, cx)).await;
            let is_quiet = matches!(step, Ok(Step::Flush));
            match step {
                Err(Unread::Fault(fault)) if !has_head => return self.refuse(fault).await,
                Err(Unread::Io(error)) => return Err(error),
                Err(_) => return Err(io::ErrorKind::InvalidData.into()),
                Ok(Step::Flush) => {}
                Ok(Step::Say(Piece::Whole(mut response))) => {
                    worker.shared.http.allow_origin(&request.headers, response.headers_mut());
                    let keep_alive = keep_alive && reader.is_done() && !*worker.shared.closing.borrow();
                    let is_head = request.method == Method::HEAD;
                    return self.response(is_head, is_1_1, response, keep_alive, reader.is_done()).await;
                }
                Ok(Step::Say(Piece::Head(mut response))) => {
                    worker.shared.http.allow_origin(&request.headers, response.headers_mut());
                    let frame = Frame { length: None, keep_alive: keep_alive && is_1_1 };
                    self.write_head(response.status(), &Fields::from(response.headers()), is_1_1, frame);
                    has_head = true;
                }
                Ok(Step::Say(Piece::Data(data))) => self.write_data(&data, is_1_1),
                Ok(Step::End) => {
                    if is_1_1 {
                        self.output.extend_from_slice(LAST_CHUNK);
                    }
                    self.flush().await?;
                    let keep_alive = keep_alive && is_1_1 && reader.is_done() && !self.is_closing;
                    if !keep_alive {
                        self.end(!reader.is_done()).await?;
                    }
                    return Ok(keep_alive);
                }
            }
            if is_quiet || self.output.len() >= OWN_WRITE_BYTES {
                self.flush().await?;
            }
        }
    }

    fn poll_exchange(
        &mut self,
        exchange: &mut Exchange,
        reader: &mut body::Reader,
        has_head: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Step, Unread>> {
        loop {
            let has_fed = self.poll_feed(exchange, reader, cx)?;
            if let Poll::Ready(piece) = exchange.poll_next(cx) {
                return Poll::Ready(Ok(piece.map_or(Step::End, Step::Say)));
            }
            if has_fed {
                continue;
            }
            if !self.output.is_empty() {
                return Poll::Ready(Ok(Step::Flush));
            }
            if has_head && self.poll_closing(cx) {
                return Poll::Ready(Ok(Step::End));
            }
            // A request that comes to an end must do so in time; one that goes on as long as its answer need not.
            if !reader.is_done() && !exchange.is_duplex() && self.is_late(cx) {
                return Poll::Ready(Err(Unread::Io(io::ErrorKind::TimedOut.into())));
            }
            return Poll::Pending;
        }
    }

    /// Hands on a piece of the body, if there is one and it is wanted. Behind the body it reads on, to notice when the client
    /// goes: what it asks meanwhile has to wait.
    fn poll_feed(
        &mut self,
        exchange: &mut Exchange,
        reader: &mut body::Reader,
        cx: &mut Context<'_>,
    ) -> Result<bool, Unread> {
        if !reader.is_done() && !exchange.wants_input() {
            return Ok(false);
        }
        loop {
            if !exchange.has_whole_body() {
                if let Some(part) = reader.take(&mut self.input).map_err(Unread::Fault)? {
                    exchange.push(&part);
                    return Ok(true);
                }
                if reader.is_done() {
                    exchange.end_of_body();
                    return Ok(true);
                }
            }
            if self.input.len() >= MAX_AHEAD_BYTES {
                return Ok(false);
            }
            match self.poll_read(cx) {
                Poll::Ready(Ok(0)) => return Err(Unread::Io(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Err(Unread::Io(error)),
                Poll::Pending => return Ok(false),
            }
        }
    }

    // --- reading ---

    /// The next request's head; none if there is no next request.
    async fn head(&mut self) -> io::Result<Option<Result<Head, Fault>>> {
        let mut seen = 0;
        loop {
            if seen == 0 {
                // Some clients end a body with a line's end that does not belong to it.
                let blank = self.input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
                self.input.advance(blank);
            }
            if let Some(end) = head::end(&self.input, seen) {
                return Ok(Some(head::parse(self.input.split_to(end).freeze())));
            }
            if self.input.len() > MAX_HEAD_BYTES {
                return Ok(Some(Err(Fault(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, ""))));
            }
            seen = self.input.len();
            self.give_back();
            // Answers to requests that came together; usually none.
            self.flush().await?;
            if poll_fn(|cx| self.poll_more(cx)).await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn body(&mut self, length: Length, waits_for_leave: bool) -> Result<Bytes, Unread> {
        if length == Length::Known(0) {
            return Ok(Bytes::new());
        }
        if matches!(length, Length::Known(length) if length > MAX_BODY_BYTES as u64) {
            return Err(Unread::TooLarge);
        }
        if waits_for_leave && self.input.is_empty() {
            self.output.extend_from_slice(CONTINUE);
        }
        let mut reader = body::Reader::new(length);
        let mut body = BytesMut::new();
        loop {
            while let Some(part) = reader.take(&mut self.input).map_err(Unread::Fault)? {
                if body.is_empty() && reader.is_done() {
                    return Ok(part);
                }
                body.extend_from_slice(&part);
            }
            if reader.is_done() {
                return Ok(body.freeze());
            }
            if body.len() as u64 + reader.announced() > MAX_BODY_BYTES as u64 {
                return Err(Unread::TooLarge);
            }
            self.more().await?;
        }
    }

    /// Reads more of a request that has begun.
    async fn more(&mut self) -> io::Result<()> {
        self.flush().await?;
        match poll_fn(|cx| self.poll_more(cx)).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Reads what there is. 0: nothing will come any more. A connection that is between two requests ends when the
    /// process stops, as does one whose time is up.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(read) = self.poll_read(cx) {
            return Poll::Ready(read);
        }
        if self.input.is_empty() && self.poll_closing(cx) {
            return Poll::Ready(Ok(0));
        }
        if self.is_late(cx) { Poll::Ready(Err(io::ErrorKind::TimedOut.into())) } else { Poll::Pending }
    }

    /// Whether the deadline has passed.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        while self.alarm.as_mut().poll(cx).is_ready() {
            if self.deadline <= Instant::now() {
                return true;
            }
            self.alarm.as_mut().reset(self.deadline);
        }
        false
    }

    /// Reads into a buffer on the stack: who waits needs none.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut buffer = [const { MaybeUninit::uninit() }; READ_BYTES];
        let mut buffer = ReadBuf::uninit(&mut buffer);
        Pin::new(&mut self.io).poll_read(cx, &mut buffer).map_ok(|()| {
            self.input.extend_from_slice(buffer.filled());
            buffer.filled().len()
        })
    }

    fn poll_closing(&mut self, cx: &mut Context<'_>) -> bool {
        self.is_closing = self.is_closing || self.closing.as_mut().poll(cx).is_ready();
        self.is_closing
    }

    fn give_back(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
    }

    // --- writing ---

    async fn flush(&mut self) -> io::Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        let output = std::mem::take(&mut self.output);
        self.io.write_all(&output).await?;
        self.io.flush().await
    }

    fn write_head(&mut self, status: StatusCode, fields: &Fields, is_1_1: bool, frame: Frame) {
        let out = &mut self.output;
        // The rest of the head, and a body that goes out with it.
        let body = frame.length.unwrap_or(0).min(OWN_WRITE_BYTES);
        out.reserve(fields.as_bytes().len() + 256 + body);
        out.extend_from_slice(if is_1_1 { b"HTTP/1.1 " } else { b"HTTP/1.0 " });
        out.extend_from_slice(status.as_str().as_bytes());
        out.put_u8(b' ');
        out.extend_from_slice(status.canonical_reason().unwrap_or("status").as_bytes());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(fields.as_bytes());
        out.extend_from_slice(b"Date: ");
        with_date(|date| out.extend_from_slice(date));
        match frame.length {
            // Memory does not fail.
            Some(length) => drop(write!(out, "\r\nContent-Length: {length}")),
            None if is_1_1 && status != StatusCode::NO_CONTENT && !status.is_informational() => {
                out.extend_from_slice(b"\r\nTransfer-Encoding: chunked");
            }
            None => {}
        }
        if !frame.keep_alive {
            out.extend_from_slice(b"\r\nConnection: close");
        } else if !is_1_1 {
            out.extend_from_slice(b"\r\nConnection: keep-alive");
        }
        out.extend_from_slice(b"\r\n\r\n");
    }

    fn write_data(&mut self, data: &[u8], is_1_1: bool) {
        if is_1_1 {
            self.output.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
        }
        self.output.extend_from_slice(data);
        if is_1_1 {
            self.output.extend_from_slice(b"\r\n");
        }
    }

    /// Writes events as they come. Says whether the answer has come to its end, so that another can follow.
    async fn events(&mut self, mut watching: Box<Watching>, is_1_1: bool) -> io::Result<bool> {
        loop {
            let event = poll_fn(|cx| {
                // Only to notice when the client goes: what it asks meanwhile has to wait.
                while self.input.len() < MAX_AHEAD_BYTES {
                    match self.poll_read(cx) {
                        Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                        Poll::Ready(Ok(_)) => {}
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => break,
                    }
                }
                if self.poll_closing(cx) { Poll::Ready(Ok(None)) } else { watching.poll_next(cx).map(Ok) }
            })
            .await?;
            let is_last = event.is_none() || watching.is_done();
            if let Some(event) = event {
                self.write_data(&event, is_1_1);
            }
            if is_last && is_1_1 {
                self.output.extend_from_slice(LAST_CHUNK);
            }
            self.flush().await?;
            if is_last {
                return Ok(!self.is_closing);
            }
        }
    }

    /// Answers what is no request. Nothing that follows on this connection can be understood.
    async fn refuse(&mut self, Fault(status, text): Fault) -> io::Result<bool> {
        let reason = status.canonical_reason().unwrap_or_default();
        let body = format!("{} {reason}{text}", status.as_str());
        let mut fields = Fields::default();
        fields.add("Content-Type", "text/plain; charset=utf-8");
        self.write_head(status, &fields, true, Frame { length: Some(body.len()), keep_alive: false });
        self.output.extend_from_slice(body.as_bytes());
        self.end(true).await?;
        Ok(false)
    }

    /// Ends the connection so that what was written arrives. `more`: the client is still sending.
    async fn end(&mut self, more: bool) -> io::Result<()> {
        self.flush().await?;
        self.io.shutdown().await?;
        if !more && self.input.is_empty() {
            return Ok(());
        }
        let mut rest = (&mut self.io).take(LINGER_BYTES as u64);
        let mut sink = tokio::io::sink();
        // Whatever comes of it: the connection is at its end.
        let _ = timeout(LINGER, tokio::io::copy(&mut rest, &mut sink)).await;
        Ok(())
    }
}

/// How an answer is framed.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// None: it has no body, or one whose length is not known.
    length: Option<usize>,
    keep_alive: bool,
}

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// What comes next in an exchange with the gateway.
enum Step {
    Say(Piece),
    /// Nothing more for now.
    Flush,
    End,
}

/// Why a body was not read.
enum Unread {
    TooLarge,
    Fault(Fault),
    Io(io::Error),
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The time as a field says it; made anew once a second.
fn with_date(write: impl FnOnce(&[u8])) {
    thread_local! {
        static DATE: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let now = SystemTime::now();
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    DATE.with_borrow_mut(|(made, text)| {
        if *made != seconds || text.is_empty() {
            (*made, *text) = (seconds, httpdate::fmt_http_date(now));
        }
        write(text.as_bytes());
    });
}

#[cfg(fuzzing)]
pub(crate) mod fuzzing {
    pub(crate) fn parts(head: &[u8]) -> Option<http::request::Parts> {
        let end = super::head::end(head, 0)?;
        Some(super::head::parse(bytes::Bytes::copy_from_slice(&head[..end])).ok()?.parts)
    }
}
