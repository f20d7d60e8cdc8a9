//! Leases: who holds one, which keys hang on it, and when it ends.
//!
//! Which leases exist and what hangs on them is agreed through the log. *When* one ends is not: only the leader counts,
//! and it asks for the revocation through the log. A new leader has seen none of the keep-alives of the last one, so
//! it begins by giving every lease its full time (or what was last put on record) again. Leases may thus live longer
//! than promised, never shorter.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use parking_lot::Mutex;
use proto::etcdserverpb as pb;
use proto::leasepb;

use crate::Error;

/// The longest TTL that can be granted, in seconds.
pub const MAX_TTL: i64 = 9_000_000_000;

/// How soon an expired lease that has not been revoked is handed out again, in milliseconds.
const RETRY_MS: u64 = 3_000;
/// How often the remaining TTL of a long lease is put on record, in milliseconds.
const CHECKPOINT_MS: u64 = 300_000;
/// How many records one proposal holds.
const MAX_CHECKPOINTS: usize = 1_000;
/// How many leases may end within one second after a change of leader; those above it are put off. Three quarters of
/// the thousand per second that are revoked at most, so that there is room for others.
const MAX_EXPIRIES_PER_SECOND: usize = 750;
/// "Never", on a member that does not count.
const NEVER: u64 = u64::MAX;

/// What a keep-alive did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease lives on for `ttl` seconds. `clear_checkpoint`: a shorter remaining TTL is on record, with which a later
    /// leader would begin. A checkpoint of 0 must have been applied before the client is told.
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
    /// Seconds left, rounded down; 0 once it has expired.
    pub ttl: i64,
    /// Seconds granted.
    pub granted_ttl: i64,
    /// Attached keys in order, if asked for.
    pub keys: Vec<Bytes>,
}

/// All leases. Shared by the applying side and request threads; a lock inside, held briefly.
#[derive(Debug)]
pub struct Lessor {
    /// Seconds below which no TTL is granted.
    min_ttl: i64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    leases: BTreeMap<i64, Lease>,
    /// The lease of each key that has one.
    of_key: HashMap<Bytes, i64>,
    /// Whether this member counts time.
    primary: bool,
    /// When to look at a lease again: its expiry, or the next try to have it revoked. Empty unless primary.
    due: BTreeSet<(u64, i64)>,
    /// When to put its remaining TTL on record. Empty unless primary.
    checkpoint_due: BTreeSet<(u64, i64)>,
    /// The newest time seen.
    now_ms: u64,
    /// Granted since then: applying the log knows no clock, so their time begins with the next time seen. That is late
    /// by a moment rather than early.
    fresh: Vec<i64>,
}

#[derive(Debug)]
struct Lease {
    ttl: i64,
    /// What the log has on record of its remaining TTL, in seconds; 0 = nothing.
    remaining_ttl: i64,
    expiry_ms: u64,
    /// Its entry in `due`.
    due_ms: u64,
    /// Its entry in `checkpoint_due`, if it has one.
    checkpoint_ms: Option<u64>,
    keys: BTreeSet<Bytes>,
}

impl Lease {
    fn new(ttl: i64, remaining_ttl: i64) -> Self {
        Self { ttl, remaining_ttl, expiry_ms: NEVER, due_ms: NEVER, checkpoint_ms: None, keys: BTreeSet::new() }
    }

    fn remaining_ms(&self) -> u64 {
        let seconds = if self.remaining_ttl > 0 { self.remaining_ttl } else { self.ttl };
        seconds.unsigned_abs().saturating_mul(1_000)
    }
}

impl Inner {
    fn observe(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        for id in std::mem::take(&mut self.fresh) {
            self.refresh(id, self.now_ms, 0);
        }
    }

