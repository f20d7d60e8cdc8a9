//! What peers ask of this member, and what it asks of them.
//!
//! [`Link`] is the member as the `peer` crate sees it: messages in, saved snapshots, forwarded requests. The other
//! direction are the methods of [`Node`] here: messages and snapshots out, requests forwarded to the leader.

use std::future::Future;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use api::mailbox::Mailbox;
use api::{Answer, Member as _, MemberChange, Outcome, Reply, TimeToLive};
use bytes::Bytes;
use disk::Open;
use peer::{
    BoxFuture, CallError, Caller, HashError, HashKv, LeaseError, Local, PromoteError, RemainingLease, StepError,
};
use proto::raftpb;
use state::Error;
use state::lease::Renewal;

use crate::applier::{PARTIAL, snapshot_file_name};
use crate::consensus::Event;
use crate::host::Peers;
use crate::member::Node;

/// How fast a snapshot is sent while clients write: they should not notice.
const BUSY_BYTES_PER_SECOND: u64 = 32 << 20;
/// And while they do not.
const IDLE_BYTES_PER_SECOND: u64 = 256 << 20;
/// Snapshots on their way to other members at a time; what is asked for beyond that is asked again later.
const MAX_SNAPSHOTS: u64 = 16;
/// After a snapshot has been delivered its receiver still has to install it, and then needs the log from there on.
const KEEP_LOG_AFTER_SNAPSHOT_MS: u64 = 30_000;
/// A piece of a received snapshot on its way to disk.
const PIECE_BYTES: usize = 256 << 10;
/// Bytes of a received snapshot after which it is synced: one sync at the end would keep the disk from the log for long.
const RECEIVED_SYNC_BYTES: u64 = 4 << 20;
/// Before a request to the leader is repeated.
const RETRY: Duration = Duration::from_millis(50);

impl Node {
    /// Calls other members, and gives each call so long.
    pub(crate) fn caller(&self, timeout: Duration) -> Caller {
        Caller::new(timeout).through(&self.settings.dialer)
    }
}

/// The member as its peers see it.
pub(crate) struct Link(pub(crate) Arc<Node>);

impl Local for Link {
    fn step(&self, message: raftpb::Message) -> Result<(), StepError> {
        self.0.accept(&message)?;
        self.0.tell(Event::Step(Box::new(message)));
        Ok(())
    }

    fn step_all(&self, messages: &mut Vec<raftpb::Message>) {
        for message in messages.drain(..) {
            match self.0.accept(&message) {
                Ok(()) => self.0.raft_queue.push(Event::Step(Box::new(message))),
                Err(error) => tracing::debug!(%error, "a message from a peer was not taken"),
            }
        }
        self.0.drive();
    }

    fn report_unreachable(&self, id: u64) {
        // Also called from within a send, and so from within the actor's own turn: queued, and taken in the next.
        self.0.raft_queue.push(Event::Unreachable(id));
    }

    fn report_snapshot(&self, id: u64, delivered: bool) {
        self.0.snapshot_ended(id, delivered);
    }

    fn peer_gone(&self, id: u64) {
        self.0.tell(Event::Gone(id));
    }

    fn removed(&self, by: u64) {
        // Told again at every attempt to connect.
        if !self.0.leaving.load(Ordering::SeqCst) {
            tracing::warn!(
                "local-member-id" = %format!("{:x}", self.0.identity.member_id),
                "remote-peer-id" = %format!("{by:x}"),
                "a peer says that this member was removed from the cluster"
            );
            self.0.leave();
        }
    }

    fn is_removed(&self, id: u64) -> bool {
        self.0.state().is_removed(id)
    }

    fn members(&self) -> Vec<u8> {
        api::ops::members_json(&*self.0)
    }

    fn version(&self) -> Vec<u8> {
        api::ops::version_json(&*self.0)
    }

