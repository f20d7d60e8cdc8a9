//! One log entry in, one answer out.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;
use prost::Message;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::{leasepb, raftpb, v2pb};
use store::{KeyRange, Mark, RangeEnd, Store, StoreError, Table, Writer};

use crate::alarm::Alarms;
use crate::auth::{self, Auth, Change, Policy};
use crate::kv::write::WriteTxn;
use crate::kv::{Failure, range, txn};
use crate::members::{Attributes, Cluster, Planned, Row};
use crate::reader::Shared;
use crate::v2::{self, Touched, V2};
use crate::watch::Feed;
use crate::{Error, Lessor, Member, Reader, quota};

/// What a member knows of itself when it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// Space quota in bytes: 0 = the default of 2 GiB, negative = none.
    pub quota_bytes: i64,
    /// Heartbeat interval in milliseconds.
    pub heartbeat_ms: u64,
    /// Election timeout in milliseconds; leases last at least 1.5 of it.
    pub election_timeout_ms: u64,
}

/// Why a member must stop: its own disk or log failed it, so it cannot go on agreeing with its peers.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The store failed.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// A committed entry cannot be read.
    #[error("log entry {index}: {what}")]
    BadEntry {
        /// Index of the entry.
        index: u64,
        /// What is wrong with it.
        what: String,
    },
    /// A row of a table cannot be read.
    #[error("table {table}, row {key}: {what}")]
    BadRow {
        /// The table.
        table: &'static str,
        /// The row's key, printable.
        key: String,
        /// What is wrong with it.
        what: String,
    },
}

/// A successful answer to a logged request.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Response {
    Put(pb::PutResponse),
    DeleteRange(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Range(pb::RangeResponse),
    /// `physical`: the client wants to wait until [`State::compaction_done`].
    Compact {
        response: pb::CompactionResponse,
        physical: bool,
    },
    LeaseGrant(pb::LeaseGrantResponse),
    LeaseRevoke(pb::LeaseRevokeResponse),
    LeaseCheckpoint(pb::LeaseCheckpointResponse),
    Alarm(pb::AlarmResponse),
    Auth(auth::Response),
    /// To a request of the v2 API, whose refusals are answers of their own kind.
    V2(Box<v2::Outcome>),
    /// For entries nobody waits for with more than "done": member attributes, versions, a leader's empty entry.
    None,
}

/// What applying a normal entry gave.
#[derive(Clone, Debug)]
pub struct Applied {
    /// `header.ID` of the request, by which its client is found; 0 = none.
    pub request_id: u64,
    /// The answer.
    pub result: Result<Response, Error>,
    /// The store is over its quota after this entry and no NOSPACE alarm is set: the server should propose one.
    pub raise_no_space: bool,
}

/// What a configuration change did to the member table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// Refused or without effect: the raft layer must be told to change nothing (node 0).
    None,
    /// A voter or learner was added.
    Added(Member),
    /// A learner became a voter.
    Promoted(Member),
    /// A member's peer URLs changed.
    Updated(Member),
    /// A member is gone for good.
    Removed(u64),
}

/// What applying a configuration change gave.
#[derive(Clone, Debug)]
pub struct ConfChanged {
    /// `ConfChange.id`, by which its client is found; 0 = none.
    pub request_id: u64,
    /// The effect.
    pub change: MemberChange,
    /// All members, sorted by ID, after the change; or why it was refused.
    pub result: Result<Vec<Member>, Error>,
}

/// The applying side; one owner.
#[derive(Debug)]
pub struct State {
    pub(crate) writer: Writer,
    pub(crate) shared: Arc<Shared>,
    pub(crate) applied_index: u64,
    pub(crate) applied_term: u64,
    /// Encoded `raftpb.ConfState` after the last configuration change.
    pub(crate) conf_state: Bytes,
}

/// How much the shortest lease outlasts an election, so that a new leader can take over before it ends: 3/2, counted
/// in whole heartbeats and rounded up to seconds, as etcd does.
fn min_lease_ttl(config: &Config) -> i64 {
    let heartbeat_ms = config.heartbeat_ms.max(1);
    let min_ms = 3 * (config.election_timeout_ms / heartbeat_ms) / 2 * heartbeat_ms;
    i64::try_from(min_ms.div_ceil(1_000)).unwrap_or(i64::MAX)
}

