//! Users and roles as log entries make them: what is stored, what an entry may do, and that all members agree on it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use disk::{Disk, File, MemDisk, Open};
use keelson_state::auth::{Action, Place, Subject};
use keelson_state::{Config, Error, Image, Incoming, Reader, Response, State, auth};
use prost::Message;
use proto::authpb::{self, permission::Type};
use proto::{etcdserverpb as pb, raftpb};
use store::{Options, Store, Table};

/// A member that applies what it is given.
struct Member {
    disk: Arc<dyn Disk>,
    state: State,
    reader: Reader,
    index: u64,
}

impl Member {
    fn new() -> Self {
        Self::on(Arc::new(MemDisk::new()))
    }

    fn on(disk: Arc<dyn Disk>) -> Self {
        let (store, writer, mark) =
            Store::open(disk.clone(), Path::new("/store"), Options::default()).expect("a store");
        let config = Config { quota_bytes: 0, heartbeat_ms: 100, election_timeout_ms: 1_000 };
        let (state, reader) = State::open(store, writer, &mark, config).expect("a state");
        let index = state.applied_index();
        Self { disk, state, reader, index }
    }

    fn restarted(mut self) -> Self {
        self.state.sync().expect("synced");
        let disk = self.disk.clone();
        drop(self);
        Self::on(disk)
    }

    /// Applies an entry in somebody's name.
    fn apply_as(&mut self, user: &str, auth_revision: u64, entry: pb::InternalRaftRequest) -> Result<Response, Error> {
        let header = Some(pb::RequestHeader { id: 1, username: user.into(), auth_revision });
        self.index += 1;
        let entry = pb::InternalRaftRequest { header, ..entry };
        self.state.apply(self.index, 1, &entry.encode_to_vec().into()).expect("the store works").result
    }

    /// In root's name, as of now. Must succeed.
    fn apply(&mut self, entry: pb::InternalRaftRequest) -> Response {
        let revision = self.reader.auth().revision();
        self.apply_as("root", revision, entry).expect("root may")
    }

    fn permits(&self, user: &str, action: Action<'_>) -> Result<(), Error> {
        let auth = self.reader.auth();
        let subject = Subject { user, revision: auth.revision() };
        auth.policy().permits(subject, &action, Place::Log, self.reader.lessor())
    }

    /// All rows of users and roles, as they are stored.
    fn rows(&self) -> Vec<(Bytes, Bytes)> {
        [Table::Auth, Table::AuthUsers, Table::AuthRoles]
            .into_iter()
            .flat_map(|table| self.reader.store().rows(table))
            .collect()
    }
}

fn user_add(name: &str, hash: &str) -> pb::InternalRaftRequest {
    let hashed_password = hash.into();
    let auth_user_add = Some(pb::AuthUserAddRequest { name: name.into(), hashed_password, ..Default::default() });
    pb::InternalRaftRequest { auth_user_add, ..Default::default() }
}

fn role_add(name: &str) -> pb::InternalRaftRequest {
    pb::InternalRaftRequest { auth_role_add: Some(pb::AuthRoleAddRequest { name: name.into() }), ..Default::default() }
}

fn grant_role(user: &str, role: &str) -> pb::InternalRaftRequest {
    let auth_user_grant_role = Some(pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() });
    pb::InternalRaftRequest { auth_user_grant_role, ..Default::default() }
}

fn grant_permission(
    role: &str,
    perm_type: Type,
    key: &'static str,
    range_end: &'static str,
) -> pb::InternalRaftRequest {
    let perm = Some(authpb::Permission { perm_type: perm_type as i32, key: key.into(), range_end: range_end.into() });
    let auth_role_grant_permission = Some(pb::AuthRoleGrantPermissionRequest { name: role.into(), perm });
    pb::InternalRaftRequest { auth_role_grant_permission, ..Default::default() }
}

fn put_request(key: &'static str, lease: i64) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: "v".into(), lease, ..Default::default() }
}

