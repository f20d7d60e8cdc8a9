//! Power cuts at every write, damaged files, failing disks.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use common::{Run, dir, small};
use disk::mem::Fault;
use disk::{Disk, MemDisk, Open};
use keelson_store::{KeyRange, Mark, RangeEnd, Store, StoreError};
use rand::Rng;

/// The power may go at any write, sync, rename or removal, and take any part of what was not synced with it: what had
/// been synced is there, what is there is the effect of the log up to the mark, and the rest can be applied again.
#[test]
fn a_power_cut_takes_nothing_that_was_synced() {
    for seed in 0..6 {
        println!("seed {seed}");
        let mut run = Run::new(seed, small());
        (0..100).for_each(|_| run.step());
        run.settle();
        for step in 0..200 {
            let synced = run.synced;
            run.disk.record();
            match step % 11 {
                3 | 7 => run.writer().flush().unwrap(),
                10 => run.sync(),
                _ => run.step(),
            }
            // Background work comes in bursts, so that each kind of it is met in every state of the log.
            if step / 20 % 2 == 0 {
                run.store.maintain().unwrap();
            }
            for moment in run.disk.recorded() {
                let images = moment.disk.crash_images();
                for _ in 0..2 {
                    let image = &images[run.random.random_range(0..images.len())];
                    println!("power cut in step {step}, after {}", moment.what);
                    let mut after = Run::new(seed, small());
                    (after.ops, after.model, after.synced) = (run.ops.clone(), run.model.clone(), synced);
                    after.reopen(image.fork());
                    after.check();
                }
            }
        }
    }
}

/// After a crash the store goes on as before: it fills, compacts, reclaims and crashes again.
#[test]
fn crash_after_crash_loses_nothing() {
    for seed in 100..110 {
        println!("seed {seed}");
        let mut run = Run::new(seed, small());
        for _ in 0..25 {
            for _ in 0..run.random.random_range(1..40) {
                run.step();
                run.store.maintain().unwrap();
                match run.random.random_range(0..8) {
                    0 => run.writer().flush().unwrap(),
                    1 => run.sync(),
                    _ => {}
                }
            }
            let images = run.disk.crash_images();
            let image = images[run.random.random_range(0..images.len())].fork();
            run.reopen(image);
            run.check();
        }
    }
}

/// A bit that rots anywhere is an error or goes unnoticed because nobody needs it; it is never an answer, and never
/// passes for the torn end of an unfinished write.
#[test]
fn rotten_bits_are_never_served() {
    let mut run = Run::new(1, small());
    (0..300).for_each(|_| run.step());
    run.settle();
    (0..200).for_each(|_| run.step());
    run.writer.take().unwrap().close().unwrap();
    let everything = KeyRange { start: Bytes::new(), end: RangeEnd::Unbounded };
    let mut refused = 0;
    let mut noticed = 0;
    for name in run.disk.list(dir()).unwrap() {
        let path = dir().join(&name);
        let len = run.disk.read(&path).unwrap().len() as u64;
        for byte in (0..len).step_by(7) {
            let disk = run.disk.fork();
            disk.flip_bit(&path, byte, (byte % 8) as u8);
            match Store::open(Arc::new(disk), dir(), small()) {
                Err(StoreError::Corrupt { .. }) => refused += 1,
                Err(other) => panic!("{name} byte {byte}: {other}"),
                Ok((store, _writer, mark)) => {
                    assert_eq!(mark.index, run.ops.len() as u64, "{name} byte {byte}");
                    store.scan(&everything, store.revision(), &mut |_, found| {
                        assert!(found.meta.version > 0);
                        ControlFlow::Continue(())
                    });
                    let mut exported = Vec::new();
                    let result = store.export(0, &mut |revision, deleted, payload| {
                        exported.push((revision, deleted, payload));
                        ControlFlow::Continue(())
                    });
                    match result {
                        Ok(()) => assert!(exported == run.model.history(i64::MAX), "{name} byte {byte}"),
                        Err(StoreError::Corrupt { file, .. }) => {
                            assert_eq!(file, name);
                            noticed += 1;
                        }
                        Err(other) => panic!("{name} byte {byte}: {other}"),
                    }
                }
            }
        }
    }
    assert!(refused > 100 && noticed > 100, "{refused} opens refused, {noticed} reads refused");
}