    fn save_snapshot(&self, message: &raftpb::Message, body: &mut dyn Read) -> Result<(), String> {
        let index = message.snapshot.as_ref().and_then(|s| s.metadata.as_ref()).and_then(|m| m.index).unwrap_or(0);
        let node = &self.0;
        // What will be refused need not be written first.
        node.accept(message).map_err(|error| error.to_string())?;
        let path = node.settings.snap_dir.join(snapshot_file_name(index));
        // Written under another name, which no other delivery of the same snapshot has: only a whole file is ever found
        // under the right one.
        let partial = path.with_extension(format!("{}{PARTIAL}", node.deliveries.fetch_add(1, Ordering::Relaxed)));
        let metrics = &node.metrics;
        let from = format!("{:x}", message.from.unwrap_or(0));
        let in_flight = metrics.snapshot_receive_inflights.with_label_values(&[&from]);
        in_flight.inc();
        let begun = Instant::now();
        let mut save = || -> io::Result<u64> {
            let file = node.disk.open(&partial, Open::Truncate)?;
            let (mut piece, mut at, mut synced) = (vec![0; PIECE_BYTES], 0, 0);
            loop {
                let read = body.read(&mut piece)?;
                if read == 0 {
                    break;
                }
                file.write_at(&piece[..read], at)?;
                at += read as u64;
                if at - synced >= RECEIVED_SYNC_BYTES {
                    file.sync()?;
                    synced = at;
                }
            }
            let syncing = Instant::now();
            if !mutant::on(mutant::ReceivedSnapshotUnsynced) {
                file.sync()?;
            }
            metrics.snap_db_fsync.observe(syncing.elapsed().as_secs_f64());
            node.disk.rename(&partial, &path)?;
            node.disk.sync_dir(&node.settings.snap_dir)?;
            Ok(at)
        };
        let saved = save();
        in_flight.dec();
        match saved {
            Ok(bytes) => {
                let took = begun.elapsed().as_secs_f64();
                metrics.snap_db_save_total.observe(took);
                metrics.snapshot_receive_total.with_label_values(&[&from]).observe(took);
                metrics.snapshot_receive_success.with_label_values(&[&from]).inc();
                tracing::info!(path = %path.display(), "snapshot-index" = index, bytes, "saved the leader's snapshot");
                Ok(())
            }
            Err(error) => {
                metrics.snapshot_receive_failures.with_label_values(&[&from]).inc();
                // Half a file is of no use; that it cannot be removed either adds nothing.
                drop(node.disk.remove(&partial));
                Err(error.to_string())
            }
        }
    }

    fn round_trip(&self, id: u64, took: Duration) {
        self.0.metrics.peer_round_trip.with_label_values(&[&format!("{id:x}")]).observe(took.as_secs_f64());
    }

    fn renew_lease(&self, id: i64) -> BoxFuture<Result<i64, LeaseError>> {
        let node = Arc::clone(&self.0);
        Box::pin(async move {
            match node.renew_as_leader(id).await {
                None => Err(LeaseError::NotPrimary),
                Some(Ok(0)) => Err(LeaseError::NotFound),
                Some(Ok(ttl)) => Ok(ttl),
                Some(Err(error)) => Err(LeaseError::Other(error.to_string())),
            }
        })
    }

    fn remaining_lease(&self, id: i64, keys: bool) -> BoxFuture<Result<RemainingLease, LeaseError>> {
        let node = Arc::clone(&self.0);
        Box::pin(async move {
            // The lease may have been granted a moment ago, through another member.
            ask(|reply| node.read_index(reply)).await.map_err(|_| LeaseError::Timeout)?;
            match node.time_to_live_here(id, keys) {
                None => Err(LeaseError::NotPrimary),
                Some(found) if found.ttl < 0 => Err(LeaseError::NotFound),
                Some(TimeToLive { ttl, granted_ttl, keys }) => Ok(RemainingLease { id, ttl, granted_ttl, keys }),
            }
        })
    }

    fn promote(&self, id: u64) -> BoxFuture<Result<Vec<u8>, PromoteError>> {
        let node = Arc::clone(&self.0);
        Box::pin(async move {
            match ask(|reply| node.change_membership(MemberChange::Promote { id }, reply)).await {
                Ok(_) => Ok(api::ops::members_json(&*node)),
                Err(Error::MemberNotFound) => Err(PromoteError::NotFound),
                Err(Error::MemberNotLearner) => Err(PromoteError::NotLearner),
                Err(Error::LearnerNotReady) => Err(PromoteError::NotReady),
                Err(error) => Err(PromoteError::Other(error.to_string())),
            }
        })
    }

    fn v2_digest(&self, log_index: u64) -> BoxFuture<Option<u64>> {
        let node = Arc::clone(&self.0);
        Box::pin(async move { crate::corruption::v2_digest(&node, log_index).await })
    }

