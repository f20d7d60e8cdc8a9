//! Replacing a store's whole content.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use common::{Model, Op, Run, apply, dir, mark, replacement, small};
use disk::mem::Fault;
use disk::{Disk, MemDisk};
use keelson_store::{KeyRange, RangeEnd, Revision, Store, StoreError};
use prost::Message;
use proto::mvccpb::KeyValue;

/// A store with some history, and another member's content.
fn prepared(seed: u64) -> (Run, Model) {
    let mut run = Run::new(seed, small());
    (0..150).for_each(|_| run.step());
    run.settle();
    (0..50).for_each(|_| run.step());
    run.sync();
    let other = run.ahead(100);
    (run, other)
}

/// Power may go at any call to the disk while the content is replaced: what is found then is the old content or the new
/// one, whole, and the store goes on from there.
#[test]
fn a_power_cut_leaves_the_old_content_or_the_new_one() {
    for seed in 0..4 {
        let (mut run, other) = prepared(seed);
        let index = run.ops.len() as u64 + 1;
        let op = Op::Replace(Box::new(other.clone()));
        let disk = run.disk.clone();
        let (_, images) = disk.crash_images_during(|| {
            apply(run.writer(), &op, index).unwrap();
            while run.store.maintain().unwrap() {}
        });
        run.ops.push(op);
        run.model = other;
        run.check();
        let (mut old, mut new) = (0, 0);
        for (place, (when, image)) in images.into_iter().enumerate() {
            println!("seed {seed}: power cut {when}");
            let (_, _, found) = Store::open(Arc::new(image.fork()), dir(), small()).unwrap();
            *(if found.index == index { &mut new } else { &mut old }) += 1;
            if place % 7 == 0 || found.index == index {
                let mut after = Run::new(seed, small());
                (after.ops, after.model, after.synced) = (run.ops.clone(), run.model.clone(), index - 1);
                after.reopen(image);
                after.check();
                (0..20).for_each(|_| after.step());
                after.settle();
                after.check();
            }
        }
        assert!(old > 10 && new > 10, "{old} images with the old content, {new} with the new one");
    }
}

/// A replacement that is given up, or fails, changes nothing and leaves nothing behind.
#[test]
fn a_replacement_given_up_leaves_everything_as_it_was() {
    let (mut run, other) = prepared(7);
    while run.store.maintain().unwrap() {}
    let before = run.disk.list(dir()).unwrap();
    drop(replacement(run.writer(), &other, 1000).unwrap());
    assert_eq!(run.disk.list(dir()).unwrap(), before);

    let mut replacement = run.writer().replace().unwrap();
    let payload = KeyValue { key: "k".into(), version: 1, ..Default::default() }.encode_to_vec();
    let at = |main, sub| Revision { main, sub };
    replacement.version(at(5, 0), false, &payload).unwrap();
    for (revision, payload) in [
        (at(5, 0), &payload[..]),
        (at(4, 9), &payload),
        (at(6, -1), &payload),
        (at(6, i64::MAX), &payload),
        (at(-6, 0), &payload),
        (at(6, 0), b"no pair"),
    ] {
        let refused = replacement.version(revision, false, payload);
        assert!(matches!(refused, Err(StoreError::Corrupt { .. })), "{revision:?}: {refused:?}");
    }
    drop(replacement);
    run.check();
    (0..100).for_each(|_| run.step());
    run.settle();
    run.check();
    let disk = run.disk.crash(disk::mem::Crash::LoseUnsynced);
    run.reopen(disk);
    run.check();
}

/// A disk that fails in the middle stops the writing, as it always does; a restart finds the old content.
#[test]
fn a_failed_write_or_sync_stops_the_writing() {
    for (fault, seed) in [(Fault::SyncFails { after: 2 }, 8), (Fault::WriteFails { after: 2 }, 9)] {
        let (mut run, other) = prepared(seed);
        run.disk.inject(fault.clone());
        let failed = replacement(run.writer(), &other, 1000).err();
        assert!(matches!(failed, Some(StoreError::Io { .. })), "{fault:?}: {failed:?}");
        run.disk.clear_faults();
        assert!(run.writer().flush().is_err() && run.store.maintain().is_err(), "{fault:?}");
        run.check();
        let disk = run.disk.crash(disk::mem::Crash::KeepEverything);
        run.reopen(disk);
        run.check();
    }
}

