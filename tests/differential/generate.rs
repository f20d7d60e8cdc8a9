//! Random operations, steered towards the interesting: few keys so that they meet, revisions around the edges, and
//! every option of every request, valid or not.

use bytes::Bytes;
use proto::etcdserverpb::compare::TargetUnion;
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::operation::{Answer, Operation};

/// The greatest TTL that etcd takes, in seconds.
const MAX_TTL: i64 = 9_000_000_000;
/// TTLs start here so that no lease expires by itself during a run: expiry cannot be compared between two servers.
const LONG_TTL: i64 = 1_000_000;
/// etcd's `--max-txn-ops`.
const MAX_TXN_OPS: usize = 128;
/// How deep transactions nest.
const MAX_TXN_DEPTH: u32 = 4;
/// An enum value that no version defines.
const UNKNOWN_ENUM: i32 = 77;

/// Makes operations from a seed and from what the servers have answered so far.
pub struct Generator {
    random: SmallRng,
    keys: Vec<Bytes>,
    values: Vec<Bytes>,
    leases: Vec<i64>,
    granted: Vec<i64>,
    /// The store's revision, from the newest answer.
    pub revision: i64,
    /// The newest compaction; 0 if there was none.
    pub compacted: i64,
}

impl Generator {
    /// A generator whose operations depend on the seed and on the answers only.
    pub fn new(seed: u64) -> Generator {
        let mut keys: Vec<Bytes> = vec![
            Bytes::from_static(b"\0"),
            Bytes::from_static(b"\xff"),
            Bytes::from_static(b"\xff\xff"),
            Bytes::from_static(b"a\0"),
            Bytes::from_static("schlüssel mit raum".as_bytes()),
            Bytes::from(vec![b'k'; 300]),
        ];
        for letter in b'a'..=b'f' {
            keys.push(Bytes::copy_from_slice(&[letter]));
            keys.extend((0..8).map(|number| Bytes::from(format!("{}/{number}", char::from(letter)))));
        }
        let mut values: Vec<Bytes> = (0..10).map(|number| Bytes::from(number.to_string())).collect();
        values.extend([Bytes::new(), Bytes::from_static(b"\xff\0\xfe"), Bytes::from(vec![b'v'; 400])]);
        let mut leases: Vec<i64> = (1..40).collect();
        leases.extend([-1, -1000, i64::MAX, i64::MIN, 0x0123_4567_89ab_cdef]);
        let random = SmallRng::seed_from_u64(seed);
        Generator { random, keys, values, leases, granted: Vec::new(), revision: 1, compacted: 0 }
    }

    /// Uses only leases that a real etcd still knows after a start or a snapshot: it reads back the IDs from 0 up to, but
    /// without, the greatest there is, and forgets the others.
    pub fn with_lasting_leases(mut self) -> Generator {
        self.leases.retain(|lease| (0..i64::MAX).contains(lease));
        self
    }

    /// Learns from the answer to one of its operations.
    pub fn learn(&mut self, operation: &Operation, answer: &Answer) {
        self.revision = self.revision.max(answer.revision().unwrap_or(0));
        match (operation, answer) {
            (Operation::Compact(request), Answer::Compact(_)) => self.compacted = request.revision,
            (Operation::Grant(_), Answer::Grant(granted)) => self.granted.push(granted.id),
            (Operation::Revoke(request), Answer::Revoke(_)) => self.granted.retain(|lease| *lease != request.id),
            _ => {}
        }
    }

    /// True once in `times` calls.
    pub fn once_in(&mut self, times: u32) -> bool {
        self.random.random_ratio(1, times)
    }

    /// A number from `from` to `to`, both included.
    pub fn between(&mut self, from: usize, to: usize) -> usize {
        self.random.random_range(from..=to)
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_ratio(percent, 100)
    }

    // --- operations ---

    /// An operation that may change the store, so that it has to be done alone.
    pub fn change(&mut self) -> Operation {
        match self.random.random_range(0..1000) {
            0..430 => Operation::Put(self.put()),
            430..560 => Operation::Delete(self.delete(2)),
            560..860 => Operation::Txn(self.txn(MAX_TXN_DEPTH)),
            860..920 => Operation::Grant(self.grant()),
            920..930 => Operation::GrantAndRevoke { ttl: self.any_ttl() },
            _ => Operation::Revoke(LeaseRevokeRequest { id: self.lease() }),
        }
    }

    /// An operation that changes nothing, so that many can be under way at once.
    pub fn read(&mut self) -> Operation {
        match self.random.random_range(0..1000) {
            0..800 => {
                let mut request = self.range();
                if self.once_in(200) {
                    // An unknown sort_target crashes servers before 3.6, so it is not asked for.
                    (request.sort_order, request.sort_target) = (UNKNOWN_ENUM, 0);
                }
                Operation::Range { request, streamed: false }
            }
            800..880 => Operation::Range { request: self.streamable_range(), streamed: true },
            880..920 => Operation::KeepAlive(LeaseKeepAliveRequest { id: self.lease() }),
            920..960 => Operation::TimeToLive(LeaseTimeToLiveRequest { id: self.lease(), keys: self.random.random() }),
            960..970 => Operation::Leases,
            _ => Operation::HashKv(HashKvRequest { revision: self.read_revision() }),
        }
    }