    fn hash_kv(&self, revision: i64) -> BoxFuture<Result<HashKv, HashError>> {
        let node = Arc::clone(&self.0);
        Box::pin(async move {
            let hash = tokio::task::spawn_blocking(move || {
                let revision = if revision == 0 { node.state().revision() } else { revision };
                let found = node.hash_kv_slowly(revision)?.ok_or(Error::Stopped)?;
                Ok(HashKv {
                    revision: node.state().revision(),
                    hash: found.hash,
                    compact_revision: found.compact_revision,
                    hash_revision: Some(found.hash_revision),
                })
            });
            match hash.await {
                Ok(Ok(hash)) => Ok(hash),
                Ok(Err(Error::Compacted)) => Err(HashError::Compacted),
                Ok(Err(Error::FutureRev)) => Err(HashError::Future),
                Ok(Err(error)) => Err(HashError::Other(error.to_string())),
                Err(error) => Err(HashError::Other(error.to_string())),
            }
        })
    }

    fn downgrade_enabled(&self) -> BoxFuture<Result<bool, String>> {
        let node = Arc::clone(&self.0);
        Box::pin(async move {
            ask(|reply| node.read_index(reply)).await.map_err(|error| error.to_string())?;
            Ok(node.state().downgrade().enabled)
        })
    }
}

/// Asks the member where there is no worker.
pub(crate) async fn ask(question: impl FnOnce(Reply)) -> Outcome {
    let mailbox = Mailbox::new();
    question(Reply::new(Arc::clone(&mailbox), 0));
    let mut deliveries = Vec::new();
    std::future::poll_fn(|cx| mailbox.poll_take(&mut deliveries, cx)).await;
    deliveries.pop().map_or(Err(Error::Stopped), |delivery| delivery.outcome)
}

/// A snapshot's pieces at the rate at which they may leave now.
struct Paced {
    pieces: state::Pieces,
    node: Arc<Node>,
    /// When the next piece may leave, by the host's clock.
    due: Duration,
}

impl Iterator for Paced {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.pieces.next()?;
        if let Ok(piece) = &piece {
            let rate = if self.node.is_busy() { BUSY_BYTES_PER_SECOND } else { IDLE_BYTES_PER_SECOND };
            let host = &self.node.host;
            host.block(self.due.saturating_sub(host.now()));
            self.due = self.due.max(host.now()) + Duration::from_secs_f64(piece.len() as f64 / rate as f64);
        }
        Some(piece)
    }
}

impl Node {
    fn accept(&self, message: &raftpb::Message) -> Result<(), StepError> {
        if self.failed() {
            return Err(StepError::Stopped);
        }
        if self.held_back.load(Ordering::Acquire) {
            return Err(StepError::Refused("this member is comparing its data with the others'".into()));
        }
        if self.state().is_removed(message.from.unwrap_or(0)) {
            return Err(StepError::Removed);
        }
        Ok(())
    }

    /// Hands messages to the peers' connections.
    pub(crate) fn send(&self, mut messages: Vec<raftpb::Message>) {
        if messages.is_empty() {
            return;
        }
        let Some(peers) = self.peers.get() else { return };
        let is_snapshot = |m: &mut raftpb::Message| m.r#type() == raftpb::MessageType::MsgSnap;
        for snapshot in messages.extract_if(.., is_snapshot) {
            self.send_snapshot(snapshot);
        }
        peers.send(messages);
    }

