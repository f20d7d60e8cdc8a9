//! Members come and go, one change at a time.

use keelson_raft::{DriverError, ProgressState, Role};
use proto::raftpb::ConfChangeType;

use super::net::{ELECTION_TICKS, Net, change};

#[test]
fn a_learner_is_fed_without_a_vote_and_then_promoted() {
    let mut net = Net::led(3);
    assert!(net.propose(1, "before"));
    net.settle();
    net.join(4);
    net.reconfigure(ConfChangeType::ConfChangeAddLearnerNode, 4);
    let status = net.status(4);
    assert!(status.learner && !status.voter);
    assert_eq!(net.status(1).voters, 3);
    // etcd lets a learner be promoted when it has 90 % of what the leader has.
    let progress = net.driver(1).progress();
    let learner = progress.iter().find(|p| p.id == 4).expect("tracked");
    assert!(learner.learner && learner.recent_active && learner.state == ProgressState::Replicate);
    assert_eq!(learner.matched, progress[0].matched);
    assert!(net.driver(2).progress().is_empty(), "only a leader knows");
    net.driver(4).campaign();
    assert_eq!(net.status(4).role, Role::Follower, "a learner does not campaign");
    net.reconfigure(ConfChangeType::ConfChangeAddNode, 4);
    assert!(net.status(4).voter && !net.status(4).learner);
    assert_eq!(net.status(1).voters, 4);
    net.assert_equal();
}

/// etcd's type 2 is raft-rs's "add learner", which would take the member's vote.
#[test]
fn an_update_changes_nobodys_vote() {
    let mut net = Net::led(3);
    let before = net.driver(1).conf_state().clone();
    net.reconfigure(ConfChangeType::ConfChangeUpdateNode, 2);
    for id in 1..=3 {
        assert_eq!(net.driver(id).conf_state(), &before);
    }
    assert!(net.driver(1).progress().iter().all(|p| !p.learner));
    net.assert_equal();
}

#[test]
fn the_next_change_waits_until_the_last_is_applied() {
    let mut net = Net::led(3);
    net.driver(1).propose_conf_change(change(ConfChangeType::ConfChangeAddLearnerNode, 4)).expect("taken");
    let second = net.driver(1).propose_conf_change(change(ConfChangeType::ConfChangeAddLearnerNode, 5));
    assert!(matches!(second, Err(DriverError::ConfChangePending)));
    // A follower cannot know; its leader puts an empty entry in the log instead.
    net.driver(2).propose_conf_change(change(ConfChangeType::ConfChangeAddLearnerNode, 5)).expect("forwarded");
    net.settle();
    assert_eq!(net.driver(1).conf_state().learners, [4]);
    net.driver(1).propose_conf_change(change(ConfChangeType::ConfChangeAddLearnerNode, 5)).expect("taken");
    net.settle();
    assert_eq!(net.driver(1).conf_state().learners, [4, 5]);
}

#[test]
fn a_change_that_nobody_could_apply_is_not_proposed() {
    let mut net = Net::led(3);
    let unknown = bytes::Bytes::from_static(&[0x10, 0x09, 0x18, 0x05]);
    assert!(matches!(net.driver(1).propose_conf_change(unknown), Err(DriverError::ConfChange(_))));
    let noise = bytes::Bytes::from_static(&[0xff; 9]);
    assert!(matches!(net.driver(1).propose_conf_change(noise), Err(DriverError::ConfChange(_))));
}

#[test]
fn removing_the_last_voter_is_refused_and_changes_nothing() {
    let mut net = Net::led(1);
    let data = change(ConfChangeType::ConfChangeRemoveNode, 1);
    let index = net.status(1).last_index + 1;
    let entry = wal::Entry { kind: wal::EntryKind::ConfChange, term: 2, index, data };
    assert!(matches!(net.driver(1).apply_conf_change(&entry), Err(DriverError::ConfChange(_))));
    assert!(net.status(1).sole_voter);
}

/// It leads on, so that the others learn of the commit; raft-rs alone would panic at the next acknowledgement. What it may
/// not do is take proposals or answer reads.
#[test]
fn a_removed_leader_tells_the_others_before_it_goes() {
    for size in [2, 3] {
        let mut net = Net::led(size);
        net.driver(1).propose_conf_change(change(ConfChangeType::ConfChangeRemoveNode, 1)).expect("taken");
        // These come after the removal in the log, and are acknowledged when the leader is no member any more.
        assert!(net.propose(1, "behind the removal"));
        net.settle();
        let status = net.status(1);
        assert_eq!((status.role, status.voter, status.voters), (Role::Leader, false, size as usize - 1));
        assert!(!net.propose(1, "too late"));
        let read = net.read(1);
        let forwarded = net.read(2);
        net.settle();
        assert_eq!((net.read_answer(1, read), net.read_answer(2, forwarded)), (None, None));
        net.assert_equal();
        net.crash(1, 0);
        net.tick_until(4 * ELECTION_TICKS, |net| net.leader().is_some());
        let leader = net.leader().expect("elected");
        assert!(net.propose(leader, "without it"));
        net.settle();
        net.assert_equal();
    }
}

#[test]
fn a_removed_leader_that_is_deposed_never_campaigns_again() {
    let mut net = Net::led(3);
    net.reconfigure(ConfChangeType::ConfChangeRemoveNode, 1);
    assert!(net.driver(1).transfer_leader(2), "it may hand over, which saves the others a timeout");
    net.settle();
    assert_eq!(net.leader(), Some(2));
    for _ in 0..5 * ELECTION_TICKS {
        net.driver(1).tick();
        net.settle();
    }
    assert_eq!(net.status(1).role, Role::Follower);
    assert_eq!(net.leader(), Some(2));
}

/// raft-rs would panic if it won.
#[test]
fn a_candidate_that_learns_of_its_removal_gives_up() {
    let mut net = Net::led(3);
    net.driver(1).propose_conf_change(change(ConfChangeType::ConfChangeRemoveNode, 3)).expect("taken");
    let index = net.status(1).last_index;
    // Member 3 has the committed entry, and its state machine is just about to say what is in it.
    for _ in 0..10 {
        for id in 1..=3 {
            net.collect(id);
            net.sync(id, usize::MAX);
        }
        for packet in std::mem::take(&mut net.wire) {
            net.deliver(packet);
        }
    }
    assert_eq!(net.status(3).commit_index, index);
    net.driver(3).applied(index);
    net.driver(3).campaign();
    assert_eq!(net.status(3).role, Role::PreCandidate);
    net.apply(3, usize::MAX);
    let status = net.status(3);
    assert_eq!((status.role, status.voter), (Role::Follower, false));
    net.driver(3).campaign();
    assert_eq!(net.status(3).role, Role::Follower);
}
