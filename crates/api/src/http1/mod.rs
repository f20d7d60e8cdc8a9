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

mod head;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, Method, Response, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::conn::closed;
use crate::ops::{self, Port};
use crate::v2::{Body, Watching};
use crate::worker::Worker;
use head::{Fault, Head, Length};

/// How long a client may take to send a request, and between two requests.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);
/// The largest head, with the address and all fields; Go's bound.
const MAX_HEAD_BYTES: usize = 1 << 20;
/// The largest body; Go's own bound on forms.
const MAX_BODY_BYTES: usize = 10 << 20;
/// The longest line that begins a chunk, and the most that may follow the last one.
const MAX_LINE_BYTES: usize = 4 << 10;
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
        deadline: Box::pin(sleep(REQUEST_TIMEOUT)),
        closing: Box::pin(closed(worker.shared.closing.clone())),
        is_closing: false,
    };
    while connection.serve_one(worker, port).await? {}
    Ok(())
}

struct Connection<I> {
    io: I,
    /// What was read and not yet used. Without an allocation when it is empty.
    input: BytesMut,
    /// What is to be written. The same.
    output: BytesMut,
    /// When the request that is being read must have arrived.
    deadline: Pin<Box<Sleep>>,
    closing: Pin<Box<dyn Future<Output = ()>>>,
    is_closing: bool,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Connection<I> {
    /// Answers the next request. Says whether there may be another one. An error: the connection cannot be used any more.
    async fn serve_one(&mut self, worker: &Rc<Worker>, port: Port) -> io::Result<bool> {
        self.deadline.as_mut().reset(Instant::now() + REQUEST_TIMEOUT);
        let Head { parts, length, keep_alive, waits_for_leave } = match self.head().await? {
            Some(Ok(head)) => head,
            Some(Err(fault)) => return self.refuse(fault).await,
            None => return Ok(false),
        };
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
        let response = Box::pin(ops::serve_http1(worker, port, parts, payload)).await;
        let mut keep_alive = keep_alive && read_whole && !*worker.shared.closing.borrow();
        let (head, body) = response.into_parts();
        match body {
            Body::Whole(body) => {
                let length = Some(body.len()).filter(|_| head.status != StatusCode::NO_CONTENT);
                self.write_head(head.status, &head.headers, is_1_1, Frame { length, keep_alive });
                if !is_head && body.len() >= OWN_WRITE_BYTES {
                    self.flush().await?;
                    self.io.write_all(&body).await?;
                } else if !is_head {
                    self.output.extend_from_slice(&body);
                }
                // What was asked in one go is answered in one go.
                if self.input.is_empty() || !keep_alive || self.output.len() >= OWN_WRITE_BYTES {
                    self.flush().await?;
                }
            }
            Body::Watch(watching) => {
                keep_alive = keep_alive && is_1_1;
                self.write_head(head.status, &head.headers, is_1_1, Frame { length: None, keep_alive });
                drop(head);
                self.flush().await?;
                keep_alive &= self.events(watching, is_1_1).await?;
            }
        }
        if !keep_alive {
            self.end(!read_whole).await?;
        }
        Ok(keep_alive)
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
            self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let length = match length {
            // It fits, as was just seen.
            Length::Known(length) => length as usize,
            Length::Chunked => return self.chunks().await,
        };
        while self.input.len() < length {
            self.more().await?;
        }
        Ok(self.input.split_to(length).freeze())
    }

    async fn chunks(&mut self) -> Result<Bytes, Unread> {
        const BAD: Unread = Unread::Fault(Fault(StatusCode::BAD_REQUEST, ": malformed chunked encoding"));
        let mut body = BytesMut::new();
        loop {
            let line = self.line().await?;
            // What follows a semicolon is an extension, of which there are none that anybody uses.
            let digits = line[..].split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
            let is_hex = !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit);
            let digits = std::str::from_utf8(digits).ok().filter(|_| is_hex).ok_or(BAD)?;
            let size = u64::from_str_radix(digits, 16).map_err(|_| BAD)?;
            if size == 0 {
                break;
            }
            let room = MAX_BODY_BYTES - body.len();
            let size = usize::try_from(size).ok().filter(|size| *size <= room).ok_or(Unread::TooLarge)?;
            while self.input.len() < size + 2 {
                self.more().await?;
            }
            body.extend_from_slice(&self.input[..size]);
            if &self.input[size..size + 2] != b"\r\n" {
                return Err(BAD);
            }
            self.input.advance(size + 2);
        }
        // Fields may follow, of which nobody here knows any.
        let mut more = 0;
        loop {
            let line = self.line().await?;
            more += line.len();
            if line.is_empty() {
                return Ok(body.freeze());
            }
            if more > MAX_LINE_BYTES {
                return Err(BAD);
            }
        }
    }

