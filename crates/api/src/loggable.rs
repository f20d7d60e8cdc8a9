//! Requests as log lines show them: etcd's words, in protobuf's compact text, with values, passwords and tokens left out.
//!
//! ```text
//! header:<ID:757064550757657093 > put:<key:"foo" value_size:3 >
//! ```

use std::fmt::{self, Display, Write as _};

use bytes::Bytes;
use proto::etcdserverpb as pb;
use proto::v2pb;

/// Of a key or another text of a client's choice, so many bytes are shown.
const MOST_BYTES: usize = 512;
/// Of a transaction, so many comparisons and operations are shown.
const MOST_PARTS: usize = 32;

/// Writes the fields of a message that are not zero.
struct Text<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Text<'_, '_> {
    fn number<N: Display + Default + PartialEq>(&mut self, name: &str, number: N) -> fmt::Result {
        if number == N::default() { Ok(()) } else { write!(self.0, "{name}:{number} ") }
    }

    fn flag(&mut self, name: &str, set: bool) -> fmt::Result {
        if set { write!(self.0, "{name}:true ") } else { Ok(()) }
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> fmt::Result {
        if bytes.is_empty() { Ok(()) } else { write!(self.0, "{name}:{} ", Quoted(bytes)) }
    }

    /// An enum's value; the first of its names stands for zero.
    fn name(&mut self, field: &str, value: i32, names: &[&str]) -> fmt::Result {
        match usize::try_from(value).ok().and_then(|value| names.get(value)) {
            _ if value == 0 => Ok(()),
            Some(name) => write!(self.0, "{field}:{name} "),
            None => write!(self.0, "{field}:{value} "),
        }
    }
}

/// Bytes as protobuf's text format quotes them.
struct Quoted<'a>(&'a [u8]);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for &byte in self.0.iter().take(MOST_BYTES) {
            match byte {
                b'\n' => f.write_str("\\n")?,
                b'\r' => f.write_str("\\r")?,
                b'\t' => f.write_str("\\t")?,
                b'"' => f.write_str("\\\"")?,
                b'\\' => f.write_str("\\\\")?,
                0x20..0x7f => f.write_char(char::from(byte))?,
                _ => write!(f, "\\{byte:03o}")?,
            }
        }
        f.write_str(if self.0.len() > MOST_BYTES { "...\"" } else { "\"" })
    }
}

/// Shows a request.
pub struct Loggable<'a, M>(pub &'a M);

impl Display for Loggable<'_, pb::RangeRequest> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(range) = self;
        let mut text = Text(f);
        text.bytes("key", &range.key)?;
        text.bytes("range_end", &range.range_end)?;
        text.number("limit", range.limit)?;
        text.number("revision", range.revision)?;
        text.name("sort_order", range.sort_order, &["NONE", "ASCEND", "DESCEND"])?;
        text.name("sort_target", range.sort_target, &["KEY", "VERSION", "CREATE", "MOD", "VALUE"])?;
        text.flag("serializable", range.serializable)?;
        text.flag("keys_only", range.keys_only)?;
        text.flag("count_only", range.count_only)?;
        text.number("min_mod_revision", range.min_mod_revision)?;
        text.number("max_mod_revision", range.max_mod_revision)?;
        text.number("min_create_revision", range.min_create_revision)?;
        text.number("max_create_revision", range.max_create_revision)
    }
}

impl Display for Loggable<'_, pb::PutRequest> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(put) = self;
        let mut text = Text(f);
        text.bytes("key", &put.key)?;
        text.number("value_size", put.value.len())?;
        text.number("lease", put.lease)?;
        text.flag("prev_kv", put.prev_kv)?;
        text.flag("ignore_value", put.ignore_value)?;
        text.flag("ignore_lease", put.ignore_lease)
    }
}

impl Display for Loggable<'_, pb::DeleteRangeRequest> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(delete) = self;
        let mut text = Text(f);
        text.bytes("key", &delete.key)?;
        text.bytes("range_end", &delete.range_end)?;
        text.flag("prev_kv", delete.prev_kv)
    }
}

impl Display for Loggable<'_, pb::TxnRequest> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(txn) = self;
        f.write_str("compare:<")?;
        list(f, &txn.compare)?;
        f.write_str("> success:<")?;
        list(f, &txn.success)?;
        f.write_str("> failure:<")?;
        list(f, &txn.failure)?;
        f.write_char('>')
    }
}

