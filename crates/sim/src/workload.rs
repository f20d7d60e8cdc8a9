//! What clients ask for.

use bytes::Bytes;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::request_op::Request as Op;
use proto::etcdserverpb::{InternalRaftRequest, RangeRequest, TxnRequest};
use proto::v2pb;
use state::watch::WatchCreate;

use crate::random::Random;

/// What a v2 path is made of; the last one is hidden.
pub const NAMES: [&str; 4] = ["a", "b", "c", "_h"];

/// A request of a client.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Through the log.
    Write(Box<InternalRaftRequest>),
    /// Of the v2 API, through the log; the expiration is a TTL in nanoseconds until it gets there.
    V2(Box<v2pb::Request>),
    /// A range.
    Range(Box<RangeRequest>),
    /// A transaction that only reads.
    ReadTxn(Box<TxnRequest>),
    /// Keep a lease alive.
    Renew(i64),
}

/// Keys that clients fight over.
const KEYS: u64 = 24;

/// Draws requests.
#[derive(Debug)]
pub struct Workload {
    random: Random,
    /// Leases that clients believe to be there.
    pub leases: Vec<i64>,
    next_lease: i64,
    next_value: u64,
    /// How large values become now and then, in bytes.
    large_value: u64,
    /// And how large once in a long while.
    huge_value: u64,
    /// Whether the v2 API is used as well.
    speaks_v2: bool,
}

impl Workload {
    /// From chance.
    pub fn new(mut random: Random, speaks_v2: bool) -> Self {
        let large_value = if random.chance(200) { 40_000 } else { 2_000 };
        let huge_value = if random.chance(200) { 1 << 20 } else { 0 };
        Self { random, leases: Vec::new(), next_lease: 1, next_value: 1, large_value, huge_value, speaks_v2 }
    }

    fn key(&mut self) -> Bytes {
        format!("k{:02}", self.random.below(KEYS)).into()
    }

    /// A range of keys: mostly some, now and then all, or all from one on.
    fn range(&mut self) -> (Bytes, Bytes) {
        match self.random.below(10) {
            0 => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
            1 => (self.key(), Bytes::from_static(b"\0")),
            _ => {
                let (a, b) = (self.key(), self.key());
                if a < b { (a, b) } else { (a.clone(), format!("{}~", String::from_utf8_lossy(&a)).into()) }
            }
        }
    }

    /// Values are never the same, so that each tells who wrote it.
    fn value(&mut self) -> Bytes {
        let mut value = format!("v{}", self.next_value).into_bytes();
        self.next_value += 1;
        let bytes = match self.random.below(1_000) {
            0..50 => self.random.below(self.large_value),
            50..53 => self.random.below(self.huge_value),
            _ => 0,
        };
        value.resize(value.len() + bytes as usize, b'.');
        value.into()
    }

    fn lease(&mut self) -> i64 {
        if self.random.chance(300) { self.random.pick(&self.leases).copied().unwrap_or(0) } else { 0 }
    }

    fn put(&mut self) -> pb::PutRequest {
        let mut put = pb::PutRequest {
            key: self.key(),
            value: self.value(),
            lease: self.lease(),
            prev_kv: self.random.chance(300),
            ..Default::default()
        };
        if self.random.chance(40) {
            (put.ignore_value, put.value) = (true, Bytes::new());
        }
        if self.random.chance(40) {
            (put.ignore_lease, put.lease) = (true, 0);
        }
        put
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        let (key, range_end) = if self.random.chance(700) { (self.key(), Bytes::new()) } else { self.range() };
        pb::DeleteRangeRequest { key, range_end, prev_kv: self.random.chance(300) }
    }

    fn read(&mut self, revision: i64) -> RangeRequest {
        let (key, range_end) = if self.random.chance(500) { (self.key(), Bytes::new()) } else { self.range() };
        let mut range = RangeRequest { key, range_end, serializable: self.random.chance(250), ..Default::default() };
        if self.random.chance(250) {
            range.limit = self.random.below(8) as i64;
        }
        if self.random.chance(250) {
            range.sort_order = self.random.below(3) as i32;
            range.sort_target = self.random.below(5) as i32;
        }
        range.keys_only = self.random.chance(100);
        range.count_only = self.random.chance(80);
        if self.random.chance(100) {
            range.min_mod_revision = revision - self.random.below(30) as i64;
        }
        if self.random.chance(60) {
            range.max_create_revision = revision - self.random.below(30) as i64;
        }
        if self.random.chance(200) {
            range.revision = (revision + 3 - self.random.around(20) as i64).max(0);
        }
        range
    }

    fn compare(&mut self, revision: i64) -> pb::Compare {
        let (target, operand) = match self.random.below(5) {
            0 => (CompareTarget::Version, TargetUnion::Version(self.random.below(4) as i64)),
            1 => (CompareTarget::Create, TargetUnion::CreateRevision(self.random.below(2) as i64 * revision)),
            2 => (CompareTarget::Mod, TargetUnion::ModRevision(revision - self.random.below(20) as i64)),
            3 => (CompareTarget::Value, TargetUnion::Value(self.value())),
            _ => (CompareTarget::Lease, TargetUnion::Lease(self.lease())),
        };
        let result = match self.random.below(4) {
            0 => CompareResult::Equal,
            1 => CompareResult::NotEqual,
            2 => CompareResult::Greater,
            _ => CompareResult::Less,
        };
        let (key, range_end) = if self.random.chance(850) { (self.key(), Bytes::new()) } else { self.range() };
        pb::Compare { result: result as i32, target: target as i32, key, range_end, target_union: Some(operand) }
    }

