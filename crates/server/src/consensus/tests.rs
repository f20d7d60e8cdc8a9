//! Three raft actors in one thread, joined by queues that the test empties when it likes.

use api::Outcome;
use api::mailbox::Mailbox;
use raft_driver::{Config, Start};
use wal::EntryKind;

use super::*;

const MEMBERS: [u64; 3] = [1, 2, 3];
const LIMITS: Ticks = Ticks { retry: 5, election: 10, timeout: 70 };

/// A member: its actor, and what the threads around it would do.
struct Member {
    consensus: Consensus,
    out: Outbox,
    /// Batches that are written and not yet synced.
    unsynced: VecDeque<LogBatch>,
    applied: u64,
    /// Data of the applied entries.
    log: Vec<Bytes>,
    disk_hangs: bool,
    is_dead: bool,
}

impl Member {
    fn new(id: u64) -> Self {
        let config = Config {
            id,
            election_ticks: usize::try_from(LIMITS.election).expect("small"),
            heartbeat_ticks: 1,
            pre_vote: true,
            max_message_bytes: 1 << 20,
            max_inflight: 256,
            max_committed_bytes: 1 << 20,
            max_uncommitted_bytes: 1 << 30,
            applied: 1,
            seed: id,
        };
        let entry = Entry { kind: EntryKind::Normal, term: 1, index: 1, data: Bytes::new() };
        let start = Start {
            hard_state: HardState { term: 1, vote: 0, commit: 1 },
            conf_state: raftpb::ConfState { voters: MEMBERS.to_vec(), auto_leave: Some(false), ..Default::default() },
            base: (0, 0),
            entries: vec![entry],
        };
        let driver = Driver::new(config, start).expect("starts");
        Self {
            consensus: Consensus::new(driver, LIMITS, id << 32),
            out: Outbox::default(),
            unsynced: VecDeque::new(),
            applied: 1,
            log: Vec::new(),
            disk_hangs: false,
            is_dead: false,
        }
    }

    /// One turn. Gives the messages that leave.
    fn turn(&mut self) -> Vec<raftpb::Message> {
        self.consensus.finish(self.applied, &mut self.out);
        self.unsynced.extend(self.out.log.drain(..));
        for entry in self.out.committed.drain(..) {
            assert_eq!(entry.index, self.applied + 1, "no gaps");
            self.applied = entry.index;
            if !entry.data.is_empty() {
                self.log.push(entry.data);
            }
        }
        self.out.replies.flush();
        std::mem::take(&mut self.out.messages)
    }

    /// Syncs what is written. Gives the messages that leave with that.
    fn sync(&mut self) -> Vec<raftpb::Message> {
        let mut promises = Vec::new();
        if !self.disk_hangs {
            for batch in std::mem::take(&mut self.unsynced) {
                self.consensus.handle(Event::Persisted(batch.number));
                promises.extend(batch.promises);
            }
        }
        promises
    }
}

struct Cluster {
    members: Vec<Member>,
    /// Messages that are lost: from, to.
    cut: Vec<(u64, u64)>,
}

impl Cluster {
    fn new() -> Self {
        Self { members: MEMBERS.map(Member::new).into(), cut: Vec::new() }
    }

    fn member(&mut self, id: u64) -> &mut Member {
        &mut self.members[id as usize - 1]
    }

    fn deliver(&mut self, messages: Vec<raftpb::Message>) -> bool {
        let some = !messages.is_empty();
        for message in messages {
            let (from, to) = (message.from.unwrap_or(0), message.to.unwrap_or(0));
            let lost = self.cut.contains(&(from, to));
            let receiver = self.member(to);
            if !lost && !receiver.is_dead {
                receiver.consensus.handle(Event::Step(Box::new(message)));
            }
        }
        some
    }

