//! The standard health service. A member that serves at all is healthy to it; whether the cluster is, `/health` tells.

use std::collections::HashMap;
use std::rc::Rc;

use proto::healthpb::health_check_response::ServingStatus;
use proto::healthpb::{HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse};
use tokio::task::spawn_local;

use crate::grpc::wire::Responder;
use crate::status::{Code, Refusal};
use crate::worker::Worker;

fn status(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

pub(crate) fn check(worker: &Rc<Worker>, responder: Responder, request: HealthCheckRequest) {
    if request.service.is_empty() {
        responder.message(worker, worker.frame(&status(ServingStatus::Serving)));
    } else {
        responder.refuse(worker, Refusal::new(Code::NotFound, "unknown service"));
    }
}

pub(crate) fn list(worker: &Rc<Worker>, responder: Responder, _: HealthListRequest) {
    let statuses = HashMap::from([(String::new(), status(ServingStatus::Serving))]);
    responder.message(worker, worker.frame(&HealthListResponse { statuses }));
}

/// Sends the status, which does not change while we live, and stays until the client or the server goes.
pub(crate) fn watch(worker: &Rc<Worker>, responder: Responder, request: HealthCheckRequest) {
    let first = if request.service.is_empty() { ServingStatus::Serving } else { ServingStatus::ServiceUnknown };
    let worker = worker.clone();
    spawn_local(async move {
        let Some(mut outgoing) = responder.stream(&worker) else { return };
        if outgoing.send(&worker, worker.frame(&status(first))).await.is_ok() {
            std::future::poll_fn(|cx| outgoing.poll_gone(cx)).await;
        }
        outgoing.abandoned(&worker);
    });
}