    fn branch(&mut self, depth: u64, revision: i64) -> Vec<pb::RequestOp> {
        let mut ops = Vec::new();
        for _ in 0..self.random.below(4) {
            let op = match self.random.below(10) {
                0..=3 => Op::RequestPut(self.put()),
                4 => Op::RequestDeleteRange(self.delete()),
                5 if depth < 2 => Op::RequestTxn(self.txn(depth + 1, revision)),
                _ => Op::RequestRange(RangeRequest { revision: 0, ..self.read(revision) }),
            };
            ops.push(pb::RequestOp { request: Some(op) });
        }
        ops
    }

    fn txn(&mut self, depth: u64, revision: i64) -> TxnRequest {
        let compare = (0..self.random.below(3)).map(|_| self.compare(revision)).collect();
        TxnRequest { compare, success: self.branch(depth, revision), failure: self.branch(depth, revision) }
    }

    /// Asks for a lease that nobody has asked for.
    pub fn grant(&mut self, ttl: i64) -> pb::LeaseGrantRequest {
        let id = self.next_lease;
        self.next_lease += 1;
        pb::LeaseGrantRequest { id, ttl }
    }

    /// A watch with this ID.
    pub fn watch(&mut self, watch_id: i64, revision: i64) -> WatchCreate {
        let (key, range_end) = if self.random.chance(300) { (self.key(), Bytes::new()) } else { self.range() };
        WatchCreate {
            key,
            range_end,
            start_revision: match self.random.below(3) {
                0 => 0,
                1 => (revision + 10 - self.random.below(200) as i64).max(1),
                _ => (revision + 3 - self.random.below(6) as i64).max(1),
            },
            watch_id,
            progress_notify: self.random.chance(300),
            no_put: self.random.chance(150),
            no_delete: self.random.chance(150),
            prev_kv: self.random.chance(500),
        }
    }

    /// A path of the v2 tree: one of few, so that files and directories get in each other's way.
    fn path(&mut self) -> String {
        let mut path = "/1".to_owned();
        for _ in 0..self.random.between(1, 3) {
            path.push('/');
            path.push_str(self.random.pick(&NAMES).copied().unwrap_or_default());
        }
        path
    }

    /// Where in the v2 tree to wait, and whether for what happens below as well.
    pub fn wait(&mut self) -> (String, bool) {
        let path = if self.random.chance(300) { "/1".to_owned() } else { self.path() };
        (path, self.random.chance(600))
    }

    fn v2(&mut self) -> v2pb::Request {
        let value = |this: &mut Self| Some(format!("v{}", this.random.below(5)).into());
        let some = |this: &mut Self, per_mille| if this.random.chance(per_mille) { Some(true) } else { None };
        let mut request = v2pb::Request { path: Some(self.path().into()), ..Default::default() };
        let method = match self.random.below(20) {
            0..3 => "QGET",
            3..7 => "DELETE",
            7..9 => "POST",
            _ => "PUT",
        };
        request.method = Some(method.into());
        match method {
            "QGET" => {
                request.recursive = some(self, 500);
                if self.random.chance(200) {
                    request.path = Some("/1".into());
                }
            }
            "DELETE" => {
                request.dir = some(self, 400);
                request.recursive = some(self, 400);
            }
            _ => {
                request.dir = some(self, 150);
                if request.dir.is_none() {
                    request.val = value(self);
                }
                if self.random.chance(300) {
                    request.expiration = Some(self.random.between(1, 20) as i64 * 1_000_000_000);
                    request.refresh = some(self, 300);
                }
            }
        }
        if method == "PUT" && self.random.chance(400) {
            request.prev_exist = Some(self.random.chance(600));
        }
        if matches!(method, "PUT" | "DELETE") && self.random.chance(200) {
            request.prev_value = value(self);
        }
        if matches!(method, "PUT" | "DELETE") && self.random.chance(100) {
            request.prev_index = Some(self.random.below(100));
        }
        request
    }

    /// The next request; `revision` is about what the newest revision is.
    pub fn next(&mut self, revision: i64) -> Ask {
        let write = |request| Ask::Write(Box::new(request));
        if self.speaks_v2 && self.random.chance(300) {
            return Ask::V2(Box::new(self.v2()));
        }
        match self.random.below(100) {
            0..30 => write(InternalRaftRequest { put: Some(self.put()), ..Default::default() }),
            30..38 => write(InternalRaftRequest { delete_range: Some(self.delete()), ..Default::default() }),
            38..55 => loop {
                let txn = self.txn(0, revision);
                // What a member would refuse at its door is not of interest here.
                if state::check::txn(&txn, 128).is_err() {
                    continue;
                }
                if state::Reader::is_read_only(&txn) {
                    return Ask::ReadTxn(Box::new(txn));
                }
                return write(InternalRaftRequest { txn: Some(txn), ..Default::default() });
            },
            55..58 => {
                let ttl = self.random.between(1, 20) as i64;
                let grant = self.grant(ttl);
                write(InternalRaftRequest { lease_grant: Some(grant), ..Default::default() })
            }
            58..59 => match self.random.pick(&self.leases).copied() {
                Some(id) => {
                    let revoke = pb::LeaseRevokeRequest { id };
                    write(InternalRaftRequest { lease_revoke: Some(revoke), ..Default::default() })
                }
                None => Ask::Renew(1),
            },
            59..66 => Ask::Renew(self.random.pick(&self.leases).copied().unwrap_or(1)),
            66..67 => {
                let revision = revision - self.random.below(100) as i64;
                let compaction = pb::CompactionRequest { revision, physical: self.random.chance(500) };
                write(InternalRaftRequest { compaction: Some(compaction), ..Default::default() })
            }
            _ => Ask::Range(Box::new(self.read(revision))),
        }
    }
}
