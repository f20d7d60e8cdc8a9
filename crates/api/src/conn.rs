//! One connection: which protocol it speaks, and its life.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h2::Ping;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep, timeout};

use crate::authority::Mender;
use crate::caller::Client;
use crate::ops::Port;
use crate::worker::Worker;
use crate::{grpc, http1};

/// What an HTTP/2 client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a client may take to say its first words.
const GREETING_TIMEOUT: Duration = Duration::from_secs(120);

/// What a stream may receive before it must be read.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// The same for a connection.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Largest header list; metadata is small, tokens included.
const MAX_HEADER_LIST_BYTES: u32 = 64 << 10;
/// A stream's unsent bytes above which it counts as not ready.
const SEND_BUFFER_BYTES: usize = 512 << 10;
/// Streams that may be opened and reset before they are even looked at; a client that does more floods us.
const MAX_UNSEEN_RESETS: usize = 200;
/// How many requests of a connection may be in work for each stream that may be open. More are only possible if requests are
/// taken back and others sent in their place, again and again: CVE-2023-44487.
const MOST_IN_WORK: usize = 4;
/// Requests taken from a connection before they are begun; their answers leave in as few writes.
const REQUESTS_AT_ONCE: usize = 64;

/// What is answered on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Serves {
    /// Whatever a client may ask.
    #[default]
    Everything,
    /// gRPC, where HTTP has an address of its own.
    Grpc,
    /// All but gRPC.
    Http,
}

/// Serves a connection of `client` until it ends. TCP_NODELAY is the caller's business. Runs inside the worker's `LocalSet`.
pub async fn serve_connection<I>(mut io: I, worker: Rc<Worker>, client: Client, serves: Serves)
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let Ok(Ok((greeting, is_http2))) = timeout(greeting_timeout(&worker), read_greeting(&mut io)).await else { return };
    // How a connection ends is the client's business and no news. In boxes, so that neither kind needs the other's room.
    if is_http2 {
        let _ = Box::pin(serve_http2(Rewound { greeting, io }, &worker, client, serves)).await;
    } else if serves != Serves::Grpc {
        let _ = Box::pin(http1::serve(io, greeting, &worker, Port::of(&client))).await;
    }
}

fn greeting_timeout(worker: &Worker) -> Duration {
    GREETING_TIMEOUT.min(worker.shared.http.request_timeout)
}

/// Serves a connection to one of `--listen-metrics-urls`: health and metrics over HTTP/1.1.
pub async fn serve_metrics<I>(io: I, worker: Rc<Worker>)
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let _ = http1::serve(io, Bytes::new(), &worker, Port::Metrics).await;
}

