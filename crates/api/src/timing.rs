//! Where the time of a request goes, from its arrival to its answer.
//!
//! ```text
//! write: arrived ─ queue ─► logged ─ fsync ─► synced ─ replicate ─► committed ─ wait ─► begun ─ apply ─► applied ─ send ─► answered
//! read:  arrived ─ queue ─► asked ─ read_index ─► passed ─ read ─► answered
//! ```
//! What has to be known of a write is noted once per batch, by whoever handles the batch, and comes back with the answer; so
//! the parts of a request always sum to its whole.

use std::time::{Duration, Instant};

/// What the way of a log entry took, until it was applied on the member that answers.
#[derive(Clone, Copy, Debug)]
pub struct Passage {
    /// From being given to the log's thread until this member's log was synced with it, earlier batches included.
    pub fsync: Duration,
    /// From that sync until this member knew that the entry is committed: the other members' part.
    pub replicate: Duration,
    /// From then until its turn came to be applied.
    pub wait: Duration,
    /// Applying it, it alone.
    pub apply: Duration,
    /// When it was applied.
    pub applied: Instant,
}

/// What a call waited for before it could be answered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Way {
    /// For nothing, or for something of no name here.
    #[default]
    Direct,
    /// For its log entry.
    Entry(Passage),
    /// For a read index that was asked for and came at these times.
    Barrier { asked: Instant, passed: Instant },
}

/// A part of a request's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub(crate) enum Part {
    WriteQueue,
    WriteFsync,
    WriteReplicate,
    WriteWait,
    WriteApply,
    WriteSend,
    ReadQueue,
    ReadIndex,
    Read,
}

impl Part {
    /// All of them; a part's position is `part as usize`.
    pub(crate) const ALL: [Part; 9] = [
        Part::WriteQueue,
        Part::WriteFsync,
        Part::WriteReplicate,
        Part::WriteWait,
        Part::WriteApply,
        Part::WriteSend,
        Part::ReadQueue,
        Part::ReadIndex,
        Part::Read,
    ];

    /// What a trace calls it.
    pub(crate) fn step(self) -> &'static str {
        match self {
            Part::WriteQueue | Part::ReadQueue => "queue before raft",
            Part::WriteFsync => "sync the write-ahead log",
            Part::WriteReplicate => "agreement among raft nodes",
            Part::WriteWait => "wait for apply",
            Part::WriteApply => "apply",
            Part::WriteSend => "send",
            Part::ReadIndex => "agreement among raft nodes before linearized reading",
            Part::Read => "range keys from in-memory index tree",
        }
    }

    /// Labels `part` and `type` of the metric.
    pub(crate) fn labels(self) -> (&'static str, &'static str) {
        match self {
            Part::WriteQueue => ("queue", "write"),
            Part::WriteFsync => ("fsync", "write"),
            Part::WriteReplicate => ("replicate", "write"),
            Part::WriteWait => ("wait", "write"),
            Part::WriteApply => ("apply", "write"),
            Part::WriteSend => ("send", "write"),
            Part::ReadQueue => ("queue", "read"),
            Part::ReadIndex => ("read_index", "read"),
            Part::Read => ("read", "read"),
        }
    }
}

/// The parts of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parts {
    Unknown,
    Write([(Part, Duration); 6]),
    Read([(Part, Duration); 3]),
}

impl Parts {
    /// Of a call that went this way. `is_read`: it was answered from the state; other calls that wait for nothing have no parts.
    pub(crate) fn of(way: Way, is_read: bool, arrived: Instant, answered: Instant) -> Self {
        match way {
            Way::Entry(Passage { fsync, replicate, wait, apply, applied }) => {
                let until_applied = applied.saturating_duration_since(arrived);
                Parts::Write([
                    (Part::WriteQueue, until_applied.saturating_sub(fsync + replicate + wait + apply)),
                    (Part::WriteFsync, fsync),
                    (Part::WriteReplicate, replicate),
                    (Part::WriteWait, wait),
                    (Part::WriteApply, apply),
                    (Part::WriteSend, answered.saturating_duration_since(applied)),
                ])
            }
            Way::Barrier { asked, passed } => Parts::Read([
                (Part::ReadQueue, asked.saturating_duration_since(arrived)),
                (Part::ReadIndex, passed.saturating_duration_since(asked)),
                (Part::Read, answered.saturating_duration_since(passed)),
            ]),
            Way::Direct if is_read => Parts::Read([
                (Part::ReadQueue, Duration::ZERO),
                (Part::ReadIndex, Duration::ZERO),
                (Part::Read, answered.saturating_duration_since(arrived)),
            ]),
            Way::Direct => Parts::Unknown,
        }
    }

    /// What was measured of the work that the call caused, without its waiting.
    pub(crate) fn work(&self) -> Duration {
        match self {
            Parts::Unknown => Duration::ZERO,
            Parts::Write(parts) => parts[Part::WriteApply as usize].1,
            Parts::Read(parts) => parts[parts.len() - 1].1,
        }
    }

    pub(crate) fn all(&self) -> &[(Part, Duration)] {
        match self {
            Parts::Unknown => &[],
            Parts::Write(parts) => parts,
            Parts::Read(parts) => parts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_request_sum_to_its_whole() {
        let arrived = Instant::now();
        let after = |ms| arrived + Duration::from_millis(ms);
        let ms = Duration::from_millis;
        let passage = Passage { fsync: ms(5), replicate: ms(7), wait: ms(1), apply: ms(2), applied: after(20) };
        let ways = [Way::Entry(passage), Way::Barrier { asked: after(3), passed: after(11) }, Way::Direct];
        for way in ways {
            let parts = Parts::of(way, true, arrived, after(24));
            let sum: Duration = parts.all().iter().map(|(_, took)| *took).sum();
            assert_eq!(sum, ms(24), "{way:?}");
        }
        let parts = Parts::of(ways[0], false, arrived, after(24));
        let times: Vec<u128> = parts.all().iter().map(|(_, took)| took.as_millis()).collect();
        assert_eq!(times, [5, 5, 7, 1, 2, 4]);
        assert_eq!(parts.work(), ms(2));
        assert_eq!(Parts::of(ways[1], true, arrived, after(24)).work(), ms(13));
        assert_eq!(Parts::of(Way::Direct, false, arrived, after(24)), Parts::Unknown);
    }

    #[test]
    fn a_part_stands_where_its_number_says() {
        for (position, part) in Part::ALL.into_iter().enumerate() {
            assert_eq!(part as usize, position);
        }
    }
}
