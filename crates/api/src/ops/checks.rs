//! `/health`, `/livez` and `/readyz`.

use std::fmt::Write;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use proto::etcdserverpb as pb;
use serde_json::json;
use state::Error;
use tokio::time::timeout;

use crate::ops::{text, with_type};
use crate::worker::Worker;

/// One thing that can be wrong with a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
        }
    }

    async fn run(self, worker: &Worker) -> Result<(), String> {
        match self {
            Check::DataCorruption => match worker.member().state().alarms(pb::AlarmType::Corrupt.into()).is_empty() {
                true => Ok(()),
                false => Err("alarm activated: CORRUPT".into()),
            },
            Check::SerializableRead => read(worker, true).await.map_err(|error| format!("range error: {error}")),
            Check::LinearizableRead => read(worker, false).await.map_err(|error| format!("range error: {error}")),
            Check::NonLearner => match worker.member().is_learner() {
                false => Ok(()),
                true => Err("not supported for learner".into()),
            },
        }
    }
}

/// Checks that are asked for together.
pub(crate) struct Group {
    kind: &'static str,
    checks: Vec<Check>,
}

/// The checks behind `/livez`, `/readyz` or one of their sub-paths.
pub(crate) fn group(root: &str, check: Option<&str>) -> Option<Group> {
    let (kind, all): (_, &[Check]) = match root {
        "livez" => ("livez", &[Check::SerializableRead]),
        "readyz" => {
            ("readyz", &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner])
        }
        _ => return None,
    };
    let checks: Vec<_> = all.iter().copied().filter(|known| check.is_none_or(|name| name == known.name())).collect();
    (!checks.is_empty()).then_some(Group { kind, checks })
}

/// Runs a group, but for the checks that the query excludes.
pub(crate) async fn run(worker: &Rc<Worker>, group: &Group, query: &str) -> Response<Bytes> {
    let metrics = &worker.shared.metrics;
    let excluded = values(query, "exclude");
    let mut report = String::new();
    let mut healthy = true;
    for check in &group.checks {
        let name = check.name();
        if excluded.iter().any(|excluded| excluded == name) {
            continue;
        }
        let result = check.run(worker).await;
        let status = match &result {
            Ok(()) => "success",
            Err(_) => "error",
        };
        metrics.healthcheck.with_label_values(&[group.kind, name]).set(i64::from(result.is_ok()));
        metrics.healthchecks.with_label_values(&[group.kind, name, status]).inc();
        // Writing to a string cannot fail.
        let _ = match result {
            Ok(()) => writeln!(report, "[+]{name} ok"),
            Err(error) => {
                healthy = false;
                writeln!(report, "[-]{name} failed: {error}")
            }
        };
    }
    if !healthy {
        tracing::warn!(kind = group.kind, report, "health check failed");
        return text(StatusCode::SERVICE_UNAVAILABLE, report + "\n");
    }
    let verbose = query.split('&').any(|pair| pair == "verbose" || pair.starts_with("verbose="));
    let body = if verbose { report + "ok\n" } else { "ok\n".to_owned() };
    text(StatusCode::OK, body)
}

/// `/health`: alarms, a leader, and a read.
pub(crate) async fn health(worker: &Rc<Worker>, query: &str) -> Response<Bytes> {
    let metrics = &worker.shared.metrics;
    let serializable = values(query, "serializable").iter().any(|value| value == "true");
    let reason = ill(worker, &values(query, "exclude"), serializable).await;
    let body = format!(r#"{{"health":"{}","reason":{}}}"#, reason.is_none(), json!(reason.as_deref().unwrap_or("")));
    match reason {
        None => {
            metrics.health_success.inc();
            if worker.shared.http.v2 {
                // etcd's check is a read of the v2 tree, and shows in its counters.
                let _counted = worker.member().state().v2().get("/", false, 0);
            }
            with_type(StatusCode::OK, "text/plain; charset=utf-8", body)
        }
        Some(reason) => {
            tracing::warn!(reason, "serving /health false");
            metrics.health_failures.inc();
            text(StatusCode::SERVICE_UNAVAILABLE, body + "\n")
        }
    }
}

/// Why the member is not healthy, if it is not.
async fn ill(worker: &Worker, excluded: &[String], serializable: bool) -> Option<String> {
    for alarm in worker.member().state().alarms(0) {
        let name = match alarm.alarm() {
            pb::AlarmType::None => "UNKNOWN",
            kind => kind.as_str_name(),
        };
        if !excluded.iter().any(|excluded| excluded == name) {
            return Some(format!("ALARM {name}"));
        }
    }
    if !serializable && worker.member().leader() == 0 {
        return Some("RAFT NO LEADER".into());
    }
    read(worker, serializable).await.err().map(|error| format!("RANGE ERROR:{error}"))
}

/// Reads one key that nobody has.
async fn read(worker: &Worker, serializable: bool) -> Result<(), Error> {
    let limit = Duration::from_millis(worker.member().limits().request_timeout_ms);
    if !serializable {
        timeout(limit, worker.barrier()).await.map_err(|_| Error::Timeout)??;
    }
    let request = pb::RangeRequest {
        key: Bytes::from_static(b"a"),
        limit: 1,
        keys_only: true,
        serializable,
        ..Default::default()
    };
    worker.member().state().range(&request).map(|_| ())
}

/// The values that a query gives `name`; health checks need no percent-decoding.
fn values(query: &str, name: &str) -> Vec<String> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value.to_owned())
        .collect()
}