    /// Sends what this member has applied, which is at least what raft asks for. Making the file reads the whole state, so
    /// a thread of its own does it.
    fn send_snapshot(&self, mut message: raftpb::Message) {
        let to = message.to.unwrap_or(0);
        let (Some(node), Some(peers)) = (self.this.upgrade(), self.peers.get().cloned()) else { return };
        self.sending.lock().insert(to, Instant::now());
        self.metrics.snapshot_send_inflights.with_label_values(&[&format!("{to:x}")]).inc();
        if self.snapshots_out.fetch_add(1, Ordering::SeqCst) >= MAX_SNAPSHOTS {
            return self.snapshot_ended(to, false);
        }
        let send = move || {
            let image = node.image();
            let index = image.index();
            message.snapshot = Some(raftpb::Snapshot {
                data: Some(image.v2_json().clone()),
                metadata: Some(raftpb::SnapshotMetadata {
                    conf_state: Some(image.conf_state().clone()),
                    index: Some(index),
                    term: Some(image.term()),
                }),
            });
            let mut pieces = image.into_pieces();
            // Goes through everything once, which takes its time: the receiver is not to wait for the first piece meanwhile.
            match pieces.total_bytes() {
                Ok(bytes) => {
                    tracing::info!(to = %format!("{to:x}"), "snapshot-index" = index, bytes, "sending a database snapshot");
                    let paced = Paced { pieces, node: Arc::clone(&node), due: node.host.now() };
                    peers.send_snapshot(message, Box::new(paced));
                }
                Err(error) => {
                    tracing::error!(%error, to = %format!("{to:x}"), "cannot make a database snapshot");
                    node.snapshot_ended(to, false);
                }
            }
        };
        if !self.host.work("snapshot", Box::new(send)) {
            self.snapshot_ended(to, false);
        }
    }

    fn snapshot_ended(&self, to: u64, delivered: bool) {
        if delivered {
            self.keep_log_until_ms.store(self.now_ms() + KEEP_LOG_AFTER_SNAPSHOT_MS, Ordering::SeqCst);
        }
        self.snapshots_out.fetch_sub(1, Ordering::SeqCst);
        let label = [&format!("{to:x}")];
        self.metrics.snapshot_send_inflights.with_label_values(&label).dec();
        match self.sending.lock().remove(&to) {
            Some(begun) if delivered => {
                let took = begun.elapsed().as_secs_f64();
                self.metrics.snapshot_send_total.with_label_values(&label).observe(took);
                self.metrics.snapshot_send_success.with_label_values(&label).inc();
            }
            _ => self.metrics.snapshot_send_failures.with_label_values(&label).inc(),
        }
        // May be called from within the actor's own turn, which looks at the queue again.
        self.raft_queue.push(Event::SnapshotSent { to, delivered });
        self.drive();
    }

    /// Whether a member is being brought up by snapshot, and will need the log from there on.
    pub(crate) fn keeps_log(&self) -> bool {
        self.snapshots_out.load(Ordering::SeqCst) > 0 || self.now_ms() < self.keep_log_until_ms.load(Ordering::SeqCst)
    }

    /// Renews a lease if this member leads, as far as it knows.
    pub(crate) fn renew_here(&self, id: i64) -> Renewal {
        if !self.is_leader() {
            return Renewal::NotPrimary;
        }
        self.state().lessor().renew(id, self.now_ms())
    }

    /// Renews a lease if this member leads, and knows it for certain: one that was paused or cut off may have a successor,
    /// at which the lease goes on running out. `Ok(0)` if there is no such lease.
    pub(crate) async fn renew_as_leader(&self, id: i64) -> Option<Result<i64, Error>> {
        if !self.is_leader() {
            return None;
        }
        if !self.read_is_local() && !mutant::on(mutant::LeaseRenewedByOldLeader) {
            ask(|reply| self.read_index(reply)).await.ok()?;
        }
        match self.renew_here(id) {
            Renewal::Renewed { ttl, clear_checkpoint: false } => {
                self.metrics.lease_renewed.inc();
                Some(Ok(ttl))
            }
            Renewal::Renewed { ttl, clear_checkpoint: true } => match self.clear_checkpoint(id).await {
                Ok(()) => Some(Ok(ttl)),
                Err(Error::LeaseNotFound) => Some(Ok(0)),
                Err(error) => Some(Err(error)),
            },
            Renewal::Expired | Renewal::NotFound => Some(Ok(0)),
            Renewal::NotPrimary => None,
        }
    }

    /// What is known of a lease if this member leads.
    pub(crate) fn time_to_live_here(&self, id: i64, keys: bool) -> Option<TimeToLive> {
        if !self.is_leader() {
            return None;
        }
        // A lease begins when the time is next looked at, and some of this millisecond has passed since: one that was just
        // granted has less than its TTL left.
        let (lessor, now_ms) = (self.state().lessor(), self.now_ms());
        lessor.observe_time(now_ms);
        Some(match lessor.time_to_live(id, keys, now_ms + 1) {
            Some(found) => TimeToLive { ttl: found.ttl, granted_ttl: found.granted_ttl, keys: found.keys },
            None => TimeToLive { ttl: -1, granted_ttl: 0, keys: Vec::new() },
        })
    }

