//! The newest revisions with their events, shared by the applying side and all hubs.
//!
//! # Invariants
//! - The feed's last revision and the store's are the same to anybody who holds the feed's lock: both advance in one
//!   step. A hub that has seen the feed up to R has thus seen everything that a reader at R sees.
//! - The revisions held are contiguous. What no longer fits is found in the store.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::event::Event;

/// How much is held: enough for a hub that is polled every few milliseconds never to need the store.
const MAX_BYTES: usize = 32 << 20;
const MAX_REVISIONS: usize = 32 << 10;

/// The newest events, shared by all hubs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Feed(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    ring: RwLock<Ring>,
    subscribers: RwLock<Vec<Arc<Subscriber>>>,
}

#[derive(Debug)]
struct Ring {
    /// Oldest first, one per revision, the last one at `tail`.
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
    /// The newest revision.
    tail: i64,
    max_bytes: usize,
    max_revisions: usize,
}

impl Ring {
    /// The oldest revision held, or the next one to come.
    fn first(&self) -> i64 {
        self.tail + 1 - self.batches.len() as i64
    }
}

/// The events of one revision.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) revision: i64,
    pub(crate) events: Vec<Event>,
    bytes: usize,
}

struct Subscriber {
    armed: AtomicBool,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Subscriber").field("armed", &self.armed).finish_non_exhaustive()
    }
}

/// A wish to be woken, which ends when it is dropped.
#[derive(Debug)]
pub struct Subscription {
    feed: Feed,
    subscriber: Arc<Subscriber>,
}

impl Subscription {
    /// Asks for one wake-up at the next publish. Look at the feed again afterwards: what was published just before
    /// does not count.
    pub fn arm(&self) {
        self.subscriber.armed.store(true, Ordering::SeqCst);
    }

    /// Takes that back.
    pub fn disarm(&self) {
        self.subscriber.armed.store(false, Ordering::SeqCst);
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.feed.0.subscribers.write().retain(|other| !Arc::ptr_eq(other, &self.subscriber));
    }
}

impl Feed {
    /// Begins after `revision`, with nothing held.
    pub(crate) fn new(revision: i64) -> Self {
        let ring = Ring {
            batches: VecDeque::new(),
            bytes: 0,
            tail: revision,
            max_bytes: MAX_BYTES,
            max_revisions: MAX_REVISIONS,
        };
        let ring = RwLock::new(ring);
        Self(Arc::new(Shared { ring, subscribers: RwLock::default() }))
    }

    /// Holds less than usual from now on.
    #[cfg(test)]
    pub(crate) fn limit(&self, max_bytes: usize, max_revisions: usize) {
        let ring = &mut *self.0.ring.write();
        (ring.max_bytes, ring.max_revisions) = (max_bytes, max_revisions);
    }

    /// Publishes one revision: `commit` makes it visible in the store and says which it is.
    pub(crate) fn publish(&self, events: Vec<Event>, commit: impl FnOnce() -> i64) -> i64 {
        let bytes = events.iter().map(Event::size).sum();
        let mut dropped = Vec::new(); // freed after the lock is given back
        let revision = {
            let ring = &mut *self.0.ring.write();
            let revision = commit();
            assert_eq!(revision, ring.tail + 1, "revisions are published one by one");
            ring.tail = revision;
            ring.bytes += bytes;
            ring.batches.push_back(Arc::new(Batch { revision, events, bytes }));
            while ring.batches.len() > 1 && (ring.bytes > ring.max_bytes || ring.batches.len() > ring.max_revisions) {
                let Some(batch) = ring.batches.pop_front() else { break };
                ring.bytes -= batch.bytes;
                dropped.push(batch);
            }
            revision
        };
        // A hub arms itself and then looks at the ring; we wrote the ring before we look whether it is armed. The lock
        // in between orders the two, so one of us sees the other.
        for subscriber in self.0.subscribers.read().iter() {
            if subscriber.armed.load(Ordering::SeqCst) && subscriber.armed.swap(false, Ordering::SeqCst) {
                (subscriber.wake)();
            }
        }
        revision
    }

    /// The newest revision.
    pub fn tail(&self) -> i64 {
        self.0.ring.read().tail
    }

    /// Calls `wake` (on the applying thread; it must only wake) after a publish for which the subscription was armed.
    pub fn subscribe(&self, wake: Arc<dyn Fn() + Send + Sync>) -> Subscription {
        let subscriber = Arc::new(Subscriber { armed: AtomicBool::new(false), wake });
        self.0.subscribers.write().push(subscriber.clone());
        Subscription { feed: self.clone(), subscriber }
    }

    /// The revisions `from..=to`, at most `max` of them and about `max_events` events; `None` if `from` is no longer
    /// held. Second value: the newest revision.
    pub(crate) fn read(&self, from: i64, to: i64, max: usize, max_events: usize) -> (Option<Vec<Arc<Batch>>>, i64) {
        let ring = self.0.ring.read();
        let first = ring.first();
        if from < first {
            return (None, ring.tail);
        }
        let mut batches = Vec::new();
        let mut events = 0;
        let skip = usize::try_from(from - first).unwrap_or(usize::MAX);
        for batch in ring.batches.iter().skip(skip).take(max) {
            if batch.revision > to || events >= max_events {
                break;
            }
            events += batch.events.len();
            batches.push(batch.clone());
        }
        (Some(batches), ring.tail)
    }
}
