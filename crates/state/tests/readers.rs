//! Readers beside the applying side: every answer shows one revision, whole, whatever happens meanwhile.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::BytesMut;
use disk::{Disk, MemDisk};
use keelson_state::watch::{Hub, OutputKind, WatchCreate};
use keelson_state::{Config, Error, Reader, State};
use prost::Message;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::request_op::Request as Op;
use store::{Options, Store};

const KEYS: usize = 40;
const ROUNDS: i64 = 3_000;

fn whole(revision: i64) -> pb::RangeRequest {
    pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, ..Default::default() }
}

/// Every transaction sets all keys to its own revision, so an answer with two different values mixes revisions.
fn write(state: &mut State, index: u64, revision: i64) {
    let puts = (0..KEYS).map(|n| {
        let (key, value) = (format!("key{n:03}").into(), revision.to_string().into());
        let put = pb::PutRequest { key, value, ..Default::default() };
        pb::RequestOp { request: Some(Op::RequestPut(put)) }
    });
    let txn = pb::TxnRequest { success: puts.collect(), ..Default::default() };
    let request = pb::InternalRaftRequest { txn: Some(txn), ..Default::default() };
    state.apply(index, 1, &request.encode_to_vec().into()).expect("a healthy disk").result.expect("a good txn");
}

fn compact(state: &mut State, index: u64, revision: i64) {
    let compaction = Some(pb::CompactionRequest { revision, physical: false });
    let request = pb::InternalRaftRequest { compaction, ..Default::default() };
    state.apply(index, 1, &request.encode_to_vec().into()).expect("a healthy disk").result.expect("a revision");
}

fn check_whole(response: &pb::RangeResponse, at: i64) {
    if at <= 1 {
        return; // nothing had been written
    }
    assert_eq!((response.kvs.len(), response.count), (KEYS, KEYS as i64), "at {at}");
    for kv in &response.kvs {
        assert_eq!(kv.value, at.to_string(), "at {at}");
        assert_eq!((kv.mod_revision, kv.version), (at, at - 1), "at {at}");
    }
}

fn read(reader: &Reader, done: &AtomicBool) {
    let mut newest = 0;
    let mut round = 0;
    while !done.load(Ordering::Relaxed) {
        round += 1;
        let response = reader.range(&whole(0)).expect("the newest revision is never compacted");
        let at = response.header.expect("a header").revision;
        assert!(at >= newest, "time runs backwards");
        newest = at;
        check_whole(&response, at);

        let mut encoded = BytesMut::new();
        reader.range_encoded(&whole(0), &pb::ResponseHeader::default(), &mut encoded).expect("an answer");
        let response = pb::RangeResponse::decode(encoded).expect("wire bytes");
        check_whole(&response, response.header.expect("a header").revision);

        let one = pb::RangeRequest { key: "key000".into(), ..Default::default() };
        let mut encoded = BytesMut::new();
        reader.range_encoded(&one, &pb::ResponseHeader::default(), &mut encoded).expect("an answer");
        let response = pb::RangeResponse::decode(encoded).expect("wire bytes");
        let at = response.header.expect("a header").revision;
        assert_eq!(response.kvs.first().map_or(1, |kv| kv.mod_revision), at);

        let old = (newest - 5 - round % 20).max(2).min(newest);
        match reader.range(&whole(old)) {
            Ok(response) => check_whole(&response, old),
            Err(error) => assert!(matches!(error, Error::Compacted | Error::FutureRev), "{error}"),
        }
        let mut stream = reader.range_stream(whole(0), 64).expect("the newest revision");
        let mut merged = pb::RangeResponse::default();
        while let Some(chunk) = stream.next_chunk().expect("a pinned revision stays readable") {
            merged.kvs.extend(chunk.kvs);
            (merged.header, merged.count) = (chunk.header, chunk.count);
        }
        check_whole(&merged, merged.header.expect("a header").revision);
    }
}

fn watch(reader: &Reader, done: &AtomicBool) {
    let mut hub = Hub::new(reader, Arc::new(|| {}), 1_000);
    let create = WatchCreate { key: "\0".into(), range_end: "\0".into(), start_revision: 2, ..Default::default() };
    hub.create(1, create);
    let mut next = 2;
    let mut of_revision = 0;
    loop {
        let finished = done.load(Ordering::Relaxed);
        let (outputs, more) = hub.poll(500);
        for output in outputs.iter().flat_map(|output| &output.items) {
            let OutputKind::Events(events) = &output.kind else { panic!("{output:?}") };
            for framed in events.iter() {
                let response = pb::WatchResponse::decode(framed.clone()).expect("a framed event");
                let kv = response.events[0].kv.clone().expect("a pair");
                assert_eq!((kv.mod_revision, kv.key), (next, format!("key{of_revision:03}").into()));
                of_revision = (of_revision + 1) % KEYS;
                next += i64::from(of_revision == 0);
            }
        }
        if finished && !more && !hub.poll(1).1 && next > reader.revision() {
            return;
        }
    }
}

#[test]
fn every_answer_is_one_revision_while_others_write_compact_and_reclaim() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let options =
        Options { segment_bytes: 64 << 10, flush_bytes: 4 << 10, recent_bytes: 16 << 10, ..Options::default() };
    let (store, writer, mark) = Store::open(disk, Path::new("/store"), options).expect("a store");
    let config = Config { quota_bytes: -1, heartbeat_ms: 100, election_timeout_ms: 1_000 };
    let (mut state, reader) = State::open(store, writer, &mark, config).expect("a state");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| read(&reader, &done));
        scope.spawn(|| watch(&reader, &done));
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if !reader.store().maintain().expect("maintenance") {
                    thread::yield_now();
                }
            }
        });
        let mut index = 0;
        let mut apply = || {
            for revision in 2..ROUNDS {
                index += 1;
                write(&mut state, index, revision);
                if revision % 50 == 0 {
                    index += 1;
                    compact(&mut state, index, revision - revision % 7);
                }
            }
        };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut apply));
        done.store(true, Ordering::Relaxed); // in any case, or the others would run for ever
        outcome.expect("the applying side failed");
    });
}
