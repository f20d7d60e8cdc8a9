//! Who belongs to the cluster: changes asked for by clients, and what follows from them when they are applied.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::{Answer, Member as _, MemberChange, Outcome, Reply};
use prost::Message as _;
use proto::raftpb;
use raft_driver::Progress;
use state::{Error, Member, members};

use crate::config::Url;
use crate::consensus::Event;
use crate::host::Peers;
use crate::member::Node;
use crate::peers::ask;

/// A peer counts as connected when it has been for this long, as in etcd.
const HEALTHY_AFTER: Duration = Duration::from_secs(5);
/// A learner may vote when it has this share of the leader's log, as in etcd.
const READY_PERCENT: u64 = 90;
/// A member that learns of its removal lives on for a moment, so that others learn of it as well.
const LEAVE_AFTER: Duration = Duration::from_secs(1);

impl Node {
    /// See [`api::Member::change_membership`].
    pub(crate) fn begin_membership_change(&self, change: MemberChange, reply: Reply) {
        self.in_background(reply, |node| async move {
            match change {
                MemberChange::Add { peer_urls, is_learner } => node.add_member(peer_urls, is_learner).await,
                MemberChange::Remove { id } => node.remove_member(id).await,
                MemberChange::Update { id, peer_urls } => node.update_member(id, peer_urls).await,
                MemberChange::Promote { id } => node.promote_member(id).await,
            }
        });
    }

    async fn add_member(self: Arc<Self>, peer_urls: Vec<String>, is_learner: bool) -> Outcome {
        let peer_urls = checked(&peer_urls)?;
        let seconds = self.host.wall().as_secs();
        let id = members::added_member_id(&peer_urls, i64::try_from(seconds).unwrap_or(0));
        let member = Member { id, peer_urls, is_learner, ..Member::default() };
        if self.settings.strict_reconfig_check {
            let voters = self.voters();
            if !is_learner && !enough_started(&voters, Some(&member)) {
                tracing::warn!("rejecting member add request; not enough healthy members");
                return Err(Error::MemberNotEnoughStarted);
            }
            if voters.len() > 1 && !self.all_connected(&voters) {
                tracing::warn!("rejecting member add request; local member has not been connected to all peers");
                return Err(Error::Unhealthy);
            }
        }
        let kind = if is_learner {
            raftpb::ConfChangeType::ConfChangeAddLearnerNode
        } else {
            raftpb::ConfChangeType::ConfChangeAddNode
        };
        let members = self.configure(kind, id, Some(members::add_context(&member))).await?;
        let added = members.iter().find(|m| m.id == id).cloned().unwrap_or(member);
        Ok(Answer::Members { added: Some(added), members })
    }

    async fn remove_member(self: Arc<Self>, id: u64) -> Outcome {
        let voters = self.voters();
        if self.settings.strict_reconfig_check && voters.iter().any(|m| m.id == id) {
            let left: Vec<Member> = voters.iter().filter(|m| m.id != id).cloned().collect();
            if !enough_started(&left, None) {
                tracing::warn!("rejecting member remove request; not enough healthy members");
                return Err(Error::MemberNotEnoughStarted);
            }
            let own = self.identity.member_id;
            let is_down = id != own && self.connected_for(id).is_none();
            // A member that is down is no part of the quorum; to remove it takes nothing away.
            if !is_down {
                let connected = voters.iter().filter(|m| self.is_healthy(m.id)).count();
                if connected.saturating_sub(1) < 1 + (voters.len() - 1) / 2 {
                    tracing::warn!("rejecting member remove request; local member has not been connected to all peers");
                    return Err(Error::Unhealthy);
                }
            }
        }
        let members = self.configure(raftpb::ConfChangeType::ConfChangeRemoveNode, id, None).await?;
        Ok(Answer::Members { added: None, members })
    }

    async fn update_member(self: Arc<Self>, id: u64, peer_urls: Vec<String>) -> Outcome {
        // etcd does not look at them. Where others would have to reach it there, an address that is none is refused all the
        // same: in etcd it is their end.
        let is_alone = self.state().members().iter().all(|member| member.id == self.identity.member_id);
        let peer_urls = if is_alone { peer_urls } else { checked(&peer_urls)? };
        let member = Member { id, peer_urls, ..Member::default() };
        let context = members::add_context(&member);
        let members = self.configure(raftpb::ConfChangeType::ConfChangeUpdateNode, id, Some(context)).await?;
        Ok(Answer::Members { added: None, members })
    }

