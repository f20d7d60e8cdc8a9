//! What log entries do to users and roles.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use prost::Message;
use proto::authpb;
use proto::etcdserverpb as pb;
use sha2::{Digest, Sha256};
use store::Table;

use super::{Auth, ENABLED, Policy, REVISION, ROOT, User, keys};
use crate::Error;
use crate::members::Row;

/// What hashing a password of an old entry costs; Go's default.
const OLD_COST: u32 = 10;

/// A successful answer of the Auth service. Headers are left to whoever knows the store.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Response {
    Enable(pb::AuthEnableResponse),
    Disable(pb::AuthDisableResponse),
    Status(pb::AuthStatusResponse),
    Authenticate(pb::AuthenticateResponse),
    UserAdd(pb::AuthUserAddResponse),
    UserGet(pb::AuthUserGetResponse),
    UserList(pb::AuthUserListResponse),
    UserDelete(pb::AuthUserDeleteResponse),
    UserChangePassword(pb::AuthUserChangePasswordResponse),
    UserGrantRole(pb::AuthUserGrantRoleResponse),
    UserRevokeRole(pb::AuthUserRevokeRoleResponse),
    RoleAdd(pb::AuthRoleAddResponse),
    RoleGet(pb::AuthRoleGetResponse),
    RoleList(pb::AuthRoleListResponse),
    RoleDelete(pb::AuthRoleDeleteResponse),
    RoleGrantPermission(pb::AuthRoleGrantPermissionResponse),
    RoleRevokePermission(pb::AuthRoleRevokePermissionResponse),
}

impl Response {
    /// Its header.
    pub fn header_mut(&mut self) -> &mut Option<pb::ResponseHeader> {
        match self {
            Self::Enable(response) => &mut response.header,
            Self::Disable(response) => &mut response.header,
            Self::Status(response) => &mut response.header,
            Self::Authenticate(response) => &mut response.header,
            Self::UserAdd(response) => &mut response.header,
            Self::UserGet(response) => &mut response.header,
            Self::UserList(response) => &mut response.header,
            Self::UserDelete(response) => &mut response.header,
            Self::UserChangePassword(response) => &mut response.header,
            Self::UserGrantRole(response) => &mut response.header,
            Self::UserRevokeRole(response) => &mut response.header,
            Self::RoleAdd(response) => &mut response.header,
            Self::RoleGet(response) => &mut response.header,
            Self::RoleList(response) => &mut response.header,
            Self::RoleDelete(response) => &mut response.header,
            Self::RoleGrantPermission(response) => &mut response.header,
            Self::RoleRevokePermission(response) => &mut response.header,
        }
    }
}

/// What is to be stored for an entry, and what its client is told. Already in force.
pub(crate) struct Change {
    pub(crate) rows: Vec<Row>,
    pub(crate) response: Response,
}

impl From<Response> for Change {
    /// Nothing has changed.
    fn from(response: Response) -> Self {
        Self { rows: Vec::new(), response }
    }
}

impl Auth {
    /// Carries out an entry of the Auth service, which is allowed; `None` if it is none. `index` is that of the entry.
    pub(crate) fn apply(&self, entry: &pb::InternalRaftRequest, index: u64) -> Option<Result<Change, Error>> {
        let policy = self.policy();
        Some(if entry.auth_enable.is_some() {
            self.enable(&policy)
        } else if entry.auth_disable.is_some() {
            Ok(self.disable(&policy))
        } else if entry.auth_status.is_some() {
            let (enabled, auth_revision) = (policy.enabled, policy.revision);
            Ok(Response::Status(pb::AuthStatusResponse { header: None, enabled, auth_revision }).into())
        } else if let Some(request) = &entry.authenticate {
            self.authenticate(&policy, request, index)
        } else if let Some(request) = &entry.auth_user_add {
            self.user_add(&policy, request, index)
        } else if let Some(request) = &entry.auth_user_delete {
            self.user_delete(&policy, request)
        } else if let Some(request) = &entry.auth_user_get {
            user_get(&policy, request)
        } else if let Some(request) = &entry.auth_user_change_password {
            self.user_change_password(&policy, request, index)
        } else if let Some(request) = &entry.auth_user_grant_role {
            self.user_grant_role(&policy, request)
        } else if let Some(request) = &entry.auth_user_revoke_role {
            self.user_revoke_role(&policy, request)
        } else if entry.auth_user_list.is_some() {
            let users = policy.users.keys().map(|name| name.to_string()).collect();
            Ok(Response::UserList(pb::AuthUserListResponse { header: None, users }).into())
        } else if entry.auth_role_list.is_some() {
            let roles = policy.roles.keys().map(|name| name.to_string()).collect();
            Ok(Response::RoleList(pb::AuthRoleListResponse { header: None, roles }).into())
        } else if let Some(request) = &entry.auth_role_add {
            self.role_add(&policy, request)
        } else if let Some(request) = &entry.auth_role_delete {
            self.role_delete(&policy, request)
        } else if let Some(request) = &entry.auth_role_get {
            role_get(&policy, request)
        } else if let Some(request) = &entry.auth_role_grant_permission {
            self.role_grant_permission(&policy, request)
        } else if let Some(request) = &entry.auth_role_revoke_permission {
            self.role_revoke_permission(&policy, request)
        } else {
            return None;
        })
    }

