//! Whole lives of clusters under everything that can go wrong, from a seed.

use keelson_raft::Role;
use proto::raftpb::ConfChangeType;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::net::{Net, Tally, change};

/// One thing happens.
fn step(net: &mut Net, rng: &mut StdRng, next_id: &mut u64) {
    let up = net.up();
    let any = |rng: &mut StdRng| *up.choose(rng).unwrap_or(&0);
    let id = any(rng);
    if id != 0 {
        net.collect(id);
    }
    match rng.random_range(0..1000) {
        0..450 if !net.wire.is_empty() => {
            // The further back, the rarer: mostly in order.
            let reach = rng.random_range(1..=8);
            let at = rng.random_range(0..net.wire.len().min(reach));
            let packet = net.wire.remove(at).expect("within");
            let fate = rng.random_range(0..100);
            if fate >= 3 {
                if fate < 6 {
                    net.wire.push_back(packet.clone());
                }
                net.deliver(packet);
            } else if packet.message.r#type() == proto::raftpb::MessageType::MsgSnap && net.is_up(packet.from) {
                net.driver(packet.from).report_snapshot(packet.to, false);
            }
        }
        450..650 if id != 0 => {
            net.sync(id, rng.random_range(1..4));
        }
        650..800 if id != 0 => {
            net.apply(id, rng.random_range(1..20));
        }
        800..890 if id != 0 => net.driver(id).tick(),
        890..940 if id != 0 => {
            let data = format!("{:x}", rng.random::<u64>()).repeat(rng.random_range(1..20));
            net.propose(id, &data);
        }
        940..965 if id != 0 => {
            net.read(id);
        }
        965..970 if id != 0 => net.checkpoint(id, rng.random_range(0..20)),
        970..972 if id != 0 => net.crash(id, rng.random_range(0..3)),
        972..982 => {
            let down: Vec<u64> = net.members.keys().copied().filter(|id| !net.is_up(*id)).collect();
            if let Some(id) = down.choose(rng) {
                net.start(*id);
            }
        }
        982..985 => {
            let all: Vec<u64> = net.members.keys().copied().collect();
            let (a, b) = (*all.choose(rng).expect("some"), *all.choose(rng).expect("some"));
            match rng.random_range(0..3) {
                0 => net.isolate(a),
                1 => drop(net.cut.insert((a, b))),
                _ => net.heal(),
            }
        }
        985..987 => net.heal(),
        987..989 if id != 0 => {
            net.hung.clear();
            net.hung.insert(id);
        }
        989..991 => net.hung.clear(),
        991..993 if id != 0 => {
            let to = any(rng);
            net.driver(id).transfer_leader(to);
        }
        993..994 if id != 0 => net.driver(id).step_down(),
        994..996 if id != 0 && net.driver(id).leader_lost() == Some(0) => net.driver(id).campaign(),
        996..997 if id != 0 => {
            let to = any(rng);
            net.driver(id).report_unreachable(to);
        }
        997..1000 if id != 0 => reconfigure(net, rng, id, next_id),
        _ => {}
    }
    let leaders_too = rng.random_range(0..200) == 0;
    leave(net, leaders_too);
}

fn reconfigure(net: &mut Net, rng: &mut StdRng, at: u64, next_id: &mut u64) {
    let conf_state = net.driver(at).conf_state().clone();
    let (kind, id) = match rng.random_range(0..5) {
        0 if conf_state.voters.len() + conf_state.learners.len() < 6 => {
            (ConfChangeType::ConfChangeAddLearnerNode, *next_id + 1)
        }
        1 if conf_state.voters.len() < 5 => (ConfChangeType::ConfChangeAddNode, *next_id + 1),
        2 if !conf_state.learners.is_empty() => {
            (ConfChangeType::ConfChangeAddNode, *conf_state.learners.choose(rng).expect("some"))
        }
        3 if conf_state.voters.len() > 2 => {
            (ConfChangeType::ConfChangeRemoveNode, *conf_state.voters.choose(rng).expect("some"))
        }
        _ if !conf_state.voters.is_empty() => {
            (ConfChangeType::ConfChangeUpdateNode, *conf_state.voters.choose(rng).expect("some"))
        }
        _ => return,
    };
    // A change may get lost on its way to the leader, as a client's would; the new member then never hears of the cluster.
    if net.driver(at).propose_conf_change(change(kind, id)).is_ok() && id > *next_id {
        *next_id = id;
        net.join(id);
    }
}

