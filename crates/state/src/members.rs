//! Who belongs to the cluster, and the facts all members share about it.
//!
//! Members are rows of JSON in etcd's own shape, so that a data dir can move between the two. An ID that was removed is
//! remembered for ever: a member that comes back from an old data dir must not be taken for a new one.

use std::collections::{BTreeMap, BTreeSet};

use proto::etcdserverpb as pb;
use proto::raftpb::{self, ConfChangeType};
use serde::{Deserialize, Deserializer, Serialize};
use sha1::{Digest, Sha1};
use store::Table;

use crate::Error;

/// How many learners a cluster may have.
const MAX_LEARNERS: usize = 1;
/// The row of [`Table::Cluster`] that holds the cluster version.
pub(crate) const VERSION_ROW: &[u8] = b"clusterVersion";
/// The row of [`Table::Cluster`] that holds a downgrade under way.
pub(crate) const DOWNGRADE_ROW: &[u8] = b"downgrade";

/// A member as the cluster knows it. As JSON it has etcd's shape.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its ID, never 0 and never used again after its removal.
    pub id: u64,
    /// Where its peers reach it.
    #[serde(default, rename = "peerURLs", deserialize_with = "null_is_empty")]
    pub peer_urls: Vec<String>,
    /// Whether it only learns and does not vote.
    #[serde(default, rename = "isLearner", skip_serializing_if = "is_false")]
    pub is_learner: bool,
    /// Its name; empty until it has published its attributes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where clients reach it; empty until it has published its attributes.
    #[serde(default, rename = "clientURLs", deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub client_urls: Vec<String>,
}

impl From<Member> for pb::Member {
    fn from(member: Member) -> Self {
        Self {
            id: member.id,
            name: member.name,
            peer_ur_ls: member.peer_urls,
            client_ur_ls: member.client_urls,
            is_learner: member.is_learner,
        }
    }
}

/// What a member tells about itself once it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Its name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where clients reach it.
    #[serde(default, rename = "clientURLs", deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub client_urls: Vec<String>,
}

impl Attributes {
    /// As they are stored, and travel through the log before etcd 3.6.
    pub fn to_json(&self) -> String {
        go_json(self)
    }
}

/// What a node of the v2 tree says of a member before it runs.
#[derive(Serialize, Deserialize)]
pub(crate) struct RaftAttributes {
    #[serde(default, rename = "peerURLs", deserialize_with = "null_is_empty")]
    pub(crate) peer_urls: Vec<String>,
    #[serde(default, rename = "isLearner", skip_serializing_if = "is_false")]
    pub(crate) is_learner: bool,
}

/// The context of a configuration change.
#[derive(Debug, Deserialize)]
struct Context {
    #[serde(flatten)]
    member: Member,
    #[serde(default, rename = "isPromote")]
    is_promote: bool,
}

/// The stored form of a downgrade.
#[derive(Serialize, Deserialize)]
struct DowngradeRow {
    #[serde(default, rename = "target-version")]
    target_version: String,
    #[serde(default)]
    enabled: bool,
}

pub(crate) fn is_false(value: &bool) -> bool {
    !value
}

/// Go writes a list that was never filled as `null`.
pub(crate) fn null_is_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// JSON as Go's encoder writes it: it escapes what could be mistaken for HTML.
pub(crate) fn go_json(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).expect("strings, numbers and lists always have a JSON form");
    json.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e")
}

fn first_eight(digest: impl AsRef<[u8]>) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest.as_ref()[..8]);
    u64::from_be_bytes(bytes)
}

fn hash_member(peer_urls: &[String], token: &str, unix_seconds: Option<i64>) -> u64 {
    let mut sorted: Vec<_> = peer_urls.iter().collect();
    sorted.sort_unstable();
    let mut sha = Sha1::new();
    for url in sorted {
        sha.update(url);
    }
    sha.update(token);
    if let Some(seconds) = unix_seconds {
        sha.update(seconds.to_string());
    }
    first_eight(sha.finalize())
}

/// The ID of a member of the initial cluster: its peer URLs and the cluster token decide it, so that all members
/// compute the same without asking each other.
pub fn member_id(peer_urls: &[String], token: &str) -> u64 {
    hash_member(peer_urls, token, None)
}

/// The ID of a member that is added at run time, at `unix_seconds`.
pub fn added_member_id(peer_urls: &[String], unix_seconds: i64) -> u64 {
    hash_member(peer_urls, "", Some(unix_seconds))
}

