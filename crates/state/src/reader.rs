//! Reading beside the applying side.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;
use parking_lot::RwLock;
use proto::etcdserverpb as pb;
use store::{HashKv, Store};

use crate::alarm::Alarms;
use crate::auth::Auth;
use crate::kv::{Failure, range, stream::RangeStream, txn};
use crate::members::Cluster;
use crate::v2::V2;
use crate::watch::Feed;
use crate::{Error, Lessor, Member, quota};

/// What the applying side and the readers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) lessor: Lessor,
    pub(crate) feed: Feed,
    pub(crate) v2: V2,
    pub(crate) cluster: RwLock<Cluster>,
    pub(crate) alarms: RwLock<Alarms>,
    pub(crate) auth: Auth,
    /// The term of the last applied entry.
    pub(crate) applied_term: AtomicU64,
    /// Bytes; 0 = no quota.
    pub(crate) quota_bytes: i64,
}

impl Shared {
    pub(crate) fn over_quota(&self, request: &pb::InternalRaftRequest) -> bool {
        let Some(quota) = u64::try_from(self.quota_bytes).ok().filter(|quota| *quota > 0) else { return false };
        let cost = quota::cost(request);
        cost > 0 && self.store.size().live.saturating_add(cost) >= quota
    }
}

/// Answers questions about the state while it goes on being changed. Cheap to clone, used by many threads.
#[derive(Clone, Debug)]
pub struct Reader(pub(crate) Arc<Shared>);

impl Reader {
    /// Executes a checked range request. The header holds only the revision.
    pub fn range(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Error> {
        if request.revision > 0 {
            return Ok(range::range(&self.0.store, request, self.revision())?);
        }
        let (pin, current) = range::pin_newest(&self.0.store);
        Ok(range::range_at(pin.store(), request, current, current)?)
    }

    /// The same, appended to `out` as wire bytes; `header` gives all but the revision. After an error `out` is as it
    /// was.
    pub fn range_encoded(
        &self,
        request: &pb::RangeRequest,
        header: &pb::ResponseHeader,
        out: &mut BytesMut,
    ) -> Result<(), Error> {
        let store = &self.0.store;
        if range::encode_newest_of_one(store, request, header, out)? {
            return Ok(());
        }
        let (pin, at, current) = if request.revision > 0 {
            let current = self.revision();
            let (pin, at) = range::pin(store, request.revision, current)?;
            (pin, at, current)
        } else {
            let (pin, current) = range::pin_newest(store);
            (pin, current, current)
        };
        Ok(range::encode(pin.store(), request, at, current, header, out)?)
    }

    /// Executes a checked txn that [`Reader::is_read_only`]. The header holds only the revision.
    pub fn txn_read_only(&self, request: &pb::TxnRequest) -> Result<pb::TxnResponse, Error> {
        Ok(txn::execute_read_only(&self.0.store, request)?)
    }

    /// Whether a txn can only read, so that it need not be logged. A nested txn counts as a write.
    pub fn is_read_only(request: &pb::TxnRequest) -> bool {
        txn::is_read_only(request)
    }

    /// Whether all ranges of a read-only txn are serializable, so that it needs no read barrier.
    pub fn is_serializable(request: &pb::TxnRequest) -> bool {
        txn::is_serializable(request)
    }

    /// Begins a checked range stream at one revision; chunks adapt to `max_request_bytes`.
    pub fn range_stream(&self, request: pb::RangeRequest, max_request_bytes: usize) -> Result<RangeStream, Error> {
        RangeStream::begin(&self.0.store, request, max_request_bytes)
    }

    /// The newest revision.
    pub fn revision(&self) -> i64 {
        self.0.store.revision()
    }

    /// The revision of the last compaction; -1 = never.
    pub fn compact_revision(&self) -> i64 {
        self.0.store.compact_revision()
    }

    /// The term of the last applied log entry.
    pub fn applied_term(&self) -> u64 {
        self.0.applied_term.load(Ordering::Acquire)
    }

    /// The store underneath.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// HashKV at a revision, 0 = newest.
    pub fn hash_kv(&self, revision: i64) -> Result<HashKv, Error> {
        Ok(self.0.store.hash_kv(revision).map_err(Failure::from)?)
    }

    /// The same in the caller's own time; see [`Store::hash_kv_in_steps`].
    pub fn hash_kv_in_steps(
        &self,
        revision: i64,
        step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<HashKv>, Error> {
        Ok(self.0.store.hash_kv_in_steps(revision, step).map_err(Failure::from)?)
    }

    /// All members, sorted by ID.
    pub fn members(&self) -> Vec<Member> {
        self.0.cluster.read().list()
    }

    /// One member.
    pub fn member(&self, id: u64) -> Option<Member> {
        self.0.cluster.read().members.get(&id).cloned()
    }

    /// Whether a member was removed (its ID is never used again).
    pub fn is_removed(&self, id: u64) -> bool {
        self.0.cluster.read().removed.contains(&id)
    }

    /// Alarms that are set, ordered by member and type; `alarm` 0 = all types.
    pub fn alarms(&self, alarm: i32) -> Vec<pb::AlarmMember> {
        self.0.alarms.read().list(alarm)
    }

    /// The version all members can speak, e.g. `3.7.0`; `None` until it has been agreed.
    pub fn cluster_version(&self) -> Option<String> {
        self.0.cluster.read().version.clone()
    }

    /// A downgrade that is under way.
    pub fn downgrade(&self) -> pb::DowngradeInfo {
        self.0.cluster.read().downgrade.clone()
    }

    /// Whether this request would put the store over its quota. Requests that free space always pass.
    pub fn over_quota(&self, request: &pb::InternalRaftRequest) -> bool {
        self.0.over_quota(request)
    }

    /// The quota in bytes; 0 = none.
    pub fn quota_bytes(&self) -> i64 {
        self.0.quota_bytes
    }

    /// Users, roles and tokens.
    pub fn auth(&self) -> &Auth {
        &self.0.auth
    }

    /// The leases.
    pub fn lessor(&self) -> &Lessor {
        &self.0.lessor
    }

    /// The feed of events for watch hubs.
    pub fn feed(&self) -> &Feed {
        &self.0.feed
    }

    /// The tree of the v2 API.
    pub fn v2(&self) -> &V2 {
        &self.0.v2
    }

    /// What etcd's `.snap` files hold: the v2 tree, in which older members find the membership.
    pub fn v2_snapshot_json(&self) -> Vec<u8> {
        self.0.v2.image().to_json()
    }
}
