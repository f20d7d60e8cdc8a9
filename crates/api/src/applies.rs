//! How long log entries took to apply, by what they ask for.

use std::sync::Arc;
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto;

use crate::durations::{self, Durations};
use crate::metrics::{family, label};

/// Fields of `InternalRaftRequest`, and what etcd calls the request in them.
const V3: [(u64, &str); 30] = [
    (4, "Put"),
    (6, "Txn"),
    (5, "DeleteRange"),
    (3, "Range"),
    (7, "Compaction"),
    (8, "LeaseGrant"),
    (9, "LeaseRevoke"),
    (11, "LeaseCheckpoint"),
    (10, "Alarm"),
    (1000, "AuthEnable"),
    (1011, "AuthDisable"),
    (1012, "Authenticate"),
    (1013, "AuthStatus"),
    (1100, "AuthUserAdd"),
    (1101, "AuthUserDelete"),
    (1102, "AuthUserGet"),
    (1103, "AuthUserChangePassword"),
    (1104, "AuthUserGrantRole"),
    (1105, "AuthUserRevokeRole"),
    (1106, "AuthUserList"),
    (1107, "AuthRoleList"),
    (1200, "AuthRoleAdd"),
    (1201, "AuthRoleDelete"),
    (1202, "AuthRoleGet"),
    (1203, "AuthRoleGrantPermission"),
    (1204, "AuthRoleRevokePermission"),
    (1300, "ClusterVersionSet"),
    (1301, "ClusterMemberAttrSet"),
    (1302, "DowngradeInfoSet"),
    (9900, "DowngradeVersionTest"),
];
/// Methods of the v2 API's requests.
const V2: [&str; 5] = ["POST", "PUT", "DELETE", "QGET", "SYNC"];

/// The field of `InternalRaftRequest` that says whose request it is, and two fields of `v2pb.Request`.
const HEADER: u64 = 100;
const V2_ID: u64 = 1;
const V2_METHOD: u64 = 2;

/// `etcd_server_apply_duration_seconds`. Written by the apply actor only.
#[derive(Debug)]
pub struct Applies {
    /// Failures and successes of each, in the order of the tables.
    by_operation: Vec<[Durations; 2]>,
}

impl Default for Applies {
    fn default() -> Self {
        Self { by_operation: std::iter::repeat_with(Default::default).take(V3.len() + V2.len()).collect() }
    }
}

impl Applies {
    /// Counts an entry with this data.
    pub fn observe(&self, data: &[u8], success: bool, took: Duration) {
        if let Some(operation) = operation(data) {
            self.by_operation[operation][usize::from(success)].observe(took);
        }
    }
}

/// The place in the table of what an entry asks for, told from its first bytes: fields are written in the order of their
/// numbers.
fn operation(data: &[u8]) -> Option<usize> {
    let mut rest = data;
    let mut field = varint(&mut rest)? >> 3;
    if field == V2_ID {
        varint(&mut rest)?;
        let is_method = varint(&mut rest)? >> 3 == V2_METHOD;
        let method = text(&mut rest).filter(|_| is_method)?;
        return V2.iter().position(|name| name.as_bytes() == method).map(|place| V3.len() + place);
    }
    if field == HEADER {
        text(&mut rest)?;
        field = varint(&mut rest)? >> 3;
    }
    V3.iter().position(|(number, _)| *number == field)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    prost::encoding::decode_varint(bytes).ok()
}

/// A length and so many bytes.
fn text<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(varint(bytes)?).ok()?;
    let (text, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(text)
}

const NAME: &str = "etcd_server_apply_duration_seconds";
const HELP: &str = "Duration of applying a request.";

/// Shows [`Applies`].
pub(crate) struct AppliesCollector {
    applies: Arc<Applies>,
    desc: Desc,
}

impl AppliesCollector {
    pub(crate) fn new(applies: Arc<Applies>) -> Self {
        Self { applies, desc: durations::desc(NAME, HELP, &["version", "op", "success"]) }
    }
}

impl Collector for AppliesCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let names = V3.iter().map(|(_, name)| ("v3", *name)).chain(V2.iter().map(|name| ("v2", *name)));
        let mut metrics = Vec::new();
        for ((version, operation), outcomes) in names.zip(&self.applies.by_operation) {
            for (success, durations) in ["false", "true"].into_iter().zip(outcomes) {
                let labels = vec![label("op", operation), label("success", success), label("version", version)];
                let metric = durations::metric(labels, std::iter::once(durations));
                // As in etcd a series begins with what it counts first.
                if metric.get_histogram().get_sample_count() > 0 {
                    metrics.push(metric);
                }
            }
        }
        if metrics.is_empty() { Vec::new() } else { vec![family(NAME, HELP, proto::MetricType::HISTOGRAM, metrics)] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::proto::etcdserverpb as pb;
    use ::proto::v2pb;
    use prost::Message as _;

    fn name_of(data: &[u8]) -> Option<&'static str> {
        let place = operation(data)?;
        Some(V3.get(place).map_or_else(|| V2[place - V3.len()], |(_, name)| *name))
    }

    #[test]
    fn what_an_entry_asks_for_is_told_from_its_first_bytes() {
        let header = Some(pb::RequestHeader { id: u64::MAX, username: "alice".into(), auth_revision: 3 });
        let none = || pb::InternalRaftRequest { header: header.clone(), ..Default::default() };
        let put = pb::InternalRaftRequest { put: Some(pb::PutRequest::default()), ..none() };
        assert_eq!(name_of(&put.encode_to_vec()), Some("Put"));
        let enable = pb::InternalRaftRequest { auth_enable: Some(pb::AuthEnableRequest::default()), ..none() };
        assert_eq!(name_of(&enable.encode_to_vec()), Some("AuthEnable"));
        let v2 = v2pb::Request { id: Some(u64::MAX), method: Some("QGET".into()), ..Default::default() };
        assert_eq!(name_of(&v2.encode_to_vec()), Some("QGET"));
    }

    #[test]
    fn what_is_no_request_is_not_counted() {
        for data in [&b""[..], b"\x08", b"\x08\x01\x12\xff\xff\xff\xff\x0f", b"\xa2\x06\x7f", b"\xff"] {
            assert_eq!(operation(data), None, "{data:?}");
        }
    }
}