    /// Only the leader knows how far a learner is.
    async fn promote_member(self: Arc<Self>, id: u64) -> Outcome {
        if self.is_leader() {
            return self.promote_here(id).await;
        }
        let there = |peers: &dyn Peers, url| peers.promote(url, id);
        let found = self.at_leader(|node| node.is_leader().then_some(Err(Error::LeaderChanged)), there).await;
        let members = match found {
            // Elected meanwhile.
            Err(Error::LeaderChanged) => return self.promote_here(id).await,
            found => found?,
        };
        let members = members.into_iter().map(|m| Member {
            id: m.id,
            peer_urls: m.peer_urls,
            is_learner: m.is_learner,
            name: m.name,
            client_urls: m.client_urls,
        });
        Ok(Answer::Members { added: None, members: members.collect() })
    }

    async fn promote_here(self: Arc<Self>, id: u64) -> Outcome {
        let promoted = Arc::clone(&self).try_promote(id).await;
        match &promoted {
            Ok(_) => self.metrics.learner_promote_successes.inc(),
            Err(error) => self.metrics.learner_promote_failures.with_label_values(&[&error.to_string()]).inc(),
        }
        promoted
    }

    async fn try_promote(self: Arc<Self>, id: u64) -> Outcome {
        let known = self.state().members();
        let member = known.iter().find(|m| m.id == id).ok_or(Error::MemberNotFound)?;
        if !member.is_learner {
            return Err(Error::MemberNotLearner);
        }
        let progress = self.progress().await?;
        let matched = |id: u64| progress.iter().find(|p| p.id == id).map(|p| p.matched);
        let leader = matched(self.identity.member_id).ok_or(Error::NotLeader)?;
        let learner = matched(id).unwrap_or(0);
        if u128::from(learner) * 100 < u128::from(leader) * u128::from(READY_PERCENT) {
            return Err(Error::LearnerNotReady);
        }
        if self.settings.strict_reconfig_check && !enough_started(&self.voters(), Some(member)) {
            tracing::warn!("rejecting member promote request; not enough healthy members");
            return Err(Error::MemberNotEnoughStarted);
        }
        let context = members::promote_context(id);
        let members = self.configure(raftpb::ConfChangeType::ConfChangeAddNode, id, Some(context)).await?;
        Ok(Answer::Members { added: None, members })
    }

    /// Puts a change into the log and waits until it is applied here.
    async fn configure(
        &self,
        kind: raftpb::ConfChangeType,
        id: u64,
        context: Option<Vec<u8>>,
    ) -> Result<Vec<Member>, Error> {
        let request = self.next_id();
        let change = raftpb::ConfChange {
            id: Some(request),
            r#type: Some(kind as i32),
            node_id: Some(id),
            context: context.map(Into::into),
        };
        let data = change.encode_to_vec();
        let answer = ask(|reply| {
            let deadline = self.now_ms() + self.settings.limits.request_timeout_ms;
            match self.waiters.add(request, reply, deadline, data.len()) {
                Ok(()) => self.tell(Event::ProposeConfChange(data.clone().into(), request)),
                Err(reply) => reply.send(Err(Error::RequestTooManyRequests)),
            }
        });
        match answer.await? {
            Answer::Members { members, .. } => Ok(members),
            other => Err(Error::Internal(format!("a membership change was answered with {other:?}"))),
        }
    }

