//! What can be seen of consensus from outside.

/// A member's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Role {
    /// Follows a leader, or waits for one.
    #[default]
    Follower,
    /// Asks whether it would win an election.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// Where consensus stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Status {
    /// Current term.
    pub term: u64,
    /// The leader of that term, 0 if unknown.
    pub leader: u64,
    /// This member's part.
    pub role: Role,
    /// Highest index known to be committed.
    pub commit_index: u64,
    /// Index of the newest entry in the log.
    pub last_index: u64,
    /// How many voters there are; [`crate::Driver::conf_state`] names them.
    pub voters: usize,
    /// Whether this member is one of them. A leader that is not has been removed and leads only until somebody else does.
    pub voter: bool,
    /// Whether this member is the only voter.
    pub sole_voter: bool,
    /// Whether there is no other member at all, so that nobody else needs the log.
    pub alone: bool,
    /// Whether this member is a learner.
    pub learner: bool,
    /// Whether an entry of the leader's own term is committed: only then may it answer reads.
    pub committed_in_term: bool,
    /// To whom this leader is handing over, 0 if it is not. Proposals are dropped meanwhile.
    pub transfer_to: u64,
}

/// How a leader feeds a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressState {
    /// Finds out where the member's log ends, one message at a time.
    Probe,
    /// Sends entries as they come.
    Replicate,
    /// Waits for a snapshot to arrive.
    Snapshot,
}

/// A member as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The member.
    pub id: u64,
    /// Highest index known to be persisted there.
    pub matched: u64,
    /// Next index to be sent.
    pub next: u64,
    /// Whether it does not vote.
    pub learner: bool,
    /// Whether anything was heard from it since the quorum was last checked (once per election timeout).
    pub recent_active: bool,
    /// How it is fed.
    pub state: ProgressState,
}
