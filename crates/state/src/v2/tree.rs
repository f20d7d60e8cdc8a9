//! Files and directories, and what may be done with them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::error::{Code, Error};
use super::event::{Action, Content, Event, Found, Node, Stored};
use super::{Ttl, digest};

/// Components that a path may have: what is nested deeper could not be written and read again by everybody.
pub(super) const MAX_DEPTH: usize = 128;
/// Paths that are there from the beginning and stay.
const READ_ONLY: [&str; 3] = ["/", "/0", "/1"];
/// An expiry before the year 2000 is a mistake and means never. Nanoseconds since 1970.
const EARLIEST_EXPIRY: i64 = 946_684_800_000_000_000;

type Children = BTreeMap<Box<str>, Arc<Stored>>;

/// A path, and its node after a change; none if it is gone.
pub(super) type TouchedNode = (String, Option<Arc<Stored>>);

/// What a change did.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) event: Event,
    /// Nodes that are new, changed or gone.
    pub(super) touched: Vec<TouchedNode>,
    /// Paths that are gone, in the order in which those who wait for them are told; children first.
    pub(super) removed: Vec<String>,
}

/// What the node must be like.
#[derive(Debug)]
pub(super) struct Compare<'a> {
    /// Empty = any.
    pub(super) value: &'a [u8],
    /// 0 = any.
    pub(super) index: u64,
}

impl Compare<'_> {
    pub(super) fn is_given(&self) -> bool {
        !self.value.is_empty() || self.index != 0
    }

    /// In which way the node is not like that.
    fn fault(&self, node: &Stored) -> Option<String> {
        let current = node.value();
        let value_fits = self.value.is_empty() || current == self.value;
        let index_fits = mutant::on(mutant::V2IndexNotCompared) || self.index == 0 || node.modified == self.index;
        let value = || format!("[{} != {}]", String::from_utf8_lossy(self.value), String::from_utf8_lossy(&current));
        let index = || format!("[{} != {}]", self.index, node.modified);
        match (value_fits, index_fits) {
            (true, true) => None,
            (false, true) => Some(value()),
            (true, false) => Some(index()),
            (false, false) => Some(format!("{} {}", value(), index())),
        }
    }
}

/// The tree.
#[derive(Debug)]
pub(super) struct Tree {
    root: Arc<Stored>,
    pub(super) index: u64,
    /// What will expire, the oldest first.
    expiring: BTreeSet<(i64, String)>,
    /// The sum of all nodes' digests.
    digest: u64,
}

impl Default for Tree {
    fn default() -> Self {
        let dir = |children| Arc::new(Stored { created: 0, modified: 0, expires: 0, content: Content::Dir(children) });
        let tops = ["0", "1"].map(|name| (name.into(), dir(Children::new())));
        Self { root: dir(Children::from(tops)), index: 0, expiring: BTreeSet::new(), digest: 0 }
    }
}

/// Whether a path is in its shortest form already, as nearly all are. Says no of one with a name that begins with a dot.
pub fn is_clean(path: &str) -> bool {
    let path = path.as_bytes();
    let at_end = path.len() > 1 && path.ends_with(b"/");
    path.starts_with(b"/") && !at_end && !path.windows(2).any(|pair| matches!(pair, b"//" | b"/."))
}

/// A path in its shortest form, beginning with a slash and without one at its end.
pub fn clean(path: &str) -> Cow<'_, str> {
    if is_clean(path) {
        return Cow::Borrowed(path);
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let mut out = String::with_capacity(path.len() + 1);
    for part in &parts {
        out.push('/');
        out.push_str(part);
    }
    Cow::Owned(if out.is_empty() { "/".into() } else { out })
}

/// Parent and name of a clean path other than the root.
fn split(path: &str) -> (&str, &str) {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    (if parent.is_empty() { "/" } else { parent }, name)
}

fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty())
}

/// A path's first `n` parts.
fn prefix(path: &str, n: usize) -> &str {
    let end = path.match_indices('/').nth(n).map_or(path.len(), |(at, _)| at);
    if end == 0 { "/" } else { &path[..end] }
}

impl Tree {
    /// A tree with this content; `root` must be a directory.
    pub(super) fn of(root: Arc<Stored>, index: u64) -> Self {
        let mut all = Walked::default();
        all.walk(&root, &mut String::new());
        if mutant::on(mutant::V2TtlsForgotten) {
            all.expiring.clear();
        }
        Self { root, index, expiring: all.expiring, digest: all.digest }
    }

