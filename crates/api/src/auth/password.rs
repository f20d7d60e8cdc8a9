//! Passwords: hashed and verified away from the threads that serve connections.
//!
//! A bcrypt hash is slow to compute on purpose: tens of milliseconds of a processor. A password that was right once need not
//! pay that again: what is remembered is a keyed digest of hash and password together. The key is made at the start and never
//! leaves the process, so this gives nobody a faster way to try passwords against stored hashes; and a changed password has
//! another hash, so nothing has to be forgotten.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use parking_lot::Mutex;
use ring::hmac;
use state::Error;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// Right passwords that are remembered.
const REMEMBERED: usize = 4096;
/// Calls that may wait for their password to be hashed.
const WAITING: usize = 1024;
/// bcrypt looks at no more bytes than these. Longer ones are refused when set, in Go's words.
const MAX_BYTES: usize = 72;

type Digest = [u8; 32];

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Passwords {
    cost: u32,
    key: hmac::Key,
    known: Mutex<KnownToBeRight>,
    /// One processor is left to those who know their token already.
    places: Semaphore,
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct KnownToBeRight {
    digests: HashSet<Digest>,
    /// Oldest first.
    order: VecDeque<Digest>,
}

impl KnownToBeRight {
    fn remember(&mut self, digest: Digest) {
        if !self.digests.insert(digest) {
            return;
        }
        self.order.push_back(digest);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.digests.remove(&oldest);
        }
    }
}

impl Passwords {
    pub(crate) fn new(cost: u32) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let secret: [u8; 32] = rand::random();
        Self {
            cost,
            key: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            known: Mutex::default(),
            places: Semaphore::new((processors - 1).max(1)),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Whether it is the password of this hash.
    pub(crate) async fn verify(&self, hash: &Bytes, password: String) -> Result<bool, Error> {
        let digest = self.digest(hash, &password);
        if self.known.lock().digests.contains(&digest) {
            return Ok(true);
        }
        // What is no hash is nobody's password.
        let Ok(hash) = String::from_utf8(hash.to_vec()) else { return Ok(false) };
        let is_right = self.aside(move || bcrypt::verify(password, &hash).unwrap_or(false)).await?;
        if is_right {
            self.known.lock().remember(digest);
        }
        Ok(is_right)
    }

    /// The hash of a new password, as a log entry carries it.
    pub(crate) async fn hash(&self, password: String) -> Result<String, Error> {
        if password.len() > MAX_BYTES {
            return Err(Error::Internal("bcrypt: password length exceeds 72 bytes".into()));
        }
        let cost = self.cost;
        let hashed = self.aside(move || bcrypt::hash_with_result(password, cost)).await?;
        let hash = hashed.map_err(|error| Error::Internal(format!("bcrypt: {error}")))?;
        Ok(BASE64_STANDARD.encode(hash.format_for_version(bcrypt::Version::TwoA)))
    }

    fn digest(&self, hash: &[u8], password: &str) -> Digest {
        let mut context = hmac::Context::with_key(&self.key);
        // The length, so that hash and password cannot be cut in another place.
        context.update(&(hash.len() as u64).to_be_bytes());
        context.update(hash);
        context.update(password.as_bytes());
        let mut digest = Digest::default();
        digest.copy_from_slice(context.sign().as_ref());
        digest
    }

    async fn aside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let _counted = Counted::new(&self.waiting)?;
        let _place = self.places.acquire().await.map_err(|_| Error::Stopped)?;
        spawn_blocking(work).await.map_err(|_| Error::Stopped)
    }
}

struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Result<Self, Error> {
        let counted = Self(count);
        if count.fetch_add(1, Ordering::AcqRel) >= WAITING { Err(Error::RequestTooManyRequests) } else { Ok(counted) }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(what: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(what)
    }

    async fn hash_of(passwords: &Passwords, password: &str) -> Bytes {
        let encoded = passwords.hash(password.into()).await.expect("hashed");
        BASE64_STANDARD.decode(encoded).expect("base64").into()
    }

    #[test]
    fn the_right_password_is_right_the_first_time_and_every_time() {
        let passwords = Passwords::new(4);
        run(async {
            let hash = hash_of(&passwords, "secret").await;
            assert!(hash.starts_with(b"$2a$04$"), "as Go writes it");
            for _ in 0..3 {
                assert_eq!(passwords.verify(&hash, "secret".into()).await, Ok(true));
                assert_eq!(passwords.verify(&hash, "Secret".into()).await, Ok(false));
            }
            assert_eq!(passwords.known.lock().digests.len(), 1, "only what was right is remembered");
        });
    }

    /// What was remembered belongs to one hash, so that a changed password is a changed password at once.
    #[test]
    fn a_remembered_password_opens_no_other_hash() {
        let passwords = Passwords::new(4);
        run(async {
            let (old, new) = (hash_of(&passwords, "old").await, hash_of(&passwords, "new").await);
            assert_eq!(passwords.verify(&old, "old".into()).await, Ok(true));
            assert_eq!(passwords.verify(&new, "old".into()).await, Ok(false));
            assert_eq!(passwords.verify(&Bytes::new(), String::new()).await, Ok(false), "no password is no password");
        });
    }

    #[test]
    fn so_many_are_remembered_and_no_more() {
        let mut known = KnownToBeRight::default();
        for number in 0..2 * REMEMBERED as u64 {
            let mut digest = Digest::default();
            digest[..8].copy_from_slice(&number.to_be_bytes());
            known.remember(digest);
        }
        assert_eq!((known.digests.len(), known.order.len()), (REMEMBERED, REMEMBERED));
    }

    #[test]
    fn a_password_that_bcrypt_would_cut_is_refused() {
        let refused = run(Passwords::new(4).hash("x".repeat(73))).expect_err("too long");
        assert_eq!(refused.to_string(), "bcrypt: password length exceeds 72 bytes");
    }
}
