//! Times the entries of a batch while they are applied, and tells of those that take too long.

use std::time::{Duration, Instant};

use api::load::{self, By};
use api::loggable::LoggableEntry;
use api::{Metrics, Passage};
use bytes::Bytes;
use prost::Message;
use state::{Error, Response};

use crate::flights::{Flight, Landed};

/// Looks at the clock once per entry: the end of one is the beginning of the next.
pub(crate) struct Stopwatch<'a> {
    metrics: &'a Metrics,
    expected: Duration,
    /// The batches that the entries came with, without those that are done.
    flights: &'a [Flight],
    committed: Option<Instant>,
    begun: Instant,
}

impl<'a> Stopwatch<'a> {
    /// What takes longer than `expected` is logged.
    pub(crate) fn start(metrics: &'a Metrics, expected: Duration, landed: &'a Landed) -> Self {
        Self { metrics, expected, flights: &landed.flights, committed: landed.committed, begun: Instant::now() }
    }

    /// The entry at this index was applied. Entries come in order.
    pub(crate) fn applied(&mut self, index: u64, data: &Bytes, result: &Result<Response, Error>) -> Option<Passage> {
        let applied = Instant::now();
        let apply = applied.saturating_duration_since(self.begun);
        let passage = self.passage(index, apply, applied);
        self.begun = applied;
        self.metrics.applies.observe(data, result.is_ok(), apply);
        let quanta = self.metrics.applying.add(apply);
        if quanta > 0
            && let Some(key) = load::key_of_entry(data)
        {
            self.metrics.load.spent(quanta, &[(By::Prefix, &load::prefix(&key))], applied);
        }
        // A new leader's empty entry is nobody's request.
        if apply > self.expected && !data.is_empty() {
            self.metrics.slow_apply_total.inc();
            tell(apply, self.expected, data, result, passage);
        }
        passage
    }

    fn passage(&mut self, index: u64, apply: Duration, applied: Instant) -> Option<Passage> {
        while self.flights.first().is_some_and(|flight| flight.last < index) {
            self.flights = &self.flights[1..];
        }
        let flight = self.flights.first()?;
        let committed = self.committed?;
        let synced = flight.synced.unwrap_or(committed);
        Some(Passage {
            fsync: synced.saturating_duration_since(flight.given),
            replicate: committed.saturating_duration_since(synced),
            wait: self.begun.saturating_duration_since(committed),
            apply,
            applied,
        })
    }
}

fn tell(took: Duration, expected: Duration, data: &Bytes, result: &Result<Response, Error>, passage: Option<Passage>) {
    let response = match result {
        Ok(response) => size(response).map_or_else(String::new, |size| format!("size:{size}")),
        Err(_) => String::new(),
    };
    tracing::warn!(
        took = ?took,
        "expected-duration" = ?expected,
        prefix = "",
        request = %LoggableEntry(data),
        response,
        error = result.as_ref().err().map(tracing::field::display),
        fsync = passage.map(|passage| tracing::field::debug(passage.fsync)),
        replicate = passage.map(|passage| tracing::field::debug(passage.replicate)),
        wait = passage.map(|passage| tracing::field::debug(passage.wait)),
        "apply request took too long"
    );
}

/// Encoded; of the v2 API's answers etcd tells none, and of those about users none is told here.
fn size(response: &Response) -> Option<usize> {
    Some(match response {
        Response::Put(response) => response.encoded_len(),
        Response::DeleteRange(response) => response.encoded_len(),
        Response::Txn(response) => response.encoded_len(),
        Response::Range(response) => response.encoded_len(),
        Response::Compact { response, .. } => response.encoded_len(),
        Response::LeaseGrant(response) => response.encoded_len(),
        Response::LeaseRevoke(response) => response.encoded_len(),
        Response::LeaseCheckpoint(response) => response.encoded_len(),
        Response::Alarm(response) => response.encoded_len(),
        Response::Auth(_) | Response::V2(_) | Response::None => return None,
    })
}
