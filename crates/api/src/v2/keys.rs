//! `/v2/keys`.

use std::rc::Rc;

use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use state::v2::{Answer as Outcome, Code, Error, Event};

use super::auth;
use super::form::{self, KeyRequest};
use super::{Body, JSON, Watching, add_cluster_id, now_ns};
use crate::http1::{Answer, Payload};
use crate::member::Answer as MemberAnswer;
use crate::worker::{Worker, mismatched};

/// Answers a request for `key`, which begins with a slash or is empty.
pub(super) async fn serve(worker: &Rc<Worker>, head: &Parts, key: &str, body: Payload) -> Answer {
    let mut answer = answer(worker, head, key, body).await.unwrap_or_else(|error| refusal(&error));
    add_cluster_id(worker, &mut answer);
    answer
}

async fn answer(worker: &Rc<Worker>, head: &Parts, key: &str, body: Payload) -> Result<Answer, Error> {
    let body =
        if form::has_form(head) { body.map_err(|what| Error::new(Code::InvalidForm, what, 0))? } else { Bytes::new() };
    let now = now_ns();
    let KeyRequest { entry, no_value_on_success } = form::parse(head, key, &body, now)?;
    if !auth::may_access(worker, head, key, entry.recursive()).await {
        return Err(Error::new(Code::Unauthorized, "Insufficient credentials", 0));
    }
    let v2 = worker.member().state().v2();
    if entry.method() == "GET" || entry.method() == "HEAD" {
        let path = String::from_utf8_lossy(entry.path());
        if entry.wait() {
            let watch = v2.watch(&path, entry.recursive(), entry.stream(), entry.since())?;
            let index = watch.start_index;
            let watching = Box::new(Watching::new(watch, entry.stream()));
            return Ok(success(worker, StatusCode::OK, index, Body::Watch(watching)));
        }
        let found = v2.get(&path, entry.recursive(), now)?;
        return Ok(success(worker, StatusCode::OK, found.index, Body::Whole(found.line())));
    }
    match propose(worker, entry).await? {
        Outcome::Changed(event) => {
            let status = if event.is_created() { StatusCode::CREATED } else { StatusCode::OK };
            Ok(success(worker, status, event.index(), Body::Whole(line(&event, no_value_on_success))))
        }
        Outcome::Found(found) => Ok(success(worker, StatusCode::OK, found.index, Body::Whole(found.line()))),
        Outcome::Nothing => Err(internal("received response with no Event/Watcher!")),
    }
}

fn line(event: &Event, no_value: bool) -> Bytes {
    use state::v2::Action;
    let may = matches!(event.action, Action::Set | Action::Update | Action::Create | Action::CompareAndSwap);
    if no_value && may { format!("{{\"action\":\"{}\"}}\n", event.action.name()).into() } else { event.line() }
}

/// Has a request logged and waits for what becomes of it here.
pub(super) async fn propose(worker: &Worker, entry: proto::v2pb::Request) -> Result<Outcome, Error> {
    let outcome = worker.ask(|member, reply| member.propose_v2(entry, reply)).await;
    match outcome {
        Ok(MemberAnswer::Applied(state::Response::V2(outcome))) => *outcome,
        Ok(other) => Err(internal(&mismatched(&other).to_string())),
        Err(error) => Err(internal(&error.to_string())),
    }
}

fn internal(cause: &str) -> Error {
    Error::new(Code::RaftInternal, cause, 0)
}

fn success(worker: &Worker, status: StatusCode, index: u64, body: Body) -> Answer {
    let member = worker.member();
    let mut answer = Answer::new(status, JSON, body);
    answer.fields.add_formatted("X-Etcd-Index", format_args!("{index}"));
    answer.fields.add_formatted("X-Raft-Index", format_args!("{}", member.raft_index()));
    answer.fields.add_formatted("X-Raft-Term", format_args!("{}", member.term()));
    answer
}

/// The answer to a request that was refused.
pub(super) fn refusal(error: &Error) -> Answer {
    let status = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let mut answer = Answer::new(status, JSON, Body::Whole(error.to_json().into()));
    answer.fields.add_formatted("X-Etcd-Index", format_args!("{}", error.index));
    answer
}
