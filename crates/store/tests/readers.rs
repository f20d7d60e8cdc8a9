//! Readers beside the writer and the background work.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use bytes::Bytes;
use common::{dir, small};
use disk::MemDisk;
use keelson_store::{KeyRange, Mark, Options, RangeEnd, Revision, Store, StoreError, Writer};
use prost::Message;
use proto::mvccpb::KeyValue;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const KEYS: usize = 500;

fn open(options: Options) -> (Store, Writer) {
    let (store, writer, _) = Store::open(Arc::new(MemDisk::new()), dir(), options).unwrap();
    (store, writer)
}

fn put(writer: &mut Writer, key: &str, value: &str) -> i64 {
    writer.put(&Bytes::copy_from_slice(key.as_bytes()), value.as_bytes(), 0).unwrap();
    let revision = writer.commit();
    writer.mark(Mark { index: revision as u64, ..Mark::default() });
    revision
}

fn settle(store: &Store, writer: &mut Writer) {
    for _ in 0..4 {
        while store.maintain().unwrap() {}
        writer.flush().unwrap();
    }
}

fn everything() -> KeyRange {
    KeyRange { start: Bytes::new(), end: RangeEnd::Unbounded }
}

/// What a reader sees is one revision: every transaction writes the same number under all of its keys, so a reader who
/// sees two numbers has seen half of one. Meanwhile segments fill, are compacted, copied and removed.
#[test]
fn a_reader_sees_whole_transactions_while_everything_moves() {
    let options = Options { segment_bytes: 64 << 10, flush_bytes: 4 << 10, recent_bytes: 8 << 10, ..small() };
    let (store, mut writer) = open(options);
    let done = AtomicBool::new(false);
    let reads = AtomicI64::new(0);
    std::thread::scope(|scope| {
        let reader = |pinned: bool, seed: u64| {
            let (store, done, reads) = (store.clone(), &done, &reads);
            move || {
                let mut random = StdRng::seed_from_u64(seed);
                while !done.load(Ordering::Acquire) {
                    let at = store.revision() - random.random_range(0..30);
                    let pin = pinned.then(|| store.pin(at));
                    if at < store.compact_revision().max(2) {
                        continue;
                    }
                    let mut locations = Vec::new();
                    let mut keys = Vec::new();
                    store.scan(&everything(), at, &mut |key, found| {
                        keys.push(Bytes::copy_from_slice(key));
                        locations.push(found.location);
                        ControlFlow::Continue(())
                    });
                    let mut values = Vec::new();
                    let result = store.read_many(&locations, &mut |payload| {
                        values.push(KeyValue::decode(payload).unwrap());
                    });
                    match result {
                        Ok(()) => {}
                        // Without a pin a compaction may come in between; then the answer would be "compacted".
                        Err(StoreError::Compacted) if pin.is_none() => {
                            assert!(at < store.compact_revision());
                            continue;
                        }
                        Err(error) => panic!("at {at}: {error}"),
                    }
                    if pin.is_none() && at < store.compact_revision() {
                        continue;
                    }
                    assert_eq!(values.len(), keys.len());
                    assert!(keys.windows(2).all(|pair| pair[0] < pair[1]));
                    for (key, kv) in keys.iter().zip(&values) {
                        assert_eq!(*key, kv.key);
                        assert!(kv.mod_revision <= at);
                    }
                    // Keys 0 to 9 are written together, each time with the revision as the value.
                    let together: Vec<_> = values.iter().filter(|kv| kv.key.starts_with(b"all/")).collect();
                    assert_eq!(together.len(), 10, "at {at}");
                    assert!(together.iter().all(|kv| kv.value == together[0].value), "at {at}: half a transaction");
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        scope.spawn(reader(true, 1));
        scope.spawn(reader(false, 2));
        let background = store.clone();
        let stop = &done;
        scope.spawn(move || {
            while !stop.load(Ordering::Acquire) {
                if !background.maintain().unwrap() {
                    std::thread::yield_now();
                }
            }
        });
        let mut random = StdRng::seed_from_u64(3);
        for round in 0..6000 {
            for number in 0..10 {
                let key = Bytes::from(format!("all/{number}"));
                writer.put(&key, round.to_string().as_bytes(), 0).unwrap();
            }
            let key = Bytes::from(format!("key/{}", random.random_range(0..KEYS)));
            if random.random_bool(0.3) {
                writer.delete(&key).unwrap();
            } else {
                writer.put(&key, &vec![b'x'; random.random_range(0..200)], 0).unwrap();
            }
            let revision = writer.commit();
            writer.mark(Mark { index: round + 1, ..Mark::default() });
            if round % 50 == 49 {
                // As in etcd, old revisions may be refused from here on at any time.
                writer.compact(revision - 20).unwrap();
                writer.mark(Mark { index: round + 1, ..Mark::default() });
                writer.flush().unwrap();
            }
            if round % 500 == 0 {
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::Release);
    });
    assert!(reads.load(Ordering::Relaxed) > 10, "{reads:?} reads");
    settle(&store, &mut writer);
    let size = store.size();
    assert!(size.total < 4 * size.live, "{size:?}: space has not been reclaimed");
}

/// A pin holds compaction up, and what it protects stays readable although its segment is reclaimed.
#[test]
fn a_pinned_revision_stays_readable() {
    let (store, mut writer) = open(small());
    let first = put(&mut writer, "k", "old");
    let found = store.get(b"k", first).unwrap();
    let pin = store.pin(first);
    let last = (0..200).map(|n| put(&mut writer, "k", &format!("new {n}"))).last().unwrap();
    writer.compact(last).unwrap();
    writer.mark(Mark { index: 1000, ..Mark::default() });
    settle(&store, &mut writer);
    assert!(!store.compaction_done());
    assert_eq!(store.get(b"k", first), Some(found));
    assert_eq!(KeyValue::decode(store.read(found.location).unwrap()).unwrap().value, "old");
    drop(pin);
    settle(&store, &mut writer);
    assert!(store.compaction_done());
    assert!(matches!(store.read(found.location), Err(StoreError::Compacted)));
}

/// A location outlives the move of its version: it leads to the copy, over as many copies as it takes.
#[test]
fn an_old_location_leads_to_the_copy() {
    let (store, mut writer) = open(small());
    let first = put(&mut writer, "stays", "here");
    let found = store.get(b"stays", first).unwrap();
    // Reads nothing that compaction drops, but may still hold locations.
    let _pin = store.pin(i64::MAX);
    for round in 0..5 {
        let last = (0..200).map(|n| put(&mut writer, "k", &format!("round {round} number {n}"))).last().unwrap();
        writer.compact(last).unwrap();
        writer.mark(Mark { index: 10_000 + round, ..Mark::default() });
        settle(&store, &mut writer);
        assert_eq!(KeyValue::decode(store.read(found.location).unwrap()).unwrap().value, "here");
    }
    assert_ne!(store.get(b"stays", first).unwrap().location, found.location);
    assert!(store.size().total < 16 << 10, "{:?}", store.size());
}

/// What deletes leave behind is reclaimed although nothing is written any more: the writer need only flush when asked.
#[test]
fn an_idle_store_shrinks() {
    let (store, mut writer) = open(small());
    for n in 0..300 {
        put(&mut writer, &format!("k{n}"), "some value");
    }
    (3..300).for_each(|n| drop(writer.delete(format!("k{n}").as_bytes()).unwrap()));
    let revision = writer.commit();
    writer.compact(revision).unwrap();
    writer.mark(Mark { index: 1000, ..Mark::default() });
    writer.flush().unwrap();
    let mut flushes = 0;
    for _ in 0..100_000 {
        if !store.maintain().unwrap() {
            if !store.wants_flush() {
                break;
            }
            writer.flush().unwrap();
            flushes += 1;
        }
    }
    assert!(!store.wants_flush() && flushes < 10, "{flushes} flushes");
    // Tombstones at the compacted revision stay, as in etcd.
    let next = put(&mut writer, "k0", "other value");
    writer.compact(next).unwrap();
    writer.mark(Mark { index: 1001, ..Mark::default() });
    settle(&store, &mut writer);
    assert!(store.size().total < 2 << 10, "{:?}", store.size());
}

/// A transaction shows its own writes to itself and to nobody else until it ends.
#[test]
fn nobody_sees_a_running_transaction() {
    let (store, mut writer) = open(small());
    put(&mut writer, "k", "one");
    let written = writer.put(&Bytes::from_static(b"k"), b"two", 0).unwrap();
    assert_eq!(written.meta.modified, Revision { main: 3, sub: 0 });
    assert_eq!(store.get(b"k", store.revision()).unwrap().meta.version, 1);
    assert_eq!(store.get(b"k", writer.in_progress()).unwrap().meta.version, 2);
    assert_eq!(store.read(store.get(b"k", writer.in_progress()).unwrap().location).unwrap(), written.payload);
    assert!(writer.delete(b"k").unwrap().is_some());
    assert!(writer.delete(b"k").unwrap().is_none());
    assert_eq!(store.get(b"k", writer.in_progress()), None);
    assert_eq!(writer.commit(), 3);
    assert_eq!(store.get(b"k", store.revision()), None);
    assert_eq!(writer.commit(), 3, "a transaction without changes makes no revision");
}

/// Compaction keeps a tombstone exactly at its revision, and forgets the key with the next one.
#[test]
fn a_tombstone_at_the_compacted_revision_is_kept() {
    let (store, mut writer) = open(small());
    put(&mut writer, "k", "v");
    writer.delete(b"k").unwrap();
    let deleted = writer.commit();
    writer.compact(deleted).unwrap();
    while store.maintain().unwrap() {}
    let (changes, more) = store.changes(&everything(), deleted, i64::MAX, 10).unwrap();
    assert_eq!((changes.len(), changes[0].deleted, more), (1, true, false));
    let next = put(&mut writer, "other", "v");
    writer.compact(next).unwrap();
    while store.maintain().unwrap() {}
    assert_eq!(store.indexed_keys(), 1);
    assert!(matches!(store.changes(&everything(), deleted, i64::MAX, 10), Err(StoreError::Compacted)));
    assert!(matches!(writer.compact(next), Err(StoreError::Compacted)));
    assert!(matches!(writer.compact(next + 1), Err(StoreError::FutureRevision)));
}

/// The background work makes the log's next segment while the writer may be about to make one itself: whichever comes
/// first, the log goes on in a segment with a higher number, or what is in memory is no longer found by its place.
#[test]
fn the_log_goes_on_in_order_whoever_makes_the_next_segment() {
    let (store, mut writer) = open(Options { segment_bytes: 256, recent_bytes: 4 << 10, ..small() });
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                store.maintain().unwrap();
            }
        });
        let _stop = StopAtEnd(&done);
        for number in 0..20_000 {
            let revision = put(&mut writer, &format!("key/{}", number % 100), "the newest of its key");
            let newest = store.get(format!("key/{}", number % 100).as_bytes(), revision).unwrap();
            store.read(newest.location).unwrap();
            if number % 100 == 99 {
                writer.compact(revision - 50).unwrap();
            }
        }
    });
}

/// Tells other threads of a scope to end, after a failure too.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
