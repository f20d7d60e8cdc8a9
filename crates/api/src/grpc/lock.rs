//! The Lock service.

use std::rc::Rc;

use proto::etcdserverpb as pb;
use proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use state::Error;
use tokio::task::spawn_local;

use crate::grpc::line;
use crate::grpc::wire::Responder;
use crate::worker::Worker;

pub(crate) fn lock(worker: &Rc<Worker>, responder: Responder, request: LockRequest) {
    spawn_local(acquire(worker.clone(), responder, request));
}

async fn acquire(worker: Rc<Worker>, mut responder: Responder, request: LockRequest) {
    let caller = responder.caller.clone();
    let place = async {
        let lease = line::lease_or_new(&worker, &caller, request.lease).await?;
        line::get_in_line(&worker, &caller, &request.name, lease, Default::default()).await
    };
    let place = match place.await {
        Ok(place) => place,
        Err(error) => return responder.refuse(&worker, line::refusal(error)),
    };
    let prefix = line::prefix(&request.name);
    let turn = line::wait_for_turn(&worker, &caller, &prefix, place.revision);
    match line::while_client_waits(&mut responder, turn).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return responder.refuse(&worker, line::refusal(error)),
        Err(interrupted) => {
            // Whoever stops waiting leaves the line, or those behind would wait for its lease to end. If the key cannot
            // be deleted, they do.
            let _ = line::delete(&worker, &caller, place.key).await;
            return line::give_up(&worker, responder, interrupted);
        }
    }
    let own = pb::RangeRequest { key: place.key.clone(), ..Default::default() };
    let result = match worker.range_for(&caller, &own).await {
        Ok(held) if held.kvs.is_empty() => Err(Error::Internal("mutex: session is expired".into())),
        Ok(mut held) => {
            worker.complete(&mut held.header);
            Ok(worker.frame(&LockResponse { header: held.header, key: place.key }))
        }
        Err(error) => Err(error),
    };
    responder.answer(&worker, result.map_err(line::refusal));
}

pub(crate) fn unlock(worker: &Rc<Worker>, responder: Responder, request: UnlockRequest) {
    let worker = worker.clone();
    spawn_local(async move {
        let deleted = line::delete(&worker, &responder.caller, request.key).await;
        responder.answer(
            &worker,
            deleted.map(|deleted| worker.frame(&UnlockResponse { header: deleted.header })).map_err(line::refusal),
        );
    });
}
