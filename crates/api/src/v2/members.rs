//! `/v2/members`.

use std::rc::Rc;

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{Method, Response, StatusCode, Uri};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use state::Error;

use super::{Body, add_cluster_id, auth, go_json, json, message, method_not_allowed, read_body};
use crate::member::{Answer, MemberChange};
use crate::worker::Worker;

#[derive(Serialize)]
struct Shown {
    id: String,
    name: String,
    #[serde(rename = "peerURLs")]
    peer_urls: Vec<String>,
    #[serde(rename = "clientURLs")]
    client_urls: Vec<String>,
}

impl From<state::Member> for Shown {
    fn from(member: state::Member) -> Self {
        let state::Member { id, name, peer_urls, client_urls, .. } = member;
        Self { id: format!("{id:x}"), name, peer_urls, client_urls }
    }
}

#[derive(Serialize)]
struct List {
    members: Vec<Shown>,
}

#[derive(Default, Deserialize)]
struct Asked {
    #[serde(default, rename = "peerURLs")]
    peer_urls: Option<Vec<String>>,
}

/// Answers a request; `rest` is the path below.
pub(super) async fn serve(worker: &Rc<Worker>, head: &Parts, rest: &str, body: Incoming) -> Response<Body> {
    let mut response = match head.method {
        Method::GET => show(worker, rest),
        _ if !auth::is_root(worker, head).await => return auth::no_rights(),
        _ => change(worker, head, rest, body).await.unwrap_or_else(|refusal| refusal),
    };
    add_cluster_id(worker, &mut response);
    response
}

fn line(value: &impl Serialize) -> String {
    go_json(value) + "\n"
}

fn show(worker: &Worker, rest: &str) -> Response<Body> {
    let state = worker.member().state();
    match rest {
        "" => {
            let members = state.members().into_iter().map(Shown::from).collect();
            json(StatusCode::OK, line(&List { members }))
        }
        "leader" => match state.member(worker.member().leader()) {
            Some(leader) => json(StatusCode::OK, line(&Shown::from(leader))),
            None => message(StatusCode::SERVICE_UNAVAILABLE, "During election"),
        },
        _ => message(StatusCode::NOT_FOUND, "Not found"),
    }
}

async fn change(
    worker: &Rc<Worker>,
    head: &Parts,
    rest: &str,
    body: Incoming,
) -> Result<Response<Body>, Response<Body>> {
    let done = || {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response
    };
    match head.method {
        Method::POST => {
            let peer_urls = asked(head, body).await?;
            let change = MemberChange::Add { peer_urls, is_learner: false };
            match worker.ask(|member, reply| member.change_membership(change, reply)).await {
                Ok(Answer::Members { added: Some(added), .. }) => {
                    Ok(json(StatusCode::CREATED, line(&Shown::from(added))))
                }
                Err(Error::MemberExist) => Err(message(StatusCode::CONFLICT, "membership: ID exists")),
                other => Err(failure(other.err())),
            }
        }
        Method::DELETE => {
            let id = id(rest).map_err(|refusal| *refusal)?;
            let change = MemberChange::Remove { id };
            match worker.ask(|member, reply| member.change_membership(change, reply)).await {
                Ok(_) => Ok(done()),
                Err(Error::MemberNotFound) if worker.member().state().is_removed(id) => {
                    Err(message(StatusCode::GONE, &format!("Member permanently removed: {id:x}")))
                }
                Err(Error::MemberNotFound) => Err(unknown(&format!("{id:x}"))),
                Err(error) => Err(failure(Some(error))),
            }
        }
        _ => {
            let id = id(rest).map_err(|refusal| *refusal)?;
            let change = MemberChange::Update { id, peer_urls: asked(head, body).await? };
            match worker.ask(|member, reply| member.change_membership(change, reply)).await {
                Ok(_) => Ok(done()),
                Err(Error::MemberNotFound) => Err(unknown(&format!("{id:x}"))),
                Err(error) => Err(failure(Some(error))),
            }
        }
    }
}

fn failure(error: Option<Error>) -> Response<Body> {
    match error {
        Some(Error::PeerURLExist) => message(StatusCode::CONFLICT, "membership: peerURL exists"),
        error => {
            if let Some(error) = error {
                tracing::warn!(error = %error, "cannot change the membership");
            }
            message(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
        }
    }
}

fn unknown(id: &str) -> Response<Body> {
    message(StatusCode::NOT_FOUND, &format!("No such member: {id}"))
}

/// The member that a path names; otherwise why it names none.
fn id(rest: &str) -> Result<u64, Box<Response<Body>>> {
    if rest.is_empty() {
        return Err(Box::new(method_not_allowed()));
    }
    let digits = rest.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = if digits { u64::from_str_radix(rest, 16).ok() } else { None };
    id.ok_or_else(|| Box::new(unknown(rest)))
}

/// The peer URLs in a request's body, sorted.
async fn asked(head: &Parts, body: Incoming) -> Result<Vec<String>, Response<Body>> {
    let given = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let kind = match given.split_once(';') {
        Some((kind, _)) => kind.to_lowercase().trim().to_owned(),
        None => given.to_owned(),
    };
    if kind != "application/json" {
        let text = format!("Bad Content-Type {kind}, accept application/json");
        return Err(message(StatusCode::UNSUPPORTED_MEDIA_TYPE, &text));
    }
    let bad = |text: String| message(StatusCode::BAD_REQUEST, &text);
    let body = read_body(body).await.map_err(bad)?;
    let asked: Option<Asked> = serde_json::from_slice(&body).map_err(|error| {
        bad(if error.is_eof() { "unexpected end of JSON input".into() } else { format!("json: {error}") })
    })?;
    let urls = asked.unwrap_or_default().peer_urls.unwrap_or_default();
    if urls.is_empty() {
        return Err(bad("no valid URLs given".into()));
    }
    let mut checked = urls.iter().map(|url| check(url.trim())).collect::<Result<Vec<_>, _>>().map_err(bad)?;
    checked.sort_unstable();
    Ok(checked)
}

/// Whether a URL can be a peer's.
fn check(url: &str) -> Result<String, String> {
    let Some((scheme, rest)) = url.split_once("://") else {
        let first = url.split('/').next().unwrap_or("");
        // What comes before a colon is taken for a scheme, if it can be one.
        let begins_well = first.starts_with(|c: char| c.is_ascii_alphabetic());
        if first.contains(':') && !begins_well {
            return Err(format!("parse {url:?}: first path segment in URL cannot contain colon"));
        }
        return Err(format!("URL scheme must be http, https, unix, or unixs: {url}"));
    };
    if !["http", "https", "unix", "unixs"].contains(&scheme) {
        return Err(format!("URL scheme must be http, https, unix, or unixs: {url}"));
    }
    let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let port = host.rsplit_once(':').filter(|(name, _)| !name.contains(':') || name.ends_with(']'));
    if port.is_none() {
        return Err(format!("URL address does not have the form \"host:port\": {url}"));
    }
    if !path.is_empty() {
        return Err(format!("URL must not contain a path: {url}"));
    }
    if scheme.starts_with("http") && url.parse::<Uri>().is_err() {
        return Err(format!("parse {url:?}: invalid URL"));
    }
    Ok(url.to_owned())
}
