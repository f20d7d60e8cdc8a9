//! What the v2 API's documentation and etcd's habits say that a log of v2 requests does, in the simplest words there are.
//!
//! All nodes stand in one map by their whole path; whoever wants to know what is below a directory looks at every path.
//! Answers are compared as the JSON that clients get.

use std::collections::{BTreeMap, VecDeque};

use proto::v2pb::Request;
use serde_json::{Map, Value, json};
use state::v2::{Answer, Outcome};

use crate::ledger::{Violation, violation};
use crate::membership::Effect;

/// Changes that are remembered here; a member remembers the last 1,000.
const REMEMBERED: usize = 2_000;
/// Changes that a member remembers.
const HISTORY: usize = 1_000;

#[derive(Clone, Debug, Default)]
struct Node {
    dir: bool,
    value: String,
    created: u64,
    modified: u64,
    /// Nanoseconds since 1970; 0 = never.
    expires: i64,
}

/// A change, as those who wait for one see it.
#[derive(Clone, Debug)]
struct Change {
    index: u64,
    key: String,
    /// What is told of it.
    body: Value,
    /// Nobody is told.
    refresh: bool,
    /// A directory went.
    directory_gone: bool,
    /// All paths that went.
    gone: Vec<String>,
}

/// A refusal: its number, its cause, the index.
type Refusal = (u16, String, u64);

/// What a request is to be answered with.
pub type Expected = Result<Value, Refusal>;

/// When a node ends, as its request says it.
#[derive(Clone, Copy, Default)]
struct Ttl {
    expires: i64,
    refresh: bool,
    now: i64,
}

/// The tree after a log.
#[derive(Debug, Default)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
    index: u64,
    changes: VecDeque<Change>,
}

const NOT_FOUND: u16 = 100;
const TEST_FAILED: u16 = 101;
const NOT_FILE: u16 = 102;
const NOT_DIR: u16 = 104;
const EXISTS: u16 = 105;
const READ_ONLY: u16 = 107;
const NOT_EMPTY: u16 = 108;

fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(at) if at > 0 => &path[..at],
        _ => "/",
    }
}

