//! The hand-over between two threads: a bounded queue whose consumer takes everything at once.
//!
//! Batching happens here and nowhere else: while a consumer is busy its queue grows, and its next turn takes all of
//! it. A producer makes a system call only when the consumer sleeps.

use std::collections::VecDeque;
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// A queue with one consumer.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    inner: Mutex<Inner<T>>,
    filled: Condvar,
    capacity: usize,
}

#[derive(Debug)]
struct Inner<T> {
    items: VecDeque<T>,
    sleeping: bool,
    closed: bool,
}

/// The queue is full, or its consumer is gone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PushError {
    Full,
    Closed,
}

impl<T> Queue<T> {
    /// A queue that refuses a [`Queue::try_push`] beyond `capacity` items.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            inner: Mutex::new(Inner { items: VecDeque::new(), sleeping: false, closed: false }),
            filled: Condvar::new(),
            capacity,
        }
    }

    /// Adds an item that a client asked for; refused when the queue is full.
    pub(crate) fn try_push(&self, item: T) -> Result<(), PushError> {
        let inner = self.inner.lock();
        if inner.closed {
            return Err(PushError::Closed);
        }
        if inner.items.len() >= self.capacity {
            return Err(PushError::Full);
        }
        self.add(inner, item);
        Ok(())
    }

    /// Adds an item that must not be refused: it answers something that was taken from this member's own queues before, or
    /// comes from a peer, whose messages the transport has bounded and whose sender waits for answers. Dropped when the
    /// consumer is gone.
    pub(crate) fn push(&self, item: T) {
        let inner = self.inner.lock();
        if !inner.closed {
            self.add(inner, item);
        }
    }

    fn add(&self, mut inner: MutexGuard<'_, Inner<T>>, item: T) {
        inner.items.push_back(item);
        let wake = std::mem::replace(&mut inner.sleeping, false);
        drop(inner);
        if wake {
            self.filled.notify_one();
        }
    }

    /// As [`Queue::push`], but leaves it to the caller to call [`Queue::wake`].
    pub(crate) fn push_quietly(&self, item: T) {
        let mut inner = self.inner.lock();
        if !inner.closed {
            inner.items.push_back(item);
        }
    }

    /// Wakes the consumer if there is something to take.
    pub(crate) fn wake(&self) {
        let mut inner = self.inner.lock();
        if !inner.items.is_empty() && std::mem::replace(&mut inner.sleeping, false) {
            drop(inner);
            self.filled.notify_one();
        }
    }

    /// Waits until there is something to take, or until `deadline`. Returns `false` once the queue is closed and empty.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> bool {
        self.filled_by(deadline).is_some()
    }

    /// Moves everything into `out`, waiting until `deadline` when there is nothing. Returns `false` once the queue is
    /// closed and empty.
    pub(crate) fn take_all(&self, out: &mut VecDeque<T>, deadline: Option<Instant>) -> bool {
        debug_assert!(out.is_empty());
        match self.filled_by(deadline) {
            Some(mut inner) => {
                std::mem::swap(&mut inner.items, out);
                true
            }
            None => false,
        }
    }

    fn filled_by(&self, deadline: Option<Instant>) -> Option<MutexGuard<'_, Inner<T>>> {
        let mut inner = self.inner.lock();
        while inner.items.is_empty() {
            if inner.closed {
                return None;
            }
            inner.sleeping = true;
            match deadline {
                Some(deadline) => {
                    if self.filled.wait_until(&mut inner, deadline).timed_out() {
                        inner.sleeping = false;
                        break;
                    }
                }
                None => self.filled.wait(&mut inner),
            }
        }
        Some(inner)
    }

    /// Moves everything into `out` without waiting.
    pub(crate) fn take_now(&self, out: &mut VecDeque<T>) {
        debug_assert!(out.is_empty());
        std::mem::swap(&mut self.inner.lock().items, out);
    }

    /// Moves everything into `out` if `wanted` says so of it.
    pub(crate) fn take_if(&self, out: &mut VecDeque<T>, wanted: impl FnOnce(&VecDeque<T>) -> bool) -> bool {
        debug_assert!(out.is_empty());
        let mut inner = self.inner.lock();
        let take = !inner.items.is_empty() && wanted(&inner.items);
        if take {
            std::mem::swap(&mut inner.items, out);
        }
        take
    }

    /// Whether there is nothing to take.
    pub(crate) fn is_empty(&self) -> bool {
        self.inner.lock().items.is_empty()
    }

    /// No more items; the consumer ends when it has taken what is left.
    pub(crate) fn close(&self) {
        self.inner.lock().closed = true;
        self.filled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_takes_everything_at_once_and_in_order() {
        let queue = Queue::new(3);
        for i in 0..3 {
            queue.try_push(i).expect("room");
        }
        assert_eq!(queue.try_push(3), Err(PushError::Full));
        queue.push(4);
        let mut out = VecDeque::new();
        assert!(queue.take_all(&mut out, None));
        assert_eq!(out, [0, 1, 2, 4]);
    }

    #[test]
    fn a_closed_queue_gives_what_is_left_and_then_ends() {
        let queue = Queue::new(3);
        queue.push(1);
        queue.close();
        assert_eq!(queue.try_push(2), Err(PushError::Closed));
        let mut out = VecDeque::new();
        assert!(queue.take_all(&mut out, None));
        out.clear();
        assert!(!queue.take_all(&mut out, None));
    }

    #[test]
    fn a_sleeping_consumer_is_woken() {
        let queue = Queue::new(3);
        std::thread::scope(|scope| {
            let consumer = scope.spawn(|| {
                let mut out = VecDeque::new();
                queue.take_all(&mut out, None);
                out
            });
            queue.push(7);
            assert_eq!(consumer.join().expect("consumer"), [7]);
        });
    }
}
