//! One endpoint: what its text means, and how it is connected.

use crate::Config;
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Uri};

/// etcd's client port, for an endpoint that names none.
const DEFAULT_PORT: u16 = 2379;
/// An attempt to connect is given at least this long: etcd's own client does not hold an attempt to the dial timeout.
const SHORTEST_DIAL: Duration = Duration::from_secs(1);

/// An endpoint as it was typed, and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    text: String,
    way: Way,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    Tcp {
        host: String,
        port: u16,
    },
    Unix(String),
    /// Cannot be connected to, and why.
    None(&'static str),
}

impl Endpoint {
    /// Takes `host:port`, `http://host:port[/path]` or `unix:[//]path`. Never fails: what makes no sense is an endpoint that
    /// cannot be reached, as it is for etcd's client.
    pub fn parse(text: &str) -> Self {
        let way = match text.split_once("://") {
            Some(("http", rest)) => tcp(rest),
            Some(("https", _)) => Way::None("TLS is not supported yet"),
            Some(("unix", path)) => Way::Unix(path.to_owned()),
            Some(_) => Way::None("unknown scheme"),
            None => match text.strip_prefix("unix:") {
                Some(path) => Way::Unix(path.to_owned()),
                None => tcp(text),
            },
        };
        Endpoint { text: text.to_owned(), way }
    }

    /// The endpoint as it was typed.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Connects. The error says what stood in the way, in Go's words where scripts might look.
    pub(crate) async fn connect(&self, config: &Config) -> Result<Channel, String> {
        let authority = match &self.way {
            Way::Tcp { host, port } if host.contains(':') => format!("http://[{host}]:{port}"),
            Way::Tcp { host, port } => format!("http://{host}:{port}"),
            Way::Unix(_) => "http://localhost".to_owned(),
            Way::None(reason) => return Err(format!("{}: {reason}", self.text)),
        };
        let dial_timeout = config.dial_timeout.max(SHORTEST_DIAL);
        let endpoint = tonic::transport::Endpoint::from_shared(authority)
            .map_err(|error| format!("{}: {error}", self.text))?
            .connect_timeout(dial_timeout) // for when it connects again by itself
            .http2_keep_alive_interval(config.keep_alive_time)
            .keep_alive_timeout(config.keep_alive_timeout)
            .initial_connection_window_size(8 << 20) // a large range or snapshot does not wait for window updates
            .initial_stream_window_size(4 << 20)
            .http2_max_header_list_size(16 << 10);
        let dial = endpoint.connect_with_connector(Dial(self.way.clone()));
        match tokio::time::timeout(dial_timeout, dial).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(root_cause(&error)),
            Err(_) => Err(format!("dial {}: no answer", self.text)),
        }
    }
}

fn tcp(rest: &str) -> Way {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => match bracketed.split_once(']') {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => return Way::None("missing ']' in address"),
        },
        None => match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = match port.map(str::parse) {
        None => DEFAULT_PORT,
        Some(Ok(port)) => port,
        Some(Err(_)) => return Way::None("bad port"),
    };
    let host = if host.is_empty() { "localhost" } else { host };
    Way::Tcp { host: host.to_owned(), port }
}

/// The innermost error, which names the address and the reason; the layers above it say "transport error".
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Makes the sockets of one endpoint, whatever the URI says: that one only fills in `:authority`.
#[derive(Clone)]
struct Dial(Way);

impl tower_service::Service<Uri> for Dial {
    type Response = TokioIo<Socket>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let way = self.0.clone();
        Box::pin(async move {
            let socket = match &way {
                Way::Tcp { host, port } => {
                    let stream = TcpStream::connect((host.as_str(), *port))
                        .await
                        .map_err(|error| explained(&format!("dial tcp {host}:{port}: connect"), &error))?;
                    stream.set_nodelay(true)?;
                    Socket::Tcp(stream)
                }
                Way::Unix(path) => Socket::Unix(
                    UnixStream::connect(path)
                        .await
                        .map_err(|error| explained(&format!("dial unix {path}: connect"), &error))?,
                ),
                Way::None(reason) => return Err(io::Error::other(*reason)),
            };
            Ok(TokioIo::new(socket))
        })
    }
}

/// The error with what was tried in front, in Go's words: `dial tcp 127.0.0.1:2379: connect: connection refused`.
fn explained(attempt: &str, error: &io::Error) -> io::Error {
    let reason = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    };
    io::Error::new(error.kind(), format!("{attempt}: {reason}"))
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Socket::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Socket::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A peer that is gone already has nothing left to be told.
        let done = match self.get_mut() {
            Socket::Tcp(stream) => ready!(Pin::new(stream).poll_shutdown(context)),
            Socket::Unix(stream) => ready!(Pin::new(stream).poll_shutdown(context)),
        };
        Poll::Ready(done.or(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_address_with_or_without_a_scheme() {
        let tcp = |host: &str, port| Way::Tcp { host: host.into(), port };
        assert_eq!(Endpoint::parse("127.0.0.1:1").way, tcp("127.0.0.1", 1));
        assert_eq!(Endpoint::parse("http://db.example:80/path").way, tcp("db.example", 80));
        assert_eq!(Endpoint::parse("[::1]:2").way, tcp("::1", 2));
        assert_eq!(Endpoint::parse("db").way, tcp("db", DEFAULT_PORT));
        assert_eq!(Endpoint::parse(":3").way, tcp("localhost", 3));
        assert_eq!(Endpoint::parse("unix:///run/etcd.sock").way, Way::Unix("/run/etcd.sock".into()));
        assert!(matches!(Endpoint::parse("http://[bad").way, Way::None(_)));
        assert!(matches!(Endpoint::parse("host:port").way, Way::None(_)));
    }
}
