//! Where two correct servers may differ, and why: everything that is not listed here has to be equal.
//!
//! [`make_comparable`] wipes what belongs to the member rather than to the answer. [`TABLE`] lists the differences
//! between etcd's versions; each of them applies only to a pair of servers on two sides of the version that brought it.

use proto::etcdserverpb::{RangeRequest, RangeResponse};
use tonic::Code;

use super::operation::{Answer, Operation, for_each_range};

/// A server's version: major, minor, patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// Reads `3.5.1`; text after a `-` or `+` is ignored.
    pub fn parse(text: &str) -> Option<Version> {
        let mut parts = text.split(['-', '+']).next()?.split('.').map(|part| part.parse().ok());
        Some(Version(parts.next()??, parts.next()??, parts.next()??))
    }
}

/// The two servers of a comparison.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The one that is taken to be right.
    pub reference: Version,
    /// The one under test.
    pub subject: Version,
}

impl Pair {
    /// Whether one server is older than `version` and the other is not.
    pub fn straddles(self, version: Version) -> bool {
        (self.reference < version) != (self.subject < version)
    }
}

/// A known difference between versions.
pub struct Exception {
    /// Its name in reports.
    pub name: &'static str,
    /// What differs, and since when.
    pub reason: &'static str,
    /// The first version that behaves the new way.
    pub since: Version,
    /// Rewrites the two answers, the older server's first, so that they are equal if they differ in this way only.
    pub forgive: fn(&Operation, &mut Answer, &mut Answer),
}

/// All known differences that single answers show.
///
/// Some more are avoided instead, because the two stores or streams would go on differently:
/// - a watch from exactly the compacted revision where that revision deleted a key: since 3.4.34, 3.5.16 and 3.6 the
///   tombstone is kept and delivered, before it was gone;
/// - a negative start revision: since 3.6 refused at once, before created and then cancelled;
/// - an unknown sort target: it crashes servers before 3.6;
/// - an unknown sort order inside a transaction that writes: since 3.6 refused, before it was applied;
/// - the header of events from the past: etcd names the store's revision even in the middle of a catch-up, keelson the
///   revision up to which the watch is complete, so that a client may always resume after the header's revision;
/// - a progress request while a watch of the stream lags: newer servers do not answer it, older ones do.
pub const TABLE: &[Exception] = &[
    Exception {
        name: "keys_only drops the lease",
        reason: "3.7 answers keys_only from its index, unless sorted by value, and the index has no leases",
        since: Version(3, 7, 0),
        forgive: |operation, older, _| {
            let mut drop_leases = |request: &RangeRequest, response: &mut RangeResponse| {
                const BY_VALUE: i32 = 4;
                if request.keys_only && request.sort_target != BY_VALUE {
                    response.kvs.iter_mut().for_each(|pair| pair.lease = 0);
                }
            };
            for_each_range(operation, older, &mut drop_leases);
            // The newer server's answer stays as it is: it has to have dropped them.
        },
    },
    Exception {
        name: "HashKV names its revision",
        reason: "hash_revision is a field of 3.6",
        since: Version(3, 6, 0),
        forgive: |operation, _, newer| {
            if let (Operation::HashKv(request), Answer::HashKv(response)) = (operation, newer) {
                let current = response.header.as_ref().map_or(0, |header| header.revision);
                let asked = if request.revision == 0 { current } else { request.revision };
                if response.hash_revision == asked {
                    response.hash_revision = 0;
                }
            }
        },
    },
    Exception {
        name: "HashKV at the compacted revision",
        reason: "3.6 keeps the last compactions' hashes and answers with them; before, that revision is compacted",
        since: Version(3, 6, 0),
        forgive: |operation, older, newer| {
            let compacted = Answer::Failed { code: Code::OutOfRange, text: COMPACTED.into() };
            if let (Operation::HashKv(request), Answer::HashKv(response)) = (operation, &*newer)
                && *older == compacted
                && response.hash_revision <= request.revision
            {
                *newer = compacted;
            }
        },
    },
    Exception {
        name: "unknown sort options are refused",
        reason: "3.6 checks sort_order and sort_target against the enum; before, an unknown one sorted somehow",
        since: Version(3, 6, 0),
        forgive: |operation, older, newer| {
            let refused =
                Answer::Failed { code: Code::InvalidArgument, text: "etcdserver: invalid sort option".into() };
            if let Operation::Range { request, .. } = operation
                && (!(0..3).contains(&request.sort_order) || !(0..5).contains(&request.sort_target))
                && *newer == refused
            {
                *older = refused;
            }
        },
    },
];

/// What reading below the compacted revision answers.
pub const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

/// Rewrites two comparable answers of this pair of servers so that they are equal if they differ in known ways only.
/// Returns the names of the exceptions that were needed.
pub fn forgive(pair: Pair, operation: &Operation, reference: &mut Answer, subject: &mut Answer) -> Vec<&'static str> {
    let mut needed = Vec::new();
    for exception in TABLE {
        if reference == subject {
            break;
        }
        if !pair.straddles(exception.since) {
            continue;
        }
        let before = (reference.clone(), subject.clone());
        if pair.reference < pair.subject {
            (exception.forgive)(operation, reference, subject);
        } else {
            (exception.forgive)(operation, subject, reference);
        }
        if (&before.0, &before.1) != (&*reference, &*subject) {
            needed.push(exception.name);
        }
    }
    needed
}

