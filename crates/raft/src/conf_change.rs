//! What a membership change in etcd's bytes means to raft-rs.

use prost::Message as _;
use proto::raftpb;
use raft::eraftpb;

/// A membership change that cannot be understood or carried out.
#[derive(Debug, thiserror::Error)]
#[error("conf change: {0}")]
pub struct ConfChangeError(pub(crate) String);

/// Decodes etcd's bytes with our own types; rust-protobuf never sees bytes from outside.
pub(crate) fn decode(data: &[u8]) -> Result<raftpb::ConfChange, ConfChangeError> {
    let change = raftpb::ConfChange::decode(data).map_err(|e| ConfChangeError(e.to_string()))?;
    match kind(&change) {
        Some(_) => Ok(change),
        None => Err(ConfChangeError(format!("unknown type {}", change.r#type.unwrap_or(0)))),
    }
}

/// The type by its number: prost's own accessor takes an unknown one for "add a voter".
fn kind(change: &raftpb::ConfChange) -> Option<raftpb::ConfChangeType> {
    raftpb::ConfChangeType::try_from(change.r#type.unwrap_or(0)).ok()
}

/// etcd's type 2 (update) changes no voter: raft-rs takes node id 0 as "no change", as etcd's own library does. etcd's type
/// 3 (add learner) is raft-rs's type 2. A type that [`decode`] does not let through changes nothing.
pub(crate) fn to_raft(change: &raftpb::ConfChange) -> eraftpb::ConfChange {
    use eraftpb::ConfChangeType as RaftType;
    use raftpb::ConfChangeType as Wire;
    let (kind, node_id) = match kind(change) {
        Some(Wire::ConfChangeAddNode) => (RaftType::AddNode, change.node_id),
        Some(Wire::ConfChangeRemoveNode) => (RaftType::RemoveNode, change.node_id),
        Some(Wire::ConfChangeAddLearnerNode) => (RaftType::AddLearnerNode, change.node_id),
        Some(Wire::ConfChangeUpdateNode) | None => (RaftType::AddNode, None),
    };
    let mut out = eraftpb::ConfChange::default();
    out.set_change_type(kind);
    out.set_node_id(node_id.unwrap_or(0));
    out
}

/// IDs are sorted, as etcd stores and sends them; raft-rs keeps them in hash order.
pub(crate) fn conf_state_from_raft(state: &eraftpb::ConfState) -> raftpb::ConfState {
    let sorted = |ids: &[u64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    raftpb::ConfState {
        voters: sorted(&state.voters),
        learners: sorted(&state.learners),
        voters_outgoing: sorted(&state.voters_outgoing),
        learners_next: sorted(&state.learners_next),
        auto_leave: Some(state.auto_leave),
    }
}

pub(crate) fn conf_state_to_raft(state: &raftpb::ConfState) -> eraftpb::ConfState {
    eraftpb::ConfState {
        voters: state.voters.clone(),
        learners: state.learners.clone(),
        voters_outgoing: state.voters_outgoing.clone(),
        learners_next: state.learners_next.clone(),
        auto_leave: state.auto_leave.unwrap_or(false),
        ..eraftpb::ConfState::default()
    }
}

/// A membership from disk or from a peer, which raft-rs takes on trust: each member once, none with ID 0. Joint memberships
/// are refused; no etcd has ever made one, and its members stop at the log entry that would.
pub(crate) fn check(state: &raftpb::ConfState) -> Result<(), &'static str> {
    if !state.voters_outgoing.is_empty() || !state.learners_next.is_empty() || state.auto_leave() {
        return Err("its membership is joint");
    }
    let mut ids: Vec<u64> = state.voters.iter().chain(&state.learners).copied().collect();
    ids.sort_unstable();
    if ids.first() == Some(&0) {
        return Err("its membership names member 0");
    }
    if ids.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("its membership names a member twice");
    }
    Ok(())
}

/// The membership after `change`, as the state machine notes it beside the data it has applied. The same rule that
/// raft-rs follows for simple changes; [`crate::Driver::apply_conf_change`] checks that the two agree.
#[must_use]
pub fn next_conf_state(state: &raftpb::ConfState, change: &raftpb::ConfChange) -> raftpb::ConfState {
    let mut next = state.clone();
    let id = change.node_id.unwrap_or(0);
    if id == 0 {
        return next;
    }
    let without = |ids: &mut Vec<u64>| ids.retain(|known| *known != id);
    let with = |ids: &mut Vec<u64>| {
        if let Err(at) = ids.binary_search(&id) {
            ids.insert(at, id);
        }
    };
    match kind(change) {
        Some(raftpb::ConfChangeType::ConfChangeAddNode) => {
            without(&mut next.learners);
            with(&mut next.voters);
        }
        Some(raftpb::ConfChangeType::ConfChangeAddLearnerNode) => {
            without(&mut next.voters);
            with(&mut next.learners);
        }
        Some(raftpb::ConfChangeType::ConfChangeRemoveNode) => {
            without(&mut next.voters);
            without(&mut next.learners);
        }
        Some(raftpb::ConfChangeType::ConfChangeUpdateNode) | None => {}
    }
    next.auto_leave.get_or_insert(false);
    next
}
