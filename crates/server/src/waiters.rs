//! Clients that wait for their proposal to be applied.

use std::collections::HashMap;

use api::{Answer, Outbox, Reply};
use parking_lot::Mutex;
use state::Error;

use crate::host::Answered;

/// Replies by request ID, with the time at which their client is told that it took too long.
///
/// A reply is here from before its proposal is handed to consensus until the entry is applied, the wait is given up,
/// or the member stops. Exactly one of the three answers it.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    by_id: HashMap<u64, Waiter>,
    /// Encoded size of the requests in `by_id`.
    bytes: usize,
    /// Physical compactions that were applied and whose work is not yet done.
    compactions: Vec<(Reply, Answer)>,
}

#[derive(Debug)]
struct Waiter {
    reply: Reply,
    deadline_ms: u64,
    bytes: usize,
}

/// Requests that wait may not hold more memory than this, however many clients there are and however slow the disk is.
const MAX_BYTES: usize = 512 << 20;

impl Inner {
    fn take(&mut self, id: u64) -> Option<Waiter> {
        let waiter = self.by_id.remove(&id)?;
        self.bytes -= waiter.bytes;
        Some(waiter)
    }
}

impl Waiters {
    /// Keeps the reply of a request of so many bytes; gives it back when too much waits already.
    pub(crate) fn add(&self, id: u64, reply: Reply, deadline_ms: u64, bytes: usize) -> Result<(), Reply> {
        let mut inner = self.inner.lock();
        if inner.bytes + bytes > MAX_BYTES {
            return Err(reply);
        }
        inner.bytes += bytes;
        inner.by_id.insert(id, Waiter { reply, deadline_ms, bytes });
        Ok(())
    }

    /// Takes one back, to answer it at once.
    pub(crate) fn remove(&self, id: u64) -> Option<Reply> {
        self.inner.lock().take(id).map(|w| w.reply)
    }

    /// Answers those of a batch of applied entries that wait here. The answers to requests whose time would have been over at
    /// `long_ms` take their entry's data along.
    pub(crate) fn answer(&self, batch: &mut Vec<Answered>, long_ms: u64, out: &mut Outbox) {
        if batch.is_empty() {
            return;
        }
        let mut inner = self.inner.lock();
        for Answered { id, outcome, passage, data } in batch.drain(..) {
            if let Some(waiter) = inner.take(id) {
                let entry = (waiter.deadline_ms <= long_ms).then(|| Box::new(data));
                out.push_applied(waiter.reply, outcome, passage, entry);
            }
        }
    }

    /// Keeps a physical compaction's client waiting until [`Waiters::compacted`].
    pub(crate) fn hold_compaction(&self, id: u64, answer: Answer) {
        let mut inner = self.inner.lock();
        if let Some(waiter) = inner.take(id) {
            inner.compactions.push((waiter.reply, answer));
        }
    }

    pub(crate) fn compaction_pending(&self) -> bool {
        !self.inner.lock().compactions.is_empty()
    }

    /// All compactions that were asked for have been carried out.
    pub(crate) fn compacted(&self) {
        let held = std::mem::take(&mut self.inner.lock().compactions);
        for (reply, answer) in held {
            reply.send(Ok(answer));
        }
    }

    /// Gives up on those whose time is over, for this reason; returns how many.
    pub(crate) fn expire(&self, now_ms: u64, reason: impl Fn() -> Error) -> u64 {
        let mut late = Vec::new();
        {
            let mut inner = self.inner.lock();
            if inner.by_id.values().any(|w| w.deadline_ms <= now_ms) {
                let late_ids = inner.by_id.iter().filter(|(_, w)| w.deadline_ms <= now_ms).map(|(id, _)| *id);
                // In the order in which they were asked, which is not that of a hash table.
                let mut ids: Vec<u64> = late_ids.collect();
                ids.sort_unstable();
                late.extend(ids.iter().filter_map(|id| inner.take(*id)));
            }
        }
        let count = late.len() as u64;
        for waiter in late {
            waiter.reply.send(Err(reason()));
        }
        count
    }

    pub(crate) fn len(&self) -> usize {
        self.inner.lock().by_id.len()
    }

    /// Tells everybody that the member stops.
    pub(crate) fn stop(&self) {
        let (waiting, held) = {
            let mut inner = self.inner.lock();
            inner.bytes = 0;
            (std::mem::take(&mut inner.by_id), std::mem::take(&mut inner.compactions))
        };
        // A reply that is dropped says so.
        drop((waiting, held));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::mailbox::Mailbox;
    use bytes::Bytes;

    #[test]
    fn what_waits_is_bounded_in_bytes_and_answering_makes_room() {
        let (waiters, mailbox) = (Waiters::default(), Mailbox::new());
        let half = MAX_BYTES / 2;
        for id in 1..=2 {
            waiters.add(id, Reply::new(mailbox.clone(), 0), 10, half).expect("there is room");
        }
        let refused = waiters.add(3, Reply::new(mailbox.clone(), 0), 10, half).expect_err("no room");
        let mut batch = vec![Answered { id: 1, outcome: Ok(Answer::Done), passage: None, data: Bytes::new() }];
        waiters.answer(&mut batch, 0, &mut Outbox::new());
        waiters.add(3, refused, 20, half).expect("room again");
        assert_eq!(waiters.expire(15, || Error::Timeout), 1, "the second is late, the third is not");
        assert_eq!(waiters.len(), 1);
    }
}
