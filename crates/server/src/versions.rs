//! What version the members run, and with it what the cluster may use.
//!
//! Every member asks every other for its version; the leader decides on the oldest. In a cluster with members before 3.6
//! the facts that travel through the log (names and URLs, the version) take the form of v2 requests, which
//! is the only one those members understand; a 3.7 member in turn does not take that one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::Member as _;
use prost::Message as _;
use proto::etcdserverpb as pb;
use proto::{membershippb, v2pb};

use crate::consensus::Event;
use crate::downgrade::one_below;
use crate::member::Node;

/// Members are asked this often, as in etcd.
const ASK_EVERY: Duration = Duration::from_secs(4);
/// And while the cluster has no version yet.
const ASK_AT_FIRST: Duration = Duration::from_millis(100);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(1);
/// After this long without the version of some member, the cluster begins with the oldest version of all, as in etcd.
const FOUND_AFTER_MS: u64 = 2_000;
/// A proposal that has not been applied for this long is taken for lost.
pub(crate) const PROPOSE_AGAIN_MS: u64 = 1_000;
/// The version that every etcd 3 speaks.
const OLDEST: &str = "3.0.0";

/// Versions by member.
#[derive(Debug, Default)]
pub(crate) struct Versions {
    known: BTreeMap<u64, String>,
    /// Since when this member leads without knowing all of them.
    undecided_since_ms: Option<u64>,
    /// The version that was proposed last, and until when it may still be on its way.
    proposed: Option<(String, u64)>,
}