    fn schedule(&mut self, id: i64, expiry_ms: u64, due_ms: u64) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        self.due.remove(&(lease.due_ms, id));
        lease.expiry_ms = expiry_ms;
        lease.due_ms = due_ms;
        self.due.insert((due_ms, id));
    }

    /// Plans the next record. Short leases end before there is anything to record.
    fn schedule_checkpoint(&mut self, id: i64, now_ms: u64) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        if let Some(old) = lease.checkpoint_ms.take() {
            self.checkpoint_due.remove(&(old, id));
        }
        let next = now_ms.saturating_add(CHECKPOINT_MS);
        if next < lease.expiry_ms {
            lease.checkpoint_ms = Some(next);
            self.checkpoint_due.insert((next, id));
        }
    }

    /// Gives a lease its TTL, or what was put on record of it, counted from now.
    fn refresh(&mut self, id: i64, now_ms: u64, extend_ms: u64) {
        let Some(lease) = self.leases.get(&id) else { return };
        self.run_for(id, now_ms, extend_ms.saturating_add(lease.remaining_ms()));
    }

    /// Lets a lease end so long from now.
    fn run_for(&mut self, id: i64, now_ms: u64, ms: u64) {
        let expiry_ms = now_ms.saturating_add(ms);
        self.schedule(id, expiry_ms, expiry_ms);
        self.schedule_checkpoint(id, now_ms);
    }
}

impl Lessor {
    /// No leases yet; `min_ttl` in seconds.
    pub(crate) fn new(min_ttl: i64) -> Self {
        Self { min_ttl, inner: Mutex::default() }
    }

    /// Extends a lease to its full TTL. Only on the leader.
    pub fn renew(&self, id: i64, now_ms: u64) -> Renewal {
        let inner = &mut *self.inner.lock();
        inner.observe(now_ms);
        if !inner.primary {
            return Renewal::NotPrimary;
        }
        let Some(lease) = inner.leases.get_mut(&id) else { return Renewal::NotFound };
        if lease.expiry_ms <= now_ms {
            return Renewal::Expired;
        }
        let clear_checkpoint = lease.remaining_ttl > 0;
        let ttl = lease.ttl;
        if !mutant::on(mutant::LeaseRenewalLost) {
            inner.run_for(id, now_ms, ttl.unsigned_abs().saturating_mul(1_000));
        }
        Renewal::Renewed { ttl, clear_checkpoint }
    }

    /// What is left of a lease; `None` if there is none.
    pub fn time_to_live(&self, id: i64, keys: bool, now_ms: u64) -> Option<TimeToLive> {
        let inner = &mut *self.inner.lock();
        inner.observe(now_ms);
        let lease = inner.leases.get(&id)?;
        let left_ms = if inner.primary { lease.expiry_ms.saturating_sub(now_ms) } else { lease.remaining_ms() };
        let keys = if keys { lease.keys.iter().cloned().collect() } else { Vec::new() };
        Some(TimeToLive { ttl: (left_ms / 1_000) as i64, granted_ttl: lease.ttl, keys })
    }