/// A member that has applied its own removal stops; a leader, when the others have had time to learn of it.
fn leave(net: &mut Net, leaders_too: bool) {
    for id in net.up() {
        let status = net.status(id);
        if net.members[&id].removed && (leaders_too || status.role != Role::Leader) {
            net.tally.removed_leaders += usize::from(status.role == Role::Leader);
            net.crash(id, 0);
            net.members.remove(&id);
        }
    }
}

/// All faults end; then the cluster must agree, take writes, and answer reads, on every member that belongs to it.
fn recover(net: &mut Net, seed: u64) {
    net.heal();
    net.hung.clear();
    for id in net.members.keys().copied().collect::<Vec<_>>() {
        if !net.is_up(id) {
            net.start(id);
        }
    }
    net.settle();
    for attempt in 0..40 {
        leave(net, true);
        net.tick_until(200, |net| net.leader().is_some());
        let leader = net.leader().expect("just seen");
        let done = format!("recovered {attempt}");
        let taken = net.propose(leader, &done);
        net.settle();
        for _ in 0..3 * super::net::ELECTION_TICKS {
            net.tick();
        }
        // The state machine of a member that belongs to the cluster is where its leader's is.
        let Some(leader) = net.leader().filter(|id| !net.members[id].removed) else { continue };
        let app = net.members[&leader].app.clone();
        let ids = app.conf_state.voters.iter().chain(&app.conf_state.learners);
        let members: Vec<u64> = ids.copied().filter(|id| net.is_up(*id)).collect();
        if !taken || members.iter().any(|id| net.members[id].app != app) {
            continue;
        }
        let reads: Vec<(u64, u64)> = members.iter().map(|id| (*id, net.read(*id))).collect();
        net.settle();
        for (id, context) in reads {
            assert!(net.read_answer(id, context).is_some(), "seed {seed}: member {id} gets no read index");
        }
        return;
    }
    panic!("seed {seed}: no recovery: {:?}", net.up().into_iter().map(|id| (id, net.status(id))).collect::<Vec<_>>());
}

fn life(seed: u64, steps: usize) -> Tally {
    let mut rng = StdRng::seed_from_u64(seed);
    let size = if seed.is_multiple_of(3) { 5 } else { 3 };
    let mut net = Net::new(size, seed);
    if seed.is_multiple_of(4) {
        // As etcd 3.4 members are configured.
        let old = 1 + seed % size;
        net.crash(old, 0);
        net.members.get_mut(&old).expect("a member").pre_vote = false;
        net.start(old);
    }
    let mut next_id = size;
    for _ in 0..steps {
        step(&mut net, &mut rng, &mut next_id);
    }
    recover(&mut net, seed);
    net.tally
}

/// `RAFT_SEEDS=from..to` runs others than the usual few.
#[test]
fn clusters_agree_whatever_happens() {
    let seeds = std::env::var("RAFT_SEEDS").ok();
    let (from, to) = seeds
        .as_deref()
        .and_then(|range| range.split_once(".."))
        .map_or((0, 20), |(from, to)| (from.parse().expect("a number"), to.parse().expect("a number")));
    let mut all = Tally::default();
    for seed in from..to {
        match std::panic::catch_unwind(|| life(seed, 15_000)) {
            Ok(tally) => all.add(&tally),
            Err(panic) => {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    // The test is worth something only if things went wrong.
    eprintln!("{all:?}");
    let Tally { entries, terms, snapshots, conf_changes, removed_leaders, reads, crashes } = all;
    assert!(entries > 1000 && terms > 100 && reads > 100 && crashes > 100, "{all:?}");
    assert!(snapshots > 10 && conf_changes > 50 && removed_leaders > 0, "{all:?}");
}