    /// Until nothing happens any more without time passing.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            let mut busy = false;
            for id in MEMBERS {
                if !self.member(id).is_dead {
                    let messages = self.member(id).turn();
                    busy |= self.deliver(messages);
                    busy |= !self.member(id).unsynced.is_empty() && !self.member(id).disk_hangs;
                    let promises = self.member(id).sync();
                    busy |= self.deliver(promises);
                }
            }
            if !busy {
                return;
            }
        }
        panic!("does not settle");
    }

    fn tick(&mut self, times: u64) {
        for _ in 0..times {
            for member in self.members.iter_mut().filter(|m| !m.is_dead) {
                member.consensus.handle(Event::Tick);
            }
            self.settle();
        }
    }

    /// The member that leads, once one does that the living agree on.
    fn leader(&mut self) -> u64 {
        for _ in 0..100 {
            let leaders: Vec<u64> =
                self.members.iter().filter(|m| !m.is_dead).map(|m| m.consensus.status().leader).collect();
            if leaders[0] != 0 && leaders.iter().all(|l| *l == leaders[0]) && !self.member(leaders[0]).is_dead {
                return leaders[0];
            }
            self.tick(1);
        }
        panic!("nobody leads");
    }

    fn propose(&mut self, at: u64, data: &'static str) {
        self.member(at).consensus.handle(Event::Propose(Bytes::from_static(data.as_bytes())));
    }

    fn others(leader: u64) -> (u64, u64) {
        let others: Vec<u64> = MEMBERS.into_iter().filter(|id| *id != leader).collect();
        (others[0], others[1])
    }
}

/// A question and where its answer will be.
fn question() -> (Reply, impl Fn() -> Option<Outcome>) {
    let mailbox = Mailbox::new();
    let reply = Reply::new(mailbox.clone(), 0);
    (reply, move || {
        let mut deliveries = Vec::new();
        let waker = std::task::Waker::noop();
        let _ready = mailbox.poll_take(&mut deliveries, &mut std::task::Context::from_waker(waker));
        deliveries.pop().map(|delivery| delivery.outcome)
    })
}

#[test]
fn what_a_follower_proposes_is_applied_by_everybody_in_the_same_order() {
    let mut cluster = Cluster::new();
    let leader = cluster.leader();
    let (a, b) = Cluster::others(leader);
    cluster.propose(a, "one");
    cluster.propose(b, "two");
    cluster.propose(leader, "three");
    cluster.settle();
    let expected = cluster.member(leader).log.clone();
    assert_eq!(expected.len(), 3);
    cluster.tick(1);
    for id in MEMBERS {
        assert_eq!(cluster.member(id).log, expected);
    }
}

#[test]
fn nothing_is_applied_before_a_quorum_has_synced_it() {
    let mut cluster = Cluster::new();
    let leader = cluster.leader();
    let (a, b) = Cluster::others(leader);
    cluster.member(a).disk_hangs = true;
    cluster.member(b).disk_hangs = true;
    cluster.propose(leader, "held up");
    cluster.settle();
    assert!(cluster.member(leader).log.is_empty(), "only the leader has synced it");
    cluster.member(a).disk_hangs = false;
    cluster.settle();
    assert_eq!(cluster.member(leader).log, ["held up"]);
}

#[test]
fn an_acknowledgement_that_needs_no_sync_of_its_own_waits_for_the_entries_it_speaks_of() {
    let mut cluster = Cluster::new();
    let leader = cluster.leader();
    let (a, b) = Cluster::others(leader);
    cluster.cut = vec![(leader, b)];
    cluster.member(a).disk_hangs = true;
    cluster.propose(leader, "x");
    cluster.settle();
    // The leader sends the same entries again; the follower has them already, but not on disk.
    cluster.member(leader).consensus.handle(Event::Unreachable(a));
    cluster.tick(2);
    assert!(cluster.member(leader).log.is_empty(), "nobody else has synced it");
    cluster.member(a).disk_hangs = false;
    cluster.tick(1);
    assert_eq!(cluster.member(leader).log, ["x"]);
}

#[test]
fn heartbeats_are_answered_while_the_disk_hangs() {
    let mut cluster = Cluster::new();
    let leader = cluster.leader();
    let (a, b) = Cluster::others(leader);
    cluster.member(a).disk_hangs = true;
    cluster.member(b).is_dead = true;
    cluster.tick(3 * LIMITS.election);
    assert_eq!(cluster.member(leader).consensus.status().role, Role::Leader, "the follower still counts as alive");
}

#[test]
fn a_leader_whose_disk_hangs_steps_down_and_another_one_leads() {
    let mut cluster = Cluster::new();
    let leader = cluster.leader();
    cluster.member(leader).disk_hangs = true;
    cluster.propose(leader, "stuck");
    cluster.tick(6 * LIMITS.election);
    let next = cluster.leader();
    assert_ne!(next, leader);
    cluster.propose(next, "flows");
    cluster.tick(1);
    assert!(cluster.member(next).log.contains(&Bytes::from_static(b"flows")));
}

