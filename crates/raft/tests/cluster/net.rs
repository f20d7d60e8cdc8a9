//! A cluster whose every message, sync and apply is a step that a test takes.
//!
//! Always checked: at most one leader per term, a leader's log holds all that was committed before, every member
//! applies the same entries in the same order, and a read index is never older than what anybody knew to be
//! committed when it was asked for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use keelson_raft::{Config, Driver, Effects, Role, Snapshot, Start, Status, next_conf_state};
use prost::Message as _;
use proto::raftpb::{self, ConfChangeType, MessageType};
use wal::{Entry, EntryKind, HardState};

pub(crate) const ELECTION_TICKS: usize = 10;

/// What a member has applied: enough to tell whether two members did the same.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct App {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) conf_state: raftpb::ConfState,
    pub(crate) sum: u64,
}

/// What survives a crash.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    hard_state: HardState,
    base: (u64, u64),
    entries: Vec<Entry>,
    /// The state machine's newest mark.
    app: App,
    /// A received snapshot that is perhaps not installed.
    snapshot: Option<App>,
}

#[derive(Debug)]
enum Job {
    Install(App),
    Apply(Entry),
}

/// How much has happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) entries: usize,
    pub(crate) terms: usize,
    pub(crate) snapshots: usize,
    pub(crate) conf_changes: usize,
    pub(crate) removed_leaders: usize,
    pub(crate) reads: usize,
    pub(crate) crashes: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.entries += other.entries;
        self.terms += other.terms;
        self.snapshots += other.snapshots;
        self.conf_changes += other.conf_changes;
        self.removed_leaders += other.removed_leaders;
        self.reads += other.reads;
        self.crashes += other.crashes;
    }
}

pub(crate) struct Member {
    /// None while it is down.
    driver: Option<Driver>,
    pub(crate) disk: Disk,
    pub(crate) app: App,
    unsynced: VecDeque<Effects>,
    jobs: VecDeque<Job>,
    pub(crate) read_indexes: Vec<(u64, u64)>,
    pub(crate) pre_vote: bool,
    /// Whether it has applied its own removal.
    pub(crate) removed: bool,
    lives: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) message: raftpb::Message,
}

pub(crate) struct Net {
    pub(crate) members: BTreeMap<u64, Member>,
    pub(crate) wire: VecDeque<Packet>,
    /// Pairs (from, to) whose messages vanish.
    pub(crate) cut: BTreeSet<(u64, u64)>,
    /// Members whose disk does not answer.
    pub(crate) hung: BTreeSet<u64>,
    /// Every message of these types that was ever sent.
    pub(crate) sent: Vec<Packet>,
    pub(crate) max_inflight: usize,
    pub(crate) tally: Tally,
    seed: u64,
    leaders: BTreeMap<u64, u64>,
    /// Term and running sum of every entry that somebody applied, by index.
    applied: BTreeMap<u64, (u64, u64)>,
    max_commit: u64,
    /// Read contexts and the commit index that they must not stay behind.
    reads: BTreeMap<u64, u64>,
    next_read: u64,
}