    /// A compaction: mostly far enough back to leave history, sometimes at an edge or invalid.
    pub fn compaction(&mut self) -> Operation {
        let revision = match self.random.random_range(0..100) {
            0..70 => (self.revision - self.random.random_range(0..400)).max(self.compacted + 1),
            70..78 => self.revision,
            78..84 => self.revision + self.random.random_range(1..5),
            84..92 => self.random.random_range(0..=self.compacted),
            92..96 => self.compacted,
            _ => -self.random.random_range(0..3),
        };
        Operation::Compact(CompactionRequest { revision, physical: self.random.random() })
    }

    fn put(&mut self) -> PutRequest {
        let mut request =
            PutRequest { key: self.key(), value: self.value(), prev_kv: self.chance(30), ..PutRequest::default() };
        if self.chance(35) {
            request.lease = self.lease();
        }
        if self.chance(5) {
            request.ignore_value = true;
            if self.chance(90) {
                request.value = Bytes::new();
            }
        }
        if self.chance(5) {
            request.ignore_lease = true;
            if self.chance(90) {
                request.lease = 0;
            }
        }
        request
    }

    /// A deletion: one key or a small range, and once in a while (`whole_percent`) anything at all.
    fn delete(&mut self, whole_percent: u32) -> DeleteRangeRequest {
        let key = self.key();
        let range_end = match self.random.random_range(0..100) {
            _ if self.random.random_ratio(whole_percent, 100) => self.range_end(&key),
            0..75 => Bytes::new(),
            75..90 => self.prefix_end(&key),
            _ => {
                let mut next = key.to_vec();
                next.push(b'5');
                next.into()
            }
        };
        DeleteRangeRequest { key, range_end, prev_kv: self.chance(40) }
    }

    fn range(&mut self) -> RangeRequest {
        let mut request = self.streamable_range();
        if self.chance(45) {
            (request.sort_order, request.sort_target) =
                (self.random.random_range(0..3), self.random.random_range(0..5));
        }
        if self.chance(20) {
            request.min_mod_revision = self.filter_revision();
            request.max_mod_revision = self.filter_revision();
            request.min_create_revision = self.filter_revision();
            request.max_create_revision = self.filter_revision();
        }
        request
    }

    /// A range without what `RangeStream` refuses: an order, and filters by revision.
    fn streamable_range(&mut self) -> RangeRequest {
        let key = self.key();
        let range_end = self.range_end(&key);
        let limit = match self.random.random_range(0..100) {
            0..55 => 0,
            55..85 => self.random.random_range(1..6),
            85..95 => 100,
            _ => -self.random.random_range(1..4),
        };
        RangeRequest {
            key,
            range_end,
            limit,
            revision: self.read_revision(),
            serializable: self.chance(40),
            keys_only: self.chance(15),
            count_only: self.chance(10),
            ..RangeRequest::default()
        }
    }

    fn txn(&mut self, depth: u32) -> TxnRequest {
        if self.once_in(300) {
            // one more than allowed, or exactly as many
            let too_many = MAX_TXN_OPS + usize::from(self.chance(50));
            let success = (0..too_many).map(|_| RequestOp { request: Some(Request::RequestRange(self.range())) });
            return TxnRequest { success: success.collect(), ..TxnRequest::default() };
        }
        let compare = (0..self.random.random_range(0..3)).map(|_| self.compare()).collect();
        let success = (0..self.random.random_range(0..4)).map(|_| self.request_op(depth)).collect();
        let failure = (0..self.random.random_range(0..4)).map(|_| self.request_op(depth)).collect();
        TxnRequest { compare, success, failure }
    }

    fn request_op(&mut self, depth: u32) -> RequestOp {
        let request = match self.random.random_range(0..1000) {
            0..5 => None,
            5..300 => Some(Request::RequestRange(self.range())),
            300..650 => Some(Request::RequestPut(self.put())),
            650..800 => Some(Request::RequestDeleteRange(self.delete(1))),
            _ if depth > 1 => Some(Request::RequestTxn(self.txn(depth - 1))),
            _ => Some(Request::RequestPut(self.put())),
        };
        RequestOp { request }
    }

    fn compare(&mut self) -> Compare {
        let key = self.key();
        let range_end = if self.chance(15) { self.range_end(&key) } else { Bytes::new() };
        let target = self.random.random_range(0..5);
        let operand = if self.chance(4) { self.random.random_range(0..6) } else { target };
        let target_union = match operand {
            0 => Some(TargetUnion::Version(self.random.random_range(-1..4))),
            1 => Some(TargetUnion::CreateRevision(self.filter_revision())),
            2 => Some(TargetUnion::ModRevision(self.filter_revision())),
            3 => Some(TargetUnion::Value(self.value())),
            4 => Some(TargetUnion::Lease(if self.chance(60) { 0 } else { self.lease() })),
            _ => None,
        };
        let result = if self.once_in(200) { UNKNOWN_ENUM } else { self.random.random_range(0..4) };
        Compare { result, target, key, range_end, target_union }
    }

