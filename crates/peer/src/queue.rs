//! Messages that wait for a connection. Used on the peer thread only.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::Instant;

use prost::Message as _;
use proto::raftpb::Message;

/// A queue that is bounded in messages and in their encoded bytes.
#[derive(Debug, Default)]
pub(crate) struct MessageQueue {
    /// With their encoded length, and since when they wait.
    messages: RefCell<VecDeque<(usize, Instant, Message)>>,
    bytes: Cell<usize>,
}

impl MessageQueue {
    /// Adds a message. Gives false, and drops it, if that would exceed a bound; but however large, one message always
    /// fits.
    #[must_use]
    pub(crate) fn push(&self, message: Message, max_messages: usize, max_bytes: usize) -> bool {
        let mut messages = self.messages.borrow_mut();
        let length = message.encoded_len();
        let bytes = self.bytes.get() + length;
        if messages.len() >= max_messages || !messages.is_empty() && bytes > max_bytes {
            return false;
        }
        self.bytes.set(bytes);
        messages.push_back((length, Instant::now(), message));
        true
    }

    /// Takes the oldest, and tells since when it waited.
    pub(crate) fn pop(&self) -> Option<(Message, Instant)> {
        let (length, since, message) = self.messages.borrow_mut().pop_front()?;
        self.bytes.set(self.bytes.get() - length);
        Some((message, since))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.borrow().is_empty()
    }

    /// Takes everything from another queue, in place of what is in here.
    pub(crate) fn inherit(&self, other: &Self) {
        self.messages.replace(other.messages.take());
        self.bytes.set(other.bytes.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_length(length: usize) -> Message {
        let message = Message { context: Some(vec![0; length - 2].into()), ..Message::default() };
        assert_eq!(message.encoded_len(), length);
        message
    }

    #[test]
    fn both_bounds_hold_and_one_message_always_fits() {
        let queue = MessageQueue::default();
        assert!(queue.push(of_length(120), 3, 100));
        assert!(!queue.push(of_length(10), 3, 100));
        assert!(queue.pop().is_some() && queue.is_empty());
        for _ in 0..3 {
            assert!(queue.push(of_length(10), 3, 100));
        }
        assert!(!queue.push(of_length(10), 3, 100), "three messages");
        assert!(queue.pop().is_some());
        assert!(!queue.push(of_length(81), 3, 100), "more than a hundred bytes");
        assert!(queue.push(of_length(80), 3, 100));
    }
}
