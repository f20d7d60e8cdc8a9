//! What is said to peers, and what is taken from them. The bytes are those of real members.

use bytes::Bytes;
use keelson_raft::{Config, Driver, DriverError, Start};
use prost::Message as _;
use proto::raftpb::{self, ConfChangeType, EntryType, MessageType};
use wal::{Entry, EntryKind, HardState};

use super::net::{Net, change};

/// A member of a cluster of three that has just been bootstrapped: three entries of term 1.
fn bootstrapped(id: u64, others: [u64; 2]) -> Driver {
    let ids = [id, others[0], others[1]];
    let entries = ids.iter().zip(1..).map(|(id, index)| Entry {
        kind: EntryKind::ConfChange,
        term: 1,
        index,
        data: change(ConfChangeType::ConfChangeAddNode, *id),
    });
    let start = Start {
        hard_state: HardState { term: 1, vote: 0, commit: 3 },
        entries: entries.clone().collect(),
        ..Start::default()
    };
    let config = Config {
        id,
        election_ticks: 10,
        heartbeat_ticks: 1,
        pre_vote: true,
        max_message_bytes: 1 << 20,
        max_inflight: 512,
        max_committed_bytes: 1 << 20,
        max_uncommitted_bytes: 1 << 30,
        applied: 0,
        seed: 1,
    };
    let mut driver = Driver::new(config, start).expect("starts");
    for entry in entries {
        driver.apply_conf_change(&entry).expect("an addition");
        driver.applied(entry.index);
    }
    while let Some(effects) = driver.ready() {
        driver.persisted(effects.number);
    }
    driver
}

