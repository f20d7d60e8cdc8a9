//! When batches of entries were given to the log, and when they were synced: what requests are told of their way.
//!
//! Noted by the raft actor once per batch; nothing is decided by it.

use std::collections::VecDeque;
use std::time::Instant;

use wal::Entry;

use crate::consensus::LogBatch;

/// Batches that are remembered. Without a quorum they pile up, and nobody asks for the oldest by then.
const MOST: usize = 1024;

/// One batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    /// As the log counts batches.
    number: u64,
    /// Its entries end here.
    pub(crate) last: u64,
    /// Given to the log's thread.
    pub(crate) given: Instant,
    /// Synced, as far as that is known.
    pub(crate) synced: Option<Instant>,
}

/// The batches that are on their way, in the order of their entries.
#[derive(Debug, Default)]
pub(crate) struct Flights(VecDeque<Flight>);

/// The batches that committed entries came with.
#[derive(Debug, Default)]
pub(crate) struct Landed {
    /// In order; the first may have begun before the entries, the last may end behind them.
    pub(crate) flights: Vec<Flight>,
    /// When the entries were known to be committed.
    pub(crate) committed: Option<Instant>,
}

impl Flights {
    /// A batch is given to the log.
    pub(crate) fn begin(&mut self, batch: &LogBatch) {
        let (Some(first), Some(last)) = (batch.entries.first(), batch.entries.last()) else { return };
        // A new leader may write other entries in the place of those that were never committed.
        while self.0.back().is_some_and(|flight| flight.last >= first.index) {
            self.0.pop_back();
        }
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(Flight { number: batch.number, last: last.index, given: Instant::now(), synced: None });
    }

    /// Batches up to this number are synced.
    pub(crate) fn synced(&mut self, number: u64) {
        let now = Instant::now();
        for flight in self.0.iter_mut().take_while(|flight| flight.number <= number) {
            flight.synced.get_or_insert(now);
        }
    }

    /// These entries are committed.
    pub(crate) fn committed(&mut self, entries: &[Entry]) -> Landed {
        let mut landed = Landed { flights: Vec::new(), committed: Some(Instant::now()) };
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return landed };
        while let Some(flight) = self.0.front() {
            if flight.last >= first.index {
                landed.flights.push(*flight);
            }
            if flight.last > last.index {
                break;
            }
            self.0.pop_front();
        }
        landed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(indexes: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
        let entry = |index| Entry { term: 1, index, kind: wal::EntryKind::Normal, data: bytes::Bytes::new() };
        indexes.map(entry).collect()
    }

    fn batch(number: u64, indexes: std::ops::RangeInclusive<u64>) -> LogBatch {
        LogBatch { number, entries: entries(indexes), ..LogBatch::default() }
    }

    fn lasts(landed: &Landed) -> Vec<u64> {
        landed.flights.iter().map(|flight| flight.last).collect()
    }

    #[test]
    fn committed_entries_find_the_batches_that_they_came_with() {
        let mut flights = Flights::default();
        flights.begin(&batch(1, 1..=3));
        flights.begin(&batch(2, 4..=6));
        flights.begin(&batch(3, 7..=9));
        flights.synced(2);
        let landed = flights.committed(&entries(1..=5));
        assert_eq!(lasts(&landed), [3, 6]);
        assert!(landed.flights.iter().all(|flight| flight.synced.is_some()));
        let landed = flights.committed(&entries(6..=7));
        assert_eq!(lasts(&landed), [6, 9], "the second batch was only half committed before");
        assert!(landed.flights[1].synced.is_none());
        assert_eq!(lasts(&flights.committed(&entries(8..=9))), [9]);
        assert!(flights.0.is_empty());
    }

    #[test]
    fn entries_that_another_leader_overwrites_are_forgotten() {
        let mut flights = Flights::default();
        flights.begin(&batch(1, 1..=3));
        flights.begin(&batch(2, 4..=6));
        flights.begin(&batch(3, 4..=4));
        assert_eq!(lasts(&flights.committed(&entries(1..=4))), [3, 4]);
    }

    #[test]
    fn what_never_lands_is_bounded() {
        let mut flights = Flights::default();
        for number in 1..=MOST as u64 + 5 {
            flights.begin(&batch(number, number..=number));
        }
        assert_eq!(flights.0.len(), MOST);
    }
}
