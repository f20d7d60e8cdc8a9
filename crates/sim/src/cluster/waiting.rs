//! Clients that wait for what happens in the v2 tree: one change at a time, on one member after the other.

use std::task::{Context, Poll, Waker};

use state::v2::{Code, Watch};

use super::Cluster;
use crate::agenda::{Event, Happening};
use crate::ledger::{Violation, violation};
use crate::v2::parsed;

/// How long a client waits in one place, in microseconds.
const PATIENCE_US: u64 = 4_000_000;

/// A client that waits.
#[derive(Clone, Debug)]
pub(super) struct Waiter {
    path: String,
    recursive: bool,
    /// The first index that it has not been told about; 0 = from now on.
    since: u64,
    /// Which of its requests this is: answers to others come too late.
    request: u64,
}

/// A request of such a client, on a member.
pub(super) struct Wait {
    client: usize,
    request: u64,
    since: u64,
    watch: Watch,
}

/// What a client that waits is told.
#[derive(Debug)]
pub struct Told {
    /// Since when its member has looked.
    since: u64,
    /// The member's newest index when it began to wait there.
    start: u64,
    /// What has happened; `None`: too much, the member does not remember all of it.
    line: Option<Vec<u8>>,
}

impl Waiter {
    pub(super) fn new((path, recursive): (String, bool)) -> Self {
        Self { path, recursive, since: 0, request: 0 }
    }
}

impl Cluster {
    /// A client asks any member to tell it what happens next.
    pub(super) fn wait(&mut self, client: usize) {
        let at = self.any_machine();
        let waiter = &mut self.waiters[client];
        waiter.request += 1;
        let request = waiter.request;
        let way = self.random.around(200);
        self.plan(at, way, Happening::Wait { client, request });
        let patience = self.random.around(PATIENCE_US);
        self.later(patience, Event::WaitOver(client, request));
    }

    /// A client has waited long enough in one place.
    pub(super) fn wait_is_over(&mut self, client: usize, request: u64) {
        if self.waiters[client].request == request {
            self.wait(client);
        }
    }

    pub(super) fn wait_arrives(&mut self, at: usize, client: usize, request: u64) -> Result<(), Violation> {
        let waiter = self.waiters[client].clone();
        let Some(running) = self.seats[at].running.as_mut().filter(|_| waiter.request == request) else {
            return Ok(());
        };
        match running.api.state().v2().watch(&waiter.path, waiter.recursive, false, waiter.since) {
            Ok(watch) => {
                let since = if waiter.since == 0 { watch.start_index + 1 } else { waiter.since };
                running.waits.push(Wait { client, request, since, watch });
            }
            Err(error) if error.code == Code::EventIndexCleared && self.ledger.v2.is_cleared(waiter.since) => {
                let way = self.random.around(200);
                self.later(way, Event::Waited(client, request, Told { since: waiter.since, start: 0, line: None }));
            }
            Err(error) => return violation!("{waiter:?} was refused: {error}"),
        }
        Ok(())
    }

    /// Passes on what has happened to those who wait for it.
    pub(super) fn tell_waiters(&mut self, at: usize) {
        let Some(running) = &mut self.seats[at].running else { return };
        let mut context = Context::from_waker(Waker::noop());
        let mut told = Vec::new();
        running.waits.retain_mut(|wait| match wait.watch.poll_next(&mut context) {
            Poll::Pending => self.waiters[wait.client].request == wait.request,
            Poll::Ready(event) => {
                let line = event.map(|event| event.line().to_vec());
                told.push((wait.client, wait.request, Told { since: wait.since, start: wait.watch.start_index, line }));
                false
            }
        });
        if self.seats[at].disk.is_off() {
            return;
        }
        for (client, request, told) in told {
            let way = self.random.around(200);
            self.later(way, Event::Waited(client, request, told));
        }
    }

    /// A client is told what has happened.
    pub(super) fn waited(&mut self, client: usize, request: u64, told: Told) -> Result<(), Violation> {
        let waiter = &mut self.waiters[client];
        if waiter.request != request {
            return Ok(());
        }
        self.trace.say(self.now_us, format_args!("waiter {client} since {}: {:?}", told.since, told.line.is_some()));
        self.tally.watched += 1;
        waiter.since = match told.line {
            Some(line) => {
                1 + self.ledger.v2.waited(&waiter.path, waiter.recursive, told.since, told.start, &parsed(&line))?
            }
            None if self.ledger.v2.is_cleared(told.since) => 0,
            None => return violation!("{waiter:?}: the member remembers too little"),
        };
        // When there is to be quiet, it hurries to catch up.
        let wait = self.random.around(if self.asking { 50_000 } else { 1_000 });
        waiter.request += 1;
        let request = waiter.request;
        self.later(wait, Event::WaitOver(client, request));
        Ok(())
    }

    /// Whether nobody waits for something that has happened.
    pub(super) fn waiters_are_told(&self) -> bool {
        self.waiters_to_tell().next().is_none()
    }

    /// Those who wait for something that has happened.
    pub(super) fn waiters_to_tell(&self) -> impl Iterator<Item = &Waiter> {
        let concerns = |waiter: &Waiter| self.ledger.v2.concerns(&waiter.path, waiter.recursive, waiter.since);
        self.waiters.iter().filter(move |waiter| waiter.since != 0 && concerns(waiter))
    }
}
