//! `PUT /config/local/log`: how much this member tells of itself, until it is restarted.

use http::{Response, StatusCode};
use serde_json::Value;

use super::{Body, message};
use crate::http1::Payload;
use crate::json;
use crate::member::LogLevel;
use crate::worker::Worker;

pub(super) fn serve(worker: &Worker, body: Payload) -> Response<Body> {
    let bad = |text: &str| message(StatusCode::BAD_REQUEST, text);
    let Some(name) = body.ok().and_then(|body| level_name(&body)) else {
        return bad("Invalid json body");
    };
    let Some(level) = level(&name.to_uppercase()) else {
        return bad(&format!("Invalid log level {name}"));
    };
    worker.member().set_log_level(level);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// The field `Level` of a body; empty if it is not given, none if there is no such thing in it.
fn level_name(body: &[u8]) -> Option<String> {
    let fields = match json::first_value(body).ok()? {
        Value::Null => return Some(String::new()),
        Value::Object(fields) => fields,
        _ => return None,
    };
    let mut name = String::new();
    for (_, value) in fields.into_iter().filter(|(name, _)| name.eq_ignore_ascii_case("level")) {
        match value {
            Value::Null => {}
            Value::String(given) => name = given,
            _ => return None,
        }
    }
    Some(name)
}

/// The names are those of etcd 3.4; it knew more levels than are told apart here.
fn level(name: &str) -> Option<LogLevel> {
    Some(match name {
        "CRITICAL" | "C" | "ERROR" | "E" => LogLevel::Error,
        "WARNING" | "W" => LogLevel::Warn,
        "NOTICE" | "N" | "INFO" | "I" => LogLevel::Info,
        "DEBUG" | "D" | "TRACE" | "T" => LogLevel::Debug,
        _ => return None,
    })
}
