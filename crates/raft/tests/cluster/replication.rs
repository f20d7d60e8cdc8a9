//! Entries and snapshots on their way.

use bytes::Bytes;
use keelson_raft::{DriverError, ProgressState};
use proto::raftpb::MessageType;

use super::net::{ELECTION_TICKS, Net};

/// A value of 1 MiB stays where it is: in every follower's message, in the log's batch and in what is applied.
#[test]
fn entry_data_is_shared_not_copied() {
    let mut net = Net::led(5);
    let value = Bytes::from(vec![7u8; 1 << 20]);
    let place = value.as_ptr();
    net.driver(1).propose(vec![value]).expect("taken");
    let effects = net.driver(1).ready().expect("to be written and sent");
    assert_eq!(effects.entries[0].data.as_ptr(), place);
    let sent: Vec<_> = effects.messages.iter().map(|m| m.entries[0].data.as_ref().expect("data").as_ptr()).collect();
    assert_eq!(sent, [place; 4]);
    let message = effects.messages.into_iter().find(|m| m.to() == 2).expect("for member 2");
    net.driver(2).step(message).expect("an append");
    let received = net.driver(2).ready().expect("to be written");
    assert_eq!(received.entries[0].data.as_ptr(), place);
}

#[test]
fn a_follower_forwards_proposals_and_one_without_a_leader_drops_them() {
    let mut net = Net::led(3);
    assert!(net.propose(2, "by way of a follower"));
    net.settle();
    assert_eq!(net.count_sent(MessageType::MsgProp, 1), 1);
    assert_eq!(net.status(3).commit_index, net.status(1).commit_index);
    net.driver(2).leader_lost();
    assert!(!net.propose(2, "to nobody"));
    net.driver(2).propose(Vec::new()).expect("nothing to do, and nothing is sent");
    net.collect(2);
    assert!(net.wire.is_empty());
    net.assert_equal();
}

/// Two members that take each other for the leader.
#[test]
fn a_forwarded_proposal_is_not_played_back() {
    let mut net = Net::led(3);
    assert!(net.propose(2, "a"));
    net.collect(2);
    let mut proposal = net.wire.pop_back().expect("forwarded").message;
    (proposal.from, proposal.to) = (Some(1), Some(2));
    assert!(matches!(net.driver(2).step(proposal), Err(DriverError::Dropped)));
}

/// The design's worry: that after an election, a snapshot or a lost connection the commit index travels only with the
/// next heartbeat. No tick passes here.
#[test]
fn commits_reach_every_follower_without_waiting_for_a_heartbeat() {
    let all_know = |net: &Net| (1..=5).all(|id| net.status(id).commit_index == net.status(1).commit_index);
    let mut net = Net::led(5);
    assert!(all_know(&net), "after an election");
    assert!(net.propose(1, "a"));
    net.settle();
    assert!(all_know(&net), "while replicating");
    for id in 2..=5 {
        net.driver(1).report_unreachable(id);
    }
    assert!(net.propose(1, "b"));
    net.settle();
    assert!(all_know(&net), "while probing");
    lag(&mut net, 5);
    net.start(5);
    net.settle();
    net.driver(1).tick();
    net.settle();
    assert!(all_know(&net), "after a snapshot, which a heartbeat's answer had asked for");
    net.assert_equal();
}

/// Member `id` goes down, and the others' logs move on beyond it.
fn lag(net: &mut Net, id: u64) {
    net.crash(id, 0);
    for i in 0..50 {
        assert!(net.propose(1, &format!("without {id}: {i}")));
    }
    net.settle();
    for other in net.up() {
        net.checkpoint(other, 5);
    }
    // Nothing was heard of it for two checks of the quorum.
    for _ in 0..2 * ELECTION_TICKS {
        net.tick();
    }
    net.sent.clear();
}