/// Reads until it is clear whether the client speaks HTTP/2.
async fn read_greeting(io: &mut (impl AsyncRead + Unpin)) -> io::Result<(Bytes, bool)> {
    let mut greeting = [0; PREFACE.len()];
    let mut filled = 0;
    loop {
        let read = io.read(&mut greeting[filled..]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += read;
        let said = &greeting[..filled];
        if said == PREFACE {
            return Ok((Bytes::from_static(PREFACE), true));
        }
        if !PREFACE.starts_with(said) {
            return Ok((Bytes::copy_from_slice(said), false));
        }
    }
}

/// Waits until the process stops.
pub(crate) async fn closed(mut closing: tokio::sync::watch::Receiver<bool>) {
    if closing.wait_for(|closing| *closing).await.is_err() {
        // Whoever would have told us is gone, so nobody wants us to stop.
        std::future::pending().await
    }
}

enum Event {
    Requests,
    Closing,
    KeepAlive,
    Ended,
}

async fn serve_http2<I>(io: Rewound<I>, worker: &Rc<Worker>, client: Client, serves: Serves) -> Result<(), h2::Error>
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let limits = worker.member().limits();
    let cork = Rc::new(RefCell::new(Cork::new(io)));
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(MAX_UNSEEN_RESETS)
        .handshake::<_, Bytes>(Corked(cork.clone()));
    let Ok(connection) = timeout(greeting_timeout(worker), handshake).await else { return Ok(()) };
    let mut connection = connection?;

    let mut keep_alive = KeepAlive::new(limits, &mut connection);
    let mut closing = std::pin::pin!(closed(worker.shared.closing.clone()));
    let mut is_closing = false;
    let in_work = grpc::InWork::default();
    let most_in_work = (limits.max_concurrent_streams as usize).saturating_mul(MOST_IN_WORK);
    let mut requests = Vec::with_capacity(REQUESTS_AT_ONCE);
    loop {
        let event = poll_fn(|cx| {
            while requests.len() < REQUESTS_AT_ONCE {
                match connection.poll_accept(cx) {
                    Poll::Ready(Some(Ok(request))) => requests.push(request),
                    // What was taken before the end is still worth an answer: the client may only have half-closed.
                    Poll::Ready(_) if requests.is_empty() => return Poll::Ready(Event::Ended),
                    Poll::Ready(_) | Poll::Pending => break,
                }
            }
            if !requests.is_empty() {
                return Poll::Ready(Event::Requests);
            }
            // Nothing more to begin: whatever was answered leaves now, in one write.
            if let Poll::Ready(Err(_)) = cork.borrow_mut().poll_drain(cx) {
                return Poll::Ready(Event::Ended);
            }
            if let Some(keep_alive) = &mut keep_alive
                && keep_alive.poll_dead(cx).is_ready()
            {
                return Poll::Ready(Event::KeepAlive);
            }
            if !is_closing && closing.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::Closing);
            }
            Poll::Pending
        })
        .await;
        match event {
            Event::Requests => {
                let arrived = Instant::now();
                for (request, respond) in requests.drain(..) {
                    grpc::begin(worker, &client, serves, &in_work, arrived.into_std(), request, respond);
                }
                if Rc::strong_count(&in_work) > most_in_work {
                    connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                }
                if let Some(keep_alive) = &mut keep_alive {
                    keep_alive.seen(arrived);
                }
            }
            Event::Closing => {
                is_closing = true;
                connection.graceful_shutdown();
            }
            // The client's host is gone: nobody would ever tell us.
            Event::KeepAlive | Event::Ended => return Ok(()),
        }
    }
}

/// Pings a quiet connection, and notices when nobody answers.
struct KeepAlive {
    pings: h2::PingPong,
    interval: Duration,
    timeout: Duration,
    timer: Pin<Box<tokio::time::Sleep>>,
    /// When something last came from the client.
    seen: Instant,
    waits_for_pong: bool,
}

impl KeepAlive {
    /// `None` if it is switched off.
    fn new<T>(limits: &crate::Limits, connection: &mut h2::server::Connection<T, Bytes>) -> Option<Self>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        if limits.keepalive_interval_ms == 0 {
            return None;
        }
        let interval = Duration::from_millis(limits.keepalive_interval_ms);
        Some(Self {
            pings: connection.ping_pong()?,
            interval,
            timeout: Duration::from_millis(limits.keepalive_timeout_ms),
            timer: Box::pin(sleep(interval)),
            seen: Instant::now(),
            waits_for_pong: false,
        })
    }

    fn seen(&mut self, now: Instant) {
        self.seen = now;
    }

    /// Ready when a ping was not answered in time.
    fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.waits_for_pong
                && let Poll::Ready(pong) = self.pings.poll_pong(cx)
            {
                if pong.is_err() {
                    return Poll::Ready(());
                }
                self.waits_for_pong = false;
                self.seen = Instant::now();
                self.timer.as_mut().reset(self.seen + self.interval);
            }
            ready!(self.timer.as_mut().poll(cx));
            if self.waits_for_pong {
                return Poll::Ready(());
            }
            let quiet_until = self.seen + self.interval;
            if quiet_until > Instant::now() {
                self.timer.as_mut().reset(quiet_until);
            } else if self.pings.send_ping(Ping::opaque()).is_ok() {
                self.waits_for_pong = true;
                self.timer.as_mut().reset(Instant::now() + self.timeout);
            } else {
                return Poll::Ready(());
            }
        }
    }
}

