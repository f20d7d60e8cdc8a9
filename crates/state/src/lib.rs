//! What the cluster has agreed on: keys, leases, alarms and members, and what watchers see of them.
//!
//! [`State`] applies committed log entries, one at a time, on one thread. [`Reader`] answers questions about the
//! result on any thread meanwhile. Nothing here reads a clock, opens a socket or starts a thread: time comes in as
//! milliseconds of a monotonic clock, and every entry gives the same result on every member.
//!
//! # Rooms
//! - [`check`]: what can be refused before a request is logged
//! - `kv`: range, put, delete, txn, compaction
//! - [`lease`]: leases, their keys, and when they end
//! - [`auth`]: users, roles, and who may do what
//! - [`members`]: who belongs to the cluster; IDs
//! - [`v2`]: the tree of the v2 API
//! - [`watch`]: the feed of events and the hub that hands them to watchers
//! - `apply`: one log entry in, one answer out
//! - `image`: this state as a file, on its way to others
//! - `install`: a whole state from outside takes the place of this one

mod alarm;
mod apply;
pub mod auth;
pub mod check;
mod error;
mod image;
mod install;
mod kv;
pub mod lease;
pub mod members;
mod quota;
mod reader;
pub mod v2;
mod v2_snapshot;
pub mod watch;

pub use apply::{Applied, ConfChanged, Config, Fatal, MemberChange, Response, State};
pub use error::Error;
pub use image::{Image, ImageError, Pieces};
pub use install::{Incoming, InstallError, Installed, LogEntry, Refusal, import_etcd_db};
pub use kv::stream::RangeStream;
pub use lease::Lessor;
pub use members::Member;
pub use reader::Reader;

/// Doors for the targets of `fuzz/`.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    /// Reads a v2 tree as a `.snap` file holds it, and writes it again.
    pub fn v2_tree(json: &[u8]) -> Option<Vec<u8>> {
        Some(crate::v2::V2::from_json(json).ok()?.image().to_json())
    }
}
