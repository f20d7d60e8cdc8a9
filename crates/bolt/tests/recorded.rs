//! Files that real etcds made, and what becomes of them when they are damaged.
//!
//! `data/etcd-VERSION.db.gz` is the `member/snap/db` of a single member of that version, killed after 172 revisions of
//! puts, deletes, transactions and leases and one compaction at 70.

use bolt::{Fault, HashScope, MetaFault, ReadAt, ReadError, Reader, hash};
use bytes::Bytes;
use proptest::prelude::*;
use std::io::Read;

fn recorded(version: &str) -> Bytes {
    let path = format!("{}/tests/data/etcd-{version}.db.gz", env!("CARGO_MANIFEST_DIR"));
    let packed = std::fs::read(path).expect("the recorded file is part of the project");
    let mut file = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut file).expect("it is a gzip file");
    Bytes::from(file)
}

/// All items of all buckets, and how many there are.
fn walk(file: &Reader<impl ReadAt>) -> Result<usize, ReadError> {
    let mut items = 0;
    for bucket in file.buckets() {
        for item in bucket?.items() {
            item?;
            items += 1;
        }
    }
    Ok(items)
}

/// The figures are what `etcdctl snapshot status` 3.4.23 and `etcdutl snapshot status` 3.5.1 print for these files.
#[test]
fn a_real_file_reads_as_etcdctl_reads_it() {
    for (version, file_hash, items, size) in [
        ("3.4.23", 1_226_693_407, 168, 40960),
        ("3.5.1", 173_161_200, 165, 40960),
        ("3.7.1", 2_046_593_941, 171, 49152),
    ] {
        let file = Reader::open(recorded(version)).unwrap();
        assert_eq!(hash(&file, HashScope::File).unwrap(), file_hash, "{version}");
        assert_eq!(walk(&file).unwrap(), items, "{version}");
        assert_eq!(file.size_bytes(), size, "{version}");
    }
}

#[test]
fn buckets_and_single_keys_are_found_by_name() {
    let file = Reader::open(recorded("3.7.1")).unwrap();
    let names: Vec<_> = file.buckets().map(|bucket| bucket.unwrap().name().clone()).collect();
    assert_eq!(
        names,
        ["alarm", "auth", "authRoles", "authUsers", "cluster", "key", "lease", "members", "members_removed", "meta"]
    );
    let meta = file.bucket(b"meta").unwrap().expect("every etcd has this bucket");
    assert_eq!(meta.get(b"storageVersion").unwrap().unwrap(), "3.7.0");
    assert_eq!(meta.get(b"consistent_index").unwrap().unwrap(), 212u64.to_be_bytes().as_slice());
    assert_eq!(meta.get(b"consistent").unwrap(), None);
    assert!(file.bucket(b"met").unwrap().is_none());
    assert!(file.bucket(b"zzz").unwrap().is_none());
}

#[test]
fn a_walk_can_begin_at_any_key() {
    let file = Reader::open(recorded("3.4.23")).unwrap();
    let bucket = file.bucket(b"key").unwrap().unwrap();
    let keys: Vec<_> = bucket.items().map(|item| item.unwrap().0).collect();
    assert!(keys.len() > 100);
    for (index, key) in keys.iter().enumerate() {
        let rest: Vec<_> = bucket.items_from(key).map(|item| item.unwrap().0).collect();
        assert_eq!(rest, keys[index..]);
        let behind = [key.as_ref(), &[0]].concat();
        assert_eq!(bucket.items_from(&behind).next().map(|item| item.unwrap().0), keys.get(index + 1).cloned());
    }
}

/// The newer meta page is the one that a crash tears; the older one then still describes a whole file.
#[test]
fn the_other_meta_page_steps_in_for_a_torn_one() {
    let whole = recorded("3.4.23");
    let newest = Reader::open(whole.clone()).unwrap().transaction();
    for page in [0, 4096] {
        let mut torn = whole.to_vec();
        torn[page + 40] ^= 1;
        let file = Reader::open(Bytes::from(torn)).unwrap();
        assert!(file.transaction() == newest || file.transaction() == newest - 1);
    }
    let mut both = whole.to_vec();
    both[16] = 0;
    both[4096 + 72] ^= 1;
    match Reader::open(Bytes::from(both)) {
        Err(ReadError::NoMeta { first: MetaFault::Magic(_), second: MetaFault::Checksum { .. } }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_that_is_no_bbolt_file_is_refused() {
    for bytes in [&b""[..], b"x", &[0; 100], &[0xff; 20000]] {
        let error = Reader::open(Bytes::copy_from_slice(bytes)).unwrap_err();
        assert!(matches!(error, ReadError::NoMeta { .. }), "{error}");
    }
}

#[test]
fn a_file_that_is_cut_off_is_refused() {
    let whole = recorded("3.4.23");
    let error = Reader::open(whole.slice(..whole.len() - 1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the file is cut off: 10 pages of 4096 bytes are in use, but it has only 40959 bytes"
    );
}

/// A branch that leads back to itself must not be followed for ever.
#[test]
fn a_branch_that_leads_in_a_circle_is_an_error() {
    let mut file = recorded("3.4.23").to_vec();
    let branch = (2..10).map(|page| page * 4096).find(|at| file[at + 8] == 1 && file[at + 10] > 0);
    let at = branch.expect("the key bucket has a branch page");
    let id = (at / 4096) as u64;
    file[at + 16 + 8..at + 16 + 16].copy_from_slice(&id.to_le_bytes());
    let file = Reader::open(Bytes::from(file)).unwrap();
    let bucket = file.bucket(b"key").unwrap().unwrap();
    let error = bucket.items().find_map(Result::err).expect("the circle is noticed");
    assert!(matches!(error, ReadError::Page { fault: Fault::Loop(page), .. } if page == id), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever a few damaged bytes do: the walk ends, with all items or with an error.
    #[test]
    fn damage_never_panics_and_never_hangs(
        damage in prop::collection::vec((80usize..40960, any::<u8>()), 1..8),
        header in prop::option::of((2usize..10, 0usize..64, any::<u8>())),
    ) {
        let mut file = recorded("3.4.23").to_vec();
        for (at, byte) in damage {
            file[at] = byte;
        }
        if let Some((page, at, byte)) = header {
            file[page * 4096 + at] = byte;
        }
        if let Ok(file) = Reader::open(Bytes::from(file)) {
            let _ = walk(&file);
            let _ = hash(&file, HashScope::Members);
            let _ = file.bucket(b"key").map(|bucket| bucket.map(|bucket| bucket.get(b"k")));
        }
    }
}
