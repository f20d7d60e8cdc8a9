//! What the log says of calls that took long: etcd's lines, with the parts that the time went to.
//!
//! - `apply request took too long`, for reads longer than `--warning-apply-duration` (those of writes come from who applies them);
//! - `trace[N] put`, for what took longer than 100 ms;
//! - `request stats`, for what took longer than `--warning-unary-request-duration`.
//!
//! The logger thins out lines that come too often; of traces, each worker writes [`TRACES_PER_SECOND`].

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use prost::Message as _;
use proto::etcdserverpb as pb;
use time::OffsetDateTime;
use tracing::field::{DebugValue, debug};

use crate::grpc::method::Method;
use crate::loggable::Loggable;
use crate::member::Limits;
use crate::timing::{Part, Parts};

/// What takes longer is traced, as in etcd.
const TRACED: Duration = Duration::from_millis(100);

/// Traces that a worker may write in a second.
pub(crate) const TRACES_PER_SECOND: u32 = 50;

/// What a call asked for, as far as that is still known when it ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Subject<'a> {
    Unknown,
    Range(&'a pb::RangeRequest),
    Txn(&'a pb::TxnRequest),
    /// The data of its log entry, kept only if it took long.
    Entry(&'a Bytes),
}

/// A call that has ended.
pub(crate) struct Ended<'a> {
    pub(crate) method: Method,
    pub(crate) remote: Option<SocketAddr>,
    pub(crate) subject: Subject<'a>,
    /// The response without prefix, or the error.
    pub(crate) response: Result<Bytes, &'a str>,
    pub(crate) arrived: Instant,
    pub(crate) answered: Instant,
    pub(crate) parts: Parts,
}

/// The shortest time after which the log says something of a call.
pub fn threshold(limits: &Limits) -> Duration {
    limits.warning_unary_request.min(limits.warning_apply).min(TRACED)
}

/// What the lines say of a request and its response.
struct Stats {
    content: String,
    requests: i64,
    request_bytes: i64,
    responses: i64,
    response_bytes: i64,
}

impl Stats {
    const UNKNOWN: Self =
        Self { content: String::new(), requests: -1, request_bytes: -1, responses: -1, response_bytes: -1 };
}

impl Ended<'_> {
    /// Tells of it in the log, if it took long enough. `traces` is asked whether a trace may be written: their messages differ,
    /// so the logger cannot thin them out.
    pub(crate) fn tell(&self, limits: &Limits, traces: impl FnOnce() -> bool) {
        let took = self.answered.saturating_duration_since(self.arrived);
        if took > limits.warning_apply {
            self.tell_read(took, limits.warning_apply);
        }
        if took > TRACED && traces() {
            self.tell_trace(took);
        }
        if took > limits.warning_unary_request {
            self.tell_stats(took);
        }
    }

    fn part(&self, wanted: Part) -> Option<DebugValue<Duration>> {
        self.parts.all().iter().find(|(part, _)| *part == wanted).map(|(_, took)| debug(*took))
    }

    fn tell_read(&self, took: Duration, expected: Duration) {
        let response = self.response.as_ref().ok();
        let (prefix, request, response) = match self.subject {
            Subject::Range(range) => {
                let response = response.map(|response| {
                    let kvs = pb::RangeResponse::decode(response.clone()).map_or(0, |range| range.kvs.len());
                    format!("range_response_count:{kvs} size:{}", response.len())
                });
                ("read-only range ", Loggable(range).to_string(), response)
            }
            Subject::Txn(txn) => {
                let response = response.map(|response| {
                    let counts = counts_of_ranges(response).join(" ");
                    format!("responses:<{counts}> size:{}", response.len())
                });
                ("read-only txn ", Loggable(txn).to_string(), response)
            }
            Subject::Entry(_) | Subject::Unknown => return,
        };
        tracing::warn!(
            took = ?took,
            "expected-duration" = ?expected,
            prefix,
            request,
            response = response.unwrap_or_default(),
            error = self.response.as_ref().err(),
            queue = self.part(Part::ReadQueue),
            "read-index" = self.part(Part::ReadIndex),
            read = self.part(Part::Read),
            "apply request took too long"
        );
    }

    fn tell_stats(&self, took: Duration) {
        let stats = self.stats();
        let queue = self.part(Part::WriteQueue).or_else(|| self.part(Part::ReadQueue));
        tracing::warn!(
            "start time" = %timestamp(SystemTime::now(), self.arrived.elapsed()),
            "time spent" = ?took,
            remote = %self.remote(),
            "response type" = self.method.path(),
            "request count" = stats.requests,
            "request size" = stats.request_bytes,
            "response count" = stats.responses,
            "response size" = stats.response_bytes,
            "request content" = stats.content,
            error = self.response.as_ref().err(),
            queue,
            fsync = self.part(Part::WriteFsync),
            replicate = self.part(Part::WriteReplicate),
            wait = self.part(Part::WriteWait),
            apply = self.part(Part::WriteApply),
            send = self.part(Part::WriteSend),
            "read-index" = self.part(Part::ReadIndex),
            read = self.part(Part::Read),
            "request stats"
        );
    }

    fn tell_trace(&self, took: Duration) {
        let operation = match self.method {
            Method::Range => "range",
            Method::Put => "put",
            Method::Txn => "transaction",
            Method::DeleteRange => "delete_range",
            Method::Compact => "compact",
            _ => return,
        };
        let number: u32 = (self.arrived.elapsed().as_nanos() as u32) & 0x7fff_ffff;
        let steps: Vec<String> = (self.parts.all().iter())
            .filter(|(_, took)| !took.is_zero())
            .map(|(part, took)| format!("trace[{number}] '{}'  (duration: {took:?})", part.step()))
            .collect();
        let now = SystemTime::now();
        tracing::info!(
            detail = %self.detail(),
            duration = ?took,
            start = %timestamp(now, self.arrived.elapsed()),
            end = %timestamp(now, self.answered.elapsed()),
            steps = ?steps,
            step_count = steps.len(),
            "trace[{number}] {operation}"
        );
    }

    fn detail(&self) -> String {
        let response = self.response.as_ref().ok();
        match self.subject {
            Subject::Range(range) => {
                let response = response.and_then(|response| pb::RangeResponse::decode(response.clone()).ok());
                let (count, revision) = response.map_or((0, 0), |range| (range.kvs.len(), revision(&range.header)));
                format!(
                    "{{range_begin:{}; range_end:{}; response_count:{count}; response_revision:{revision}; }}",
                    range.key.escape_ascii(),
                    range.range_end.escape_ascii()
                )
            }
            Subject::Entry(data) => match pb::InternalRaftRequest::decode(data.clone()) {
                Ok(pb::InternalRaftRequest { put: Some(put), .. }) => {
                    let response = response.and_then(|response| pb::PutResponse::decode(response.clone()).ok());
                    format!(
                        "{{key:{}; req_size:{}; response_revision:{}; }}",
                        put.key.escape_ascii(),
                        put.encoded_len(),
                        response.map_or(0, |put| revision(&put.header))
                    )
                }
                _ => String::new(),
            },
            Subject::Txn(txn) => format!("{{read_only:true; req_size:{}; }}", txn.encoded_len()),
            Subject::Unknown => String::new(),
        }
    }

    fn remote(&self) -> String {
        self.remote.map_or_else(|| "No remote client info.".into(), |remote| remote.to_string())
    }

    fn stats(&self) -> Stats {
        let response = self.response.as_ref().ok();
        let response_bytes = response.map_or(0, |response| size(response.len()));
        let known = |content: String, requests: usize, request_bytes: usize| Stats {
            content,
            requests: size(requests),
            request_bytes: size(request_bytes),
            responses: 0,
            response_bytes,
        };
        match self.subject {
            Subject::Range(range) => Stats {
                responses: response
                    .and_then(|response| pb::RangeResponse::decode(response.clone()).ok())
                    .map_or(0, |range| range.count),
                ..known(Loggable(range).to_string(), 0, range.encoded_len())
            },
            Subject::Txn(txn) => self.stats_of_txn(txn, &known),
            Subject::Entry(data) => match pb::InternalRaftRequest::decode(data.clone()).unwrap_or_default() {
                pb::InternalRaftRequest { put: Some(put), .. } => {
                    known(Loggable(&put).to_string(), 1, put.encoded_len())
                }
                pb::InternalRaftRequest { delete_range: Some(delete), .. } => Stats {
                    responses: response
                        .and_then(|response| pb::DeleteRangeResponse::decode(response.clone()).ok())
                        .map_or(0, |delete| delete.deleted),
                    ..known(Loggable(&delete).to_string(), 0, delete.encoded_len())
                },
                pb::InternalRaftRequest { txn: Some(txn), .. } => self.stats_of_txn(&txn, &known),
                _ => Stats::UNKNOWN,
            },
            Subject::Unknown => Stats::UNKNOWN,
        }
    }

    /// Only the branch that was taken counts.
    fn stats_of_txn(&self, txn: &pb::TxnRequest, known: &dyn Fn(String, usize, usize) -> Stats) -> Stats {
        let response = self.response.as_ref().ok();
        let response = response.and_then(|response| pb::TxnResponse::decode(response.clone()).ok());
        let taken = if response.is_none_or(|txn| txn.succeeded) { &txn.success } else { &txn.failure };
        let bytes = taken.iter().map(prost::Message::encoded_len).sum();
        known(Loggable(txn).to_string(), taken.len(), bytes)
    }
}

fn revision(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().map_or(0, |header| header.revision)
}

fn size(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

fn counts_of_ranges(response: &Bytes) -> Vec<String> {
    let responses = pb::TxnResponse::decode(response.clone()).unwrap_or_default().responses.into_iter();
    let ranges = responses.filter_map(|response| match response.response {
        Some(pb::response_op::Response::ResponseRange(range)) => {
            Some(format!("range_response_count:{}", range.kvs.len()))
        }
        _ => None,
    });
    ranges.collect()
}

/// A moment so long before `now`, as etcd's log has it.
fn timestamp(now: SystemTime, before: Duration) -> String {
    let at = OffsetDateTime::from(now.checked_sub(before).unwrap_or(now));
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.millisecond()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_in_etcd() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_796_146_365_589);
        assert_eq!(timestamp(now, Duration::ZERO), "2026-12-01T17:32:45.589Z");
        assert_eq!(timestamp(now, Duration::from_secs(1)), "2026-12-01T17:32:44.589Z");
    }
}
