//! The v2 API: keys, members, machines, users and statistics as REST over HTTP/1.1.
//!
//! Reads and watches are answered from memory on the worker that received them; what changes something, and reads with
//! `quorum`, go through the log.

mod auth;
mod body;
mod form;
mod keys;
mod log_level;
mod members;
mod stats;

use std::borrow::Cow;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};
use memchr::{memchr, memchr2};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

pub(crate) use body::{Body, Watching};
pub use stats::{FollowerStats, MessageRate, SelfStats};

use crate::http1::{Answer, Payload};
use crate::worker::Worker;

/// What most bodies are.
const JSON: &str = "application/json";

/// The path below `prefix`, if it is that or below it.
fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Answers a request to `path`, which has been decoded and cleaned; `None` if there is no such path.
pub(crate) async fn serve(worker: &Rc<Worker>, head: &Parts, path: &str, body: Payload) -> Option<Answer> {
    if let Some(key) = below(path, "/v2/keys") {
        return Some(match refuse_method(head, &["HEAD", "GET", "PUT", "POST", "DELETE"]) {
            Some(refusal) => refusal.into(),
            None => keys::serve(worker, head, key, body).await,
        });
    }
    // Whoever works with keys must not carry the room that the others' futures need.
    Box::pin(serve_other(worker, head, path, body)).await
}

async fn serve_other(worker: &Rc<Worker>, head: &Parts, path: &str, body: Payload) -> Option<Answer> {
    // Not below /v2, but gone from etcd together with it.
    if path == "/config/local/log" {
        return Some(match refuse_method(head, &["PUT"]) {
            Some(refusal) => refusal.into(),
            None => log_level::serve(worker, body).into(),
        });
    }
    let rest = below(path, "/v2")?;
    if let Some(member) = below(rest, "/members") {
        return Some(match refuse_method(head, &["GET", "POST", "DELETE", "PUT"]) {
            Some(refusal) => refusal.into(),
            None => members::serve(worker, head, member.trim_start_matches('/'), body).await,
        });
    }
    if let Some(rest) = below(rest, "/auth") {
        return auth::serve(worker, head, rest, body).await;
    }
    type Page = fn(&Worker) -> Response<Body>;
    let (answer, allowed): (Page, &[&str]) = match rest {
        "/machines" => (machines, &["GET", "HEAD"]),
        "/stats/self" => (stats::own, &["GET"]),
        "/stats/leader" => (stats::leader, &["GET"]),
        "/stats/store" => (stats::store, &["GET"]),
        _ => return None,
    };
    Some(refuse_method(head, allowed).unwrap_or_else(|| answer(worker)).into())
}

fn machines(worker: &Worker) -> Response<Body> {
    let mut urls: Vec<String> =
        worker.member().state().members().into_iter().flat_map(|member| member.client_urls).collect();
    urls.sort_unstable();
    with_type(StatusCode::OK, "text/plain; charset=utf-8", urls.join(", "))
}

/// Nanoseconds since 1970.
fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

// --- paths ---

fn hex(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Resolves `%41` and, in forms, `+`. The error is the part that is no escape.
fn unescape(text: &[u8], plus_is_space: bool) -> Result<Cow<'_, [u8]>, String> {
    let next = |text: &[u8]| if plus_is_space { memchr2(b'%', b'+', text) } else { memchr(b'%', text) };
    let Some(mut at) = next(text) else { return Ok(Cow::Borrowed(text)) };
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    loop {
        out.extend_from_slice(&rest[..at]);
        let after = &rest[at + 1..];
        if rest[at] == b'+' {
            out.push(b' ');
            rest = after;
        } else {
            let digits = after.first_chunk::<2>().and_then(|[a, b]| Some((hex(*a)?, hex(*b)?)));
            let Some((high, low)) = digits else {
                return Err(String::from_utf8_lossy(&rest[at..rest.len().min(at + 3)]).into_owned());
            };
            out.push(high << 4 | low);
            rest = &after[2..];
        }
        match next(rest) {
            Some(found) => at = found,
            None => {
                out.extend_from_slice(rest);
                return Ok(Cow::Owned(out));
            }
        }
    }
}