pub(crate) fn change(kind: ConfChangeType, id: u64) -> Bytes {
    raftpb::ConfChange { r#type: Some(kind as i32), node_id: Some(id), ..Default::default() }.encode_to_vec().into()
}

impl Net {
    /// Members 1 to `size`, bootstrapped as etcd does: their additions are the log's first entries.
    pub(crate) fn new(size: u64, seed: u64) -> Self {
        let mut net = Self {
            members: BTreeMap::new(),
            wire: VecDeque::new(),
            cut: BTreeSet::new(),
            hung: BTreeSet::new(),
            sent: Vec::new(),
            max_inflight: 64,
            tally: Tally::default(),
            seed,
            leaders: BTreeMap::new(),
            applied: BTreeMap::new(),
            max_commit: 0,
            reads: BTreeMap::new(),
            next_read: 1,
        };
        let entries: Vec<Entry> = (1..=size)
            .map(|id| Entry {
                kind: EntryKind::ConfChange,
                term: 1,
                index: id,
                data: change(ConfChangeType::ConfChangeAddNode, id),
            })
            .collect();
        for id in 1..=size {
            let hard_state = HardState { term: 1, vote: 0, commit: size };
            net.insert(id, Disk { hard_state, entries: entries.clone(), ..Disk::default() });
        }
        net.settle();
        net
    }

    /// A cluster that has elected member 1.
    pub(crate) fn led(size: u64) -> Self {
        let mut net = Self::new(size, 7);
        net.driver(1).campaign();
        net.settle();
        assert_eq!(net.leader(), Some(1));
        net
    }

    fn insert(&mut self, id: u64, disk: Disk) {
        let member = Member {
            driver: None,
            disk,
            app: App::default(),
            unsynced: VecDeque::new(),
            jobs: VecDeque::new(),
            read_indexes: Vec::new(),
            pre_vote: true,
            removed: false,
            lives: 0,
        };
        self.members.insert(id, member);
        self.start(id);
    }

    /// A member that joins with an empty disk.
    pub(crate) fn join(&mut self, id: u64) {
        assert!(!self.members.contains_key(&id), "IDs are never used twice");
        self.insert(id, Disk::default());
    }

    pub(crate) fn start(&mut self, id: u64) {
        let seed = self.seed;
        let max_inflight = self.max_inflight;
        let member = self.members.get_mut(&id).expect("a member");
        assert!(member.driver.is_none(), "{id} is running");
        let disk = &mut member.disk;
        if let Some(snapshot) = disk.snapshot.take_if(|s| s.index > disk.app.index) {
            disk.app = snapshot;
        }
        member.app = disk.app.clone();
        member.lives += 1;
        let config = Config {
            id,
            election_ticks: ELECTION_TICKS,
            heartbeat_ticks: 1,
            pre_vote: member.pre_vote,
            max_message_bytes: 4096,
            max_inflight,
            max_committed_bytes: 4096,
            max_uncommitted_bytes: 1 << 20,
            applied: disk.app.index,
            seed: seed ^ (id << 32) ^ member.lives,
        };
        let start = Start {
            hard_state: disk.hard_state,
            conf_state: disk.app.conf_state.clone(),
            base: disk.base,
            entries: disk.entries.clone(),
        };
        member.driver = Some(Driver::new(config, start).expect("a disk that this driver wrote"));
    }

    /// Loses what was not synced; of that, a crash may have got the first `written` batches to disk.
    pub(crate) fn crash(&mut self, id: u64, written: usize) {
        let member = self.members.get_mut(&id).expect("a member");
        if member.driver.take().is_none() {
            return;
        }
        self.tally.crashes += 1;
        for effects in member.unsynced.drain(..).take(written) {
            member.disk.write(&effects);
        }
        member.unsynced.clear();
        member.jobs.clear();
    }

    pub(crate) fn is_up(&self, id: u64) -> bool {
        self.members.get(&id).is_some_and(|m| m.driver.is_some())
    }

    pub(crate) fn up(&self) -> Vec<u64> {
        self.members.iter().filter(|(_, m)| m.driver.is_some()).map(|(id, _)| *id).collect()
    }

    pub(crate) fn driver(&mut self, id: u64) -> &mut Driver {
        self.members.get_mut(&id).and_then(|m| m.driver.as_mut()).expect("a running member")
    }

    fn driver_ref(&self, id: u64) -> &Driver {
        self.members[&id].driver.as_ref().expect("a running member")
    }

    pub(crate) fn status(&self, id: u64) -> Status {
        self.driver_ref(id).status()
    }

    /// The leader of the newest term, if one is up.
    pub(crate) fn leader(&self) -> Option<u64> {
        let leaders = self.up().into_iter().filter(|id| self.status(*id).role == Role::Leader);
        leaders.max_by_key(|id| self.status(*id).term)
    }

    /// Collects what a member wants done. Its messages are on the wire at once.
    pub(crate) fn collect(&mut self, id: u64) -> bool {
        let mut any = false;
        for _ in 0..1000 {
            let Some(driver) = self.members.get_mut(&id).and_then(|m| m.driver.as_mut()) else { return any };
            let Some(mut effects) = driver.ready() else {
                self.check(id);
                return any;
            };
            any = true;
            for message in std::mem::take(&mut effects.messages) {
                self.send(id, message);
            }
            let member = self.members.get_mut(&id).expect("a member");
            if let Some(snapshot) = &effects.snapshot {
                assert!(effects.committed.is_empty(), "nothing can be committed beside a snapshot");
                // Installed only after it is persisted, as the server does: see `sync`.
                assert!(snapshot.index > member.app.index);
            }
            member.jobs.extend(std::mem::take(&mut effects.committed).into_iter().map(Job::Apply));
            for (context, index) in std::mem::take(&mut effects.reads) {
                member.read_indexes.push((context, index));
                self.tally.reads += 1;
                let floor = self.reads.get(&context).copied().unwrap_or(0);
                assert!(index >= floor, "read {context} answers {index}, {floor} was committed when it was asked");
            }
            member.unsynced.push_back(effects);
        }
        panic!("member {id} always wants more");
    }

    fn check(&mut self, id: u64) {
        let status = self.status(id);
        self.max_commit = self.max_commit.max(status.commit_index);
        if status.role != Role::Leader {
            return;
        }
        let leader = *self.leaders.entry(status.term).or_insert_with(|| {
            // A new leader: it must hold everything that was ever applied anywhere.
            let driver = self.members[&id].driver.as_ref().expect("it is up");
            for (index, (term, _)) in self.applied.range(driver.first_index()..) {
                assert_eq!(driver.term_at(*index), Some(*term), "leader {id} of {status:?} lacks entry {index}");
            }
            self.tally.terms += 1;
            id
        });
        assert_eq!(leader, id, "two leaders in term {}", status.term);
    }

    fn send(&mut self, from: u64, message: raftpb::Message) {
        let to = message.to.expect("addressed");
        assert!(to != 0 && to != from, "{from} sends {message:?}");
        let kind = message.r#type();
        assert!(kind != MessageType::MsgProp || !message.entries.is_empty(), "an empty proposal stops a real etcd");
        let mut packet = Packet { from, to, message };
        if kind == MessageType::MsgSnap && !self.fill(&mut packet) {
            self.driver(from).report_snapshot(to, false);
            return;
        }
        if kind != MessageType::MsgHeartbeat && kind != MessageType::MsgHeartbeatResp {
            self.sent.push(packet.clone());
        }
        self.wire.push_back(packet);
    }

    /// What the server does for a snapshot: data and place come from an image of the state machine.
    fn fill(&mut self, packet: &mut Packet) -> bool {
        let app = &self.members[&packet.from].app;
        let snapshot = packet.message.snapshot.as_mut().expect("MsgSnap has one");
        let metadata = snapshot.metadata.as_mut().expect("a place");
        if app.index < metadata.index() {
            return false;
        }
        assert!(snapshot.data.is_none(), "the driver knows no data");
        metadata.index = Some(app.index);
        metadata.term = Some(app.term);
        metadata.conf_state = Some(app.conf_state.clone());
        snapshot.data = Some(Bytes::copy_from_slice(&app.sum.to_le_bytes()));
        true
    }

    /// Syncs the first `batches` of a member's waiting writes.
    pub(crate) fn sync(&mut self, id: u64, batches: usize) -> bool {
        let batches = self.write(id, batches);
        let Some(last) = batches.last() else { return false };
        self.driver(id).persisted(last.number);
        for message in batches.into_iter().flat_map(|effects| effects.promises) {
            self.send(id, message);
        }
        true
    }

    /// As [`Net::sync`] for all that waits, but the driver is not told; the numbers of the batches are the caller's to tell.
    pub(crate) fn sync_without_receipt(&mut self, id: u64) -> Vec<u64> {
        let batches = self.write(id, usize::MAX);
        let numbers = batches.iter().map(|effects| effects.number).collect();
        for message in batches.into_iter().flat_map(|effects| effects.promises) {
            self.send(id, message);
        }
        numbers
    }

    fn write(&mut self, id: u64, batches: usize) -> Vec<Effects> {
        let Some(member) = self.members.get_mut(&id) else { return Vec::new() };
        if member.driver.is_none() || self.hung.contains(&id) {
            return Vec::new();
        }
        let batches: Vec<Effects> = member.unsynced.drain(..batches.min(member.unsynced.len())).collect();
        for effects in &batches {
            member.disk.write(effects);
            if let Some(snapshot) = &effects.snapshot {
                member.jobs.push_back(Job::Install(App::from(snapshot)));
            }
        }
        batches
    }

    /// Applies up to `jobs` of what is committed.
    pub(crate) fn apply(&mut self, id: u64, jobs: usize) -> bool {
        let Some(member) = self.members.get_mut(&id) else { return false };
        let Some(driver) = member.driver.as_mut() else { return false };
        let jobs: Vec<Job> = member.jobs.drain(..jobs.min(member.jobs.len())).collect();
        let any = !jobs.is_empty();
        let app = &mut member.app;
        for job in jobs {
            match job {
                Job::Install(snapshot) => {
                    assert_eq!(self.applied.get(&snapshot.index), Some(&(snapshot.term, snapshot.sum)));
                    *app = snapshot;
                    self.tally.snapshots += 1;
                }
                Job::Apply(entry) => {
                    assert_eq!(entry.index, app.index + 1, "member {id} leaves out or repeats an entry");
                    app.index = entry.index;
                    app.term = entry.term;
                    for byte in entry.data.iter().copied().chain(entry.term.to_le_bytes()) {
                        app.sum = (app.sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3).rotate_left(5);
                    }
                    let agreed = *self.applied.entry(entry.index).or_insert_with(|| {
                        self.tally.entries += 1;
                        (entry.term, app.sum)
                    });
                    assert_eq!(agreed, (entry.term, app.sum), "member {id} applied another entry at {}", entry.index);
                    if entry.kind == EntryKind::ConfChange {
                        let change = raftpb::ConfChange::decode(entry.data.as_ref()).expect("ours");
                        let next = next_conf_state(&app.conf_state, &change);
                        if next != app.conf_state && !next.voters.is_empty() {
                            app.conf_state = next;
                            member.removed |=
                                change.r#type() == ConfChangeType::ConfChangeRemoveNode && change.node_id == Some(id);
                            self.tally.conf_changes += 1;
                            driver.apply_conf_change(&entry).expect("a change that the state accepts");
                        }
                    }
                }
            }
            driver.applied(app.index);
        }
        any
    }

    /// The state machine notes on disk how far it is, and lets go of the log but for `keep` entries.
    pub(crate) fn checkpoint(&mut self, id: u64, keep: u64) {
        let member = self.members.get_mut(&id).expect("a member");
        member.disk.app = member.app.clone();
        let upto = member.app.index.saturating_sub(keep);
        if let Some(driver) = member.driver.as_mut() {
            driver.compact(upto);
        }
        member.disk.release(upto);
    }

    pub(crate) fn deliver(&mut self, packet: Packet) {
        let Packet { from, to, message } = packet;
        let is_snapshot = message.r#type() == MessageType::MsgSnap;
        let arrives = !self.cut.contains(&(from, to)) && self.is_up(to);
        if arrives {
            // As bytes, so that nothing travels that the wire does not carry.
            let bytes = message.encode_to_vec();
            let message = raftpb::Message::decode(bytes.as_slice()).expect("ours");
            match self.driver(to).step(message) {
                Ok(()) | Err(keelson_raft::DriverError::Dropped) => {}
                Err(error) => panic!("{to} refuses what {from} sent: {error}"),
            }
        }
        if is_snapshot && self.is_up(from) {
            self.driver(from).report_snapshot(to, arrives);
        }
    }

    /// Everything that can happen without a tick happens, in order. Returns the number of message rounds.
    pub(crate) fn settle(&mut self) -> usize {
        for rounds in 0..2000 {
            let mut busy = true;
            while busy {
                busy = false;
                for id in self.up() {
                    busy |= self.collect(id) | self.sync(id, usize::MAX) | self.apply(id, usize::MAX);
                }
            }
            if self.wire.is_empty() {
                return rounds;
            }
            for packet in std::mem::take(&mut self.wire) {
                self.deliver(packet);
            }
        }
        panic!("the cluster does not come to rest");
    }

    /// One tick for every member that is up, and what follows from it.
    pub(crate) fn tick(&mut self) {
        for id in self.up() {
            self.driver(id).tick();
        }
        self.settle();
    }

    /// Ticks until `done`; at most `ticks`. Returns how many it took.
    pub(crate) fn tick_until(&mut self, ticks: usize, done: impl Fn(&Net) -> bool) -> usize {
        for tick in 0..=ticks {
            if done(self) {
                return tick;
            }
            self.tick();
        }
        let all: Vec<_> =
            self.up().into_iter().map(|id| (id, self.status(id), self.driver_ref(id).conf_state())).collect();
        panic!("not within {ticks} ticks: {all:#?}");
    }

    pub(crate) fn propose(&mut self, id: u64, data: &str) -> bool {
        self.driver(id).propose(vec![Bytes::copy_from_slice(data.as_bytes())]).is_ok()
    }

    /// Proposes a membership change at the leader and carries it through.
    pub(crate) fn reconfigure(&mut self, kind: ConfChangeType, id: u64) {
        let leader = self.leader().expect("a leader");
        self.driver(leader).propose_conf_change(change(kind, id)).expect("taken");
        self.settle();
    }

    /// Asks for a read index now; checked when it is answered.
    pub(crate) fn read(&mut self, id: u64) -> u64 {
        let context = self.next_read;
        self.next_read += 1;
        let known = self.up().into_iter().map(|id| self.status(id).commit_index).max();
        self.max_commit = self.max_commit.max(known.unwrap_or(0));
        self.reads.insert(context, self.max_commit);
        self.driver(id).read_index(context);
        context
    }

    pub(crate) fn read_answer(&self, id: u64, context: u64) -> Option<u64> {
        self.members[&id].read_indexes.iter().find(|(c, _)| *c == context).map(|(_, index)| *index)
    }

    /// Cuts a member off from all others, both ways.
    pub(crate) fn isolate(&mut self, id: u64) {
        for other in self.members.keys().copied().filter(|other| *other != id) {
            self.cut.insert((id, other));
            self.cut.insert((other, id));
        }
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    pub(crate) fn count_sent(&self, kind: MessageType, to: u64) -> usize {
        self.sent.iter().filter(|p| p.to == to && p.message.r#type() == kind).count()
    }

    /// All members that are up have applied the same.
    pub(crate) fn assert_equal(&self) {
        let up = self.up();
        for id in &up {
            assert_eq!(self.members[id].app, self.members[&up[0]].app, "member {id} differs");
        }
    }
}

impl Disk {
    fn write(&mut self, effects: &Effects) {
        if let Some(snapshot) = &effects.snapshot {
            self.snapshot = Some(App::from(snapshot));
            self.base = (snapshot.index, snapshot.term);
            self.entries.clear();
        }
        if let Some(hard_state) = effects.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(first) = effects.entries.first() {
            assert!(first.index > self.base.0 && first.index <= self.base.0 + 1 + self.entries.len() as u64);
            self.entries.truncate((first.index - self.base.0 - 1) as usize);
            self.entries.extend(effects.entries.iter().cloned());
        }
    }

    fn release(&mut self, upto: u64) {
        if upto > self.base.0 && upto <= self.base.0 + self.entries.len() as u64 {
            let count = (upto - self.base.0) as usize;
            self.base = (upto, self.entries[count - 1].term);
            self.entries.drain(..count);
        }
    }
}

impl From<&Snapshot> for App {
    fn from(snapshot: &Snapshot) -> Self {
        Self {
            index: snapshot.index,
            term: snapshot.term,
            conf_state: snapshot.conf_state.clone(),
            sum: u64::from_le_bytes(snapshot.data.as_ref().try_into().expect("a sum")),
        }
    }
}
