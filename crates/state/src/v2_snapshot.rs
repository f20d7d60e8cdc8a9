//! The membership as a v2 store: what `.snap` files carry since etcd 3.6.
//!
//! Older members read the membership from such a file, so it has the shape of a v2 store in which each fact was
//! written by one operation: members first, then those removed, then the cluster version. What is read may come from any
//! etcd: of a store that older members have really used, only those nodes are looked at.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::members::{Attributes, Cluster, Member, go_json, is_false, null_is_empty};

/// Slots of a v2 store's event history.
const HISTORY: usize = 1_000;

/// A file or directory. The field order is etcd's.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    path: String,
    created_index: u64,
    modified_index: u64,
    expire_time: &'static str,
    value: String,
    /// A file has none, not even an empty map.
    children: Option<BTreeMap<String, Node>>,
}

impl Node {
    fn new(path: &str, index: u64, value: String, children: Option<BTreeMap<String, Node>>) -> Self {
        let path = path.to_owned();
        Self { path, created_index: index, modified_index: index, expire_time: "0001-01-01T00:00:00Z", value, children }
    }

    fn dir(path: &str, index: u64) -> Self {
        Self::new(path, index, String::new(), Some(BTreeMap::new()))
    }
}

#[derive(Clone, Serialize)]
struct Event {
    action: &'static str,
    node: EventNode,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct EventNode {
    key: String,
    value: String,
    modified_index: u64,
    created_index: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Snapshot {
    root: Node,
    watcher_hub: WatcherHub,
    current_index: u64,
    stats: Stats,
    current_version: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct WatcherHub {
    event_history: EventHistory,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct EventHistory {
    queue: Queue,
    start_index: u64,
    last_index: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Queue {
    events: Vec<Option<Event>>,
    size: usize,
    front: usize,
    back: usize,
    capacity: usize,
}

/// Counters of a store that nobody has used yet.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Stats {
    gets_success: u64,
    gets_fail: u64,
    sets_success: u64,
    sets_fail: u64,
    delete_success: u64,
    delete_fail: u64,
    update_success: u64,
    update_fail: u64,
    create_success: u64,
    create_fail: u64,
    compare_and_swap_success: u64,
    compare_and_swap_fail: u64,
    compare_and_delete_success: u64,
    compare_and_delete_fail: u64,
    expire_count: u64,
    watchers: u64,
}

#[derive(Serialize, Deserialize)]
struct RaftAttributes {
    #[serde(default, rename = "peerURLs", deserialize_with = "null_is_empty")]
    peer_urls: Vec<String>,
    #[serde(default, rename = "isLearner", skip_serializing_if = "is_false")]
    is_learner: bool,
}

/// A v2 store in the making.
struct Tree {
    root: Node,
    events: Vec<Event>,
}

impl Tree {
    fn new() -> Self {
        let mut root = Node::dir("/", 0);
        for path in ["/0", "/1"] {
            root.children.get_or_insert_default().insert(path[1..].into(), Node::dir(path, 0));
        }
        Self { root, events: Vec::new() }
    }

    /// Writes a file, making the directories above it.
    fn write(&mut self, action: &'static str, key: String, value: String) {
        let index = self.events.len() as u64 + 1;
        let mut node = &mut self.root;
        for (at, _) in key.match_indices('/').skip(1) {
            let path = &key[..at];
            let name = path.rsplit('/').next().unwrap_or_default().to_owned();
            let children = node.children.get_or_insert_default();
            node = children.entry(name).or_insert_with(|| Node::dir(path, index));
        }
        let name = key.rsplit('/').next().unwrap_or_default().to_owned();
        let file = Node::new(&key, index, value.clone(), None);
        node.children.get_or_insert_default().insert(name, file);
        let node = EventNode { key, value, modified_index: index, created_index: index };
        self.events.push(Event { action, node });
    }

    fn finish(self) -> Snapshot {
        let count = self.events.len();
        let (mut creates, mut sets) = (0, 0);
        let mut events = vec![None; HISTORY];
        for (n, event) in self.events.into_iter().enumerate() {
            if event.action == "create" {
                creates += 1
            } else {
                sets += 1
            }
            events[n % HISTORY] = Some(event);
        }
        // Once the ring is full, the oldest event stands where the next one will.
        let front = if count > HISTORY { count % HISTORY } else { 0 };
        let start_index = if count == 0 { 0 } else { count.saturating_sub(HISTORY) as u64 + 1 };
        let queue = Queue { events, size: count.min(HISTORY), front, back: count % HISTORY, capacity: HISTORY };
        let event_history = EventHistory { queue, start_index, last_index: count as u64 };
        Snapshot {
            root: self.root,
            watcher_hub: WatcherHub { event_history },
            current_index: count as u64,
            stats: Stats { create_success: creates, sets_success: sets, ..Stats::default() },
            current_version: 2,
        }
    }
}

/// The membership as the JSON of a v2 store.
pub(crate) fn json(cluster: &Cluster) -> Vec<u8> {
    let mut tree = Tree::new();
    for member in cluster.members.values() {
        let path = format!("/0/members/{:x}", member.id);
        let raft = RaftAttributes { peer_urls: member.peer_urls.clone(), is_learner: member.is_learner };
        tree.write("create", format!("{path}/raftAttributes"), go_json(&raft));
        if !member.client_urls.is_empty() {
            let attributes = Attributes { name: member.name.clone(), client_urls: member.client_urls.clone() };
            tree.write("set", format!("{path}/attributes"), go_json(&attributes));
        }
    }
    for id in &cluster.removed {
        tree.write("create", format!("/0/removed_members/{id:x}"), String::new());
    }
    if let Some(version) = &cluster.version {
        tree.write("set", "/0/version".into(), version.clone());
    }
    go_json(&tree.finish()).into_bytes()
}

/// What a v2 store says.
#[derive(Debug)]
pub(crate) struct Read {
    /// The membership in it.
    pub(crate) cluster: Cluster,
    /// Whether users have keys, or users, in it.
    pub(crate) has_keys: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ReadSnapshot {
    root: ReadRoot,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ReadRoot {
    children: ReadTop,
}

/// etcd's own tree, the keys of users, and the users.
#[derive(Deserialize)]
struct ReadTop {
    #[serde(rename = "0")]
    cluster: Option<ReadNode>,
    #[serde(rename = "1")]
    keys: Option<Skipped>,
    #[serde(rename = "2")]
    auth: Option<Skipped>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ReadNode {
    value: String,
    children: Option<BTreeMap<String, ReadNode>>,
}

impl ReadNode {
    fn child(&self, name: &str) -> Option<&ReadNode> {
        self.children.as_ref()?.get(name)
    }

    /// Nodes whose names are member IDs.
    fn by_id(&self, name: &str) -> impl Iterator<Item = Result<(u64, &ReadNode), String>> {
        let children = self.child(name).and_then(|node| node.children.as_ref()).into_iter().flatten();
        children.map(|(id, node)| {
            let parsed = u64::from_str_radix(id, 16);
            parsed.map(|id| (id, node)).map_err(|_| format!("/0: {id:?} is no member ID"))
        })
    }
}

/// A directory of which only counts whether it is empty.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Skipped {
    children: Option<BTreeMap<String, IgnoredAny>>,
}

/// Reads a v2 store's JSON, as any etcd writes it.
pub(crate) fn read(json: &[u8]) -> Result<Read, String> {
    let tree: ReadSnapshot = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let ReadTop { cluster: top, keys, auth } = tree.root.children;
    let holds = |node: Option<Skipped>| node.and_then(|node| node.children).is_some_and(|nodes| !nodes.is_empty());
    let has_keys = holds(keys) || holds(auth);
    let top = top.unwrap_or_default();
    let mut cluster = Cluster::default();
    for found in top.by_id("members") {
        let (id, node) = found?;
        let bad = |what: &dyn std::fmt::Display| format!("/0/members/{id:x}: {what}");
        let raft = node.child("raftAttributes").ok_or_else(|| bad(&"it has no raftAttributes"))?;
        let raft: RaftAttributes = serde_json::from_str(&raft.value).map_err(|error| bad(&error))?;
        let attributes: Attributes = match node.child("attributes") {
            Some(attributes) => serde_json::from_str(&attributes.value).map_err(|error| bad(&error))?,
            None => Attributes::default(),
        };
        let Attributes { name, client_urls } = attributes;
        let RaftAttributes { peer_urls, is_learner } = raft;
        cluster.members.insert(id, Member { id, peer_urls, is_learner, name, client_urls });
    }
    for found in top.by_id("removed_members") {
        cluster.removed.insert(found?.0);
    }
    cluster.version = top.child("version").map(|node| node.value.clone()).filter(|version| !version.is_empty());
    Ok(Read { cluster, has_keys })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Member;
    use serde_json::Value;

    #[test]
    fn learners_and_removed_members_are_in_it() {
        let mut cluster = Cluster::default();
        let peer_urls = vec!["http://a".to_owned()];
        cluster.members.insert(255, Member { id: 255, peer_urls, is_learner: true, ..Default::default() });
        cluster.removed.insert(16);
        let json: Value = serde_json::from_slice(&json(&cluster)).unwrap();
        let zero = &json["Root"]["Children"]["0"]["Children"];
        let raft = &zero["members"]["Children"]["ff"]["Children"]["raftAttributes"];
        assert_eq!(raft["Value"], r#"{"peerURLs":["http://a"],"isLearner":true}"#);
        assert_eq!(raft["Children"], Value::Null);
        assert_eq!(zero["removed_members"]["Children"]["10"]["Path"], "/0/removed_members/10");
        assert_eq!(json["CurrentIndex"], 2);
    }

    #[test]
    fn the_history_is_a_ring() {
        let mut cluster = Cluster::default();
        cluster.removed.extend(1..=1_001);
        let json: Value = serde_json::from_slice(&json(&cluster)).unwrap();
        let history = &json["WatcherHub"]["EventHistory"];
        assert_eq!((&history["StartIndex"], &history["LastIndex"]), (&2.into(), &1_001.into()));
        assert_eq!((&history["Queue"]["Front"], &history["Queue"]["Back"]), (&1.into(), &1.into()));
        assert_eq!(history["Queue"]["Events"][1]["node"]["modifiedIndex"], 2);
    }
}
