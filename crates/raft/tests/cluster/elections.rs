//! Who leads, and how long it takes to know.

use keelson_raft::Role;
use proto::raftpb::{ConfChangeType, MessageType};

use super::net::{ELECTION_TICKS, Net};

#[test]
fn members_elect_one_leader_within_two_timeouts() {
    for (size, seed) in [(3, 1), (3, 2), (5, 3), (5, 4)] {
        let mut net = Net::new(size, seed);
        net.tick_until(2 * ELECTION_TICKS, |net| net.leader().is_some());
        let leader = net.leader().expect("elected");
        net.tick();
        for id in 1..=size {
            assert_eq!(net.status(id).leader, leader);
        }
    }
}

/// Pre-vote: the members that hear from the leader refuse, and the one that asked learns that it was wrong.
#[test]
fn a_member_that_wrongly_gives_up_its_leader_does_not_depose_it() {
    for size in [3, 5] {
        let mut net = Net::led(size);
        let term = net.status(1).term;
        for _ in 0..5 {
            assert!(net.driver(2).leader_lost().is_some());
            net.driver(2).campaign();
            net.settle();
            assert_eq!(net.status(2).role, Role::PreCandidate);
            net.tick();
        }
        for id in 1..=size {
            let status = net.status(id);
            assert_eq!((status.term, status.leader), (term, 1));
        }
    }
}

/// The first in line asks at once, and nobody waits for a timeout.
#[test]
fn a_leader_known_to_be_dead_is_replaced_within_a_few_message_rounds() {
    for size in [3, 5] {
        let mut net = Net::led(size);
        net.crash(1, 0);
        let places: Vec<(u64, usize)> =
            (2..=size).map(|id| (id, net.driver(id).leader_lost().expect("a voter"))).collect();
        let mut line: Vec<usize> = places.iter().map(|(_, place)| *place).collect();
        line.sort_unstable();
        assert_eq!(line, (0..size as usize - 1).collect::<Vec<_>>(), "everybody has a place of their own");
        let first = places.iter().find(|(_, place)| *place == 0).expect("somebody is first").0;
        net.driver(first).campaign();
        let rounds = net.settle();
        assert_eq!(net.leader(), Some(first));
        assert!(net.status(first).committed_in_term, "pre-vote, vote, append, and their answers, and the commit index");
        assert!(rounds <= 8, "{rounds} rounds");
    }
}

/// Without pre-vote a wrong belief would cost the leader its term, so a member must not act on it.
#[test]
fn without_pre_vote_nobody_campaigns_early() {
    let mut net = Net::led(3);
    net.crash(2, 0);
    net.members.get_mut(&2).expect("a member").pre_vote = false;
    net.start(2);
    net.tick();
    assert_eq!(net.status(2).leader, 1);
    assert_eq!(net.driver(2).leader_lost(), None);
    assert_eq!(net.status(2).leader, 0, "it grants others their pre-votes all the same");
}

/// etcd 3.4 has pre-vote off, later ones have it on; a mixed cluster elects whoever is left.
#[test]
fn members_with_and_without_pre_vote_elect_together() {
    for old in [vec![1], vec![1, 2], vec![2, 3]] {
        let mut net = Net::new(3, 11);
        for id in &old {
            net.crash(*id, 0);
            net.members.get_mut(id).expect("a member").pre_vote = false;
            net.start(*id);
        }
        for round in 0..6 {
            net.tick_until(6 * ELECTION_TICKS, |net| net.leader().is_some());
            let leader = net.leader().expect("elected");
            assert!(net.propose(leader, &format!("round {round}")));
            net.settle();
            net.crash(leader, 0);
            net.tick_until(8 * ELECTION_TICKS, |net| net.leader().is_some());
            net.start(leader);
            net.tick();
        }
        net.assert_equal();
    }
}

/// Check-quorum: members in touch with their leader ignore even a real vote request.
#[test]
fn a_candidate_without_pre_vote_gets_no_vote_while_a_leader_is_heard() {
    let mut net = Net::led(3);
    net.crash(3, 0);
    net.members.get_mut(&3).expect("a member").pre_vote = false;
    net.start(3);
    net.cut.insert((1, 3));
    net.cut.insert((3, 1));
    for _ in 0..2 * ELECTION_TICKS {
        net.tick();
        assert_eq!(net.status(2).leader, 1);
    }
    assert_eq!(net.status(3).role, Role::Candidate);
}

#[test]
fn a_member_that_was_cut_off_comes_back_without_a_new_term() {
    let mut net = Net::led(3);
    let term = net.status(1).term;
    net.isolate(3);
    for _ in 0..5 * ELECTION_TICKS {
        net.tick();
    }
    assert!(net.propose(1, "meanwhile"));
    net.settle();
    net.heal();
    net.tick();
    net.tick();
    assert_eq!((net.status(3).term, net.status(3).leader), (term, 1));
    net.assert_equal();
}