/// Bytes that may wait in a [`Cork`] before they are written in any case.
const CORK_BYTES: usize = 64 << 10;
/// A buffer at most this large is kept for the next answers; thousands of quiet connections must not hold more.
const KEPT_BUFFER_BYTES: usize = 4 << 10;

/// The socket under an HTTP/2 connection, with a buffer of what was not written yet.
///
/// The HTTP/2 library writes and flushes after every DATA frame of more than 256 bytes, so that a hundred answers that
/// are ready together would cost a hundred system calls. Here a flush does nothing; the connection's own loop calls
/// [`Cork::poll_drain`] when there is nothing more to do.
struct Cork<I> {
    io: I,
    mender: Mender,
    /// Part of a frame that must be seen whole before it is passed on; at most a frame and what was read with it.
    held: Vec<u8>,
    /// What may be passed on, from `passed`, but did not fit the reader's buffer.
    mended: Vec<u8>,
    passed: usize,
    unsent: Vec<u8>,
    /// How much of `unsent` has been written.
    written: usize,
}

impl<I: AsyncWrite + Unpin> Cork<I> {
    fn new(io: I) -> Self {
        Self {
            io,
            mender: Mender::new(),
            held: Vec::new(),
            mended: Vec::new(),
            passed: 0,
            unsent: Vec::new(),
            written: 0,
        }
    }

    /// Writes what has been kept back. The caller's task is woken when the socket takes more.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.unsent.len() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.unsent[self.written..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        // Part of what TLS has taken may still wait for the socket.
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.written = 0;
        self.unsent.clear();
        self.unsent.shrink_to(KEPT_BUFFER_BYTES);
        Poll::Ready(Ok(()))
    }

    /// Makes room for `more` bytes. Ready with `false`: they are too many to be kept, write them directly.
    fn poll_room(&mut self, more: usize, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.unsent.len() + more > CORK_BYTES {
            ready!(self.poll_drain(cx))?;
        }
        Poll::Ready(Ok(more <= CORK_BYTES))
    }
}

/// The side of a [`Cork`] that the HTTP/2 library sees.
struct Corked<I>(Rc<RefCell<Cork<I>>>);

impl<I: AsyncRead + Unpin> Cork<I> {
    /// Reads, and mends the `:authority` of what is read; see [`crate::authority`].
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.passed < self.mended.len() {
                let length = buf.remaining().min(self.mended.len() - self.passed);
                buf.put_slice(&self.mended[self.passed..self.passed + length]);
                self.passed += length;
                return Poll::Ready(Ok(()));
            }
            let before = buf.filled().len();
            ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
            let read = &mut buf.filled_mut()[before..];
            if read.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if self.held.is_empty() {
                // Nearly always: whole frames, looked at where they are.
                let length = self.mender.pass(read);
                self.held.extend_from_slice(&read[length..]);
                buf.set_filled(before + length);
                if length > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                self.held.extend_from_slice(read);
                buf.set_filled(before);
                let length = self.mender.pass(&mut self.held);
                let rest = self.held.split_off(length);
                self.mended = std::mem::replace(&mut self.held, rest);
                self.passed = 0;
            }
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Corked<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Corked<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut cork = self.0.borrow_mut();
        if !ready!(cork.poll_room(buf.len(), cx))? {
            return Pin::new(&mut cork.io).poll_write(cx, buf);
        }
        cork.unsent.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|buf| buf.len()).sum();
        let mut cork = self.0.borrow_mut();
        if !ready!(cork.poll_room(length, cx))? {
            return Pin::new(&mut cork.io).poll_write_vectored(cx, bufs);
        }
        for buf in bufs {
            cork.unsent.extend_from_slice(buf);
        }
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut cork = self.0.borrow_mut();
        ready!(cork.poll_drain(cx))?;
        Pin::new(&mut cork.io).poll_shutdown(cx)
    }
}

/// A stream whose first bytes were read already and are read again.
struct Rewound<I> {
    greeting: Bytes,
    io: I,
}

impl<I: AsyncRead + Unpin> AsyncRead for Rewound<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.greeting.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let length = self.greeting.len().min(buf.remaining());
        buf.put_slice(&self.greeting[..length]);
        self.greeting.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Rewound<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