fn list<'a, M>(f: &mut fmt::Formatter<'_>, parts: &'a [M]) -> fmt::Result
where
    Loggable<'a, M>: Display,
{
    for (number, part) in parts.iter().take(MOST_PARTS).enumerate() {
        let between = if number > 0 { " " } else { "" };
        write!(f, "{between}{}", Loggable(part))?;
    }
    if parts.len() > MOST_PARTS { write!(f, " and {} more", parts.len() - MOST_PARTS) } else { Ok(()) }
}

impl Display for Loggable<'_, pb::Compare> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use pb::compare::TargetUnion;
        let Self(compare) = self;
        let mut text = Text(f);
        text.name("result", compare.result, &["EQUAL", "GREATER", "LESS", "NOT_EQUAL"])?;
        text.name("target", compare.target, &["VERSION", "CREATE", "MOD", "VALUE", "LEASE"])?;
        text.bytes("key", &compare.key)?;
        // What is compared with is shown even if it is zero.
        match &compare.target_union {
            Some(TargetUnion::Version(version)) => write!(text.0, "version:{version} ")?,
            Some(TargetUnion::CreateRevision(revision)) => write!(text.0, "create_revision:{revision} ")?,
            Some(TargetUnion::ModRevision(revision)) => write!(text.0, "mod_revision:{revision} ")?,
            Some(TargetUnion::Value(value)) => text.number("value_size", value.len())?,
            Some(TargetUnion::Lease(lease)) => write!(text.0, "lease:{lease} ")?,
            None => {}
        }
        text.bytes("range_end", &compare.range_end)
    }
}

impl Display for Loggable<'_, pb::RequestOp> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use pb::request_op::Request;
        match &self.0.request {
            Some(Request::RequestRange(range)) => write!(f, "request_range:<{}> ", Loggable(range)),
            Some(Request::RequestPut(put)) => write!(f, "request_put:<{}>", Loggable(put)),
            Some(Request::RequestDeleteRange(delete)) => write!(f, "request_delete_range:<{}> ", Loggable(delete)),
            Some(Request::RequestTxn(txn)) => write!(f, "request_txn:<{}>", Loggable(txn)),
            None => Ok(()),
        }
    }
}

impl Display for Loggable<'_, v2pb::Request> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(request) = self;
        let mut text = Text(f);
        text.number("ID", request.id())?;
        text.bytes("Method", request.method().as_bytes())?;
        text.bytes("Path", request.path())?;
        // Users' password hashes are values, too.
        text.number("value_size", request.val().len())?;
        text.flag("Dir", request.dir())?;
        text.number("PrevValue_size", request.prev_value().len())?;
        text.number("PrevIndex", request.prev_index())?;
        if let Some(exists) = request.prev_exist {
            write!(text.0, "PrevExist:{exists} ")?;
        }
        text.number("Expiration", request.expiration())?;
        text.flag("Wait", request.wait())?;
        text.number("Since", request.since())?;
        text.flag("Recursive", request.recursive())?;
        text.flag("Sorted", request.sorted())?;
        text.flag("Quorum", request.quorum())?;
        text.number("Time", request.time())?;
        text.flag("Stream", request.stream())?;
        text.flag("Refresh", request.refresh())
    }
}

impl Display for Loggable<'_, pb::InternalRaftRequest> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(request) = self;
        if let Some(header) = &request.header {
            f.write_str("header:<")?;
            let mut text = Text(f);
            text.number("ID", header.id)?;
            text.bytes("username", header.username.as_bytes())?;
            text.number("auth_revision", header.auth_revision)?;
            f.write_str("> ")?;
        }
        if let Some(put) = &request.put {
            return write!(f, "put:<{}>", Loggable(put));
        }
        if let Some(txn) = &request.txn {
            return write!(f, "txn:<{}>", Loggable(txn));
        }
        if let Some(grant) = &request.lease_grant {
            return write!(f, "lease_grant:<ttl:{}-second id:{:016x}>", grant.ttl, grant.id);
        }
        if let Some(revoke) = &request.lease_revoke {
            return write!(f, "lease_revoke:<id:{:016x}>", revoke.id);
        }
        if let Some(delete) = &request.delete_range {
            return write!(f, "delete_range:<{}> ", Loggable(delete));
        }
        if let Some(range) = &request.range {
            return write!(f, "range:<{}> ", Loggable(range));
        }
        if let Some(compaction) = &request.compaction {
            f.write_str("compaction:<")?;
            let mut text = Text(f);
            text.number("revision", compaction.revision)?;
            text.flag("physical", compaction.physical)?;
            return f.write_str("> ");
        }
        if let Some(alarm) = &request.alarm {
            f.write_str("alarm:<")?;
            let mut text = Text(f);
            text.name("action", alarm.action, &["GET", "ACTIVATE", "DEACTIVATE"])?;
            text.number("memberID", alarm.member_id)?;
            text.name("alarm", alarm.alarm, &["NONE", "NOSPACE", "CORRUPT"])?;
            return f.write_str("> ");
        }
        if let Some(request) = &request.authenticate {
            return write!(f, "authenticate:<name:{}>", request.name);
        }
        if let Some(request) = &request.auth_user_add {
            return write!(f, "auth_user_add:<name:{}>", request.name);
        }
        if let Some(request) = &request.auth_user_change_password {
            return write!(f, "auth_user_change_password:<name:{}>", request.name);
        }
        if let Some(request) = &request.v2 {
            return write!(f, "v2:<{}> ", Loggable(request));
        }
        write!(f, "{}:<...> ", operation_of(request))
    }
}