/// Everything that comes out now, once it is synced.
fn said(driver: &mut Driver) -> Vec<raftpb::Message> {
    let mut out = Vec::new();
    while let Some(effects) = driver.ready() {
        driver.persisted(effects.number);
        out.extend(effects.messages);
        out.extend(effects.promises);
    }
    out
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// A leader's first append, as 3.4.23 (all fields written) and 3.7.1 (only what is set) send it.
#[test]
fn an_append_of_any_version_means_the_same() {
    let old = "0803 10a9ff8688db88d2bcf201 18a484eba999afc9c6f401 2002 2801 3003 3a06080010021804 4003 \
               4a0a12080a0228001000 1800 5000 5800";
    let new = "0803 10c1c0c798e2fbed8115 188e8fe5fc919dc2b7e201 2002 2801 3003 3a0410021804 4003";
    for bytes in [old, new] {
        let message = raftpb::Message::decode(hex(bytes).as_slice()).expect("a real member's");
        let (own, leader) = (message.to(), message.from());
        let mut driver = bootstrapped(own, [leader, 77]);
        driver.step(message).expect("taken");
        let answers = said(&mut driver);
        let expected = raftpb::Message {
            r#type: Some(MessageType::MsgAppResp as i32),
            to: Some(leader),
            from: Some(own),
            term: Some(2),
            index: Some(4),
            ..Default::default()
        };
        assert_eq!(answers, [expected]);
        let status = driver.status();
        assert_eq!((status.leader, status.term, status.commit_index, status.last_index), (leader, 2, 3, 4));
    }
}

/// The requests of a 3.7.1 member's first election, and its leader's first append, have these fields and no others.
#[test]
fn an_election_looks_like_etcds() {
    let mut driver = bootstrapped(1, [2, 3]);
    driver.campaign();
    let to = |to, kind: MessageType| raftpb::Message {
        r#type: Some(kind as i32),
        to: Some(to),
        from: Some(1),
        term: Some(2),
        log_term: Some(1),
        index: Some(3),
        ..Default::default()
    };
    let from_2 = |kind: MessageType| raftpb::Message {
        r#type: Some(kind as i32),
        to: Some(1),
        from: Some(2),
        term: Some(2),
        ..Default::default()
    };
    let sorted = |mut messages: Vec<raftpb::Message>| {
        messages.sort_by_key(raftpb::Message::to);
        messages
    };
    assert_eq!(sorted(said(&mut driver)), [to(2, MessageType::MsgPreVote), to(3, MessageType::MsgPreVote)]);
    driver.step(from_2(MessageType::MsgPreVoteResp)).expect("granted");
    assert_eq!(sorted(said(&mut driver)), [to(2, MessageType::MsgVote), to(3, MessageType::MsgVote)]);
    driver.step(from_2(MessageType::MsgVoteResp)).expect("granted");
    let append = |id| raftpb::Message {
        entries: vec![raftpb::Entry { term: Some(2), index: Some(4), ..Default::default() }],
        commit: Some(3),
        ..to(id, MessageType::MsgApp)
    };
    assert_eq!(sorted(said(&mut driver)), [append(2), append(3)]);
    // A rejected pre-vote, with fields that etcd does not have left out.
    driver.step(raftpb::Message { term: Some(2), ..from_2(MessageType::MsgPreVote) }).expect("asked");
    let answer = said(&mut driver).pop().expect("answered");
    let expected = raftpb::Message {
        r#type: Some(MessageType::MsgPreVoteResp as i32),
        to: Some(2),
        from: Some(1),
        term: Some(2),
        reject: Some(true),
        ..Default::default()
    };
    assert_eq!(answer, expected);
}

/// raft-rs's fields 13 to 16 mean other things to etcd.
#[test]
fn fields_of_either_kind_alone_are_not_exchanged() {
    let mut driver = bootstrapped(1, [2, 3]);
    let heartbeat = raftpb::Message {
        r#type: Some(MessageType::MsgHeartbeat as i32),
        to: Some(1),
        from: Some(2),
        term: Some(2),
        vote: Some(9),
        responses: vec![raftpb::Message::default()],
        snapshot: Some(raftpb::Snapshot::default()),
        ..Default::default()
    };
    driver.step(heartbeat).expect("taken");
    let answer = said(&mut driver).pop().expect("answered");
    assert_eq!((answer.vote, answer.responses.len(), answer.commit, answer.snapshot), (None, 0, None, None));
}

/// The log's bytes are etcd's, whatever raft-rs makes of them: on the wire, in the batch for the disk, and when applied.
#[test]
fn membership_changes_keep_their_bytes() {
    let mut net = Net::led(3);
    let data: Bytes = raftpb::ConfChange {
        id: Some(0),
        r#type: Some(ConfChangeType::ConfChangeAddLearnerNode as i32),
        node_id: Some(4),
        context: Some(Bytes::from_static(b"{\"id\":4}")),
    }
    .encode_to_vec()
    .into();
    net.driver(2).propose_conf_change(data.clone()).expect("forwarded");
    net.settle();
    let is_change = |entry: &&raftpb::Entry| entry.r#type() == EntryType::EntryConfChange;
    for kind in [MessageType::MsgProp, MessageType::MsgApp] {
        let sent = net.sent.iter().filter(|p| p.message.r#type() == kind);
        let changes: Vec<_> = sent.flat_map(|p| p.message.entries.iter().filter(is_change)).collect();
        assert!(!changes.is_empty());
        assert!(changes.iter().all(|entry| entry.data == Some(data.clone())), "{kind:?}");
    }
    assert_eq!(net.driver(3).conf_state().learners, [4]);
}

#[test]
fn what_no_peer_may_send_is_refused_and_changes_nothing() {
    let base = |kind: i32| raftpb::Message {
        r#type: Some(kind),
        to: Some(1),
        from: Some(2),
        term: Some(2),
        ..Default::default()
    };
    let app = MessageType::MsgApp as i32;
    let entry = |term, index| raftpb::Entry { term: Some(term), index: Some(index), ..Default::default() };
    let append = |index, log_term, entries| raftpb::Message {
        index: Some(index),
        log_term: Some(log_term),
        entries,
        ..base(app)
    };
    let proposal = |kind, data: Vec<u8>| raftpb::Message {
        entries: vec![raftpb::Entry { r#type: Some(kind), data: Some(data.into()), ..Default::default() }],
        ..base(MessageType::MsgProp as i32)
    };
    let snapshot = |index, term, voters: &[u64], learners: &[u64]| {
        let conf_state =
            raftpb::ConfState { voters: voters.to_vec(), learners: learners.to_vec(), ..Default::default() };
        let metadata = raftpb::SnapshotMetadata { conf_state: Some(conf_state), index: Some(index), term: Some(term) };
        raftpb::Message {
            snapshot: Some(raftpb::Snapshot { metadata: Some(metadata), data: None }),
            ..base(MessageType::MsgSnap as i32)
        }
    };
    // Groups in groups: what rust-protobuf would recurse into until the stack ends (RUSTSEC-2024-0437).
    let nested = [vec![0x2b; 100_000], vec![0x2c; 100_000]].concat();
    let local = [0, 1, 10, 11, 12, 19, 20, 21, 22, 23].map(base);
    let mut messages = vec![
        (base(99), "unknown message type 99"),
        (raftpb::Message { from: None, ..base(app) }, "sender 0 cannot be"),
        (raftpb::Message { from: Some(1), ..base(app) }, "sender 1 cannot be"),
        (raftpb::Message { to: Some(3), ..base(app) }, "addressed to 3, this is 1"),
        (raftpb::Message { term: None, ..base(app) }, "MsgApp without a term"),
        (raftpb::Message { term: Some(u64::MAX), ..base(app) }, "term 18446744073709551615 is out of range"),
        (append(3, 1, vec![entry(2, 5)]), "entry 5 of term 2 cannot follow entry 3 of term 1"),
        (append(3, 1, vec![entry(3, 4)]), "entry 4 of term 3 cannot follow"),
        (append(3, 2, vec![entry(1, 4)]), "entry 4 of term 1 cannot follow"),
        (append(0, 0, vec![entry(0, 1)]), "entry 1 of term 0 cannot follow"),
        (append(9, 0, vec![]), "entry 9 of term 0 cannot follow"),
        (append(3, 1, vec![raftpb::Entry { r#type: Some(3), ..entry(2, 4) }]), "unknown entry type 3"),
        (base(MessageType::MsgProp as i32), "MsgProp without anything in it"),
        (base(MessageType::MsgReadIndex as i32), "MsgReadIndex without anything in it"),
        (proposal(1, vec![0x10, 0x09]), "conf change: unknown type 9"),
        (proposal(1, nested), "conf change: "),
        (proposal(2, vec![]), "unknown entry type 2"),
        (base(MessageType::MsgSnap as i32), "it is empty"),
        (snapshot(9, 3, &[1], &[]), "it is from the future"),
        (snapshot(9, 2, &[], &[1]), "its membership has no voter"),
        (snapshot(9, 2, &[1, 2, 1], &[]), "its membership names a member twice"),
        (snapshot(9, 2, &[1, 2], &[2]), "its membership names a member twice"),
        (snapshot(9, 2, &[1, 0], &[]), "its membership names member 0"),
    ];
    messages.extend(local.map(|message| (message, "is never sent between members")));
    let mut driver = bootstrapped(1, [2, 3]);
    let before = driver.status();
    for (message, reason) in messages {
        let name = format!("{message:.200?}");
        let error = driver.step(message).expect_err(&name);
        assert!(matches!(error, DriverError::Refused(_)), "{error}");
        assert!(error.to_string().contains(reason), "{error} for {reason}");
        assert_eq!(driver.status(), before);
        assert!(driver.ready().is_none());
    }
}

/// The leader counts on entries that were acknowledged here. A member that has lost them must not stay and vote.
#[test]
fn a_member_whose_log_is_lost_is_told() {
    let mut driver = bootstrapped(1, [2, 3]);
    let heartbeat = raftpb::Message {
        r#type: Some(MessageType::MsgHeartbeat as i32),
        to: Some(1),
        from: Some(2),
        term: Some(2),
        commit: Some(7),
        ..Default::default()
    };
    assert!(matches!(driver.step(heartbeat), Err(DriverError::LogLost { commit: 7, last: 3 })));
}

/// Acknowledgements of entries that a leader never had would be counted for the ones it is yet to get.
#[test]
fn an_acknowledgement_beyond_the_log_is_refused() {
    let mut net = Net::led(3);
    let last = net.status(1).last_index;
    let answer = raftpb::Message {
        r#type: Some(MessageType::MsgAppResp as i32),
        to: Some(1),
        from: Some(2),
        term: Some(net.status(1).term),
        index: Some(last + 1),
        ..Default::default()
    };
    assert!(matches!(net.driver(1).step(answer), Err(DriverError::Refused(_))));
}
