//! Opening a log whose only segment holds these records.
#![no_main]

use std::path::Path;
use std::sync::Arc;

use disk::MemDisk;
use keelson_fuzz::with_wal_checksums;
use libfuzzer_sys::fuzz_target;
use wal::{SnapshotMark, Wal};

fuzz_target!(|data: &[u8]| {
    let (raw, data) = match data.split_first() {
        Some((first, rest)) => (first & 1 == 1, rest),
        None => return,
    };
    let content = if raw { data.to_vec() } else { with_wal_checksums(data) };
    let (disk, dir) = (MemDisk::new(), Path::new("/wal"));
    disk.write(&dir.join("0000000000000000-0000000000000000.wal"), &content).expect("a memory disk takes it");
    let marks = Wal::snapshots(&disk, dir).unwrap_or_default();
    for mark in marks.into_iter().take(2).chain([SnapshotMark::default()]) {
        if let Ok((wal, replay)) = Wal::open(Arc::new(disk.fork()), dir, mark) {
            assert!(replay.entries.windows(2).all(|pair| pair[0].index + 1 == pair[1].index), "a hole in the log");
            drop(wal);
        }
    }
});
