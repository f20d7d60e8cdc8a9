//! Members, endpoints and alarms.

use super::{Lines, Show, Unsupported, header_json};
use crate::go;
use cli::json::{Object, push_list, push_text};
use cli::table::Table;
use prost::Message;
use proto::etcdserverpb::{
    AlarmResponse, AlarmType, HashKvResponse, Member, MemberListResponse, ResponseHeader, StatusResponse,
};
use std::time::Duration;

/// A member that has not said its name yet was never started.
fn member_state(member: &Member) -> &'static str {
    if member.name.is_empty() { "unstarted" } else { "started" }
}

fn member_row(member: &Member) -> Vec<String> {
    vec![
        format!("{:x}", member.id),
        member_state(member).to_owned(),
        member.name.clone(),
        member.peer_ur_ls.join(","),
        member.client_ur_ls.join(","),
        member.is_learner.to_string(),
    ]
}

/// IDs as numbers, or with `--hex` as texts.
fn id_json(object: &mut Object<'_>, name: &str, id: u64, hex: bool) {
    if hex { object.text(name, &format!("{id:x}")) } else { object.some_number(name, id) }
}

/// An answer with members: header, member (for an addition), members.
pub fn members_json(
    out: &mut String,
    header: Option<&ResponseHeader>,
    member: Option<&Member>,
    members: &[Member],
    hex: bool,
) {
    let mut object = Object::begin(out);
    if let Some(header) = header {
        object.object("header", |inner| {
            id_json(inner, "cluster_id", header.cluster_id, hex);
            id_json(inner, "member_id", header.member_id, hex);
            inner.some_number("revision", header.revision);
            inner.some_number("raft_term", header.raft_term);
        });
    }
    let one = |out: &mut String, member: &Member| {
        let mut inner = Object::begin(out);
        id_json(&mut inner, "ID", member.id, hex);
        inner.some_text("name", &member.name);
        inner.some_list("peerURLs", &member.peer_ur_ls, |out, url| push_text(out, url));
        inner.some_list("clientURLs", &member.client_ur_ls, |out, url| push_text(out, url));
        inner.some_flag("isLearner", member.is_learner);
        inner.end();
    };
    if let Some(member) = member {
        object.value("member", |out| one(out, member));
    }
    object.some_list("members", members, one);
    object.end();
}

impl Show for MemberListResponse {
    fn simple(&self, out: &mut Lines) {
        self.members.iter().for_each(|member| out.line(member_row(member).join(", ")));
    }

    fn fields(&self, out: &mut Lines) -> Result<(), Unsupported> {
        out.header(self.header.as_ref());
        for member in &self.members {
            out.id("ID", member.id);
            out.quoted("Name", &member.name);
            member.peer_ur_ls.iter().for_each(|url| out.quoted("PeerURL", url));
            member.client_ur_ls.iter().for_each(|url| out.quoted("ClientURL", url));
            out.field("IsLearner", member.is_learner);
            out.line("");
        }
        Ok(())
    }

    fn json(&self, out: &mut String, hex: bool) {
        members_json(out, self.header.as_ref(), None, &self.members, hex);
    }

    fn protobuf(&self) -> Result<Vec<u8>, Unsupported> {
        Ok(self.encode_to_vec())
    }

    fn table(&self) -> Option<Table> {
        let head = vec!["ID", "STATUS", "NAME", "PEER ADDRS", "CLIENT ADDRS", "IS LEARNER"];
        Some(Table { head, rows: self.members.iter().map(member_row).collect() })
    }
}

/// A change of the membership.
pub struct MemberChange<'a, M> {
    /// What was done, for `simple`.
    pub text: String,
    /// The answer.
    pub message: &'a M,
    /// Its header.
    pub header: Option<&'a ResponseHeader>,
    /// The member that was added.
    pub member: Option<&'a Member>,
    /// All members since.
    pub members: &'a [Member],
}

impl<M: Message> Show for MemberChange<'_, M> {
    fn simple(&self, out: &mut Lines) {
        out.line(&self.text);
    }

    fn json(&self, out: &mut String, hex: bool) {
        members_json(out, self.header, self.member, self.members, hex);
    }

    fn protobuf(&self) -> Result<Vec<u8>, Unsupported> {
        Ok(self.message.encode_to_vec())
    }
}

/// How an endpoint is.
#[derive(Debug)]
pub struct Health {
    /// The endpoint.
    pub endpoint: String,
    /// Whether it committed something.
    pub is_healthy: bool,
    /// How long it took.
    pub took: Duration,
    /// Why it is not healthy; may be about alarms.
    pub error: String,
}