#[test]
fn a_leader_without_a_quorum_steps_down() {
    let mut net = Net::led(3);
    net.isolate(1);
    net.tick_until(2 * ELECTION_TICKS + 1, |net| net.status(1).role == Role::Follower);
}

#[test]
fn leadership_is_handed_over_without_a_tick() {
    let mut net = Net::led(3);
    assert!(net.driver(1).transfer_leader(3));
    assert_eq!(net.status(1).transfer_to, 3);
    assert!(!net.propose(1, "not now"), "proposals are dropped meanwhile");
    net.settle();
    assert_eq!(net.leader(), Some(3));
    assert_eq!(net.status(1).transfer_to, 0);
    let votes = net.sent.iter().rev().filter(|p| p.message.r#type() == MessageType::MsgVote);
    for vote in votes.take(2) {
        assert_eq!(vote.message.context.as_deref(), Some(&b"CampaignTransfer"[..]), "no lease and no pre-vote stop it");
    }
}

#[test]
fn leadership_is_handed_over_only_to_another_voter() {
    let mut net = Net::led(3);
    net.join(4);
    net.reconfigure(ConfChangeType::ConfChangeAddLearnerNode, 4);
    for to in [1, 4, 9] {
        assert!(!net.driver(1).transfer_leader(to), "to {to}");
    }
    assert!(!net.driver(2).transfer_leader(3), "and only by the leader");
    assert_eq!(net.status(1).transfer_to, 0);
}

#[test]
fn a_transfer_to_a_dead_member_is_given_up() {
    let mut net = Net::led(3);
    net.crash(3, 0);
    assert!(net.driver(1).transfer_leader(3));
    net.tick_until(ELECTION_TICKS, |net| net.status(1).transfer_to == 0);
    assert_eq!(net.leader(), Some(1));
    assert!(net.propose(1, "goes on"));
}

/// The others elect a leader; the old one cannot, though it can send, as nothing it promises reaches its disk.
#[test]
fn a_leader_whose_disk_hangs_gives_way() {
    let mut net = Net::led(3);
    net.hung.insert(1);
    assert!(net.propose(1, "stuck here, but not elsewhere"));
    net.settle();
    let term = net.status(1).term;
    net.driver(1).step_down();
    let status = net.status(1);
    assert_eq!((status.role, status.leader, status.term), (Role::Follower, 0, term));
    net.tick_until(4 * ELECTION_TICKS, |net| net.leader().is_some());
    let leader = net.leader().expect("elected");
    assert_ne!(leader, 1);
    for _ in 0..4 * ELECTION_TICKS {
        net.tick();
        assert_eq!(net.leader(), Some(leader), "and stays");
    }
    net.hung.clear();
    net.tick();
    net.tick();
    net.assert_equal();
}

/// The receipt from the disk and a vote may overtake each other on their ways to the driver. raft-rs panics when it wins
/// with a log of which it does not know that it is on disk.
#[test]
fn a_vote_may_arrive_before_the_receipt_for_the_request() {
    let mut net = Net::led(3);
    let deliver_to = |net: &mut Net, to: u64| {
        for packet in std::mem::take(&mut net.wire) {
            if packet.to == to { net.deliver(packet) } else { net.wire.push_back(packet) }
        }
    };
    assert!(net.propose(1, "on its way to disk when the leader dies"));
    net.collect(1);
    deliver_to(&mut net, 2);
    net.collect(2);
    net.crash(1, 0);
    net.wire.clear();
    net.driver(2).leader_lost();
    net.driver(3).leader_lost();
    net.driver(2).campaign();
    // Twice: for the pre-vote, and for the vote. Everything is synced at once; the receipts come at the end.
    let mut receipts = Vec::new();
    for kind in [MessageType::MsgPreVote, MessageType::MsgVote] {
        net.collect(2);
        let batches = net.sync_without_receipt(2);
        receipts.extend(batches);
        assert!(net.wire.iter().any(|packet| packet.message.r#type() == kind));
        deliver_to(&mut net, 3);
        net.collect(3);
        net.sync(3, usize::MAX);
        deliver_to(&mut net, 2);
    }
    assert_eq!(net.status(2).role, Role::Leader);
    for number in receipts {
        net.driver(2).persisted(number);
    }
    net.settle();
    net.start(1);
    net.tick();
    net.tick();
    net.assert_equal();
}

/// A sole voter elects itself without a word to anybody. Were its learner to get entries of that term before the term is
/// on disk, a crash could make the same term begin again with others.
#[test]
fn a_sole_voters_term_is_on_disk_before_its_learner_hears_of_it() {
    let mut net = Net::led(1);
    net.join(2);
    net.reconfigure(ConfChangeType::ConfChangeAddLearnerNode, 2);
    net.checkpoint(1, 100);
    net.crash(1, 0);
    net.start(1);
    net.settle();
    net.driver(1).campaign();
    net.collect(1);
    assert_eq!(net.status(1).role, Role::Leader);
    assert!(net.wire.is_empty(), "{:?}", net.wire);
    net.settle();
    assert_eq!(net.status(2).term, net.status(1).term);
    net.assert_equal();
}
