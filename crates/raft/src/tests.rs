//! A sole voter on the path that a cluster uses.

use bytes::Bytes;
use prost::Message as _;
use proto::raftpb;

use super::*;

const ID: u64 = 0x8e9e_05c5_2164_694d;

fn config(applied: u64) -> Config {
    Config {
        id: ID,
        election_ticks: 10,
        heartbeat_ticks: 1,
        pre_vote: true,
        max_message_bytes: 1 << 20,
        max_inflight: 512,
        max_committed_bytes: 1 << 20,
        max_uncommitted_bytes: 1 << 30,
        applied,
        seed: 1,
    }
}

fn bootstrap() -> Start {
    let change = raftpb::ConfChange {
        r#type: Some(raftpb::ConfChangeType::ConfChangeAddNode as i32),
        node_id: Some(ID),
        ..Default::default()
    };
    Start {
        hard_state: HardState { term: 1, vote: 0, commit: 1 },
        entries: vec![Entry { kind: EntryKind::ConfChange, term: 1, index: 1, data: change.encode_to_vec().into() }],
        ..Start::default()
    }
}

/// Carries out everything at once and returns what was applied.
fn settle(driver: &mut Driver) -> Vec<Entry> {
    let mut applied = Vec::new();
    for _ in 0..100 {
        let Some(effects) = driver.ready() else { return applied };
        driver.persisted(effects.number);
        for entry in &effects.committed {
            if entry.kind == EntryKind::ConfChange {
                driver.apply_conf_change(entry).expect("bootstrap change");
            }
            driver.applied(entry.index);
        }
        applied.extend(effects.committed);
    }
    panic!("does not settle");
}

fn leader() -> Driver {
    let mut driver = Driver::new(config(0), bootstrap()).expect("starts");
    settle(&mut driver);
    driver.campaign();
    settle(&mut driver);
    driver
}

#[test]
fn a_fresh_sole_voter_applies_its_bootstrap_and_leads_term_two() {
    let driver = leader();
    let status = driver.status();
    assert_eq!((status.role, status.term, status.leader), (Role::Leader, 2, ID));
    assert!(status.sole_voter && status.committed_in_term);
    assert_eq!(status.commit_index, 2, "the bootstrap entry and the leader's empty one");
}

