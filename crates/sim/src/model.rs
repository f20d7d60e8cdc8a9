//! What etcd's documentation says that a log of requests does, in the simplest words there are.
//!
//! It keeps every version of every key in one map and looks at all of them for every question. It shares no line with the
//! state machine that it is compared with.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::AlarmType;
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use proto::etcdserverpb::request_op::Request as Op;
use proto::etcdserverpb::response_op::Response as OpResponse;
use proto::mvccpb::event::EventType;
use proto::mvccpb::{Event, KeyValue};
use state::watch::WatchCreate;
use state::{Error, Response};

/// A lease.
#[derive(Clone, Debug)]
struct Lease {
    /// In seconds.
    ttl: i64,
    keys: BTreeSet<Bytes>,
}

/// Keys and leases after a log.
#[derive(Debug)]
pub struct Model {
    revision: i64,
    compact_revision: i64,
    /// Every version of every key, oldest first: the revision, and the pair unless it was deleted then.
    keys: BTreeMap<Bytes, Vec<(i64, Option<KeyValue>)>>,
    /// What each revision changed, in order.
    changes: BTreeMap<i64, Vec<(Bytes, Option<KeyValue>)>>,
    leases: BTreeMap<i64, Lease>,
    /// Alarms that are set: kind and member.
    alarms: BTreeSet<(i32, u64)>,
    /// Whether the request that is being carried out has changed something.
    changed: bool,
    /// Revisions below this are forgotten.
    forgotten: i64,
    /// The least TTL that is granted, in seconds.
    min_ttl: i64,
}

/// Whether a key is in the range that `start` and `end` of a request mean.
pub fn in_range(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == start,
        [0] => key >= start,
        end => key >= start && key < end,
    }
}

/// Whether a request is one that is refused when there is no space left.
pub fn takes_space(request: &pb::InternalRaftRequest) -> bool {
    fn puts(txn: &pb::TxnRequest) -> bool {
        txn.success.iter().chain(&txn.failure).any(|op| match &op.request {
            Some(Op::RequestPut(_)) => true,
            Some(Op::RequestTxn(nested)) => puts(nested),
            _ => false,
        })
    }
    request.put.is_some() || request.lease_grant.is_some() || request.txn.as_ref().is_some_and(puts)
}

fn header(revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision, ..Default::default() })
}

impl Model {
    /// Before the first request.
    pub fn new(min_ttl: i64) -> Self {
        Self {
            revision: 1,
            compact_revision: -1,
            keys: BTreeMap::new(),
            changes: BTreeMap::new(),
            leases: BTreeMap::new(),
            alarms: BTreeSet::new(),
            changed: false,
            forgotten: 0,
            min_ttl,
        }
    }

    /// The newest revision.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The revision of the last compaction; -1 = never.
    pub fn compact_revision(&self) -> i64 {
        self.compact_revision
    }

    /// The alarms that are set: kind and member.
    pub fn alarms(&self) -> impl Iterator<Item = (i32, u64)> {
        self.alarms.iter().copied()
    }

    /// The TTL of a lease, in seconds.
    pub fn ttl(&self, lease: i64) -> Option<i64> {
        self.leases.get(&lease).map(|lease| lease.ttl)
    }

    /// The leases there are.
    pub fn leases(&self) -> impl Iterator<Item = i64> {
        self.leases.keys().copied()
    }

    /// Whether everything at this revision and after it is still known.
    pub fn knows(&self, revision: i64) -> bool {
        revision >= self.forgotten
    }

    /// Forgets what only questions about revisions below this one would need.
    pub fn forget_before(&mut self, revision: i64) {
        if revision <= self.forgotten {
            return;
        }
        self.forgotten = revision;
        self.changes = self.changes.split_off(&revision);
        self.keys.retain(|_, versions| {
            let current = versions.iter().rposition(|(at, _)| *at <= revision).unwrap_or(0);
            versions.drain(..current);
            versions.len() > 1 || versions.first().is_some_and(|(_, pair)| pair.is_some())
        });
    }

