//! Opening a store that consists of these files, reading all of it, and writing to it.
#![no_main]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use disk::MemDisk;
use keelson_fuzz::{pieces, with_frame_checksums};
use libfuzzer_sys::fuzz_target;
use store::{KeyRange, Options, RangeEnd, Store};

fuzz_target!(|data: &[u8]| {
    let [manifest, segment, checkpoint] = pieces(data);
    let (disk, dir) = (MemDisk::new(), Path::new("/store"));
    for (name, content) in [("MANIFEST", manifest), ("00000001.seg", segment), ("00000002.idx", checkpoint)] {
        if !content.is_empty() {
            disk.write(&dir.join(name), &with_frame_checksums(content)).expect("a memory disk takes it");
        }
    }
    let Ok((store, mut writer, _)) = Store::open(Arc::new(disk), dir, Options::default()) else { return };
    let all = KeyRange { start: Bytes::new(), end: RangeEnd::Unbounded };
    let mut found = Vec::new();
    store.scan(&all, store.revision(), &mut |_, version| {
        found.push(version.location);
        ControlFlow::Continue(())
    });
    for location in found {
        let _ = store.read(location);
    }
    let _ = writer.put(&Bytes::from_static(b"key"), b"value", 0).map(|_| writer.commit());
});
