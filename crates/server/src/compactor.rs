//! Automatic compaction (`--auto-compaction-mode`, `--auto-compaction-retention`).
//!
//! Decides only; the upkeep thread tells it the time and proposes what it answers. It counts while this member leads:
//! a follower's compactor is paused, as in etcd, and starts over when it becomes leader.

use std::collections::VecDeque;
use std::time::Duration;

/// What to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retention {
    /// The history of this long.
    Time(Duration),
    /// This many revisions.
    Revisions(i64),
}

/// Compaction by revision looks this often.
const REVISION_INTERVAL_MS: u64 = 5 * 60 * 1000;

/// The compactor.
#[derive(Debug)]
pub(crate) struct Compactor {
    retention: Retention,
    /// Revisions noted every `note_ms`, oldest first (by time only).
    noted: VecDeque<i64>,
    next_ms: u64,
    /// The revision of the last compaction that was proposed.
    last: i64,
}

impl Compactor {
    pub(crate) fn new(retention: Retention) -> Self {
        Self { retention, noted: VecDeque::new(), next_ms: 0, last: 0 }
    }

    /// Compaction by time runs every retention, but at least hourly.
    fn interval_ms(retention: Duration) -> u64 {
        u64::try_from(retention.min(Duration::from_secs(3600)).as_millis()).unwrap_or(u64::MAX).max(10)
    }

    /// What to compact to now, if anything.
    pub(crate) fn tick(&mut self, now_ms: u64, leading: bool, revision: i64) -> Option<i64> {
        if !leading {
            self.noted.clear();
            self.next_ms = 0;
            return None;
        }
        if now_ms < self.next_ms {
            return None;
        }
        let target = match self.retention {
            Retention::Revisions(keep) => {
                let first = self.next_ms == 0;
                self.next_ms = now_ms + REVISION_INTERVAL_MS;
                if first {
                    return None;
                }
                revision - keep
            }
            Retention::Time(retention) => {
                // The revision is noted ten times per interval; a compaction goes to what was noted one retention ago.
                let interval_ms = Self::interval_ms(retention);
                let note_ms = (interval_ms / 10).max(1);
                self.next_ms = now_ms + note_ms;
                self.noted.push_back(revision);
                let notes = usize::try_from(retention.as_millis() as u64 / note_ms).unwrap_or(usize::MAX).max(1);
                if self.noted.len() <= notes {
                    return None;
                }
                let target = self.noted[0];
                // One interval's worth of notes is used up per compaction.
                let used = usize::try_from(interval_ms / note_ms).unwrap_or(1).min(self.noted.len());
                self.noted.drain(..used);
                target
            }
        };
        if target <= 0 || target == self.last {
            return None;
        }
        self.last = target;
        Some(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(compactor: &mut Compactor, seconds: u64, revision_at: impl Fn(u64) -> i64) -> Vec<(u64, i64)> {
        (0..seconds).filter_map(|s| compactor.tick(s * 1000, true, revision_at(s)).map(|target| (s, target))).collect()
    }

    /// With an hour's retention, nothing goes before a full hour has passed, and then hourly to the revision of an
    /// hour ago.
    #[test]
    fn by_time_it_keeps_one_retention() {
        let mut compactor = Compactor::new(Retention::Time(Duration::from_secs(3600)));
        let done = run(&mut compactor, 3 * 3600 + 10, |s| 1 + s as i64);
        assert_eq!(done, [(3600, 1), (7200, 3601), (10800, 7201)]);
    }

    /// A retention above an hour still compacts hourly.
    #[test]
    fn by_time_it_runs_at_least_hourly() {
        let mut compactor = Compactor::new(Retention::Time(Duration::from_secs(2 * 3600)));
        let done = run(&mut compactor, 4 * 3600 + 10, |s| 1 + s as i64);
        assert_eq!(done, [(7200, 1), (10800, 3601), (14400, 7201)]);
    }

    #[test]
    fn by_revision_it_keeps_that_many() {
        let mut compactor = Compactor::new(Retention::Revisions(100));
        let done = run(&mut compactor, 700, |s| 1 + s as i64);
        assert_eq!(done, [(300, 201), (600, 501)]);
    }

    #[test]
    fn nothing_new_is_not_compacted_twice_and_a_follower_never() {
        let mut compactor = Compactor::new(Retention::Revisions(10));
        assert_eq!(run(&mut compactor, 1300, |_| 50), [(300, 40)]);
        let mut follower = Compactor::new(Retention::Revisions(10));
        assert_eq!((0..1300).find_map(|s| follower.tick(s * 1000, false, 50)), None);
    }
}
