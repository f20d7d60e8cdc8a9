//! Leases: who holds one, which keys hang on it, and when it ends.

use bytes::Bytes;
use proto::etcdserverpb as pb;

/// What a keep-alive did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease lives on for `ttl` seconds. `clear_checkpoint`: a shorter remaining TTL is on record in the log and
    /// should be cleared by proposing a checkpoint of 0 for it.
    Renewed {
        /// Seconds.
        ttl: i64,
        /// See above.
        clear_checkpoint: bool,
    },
    /// It has expired and its revocation is under way: answer TTL 0 once it is gone (or at once).
    Expired,
    /// There is no such lease: answer TTL 0.
    NotFound,
    /// This member does not lead, so it does not know how long leases last: forward to the leader.
    NotPrimary,
}

/// What `TimeToLive` answers about a lease that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeToLive {
    /// Seconds left, rounded down.
    pub ttl: i64,
    /// Seconds granted.
    pub granted_ttl: i64,
    /// Attached keys in order, if asked for.
    pub keys: Vec<Bytes>,
}

/// All leases. Shared by the applying side and request threads; a lock inside, held briefly.
#[derive(Debug)]
pub struct Lessor {}

#[allow(unused_variables)]
impl Lessor {
    /// Extends a lease. Only on the leader.
    pub fn renew(&self, id: i64, now_ms: u64) -> Renewal {
        todo!()
    }
    /// What is left of a lease; `None` if there is none.
    pub fn time_to_live(&self, id: i64, keys: bool, now_ms: u64) -> Option<TimeToLive> {
        todo!()
    }
    /// All lease IDs, soonest expiry first.
    pub fn leases(&self) -> Vec<i64> {
        todo!()
    }
    /// Whether the lease exists.
    pub fn exists(&self, id: i64) -> bool {
        todo!()
    }
    /// The lease a key is attached to; 0 = none.
    pub fn lease_of(&self, key: &[u8]) -> i64 {
        todo!()
    }
    /// Begins to count time: this member leads now. Every lease is extended by `extend_ms` over what it had left.
    pub fn promote(&self, now_ms: u64, extend_ms: u64) {
        todo!()
    }
    /// Stops counting time.
    pub fn demote(&self) {
        todo!()
    }
    /// Whether this member counts time.
    pub fn is_primary(&self) -> bool {
        todo!()
    }
    /// Up to `max` leases that have ended and should be revoked through the log. One that is not revoked is handed
    /// out again after a while.
    pub fn expired(&self, now_ms: u64, max: usize) -> Vec<i64> {
        todo!()
    }
    /// What the leader should put on record now of remaining TTLs (at most 1000).
    pub fn checkpoints(&self, now_ms: u64) -> Vec<pb::LeaseCheckpoint> {
        todo!()
    }
}