    // --- on and off ---

    fn enable(&self, policy: &Policy) -> Result<Change, Error> {
        let mut rows = Vec::new();
        if !policy.enabled {
            let root = policy.user(ROOT).ok_or(Error::RootUserNotExist)?;
            if !root.is_root {
                return Err(Error::RootRoleNotExist);
            }
            rows.push((Table::Auth, ENABLED.to_vec(), Some(vec![1])));
            self.put_in_force(Policy { enabled: true, ..policy.clone() });
        }
        Ok(Change { rows, response: Response::Enable(pb::AuthEnableResponse::default()) })
    }

    fn disable(&self, policy: &Policy) -> Change {
        let response = Response::Disable(pb::AuthDisableResponse::default());
        if !policy.enabled {
            return response.into();
        }
        let mut draft = Draft::of(policy);
        draft.policy.enabled = false;
        draft.rows.push((Table::Auth, ENABLED.to_vec(), Some(vec![0])));
        self.accept(draft, response)
    }

    /// The password was checked by the member that proposed this.
    fn authenticate(
        &self,
        policy: &Policy,
        request: &pb::InternalAuthenticateRequest,
        index: u64,
    ) -> Result<Change, Error> {
        if !policy.enabled {
            return Err(Error::AuthNotEnabled);
        }
        let user = policy.user(&request.name).ok_or(Error::AuthFailed)?;
        if user.has_no_password() {
            return Err(Error::AuthFailed);
        }
        let mut token = String::new();
        // Where tokens are signed there is nothing to remember, and whoever signs them fills this in.
        if !request.simple_token.is_empty() {
            token = format!("{}.{index}", request.simple_token);
            self.tokens.give(&token, &request.name);
        }
        Ok(Response::Authenticate(pb::AuthenticateResponse { header: None, token }).into())
    }

    // --- users ---

    fn user_add(&self, policy: &Policy, request: &pb::AuthUserAddRequest, index: u64) -> Result<Change, Error> {
        if request.name.is_empty() {
            return Err(Error::UserEmpty);
        }
        if policy.user(&request.name).is_some() {
            return Err(Error::UserAlreadyExist);
        }
        let options = request.options.unwrap_or_default();
        let password = match options.no_password {
            true => Bytes::new(),
            false => password(&request.name, &request.password, &request.hashed_password, index)?,
        };
        let name = Bytes::copy_from_slice(request.name.as_bytes());
        let mut draft = Draft::of(policy);
        draft.set_user(authpb::User { name, password, roles: Vec::new(), options: Some(options) });
        Ok(self.accept(draft, Response::UserAdd(pb::AuthUserAddResponse::default())))
    }

    fn user_delete(&self, policy: &Policy, request: &pb::AuthUserDeleteRequest) -> Result<Change, Error> {
        if policy.enabled && request.name == ROOT {
            return Err(Error::InvalidAuthMgmt);
        }
        policy.user(&request.name).ok_or(Error::UserNotFound)?;
        let mut draft = Draft::of(policy);
        draft.policy.users.remove(request.name.as_str());
        draft.rows.push((Table::AuthUsers, request.name.clone().into_bytes(), None));
        let change = self.accept(draft, Response::UserDelete(pb::AuthUserDeleteResponse::default()));
        self.tokens.take_back_from(&request.name);
        Ok(change)
    }

