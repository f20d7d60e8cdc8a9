//! One endpoint: what its text means, and how it is connected.

use crate::Config;
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tls::{Connector, Socket, Stream};
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
    security: Security,
}

/// Whether TLS is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Security {
    Never,
    /// If the client has been given anything for TLS.
    Optional,
    Always,
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
    /// Takes `host:port`, `http[s]://host:port[/path]` or `unix[s]:[//]path`. Never fails: what makes no sense is an endpoint that
    /// cannot be reached, as it is for etcd's client.
    pub fn parse(text: &str) -> Self {
        let (way, security) = match text.split_once("://") {
            Some(("http", rest)) => (tcp(rest), Security::Never),
            Some(("https", rest)) => (tcp(rest), Security::Always),
            Some(("unix", path)) => (Way::Unix(path.to_owned()), Security::Optional),
            Some(("unixs", path)) => (Way::Unix(path.to_owned()), Security::Always),
            Some(_) => (Way::None("unknown scheme"), Security::Never),
            None => match (text.strip_prefix("unix:"), text.strip_prefix("unixs:")) {
                (Some(path), _) => (Way::Unix(path.to_owned()), Security::Optional),
                (_, Some(path)) => (Way::Unix(path.to_owned()), Security::Always),
                (None, None) => (tcp(text), Security::Optional),
            },
        };
        Endpoint { text: text.to_owned(), way, security }
    }

    /// Can it only be reached in TLS?
    pub(crate) fn demands_tls(&self) -> bool {
        self.security == Security::Always
    }

    /// The endpoint as it was typed.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Connects. The error says what stood in the way, in Go's words where scripts might look.
    pub(crate) async fn connect(&self, config: &Config, connector: Option<Arc<Connector>>) -> Result<Channel, String> {
        let connector = connector.filter(|_| match self.security {
            Security::Never => false,
            Security::Optional => config.tls.is_some(),
            Security::Always => true,
        });
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
        let in_tls = if connector.is_some() { " in TLS" } else { "" };
        let dial = endpoint.connect_with_connector(Dial(self.way.clone(), connector));
        match tokio::time::timeout(dial_timeout, dial).await {
            Ok(Ok(channel)) => Ok(channel),
            // tonic's own timer may be the first to ring.
            Ok(Err(error)) if root_cause(&error) != "deadline has elapsed" => Err(root_cause(&error)),
            Ok(Err(_)) | Err(_) => Err(format!("dial {}: no answer{in_tls}", self.text)),
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
struct Dial(Way, Option<Arc<Connector>>);

impl tower_service::Service<Uri> for Dial {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Dial(way, connector) = self.clone();
        Box::pin(async move {
            let (socket, host) = match &way {
                Way::Tcp { host, port } => {
                    let stream = TcpStream::connect((host.as_str(), *port))
                        .await
                        .map_err(|error| explained(&format!("dial tcp {host}:{port}: connect"), &error))?;
                    stream.set_nodelay(true)?;
                    (Socket::Tcp(stream), host.as_str())
                }
                Way::Unix(path) => {
                    let stream = UnixStream::connect(path)
                        .await
                        .map_err(|error| explained(&format!("dial unix {path}: connect"), &error))?;
                    (Socket::Unix(stream), "localhost")
                }
                Way::None(reason) => return Err(io::Error::other(*reason)),
            };
            let stream = match connector {
                None => Stream::Plain(socket),
                Some(connector) => connector.connect(socket, host).await.map_err(|error| {
                    io::Error::new(error.kind(), format!("transport: authentication handshake failed: {error}"))
                })?,
            };
            Ok(TokioIo::new(stream))
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
        assert_eq!(Endpoint::parse("https://db.example:4").way, tcp("db.example", 4));
        assert_eq!(Endpoint::parse("unixs:/run/etcd.sock").way, Way::Unix("/run/etcd.sock".into()));
        assert!(matches!(Endpoint::parse("http://[bad").way, Way::None(_)));
        assert!(matches!(Endpoint::parse("host:port").way, Way::None(_)));
    }

    #[test]
    fn an_endpoint_without_a_scheme_is_in_tls_if_the_client_is_given_any() {
        assert_eq!(Endpoint::parse("db:1").security, Security::Optional);
        assert_eq!(Endpoint::parse("unix:/sock").security, Security::Optional);
        assert_eq!(Endpoint::parse("http://db:1").security, Security::Never);
        assert!(Endpoint::parse("https://db:1").demands_tls() && Endpoint::parse("unixs:///sock").demands_tls());
    }
}
