//! One member, joined together: configuration, bootstrap, the threads and the queues between them, the listeners.
//!
//! Read [`run`] first: it is a member's whole life. `consensus` and `applier` are the actors (values without clock or I/O);
//! `member`, `log_writer`, `upkeep` and `listen` are the threads and sockets around them.

mod applier;
mod bootstrap;
mod compactor;
pub mod config;
mod consensus;
mod corruption;
mod discovery;
mod dns_cluster;
mod downgrade;
mod drive;
mod flights;
pub mod host;
mod image;
mod listen;
mod log_writer;
pub mod logging;
mod member;
mod membership;
pub mod notify;
mod peers;
mod permissions;
mod proxy;
mod queue;
mod registry;
mod run;
mod security;
#[cfg(feature = "simulation")]
pub mod simulated;
mod stopwatch;
mod takeover;
mod upkeep;
mod versions;
mod waiters;

pub use bootstrap::BootError;
pub use discovery::DiscoveryError;
pub use run::{Exit, StartError, run};

pub use proto::{CLUSTER_VERSION, ETCD_VERSION};

/// An error with everything that caused it, for a log line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some errors already name their cause.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