/// The name of the field that a request without a stringer of its own has.
fn operation_of(request: &pb::InternalRaftRequest) -> &'static str {
    let present = [
        (request.lease_checkpoint.is_some(), "lease_checkpoint"),
        (request.auth_enable.is_some(), "auth_enable"),
        (request.auth_disable.is_some(), "auth_disable"),
        (request.auth_status.is_some(), "auth_status"),
        (request.auth_user_delete.is_some(), "auth_user_delete"),
        (request.auth_user_get.is_some(), "auth_user_get"),
        (request.auth_user_grant_role.is_some(), "auth_user_grant_role"),
        (request.auth_user_revoke_role.is_some(), "auth_user_revoke_role"),
        (request.auth_user_list.is_some(), "auth_user_list"),
        (request.auth_role_list.is_some(), "auth_role_list"),
        (request.auth_role_add.is_some(), "auth_role_add"),
        (request.auth_role_delete.is_some(), "auth_role_delete"),
        (request.auth_role_get.is_some(), "auth_role_get"),
        (request.auth_role_grant_permission.is_some(), "auth_role_grant_permission"),
        (request.auth_role_revoke_permission.is_some(), "auth_role_revoke_permission"),
        (request.cluster_version_set.is_some(), "cluster_version_set"),
        (request.cluster_member_attr_set.is_some(), "cluster_member_attr_set"),
        (request.downgrade_info_set.is_some(), "downgrade_info_set"),
    ];
    present.into_iter().find_map(|(is_present, name)| is_present.then_some(name)).unwrap_or("unknown")
}

/// The data of a log entry.
pub struct LoggableEntry<'a>(pub &'a Bytes);

