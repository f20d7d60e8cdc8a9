//! Answers on their way back to the thread that owns the connection.
//!
//! A request is proposed by one thread and applied by another. Waking a thread costs a system call, so it is paid per
//! batch and not per answer: a [`Mailbox`] wakes its worker only when it was empty, and an [`Outbox`] lets the apply
//! thread collect the answers of a whole batch and hand them over at once.

use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;
use state::Error;

use crate::member::Outcome;
use crate::timing::Passage;

/// Names what waits for an answer, within one worker.
pub type Ticket = u32;

/// An answer and the ticket it is for.
#[derive(Debug)]
pub struct Delivery {
    /// Who waits for it.
    pub ticket: Ticket,
    /// The answer.
    pub outcome: Outcome,
    /// What it took to get it, if it is that of a log entry.
    pub passage: Option<Passage>,
    /// The data of that entry, if it took so long that somebody may want to know.
    pub entry: Option<Box<Bytes>>,
}

impl Delivery {
    fn new(ticket: Ticket, outcome: Outcome) -> Self {
        Self { ticket, outcome, passage: None, entry: None }
    }
}

/// One worker's letter box; other threads drop answers in.
#[derive(Debug, Default)]
pub struct Mailbox {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    deliveries: Vec<Delivery>,
    /// The worker's drain task, while it sleeps.
    sleeper: Option<Waker>,
}

impl Mailbox {
    /// An empty mailbox.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Puts in whatever `deliveries` holds and leaves it empty. Wakes the worker if it sleeps.
    fn push_all(&self, deliveries: &mut Vec<Delivery>) {
        let sleeper = {
            let mut inner = self.inner.lock();
            if inner.deliveries.is_empty() {
                mem::swap(&mut inner.deliveries, deliveries);
            } else {
                inner.deliveries.append(deliveries);
            }
            inner.sleeper.take()
        };
        // Woken outside the lock, so that the worker does not wake up only to wait for it.
        if let Some(waker) = sleeper {
            waker.wake();
        }
    }

    fn push(&self, delivery: Delivery) {
        let sleeper = {
            let mut inner = self.inner.lock();
            inner.deliveries.push(delivery);
            inner.sleeper.take()
        };
        if let Some(waker) = sleeper {
            waker.wake();
        }
    }

    /// Swaps everything that has arrived into `into`, which must be empty; the two vectors take turns, so that a busy
    /// worker allocates nothing here. Registers the caller to be woken if there is nothing.
    pub fn poll_take(&self, into: &mut Vec<Delivery>, cx: &mut Context<'_>) -> Poll<()> {
        debug_assert!(into.is_empty(), "the last deliveries were not handled");
        let mut inner = self.inner.lock();
        if inner.deliveries.is_empty() {
            match &mut inner.sleeper {
                Some(waker) => waker.clone_from(cx.waker()),
                sleeper => *sleeper = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        mem::swap(&mut inner.deliveries, into);
        Poll::Ready(())
    }
}

/// The right, and the duty, to answer one request. Dropped without an answer it says [`Error::Stopped`].
#[derive(Debug)]
pub struct Reply {
    /// `None` once answered.
    mailbox: Option<Arc<Mailbox>>,
    ticket: Ticket,
}

impl Reply {
    /// A reply that is delivered to `ticket` in `mailbox`.
    pub fn new(mailbox: Arc<Mailbox>, ticket: Ticket) -> Self {
        Self { mailbox: Some(mailbox), ticket }
    }

    /// Answers now. Who has many answers at once uses an [`Outbox`].
    pub fn send(mut self, outcome: Outcome) {
        if let Some(mailbox) = self.mailbox.take() {
            mailbox.push(Delivery::new(self.ticket, outcome));
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(mailbox) = self.mailbox.take() {
            mailbox.push(Delivery::new(self.ticket, Err(Error::Stopped)));
        }
    }
}

/// Answers collected by one thread, handed over by [`Outbox::flush`] with one wake-up per worker.
#[derive(Debug, Default)]
pub struct Outbox {
    /// One entry per worker met so far: there are as many as cores, so a list is searched faster than a map.
    boxes: Vec<(Arc<Mailbox>, Vec<Delivery>)>,
}

impl Outbox {
    /// An empty outbox.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an answer; it is not seen before [`Outbox::flush`].
    pub fn push(&mut self, reply: Reply, outcome: Outcome) {
        self.push_applied(reply, outcome, None, None);
    }

    /// Adds the answer of a log entry; see [`Delivery`].
    pub fn push_applied(
        &mut self,
        mut reply: Reply,
        outcome: Outcome,
        passage: Option<Passage>,
        entry: Option<Box<Bytes>>,
    ) {
        let Some(mailbox) = reply.mailbox.take() else { return };
        let delivery = Delivery { ticket: reply.ticket, outcome, passage, entry };
        match self.boxes.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &mailbox)) {
            Some((_, waiting)) => waiting.push(delivery),
            None => self.boxes.push((mailbox, vec![delivery])),
        }
    }

    /// Hands over what was collected.
    pub fn flush(&mut self) {
        for (mailbox, waiting) in &mut self.boxes {
            if !waiting.is_empty() {
                mailbox.push_all(waiting);
            }
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::Answer;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Wakes(AtomicUsize);
    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn sleep_on(mailbox: &Mailbox, wakes: &Arc<Wakes>) -> Vec<Delivery> {
        let waker = Waker::from(wakes.clone());
        let mut taken = Vec::new();
        let _ = mailbox.poll_take(&mut taken, &mut Context::from_waker(&waker));
        taken
    }

    #[test]
    fn many_answers_wake_a_sleeping_worker_once() {
        let (mailbox, wakes) = (Mailbox::new(), Arc::new(Wakes::default()));
        assert!(sleep_on(&mailbox, &wakes).is_empty());
        for ticket in 0..10 {
            Reply::new(mailbox.clone(), ticket).send(Ok(Answer::Done));
        }
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        let tickets: Vec<_> = sleep_on(&mailbox, &wakes).iter().map(|d| d.ticket).collect();
        assert_eq!(tickets, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn an_outbox_keeps_quiet_until_it_is_flushed() {
        let (mailbox, wakes) = (Mailbox::new(), Arc::new(Wakes::default()));
        assert!(sleep_on(&mailbox, &wakes).is_empty());
        let mut outbox = Outbox::new();
        outbox.push(Reply::new(mailbox.clone(), 7), Ok(Answer::Done));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
        outbox.flush();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(sleep_on(&mailbox, &wakes).len(), 1);
    }

    #[test]
    fn a_reply_dropped_unsent_says_that_the_server_stopped() {
        let (mailbox, wakes) = (Mailbox::new(), Arc::new(Wakes::default()));
        drop(Reply::new(mailbox.clone(), 3));
        let taken = sleep_on(&mailbox, &wakes);
        assert!(matches!(taken[..], [Delivery { ticket: 3, outcome: Err(Error::Stopped), .. }]));
    }
}
