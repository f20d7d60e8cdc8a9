//! The Election service.

use std::rc::Rc;

use bytes::Bytes;
use proto::etcdserverpb as pb;
use proto::mvccpb::event::EventType;
use proto::mvccpb::{Event, KeyValue};
use proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
    ResignRequest, ResignResponse,
};
use state::Error;
use state::watch::OutputKind;
use tokio::task::spawn_local;

use crate::caller::Caller;
use crate::grpc::line;
use crate::grpc::watch::decoded;
use crate::grpc::wire::{Outgoing, Responder};
use crate::worker::Worker;

fn not_leader() -> Error {
    Error::Internal("election: not leader".into())
}

fn leader_missing() -> Error {
    Error::Internal("\"leader\" field must be provided".into())
}

pub(crate) fn campaign(worker: &Rc<Worker>, responder: Responder, request: CampaignRequest) {
    spawn_local(run_campaign(worker.clone(), responder, request));
}

async fn run_campaign(worker: Rc<Worker>, mut responder: Responder, request: CampaignRequest) {
    let caller = responder.caller.clone();
    let place = async {
        let lease = line::lease_or_new(&worker, &caller, request.lease).await?;
        let place = line::get_in_line(&worker, &caller, &request.name, lease, request.value.clone()).await?;
        // Campaigning again with another value proclaims it.
        if place.found.as_ref().is_some_and(|found| found.value != request.value) {
            proclaim_value(&worker, &caller, &place.key, place.revision, lease, request.value.clone()).await?;
        }
        Ok::<_, Error>(place)
    };
    let place = match place.await {
        Ok(place) => place,
        Err(error) => return responder.refuse(&worker, line::refusal(error)),
    };
    let prefix = line::prefix(&request.name);
    let turn = line::wait_for_turn(&worker, &caller, &prefix, place.revision);
    match line::while_client_waits(&mut responder, turn).await {
        Ok(Ok(())) => {
            let leader = LeaderKey { name: request.name, key: place.key, rev: place.revision, lease: place.lease };
            let response = CampaignResponse { header: place.header, leader: Some(leader) };
            responder.message(&worker, worker.frame(&response));
        }
        Ok(Err(error)) => responder.refuse(&worker, line::refusal(error)),
        Err(interrupted) => {
            // As for locks: who stops waiting leaves the line.
            let _ = resign_from(&worker, &caller, &place.key, place.revision).await;
            line::give_up(&worker, responder, interrupted);
        }
    }
}

pub(crate) fn proclaim(worker: &Rc<Worker>, responder: Responder, request: ProclaimRequest) {
    let worker = worker.clone();
    spawn_local(async move {
        let result = match request.leader {
            None => Err(leader_missing()),
            Some(leader) => {
                proclaim_value(&worker, &responder.caller, &leader.key, leader.rev, leader.lease, request.value).await
            }
        };
        responder
            .answer(&worker, result.map(|header| worker.frame(&ProclaimResponse { header })).map_err(line::refusal));
    });
}

/// Replaces the value of an office that is still held.
async fn proclaim_value(
    worker: &Worker,
    caller: &Caller,
    key: &Bytes,
    revision: i64,
    lease: i64,
    value: Bytes,
) -> Result<Option<pb::ResponseHeader>, Error> {
    let put = pb::PutRequest { key: key.clone(), value, lease, ..Default::default() };
    let response = line::txn(
        worker,
        caller,
        pb::TxnRequest {
            compare: vec![line::created_at(key, revision)],
            success: vec![line::op(pb::request_op::Request::RequestPut(put))],
            failure: Vec::new(),
        },
    )
    .await?;
    if response.succeeded { Ok(response.header) } else { Err(not_leader()) }
}

pub(crate) fn resign(worker: &Rc<Worker>, responder: Responder, request: ResignRequest) {
    let worker = worker.clone();
    spawn_local(async move {
        let result = match request.leader {
            None => Err(leader_missing()),
            Some(leader) => resign_from(&worker, &responder.caller, &leader.key, leader.rev).await,
        };
        responder.answer(&worker, result.map(|header| worker.frame(&ResignResponse { header })).map_err(line::refusal));
    });
}

