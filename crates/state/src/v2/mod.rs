//! The v2 tree: files and directories, what has happened to them, and who waits for more to happen.
//!
//! It is a state machine of its own beside the keys of v3. Requests come through the same log; one thread applies them
//! ([`Commands`]), any number read ([`Tree`](self::tree::Tree) through [`V2::get`]) and wait ([`V2::watch`]).
//!
//! # Invariants
//! - Each change raises the index by one and adds one event to the history; a refused request does neither.
//! - Nothing here reads a clock. Expiry is an entry of the log that carries the leader's time; what an answer says about
//!   the seconds left is counted from the time in the request.
//! - Whoever sees index N in an answer and waits from N + 1 on misses nothing and is shown nothing twice.
//!
//! # Locks
//! The tree is copied on write: who lists a directory takes a reference to it and lets go of the lock; only what is
//! listed while it is changed is copied, one directory at a time. The hub is locked while an event is handed to those who
//! wait for its key or one above it, and to begin and end a watch. The applying side takes hub, then tree.

mod digest;
mod entry;
mod error;
mod event;
mod hub;
mod json;
mod rows;
mod snapshot;
mod stats;
mod tree;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use proto::v2pb;

pub(crate) use entry::names_method;
pub use error::{Code, Error};
pub use event::{Action, Event, Found, Node};
pub use hub::Watch;
pub use snapshot::{Image, founding_json};
pub use stats::Counters;
pub use tree::{clean, is_clean};

use crate::Member;
use crate::members::Attributes;
use hub::Hub;
use stats::{Counter, Stats};
use tree::{Compare, Done, TouchedNode, Tree};

/// Events that are kept for those who ask for the past.
const HISTORY: usize = 1_000;
/// Where the keys of users are.
pub const KEYS: &str = "/1";
/// Where users and roles are.
pub const AUTH: &str = "/2";
/// Where etcd keeps what it knows of the cluster.
const MEMBERS: &str = "/0/members";
const REMOVED: &str = "/0/removed_members";
const VERSION: &str = "/0/version";

/// A time in nanoseconds since 1970 as etcd writes it.
pub fn time(nanoseconds: i64) -> String {
    json::time(nanoseconds)
}

/// A request as etcd writes it into the log: every field is there, also where it says nothing, but for `prev_exist` and
/// `refresh`, which tell three states apart, and the ID, which whoever proposes it gives it.
pub fn request(method: &str, path: impl Into<Bytes>, value: impl Into<Bytes>) -> v2pb::Request {
    v2pb::Request {
        id: None,
        method: Some(method.to_owned()),
        path: Some(path.into()),
        val: Some(value.into()),
        dir: Some(false),
        prev_value: Some(Bytes::new()),
        prev_index: Some(0),
        prev_exist: None,
        expiration: Some(0),
        wait: Some(false),
        since: Some(0),
        recursive: Some(false),
        sorted: Some(false),
        quorum: Some(false),
        time: Some(0),
        stream: Some(false),
        refresh: None,
    }
}

/// What a request gave.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Something changed.
    Changed(Arc<Event>),
    /// A read that went through the log.
    Found(Found),
    /// What nobody waits for.
    Nothing,
}

/// What became of a request.
pub type Outcome = Result<Answer, Error>;

/// The tree and all around it, shared by the applying side and the readers.
#[derive(Debug)]
pub struct V2 {
    tree: RwLock<Tree>,
    hub: Arc<Mutex<Hub>>,
    stats: Stats,
    past: Mutex<digest::Past>,
    /// The newest time that a request carried, in nanoseconds since 1970.
    clock: AtomicI64,
}

impl Default for V2 {
    fn default() -> Self {
        Self::of(Tree::default(), Hub::default(), Counters::default())
    }
}

impl V2 {
    fn of(tree: Tree, hub: Hub, counters: Counters) -> Self {
        let stats = Stats::default();
        stats.replace(&counters);
        Self {
            tree: RwLock::new(tree),
            hub: Arc::new(Mutex::new(hub)),
            stats,
            past: Mutex::default(),
            clock: AtomicI64::new(0),
        }
    }

    /// Looks up a path. `now` is in nanoseconds since 1970; what is returned counts its seconds left from there.
    pub fn get(&self, path: &str, recursive: bool, now: i64) -> Result<Found, Error> {
        let found = self.tree.read().get(path, recursive, now);
        self.stats.count(if found.is_ok() { Counter::GetsSuccess } else { Counter::GetsFail });
        found
    }

    /// A file's value. Counted as [`V2::get`] is.
    pub fn value(&self, path: &str) -> Option<Bytes> {
        let value = self.tree.read().value(path);
        self.stats.count(if value.is_ok() { Counter::GetsSuccess } else { Counter::GetsFail });
        value.ok().flatten()
    }

    /// Whether there is a node; not counted.
    pub fn exists(&self, path: &str) -> bool {
        self.tree.read().find(&clean(path)).is_ok()
    }

