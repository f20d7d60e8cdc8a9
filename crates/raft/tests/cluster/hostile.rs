//! Arbitrary messages at a member in any role. They may confuse it, as a member that lies can confuse any raft; they may not
//! bring it down or keep it busy for ever.

use bytes::Bytes;
use keelson_raft::{Config, Driver, Start};
use proto::raftpb;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use wal::{EntryKind, HardState};

use super::net::change;

fn member(rng: &mut StdRng) -> Driver {
    let ids: Vec<u64> = (1..=rng.random_range(1..=4)).collect();
    let learners = if rng.random_range(0..3) == 0 { vec![5] } else { Vec::new() };
    // Member 5 may be this one: a learner, or a stranger that is about to join.
    let id = if rng.random_range(0..4) == 0 { 5 } else { 1 };
    let conf_state = raftpb::ConfState { voters: ids, learners, ..Default::default() };
    let term = rng.random_range(1..4);
    let entries = (1..=rng.random_range(1..8)).map(|index| wal::Entry { term: 1, index, ..Default::default() });
    let config = Config {
        id,
        election_ticks: 3,
        heartbeat_ticks: 1,
        pre_vote: rng.random(),
        max_message_bytes: 100,
        max_inflight: 2,
        max_committed_bytes: 100,
        max_uncommitted_bytes: 1000,
        applied: 1,
        seed: rng.random(),
    };
    let start = Start {
        hard_state: HardState { term, vote: 0, commit: 1 },
        conf_state,
        base: (0, 0),
        entries: entries.collect(),
    };
    Driver::new(config, start).expect("fits together")
}

/// Numbers near what the member knows, the ends of their range, and anything.
fn number(rng: &mut StdRng, near: u64) -> Option<u64> {
    match rng.random_range(0..60) {
        0 => None,
        1 => Some(0),
        2 => Some(u64::MAX - rng.random_range(0..3)),
        3 => Some(1 << rng.random_range(0..64)),
        _ => Some((near + rng.random_range(0..4)).saturating_sub(rng.random_range(0..4))),
    }
}