/// Major and minor version.
pub(crate) fn parse(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// Whether a member of this version defines the hash of all keys as this one does.
pub(crate) fn hashes_alike(version: &str) -> bool {
    parse(version) == parse(crate::ETCD_VERSION)
}

/// Asks until the task is dropped.
pub(crate) async fn watch(node: Arc<Node>) {
    let Some(peers) = node.peers.get() else { return };
    loop {
        let own = node.identity.member_id;
        let others: Vec<_> = node.state().members().into_iter().filter(|m| m.id != own).collect();
        for member in others {
            for url in &member.peer_urls {
                match peers.version(url.clone(), ANSWER).await {
                    Ok(version) => {
                        node.versions.lock().known.insert(member.id, version.server);
                        break;
                    }
                    Err(error) => tracing::debug!(
                        "remote-member-id" = %format!("{:x}", member.id),
                        %error,
                        "failed to get version"
                    ),
                }
            }
        }
        if node.is_leader() {
            node.decide_version();
        }
        let decided = node.state().cluster_version().is_some();
        node.host.sleep(if decided { ASK_EVERY } else { ASK_AT_FIRST }).await;
    }
}

impl Node {
    /// The oldest version that a member runs; `None` while some have not told.
    fn oldest_version(&self) -> Option<(u64, u64)> {
        let own = self.identity.member_id;
        let versions = self.versions.lock();
        let of = |id: u64| match id == own {
            true => parse(crate::ETCD_VERSION),
            false => versions.known.get(&id).and_then(|version| parse(version)),
        };
        self.state().members().iter().map(|member| of(member.id)).min().flatten()
    }

    /// See [`hashes_alike`]; `false` while the member has not told its version.
    pub(crate) fn hashes_alike(&self, id: u64) -> bool {
        self.versions.lock().known.get(&id).is_some_and(|version| hashes_alike(version))
    }

    /// Whether all members run this minor version.
    pub(crate) fn all_run(&self, version: &str) -> bool {
        let own = self.identity.member_id;
        let versions = self.versions.lock();
        let runs = |id: u64| match id == own {
            true => parse(crate::ETCD_VERSION),
            false => versions.known.get(&id).and_then(|version| parse(version)),
        };
        let wanted = parse(version);
        wanted.is_some() && self.state().members().iter().all(|member| runs(member.id) == wanted)
    }

    /// Whether this cluster version was proposed a moment ago; otherwise it is about to be. Each proposal is a write of
    /// the v2 tree and moves its index, so none is made twice without need.
    fn is_on_its_way(&self, wanted: &str) -> bool {
        let now_ms = self.now_ms();
        let proposed = &mut self.versions.lock().proposed;
        if proposed.as_ref().is_some_and(|(version, until)| version == wanted && now_ms < *until) {
            return true;
        }
        *proposed = Some((wanted.to_owned(), now_ms + PROPOSE_AGAIN_MS));
        false
    }

    /// As the leader: proposes the cluster version if it is not what the members' versions allow, or a downgrade
    /// demands.
    pub(crate) fn decide_version(&self) {
        let decided = self.state().cluster_version();
        let downgrade = self.state().downgrade();
        let is_downgrade = downgrade.enabled && decided.is_some();
        let wanted = match (self.oldest_version(), &decided) {
            (Some(oldest), Some(version)) if is_downgrade => {
                let target = parse(&downgrade.target_version);
                if parse(version) == target {
                    return;
                }
                if parse(version).and_then(one_below) != target || one_below(oldest) != target {
                    tracing::error!(
                        "downgrade-target" = downgrade.target_version.as_str(),
                        "cluster-version" = version.as_str(),
                        "Cannot downgrade from cluster-version to downgrade-target"
                    );
                    return;
                }
                downgrade.target_version
            }
            (Some((major, minor)), _) => format!("{major}.{minor}.0"),
            (None, Some(_)) => return,
            (None, None) => {
                let now_ms = self.now_ms();
                let since = *self.versions.lock().undecided_since_ms.get_or_insert(now_ms);
                if now_ms - since < FOUND_AFTER_MS {
                    return;
                }
                OLDEST.to_owned()
            }
        };
        // It never goes down by itself: members may already use what the higher version offers.
        if decided.as_ref().is_some_and(|version| !is_downgrade && parse(version) >= parse(&wanted)) {
            return;
        }
        if self.is_on_its_way(&wanted) {
            return;
        }
        match &decided {
            Some(version) => tracing::info!(from = version.as_str(), to = wanted.as_str(), "updating cluster version"),
            None => tracing::info!("cluster-version" = wanted.as_str(), "setting up initial cluster version"),
        }
        if self.speaks_v2_only() {
            self.propose_v2("/0/version", &wanted);
        } else {
            let cluster_version_set = Some(membershippb::ClusterVersionSetRequest { ver: wanted });
            let request = pb::InternalRaftRequest { cluster_version_set, ..Default::default() };
            self.propose_as_leader(self.term(), request);
        }
    }

    /// Whether this member can tell in which form the cluster understands its facts: by the cluster's version, or by the
    /// versions of all members. A member that is not there yet is not waited for for long.
    pub(crate) fn knows_what_all_understand(&self) -> bool {
        let is_known = self.state().cluster_version().is_some() || self.oldest_version().is_some();
        is_known || self.now_ms() >= FOUND_AFTER_MS
    }

    /// Tells the cluster this member's name and client URLs.
    pub(crate) fn publish_attributes(&self) {
        let (own, attributes) = (self.identity.member_id, &self.settings.attributes);
        if self.speaks_v2_only() {
            let value = state::members::Attributes {
                name: attributes.name.clone(),
                client_urls: attributes.client_urls.clone(),
            };
            self.propose_v2(&format!("/0/members/{own:x}/attributes"), &value.to_json());
        } else {
            self.propose_internal(pb::InternalRaftRequest {
                cluster_member_attr_set: Some(membershippb::ClusterMemberAttrSetRequest {
                    member_id: own,
                    member_attributes: Some(attributes.clone()),
                }),
                ..Default::default()
            });
        }
    }

    /// Whether there is a member that knows only the older form.
    fn speaks_v2_only(&self) -> bool {
        let is_old = |version: &str| parse(version).is_some_and(|version| version < (3, 6));
        let versions = self.versions.lock();
        let members = self.state().members();
        let known_old = members.iter().filter_map(|m| versions.known.get(&m.id)).any(|version| is_old(version));
        // Version 3.0.0 only says that it is not known better.
        let decided_old = self.state().cluster_version().is_some_and(|v| v != OLDEST && is_old(&v));
        known_old || decided_old
    }

    fn propose_v2(&self, path: &str, value: &str) {
        let request =
            v2pb::Request { id: Some(self.next_id()), ..state::v2::request("PUT", path.to_owned(), value.to_owned()) };
        self.tell(Event::Propose(request.encode_to_vec().into()));
    }
}
