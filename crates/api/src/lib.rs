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
//! spawn_local(serve_connection(stream, worker.clone(), Client::default()));
//! ```
//! A connection stays on the thread that accepted it. Answers come back from the apply thread through a [`Reply`], or
//! many at once through an [`Outbox`].

mod authority;
pub mod caller;
mod conn;
pub mod grpc;
mod http1;
pub mod mailbox;
pub mod member;
pub mod metrics;
pub mod ops;
pub mod status;
pub mod v2;
pub mod worker;

pub use caller::{Caller, Client};
pub use conn::{serve_connection, serve_metrics};
pub use mailbox::{Outbox, Reply};
pub use member::{
    Answer, Identity, Limits, LogLevel, Member, MemberChange, Outcome, PeerTraffic, SnapshotSource, Status, TimeToLive,
};
pub use metrics::Metrics;
pub use ops::HttpOptions;
pub use v2::{FollowerStats, MessageRate, SelfStats};
pub use worker::{Shared, Worker};