#[test]
fn proposals_wait_out_a_hand_over() {
    let mut cluster = Cluster::new();
    let leader = cluster.leader();
    let (a, b) = Cluster::others(leader);
    // The successor lags, so the hand-over takes a while.
    cluster.cut = vec![(leader, a)];
    cluster.propose(leader, "before");
    cluster.settle();
    let (reply, answer) = question();
    cluster.member(leader).consensus.handle(Event::Transfer { to: a, reply });
    cluster.settle();
    cluster.propose(leader, "at the leader");
    cluster.propose(b, "at a follower");
    cluster.settle();
    assert_eq!(cluster.member(leader).log, ["before"]);
    cluster.cut.clear();
    cluster.tick(5);
    assert_eq!(cluster.leader(), a);
    assert!(matches!(answer(), Some(Ok(Answer::Done))));
    cluster.tick(2);
    let mut log = cluster.member(b).log.clone();
    log.sort();
    assert_eq!(log, ["at a follower", "at the leader", "before"]);
}

/// Raft checks its quorum once per election timeout, and has heard of nobody right after.
#[test]
fn a_leader_hands_over_at_whatever_moment_it_is_asked() {
    for ticks in 0..=LIMITS.election {
        let mut cluster = Cluster::new();
        let leader = cluster.leader();
        for _ in 0..ticks {
            cluster.member(leader).consensus.handle(Event::Tick);
        }
        let (reply, outcome) = question();
        cluster.member(leader).consensus.handle(Event::HandOver(reply));
        cluster.settle();
        assert!(matches!(outcome(), Some(Ok(Answer::Done))), "after {ticks} ticks");
        assert_ne!(cluster.leader(), leader, "after {ticks} ticks");
    }
}

#[test]
fn what_a_leader_decided_is_not_handed_to_the_next_one() {
    let mut cluster = Cluster::new();
    let leader = cluster.leader();
    let term = cluster.member(leader).consensus.status().term;
    let (a, _) = Cluster::others(leader);
    let (reply, _answer) = question();
    cluster.member(leader).consensus.handle(Event::Transfer { to: a, reply });
    cluster.tick(2);
    assert_eq!(cluster.leader(), a);
    cluster.member(leader).consensus.handle(Event::ProposeAsLeader(Bytes::from_static(b"revoke"), term));
    cluster.tick(5);
    for id in MEMBERS {
        assert!(cluster.member(id).log.is_empty(), "a lease may have been renewed at the new leader");
    }
}

/// Found by a fault run: a leader was paused, and its clock found leases expired that its successor had renewed.
#[test]
fn a_leader_that_wakes_up_deposed_hands_nothing_of_its_own_to_its_successor() {
    let mut cluster = Cluster::new();
    let leader = cluster.leader();
    let term = cluster.member(leader).consensus.status().term;
    let (a, b) = Cluster::others(leader);
    // Paused: the others elect, and what they send it piles up.
    cluster.member(leader).is_dead = true;
    cluster.tick(4 * LIMITS.election);
    let next = cluster.member(a).consensus.status().leader;
    assert!(next == a || next == b);
    // It wakes up: both are in the same turn, its own decision first.
    cluster.member(leader).is_dead = false;
    cluster.member(leader).consensus.handle(Event::ProposeAsLeader(Bytes::from_static(b"revoke"), term));
    cluster.member(next).consensus.handle(Event::Tick);
    let heartbeats = cluster.member(next).turn();
    assert!(cluster.deliver(heartbeats));
    cluster.tick(5);
    assert_eq!(cluster.leader(), next);
    for id in MEMBERS {
        assert!(cluster.member(id).log.is_empty());
    }
}

#[test]
fn a_dead_leader_is_replaced_without_waiting_for_a_timeout() {
    let mut cluster = Cluster::new();
    let leader = cluster.leader();
    let (a, b) = Cluster::others(leader);
    cluster.member(leader).is_dead = true;
    for id in [a, b] {
        cluster.member(id).consensus.handle(Event::Gone(leader));
    }
    cluster.settle();
    // The second in line may be needed, if the first asked before the second had heard.
    cluster.tick(3);
    let next = cluster.member(a).consensus.status().leader;
    assert!(next == a || next == b);
    cluster.propose(a, "goes on");
    cluster.settle();
    assert_eq!(cluster.member(next).log, ["goes on"]);
}

#[test]
fn a_wrong_belief_that_the_leader_is_dead_disturbs_nobody() {
    let mut cluster = Cluster::new();
    let leader = cluster.leader();
    let term = cluster.member(leader).consensus.status().term;
    let (a, _) = Cluster::others(leader);
    cluster.member(a).consensus.handle(Event::Gone(leader));
    cluster.tick(3 * LIMITS.election);
    assert_eq!(cluster.leader(), leader);
    assert_eq!(cluster.member(leader).consensus.status().term, term);
}