    async fn progress(&self) -> Result<Vec<Progress>, Error> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.tell(Event::Progress(sender));
        // Answered within the actor's next turn, which another thread may be in at this moment.
        receiver.await.map_err(|_| Error::Stopped)
    }

    fn voters(&self) -> Vec<Member> {
        self.state().members().into_iter().filter(|m| !m.is_learner).collect()
    }

    /// How long messages have been getting through to that member; `None` if they do not.
    fn connected_for(&self, id: u64) -> Option<Duration> {
        self.peers.get()?.connected_for(id)
    }

    fn is_healthy(&self, id: u64) -> bool {
        id == self.identity.member_id || self.connected_for(id).is_some_and(|time| time >= HEALTHY_AFTER)
    }

    fn all_connected(&self, members: &[Member]) -> bool {
        members.iter().all(|m| self.is_healthy(m.id))
    }

    /// Whether most of the voters can be reached at this moment.
    pub(crate) fn quorum_connected(&self) -> bool {
        let voters = self.voters();
        let own = self.identity.member_id;
        let connected = voters.iter().filter(|m| m.id == own || self.connected_for(m.id).is_some()).count();
        connected > voters.len() / 2
    }

    /// What a request is told whose time is over.
    pub(crate) fn timeout_error(&self) -> Error {
        let election_ms = self.settings.limits.election_timeout_ms;
        let lost = self.leader_lost_ms.load(Ordering::Acquire);
        let failed_lately =
            lost != 0 && self.now_ms().saturating_sub(lost) < self.settings.limits.request_timeout_ms + 2 * election_ms;
        if self.leader() == 0 || failed_lately {
            Error::TimeoutDueToLeaderFail
        } else if !self.quorum_connected() {
            Error::TimeoutDueToConnectionLost
        } else {
            Error::Timeout
        }
    }

    // --- what follows from changes that were applied ---

    /// Tells the connections about a change that is now in force.
    pub(crate) fn membership_changed(&self, change: &state::MemberChange) {
        let own = self.identity.member_id;
        let hex = |id: u64| format!("{id:x}");
        let Some(peers) = self.peers.get() else { return };
        match change {
            state::MemberChange::None => {}
            state::MemberChange::Added(member) => {
                tracing::info!(
                    "cluster-id" = %hex(self.identity.cluster_id),
                    "local-member-id" = %hex(own),
                    "added-peer-id" = %hex(member.id),
                    "added-peer-peer-urls" = ?member.peer_urls,
                    "added-peer-is-learner" = member.is_learner,
                    "added member"
                );
                if member.id != own {
                    peers.add(member.id, member.peer_urls.clone());
                }
            }
            state::MemberChange::Promoted(member) => {
                tracing::info!("promoted-member-id" = %hex(member.id), "promote member");
            }
            state::MemberChange::Updated(member) => {
                tracing::info!(
                    "updated-remote-peer-id" = %hex(member.id),
                    "updated-remote-peer-urls" = ?member.peer_urls,
                    "updated member"
                );
                if member.id != own {
                    peers.update(member.id, member.peer_urls.clone());
                }
            }
            state::MemberChange::Removed(id) => {
                tracing::info!(
                    "cluster-id" = %hex(self.identity.cluster_id),
                    "local-member-id" = %hex(own),
                    "removed-remote-peer-id" = %hex(*id),
                    "removed member"
                );
                if *id == own {
                    self.leave();
                } else {
                    peers.remove(*id);
                }
            }
        }
    }

    /// After a snapshot: whoever is not in it is gone, and whoever is may be new.
    pub(crate) fn membership_replaced(&self) {
        let own = self.identity.member_id;
        let Some(peers) = self.peers.get() else { return };
        let known = self.state().members();
        for peer in peers.traffic() {
            if !known.iter().any(|m| m.id == peer.id) {
                peers.remove(peer.id);
            }
        }
        for member in known.into_iter().filter(|m| m.id != own) {
            peers.add(member.id, member.peer_urls.clone());
            peers.update(member.id, member.peer_urls);
        }
        if self.state().is_removed(own) {
            self.leave();
        }
    }

    /// This member was removed: it stops, after a moment in which others may still learn of it from here.
    pub(crate) fn leave(&self) {
        let Some(node) = self.this.upgrade() else { return };
        if self.leaving.swap(true, Ordering::SeqCst) {
            return;
        }
        self.host.spawn(Box::pin(async move {
            node.host.sleep(LEAVE_AFTER).await;
            tracing::error!(error = "the member has been permanently removed from the cluster", "server error");
            tracing::warn!(
                "data-dir" = %node.settings.data_dir.display(),
                "data-dir used by this member must be removed"
            );
            tracing::warn!(
                "to let this machine join again: remove (or move away) the data directory, run `etcdctl member add`, and start \
                 with --initial-cluster-state existing"
            );
            node.stop();
        }));
    }
}

/// Whether enough voters would be running after a change: those that have published their names count as started. A
/// cluster of one may always grow.
fn enough_started(voters: &[Member], new: Option<&Member>) -> bool {
    let started = voters.iter().filter(|m| !m.name.is_empty()).count();
    if new.is_some() && started == 1 && voters.len() == 1 {
        // From one to two: there is no other way, and the one is running, since it answers.
        return true;
    }
    // A learner that is ready to vote runs.
    let promoted_counts = new.is_some_and(|m| m.is_learner);
    let voters = voters.len() + usize::from(new.is_some());
    let started = started + usize::from(promoted_counts);
    voters > 0 && started > voters / 2
}

fn checked(urls: &[String]) -> Result<Vec<String>, Error> {
    let parsed = Url::parse_list(&urls.join(",")).map_err(|_| Error::MemberBadURLs)?;
    if parsed.is_empty() {
        return Err(Error::MemberBadURLs);
    }
    let mut urls: Vec<String> = parsed.iter().map(Url::to_string).collect();
    urls.sort();
    Ok(urls)
}