/// A request's path, decoded; none if it holds something that only looks like an escape.
pub(crate) fn decode_path(path: &str) -> Option<Cow<'_, str>> {
    Some(match unescape(path.as_bytes(), false).ok()? {
        Cow::Borrowed(_) => Cow::Borrowed(path),
        Cow::Owned(decoded) => Cow::Owned(String::from_utf8_lossy(&decoded).into_owned()),
    })
}

/// What Go's URLs escape in a path.
const NOT_IN_A_PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b',')
    .remove(b'/')
    .remove(b':')
    .remove(b';')
    .remove(b'=')
    .remove(b'@');

/// Where a decoded path that is not in its shortest form, or lacks its last slash, leads to, with the query.
pub(crate) fn clean_location(path: &str, query: Option<&str>) -> Option<String> {
    let clean = if path == "/v3" { "/v3/".into() } else { clean_path(path) };
    if clean == path {
        return None;
    }
    let mut location = utf8_percent_encode(&clean, NOT_IN_A_PATH).to_string();
    if let Some(query) = query {
        location.push('?');
        location.push_str(query);
    }
    Some(location)
}

/// In its shortest form, but with the slash at its end.
fn clean_path(path: &str) -> Cow<'_, str> {
    let shortest = path.strip_suffix('/').unwrap_or(path);
    if state::v2::is_clean(shortest) {
        return Cow::Borrowed(path);
    }
    let mut clean = state::v2::clean(path).into_owned();
    if path.ends_with('/') && clean != "/" {
        clean.push('/');
    }
    Cow::Owned(clean)
}

/// Sends a client to the path that it should have asked for.
pub(crate) fn redirect(method: &Method, location: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    if method == Method::GET || method == Method::HEAD {
        let link = location.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;");
        let page = format!("<a href=\"{link}\">Moved Permanently</a>.\n\n");
        response = with_type(StatusCode::OK, "text/html; charset=utf-8", page);
    }
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// To a path that cannot be decoded.
pub(crate) fn bad_request() -> Response<Body> {
    with_type(StatusCode::BAD_REQUEST, "text/plain; charset=utf-8", "400 Bad Request")
}

// --- shapes ---

fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let body = body.into();
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(Body::Whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CONTENT_LENGTH, length);
    response
}

fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    with_type(status, JSON, body)
}

/// An error of members and statistics, which have another form than those of keys.
fn message(status: StatusCode, text: &str) -> Response<Body> {
    json(status, go_json(&serde_json::json!({ "message": text })))
}

/// JSON as Go writes it.
fn go_json(value: &impl serde::Serialize) -> String {
    let json = serde_json::to_string(value).unwrap_or_default();
    json.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e")
}

fn plain_refusal(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = with_type(status, "text/plain; charset=utf-8", text);
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

fn method_not_allowed() -> Response<Body> {
    plain_refusal(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n")
}

/// Refuses a method that a path does not know.
fn refuse_method(head: &Parts, allowed: &[&str]) -> Option<Response<Body>> {
    if allowed.contains(&head.method.as_str()) {
        return None;
    }
    let mut refusal = method_not_allowed();
    if let Ok(list) = HeaderValue::from_str(&allowed.join(",")) {
        refusal.headers_mut().insert(ALLOW, list);
    }
    Some(refusal)
}

fn add_cluster_id(worker: &Worker, answer: &mut Answer) {
    answer.fields.add_formatted("X-Etcd-Cluster-Id", format_args!("{:x}", worker.member().identity().cluster_id));
}

#[cfg(fuzzing)]
pub(crate) mod fuzzing {
    pub(crate) fn parameters(head: &http::request::Parts, path: &str, body: &[u8]) {
        let _ = super::form::parse(head, path, body, 0);
        let _ = crate::json::syntax_fault(body).is_none().then(|| crate::json::decode(body));
        let _ = crate::json::first_value(body);
    }
}
