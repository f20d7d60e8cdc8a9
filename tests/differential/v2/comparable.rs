//! What of two answers has to be equal, and what cannot be.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::harness::{HttpReply, HttpRequest};

/// Headers that are compared as they are; the others only tell of one server's address, log or time, or how a body is
/// delimited.
const EXACT: [&str; 8] = [
    "content-type",
    "allow",
    "location",
    "x-etcd-index",
    "x-content-type-options",
    "access-control-allow-origin",
    "access-control-allow-methods",
    "access-control-allow-headers",
];
/// Headers that only have to be there.
const PRESENT: [&str; 3] = ["x-etcd-cluster-id", "x-raft-index", "x-raft-term"];
/// How many seconds apart two servers may say that a node ends: the same request reaches them at different moments.
const SECONDS_APART: i64 = 60;

/// An answer, reduced to what has to be equal.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Comparable {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Body,
}

#[derive(Clone, Debug, PartialEq)]
enum Body {
    Text(String),
    Json(Value),
}

/// Counters as they were when the comparison began: how often a server was asked whether it is ready differs.
pub(super) type Counters = serde_json::Map<String, Value>;

pub(super) fn comparable(request: &HttpRequest, reply: &HttpReply, begun: &Counters) -> Comparable {
    let mut headers = BTreeMap::new();
    for (name, value) in &reply.headers {
        if EXACT.contains(&name.as_str()) {
            headers.insert(name.clone(), value.clone());
        } else if PRESENT.contains(&name.as_str()) {
            headers.insert(name.clone(), String::new());
        }
    }
    let mut body = reply.json();
    let body = match (&mut body, reply.body.is_empty()) {
        (Value::Null, _) | (_, true) => Body::Text(reply.body.clone()),
        (Value::Object(counters), _) if request.path == "/v2/stats/store" => {
            // A watch that its client has left is open until the server notices.
            counters.remove("watchers");
            for (name, value) in counters.iter_mut() {
                let (now, then) = (value.as_u64(), begun.get(name).and_then(Value::as_u64));
                *value = now.zip(then).map(|(now, then)| now.wrapping_sub(then)).into();
            }
            Body::Json(body)
        }
        _ => {
            // Only the first of repeated parameters counts.
            let sorted = request.path.split(['?', '&']).find_map(|pair| pair.strip_prefix("sorted="));
            let sorted = sorted.is_some_and(|value| ["1", "t", "T", "TRUE", "true", "True"].contains(&value));
            normalise(&mut body, sorted);
            Body::Json(body)
        }
    };
    Comparable { status: reply.status, headers, body }
}

/// A line of a watch, reduced to what has to be equal.
pub(super) fn comparable_line(line: &str) -> Value {
    let mut event = serde_json::from_str(line).unwrap_or_else(|_| Value::String(line.to_owned()));
    normalise(&mut event, false);
    event
}

/// Children come in any order unless they were asked for in one; times are compared apart from the rest.
fn normalise(value: &mut Value, sorted: bool) {
    match value {
        Value::Object(fields) => {
            for name in ["expiration", "ttl"] {
                if let Some(value) = fields.get_mut(name) {
                    *value = Value::Null;
                }
            }
            if let Some(Value::Array(nodes)) = fields.get_mut("nodes")
                && !sorted
            {
                nodes.sort_by_key(|node| node["key"].as_str().unwrap_or_default().to_owned());
            }
            fields.values_mut().for_each(|value| normalise(value, sorted));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| normalise(value, sorted)),
        _ => {}
    }
}

/// Whether two bodies name times that are near each other. Both have passed all other comparisons.
pub(super) fn times_fit(reference: &str, subject: &str) -> bool {
    let times = |body: &str| {
        let mut times = Vec::new();
        let mut body = serde_json::from_str(body).unwrap_or_default();
        sort_all(&mut body);
        collect(&body, &mut times);
        times
    };
    let (reference, subject) = (times(reference), times(subject));
    reference.len() == subject.len()
        && reference.iter().zip(&subject).all(|(one, other)| match (one, other) {
            (Some(one), Some(other)) => (one - other).abs() <= SECONDS_APART,
            _ => false,
        })
}

fn sort_all(value: &mut Value) {
    if let Some(Value::Array(nodes)) = value.get_mut("nodes") {
        nodes.sort_by_key(|node| node["key"].as_str().unwrap_or_default().to_owned());
        nodes.iter_mut().for_each(sort_all);
    }
    for name in ["node", "prevNode"] {
        if let Some(node) = value.get_mut(name) {
            sort_all(node);
        }
    }
}

/// All times of a body in seconds; none for one that cannot be read.
fn collect(value: &Value, times: &mut Vec<Option<i64>>) {
    match value {
        Value::Object(fields) => {
            if let Some(expiration) = fields.get("expiration") {
                times.push(expiration.as_str().and_then(seconds));
            }
            if let Some(ttl) = fields.get("ttl") {
                times.push(ttl.as_i64());
            }
            fields.values().for_each(|value| collect(value, times));
        }
        Value::Array(list) => list.iter().for_each(|value| collect(value, times)),
        _ => {}
    }
}

/// Seconds since 1970 of `2026-11-23T01:02:03.456Z`.
fn seconds(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.split(':').map(|part| part.split('.').next()?.parse::<i64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    // Years that begin in March, as in Howard Hinnant's days_from_civil.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (153 * month + 2) / 5 + day
            - 1
            - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds("2026-11-23T02:08:34.529251233Z"), Some(1_795_399_714));
        assert_eq!(seconds("tomorrow"), None);
    }

    #[test]
    fn times_that_are_far_apart_do_not_fit() {
        let body = |ttl: i64| format!(r#"{{"node":{{"ttl":{ttl}}}}}"#);
        assert!(times_fit(&body(100), &body(101)));
        assert!(!times_fit(&body(100), &body(200)));
        assert!(!times_fit(&body(100), "{}"));
    }
}