    /// Renews a lease, here or through the leader.
    pub(crate) fn renew_lease(&self, id: i64, reply: Reply) {
        self.in_background(reply, move |node| async move {
            let there = |peers: &dyn Peers, url| peers.renew_lease(url, id);
            let until = node.now_ms() + node.settings.limits.request_timeout_ms;
            loop {
                if let Some(outcome) = node.renew_as_leader(id).await {
                    return outcome.map(Answer::Renewed);
                }
                let here = |node: &Node| node.is_leader().then_some(Err(Error::LeaderChanged));
                match node.at_leader(here, there).await {
                    Ok(ttl) => return Ok(Answer::Renewed(ttl)),
                    Err(Error::LeaseNotFound) => return Ok(Answer::Renewed(0)),
                    // Elected meanwhile, or not yet ready to renew.
                    Err(Error::LeaderChanged) if node.now_ms() < until => node.host.sleep(RETRY).await,
                    Err(Error::LeaderChanged) => return Err(node.timeout_error()),
                    Err(error) => return Err(error),
                }
            }
        });
    }

    /// Asks the leader for a lease.
    pub(crate) fn forward_time_to_live(&self, id: i64, keys: bool, reply: Reply) {
        self.in_background(reply, move |node| async move {
            let here = |node: &Node| node.time_to_live_here(id, keys).map(Ok);
            let there = |peers: &dyn Peers, url| -> BoxFuture<_> {
                let asked = peers.remaining_lease(url, id, keys);
                Box::pin(async move {
                    let RemainingLease { ttl, granted_ttl, keys, .. } = asked.await?;
                    Ok(TimeToLive { ttl, granted_ttl, keys })
                })
            };
            match node.at_leader(here, there).await {
                Ok(found) => Ok(Answer::TimeToLive(found)),
                Err(Error::LeaseNotFound) => {
                    Ok(Answer::TimeToLive(TimeToLive { ttl: -1, granted_ttl: 0, keys: Vec::new() }))
                }
                Err(error) => Err(error),
            }
        });
    }

    /// Runs something that takes time on the member's event loop, and answers with its outcome.
    pub(crate) fn in_background<F>(&self, reply: Reply, work: impl FnOnce(Arc<Node>) -> F)
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        // Without it the member is stopping; a dropped reply says so.
        let Some(node) = self.this.upgrade() else { return };
        let work = work(node);
        self.host.spawn(Box::pin(async move { reply.send(work.await) }));
    }

    /// Does something here if this member leads, and otherwise through the leader's peer port, again and again until it
    /// is done, refused, or the request's time is over.
    pub(crate) async fn at_leader<T>(
        &self,
        here: impl Fn(&Node) -> Option<Result<T, Error>>,
        there: impl Fn(&dyn Peers, String) -> BoxFuture<Result<T, CallError>>,
    ) -> Result<T, Error> {
        let peers = self.peers.get().ok_or(Error::Stopped)?;
        let until = self.now_ms() + self.settings.limits.request_timeout_ms;
        loop {
            if let Some(done) = here(self) {
                return done;
            }
            let leader = self.state().member(self.leader());
            for url in leader.map(|leader| leader.peer_urls).unwrap_or_default() {
                match there(peers.as_ref(), url).await {
                    Ok(done) => return Ok(done),
                    Err(CallError::Refused { status: 404, text, .. }) if text.contains("lease not found") => {
                        return Err(Error::LeaseNotFound);
                    }
                    Err(CallError::Refused { status: 404, text, .. }) if text.contains("ID not found") => {
                        return Err(Error::MemberNotFound);
                    }
                    Err(CallError::Refused { status: 412, text, .. }) if text.contains("in sync with leader") => {
                        return Err(Error::LearnerNotReady);
                    }
                    Err(CallError::Refused { status: 412, text, .. }) if text.contains("promote a learner member") => {
                        return Err(Error::MemberNotLearner);
                    }
                    // The leader may have changed, or be about to.
                    Err(error) => tracing::debug!(%error, "a request was not forwarded"),
                }
            }
            if self.now_ms() >= until {
                return Err(self.timeout_error());
            }
            self.host.sleep(RETRY).await;
        }
    }
}
