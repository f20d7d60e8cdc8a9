//! Clients at work, and the judge of what they saw.
//!
//! Writers write keys of their own and remember what they were told, readers and watchers remember what they were
//! shown; [`History`] then reads back what the store has really done and holds all of it against that.

mod history;
mod reader;
mod watcher;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

pub use history::{Counted, History};
pub use reader::{Read, read};
pub use watcher::{View, Watcher};
pub use writer::{Attempt, LEASE, Writer, any_key};

/// The highest revision that any client was told to be done. Whatever is asked for from now on must come after it.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged(Arc<AtomicI64>);

impl Acknowledged {
    /// What has been acknowledged until now.
    pub fn revision(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }

    /// A client was told that `revision` is done.
    pub fn reached(&self, revision: i64) {
        self.0.fetch_max(revision, Ordering::SeqCst);
    }
}
