//! The whole tree as etcd's JSON: what `.snap` files and snapshot messages carry.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use super::event::{Action, Content, Event, Node, Stored};
use super::hub::Hub;
use super::json;
use super::stats::Counters;
use super::tree::{MAX_DEPTH, Tree};
use super::{HISTORY, Touched, V2};
use crate::Member;
use crate::members::{Attributes, Cluster, RaftAttributes, go_json};

/// A member's peer URLs as its node has them.
pub(super) fn raft_attributes(member: &Member) -> Bytes {
    go_json(&RaftAttributes { peer_urls: member.peer_urls.clone(), is_learner: member.is_learner }).into()
}

/// Everything at one moment.
#[derive(Clone, Debug)]
pub struct Image {
    root: Arc<Stored>,
    index: u64,
    history: Vec<Arc<Event>>,
    counters: Counters,
}

/// The tree of a cluster that begins with these members and nothing else, in the JSON of a `.snap` file.
pub fn founding_json(members: &[Member]) -> Vec<u8> {
    let members = members.iter().map(|member| (member.id, member.clone())).collect();
    V2::of_cluster(&Cluster { members, ..Cluster::default() }).image().to_json()
}

impl Image {
    pub(super) fn new(root: Arc<Stored>, index: u64, history: Vec<Arc<Event>>, counters: Counters) -> Self {
        Self { root, index, history, counters }
    }