    /// Begins to wait for events on `path`, or below it too if `recursive`. `since` 0 = from now on. What has happened
    /// already is found in the history. With `stream` there is no end to it, otherwise one event is.
    pub fn watch(&self, path: &str, recursive: bool, stream: bool, since: u64) -> Result<Watch, Error> {
        Hub::watch(&self.hub, &clean(path), recursive, stream, since)
    }

    /// The newest index.
    pub fn index(&self) -> u64 {
        self.tree.read().index
    }

    /// Whether anything will ever expire.
    pub fn has_ttls(&self) -> bool {
        self.tree.read().has_ttls()
    }

    /// The counters of `/v2/stats/store`.
    pub fn counters(&self) -> Counters {
        Counters { watchers: self.hub.lock().watchers(), ..self.stats.read() }
    }

    /// What users had in the tree after this log entry, which must have been applied: a number that is another one if
    /// anything of it is. None if that is thousands of changes ago, or before this member's start.
    pub fn digest_at(&self, log_index: u64) -> Option<u64> {
        self.past.lock().at(log_index)
    }

    /// Everything, held still; cheap to take. Consistent if the applying side is kept out meanwhile.
    pub fn image(&self) -> Image {
        let hub = self.hub.lock();
        let counters = Counters { watchers: hub.watchers(), ..self.stats.read() };
        let tree = self.tree.read();
        Image::new(tree.root(), tree.index, hub.history(), counters)
    }
}

/// What must be stored after a request.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    nodes: Vec<TouchedNode>,
    events: Vec<Arc<Event>>,
}

/// The applying side.
impl V2 {
    /// Carries out one change and tells those who wait. `op` answers what it did or why not.
    fn change(
        &self,
        touched: &mut Touched,
        op: impl FnOnce(&mut Tree) -> Result<Done, Error>,
    ) -> Result<Arc<Event>, Error> {
        let mut hub = self.hub.lock();
        let done = op(&mut self.tree.write())?;
        let event = Arc::new(done.event);
        hub.publish(&event, &done.removed);
        touched.nodes.extend(done.touched);
        touched.events.push(event.clone());
        Ok(event)
    }

    fn counted(&self, result: &Result<Arc<Event>, Error>, success: Counter, fail: Counter, excused: &[Code]) {
        let fine = result.as_ref().map_or_else(|error| excused.contains(&error.code), |_| true);
        self.stats.count(if fine { success } else { fail });
    }

    fn set(&self, touched: &mut Touched, path: &str, dir: bool, value: Bytes, ttl: Ttl) -> Result<Arc<Event>, Error> {
        let result = self.change(touched, |tree| tree.set(path, dir, value, ttl));
        self.counted(&result, Counter::SetsSuccess, Counter::SetsFail, &[]);
        result
    }

    fn create(
        &self,
        touched: &mut Touched,
        path: &str,
        dir: bool,
        value: Bytes,
        unique: bool,
        ttl: Ttl,
    ) -> Result<Arc<Event>, Error> {
        let result = self.change(touched, |tree| tree.create(path, dir, value, unique, ttl));
        // etcd's own bookkeeping: a way that leads through a file counts as a failed set, too.
        if matches!(&result, Err(Error { code: Code::NotDir, .. })) {
            self.stats.count(Counter::SetsFail);
        }
        self.counted(&result, Counter::CreateSuccess, Counter::CreateFail, &[]);
        result
    }

    fn update(&self, touched: &mut Touched, path: &str, value: Bytes, ttl: Ttl) -> Result<Arc<Event>, Error> {
        let result = self.change(touched, |tree| tree.update(path, value, ttl));
        self.counted(&result, Counter::UpdateSuccess, Counter::UpdateFail, &[Code::RootReadOnly, Code::NotFile]);
        result
    }

    fn delete(
        &self,
        touched: &mut Touched,
        path: &str,
        dir: bool,
        recursive: bool,
        now: i64,
    ) -> Result<Arc<Event>, Error> {
        let result = self.change(touched, |tree| tree.delete(path, dir, recursive, now));
        self.counted(&result, Counter::DeleteSuccess, Counter::DeleteFail, &[Code::RootReadOnly]);
        result
    }

    /// Removes what has expired by `now`, the oldest first.
    fn expire(&self, touched: &mut Touched, now: i64) {
        while self.change(touched, |tree| tree.expire(now).ok_or_else(Error::nothing_expired)).is_ok() {
            self.stats.count(Counter::ExpireCount);
        }
    }

