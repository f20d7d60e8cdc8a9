//! What users have in the tree, as one number, so that members can find out that theirs differ.
//!
//! The digest of the tree is the sum of its nodes' digests, so a change costs what it changes. It covers the users' keys,
//! users and roles; what etcd notes of the cluster is left out, because a tree that came in a snapshot of a newer etcd
//! knows less of that and is right all the same.

use std::collections::VecDeque;

use super::event::{Content, Stored};
use super::{AUTH, KEYS, json};

/// Changes of which it is known what the tree was like after them.
const KEPT: usize = 4_096;

/// The digest of a node at `path`, without what is below it.
pub(super) fn of(path: &str, node: &Stored) -> u64 {
    let is_below = |top: &str| path.strip_prefix(top).is_some_and(|rest| rest.starts_with('/'));
    if !is_below(KEYS) && !is_below(AUTH) {
        return 0;
    }
    let content = match &node.content {
        Content::Dir(_) => 0,
        Content::File(value) => 1 << 32 | u64::from(checksum(value)),
    };
    let path = u64::from(crc32c::crc32c(path.as_bytes()));
    let parts = [path, content, node.created, node.modified, node.expires.cast_unsigned()];
    parts.into_iter().fold(0, |digest, part| scattered(digest.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ part))
}

/// The checksum of a value as a snapshot hands it on: bytes that are not UTF-8 do not survive one, here as in etcd.
fn checksum(value: &[u8]) -> u32 {
    if std::str::from_utf8(value).is_ok() {
        return crc32c::crc32c(value);
    }
    let mut text = Vec::with_capacity(value.len() + 2);
    json::string(&mut text, value);
    crc32c::crc32c(serde_json::from_slice::<String>(&text).unwrap_or_default().as_bytes())
}

/// Sebastiano Vigna's splitmix64: each bit of the input moves about half of the output's.
fn scattered(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Digests of the recent past, by log entry.
#[derive(Debug, Default)]
pub(super) struct Past(VecDeque<(u64, u64)>);

impl Past {
    /// From this entry on, the tree is like that.
    pub(super) fn note(&mut self, log_index: u64, digest: u64) {
        if self.0.back().is_some_and(|(_, last)| *last == digest) {
            return;
        }
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back((log_index, digest));
    }

    /// Another tree takes the place of what was.
    pub(super) fn begin(&mut self, log_index: u64, digest: u64) {
        self.0.clear();
        self.note(log_index, digest);
    }

    /// What the tree was like after this entry; none if that is too long ago.
    pub(super) fn at(&self, log_index: u64) -> Option<u64> {
        let after = self.0.partition_point(|(at, _)| *at <= log_index);
        self.0.get(after.checked_sub(1)?).map(|(_, digest)| *digest)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::v2::{Touched, V2, request};

    fn file(value: &'static [u8]) -> Stored {
        Stored { created: 1, modified: 2, expires: 3, content: Content::File(Bytes::from_static(value)) }
    }

    #[test]
    fn whatever_a_client_could_see_counts() {
        let node = file(b"v");
        let dir = Stored { content: Content::Dir(Default::default()), ..node.clone() };
        let all = [
            of("/1/a", &node),
            of("/1/b", &node),
            of("/1/a", &file(b"w")),
            of("/1/a", &file(b"")),
            of("/1/a", &dir),
            of("/1/a", &Stored { created: 0, ..node.clone() }),
            of("/1/a", &Stored { modified: 0, ..node.clone() }),
            of("/1/a", &Stored { expires: 0, ..node.clone() }),
        ];
        for (n, digest) in all.iter().enumerate() {
            assert!(!all[..n].contains(digest), "number {n}");
        }
        assert_eq!(of("/0/members/1", &node), 0);
    }

    #[test]
    fn bytes_that_a_snapshot_changes_make_no_difference() {
        assert_eq!(of("/1/a", &file(b"\xff\xc3x")), of("/1/a", &file("\u{fffd}\u{fffd}x".as_bytes())));
    }

    #[test]
    fn the_past_is_known_for_a_while() {
        let mut past = Past::default();
        past.begin(10, 1);
        past.note(12, 2);
        past.note(13, 2);
        past.note(20, 3);
        let known: Vec<Option<u64>> = [9, 10, 11, 12, 19, 20, 1_000].map(|at| past.at(at)).into();
        assert_eq!(known, [None, Some(1), Some(1), Some(2), Some(2), Some(3), Some(3)]);
        for at in 0..KEPT as u64 {
            past.note(100 + at, 100 + at);
        }
        assert_eq!((past.at(99), past.at(100)), (None, Some(100)));
    }

    /// Changes of all kinds, with expiry and the removal of a directory, leave the digest that the tree has when it is
    /// read again.
    #[test]
    fn a_digest_that_was_kept_up_is_that_of_the_tree_read_anew() {
        let v2 = V2::default();
        let mut touched = Touched::default();
        let mut apply = |method: &str, path: &str, change: &dyn Fn(&mut proto::v2pb::Request)| {
            let mut entry = request(method, format!("/1{path}"), "value");
            entry.time = Some(1_000);
            change(&mut entry);
            assert!(v2.apply(&entry, &mut touched).is_ok(), "{method} {path}");
            let again = V2::from_json(&v2.image().to_json()).expect("what was written can be read");
            assert_eq!(v2.tree.read().digest(), again.tree.read().digest(), "after {method} {path}");
            v2.tree.read().digest()
        };
        let expires = |at: i64| move |entry: &mut proto::v2pb::Request| entry.expiration = Some(at);
        let later = 2_000_000_000_000_000_000;
        let first = apply("PUT", "/a/b/c", &|_| {});
        assert_ne!(first, apply("PUT", "/a/b/c", &|entry| entry.val = Some("other".into())));
        apply("PUT", "/a/b/c", &|entry| entry.prev_value = Some("other".into()));
        apply("PUT", "/a/b", &|entry| {
            (entry.val, entry.dir, entry.prev_exist, entry.expiration) = (None, Some(true), Some(true), Some(later));
        });
        apply("PUT", "/t", &expires(later - 1));
        apply("POST", "/queue", &|_| {});
        apply("PUT", "/t", &|entry| {
            (entry.val, entry.refresh, entry.prev_exist, entry.expiration) =
                (None, Some(true), Some(true), Some(later));
        });
        apply("SYNC", "", &|entry| entry.time = Some(later + 1));
        apply("DELETE", "/a", &|entry| entry.recursive = Some(true));
        let last = apply("DELETE", "/queue", &|entry| entry.recursive = Some(true));
        assert_eq!(last, V2::default().tree.read().digest(), "nothing of users' is left");
    }
}