    /// As etcd writes it.
    pub fn to_json(&self) -> Vec<u8> {
        // Grown from small beginnings it would be copied, and its pages given back, a dozen times.
        let events: usize =
            self.history.iter().map(|event| room(&event.node) + event.prev.as_ref().map_or(0, room)).sum();
        let mut out = Vec::with_capacity(node_room(&self.root, 0) + events + (16 << 10));
        out.extend_from_slice(br#"{"Root":"#);
        write_node(&mut out, &self.root, &mut String::new());
        out.extend_from_slice(br#","WatcherHub":{"EventHistory":{"Queue":{"Events":["#);
        // An event's place in the ring follows from its index.
        let place = |index: u64| index.saturating_sub(1) as usize % HISTORY;
        let mut ring: Vec<Option<&Event>> = vec![None; HISTORY];
        for event in &self.history {
            ring[place(event.index())] = Some(event);
        }
        for (n, event) in ring.into_iter().enumerate() {
            if n > 0 {
                out.push(b',');
            }
            match event {
                Some(event) => event.write(&mut out, "", true),
                None => out.extend_from_slice(b"null"),
            }
        }
        let start = self.history.first().map_or(0, |event| event.index());
        let last = self.history.last().map_or(0, |event| event.index());
        let rest = format!(
            r#"],"Size":{},"Front":{},"Back":{},"Capacity":{HISTORY}}},"StartIndex":{start},"LastIndex":{last}}}}},"CurrentIndex":{},"Stats":{},"CurrentVersion":2}}"#,
            self.history.len(),
            place(start),
            last as usize % HISTORY,
            self.index,
            self.counters.to_json(),
        );
        out.extend_from_slice(rest.as_bytes());
        out
    }
}

/// What an event's node takes, about.
fn room(node: &Node) -> usize {
    160 + node.key.len() + node.value.as_ref().map_or(0, Bytes::len)
}

/// What a node at a path of so many bytes takes with all below it, about.
fn node_room(node: &Stored, path: usize) -> usize {
    let below = node.children().into_iter().flatten();
    let below = below.map(|(name, child)| name.len() + node_room(child, path + 1 + name.len()));
    160 + path + node.value().len() + below.sum::<usize>()
}

fn write_node(out: &mut Vec<u8>, node: &Stored, path: &mut String) {
    out.extend_from_slice(br#"{"Path":"#);
    json::string(out, if path.is_empty() { b"/" } else { path.as_bytes() });
    let expires = if node.expires == 0 { Cow::Borrowed(json::ZERO) } else { Cow::Owned(json::time(node.expires)) };
    // Memory does not fail.
    let _ = write!(
        out,
        r#","CreatedIndex":{},"ModifiedIndex":{},"ExpireTime":"{expires}","Value":"#,
        node.created, node.modified
    );
    json::string(out, &node.value());
    out.extend_from_slice(br#","Children":"#);
    match &node.content {
        Content::File(_) => out.extend_from_slice(b"null"),
        Content::Dir(children) => {
            out.push(b'{');
            for (n, (name, child)) in children.iter().enumerate() {
                if n > 0 {
                    out.push(b',');
                }
                json::string(out, name.as_bytes());
                out.push(b':');
                let length = path.len();
                path.push('/');
                path.push_str(name);
                write_node(out, child, path);
                path.truncate(length);
            }
            out.push(b'}');
        }
    }
    out.push(b'}');
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StoreJson {
    root: NodeJson,
    #[serde(default)]
    watcher_hub: HubJson,
    #[serde(default)]
    current_index: u64,
    #[serde(default)]
    stats: serde_json::Value,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NodeJson {
    created_index: u64,
    modified_index: u64,
    expire_time: Option<String>,
    value: String,
    children: Option<BTreeMap<Box<str>, NodeJson>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HubJson {
    event_history: HistoryJson,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HistoryJson {
    queue: QueueJson,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct QueueJson {
    events: Vec<Option<EventJson>>,
    size: usize,
    front: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EventJson {
    action: String,
    node: ShownJson,
    prev_node: Option<ShownJson>,
    #[serde(default)]
    refresh: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ShownJson {
    key: String,
    value: Option<String>,
    dir: bool,
    expiration: Option<String>,
    ttl: i64,
    modified_index: u64,
    created_index: u64,
}

fn time(text: Option<&str>) -> Result<i64, String> {
    let Some(text) = text else { return Ok(0) };
    json::parse_time(text).ok_or_else(|| format!("{text:?} is not a time"))
}

fn stored(node: NodeJson) -> Result<Stored, String> {
    let content = match node.children {
        None => Content::File(node.value.into()),
        Some(children) => {
            let mut nodes = BTreeMap::new();
            for (name, child) in children {
                if name.is_empty() || name.contains('/') {
                    return Err(format!("{name:?} is not the name of a node"));
                }
                nodes.insert(name, Arc::new(stored(child)?));
            }
            Content::Dir(nodes)
        }
    };
    let expires = time(node.expire_time.as_deref())?;
    Ok(Stored { created: node.created_index, modified: node.modified_index, expires, content })
}

fn shown(node: ShownJson) -> Result<Node, String> {
    Ok(Node {
        key: node.key,
        value: node.value.map(Bytes::from),
        dir: node.dir,
        expires: time(node.expiration.as_deref())?,
        ttl: node.ttl,
        modified: node.modified_index,
        created: node.created_index,
    })
}

/// How deep brackets are nested.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0_usize, 0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

impl V2 {
    /// Reads what any etcd up to 3.5, or this program, writes.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, String> {
        // Each level of the tree is two of brackets. The parser's own bound would be too low.
        if depth(json) > 2 * MAX_DEPTH + 8 {
            return Err(format!("its directories are nested deeper than {MAX_DEPTH}"));
        }
        let mut reader = serde_json::Deserializer::from_slice(json);
        reader.disable_recursion_limit();
        let store = StoreJson::deserialize(&mut reader).map_err(|error| error.to_string())?;
        let mut root = stored(store.root)?;
        let Content::Dir(tops) = &mut root.content else { return Err("its root is not a directory".into()) };
        for top in ["0", "1"] {
            let content = Content::Dir(BTreeMap::new());
            let top = tops
                .entry(top.into())
                .or_insert_with(|| Arc::new(Stored { created: 0, modified: 0, expires: 0, content }));
            if !top.is_dir() {
                return Err("one of its tops is not a directory".into());
            }
        }
        let QueueJson { events: ring, size, front } = store.watcher_hub.event_history.queue;
        let places = ring.len();
        let mut ring: Vec<Option<EventJson>> = ring;
        let mut events: VecDeque<Arc<Event>> = VecDeque::new();
        for n in 0..size.min(places).min(HISTORY) {
            let Some(event) = ring[(front % places + n) % places].take() else { continue };
            let action = Action::named(&event.action).ok_or_else(|| format!("unknown action {:?}", event.action))?;
            let prev = event.prev_node.map(shown).transpose()?;
            let event = Event::new(action, shown(event.node)?, prev, event.refresh);
            if events.back().is_some_and(|last| last.index() >= event.index()) {
                return Err(format!("event {} is out of order", event.index()));
            }
            events.push_back(Arc::new(event));
        }
        let counters = Counters::from_json(&store.stats);
        let index = store.current_index;
        Ok(Self::of(Tree::of(Arc::new(root), index), Hub::new(events, index), counters))
    }

    /// A tree that says what the tables say of the membership, each fact written by one request: members first, then
    /// those removed, then the version.
    pub(crate) fn of_cluster(cluster: &Cluster) -> Self {
        let (this, mut touched) = (Self::default(), Touched::default());
        for member in cluster.members.values() {
            this.add_member(member, &mut touched);
            if !member.client_urls.is_empty() {
                let attributes = Attributes { name: member.name.clone(), client_urls: member.client_urls.clone() };
                this.set_attributes(member.id, &attributes, &mut touched);
            }
        }
        for id in &cluster.removed {
            this.add_removed(*id, &mut touched);
        }
        if let Some(version) = &cluster.version {
            this.set_version(version, &mut touched);
        }
        this
    }
}