/// The ID of a cluster with these initial members.
pub fn cluster_id(member_ids: &[u64]) -> u64 {
    let mut sorted = member_ids.to_vec();
    sorted.sort_unstable();
    let mut sha = Sha1::new();
    for id in sorted {
        sha.update(id.to_be_bytes());
    }
    first_eight(sha.finalize())
}

/// The context of the configuration change that adds or updates a member (in a new cluster, or at run time).
pub fn add_context(member: &Member) -> Vec<u8> {
    go_json(member).into_bytes()
}

/// The context of the configuration change that makes a voter of a learner.
pub fn promote_context(id: u64) -> Vec<u8> {
    format!(r#"{{"id":{id},"peerURLs":null,"isPromote":true}}"#).into_bytes()
}

/// A change of a table that must be stored.
pub(crate) type Row = (Table, Vec<u8>, Option<Vec<u8>>);

/// A configuration change, understood.
#[derive(Debug)]
pub(crate) enum Planned {
    Add(Member),
    Promote(u64),
    Remove(u64),
    Update(Member),
}

/// The member table and its neighbours, held in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) members: BTreeMap<u64, Member>,
    pub(crate) removed: BTreeSet<u64>,
    pub(crate) version: Option<String>,
    pub(crate) downgrade: pb::DowngradeInfo,
}

impl Cluster {
    /// Reads one stored row.
    pub(crate) fn restore(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), String> {
        let id = || {
            let text = std::str::from_utf8(key).map_err(|e| e.to_string())?;
            u64::from_str_radix(text, 16).map_err(|e| e.to_string())
        };
        match table {
            Table::Members => {
                let member: Member = serde_json::from_slice(value).map_err(|e| e.to_string())?;
                let id = id()?;
                self.members.insert(id, Member { id, ..member });
            }
            Table::MembersRemoved => {
                self.removed.insert(id()?);
            }
            Table::Cluster if key == VERSION_ROW => {
                self.version = Some(String::from_utf8(value.to_vec()).map_err(|e| e.to_string())?);
            }
            Table::Cluster if key == DOWNGRADE_ROW => {
                let row: DowngradeRow = serde_json::from_slice(value).map_err(|e| e.to_string())?;
                self.downgrade = pb::DowngradeInfo { enabled: row.enabled, target_version: row.target_version };
            }
            _ => {}
        }
        Ok(())
    }

    /// All members, sorted by ID.
    pub(crate) fn list(&self) -> Vec<Member> {
        self.members.values().cloned().collect()
    }