impl State {
    /// Takes over an opened store and reads its tables. `mark` is what the store was opened at.
    pub fn open(store: Store, writer: Writer, mark: &Mark, config: Config) -> Result<(Self, Reader), Fatal> {
        let lessor = Lessor::new(min_lease_ttl(&config));
        restore_leases(&store, &lessor)?;
        let mut cluster = Cluster::default();
        for (table, name) in
            [(Table::Members, "members"), (Table::MembersRemoved, "members_removed"), (Table::Cluster, "cluster")]
        {
            for (key, value) in store.rows(table) {
                cluster.restore(table, &key, &value).map_err(|what| bad_row(name, &key, what))?;
            }
        }
        let alarms = Alarms::restore(&store)?;
        let policy = Policy::restore(&store)?;
        let mut writer = writer;
        let v2 = restore_v2(&store, &mut writer, &cluster)?;
        v2.begin_digests(mark.index);
        let feed = Feed::new(&store);
        let quota_bytes = quota::limit(config.quota_bytes);
        let shared = Shared {
            store,
            lessor,
            feed,
            v2,
            cluster: RwLock::new(cluster),
            alarms: RwLock::new(alarms),
            auth: Auth::new(policy),
            applied_term: AtomicU64::new(mark.term),
            quota_bytes,
        };
        let shared = Arc::new(shared);
        let state = Self {
            writer,
            shared: shared.clone(),
            applied_index: mark.index,
            applied_term: mark.term,
            conf_state: mark.conf_state.clone(),
        };
        Ok((state, Reader(shared)))
    }

    /// Applies a committed normal entry. Deterministic: the same entries give the same answers and the same store on
    /// every member. An entry that is in the store already changes nothing.
    pub fn apply(&mut self, index: u64, term: u64, data: &Bytes) -> Result<Applied, Fatal> {
        let nothing = Applied { request_id: 0, result: Ok(Response::None), raise_no_space: false };
        if index <= self.applied_index {
            return Ok(nothing);
        }
        let applied = match decode(index, data)? {
            Entry::Empty => nothing,
            Entry::V3(request) => self.apply_request(&request, index)?,
            Entry::V2(request) => {
                let result = self.apply_v2(&request)?;
                self.shared.v2.note_digest(index);
                Applied { request_id: request.id(), result, raise_no_space: false }
            }
        };
        self.advance(index, term);
        self.mark();
        Ok(applied)
    }

    /// Applies a committed configuration change to the member table. `conf_state` is the encoded `raftpb.ConfState`
    /// that is in force if the change is accepted; it goes into the mark of this entry, so that the two cannot disagree
    /// after a crash. A refused change keeps the old one.
    pub fn apply_conf_change(
        &mut self,
        index: u64,
        term: u64,
        change: &raftpb::ConfChange,
        conf_state: Bytes,
    ) -> Result<ConfChanged, Fatal> {
        let request_id = change.id.unwrap_or(0);
        if index <= self.applied_index {
            let members = self.shared.cluster.read().list();
            return Ok(ConfChanged { request_id: 0, change: MemberChange::None, result: Ok(members) });
        }
        let shared = Arc::clone(&self.shared);
        let mut cluster = shared.cluster.write();
        let planned = cluster.plan(change).map_err(|what| Fatal::BadEntry { index, what })?;
        shared.v2.membership_read();
        let mut touched = Touched::default();
        self.advance(index, term);
        let planned = match planned {
            Ok(planned) => planned,
            Err(error) => {
                drop(cluster);
                self.mark();
                return Ok(ConfChanged { request_id, change: MemberChange::None, result: Err(error) });
            }
        };
        let rows = cluster.carry_out(&planned);
        let member = |id| cluster.members.get(&id).cloned().unwrap_or_default();
        let change = match planned {
            Planned::Add(member) => MemberChange::Added(member),
            Planned::Promote(id) => MemberChange::Promoted(member(id)),
            Planned::Update(new) => MemberChange::Updated(member(new.id)),
            Planned::Remove(id) => MemberChange::Removed(id),
        };
        let result = Ok(cluster.list());
        drop(cluster);
        match &change {
            MemberChange::Added(member) => shared.v2.add_member(member, &mut touched),
            MemberChange::Promoted(member) | MemberChange::Updated(member) => {
                shared.v2.update_member(member, &mut touched);
            }
            MemberChange::Removed(id) => shared.v2.remove_member(*id, &mut touched),
            MemberChange::None => {}
        }
        let is_stored = !(mutant::on(mutant::PromotionUnstored) && matches!(change, MemberChange::Promoted(_)));
        for row in rows.into_iter().filter(|_| is_stored) {
            self.set_row(row)?;
        }
        self.store_v2(&touched)?;
        self.conf_state = conf_state;
        self.mark();
        Ok(ConfChanged { request_id, change, result })
    }

