//! `/v2/members`.

use std::rc::Rc;

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use serde::Serialize;
use serde_json::Value;
use state::Error;

use super::{Body, add_cluster_id, auth, go_json, json, message, method_not_allowed};
use crate::http1::{Answer, Payload};
use crate::member::{self, MemberChange};
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

/// Answers a request; `rest` is the path below.
pub(super) async fn serve(worker: &Rc<Worker>, head: &Parts, rest: &str, body: Payload) -> Answer {
    let mut answer = Answer::from(match head.method {
        Method::GET => show(worker, rest),
        _ if !auth::is_root(worker, head).await => return auth::no_rights().into(),
        _ => change(worker, head, rest, body).await.unwrap_or_else(|refusal| refusal),
    });
    add_cluster_id(worker, &mut answer);
    answer
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
    body: Payload,
) -> Result<Response<Body>, Response<Body>> {
    let done = || {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response
    };
    match head.method {
        Method::POST => {
            let peer_urls = asked(head, body).map_err(|refusal| *refusal)?;
            let change = MemberChange::Add { peer_urls, is_learner: false };
            match worker.ask(|member, reply| member.change_membership(change, reply)).await {
                Ok(member::Answer::Members { added: Some(added), .. }) => {
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
            let change = MemberChange::Update { id, peer_urls: asked(head, body).map_err(|refusal| *refusal)? };
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
fn asked(head: &Parts, body: Payload) -> Result<Vec<String>, Box<Response<Body>>> {
    let given = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let kind = match given.split_once(';') {
        Some((kind, _)) => kind.to_lowercase().trim().to_owned(),
        None => given.to_owned(),
    };
    if kind != "application/json" {
        let text = format!("Bad Content-Type {kind}, accept application/json");
        return Err(Box::new(message(StatusCode::UNSUPPORTED_MEDIA_TYPE, &text)));
    }
    let bad = |text: String| Box::new(message(StatusCode::BAD_REQUEST, &text));
    let body = body.map_err(|what| bad(what.to_owned()))?;
    let urls = peer_urls(&body).map_err(bad)?;
    if urls.is_empty() {
        return Err(bad("no valid URLs given".into()));
    }
    let mut checked = urls.iter().map(|url| check(url.trim())).collect::<Result<Vec<_>, _>>().map_err(bad)?;
    checked.sort_unstable();
    Ok(checked)
}

/// The list `peerURLs` of a body; empty if there is none. The error is what Go's parser says.
fn peer_urls(body: &[u8]) -> Result<Vec<String>, String> {
    const ASKED: &str = r#"struct { PeerURLs []string "json:\"peerURLs\"" }"#;
    if let Some(fault) = crate::json::syntax_fault(body) {
        return Err(fault);
    }
    let mismatch = |value: &Value, place: &str| {
        Err(format!("json: cannot unmarshal {} into Go {place}", crate::json::kind(value)))
    };
    let fields = match crate::json::decode(body)? {
        Value::Null => return Ok(Vec::new()),
        Value::Object(fields) => fields,
        other => return mismatch(&other, &format!("value of type {ASKED}")),
    };
    let mut urls = Vec::new();
    for (_, value) in fields.into_iter().filter(|(name, _)| name.eq_ignore_ascii_case("peerURLs")) {
        let list = match value {
            Value::Null => Vec::new(),
            Value::Array(list) => list,
            other => return mismatch(&other, "struct field .peerURLs of type []string"),
        };
        urls.clear();
        for element in list {
            match element {
                Value::Null => urls.push(String::new()),
                Value::String(url) => urls.push(url),
                other => return mismatch(&other, "struct field .peerURLs of type string"),
            }
        }
    }
    Ok(urls)
}

/// Whether a URL can be a peer's. The order of the checks is that of Go's parser, then of etcd.
fn check(url: &str) -> Result<String, String> {
    let fault = |what: String| Err(format!("parse {url:?}: {what}"));
    let (scheme, rest) = match url.split_once(':') {
        Some(("", _)) => return fault("missing protocol scheme".into()),
        Some((scheme, rest)) if is_scheme(scheme) => (scheme, rest),
        Some((segment, _)) if !segment.contains('/') => {
            return fault("first path segment in URL cannot contain colon".into());
        }
        _ => ("", url),
    };
    let (authority, path) = match rest.strip_prefix("//") {
        Some(rest) => rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len())),
        None => ("", rest),
    };
    let host_port = authority.rsplit_once('@').map_or(authority, |(_, host_port)| host_port);
    if let Some(character) = host_port.chars().find(|c| c.is_control() || " \"<>\\^`{|}".contains(*c)) {
        return fault(format!("invalid character {:?} in host name", character.to_string()));
    }
    // A colon inside of brackets belongs to the address.
    let port = host_port.rsplit_once(':').filter(|(_, port)| !port.contains(']'));
    if let Some((_, port)) = port
        && !port.bytes().all(|byte| byte.is_ascii_digit())
    {
        return fault(format!("invalid port {:?} after host", format!(":{port}")));
    }
    if !["http", "https", "unix", "unixs"].contains(&scheme.to_ascii_lowercase().as_str()) {
        return Err(format!("URL scheme must be http, https, unix, or unixs: {url}"));
    }
    if port.is_none_or(|(host, _)| host.contains(':') && !(host.starts_with('[') && host.ends_with(']'))) {
        return Err(format!("URL address does not have the form \"host:port\": {url}"));
    }
    if path.starts_with('/') {
        return Err(format!("URL must not contain a path: {url}"));
    }
    Ok(url.to_owned())
}

/// Whether this can stand before the colon of a URL.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each URL with what etcd 3.4.23 answered; nothing = taken.
    #[test]
    fn urls_are_judged_as_etcd_judges_them() {
        let table = [
            ("http://127.0.0.1:2380", ""),
            ("http://[::1]:2380", ""),
            ("HTTP://a:1", ""),
            ("http://a:1?x", ""),
            ("http://u@a:1", ""),
            ("http://a:b/x", r#"parse "http://a:b/x": invalid port ":b" after host"#),
            ("http://a:x:y", r#"parse "http://a:x:y": invalid port ":y" after host"#),
            ("unix://a:b", r#"parse "unix://a:b": invalid port ":b" after host"#),
            ("http://a b:1", r#"parse "http://a b:1": invalid character " " in host name"#),
            ("1:1", r#"parse "1:1": first path segment in URL cannot contain colon"#),
            (":1", r#"parse ":1": missing protocol scheme"#),
            ("a:1", "URL scheme must be http, https, unix, or unixs: a:1"),
            ("", "URL scheme must be http, https, unix, or unixs: "),
            ("/", "URL scheme must be http, https, unix, or unixs: /"),
            ("http://a:b:1", r#"URL address does not have the form "host:port": http://a:b:1"#),
            ("http://[::1]", r#"URL address does not have the form "host:port": http://[::1]"#),
            ("unix://a", r#"URL address does not have the form "host:port": unix://a"#),
            ("http://", r#"URL address does not have the form "host:port": http://"#),
            ("http://127.0.0.1:1/", "URL must not contain a path: http://127.0.0.1:1/"),
        ];
        for (url, fault) in table {
            let expected = if fault.is_empty() { Ok(url.to_owned()) } else { Err(fault.to_owned()) };
            assert_eq!(check(url), expected, "{url}");
        }
    }

    #[test]
    fn names_of_fields_may_be_in_any_case_and_nulls_are_nothing() {
        assert_eq!(peer_urls(br#"{"PEERurls":["a",null]}"#), Ok(vec!["a".to_owned(), String::new()]));
        assert_eq!(peer_urls(b"null"), Ok(vec![]));
        assert_eq!(peer_urls(br#"{"peerURLs":null}"#), Ok(vec![]));
        let fault = "json: cannot unmarshal number into Go struct field .peerURLs of type string";
        assert_eq!(peer_urls(br#"{"peerURLs":[1]}"#), Err(fault.to_owned()));
    }
}
