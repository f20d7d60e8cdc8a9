//! The upkeep thread: everything that is done now and then, and never in a request's way.
//!
//! Store maintenance in small steps, snapshots, file purging, lease expiry, automatic compaction, giving up on waits,
//! and, after the start, telling the cluster this member's name and URLs.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use api::Member as _;
use proto::etcdserverpb as pb;
use wal::SnapshotMark;
use wal::snap::{self, SnapFile};

use crate::applier::{ApplyJob, SnapshotPlan, remove_received};
use crate::compactor::Compactor;
use crate::consensus::Event;
use crate::flights::Landed;
use crate::log_writer::LogJob;
use crate::member::Node;
use crate::versions::PROPOSE_AGAIN_MS;

/// Work for the upkeep thread.
#[derive(Debug)]
pub(crate) enum UpkeepJob {
    /// There may be something to do.
    Wake,
    /// Save a snapshot.
    Snapshot(Box<SnapshotPlan>),
}

/// Expired leases are looked for this often.
const LEASE_MS: u64 = 500;
/// At most this many leases are revoked per look: etcd's rate of 1,000 a second.
const LEASES_PER_LOOK: usize = 500;
/// The v2 tree is told the time this often, as in etcd.
const V2_SYNC_MS: u64 = 500;
/// How much is applied is looked at this often,
const LOOK_MS: u64 = 500;
/// and so many entries in that time are a load that background work should not disturb.
const BUSY_ENTRIES: u64 = 25;
/// Simple tokens that have ended are forgotten this often.
const TOKENS_MS: u64 = 1_000;
/// Old files are removed this often.
const PURGE_MS: u64 = 30_000;
/// Waits are given up with this precision.
const EXPIRE_MS: u64 = 200;
/// Between two steps of store maintenance, so that requests get the processor.
const PAUSE: Duration = Duration::from_millis(1);
/// When there is nothing to do.
const IDLE: Duration = Duration::from_millis(100);

/// What this thread keeps between turns.
#[derive(Debug)]
pub(crate) struct Upkeep {
    pub(crate) compactor: Option<Compactor>,
    next_lease_ms: u64,
    next_v2_sync_ms: u64,
    next_purge_ms: u64,
    next_tokens_ms: u64,
    next_expire_ms: u64,
    next_publish_ms: u64,
    /// The term in which this member led when last looked at.
    led: Option<u64>,
    published: bool,
    /// What was applied when last looked at.
    applied: u64,
    next_look_ms: u64,
}

impl Upkeep {
    pub(crate) fn new(compactor: Option<Compactor>) -> Self {
        Self {
            compactor,
            next_lease_ms: 0,
            next_v2_sync_ms: 0,
            next_purge_ms: PURGE_MS,
            next_tokens_ms: TOKENS_MS,
            next_expire_ms: 0,
            next_publish_ms: 0,
            led: None,
            published: false,
            applied: 0,
            next_look_ms: 0,
        }
    }
}

pub(crate) fn run(node: &Arc<Node>, mut upkeep: Upkeep) {
    let mut jobs = VecDeque::new();
    let mut pause = IDLE;
    while node.upkeep_queue.take_all(&mut jobs, Some(Instant::now() + pause)) {
        match upkeep.step(node, &mut jobs) {
            ControlFlow::Continue(next) => pause = next,
            ControlFlow::Break(()) => return,
        }
    }
}

impl Upkeep {
    /// One step of the thread. Answers when it wants the next one, or breaks if the member cannot go on.
    pub(crate) fn step(&mut self, node: &Node, jobs: &mut VecDeque<UpkeepJob>) -> ControlFlow<(), Duration> {
        for job in jobs.drain(..) {
            if let UpkeepJob::Snapshot(plan) = job
                && let Err(error) = save_snapshot(node, *plan)
            {
                node.fail(&format!("snapshot: {error}"));
                return ControlFlow::Break(());
            }
        }
        let begun = Instant::now();
        let maintained = node.state().store().maintain();
        node.compaction_went_on(begun.elapsed());
        let pause = match maintained {
            Ok(true) => PAUSE,
            Ok(false) => {
                if node.state().store().wants_flush() {
                    // An idle apply thread does not flush by itself; having nothing to apply makes it.
                    node.apply_queue.push(ApplyJob::Entries(Vec::new(), Landed::default()));
                }
                if node.waiters.compaction_pending() {
                    if node.state().store().compaction_done() {
                        node.waiters.compacted()
                    }
                    PAUSE
                } else {
                    IDLE
                }
            }
            Err(error) => {
                node.fail(&format!("store maintenance: {}", crate::chain(&error)));
                return ControlFlow::Break(());
            }
        };
        self.turn(node, node.now_ms());
        ControlFlow::Continue(pause)
    }

