//! What stands before every method: nobody gets at a request before its caller may make it.
//!
//! Each request that exists says here which action it is; a method whose request does not cannot be run ([`super::run`]), and an
//! action without a rule does not compile ([`state::auth::needs`]).

use std::rc::Rc;

use proto::etcdserverpb as pb;
use proto::healthpb::{HealthCheckRequest, HealthListRequest};
use proto::v3electionpb::{CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest};
use proto::v3lockpb::{LockRequest, UnlockRequest};
use state::auth::Action;
use tokio::task::spawn_local;

use crate::auth::Denied;
use crate::grpc::wire::Responder;
use crate::worker::Worker;

/// A request whose rights can be looked at.
pub(crate) trait Guarded {
    /// What it is, as far as permissions are concerned.
    fn action(&self) -> Action<'_>;
}

macro_rules! actions {
    ($( $message:ty: $request:pat => $action:expr, )*) => {
        $(
            impl Guarded for $message {
                fn action(&self) -> Action<'_> {
                    let $request = self;
                    $action
                }
            }
        )*
    };
}

actions! {
    pb::RangeRequest: request => Action::Range(request),
    pb::PutRequest: request => Action::Put(request),
    pb::DeleteRangeRequest: request => Action::DeleteRange(request),
    pb::TxnRequest: request => Action::Txn(request),
    pb::CompactionRequest: _ => Action::Compact,
    pb::WatchCreateRequest: request => Action::Watch {
        // An empty key stands for the smallest that there is.
        key: if request.key.is_empty() { b"\0" } else { &request.key },
        range_end: &request.range_end,
    },
    pb::LeaseGrantRequest: _ => Action::LeaseGrant,
    pb::LeaseRevokeRequest: request => Action::LeaseRevoke(request.id),
    pb::LeaseKeepAliveRequest: request => Action::LeaseKeepAlive(request.id),
    pb::LeaseTimeToLiveRequest: request => Action::LeaseTimeToLive(request),
    pb::LeaseLeasesRequest: _ => Action::LeaseLeases,
    pb::MemberAddRequest: _ => Action::MemberAdd,
    pb::MemberRemoveRequest: _ => Action::MemberRemove,
    pb::MemberUpdateRequest: _ => Action::MemberUpdate,
    pb::MemberPromoteRequest: _ => Action::MemberPromote,
    pb::MemberListRequest: _ => Action::MemberList,
    pb::AlarmRequest: request => Action::Alarm(request),
    pb::StatusRequest: _ => Action::Status,
    pb::DefragmentRequest: _ => Action::Defragment,
    pb::HashRequest: _ => Action::Hash,
    pb::HashKvRequest: _ => Action::HashKv,
    pb::SnapshotRequest: _ => Action::Snapshot,
    pb::MoveLeaderRequest: _ => Action::MoveLeader,
    pb::DowngradeRequest: _ => Action::Downgrade,
    pb::AuthEnableRequest: _ => Action::AuthEnable,
    pb::AuthDisableRequest: _ => Action::AuthDisable,
    pb::AuthStatusRequest: _ => Action::AuthStatus,
    pb::AuthenticateRequest: _ => Action::Authenticate,
    pb::AuthUserAddRequest: _ => Action::UserAdd,
    pb::AuthUserGetRequest: request => Action::UserGet(&request.name),
    pb::AuthUserListRequest: _ => Action::UserList,
    pb::AuthUserDeleteRequest: _ => Action::UserDelete,
    pb::AuthUserChangePasswordRequest: _ => Action::UserChangePassword,
    pb::AuthUserGrantRoleRequest: _ => Action::UserGrantRole,
    pb::AuthUserRevokeRoleRequest: _ => Action::UserRevokeRole,
    pb::AuthRoleAddRequest: _ => Action::RoleAdd,
    pb::AuthRoleGetRequest: request => Action::RoleGet(&request.role),
    pb::AuthRoleListRequest: _ => Action::RoleList,
    pb::AuthRoleDeleteRequest: _ => Action::RoleDelete,
    pb::AuthRoleGrantPermissionRequest: _ => Action::RoleGrantPermission,
    pb::AuthRoleRevokePermissionRequest: _ => Action::RoleRevokePermission,
    LockRequest: _ => Action::Composed,
    UnlockRequest: _ => Action::Composed,
    CampaignRequest: _ => Action::Composed,
    ProclaimRequest: _ => Action::Composed,
    LeaderRequest: _ => Action::Composed,
    ResignRequest: _ => Action::Composed,
    HealthCheckRequest: _ => Action::Health,
    HealthListRequest: _ => Action::Health,
}

/// A request that has not been looked at yet. What is in it comes out through [`Unguarded::pass`] only.
#[derive(Debug)]
pub(crate) struct Unguarded<R>(R);

impl<R: Guarded + 'static> Unguarded<R> {
    pub(crate) fn new(request: R) -> Self {
        Self(request)
    }

    /// For what can be refused without regard to who asks.
    pub(crate) fn peek(&self) -> &R {
        &self.0
    }

    /// The same request as another type, which is guarded as well.
    pub(crate) fn map<S: Guarded + 'static>(self, as_other: impl FnOnce(R) -> S) -> Unguarded<S> {
        Unguarded(as_other(self.0))
    }

    /// Goes on with the request if its caller may make it.
    pub(crate) fn pass(
        self,
        worker: &Rc<Worker>,
        mut responder: Responder,
        then: impl FnOnce(&Rc<Worker>, Responder, R) + 'static,
    ) {
        match worker.authorise(&responder.caller, &self.0.action()) {
            Ok(access) => {
                responder.access = access;
                then(worker, responder, self.0);
            }
            Err(Denied::Refused(error)) => responder.refuse(worker, error),
            Err(Denied::Behind) => {
                let worker = worker.clone();
                spawn_local(async move {
                    match worker.authorise_soon(&responder.caller, &self.0.action()).await {
                        Ok(access) => {
                            responder.access = access;
                            then(&worker, responder, self.0);
                        }
                        Err(error) => responder.refuse(&worker, error),
                    }
                });
            }
        }
    }
}
