//! Clients talking to us.
//!
//! This crate translates: HTTP/2 frames, gRPC messages and plain HTTP on one side, calls of [`Member`] on the other. It
//! decides nothing; it is the one place where errors become wire errors ([`status`]).
//!
//! # How it is driven
//! One thread per core, each with a single-threaded tokio runtime and a `LocalSet`. Inside it:
//! ```ignore
//! let worker = Worker::new(shared);   // shared: Arc<Shared>, the same for all threads
//! worker.start();
//! // for each accepted connection (TCP_NODELAY set):
//! spawn_local(serve_connection(stream, worker.clone(), Client::default(), Serves::Everything));
//! ```
//! A connection stays on the thread that accepted it. Answers come back from the apply thread through a [`Reply`], or
//! many at once through an [`Outbox`].

pub mod applies;
mod auth;
mod authority;
pub mod caller;
mod conn;
pub mod durations;
mod gateway;
pub mod grpc;
mod http1;
mod http2;
mod json;
pub mod load;
pub mod loggable;
pub mod mailbox;
pub mod member;
pub mod metrics;
pub mod ops;
mod slow;
pub mod status;
pub mod timing;
pub mod v2;
pub mod worker;

pub use auth::{AuthOptions, AuthOptionsError, Authenticator};
pub use caller::{Caller, Client};
pub use conn::{Serves, serve_connection, serve_metrics};
pub use mailbox::{Outbox, Reply};
pub use member::{
    Answer, Identity, Limits, LogLevel, Member, MemberChange, Outcome, PeerTraffic, SnapshotSource, Status, TimeToLive,
};
pub use metrics::Metrics;
pub use ops::HttpOptions;
pub use slow::threshold as slow_threshold;
pub use timing::Passage;
pub use v2::{FollowerStats, MessageRate, SelfStats};
pub use worker::{Shared, Worker};

/// Doors for the targets of `fuzz/`.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::gateway::fuzzing::json;

    /// Reads a request of the v2 API from its head to its parameters.
    pub fn v2_request(head: &[u8], body: &[u8]) {
        let Some(parts) = crate::http1::fuzzing::parts(head) else { return };
        if let Some(path) = crate::v2::decode_path(parts.uri.path()) {
            let _ = crate::v2::clean_location(&path, parts.uri.query());
            crate::v2::fuzzing::parameters(&parts, &path, body);
        }
    }
}