    /// All lease IDs, soonest expiry first.
    pub fn leases(&self) -> Vec<i64> {
        let inner = self.inner.lock();
        // Where no time is counted, or not yet, they stand in the order in which they would end if it began now.
        let end = |lease: &Lease| match lease.expiry_ms {
            NEVER => inner.now_ms.saturating_add(lease.remaining_ms()),
            expiry_ms => expiry_ms,
        };
        let mut ids: Vec<_> = inner.leases.iter().map(|(id, lease)| (end(lease), *id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.inner.lock().leases.len()
    }

    /// Whether there are no leases.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the lease exists.
    pub fn exists(&self, id: i64) -> bool {
        self.inner.lock().leases.contains_key(&id)
    }

    /// The keys that are attached to a lease, in order; none if it does not exist.
    pub(crate) fn keys(&self, id: i64) -> Vec<Bytes> {
        self.inner.lock().leases.get(&id).map(|lease| lease.keys.iter().cloned().collect()).unwrap_or_default()
    }

    /// The lease a key is attached to; 0 = none.
    pub fn lease_of(&self, key: &[u8]) -> i64 {
        self.inner.lock().of_key.get(key).copied().unwrap_or(0)
    }

    /// Begins to count time: this member leads now. Every lease gets `extend_ms` (an election timeout) above its TTL or
    /// what was put on record of it. Where very many would end together, they are spread over the time after.
    pub fn promote(&self, now_ms: u64, extend_ms: u64) {
        let inner = &mut *self.inner.lock();
        inner.observe(now_ms);
        inner.primary = true;
        inner.fresh.clear();
        let mut ids: Vec<_> = inner.leases.iter().map(|(id, lease)| (lease.remaining_ms(), *id)).collect();
        ids.sort_unstable();
        let mut window_ms = 0; // the second that is being filled
        let mut in_window = 0;
        for (remaining_ms, id) in ids {
            if remaining_ms >= window_ms + 1_000 {
                (window_ms, in_window) = (remaining_ms, 0);
            } else if in_window >= MAX_EXPIRIES_PER_SECOND {
                (window_ms, in_window) = (window_ms + 1_000, 0);
            }
            in_window += 1;
            inner.refresh(id, now_ms, extend_ms.saturating_add(window_ms.saturating_sub(remaining_ms)));
            if mutant::on(mutant::LeaseEndsEarly) {
                inner.run_for(id, now_ms, remaining_ms / 2);
            }
        }
    }

    /// Stops counting time: another member leads.
    pub fn demote(&self) {
        let inner = &mut *self.inner.lock();
        inner.primary = false;
        inner.fresh.clear();
        inner.due.clear();
        inner.checkpoint_due.clear();
        for lease in inner.leases.values_mut() {
            (lease.expiry_ms, lease.due_ms, lease.checkpoint_ms) = (NEVER, NEVER, None);
        }
    }

    /// Whether this member counts time.
    pub fn is_primary(&self) -> bool {
        self.inner.lock().primary
    }

    /// Up to `max` leases that have ended and should be revoked through the log. One that is not revoked is handed
    /// out again after three seconds.
    pub fn expired(&self, now_ms: u64, max: usize) -> Vec<i64> {
        let inner = &mut *self.inner.lock();
        inner.observe(now_ms);
        let ids: Vec<_> = inner.due.iter().take_while(|(due_ms, _)| *due_ms <= now_ms).take(max).copied().collect();
        for (_, id) in &ids {
            let expiry_ms = inner.leases.get(id).map_or(NEVER, |lease| lease.expiry_ms);
            inner.schedule(*id, expiry_ms, now_ms.saturating_add(RETRY_MS));
        }
        ids.into_iter().map(|(_, id)| id).collect()
    }

    /// What the leader should put on record now of remaining TTLs (at most 1000).
    pub fn checkpoints(&self, now_ms: u64) -> Vec<pb::LeaseCheckpoint> {
        let inner = &mut *self.inner.lock();
        inner.observe(now_ms);
        let due = inner.checkpoint_due.iter().take_while(|(due_ms, _)| *due_ms <= now_ms).take(MAX_CHECKPOINTS);
        let ids: Vec<_> = due.map(|(_, id)| *id).collect();
        let mut checkpoints = Vec::with_capacity(ids.len());
        for id in ids {
            inner.schedule_checkpoint(id, now_ms);
            let Some(lease) = inner.leases.get(&id) else { continue };
            // Rounded up: a record must never shorten a lease.
            let remaining_ttl = lease.expiry_ms.saturating_sub(now_ms).div_ceil(1_000) as i64;
            if remaining_ttl > 0 && remaining_ttl < lease.ttl {
                checkpoints.push(pb::LeaseCheckpoint { id, remaining_ttl });
            }
        }
        checkpoints
    }
}

/// The applying side.
impl Lessor {
    /// Adds a lease. Returns its row: the TTL in it has been raised to the least that is granted.
    pub(crate) fn grant(&self, id: i64, ttl: i64) -> Result<leasepb::Lease, Error> {
        if id == 0 {
            return Err(Error::LeaseNotFound);
        }
        if ttl > MAX_TTL {
            return Err(Error::LeaseTTLTooLarge);
        }
        let inner = &mut *self.inner.lock();
        if inner.leases.contains_key(&id) {
            return Err(Error::LeaseExist);
        }
        let ttl = ttl.max(self.min_ttl);
        inner.leases.insert(id, Lease::new(ttl, 0));
        if inner.primary {
            inner.fresh.push(id);
        }
        Ok(leasepb::Lease { id, ttl, remaining_ttl: 0 })
    }

    /// Tells what time it is: the leases granted since the last time begin to count. Every other call that is given the
    /// time does the same.
    pub fn observe_time(&self, now_ms: u64) {
        let inner = &mut *self.inner.lock();
        inner.observe(now_ms);
    }

    /// Takes back a stored lease.
    pub(crate) fn restore(&self, row: &leasepb::Lease) {
        let ttl = row.ttl.max(self.min_ttl);
        self.inner.lock().leases.insert(row.id, Lease::new(ttl, row.remaining_ttl));
    }

    /// One without leases that grants as this one does.
    pub(crate) fn another(&self) -> Self {
        Self::new(self.min_ttl)
    }

    /// Takes over all leases and keys of another. Where this member counts time, their time begins with the next time
    /// seen.
    pub(crate) fn adopt(&self, other: Self) {
        let other = other.inner.into_inner();
        let inner = &mut *self.inner.lock();
        (inner.leases, inner.of_key) = (other.leases, other.of_key);
        inner.due.clear();
        inner.checkpoint_due.clear();
        inner.fresh = if inner.primary { inner.leases.keys().copied().collect() } else { Vec::new() };
    }

    /// Removes a lease and gives back its keys in order, which must be deleted with it.
    pub(crate) fn revoke(&self, id: i64) -> Result<Vec<Bytes>, Error> {
        let inner = &mut *self.inner.lock();
        let Some(lease) = inner.leases.remove(&id) else { return Err(Error::LeaseNotFound) };
        inner.due.remove(&(lease.due_ms, id));
        if let Some(checkpoint_ms) = lease.checkpoint_ms {
            inner.checkpoint_due.remove(&(checkpoint_ms, id));
        }
        for key in &lease.keys {
            inner.of_key.remove(key);
        }
        Ok(lease.keys.into_iter().collect())
    }

    /// Notes the remaining TTL that the log has on record. Returns the row to store.
    pub(crate) fn checkpoint(&self, id: i64, remaining_ttl: i64) -> Result<leasepb::Lease, Error> {
        let inner = &mut *self.inner.lock();
        let Some(lease) = inner.leases.get_mut(&id) else { return Err(Error::LeaseNotFound) };
        lease.remaining_ttl = remaining_ttl;
        Ok(leasepb::Lease { id, ttl: lease.ttl, remaining_ttl })
    }

    /// Moves a key to another lease; 0, or one that does not exist, = to none.
    pub(crate) fn attach(&self, key: &[u8], id: i64) {
        let inner = &mut *self.inner.lock();
        // The key is copied when it is new: a slice of the request would keep the whole log entry in memory.
        let (key, old) = match inner.of_key.get_key_value(key) {
            Some((key, old)) => (key.clone(), *old),
            None if id == 0 => return,
            None => (Bytes::copy_from_slice(key), 0),
        };
        if old == id {
            return;
        }
        if let Some(lease) = inner.leases.get_mut(&old)
            && !mutant::on(mutant::LeaseNotDetached)
        {
            lease.keys.remove(&key);
        }
        if id == 0 {
            inner.of_key.remove(&key);
            return;
        }
        // A put names an existing lease; but one with `ignore_lease` takes the lease of the stored pair, and a data dir
        // from elsewhere may hold pairs whose lease is gone.
        let Some(lease) = inner.leases.get_mut(&id) else {
            inner.of_key.remove(&key);
            return;
        };
        lease.keys.insert(key.clone());
        inner.of_key.insert(key, id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000;

    fn lessor() -> Lessor {
        let lessor = Lessor::new(2);
        lessor.promote(0, 0);
        lessor
    }

    #[test]
    fn a_ttl_is_raised_to_the_least_and_refused_above_the_most() {
        let lessor = lessor();
        assert_eq!(lessor.grant(1, -5).map(|row| row.ttl), Ok(2));
        assert_eq!(lessor.grant(2, 60).map(|row| row.ttl), Ok(60));
        assert_eq!(lessor.grant(3, MAX_TTL + 1), Err(Error::LeaseTTLTooLarge));
        assert_eq!(lessor.grant(1, 60), Err(Error::LeaseExist));
        assert_eq!(lessor.grant(0, 60), Err(Error::LeaseNotFound));
    }

    #[test]
    fn a_lease_ends_when_it_is_not_kept_alive() {
        let lessor = lessor();
        lessor.grant(1, 10).unwrap();
        lessor.observe_time(0);
        assert_eq!(lessor.renew(1, 9 * SECOND), Renewal::Renewed { ttl: 10, clear_checkpoint: false });
        assert!(lessor.expired(19 * SECOND - 1, 10).is_empty());
        assert_eq!(lessor.expired(19 * SECOND, 10), [1]);
        assert_eq!(lessor.renew(1, 19 * SECOND), Renewal::Expired);
        assert_eq!(lessor.time_to_live(1, false, 20 * SECOND).map(|answer| answer.ttl), Some(0));
        lessor.revoke(1).unwrap();
        assert_eq!(lessor.renew(1, 20 * SECOND), Renewal::NotFound);
        assert_eq!(lessor.revoke(1), Err(Error::LeaseNotFound));
    }

    /// Applying a grant sees no clock; had it used the last time seen, the lease would end too early.
    #[test]
    fn a_lease_granted_long_after_the_last_time_seen_still_lasts_its_ttl() {
        let lessor = lessor();
        lessor.grant(1, 10).unwrap(); // at 100 s, but nobody says so
        assert_eq!(lessor.time_to_live(1, false, 100 * SECOND).map(|answer| answer.ttl), Some(10));
        assert!(lessor.expired(110 * SECOND - 1, 10).is_empty());
        assert_eq!(lessor.expired(110 * SECOND, 10), [1]);
    }

    #[test]
    fn an_expired_lease_that_is_not_revoked_is_handed_out_again() {
        let lessor = lessor();
        lessor.grant(1, 10).unwrap();
        lessor.observe_time(0);
        assert_eq!(lessor.expired(10 * SECOND, 10), [1]);
        assert!(lessor.expired(11 * SECOND, 10).is_empty());
        assert_eq!(lessor.expired(13 * SECOND, 10), [1]);
    }

    #[test]
    fn a_new_leader_gives_every_lease_its_time_again() {
        let lessor = Lessor::new(2);
        lessor.grant(1, 10).unwrap();
        assert_eq!(lessor.renew(1, 0), Renewal::NotPrimary);
        assert!(lessor.expired(u64::MAX, 10).is_empty());
        lessor.promote(100 * SECOND, SECOND);
        assert!(lessor.expired(111 * SECOND - 1, 10).is_empty());
        assert_eq!(lessor.expired(111 * SECOND, 10), [1]);
        lessor.demote();
        assert!(lessor.expired(u64::MAX, 10).is_empty());
    }

    #[test]
    fn a_thousand_leases_do_not_end_in_one_second() {
        let lessor = Lessor::new(2);
        for id in 1..=2_000 {
            lessor.grant(id, 10).unwrap();
        }
        lessor.promote(0, 0);
        let ends = |now_ms| lessor.expired(now_ms, usize::MAX).len();
        assert_eq!([ends(10 * SECOND), ends(11 * SECOND), ends(12 * SECOND)], [750, 750, 500]);
    }

    #[test]
    fn what_is_on_record_outlives_a_change_of_leader_until_the_next_keep_alive() {
        let lessor = lessor();
        lessor.grant(1, 1_000).unwrap();
        lessor.observe_time(0);
        assert_eq!(lessor.checkpoints(299 * SECOND), []);
        let records = lessor.checkpoints(300 * SECOND);
        assert_eq!(records, [pb::LeaseCheckpoint { id: 1, remaining_ttl: 700 }]);
        assert_eq!(lessor.checkpoint(1, 700).map(|row| row.remaining_ttl), Ok(700));
        assert_eq!(lessor.checkpoints(300 * SECOND), []);
        lessor.demote();
        lessor.promote(310 * SECOND, 0);
        assert_eq!(lessor.time_to_live(1, false, 310 * SECOND).map(|answer| answer.ttl), Some(700));
        for _until_it_is_cleared in 0..2 {
            assert_eq!(lessor.renew(1, 320 * SECOND), Renewal::Renewed { ttl: 1_000, clear_checkpoint: true });
        }
        assert_eq!(lessor.checkpoint(1, 0).map(|row| row.remaining_ttl), Ok(0));
        assert_eq!(lessor.renew(1, 320 * SECOND), Renewal::Renewed { ttl: 1_000, clear_checkpoint: false });
        assert_eq!(lessor.time_to_live(1, false, 320 * SECOND).map(|answer| answer.ttl), Some(1_000));
    }

    #[test]
    fn a_key_hangs_on_one_lease() {
        let lessor = lessor();
        lessor.grant(1, 10).unwrap();
        lessor.grant(2, 20).unwrap();
        lessor.attach(b"b", 1);
        lessor.attach(b"a", 1);
        lessor.attach(b"c", 1);
        lessor.attach(b"c", 2);
        lessor.attach(b"b", 0);
        assert_eq!(lessor.lease_of(b"c"), 2);
        assert_eq!(lessor.lease_of(b"b"), 0);
        assert_eq!(lessor.leases(), [1, 2]);
        assert_eq!(lessor.time_to_live(1, true, 0).unwrap().keys, ["a"]);
        assert_eq!(lessor.revoke(2).unwrap(), ["c"]);
        assert_eq!(lessor.lease_of(b"c"), 0);
    }
}