    fn user_change_password(
        &self,
        policy: &Policy,
        request: &pb::AuthUserChangePasswordRequest,
        index: u64,
    ) -> Result<Change, Error> {
        let user = policy.user(&request.name).ok_or(Error::UserNotFound)?;
        let password = match user.has_no_password() {
            true => Bytes::new(),
            false => password(&request.name, &request.password, &request.hashed_password, index)?,
        };
        let mut draft = Draft::of(policy);
        draft.set_user(authpb::User { password, ..user.row.clone() });
        let response = Response::UserChangePassword(pb::AuthUserChangePasswordResponse::default());
        let change = self.accept(draft, response);
        self.tokens.take_back_from(&request.name);
        Ok(change)
    }

    fn user_grant_role(&self, policy: &Policy, request: &pb::AuthUserGrantRoleRequest) -> Result<Change, Error> {
        let user = policy.user(&request.user).ok_or(Error::UserNotFound)?;
        if request.role != ROOT && !policy.roles.contains_key(request.role.as_str()) {
            return Err(Error::RoleNotFound);
        }
        let response = Response::UserGrantRole(pb::AuthUserGrantRoleResponse::default());
        let mut row = user.row.clone();
        match row.roles.binary_search(&request.role) {
            Ok(_) => return Ok(response.into()),
            Err(place) => row.roles.insert(place, request.role.clone()),
        }
        let mut draft = Draft::of(policy);
        draft.set_user(row);
        Ok(self.accept(draft, response))
    }

    fn user_revoke_role(&self, policy: &Policy, request: &pb::AuthUserRevokeRoleRequest) -> Result<Change, Error> {
        if policy.enabled && request.name == ROOT && request.role == ROOT {
            return Err(Error::InvalidAuthMgmt);
        }
        let user = policy.user(&request.name).ok_or(Error::UserNotFound)?;
        let row = without_role(&user.row, &request.role).ok_or(Error::RoleNotGranted)?;
        let mut draft = Draft::of(policy);
        draft.set_user(row);
        Ok(self.accept(draft, Response::UserRevokeRole(pb::AuthUserRevokeRoleResponse::default())))
    }

    // --- roles ---

    fn role_add(&self, policy: &Policy, request: &pb::AuthRoleAddRequest) -> Result<Change, Error> {
        if request.name.is_empty() {
            return Err(Error::RoleEmpty);
        }
        if policy.roles.contains_key(request.name.as_str()) {
            return Err(Error::RoleAlreadyExist);
        }
        let name = Bytes::copy_from_slice(request.name.as_bytes());
        let mut draft = Draft::of(policy);
        draft.set_role(&request.name, authpb::Role { name, key_permission: Vec::new() });
        Ok(self.accept(draft, Response::RoleAdd(pb::AuthRoleAddResponse::default())))
    }

    fn role_delete(&self, policy: &Policy, request: &pb::AuthRoleDeleteRequest) -> Result<Change, Error> {
        if policy.enabled && request.role == ROOT {
            return Err(Error::InvalidAuthMgmt);
        }
        if !policy.roles.contains_key(request.role.as_str()) {
            return Err(Error::RoleNotFound);
        }
        let mut draft = Draft::of(policy);
        draft.policy.roles.remove(request.role.as_str());
        draft.rows.push((Table::AuthRoles, request.role.clone().into_bytes(), None));
        for user in policy.users.values() {
            if let Some(row) = without_role(&user.row, &request.role) {
                draft.set_user(row);
            }
        }
        Ok(self.accept(draft, Response::RoleDelete(pb::AuthRoleDeleteResponse::default())))
    }

    fn role_grant_permission(
        &self,
        policy: &Policy,
        request: &pb::AuthRoleGrantPermissionRequest,
    ) -> Result<Change, Error> {
        let permission = request.perm.as_ref().ok_or(Error::PermissionNotGiven)?;
        if !keys::is_valid(permission) {
            return Err(Error::InvalidAuthMgmt);
        }
        let mut role = policy.roles.get(request.name.as_str()).ok_or(Error::RoleNotFound)?.clone();
        // Only the first of those that begin with the same key is looked at, as in etcd, so that rows are the same.
        let place = role.key_permission.partition_point(|held| held.key < permission.key);
        match role.key_permission.get_mut(place) {
            Some(held) if held.key == permission.key && held.range_end == permission.range_end => {
                held.perm_type = permission.perm_type;
            }
            _ => {
                role.key_permission.push(permission.clone());
                role.key_permission.sort_by(|a, b| a.key.cmp(&b.key));
            }
        }
        let mut draft = Draft::of(policy);
        draft.set_role(&request.name, role);
        Ok(self.accept(draft, Response::RoleGrantPermission(pb::AuthRoleGrantPermissionResponse::default())))
    }

