//! Users, roles and what they may do.
//!
//! # Rooms
//! - [`rules`](self::needs): which request needs what, and where that is looked at
//! - `keys`: sets of keys, as permissions grant them
//! - `change`: users and roles are added, changed and deleted, by log entries
//! - [`tokens`](Tokens): who has shown its password lately
//!
//! # Invariants
//! - A [`Policy`] never changes; a change makes a new one, which is in force before the next entry is applied.
//! - What is stored, in tables `auth`, `authUsers` and `authRoles`, is what etcd stores in its buckets of these names.
//! - No password is hashed here but those in entries that were made before etcd 3.5; the salt then follows from the entry.

mod change;
mod keys;
mod rules;
mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;
use prost::Message;
use proto::authpb;
use proto::authpb::permission::Type;
use proto::etcdserverpb as pb;
use store::{Store, Table};

use crate::apply::{Fatal, bad_row};
use crate::{Error, Lessor};
use keys::KeySet;

pub(crate) use change::Change;
pub use change::Response;
pub use rules::{Action, Need, Place, needs};
pub use tokens::{Token, Tokens};

/// The user that must exist, and the role that may do everything.
pub const ROOT: &str = "root";

/// The row of table `auth` that says whether permissions count: one byte, 0 or 1.
const ENABLED: &[u8] = b"authEnabled";
/// The row of table `auth` with the number of the last change: eight bytes, big endian.
const REVISION: &[u8] = b"authRevision";
/// The revision before anything has changed.
const FIRST_REVISION: u64 = 1;

/// Who asks. Nobody knows that it is true but who has looked at a token or a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subject<'a> {
    /// The user's name.
    pub user: &'a str,
    /// The revision of users and roles that its credentials are of; 0 = there were no credentials.
    pub revision: u64,
}

/// A user, and what it may do.
#[derive(Clone, Debug, Default)]
pub struct User {
    row: authpb::User,
    is_root: bool,
    read: KeySet,
    write: KeySet,
}

impl User {
    fn new(row: authpb::User, roles: &BTreeMap<Arc<str>, authpb::Role>) -> Self {
        let permissions =
            || row.roles.iter().filter_map(|role| roles.get(role.as_str())).flat_map(|role| &role.key_permission);
        let granted = |of: Type| -> KeySet {
            let grants = |p: &&authpb::Permission| p.perm_type == of as i32 || p.perm_type == Type::Readwrite as i32;
            permissions().filter(grants).map(|p| (p.key.clone(), p.range_end.clone())).collect()
        };
        let (read, write) = (granted(Type::Read), granted(Type::Write));
        Self { is_root: row.roles.iter().any(|role| role == ROOT), row, read, write }
    }

    /// The stored hash of its password; empty if it has none.
    pub fn password_hash(&self) -> &Bytes {
        &self.row.password
    }

    /// Whether it can never be authenticated by password.
    pub fn has_no_password(&self) -> bool {
        self.row.options.as_ref().is_some_and(|options| options.no_password)
    }
}

/// All users and roles at one moment.
#[derive(Clone, Debug)]
pub struct Policy {
    enabled: bool,
    revision: u64,
    users: BTreeMap<Arc<str>, Arc<User>>,
    roles: BTreeMap<Arc<str>, authpb::Role>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { enabled: false, revision: FIRST_REVISION, users: BTreeMap::new(), roles: BTreeMap::new() }
    }
}

impl Policy {
    /// Reads the stored rows.
    pub(crate) fn restore(store: &Store) -> Result<Self, Fatal> {
        let mut policy = Self::default();
        if let Some(row) = store.row(Table::Auth, ENABLED) {
            policy.enabled = row.as_ref() == [1];
        }
        if let Some(row) = store.row(Table::Auth, REVISION) {
            let bytes = <[u8; 8]>::try_from(row.as_ref());
            let bytes = bytes.map_err(|_| bad_row("auth", REVISION, format!("{} bytes instead of 8", row.len())))?;
            policy.revision = u64::from_be_bytes(bytes);
        }
        for (key, row) in store.rows(Table::AuthRoles) {
            let role = authpb::Role::decode(row).map_err(|error| bad_row("authRoles", &key, error.to_string()))?;
            policy.roles.insert(name("authRoles", &key)?, role);
        }
        for (key, row) in store.rows(Table::AuthUsers) {
            let user = authpb::User::decode(row).map_err(|error| bad_row("authUsers", &key, error.to_string()))?;
            policy.users.insert(name("authUsers", &key)?, Arc::new(User::new(user, &policy.roles)));
        }
        Ok(policy)
    }

