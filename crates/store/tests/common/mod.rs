//! A store driven by a list of operations, as a member's log drives it, beside a model that keeps everything.

#![allow(dead_code, missing_docs)]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use disk::MemDisk;
use keelson_store::{Change, KeyRange, Mark, Options, RangeEnd, Ready, Revision, Store, StoreError, Table, Writer};
use prost::Message;
use proto::mvccpb::KeyValue;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Small enough that a few hundred operations go through every kind of background work.
pub fn small() -> Options {
    Options { segment_bytes: 4 << 10, flush_bytes: 512, recent_bytes: 2 << 10, checkpoint_bytes: 16 << 10 }
}

/// What an entry of the log asks for.
#[derive(Clone, Debug)]
pub enum Op {
    Txn(Vec<(Bytes, Option<(Bytes, i64)>)>),
    Row(Table, Bytes, Option<Bytes>),
    Compact(i64),
    /// Everything becomes what it is in another member, which is ahead.
    Replace(Box<Model>),
}

/// Every version of every key that ever was: the revision, and the value unless it is a tombstone.
#[derive(Clone, Debug)]
pub struct Model {
    pub keys: BTreeMap<Bytes, Vec<(Revision, Option<KeyValue>)>>,
    pub rows: BTreeMap<(Table, Bytes), Bytes>,
    pub revision: i64,
    pub compacted: i64,
}

impl Model {
    pub fn new() -> Self {
        Self { keys: BTreeMap::new(), rows: BTreeMap::new(), revision: 1, compacted: -1 }
    }

    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Txn(changes) => {
                let main = self.revision + 1;
                let mut sub = 0;
                for (key, change) in changes {
                    let versions = self.keys.entry(key.clone()).or_default();
                    let living = versions.last().and_then(|(_, kv)| kv.clone());
                    let new = match (change, living) {
                        (None, None) => continue,
                        (None, Some(_)) => None,
                        (Some((value, lease)), living) => Some(KeyValue {
                            key: key.clone(),
                            create_revision: living.as_ref().map_or(main, |kv| kv.create_revision),
                            mod_revision: main,
                            version: living.map_or(1, |kv| kv.version + 1),
                            value: value.clone(),
                            lease: *lease,
                        }),
                    };
                    versions.push((Revision { main, sub }, new));
                    sub += 1;
                }
                if sub > 0 {
                    self.revision = main;
                }
            }
            Op::Row(table, key, Some(value)) => {
                self.rows.insert((*table, key.clone()), value.clone());
            }
            Op::Row(table, key, None) => {
                self.rows.remove(&(*table, key.clone()));
            }
            Op::Compact(revision) => self.compacted = *revision,
            Op::Replace(other) => *self = (**other).clone(),
        }
    }

    /// Every version there ever was, in revision order: what a member has that has not compacted yet.
    fn everything(&self) -> Vec<(Revision, bool, Bytes)> {
        Model { compacted: -1, ..self.clone() }.history(i64::MAX)
    }

    pub fn get(&self, key: &[u8], at: i64) -> Option<&KeyValue> {
        self.keys.get(key)?.iter().rev().find(|(revision, _)| revision.main <= at)?.1.as_ref()
    }

    fn stored(key: &Bytes, kv: &Option<KeyValue>) -> Bytes {
        let tombstone = || KeyValue { key: key.clone(), ..KeyValue::default() };
        kv.clone().unwrap_or_else(tombstone).encode_to_vec().into()
    }

    /// All versions that compaction leaves, in revision order.
    pub fn history(&self, at: i64) -> Vec<(Revision, bool, Bytes)> {
        let mut all = Vec::new();
        for (key, versions) in &self.keys {
            let newest_below = versions.iter().rev().find(|(revision, _)| revision.main <= self.compacted);
            for (revision, kv) in versions {
                let kept = revision.main > self.compacted
                    || newest_below.is_some_and(|(newest, _)| newest == revision)
                        && (kv.is_some() || revision.main == self.compacted);
                if kept && revision.main <= at {
                    all.push((*revision, kv.is_none(), Self::stored(key, kv)));
                }
            }
        }
        all.sort_by_key(|(revision, ..)| *revision);
        all
    }

    /// HashKV by the book.
    pub fn hash(&self, at: i64) -> u32 {
        let keep: Vec<Revision> = self
            .keys
            .values()
            .filter_map(|versions| versions.iter().rev().find(|(revision, _)| revision.main <= at))
            .filter(|(_, kv)| kv.is_some())
            .map(|(revision, _)| *revision)
            .collect();
        let mut hash = crc32c::crc32c(b"key");
        for (revision, deleted, payload) in self.history(at) {
            if revision.main <= self.compacted && !keep.is_empty() && !keep.contains(&revision) {
                continue;
            }
            if deleted && revision.main == self.compacted {
                continue;
            }
            let mut key = revision.main.to_be_bytes().to_vec();
            key.push(b'_');
            key.extend_from_slice(&revision.sub.to_be_bytes());
            if deleted {
                key.push(b't');
            }
            hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, &key), &payload);
        }
        hash
    }
}