    fn role_revoke_permission(
        &self,
        policy: &Policy,
        request: &pb::AuthRoleRevokePermissionRequest,
    ) -> Result<Change, Error> {
        let mut role = policy.roles.get(request.role.as_str()).ok_or(Error::RoleNotFound)?.clone();
        let held = role.key_permission.len();
        role.key_permission.retain(|held| held.key != request.key || held.range_end != request.range_end);
        if role.key_permission.len() == held {
            return Err(Error::PermissionNotGranted);
        }
        let mut draft = Draft::of(policy);
        draft.set_role(&request.role, role);
        Ok(self.accept(draft, Response::RoleRevokePermission(pb::AuthRoleRevokePermissionResponse::default())))
    }

    /// Puts a draft in force under the next revision.
    fn accept(&self, mut draft: Draft, response: Response) -> Change {
        draft.policy.revision += 1;
        let revision = draft.policy.revision.to_be_bytes().to_vec();
        draft.rows.push((Table::Auth, REVISION.to_vec(), Some(revision)));
        self.put_in_force(draft.policy);
        Change { rows: draft.rows, response }
    }
}

fn user_get(policy: &Policy, request: &pb::AuthUserGetRequest) -> Result<Change, Error> {
    let user = policy.user(&request.name).ok_or(Error::UserNotFound)?;
    Ok(Response::UserGet(pb::AuthUserGetResponse { header: None, roles: user.row.roles.clone() }).into())
}

fn role_get(policy: &Policy, request: &pb::AuthRoleGetRequest) -> Result<Change, Error> {
    let role = policy.roles.get(request.role.as_str()).ok_or(Error::RoleNotFound)?;
    let perm = match request.role.as_str() {
        // Whatever it was given, it may do everything.
        ROOT => vec![authpb::Permission {
            perm_type: authpb::permission::Type::Readwrite as i32,
            key: Bytes::new(),
            range_end: Bytes::from_static(b"\0"),
        }],
        _ => role.key_permission.clone(),
    };
    Ok(Response::RoleGet(pb::AuthRoleGetResponse { header: None, perm }).into())
}

/// A policy that is being changed, and the rows that go with it.
struct Draft {
    policy: Policy,
    rows: Vec<Row>,
}

impl Draft {
    fn of(policy: &Policy) -> Self {
        Self { policy: policy.clone(), rows: Vec::new() }
    }

    fn set_user(&mut self, row: authpb::User) {
        self.rows.push((Table::AuthUsers, row.name.to_vec(), Some(row.encode_to_vec())));
        // A name is text: it came as such, or was looked at when it was read.
        let name: Arc<str> = String::from_utf8_lossy(&row.name).into();
        self.policy.users.insert(name, Arc::new(User::new(row, &self.policy.roles)));
    }

    fn set_role(&mut self, name: &str, role: authpb::Role) {
        self.rows.push((Table::AuthRoles, role.name.to_vec(), Some(role.encode_to_vec())));
        self.policy.roles.insert(name.into(), role);
        let Policy { users, roles, .. } = &mut self.policy;
        for user in users.values_mut().filter(|user| user.row.roles.iter().any(|held| held == name)) {
            *user = Arc::new(User::new(user.row.clone(), roles));
        }
    }
}

fn without_role(user: &authpb::User, role: &str) -> Option<authpb::User> {
    let roles: Vec<String> = user.roles.iter().filter(|held| *held != role).cloned().collect();
    (roles.len() < user.roles.len()).then(|| authpb::User { roles, ..user.clone() })
}

/// The hash of an entry's password. Since etcd 3.5 the entry carries it; before, it carries the password itself, and each
/// member hashed it on its own.
fn password(name: &str, clear: &str, hashed: &str, index: u64) -> Result<Bytes, Error> {
    if clear.is_empty() || !hashed.is_empty() {
        return BASE64_STANDARD.decode(hashed).map(Bytes::from).map_err(|_| Error::NoPasswordUser);
    }
    let mut salt = [0; 16];
    let digest = Sha256::new().chain_update(index.to_be_bytes()).chain_update(name).finalize();
    salt.copy_from_slice(&digest[..16]);
    let parts = bcrypt::hash_with_salt(clear, OLD_COST, salt).map_err(|error| Error::Internal(error.to_string()))?;
    Ok(parts.format_for_version(bcrypt::Version::TwoA).into_bytes().into())
}
