//! Loading a `.snap` file and the v2 tree in it.
#![no_main]

use std::path::Path;

use bytes::Bytes;
use disk::MemDisk;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use proto::snappb;
use wal::{SnapshotMark, snap};

fuzz_target!(|data: &[u8]| {
    let inner = Bytes::copy_from_slice(data);
    let whole = snappb::Snapshot { crc: Some(crc32c::crc32c(&inner)), data: Some(inner) }.encode_to_vec();
    for content in [data, &whole] {
        let (disk, dir) = (MemDisk::new(), Path::new("/snap"));
        disk.write(&dir.join("0000000000000001-0000000000000001.snap"), content).expect("a memory disk takes it");
        let mark = SnapshotMark { index: 1, term: 1, ..Default::default() };
        if let Ok(Some(snap)) = snap::load_newest_available(&disk, dir, &[mark]) {
            let _ = state::fuzzing::v2_tree(&snap.data);
        }
    }
});
