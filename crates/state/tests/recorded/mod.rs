//! What three etcds wrote, and what they answered.
//!
//! The recorded data dirs and the values in `EXPECTED` come from single members of etcd 3.4.23, 3.5.1 and 3.7.1 that
//! were all given the same operations (see the README beside the data).

#![allow(dead_code, missing_docs)]

use std::path::Path;
use std::sync::Arc;

use disk::{Disk, RealDisk};
use keelson_state::{Config, Reader, State};
use prost::Message;
use proto::etcdserverpb::RangeRequest;
use proto::raftpb;
use sha2::{Digest, Sha256};
use store::{Options, Store};
use wal::{Entry, EntryKind, SnapshotMark, Wal};

pub const VERSIONS: [&str; 3] = ["3.4.23", "3.5.1", "3.7.1"];

/// HashKV by revision, after the compaction at 70.
const EXPECTED: [(i64, u32); 8] = [
    (71, 1251709010),
    (90, 766998961),
    (100, 536337111),
    (120, 962362888),
    (166, 620137187),
    (167, 1934096889),
    (172, 2875972514),
    (0, 2875972514),
];
const DIGEST_AT_167: &str = "a8be26727f638b70df7ea643884a823480ceb196332810bf83ec461ddc1f2364";
const DIGEST_AT_172: &str = "35b01cd37fe208506a0ef688262639a52ec14a57fcf054ff9cbed89b78a780ea";

pub fn unpacked(version: &str) -> tempfile::TempDir {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wal/tests/data");
    let packed = std::fs::File::open(data.join(format!("datadir-{version}.tar.gz"))).expect("the recorded data dir");
    let dir = tempfile::tempdir().expect("a temporary directory");
    tar::Archive::new(flate2::read::GzDecoder::new(packed)).unpack(dir.path()).expect("an archive");
    dir
}

pub fn recorded(version: &str) -> Vec<Entry> {
    let dir = unpacked(version);
    let wal = dir.path().join("member/wal");
    let (_, replay) = Wal::open(Arc::new(RealDisk), &wal, SnapshotMark::START).expect("a readable log");
    replay.entries
}

pub fn open(disk: &Arc<dyn Disk>) -> (State, Reader) {
    let (store, writer, mark) = Store::open(disk.clone(), Path::new("/store"), Options::default()).expect("a store");
    let config = Config { quota_bytes: 0, heartbeat_ms: 100, election_timeout_ms: 1_000 };
    State::open(store, writer, &mark, config).expect("a state")
}

pub fn apply(state: &mut State, entry: &Entry) {
    match entry.kind {
        EntryKind::Normal => {
            state.apply(entry.index, entry.term, &entry.data).expect("an entry");
        }
        EntryKind::ConfChange => {
            let change = raftpb::ConfChange::decode(entry.data.clone()).expect("a configuration change");
            let conf_state = raftpb::ConfState { voters: vec![change.node_id()], ..Default::default() };
            let conf_state = conf_state.encode_to_vec().into();
            state.apply_conf_change(entry.index, entry.term, &change, conf_state).expect("an entry");
        }
        EntryKind::ConfChangeV2 => panic!("etcd writes none"),
    }
}

fn digest(reader: &Reader, revision: i64) -> String {
    let request =
        RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, limit: 1_000, ..Default::default() };
    let mut sha = Sha256::new();
    for kv in reader.range(&request).expect("a range").kvs {
        sha.update(&kv.key);
        sha.update("=");
        sha.update(&kv.value);
        sha.update(format!("@{},{},{},{}\n", kv.create_revision, kv.mod_revision, kv.version, kv.lease));
    }
    sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn check(reader: &Reader, context: &str) {
    assert_eq!((reader.revision(), reader.compact_revision()), (172, 70), "{context}");
    for (revision, hash) in EXPECTED {
        let answer = reader.hash_kv(revision).expect("a hash");
        assert_eq!((answer.hash, answer.compact_revision), (hash, 70), "HashKV at {revision}, {context}");
    }
    assert!(reader.hash_kv(50).is_err(), "{context}");
    assert_eq!(digest(reader, 167), DIGEST_AT_167, "{context}");
    assert_eq!(digest(reader, 172), DIGEST_AT_172, "{context}");
    let keys = |id| reader.lessor().time_to_live(id, true, 0).map(|answer| (answer.granted_ttl, answer.keys.len()));
    assert_eq!([keys(1001), keys(1002), keys(1003)], [Some((86400, 2)), None, Some((86400, 1))], "{context}");
}