    pub(super) fn root(&self) -> Arc<Stored> {
        self.root.clone()
    }

    /// See [`digest`].
    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    pub(super) fn has_ttls(&self) -> bool {
        !self.expiring.is_empty()
    }

    fn error(&self, code: Code, cause: impl Into<String>) -> Error {
        Error::new(code, cause, self.index)
    }

    /// A node at a clean path.
    pub(super) fn find(&self, path: &str) -> Result<&Arc<Stored>, Error> {
        let mut node = &self.root;
        for (depth, part) in parts(path).enumerate() {
            let Content::Dir(children) = &node.content else {
                return Err(self.error(Code::NotDir, prefix(path, depth)));
            };
            let child = children.get(part);
            node = child.ok_or_else(|| self.error(Code::KeyNotFound, prefix(path, depth + 1)))?;
        }
        Ok(node)
    }

    /// The node at a clean path, to be changed; the directories above it, too, if somebody else looks at them.
    fn find_mut(&mut self, path: &str) -> &mut Arc<Stored> {
        let mut node = &mut self.root;
        for part in parts(path) {
            let Content::Dir(children) = &mut Arc::make_mut(node).content else {
                unreachable!("{path} was found before")
            };
            let Some(child) = children.get_mut(part) else { unreachable!("{path} was found before") };
            node = child;
        }
        node
    }

    fn writable(&self, path: &str) -> Result<(), Error> {
        if READ_ONLY.contains(&path) { Err(self.error(Code::RootReadOnly, "/")) } else { Ok(()) }
    }

    pub(super) fn get(&self, path: &str, recursive: bool, now: i64) -> Result<Found, Error> {
        let path = clean(path);
        let node = self.find(&path)?.clone();
        Ok(Found { index: self.index, path: path.into_owned(), node, recursive, now })
    }

    /// A file's value.
    pub(super) fn value(&self, path: &str) -> Result<Option<Bytes>, Error> {
        let node = self.find(&clean(path))?;
        Ok(if node.is_dir() { None } else { Some(node.value()) })
    }

    pub(super) fn set(&mut self, path: &str, dir: bool, value: Bytes, ttl: Ttl) -> Result<Done, Error> {
        self.insert(&clean(path), dir, value, Action::Set, ttl)
    }

    /// `unique`: under the path, named after the index.
    pub(super) fn create(
        &mut self,
        path: &str,
        dir: bool,
        value: Bytes,
        unique: bool,
        ttl: Ttl,
    ) -> Result<Done, Error> {
        if unique {
            let path = format!("{path}/{:020}", self.index + 1);
            return self.insert(&clean(&path), dir, value, Action::Create, ttl);
        }
        self.insert(&clean(path), dir, value, Action::Create, ttl)
    }