fn put(key: &'static str, lease: i64) -> pb::InternalRaftRequest {
    pb::InternalRaftRequest { put: Some(put_request(key, lease)), ..Default::default() }
}

fn enable() -> pb::InternalRaftRequest {
    pb::InternalRaftRequest { auth_enable: Some(pb::AuthEnableRequest {}), ..Default::default() }
}

/// alice may write `a/`; root is there; permissions count. Seven changes were made.
fn with_alice() -> Member {
    let mut member = Member::new();
    member.apply(user_add("root", "cm9vdA=="));
    member.apply(grant_role("root", "root"));
    member.apply(user_add("alice", "YWxpY2U="));
    member.apply(role_add("writer"));
    member.apply(grant_permission("writer", Type::Write, "a/", "a0"));
    member.apply(grant_role("alice", "writer"));
    member.apply(enable());
    assert_eq!(member.reader.auth().revision(), 7, "1 at the beginning, and enabling is no change");
    member
}

#[test]
fn an_entry_may_what_the_user_and_revision_in_its_header_may() {
    let mut member = with_alice();
    assert!(member.apply_as("alice", 7, put("a/1", 0)).is_ok());
    assert_eq!(member.apply_as("alice", 7, put("b/1", 0)), Err(Error::PermissionDenied));
    assert_eq!(member.apply_as("alice", 6, put("a/1", 0)), Err(Error::AuthOldRevision));
    assert_eq!(member.apply_as("", 0, put("a/1", 0)), Err(Error::UserEmpty));
    assert_eq!(member.apply_as("mallory", 7, put("a/1", 0)), Err(Error::PermissionDenied));
    assert_eq!(member.apply_as("alice", 7, user_add("bob", "")), Err(Error::PermissionDenied));
    assert_eq!(member.apply_as("mallory", 7, user_add("bob", "")), Err(Error::UserNotFound));
    // Who manages users is not asked for the revision, as in etcd.
    assert!(member.apply_as("root", 1, user_add("bob", "")).is_ok());
    // What etcd looks at only where it is asked must not be refused here: its members would not.
    let compaction = Some(pb::CompactionRequest { revision: 1, physical: false });
    assert!(member.apply_as("", 0, pb::InternalRaftRequest { compaction, ..Default::default() }).is_ok());
}

#[test]
fn a_lease_is_decided_over_by_who_may_write_all_its_keys() {
    let mut member = with_alice();
    let lease_grant =
        |id| pb::InternalRaftRequest { lease_grant: Some(pb::LeaseGrantRequest { ttl: 60, id }), ..Default::default() };
    let lease_revoke =
        |id| pb::InternalRaftRequest { lease_revoke: Some(pb::LeaseRevokeRequest { id }), ..Default::default() };
    member.apply(lease_grant(1));
    member.apply(lease_grant(2));
    member.apply(put("a/1", 1));
    member.apply(put("secret", 2));
    assert_eq!(member.apply_as("alice", 7, put("a/2", 2)), Err(Error::PermissionDenied));
    assert!(member.apply_as("alice", 7, put("a/2", 1)).is_ok());
    assert_eq!(member.apply_as("alice", 7, lease_revoke(2)), Err(Error::PermissionDenied));
    assert!(member.apply_as("alice", 7, lease_revoke(1)).is_ok());
    // The leader ends leases in root's name, whatever the revision is by then.
    assert!(member.apply_as("root", 1, lease_revoke(2)).is_ok());
}

#[test]
fn what_is_stored_is_etcds() {
    let member = with_alice();
    let row = |table, key: &str| member.reader.store().row(table, key.as_bytes()).expect("stored");
    assert_eq!(row(Table::Auth, "authEnabled").as_ref(), [1]);
    assert_eq!(row(Table::Auth, "authRevision").as_ref(), 7u64.to_be_bytes());
    let user = authpb::User::decode(row(Table::AuthUsers, "alice")).expect("a user");
    assert_eq!(user.password, "alice");
    assert_eq!(user.roles, ["writer"]);
    assert!(user.options.is_some(), "also when there are none");
    let role = authpb::Role::decode(row(Table::AuthRoles, "writer")).expect("a role");
    assert_eq!((role.name.as_ref(), role.key_permission.len()), (&b"writer"[..], 1));
}