    /// Index of the last applied entry.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// Hands buffered bytes to the file system; see [`Writer::flush`].
    pub fn flush(&mut self) -> Result<(), Fatal> {
        Ok(self.writer.flush()?)
    }

    /// Makes everything applied so far durable; the log up to the returned mark may be released.
    pub fn sync(&mut self) -> Result<Mark, Fatal> {
        Ok(self.writer.sync()?)
    }

    /// Bytes of the keys and values put since the state was opened.
    pub fn put_bytes(&self) -> u64 {
        self.writer.put_bytes()
    }

    /// Whether all compactions that were asked for have been carried out.
    pub fn compaction_done(&self) -> bool {
        self.writer.compaction_done()
    }

    /// Syncs and writes an index checkpoint for a fast next start.
    pub fn close(self) -> Result<(), Fatal> {
        Ok(self.writer.close()?)
    }

    pub(crate) fn advance(&mut self, index: u64, term: u64) {
        self.applied_index = index;
        if term != self.applied_term {
            self.applied_term = term;
            self.shared.applied_term.store(term, Ordering::Release);
        }
    }

    fn mark(&mut self) {
        let conf_state = self.conf_state.clone();
        let index =
            self.applied_index + u64::from(mutant::on(mutant::MarkAhead)) - u64::from(mutant::on(mutant::MarkBehind));
        self.writer.mark(Mark { index, term: self.applied_term, conf_state });
    }

    fn set_row(&mut self, (table, key, value): Row) -> Result<(), StoreError> {
        match value {
            Some(value) => self.writer.set_row(table, &key, &value),
            None => self.writer.remove_row(table, &key),
        }
    }

    fn apply_request(&mut self, request: &pb::InternalRaftRequest, index: u64) -> Result<Applied, Fatal> {
        let header_id = request.header.as_ref().map_or(0, |header| header.id);
        let request_id = if header_id != 0 { header_id } else { request.id };
        let costs = quota::cost(request) > 0;
        // Asked before: the entry's own bytes are in the cost.
        let over_quota = costs && self.shared.over_quota(request);
        if over_quota && mutant::on(mutant::QuotaDecides) {
            return Ok(Applied { request_id, result: Err(Error::NoSpace), raise_no_space: true });
        }
        let mut result = match self.execute(request, index, costs) {
            Ok(response) => Ok(response),
            Err(Failure::Refused(error)) => Err(error),
            Err(Failure::Store(error)) => return Err(error.into()),
        };
        let mut raise_no_space = false;
        if over_quota && result.is_ok() {
            // The entry was let in while there was room. It is applied, because every member must do the same with it
            // and each measures its own disk; its client is told that the space is used up.
            result = Err(Error::NoSpace);
            raise_no_space = !self.shared.alarms.read().is_set(pb::AlarmType::Nospace);
        }
        Ok(Applied { request_id, result, raise_no_space })
    }

