//! Who belongs to the cluster after each entry of the agreed log, by etcd's rules in the simplest words.

use std::collections::{BTreeMap, BTreeSet};

use proto::etcdserverpb::InternalRaftRequest;
use proto::raftpb::{ConfChange, ConfChangeType};
use serde::Deserialize;
use serde_json::json;
use state::Member;

use crate::ledger::{Violation, violation};

/// How many changes of the membership are remembered.
const REMEMBERED: usize = 500;

/// What a change of the configuration says beside whom it is about.
#[derive(Default, Deserialize)]
struct Context {
    #[serde(default, rename = "peerURLs")]
    peer_urls: Option<Vec<String>>,
    /// Founders have one from the start.
    #[serde(default)]
    name: String,
    #[serde(default, rename = "isPromote")]
    is_promote: bool,
}

/// What a change came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// A member was added; what the v2 tree says of it.
    Added(u64, String),
    /// A member may vote now, or listens elsewhere; what the v2 tree says of it.
    Updated(u64, String),
    /// A member has said who it is; what the v2 tree says of it.
    Named(u64, String),
    /// A member is gone.
    Removed(u64),
    /// The cluster has a version.
    Version(String),
}

/// What the v2 tree says of a member.
fn facts(member: &Member) -> String {
    let learns = if member.is_learner { r#","isLearner":true"# } else { "" };
    format!(r#"{{"peerURLs":{}{learns}}}"#, json!(member.peer_urls))
}

/// The members after a log, and after each of its entries that changed them.
#[derive(Debug, Default)]
pub struct Membership {
    members: BTreeMap<u64, Member>,
    removed: BTreeSet<u64>,
    /// The members since an index.
    since: BTreeMap<u64, Vec<Member>>,
}

impl Membership {
    /// The newest members, by ID.
    pub fn members(&self) -> &BTreeMap<u64, Member> {
        &self.members
    }

    /// Whether a member was removed.
    pub fn is_removed(&self, id: u64) -> bool {
        self.removed.contains(&id)
    }

    /// The ID of the member that listens at a URL.
    pub fn at_url(&self, url: &str) -> Option<u64> {
        self.members.values().find(|member| member.peer_urls.iter().any(|known| known == url)).map(|member| member.id)
    }

    /// How many vote.
    pub fn voters(&self) -> usize {
        self.members.values().filter(|member| !member.is_learner).count()
    }

    /// Since which index the members have been what they were at `index`. `None`: nobody knows any more.
    pub fn epoch(&self, index: u64) -> Option<u64> {
        self.since.range(..=index).next_back().map(|(since, _)| *since)
    }

    /// A member of the cluster says who its members are, at an epoch.
    pub fn seen(&self, who: usize, epoch: u64, members: &[Member], voters: Option<usize>) -> Result<(), Violation> {
        let Some(expected) = self.since.get(&epoch) else { return Ok(()) };
        if members != expected {
            return violation!("m{who} has the members {members:?} since entry {epoch}, expected {expected:?}");
        }
        let expected = expected.iter().filter(|member| !member.is_learner).count();
        match voters {
            Some(voters) if voters != expected => {
                violation!("m{who} counts {voters} votes since entry {epoch}, expected {expected}")
            }
            _ => Ok(()),
        }
    }

    /// Somebody was told that these are the members.
    pub fn told(&self, members: &[Member]) -> Result<(), Violation> {
        match self.since.values().any(|known| known == members) || self.since.len() >= REMEMBERED {
            true => Ok(()),
            false => violation!("a change was answered with {members:?}, which never were the members"),
        }
    }

    /// Carries out a change of the configuration.
    pub fn change(&mut self, index: u64, change: &ConfChange) -> Effect {
        let id = change.node_id.unwrap_or(0);
        let context: Context =
            serde_json::from_slice(change.context.as_deref().unwrap_or_default()).unwrap_or_default();
        let peer_urls = context.peer_urls.unwrap_or_default();
        let is_taken =
            self.members.values().any(|m| m.id != id && m.peer_urls.iter().any(|url| peer_urls.contains(url)));
        let learners = self.members.values().filter(|member| member.is_learner).count();
        let kind = change.r#type();
        let effect = match (kind, self.members.get_mut(&id)) {
            (ConfChangeType::ConfChangeRemoveNode, Some(_)) => {
                self.members.remove(&id);
                self.removed.insert(id);
                Effect::Removed(id)
            }
            (ConfChangeType::ConfChangeUpdateNode, Some(member)) if !is_taken => {
                member.peer_urls = peer_urls;
                Effect::Updated(id, facts(member))
            }
            (ConfChangeType::ConfChangeAddNode, Some(member)) if context.is_promote && member.is_learner => {
                member.is_learner = false;
                Effect::Updated(id, facts(member))
            }
            (ConfChangeType::ConfChangeAddLearnerNode, None) if learners > 0 => Effect::None,
            (ConfChangeType::ConfChangeAddNode | ConfChangeType::ConfChangeAddLearnerNode, None)
                if !context.is_promote && !is_taken && !self.removed.contains(&id) =>
            {
                let is_learner = kind == ConfChangeType::ConfChangeAddLearnerNode;
                let member = Member { id, peer_urls, is_learner, name: context.name, client_urls: Vec::new() };
                let effect = Effect::Added(id, facts(&member));
                self.members.insert(id, member);
                effect
            }
            _ => Effect::None,
        };
        self.note(index);
        effect
    }

    /// Carries out a request that may name a member, or the version of all.
    pub fn apply(&mut self, index: u64, request: &InternalRaftRequest) -> Effect {
        if let Some(set) = &request.cluster_version_set {
            return Effect::Version(set.ver.clone());
        }
        let Some(set) = &request.cluster_member_attr_set else { return Effect::None };
        let Some(member) = self.members.get_mut(&set.member_id) else { return Effect::None };
        let attributes = set.member_attributes.clone().unwrap_or_default();
        (member.name, member.client_urls) = (attributes.name, attributes.client_urls);
        let facts = format!(r#"{{"name":{},"clientURLs":{}}}"#, json!(member.name), json!(member.client_urls));
        self.note(index);
        Effect::Named(set.member_id, facts)
    }

    fn note(&mut self, index: u64) {
        self.since.insert(index, self.members.values().cloned().collect());
        if self.since.len() > REMEMBERED {
            self.since.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(id: u64, url: &str) -> ConfChange {
        let context = format!(r#"{{"peerURLs":["{url}"]}}"#);
        ConfChange { node_id: Some(id), context: Some(context.into_bytes().into()), ..Default::default() }
    }

    #[test]
    fn members_must_be_those_of_the_log() {
        let mut membership = Membership::default();
        assert_eq!(
            membership.change(1, &add(7, "http://a:2380")),
            Effect::Added(7, r#"{"peerURLs":["http://a:2380"]}"#.into())
        );
        membership.change(5, &add(8, "http://b:2380"));
        let [seven, eight] = [7, 8].map(|id| membership.members()[&id].clone());
        assert_eq!((membership.epoch(4), membership.epoch(6)), (Some(1), Some(5)));
        membership.seen(0, 1, std::slice::from_ref(&seven), Some(1)).unwrap();
        membership.seen(0, 5, &[seven.clone(), eight.clone()], Some(2)).unwrap();
        assert!(membership.seen(0, 1, &[seven.clone(), eight.clone()], None).is_err(), "too early");
        assert!(membership.seen(0, 5, &[seven.clone(), eight.clone()], Some(1)).is_err(), "a vote that is not counted");
        membership.told(&[seven]).unwrap();
        assert!(membership.told(&[eight]).is_err(), "they never were the members");
    }

    #[test]
    fn what_is_removed_or_taken_does_not_come_back() {
        let mut membership = Membership::default();
        membership.change(1, &add(7, "http://a:2380"));
        assert_eq!(membership.change(2, &add(8, "http://a:2380")), Effect::None);
        let remove = ConfChange {
            r#type: Some(ConfChangeType::ConfChangeRemoveNode as i32),
            node_id: Some(7),
            ..Default::default()
        };
        assert_eq!(membership.change(3, &remove), Effect::Removed(7));
        assert_eq!(membership.change(4, &add(7, "http://a:2380")), Effect::None);
        assert!(membership.is_removed(7) && membership.members().is_empty());
    }
}
