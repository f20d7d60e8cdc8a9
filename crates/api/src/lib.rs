//! Clients talking to us.
//!
//! This crate translates: HTTP/2 frames, gRPC messages, JSON and plain HTTP on one side, calls of [`Member`] on the
//! other. It decides nothing; it is the one place where errors become wire errors ([`status`]).

pub mod grpc;
pub mod mailbox;
pub mod member;
#[allow(dead_code)] // the calls that count are on their way
pub mod metrics;
pub mod status;

pub use mailbox::{Outbox, Reply};
pub use member::{Answer, Identity, Limits, Member, MemberChange, Outcome, SnapshotSource, Status, TimeToLive};
pub use metrics::Metrics;