fn message(rng: &mut StdRng, driver: &Driver, id: u64) -> raftpb::Message {
    let status = driver.status();
    let kind = if rng.random_range(0..10) == 0 {
        rng.random_range(-1..30)
    } else {
        *[2, 3, 3, 3, 4, 4, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 18].choose(rng).expect("some")
    };
    let index = number(rng, status.last_index);
    let term = number(rng, status.term);
    let mut at = index.unwrap_or(0);
    let entries = (0..rng.random_range(0..4)).map(|_| {
        at = if rng.random_range(0..30) == 0 { rng.random_range(0..10) } else { at.saturating_add(1) };
        let kind = *[0, 0, 0, 1, 1, 2, 7].choose(rng).expect("some");
        let data = match rng.random_range(0..4) {
            0 => None,
            1 => Some(change(raftpb::ConfChangeType::ConfChangeAddNode, rng.random_range(0..6))),
            2 => Some(change(raftpb::ConfChangeType::ConfChangeRemoveNode, rng.random_range(0..6))),
            _ => Some(Bytes::from(vec![rng.random::<u8>(); rng.random_range(0..50)])),
        };
        raftpb::Entry { term: number(rng, status.term.min(2)), index: Some(at), r#type: Some(kind), data }
    });
    let entries = entries.collect();
    let mut some_ids = |most| (0..rng.random_range(0..=most)).map(|_| rng.random_range(0..7)).collect::<Vec<u64>>();
    let (voters, learners) = (some_ids(4), some_ids(2));
    let conf_state = match rng.random_range(0..2) {
        0 => raftpb::ConfState { voters, learners, ..Default::default() },
        _ => raftpb::ConfState { voters: vec![1, 2, 5], ..Default::default() },
    };
    let metadata = raftpb::SnapshotMetadata {
        conf_state: Some(conf_state),
        index: number(rng, status.last_index + 1),
        term: number(rng, status.term),
    };
    raftpb::Message {
        r#type: Some(kind),
        to: if rng.random_range(0..20) == 0 { number(rng, 3) } else { Some(id) },
        from: number(rng, 3),
        term,
        log_term: number(rng, 1),
        index,
        entries,
        commit: number(rng, status.commit_index),
        vote: None,
        snapshot: rng.random::<bool>().then_some(raftpb::Snapshot { data: None, metadata: Some(metadata) }),
        reject: Some(rng.random_range(0..4) == 0),
        reject_hint: number(rng, status.last_index),
        context: rng
            .random::<bool>()
            .then(|| Bytes::from_static([&b"CampaignTransfer"[..], b"12345678", b""].choose(rng).expect("some"))),
        responses: Vec::new(),
    }
}

/// Messages taken in each role, and refused; snapshots.
#[derive(Debug, Default)]
struct Tally {
    taken: [usize; 4],
    refused: usize,
    snapshots: usize,
}

fn life(seed: u64, tally: &mut Tally) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut driver = member(&mut rng);
    let id = if driver.status().learner || !driver.status().voter { 5 } else { 1 };
    let mut unsynced: Vec<u64> = Vec::new();
    let mut committed: Vec<wal::Entry> = Vec::new();
    let mut applied = 1;
    for _ in 0..300 {
        match rng.random_range(0..20) {
            0..10 => {
                let message = message(&mut rng, &driver, id);
                let role = driver.status().role as usize;
                match driver.step(message) {
                    Ok(()) => tally.taken[role] += 1,
                    Err(_) => tally.refused += 1,
                }
            }
            10 => driver.tick(),
            11 => driver.campaign(),
            12 => drop(driver.propose(vec![Bytes::from_static(b"a")])),
            13 => driver.read_index(rng.random()),
            14 => {
                driver.step_down();
                if driver.leader_lost() == Some(0) {
                    driver.campaign();
                }
            }
            15 => {
                let to = rng.random_range(0..6);
                assert!(!driver.transfer_leader(to) || to != id, "to itself");
            }
            16 => {
                driver.report_snapshot(rng.random_range(0..6), rng.random());
                driver.report_unreachable(rng.random_range(0..6));
            }
            17 => driver.compact(rng.random_range(0..20)),
            18 if !unsynced.is_empty() => {
                let batches = rng.random_range(1..=unsynced.len());
                driver.persisted(unsynced.drain(..batches).next_back().expect("some"));
            }
            _ => {
                for entry in std::mem::take(&mut committed) {
                    if entry.index > applied {
                        if entry.kind == EntryKind::ConfChange {
                            drop(driver.apply_conf_change(&entry));
                        }
                        applied = entry.index;
                        driver.applied(applied);
                    }
                }
            }
        }
        // Several things may happen in a turn.
        if rng.random_range(0..4) == 0 {
            continue;
        }
        let mut turns = 0;
        while let Some(effects) = driver.ready() {
            unsynced.push(effects.number);
            if let Some(snapshot) = &effects.snapshot {
                tally.snapshots += 1;
                applied = snapshot.index;
                committed.clear();
            }
            committed.extend(effects.committed);
            turns += 1;
            assert!(turns < 200, "it never comes to rest");
        }
    }
}

/// `RAFT_HOSTILE=number` runs more lives than usual.
#[test]
fn no_message_brings_a_member_down() {
    let mut tally = Tally::default();
    for seed in 0..std::env::var("RAFT_HOSTILE").map_or(1500, |n| n.parse().expect("a number")) {
        let mut lived = std::panic::AssertUnwindSafe(&mut tally);
        if let Err(panic) = std::panic::catch_unwind(move || life(seed, &mut lived)) {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
    eprintln!("{tally:?}");
    assert!(
        tally.taken.iter().all(|taken| *taken > 1000) && tally.refused > 1000 && tally.snapshots > 100,
        "{tally:?}"
    );
}
