//! The client's side of a handshake.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::files::{authorities, identity, of_the_system};
use crate::provider::{provider, versions};
use crate::settings::Settings;
use crate::stream::{Socket, Stream, explained};
use crate::verify::{Allowed, ServerVerifier};
use crate::watched::{Contents, Watched};
use crate::{TlsError, words};

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes TLS of connections to servers.
pub struct Connector {
    config: Watched<ClientConfig>,
    server_name: String,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Connector").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl Connector {
    /// For these settings, speaking one of `protocols` (ALPN) inside.
    ///
    /// # Errors
    /// When a file cannot be read or used.
    pub fn new(settings: &Settings, protocols: &[&str]) -> Result<Self, TlsError> {
        let Settings { client_cert_file, client_key_file, .. } = settings;
        if client_cert_file.is_empty() != client_key_file.is_empty() {
            let (key, cert) = (client_key_file.clone(), client_cert_file.clone());
            return Err(TlsError::HalfClientCertificate { key, cert });
        }
        let (cert, key) = pair(settings);
        if cert.is_empty() != key.is_empty() {
            return Err(TlsError::NoCertificate { key: key.into(), cert: cert.into() });
        }
        let paths = [cert, key, &settings.trusted_ca_file].into_iter().filter(|path| !path.is_empty());
        let paths = paths.map(str::to_owned).collect();
        let (owned, protocols) = (settings.clone(), protocols.iter().map(|name| name.as_bytes().to_vec()).collect());
        let config = Watched::new(paths, move |contents| build(&owned, &protocols, contents))?;
        Ok(Self { config, server_name: settings.server_name.clone() })
    }

    /// Runs the handshake with the server at the other end of `socket`, which was dialled under the name `host`.
    ///
    /// # Errors
    /// When the server is not who it should be, or will not have this client; in Go's words.
    pub async fn connect(&self, socket: Socket, host: &str) -> io::Result<Stream> {
        let handshake = TlsConnector::from(self.config.get()).connect(self.name(host)?, socket);
        match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => Ok(Stream::Secure(Box::new(stream.into()))),
            Ok(Err(error)) => Err(io::Error::new(error.kind(), words::of_handshake(&error))),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "TLS handshake timeout")),
        }
    }
}

impl Connector {
    /// The same on a thread that may wait. What the socket says of timeouts holds for the handshake, too.
    ///
    /// # Errors
    /// As of [`Connector::connect`].
    pub fn connect_blocking<S: Read + Write>(
        &self,
        mut socket: S,
        host: &str,
    ) -> io::Result<impl Read + Write + use<S>> {
        let mut session = ClientConnection::new(self.config.get(), self.name(host)?).map_err(io::Error::other)?;
        while session.is_handshaking() {
            let step = session.complete_io(&mut socket);
            step.map_err(|error| io::Error::new(error.kind(), words::of_handshake(&error)))?;
        }
        Ok(Blocking(StreamOwned::new(session, socket)))
    }

    /// Whose certificate is wanted.
    fn name(&self, host: &str) -> io::Result<ServerName<'static>> {
        let name = if self.server_name.is_empty() { host } else { &self.server_name };
        ServerName::try_from(name.to_owned())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("tls: {name:?} is no name of a host")))
    }
}

/// TLS on a socket that waits. Says what [`Stream`] says of errors and of an end without leave.
struct Blocking<S: Read + Write>(StreamOwned<ClientConnection, S>);

impl<S: Read + Write> Read for Blocking<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            outcome => outcome.map_err(|error| explained(&error)),
        }
    }
}

impl<S: Read + Write> Write for Blocking<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(|error| explained(&error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(|error| explained(&error))
    }
}

/// The files of the certificate that is shown to servers, and of its key.
fn pair(settings: &Settings) -> (&str, &str) {
    match settings.client_cert_file.as_str() {
        "" => (&settings.cert_file, &settings.key_file),
        _ => (&settings.client_cert_file, &settings.client_key_file),
    }
}

fn build(settings: &Settings, protocols: &Vec<Vec<u8>>, contents: &Contents) -> Result<ClientConfig, TlsError> {
    let provider = provider(settings)?;
    let mut contents = contents.iter();
    let mut next = || contents.next().map(Vec::as_slice).unwrap_or_default();
    let (cert, key) = pair(settings);
    let pair = if cert.is_empty() { None } else { Some(identity((cert, next()), (key, next()), &provider)?) };
    let authorities = match settings.trusted_ca_file.as_str() {
        _ if settings.insecure_skip_verify => None,
        "" => Some(of_the_system()),
        path => Some(authorities(path, next())?),
    };
    let verifier = ServerVerifier::new(authorities.as_ref(), Allowed::of(settings), &provider)?;
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&versions(settings))?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match pair {
        Some(pair) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols.clone_from(protocols);
    config.resumption = Resumption::disabled();
    Ok(config)
}
