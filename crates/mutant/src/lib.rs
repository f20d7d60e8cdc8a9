//! Deliberate bugs, to see whether the simulator finds them.
//!
//! Where a mistake would break a promise, the code asks [`on`] whether to make it. Without the feature `active` that is a
//! constant `false` and leaves no trace in a program. With it, a thread makes the one mistake that it was [given](make), if any:
//! the simulator lives a whole cluster's life on one thread, so this is a property of the world and not of the process.
//!
//! Each is a mistake that somebody could really make: most of them are bugs that etcd once had, or that were found here.

/// Whether bugs are possible in this build.
pub const ACTIVE: bool = cfg!(feature = "active");

macro_rules! mutants {
    ($($name:ident: $what:literal,)*) => {
        /// The bugs there are.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mutant {
            $(#[doc = $what] $name,)*
        }

        pub use Mutant::*;

        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// What goes wrong, in words.
            pub fn what(self) -> &'static str {
                match self {
                    $(Self::$name => $what,)*
                }
            }
        }
    };
}

mutants! {
    // The log, and what a member promises.
    LogUnsynced: "the log is written and not synced",
    LogChecksumUnchecked: "records of the log are read without looking at their checksums",
    LogTailNotCleared: "what a torn write has left behind the end of the log stays there",
    LogEndNotRewritten: "the end of the log is not written once more when it is opened, though a failed sync may have dropped it",
    FailedSyncTrusted: "a sync of the log that fails is passed over",
    VoteForgotten: "a vote is not written down",
    AckBeforeSync: "votes and acknowledgements leave before what they promise is on disk",
    PromisesOvertake: "an acknowledgement that needs no sync of its own overtakes the sync of the batch before it",
    LeaderCountsUnsynced: "a leader counts its own entries before they are on disk",
    QuorumOfTwo: "one follower's acknowledgement counts for all",
    ReceivedSnapshotUnsynced: "a received snapshot is not synced",
    SnapshotMarkFirst: "a received snapshot is recorded in the log before its file is there",
    // The store.
    StoreUnsynced: "the store says that it is durable without having synced its segments",
    StoreEndNotRewritten: "the end of the store is not written once more when it is opened, though a failed sync may have dropped it",
    SegmentNamesUnsynced: "the names of new segments are not synced",
    FrameChecksumUnchecked: "frames of the store are read without looking at their checksums",
    MarkAhead: "the store says that it holds an entry more than it does, so a restart leaves one out (consistent index)",
    MarkBehind: "the store says that it holds an entry less than it does, so a restart applies one twice (consistent index)",
    RevisionFallsBack: "after a restart the newest revision is given out once more",
    CompactionForgotten: "a compaction is forgotten with a restart",
    SweepTooFar: "a compaction takes what is visible at its own revision, too",
    CheckpointUnwaited: "a checkpoint counts before the log is durable up to it",
    // What entries do.
    LastCompareCounts: "a transaction looks at its last compare only",
    PreviousIsCurrent: "the previous pair that watchers are shown is the current one",
    AlarmIgnored: "writes go on although space is used up",
    QuotaDecides: "each member looks at its own disk before it applies an entry",
    LeaseKeepsKeys: "the keys of a lease stay when it ends",
    LeaseNotDetached: "a key goes on hanging on the lease that it had before",
    LeaseKeysForgotten: "after a restart no key hangs on a lease",
    LeaseEndsEarly: "a new leader counts only half of what leases have left",
    LeaseEndedByOldLeader: "a leader that was paused ends leases that the next leader has renewed",
    LeaseRenewedByOldLeader: "a leader that was paused renews leases that the next leader lets run out",
    LeaseRenewalLost: "a renewed lease runs out all the same",
    HashUnswept: "HashKV counts what a compaction has dropped",
    PromotionUnstored: "that a learner has become a voter is forgotten with a restart",
    ConfChangeUnenforced: "raft is not told of changes of the membership",
    // Who is asked.
    ProposedTwice: "what waited for a leader is proposed once more to the one after",
    IdsRepeat: "request IDs begin anew with each start",
    ReadsByLease: "a leader answers reads for an election timeout after it last heard from a quorum",
    ReadsUnconfirmed: "a leader answers reads without asking whether it still is one",
    ReadsUnasked: "linearizable reads are served like serializable ones",
    ReadsBeforeApply: "a read does not wait until its read index is applied",
    SoleVoterTooSoon: "a member without peers answers reads before it has applied its log",
    // Watches.
    FilterIgnored: "watchers are shown what they did not ask for",
    ResumeSkipsOne: "a watch goes on one revision too late",
    CatchUpLosesDeletes: "a watch that catches up is not shown deletions",
    RingOverrunLost: "a watch that falls behind the ring, or behind a snapshot, goes on with what is new",
    BlockedLosesEvents: "what happens while a stream takes nothing is not shown later",
    ProgressEarly: "progress is told before the events that it speaks of",
    CompactedWatchSilent: "a watch of what is compacted begins with what is left",
    // Snapshots.
    SnapshotAhead: "a snapshot says that it holds an entry more than it does",
    InstallForgetsLeases: "a snapshot leaves the leases as they were",
    InstallForgetsV2: "a snapshot leaves the v2 tree as it was",
    // The v2 tree.
    V2YoungestFirst: "of the nodes that have expired the youngest goes first",
    V2RefreshTells: "who waits is told of refreshes",
    V2HiddenShown: "who waits above a hidden node is told of it",
    V2IndexNotCompared: "prevIndex is not looked at",
    V2InstallSilent: "who waits in the v2 tree is not told what a snapshot has brought",
    V2TtlsForgotten: "after a restart nothing in the v2 tree expires",
}

#[cfg(feature = "active")]
mod active {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        static MADE: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Whether this thread makes a mistake.
    pub fn on(mutant: Mutant) -> bool {
        MADE.get() == Some(mutant)
    }

    /// Has this thread make a mistake from now on, and no other.
    pub fn make(mutant: Option<Mutant>) {
        MADE.set(mutant);
    }
}

#[cfg(feature = "active")]
pub use active::{make, on};

/// Whether to make a mistake: never.
#[cfg(not(feature = "active"))]
#[inline(always)]
pub const fn on(_: Mutant) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_makes_a_mistake_unasked() {
        assert!(Mutant::ALL.iter().all(|mutant| !on(*mutant)));
    }

    #[cfg(feature = "active")]
    #[test]
    fn a_thread_makes_one_mistake_and_the_others_none() {
        make(Some(LogUnsynced));
        assert!(on(LogUnsynced) && !on(VoteForgotten));
        std::thread::spawn(|| assert!(!on(LogUnsynced))).join().unwrap();
    }
}
