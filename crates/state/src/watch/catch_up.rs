//! What one watcher wants, and how it catches up with the present in slices.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use proto::mvccpb::KeyValue;
use store::{Change, KeyRange, Location, Pin, RangeEnd, Store, StoreError};

use super::event::{self, Event, frame};
use super::feed::Batch;

/// Changes that are looked up in the store at once for one watcher.
const LOOKED_UP: usize = 8_192;
/// Revisions that are searched for them. The store walks through its log for a range, so a range in which little
/// happens would otherwise hold its worker up for as long as the log is.
const SEARCHED: i64 = if cfg!(test) { 7 } else { 4_096 };
/// How many searched revisions weigh as much as a change.
const SEARCHED_PER_COST: usize = 8;
/// Changes whose bytes are read together.
const PIECE: usize = 64;
/// About how many revisions, and bytes, a slice holds at most. etcd's batches hold no more than 1000 revisions.
const SLICE_REVISIONS: usize = 900;
const SLICE_BYTES: usize = 1 << 20;

/// What one watcher wants to see.
#[derive(Clone, Debug)]
pub(super) struct Interest {
    pub(super) range: KeyRange,
    pub(super) no_put: bool,
    pub(super) no_delete: bool,
    pub(super) prev_kv: bool,
}

impl Interest {
    /// Whether it takes this kind of change; the key is another matter.
    pub(super) fn takes(&self, deleted: bool) -> bool {
        mutant::on(mutant::FilterIgnored) || if deleted { !self.no_delete } else { !self.no_put }
    }

    /// The event as this watcher wants to see it.
    pub(super) fn framed(&self, event: &Event, store: &Store) -> Result<Bytes, StoreError> {
        if self.prev_kv { event.framed_with_previous(store) } else { Ok(event.framed()) }
    }
}

/// Events up to a revision, none of it missing.
#[derive(Debug)]
pub(super) struct Slice {
    pub(super) events: Vec<Bytes>,
    /// The last revision it covers, whether or not there was an event in it.
    pub(super) through: i64,
    /// How many changes were looked at.
    pub(super) cost: usize,
}

/// A slice out of revisions that the feed still holds.
pub(super) fn slice_of_feed(
    interest: &Interest,
    from: i64,
    batches: &[Arc<Batch>],
    store: &Store,
) -> Result<Slice, StoreError> {
    let mut slice = Slice { events: Vec::new(), through: from - 1, cost: 0 };
    let mut bytes = 0;
    for batch in batches {
        slice.cost += batch.events.len();
        for event in &batch.events {
            if interest.takes(event.deleted) && interest.range.contains(event.key()) {
                let framed = interest.framed(event, store)?;
                bytes += framed.len();
                slice.events.push(framed);
            }
        }
        slice.through = batch.revision;
        if bytes >= SLICE_BYTES {
            break;
        }
    }
    Ok(slice)
}

/// Changes found in the store's index that have not been sent yet. They stay readable while this lives, at the cost of
/// holding compaction up.
#[derive(Debug)]
pub(super) struct History {
    changes: VecDeque<Change>,
    /// The last revision that was looked up.
    through: i64,
    /// What looking up has cost, not yet counted.
    cost: usize,
    pin: Pin,
}

impl History {
    /// Looks up changes of `from..=to`, or as far as one turn goes; [`StoreError::Compacted`] if the first of them may be
    /// gone.
    pub(super) fn look_up(interest: &Interest, from: i64, to: i64, store: &Store) -> Result<Self, StoreError> {
        // A single key's changes are in the index.
        let to = if interest.range.end == RangeEnd::Single { to } else { to.min(from + SEARCHED - 1) };
        let pin = store.pin(from);
        let store = pin.store();
        if from < store.compact_revision() {
            return Err(StoreError::Compacted);
        }
        let (changes, more) = store.changes(&interest.range, from, to, LOOKED_UP)?;
        let through = match changes.last() {
            Some(last) if more => last.revision.main,
            _ => to,
        };
        let cost = 1 + (through - from).clamp(0, SEARCHED) as usize / SEARCHED_PER_COST;
        Ok(Self { changes: changes.into(), through, cost, pin })
    }

    /// How many changes are held.
    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    /// The next slice: whole revisions only.
    pub(super) fn slice(&mut self, interest: &Interest) -> Result<Slice, StoreError> {
        let cost = std::mem::take(&mut self.cost);
        let mut slice = Slice { events: Vec::new(), through: self.through, cost };
        let (mut revisions, mut bytes) = (0, 0);
        while bytes < SLICE_BYTES && revisions < SLICE_REVISIONS && !self.changes.is_empty() {
            let piece = self.take_piece(&mut revisions);
            slice.cost += piece.len();
            let is_lost = |change: &Change| change.deleted && mutant::on(mutant::CatchUpLosesDeletes);
            let wanted: Vec<_> =
                piece.iter().filter(|change| interest.takes(change.deleted) && !is_lost(change)).collect();
            let locations: Vec<Location> = wanted.iter().map(|change| change.location).collect();
            let mut payloads = Vec::with_capacity(wanted.len());
            self.pin.store().read_many(&locations, &mut |payload| payloads.push(payload))?;
            for (change, payload) in wanted.iter().zip(&payloads) {
                let framed = framed(interest, change, payload, self.pin.store())?;
                bytes += framed.len();
                slice.events.push(framed);
            }
            slice.through = match self.changes.front() {
                Some(_) => piece.last().map_or(self.through, |last| last.revision.main),
                None => self.through,
            };
        }
        Ok(slice)
    }

    /// Some changes from the front, up to the end of a revision.
    fn take_piece(&mut self, revisions: &mut usize) -> Vec<Change> {
        let mut piece: Vec<Change> = Vec::with_capacity(PIECE);
        while let Some(next) = self.changes.front() {
            let continues = piece.last().is_some_and(|last| last.revision.main == next.revision.main);
            if !continues {
                if piece.len() >= PIECE {
                    break;
                }
                *revisions += 1;
            }
            piece.extend(self.changes.pop_front());
        }
        piece
    }
}

fn framed(interest: &Interest, change: &Change, payload: &Bytes, store: &Store) -> Result<Bytes, StoreError> {
    let deleted_at = change.deleted.then_some(change.revision.main);
    if !interest.prev_kv {
        return Ok(frame(payload, deleted_at, None));
    }
    let pair = KeyValue::decode(payload.clone()).map_err(|error| StoreError::Corrupt {
        file: "store".into(),
        offset: 0,
        what: format!("the pair of revision {} does not decode: {error}", change.revision.main),
    })?;
    let created = !change.deleted && pair.version == 1;
    let previous = if created { None } else { event::previous(store, &pair.key, change.revision.main)? };
    Ok(frame(payload, deleted_at, previous.as_deref()))
}