#[test]
fn a_read_whose_leader_dies_is_asked_of_the_next() {
    let mut cluster = Cluster::new();
    let leader = cluster.leader();
    let (a, b) = Cluster::others(leader);
    cluster.cut = vec![(leader, a), (leader, b)];
    let (reply, answer) = question();
    cluster.member(a).consensus.handle(Event::Read(reply));
    cluster.settle();
    assert!(answer().is_none());
    cluster.member(leader).is_dead = true;
    for id in [a, b] {
        cluster.member(id).consensus.handle(Event::Gone(leader));
    }
    cluster.tick(4);
    assert!(matches!(answer(), Some(Ok(Answer::Done))));
}

/// Its client was told that it timed out, and may have written something else through another member since.
#[test]
fn a_proposal_that_no_leader_took_in_time_is_forgotten() {
    let mut cluster = Cluster::new();
    let leader = cluster.leader();
    let (a, b) = Cluster::others(leader);
    cluster.cut = vec![(a, leader), (leader, a), (a, b), (b, a)];
    cluster.tick(5 * LIMITS.election);
    cluster.propose(a, "too old when the network heals");
    cluster.tick(LIMITS.timeout - 5);
    cluster.propose(a, "young enough");
    cluster.tick(6);
    cluster.cut.clear();
    cluster.tick(5 * LIMITS.election);
    for id in MEMBERS {
        assert_eq!(cluster.member(id).log, ["young enough"]);
    }
}

#[test]
fn a_membership_change_waits_for_a_leader() {
    let mut cluster = Cluster::new();
    let leader = cluster.leader();
    let (a, b) = Cluster::others(leader);
    cluster.cut = vec![(a, leader), (leader, a), (a, b), (b, a)];
    cluster.tick(5 * LIMITS.election);
    let change = |node_id| {
        let kind = Some(raftpb::ConfChangeType::ConfChangeAddLearnerNode as i32);
        let change = raftpb::ConfChange { r#type: kind, node_id: Some(node_id), ..Default::default() };
        Bytes::from(prost::Message::encode_to_vec(&change))
    };
    let (too_old, young) = (change(4), change(5));
    cluster.member(a).consensus.handle(Event::ProposeConfChange(too_old, 1));
    cluster.tick(LIMITS.timeout - 5);
    cluster.member(a).consensus.handle(Event::ProposeConfChange(young.clone(), 2));
    cluster.tick(6);
    let refused = std::mem::take(&mut cluster.member(a).out.refused);
    assert!(matches!(refused[..], [(1, Error::Timeout)]), "{refused:?}");
    cluster.cut.clear();
    cluster.tick(5 * LIMITS.election);
    assert_eq!(cluster.member(leader).log, [young]);
    assert!(cluster.member(a).out.refused.is_empty());
}

#[test]
fn a_read_that_nobody_answers_is_given_up() {
    let mut cluster = Cluster::new();
    let leader = cluster.leader();
    let (a, b) = Cluster::others(leader);
    cluster.member(leader).is_dead = true;
    cluster.member(b).is_dead = true;
    let (reply, answer) = question();
    cluster.member(a).consensus.handle(Event::Read(reply));
    cluster.tick(LIMITS.timeout - 1);
    assert!(answer().is_none());
    cluster.tick(2);
    assert!(matches!(answer(), Some(Err(Error::Timeout))));
}

#[test]
fn a_member_whose_log_was_lost_is_told_to_stop() {
    let mut cluster = Cluster::new();
    let leader = cluster.leader();
    cluster.propose(leader, "x");
    cluster.tick(1);
    let (a, _) = Cluster::others(leader);
    // As after a restart on a disk that has forgotten what it had synced.
    *cluster.member(a) = Member::new(a);
    let mut told = None;
    for _ in 0..20 {
        for id in MEMBERS {
            cluster.member(id).consensus.handle(Event::Tick);
            let messages = cluster.member(id).turn();
            told = told.or(cluster.member(id).out.fatal.take());
            cluster.deliver(messages);
            let promises = cluster.member(id).sync();
            cluster.deliver(promises);
        }
    }
    assert!(
        told.is_some_and(|why| why.contains("acknowledged here")),
        "it had acknowledged an entry that it no longer has"
    );
}
