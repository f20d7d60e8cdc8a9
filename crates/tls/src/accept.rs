//! The server's side of a handshake.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::{Acceptor as Hello, NoServerSessionStorage};
use rustls::sign::SingleCertAndKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;

use crate::files::{authorities, identity, of_the_system, revoked};
use crate::names::Names;
use crate::provider::{provider, versions};
use crate::settings::Settings;
use crate::stream::{HANDSHAKE_RECORD, Socket, Stream};
use crate::verify::{Allowed, ClientVerifier};
use crate::watched::{Contents, Watched};
use crate::{TlsError, words};

/// How long a handshake may take, from the connection to its last byte.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What is said to who speaks HTTP where TLS is spoken, in Go's words.
const SPEAK_TLS: &[u8] = b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

/// Takes connections of clients that speak TLS.
pub struct Acceptor {
    config: Watched<ServerConfig>,
    checks_source: bool,
}

/// What a finished handshake says of the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// The common name in its certificate, if it had to show one.
    pub common_name: Option<Arc<str>>,
}

/// Why a client was not let in.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    reason: String,
    server_name: String,
    names: Option<Box<Names>>,
    /// It said nothing wrong: it said nothing.
    was_silent: bool,
}

impl Refused {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), server_name: String::new(), names: None, was_silent: false }
    }

    fn of_io(error: &io::Error) -> Self {
        let was_silent = error.kind() == io::ErrorKind::UnexpectedEof;
        Self { was_silent, ..Self::new(words::of_handshake(error)) }
    }

    /// Writes etcd's line: which `endpoint` (client, peer) rejected whom, and why. Who only looks whether
    /// something listens, as load balancers do all the time, is worth no more than a line for debugging.
    pub fn log(&self, endpoint: &str, remote: &str) {
        let server_name = self.server_name.as_str();
        let error = self.reason.as_str();
        if self.was_silent {
            tracing::debug!(
                "remote-addr" = remote,
                "server-name" = server_name,
                error,
                "rejected connection on {endpoint} endpoint"
            );
        } else if let Some(names) = &self.names {
            tracing::warn!(
                "remote-addr" = remote,
                "server-name" = server_name,
                "ip-addresses" = ?names.ip_addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>(),
                "dns-names" = ?names.dns_names,
                error,
                "rejected connection on {endpoint} endpoint"
            );
        } else {
            tracing::warn!(
                "remote-addr" = remote,
                "server-name" = server_name,
                error,
                "rejected connection on {endpoint} endpoint"
            );
        }
    }
}

impl Acceptor {
    /// For these settings, speaking one of `protocols` (ALPN) inside. With `checks_source`, a client's certificate must be
    /// for the address that the client connects from, as etcd wants it of its peers.
    ///
    /// # Errors
    /// When a file cannot be read or used.
    pub fn new(settings: &Settings, protocols: &[&str], checks_source: bool) -> Result<Self, TlsError> {
        let Settings { cert_file, key_file, trusted_ca_file, crl_file, .. } = settings;
        if cert_file.is_empty() || key_file.is_empty() {
            return Err(TlsError::NoCertificate { key: key_file.clone(), cert: cert_file.clone() });
        }
        let optional = [trusted_ca_file, crl_file].into_iter().filter(|path| !path.is_empty());
        let paths = [cert_file, key_file].into_iter().chain(optional).cloned().collect();
        let (settings, protocols) = (settings.clone(), protocols.iter().map(|name| name.as_bytes().to_vec()).collect());
        let config = Watched::new(paths, move |contents| build(&settings, &protocols, contents))?;
        Ok(Self { config, checks_source })
    }

    /// Does a client begin so that speaks TLS?
    pub fn is_hello(first_byte: u8) -> bool {
        first_byte == HANDSHAKE_RECORD
    }

    /// Runs the handshake with who has connected, from this address if it has one.
    ///
    /// # Errors
    /// When the client is not let in; see [`Refused::log`].
    pub async fn accept(&self, socket: Socket, from: Option<IpAddr>) -> Result<(Stream, Verified), Refused> {
        let handshake = timeout(HANDSHAKE_TIMEOUT, self.handshake(socket, from));
        handshake.await.unwrap_or_else(|_| Err(Refused::new("i/o timeout")))
    }

    async fn handshake(&self, socket: Socket, from: Option<IpAddr>) -> Result<(Stream, Verified), Refused> {
        match socket.first_byte().await {
            Ok(Some(byte)) if Self::is_hello(byte) => {}
            Ok(Some(byte)) => return Err(not_tls(socket, byte).await),
            Ok(None) => return Err(Refused::of_io(&io::ErrorKind::UnexpectedEof.into())),
            Err(error) => return Err(Refused::of_io(&error)),
        }
        let hello = LazyConfigAcceptor::new(Hello::default(), socket).await.map_err(|error| Refused::of_io(&error))?;
        let server_name = hello.client_hello().server_name().unwrap_or_default().to_owned();
        let refuse = |refused: Refused| Refused { server_name: server_name.clone(), ..refused };
        let stream = hello.into_stream(self.config.get()).await.map_err(|error| refuse(Refused::of_io(&error)))?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let names = shown.and_then(Names::of);
        if let (true, Some(names), Some(from)) = (self.checks_source, &names, from)
            && let Err(reason) = names.check_source(from).await
        {
            return Err(refuse(Refused { names: Some(Box::new(names.clone())), ..Refused::new(reason) }));
        }
        let common_name = names.map(|names| names.common_name).filter(|name| !name.is_empty());
        let verified = Verified { common_name: common_name.map(Arc::from) };
        Ok((Stream::Secure(Box::new(stream.into())), verified))
    }
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Acceptor").field("checks_source", &self.checks_source).finish_non_exhaustive()
    }
}

/// Tells who speaks HTTP what to speak instead.
async fn not_tls(mut socket: Socket, first_byte: u8) -> Refused {
    if first_byte.is_ascii_uppercase() {
        // What was sent has to be taken, or closing would take the answer away with it.
        let mut request = [0; 4096];
        let answer = async {
            let _taken = socket.read(&mut request).await?;
            socket.write_all(SPEAK_TLS).await?;
            socket.shutdown().await
        };
        if let Err(error) = answer.await {
            return Refused::of_io(&error);
        }
    }
    Refused::new("tls: first record does not look like a TLS handshake")
}

fn build(settings: &Settings, protocols: &Vec<Vec<u8>>, contents: &Contents) -> Result<ServerConfig, TlsError> {
    let provider = provider(settings)?;
    let mut contents = contents.iter();
    let mut next = || contents.next().map(Vec::as_slice).unwrap_or_default();
    let pair = identity((&settings.cert_file, next()), (&settings.key_file, next()), &provider)?;
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&versions(settings))?;
    let builder = if settings.trusted_ca_file.is_empty() && !settings.client_cert_auth {
        builder.with_no_client_auth()
    } else {
        let authorities = match settings.trusted_ca_file.as_str() {
            "" => of_the_system(),
            path => authorities(path, next())?,
        };
        let revoked = match settings.crl_file.as_str() {
            "" => Default::default(),
            path => revoked(path, next())?,
        };
        let verifier = ClientVerifier::new(&authorities, Allowed::of(settings), revoked, &provider)?;
        builder.with_client_cert_verifier(Arc::new(verifier))
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
    config.alpn_protocols.clone_from(protocols);
    // Who comes back shows its certificate again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
