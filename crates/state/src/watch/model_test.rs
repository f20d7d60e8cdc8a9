//! The hub against a list of everything that ever happened, under random operations.
//!
//! Beside the member under test there is another one that is ahead of it from time to time; then its state is installed.
//!
//! What must hold: a watcher gets every event of its keys from its start on, once, in order, a revision as a whole; no
//! header promises more than was sent; and whoever resumes after a restart where it stopped misses nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use disk::{Disk, MemDisk, Open};
use prost::Message;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::request_op::Request as Op;
use proto::mvccpb::{self, KeyValue, event::EventType};
use proto::raftpb;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use store::{Options, Store};

use super::{Hub, Output, OutputKind, StreamId, WatchCreate};
use crate::{Config, Image, Incoming, Reader, State};

const KEYS: [&str; 6] = ["a", "aa", "ab", "b", "c", "ca"];
const STREAMS: StreamId = 4;

/// A watcher as its client sees it.
struct Client {
    create: WatchCreate,
    /// The first revision it has not been promised yet.
    next: i64,
    /// Events received, in order.
    received: Vec<mvccpb::Event>,
    /// The first revision it was to be told of.
    start: i64,
}

impl Client {
    fn wants(&self, event: &mvccpb::Event) -> bool {
        let kv = event.kv.as_ref().unwrap();
        let (key, end) = (&self.create.key, &self.create.range_end);
        let inside = match end.as_ref() {
            [] => kv.key == *key,
            [0] => kv.key >= *key,
            _ => kv.key >= *key && kv.key < *end,
        };
        let deleted = event.r#type() == EventType::Delete;
        let filtered = if deleted { self.create.no_delete } else { self.create.no_put };
        inside && !filtered && kv.mod_revision >= self.start
    }
}

struct World {
    random: StdRng,
    disk: Arc<dyn Disk>,
    state: State,
    reader: Reader,
    hub: Hub,
    /// The other member, with all entries applied.
    leader: (State, Reader),
    index: u64,
    /// Every event, with the pair before its revision.
    history: Vec<mvccpb::Event>,
    live: BTreeMap<Bytes, KeyValue>,
    clients: BTreeMap<(StreamId, i64), Client>,
    ready: [bool; STREAMS as usize],
    canceled: usize,
    /// Only the other member gets entries.
    is_cut_off: bool,
    installs: usize,
}

fn open(disk: &Arc<dyn Disk>) -> (State, Reader, Hub) {
    // Hardly anything in memory: reads come from the files.
    let options = Options { segment_bytes: 4 << 10, flush_bytes: 256, recent_bytes: 1 << 10, ..Options::default() };
    let (store, writer, mark) = Store::open(disk.clone(), Path::new("/store"), options).unwrap();
    let config = Config { quota_bytes: 0, heartbeat_ms: 100, election_timeout_ms: 1_000 };
    let (state, reader) = State::open(store, writer, &mark, config).unwrap();
    reader.feed().limit(usize::MAX, 8);
    let hub = Hub::new(&reader, Arc::new(|| {}), 1_000);
    (state, reader, hub)
}

impl World {
    fn new(seed: u64) -> Self {
        let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
        let (state, reader, hub) = open(&disk);
        let (leader, leading, _) = open(&(Arc::new(MemDisk::new()) as Arc<dyn Disk>));
        Self {
            leader: (leader, leading),
            is_cut_off: false,
            installs: 0,
            random: StdRng::seed_from_u64(seed),
            disk,
            state,
            reader,
            hub,
            index: 0,
            history: Vec::new(),
            live: BTreeMap::new(),
            clients: BTreeMap::new(),
            ready: [true; STREAMS as usize],
            canceled: 0,
        }
    }

    fn key(&mut self) -> Bytes {
        KEYS[self.random.random_range(0..KEYS.len())].into()
    }

    fn apply(&mut self, request: pb::InternalRaftRequest) {
        self.index += 1;
        let data = request.encode_to_vec().into();
        self.leader.0.apply(self.index, 1, &data).unwrap().result.unwrap();
        if !self.is_cut_off {
            self.state.apply(self.index, 1, &data).unwrap().result.unwrap();
        }
    }

    fn compact(&mut self) {
        let leading = &self.leader.1;
        let (from, to) = (leading.compact_revision() + 1, leading.revision());
        if from < to {
            let revision = self.random.random_range(from..=to);
            let request = pb::CompactionRequest { revision, physical: false };
            self.apply(pb::InternalRaftRequest { compaction: Some(request), ..Default::default() });
        }
    }

