//! What the writer makes: read back by our reader, and used by a real etcd.

use bolt::{HashScope, Layout, Plan, ReadAt, Reader, WriteError, Writer, hash};
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;

type Buckets = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>;

fn plan(buckets: &Buckets) -> Layout {
    let mut plan = Plan::new();
    for (name, items) in buckets {
        plan.bucket(name).unwrap();
        for (key, value) in items {
            plan.item(key.len(), value.len()).unwrap();
        }
    }
    plan.finish().unwrap()
}

fn write(buckets: &Buckets) -> Bytes {
    let layout = plan(buckets);
    let mut writer = Writer::new(Vec::new(), layout).unwrap();
    for (name, items) in buckets {
        writer.bucket(name).unwrap();
        for (key, value) in items {
            writer.item(key, value).unwrap();
        }
    }
    let file = writer.finish().unwrap();
    assert_eq!(file.len() as u64, layout.size_bytes());
    Bytes::from(file)
}

fn read(file: &Reader<impl ReadAt>) -> Buckets {
    let items = |bucket: &bolt::Bucket<'_, _>| {
        bucket.items().map(|item| item.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()).collect()
    };
    file.buckets().map(|bucket| bucket.unwrap()).map(|bucket| (bucket.name().to_vec(), items(&bucket))).collect()
}

/// Every branch page in the file, as (page, children).
fn branches(file: &[u8]) -> Vec<(usize, u16)> {
    let mut found = Vec::new();
    let mut page = 2;
    while page * 4096 < file.len() {
        let header = &file[page * 4096..];
        let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        if u16_at(8) == 1 {
            found.push((page, u16_at(10)));
        }
        page += 1 + usize::from(u16_at(12));
    }
    found
}

fn numbered(count: u64, value_len: impl Fn(u64) -> usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
    (0..count).map(|n| (n.to_be_bytes().to_vec(), vec![n as u8; value_len(n)])).collect()
}

#[test]
fn a_file_without_buckets_is_three_pages() {
    let file = write(&Buckets::new());
    assert_eq!(file.len(), 3 * 4096);
    assert_eq!(Reader::open(file).unwrap().buckets().count(), 0);
}

/// At the sizes where a page, a branch or the inline limit is just full, and one more.
#[test]
fn trees_of_every_depth_read_back() {
    for count in [0, 1, 2, 3, 25, 26, 27, 140, 170, 171, 172, 340, 341, 30_000, 60_000] {
        let buckets = Buckets::from([(b"a".to_vec(), numbered(count, |_| 8)), (b"b".to_vec(), numbered(1, |_| 1))]);
        let file = write(&buckets);
        assert!(branches(&file).iter().all(|(_, children)| *children >= 2), "{count} items");
        assert_eq!(read(&Reader::open(file).unwrap()), buckets, "{count} items");
    }
}

/// bbolt asserts that a leaf from which it deletes has a sibling, so a branch with one child would bring etcd down later.
#[test]
fn a_branch_always_has_two_children() {
    for count in 1..700 {
        let file = write(&Buckets::from([(b"a".to_vec(), numbered(count, |_| 2000))]));
        for (page, children) in branches(&file) {
            assert!(children >= 2, "{count} items: page {page} has {children}");
        }
    }
}

#[test]
fn values_larger_than_a_page_run_on_into_overflow_pages() {
    let sizes = [4000, 4096, 5000, 0, 65536, 1_500_000, 1, 4047, 4048, 4049];
    let buckets = Buckets::from([(b"a".to_vec(), numbered(10, |n| sizes[n as usize]))]);
    assert_eq!(read(&Reader::open(write(&buckets)).unwrap()), buckets);
}

/// More than a page of buckets, so that the root bucket is a tree itself.
#[test]
fn many_buckets_read_back() {
    let buckets: Buckets =
        (0..300).map(|n| (format!("bucket-{n:03}").into_bytes(), numbered(n % 50, |_| 20))).collect();
    let file = Reader::open(write(&buckets)).unwrap();
    assert_eq!(read(&file), buckets);
    let found = file.bucket(b"bucket-249").unwrap().unwrap();
    assert_eq!(found.get(&7u64.to_be_bytes()).unwrap().unwrap().len(), 20);
}