    /// `costs`: the request takes space.
    fn execute(&mut self, request: &pb::InternalRaftRequest, index: u64, costs: bool) -> Result<Response, Failure> {
        let (corrupt, no_space) = {
            let alarms = self.shared.alarms.read();
            (alarms.is_set(pb::AlarmType::Corrupt), alarms.is_set(pb::AlarmType::Nospace))
        };
        let touches_data = request.range.is_some()
            || request.put.is_some()
            || request.delete_range.is_some()
            || request.txn.is_some()
            || request.compaction.is_some()
            || request.lease_grant.is_some()
            || request.lease_revoke.is_some();
        if corrupt && touches_data {
            return Err(Error::Corrupt.into());
        }
        if no_space && costs && !mutant::on(mutant::AlarmIgnored) {
            return Err(Error::NoSpace.into());
        }
        self.shared.auth.permits_entry(request, &self.shared.lessor)?;
        if let Some(request) = &request.put {
            return self.put(request);
        }
        if let Some(request) = &request.txn {
            let mut txn = WriteTxn::begin(&mut self.writer, &self.shared.lessor);
            let response = txn::execute(&mut txn, request)?;
            txn.commit(&self.shared.feed);
            return Ok(Response::Txn(response));
        }
        if let Some(request) = &request.delete_range {
            let mut txn = WriteTxn::begin(&mut self.writer, &self.shared.lessor);
            let response = txn.delete_range(request)?;
            txn.commit(&self.shared.feed);
            return Ok(Response::DeleteRange(response));
        }
        if let Some(request) = &request.range {
            let current = self.shared.store.revision();
            return Ok(Response::Range(range::range(&self.shared.store, request, current)?));
        }
        if let Some(request) = &request.compaction {
            return self.compact(request);
        }
        if let Some(request) = &request.lease_grant {
            return self.lease_grant(request);
        }
        if let Some(request) = &request.lease_revoke {
            return self.lease_revoke(request.id);
        }
        if let Some(request) = &request.lease_checkpoint {
            return self.lease_checkpoint(request);
        }
        if let Some(request) = &request.alarm {
            return self.alarm(request);
        }
        if let Some(request) = &request.cluster_version_set {
            self.set_version(&request.ver)?;
            return Ok(Response::None);
        }
        if let Some(request) = &request.cluster_member_attr_set {
            let attributes = request.member_attributes.clone().unwrap_or_default();
            let attributes = Attributes { name: attributes.name, client_urls: attributes.client_urls };
            self.set_attributes(request.member_id, attributes)?;
            return Ok(Response::None);
        }
        if let Some(request) = &request.downgrade_info_set {
            let row = self.shared.cluster.write().set_downgrade(request.enabled, &request.ver);
            self.set_row(row)?;
            return Ok(Response::None);
        }
        if request.downgrade_version_test.is_some() {
            return Ok(Response::None);
        }
        if let Some(changed) = self.shared.auth.apply(request, index) {
            let Change { rows, mut response } = changed?;
            for row in rows {
                self.set_row(row)?;
            }
            *response.header_mut() = self.header();
            return Ok(Response::Auth(response));
        }
        // A request of a kind that came later than 3.7: as there, it has no effect.
        Ok(Response::None)
    }

    fn put(&mut self, request: &pb::PutRequest) -> Result<Response, Failure> {
        if request.lease != 0 && !self.shared.lessor.exists(request.lease) {
            return Err(Error::LeaseNotFound.into());
        }
        let mut txn = WriteTxn::begin(&mut self.writer, &self.shared.lessor);
        let response = txn.put(request)?;
        txn.commit(&self.shared.feed);
        Ok(Response::Put(response))
    }

    fn compact(&mut self, request: &pb::CompactionRequest) -> Result<Response, Failure> {
        let store = &self.shared.store;
        if request.revision <= store.compact_revision() {
            return Err(Error::Compacted.into());
        }
        if request.revision > store.revision() {
            return Err(Error::FutureRev.into());
        }
        self.writer.compact(request.revision)?;
        let response = pb::CompactionResponse { header: self.header() };
        Ok(Response::Compact { response, physical: request.physical })
    }

    fn lease_grant(&mut self, request: &pb::LeaseGrantRequest) -> Result<Response, Failure> {
        let lease = self.shared.lessor.grant(request.id, request.ttl)?;
        self.writer.set_row(Table::Lease, &lease.id.to_be_bytes(), &lease.encode_to_vec())?;
        let header = self.header();
        Ok(Response::LeaseGrant(pb::LeaseGrantResponse { header, id: lease.id, ttl: lease.ttl, error: String::new() }))
    }

    /// The keys go with the lease, in key order and in one revision.
    fn lease_revoke(&mut self, id: i64) -> Result<Response, Failure> {
        let keys = self.shared.lessor.revoke(id)?;
        let mut txn = WriteTxn::begin(&mut self.writer, &self.shared.lessor);
        for key in keys.into_iter().filter(|_| !mutant::on(mutant::LeaseKeepsKeys)) {
            txn.delete(&key)?;
        }
        txn.commit(&self.shared.feed);
        self.writer.remove_row(Table::Lease, &id.to_be_bytes())?;
        Ok(Response::LeaseRevoke(pb::LeaseRevokeResponse { header: self.header() }))
    }