    /// Sets a file, which may be there already, or creates a node, which may not.
    fn insert(&mut self, path: &str, dir: bool, value: Bytes, action: Action, ttl: Ttl) -> Result<Done, Error> {
        let replaces = action == Action::Set;
        let refresh = replaces && ttl.refresh;
        self.writable(path)?;
        let (parent, name) = split(path);
        let old = match self.find(parent).map(|node| node.children()) {
            Ok(Some(children)) => children.get(name).cloned(),
            Ok(None) => return Err(self.error(Code::NotDir, parent)),
            Err(error) if error.code != Code::KeyNotFound || refresh => return Err(error),
            Err(_) => None,
        };
        match &old {
            None if refresh => return Err(self.error(Code::KeyNotFound, path)),
            Some(_) if !replaces => return Err(self.error(Code::NodeExist, path)),
            Some(node) if node.is_dir() => return Err(self.error(Code::NotFile, path)),
            _ => {}
        }
        if parts(path).count() > MAX_DEPTH {
            return Err(self.error(Code::RaftInternal, "etcdserver: the key has too many components"));
        }
        let value = if refresh { old.as_ref().map_or(value, |node| node.value()) } else { value };
        let expires = if ttl.expires < EARLIEST_EXPIRY { 0 } else { ttl.expires };
        let mut sum = self.digest.wrapping_sub(old.as_ref().map_or(0, |node| digest::of(path, node)));
        self.forget_expiry(old.as_ref().map_or(0, |node| node.expires), path);

        let index = self.index + 1;
        let mut touched = Vec::with_capacity(1);
        let mut node = Arc::make_mut(&mut self.root);
        for (depth, part) in parts(parent).enumerate() {
            let Content::Dir(children) = &mut node.content else { unreachable!("{parent} is a directory") };
            if !children.contains_key(part) {
                let content = Content::Dir(Children::new());
                let made = Stored { created: index, modified: index, expires: 0, content };
                let path = prefix(path, depth + 1);
                sum = sum.wrapping_add(digest::of(path, &made));
                touched.push((path.to_owned(), Some(Arc::new(made.clone()))));
                children.insert(part.into(), Arc::new(made));
            }
            let Some(child) = children.get_mut(part) else { unreachable!("{part} was made if it was not there") };
            node = Arc::make_mut(child);
        }
        let Content::Dir(children) = &mut node.content else { unreachable!("{parent} is a directory") };
        let content = if dir { Content::Dir(Children::new()) } else { Content::File(value) };
        let new = Arc::new(Stored { created: index, modified: index, expires, content });
        // The name is there already in most cases: another one would be made only to be thrown away.
        match children.get_mut(name) {
            Some(place) => *place = new.clone(),
            None => drop(children.insert(name.into(), new.clone())),
        }
        self.digest = sum.wrapping_add(digest::of(path, &new));
        self.note_expiry(expires, path);
        self.index = index;
        let prev = old.filter(|_| replaces).map(|node| node.shown(path, ttl.now));
        let event = Event::new(action, new.shown(path, ttl.now), prev, refresh);
        touched.push((path.to_owned(), Some(new)));
        Ok(Done { event, touched, removed: Vec::new() })
    }

    pub(super) fn update(&mut self, path: &str, value: Bytes, ttl: Ttl) -> Result<Done, Error> {
        let path = clean(path);
        self.writable(&path)?;
        let node = self.find(&path)?;
        if node.is_dir() && !value.is_empty() {
            return Err(self.error(Code::NotFile, path));
        }
        let value = if ttl.refresh { node.value() } else { value };
        Ok(self.write(Action::Update, path.into_owned(), value, ttl))
    }

    pub(super) fn compare_and_swap(
        &mut self,
        path: &str,
        compare: &Compare<'_>,
        value: Bytes,
        ttl: Ttl,
    ) -> Result<Done, Error> {
        let path = clean(path);
        self.writable(&path)?;
        let node = self.find(&path)?;
        if node.is_dir() {
            return Err(self.error(Code::NotFile, path));
        }
        if let Some(fault) = compare.fault(node) {
            return Err(self.error(Code::TestFailed, fault));
        }
        let value = if ttl.refresh { node.value() } else { value };
        Ok(self.write(Action::CompareAndSwap, path.into_owned(), value, ttl))
    }

    /// Gives a node that is there another value, or none if it is a directory, and another expiry.
    fn write(&mut self, action: Action, path: String, value: Bytes, ttl: Ttl) -> Done {
        let index = self.index + 1;
        let stored = self.find_mut(&path);
        let node = Arc::make_mut(stored);
        let prev = node.shown(&path, ttl.now);
        let before = digest::of(&path, node);
        if let Content::File(old) = &mut node.content {
            *old = value;
            node.modified = index;
        }
        node.expires = ttl.expires;
        let after = digest::of(&path, node);
        // A directory shows the new index but keeps its old one: etcd's way.
        let shown = Node { modified: index, ..node.shown(&path, ttl.now) };
        let stored = stored.clone();
        self.digest = self.digest.wrapping_sub(before).wrapping_add(after);
        self.forget_expiry(prev.expires, &path);
        self.note_expiry(ttl.expires, &path);
        self.index = index;
        let event = Event::new(action, shown, Some(prev), ttl.refresh);
        Done { event, touched: vec![(path, Some(stored))], removed: Vec::new() }
    }