    /// The other member goes on alone for a while; then this one gets its state.
    fn install(&mut self) {
        self.is_cut_off = true;
        for _ in 0..self.random.random_range(1..20) {
            if self.random.random_bool(0.1) { self.compact() } else { self.write() }
        }
        self.is_cut_off = false;
        let conf_state = raftpb::ConfState { voters: vec![1, 2], ..Default::default() };
        let image = Image::take(&self.leader.1, self.index, &conf_state);
        let (index, term, v2_json) = (image.index(), image.term(), image.v2_json().clone());
        let file = MemDisk::new().open(Path::new("db"), Open::CreateNew).unwrap();
        for piece in image.into_pieces() {
            file.write_at(&piece.unwrap(), file.len().unwrap()).unwrap();
        }
        let incoming = Incoming { name: "db", file, v2_json: &v2_json, index, term };
        let installed = self.state.install(&incoming, &conf_state).unwrap();
        assert_eq!((installed.mark.index, installed.revision), (self.index, self.reader.revision()));
        assert_eq!(self.reader.revision(), self.leader.1.revision());
        assert_eq!(self.reader.hash_kv(0).unwrap(), self.leader.1.hash_kv(0).unwrap());
        self.installs += 1;
    }

    /// A transaction that puts or deletes a few different keys.
    fn write(&mut self) {
        let before = self.live.clone();
        let revision = self.leader.1.revision() + 1;
        let mut ops = Vec::new();
        let first = self.random.random_range(0..KEYS.len());
        for n in 0..self.random.random_range(1..4) {
            let key: Bytes = KEYS[(first + n) % KEYS.len()].into();
            let prev_kv = before.get(&key).cloned();
            if self.random.random_bool(0.6) {
                let value: Bytes = format!("{revision}.{n}").into();
                let kv = KeyValue {
                    create_revision: prev_kv.as_ref().map_or(revision, |kv| kv.create_revision),
                    version: prev_kv.as_ref().map_or(1, |kv| kv.version + 1),
                    mod_revision: revision,
                    ..KeyValue { key: key.clone(), value: value.clone(), ..Default::default() }
                };
                self.live.insert(key.clone(), kv.clone());
                self.history.push(mvccpb::Event { r#type: EventType::Put as i32, kv: Some(kv), prev_kv });
                ops.push(Op::RequestPut(pb::PutRequest { key, value, ..Default::default() }));
            } else {
                if self.live.remove(&key).is_some() {
                    let kv = KeyValue { key: key.clone(), mod_revision: revision, ..Default::default() };
                    self.history.push(mvccpb::Event { r#type: EventType::Delete as i32, kv: Some(kv), prev_kv });
                }
                ops.push(Op::RequestDeleteRange(pb::DeleteRangeRequest { key, ..Default::default() }));
            }
        }
        let success = ops.into_iter().map(|op| pb::RequestOp { request: Some(op) }).collect();
        let txn = pb::TxnRequest { success, ..Default::default() };
        self.apply(pb::InternalRaftRequest { txn: Some(txn), ..Default::default() });
    }

    fn create(&mut self) {
        let stream = self.random.random_range(0..STREAMS);
        let (key, other) = (self.key(), self.key());
        let (key, range_end) = match self.random.random_range(0..4) {
            0 => (key.clone().min(other.clone()), if key == other { Bytes::new() } else { key.max(other) }),
            1 => (key, Bytes::from_static(b"\0")),
            _ => (key, Bytes::new()),
        };
        let start_revision = match self.random.random_range(0..3) {
            0 => 0,
            1 => self.random.random_range(1..=self.reader.revision() + 3),
            _ => self.reader.revision() + 1,
        };
        let create = WatchCreate {
            key,
            range_end,
            start_revision,
            watch_id: 0,
            progress_notify: self.random.random_bool(0.3),
            no_put: self.random.random_bool(0.1),
            no_delete: self.random.random_bool(0.1),
            prev_kv: self.random.random_bool(0.4),
        };
        self.start(stream, create, start_revision, Vec::new());
    }

    fn start(&mut self, stream: StreamId, create: WatchCreate, start: i64, received: Vec<mvccpb::Event>) {
        let next = if create.start_revision == 0 { self.reader.revision() + 1 } else { create.start_revision };
        let start = if start == 0 { next } else { start };
        let outputs = self.hub.create(stream, create.clone());
        assert_eq!(outputs[0].kind, OutputKind::Created);
        assert_eq!(outputs[0].revision, self.reader.revision());
        self.clients.insert((stream, outputs[0].watch_id), Client { create, next, received, start });
        self.receive(stream, &outputs[1..]);
    }

    fn receive(&mut self, stream: StreamId, outputs: &[Output]) {
        for output in outputs {
            let id = (stream, output.watch_id);
            match &output.kind {
                OutputKind::Events(events) => {
                    assert!(self.ready[stream as usize], "a stream that takes no more was given something");
                    let client = self.clients.get_mut(&id).expect("events of a watcher that exists");
                    for framed in events.iter() {
                        let mut response = pb::WatchResponse::decode(framed.clone()).unwrap();
                        let event = response.events.remove(0);
                        let revision = event.kv.as_ref().unwrap().mod_revision;
                        assert!(revision >= client.next, "an event after a header that promised it");
                        assert!(revision <= output.revision, "an event beyond its header");
                        client.received.push(event);
                    }
                    client.next = output.revision + 1;
                }
                OutputKind::Progress if output.watch_id == -1 => {
                    for (_, client) in self.clients.range_mut((stream, i64::MIN)..=(stream, i64::MAX)) {
                        assert!(client.create.start_revision <= output.revision);
                        client.next = client.next.max(output.revision + 1);
                    }
                }
                OutputKind::Progress => {
                    let client = self.clients.get_mut(&id).unwrap();
                    assert!(client.create.progress_notify);
                    client.next = client.next.max(output.revision + 1);
                }
                OutputKind::Canceled { compact_revision, .. } => {
                    assert_eq!(*compact_revision, self.reader.compact_revision());
                    let client = self.clients.remove(&id).expect("a watcher that exists");
                    assert!(client.next < *compact_revision, "cancelled although nothing it needs is gone");
                    self.check(&client, false);
                    self.canceled += 1;
                }
                OutputKind::Created | OutputKind::Rejected { .. } => panic!("{output:?}"),
            }
        }
    }

    /// What it has received is exactly what there was, up to what it was promised or (at rest) to the end.
    fn check(&self, client: &Client, at_rest: bool) {
        let until = if at_rest { i64::MAX } else { client.next };
        let wanted = self.history.iter().filter(|event| client.wants(event));
        let expected: Vec<_> = wanted.filter(|event| event.kv.as_ref().unwrap().mod_revision < until).collect();
        assert_eq!(client.received.len(), expected.len(), "{:?} {} {:?}", client.create, client.next, client.received);
        for (received, expected) in client.received.iter().zip(expected) {
            assert_eq!((received.r#type, &received.kv), (expected.r#type, &expected.kv));
            match &received.prev_kv {
                // Not asked for, or compacted by then.
                None => {}
                previous => {
                    assert!(client.create.prev_kv);
                    assert_eq!(previous, &expected.prev_kv);
                }
            }
            let kept = received.kv.as_ref().unwrap().mod_revision > self.reader.compact_revision();
            if client.create.prev_kv && kept {
                assert_eq!(received.prev_kv, expected.prev_kv);
            }
        }
    }

    fn poll(&mut self, budget: usize) -> bool {
        let (outputs, more) = self.hub.poll(budget);
        for output in outputs {
            self.receive(output.stream, &output.items);
        }
        more
    }

    /// Everybody resumes where it stopped, on a hub and a feed that remember nothing.
    fn restart(&mut self) {
        self.state.sync().unwrap();
        (self.state, self.reader, self.hub) = open(&self.disk);
        self.ready = [true; STREAMS as usize];
        for ((stream, _), client) in std::mem::take(&mut self.clients) {
            self.start(
                stream,
                WatchCreate { start_revision: client.next, ..client.create },
                client.start,
                client.received,
            );
        }
    }

    fn step(&mut self, now_ms: u64) {
        let stream = self.random.random_range(0..STREAMS);
        match self.random.random_range(0..100) {
            0..40 => self.write(),
            40..55 => self.create(),
            55..75 => {
                let budget = self.random.random_range(1..20);
                self.poll(budget);
            }
            75..82 => {
                let ready = self.random.random_bool(0.5);
                self.ready[stream as usize] = ready;
                self.hub.set_ready(stream, ready);
            }
            82..86 => {
                let pick = self.random.random_range(0..self.clients.len().max(1));
                if let Some(id) = self.clients.keys().nth(pick).copied() {
                    assert!(self.hub.cancel(id.0, id.1).is_some());
                    let client = self.clients.remove(&id).unwrap();
                    self.check(&client, false);
                }
            }
            86..90 => self.hub.request_progress(stream),
            90..93 => {
                for output in self.hub.tick(now_ms) {
                    self.receive(output.stream, &output.items);
                }
            }
            93 => {
                self.hub.close(stream);
                self.ready[stream as usize] = true; // what comes under this number is another stream
                self.clients.retain(|id, _| id.0 != stream);
            }
            94 => self.restart(),
            95..97 => self.compact(),
            97 => self.install(),
            _ => {
                self.reader.store().maintain().unwrap();
                self.leader.1.store().maintain().unwrap();
            }
        }
    }
}

#[test]
fn watchers_get_everything_once_and_in_order() {
    let (mut canceled, mut installs) = (0, 0);
    for seed in 0..150 {
        println!("seed {seed}"); // shown if the test fails
        let mut world = World::new(seed);
        for step in 0..300 {
            world.step(step * 50);
        }
        for stream in 0..STREAMS {
            world.ready[stream as usize] = true;
            world.hub.set_ready(stream, true);
        }
        while world.poll(1_000) {}
        for client in world.clients.values() {
            world.check(client, true);
        }
        assert_eq!(world.hub.watchers(), (world.clients.len(), 0), "everybody has caught up");
        canceled += world.canceled;
        installs += world.installs;
    }
    assert!(installs > 150, "{installs} states were installed");
    assert!(canceled > 0, "some watchers needed history that was compacted");
}
