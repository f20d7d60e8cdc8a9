//! Reading beside the applying side.

use bytes::BytesMut;
use proto::etcdserverpb as pb;
use store::{HashKv, Store};

use crate::watch::Feed;
use crate::{Error, Lessor, Member};

/// Answers questions about the state while it goes on being changed. Cheap to clone, used by many threads.
#[derive(Clone, Debug)]
pub struct Reader {}

#[allow(unused_variables)]
impl Reader {
    /// Executes a checked range request. The header holds only the revision.
    pub fn range(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Error> {
        todo!()
    }
    /// The same, appended to `out` as wire bytes; `header` gives all but the revision.
    pub fn range_encoded(
        &self,
        request: &pb::RangeRequest,
        header: &pb::ResponseHeader,
        out: &mut BytesMut,
    ) -> Result<(), Error> {
        todo!()
    }
    /// Executes a checked txn that [`Reader::is_read_only`]. The header holds only the revision.
    pub fn txn_read_only(&self, request: &pb::TxnRequest) -> Result<pb::TxnResponse, Error> {
        todo!()
    }
    /// Whether a txn can only read, so that it need not be logged. A nested txn counts as a write.
    pub fn is_read_only(request: &pb::TxnRequest) -> bool {
        todo!()
    }
    /// Whether all ranges of a read-only txn are serializable, so that it needs no read barrier.
    pub fn is_serializable(request: &pb::TxnRequest) -> bool {
        todo!()
    }
    /// Begins a checked range stream at one revision; chunks adapt to `max_request_bytes`.
    pub fn range_stream(&self, request: pb::RangeRequest, max_request_bytes: usize) -> Result<RangeStream, Error> {
        todo!()
    }
    /// The newest revision.
    pub fn revision(&self) -> i64 {
        todo!()
    }
    /// The revision of the last compaction; -1 = never.
    pub fn compact_revision(&self) -> i64 {
        todo!()
    }
    /// The store underneath.
    pub fn store(&self) -> &Store {
        todo!()
    }
    /// HashKV at a revision, 0 = newest.
    pub fn hash_kv(&self, revision: i64) -> Result<HashKv, Error> {
        todo!()
    }
    /// All members, sorted by ID.
    pub fn members(&self) -> Vec<Member> {
        todo!()
    }
    /// One member.
    pub fn member(&self, id: u64) -> Option<Member> {
        todo!()
    }
    /// Whether a member was removed (its ID is never used again).
    pub fn is_removed(&self, id: u64) -> bool {
        todo!()
    }
    /// Alarms that are set, ordered by member and type; `alarm` 0 = all types.
    pub fn alarms(&self, alarm: i32) -> Vec<pb::AlarmMember> {
        todo!()
    }
    /// The version all members can speak, e.g. `3.7.0`; `None` until it has been agreed.
    pub fn cluster_version(&self) -> Option<String> {
        todo!()
    }
    /// A downgrade that is under way.
    pub fn downgrade(&self) -> pb::DowngradeInfo {
        todo!()
    }
    /// Whether this request would put the store over its quota. Requests that free space always pass.
    pub fn over_quota(&self, request: &pb::InternalRaftRequest) -> bool {
        todo!()
    }
    /// The quota in bytes; 0 = none.
    pub fn quota_bytes(&self) -> i64 {
        todo!()
    }
    /// The leases.
    pub fn lessor(&self) -> &Lessor {
        todo!()
    }
    /// The feed of events for watch hubs.
    pub fn feed(&self) -> &Feed {
        todo!()
    }
    /// What etcd's `.snap` files hold: membership and cluster version as a v2 store.
    pub fn v2_snapshot_json(&self, index: u64) -> Vec<u8> {
        todo!()
    }
}

/// A range answered in chunks, all at one revision. Merge rule: concatenate `kvs`; header, `more` and `count` come with
/// the last chunk only.
#[derive(Debug)]
pub struct RangeStream {}

impl RangeStream {
    /// The next chunk; `None` after the last.
    pub fn next_chunk(&mut self) -> Result<Option<pb::RangeResponse>, Error> {
        todo!()
    }
}