/// Rewrites an answer so that only what two members of the same version must agree on is left.
pub fn make_comparable(operation: &Operation, answer: &mut Answer) {
    for header in answer.headers_mut() {
        // The IDs come from the peer address, the term from this member's own elections.
        (header.cluster_id, header.member_id, header.raft_term) = (0, 0, 0);
    }
    for_each_range(operation, answer, &mut forget_order_of_ties);
    match answer {
        // An ID of the server's choice holds its member ID and its clock.
        Answer::GrantAndRevoke(granted, _) => granted.id = 0,
        Answer::TimeToLive(response) => {
            // The remaining seconds depend on when the lease was granted and asked for; that there are some does not.
            response.ttl = response.ttl.signum();
            response.keys.sort();
        }
        // Listed by expiry, which is a matter of milliseconds.
        Answer::Leases(response) => response.leases.sort_by_key(|lease| lease.id),
        _ => {}
    }
}

/// etcd's sort is not stable: pairs that compare equal come in any order, and a limit cuts anywhere among them.
fn forget_order_of_ties(request: &RangeRequest, response: &mut RangeResponse) {
    const UNSORTED: i32 = 0;
    let ties = |pair: &proto::mvccpb::KeyValue| -> Option<Vec<u8>> {
        match request.sort_target {
            1 => Some(pair.version.to_be_bytes().to_vec()),
            2 => Some(pair.create_revision.to_be_bytes().to_vec()),
            3 => Some(pair.mod_revision.to_be_bytes().to_vec()),
            // keys_only has wiped what it was sorted by
            4 if request.keys_only => Some(Vec::new()),
            4 => Some(pair.value.to_vec()),
            UNSORTED => None,
            // an unknown target: servers that take it leave the order alone, or reverse it
            _ => Some(Vec::new()),
        }
    };
    let mut groups: Vec<(Vec<u8>, Vec<proto::mvccpb::KeyValue>)> = Vec::new();
    for pair in std::mem::take(&mut response.kvs) {
        let Some(sorted_by) = ties(&pair) else {
            response.kvs.push(pair);
            continue;
        };
        match groups.last_mut() {
            Some((last, members)) if *last == sorted_by => members.push(pair),
            _ => groups.push((sorted_by, vec![pair])),
        }
    }
    let last = groups.len().wrapping_sub(1);
    for (place, (_, mut members)) in groups.into_iter().enumerate() {
        members.sort_by(|left, right| left.key.cmp(&right.key));
        if response.more && place == last {
            // Which of the last group made it under the limit is chance; how many did is not.
            members.iter_mut().for_each(|pair| *pair = Default::default());
        }
        response.kvs.append(&mut members);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proto::mvccpb::KeyValue;

    use super::*;

    const BY_VERSION: i32 = 1;

    fn answer(pairs: &[(&'static str, i64)], more: bool) -> Answer {
        let pair = |(key, version): &(&'static str, i64)| KeyValue {
            key: Bytes::from_static(key.as_bytes()),
            version: *version,
            ..KeyValue::default()
        };
        Answer::Range(RangeResponse { kvs: pairs.iter().map(pair).collect(), more, ..RangeResponse::default() })
    }

    fn comparable(sort_target: i32, mut answer: Answer) -> Answer {
        let request = RangeRequest { sort_target, ..RangeRequest::default() };
        make_comparable(&Operation::Range { request, streamed: false }, &mut answer);
        answer
    }

    #[test]
    fn only_pairs_that_sort_equal_may_swap() {
        let sorted = |pairs: &[(&'static str, i64)]| comparable(BY_VERSION, answer(pairs, false));
        assert_eq!(sorted(&[("a", 1), ("b", 1), ("c", 2)]), sorted(&[("b", 1), ("a", 1), ("c", 2)]));
        assert_ne!(sorted(&[("a", 1), ("b", 1), ("c", 2)]), sorted(&[("a", 1), ("c", 2), ("b", 1)]));
    }

    #[test]
    fn a_limit_may_cut_anywhere_among_the_last_equals_but_nowhere_else() {
        let cut = |pairs: &[(&'static str, i64)]| comparable(BY_VERSION, answer(pairs, true));
        assert_eq!(cut(&[("a", 1), ("b", 2)]), cut(&[("a", 1), ("c", 2)]));
        assert_ne!(cut(&[("a", 1), ("b", 2)]), cut(&[("d", 1), ("b", 2)]));
        assert_ne!(cut(&[("a", 1), ("b", 2)]), cut(&[("a", 1), ("b", 2), ("c", 2)]));
    }

    #[test]
    fn the_order_of_keys_is_never_forgiven() {
        let by_key = |pairs: &[(&'static str, i64)]| comparable(0, answer(pairs, false));
        assert_ne!(by_key(&[("a", 1), ("b", 1)]), by_key(&[("b", 1), ("a", 1)]));
    }

    #[test]
    fn an_exception_needs_servers_on_both_sides_of_its_version() {
        let pair = |reference, subject| Pair { reference, subject };
        assert!(pair(Version(3, 5, 1), Version(3, 7, 1)).straddles(Version(3, 6, 0)));
        assert!(!pair(Version(3, 4, 23), Version(3, 5, 1)).straddles(Version(3, 6, 0)));
        assert!(!pair(Version(3, 7, 0), Version(3, 7, 1)).straddles(Version(3, 6, 0)));
        assert_eq!(Version::parse("3.7.0-rc.1"), Some(Version(3, 7, 0)));
        assert_eq!(Version::parse("3.7"), None);
    }
}
