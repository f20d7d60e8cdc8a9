//! What can go wrong, in the words that etcd's tools use.

use crate::call::innermost;
use tonic::{Code, Status};

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The list of endpoints is empty.
    #[error("etcdclient: no available endpoints")]
    NoEndpoints,
    /// The call's timeout passed. `cause` is the last thing that went wrong before, if anything did.
    #[error("context deadline exceeded")]
    DeadlineExceeded {
        /// The last failure, naming the endpoint.
        cause: Option<String>,
    },
    /// The cluster, or the connection to it, answered with an error.
    #[error("{}", server_text(*code, message))]
    Server {
        /// gRPC's code.
        code: Code,
        /// The server's words.
        message: String,
    },
    /// The server ended a watch.
    #[error("{reason}")]
    WatchCanceled {
        /// Why, in the server's words.
        reason: String,
        /// The oldest revision that can still be watched, if the watch wanted an older one; else 0.
        compact_revision: i64,
    },
    /// The lease behind a lock or a candidacy is gone.
    #[error("session is expired")]
    SessionExpired,
    /// The files for TLS cannot be used.
    #[error("{0}")]
    Tls(String),
    /// A peer URL that no member could have.
    #[error("{0}")]
    PeerUrl(String),
}

impl Error {
    /// Whether the server answered with this message.
    pub fn is(&self, text: &str) -> bool {
        matches!(self, Error::Server { message, .. } if message == text)
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        // What no server has said, but stands in the way, lies beneath the words of the layers that met it.
        let message = match status.message() {
            "transport error" => match innermost(&status) {
                // The alert of a server in TLS, read as HTTP/2.
                cause if cause.ends_with("frame with invalid size") => format!("{cause}; does the server want TLS?"),
                cause => cause,
            },
            message => message.to_owned(),
        };
        Error::Server { code: status.code(), message }
    }
}

/// etcd's own messages stand for themselves; others show their code, as Go's gRPC prints them.
fn server_text(code: Code, message: &str) -> String {
    if message.starts_with("etcdserver: ") || message.starts_with("auth: ") {
        return message.to_owned();
    }
    let name = match code {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        Code::DeadlineExceeded => return "context deadline exceeded".to_owned(),
        // Otherwise Rust's names are Go's.
        _ => format!("{code:?}"),
    };
    format!("rpc error: code = {name} desc = {message}")
}
