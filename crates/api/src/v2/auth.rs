//! Users and roles of the v2 API: they live in the v2 tree, apart from those of v3.
//!
//! How often the tree is read for a request is part of what `/v2/stats/store` shows, so the lookups here are etcd's, one by
//! one.

use std::rc::Rc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use proto::v2pb;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use state::v2::{self, Code, Found};

use super::{Body, add_cluster_id, go_json, json, keys, message, now_ns, refuse_method};
use crate::http1::{Answer, Payload};
use crate::worker::Worker;

/// Whether users have to say who they are.
const ENABLED: &str = "/2/enabled";
const ROOT: &str = "root";
const GUEST: &str = "guest";
/// What hashing a password costs; Go's default.
const BCRYPT_COST: u32 = 10;

/// Why a request is refused.
#[derive(Debug)]
enum Refusal {
    /// A rule of users and roles.
    Auth(StatusCode, String),
    /// A malformed request.
    Plain(StatusCode, String),
    /// The tree.
    Tree(v2::Error),
}

impl From<v2::Error> for Refusal {
    fn from(error: v2::Error) -> Self {
        Self::Tree(error)
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Auth(status, text) => message(status, &format!("auth: {text}")).into(),
            Refusal::Plain(status, text) => message(status, &text).into(),
            Refusal::Tree(error) => keys::refusal(&error),
        }
    }
}

fn refuse<T>(status: StatusCode, text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Auth(status, text.into()))
}

/// A list that Go tells from one that was never filled.
type Names = Option<Vec<String>>;

