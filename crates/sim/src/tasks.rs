//! The tasks of one member: what production gives to tokio.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;
use peer::BoxFuture;

/// Whether a task has been woken since it was last polled.
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tasks in the order in which they were begun.
#[derive(Default)]
pub struct Tasks {
    running: BTreeMap<u64, (BoxFuture<()>, Arc<Flag>)>,
    next: u64,
}

impl Tasks {
    /// Begins a task; it is polled at the next [`Tasks::run`].
    pub fn begin(&mut self, task: BoxFuture<()>) {
        self.running.insert(self.next, (task, Arc::new(Flag(AtomicBool::new(true)))));
        self.next += 1;
    }

    /// Polls each task that was woken, once. Answers whether there was one.
    pub fn run(&mut self) -> bool {
        let woken: Vec<u64> = self
            .running
            .iter()
            .filter(|(_, (_, flag))| flag.0.swap(false, Ordering::Relaxed))
            .map(|(id, _)| *id)
            .collect();
        for id in &woken {
            let Some((task, flag)) = self.running.get_mut(id) else { continue };
            let waker = Waker::from(Arc::clone(flag));
            if task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                self.running.remove(id);
            }
        }
        !woken.is_empty()
    }
}

/// Something that one part of the world gives to a task of another.
#[derive(Debug)]
pub struct Slot<T>(Arc<Mutex<Inner<T>>>);

#[derive(Debug)]
struct Inner<T> {
    value: Option<T>,
    waiter: Option<Waker>,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Inner { value: None, waiter: None })))
    }
}

impl<T> Slot<T> {
    /// Puts it in. Only the first time counts.
    pub fn fill(&self, value: T) {
        let mut inner = self.0.lock();
        if inner.value.is_none() {
            inner.value = Some(value);
        }
        if let Some(waiter) = inner.waiter.take() {
            waiter.wake();
        }
    }

    /// Waits for it.
    pub async fn take(&self) -> T {
        std::future::poll_fn(|cx| {
            let mut inner = self.0.lock();
            match inner.value.take() {
                Some(value) => Poll::Ready(value),
                None => {
                    inner.waiter = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}
