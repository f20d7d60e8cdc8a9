//! Standing in line, which is what locks and elections are made of.
//!
//! Whoever wants a lock or an office writes a key under its name, named after its lease, and waits until no key under
//! that name was created earlier. When the lease ends the key goes, and the next in line has its turn.
//!
//! The waiting reads only what this member has applied. That is enough: a member that lags sees those before us for
//! longer, never for shorter than they are there.

use std::rc::Rc;

use bytes::Bytes;
use proto::etcdserverpb as pb;
use proto::mvccpb::KeyValue;
use state::auth::Action;
use state::watch::WatchCreate;
use state::{Error, Response};
use tokio::time::sleep_until;

use crate::caller::Caller;
use crate::grpc::watch::Subscription;
use crate::grpc::wire::Responder;
use crate::status::{Code, Refusal};
use crate::worker::Worker;

/// TTL in seconds of the lease that is granted to a client that brought none. Nobody keeps it alive.
const DEFAULT_TTL: i64 = 60;

/// How these services tell an error. etcd's are clients of etcd themselves, and the code gets lost on that way.
pub(crate) fn refusal(error: Error) -> Refusal {
    match error {
        Error::Canceled | Error::DeadlineExceeded | Error::Internal(_) => error.into(),
        error => Refusal::new(Code::Unknown, error.to_string()),
    }
}

/// The keys of all who stand in line for `name` begin with this.
pub(crate) fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// The end of the range of all keys that begin with a [`prefix`]: `0` follows `/`.
fn prefix_end(prefix: &[u8]) -> Bytes {
    let (_, name) = prefix.split_last().expect("a prefix ends with a slash");
    [name, b"0"].concat().into()
}

/// A place in line.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) key: Bytes,
    /// The revision that created the key: those with a lower one are ahead.
    pub(crate) revision: i64,
    pub(crate) lease: i64,
    /// Of the transaction that took, or found, the place.
    pub(crate) header: Option<pb::ResponseHeader>,
    /// What stood there already, if this lease was in line before.
    pub(crate) found: Option<KeyValue>,
}

/// The lease to stand in line with.
pub(crate) async fn lease_or_new(worker: &Worker, caller: &Caller, lease: i64) -> Result<i64, Error> {
    if lease != 0 {
        return Ok(lease);
    }
    let id = (worker.member().next_id() & i64::MAX as u64) as i64;
    let grant = pb::LeaseGrantRequest { ttl: DEFAULT_TTL, id };
    worker.apply_for(caller, pb::InternalRaftRequest { lease_grant: Some(grant), ..Default::default() }).await?;
    Ok(id)
}

/// Gets in line for `name`, or finds the place that this lease has already.
pub(crate) async fn get_in_line(
    worker: &Worker,
    caller: &Caller,
    name: &[u8],
    lease: i64,
    value: Bytes,
) -> Result<Place, Error> {
    let mut key = prefix(name).to_vec();
    key.extend(format!("{lease:x}").bytes());
    let key = Bytes::from(key);
    let put = pb::PutRequest { key: key.clone(), value, lease, ..Default::default() };
    let get = pb::RangeRequest { key: key.clone(), ..Default::default() };
    let response = txn(
        worker,
        caller,
        pb::TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![op(pb::request_op::Request::RequestPut(put))],
            failure: vec![op(pb::request_op::Request::RequestRange(get))],
        },
    )
    .await?;
    let found = response.responses.into_iter().find_map(|response| match response.response {
        Some(pb::response_op::Response::ResponseRange(range)) => range.kvs.into_iter().next(),
        _ => None,
    });
    let revision = match &found {
        Some(found) => found.create_revision,
        None => response.header.as_ref().map_or(0, |header| header.revision),
    };
    Ok(Place { key, revision, lease, header: response.header, found })
}

/// Waits until nobody under `prefix` stands before `revision`.
pub(crate) async fn wait_for_turn(
    worker: &Rc<Worker>,
    caller: &Caller,
    prefix: &Bytes,
    revision: i64,
) -> Result<(), Error> {
    loop {
        let line = pb::RangeRequest {
            key: prefix.clone(),
            range_end: prefix_end(prefix),
            limit: 1,
            sort_order: pb::range_request::SortOrder::Descend.into(),
            sort_target: pb::range_request::SortTarget::Create.into(),
            max_create_revision: revision - 1,
            ..Default::default()
        };
        let ahead = worker.range_for(caller, &line).await?;
        let seen_at = ahead.header.map_or(0, |header| header.revision);
        let Some(next) = ahead.kvs.into_iter().next() else { return Ok(()) };
        // Only the one right before us matters: when it goes, look again.
        let mut subscription = Subscription::new(
            worker,
            WatchCreate { key: next.key, start_revision: seen_at + 1, no_put: true, ..Default::default() },
        );
        // Also the news that history was compacted away sends us back to look.
        subscription.next().await;
    }
}