    pub(super) fn delete(&mut self, path: &str, dir: bool, recursive: bool, now: i64) -> Result<Done, Error> {
        let path = clean(path);
        self.writable(&path)?;
        let node = self.find(&path)?;
        if let Content::Dir(children) = &node.content {
            if !dir && !recursive {
                return Err(self.error(Code::NotFile, path));
            }
            if !children.is_empty() && !recursive {
                return Err(self.error(Code::DirNotEmpty, path));
            }
        }
        Ok(self.remove(Action::Delete, path.into_owned(), now))
    }

    pub(super) fn compare_and_delete(&mut self, path: &str, compare: &Compare<'_>, now: i64) -> Result<Done, Error> {
        let path = clean(path);
        let node = self.find(&path)?;
        if node.is_dir() {
            return Err(self.error(Code::NotFile, path));
        }
        if let Some(fault) = compare.fault(node) {
            return Err(self.error(Code::TestFailed, fault));
        }
        Ok(self.remove(Action::CompareAndDelete, path.into_owned(), now))
    }

    /// Removes what expired first, if anything has.
    pub(super) fn expire(&mut self, now: i64) -> Option<Done> {
        let (expires, path) = match mutant::on(mutant::V2YoungestFirst) {
            true => self.expiring.range(..(now, String::new())).next_back()?,
            false => self.expiring.first()?,
        };
        if *expires > now {
            return None;
        }
        let path = path.clone();
        Some(self.remove(Action::Expire, path, now))
    }

    /// Removes a node that is there, with all below it.
    fn remove(&mut self, action: Action, path: String, now: i64) -> Done {
        let (parent, name) = split(&path);
        let Content::Dir(children) = &mut Arc::make_mut(self.find_mut(parent)).content else {
            unreachable!("{parent} has a child")
        };
        let Some(node) = children.remove(name) else { unreachable!("{path} was found before") };
        let mut gone = Walked::default();
        gone.walk(&node, &mut path.clone());
        for expiry in &gone.expiring {
            self.expiring.remove(expiry);
        }
        self.digest = self.digest.wrapping_sub(gone.digest);
        let removed = gone.paths;
        self.index += 1;
        let prev = node.shown(&path, now);
        let gone =
            Node { key: path, dir: node.is_dir(), modified: self.index, created: node.created, ..Node::default() };
        let touched = removed.iter().map(|path| (path.clone(), None)).collect();
        Done { event: Event::new(action, gone, Some(prev), false), touched, removed }
    }

    fn note_expiry(&mut self, expires: i64, path: &str) {
        if expires != 0 {
            self.expiring.insert((expires, path.to_owned()));
        }
    }

    fn forget_expiry(&mut self, expires: i64, path: &str) {
        if expires != 0 {
            self.expiring.remove(&(expires, path.to_owned()));
        }
    }
}

/// What there is at a path and below.
#[derive(Default)]
struct Walked {
    expiring: BTreeSet<(i64, String)>,
    /// Children before their directory.
    paths: Vec<String>,
    digest: u64,
}

impl Walked {
    /// `path` of the root is empty.
    fn walk(&mut self, node: &Stored, path: &mut String) {
        if node.expires != 0 {
            self.expiring.insert((node.expires, path.clone()));
        }
        for (name, child) in node.children().into_iter().flatten() {
            let length = path.len();
            path.push('/');
            path.push_str(name);
            self.walk(child, path);
            path.truncate(length);
        }
        self.paths.push(path.clone());
        self.digest = self.digest.wrapping_add(digest::of(path, node));
    }
}

/// Puts a node where its parent is a directory that is there already. Says whether it could.
pub(super) fn graft(root: &mut Arc<Stored>, path: &str, node: Stored) -> bool {
    if parts(path).count() > MAX_DEPTH {
        return false;
    }
    let (parent, name) = split(path);
    let mut at = Arc::make_mut(root);
    for part in parts(parent) {
        let Content::Dir(children) = &mut at.content else { return false };
        let Some(child) = children.get_mut(part) else { return false };
        at = Arc::make_mut(child);
    }
    let Content::Dir(children) = &mut at.content else { return false };
    if name.is_empty() {
        return false;
    }
    let node = match (children.remove(name).map(|old| old.content.clone()), node) {
        // The tops are there from the beginning.
        (Some(Content::Dir(kept)), Stored { content: Content::Dir(_), created, modified, expires }) => {
            Stored { content: Content::Dir(kept), created, modified, expires }
        }
        (_, node) => node,
    };
    children.insert(name.into(), Arc::new(node));
    true
}