#[test]
fn users_and_roles_outlive_a_restart_and_travel_in_a_snapshot() {
    let member = with_alice().restarted();
    let action = put_request("a/1", 0);
    assert!(member.reader.auth().is_enabled());
    assert_eq!(member.permits("alice", Action::Put(&action)), Ok(()));

    let conf_state = raftpb::ConfState { voters: vec![1], ..Default::default() };
    let image = Image::take(&member.reader, member.index, &conf_state);
    let v2_json = image.v2_json().clone();
    let bytes: Vec<u8> = image.into_pieces().flat_map(|piece| piece.expect("made")).collect();
    let file: Arc<dyn File> = MemDisk::new().open(Path::new("db"), Open::CreateNew).expect("a file");
    file.write_at(&bytes, 0).expect("written");
    let mut other = Member::new();
    let version = other.reader.auth().version();
    let incoming = Incoming { name: "db", file, v2_json: &v2_json, index: member.index, term: 1 };
    other.state.install(&incoming, &conf_state).expect("installed");
    assert_ne!(other.reader.auth().version(), version, "workers look again");
    assert_eq!(other.rows(), member.rows());
    assert_eq!(other.permits("alice", Action::Put(&action)), Ok(()));
    assert_eq!(other.permits("bob", Action::Put(&action)), Err(Error::PermissionDenied));
}

/// Members before 3.5 log passwords as they are, and each hashed them with a salt of its own. Ours come to the same hash, and the
/// password is the right one for it.
#[test]
fn a_password_in_an_old_entry_is_hashed_the_same_by_all() {
    let entry = || pb::InternalRaftRequest {
        auth_user_add: Some(pb::AuthUserAddRequest {
            name: "old".into(),
            password: "secret".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let [mut a, mut b] = [Member::new(), Member::new()];
    a.apply(entry());
    b.apply(entry());
    assert_eq!(a.rows(), b.rows());
    let policy = a.reader.auth().policy();
    let hash = policy.user("old").expect("added").password_hash().to_vec();
    assert!(bcrypt::verify("secret", &String::from_utf8(hash).expect("text")).expect("a hash"));
}

#[test]
fn a_token_is_named_after_its_entry_and_known_on_every_member() {
    let mut member = with_alice();
    let authenticate = Some(pb::InternalAuthenticateRequest {
        name: "alice".into(),
        simple_token: "abcdefghijklmnop".into(),
        ..Default::default()
    });
    let entry = pb::InternalRaftRequest { authenticate, ..Default::default() };
    let response = member.apply_as("", 0, entry).expect("the password was checked before");
    let Response::Auth(auth::Response::Authenticate(response)) = response else { panic!("{response:?}") };
    assert_eq!(response.token, format!("abcdefghijklmnop.{}", member.index));
    let token = member.reader.auth().tokens().find(&response.token).expect("given");
    assert_eq!(token.user().as_ref(), "alice");
}

#[test]
fn root_cannot_lock_itself_out() {
    let mut member = with_alice();
    let revision = member.reader.auth().revision();
    for entry in [
        pb::InternalRaftRequest {
            auth_user_delete: Some(pb::AuthUserDeleteRequest { name: "root".into() }),
            ..Default::default()
        },
        pb::InternalRaftRequest {
            auth_user_revoke_role: Some(pb::AuthUserRevokeRoleRequest { name: "root".into(), role: "root".into() }),
            ..Default::default()
        },
        pb::InternalRaftRequest {
            auth_role_delete: Some(pb::AuthRoleDeleteRequest { role: "root".into() }),
            ..Default::default()
        },
    ] {
        assert_eq!(member.apply_as("root", revision, entry), Err(Error::InvalidAuthMgmt));
    }
}
