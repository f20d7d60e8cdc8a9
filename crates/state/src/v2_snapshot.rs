//! The membership in a v2 store: up to 3.5, etcd counts on what is written there.
//!
//! What is read may come from any etcd; only the nodes that tell of members are looked at.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::members::{Attributes, Cluster, Member, RaftAttributes};

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
    use crate::v2::V2;
    use serde_json::Value;

    #[test]
    fn learners_and_removed_members_are_in_it() {
        let mut cluster = Cluster::default();
        let peer_urls = vec!["http://a".to_owned()];
        cluster.members.insert(255, Member { id: 255, peer_urls, is_learner: true, ..Default::default() });
        cluster.removed.insert(16);
        let written = V2::of_cluster(&cluster).image().to_json();
        let json: Value = serde_json::from_slice(&written).unwrap();
        let zero = &json["Root"]["Children"]["0"]["Children"];
        let raft = &zero["members"]["Children"]["ff"]["Children"]["raftAttributes"];
        assert_eq!(raft["Value"], r#"{"peerURLs":["http://a"],"isLearner":true}"#);
        assert_eq!(raft["Children"], Value::Null);
        assert_eq!(zero["removed_members"]["Children"]["10"]["Path"], "/0/removed_members/10");
        assert_eq!(json["CurrentIndex"], 2);
        let read = read(&written).unwrap();
        assert_eq!((read.cluster.members, read.cluster.removed), (cluster.members, cluster.removed));
    }

    #[test]
    fn the_history_is_a_ring() {
        let mut cluster = Cluster::default();
        cluster.removed.extend(1..=1_001);
        let json: Value = serde_json::from_slice(&V2::of_cluster(&cluster).image().to_json()).unwrap();
        let history = &json["WatcherHub"]["EventHistory"];
        assert_eq!((&history["StartIndex"], &history["LastIndex"]), (&2.into(), &1_001.into()));
        assert_eq!((&history["Queue"]["Front"], &history["Queue"]["Back"]), (&1.into(), &1.into()));
        assert_eq!(history["Queue"]["Events"][1]["node"]["modifiedIndex"], 2);
    }
}
