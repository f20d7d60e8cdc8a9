//! The Lease service.

use std::rc::Rc;

use bytes::Bytes;
use proto::etcdserverpb as pb;
use state::auth::Need;
use state::{Error, check};
use tokio::task::spawn_local;

use crate::grpc::decode;
use crate::grpc::guard::Guarded as _;
use crate::grpc::wire::{Broken, Incoming, Responder};
use crate::member::Answer;
use crate::worker::{Worker, mismatched};

pub(crate) fn grant(worker: &Rc<Worker>, responder: Responder, mut request: pb::LeaseGrantRequest) {
    if let Err(error) = check::lease_grant(&request) {
        return responder.refuse(worker, error);
    }
    // Lease IDs are positive, so the generator's top bit is cut off; zero means "choose one".
    while request.id == 0 {
        request.id = (worker.member().next_id() & i64::MAX as u64) as i64;
    }
    worker.propose(pb::InternalRaftRequest { lease_grant: Some(request), ..Default::default() }, responder);
}

pub(crate) fn revoke(worker: &Rc<Worker>, responder: Responder, request: pb::LeaseRevokeRequest) {
    worker.propose(pb::InternalRaftRequest { lease_revoke: Some(request), ..Default::default() }, responder);
}

pub(crate) fn time_to_live(worker: &Rc<Worker>, responder: Responder, request: pb::LeaseTimeToLiveRequest) {
    let worker = worker.clone();
    spawn_local(async move {
        let answer = worker.ask(|member, reply| member.lease_time_to_live(request.id, request.keys, reply)).await;
        let result = match answer {
            Ok(Answer::TimeToLive(lease)) => may_read(&worker, &responder, &lease.keys).map(|()| {
                worker.frame(&pb::LeaseTimeToLiveResponse {
                    header: Some(worker.header(worker.member().state().revision())),
                    id: request.id,
                    ttl: lease.ttl,
                    granted_ttl: lease.granted_ttl,
                    keys: lease.keys,
                })
            }),
            Ok(other) => Err(mismatched(&other)),
            Err(error) => Err(error),
        };
        responder.answer(&worker, result);
    });
}

/// Whether the caller may know of these keys: the leader may have attached more than this member has heard of
/// (CVE-2023-32082 was that nobody asked at all).
fn may_read(worker: &Worker, responder: &Responder, keys: &[Bytes]) -> Result<(), Error> {
    let (policy, lessor) = (worker.policy(), worker.member().state().lessor());
    let subject = responder.access.subject();
    keys.iter().try_for_each(|key| policy.allows(subject, &Need::Read { key, range_end: &[] }, lessor))
}

pub(crate) fn leases(worker: &Rc<Worker>, responder: Responder, _: pb::LeaseLeasesRequest) {
    let reader = worker.member().state();
    let leases = reader.lessor().leases().into_iter().map(|id| pb::LeaseStatus { id }).collect();
    let frame = worker.frame(&pb::LeaseLeasesResponse { header: Some(worker.header(reader.revision())), leases });
    responder.message(worker, frame);
}

/// Answers each request with one response, in order.
pub(crate) async fn keep_alive(worker: Rc<Worker>, responder: Responder, mut incoming: Incoming) {
    let (method, caller) = (responder.method, responder.caller.clone());
    let Some(mut outgoing) = responder.stream(&worker) else { return };
    loop {
        let message = match incoming.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return outgoing.end(&worker),
            Err(Broken::Reset) => return outgoing.abandoned(&worker),
            Err(Broken::Refused(refusal)) => return outgoing.refuse(&worker, refusal),
        };
        worker.counters.received(method, message.len());
        let request = match decode::<pb::LeaseKeepAliveRequest>(message) {
            Ok(request) => request,
            Err(refusal) => return outgoing.refuse(&worker, refusal),
        };
        if let Err(error) = worker.authorise_soon(&caller, &request.action()).await {
            return outgoing.refuse(&worker, error);
        }
        let id = request.id;
        // Before the renewal, so that a client that sees the revision knows that the lease was alive at it.
        let header = Some(worker.header(worker.member().state().revision()));
        let ttl = match worker.ask(|member, reply| member.lease_renew(id, reply)).await {
            Ok(Answer::Renewed(ttl)) => ttl,
            Err(Error::LeaseNotFound) => 0,
            Ok(other) => return outgoing.refuse(&worker, mismatched(&other)),
            Err(error) => return outgoing.refuse(&worker, error),
        };
        let frame = worker.frame(&pb::LeaseKeepAliveResponse { header, id, ttl });
        if outgoing.send(&worker, frame).await.is_err() {
            return outgoing.abandoned(&worker);
        }
    }
}
