//! Checks that need nothing but the request: done before it is logged or read.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::request_op::Request as Op;

use crate::Error;
use crate::lease::MAX_TTL;

/// Checks a range request: it names a key, and its sort options are known ones.
pub fn range(request: &pb::RangeRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    let order = pb::range_request::SortOrder::try_from(request.sort_order);
    let target = pb::range_request::SortTarget::try_from(request.sort_target);
    if order.is_err() || target.is_err() {
        return Err(Error::InvalidSortOption);
    }
    Ok(())
}

/// Checks a put request.
pub fn put(request: &pb::PutRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

/// Checks a delete request.
pub fn delete_range(request: &pb::DeleteRangeRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    Ok(())
}

/// Checks a lease grant.
pub fn lease_grant(request: &pb::LeaseGrantRequest) -> Result<(), Error> {
    if request.ttl > MAX_TTL {
        return Err(Error::LeaseTTLTooLarge);
    }
    Ok(())
}

/// Checks a range-stream request: a range in key order without revision filters.
pub fn range_stream(request: &pb::RangeRequest) -> Result<(), Error> {
    range(request)?;
    let by_key = request.sort_target == pb::range_request::SortTarget::Key as i32;
    let ascending = request.sort_order == pb::range_request::SortOrder::Ascend as i32;
    let unsorted = request.sort_order == pb::range_request::SortOrder::None as i32;
    if !(unsorted || by_key && ascending) {
        return Err(Error::Unimplemented("RangeStream does not support custom sort orders".into()));
    }
    let filters =
        [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision];
    if filters != [0; 4] {
        return Err(Error::Unimplemented("RangeStream does not support revision filters".into()));
    }
    Ok(())
}

/// Checks a txn: its size, its compares, every operation, and that no key is written twice.
///
/// `max_ops` bounds the longest list of a txn; a nested one may only use what its parent has left over.
pub fn txn(request: &pb::TxnRequest, max_ops: usize) -> Result<(), Error> {
    txn_ops(request, max_ops)?;
    Writes::of(&request.success)?;
    Writes::of(&request.failure)?;
    Ok(())
}

fn txn_ops(request: &pb::TxnRequest, max_ops: usize) -> Result<(), Error> {
    let longest = request.compare.len().max(request.success.len()).max(request.failure.len());
    let Some(left) = max_ops.checked_sub(longest) else { return Err(Error::TooManyOps) };
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Error::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Op::RequestRange(request)) => range(request)?,
            Some(Op::RequestPut(request)) => put(request)?,
            Some(Op::RequestDeleteRange(request)) => delete_range(request)?,
            Some(Op::RequestTxn(request)) => txn_ops(request, left)?,
            None => return Err(Error::KeyNotFound),
        }
    }
    Ok(())
}

/// The keys that one branch of a txn may write, its nested txns included.
#[derive(Default)]
struct Writes {
    puts: HashSet<Bytes>,
    deletes: Intervals,
}

impl Writes {
    fn of(ops: &[pb::RequestOp]) -> Result<Self, Error> {
        let mut writes = Self::default();
        for op in ops {
            if let Some(Op::RequestDeleteRange(request)) = &op.request {
                writes.deletes.insert_range(&request.key, &request.range_end);
            }
        }
        for op in ops {
            if let Some(Op::RequestTxn(nested)) = &op.request {
                writes.add_nested(Self::of(&nested.success)?, Self::of(&nested.failure)?)?;
            }
        }
        for op in ops {
            if let Some(Op::RequestPut(request)) = &op.request {
                writes.add_put(request.key.clone())?;
            }
        }
        Ok(writes)
    }

    /// Only one branch of a nested txn runs, so its two branches may write the same key.
    fn add_nested(&mut self, success: Self, failure: Self) -> Result<(), Error> {
        let only_failure: Vec<_> = failure.puts.difference(&success.puts).cloned().collect();
        for key in success.puts.into_iter().chain(only_failure) {
            self.add_put(key)?;
        }
        self.deletes.union(success.deletes);
        self.deletes.union(failure.deletes);
        Ok(())
    }

    fn add_put(&mut self, key: Bytes) -> Result<(), Error> {
        if self.deletes.contains(&key) || !self.puts.insert(key) {
            return Err(Error::DuplicateKey);
        }
        Ok(())
    }
}

/// Disjoint key intervals, `start -> end` (exclusive).
#[derive(Default)]
struct Intervals(BTreeMap<Bytes, Bytes>);

impl Intervals {
    /// Adds what a delete covers. An open-ended delete counts as the (empty) interval up to the literal key `\0`, as
    /// in etcd: it is not detected as overlapping anything.
    fn insert_range(&mut self, key: &Bytes, range_end: &Bytes) {
        if range_end.is_empty() {
            let mut end = Vec::with_capacity(key.len() + 1);
            end.extend_from_slice(key);
            end.push(0);
            self.insert(key.clone(), end.into());
        } else if key < range_end {
            self.insert(key.clone(), range_end.clone());
        }
    }