    /// Carries out a logged request.
    pub(crate) fn apply(&self, request: &v2pb::Request, touched: &mut Touched) -> Outcome {
        let given = request.time();
        // Requests of other members' clients carry no time; the newest that is known is close to theirs.
        let newest = self.clock.fetch_max(given, Ordering::Relaxed).max(given);
        let now = if given > 0 { given } else { newest };
        let path = String::from_utf8_lossy(request.path());
        let ttl = Ttl { expires: request.expiration(), refresh: request.refresh.unwrap_or(false), now };
        let value = || Bytes::copy_from_slice(request.val());
        let compare = Compare { value: request.prev_value(), index: request.prev_index() };
        let swap = |touched: &mut Touched| {
            let result = self.change(touched, |tree| tree.compare_and_swap(&path, &compare, value(), ttl));
            let (success, fail) = (Counter::CompareAndSwapSuccess, Counter::CompareAndSwapFail);
            self.counted(&result, success, fail, &[Code::RootReadOnly]);
            result
        };
        let event = match request.method() {
            "PUT" => match request.prev_exist {
                Some(true) if !compare.is_given() => self.update(touched, &path, value(), ttl),
                Some(true) => swap(touched),
                Some(false) => self.create(touched, &path, request.dir(), value(), false, ttl),
                None if compare.is_given() => swap(touched),
                None => self.set(touched, &path, request.dir(), value(), ttl),
            },
            "POST" => self.create(touched, &path, request.dir(), value(), true, ttl),
            "DELETE" if compare.is_given() => {
                let result = self.change(touched, |tree| tree.compare_and_delete(&path, &compare, now));
                let (success, fail) = (Counter::CompareAndDeleteSuccess, Counter::CompareAndDeleteFail);
                self.counted(&result, success, fail, &[Code::TestFailed, Code::NotFile]);
                result
            }
            "DELETE" => self.delete(touched, &path, request.dir(), request.recursive(), now),
            "QGET" => return self.get(&path, request.recursive(), now).map(Answer::Found),
            "SYNC" => {
                self.expire(touched, now);
                return Ok(Answer::Nothing);
            }
            _ => return Err(Error::unknown_method()),
        };
        event.map(Answer::Changed)
    }

    /// A member has told about itself.
    pub(crate) fn set_attributes(&self, id: u64, attributes: &Attributes, touched: &mut Touched) {
        let path = format!("{MEMBERS}/{id:x}/attributes");
        self.note(self.set(touched, &path, false, attributes.to_json().into(), Ttl::default()));
    }

    /// The cluster has agreed on its version.
    pub(crate) fn set_version(&self, version: &str, touched: &mut Touched) {
        self.note(self.set(touched, VERSION, false, version.to_owned().into(), Ttl::default()));
    }

    /// A configuration change is about to be judged: older members read the tree for that, which is counted.
    pub(crate) fn membership_read(&self) {
        if self.get(MEMBERS, true, 0).is_ok() {
            let _counted = self.get(REMOVED, false, 0);
        }
    }

    /// A member was added.
    pub(crate) fn add_member(&self, member: &Member, touched: &mut Touched) {
        let path = format!("{MEMBERS}/{:x}/raftAttributes", member.id);
        self.note(self.create(touched, &path, false, snapshot::raft_attributes(member), false, Ttl::default()));
    }

    /// A member's URLs changed, or it may vote now.
    pub(crate) fn update_member(&self, member: &Member, touched: &mut Touched) {
        let path = format!("{MEMBERS}/{:x}/raftAttributes", member.id);
        self.note(self.update(touched, &path, snapshot::raft_attributes(member), Ttl::default()));
    }

    /// A member is gone for good.
    pub(crate) fn remove_member(&self, id: u64, touched: &mut Touched) {
        self.note(self.delete(touched, &format!("{MEMBERS}/{id:x}"), true, true, 0));
        self.add_removed(id, touched);
    }

    fn add_removed(&self, id: u64, touched: &mut Touched) {
        let path = format!("{REMOVED}/{id:x}");
        self.note(self.create(touched, &path, false, Bytes::new(), false, Ttl::default()));
    }

    /// The tables count on the membership, not this tree: where it disagrees (one that a later etcd has sent knows less),
    /// the request has no effect here, as it has none there.
    fn note(&self, _outcome: Result<Arc<Event>, Error>) {}

    /// The entry that was just applied may have changed the tree.
    pub(crate) fn note_digest(&self, log_index: u64) {
        self.past.lock().note(log_index, self.tree.read().digest());
    }

    /// What the tree was like before this entry is not known.
    pub(crate) fn begin_digests(&self, log_index: u64) {
        self.past.lock().begin(log_index, self.tree.read().digest());
    }

    /// Puts another tree, with its history, in the place of this one. Those who wait go on waiting. `log_index` is the
    /// last entry that is in it.
    pub(crate) fn replace(&self, other: V2, log_index: u64) {
        let mut hub = self.hub.lock();
        let mut tree = self.tree.write();
        self.stats.replace(&other.stats.read());
        hub.take_history(&mut other.hub.lock());
        *tree = other.tree.into_inner();
        self.past.lock().begin(log_index, tree.digest());
        self.clock.store(other.clock.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// When a node ends, as a request says it.
#[derive(Clone, Copy, Debug, Default)]
struct Ttl {
    /// Nanoseconds since 1970; 0 = never.
    expires: i64,
    /// Only this changes, and nobody is told.
    refresh: bool,
    /// The time of the request.
    now: i64,
}