    /// A line, without its end.
    async fn line(&mut self) -> Result<BytesMut, Unread> {
        let mut seen: usize = 0;
        loop {
            if let Some(at) = self.input[seen..].iter().position(|byte| *byte == b'\n') {
                let mut line = self.input.split_to(seen + at + 1);
                // A lone \n ends a line for some readers and not for others.
                if !line.ends_with(b"\r\n") {
                    return Err(Unread::Fault(Fault(StatusCode::BAD_REQUEST, ": malformed chunked encoding")));
                }
                line.truncate(line.len() - 2);
                return Ok(line);
            }
            seen = self.input.len();
            if seen > MAX_LINE_BYTES {
                return Err(Unread::Fault(Fault(StatusCode::BAD_REQUEST, ": header line too long")));
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
        self.deadline.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
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
        self.io.write_all(&output).await
    }

    fn write_head(&mut self, status: StatusCode, headers: &HeaderMap, is_1_1: bool, frame: Frame) {
        let out = &mut self.output;
        out.reserve(512);
        out.extend_from_slice(if is_1_1 { b"HTTP/1.1 " } else { b"HTTP/1.0 " });
        out.extend_from_slice(status.as_str().as_bytes());
        out.put_u8(b' ');
        out.extend_from_slice(status.canonical_reason().unwrap_or("status").as_bytes());
        out.extend_from_slice(b"\r\n");
        for (name, value) in headers.iter().filter(|(name, _)| *name != CONTENT_LENGTH) {
            field(out, name, value.as_bytes());
        }
        with_date(|date| field(out, &DATE, date));
        match frame.length {
            Some(length) => field(out, &CONTENT_LENGTH, length.to_string().as_bytes()),
            None if is_1_1 && status != StatusCode::NO_CONTENT => field(out, &TRANSFER_ENCODING, b"chunked"),
            None => {}
        }
        if !frame.keep_alive {
            field(out, &CONNECTION, b"close");
        } else if !is_1_1 {
            field(out, &CONNECTION, b"keep-alive");
        }
        out.extend_from_slice(b"\r\n");
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
                if is_1_1 {
                    self.output.extend_from_slice(format!("{:x}\r\n", event.len()).as_bytes());
                }
                self.output.extend_from_slice(&event);
                if is_1_1 {
                    self.output.extend_from_slice(b"\r\n");
                }
            }
            if is_last && is_1_1 {
                self.output.extend_from_slice(b"0\r\n\r\n");
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
        let (mut head, ()) = Response::new(()).into_parts();
        head.headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
        self.write_head(status, &head.headers, true, Frame { length: Some(body.len()), keep_alive: false });
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

/// Writes a field, its name as Go spells it: scripts look for that.
fn field(out: &mut BytesMut, name: &HeaderName, value: &[u8]) {
    let begin = out.len();
    out.extend_from_slice(name.as_str().as_bytes());
    let mut begins = true;
    for byte in &mut out[begin..] {
        if begins {
            byte.make_ascii_uppercase();
        }
        begins = *byte == b'-';
    }
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
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