impl Show for Vec<Health> {
    /// Healthy endpoints go to stdout; what is wrong with the others, to stderr.
    fn simple(&self, out: &mut Lines) {
        for health in self {
            let Health { endpoint, took, error, .. } = health;
            if error.is_empty() {
                let took = go::duration(*took);
                out.line(format_args!("{endpoint} is healthy: successfully committed proposal: took = {took}"));
            } else {
                eprintln!("{endpoint} is unhealthy: failed to commit proposal: {error}");
            }
        }
    }

    fn fields(&self, out: &mut Lines) -> Result<(), Unsupported> {
        for health in self {
            out.quoted("Endpoint", &health.endpoint);
            out.field("Health", health.is_healthy);
            out.field("Took", go::duration(health.took));
            out.field("Error", &health.error);
            out.line("");
        }
        Ok(())
    }

    fn json(&self, out: &mut String, _hex: bool) {
        push_list(out, self, |out, health| {
            let mut object = Object::begin(out);
            object.text("endpoint", &health.endpoint);
            object.flag("health", health.is_healthy);
            object.text("took", &go::duration(health.took));
            object.some_text("error", &health.error);
            object.end();
        });
    }

    fn table(&self) -> Option<Table> {
        let row = |health: &Health| {
            vec![
                health.endpoint.clone(),
                health.is_healthy.to_string(),
                go::duration(health.took),
                health.error.clone(),
            ]
        };
        Some(Table { head: vec!["ENDPOINT", "HEALTH", "TOOK", "ERROR"], rows: self.iter().map(row).collect() })
    }
}

/// What an endpoint says about itself.
#[derive(Debug)]
pub struct EndpointStatus {
    /// The endpoint.
    pub endpoint: String,
    /// Its answer.
    pub status: StatusResponse,
}

impl EndpointStatus {
    fn row(&self) -> Vec<String> {
        let status = &self.status;
        let member = status.header.as_ref().map_or(0, |header| header.member_id);
        let size = |bytes: i64| go::human_bytes(bytes.try_into().unwrap_or(0));
        let unused = match status.db_size {
            0 => 0,
            // Whole percents, cut off, as etcdctl counts.
            size => ((1.0 - status.db_size_in_use as f64 / size as f64) * 100.0) as i64,
        };
        let downgrade = status.downgrade_info.clone().unwrap_or_default();
        vec![
            self.endpoint.clone(),
            format!("{member:x}"),
            status.version.clone(),
            status.storage_version.clone(),
            size(status.db_size),
            size(status.db_size_in_use),
            format!("{unused}%"),
            size(status.db_size_quota),
            (status.leader == member).to_string(),
            status.is_learner.to_string(),
            status.raft_term.to_string(),
            status.raft_index.to_string(),
            status.raft_applied_index.to_string(),
            status.errors.join(", "),
            downgrade.target_version,
            downgrade.enabled.to_string(),
        ]
    }
}

impl Show for Vec<EndpointStatus> {
    fn simple(&self, out: &mut Lines) {
        self.iter().for_each(|status| out.line(status.row().join(", ")));
    }

    fn fields(&self, out: &mut Lines) -> Result<(), Unsupported> {
        for EndpointStatus { endpoint, status } in self {
            let downgrade = status.downgrade_info.clone().unwrap_or_default();
            let errors: Vec<_> = status.errors.iter().map(|error| go::quote(error.as_bytes())).collect();
            out.header(status.header.as_ref());
            out.quoted("Version", &status.version);
            out.quoted("StorageVersion", &status.storage_version);
            out.field("DBSize", status.db_size);
            out.field("DBSizeInUse", status.db_size_in_use);
            out.field("DBSizeQuota", status.db_size_quota);
            out.id("Leader", status.leader);
            out.field("IsLearner", status.is_learner);
            out.field("RaftIndex", status.raft_index);
            out.field("RaftTerm", status.raft_term);
            out.field("RaftAppliedIndex", status.raft_applied_index);
            out.field("Errors", format_args!("[{}]", errors.join(" ")));
            out.quoted("Endpoint", endpoint);
            out.quoted("DowngradeTargetVersion", &downgrade.target_version);
            out.field("DowngradeEnabled", downgrade.enabled);
            out.line("");
        }
        Ok(())
    }