    /// Understands a configuration change and says whether it may be carried out. The outer error is an entry that
    /// cannot be read, the inner one a change that is refused.
    pub(crate) fn plan(&self, change: &raftpb::ConfChange) -> Result<Result<Planned, Error>, String> {
        let kind = ConfChangeType::try_from(change.r#type.unwrap_or(0)).map_err(|e| e.to_string())?;
        let id = change.node_id.unwrap_or(0);
        let context = change.context.as_deref().unwrap_or_default();
        let planned = if kind == ConfChangeType::ConfChangeRemoveNode {
            Planned::Remove(id)
        } else {
            let context: Context = serde_json::from_slice(context).map_err(|e| format!("context: {e}"))?;
            let member = Member { id, ..context.member };
            match kind {
                ConfChangeType::ConfChangeUpdateNode => Planned::Update(member),
                ConfChangeType::ConfChangeAddNode if context.is_promote => Planned::Promote(id),
                ConfChangeType::ConfChangeAddNode => Planned::Add(Member { is_learner: false, ..member }),
                _ => Planned::Add(Member { is_learner: true, ..member }),
            }
        };
        Ok(self.may(&planned).map(|()| planned))
    }

    /// Whether a change may be carried out.
    pub(crate) fn may(&self, planned: &Planned) -> Result<(), Error> {
        let known = |id: &u64| {
            let found = if self.removed.contains(id) { None } else { self.members.get(id) };
            found.ok_or(Error::MemberNotFound)
        };
        let url_taken = |member: &Member| {
            let others = self.members.values().filter(|other| other.id != member.id);
            others.flat_map(|other| &other.peer_urls).any(|url| member.peer_urls.contains(url))
        };
        match planned {
            Planned::Add(member) if self.removed.contains(&member.id) => Err(Error::MemberNotFound),
            Planned::Add(member) if self.members.contains_key(&member.id) => Err(Error::MemberExist),
            Planned::Add(member) if url_taken(member) => Err(Error::PeerURLExist),
            Planned::Add(member) if member.is_learner => {
                let learners = self.members.values().filter(|member| member.is_learner).count();
                if learners >= MAX_LEARNERS { Err(Error::TooManyLearners) } else { Ok(()) }
            }
            Planned::Add(_) => Ok(()),
            Planned::Promote(id) if !known(id)?.is_learner => Err(Error::MemberNotLearner),
            Planned::Promote(_) => Ok(()),
            Planned::Remove(id) => known(id).map(|_| ()),
            Planned::Update(member) => {
                known(&member.id)?;
                if url_taken(member) { Err(Error::PeerURLExist) } else { Ok(()) }
            }
        }
    }

    /// Carries out a change that [`Cluster::may`] be. Returns the rows to store.
    pub(crate) fn carry_out(&mut self, planned: &Planned) -> Vec<Row> {
        let id = match planned {
            Planned::Add(member) => {
                self.members.insert(member.id, member.clone());
                member.id
            }
            Planned::Promote(id) => {
                if let Some(member) = self.members.get_mut(id) {
                    member.is_learner = false;
                }
                *id
            }
            Planned::Update(new) => {
                if let Some(member) = self.members.get_mut(&new.id) {
                    member.peer_urls.clone_from(&new.peer_urls);
                }
                new.id
            }
            Planned::Remove(id) => {
                self.members.remove(id);
                self.removed.insert(*id);
                return vec![
                    (Table::Members, row_key(*id), None),
                    (Table::MembersRemoved, row_key(*id), Some(b"removed".to_vec())),
                ];
            }
        };
        vec![self.row(id)]
    }

    /// Takes a member's attributes. An unknown member (one removed meanwhile) is left alone.
    pub(crate) fn set_attributes(&mut self, id: u64, attributes: Attributes) -> Option<Row> {
        let member = self.members.get_mut(&id)?;
        member.name = attributes.name;
        member.client_urls = attributes.client_urls;
        Some(self.row(id))
    }

    /// Takes the version that all members can speak.
    pub(crate) fn set_version(&mut self, version: &str) -> Row {
        self.version = Some(version.to_owned());
        (Table::Cluster, VERSION_ROW.to_vec(), Some(version.as_bytes().to_vec()))
    }

    /// Takes a downgrade, or its end.
    pub(crate) fn set_downgrade(&mut self, enabled: bool, target_version: &str) -> Row {
        let target_version = if enabled { target_version.to_owned() } else { String::new() };
        let row = go_json(&DowngradeRow { target_version: target_version.clone(), enabled });
        self.downgrade = pb::DowngradeInfo { enabled, target_version };
        (Table::Cluster, DOWNGRADE_ROW.to_vec(), Some(row.into_bytes()))
    }

    /// Whether the cluster speaks at least this version.
    pub(crate) fn is_at_least(&self, major: u64, minor: u64) -> bool {
        let mut parts = self.version.as_deref().unwrap_or_default().split('.').map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (major, minor)
    }

    /// All rows.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let removed = |id: &u64| (Table::MembersRemoved, row_key(*id), Some(b"removed".to_vec()));
        let mut rows: Vec<Row> = self.members.keys().map(|id| self.row(*id)).collect();
        rows.extend(self.removed.iter().map(removed));
        if let Some(version) = &self.version {
            rows.push((Table::Cluster, VERSION_ROW.to_vec(), Some(version.as_bytes().to_vec())));
        }
        if self.downgrade != pb::DowngradeInfo::default() {
            let (enabled, target_version) = (self.downgrade.enabled, self.downgrade.target_version.clone());
            let row = go_json(&DowngradeRow { target_version, enabled }).into_bytes();
            rows.push((Table::Cluster, DOWNGRADE_ROW.to_vec(), Some(row)));
        }
        rows
    }

    /// Who votes and who learns. etcd changes its membership one by one, so there is never more to say.
    pub(crate) fn conf_state(&self) -> raftpb::ConfState {
        let ids = |learners: bool| {
            let members = self.members.values().filter(move |member| member.is_learner == learners);
            members.map(|member| member.id).collect()
        };
        raftpb::ConfState { voters: ids(false), learners: ids(true), auto_leave: Some(false), ..Default::default() }
    }

    fn row(&self, id: u64) -> Row {
        (Table::Members, row_key(id), self.members.get(&id).map(|member| go_json(member).into_bytes()))
    }
}

