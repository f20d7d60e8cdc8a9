//! Who may do what: the one table of all requests and what each needs.
//!
//! [`needs`] is the only place that knows. A request of any kind becomes an [`Action`], and there is no action without an arm;
//! what it needs comes out as single [`Need`]s, however deep in nested transactions they are found. [`Policy::allows`] decides
//! on one need. Who asks is a [`Subject`], and comes from a token or a certificate when a request arrives, and from an entry's
//! header when it is applied.

use proto::etcdserverpb as pb;
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::request_op::Request as Op;

use crate::kv::txn;

/// A request, as far as permissions are concerned.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Action<'a> {
    // KV and Watch
    Range(&'a pb::RangeRequest),
    Put(&'a pb::PutRequest),
    DeleteRange(&'a pb::DeleteRangeRequest),
    Txn(&'a pb::TxnRequest),
    Compact,
    Watch {
        key: &'a [u8],
        range_end: &'a [u8],
    },
    // Lease
    LeaseGrant,
    LeaseRevoke(i64),
    LeaseKeepAlive(i64),
    LeaseTimeToLive(&'a pb::LeaseTimeToLiveRequest),
    LeaseLeases,
    // Cluster
    MemberAdd,
    MemberRemove,
    MemberUpdate,
    MemberPromote,
    MemberList,
    // Maintenance
    Alarm(&'a pb::AlarmRequest),
    Status,
    Defragment,
    Hash,
    HashKv,
    Snapshot,
    MoveLeader,
    Downgrade,
    // Auth
    AuthEnable,
    AuthDisable,
    AuthStatus,
    Authenticate,
    UserAdd,
    UserGet(&'a str),
    UserList,
    UserDelete,
    UserChangePassword,
    UserGrantRole,
    UserRevokeRole,
    RoleAdd,
    RoleGet(&'a str),
    RoleList,
    RoleDelete,
    RoleGrantPermission,
    RoleRevokePermission,
    /// A lock or an election: made of ranges, puts, deletes and leases, each of which is an action of its own.
    Composed,
    /// The standard health service.
    Health,
    /// What members tell each other through the log.
    Internal,
}

impl<'a> Action<'a> {
    /// What a log entry asks for.
    pub fn of_entry(entry: &'a pb::InternalRaftRequest) -> Self {
        // In the order in which an entry's fields count, should it ever have more than one.
        match entry {
            pb::InternalRaftRequest { put: Some(request), .. } => Self::Put(request),
            pb::InternalRaftRequest { txn: Some(request), .. } => Self::Txn(request),
            pb::InternalRaftRequest { delete_range: Some(request), .. } => Self::DeleteRange(request),
            pb::InternalRaftRequest { range: Some(request), .. } => Self::Range(request),
            pb::InternalRaftRequest { compaction: Some(_), .. } => Self::Compact,
            pb::InternalRaftRequest { lease_grant: Some(_), .. } => Self::LeaseGrant,
            pb::InternalRaftRequest { lease_revoke: Some(request), .. } => Self::LeaseRevoke(request.id),
            pb::InternalRaftRequest { alarm: Some(request), .. } => Self::Alarm(request),
            pb::InternalRaftRequest { auth_enable: Some(_), .. } => Self::AuthEnable,
            pb::InternalRaftRequest { auth_disable: Some(_), .. } => Self::AuthDisable,
            pb::InternalRaftRequest { auth_status: Some(_), .. } => Self::AuthStatus,
            pb::InternalRaftRequest { authenticate: Some(_), .. } => Self::Authenticate,
            pb::InternalRaftRequest { auth_user_add: Some(_), .. } => Self::UserAdd,
            pb::InternalRaftRequest { auth_user_delete: Some(_), .. } => Self::UserDelete,
            pb::InternalRaftRequest { auth_user_get: Some(request), .. } => Self::UserGet(&request.name),
            pb::InternalRaftRequest { auth_user_change_password: Some(_), .. } => Self::UserChangePassword,
            pb::InternalRaftRequest { auth_user_grant_role: Some(_), .. } => Self::UserGrantRole,
            pb::InternalRaftRequest { auth_user_revoke_role: Some(_), .. } => Self::UserRevokeRole,
            pb::InternalRaftRequest { auth_user_list: Some(_), .. } => Self::UserList,
            pb::InternalRaftRequest { auth_role_list: Some(_), .. } => Self::RoleList,
            pb::InternalRaftRequest { auth_role_add: Some(_), .. } => Self::RoleAdd,
            pb::InternalRaftRequest { auth_role_delete: Some(_), .. } => Self::RoleDelete,
            pb::InternalRaftRequest { auth_role_get: Some(request), .. } => Self::RoleGet(&request.role),
            pb::InternalRaftRequest { auth_role_grant_permission: Some(_), .. } => Self::RoleGrantPermission,
            pb::InternalRaftRequest { auth_role_revoke_permission: Some(_), .. } => Self::RoleRevokePermission,
            _ => Self::Internal,
        }
    }

    /// Whether it is for everybody, so that not even a bad token is in its way. What is composed is looked at in its parts.
    pub fn is_for_everybody(&self) -> bool {
        matches!(self, Self::Authenticate | Self::Health | Self::Composed)
    }
}

/// Where a need is looked at.
///
/// What goes through the log is decided there: what stands before it in the log counts, the same on every member, and a
/// member that lags refuses nobody who was just given a permission. The places are etcd's, because members of both kinds
/// must come to the same result with the same log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// By the member that has been asked.
    Member,
    /// When the log entry is applied.
    Log,
}

/// One thing that must be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Need<'a> {
    /// To be somebody.
    User,
    /// The role `root`.
    Root,
    /// To be this user, or to have the role `root`.
    SelfOrRoot(&'a str),
    /// To have this role, or the role `root`.
    HolderOrRoot(&'a str),
    Read {
        key: &'a [u8],
        range_end: &'a [u8],
    },
    Write {
        key: &'a [u8],
        range_end: &'a [u8],
    },
    /// To read each key that is attached to the lease.
    ReadLease(i64),
    /// To write each key that is attached to the lease: ending a lease, keeping it alive, and attaching one's own keys to it
    /// decide over all of them.
    WriteLease(i64),
    /// To read each key that is attached to any lease.
    ReadAllLeases,
}

/// Tells `visit` everything that an action needs at a place. Stops at the first error.
pub fn needs<'a, E>(
    action: &Action<'a>,
    place: Place,
    visit: &mut dyn FnMut(Need<'a>) -> Result<(), E>,
) -> Result<(), E> {
    use Place::{Log, Member};
    let mut at = |where_: Place, need| if where_ == place { visit(need) } else { Ok(()) };
    match *action {
        // Also as a log entry, of which no version of today makes any.
        Action::Range(range) => range_needs(range, visit),
        Action::Put(put) if place == Log => put_needs(put, visit),
        Action::DeleteRange(delete) if place == Log => delete_needs(delete, visit),
        Action::Txn(txn) if place == Log || txn::is_read_only(txn) => txn_needs(txn, visit),
        Action::Put(_) | Action::DeleteRange(_) | Action::Txn(_) => Ok(()),
        Action::Watch { key, range_end } => at(Member, Need::Read { key, range_end }),

        Action::LeaseGrant => at(Member, Need::User),
        Action::LeaseRevoke(id) => {
            at(Member, Need::User)?;
            at(Log, Need::WriteLease(id))
        }
        Action::LeaseKeepAlive(id) => {
            at(Member, Need::User)?;
            at(Member, Need::WriteLease(id))
        }
        Action::LeaseTimeToLive(request) => {
            at(Member, Need::User)?;
            if request.keys { at(Member, Need::ReadLease(request.id)) } else { Ok(()) }
        }
        Action::LeaseLeases => {
            at(Member, Need::User)?;
            at(Member, Need::ReadAllLeases)
        }

        Action::MemberList | Action::Status => at(Member, Need::User),
        Action::Alarm(request) if request.action == AlarmAction::Get as i32 => at(Member, Need::User),
        Action::Alarm(_)
        | Action::Compact
        | Action::MemberAdd
        | Action::MemberRemove
        | Action::MemberUpdate
        | Action::MemberPromote
        | Action::Defragment
        | Action::Hash
        | Action::HashKv
        | Action::Snapshot
        | Action::MoveLeader
        | Action::Downgrade => at(Member, Need::Root),

        Action::UserGet(name) => at(Log, Need::SelfOrRoot(name)),
        Action::RoleGet(role) => at(Log, Need::HolderOrRoot(role)),
        Action::AuthEnable
        | Action::AuthDisable
        | Action::UserAdd
        | Action::UserList
        | Action::UserDelete
        | Action::UserChangePassword
        | Action::UserGrantRole
        | Action::UserRevokeRole
        | Action::RoleAdd
        | Action::RoleList
        | Action::RoleDelete
        | Action::RoleGrantPermission
        | Action::RoleRevokePermission => at(Log, Need::Root),

        Action::AuthStatus | Action::Authenticate | Action::Health | Action::Composed | Action::Internal => Ok(()),
    }
}

type Visit<'v, 'a, E> = &'v mut dyn FnMut(Need<'a>) -> Result<(), E>;

fn range_needs<'a, E>(range: &'a pb::RangeRequest, visit: Visit<'_, 'a, E>) -> Result<(), E> {
    visit(Need::Read { key: &range.key, range_end: &range.range_end })
}

fn put_needs<'a, E>(put: &'a pb::PutRequest, visit: Visit<'_, 'a, E>) -> Result<(), E> {
    visit(Need::Write { key: &put.key, range_end: &[] })?;
    if put.lease != 0 {
        visit(Need::WriteLease(put.lease))?;
    }
    if put.prev_kv {
        visit(Need::Read { key: &put.key, range_end: &[] })?;
    }
    Ok(())
}

fn delete_needs<'a, E>(delete: &'a pb::DeleteRangeRequest, visit: Visit<'_, 'a, E>) -> Result<(), E> {
    visit(Need::Write { key: &delete.key, range_end: &delete.range_end })?;
    if delete.prev_kv {
        visit(Need::Read { key: &delete.key, range_end: &delete.range_end })?;
    }
    Ok(())
}

/// Everything that either branch may do, because which one is taken tells something, too.
fn txn_needs<'a, E>(txn: &'a pb::TxnRequest, visit: Visit<'_, 'a, E>) -> Result<(), E> {
    for compare in &txn.compare {
        visit(Need::Read { key: &compare.key, range_end: &compare.range_end })?;
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match &op.request {
            Some(Op::RequestRange(range)) => range_needs(range, visit)?,
            Some(Op::RequestPut(put)) => put_needs(put, visit)?,
            Some(Op::RequestDeleteRange(delete)) => delete_needs(delete, visit)?,
            Some(Op::RequestTxn(nested)) => txn_needs(nested, visit)?,
            None => {}
        }
    }
    Ok(())
}
