//! Read indexes: never stale, and answered to whoever asks.

use bytes::Bytes;
use proto::raftpb::{self, ConfChangeType, MessageType};

use super::net::{ELECTION_TICKS, Net, Packet};

fn message(kind: MessageType, from: u64, to: u64) -> raftpb::Message {
    raftpb::Message { r#type: Some(kind as i32), from: Some(from), to: Some(to), ..Default::default() }
}

fn read_request(from: u64, to: u64, context: &'static [u8]) -> raftpb::Message {
    let entry = raftpb::Entry { data: Some(Bytes::from_static(context)), ..Default::default() };
    raftpb::Message { entries: vec![entry], ..message(MessageType::MsgReadIndex, from, to) }
}

#[test]
fn leaders_followers_and_learners_get_a_read_index() {
    let mut net = Net::led(3);
    net.join(4);
    net.reconfigure(ConfChangeType::ConfChangeAddLearnerNode, 4);
    assert!(net.propose(1, "a"));
    net.settle();
    let commit = net.status(1).commit_index;
    for id in 1..=4 {
        let context = net.read(id);
        net.settle();
        assert_eq!(net.read_answer(id, context), Some(commit), "member {id}");
    }
}

/// It may have missed writes that it does not know about.
#[test]
fn a_leader_that_is_cut_off_answers_no_read() {
    let mut net = Net::led(3);
    net.isolate(1);
    net.driver(2).leader_lost();
    net.driver(3).leader_lost();
    net.driver(2).campaign();
    net.settle();
    assert_eq!(net.leader(), Some(2));
    assert!(net.propose(2, "new"));
    net.settle();
    let context = net.read(1);
    for _ in 0..ELECTION_TICKS {
        net.tick();
    }
    net.heal();
    for _ in 0..ELECTION_TICKS {
        net.tick();
    }
    assert_eq!(net.read_answer(1, context), None);
}

/// raft-rs drops what comes before the first commit of a term; etcd keeps it, and so do we, for own and forwarded reads.
#[test]
fn reads_in_a_terms_first_moments_are_kept() {
    let mut net = Net::new(3, 5);
    net.driver(1).campaign();
    // Everything but the answers to the leader's first entry.
    let mut late: Vec<Packet> = Vec::new();
    for _ in 0..20 {
        for id in 1..=3 {
            net.collect(id);
            net.sync(id, usize::MAX);
        }
        let (answers, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut net.wire).into_iter().partition(|p| p.message.r#type() == MessageType::MsgAppResp);
        late.extend(answers);
        for packet in rest {
            net.deliver(packet);
        }
    }
    assert_eq!((net.leader(), net.status(1).committed_in_term), (Some(1), false));
    let own = net.read(1);
    net.driver(1).step(read_request(2, 1, b"theirs")).expect("a read");
    net.collect(1);
    for packet in late {
        net.deliver(packet);
    }
    net.settle();
    let commit = net.status(1).commit_index;
    assert_eq!(net.read_answer(1, own), Some(commit));
    let answer = net.sent.iter().find(|p| p.message.r#type() == MessageType::MsgReadIndexResp).expect("answered");
    assert_eq!((answer.to, answer.message.index()), (2, commit));
    assert_eq!(answer.message.entries[0].data.as_deref(), Some(&b"theirs"[..]));
}

/// etcd's followers send a request ID, 3.7's leaders a counter; contexts of any length come back as they were.
#[test]
fn contexts_are_opaque() {
    let mut net = Net::led(3);
    for context in [&b"x"[..], b"\xe0\x41\xa2\x04\x9b\xba\xc4\x05", b"a context longer than any etcd's"] {
        net.driver(1).step(read_request(2, 1, context)).expect("a read");
        net.sent.clear();
        net.settle();
        let answer = net.sent.iter().find(|p| p.message.r#type() == MessageType::MsgReadIndexResp).expect("answered");
        assert_eq!(answer.message.entries[0].data.as_deref(), Some(context));
        let heartbeat = raftpb::Message {
            term: Some(net.status(1).term),
            context: Some(Bytes::copy_from_slice(context)),
            ..message(MessageType::MsgHeartbeat, 1, 3)
        };
        net.driver(3).step(heartbeat).expect("a heartbeat");
        net.collect(3);
        let echo = net.wire.pop_back().expect("answered");
        assert_eq!(echo.message.r#type(), MessageType::MsgHeartbeatResp);
        assert_eq!(echo.message.context.as_deref(), Some(context));
    }
}

/// A follower that syncs slowly, or not at all for a while, does not slow down reads or look dead.
#[test]
fn heartbeats_and_reads_do_not_wait_for_a_followers_disk() {
    let mut net = Net::led(3);
    net.hung.insert(2);
    net.hung.insert(3);
    assert!(net.propose(1, "waits for a disk"));
    net.settle();
    let context = net.read(1);
    net.settle();
    assert!(net.read_answer(1, context).is_some());
    let forwarded = net.read(2);
    net.settle();
    assert!(net.read_answer(2, forwarded).is_some());
    for _ in 0..3 * ELECTION_TICKS {
        net.tick();
    }
    assert_eq!(net.leader(), Some(1));
}
