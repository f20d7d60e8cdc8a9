//! Simple tokens: who has shown its password lately.
//!
//! A token is given by an entry of the log, so every member knows it and it outlives changes of leader. How long it lasts is
//! each member's own affair: it is good as long as it is used. Applying the log knows no clock, so a token's time begins when
//! it is first looked at.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

/// Nobody has looked at it yet.
const FRESH: u64 = u64::MAX;
/// No longer good.
const REVOKED: u64 = 0;
/// A token's time is only put off by more than this, so that who uses it all the time does not write all the time.
const STEP_MS: u64 = 1_000;
/// More tokens than this are not kept: those that would end first go.
const MOST: usize = 1 << 20;

/// A token that was given.
#[derive(Debug)]
pub struct Token {
    user: Arc<str>,
    /// When it ends, or one of the values above.
    ends_ms: AtomicU64,
}

impl Token {
    /// Whose it is.
    pub fn user(&self) -> &Arc<str> {
        &self.user
    }

    /// Whether it is good at this time; then it stays so for `ttl_ms` from now on. Takes no lock.
    pub fn is_good(&self, now_ms: u64, ttl_ms: u64) -> bool {
        let ends_ms = self.ends_ms.load(Ordering::Acquire);
        if ends_ms != FRESH && ends_ms <= now_ms {
            return false;
        }
        let later_ms = now_ms.saturating_add(ttl_ms).min(FRESH - 1);
        if ends_ms != FRESH && later_ms <= ends_ms.saturating_add(STEP_MS) {
            return true;
        }
        match self.ends_ms.compare_exchange(ends_ms, later_ms, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            // Somebody else used it, or revoked it, at this very moment.
            Err(ends_ms) => ends_ms > now_ms,
        }
    }
}

/// The tokens that are good.
#[derive(Debug, Default)]
pub struct Tokens(RwLock<HashMap<Box<str>, Arc<Token>>>);

impl Tokens {
    /// Finds one that was given and has not been taken back. Whether it is still good, it says itself.
    pub fn find(&self, token: &str) -> Option<Arc<Token>> {
        self.0.read().get(token).cloned()
    }

    pub(crate) fn give(&self, token: &str, user: &str) {
        let given = Token { user: user.into(), ends_ms: AtomicU64::new(FRESH) };
        self.0.write().insert(token.into(), Arc::new(given));
    }

    /// Takes back those for which `which` holds, also from whoever has looked them up before.
    fn take_back(&self, which: impl Fn(&Token) -> bool) {
        self.0.write().retain(|_, token| {
            let goes = which(token);
            if goes {
                token.ends_ms.store(REVOKED, Ordering::Release);
            }
            !goes
        });
    }

    pub(crate) fn take_back_from(&self, user: &str) {
        self.take_back(|token| *token.user == *user);
    }

    pub(crate) fn take_back_all(&self) {
        self.take_back(|_| true);
    }

    /// Forgets those whose time is over. To be called about once a second.
    pub fn sweep(&self, now_ms: u64, ttl_ms: u64) {
        self.sweep_to(now_ms, ttl_ms, MOST);
    }

    fn sweep_to(&self, now_ms: u64, ttl_ms: u64, most: usize) {
        let mut ends = Vec::new();
        for token in self.0.read().values() {
            // One that nobody has used has its time, too.
            let later_ms = now_ms.saturating_add(ttl_ms).min(FRESH - 1);
            // A failure means that it is not fresh.
            let _ = token.ends_ms.compare_exchange(FRESH, later_ms, Ordering::AcqRel, Ordering::Acquire);
            ends.push(token.ends_ms.load(Ordering::Acquire));
        }
        let mut until_ms = now_ms;
        if let Some(excess) = ends.len().checked_sub(most).filter(|excess| *excess > 0) {
            until_ms = until_ms.max(*ends.select_nth_unstable(excess - 1).1);
        }
        if ends.iter().any(|ends_ms| *ends_ms <= until_ms) {
            self.take_back(|token| token.ends_ms.load(Ordering::Acquire) <= until_ms);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.read().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: u64 = 300_000;

    fn given(tokens: &Tokens, token: &str) -> Arc<Token> {
        tokens.give(token, "alice");
        tokens.find(token).expect("just given")
    }

    #[test]
    fn a_token_lasts_as_long_as_it_is_used() {
        let tokens = Tokens::default();
        let token = given(&tokens, "a.1");
        for now in [5_000, 304_000, 603_000] {
            assert!(token.is_good(now, TTL), "{now}");
        }
        assert!(!token.is_good(903_001, TTL));
        assert!(!token.is_good(903_001, TTL), "nor does asking revive it");
    }

    #[test]
    fn an_unused_token_ends_too() {
        let tokens = Tokens::default();
        let token = given(&tokens, "a.1");
        tokens.sweep(1_000, TTL);
        tokens.sweep(300_999, TTL);
        assert_eq!(tokens.len(), 1);
        tokens.sweep(301_000, TTL);
        assert!(tokens.is_empty());
        assert!(!token.is_good(301_000, TTL));
    }

    #[test]
    fn what_is_taken_back_is_no_longer_good_for_who_holds_it() {
        let tokens = Tokens::default();
        let alice = given(&tokens, "a.1");
        tokens.give("b.2", "bob");
        let bob = tokens.find("b.2").expect("just given");
        assert!(alice.is_good(1, TTL) && bob.is_good(1, TTL));
        tokens.take_back_from("alice");
        assert!(!alice.is_good(2, TTL));
        assert!(tokens.find("a.1").is_none());
        assert!(bob.is_good(2, TTL));
        tokens.take_back_all();
        assert!(!bob.is_good(3, TTL));
    }

    #[test]
    fn there_are_never_many_more_than_the_bound() {
        let tokens = Tokens::default();
        for number in 0..110 {
            tokens.give(&format!("t.{number}"), "alice");
        }
        let used = tokens.find("t.3").expect("given");
        tokens.sweep_to(1_000, TTL, 100);
        assert!(tokens.len() <= 100);
        assert!(!used.is_good(1_000, TTL) || tokens.find("t.3").is_some());
    }
}
