//! `/v2/stats`.

use http::{Response, StatusCode};
use serde_json::json;

use super::{Body, json, message};
use crate::worker::Worker;

/// Appends to or from other members.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MessageRate {
    /// Appends since the start.
    pub count: u64,
    /// Of the last 200 of them: per second; 0 if the last is more than a second ago.
    pub packets_per_second: f64,
    /// The same in bytes.
    pub bytes_per_second: f64,
}

/// What a member knows of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SelfStats {
    /// Its name.
    pub name: String,
    /// When it started, in nanoseconds since 1970.
    pub started_ns: i64,
    /// ID of the last leader that it knew; 0 before there was any.
    pub leader: u64,
    /// Since when that one leads, in nanoseconds since 1970.
    pub leader_since_ns: i64,
    /// For how long, as Go writes a duration.
    pub leader_uptime: String,
    /// What it received.
    pub received: MessageRate,
    /// What it sent.
    pub sent: MessageRate,
}

/// What a leader knows of a follower: the time that messages to it took, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct FollowerStats {
    pub id: u64,
    pub current: f64,
    pub average: f64,
    pub standard_deviation: f64,
    pub minimum: f64,
    pub maximum: f64,
    /// Messages that could not be sent.
    pub fail: u64,
    /// Messages that were.
    pub success: u64,
}

/// A number as Go writes it: whole ones without a point.
fn number(value: f64) -> serde_json::Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

pub(super) fn own(worker: &Worker) -> Response<Body> {
    let member = worker.member();
    let stats = member.self_stats();
    let (own, leader) = (member.identity().member_id, stats.leader);
    let state = if own == leader { "StateLeader" } else { "StateFollower" };
    let rates = |name: &str, traffic: &MessageRate| {
        let mut text = format!(r#","{name}AppendRequestCnt":{}"#, traffic.count);
        for (kind, rate) in [("Pkg", traffic.packets_per_second), ("Bandwidth", traffic.bytes_per_second)] {
            if rate != 0.0 {
                text.push_str(&format!(r#","{name}{kind}Rate":{}"#, number(rate)));
            }
        }
        text
    };
    let leader_id = if leader == 0 { String::new() } else { format!("{leader:x}") };
    let body = format!(
        r#"{{"name":{},"id":"{own:x}","state":"{state}","startTime":"{}","leaderInfo":{{"leader":"{leader_id}","uptime":"{}","startTime":"{}"}}{}{}}}"#,
        json!(stats.name),
        state::v2::time(stats.started_ns),
        stats.leader_uptime,
        state::v2::time(stats.leader_since_ns),
        rates("recv", &stats.received),
        rates("send", &stats.sent),
    );
    json(StatusCode::OK, body)
}

pub(super) fn leader(worker: &Worker) -> Response<Body> {
    let member = worker.member();
    let own = member.identity().member_id;
    if member.leader() != own {
        return message(StatusCode::FORBIDDEN, "not current leader");
    }
    let mut followers = member.follower_stats();
    followers.sort_by_key(|follower| format!("{:x}", follower.id));
    let follower = |f: &FollowerStats| {
        format!(
            r#""{:x}":{{"latency":{{"current":{},"average":{},"standardDeviation":{},"minimum":{},"maximum":{}}},"counts":{{"fail":{},"success":{}}}}}"#,
            f.id,
            number(f.current),
            number(f.average),
            number(f.standard_deviation),
            number(f.minimum),
            number(f.maximum),
            f.fail,
            f.success
        )
    };
    let followers: Vec<String> = followers.iter().map(follower).collect();
    json(StatusCode::OK, format!(r#"{{"leader":"{own:x}","followers":{{{}}}}}"#, followers.join(",")))
}

pub(super) fn store(worker: &Worker) -> Response<Body> {
    json(StatusCode::OK, worker.member().state().v2().counters().to_json())
}