/// A store, the operations it was given and what they should amount to.
pub struct Run {
    pub disk: MemDisk,
    pub options: Options,
    pub store: Store,
    pub writer: Option<Writer>,
    pub ops: Vec<Op>,
    pub model: Model,
    /// Operations that must survive a power cut.
    pub synced: u64,
    pub random: StdRng,
}

pub fn dir() -> &'static Path {
    Path::new("member/store")
}

/// Gives the store one operation, as the apply loop does.
pub fn apply(writer: &mut Writer, op: &Op, index: u64) -> Result<(), StoreError> {
    match op {
        Op::Txn(changes) => {
            for (key, change) in changes {
                match change {
                    Some((value, lease)) => drop(writer.put(key, value, *lease)?),
                    None => drop(writer.delete(key)?),
                }
            }
            writer.commit();
        }
        Op::Row(table, key, Some(value)) => writer.set_row(*table, key, value)?,
        Op::Row(table, key, None) => writer.remove_row(*table, key)?,
        Op::Compact(revision) => writer.compact(*revision)?,
        Op::Replace(other) => replacement(writer, other, index)?.install(|switch| switch())?,
    }
    writer.mark(mark(index));
    Ok(())
}

/// The mark after the operation with this index.
pub fn mark(index: u64) -> Mark {
    Mark { index, term: index / 7, conf_state: Bytes::from_static(b"conf") }
}

/// A replacement by the other member's content, ready to be installed.
pub fn replacement<'w>(writer: &'w mut Writer, other: &Model, index: u64) -> Result<Ready<'w>, StoreError> {
    let mut replacement = writer.replace()?;
    // Compacted or not yet: the answers are the same.
    let versions = if index.is_multiple_of(2) { other.everything() } else { other.history(i64::MAX) };
    for (revision, deleted, payload) in versions {
        replacement.version(revision, deleted, &payload)?;
    }
    for ((table, key), value) in &other.rows {
        replacement.row(*table, key, value)?;
    }
    replacement.finish(other.revision, other.compacted, mark(index))
}

impl Run {
    pub fn new(seed: u64, options: Options) -> Self {
        let disk = MemDisk::new();
        let (store, writer, mark) = Store::open(Arc::new(disk.clone()), dir(), options.clone()).unwrap();
        assert_eq!(mark, Mark::default());
        disk.sync_all();
        Self {
            disk,
            options,
            store,
            writer: Some(writer),
            ops: Vec::new(),
            model: Model::new(),
            synced: 0,
            random: StdRng::seed_from_u64(seed),
        }
    }

    pub fn writer(&mut self) -> &mut Writer {
        self.writer.as_mut().unwrap()
    }

    fn key(&mut self) -> Bytes {
        let number = self.random.random_range(0..60);
        format!("{}/{number}", if number % 2 == 0 { "even" } else { "odd" }).into()
    }

    pub fn random_op(&mut self) -> Op {
        match self.random.random_range(0..100) {
            0..60 => {
                let value = vec![b'v'; self.random.random_range(0..120)];
                Op::Txn(vec![(self.key(), Some((value.into(), self.random.random_range(0..3))))])
            }
            60..75 => {
                let mut changes = Vec::new();
                for _ in 0..self.random.random_range(1..5) {
                    let key = self.key();
                    if changes.iter().all(|(other, _)| *other != key) {
                        let value = format!("{}", self.random.random_range(0..1000));
                        changes.push((key, self.random.random_bool(0.5).then(|| (value.into(), 0))));
                    }
                }
                Op::Txn(changes)
            }
            75..88 => Op::Txn(vec![(self.key(), None)]),
            88..96 => {
                let table = [Table::Lease, Table::Auth, Table::Meta][self.random.random_range(0..3)];
                let key = format!("row{}", self.random.random_range(0..8)).into();
                let value = format!("{}", self.random.random_range(0..1000)).into();
                Op::Row(table, key, self.random.random_bool(0.7).then_some(value))
            }
            96 => Op::Replace(Box::new(self.ahead(20))),
            _ => {
                let (low, high) = (self.model.compacted.max(1) + 1, self.model.revision);
                if low > high {
                    return self.random_op();
                }
                Op::Compact(self.random.random_range(low..=high))
            }
        }
    }

    /// What the model is after some more operations.
    pub fn ahead(&mut self, operations: usize) -> Model {
        let now = self.model.clone();
        for _ in 0..operations {
            let op = self.random_op();
            self.model.apply(&op);
        }
        std::mem::replace(&mut self.model, now)
    }

    /// Applies one random operation to both.
    pub fn step(&mut self) {
        let op = self.random_op();
        self.ops.push(op.clone());
        let index = self.ops.len() as u64;
        apply(self.writer(), &op, index).unwrap();
        self.model.apply(&op);
    }

