//! Clients that lock something, do something while they have it, and let it go, as etcd's documentation tells to: a key with a
//! lease under the lock's prefix, in the order of creation; and whoever acts names the revision at which its key was made, so
//! that nobody acts who has lost the lock without knowing it.

use bytes::Bytes;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use proto::etcdserverpb::request_op::Request as Op;
use proto::etcdserverpb::response_op::Response as OpResponse;
use proto::etcdserverpb::{InternalRaftRequest, TxnRequest};
use state::Response;

use crate::client::{Outcome, is_verdict};
use crate::ledger::{Violation, violation};
use crate::model::Model;
use crate::random::Random;
use crate::workload::{Ask, Workload};

/// How many locks clients fight over.
const LOCKS: u64 = 2;
/// How often a client looks whether it is its turn before it gives up.
const LOOKS: u64 = 15;

/// Where a client is. A token is the revision at which its key was made.
#[derive(Clone, Copy, Debug)]
enum At {
    /// It wants nothing.
    Outside,
    /// It has asked for a lease.
    Granting { lease: i64 },
    /// It gets in line.
    Entering { lease: i64 },
    /// It waits until everybody before it has gone.
    Waiting { lease: i64, token: i64, looks: u64 },
    /// It has the lock, as far as it knows.
    Holding { lease: i64, token: i64, acts: u64 },
    /// It leaves.
    Leaving { lease: i64 },
}

/// Such a client.
#[derive(Debug)]
pub struct Locker {
    lock: u64,
    at: At,
    random: Random,
    /// How often it has acted, or tried to.
    acts: u64,
}

/// Where those who want a lock stand in line.
fn line(lock: &str) -> (Bytes, Bytes) {
    (format!("lock/{lock}/").into(), format!("lock/{lock}0").into())
}

impl Locker {
    /// One that wants nothing yet.
    pub fn new(random: Random) -> Self {
        Self { lock: 0, at: At::Outside, random, acts: 0 }
    }

    fn key(&self, lease: i64) -> Bytes {
        format!("lock/{}/{lease:x}", self.lock).into()
    }

    /// What it asks for next.
    pub fn next(&mut self, workload: &mut Workload) -> Ask {
        let write = |request| Ask::Write(Box::new(request));
        match self.at {
            At::Outside | At::Granting { .. } => {
                self.lock = self.random.below(LOCKS);
                let grant = workload.grant(self.random.between(2, 8) as i64);
                self.at = At::Granting { lease: grant.id };
                write(InternalRaftRequest { lease_grant: Some(grant), ..Default::default() })
            }
            At::Entering { lease } => {
                let key = self.key(lease);
                let put = pb::PutRequest { key: key.clone(), lease, ..Default::default() };
                let range = pb::RangeRequest { key: key.clone(), ..Default::default() };
                write(unless_made(key, 0, Op::RequestPut(put), Some(Op::RequestRange(range))))
            }
            At::Waiting { lease, .. } | At::Holding { lease, .. } if self.random.chance(250) => Ask::Renew(lease),
            At::Waiting { .. } => {
                let (key, range_end) = line(&self.lock.to_string());
                let range = pb::RangeRequest { key, range_end, limit: 1, ..Default::default() };
                let (sort_order, sort_target) = (SortOrder::Ascend as i32, SortTarget::Create as i32);
                Ask::Range(Box::new(pb::RangeRequest { sort_order, sort_target, ..range }))
            }
            At::Holding { lease, token, .. } => {
                self.acts += 1;
                let value = format!("{token} {lease} {}", self.acts).into();
                let act = pb::PutRequest { key: format!("held/{}", self.lock).into(), value, ..Default::default() };
                write(unless_made(self.key(lease), token, Op::RequestPut(act), None))
            }
            At::Leaving { lease } if self.random.chance(500) => {
                let lease_revoke = Some(pb::LeaseRevokeRequest { id: lease });
                write(InternalRaftRequest { lease_revoke, ..Default::default() })
            }
            At::Leaving { lease } => {
                let delete_range = Some(pb::DeleteRangeRequest { key: self.key(lease), ..Default::default() });
                write(InternalRaftRequest { delete_range, ..Default::default() })
            }
        }
    }

