//! What a connection passes through: TCP or a Unix socket, in the clear or in TLS.
//!
//! [`Acceptor`] is the server's side, [`Connector`] the client's, [`Stream`] what both make. Who shows which certificate and
//! who is let in is told by a [`Settings`], which has etcd's flags as fields.
//!
//! What holds:
//! - Every handshake uses the files as they are then: they are looked at (one `stat` each) and read again if they have
//!   changed. A file that cannot be used, as in the middle of its replacement, leaves what was loaded before in force, and a
//!   warning in the log. Connections that are open stay as they are.
//! - Nothing is resumed: each connection shows its certificate, so that a revocation counts from the next handshake on.
//! - A handshake is given up after [`HANDSHAKE_TIMEOUT`], and the oldest of too many unfinished ones before
//!   that ([`Pending`]), so that whoever connects and stays silent keeps nobody out.
//! - Errors are told in the words of Go's TLS, which are what operators of etcd search their logs for.
//!
//! Differences to etcd: authorities and revocation lists are reloaded as well as certificates; there are no
//! cipher suites without forward secrecy; a certificate's signature may not be SHA-1, an RSA key not shorter than 2048 bits.

mod accept;
mod connect;
mod files;
mod names;
mod p521;
mod pending;
mod provider;
mod self_signed;
mod settings;
mod stream;
mod verify;
mod version1;
mod watched;
mod words;

pub use accept::{Acceptor, HANDSHAKE_TIMEOUT, Refused, Verified};
pub use connect::Connector;
pub use pending::Pending;
pub use provider::is_supported;
pub use self_signed::{Purpose, self_signed};
pub use settings::{Settings, Version};
pub use stream::{Socket, Stream};

use std::io;

/// Why TLS cannot be set up. Texts are those of etcd and Go where these have one.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("open {path}: {}", words::of_io(source))]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// There is no certificate and key.
    #[error("KeyFile and CertFile must both be present[key: {key}, cert: {cert}]")]
    NoCertificate {
        /// The key's file.
        key: String,
        /// The certificate's.
        cert: String,
    },
    /// A client's certificate without its key or the other way round.
    #[error("ClientKeyFile and ClientCertFile must both be present or both absent: key: {key}, cert: {cert}]")]
    HalfClientCertificate {
        /// The key's file.
        key: String,
        /// The certificate's.
        cert: String,
    },
    /// A file does not hold what it should.
    #[error("{path}: {reason}")]
    Content {
        /// Which.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Of the cipher suites that were named, none can be used.
    #[error("none of the cipher suites is supported ({0}); those with CBC, RC4, 3DES or without ECDHE are not")]
    CipherSuites(String),
    /// These settings make no TLS.
    #[error("tls: {0}")]
    Setup(#[from] rustls::Error),
    /// A certificate could not be made or written.
    #[error("cannot make a certificate: {0}")]
    Make(String),
}
