//! What has happened, and what was found: the bodies of answers.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Write;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use prost::Message;

use super::{KEYS, json};

/// What was done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Action {
    Get,
    Create,
    Set,
    Update,
    Delete,
    CompareAndSwap,
    CompareAndDelete,
    Expire,
}

/// In the order of their numbers in a stored event.
const ACTIONS: [(Action, &str); 8] = [
    (Action::Get, "get"),
    (Action::Create, "create"),
    (Action::Set, "set"),
    (Action::Update, "update"),
    (Action::Delete, "delete"),
    (Action::CompareAndSwap, "compareAndSwap"),
    (Action::CompareAndDelete, "compareAndDelete"),
    (Action::Expire, "expire"),
];

impl Action {
    /// etcd's name.
    pub fn name(self) -> &'static str {
        ACTIONS[self as usize].1
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        ACTIONS.iter().find(|(_, known)| *known == name).map(|(action, _)| *action)
    }

    pub(super) fn numbered(number: u32) -> Option<Self> {
        ACTIONS.get(number as usize).map(|(action, _)| *action)
    }
}

/// A node as an event shows it, and as a row of the store holds it.
#[derive(Clone, PartialEq, Message)]
pub struct Node {
    /// Its whole path.
    #[prost(string, tag = "1")]
    pub key: String,
    /// A file's value; none in what says that a node is gone.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub value: Option<Bytes>,
    /// Whether it is a directory.
    #[prost(bool, tag = "3")]
    pub dir: bool,
    /// When it ends, in nanoseconds since 1970; 0 = never.
    #[prost(int64, tag = "4")]
    pub expires: i64,
    /// The seconds that were left at the time of the event, rounded up.
    #[prost(int64, tag = "5")]
    pub ttl: i64,
    /// Index of the last change.
    #[prost(uint64, tag = "6")]
    pub modified: u64,
    /// Index of its making.
    #[prost(uint64, tag = "7")]
    pub created: u64,
}

impl Node {
    fn write(&self, out: &mut Vec<u8>, namespace: &str) {
        let mut fields = Fields::begin(out, self.key.strip_prefix(namespace).unwrap_or(&self.key));
        fields.body(self.value.as_ref(), self.dir, self.expires, self.ttl);
        fields.end(self.modified, self.created);
    }
}

/// One change of the tree.
#[derive(Debug)]
pub struct Event {
    /// What was done.
    pub action: Action,
    /// The node, as it is now.
    pub node: Node,
    /// The node, as it was, if there was one.
    pub prev: Option<Node>,
    /// Only a TTL was renewed, which nobody is told.
    pub refresh: bool,
    /// As it goes out; made once for all who wait.
    line: OnceLock<Bytes>,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        (self.action, &self.node, &self.prev, self.refresh) == (other.action, &other.node, &other.prev, other.refresh)
    }
}

impl Event {
    pub(super) fn new(action: Action, node: Node, prev: Option<Node>, refresh: bool) -> Self {
        Self { action, node, prev, refresh, line: OnceLock::new() }
    }

    /// Its index.
    pub fn index(&self) -> u64 {
        self.node.modified
    }

    /// Whether there was nothing before: such an answer has a status of its own.
    pub fn is_created(&self) -> bool {
        self.action == Action::Create || (self.action == Action::Set && self.prev.is_none())
    }

    /// The body of an answer: a line of JSON, with the namespace of users' keys cut off.
    pub fn line(&self) -> Bytes {
        let make = || {
            let room = |node: &Node| 128 + node.key.len() + node.value.as_ref().map_or(0, Bytes::len);
            let mut out = Vec::with_capacity(32 + room(&self.node) + self.prev.as_ref().map_or(0, room));
            self.write(&mut out, KEYS, false);
            out.push(b'\n');
            out.into()
        };
        self.line.get_or_init(make).clone()
    }