    /// Whether permissions count.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// The number of the last change to users and roles.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// A user by name.
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name).map(Arc::as_ref)
    }

    /// Whether the subject may do everything that the action needs at this place.
    pub fn permits(
        &self,
        subject: Subject<'_>,
        action: &Action<'_>,
        place: Place,
        lessor: &Lessor,
    ) -> Result<(), Error> {
        if !self.enabled {
            return Ok(());
        }
        needs(action, place, &mut |need| self.allows(subject, &need, lessor))
    }

    /// Whether the subject has what is needed. Everything is allowed while permissions do not count.
    pub fn allows(&self, subject: Subject<'_>, need: &Need<'_>, lessor: &Lessor) -> Result<(), Error> {
        if !self.enabled {
            return Ok(());
        }
        match *need {
            Need::User if subject.revision == 0 => Err(Error::UserEmpty),
            Need::User => Ok(()),
            Need::Root => self.is_root(subject),
            Need::SelfOrRoot(name) if name == subject.user => Ok(()),
            Need::SelfOrRoot(_) => self.is_root(subject),
            Need::HolderOrRoot(role) if self.has_role(subject, role) => Ok(()),
            Need::HolderOrRoot(_) => self.is_root(subject),
            Need::Read { key, range_end } => self.reaches(subject, |user| user.read.covers(key, range_end)),
            Need::Write { key, range_end } => self.reaches(subject, |user| user.write.covers(key, range_end)),
            // A lease without keys, or one that is not there, is everybody's.
            Need::ReadLease(id) => self.reaches_all(subject, &lessor.keys(id), |user, key| user.read.covers(key, &[])),
            Need::WriteLease(id) => {
                self.reaches_all(subject, &lessor.keys(id), |user, key| user.write.covers(key, &[]))
            }
            Need::ReadAllLeases => {
                let leases = lessor.leases().into_iter();
                leases
                    .map(|id| lessor.keys(id))
                    .try_for_each(|keys| self.reaches_all(subject, &keys, |user, key| user.read.covers(key, &[])))
            }
        }
    }

    fn is_root(&self, subject: Subject<'_>) -> Result<(), Error> {
        if subject.user.is_empty() {
            return Err(Error::UserEmpty);
        }
        match self.user(subject.user) {
            None => Err(Error::UserNotFound),
            Some(user) if user.is_root => Ok(()),
            Some(_) => Err(Error::PermissionDenied),
        }
    }

    fn has_role(&self, subject: Subject<'_>, role: &str) -> bool {
        self.user(subject.user).is_some_and(|user| user.row.roles.iter().any(|held| held == role))
    }

    fn reaches(&self, subject: Subject<'_>, covers: impl Fn(&User) -> bool) -> Result<(), Error> {
        if subject.revision == 0 {
            return Err(Error::UserEmpty);
        }
        if subject.revision < self.revision {
            return Err(Error::AuthOldRevision);
        }
        match self.user(subject.user) {
            Some(user) if user.is_root || covers(user) => Ok(()),
            _ => Err(Error::PermissionDenied),
        }
    }

    fn reaches_all(
        &self,
        subject: Subject<'_>,
        keys: &[Bytes],
        covers: impl Fn(&User, &[u8]) -> bool,
    ) -> Result<(), Error> {
        if self.is_root(subject).is_ok() {
            return Ok(());
        }
        keys.iter().try_for_each(|key| self.reaches(subject, |user| covers(user, key)))
    }
}

fn name(table: &'static str, key: &Bytes) -> Result<Arc<str>, Fatal> {
    let name = std::str::from_utf8(key).map_err(|error| bad_row(table, key, error.to_string()))?;
    Ok(name.into())
}

/// Users and roles as they are now, and the tokens that were given. Shared by the applying side and request threads.
#[derive(Debug, Default)]
pub struct Auth {
    policy: RwLock<Arc<Policy>>,
    /// Copies of what the policy says, so that whoever has nothing to do with permissions takes no lock.
    enabled: AtomicBool,
    revision: AtomicU64,
    /// Counts the policies: with the same number the same one is in force.
    version: AtomicU64,
    tokens: Tokens,
}

impl Auth {
    pub(crate) fn new(policy: Policy) -> Self {
        let auth = Self::default();
        auth.put_in_force(policy);
        auth
    }

    pub(crate) fn put_in_force(&self, policy: Policy) {
        let (enabled, revision) = (policy.enabled, policy.revision);
        *self.policy.write() = Arc::new(policy);
        self.revision.store(revision, Ordering::Release);
        self.enabled.store(enabled, Ordering::Release);
        self.version.fetch_add(1, Ordering::Release);
        if !enabled {
            self.tokens.take_back_all();
        }
    }

    /// Whether permissions count.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// The number of the last change to users and roles.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// While this number stays the same, so does what [`Auth::policy`] gives.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// What is in force now.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.read().clone()
    }

    /// The tokens that were given.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Whether what an entry asks for is allowed to whoever its header names.
    pub(crate) fn permits_entry(&self, entry: &pb::InternalRaftRequest, lessor: &Lessor) -> Result<(), Error> {
        if !self.is_enabled() {
            return Ok(());
        }
        let subject = match &entry.header {
            Some(header) => Subject { user: &header.username, revision: header.auth_revision },
            None => Subject::default(),
        };
        self.policy.read().permits(subject, &Action::of_entry(entry), Place::Log, lessor)
    }
}