    pub fn sync(&mut self) {
        let mark = self.writer().sync().unwrap();
        assert_eq!(mark.index, self.ops.len() as u64);
        self.synced = mark.index;
    }

    /// Background work until there is none left, with marks for it to build on.
    pub fn settle(&mut self) {
        for _ in 0..4 {
            while self.store.maintain().unwrap() {}
            self.writer().flush().unwrap();
        }
    }

    /// Opens the store anew on `disk` and brings it up to date from the log.
    pub fn reopen(&mut self, disk: MemDisk) {
        self.writer = None;
        self.disk = disk;
        let (store, mut writer, mark) = Store::open(Arc::new(self.disk.clone()), dir(), self.options.clone()).unwrap();
        assert!(mark.index >= self.synced, "recovered {} of {} synced", mark.index, self.synced);
        for (index, op) in self.ops.iter().enumerate().skip(mark.index as usize) {
            apply(&mut writer, op, index as u64 + 1).unwrap();
        }
        self.store = store;
        self.writer = Some(writer);
    }

    /// Every question a store can be asked gives the model's answer.
    pub fn check(&mut self) {
        let (store, model) = (&self.store, &self.model);
        assert_eq!((store.revision(), store.compact_revision()), (model.revision, model.compacted));
        let oldest = model.compacted.max(1);
        let mut revisions = vec![oldest, model.revision];
        revisions.extend((0..3).map(|_| self.random.random_range(oldest..=model.revision)));
        for at in revisions {
            let mut living = Vec::new();
            let everything = KeyRange { start: Bytes::new(), end: RangeEnd::Unbounded };
            store.scan(&everything, at, &mut |key, found| {
                living.push((Bytes::copy_from_slice(key), found));
                ControlFlow::Continue(())
            });
            let expected: Vec<_> = model.keys.keys().filter_map(|key| model.get(key, at)).collect();
            assert_eq!(living.len(), expected.len(), "keys at {at}");
            let mut payloads = Vec::new();
            let locations: Vec<_> = living.iter().map(|(_, found)| found.location).collect();
            store.read_many(&locations, &mut |payload| payloads.push(payload)).unwrap();
            for (((key, found), payload), kv) in living.iter().zip(payloads).zip(expected) {
                assert_eq!(payload, kv.encode_to_vec(), "{key:?} at {at}");
                assert_eq!(key, &kv.key);
                assert_eq!(found.meta.create_revision, kv.create_revision);
                assert_eq!(found.meta.modified.main, kv.mod_revision);
                assert_eq!(found.meta.version, kv.version);
                assert_eq!(found.meta.leased, kv.lease != 0);
                assert_eq!(store.get(key, at), Some(*found));
                assert_eq!(store.read(found.location).unwrap(), payload);
            }
            let even = KeyRange::from_wire("even/".into(), "even0".into());
            let evens = model.keys.keys().filter(|key| even.contains(key) && model.get(key, at).is_some());
            assert_eq!(store.count(&even, at), evens.count() as i64);

            let history = model.history(at);
            let mut exported = Vec::new();
            store
                .export(at, &mut |revision, deleted, payload| {
                    exported.push((revision, deleted, payload));
                    ControlFlow::Continue(())
                })
                .unwrap();
            let revisions = |h: &[(Revision, bool, Bytes)]| h.iter().map(|(r, ..)| (r.main, r.sub)).collect::<Vec<_>>();
            assert_eq!(revisions(&exported), revisions(&history), "export at {at}");
            assert!(exported == history, "export at {at}");
            assert_eq!(store.hash_kv(at).unwrap().hash, model.hash(at), "hash at {at}");

            for range in [everything, even, KeyRange::from_wire("odd/7".into(), Bytes::new())] {
                let max = self.random.random_range(1..40);
                let (changes, more) = store.changes(&range, at, i64::MAX, max).unwrap();
                let all: Vec<_> = model
                    .history(i64::MAX)
                    .into_iter()
                    .filter(|(revision, _, payload)| {
                        revision.main >= at && range.contains(&KeyValue::decode(&payload[..]).unwrap().key)
                    })
                    .collect();
                assert!(changes.len() >= all.len().min(max));
                assert_eq!(more, changes.len() < all.len());
                assert!(more || changes.len() == all.len());
                for (Change { revision, deleted, location }, expected) in changes.into_iter().zip(all) {
                    assert_eq!((revision, deleted, store.read(location).unwrap()), expected);
                }
            }
        }
        for table in [Table::Lease, Table::Auth, Table::Meta] {
            let expected: Vec<_> = model
                .rows
                .iter()
                .filter(|((other, _), _)| *other == table)
                .map(|((_, key), value)| (key.clone(), value.clone()))
                .collect();
            assert_eq!(store.rows(table), expected);
            for (key, value) in expected {
                assert_eq!(store.row(table, &key), Some(value));
            }
        }
    }
}