fn is_below(path: &str, dir: &str) -> bool {
    dir == "/" && path != "/" || path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

/// A key as clients see it.
fn shown_key(path: &str) -> &str {
    path.strip_prefix("/1").unwrap_or(path)
}

impl Node {
    fn show(&self, path: &str, now: i64) -> Value {
        let value = if self.dir { None } else { Some(self.value.clone()) };
        self.tell(path, value, now)
    }

    fn tell(&self, path: &str, value: Option<String>, now: i64) -> Value {
        let mut map = Map::new();
        if !shown_key(path).is_empty() {
            map.insert("key".into(), json!(shown_key(path)));
        }
        if let Some(value) = value {
            map.insert("value".into(), json!(value));
        }
        if self.dir {
            map.insert("dir".into(), json!(true));
        }
        if self.expires != 0 {
            map.insert("expiration".into(), json!(state::v2::time(self.expires)));
            let left = -(now - self.expires).div_euclid(1_000_000_000);
            if left != 0 {
                map.insert("ttl".into(), json!(left));
            }
        }
        for (name, index) in [("modifiedIndex", self.modified), ("createdIndex", self.created)] {
            if index != 0 {
                map.insert(name.into(), json!(index));
            }
        }
        Value::Object(map)
    }
}

impl Change {
    /// Whether it is told to whoever waits at a path while it happens, and to whoever asks for it afterwards. The two differ a
    /// little, in etcd too.
    fn concerns(&self, path: &str, recursive: bool) -> (bool, bool) {
        if self.refresh {
            return (false, false);
        }
        let on_path = self.key == path;
        let below = recursive && is_below(&self.key, path);
        let is_hidden = below && self.key[path.len()..].contains("/_");
        let alive = on_path || (below && !is_hidden) || self.gone.iter().any(|gone| gone == path);
        let past = on_path || below || (self.directory_gone && path.starts_with(&self.key));
        (alive, past)
    }
}

impl Tree {
    /// The newest index.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Carries out a request. `None`: nobody is told what came of it.
    pub fn apply(&mut self, request: &Request) -> Option<Expected> {
        let path = String::from_utf8_lossy(request.path()).into_owned();
        let value = String::from_utf8_lossy(request.val()).into_owned();
        let now = request.time();
        let ttl = Ttl { expires: request.expiration(), refresh: request.refresh(), now };
        let wanted = (String::from_utf8_lossy(request.prev_value()).into_owned(), request.prev_index());
        let compares = !wanted.0.is_empty() || wanted.1 != 0;
        Some(match (request.method(), request.prev_exist) {
            ("PUT", Some(false)) => self.create(&path, request.dir(), value, ttl),
            ("PUT", _) if compares => self.swap(&path, &wanted, value, ttl),
            ("PUT", Some(true)) => self.update(&path, value, ttl),
            ("PUT", None) => self.set(&path, request.dir(), value, ttl),
            ("POST", _) => self.create(&format!("{path}/{:020}", self.index + 1), request.dir(), value, ttl),
            ("DELETE", _) if compares => self.delete_if(&path, &wanted, now),
            ("DELETE", _) => self.delete(&path, request.dir(), request.recursive(), now),
            ("QGET", _) => self.get(&path, request.recursive(), now),
            ("SYNC", _) => {
                self.expire(now);
                return None;
            }
            _ => return None,
        })
    }

    /// What a change of the membership leaves in the tree.
    pub fn member(&mut self, effect: &Effect) {
        let at = |id: u64, name: &str| format!("/0/members/{id:x}/{name}");
        let _refused = match effect {
            Effect::None => return,
            Effect::Added(id, facts) => self.create(&at(*id, "raftAttributes"), false, facts.clone(), Ttl::default()),
            Effect::Updated(id, facts) => self.update(&at(*id, "raftAttributes"), facts.clone(), Ttl::default()),
            Effect::Named(id, facts) => self.set(&at(*id, "attributes"), false, facts.clone(), Ttl::default()),
            Effect::Version(version) => self.set("/0/version", false, version.clone(), Ttl::default()),
            Effect::Removed(id) => {
                let _gone = self.delete(&format!("/0/members/{id:x}"), true, true, 0);
                self.create(&format!("/0/removed_members/{id:x}"), false, String::new(), Ttl::default())
            }
        };
    }

    /// The answer to a read.
    pub fn get(&self, path: &str, recursive: bool, now: i64) -> Expected {
        self.find(path)?;
        Ok(json!({"action": "get", "node": self.list(path, true, recursive, now)}))
    }

    /// Compares an answer.
    pub fn check(what: &str, expected: &Expected, outcome: &Outcome) -> Result<(), Violation> {
        let given: Expected = match outcome {
            Ok(Answer::Changed(event)) => Ok(parsed(&event.line())),
            Ok(Answer::Found(found)) => Ok(parsed(&found.line())),
            Ok(Answer::Nothing) => Ok(Value::Null),
            Err(error) => Err((error.code as u16, error.cause.clone(), error.index)),
        };
        if given != *expected {
            return violation!("{what} is answered with {given:?}, expected {expected:?}");
        }
        Ok(())
    }

    /// Somebody who has waited since an index for what happens at a path, and below it too if `recursive`, is told of this as
    /// the first. Gives its index. `start` was the newest index of its member when it began to wait there.
    pub fn waited(&self, path: &str, recursive: bool, since: u64, start: u64, told: &Value) -> Result<u64, Violation> {
        for change in self.changes.iter().filter(|change| change.index >= since) {
            let (alive, past) = change.concerns(path, recursive);
            if (alive || past) && change.body == *told {
                if change.index > start && !alive && is_below(&change.key, path) {
                    return violation!("who waits at {path} was told of what is hidden from it: {told}");
                }
                return Ok(change.index);
            }
            if alive && past {
                return violation!("who waits at {path} since {since} was told {told}, expected {}", change.body);
            }
        }
        violation!("who waits at {path} since {since} was told {told}, which never happened")
    }

    /// Whether somebody who waits like that has to be told something.
    pub fn concerns(&self, path: &str, recursive: bool, since: u64) -> bool {
        let later = self.changes.iter().filter(|change| change.index >= since);
        later.map(|change| change.concerns(path, recursive)).any(|(alive, past)| alive && past)
    }

    /// Whether the past at an index may be gone.
    pub fn is_cleared(&self, since: u64) -> bool {
        since + (HISTORY as u64) <= self.index + 1
    }

    fn find(&self, path: &str) -> Result<&Node, Refusal> {
        let ends = path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0).chain([path.len()]);
        let mut found = None;
        for end in ends.filter(|_| path != "/") {
            let at = &path[..end];
            match self.node(at) {
                None => return Err((NOT_FOUND, at.to_owned(), self.index)),
                Some(node) if !node.dir && end < path.len() => return Err((NOT_DIR, at.to_owned(), self.index)),
                node => found = node,
            }
        }
        found.ok_or_else(|| (NOT_FOUND, path.to_owned(), self.index))
    }

    fn node(&self, path: &str) -> Option<&Node> {
        /// What is there from the beginning.
        static TOP: Node = Node { dir: true, value: String::new(), created: 0, modified: 0, expires: 0 };
        if ["/0", "/1"].contains(&path) { Some(&TOP) } else { self.nodes.get(path) }
    }

    fn writable(&self, path: &str) -> Result<(), Refusal> {
        match ["/", "/0", "/1"].contains(&path) {
            true => Err((READ_ONLY, "/".into(), self.index)),
            false => Ok(()),
        }
    }

    fn list(&self, path: &str, lists: bool, recursive: bool, now: i64) -> Value {
        let Some(node) = self.node(path) else { return Value::Null };
        let mut shown = node.show(path, now);
        let children = self.nodes.keys().filter(|key| lists && parent(key) == path && node.dir);
        let children = children.filter(|key| !key[path.len()..].starts_with("/_"));
        let nodes: Vec<Value> = children.map(|key| self.list(key, recursive, recursive, now)).collect();
        if !nodes.is_empty() {
            shown["nodes"] = Value::Array(nodes);
        }
        shown
    }

    fn happened(
        &mut self,
        action: &str,
        path: &str,
        node: Value,
        prev: Option<Value>,
        refresh: bool,
        gone: Vec<String>,
    ) -> Expected {
        self.index += 1;
        let mut body = json!({"action": action, "node": node});
        if let Some(prev) = prev {
            body["prevNode"] = prev;
        }
        let directory_gone = !gone.is_empty() && body["prevNode"]["dir"] == json!(true) && action != "compareAndDelete";
        let change =
            Change { index: self.index, key: path.to_owned(), body: body.clone(), refresh, directory_gone, gone };
        self.changes.push_back(change);
        if self.changes.len() > REMEMBERED {
            self.changes.pop_front();
        }
        Ok(body)
    }

    fn set(&mut self, path: &str, dir: bool, value: String, ttl: Ttl) -> Expected {
        let old = match self.find(path) {
            Ok(node) => Some(node.clone()),
            Err((NOT_FOUND, ..)) if !ttl.refresh => None,
            Err(refusal) => return Err(refusal),
        };
        let value = old.as_ref().filter(|_| ttl.refresh).map_or(value, |old| old.value.clone());
        self.writable(path)?;
        if old.as_ref().is_some_and(|old| old.dir) {
            return Err((NOT_FILE, path.to_owned(), self.index));
        }
        self.make("set", path, dir, value, ttl, old)
    }

    fn create(&mut self, path: &str, dir: bool, value: String, ttl: Ttl) -> Expected {
        self.writable(path)?;
        match self.find(path) {
            Ok(_) => Err((EXISTS, path.to_owned(), self.index)),
            Err((NOT_FOUND, ..)) => self.make("create", path, dir, value, ttl, None),
            Err(refusal) => Err(refusal),
        }
    }

    fn make(&mut self, action: &str, path: &str, dir: bool, value: String, ttl: Ttl, old: Option<Node>) -> Expected {
        let index = self.index + 1;
        let mut above = parent(path);
        while above != "/" {
            if self.node(above).is_none() {
                let made = Node { dir: true, created: index, modified: index, ..Node::default() };
                self.nodes.insert(above.to_owned(), made);
            }
            above = parent(above);
        }
        let value = if dir { String::new() } else { value };
        let node = Node { dir, value, created: index, modified: index, expires: ttl.expires };
        let shown = node.show(path, ttl.now);
        self.nodes.insert(path.to_owned(), node);
        let prev = old.map(|old| old.show(path, ttl.now));
        self.happened(action, path, shown, prev, ttl.refresh && action == "set", Vec::new())
    }

    fn update(&mut self, path: &str, value: String, ttl: Ttl) -> Expected {
        self.writable(path)?;
        let old = self.find(path)?.clone();
        if old.dir && !value.is_empty() {
            return Err((NOT_FILE, path.to_owned(), self.index));
        }
        self.write("update", path, old, value, ttl)
    }

    fn write(&mut self, action: &str, path: &str, old: Node, value: String, ttl: Ttl) -> Expected {
        let index = self.index + 1;
        let value = if ttl.refresh { old.value.clone() } else { value };
        let new = Node { value, modified: index, expires: ttl.expires, ..old.clone() };
        let shown = new.show(path, ttl.now);
        // A directory keeps its index, whatever the answer says.
        let modified = if old.dir { old.modified } else { index };
        self.nodes.insert(path.to_owned(), Node { modified, ..new });
        self.happened(action, path, shown, Some(old.show(path, ttl.now)), ttl.refresh, Vec::new())
    }

    /// The node, if it is a file and is what is wanted.
    fn wanted(&self, path: &str, wanted: &(String, u64)) -> Result<Node, Refusal> {
        let node = self.find(path)?;
        if node.dir {
            return Err((NOT_FILE, path.to_owned(), self.index));
        }
        let mut faults = Vec::new();
        if !wanted.0.is_empty() && wanted.0 != node.value {
            faults.push(format!("[{} != {}]", wanted.0, node.value));
        }
        if wanted.1 != 0 && wanted.1 != node.modified {
            faults.push(format!("[{} != {}]", wanted.1, node.modified));
        }
        if faults.is_empty() { Ok(node.clone()) } else { Err((TEST_FAILED, faults.join(" "), self.index)) }
    }

    fn swap(&mut self, path: &str, wanted: &(String, u64), value: String, ttl: Ttl) -> Expected {
        self.writable(path)?;
        let old = self.wanted(path, wanted)?;
        self.write("compareAndSwap", path, old, value, ttl)
    }

    fn delete_if(&mut self, path: &str, wanted: &(String, u64), now: i64) -> Expected {
        self.wanted(path, wanted)?;
        self.remove("compareAndDelete", path, now)
    }

    fn delete(&mut self, path: &str, dir: bool, recursive: bool, now: i64) -> Expected {
        self.writable(path)?;
        let node = self.find(path)?;
        if node.dir && !dir && !recursive {
            return Err((NOT_FILE, path.to_owned(), self.index));
        }
        if node.dir && !recursive && self.nodes.keys().any(|key| is_below(key, path)) {
            return Err((NOT_EMPTY, path.to_owned(), self.index));
        }
        self.remove("delete", path, now)
    }

    fn remove(&mut self, action: &str, path: &str, now: i64) -> Expected {
        let doomed: Vec<String> =
            self.nodes.keys().filter(|key| *key == path || is_below(key, path)).cloned().collect();
        let old = self.nodes.get(path).cloned().unwrap_or_default();
        for key in &doomed {
            self.nodes.remove(key);
        }
        let gone = Node { expires: 0, modified: self.index + 1, ..old.clone() }.tell(path, None, now);
        self.happened(action, path, gone, Some(old.show(path, now)), false, doomed)
    }

    fn expire(&mut self, now: i64) {
        loop {
            let due = self.nodes.iter().filter(|(_, node)| node.expires != 0 && node.expires <= now);
            let Some((_, path)) = due.map(|(path, node)| (node.expires, path.clone())).min() else { return };
            let _told = self.remove("expire", &path, now);
        }
    }
}

