//! `/v2/keys`.

use std::rc::Rc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use state::v2::{Answer, Code, Error, Event, Outcome};

use super::auth;
use super::form::{self, KeyRequest};
use super::{Body, Watching, X_ETCD_INDEX, X_RAFT_INDEX, X_RAFT_TERM, add_cluster_id, json, now_ns};
use crate::http1::Payload;
use crate::member::Answer as MemberAnswer;
use crate::worker::{Worker, mismatched};

/// Answers a request for `key`, which begins with a slash or is empty.
pub(super) async fn serve(worker: &Rc<Worker>, head: &Parts, key: &str, body: Payload) -> Response<Body> {
    let mut response = match answer(worker, head, key, body).await {
        Ok(response) => response,
        Err(error) => refusal(&error),
    };
    add_cluster_id(worker, &mut response);
    response
}

async fn answer(worker: &Rc<Worker>, head: &Parts, key: &str, body: Payload) -> Result<Response<Body>, Error> {
    let body =
        if form::has_form(head) { body.map_err(|what| Error::new(Code::InvalidForm, what, 0))? } else { Bytes::new() };
    let now = now_ns();
    let KeyRequest { entry, no_value_on_success } = form::parse(head, key, &body, now)?;
    if !auth::may_access(worker, head, key, entry.recursive()).await {
        return Err(Error::new(Code::Unauthorized, "Insufficient credentials", 0));
    }
    let v2 = worker.member().state().v2();
    if entry.method() == "GET" || entry.method() == "HEAD" {
        let path = String::from_utf8_lossy(entry.path()).into_owned();
        if entry.wait() {
            let watch = v2.watch(&path, entry.recursive(), entry.stream(), entry.since())?;
            let index = watch.start_index;
            let watching = Box::new(Watching::new(watch, entry.stream()));
            let mut response = Response::new(Body::Watch(watching));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            add_indexes(worker, index, &mut response);
            return Ok(response);
        }
        let found = v2.get(&path, entry.recursive(), now)?;
        let mut response = json(StatusCode::OK, found.line());
        add_indexes(worker, found.index, &mut response);
        return Ok(response);
    }
    match propose(worker, entry).await? {
        Answer::Changed(event) => {
            let status = if event.is_created() { StatusCode::CREATED } else { StatusCode::OK };
            let mut response = json(status, line(&event, no_value_on_success));
            add_indexes(worker, event.index(), &mut response);
            Ok(response)
        }
        Answer::Found(found) => {
            let mut response = json(StatusCode::OK, found.line());
            add_indexes(worker, found.index, &mut response);
            Ok(response)
        }
        Answer::Nothing => Err(internal("received response with no Event/Watcher!")),
    }
}

fn line(event: &Event, no_value: bool) -> Bytes {
    use state::v2::Action;
    let may = matches!(event.action, Action::Set | Action::Update | Action::Create | Action::CompareAndSwap);
    if no_value && may { format!("{{\"action\":\"{}\"}}\n", event.action.name()).into() } else { event.line() }
}

/// Has a request logged and waits for what becomes of it here.
pub(super) async fn propose(worker: &Worker, entry: proto::v2pb::Request) -> Outcome {
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

pub(super) fn refusal(error: &Error) -> Response<Body> {
    let status = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = json(status, error.to_json());
    response.headers_mut().insert(X_ETCD_INDEX, HeaderValue::from(error.index));
    response
}

fn add_indexes(worker: &Worker, index: u64, response: &mut Response<Body>) {
    let member = worker.member();
    let mut add = |name: HeaderName, value: u64| response.headers_mut().insert(name, HeaderValue::from(value));
    add(X_ETCD_INDEX, index);
    add(X_RAFT_INDEX, member.raft_index());
    add(X_RAFT_TERM, member.term());
}