    fn grant(&mut self) -> LeaseGrantRequest {
        let id = *self.leases.choose(&mut self.random).expect("there are leases");
        let ttl = match self.random.random_range(0..100) {
            0..90 => self.random.random_range(LONG_TTL..2 * LONG_TTL),
            90..94 => MAX_TTL,
            94..97 => MAX_TTL + 1,
            _ => i64::MAX,
        };
        LeaseGrantRequest { ttl, id }
    }

    fn any_ttl(&mut self) -> i64 {
        *[i64::MIN, -1, 0, 1, 2, 3, 60, MAX_TTL, MAX_TTL + 1].choose(&mut self.random).expect("there are TTLs")
    }

    // --- watches ---

    /// A watch from the past, the present or the future, on a store that does not change meanwhile.
    pub fn watch(&mut self) -> WatchCreateRequest {
        let start_revision = match self.random.random_range(0..100) {
            0..10 => 0,
            10..75 => self.random.random_range(self.compacted + 1..=self.revision.max(self.compacted + 1)),
            75..80 => self.compacted,
            80..88 => self.random.random_range(0..=self.compacted),
            _ => self.revision + self.random.random_range(0..3),
        };
        self.watch_from(start_revision)
    }

    /// A watch on what is to come: from now, or from a revision after the next few changes.
    pub fn live_watch(&mut self) -> WatchCreateRequest {
        let start_revision = if self.chance(60) { 0 } else { self.revision + self.random.random_range(1..8) };
        self.watch_from(start_revision)
    }

    fn watch_from(&mut self, start_revision: i64) -> WatchCreateRequest {
        let key = if self.once_in(50) { Bytes::new() } else { self.key() };
        let range_end = if self.chance(30) { Bytes::from_static(b"\0") } else { self.range_end(&key) };
        let filters = (0..[0, 0, 0, 1, 1, 2].choose(&mut self.random).copied().unwrap_or(0))
            .map(|_| self.random.random_range(0..2))
            .collect();
        WatchCreateRequest {
            key,
            range_end,
            start_revision,
            progress_notify: self.chance(20),
            filters,
            prev_kv: self.chance(40),
            watch_id: if self.chance(80) { 0 } else { self.random.random_range(-2..4_i64) * 3 },
            fragment: self.chance(20),
        }
    }

    // --- parts ---

    fn key(&mut self) -> Bytes {
        match self.random.random_range(0..1000) {
            0..8 => Bytes::new(),
            8..30 => {
                let length = self.random.random_range(1..4);
                (0..length).map(|_| self.random.random()).collect::<Vec<u8>>().into()
            }
            _ => self.keys.choose(&mut self.random).expect("there are keys").clone(),
        }
    }

    fn range_end(&mut self, key: &Bytes) -> Bytes {
        match self.random.random_range(0..100) {
            0..40 => Bytes::new(),
            40..52 => Bytes::from_static(b"\0"),
            52..75 => self.prefix_end(key),
            75..78 => key.clone(),
            _ => self.key(),
        }
    }

    /// The end of the range of all keys that begin with `key`, as clients make it.
    fn prefix_end(&mut self, key: &Bytes) -> Bytes {
        let mut end = key.to_vec();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                return end.into();
            }
        }
        Bytes::from_static(b"\0")
    }

    fn value(&mut self) -> Bytes {
        if self.chance(30) {
            let length = self.random.random_range(1..100);
            return (0..length).map(|_| self.random.random()).collect::<Vec<u8>>().into();
        }
        self.values.choose(&mut self.random).expect("there are values").clone()
    }

    /// A lease that exists, mostly.
    fn lease(&mut self) -> i64 {
        match self.granted.choose(&mut self.random) {
            Some(lease) if self.random.random_ratio(85, 100) => *lease,
            _ => *self.leases.choose(&mut self.random).expect("there are leases"),
        }
    }

    fn read_revision(&mut self) -> i64 {
        match self.random.random_range(0..100) {
            0..60 => 0,
            60..86 => self.random.random_range(self.compacted.min(self.revision)..=self.revision),
            86..90 => self.compacted,
            90..94 => self.random.random_range(0..=self.compacted),
            94..97 => self.revision + self.random.random_range(0..3),
            _ => -self.random.random_range(1..10),
        }
    }

    fn filter_revision(&mut self) -> i64 {
        match self.random.random_range(0..100) {
            0..55 => 0,
            55..90 => self.random.random_range(self.revision.saturating_sub(60).max(0)..=self.revision),
            90..95 => self.random.random_range(0..=self.revision),
            _ => -self.random.random_range(1..3),
        }
    }
}