/// A missing or shortened file is told from an unfinished write, too.
#[test]
fn missing_files_are_missed() {
    let mut run = Run::new(2, small());
    (0..300).for_each(|_| run.step());
    run.settle();
    (0..100).for_each(|_| run.step());
    run.writer.take().unwrap().close().unwrap();
    for name in run.disk.list(dir()).unwrap() {
        if run.disk.read(&dir().join(&name)).unwrap().is_empty() {
            // Prepared for the next segment.
            continue;
        }
        let disk = run.disk.fork();
        disk.remove(&dir().join(&name)).unwrap();
        assert!(Store::open(Arc::new(disk), dir(), small()).is_err(), "without {name}");
        let disk = run.disk.fork();
        let file = disk.open(&dir().join(&name), Open::Write).unwrap();
        file.set_len(file.len().unwrap() - 1).unwrap();
        drop(file);
        let opened = Store::open(Arc::new(disk), dir(), small());
        if let Ok((store, ..)) = opened {
            let exported = store.export(0, &mut |_, _, _| ControlFlow::Continue(()));
            assert!(exported.is_err(), "{name} without its last byte");
        }
    }
}

/// After a failed write or sync the operating system may have dropped data and forgotten the error: nothing is
/// written any more, and what was acknowledged before is still there after a restart.
#[test]
fn a_failed_write_or_sync_stops_the_writing() {
    for fault in [Fault::SyncFails { after: 0 }, Fault::WriteFails { after: 0 }, Fault::Full { after_bytes: 10 }] {
        let mut run = Run::new(3, small());
        (0..50).for_each(|_| run.step());
        run.sync();
        run.step();
        run.disk.inject(fault.clone());
        let failed = run.writer().sync();
        assert!(matches!(failed, Err(StoreError::Io { .. })), "{fault:?}: {failed:?}");
        run.disk.clear_faults();
        assert!(run.writer().put(&Bytes::from_static(b"k"), b"v", 0).is_err(), "{fault:?}");
        assert!(run.writer().flush().is_err(), "{fault:?}");
        assert!(run.writer().sync().is_err(), "{fault:?}");
        assert!(run.store.maintain().is_err(), "{fault:?}");
        // Reading goes on.
        run.check();
        let disk = run.disk.crash(disk::mem::Crash::LoseUnsynced);
        run.reopen(disk);
        run.check();
    }
}

/// A process that starts after a failed sync still sees what it failed to write, in the page cache. What an open has shown
/// has to be there after a power cut: the log that could tell it again is released on the strength of it.
#[test]
fn what_an_open_shows_after_a_failed_sync_is_durable() {
    let mut beyond = 0;
    for seed in 20..40 {
        let mut run = Run::new(seed, small());
        (0..run.random.random_range(1..60)).for_each(|_| run.step());
        run.sync();
        for _ in 0..run.random.random_range(1..60) {
            run.step();
            run.store.maintain().unwrap();
        }
        run.disk.inject(Fault::SyncFails { after: 0 });
        assert!(run.writer().sync().is_err());
        let restarted = run.disk.fork();
        let (_, _, shown) = Store::open(Arc::new(restarted.clone()), dir(), small()).unwrap();
        beyond += u32::from(shown.index > run.synced);
        run.synced = shown.index;
        run.reopen(restarted.crash(disk::mem::Crash::LoseUnsynced));
        run.check();
    }
    assert!(beyond > 10, "only {beyond} of 20 failed syncs left something in the page cache");
}

/// Two stores in different directories of one disk do not meet; opening the same one twice in turn changes nothing.
#[test]
fn opening_again_changes_nothing() {
    let mut run = Run::new(4, small());
    (0..200).for_each(|_| run.step());
    run.sync();
    let open = |disk: &MemDisk| {
        let (store, writer, mark) = Store::open(Arc::new(disk.clone()), dir(), small()).unwrap();
        drop(writer);
        (store.revision(), store.size(), mark)
    };
    run.writer = None;
    let disk = run.disk.clone();
    let first = open(&disk);
    assert_eq!(first.2.index, 200);
    assert_ne!(first.2, Mark::default());
    assert_eq!(open(&disk), first);
    run.reopen(disk);
    run.check();
}