    /// The changes from one revision to another, both included, as a watch is shown them.
    pub fn events(&self, watch: &WatchCreate, from: i64, to: i64) -> Vec<Event> {
        let mut events = Vec::new();
        if from > to {
            return events;
        }
        for (revision, changes) in self.changes.range(from..=to) {
            for (key, pair) in changes.iter().filter(|(key, _)| in_range(key, &watch.key, &watch.range_end)) {
                let is_put = pair.is_some();
                if if is_put { watch.no_put } else { watch.no_delete } {
                    continue;
                }
                let gone = || KeyValue { key: key.clone(), mod_revision: *revision, ..Default::default() };
                let kv = pair.clone().unwrap_or_else(gone);
                // A key that is made has no past.
                let is_made = is_put && kv.create_revision == kv.mod_revision;
                let previous = if watch.prev_kv && !is_made { self.get(key, revision - 1).cloned() } else { None };
                let kind = if is_put { EventType::Put } else { EventType::Delete };
                events.push(Event { r#type: kind as i32, kv: Some(kv), prev_kv: previous });
            }
        }
        events
    }

    /// Carries out a request from the log. `None`: it is of a kind that this model knows nothing of.
    pub fn apply(&mut self, request: &pb::InternalRaftRequest) -> Option<Result<Response, Error>> {
        let has_no_space = self.alarms.iter().any(|(kind, _)| *kind == AlarmType::Nospace as i32);
        let result = if has_no_space && takes_space(request) {
            Err(Error::NoSpace)
        } else if let Some(alarm) = &request.alarm {
            Ok(self.alarm(alarm))
        } else if let Some(put) = &request.put {
            self.check_put(put).and_then(|()| self.put(put)).map(Response::Put)
        } else if let Some(delete) = &request.delete_range {
            Ok(Response::DeleteRange(self.delete_range(delete)))
        } else if let Some(txn) = &request.txn {
            self.txn(txn).map(Response::Txn)
        } else if let Some(compaction) = &request.compaction {
            self.compact(compaction)
        } else if let Some(grant) = &request.lease_grant {
            self.grant(grant)
        } else if let Some(revoke) = &request.lease_revoke {
            self.revoke(revoke.id)
        } else {
            return None;
        };
        self.publish();
        Some(result)
    }

    /// What a request sees that is being carried out: its own revision once it has changed something.
    fn now(&self) -> i64 {
        if self.changed { self.revision + 1 } else { self.revision }
    }

    fn publish(&mut self) {
        self.revision += i64::from(std::mem::take(&mut self.changed));
    }

    fn get(&self, key: &[u8], at: i64) -> Option<&KeyValue> {
        let (_, pair) = self.keys.get(key)?.iter().rev().find(|(revision, _)| *revision <= at)?;
        pair.as_ref()
    }

    /// When the oldest of the keys in a range was made.
    pub fn oldest(&self, start: &[u8], end: &[u8]) -> Option<i64> {
        self.living(start, end, self.now()).iter().map(|pair| pair.create_revision).min()
    }

    fn living(&self, start: &[u8], end: &[u8], at: i64) -> Vec<&KeyValue> {
        let range = self.keys.range(Bytes::copy_from_slice(start)..);
        let within = range.take_while(|(key, _)| in_range(key, start, end));
        within.filter_map(|(key, _)| self.get(key, at)).collect()
    }

    fn change(&mut self, key: &Bytes, pair: Option<KeyValue>) {
        let revision = self.revision + 1;
        let previous = self.get(key, revision).cloned();
        if let Some(lease) = previous.as_ref().and_then(|old| self.leases.get_mut(&old.lease)) {
            lease.keys.remove(key);
        }
        if let Some(lease) = pair.as_ref().and_then(|new| self.leases.get_mut(&new.lease)) {
            lease.keys.insert(key.clone());
        }
        self.changes.entry(revision).or_default().push((key.clone(), pair.clone()));
        self.keys.entry(key.clone()).or_default().push((revision, pair));
        self.changed = true;
    }

    fn check_put(&self, put: &pb::PutRequest) -> Result<(), Error> {
        if put.lease != 0 && !self.leases.contains_key(&put.lease) {
            return Err(Error::LeaseNotFound);
        }
        Ok(())
    }

    fn put(&mut self, put: &pb::PutRequest) -> Result<pb::PutResponse, Error> {
        let previous = self.get(&put.key, self.now()).cloned();
        if (put.ignore_value || put.ignore_lease) && previous.is_none() {
            return Err(Error::KeyNotFound);
        }
        let old = previous.clone().unwrap_or_default();
        let revision = self.revision + 1;
        let pair = KeyValue {
            key: put.key.clone(),
            create_revision: if previous.is_some() { old.create_revision } else { revision },
            mod_revision: revision,
            version: old.version + 1,
            value: if put.ignore_value { old.value } else { put.value.clone() },
            lease: if put.ignore_lease { old.lease } else { put.lease },
        };
        self.change(&put.key, Some(pair));
        Ok(pb::PutResponse { header: header(self.now()), prev_kv: previous.filter(|_| put.prev_kv) })
    }

    fn delete_range(&mut self, delete: &pb::DeleteRangeRequest) -> pb::DeleteRangeResponse {
        let doomed: Vec<KeyValue> =
            self.living(&delete.key, &delete.range_end, self.now()).into_iter().cloned().collect();
        for pair in &doomed {
            self.change(&pair.key, None);
        }
        let deleted = doomed.len() as i64;
        let prev_kvs = if delete.prev_kv { doomed } else { Vec::new() };
        pb::DeleteRangeResponse { header: header(self.now()), deleted, prev_kvs }
    }

    /// The answer to a range at a moment at which `current` was the newest revision.
    pub fn range(&self, request: &pb::RangeRequest, current: i64) -> Result<pb::RangeResponse, Error> {
        let at = if request.revision > 0 { request.revision } else { current };
        if at > current {
            return Err(Error::FutureRev);
        }
        if at < self.compact_revision && request.revision > 0 {
            return Err(Error::Compacted);
        }
        Ok(self.range_whatever_is_compacted(request, at, current))
    }

    /// The same, also where a compaction has passed meanwhile.
    pub fn range_whatever_is_compacted(&self, request: &pb::RangeRequest, at: i64, current: i64) -> pb::RangeResponse {
        let mut pairs: Vec<KeyValue> = self.living(&request.key, &request.range_end, at).into_iter().cloned().collect();
        let count = pairs.len() as i64;
        let response = pb::RangeResponse { header: header(current), count, ..Default::default() };
        if request.count_only {
            return response;
        }
        let within = |revision: i64, min: i64, max: i64| (min == 0 || revision >= min) && (max == 0 || revision <= max);
        let is_filtered = request.min_mod_revision != 0
            || request.max_mod_revision != 0
            || request.min_create_revision != 0
            || request.max_create_revision != 0;
        pairs.retain(|pair| {
            within(pair.mod_revision, request.min_mod_revision, request.max_mod_revision)
                && within(pair.create_revision, request.min_create_revision, request.max_create_revision)
        });
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let order = request.sort_order();
        let target = request.sort_target();
        // Without an order etcd's store hands out only the first keys, and sorts those.
        let cuts_first = order == SortOrder::None || (order == SortOrder::Ascend && target == SortTarget::Key);
        if cuts_first && !is_filtered {
            pairs.truncate(limit.saturating_add(1));
        }
        let compare = |a: &KeyValue, b: &KeyValue| match target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        // What is equal stays in the order of keys, either way.
        pairs.sort_by(|a, b| if order == SortOrder::Descend { compare(b, a) } else { compare(a, b) });
        let more = pairs.len() > limit;
        pairs.truncate(limit);
        if request.keys_only {
            for pair in &mut pairs {
                pair.value = Bytes::new();
                if target != SortTarget::Value {
                    // Read from the index, where leases are not.
                    pair.lease = 0;
                }
            }
        }
        pb::RangeResponse { kvs: pairs, more, ..response }
    }

    /// The answer to a transaction that only reads.
    pub fn read_txn(&self, request: &pb::TxnRequest, current: i64) -> pb::TxnResponse {
        let succeeded = request.compare.iter().all(|compare| self.holds(compare, current));
        let branch = if succeeded { &request.success } else { &request.failure };
        let responses = branch.iter().filter_map(|op| match &op.request {
            Some(Op::RequestRange(range)) => {
                let at = if range.revision > 0 { range.revision } else { current };
                let response = self.range_whatever_is_compacted(range, at, current);
                Some(pb::ResponseOp { response: Some(OpResponse::ResponseRange(response)) })
            }
            _ => None,
        });
        pb::TxnResponse { header: header(current), succeeded, responses: responses.collect() }
    }

    fn holds(&self, compare: &pb::Compare, at: i64) -> bool {
        let pairs = self.living(&compare.key, &compare.range_end, at);
        if pairs.is_empty() {
            // What is not there has no value, and is 0 in everything else.
            return compare.target() != CompareTarget::Value && Self::holds_for(compare, &KeyValue::default());
        }
        pairs.into_iter().all(|pair| Self::holds_for(compare, pair))
    }

    fn holds_for(compare: &pb::Compare, pair: &KeyValue) -> bool {
        let order = match &compare.target_union {
            Some(TargetUnion::Version(operand)) => pair.version.cmp(operand),
            Some(TargetUnion::CreateRevision(operand)) => pair.create_revision.cmp(operand),
            Some(TargetUnion::ModRevision(operand)) => pair.mod_revision.cmp(operand),
            Some(TargetUnion::Value(operand)) => pair.value.cmp(operand),
            Some(TargetUnion::Lease(operand)) => pair.lease.cmp(operand),
            None => std::cmp::Ordering::Equal,
        };
        match compare.result() {
            CompareResult::Equal => order.is_eq(),
            CompareResult::NotEqual => order.is_ne(),
            CompareResult::Greater => order.is_gt(),
            CompareResult::Less => order.is_lt(),
        }
    }

    fn txn(&mut self, request: &pb::TxnRequest) -> Result<pb::TxnResponse, Error> {
        let begin = self.revision;
        self.check_branch(request, begin, &mut Vec::new())?;
        let mut response = self.branch(request, begin)?;
        response.header = header(self.now());
        Ok(response)
    }

    fn chosen<'a>(&self, request: &'a pb::TxnRequest, begin: i64) -> (bool, &'a [pb::RequestOp]) {
        let succeeded = request.compare.iter().all(|compare| self.holds(compare, begin));
        (succeeded, if succeeded { &request.success } else { &request.failure })
    }

    /// A transaction does all or nothing, so what may be refused is looked for first.
    fn check_branch<'a>(
        &self,
        request: &'a pb::TxnRequest,
        begin: i64,
        deletes: &mut Vec<&'a pb::DeleteRangeRequest>,
    ) -> Result<(), Error> {
        for op in self.chosen(request, begin).1 {
            match &op.request {
                Some(Op::RequestPut(put)) => {
                    let is_deleted = deletes.iter().any(|delete| in_range(&put.key, &delete.key, &delete.range_end));
                    let is_there = !is_deleted && self.get(&put.key, begin).is_some();
                    if (put.ignore_value || put.ignore_lease) && !is_there {
                        return Err(Error::KeyNotFound);
                    }
                    self.check_put(put)?;
                }
                Some(Op::RequestDeleteRange(delete)) => deletes.push(delete),
                Some(Op::RequestTxn(nested)) => self.check_branch(nested, begin, deletes)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn branch(&mut self, request: &pb::TxnRequest, begin: i64) -> Result<pb::TxnResponse, Error> {
        let (succeeded, ops) = self.chosen(request, begin);
        let mut responses = Vec::new();
        for op in ops {
            let response = match &op.request {
                Some(Op::RequestRange(range)) => OpResponse::ResponseRange(self.range(range, self.now())?),
                Some(Op::RequestPut(put)) => OpResponse::ResponsePut(self.put(put)?),
                Some(Op::RequestDeleteRange(delete)) => OpResponse::ResponseDeleteRange(self.delete_range(delete)),
                Some(Op::RequestTxn(nested)) => OpResponse::ResponseTxn(self.branch(nested, begin)?),
                None => continue,
            };
            responses.push(pb::ResponseOp { response: Some(response) });
        }
        Ok(pb::TxnResponse { header: Some(pb::ResponseHeader::default()), succeeded, responses })
    }

    fn compact(&mut self, request: &pb::CompactionRequest) -> Result<Response, Error> {
        if request.revision <= self.compact_revision {
            return Err(Error::Compacted);
        }
        if request.revision > self.revision {
            return Err(Error::FutureRev);
        }
        self.compact_revision = request.revision;
        let response = pb::CompactionResponse { header: header(self.revision) };
        Ok(Response::Compact { response, physical: request.physical })
    }

    fn alarm(&mut self, request: &pb::AlarmRequest) -> Response {
        let (kind, member) = (request.alarm, request.member_id);
        let named = match request.action() {
            AlarmAction::Get => Vec::new(),
            AlarmAction::Activate => {
                self.alarms.insert((kind, member));
                vec![(kind, member)]
            }
            AlarmAction::Deactivate => self.alarms.take(&(kind, member)).into_iter().collect(),
        };
        let alarms = named.into_iter().map(|(alarm, member_id)| pb::AlarmMember { member_id, alarm });
        Response::Alarm(pb::AlarmResponse { header: header(self.revision), alarms: alarms.collect() })
    }

    fn grant(&mut self, request: &pb::LeaseGrantRequest) -> Result<Response, Error> {
        if request.id == 0 {
            return Err(Error::LeaseNotFound);
        }
        if self.leases.contains_key(&request.id) {
            return Err(Error::LeaseExist);
        }
        let ttl = request.ttl.max(self.min_ttl);
        self.leases.insert(request.id, Lease { ttl, keys: BTreeSet::new() });
        let header = header(self.revision);
        Ok(Response::LeaseGrant(pb::LeaseGrantResponse { header, id: request.id, ttl, error: String::new() }))
    }

    fn revoke(&mut self, id: i64) -> Result<Response, Error> {
        let lease = self.leases.remove(&id).ok_or(Error::LeaseNotFound)?;
        for key in lease.keys {
            self.change(&key, None);
        }
        self.publish();
        Ok(Response::LeaseRevoke(pb::LeaseRevokeResponse { header: header(self.revision) }))
    }
}