/// Leaves the line, or the office. Somebody who has left already succeeds as well.
async fn resign_from(
    worker: &Worker,
    caller: &Caller,
    key: &Bytes,
    revision: i64,
) -> Result<Option<pb::ResponseHeader>, Error> {
    let delete = pb::DeleteRangeRequest { key: key.clone(), ..Default::default() };
    let response = line::txn(
        worker,
        caller,
        pb::TxnRequest {
            compare: vec![line::created_at(key, revision)],
            success: vec![line::op(pb::request_op::Request::RequestDeleteRange(delete))],
            failure: Vec::new(),
        },
    )
    .await?;
    Ok(response.header)
}

pub(crate) fn leader(worker: &Rc<Worker>, responder: Responder, request: LeaderRequest) {
    let worker = worker.clone();
    spawn_local(async move {
        let found = match worker.barrier().await {
            Ok(()) => line::first(&worker, &responder.caller, &line::prefix(&request.name)).await,
            Err(error) => Err(error),
        };
        let result = match found {
            Ok((header, Some(kv))) => Ok(worker.frame(&LeaderResponse { header, kv: Some(kv) })),
            Ok((_, None)) => Err(Error::Internal("election: no leader".into())),
            Err(error) => Err(error),
        };
        responder.answer(&worker, result.map_err(line::refusal));
    });
}

pub(crate) fn observe(worker: &Rc<Worker>, mut responder: Responder, request: LeaderRequest) {
    let worker = worker.clone();
    spawn_local(async move {
        // Until there is somebody to report nothing is sent, but the client may go.
        match line::while_client_waits(&mut responder, worker.barrier()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return responder.refuse(&worker, line::refusal(error)),
            Err(interrupted) => return line::give_up(&worker, responder, interrupted),
        }
        let caller = responder.caller.clone();
        let Some(mut outgoing) = responder.stream(&worker) else { return };
        match follow(&worker, &caller, &line::prefix(&request.name), &mut outgoing).await {
            Ok(()) => outgoing.abandoned(&worker),
            Err(error) => outgoing.refuse(&worker, line::refusal(error)),
        }
    });
}

/// Reports the leader and each change until the client goes.
async fn follow(worker: &Rc<Worker>, caller: &Caller, prefix: &Bytes, outgoing: &mut Outgoing) -> Result<(), Error> {
    loop {
        // Whoever is first in line, now or as soon as anybody is.
        let (header, first) = line::first(worker, caller, prefix).await?;
        let mut seen_at = header.map_or(0, |header| header.revision);
        let mut events = line::watch_line(worker, prefix, seen_at + 1);
        let mut leader = first;
        if let Some(leader) = &leader
            && !report(worker, outgoing, seen_at, leader).await
        {
            return Ok(());
        }
        'reign: loop {
            let output = tokio::select! {
                output = events.next() => output,
                () = std::future::poll_fn(|cx| outgoing.poll_gone(cx)) => return Ok(()),
            };
            // The permission may have gone since.
            line::may_watch(worker, caller, prefix).await?;
            let changes = match &output.kind {
                OutputKind::Events(events) => decoded(events),
                // History was compacted away before we had read it: look again.
                _ => break 'reign,
            };
            for Event { r#type, kv, .. } in changes {
                let Some(kv) = kv else { continue };
                let deleted = r#type == i32::from(EventType::Delete);
                match &leader {
                    // The first to come leads.
                    None if !deleted => {}
                    Some(leader) if leader.key == kv.key && !deleted => {}
                    // The leader has left; its successor stands in line already, or nobody does.
                    Some(leader) if leader.key == kv.key => break 'reign,
                    _ => continue,
                }
                seen_at = kv.mod_revision;
                if !report(worker, outgoing, seen_at, &kv).await {
                    return Ok(());
                }
                leader = Some(kv);
            }
        }
    }
}

/// `false`: the client has gone.
async fn report(worker: &Worker, outgoing: &mut Outgoing, revision: i64, leader: &KeyValue) -> bool {
    let response = LeaderResponse { header: Some(worker.header(revision)), kv: Some(leader.clone()) };
    outgoing.send(worker, worker.frame(&response)).await.is_ok()
}
