//! The newest revisions with their events, shared by the applying side and all hubs.
//!
//! # Invariants
//! - The feed's last revision and the store's are the same to anybody who holds the feed's lock: both advance in one
//!   step. A hub that has seen the feed up to R has thus seen everything that a reader at R sees.
//! - All revisions held belong to the same content of the store, of which the feed has a view.
//! - The revisions held are contiguous. What no longer fits is found in the store.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use store::Store;

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
    /// A view of the content that these revisions are in.
    store: Store,
    max_bytes: usize,
    max_revisions: usize,
}

impl Ring {
    /// The oldest revision held, or the next one to come.
    fn first(&self) -> i64 {
        self.tail + 1 - self.batches.len() as i64
    }
}

/// What a hub finds in the feed.
#[derive(Debug)]
pub(crate) struct Read {
    /// `None` if the first revision asked for is no longer held.
    pub(crate) batches: Option<Vec<Arc<Batch>>>,
    /// The newest revision.
    pub(crate) tail: i64,
    /// A view of the content that these revisions are in.
    pub(crate) store: Store,
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
    /// Begins after the store's newest revision, with nothing held.
    pub(crate) fn new(store: &Store) -> Self {
        let store = store.view();
        let ring = Ring {
            batches: VecDeque::new(),
            bytes: 0,
            tail: store.revision(),
            store,
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
        self.wake();
        revision
    }

    /// Goes on after a jump: `switch` replaces the store's content and gives a view of the new one. Nothing is held
    /// then, so whoever is behind the jump finds what it needs in the store.
    pub(crate) fn restart(&self, switch: impl FnOnce() -> Store) {
        let dropped = {
            let ring = &mut *self.0.ring.write();
            let store = switch();
            assert!(store.revision() >= ring.tail, "revision {} after {}", store.revision(), ring.tail);
            ring.tail = store.revision();
            ring.bytes = 0;
            (std::mem::take(&mut ring.batches), std::mem::replace(&mut ring.store, store))
        };
        drop(dropped); // after the lock is given back
        self.wake();
    }

    fn wake(&self) {
        // A hub arms itself and then looks at the ring; we wrote the ring before we look whether it is armed. The lock
        // in between orders the two, so one of us sees the other.
        for subscriber in self.0.subscribers.read().iter() {
            if subscriber.armed.load(Ordering::SeqCst) && subscriber.armed.swap(false, Ordering::SeqCst) {
                (subscriber.wake)();
            }
        }
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

    /// The revisions `from..=to`, at most `max` of them and about `max_events` events.
    pub(crate) fn read(&self, from: i64, to: i64, max: usize, max_events: usize) -> Read {
        let ring = self.0.ring.read();
        let (first, tail, store) = (ring.first(), ring.tail, ring.store.clone());
        if from < first {
            return Read { batches: None, tail, store };
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
        Read { batches: Some(batches), tail, store }
    }
}