    pub(super) fn write(&self, out: &mut Vec<u8>, namespace: &str, with_refresh: bool) {
        out.extend_from_slice(br#"{"action":""#);
        out.extend_from_slice(self.action.name().as_bytes());
        out.extend_from_slice(br#"","node":"#);
        self.node.write(out, namespace);
        if let Some(prev) = &self.prev {
            out.extend_from_slice(br#","prevNode":"#);
            prev.write(out, namespace);
        }
        if with_refresh && self.refresh {
            out.extend_from_slice(br#","refresh":true"#);
        }
        out.push(b'}');
    }
}

/// A node of the tree. A changed one is another one: whoever holds it sees it as it was.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    pub(super) created: u64,
    pub(super) modified: u64,
    /// Nanoseconds since 1970; 0 = never.
    pub(super) expires: i64,
    pub(super) content: Content,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    File(Bytes),
    Dir(BTreeMap<Box<str>, Arc<Stored>>),
}

impl Stored {
    pub(super) fn is_dir(&self) -> bool {
        matches!(self.content, Content::Dir(_))
    }

    /// A file's value; a directory's is empty.
    pub(super) fn value(&self) -> Bytes {
        match &self.content {
            Content::File(value) => value.clone(),
            Content::Dir(_) => Bytes::new(),
        }
    }

    pub(super) fn children(&self) -> Option<&BTreeMap<Box<str>, Arc<Stored>>> {
        match &self.content {
            Content::Dir(children) => Some(children),
            Content::File(_) => None,
        }
    }

    /// How an event shows it.
    pub(super) fn shown(&self, key: &str, now: i64) -> Node {
        Node {
            key: key.to_owned(),
            value: if self.is_dir() { None } else { Some(self.value()) },
            dir: self.is_dir(),
            expires: self.expires,
            ttl: seconds_left(self.expires, now),
            modified: self.modified,
            created: self.created,
        }
    }
}

/// Seconds until a time, rounded up; 0 if it never comes. Both are in nanoseconds.
pub(super) fn seconds_left(expires: i64, now: i64) -> i64 {
    if expires == 0 {
        return 0;
    }
    let left = expires.saturating_sub(now);
    left / 1_000_000_000 + i64::from(left % 1_000_000_000 > 0)
}

/// What was found at a path, as it was at that moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The index at that moment.
    pub index: u64,
    pub(super) path: String,
    pub(super) node: Arc<Stored>,
    pub(super) recursive: bool,
    pub(super) now: i64,
}

impl Found {
    /// The body of an answer: a line of JSON, with the namespace of users' keys cut off. Children come in order of
    /// their names; hidden ones do not.
    pub fn line(&self) -> Bytes {
        let key = self.path.strip_prefix(KEYS).unwrap_or(&self.path);
        let value = if let Content::File(value) = &self.node.content { value.len() } else { 1024 };
        let mut out = Vec::with_capacity(160 + key.len() + value);
        out.extend_from_slice(br#"{"action":"get","node":"#);
        self.write(&mut out, &self.node, &mut key.to_owned(), true);
        out.extend_from_slice(b"}\n");
        out.into()
    }

    /// A file's value.
    pub fn value(&self) -> Option<Bytes> {
        if self.node.is_dir() { None } else { Some(self.node.value()) }
    }

    /// The names of a directory's children, hidden ones left out.
    pub fn names(&self) -> Vec<String> {
        let children = self.node.children().into_iter().flatten();
        children.filter(|(name, _)| !name.starts_with('_')).map(|(name, _)| name.to_string()).collect()
    }

    fn write(&self, out: &mut Vec<u8>, node: &Stored, key: &mut String, list: bool) {
        let mut fields = Fields::begin(out, key);
        match &node.content {
            Content::File(value) => {
                fields.body(Some(value), false, node.expires, seconds_left(node.expires, self.now));
            }
            Content::Dir(children) => {
                fields.body(None, true, node.expires, seconds_left(node.expires, self.now));
                let mut shown = children.iter().filter(|(name, _)| list && !name.starts_with('_')).peekable();
                if shown.peek().is_some() {
                    fields.name("nodes");
                    let mut separator = b'[';
                    for (name, child) in shown {
                        fields.out.push(separator);
                        separator = b',';
                        let length = key.len();
                        key.push('/');
                        key.push_str(name);
                        self.write(fields.out, child, key, self.recursive);
                        key.truncate(length);
                    }
                    fields.out.push(b']');
                }
            }
        }
        fields.end(node.modified, node.created);
    }
}

/// Writes a node's fields in etcd's order; those that are empty are left out.
struct Fields<'a> {
    out: &'a mut Vec<u8>,
    separator: u8,
}

impl<'a> Fields<'a> {
    fn begin(out: &'a mut Vec<u8>, key: &str) -> Self {
        let mut this = Self { out, separator: b'{' };
        if !key.is_empty() {
            this.name("key");
            json::string(this.out, key.as_bytes());
        }
        this
    }

    fn name(&mut self, name: &str) {
        self.out.push(self.separator);
        self.separator = b',';
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn body(&mut self, value: Option<&Bytes>, dir: bool, expires: i64, ttl: i64) {
        if let Some(value) = value {
            self.name("value");
            json::string(self.out, value);
        }
        if dir {
            self.name("dir");
            self.out.extend_from_slice(b"true");
        }
        if expires != 0 {
            self.name("expiration");
            json::string(self.out, json::time(expires).as_bytes());
        }
        if ttl != 0 {
            self.name("ttl");
            self.number(ttl);
        }
    }

    fn number(&mut self, number: impl Display) {
        // Memory does not fail.
        let _ = write!(self.out, "{number}");
    }

    fn end(mut self, modified: u64, created: u64) {
        for (name, index) in [("modifiedIndex", modified), ("createdIndex", created)] {
            if index != 0 {
                self.name(name);
                self.number(index);
            }
        }
        if self.separator == b'{' {
            self.out.push(b'{');
        }
        self.out.push(b'}');
    }
}
