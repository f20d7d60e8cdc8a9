//! The newest versions, in memory: what has just been written is what is read, watched and flushed next.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::segment::Position;
use crate::{Location, Revision};

/// A version in memory.
#[derive(Clone, Debug)]
pub(crate) struct Recent {
    pub revision: Revision,
    pub deleted: bool,
    pub location: Location,
    pub payload: Bytes,
}

impl Recent {
    fn position(&self) -> Position {
        Position { segment: self.location.segment, offset: self.location.offset }
    }

    fn cost(&self) -> usize {
        self.payload.len() + size_of::<Self>()
    }
}

/// Versions in the order of the log. Those not yet in a file are always here.
#[derive(Debug)]
pub(crate) struct RecentVersions {
    versions: VecDeque<Recent>,
    cost: usize,
    limit: usize,
    /// Every version above this revision is here.
    complete_above: i64,
}

impl RecentVersions {
    pub(crate) fn new(limit: usize, revision: i64) -> Self {
        Self { versions: VecDeque::new(), cost: 0, limit, complete_above: revision }
    }

    pub(crate) fn push(&mut self, version: Recent) {
        self.cost += version.cost();
        self.versions.push_back(version);
    }

    /// Forgets the oldest ones beyond the limit, but none at or behind `written`.
    pub(crate) fn trim(&mut self, written: Position) {
        while self.cost > self.limit {
            if self.versions.front().is_none_or(|oldest| oldest.position() >= written) {
                return;
            }
            let Some(oldest) = self.versions.pop_front() else { return };
            self.cost -= oldest.cost();
            self.complete_above = oldest.revision.main;
        }
    }

    pub(crate) fn get(&self, location: Location) -> Option<&Bytes> {
        let at = Position { segment: location.segment, offset: location.offset };
        let place = self.versions.partition_point(|v| v.position() < at);
        let version = self.versions.get(place)?;
        (version.location == location).then_some(&version.payload)
    }

    /// The versions after a revision, if all of them are here.
    pub(crate) fn since(&self, after: Revision) -> Option<impl Iterator<Item = &Recent>> {
        (after.main > self.complete_above).then(|| {
            let first = self.versions.partition_point(|v| v.revision <= after);
            self.versions.range(first..)
        })
    }

    /// The versions at or behind a position.
    pub(crate) fn behind(&self, position: Position) -> impl Iterator<Item = &Recent> {
        let first = self.versions.partition_point(|v| v.position() < position);
        self.versions.range(first..)
    }
}