/// Whoever has pinned the old content, or holds a view of it, reads it to the end although its files have lost their
/// names; everybody else sees the new one.
#[test]
fn who_reads_the_old_content_reads_it_to_the_end() {
    let (mut run, other) = prepared(10);
    let (revision, pin) = (run.store.revision(), run.store.pin(run.store.revision()));
    let view = run.store.view();
    let export = |store: &Store| {
        let mut found = Vec::new();
        let each = &mut |revision, deleted, payload| {
            found.push((revision, deleted, payload));
            ControlFlow::Continue(())
        };
        store.export(0, each).map(|()| found).unwrap()
    };
    let everything = export(&run.store);
    let index = run.ops.len() as u64 + 1;
    let ready = replacement(run.writer(), &other, index).unwrap();
    assert_eq!(ready.store().revision(), other.revision, "it can be looked at before");
    ready.install(|switch| switch()).unwrap();
    while run.store.maintain().unwrap() {}
    for old in [pin.store(), &view] {
        assert_eq!(old.revision(), revision);
        assert!(export(old) == everything);
        assert!(!old.maintain().unwrap(), "nobody works on the old content any more");
    }
    run.ops.push(Op::Replace(Box::new(other.clone())));
    run.model = other;
    run.check();
}

/// Calls in other threads see one content each, whichever moment the change comes at.
#[test]
fn a_call_sees_one_content() {
    let (store, mut writer, _) = Store::open(Arc::new(MemDisk::new()), dir(), small()).unwrap();
    let content = |round: i64| {
        let mut model = Model::new();
        // All keys of a round were written at its revision and hold its number.
        model.revision = 2 + round;
        for key in 0..400 {
            let key: Bytes = format!("key{key:03}").into();
            let (create_revision, mod_revision) = (model.revision, model.revision);
            let value = round.to_string().into();
            let kv = KeyValue { key: key.clone(), create_revision, mod_revision, version: 1, value, lease: 0 };
            let sub = model.keys.len() as i64;
            model.keys.insert(key, vec![(Revision { main: mod_revision, sub }, Some(kv))]);
        }
        model
    };
    apply(&mut writer, &Op::Replace(Box::new(content(0))), 1).unwrap();
    let done = AtomicBool::new(false);
    let everything = KeyRange { start: Bytes::new(), end: RangeEnd::Unbounded };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut passes = 0;
                    while !done.load(Ordering::Acquire) || passes == 0 {
                        let mut revisions = Vec::new();
                        store.scan(&everything, i64::MAX, &mut |_, found| {
                            revisions.push(found.meta.modified.main);
                            ControlFlow::Continue(())
                        });
                        assert!(revisions.len() == 400 && revisions.iter().all(|r| *r == revisions[0]));

                        let pin = store.pin(i64::MAX);
                        let mut locations = Vec::new();
                        pin.store().scan(&everything, i64::MAX, &mut |_, found| {
                            locations.push(found.location);
                            ControlFlow::Continue(())
                        });
                        let mut values = Vec::new();
                        let each = &mut |payload| values.push(KeyValue::decode(payload).unwrap().value);
                        pin.store().read_many(&locations, each).unwrap();
                        assert!(values.len() == 400 && values.iter().all(|value| value == &values[0]));
                        passes += 1;
                    }
                })
            })
            .collect();
        for round in 1..40 {
            apply(&mut writer, &Op::Replace(Box::new(content(round))), round as u64 + 1).unwrap();
            while store.maintain().unwrap() {}
        }
        done.store(true, Ordering::Release);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    assert_eq!(store.revision(), 41);
    assert_eq!(writer.sync().unwrap(), mark(40));
}
