//! Reading all of a bbolt file.
#![no_main]

use keelson_fuzz::with_meta_checksums;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(file) = bolt::Reader::open(with_meta_checksums(data)) else { return };
    for bucket in file.buckets().take(1000) {
        let Ok(bucket) = bucket else { return };
        for item in bucket.items().take(10_000) {
            let Ok((key, _)) = item else { break };
            let _ = bucket.get(&key);
        }
        let _ = bucket.items_from(b"m").take(10).count();
    }
});
