//! Sockets between members.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderName;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tls::{Connector, Socket, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use crate::url::PeerUrl;

/// How long a peer may take no byte of what is written to it before the connection is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// How to connect to members. Clones are handles of the same.
#[derive(Clone, Debug, Default)]
pub struct Dialer(Arc<OnceLock<Connector>>);

impl Dialer {
    /// Speaks TLS this way where a member's URL says `https`. The default dialer trusts the system's authorities and shows no
    /// certificate.
    pub fn new(connector: Connector) -> Self {
        Self(Arc::new(OnceLock::from(connector)))
    }

    fn connector(&self) -> io::Result<&Connector> {
        if let Some(connector) = self.0.get() {
            return Ok(connector);
        }
        // Made when it is needed, which for most members is never: it reads some hundred files.
        let connector = Connector::new(&tls::Settings::default(), &[]).map_err(io::Error::other)?;
        Ok(self.0.get_or_init(|| connector))
    }
}

/// A connection to or from a peer. Nobody else knows what the bytes pass through.
pub(crate) struct Wire {
    stream: Stream,
    write_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Wire {
    /// Wraps an accepted connection.
    pub(crate) fn accepted(stream: Stream) -> Self {
        Self { stream, write_timeout: WRITE_TIMEOUT, stalled: None }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// `ConnectionRefused` when nobody listens there, `TimedOut` after `limit`, and what else sockets and TLS have to offer.
    pub(crate) async fn connect(dialer: &Dialer, url: &PeerUrl, limit: Duration) -> io::Result<Self> {
        let dial = Self::dial(dialer, url);
        timeout(limit, dial).await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "dial timed out"))?
    }

    async fn dial(dialer: &Dialer, url: &PeerUrl) -> io::Result<Self> {
        let stream = TcpStream::connect((url.host.as_str(), url.port)).await?;
        // Dialling a free local port can connect to itself, which would pass for a peer that listens.
        if stream.local_addr()? == stream.peer_addr()? {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        stream.set_nodelay(true)?;
        let stream =
            if url.tls { dialer.connector()?.connect(Socket::Tcp(stream), &url.host).await? } else { stream.into() };
        Ok(Self { stream, write_timeout: WRITE_TIMEOUT, stalled: None })
    }

    /// Has patience with a peer that stops reading now and then, as one does that writes to its disk.
    pub(crate) fn with_write_timeout(self, write_timeout: Duration) -> Self {
        Self { write_timeout, ..self }
    }

    /// Passes the outcome of a write on, unless it has been pending for too long.
    fn watch(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let limit = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "peer takes no bytes"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.watch(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Speaks HTTP/1.1 on a connection that this member opened, with header names spelled as Go spells them.
pub(crate) async fn handshake<B>(
    wire: Wire,
) -> hyper::Result<(http1::SendRequest<B>, http1::Connection<TokioIo<Wire>, B>)>
where
    B: http_body::Body + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    http1::Builder::new().title_case_headers(true).max_buf_size(MAX_BUFFER_BYTES).handshake(TokioIo::new(wire)).await
}

/// What hyper may read ahead on a connection; it is also the longest head.
pub(crate) const MAX_BUFFER_BYTES: usize = 256 << 10;

/// A header name in the spelling that Go gives it: `X-Raft-To`.
pub(crate) fn title_case(name: &HeaderName) -> String {
    let mut starts = true;
    let spelled = name.as_str().chars().map(|letter| {
        let letter = if starts { letter.to_ascii_uppercase() } else { letter };
        starts = letter == '-';
        letter
    });
    spelled.collect()
}