fn row_key(id: u64) -> Vec<u8> {
    format!("{id:x}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, url: &str) -> Member {
        Member { id, peer_urls: vec![url.to_owned()], ..Default::default() }
    }

    fn change(kind: ConfChangeType, id: u64, context: Vec<u8>) -> raftpb::ConfChange {
        raftpb::ConfChange { r#type: Some(kind as i32), node_id: Some(id), context: Some(context.into()), id: None }
    }

    fn apply(cluster: &mut Cluster, change: &raftpb::ConfChange) -> Result<(), Error> {
        let planned = cluster.plan(change).expect("a readable change")?;
        cluster.carry_out(&planned);
        Ok(())
    }

    #[test]
    fn ids_are_those_of_etcd() {
        let url = |n: u8| vec![format!("http://192.168.99.10{n}:2380")];
        let ids = [0, 1, 2].map(|n| member_id(&url(n), "docker-etcd"));
        assert_eq!(ids, [0xc88e2cccbb287a01, 0x773d30c9fc6640b4, 0xcbd7fa8d01297113]);
        assert_eq!(cluster_id(&ids), 0xf84185fa5f91bdf6);
    }

    #[test]
    fn a_member_is_stored_as_etcd_stores_it() {
        let mut full = member(7, "http://a:2380");
        assert_eq!(go_json(&full), r#"{"id":7,"peerURLs":["http://a:2380"]}"#);
        (full.name, full.client_urls, full.is_learner) = ("n<1>".into(), vec!["http://a:2379".into()], true);
        let json = r#"{"id":7,"peerURLs":["http://a:2380"],"isLearner":true,"name":"n\u003c1\u003e","clientURLs":["http://a:2379"]}"#;
        assert_eq!(go_json(&full), json);
        assert_eq!(serde_json::from_str::<Member>(json).unwrap(), full);
    }

    #[test]
    fn a_removed_member_never_comes_back() {
        let mut cluster = Cluster::default();
        let add = change(ConfChangeType::ConfChangeAddNode, 1, add_context(&member(1, "http://a")));
        assert_eq!(apply(&mut cluster, &add), Ok(()));
        assert_eq!(apply(&mut cluster, &add), Err(Error::MemberExist));
        let remove = change(ConfChangeType::ConfChangeRemoveNode, 1, vec![]);
        assert_eq!(apply(&mut cluster, &remove), Ok(()));
        assert_eq!(apply(&mut cluster, &remove), Err(Error::MemberNotFound));
        assert_eq!(apply(&mut cluster, &add), Err(Error::MemberNotFound));
    }

    #[test]
    fn a_learner_becomes_a_voter_once() {
        let mut cluster = Cluster::default();
        let learner = |id, url| {
            let context = add_context(&Member { is_learner: true, ..member(id, url) });
            change(ConfChangeType::ConfChangeAddLearnerNode, id, context)
        };
        assert_eq!(apply(&mut cluster, &learner(1, "http://a")), Ok(()));
        assert_eq!(apply(&mut cluster, &learner(2, "http://b")), Err(Error::TooManyLearners));
        let promote = change(ConfChangeType::ConfChangeAddNode, 1, promote_context(1));
        assert_eq!(apply(&mut cluster, &promote), Ok(()));
        assert_eq!(cluster.members[&1].peer_urls, ["http://a"]);
        assert_eq!(apply(&mut cluster, &promote), Err(Error::MemberNotLearner));
    }

    #[test]
    fn two_members_do_not_share_a_peer_url() {
        let mut cluster = Cluster::default();
        let add = |id, url| change(ConfChangeType::ConfChangeAddNode, id, add_context(&member(id, url)));
        assert_eq!(apply(&mut cluster, &add(1, "http://a")), Ok(()));
        assert_eq!(apply(&mut cluster, &add(2, "http://a")), Err(Error::PeerURLExist));
        assert_eq!(apply(&mut cluster, &add(2, "http://b")), Ok(()));
        let update = |url| change(ConfChangeType::ConfChangeUpdateNode, 2, add_context(&member(2, url)));
        assert_eq!(apply(&mut cluster, &update("http://a")), Err(Error::PeerURLExist));
        assert_eq!(apply(&mut cluster, &update("http://c")), Ok(()));
    }

    #[test]
    fn an_unreadable_context_is_an_error_not_a_panic() {
        let cluster = Cluster::default();
        assert!(cluster.plan(&change(ConfChangeType::ConfChangeAddNode, 1, b"{".to_vec())).is_err());
        let unknown = raftpb::ConfChange { r#type: Some(9), ..Default::default() };
        assert!(cluster.plan(&unknown).is_err());
    }

    #[test]
    fn versions_compare_by_number() {
        let mut cluster = Cluster::default();
        assert!(!cluster.is_at_least(3, 0));
        cluster.set_version("3.10.0");
        assert!(cluster.is_at_least(3, 6) && cluster.is_at_least(3, 10) && !cluster.is_at_least(3, 11));
    }
}
