//! HashKV gives the values that etcd gives for the same history.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use common::{dir, small};
use disk::MemDisk;
use keelson_store::{HashKv, Store};

/// The numbers were asked of etcd 3.4.23 (`etcdctl endpoint hashkv --rev`) after the same puts, deletes and compactions.
#[test]
fn hashes_are_those_of_etcd() {
    let (store, mut writer, _) = Store::open(Arc::new(MemDisk::new()), dir(), small()).unwrap();
    let key = |key: &str| Bytes::copy_from_slice(key.as_bytes());
    for number in 1..=6 {
        writer.put(&key(&format!("k{}", number % 3)), format!("v{number}").as_bytes(), 0).unwrap();
        writer.commit();
    }
    writer.delete(b"k1").unwrap();
    writer.commit();
    for (name, value) in [("lone", "x"), ("k1", "again")] {
        writer.put(&key(name), value.as_bytes(), 0).unwrap();
        writer.commit();
    }
    writer.delete(b"lone").unwrap();
    writer.commit();
    for name in ["k0", "k1", "k2"] {
        writer.delete(name.as_bytes()).unwrap();
    }
    writer.commit();
    for value in ["1", "2"] {
        writer.put(&key("z"), value.as_bytes(), 0).unwrap();
        writer.commit();
    }
    let check = |compact_revision, rows: &[(i64, u32)]| {
        for &(at, hash) in rows {
            let hash_revision = if at == 0 { 14 } else { at };
            assert_eq!(store.hash_kv(at).unwrap(), HashKv { hash, compact_revision, hash_revision }, "at {at}");
        }
    };
    check(-1, &[(5, 3427579149), (9, 3812060240), (12, 3206228433), (14, 1153632306), (0, 1153632306)]);
    for (revision, rows) in [
        (11, &[(12, 2171885100), (13, 741090797), (14, 2455594621), (0, 2455594621)][..]),
        (12, &[(13, 765405192), (14, 879836219), (0, 879836219)]),
    ] {
        writer.compact(revision).unwrap();
        check(revision, rows);
        while store.maintain().unwrap() {}
        assert!(store.compaction_done());
        check(revision, rows);
        store.export(0, &mut |_, _, _| ControlFlow::Continue(())).unwrap();
    }
}