#[test]
fn what_is_out_of_order_or_out_of_bounds_is_refused() {
    let layout = plan(&Buckets::from([(b"a".to_vec(), numbered(2, |_| 1))]));
    let mut writer = Writer::new(Vec::new(), layout).unwrap();
    writer.bucket(b"b").unwrap();
    writer.item(b"k", b"").unwrap();
    assert!(matches!(writer.item(b"k", b""), Err(WriteError::KeyOrder { .. })));
    assert!(matches!(writer.item(b"", b""), Err(WriteError::KeySize { len: 0, .. })));
    assert!(matches!(writer.item(&[b'x'; 32769], b""), Err(WriteError::KeySize { len: 32769, .. })));
    assert!(matches!(writer.bucket(b"a"), Err(WriteError::BucketOrder { .. })));
    assert!(matches!(Plan::new().bucket(b""), Err(WriteError::KeySize { .. })));
}

#[test]
fn a_file_that_outgrows_its_plan_is_an_error() {
    let small = plan(&Buckets::from([(b"a".to_vec(), numbered(2, |_| 1))]));
    let mut writer = Writer::new(Vec::new(), small).unwrap();
    writer.bucket(b"a").unwrap();
    for (key, value) in numbered(100, |_| 1000) {
        if let Err(error) = writer.item(&key, &value) {
            assert!(matches!(error, WriteError::OffPlan { .. }), "{error}");
            return;
        }
    }
    panic!("100 KB were written into a plan for one page");
}

#[test]
fn a_file_that_falls_short_of_its_plan_is_an_error() {
    let large = plan(&Buckets::from([(b"a".to_vec(), numbered(100, |_| 1000))]));
    let mut writer = Writer::new(Vec::new(), large).unwrap();
    writer.bucket(b"a").unwrap();
    assert!(matches!(writer.finish(), Err(WriteError::OffPlan { .. })));
}

#[test]
fn the_hash_of_members_leaves_out_what_members_may_differ_in() {
    let file = |index: &[u8], other: &[u8]| {
        let meta = BTreeMap::from([(b"consistent_index".to_vec(), index.to_vec()), (b"x".to_vec(), other.to_vec())]);
        Reader::open(write(&Buckets::from([(b"meta".to_vec(), meta)]))).unwrap()
    };
    let of = |file: &Reader<Bytes>, scope| hash(file, scope).unwrap();
    let (one, two, three) = (file(b"1", b""), file(b"2", b""), file(b"1", b"3"));
    assert_eq!(of(&one, HashScope::Members), of(&two, HashScope::Members));
    assert_ne!(of(&one, HashScope::File), of(&two, HashScope::File));
    assert_ne!(of(&one, HashScope::Members), of(&three, HashScope::Members));
}

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![8 => 0..40usize, 1 => 0..max].prop_flat_map(|len| prop::collection::vec(any::<u8>(), len))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Also with keys so long that a branch holds only two of them.
    #[test]
    fn any_contents_read_back(buckets in prop::collection::btree_map(
        bytes(3000).prop_filter("a name is not empty", |name| !name.is_empty()),
        prop::collection::btree_map(bytes(6000).prop_filter("a key is not empty", |key| !key.is_empty()), bytes(9000), 0..120),
        0..6,
    )) {
        let file = write(&buckets);
        prop_assert!(branches(&file).iter().all(|(_, children)| *children >= 2));
        let file = Reader::open(file).unwrap();
        prop_assert_eq!(read(&file), buckets.clone());
        for (name, items) in &buckets {
            let bucket = file.bucket(name).unwrap().unwrap();
            for (key, value) in items.iter().take(10) {
                prop_assert_eq!(&bucket.get(key).unwrap().unwrap(), value);
            }
        }
    }
}
