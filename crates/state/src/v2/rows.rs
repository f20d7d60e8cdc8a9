//! The tree in the store: a row per node, a row per event of the history, and one for the rest. They are written with the
//! mark of the log entry that changed them, so that after a power cut the tree is where the store is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use prost::{Message, encoding};

use super::event::{Action, Content, Event, Node, Stored};
use super::hub::Hub;
use super::stats::Counters;
use super::tree::{Tree, graft};
use super::{HISTORY, Touched, V2};

/// A row of the table and its new content; none = it goes.
pub(crate) type Row = (Vec<u8>, Option<Vec<u8>>);

/// What is wrong with a row.
#[derive(Debug)]
pub(crate) struct RowError {
    pub(crate) key: Bytes,
    pub(crate) what: String,
}

/// First bytes of the keys: nodes (their path follows), events (their place in the ring, two bytes), the rest.
const NODE: u8 = b'n';
const EVENT: u8 = b'e';
const REST: &[u8] = b"m";

#[derive(Clone, PartialEq, Message)]
struct NodeRow {
    #[prost(uint64, tag = "1")]
    created: u64,
    #[prost(uint64, tag = "2")]
    modified: u64,
    #[prost(int64, tag = "3")]
    expires: i64,
    /// None = a directory.
    #[prost(bytes = "bytes", optional, tag = "4")]
    value: Option<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
struct EventRow {
    #[prost(uint32, tag = "1")]
    action: u32,
    #[prost(message, optional, tag = "2")]
    node: Option<Node>,
    #[prost(message, optional, tag = "3")]
    prev: Option<Node>,
    #[prost(bool, tag = "4")]
    refresh: bool,
}

#[derive(Clone, PartialEq, Message)]
struct RestRow {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(int64, tag = "2")]
    clock: i64,
    #[prost(uint64, repeated, tag = "3")]
    counts: Vec<u64>,
}

fn node_row(path: &str, node: Option<&Stored>) -> Row {
    let mut key = Vec::with_capacity(1 + path.len());
    key.push(NODE);
    key.extend_from_slice(path.as_bytes());
    let value = node.map(|node| {
        let value = if node.is_dir() { None } else { Some(node.value()) };
        NodeRow { created: node.created, modified: node.modified, expires: node.expires, value }.encode_to_vec()
    });
    (key, value)
}

fn event_row(event: &Event) -> Row {
    let place = u16::try_from(event.index() % HISTORY as u64).unwrap_or(0);
    let mut key = vec![EVENT];
    key.extend_from_slice(&place.to_be_bytes());
    // As an `EventRow`, which would have to own its nodes.
    let mut row = Vec::with_capacity(32 + event.node.encoded_len() + event.prev.as_ref().map_or(0, Node::encoded_len));
    encoding::uint32::encode(1, &(event.action as u32), &mut row);
    encoding::message::encode(2, &event.node, &mut row);
    if let Some(prev) = &event.prev {
        encoding::message::encode(3, prev, &mut row);
    }
    encoding::bool::encode(4, &event.refresh, &mut row);
    (key, Some(row))
}

impl V2 {
    fn rest_row(&self) -> Row {
        let counts = self.stats.read().counts.to_vec();
        let row = RestRow { index: self.index(), clock: self.clock.load(Ordering::Relaxed), counts };
        (REST.to_vec(), Some(row.encode_to_vec()))
    }

    /// What is to be stored after a request.
    pub(crate) fn rows(&self, touched: &Touched) -> Vec<Row> {
        let mut rows = Vec::with_capacity(touched.nodes.len() + touched.events.len() + 1);
        rows.extend(touched.nodes.iter().map(|(path, node)| node_row(path, node.as_deref())));
        let old = touched.events.len().saturating_sub(HISTORY);
        rows.extend(touched.events[old..].iter().map(|event| event_row(event)));
        rows.push(self.rest_row());
        rows
    }

    /// All rows.
    pub(crate) fn all_rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        collect(&self.tree.read().root(), &mut String::new(), &mut rows);
        rows.extend(self.hub.lock().history().iter().map(|event| event_row(event)));
        rows.push(self.rest_row());
        rows
    }

    /// Reads all rows, in the order of their keys; none if there are none.
    pub(crate) fn restore(rows: &[(Bytes, Bytes)]) -> Result<Option<Self>, RowError> {
        let mut root = Tree::default().root();
        let mut events = Vec::new();
        let mut rest = None;
        for (key, value) in rows {
            let bad = |what: String| RowError { key: key.clone(), what };
            let unreadable = |error: prost::DecodeError| bad(error.to_string());
            match key.split_first() {
                Some((&NODE, path)) => {
                    let path = std::str::from_utf8(path).map_err(|error| bad(error.to_string()))?;
                    let row = NodeRow::decode(value.clone()).map_err(unreadable)?;
                    let content = row.value.map_or_else(|| Content::Dir(Default::default()), Content::File);
                    let NodeRow { created, modified, expires, .. } = row;
                    if !graft(&mut root, path, Stored { created, modified, expires, content }) {
                        return Err(bad("there is no directory for it".into()));
                    }
                }
                Some((&EVENT, _)) => {
                    let row = EventRow::decode(value.clone()).map_err(unreadable)?;
                    let action = Action::numbered(row.action).ok_or_else(|| bad("an unknown action".into()))?;
                    let node = row.node.unwrap_or_default();
                    events.push(Arc::new(Event::new(action, node, row.prev, row.refresh)));
                }
                _ if key == REST => rest = Some(RestRow::decode(value.clone()).map_err(unreadable)?),
                _ => {}
            }
        }
        let Some(rest) = rest else { return Ok(None) };
        events.sort_by_key(|event| event.index());
        let mut counters = Counters::default();
        for (count, stored) in counters.counts.iter_mut().zip(rest.counts) {
            *count = stored;
        }
        let this = Self::of(Tree::of(root, rest.index), Hub::new(VecDeque::from(events), rest.index), counters);
        this.clock.store(rest.clock, Ordering::Relaxed);
        Ok(Some(this))
    }
}

fn collect(node: &Stored, path: &mut String, rows: &mut Vec<Row>) {
    if !path.is_empty() {
        rows.push(node_row(path, Some(node)));
    }
    for (name, child) in node.children().into_iter().flatten() {
        let length = path.len();
        path.push('/');
        path.push_str(name);
        collect(child, path, rows);
        path.truncate(length);
    }
}
