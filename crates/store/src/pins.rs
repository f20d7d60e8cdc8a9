//! Who is still reading old versions.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// A pin's number; later pins have higher ones.
pub(crate) type Ticket = u64;

/// The living pins.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: Ticket,
    revisions: BTreeMap<Ticket, i64>,
}

impl Pins {
    pub(crate) fn take(&self, at: i64) -> Ticket {
        let mut state = self.state.lock();
        let ticket = state.next;
        state.next += 1;
        state.revisions.insert(ticket, at);
        ticket
    }

    pub(crate) fn release(&self, ticket: Ticket) {
        self.state.lock().revisions.remove(&ticket);
    }

    /// Whether someone reads at a revision below `compacted`.
    pub(crate) fn any_below(&self, compacted: i64) -> bool {
        self.state.lock().revisions.values().any(|&at| at < compacted)
    }

    /// The ticket that the next pin gets.
    pub(crate) fn next(&self) -> Ticket {
        self.state.lock().next
    }

    /// Whether a pin older than `ticket` lives.
    pub(crate) fn any_before(&self, ticket: Ticket) -> bool {
        self.state.lock().revisions.first_key_value().is_some_and(|(&first, _)| first < ticket)
    }
}