    fn lease_checkpoint(&mut self, request: &pb::LeaseCheckpointRequest) -> Result<Response, Failure> {
        // Older members would drop the field from the row, so that the members' tables would differ.
        let persist = self.shared.cluster.read().is_at_least(3, 6);
        for checkpoint in &request.checkpoints {
            let lease = self.shared.lessor.checkpoint(checkpoint.id, checkpoint.remaining_ttl)?;
            if persist {
                self.writer.set_row(Table::Lease, &lease.id.to_be_bytes(), &lease.encode_to_vec())?;
            }
        }
        Ok(Response::LeaseCheckpoint(pb::LeaseCheckpointResponse { header: self.header() }))
    }

    fn alarm(&mut self, request: &pb::AlarmRequest) -> Result<Response, Failure> {
        let alarm = pb::AlarmMember { member_id: request.member_id, alarm: request.alarm };
        let row = alarm.encode_to_vec();
        let alarms = match pb::alarm_request::AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => self.shared.alarms.read().list(request.alarm),
            Ok(AlarmAction::Activate) if request.alarm != pb::AlarmType::None as i32 => {
                if self.shared.alarms.write().set(alarm) {
                    self.writer.set_row(Table::Alarm, &row, &[])?;
                }
                vec![alarm]
            }
            Ok(AlarmAction::Deactivate) if self.shared.alarms.write().clear(alarm) => {
                self.writer.remove_row(Table::Alarm, &row)?;
                vec![alarm]
            }
            _ => Vec::new(),
        };
        Ok(Response::Alarm(pb::AlarmResponse { header: self.header(), alarms }))
    }

    fn set_attributes(&mut self, id: u64, attributes: Attributes) -> Result<(), StoreError> {
        let row = self.shared.cluster.write().set_attributes(id, attributes.clone());
        let Some(row) = row else { return Ok(()) };
        self.set_row(row)?;
        let mut touched = Touched::default();
        self.shared.v2.set_attributes(id, &attributes, &mut touched);
        self.store_v2(&touched)
    }

    fn set_version(&mut self, version: &str) -> Result<(), StoreError> {
        let row = self.shared.cluster.write().set_version(version);
        self.set_row(row)?;
        let mut touched = Touched::default();
        self.shared.v2.set_version(version, &mut touched);
        self.store_v2(&touched)
    }

    /// A write to the v2 tree. That is also how members up to 3.5 tell their attributes and the cluster version.
    fn apply_v2(&mut self, request: &v2pb::Request) -> Result<Result<Response, Error>, Fatal> {
        match v2_fact(request) {
            Some(V2Fact::Version(version)) => {
                self.set_version(&version)?;
                return Ok(Ok(Response::None));
            }
            Some(V2Fact::Attributes(id, attributes)) => {
                match attributes {
                    Ok(attributes) => self.set_attributes(id, attributes)?,
                    Err(error) => return Ok(Err(Error::Internal(format!("membership: attributes: {error}")))),
                }
                return Ok(Ok(Response::None));
            }
            None => {}
        }
        let mut touched = Touched::default();
        let outcome = self.shared.v2.apply(request, &mut touched);
        self.store_v2(&touched)?;
        Ok(Ok(Response::V2(Box::new(outcome))))
    }

    fn store_v2(&mut self, touched: &Touched) -> Result<(), StoreError> {
        for (key, value) in self.shared.v2.rows(touched) {
            self.set_row((Table::V2, key, value))?;
        }
        Ok(())
    }

    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader { revision: self.shared.store.revision(), ..Default::default() })
    }
}

pub(crate) fn bad_row(table: &'static str, key: &[u8], what: String) -> Fatal {
    Fatal::BadRow { table, key: key.escape_ascii().to_string(), what }
}

/// Reads the lease table, and which living keys hang on which lease.
fn restore_leases(store: &Store, lessor: &Lessor) -> Result<(), Fatal> {
    for (key, value) in store.rows(Table::Lease) {
        let row = leasepb::Lease::decode(value);
        lessor.restore(&row.map_err(|error| bad_row("lease", &key, error.to_string()))?);
    }
    if mutant::on(mutant::LeaseKeysForgotten) {
        return Ok(());
    }
    Ok(attach_keys(store, lessor)?)
}