    fn insert(&mut self, mut start: Bytes, mut end: Bytes) {
        // Swallow every interval that touches the new one, so that the map stays disjoint.
        while let Some((s, e)) = self.0.range(..=end.clone()).next_back() {
            if *e < start {
                break;
            }
            let key = s.clone();
            if *s < start {
                start = s.clone();
            }
            if *e > end {
                end = e.clone();
            }
            self.0.remove(&key);
        }
        self.0.insert(start, end);
    }

    fn union(&mut self, other: Self) {
        for (start, end) in other.0 {
            self.insert(start, end);
        }
    }

    fn contains(&self, key: &Bytes) -> bool {
        self.0.range(..=key.clone()).next_back().is_some_and(|(_, end)| key < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put_op(key: &'static str) -> pb::RequestOp {
        let request = pb::PutRequest { key: key.into(), ..Default::default() };
        pb::RequestOp { request: Some(Op::RequestPut(request)) }
    }

    fn delete_op(key: &'static str, range_end: &'static str) -> pb::RequestOp {
        let request = pb::DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv: false };
        pb::RequestOp { request: Some(Op::RequestDeleteRange(request)) }
    }

    fn txn_op(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::RequestOp {
        pb::RequestOp { request: Some(Op::RequestTxn(pb::TxnRequest { compare: vec![], success, failure })) }
    }

    fn check(success: Vec<pb::RequestOp>) -> Result<(), Error> {
        txn(&pb::TxnRequest { compare: vec![], success, failure: vec![] }, 128)
    }

    #[test]
    fn a_range_needs_a_key_and_known_sort_options() {
        let request = pb::RangeRequest { key: "a".into(), sort_order: 3, ..Default::default() };
        assert_eq!(range(&pb::RangeRequest::default()), Err(Error::EmptyKey));
        assert_eq!(range(&request), Err(Error::InvalidSortOption));
        let request = pb::RangeRequest { key: "a".into(), sort_target: -1, ..Default::default() };
        assert_eq!(range(&request), Err(Error::InvalidSortOption));
    }

    #[test]
    fn the_first_broken_rule_of_a_put_is_reported() {
        let mut request = pb::PutRequest {
            value: "v".into(),
            lease: 1,
            ignore_value: true,
            ignore_lease: true,
            ..Default::default()
        };
        assert_eq!(put(&request), Err(Error::EmptyKey));
        request.key = "k".into();
        assert_eq!(put(&request), Err(Error::ValueProvided));
        request.value.clear();
        assert_eq!(put(&request), Err(Error::LeaseProvided));
        request.lease = 0;
        assert_eq!(put(&request), Ok(()));
    }

    #[test]
    fn a_key_is_written_at_most_once() {
        assert_eq!(check(vec![put_op("a"), put_op("b")]), Ok(()));
        assert_eq!(check(vec![put_op("a"), put_op("a")]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![delete_op("a", ""), delete_op("a", "c")]), Ok(()));
        assert_eq!(check(vec![delete_op("a", "c"), put_op("b")]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![put_op("c"), delete_op("a", "c")]), Ok(()));
        assert_eq!(check(vec![put_op("a"), delete_op("a", "")]), Err(Error::DuplicateKey));
        // An open-ended delete is not detected, as in etcd.
        assert_eq!(check(vec![put_op("b"), delete_op("a", "\0")]), Ok(()));
    }

    #[test]
    fn nested_writes_count_but_two_branches_exclude_each_other() {
        assert_eq!(check(vec![txn_op(vec![put_op("a")], vec![put_op("a")])]), Ok(()));
        assert_eq!(check(vec![put_op("a"), txn_op(vec![], vec![put_op("a")])]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![put_op("b"), txn_op(vec![delete_op("a", "c")], vec![])]), Err(Error::DuplicateKey));
        let twice = vec![txn_op(vec![put_op("a")], vec![]), txn_op(vec![], vec![put_op("a")])];
        assert_eq!(check(twice), Err(Error::DuplicateKey));
    }

    #[test]
    fn nested_txns_share_their_parents_budget() {
        let ops = |n: usize| (0..n).map(|_| delete_op("a", "")).collect::<Vec<_>>();
        let request = |success| pb::TxnRequest { compare: vec![], success, failure: vec![] };
        assert_eq!(txn(&request(ops(3)), 3), Ok(()));
        assert_eq!(txn(&request(ops(4)), 3), Err(Error::TooManyOps));
        assert_eq!(txn(&request(vec![txn_op(ops(2), vec![])]), 3), Ok(()));
        assert_eq!(txn(&request(vec![txn_op(ops(3), vec![])]), 3), Err(Error::TooManyOps));
    }

    #[test]
    fn an_operation_without_a_request_is_refused() {
        assert_eq!(check(vec![pb::RequestOp { request: None }]), Err(Error::KeyNotFound));
    }

    #[test]
    fn intervals_merge_when_they_touch() {
        let mut intervals = Intervals::default();
        for (start, end) in [("a", "c"), ("e", "g"), ("c", "e"), ("x", "z"), ("b", "y")] {
            intervals.insert(start.into(), end.into());
        }
        assert_eq!(intervals.0.len(), 1);
        assert!(intervals.contains(&"y".into()));
        assert!(!intervals.contains(&"z".into()));
    }
}
