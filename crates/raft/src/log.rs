//! The part of the log that consensus still needs, in memory.
//!
//! # Invariants
//! - `entries` is contiguous: entry `i` has index `base.0 + 1 + i`. `base` is the index and term just before it.
//! - Everything below `base` is applied and, where another member might still need it, in a snapshot.

use std::collections::VecDeque;

use proto::raftpb;
use raft::eraftpb::{Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, StorageError};

use crate::{Config, DriverError, Start, conf_change, to_raft};

pub(crate) struct Log {
    hard_state: HardState,
    /// Membership by the newest change that is in force. IDs are sorted.
    conf_state: raftpb::ConfState,
    base: (u64, u64),
    entries: VecDeque<Entry>,
    /// Up to where the log is applied: what a snapshot for a peer would hold.
    applied: u64,
}

impl Log {
    pub(crate) fn new(config: &Config, start: Start) -> Result<Self, DriverError> {
        let Start { hard_state, mut conf_state, base, entries } = start;
        if let Err(reason) = conf_change::check(&conf_state) {
            return Err(DriverError::Start(reason.to_owned()));
        }
        conf_state.voters.sort_unstable();
        conf_state.learners.sort_unstable();
        let last = base.0 + entries.len() as u64;
        for (i, entry) in entries.iter().enumerate() {
            if entry.index != base.0 + 1 + i as u64 {
                return Err(DriverError::Start(format!(
                    "log entry {} where {} was expected",
                    entry.index,
                    base.0 + 1 + i as u64
                )));
            }
        }
        if config.applied < base.0 || config.applied > last {
            return Err(DriverError::Start(format!(
                "applied index {} lies outside the log, which holds {}..={last}",
                config.applied,
                base.0 + 1
            )));
        }
        // A torn write may have cut off the hard state behind the first entries of a new term. No vote of that term
        // can be missing: it would have been a hard state of its own, earlier.
        let last_term = entries.last().map_or(base.1, |entry| entry.term);
        let (term, vote) =
            if hard_state.term < last_term { (last_term, 0) } else { (hard_state.term, hard_state.vote) };
        let raft_state = HardState {
            term,
            vote,
            // A commit record is written without a sync, so it may lag behind what was applied (and therefore was
            // committed), and a torn tail may have cut entries that it already names.
            commit: hard_state.commit.max(config.applied).min(last),
            ..HardState::default()
        };
        Ok(Self {
            hard_state: raft_state,
            conf_state,
            base,
            entries: entries.into_iter().map(to_raft).collect(),
            applied: config.applied,
        })
    }

    pub(crate) fn first(&self) -> u64 {
        self.base.0 + 1
    }

    fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    pub(crate) fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first() else { return };
        let at = first.index;
        assert!(
            at > self.base.0 && at <= self.last() + 1,
            "append at {at} to a log of {}..={}",
            self.first(),
            self.last()
        );
        self.entries.truncate((at - self.first()) as usize);
        self.entries.extend(entries);
    }

    /// Answers whether term or vote changed.
    pub(crate) fn set_hard_state(&mut self, hard_state: &HardState) -> bool {
        let before = (self.hard_state.term, self.hard_state.vote);
        self.hard_state = hard_state.clone();
        before != (hard_state.term, hard_state.vote)
    }

    pub(crate) fn conf_state(&self) -> &raftpb::ConfState {
        &self.conf_state
    }

    pub(crate) fn set_conf_state(&mut self, conf_state: raftpb::ConfState) {
        self.conf_state = conf_state;
    }

    pub(crate) fn set_applied(&mut self, index: u64) {
        self.applied = index;
    }

    /// Everything up to the snapshot's index is replaced by it, and nothing after it is known.
    pub(crate) fn reset(&mut self, index: u64, term: u64, conf_state: raftpb::ConfState) {
        self.base = (index, term);
        self.entries = VecDeque::new();
        self.conf_state = conf_state;
    }

    pub(crate) fn compact(&mut self, index: u64) {
        if index <= self.base.0 {
            return;
        }
        assert!(index <= self.last(), "compaction at {index} beyond the log's end {}", self.last());
        let drop = (index - self.base.0) as usize;
        self.base = (index, self.entries[drop - 1].term);
        self.entries.drain(..drop);
        // A burst of large entries must not pin its memory for ever.
        if self.entries.capacity() > 4 * self.entries.len() + 1024 {
            self.entries.shrink_to(2 * self.entries.len() + 512);
        }
    }
}

impl raft::Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), conf_change::conf_state_to_raft(&self.conf_state)))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let max_bytes = max_size.into().unwrap_or(u64::MAX);
        let mut bytes = 0u64;
        let mut out = Vec::new();
        for entry in self.entries.range((low - self.first()) as usize..(high - self.first()) as usize) {
            // The same measure as raft-rs's: encoded size, and at least one entry whatever its size.
            bytes += u64::from(protobuf::Message::compute_size(entry));
            if bytes > max_bytes && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base.0 {
            return Ok(self.base.1);
        }
        if index < self.base.0 {
            return Err(StorageError::Compacted.into());
        }
        match self.entries.get((index - self.first()) as usize) {
            Some(entry) => Ok(entry.term),
            None => Err(StorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Where a snapshot for a peer would stand. The server makes it, from a consistent image, and corrects this to what
    /// the image holds.
    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let index = self.applied.max(self.base.0);
        if index == 0 {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = index;
        metadata.term = self.term(index)?;
        metadata.set_conf_state(conf_change::conf_state_to_raft(&self.conf_state));
        Ok(snapshot)
    }
}
