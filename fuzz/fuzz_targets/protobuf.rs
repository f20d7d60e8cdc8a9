//! Entries of the log, applied; and the checks that requests go through before they become one.
#![no_main]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use disk::MemDisk;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use proto::etcdserverpb::{InternalRaftRequest, RangeRequest, TxnRequest};
use state::{Config, State, check};
use store::{Options, Store};

fuzz_target!(|data: &[u8]| {
    let mut state = None;
    let mut rest = data;
    let mut index = 0;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (entry, after) = after.split_at(length);
        rest = after;
        let entry = Bytes::copy_from_slice(entry);
        let Ok(request) = InternalRaftRequest::decode(entry.clone()) else { continue };
        // What the API would have refused is not in a log.
        let is_good = request.put.as_ref().is_none_or(|put| check::put(put).is_ok())
            && request.delete_range.as_ref().is_none_or(|delete| check::delete_range(delete).is_ok())
            && request.txn.as_ref().is_none_or(|txn| check::txn(txn, 128).is_ok())
            && request.lease_grant.as_ref().is_none_or(|grant| check::lease_grant(grant).is_ok());
        if !is_good {
            continue;
        }
        let (state, reader) = state.get_or_insert_with(|| {
            let (store, writer, mark) =
                Store::open(Arc::new(MemDisk::new()), Path::new("/store"), Options::default()).expect("an empty store");
            let config = Config { quota_bytes: 0, heartbeat_ms: 100, election_timeout_ms: 1000 };
            State::open(store, writer, &mark, config).expect("an empty state")
        });
        index += 1;
        // An entry that cannot be applied stops a member; it must say so.
        if state.apply(index, 1, &entry).is_err() {
            return;
        }
        if let Some(range) = request.range.filter(|range| check::range(range).is_ok()) {
            let _ = reader.range(&range);
        }
    }
    if let Ok(range) = RangeRequest::decode(data) {
        let _ = check::range(&range);
    }
    if let Ok(txn) = TxnRequest::decode(data) {
        let _ = check::txn(&txn, 128);
    }
});