fn names(list: &Names) -> &[String] {
    list.as_deref().unwrap_or_default()
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct User {
    user: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    password: String,
    roles: Names,
    #[serde(skip_serializing_if = "none_or_empty")]
    grant: Names,
    #[serde(skip_serializing_if = "none_or_empty")]
    revoke: Names,
}

fn none_or_empty(list: &Names) -> bool {
    names(list).is_empty()
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Role {
    role: String,
    permissions: Permissions,
    #[serde(skip_serializing_if = "Option::is_none")]
    grant: Option<Permissions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoke: Option<Permissions>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Permissions {
    kv: Patterns,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Patterns {
    read: Names,
    write: Names,
}

impl Permissions {
    fn is_empty(&self) -> bool {
        names(&self.kv.read).is_empty() && names(&self.kv.write).is_empty()
    }
}

impl Role {
    /// A role that may do everything.
    fn almighty(name: &str) -> Self {
        let all = || Some(vec!["/*".to_owned()]);
        let permissions = Permissions { kv: Patterns { read: all(), write: all() } };
        Self { role: name.to_owned(), permissions, grant: None, revoke: None }
    }

    fn allows(&self, key: &str, writes: bool, recursive: bool) -> bool {
        if self.role == ROOT {
            return true;
        }
        let patterns = if writes { &self.permissions.kv.write } else { &self.permissions.kv.read };
        names(patterns).iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => key.starts_with(prefix),
            None => !recursive && pattern == key,
        })
    }
}

/// Adds and takes away; sorted, as a set comes out of etcd.
fn merged(
    old: &Names,
    grant: &Names,
    revoke: &Names,
    duplicate: impl Fn(&str) -> String,
    missing: Option<&dyn Fn(&str) -> String>,
) -> Result<Names, Refusal> {
    let mut list = names(old).to_vec();
    for name in names(grant) {
        if list.contains(name) {
            return refuse(StatusCode::CONFLICT, duplicate(name));
        }
        list.push(name.clone());
    }
    for name in names(revoke) {
        match (list.iter().position(|known| known == name), missing) {
            (Some(at), _) => drop(list.remove(at)),
            (None, Some(missing)) => return refuse(StatusCode::CONFLICT, missing(name)),
            (None, None) => tracing::warn!(permission = name.as_str(), "revoking ungranted permission"),
        }
    }
    list.sort_unstable();
    list.dedup();
    Ok(Some(list))
}

// --- the tree ---

fn look_up(worker: &Worker, resource: &str) -> Result<Found, v2::Error> {
    worker.member().state().v2().get(&format!("{}{resource}", v2::AUTH), false, now_ns())
}

/// The same through the log.
async fn look_up_surely(worker: &Worker, resource: &str) -> Result<Found, v2::Error> {
    match propose(worker, "QGET", resource, String::new(), false, None).await? {
        v2::Answer::Found(found) => Ok(found),
        _ => Err(v2::Error::new(Code::RaftInternal, "etcdserver: unexpected answer", 0)),
    }
}

async fn propose(
    worker: &Worker,
    method: &str,
    resource: &str,
    value: String,
    dir: bool,
    prev_exist: Option<bool>,
) -> v2::Outcome {
    let path = format!("{}{resource}", v2::AUTH);
    let entry = v2pb::Request { dir: Some(dir), prev_exist, time: Some(now_ns()), ..v2::request(method, path, value) };
    keys::propose(worker, entry).await
}

/// Makes the directories, once for a cluster.
async fn ensure_directories(worker: &Worker) -> Result<(), v2::Error> {
    if worker.member().state().v2().exists(ENABLED) {
        return Ok(());
    }
    for (resource, value, dir) in
        [("", "", true), ("/users", "", true), ("/roles", "", true), ("/enabled", "false", false)]
    {
        match propose(worker, "PUT", resource, value.to_owned(), dir, Some(false)).await {
            Err(error) if error.code != Code::NodeExist => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// `exists`: whether it must be there already, or must not.
async fn store(worker: &Worker, resource: &str, value: &impl Serialize, exists: bool) -> Result<(), v2::Error> {
    ensure_directories(worker).await?;
    propose(worker, "PUT", resource, go_json(value), false, Some(exists)).await.map(|_| ())
}

async fn remove(worker: &Worker, resource: &str) -> Result<(), v2::Error> {
    ensure_directories(worker).await?;
    propose(worker, "DELETE", resource, String::new(), false, Some(true)).await.map(|_| ())
}

fn parse<T: DeserializeOwned>(found: &Found) -> Result<T, Refusal> {
    let value = found.value().unwrap_or_default();
    serde_json::from_slice(&value).map_err(|error| {
        tracing::warn!(error = %error, "a user or role of the v2 API cannot be read");
        Refusal::Plain(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error".into())
    })
}

/// Whether users have to say who they are.
pub(super) fn is_enabled(worker: &Worker) -> bool {
    // Read for every request, and counted, as in etcd.
    worker.member().state().v2().value(ENABLED).is_some_and(|value| value == "true")
}

fn missing_as(error: v2::Error, what: impl FnOnce() -> String) -> Refusal {
    if error.code == Code::KeyNotFound { Refusal::Auth(StatusCode::NOT_FOUND, what()) } else { Refusal::Tree(error) }
}

fn read_user(name: &str, found: Result<Found, v2::Error>) -> Result<User, Refusal> {
    let found = found.map_err(|error| missing_as(error, || format!("User {name} does not exist.")))?;
    Ok(with_root_role(parse(&found)?))
}

fn read_role(name: &str, found: Result<Found, v2::Error>) -> Result<Role, Refusal> {
    parse(&found.map_err(|error| missing_as(error, || format!("Role {name} does not exist.")))?)
}

fn with_root_role(mut user: User) -> User {
    if user.user == ROOT && !names(&user.roles).iter().any(|role| role == ROOT) {
        user.roles.get_or_insert_default().push(ROOT.to_owned());
    }
    user
}

fn user(worker: &Worker, name: &str) -> Result<User, Refusal> {
    read_user(name, look_up(worker, &format!("/users/{name}")))
}

async fn user_surely(worker: &Worker, name: &str) -> Result<User, Refusal> {
    read_user(name, look_up_surely(worker, &format!("/users/{name}")).await)
}

fn role(worker: &Worker, name: &str) -> Result<Role, Refusal> {
    if name == ROOT {
        return Ok(Role::almighty(ROOT));
    }
    read_role(name, look_up(worker, &format!("/roles/{name}")))
}

async fn role_surely(worker: &Worker, name: &str) -> Result<Role, Refusal> {
    if name == ROOT {
        return Ok(Role::almighty(ROOT));
    }
    read_role(name, look_up_surely(worker, &format!("/roles/{name}")).await)
}

fn list(worker: &Worker, directory: &str) -> Result<Vec<String>, Refusal> {
    match look_up(worker, directory) {
        Ok(found) => Ok(found.names()),
        Err(error) if error.code == Code::KeyNotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

// --- passwords ---

/// Runs what takes long beside the other connections of this worker.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Refusal::Plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

async fn hashed(password: String) -> Result<String, Refusal> {
    let hash = aside(move || bcrypt::hash_with_result(password, BCRYPT_COST)).await?;
    let hash = hash.map_err(|error| Refusal::Plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    // Go writes this version, and reads no later one.
    Ok(hash.format_for_version(bcrypt::Version::TwoA))
}

/// Whether a user can be called that. What anybody claims must not lead the look-up out of the users' directory, to a key
/// that the claimant has written.
fn can_be_a_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains('/')
}

/// The user that a request's header proves; none if it does not.
async fn basic_user(worker: &Worker, head: &Parts) -> Option<User> {
    let given = head.headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, encoded) = given.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let decoded = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    let (name, password) = decoded.split_once(':').filter(|(name, _)| can_be_a_name(name))?;
    let user = user(worker, name).ok()?;
    let (password, hash) = (password.to_owned(), user.password.clone());
    let right = aside(move || bcrypt::verify(password, &hash).unwrap_or(false)).await.ok()?;
    right.then_some(user)
}

/// Whether a request may do this to `key`, which is what stands behind `/v2/keys` in its path.
pub(super) async fn may_access(worker: &Worker, head: &Parts, key: &str, recursive: bool) -> bool {
    if !is_enabled(worker) {
        return true;
    }
    let writes = head.method != Method::GET && head.method != Method::HEAD;
    if head.headers.get(AUTHORIZATION).is_none_or(|value| value.is_empty()) {
        return role(worker, GUEST).is_ok_and(|guest| guest.allows(key, writes, false));
    }
    let Some(user) = basic_user(worker, head).await else { return false };
    names(&user.roles).iter().any(|name| role(worker, name).is_ok_and(|role| role.allows(key, writes, recursive)))
}

/// Whether a request comes from somebody who may do everything.
pub(super) async fn is_root(worker: &Worker, head: &Parts) -> bool {
    if !is_enabled(worker) {
        return true;
    }
    let user = basic_user(worker, head).await;
    user.is_some_and(|user| names(&user.roles).iter().any(|role| role == ROOT))
}

/// To somebody who may not.
pub(super) fn no_rights() -> Response<Body> {
    message(StatusCode::UNAUTHORIZED, "Insufficient credentials")
}

// --- requests ---

/// Answers a request for `/v2/auth` and below; none if there is no such path.
pub(super) async fn serve(worker: &Rc<Worker>, head: &Parts, rest: &str, body: Payload) -> Option<Answer> {
    let method = &head.method;
    if rest == "/enable" {
        if let Some(refusal) = refuse_method(head, &["GET", "PUT", "DELETE"]) {
            return Some(refusal.into());
        }
        if method != Method::GET && !is_root(worker, head).await {
            return Some(no_rights().into());
        }
        return Some(with_id(worker, switch(worker, method).await));
    }
    let of_users = super::below(rest, "/users");
    let names = of_users.or_else(|| super::below(rest, "/roles"))?;
    let pieces: Vec<&str> = names.split('/').filter(|piece| !piece.is_empty()).collect();
    let allowed: &[&str] = match pieces[..] {
        [] => &["GET"],
        [_] => &["GET", "PUT", "DELETE"],
        _ => return Some(message(StatusCode::BAD_REQUEST, "Invalid path").into()),
    };
    if let Some(refusal) = refuse_method(head, allowed) {
        return Some(refusal.into());
    }
    if !is_root(worker, head).await {
        return Some(no_rights().into());
    }
    let answer = match (of_users.is_some(), pieces.first()) {
        (true, None) => all_users(worker),
        (true, Some(name)) => one_user(worker, method, name, body).await,
        (false, None) => all_roles(worker),
        (false, Some(name)) => one_role(worker, method, name, body).await,
    };
    Some(with_id(worker, answer))
}

fn with_id(worker: &Worker, answer: Result<Response<Body>, Refusal>) -> Answer {
    let mut answer = answer.map_or_else(Answer::from, Answer::from);
    add_cluster_id(worker, &mut answer);
    answer
}

fn shown(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    json(status, go_json(value) + "\n")
}

fn done() -> Response<Body> {
    json(StatusCode::OK, "")
}

async fn switch(worker: &Worker, method: &Method) -> Result<Response<Body>, Refusal> {
    #[derive(Serialize)]
    struct Switch {
        enabled: bool,
    }
    let enabled = is_enabled(worker);
    match *method {
        Method::GET => return Ok(shown(StatusCode::OK, &Switch { enabled })),
        Method::PUT => {
            if is_enabled(worker) {
                return refuse(StatusCode::CONFLICT, "already enabled");
            }
            if user_surely(worker, ROOT).await.is_err() {
                return refuse(StatusCode::CONFLICT, "No root user available, please create one");
            }
            if role_surely(worker, GUEST).await.is_err() {
                store(worker, &format!("/roles/{GUEST}"), &Role::almighty(GUEST), false).await?;
            }
            store(worker, "/enabled", &true, true).await?;
        }
        _ => {
            if !is_enabled(worker) {
                return refuse(StatusCode::CONFLICT, "already disabled");
            }
            store(worker, "/enabled", &false, true).await?;
        }
    }
    Ok(done())
}

#[derive(Serialize)]
struct UserWithRoles {
    user: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    roles: Vec<Role>,
}

fn all_users(worker: &Worker) -> Result<Response<Body>, Refusal> {
    #[derive(Serialize)]
    struct Users {
        users: Option<Vec<UserWithRoles>>,
    }
    let mut users = Vec::new();
    for name in list(worker, "/users")? {
        let User { user, roles, .. } = user(worker, &name)?;
        // A role that is gone is passed over.
        let roles = names(&roles).iter().filter_map(|name| role(worker, name).ok()).collect();
        users.push(UserWithRoles { user, roles });
    }
    Ok(shown(StatusCode::OK, &Users { users: Some(users).filter(|users| !users.is_empty()) }))
}

fn all_roles(worker: &Worker) -> Result<Response<Body>, Refusal> {
    #[derive(Serialize)]
    struct Roles {
        roles: Vec<Role>,
    }
    let mut known = list(worker, "/roles")?;
    known.push(ROOT.to_owned());
    known.sort_unstable();
    let roles = known.iter().map(|name| role(worker, name)).collect::<Result<_, _>>()?;
    Ok(shown(StatusCode::OK, &Roles { roles }))
}

fn read<T: DeserializeOwned>(body: Payload) -> Result<T, Refusal> {
    let bad = || Refusal::Plain(StatusCode::BAD_REQUEST, "Invalid JSON in request body.".into());
    let body = body.map_err(|_| bad())?;
    // What follows the first value is of no interest to Go.
    T::deserialize(&mut serde_json::Deserializer::from_slice(&body)).map_err(|_| bad())
}

fn plain<T>(text: &str) -> Result<T, Refusal> {
    Err(Refusal::Plain(StatusCode::BAD_REQUEST, text.to_owned()))
}

async fn one_user(worker: &Worker, method: &Method, name: &str, body: Payload) -> Result<Response<Body>, Refusal> {
    let resource = format!("/users/{name}");
    match *method {
        Method::GET => {
            let User { user, roles, .. } = user(worker, name)?;
            let roles = names(&roles).iter().map(|name| role(worker, name)).collect::<Result<_, _>>()?;
            Ok(shown(StatusCode::OK, &UserWithRoles { user, roles }))
        }
        Method::PUT => {
            let asked: User = read(body)?;
            if asked.user != name {
                return plain("User JSON name does not match the name in the URL");
            }
            let (status, out) = if !names(&asked.grant).is_empty() || !names(&asked.revoke).is_empty() {
                if !names(&asked.roles).is_empty() {
                    return plain("User JSON contains both roles and grant/revoke");
                }
                (StatusCode::OK, update_user(worker, &resource, asked).await?)
            } else if !names(&asked.roles).is_empty() {
                (StatusCode::OK, create_user(worker, &resource, asked).await?)
            } else if user_surely(worker, name).await.is_ok() {
                (StatusCode::OK, update_user(worker, &resource, asked).await?)
            } else {
                (StatusCode::CREATED, create_user(worker, &resource, asked).await?)
            };
            Ok(shown(status, &User { password: String::new(), ..out }))
        }
        _ => {
            if is_enabled(worker) && name == ROOT {
                return refuse(StatusCode::FORBIDDEN, "Cannot delete root user while auth is enabled.");
            }
            let gone = remove(worker, &resource).await;
            gone.map_err(|error| missing_as(error, || format!("User {name} does not exist")))?;
            Ok(done())
        }
    }
}

async fn create_user(worker: &Worker, resource: &str, user: User) -> Result<User, Refusal> {
    let mut user = with_root_role(user);
    let name = user.user.clone();
    if user.password.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, format!("Cannot create user {name} with an empty password"));
    }
    user.password = hashed(user.password).await?;
    match store(worker, resource, &user, false).await {
        Err(error) if error.code == Code::NodeExist => {
            refuse(StatusCode::CONFLICT, format!("User {name} already exists."))
        }
        Err(error) => Err(error.into()),
        Ok(()) => Ok(user),
    }
}

async fn update_user(worker: &Worker, resource: &str, asked: User) -> Result<User, Refusal> {
    let name = asked.user.clone();
    let old = user_surely(worker, &name).await?;
    let password =
        if asked.password.is_empty() { old.password.clone() } else { hashed(asked.password.clone()).await? };
    let duplicate = |role: &str| format!("Granting duplicate role {role} for user {name}");
    let missing = |role: &str| format!("Revoking ungranted role {role} for user {name}");
    let roles = merged(&old.roles, &asked.grant, &asked.revoke, duplicate, Some(&missing))?;
    let new = User { user: name, password, roles, grant: None, revoke: None };
    if new == old {
        let text = "User not updated. Use grant/revoke/password to update the user.";
        return refuse(StatusCode::BAD_REQUEST, text);
    }
    store(worker, resource, &new, true).await?;
    Ok(new)
}

async fn one_role(worker: &Worker, method: &Method, name: &str, body: Payload) -> Result<Response<Body>, Refusal> {
    let resource = format!("/roles/{name}");
    let root = || refuse(StatusCode::FORBIDDEN, format!("Cannot modify role {name}: is root role."));
    match *method {
        Method::GET => Ok(shown(StatusCode::OK, &role(worker, name)?)),
        Method::PUT => {
            let asked: Role = read(body)?;
            if asked.role != name {
                return plain("Role JSON name does not match the name in the URL");
            }
            let changes = |list: &Option<Permissions>| list.as_ref().is_some_and(|list| !list.is_empty());
            if !changes(&asked.grant) && !changes(&asked.revoke) {
                if name == ROOT {
                    return root();
                }
                return match store(worker, &resource, &asked, false).await {
                    Err(error) if error.code == Code::NodeExist => {
                        refuse(StatusCode::CONFLICT, format!("Role {name} already exists."))
                    }
                    Err(error) => Err(error.into()),
                    Ok(()) => Ok(shown(StatusCode::CREATED, &asked)),
                };
            }
            if !asked.permissions.is_empty() {
                return plain("Role JSON contains both permissions and grant/revoke");
            }
            if name == ROOT {
                return root();
            }
            let old = role_surely(worker, name).await?;
            let (grant, revoke) = (asked.grant.unwrap_or_default().kv, asked.revoke.unwrap_or_default().kv);
            let duplicate = |kind| move |name: &str| format!("Granting duplicate {kind} permission {name}");
            let read = merged(&old.permissions.kv.read, &grant.read, &revoke.read, duplicate("read"), None)?;
            let write = merged(&old.permissions.kv.write, &grant.write, &revoke.write, duplicate("write"), None)?;
            let permissions = Permissions { kv: Patterns { read, write } };
            let new = Role { role: name.to_owned(), permissions, grant: None, revoke: None };
            if new == old {
                return refuse(StatusCode::BAD_REQUEST, "Role not updated. Use grant/revoke to update the role.");
            }
            store(worker, &resource, &new, true).await?;
            Ok(shown(StatusCode::OK, &new))
        }
        _ => {
            if name == ROOT {
                return root();
            }
            let gone = remove(worker, &resource).await;
            gone.map_err(|error| missing_as(error, || format!("Role {name} doesn't exist.")))?;
            Ok(done())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_nobodys_name() {
        assert!(["root", "a.b", "..c", "名"].into_iter().all(can_be_a_name));
        assert!(!["", ".", "..", "../../1/key", "a/b"].into_iter().any(can_be_a_name));
    }
}