/// Who is first in line.
pub(crate) async fn first(
    worker: &Worker,
    caller: &Caller,
    prefix: &Bytes,
) -> Result<(Option<pb::ResponseHeader>, Option<KeyValue>), Error> {
    let line = pb::RangeRequest {
        key: prefix.clone(),
        range_end: prefix_end(prefix),
        limit: 1,
        sort_order: pb::range_request::SortOrder::Ascend.into(),
        sort_target: pb::range_request::SortTarget::Create.into(),
        ..Default::default()
    };
    let mut range = worker.range_for(caller, &line).await?;
    worker.complete(&mut range.header);
    Ok((range.header, range.kvs.into_iter().next()))
}

/// Whether the caller may (still) look at the line.
pub(crate) async fn may_watch(worker: &Worker, caller: &Caller, prefix: &Bytes) -> Result<(), Error> {
    let action = Action::Watch { key: prefix, range_end: &prefix_end(prefix) };
    worker.authorise_soon(caller, &action).await.map(drop)
}

/// A watch of everybody in line, from `start_revision`.
pub(crate) fn watch_line(worker: &Rc<Worker>, prefix: &Bytes, start_revision: i64) -> Subscription {
    let range_end = prefix_end(prefix);
    Subscription::new(worker, WatchCreate { key: prefix.clone(), range_end, start_revision, ..Default::default() })
}

/// Runs a transaction through the log.
pub(crate) async fn txn(worker: &Worker, caller: &Caller, txn: pb::TxnRequest) -> Result<pb::TxnResponse, Error> {
    match worker.apply_for(caller, pb::InternalRaftRequest { txn: Some(txn), ..Default::default() }).await? {
        Response::Txn(mut response) => {
            worker.complete(&mut response.header);
            Ok(response)
        }
        other => Err(Error::Internal(format!("etcdserver: unexpected answer {other:?}"))),
    }
}

/// Deletes a key through the log.
pub(crate) async fn delete(worker: &Worker, caller: &Caller, key: Bytes) -> Result<pb::DeleteRangeResponse, Error> {
    let delete = pb::DeleteRangeRequest { key, ..Default::default() };
    match worker.apply_for(caller, pb::InternalRaftRequest { delete_range: Some(delete), ..Default::default() }).await?
    {
        Response::DeleteRange(mut response) => {
            worker.complete(&mut response.header);
            Ok(response)
        }
        other => Err(Error::Internal(format!("etcdserver: unexpected answer {other:?}"))),
    }
}

pub(crate) fn op(request: pb::request_op::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

/// Holds if `key` was created at `revision`; 0 = does not exist.
pub(crate) fn created_at(key: &Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        result: pb::compare::CompareResult::Equal.into(),
        target: pb::compare::CompareTarget::Create.into(),
        key: key.clone(),
        range_end: Bytes::new(),
        target_union: Some(pb::compare::TargetUnion::CreateRevision(revision)),
    }
}

/// Why a wait ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupted {
    Gone,
    DeadlineExceeded,
}

/// Waits for `what` as long as the client does.
pub(crate) async fn while_client_waits<T>(
    responder: &mut Responder,
    what: impl Future<Output = T>,
) -> Result<T, Interrupted> {
    let deadline = responder.deadline;
    let expired = async {
        match deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        result = what => Ok(result),
        () = std::future::poll_fn(|cx| responder.poll_gone(cx)) => Err(Interrupted::Gone),
        () = expired => Err(Interrupted::DeadlineExceeded),
    }
}

/// Ends a call whose wait was interrupted.
pub(crate) fn give_up(worker: &Worker, responder: Responder, why: Interrupted) {
    match why {
        Interrupted::Gone => responder.abandoned(worker),
        Interrupted::DeadlineExceeded => responder.refuse(worker, Error::DeadlineExceeded),
    }
}