/// An entry commits when its own disk has it, and not before.
#[test]
fn nothing_commits_before_it_is_persisted() {
    let mut driver = leader();
    driver.propose(vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")]).expect("a leader takes proposals");
    let first = driver.ready().expect("entries to write");
    assert_eq!(first.entries.len(), 2);
    assert!(first.must_sync && first.committed.is_empty());
    assert!(driver.ready().is_none(), "nothing else may happen");
    driver.propose(vec![Bytes::from_static(b"c")]).expect("pipelined");
    let second = driver.ready().expect("the next batch forms while the first is on its way to disk");
    assert!(second.committed.is_empty());
    driver.persisted(first.number);
    let committed = driver.ready().expect("the first batch is committed").committed;
    assert_eq!(committed.iter().map(|e| e.data.as_ref()).collect::<Vec<_>>(), [b"a", b"b"]);
    driver.persisted(second.number);
    assert_eq!(settle(&mut driver).iter().map(|e| e.data.as_ref()).collect::<Vec<_>>(), [b"c"]);
}

#[test]
fn a_read_index_is_the_commit_index_when_it_was_asked_for() {
    let mut driver = leader();
    driver.propose(vec![Bytes::from_static(b"a")]).expect("proposed");
    settle(&mut driver);
    driver.read_index(77);
    let effects = driver.ready().expect("answered");
    assert_eq!(effects.reads, [(77, 3)]);
}

#[test]
fn a_follower_without_a_leader_drops_proposals() {
    let mut driver = Driver::new(config(0), bootstrap()).expect("starts");
    settle(&mut driver);
    assert!(matches!(driver.propose(vec![Bytes::from_static(b"a")]), Err(DriverError::Dropped)));
}

#[test]
fn a_restart_replays_only_what_was_not_applied() {
    let mut driver = leader();
    for data in ["a", "b", "c"] {
        driver.propose(vec![Bytes::from(data)]).expect("proposed");
        settle(&mut driver);
    }
    let mut start = bootstrap();
    start.entries.push(Entry { kind: EntryKind::Normal, term: 2, index: 2, data: Bytes::new() });
    for (i, data) in ["a", "b", "c"].iter().enumerate() {
        start.entries.push(Entry { kind: EntryKind::Normal, term: 2, index: 3 + i as u64, data: Bytes::from(*data) });
    }
    start.hard_state = HardState { term: 2, vote: ID, commit: 3 };
    start.conf_state = raftpb::ConfState { voters: vec![ID], auto_leave: Some(false), ..Default::default() };
    let mut again = Driver::new(config(4), start).expect("starts");
    again.campaign();
    let applied = settle(&mut again);
    assert_eq!(applied.iter().map(|e| e.index).collect::<Vec<_>>(), [5, 6], "c, and the new leader's empty entry");
    assert_eq!(again.status().term, 3);
}

#[test]
fn a_log_that_does_not_reach_the_applied_index_is_refused() {
    let error = Driver::new(config(9), bootstrap()).expect_err("entry 9 is not there");
    assert!(error.to_string().contains("outside the log, which holds 1..=1"), "{error}");
}

/// raft-rs would stop the process.
#[test]
fn a_membership_that_cannot_be_is_refused() {
    for voters in [vec![1, 1], vec![0, 1]] {
        let conf_state = raftpb::ConfState { voters, ..Default::default() };
        let error = Driver::new(config(0), Start { conf_state, ..Start::default() }).expect_err("refused");
        assert!(error.to_string().starts_with("cannot start consensus: its membership names"), "{error}");
    }
}

/// Entries are written before the hard state that comes with them, and a torn write ends between the two.
#[test]
fn a_term_that_only_the_log_knows_is_remembered_without_a_vote() {
    let mut start = bootstrap();
    start.hard_state.vote = 7;
    start.entries.push(Entry { term: 5, index: 2, ..Entry::default() });
    let driver = Driver::new(config(0), start).expect("starts");
    assert_eq!(driver.hard_state(), HardState { term: 5, vote: 0, commit: 1 });
}

#[test]
fn compaction_keeps_the_term_before_the_first_entry() {
    let mut driver = leader();
    driver.propose(vec![Bytes::from_static(b"a")]).expect("proposed");
    settle(&mut driver);
    driver.compact(2);
    assert_eq!((driver.first_index(), driver.term_at(2), driver.term_at(1)), (3, Some(2), None));
}

/// etcd's UpdateNode (2) must not be read as raft-rs's AddLearner (2): it would demote the voter.
#[test]
fn an_update_of_a_member_changes_no_voter() {
    let mut driver = leader();
    let update = raftpb::ConfChange {
        r#type: Some(raftpb::ConfChangeType::ConfChangeUpdateNode as i32),
        node_id: Some(ID),
        ..Default::default()
    };
    driver.propose_conf_change(update.encode_to_vec().into()).expect("proposed");
    settle(&mut driver);
    assert!(driver.status().sole_voter && !driver.status().learner);
}

/// The same seed draws the same election timeouts; the thread's own generator has no say.
#[test]
fn election_jitter_is_a_function_of_the_seed() {
    let ticks_to_lead = |seed| {
        let mut driver = Driver::new(Config { seed, ..config(0) }, bootstrap()).expect("starts");
        settle(&mut driver);
        (1..100)
            .find(|_| {
                driver.tick();
                settle(&mut driver);
                driver.status().role == Role::Leader
            })
            .expect("a sole voter elects itself")
    };
    let runs: Vec<i32> = (0..8).map(ticks_to_lead).collect();
    assert_eq!(runs, (0..8).map(ticks_to_lead).collect::<Vec<_>>());
    assert!(runs.iter().any(|t| *t != runs[0]), "and different seeds differ: {runs:?}");
}
