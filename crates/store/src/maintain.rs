//! Background work, in small steps: carrying compactions out, saving the index, reclaiming space.

use crate::manifest::Manifest;
use crate::{Store, StoreError};
use std::sync::atomic::Ordering;

/// Keys looked at under one hold of the index lock.
const SWEEP_KEYS: usize = 512;

/// The work in progress.
#[derive(Debug)]
pub(crate) struct Maintenance {
    #[allow(dead_code)]
    manifest: Manifest,
    sweep: Option<Sweep>,
}

/// A compaction being carried out.
#[derive(Debug)]
struct Sweep {
    compacted: i64,
    cursor: Box<[u8]>,
}

impl Maintenance {
    pub(crate) fn new(manifest: Manifest) -> Self {
        Self { manifest, sweep: None }
    }
}

impl Store {
    /// Does one bounded step of background work (compaction of the index, space reclaim, checkpoint, scrub), at most
    /// about a millisecond under any lock. Returns whether there is more to do now.
    pub fn maintain(&self) -> Result<bool, StoreError> {
        let mut work = self.0.maintenance.lock();
        self.sweep_step(&mut work)
    }

    /// Returns whether there was something to do.
    fn sweep_step(&self, work: &mut Maintenance) -> Result<bool, StoreError> {
        let compacted = self.compact_revision();
        if work.sweep.is_none() {
            if self.compaction_done() || self.0.pins.any_below(compacted) {
                return Ok(false);
            }
            work.sweep = Some(Sweep { compacted, cursor: Box::default() });
        }
        let Some(sweep) = &mut work.sweep else { return Ok(false) };
        let segments = self.0.files.segments.read().clone();
        let next = self.0.index.write().sweep(&sweep.cursor, sweep.compacted, SWEEP_KEYS, &mut |version| {
            let location = version.location();
            if let Some(segment) = segments.get(&location.segment) {
                segment.live.fetch_sub(location.len.into(), Ordering::Relaxed);
            }
        });
        match next {
            Some(cursor) => sweep.cursor = cursor,
            None => {
                self.0.swept.store(sweep.compacted, Ordering::Release);
                work.sweep = None;
            }
        }
        Ok(true)
    }
}