/// Finds out which living keys hang on which lease.
pub(crate) fn attach_keys(store: &Store, lessor: &Lessor) -> Result<(), StoreError> {
    let mut locations = Vec::new();
    let everything = KeyRange { start: Bytes::new(), end: RangeEnd::Unbounded };
    store.scan(&everything, store.revision(), &mut |_, found| {
        if found.meta.leased {
            locations.push(found.location);
        }
        ControlFlow::Continue(())
    });
    let mut broken = None;
    store.read_many(&locations, &mut |payload| match crate::kv::decode(payload) {
        Ok(pair) => lessor.attach(&pair.key, pair.lease),
        Err(failure) => broken = Some(failure),
    })?;
    match broken {
        Some(Failure::Store(error)) => Err(error),
        _ => Ok(()),
    }
}

/// A normal entry, understood.
pub(crate) enum Entry {
    /// A new leader's first entry.
    Empty,
    V3(Box<pb::InternalRaftRequest>),
    V2(Box<v2pb::Request>),
}

/// Entries are v3 requests. Members up to 3.6 also log bare v2 requests, which do not parse as v3 ones: field 2 is a
/// message there and the method's name here.
pub(crate) fn decode(index: u64, data: &Bytes) -> Result<Entry, Fatal> {
    if data.is_empty() {
        return Ok(Entry::Empty);
    }
    // Tried first where it must be one: that it is nothing else costs more to find out than what it is.
    if v2::names_method(data)
        && let Ok(request) = v2pb::Request::decode(data.clone())
    {
        return Ok(Entry::V2(Box::new(request)));
    }
    match pb::InternalRaftRequest::decode(data.clone()) {
        Ok(pb::InternalRaftRequest { v2: Some(request), .. }) => Ok(Entry::V2(Box::new(request))),
        Ok(request) => Ok(Entry::V3(Box::new(request))),
        Err(error) => match v2pb::Request::decode(data.clone()) {
            Ok(request) => Ok(Entry::V2(Box::new(request))),
            Err(_) => Err(Fatal::BadEntry { index, what: format!("neither a v3 nor a v2 request: {error}") }),
        },
    }
}

/// A write to the v2 tree that tells something of the cluster.
pub(crate) enum V2Fact {
    Version(String),
    Attributes(u64, Result<Attributes, serde_json::Error>),
}

/// Understands a plain write to `/0/version` or `/0/members/<hex id>/attributes`.
pub(crate) fn v2_fact(request: &v2pb::Request) -> Option<V2Fact> {
    let conditional = request.prev_exist.is_some() || request.prev_index() != 0 || !request.prev_value().is_empty();
    if request.method() != "PUT" || conditional {
        return None;
    }
    let path = std::str::from_utf8(request.path()).ok()?;
    if path == "/0/version" {
        return Some(V2Fact::Version(String::from_utf8_lossy(request.val()).into_owned()));
    }
    let id = path.strip_prefix("/0/members/")?.strip_suffix("/attributes")?;
    let id = u64::from_str_radix(id, 16).ok()?;
    Some(V2Fact::Attributes(id, serde_json::from_slice(request.val())))
}

/// The row in which a v2 tree was kept by versions that could not serve it.
const KEPT_V2: &[u8] = b"snapshot";

/// Reads the v2 tree. A store from before it was served has none, and gets one that says what the tables say.
fn restore_v2(store: &Store, writer: &mut Writer, cluster: &Cluster) -> Result<V2, Fatal> {
    let rows = store.rows(Table::V2);
    let restored = V2::restore(&rows).map_err(|error| bad_row("v2", &error.key, error.what))?;
    if let Some(v2) = restored {
        return Ok(v2);
    }
    let kept = store.row(Table::V2, KEPT_V2);
    let v2 = match &kept {
        Some(json) => V2::from_json(json).map_err(|what| bad_row("v2", KEPT_V2, what))?,
        None => V2::of_cluster(cluster),
    };
    if kept.is_some() || v2.index() != 0 {
        for (key, value) in v2.all_rows() {
            writer.set_row(Table::V2, &key, &value.unwrap_or_default())?;
        }
        if kept.is_some() {
            writer.remove_row(Table::V2, KEPT_V2)?;
        }
    }
    Ok(v2)
}