impl Display for LoggableEntry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use prost::Message as _;
        let Self(data) = self;
        // As in etcd: what does not parse as a request of v3 is one of v2.
        match pb::InternalRaftRequest::decode(Bytes::clone(data)) {
            Ok(pb::InternalRaftRequest { v2: Some(request), .. }) => Loggable(&request).fmt(f),
            Ok(request) => Loggable(&request).fmt(f),
            Err(_) => match v2pb::Request::decode(Bytes::clone(data)) {
                Ok(request) => Loggable(&request).fmt(f),
                Err(_) => write!(f, "size:{}", data.len()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    fn put(key: &'static [u8], value: &'static [u8]) -> pb::PutRequest {
        pb::PutRequest { key: Bytes::from_static(key), value: Bytes::from_static(value), ..Default::default() }
    }

    fn with_header(request: pb::InternalRaftRequest) -> Bytes {
        let header = Some(pb::RequestHeader { id: 7, ..Default::default() });
        pb::InternalRaftRequest { header, ..request }.encode_to_vec().into()
    }

    /// The right-hand sides are etcd 3.5.1's own.
    #[test]
    fn entries_read_as_in_etcd() {
        use pb::request_op::Request::{RequestDeleteRange, RequestPut, RequestRange};
        let op = |request| pb::RequestOp { request: Some(request) };
        let range = |key: &'static str| pb::RangeRequest { key: key.into(), ..Default::default() };
        let delete = |key: &'static str| pb::DeleteRangeRequest { key: key.into(), ..Default::default() };
        let compare = pb::Compare {
            target: pb::compare::CompareTarget::Value.into(),
            key: "k".into(),
            target_union: Some(pb::compare::TargetUnion::Value("x".into())),
            ..Default::default()
        };
        let txn = pb::TxnRequest {
            compare: vec![compare],
            success: vec![op(RequestPut(put(b"a", b"1"))), op(RequestRange(range("b")))],
            failure: vec![op(RequestPut(put(b"q", b"1"))), op(RequestDeleteRange(delete("c")))],
        };
        let leased = pb::PutRequest { lease: 757_064_550_757_657_096, ..put(b"k", b"v") };
        let grant = pb::LeaseGrantRequest { ttl: 100, id: 0x0a81_a232_a3f3_6a08 };
        let revoke = pb::LeaseRevokeRequest { id: 0x0a81_a232_a3f3_6a08 };
        let none = pb::InternalRaftRequest::default;
        let cases = [
            (
                pb::InternalRaftRequest { put: Some(put(b"foo", b"bar")), ..none() },
                "header:<ID:7 > put:<key:\"foo\" value_size:3 >",
            ),
            (
                pb::InternalRaftRequest { put: Some(leased), ..none() },
                "header:<ID:7 > put:<key:\"k\" value_size:1 lease:757064550757657096 >",
            ),
            (
                pb::InternalRaftRequest { delete_range: Some(delete("foo")), ..none() },
                "header:<ID:7 > delete_range:<key:\"foo\" > ",
            ),
            (
                pb::InternalRaftRequest { lease_grant: Some(grant), ..none() },
                "header:<ID:7 > lease_grant:<ttl:100-second id:0a81a232a3f36a08>",
            ),
            (
                pb::InternalRaftRequest { lease_revoke: Some(revoke), ..none() },
                "header:<ID:7 > lease_revoke:<id:0a81a232a3f36a08>",
            ),
            (
                pb::InternalRaftRequest { txn: Some(txn), ..none() },
                "header:<ID:7 > txn:<compare:<target:VALUE key:\"k\" value_size:1 > success:<request_put:<key:\"a\" \
                 value_size:1 > request_range:<key:\"b\" > > failure:<request_put:<key:\"q\" value_size:1 > \
                 request_delete_range:<key:\"c\" > >>",
            ),
            (
                pb::InternalRaftRequest {
                    compaction: Some(pb::CompactionRequest { revision: 4, physical: false }),
                    ..none()
                },
                "header:<ID:7 > compaction:<revision:4 > ",
            ),
            (
                pb::InternalRaftRequest { alarm: Some(pb::AlarmRequest::default()), ..none() },
                "header:<ID:7 > alarm:<> ",
            ),
        ];
        for (request, text) in cases {
            assert_eq!(LoggableEntry(&with_header(request)).to_string(), text);
        }
    }

    #[test]
    fn reads_read_as_in_etcd() {
        let all = pb::RangeRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            limit: 3,
            serializable: true,
            ..Default::default()
        };
        let text = r#"key:"\000" range_end:"\000" limit:3 serializable:true "#;
        assert_eq!(Loggable(&all).to_string(), text);
        let mod_of_k = pb::Compare {
            result: pb::compare::CompareResult::Greater.into(),
            target: pb::compare::CompareTarget::Mod.into(),
            key: "k".into(),
            target_union: Some(pb::compare::TargetUnion::ModRevision(0)),
            ..Default::default()
        };
        assert_eq!(Loggable(&mod_of_k).to_string(), r#"result:GREATER target:MOD key:"k" mod_revision:0 "#);
    }

    #[test]
    fn no_secret_is_shown_and_nothing_without_bound() {
        let secret = "secret";
        let request = pb::InternalAuthenticateRequest {
            name: "alice".into(),
            password: secret.into(),
            simple_token: secret.into(),
        };
        let add = pb::AuthUserAddRequest { name: "bob".into(), password: secret.into(), ..Default::default() };
        let v2 = v2pb::Request { val: Some(secret.into()), prev_value: Some(secret.into()), ..Default::default() };
        let none = pb::InternalRaftRequest::default;
        for request in [
            pb::InternalRaftRequest { authenticate: Some(request), ..none() },
            pb::InternalRaftRequest { auth_user_add: Some(add), ..none() },
            pb::InternalRaftRequest { put: Some(put(b"k", secret.as_bytes())), ..none() },
            pb::InternalRaftRequest { v2: Some(v2), ..none() },
        ] {
            let text = LoggableEntry(&with_header(request)).to_string();
            assert!(!text.contains(secret), "{text}");
        }
        let long = pb::PutRequest { key: vec![b'k'; 1 << 20].into(), ..Default::default() };
        assert!(Loggable(&long).to_string().len() < 1000);
        assert_eq!(LoggableEntry(&Bytes::from_static(b"\xff\xff")).to_string(), "size:2");
    }
}