    fn json(&self, out: &mut String, _hex: bool) {
        if self.is_empty() {
            return out.push_str("null");
        }
        push_list(out, self, |out, EndpointStatus { endpoint, status }| {
            let mut outer = Object::begin(out);
            outer.text("Endpoint", endpoint);
            outer.object("Status", |object| {
                header_json(object, status.header.as_ref());
                object.some_text("version", &status.version);
                object.some_number("dbSize", status.db_size);
                object.some_number("leader", status.leader);
                object.some_number("raftIndex", status.raft_index);
                object.some_number("raftTerm", status.raft_term);
                object.some_number("raftAppliedIndex", status.raft_applied_index);
                object.some_list("errors", &status.errors, |out, error| push_text(out, error));
                object.some_number("dbSizeInUse", status.db_size_in_use);
                object.some_flag("isLearner", status.is_learner);
                object.some_text("storageVersion", &status.storage_version);
                object.some_number("dbSizeQuota", status.db_size_quota);
                if let Some(downgrade) = &status.downgrade_info {
                    object.object("downgradeInfo", |inner| {
                        inner.some_flag("enabled", downgrade.enabled);
                        inner.some_text("targetVersion", &downgrade.target_version);
                    });
                }
            });
            outer.end();
        });
    }

    fn table(&self) -> Option<Table> {
        let head = vec![
            "ENDPOINT",
            "ID",
            "VERSION",
            "STORAGE VERSION",
            "DB SIZE",
            "IN USE",
            "PERCENTAGE NOT IN USE",
            "QUOTA",
            "IS LEADER",
            "IS LEARNER",
            "RAFT TERM",
            "RAFT INDEX",
            "RAFT APPLIED INDEX",
            "ERRORS",
            "DOWNGRADE TARGET VERSION",
            "DOWNGRADE ENABLED",
        ];
        Some(Table { head, rows: self.iter().map(EndpointStatus::row).collect() })
    }
}

/// An endpoint's sum over its keys.
#[derive(Debug)]
pub struct EndpointHash {
    /// The endpoint.
    pub endpoint: String,
    /// Its answer.
    pub answer: HashKvResponse,
}

impl EndpointHash {
    fn row(&self) -> Vec<String> {
        vec![self.endpoint.clone(), self.answer.hash.to_string(), self.answer.hash_revision.to_string()]
    }
}

impl Show for Vec<EndpointHash> {
    fn simple(&self, out: &mut Lines) {
        self.iter().for_each(|hash| out.line(hash.row().join(", ")));
    }

    fn fields(&self, out: &mut Lines) -> Result<(), Unsupported> {
        for EndpointHash { endpoint, answer } in self {
            out.header(answer.header.as_ref());
            out.quoted("Endpoint", endpoint);
            out.field("Hash", answer.hash);
            out.field("HashRevision", answer.hash_revision);
            out.line("");
        }
        Ok(())
    }

    fn json(&self, out: &mut String, _hex: bool) {
        push_list(out, self, |out, EndpointHash { endpoint, answer }| {
            let mut outer = Object::begin(out);
            outer.text("Endpoint", endpoint);
            outer.object("HashKV", |object| {
                header_json(object, answer.header.as_ref());
                object.some_number("hash", answer.hash);
                object.some_number("compact_revision", answer.compact_revision);
                object.some_number("hash_revision", answer.hash_revision);
            });
            outer.end();
        });
    }

    fn table(&self) -> Option<Table> {
        Some(Table {
            head: vec!["ENDPOINT", "HASH", "HASH REVISION"],
            rows: self.iter().map(EndpointHash::row).collect(),
        })
    }
}

/// etcd's name of an alarm.
pub fn alarm_name(alarm: AlarmType) -> &'static str {
    match alarm {
        AlarmType::None => "NONE",
        AlarmType::Nospace => "NOSPACE",
        AlarmType::Corrupt => "CORRUPT",
    }
}

impl Show for AlarmResponse {
    fn simple(&self, out: &mut Lines) {
        for alarm in &self.alarms {
            out.line(format_args!("memberID:{} alarm:{}", alarm.member_id, alarm_name(alarm.alarm())));
        }
    }

    fn fields(&self, out: &mut Lines) -> Result<(), Unsupported> {
        out.header(self.header.as_ref());
        for alarm in &self.alarms {
            out.id("MemberID", alarm.member_id);
            out.field("AlarmType", alarm_name(alarm.alarm()));
            out.line("");
        }
        Ok(())
    }

    fn json(&self, out: &mut String, _hex: bool) {
        let mut object = Object::begin(out);
        header_json(&mut object, self.header.as_ref());
        object.some_list("alarms", &self.alarms, |out, alarm| {
            let mut inner = Object::begin(out);
            inner.some_number("memberID", alarm.member_id);
            inner.some_number("alarm", alarm.alarm);
            inner.end();
        });
        object.end();
    }

    fn protobuf(&self) -> Result<Vec<u8>, Unsupported> {
        Ok(self.encode_to_vec())
    }
}