/// JSON as a member writes it.
pub fn parsed(line: &[u8]) -> Value {
    serde_json::from_slice(line).unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, path: &'static str) -> Request {
        Request { method: Some(method.into()), path: Some(path.into()), val: Some("v".into()), ..Default::default() }
    }

    fn tree() -> Tree {
        let mut tree = Tree::default();
        for path in ["/1/a", "/1/d/x", "/1/d/_y"] {
            tree.apply(&request("PUT", path)).expect("an answer").expect("a fine request");
        }
        tree
    }

    #[test]
    fn a_member_must_answer_as_the_model_does() {
        let missing = state::v2::V2::default().get("/1/a", false, 0).map(Answer::Found);
        Tree::check("a read", &Tree::default().get("/1/a", false, 0), &missing).unwrap();
        assert!(Tree::check("a read", &Tree::default().get("/1/b", false, 0), &missing).is_err(), "another path");
        assert!(Tree::check("a read", &tree().get("/1/x", false, 0), &missing).is_err(), "another index");
        assert!(Tree::check("a read", &tree().get("/1/a", false, 0), &missing).is_err(), "it is there");
    }

    #[test]
    fn who_waits_must_be_told_the_first_that_concerns_it() {
        let tree = tree();
        let told = |path: &str| json!({"action": "set", "node": {"key": path, "value": "v", "modifiedIndex": 2, "createdIndex": 2}});
        assert_eq!(tree.waited("/1/d", true, 1, 0, &told("/d/x")).unwrap(), 2);
        assert!(tree.waited("/1", true, 1, 0, &told("/d/x")).is_err(), "what happened to a comes first");
        assert!(tree.waited("/1/d", false, 1, 0, &told("/d/x")).is_err(), "it did not ask for what is below");
        assert!(tree.waited("/1/d", true, 3, 0, &told("/d/x")).is_err(), "it has been told that already");
        assert!(tree.waited("/1/d", true, 1, 0, &told("/d/z")).is_err(), "it never happened");
        let hidden =
            json!({"action": "set", "node": {"key": "/d/_y", "value": "v", "modifiedIndex": 3, "createdIndex": 3}});
        assert_eq!(tree.waited("/1/d", true, 3, 3, &hidden).unwrap(), 3, "the past shows it");
        assert!(tree.waited("/1/d", true, 3, 2, &hidden).is_err(), "it is hidden from who waits");
        assert!(tree.concerns("/1/d", true, 2) && !tree.concerns("/1/d", true, 3), "the hidden one is hidden");
    }

    #[test]
    fn what_has_expired_goes_oldest_first() {
        let mut tree = tree();
        for (path, expiration) in [("/1/late", 20), ("/1/soon", 10), ("/1/never", 0)] {
            tree.apply(&Request { expiration: Some(expiration), ..request("PUT", path) });
        }
        assert_eq!(tree.apply(&Request { time: Some(20), ..request("SYNC", "") }), None);
        assert_eq!(tree.index(), 8);
        assert!(tree.get("/1/soon", false, 0).is_err() && tree.get("/1/never", false, 0).is_ok());
    }
}