    fn turn(&mut self, node: &Node, now_ms: u64) {
        // The term, because this thread may have waited for a disk while the leadership went and came back.
        let led = node.is_leader().then(|| node.term());
        if led != self.led {
            self.led = led;
            match led {
                Some(_) => node.state().lessor().promote(now_ms, node.settings.limits.election_timeout_ms),
                None => node.state().lessor().demote(),
            }
        }
        if now_ms >= self.next_look_ms {
            let applied = node.applied.load(Ordering::Acquire);
            node.busy.store(applied.saturating_sub(self.applied) >= BUSY_ENTRIES, Ordering::Relaxed);
            (self.next_look_ms, self.applied) = (now_ms + LOOK_MS, applied);
        }
        if now_ms >= self.next_expire_ms {
            self.next_expire_ms = now_ms + EXPIRE_MS;
            let failed = node.waiters.expire(now_ms, || node.timeout_error());
            node.metrics.proposals_failed.inc_by(failed);
            node.metrics.proposals_pending.set(i64::try_from(node.waiters.len()).unwrap_or(i64::MAX));
        }
        if let Some(term) = led
            && now_ms >= self.next_lease_ms
        {
            self.next_lease_ms = now_ms + LEASE_MS;
            for id in node.state().lessor().expired(now_ms, LEASES_PER_LOOK) {
                node.metrics.lease_expired_total.inc();
                let lease_revoke = Some(pb::LeaseRevokeRequest { id });
                let header = node.header_of_root();
                node.propose_as_leader(term, pb::InternalRaftRequest { header, lease_revoke, ..Default::default() });
            }
            let checkpoints = match node.settings.checkpoints_leases {
                true => node.state().lessor().checkpoints(now_ms),
                false => Vec::new(),
            };
            if !checkpoints.is_empty() {
                let lease_checkpoint = Some(pb::LeaseCheckpointRequest { checkpoints });
                node.propose_as_leader(term, pb::InternalRaftRequest { lease_checkpoint, ..Default::default() });
            }
        }
        if let Some(term) = led
            && now_ms >= self.next_v2_sync_ms
        {
            self.next_v2_sync_ms = now_ms + V2_SYNC_MS;
            if node.state().v2().has_ttls() {
                node.propose_v2_sync(term);
            }
        }
        if let Some(compactor) = &mut self.compactor
            && let Some(revision) = compactor.tick(now_ms, led.is_some(), node.state().revision())
            && let Some(term) = led
        {
            tracing::info!(revision, "starting auto compaction");
            let compaction = Some(pb::CompactionRequest { revision, physical: false });
            node.propose_as_leader(term, pb::InternalRaftRequest { compaction, ..Default::default() });
        }
        if now_ms >= self.next_tokens_ms {
            self.next_tokens_ms = now_ms + TOKENS_MS;
            node.state().auth().tokens().sweep(now_ms, node.settings.token_ttl_ms);
        }
        if now_ms >= self.next_purge_ms {
            self.next_purge_ms = now_ms + PURGE_MS;
            node.log_queue.push(LogJob::Purge { keep: node.settings.max_wals });
            if let Err(error) = snap::purge(node.disk.as_ref(), &node.settings.snap_dir, node.settings.max_snapshots) {
                tracing::warn!(error = %error, "failed to purge snap files");
            }
            // What raft had no use for when it came.
            remove_received(node.disk.as_ref(), &node.settings.snap_dir, node.applied.load(Ordering::Acquire));
        }
        self.publish(node, now_ms);
    }

    /// Tells the cluster this member's name and client URLs, and, once leading, the cluster its version; both through
    /// the log, asked again until they are applied.
    fn publish(&mut self, node: &Node, now_ms: u64) {
        if self.published || node.leader() == 0 {
            return;
        }
        let own = node.identity().member_id;
        let attributes = &node.settings.attributes;
        let known = node.state().members().into_iter().find(|m| m.id == own);
        let named = known.is_some_and(|m| m.name == attributes.name && m.client_urls == attributes.client_urls);
        let versioned = node.state().cluster_version().is_some();
        if named && versioned {
            self.published = true;
            tracing::info!(
                "local-member-id" = %format!("{own:x}"),
                "local-member-attributes" = %format!("{{Name:{} ClientURLs:{:?}}}", attributes.name, attributes.client_urls),
                "cluster-id" = %format!("{:x}", node.identity().cluster_id),
                "published local member to cluster through raft"
            );
            node.set_ready();
            return;
        }
        // Each is a write of the v2 tree and moves its index, so none is asked twice without need.
        if !named && now_ms >= self.next_publish_ms && node.knows_what_all_understand() {
            self.next_publish_ms = now_ms + PROPOSE_AGAIN_MS;
            node.publish_attributes();
        }
        if !versioned && node.is_leader() {
            node.decide_version();
        }
    }
}

/// Saves a snapshot. The store is synced first: what the snapshot lets go of in the log must be in the store for good.
fn save_snapshot(node: &Node, plan: SnapshotPlan) -> Result<(), Box<dyn std::error::Error>> {
    tracing::info!(
        "local-member-id" = %format!("{:x}", node.identity().member_id),
        "snapshot-index" = plan.index,
        "triggering snapshot"
    );
    let synced = node.state().store().sync()?;
    assert!(synced.index >= plan.index, "snapshot at {} but the store is synced at {}", plan.index, synced.index);
    let conf_state = plan.conf_state;
    let begun = Instant::now();
    let data = plan.v2.to_json().into();
    node.metrics.snap_marshalling.observe(begun.elapsed().as_secs_f64());
    let file = SnapFile { index: plan.index, term: plan.term, conf_state: conf_state.clone(), data };
    let writing = Instant::now();
    snap::save(node.disk.as_ref(), &node.settings.snap_dir, &file)?;
    node.metrics.snap_fsync.observe(writing.elapsed().as_secs_f64());
    node.metrics.snap_save_total.observe(begun.elapsed().as_secs_f64());
    let mark = SnapshotMark { index: plan.index, term: plan.term, conf_state: Some(conf_state) };
    node.log_queue.push(LogJob::Snapshot { mark, release: plan.index });
    tracing::info!("snapshot-index" = plan.index, "saved snapshot to disk");
    let keep = node.settings.snapshot_catchup_entries;
    // Members that are being brought up need the log from their snapshot on.
    if plan.index > keep && !node.keeps_log() {
        node.tell(Event::Compact(plan.index - keep));
        tracing::info!("compact-index" = plan.index - keep, "compacted Raft logs");
    }
    node.last_snapshot.store(plan.index, Ordering::Release);
    Ok(())
}
