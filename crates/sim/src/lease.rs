//! Whether leases live as long as clients were told.
//!
//! A client that is told that its lease lives for so many seconds may count on it from the moment at which it asked: whoever
//! answered cannot have begun to count before. So no lease may end sooner by itself, measured in true time and with what
//! bad clocks may gain.

use std::collections::BTreeMap;

use crate::ledger::{Violation, violation};

/// What a machine's clock may gain, of 1,000; a little more than the worst that the world contains.
const GAIN: u64 = 6;

/// What clients were told of their leases, and when leases ended.
#[derive(Debug, Default)]
pub struct Leases {
    /// Until when a lease must live, in microseconds of true time.
    promised_us: BTreeMap<i64, u64>,
    /// When a lease was first seen to have ended by itself.
    expired_us: BTreeMap<i64, u64>,
}

impl Leases {
    /// A client that asked at `asked_us` was told that its lease lives for `ttl` seconds.
    pub fn promised(&mut self, id: i64, asked_us: u64, ttl: i64) -> Result<(), Violation> {
        let until_us = asked_us + ttl.unsigned_abs() * (1_000_000 - GAIN * 1_000);
        match self.expired_us.get(&id) {
            Some(ended) if *ended < until_us => {
                violation!("lease {id} ended at {ended} us, but a client that asked at {asked_us} us was told {ttl} s")
            }
            _ => {
                let promised = self.promised_us.entry(id).or_default();
                *promised = until_us.max(*promised);
                Ok(())
            }
        }
    }

    /// A lease has ended by itself.
    pub fn expired(&mut self, id: i64, now_us: u64) -> Result<(), Violation> {
        match self.promised_us.remove(&id) {
            Some(until_us) if now_us < until_us => {
                violation!("lease {id} ended at {now_us} us, but a client was told that it lives until {until_us} us")
            }
            _ => {
                self.expired_us.insert(id, now_us);
                if self.expired_us.len() > 1_000 {
                    // IDs are given out in order, so this is the oldest.
                    self.expired_us.pop_first();
                }
                Ok(())
            }
        }
    }

    /// A client had a lease revoked.
    pub fn revoked(&mut self, id: i64) {
        self.promised_us.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_does_not_end_before_its_time() {
        let mut leases = Leases::default();
        leases.promised(1, 0, 10).unwrap();
        assert!(leases.expired(1, 9_000_000).is_err());
        leases.promised(2, 0, 10).unwrap();
        leases.expired(2, 10_000_000).unwrap();
        assert!(leases.promised(2, 5_000_000, 10).is_err(), "a promise for a lease that has ended meanwhile");
        leases.promised(3, 0, 10).unwrap();
        leases.revoked(3);
        leases.expired(3, 1).unwrap();
    }
}