    /// What it was told. Where that leaves open what has happened, it asks the same again.
    pub fn told(&mut self, outcome: &Outcome) {
        self.at = match (self.at, outcome) {
            (_, Outcome::Wrote(Err(error))) if is_verdict(error) => At::Outside,
            (At::Granting { lease }, Outcome::Wrote(Ok(Response::LeaseGrant(_)))) => At::Entering { lease },
            (At::Entering { lease }, Outcome::Wrote(Ok(Response::Txn(response)))) => match made_at(response) {
                Some(token) => At::Waiting { lease, token, looks: LOOKS },
                None => At::Outside,
            },
            (At::Waiting { lease, looks: 0, .. }, Outcome::Ranged(Ok(_))) => At::Leaving { lease },
            (At::Waiting { lease, token, looks }, Outcome::Ranged(Ok(response))) => {
                match response.kvs.first().is_some_and(|first| first.create_revision == token) {
                    true => At::Holding { lease, token, acts: self.random.between(1, 6) },
                    false => At::Waiting { lease, token, looks: looks - 1 },
                }
            }
            (At::Holding { .. }, Outcome::Wrote(Ok(Response::Txn(response)))) if !response.succeeded => At::Outside,
            (At::Holding { lease, acts: 1, .. }, Outcome::Wrote(Ok(_))) => At::Leaving { lease },
            (At::Holding { lease, token, acts }, Outcome::Wrote(Ok(_))) => At::Holding { lease, token, acts: acts - 1 },
            (At::Leaving { .. }, Outcome::Wrote(Ok(_))) => At::Outside,
            (at, _) => at,
        };
    }
}

/// Does something if this key was made at this revision (0: is not there), or else something else.
fn unless_made(key: Bytes, at: i64, then: Op, otherwise: Option<Op>) -> InternalRaftRequest {
    let compare = pb::Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key,
        range_end: Bytes::new(),
        target_union: Some(TargetUnion::CreateRevision(at)),
    };
    let op = |request| pb::RequestOp { request: Some(request) };
    let failure = otherwise.into_iter().map(op).collect();
    let txn = TxnRequest { compare: vec![compare], success: vec![op(then)], failure };
    InternalRaftRequest { txn: Some(txn), ..Default::default() }
}

/// When the key was made of somebody who got in line; it may have stood there already.
fn made_at(response: &pb::TxnResponse) -> Option<i64> {
    if response.succeeded {
        return response.header.map(|header| header.revision);
    }
    match response.responses.first()?.response.as_ref()? {
        OpResponse::ResponseRange(range) => range.kvs.first().map(|pair| pair.create_revision),
        _ => None,
    }
}

/// Somebody has acted, and the members have let it: it must be the one whose turn it is. `model` is what there is after it.
pub fn acted(txn: &TxnRequest, model: &Model) -> Result<(), Violation> {
    let Some(Op::RequestPut(act)) = txn.success.first().and_then(|op| op.request.as_ref()) else { return Ok(()) };
    let lock = std::str::from_utf8(&act.key).ok().and_then(|key| key.strip_prefix("held/"));
    let Some(lock) = lock else { return Ok(()) };
    let token = std::str::from_utf8(&act.value).ok().and_then(|value| value.split(' ').next()?.parse::<i64>().ok());
    let (start, end) = line(lock);
    let first = model.oldest(&start, &end);
    if token != first {
        return violation!("who has token {token:?} acts under lock {lock}, and it is the turn of {first:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two wait for the lock, with tokens 2 and 3.
    fn model() -> Model {
        let mut model = Model::new(2);
        for key in ["lock/0/a", "lock/0/b"] {
            let put = Some(pb::PutRequest { key: key.into(), ..Default::default() });
            let made = model.apply(&InternalRaftRequest { put, ..Default::default() });
            made.expect("a request that it knows").expect("a fine request");
        }
        model
    }

    #[test]
    fn only_the_first_in_line_may_act() {
        let act = |token: i64| {
            let value = format!("{token} 7 1").into();
            let put = pb::PutRequest { key: "held/0".into(), value, ..Default::default() };
            unless_made("lock/0/a".into(), token, Op::RequestPut(put), None).txn.expect("a transaction")
        };
        let mut model = model();
        acted(&act(2), &model).unwrap();
        assert!(acted(&act(3), &model).is_err(), "out of turn");
        let delete_range = Some(pb::DeleteRangeRequest { key: "lock/0/a".into(), ..Default::default() });
        model.apply(&InternalRaftRequest { delete_range, ..Default::default() });
        acted(&act(3), &model).unwrap();
        assert!(acted(&act(2), &model).is_err(), "it has lost the lock");
    }
}
