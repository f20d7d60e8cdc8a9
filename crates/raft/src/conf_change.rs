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
    raftpb::ConfChange::decode(data).map_err(|e| ConfChangeError(e.to_string()))
}

/// etcd's type 2 (update) changes no voter: raft-rs takes node id 0 as "no change", as etcd's own library does. etcd's type
/// 3 (add learner) is raft-rs's type 2.
pub(crate) fn to_raft(change: &raftpb::ConfChange) -> eraftpb::ConfChange {
    let mut out = eraftpb::ConfChange::default();
    out.set_node_id(change.node_id.unwrap_or(0));
    match change.r#type() {
        raftpb::ConfChangeType::ConfChangeAddNode => out.set_change_type(eraftpb::ConfChangeType::AddNode),
        raftpb::ConfChangeType::ConfChangeRemoveNode => out.set_change_type(eraftpb::ConfChangeType::RemoveNode),
        raftpb::ConfChangeType::ConfChangeAddLearnerNode => {
            out.set_change_type(eraftpb::ConfChangeType::AddLearnerNode);
        }
        raftpb::ConfChangeType::ConfChangeUpdateNode => {
            out.set_change_type(eraftpb::ConfChangeType::AddNode);
            out.set_node_id(0);
        }
    }
    out
}

pub(crate) fn conf_state_from_raft(state: &eraftpb::ConfState) -> raftpb::ConfState {
    raftpb::ConfState {
        voters: state.voters.clone(),
        learners: state.learners.clone(),
        voters_outgoing: state.voters_outgoing.clone(),
        learners_next: state.learners_next.clone(),
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
    match change.r#type() {
        raftpb::ConfChangeType::ConfChangeAddNode => {
            without(&mut next.learners);
            with(&mut next.voters);
        }
        raftpb::ConfChangeType::ConfChangeAddLearnerNode => {
            without(&mut next.voters);
            with(&mut next.learners);
        }
        raftpb::ConfChangeType::ConfChangeRemoveNode => {
            without(&mut next.voters);
            without(&mut next.learners);
        }
        raftpb::ConfChangeType::ConfChangeUpdateNode => {}
    }
    next.auto_leave.get_or_insert(false);
    next
}