#[test]
fn a_follower_behind_the_log_gets_one_snapshot_and_goes_on() {
    let mut net = Net::led(3);
    lag(&mut net, 3);
    assert_eq!(net.count_sent(MessageType::MsgSnap, 3), 0, "none while it is down");
    net.start(3);
    net.tick();
    net.tick();
    assert_eq!(net.count_sent(MessageType::MsgSnap, 3), 1);
    assert_eq!(net.driver(1).progress()[2].state, ProgressState::Replicate);
    assert!(net.driver(3).first_index() > 40, "its log begins where the snapshot ends");
    assert!(net.propose(1, "all together"));
    net.settle();
    net.assert_equal();
    net.crash(3, 0);
    net.start(3);
    net.settle();
    net.tick();
    net.assert_equal();
}

/// It leaves once, however many ticks and proposals pass before its fate is known.
#[test]
fn a_snapshot_on_its_way_is_not_sent_again() {
    let mut net = Net::led(3);
    lag(&mut net, 3);
    net.start(3);
    let mut slow = Vec::new();
    for i in 0..3 * ELECTION_TICKS {
        for id in 1..=3 {
            net.driver(id).tick();
        }
        assert!(net.propose(1, &format!("meanwhile {i}")));
        for _ in 0..5 {
            for id in 1..=3 {
                net.collect(id);
                net.sync(id, usize::MAX);
                net.apply(id, usize::MAX);
            }
            for packet in std::mem::take(&mut net.wire) {
                if packet.message.r#type() == MessageType::MsgSnap { slow.push(packet) } else { net.deliver(packet) }
            }
        }
    }
    assert_eq!(slow.len(), 1);
    net.deliver(slow.pop().expect("one"));
    net.settle();
    net.tick();
    net.assert_equal();
}

/// A failure is tried again when the member next answers a heartbeat, and not before.
#[test]
fn a_snapshot_that_failed_is_sent_again_with_the_heartbeats() {
    let mut net = Net::led(3);
    lag(&mut net, 3);
    net.start(3);
    for attempt in 1..=5 {
        for id in 1..=3 {
            net.driver(id).tick();
        }
        for _ in 0..20 {
            for id in 1..=3 {
                net.collect(id);
                net.sync(id, usize::MAX);
                net.apply(id, usize::MAX);
            }
            for packet in std::mem::take(&mut net.wire) {
                if packet.message.r#type() == MessageType::MsgSnap {
                    net.driver(1).report_snapshot(3, false);
                } else {
                    net.deliver(packet);
                }
            }
        }
        let sent = net.count_sent(MessageType::MsgSnap, 3);
        assert!(sent <= attempt, "{sent} snapshots in {attempt} heartbeats");
    }
    assert!(net.count_sent(MessageType::MsgSnap, 3) >= 3, "it keeps trying");
    net.tick();
    net.tick();
    net.assert_equal();
}

/// A snapshot overtakes entries that were committed but not applied yet, a change of members among them.
#[test]
fn a_change_that_a_snapshot_has_overtaken_is_not_applied_on_top_of_it() {
    let mut net = Net::led(3);
    lag(&mut net, 3);
    net.start(3);
    net.tick();
    net.tick();
    let before = net.driver(3).conf_state().clone();
    let entry = wal::Entry {
        kind: wal::EntryKind::ConfChange,
        term: 1,
        index: 10,
        data: super::net::change(proto::raftpb::ConfChangeType::ConfChangeAddNode, 9),
    };
    assert_eq!(net.driver(3).apply_conf_change(&entry).expect("overtaken"), before);
    assert_eq!(net.driver(3).conf_state(), &before);
}

/// A slow reader may hold up its own window, not the others'.
#[test]
fn a_follower_that_does_not_answer_holds_up_nobody_else() {
    let mut net = Net::led(3);
    net.cut.insert((3, 1));
    net.sent.clear();
    for i in 0..200 {
        assert!(net.propose(1, &format!("{i}")));
        net.settle();
    }
    assert_eq!(net.status(2).commit_index, net.status(1).commit_index);
    // Entries, and for each of them the commit index.
    let sent = net.count_sent(MessageType::MsgApp, 3);
    assert!(sent <= 2 * net.max_inflight, "{sent} messages in a window of {}", net.max_inflight);
    net.heal();
    for _ in 0..8 {
        net.tick();
    }
    net.assert_equal();
}
