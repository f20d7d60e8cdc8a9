//! The Auth service. Everything goes through the log, also what only reads: who may is decided there.

use std::rc::Rc;

use proto::etcdserverpb as pb;
use state::Error;
use tokio::task::{spawn_blocking, spawn_local};

use crate::auth::TokenKind;
use crate::grpc::wire::Responder;
use crate::worker::Worker;

/// A method that is nothing but its log entry.
macro_rules! logged {
    ($( $method:ident($request:ident) as $field:ident; )*) => {
        $(
            pub(crate) fn $method(worker: &Rc<Worker>, responder: Responder, request: pb::$request) {
                worker.propose(pb::InternalRaftRequest { $field: Some(request), ..Default::default() }, responder);
            }
        )*
    };
}

logged! {
    enable(AuthEnableRequest) as auth_enable;
    disable(AuthDisableRequest) as auth_disable;
    status(AuthStatusRequest) as auth_status;
    user_get(AuthUserGetRequest) as auth_user_get;
    user_list(AuthUserListRequest) as auth_user_list;
    user_delete(AuthUserDeleteRequest) as auth_user_delete;
    user_grant_role(AuthUserGrantRoleRequest) as auth_user_grant_role;
    user_revoke_role(AuthUserRevokeRoleRequest) as auth_user_revoke_role;
    role_add(AuthRoleAddRequest) as auth_role_add;
    role_get(AuthRoleGetRequest) as auth_role_get;
    role_list(AuthRoleListRequest) as auth_role_list;
    role_delete(AuthRoleDeleteRequest) as auth_role_delete;
    role_grant_permission(AuthRoleGrantPermissionRequest) as auth_role_grant_permission;
    role_revoke_permission(AuthRoleRevokePermissionRequest) as auth_role_revoke_permission;
}

/// The log never holds the password, only its hash.
pub(crate) fn user_add(worker: &Rc<Worker>, responder: Responder, mut request: pb::AuthUserAddRequest) {
    let password = std::mem::take(&mut request.password);
    if request.options.is_some_and(|options| options.no_password) {
        return worker
            .propose(pb::InternalRaftRequest { auth_user_add: Some(request), ..Default::default() }, responder);
    }
    let worker = worker.clone();
    spawn_local(async move {
        match worker.shared.auth.passwords.hash(password).await {
            Ok(hash) => request.hashed_password = hash,
            Err(error) => return responder.refuse(&worker, error),
        }
        worker.propose(pb::InternalRaftRequest { auth_user_add: Some(request), ..Default::default() }, responder);
    });
}

/// An empty password becomes an empty hash, which no password has.
pub(crate) fn user_change_password(
    worker: &Rc<Worker>,
    responder: Responder,
    mut request: pb::AuthUserChangePasswordRequest,
) {
    let password = std::mem::take(&mut request.password);
    let worker = worker.clone();
    spawn_local(async move {
        if !password.is_empty() {
            match worker.shared.auth.passwords.hash(password).await {
                Ok(hash) => request.hashed_password = hash,
                Err(error) => return responder.refuse(&worker, error),
            }
        }
        let entry = pb::InternalRaftRequest { auth_user_change_password: Some(request), ..Default::default() };
        worker.propose(entry, responder);
    });
}

pub(crate) fn authenticate(worker: &Rc<Worker>, responder: Responder, request: pb::AuthenticateRequest) {
    let worker = worker.clone();
    spawn_local(async move {
        let response = give_token(&worker, request).await;
        responder.answer(&worker, response.map(|response| worker.frame(&response)));
    });
}

/// How often users and roles may change under a password check before its client is told to try again.
const ATTEMPTS: usize = 16;

/// Checks a password and gives a token for it.
pub(crate) async fn give_token(
    worker: &Worker,
    request: pb::AuthenticateRequest,
) -> Result<pb::AuthenticateResponse, Error> {
    // A password that was changed a moment ago on another member counts here, too.
    worker.barrier().await?;
    for _ in 0..ATTEMPTS {
        let policy = worker.policy();
        if !policy.is_enabled() {
            return Err(Error::AuthNotEnabled);
        }
        let user = policy.user(&request.name).ok_or(Error::AuthFailed)?;
        if user.has_no_password() {
            return Err(Error::NoPasswordUser);
        }
        if !worker.shared.auth.passwords.verify(user.password_hash(), request.password.clone()).await? {
            tracing::info!("user-name" = request.name.as_str(), "invalid password");
            return Err(Error::AuthFailed);
        }
        let authenticate = pb::InternalAuthenticateRequest {
            name: request.name.clone(),
            password: String::new(),
            simple_token: worker.shared.auth.new_token_name(),
        };
        let entry = pb::InternalRaftRequest { authenticate: Some(authenticate), ..Default::default() };
        let state::Response::Auth(state::auth::Response::Authenticate(mut response)) = worker.apply(entry).await?
        else {
            return Err(Error::Internal("etcdserver: unexpected answer to an authentication".into()));
        };
        // It may have been the password, or the user, that was changed between the check and the token.
        let revision = policy.revision();
        if worker.member().state().auth().revision() != revision {
            tracing::info!("revision when password checked became stale; retrying");
            continue;
        }
        match &worker.shared.auth.tokens {
            TokenKind::Simple => {}
            TokenKind::None => return Err(Error::AuthFailed),
            TokenKind::Jwt(_) => {
                let (auth, name) = (worker.shared.auth.clone(), request.name.clone());
                let signed = spawn_blocking(move || match &auth.tokens {
                    TokenKind::Jwt(jwt) => jwt.sign(&name, revision),
                    TokenKind::None | TokenKind::Simple => Err(Error::AuthFailed),
                });
                response.token = signed.await.map_err(|_| Error::Stopped)??;
            }
        }
        worker.complete(&mut response.header);
        return Ok(response);
    }
    Err(Error::AuthOldRevision)
}
