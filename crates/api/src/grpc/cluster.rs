//! The Cluster service. Its headers carry no revision: membership has none.

use std::rc::Rc;

use proto::etcdserverpb as pb;
use tokio::task::spawn_local;

use crate::grpc::guard::Unguarded;
use crate::grpc::wire::Responder;
use crate::grpc::{Read, read};
use crate::member::{Answer, MemberChange};
use crate::worker::{Worker, mismatched};

pub(crate) fn list(worker: &Rc<Worker>, responder: Responder, request: Unguarded<pb::MemberListRequest>) {
    let serializable = !request.peek().linearizable;
    read(worker, responder, request.map(Read::Members), serializable);
}

/// Lists the members as this one knows them.
pub(crate) fn run_list(worker: &Worker, responder: Responder) {
    let members = on_wire(worker.member().state().members());
    let frame = worker.frame(&pb::MemberListResponse { header: Some(worker.header(0)), members });
    responder.message(worker, frame);
}

pub(crate) fn add(worker: &Rc<Worker>, responder: Responder, request: pb::MemberAddRequest) {
    let change = MemberChange::Add { peer_urls: request.peer_ur_ls, is_learner: request.is_learner };
    self::change(worker, responder, change, |header, added, members| pb::MemberAddResponse {
        header: Some(header),
        member: added,
        members,
    });
}

pub(crate) fn remove(worker: &Rc<Worker>, responder: Responder, request: pb::MemberRemoveRequest) {
    change(worker, responder, MemberChange::Remove { id: request.id }, |header, _, members| pb::MemberRemoveResponse {
        header: Some(header),
        members,
    });
}

pub(crate) fn update(worker: &Rc<Worker>, responder: Responder, request: pb::MemberUpdateRequest) {
    let change = MemberChange::Update { id: request.id, peer_urls: request.peer_ur_ls };
    self::change(worker, responder, change, |header, _, members| pb::MemberUpdateResponse {
        header: Some(header),
        members,
    });
}

pub(crate) fn promote(worker: &Rc<Worker>, responder: Responder, request: pb::MemberPromoteRequest) {
    let change = MemberChange::Promote { id: request.id };
    self::change(worker, responder, change, |header, _, members| pb::MemberPromoteResponse {
        header: Some(header),
        members,
    });
}

fn change<M: prost::Message + 'static>(
    worker: &Rc<Worker>,
    responder: Responder,
    change: MemberChange,
    response: impl FnOnce(pb::ResponseHeader, Option<pb::Member>, Vec<pb::Member>) -> M + 'static,
) {
    let worker = worker.clone();
    spawn_local(async move {
        let result = match worker.ask(|member, reply| member.change_membership(change, reply)).await {
            Ok(Answer::Members { added, members }) => {
                let added = added.map(member_on_wire);
                Ok(worker.frame(&response(worker.header(0), added, on_wire(members))))
            }
            Ok(other) => Err(mismatched(&other)),
            Err(error) => Err(error),
        };
        responder.answer(&worker, result);
    });
}

fn on_wire(members: Vec<state::Member>) -> Vec<pb::Member> {
    members.into_iter().map(member_on_wire).collect()
}

fn member_on_wire(member: state::Member) -> pb::Member {
    pb::Member {
        id: member.id,
        name: member.name,
        peer_ur_ls: member.peer_urls,
        client_ur_ls: member.client_urls,
        is_learner: member.is_learner,
    }
}
