//! The member: what its threads share, and how clients reach it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use api::{
    Answer, FollowerStats, Identity, Limits, LogLevel, Member, MemberChange, MessageRate, Metrics, PeerTraffic, Reply,
    SelfStats, SnapshotSource, Status,
};
use disk::Disk;
use parking_lot::{Condvar, Mutex};
use prost::Message as _;
use proto::etcdserverpb as pb;
use proto::{membershippb, raftpb, v2pb};
use state::lease::Renewal;
use state::{Error, Reader};

use crate::applier::{ApplyJob, Runner};
use crate::config::duration::GoDuration;
use crate::consensus::Event;
use crate::drive::Core;
use crate::host::{Host, Peers};
use crate::image;
use crate::log_writer::LogJob;
use crate::logging;
use crate::peers::ask;
use crate::queue::{PushError, Queue};
use crate::upkeep::UpkeepJob;
use crate::versions::Versions;
use crate::waiters::Waiters;

/// Proposals are refused when this many committed entries wait to be applied, as in etcd.
const MAX_APPLY_BACKLOG: u64 = 5000;
/// Events that clients may have waiting for the raft thread.
const RAFT_QUEUE: usize = 64 * 1024;

/// File systems give space in blocks of this many bytes.
const DISK_BLOCK: u64 = 4096;

/// Settings that threads look at.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) limits: Limits,
    pub(crate) attributes: membershippb::Attributes,
    pub(crate) data_dir: PathBuf,
    pub(crate) snap_dir: PathBuf,
    pub(crate) strict_reconfig_check: bool,
    pub(crate) max_wals: usize,
    /// Whether the remaining TTLs of leases are put on record from time to time.
    pub(crate) checkpoints_leases: bool,
    pub(crate) max_snapshots: usize,
    /// How long a simple token lasts without being used.
    pub(crate) token_ttl_ms: u64,
    pub(crate) snapshot_catchup_entries: u64,
    pub(crate) tick: Duration,
    pub(crate) quota_bytes: i64,
    /// How other members are called.
    pub(crate) dialer: peer::Dialer,
}

/// One running member. Its threads and the API's workers each hold it.
pub(crate) struct Node {
    pub(crate) settings: Settings,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) waiters: Waiters,
    pub(crate) raft_queue: Queue<Event>,
    pub(crate) log_queue: Queue<LogJob>,
    pub(crate) apply_queue: Queue<ApplyJob>,
    pub(crate) upkeep_queue: Queue<UpkeepJob>,
    pub(crate) spare_queue: Queue<wal::Prepare>,
    /// The raft actor; `None` once it has ended.
    pub(crate) core: Mutex<Option<Core>>,
    /// The apply actor; `None` once it has ended.
    pub(crate) runner: Mutex<Option<Runner>>,
    /// Numbers of the newest batch given to the log's thread, and of the newest it has reported. While they differ,
    /// proposals gather: the report that comes next takes them along.
    pub(crate) log_sent: AtomicU64,
    pub(crate) log_synced: AtomicU64,
    /// This node, for work that outlives a call.
    pub(crate) this: Weak<Node>,
    /// The connections to the other members; there from before the first event to after the last.
    pub(crate) peers: OnceLock<Arc<dyn Peers>>,
    /// Where this member lives.
    pub(crate) host: Arc<dyn Host>,
    /// Versions of the members, as far as they have told.
    pub(crate) versions: Mutex<Versions>,
    /// Snapshots on their way to other members, and until when the log is kept for those that have got theirs.
    pub(crate) snapshots_out: AtomicU64,
    pub(crate) keep_log_until_ms: AtomicU64,
    /// When the last leader was lost; 0 = never.
    pub(crate) leader_lost_ms: AtomicU64,
    /// The hash that was worked out last; held while one is.
    pub(crate) hashing: Mutex<Option<store::HashKv>>,
    /// The members that a snapshot is being sent to, and since when.
    pub(crate) sending: Mutex<BTreeMap<u64, Instant>>,
    /// Whether many entries were applied lately.
    pub(crate) busy: AtomicBool,
    /// Snapshots whose delivery to this member has begun.
    pub(crate) deliveries: AtomicU64,
    /// This member takes no part yet: messages from the others are refused.
    pub(crate) held_back: AtomicBool,
    /// This member was removed and is about to stop.
    pub(crate) leaving: AtomicBool,
    pub(crate) identity: Identity,
    reader: Reader,
    /// Held by the apply thread while it works on a batch; who holds it sees the state between two entries.
    pub(crate) between_entries: Mutex<raftpb::ConfState>,
    /// When, by the host's clock.
    started: Duration,
    ids: IdGenerator,
    pub(crate) applied: AtomicU64,
    pub(crate) committed: AtomicU64,
    pub(crate) term: AtomicU64,
    pub(crate) leader: AtomicU64,
    /// The last leader that was known, and since when it leads; since when this member runs. Times are in nanoseconds since
    /// 1970. Only shown.
    pub(crate) last_leader: AtomicU64,
    pub(crate) leader_since_ns: AtomicI64,
    started_ns: i64,
    pub(crate) learner: AtomicBool,
    /// See [`Member::read_is_local`].
    pub(crate) local_reads: AtomicBool,
    /// A read waits until more is applied: the apply thread tells the raft thread when it has moved.
    pub(crate) reads_wait_for_apply: AtomicBool,
    pub(crate) last_snapshot: AtomicU64,
    nospace_asked_ms: AtomicU64,
    /// When the compaction began that is being carried out, by [`Member::now_ms`]; 0 = none is.
    pub(crate) compacting_since_ms: AtomicU64,
    phase: AtomicU8,
    phase_changed: Condvar,
    phase_lock: Mutex<Option<String>>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// A member's life.
const STARTING: u8 = 0;
const READY: u8 = 1;
const STOPPING: u8 = 2;
const FAILED: u8 = 3;

impl Node {
    #[expect(clippy::too_many_arguments, reason = "called once, by the place that joins the parts")]
    pub(crate) fn new(
        this: &Weak<Node>,
        settings: Settings,
        host: Arc<dyn Host>,
        disk: Arc<dyn Disk>,
        metrics: Arc<Metrics>,
        identity: Identity,
        reader: Reader,
        applied: u64,
        conf_state: raftpb::ConfState,
        core: Core,
        runner: Runner,
    ) -> Self {
        let started_ns = nanos(host.wall());
        Self {
            settings,
            disk,
            metrics,
            waiters: Waiters::default(),
            raft_queue: Queue::new(RAFT_QUEUE),
            log_queue: Queue::new(usize::MAX),
            apply_queue: Queue::new(usize::MAX),
            upkeep_queue: Queue::new(usize::MAX),
            spare_queue: Queue::new(usize::MAX),
            core: Mutex::new(Some(core)),
            runner: Mutex::new(Some(runner)),
            log_sent: AtomicU64::new(0),
            log_synced: AtomicU64::new(0),
            this: this.clone(),
            peers: OnceLock::new(),
            versions: Mutex::default(),
            snapshots_out: AtomicU64::new(0),
            keep_log_until_ms: AtomicU64::new(0),
            leader_lost_ms: AtomicU64::new(0),
            hashing: Mutex::default(),
            sending: Mutex::default(),
            busy: AtomicBool::new(false),
            deliveries: AtomicU64::new(0),
            held_back: AtomicBool::new(true),
            leaving: AtomicBool::new(false),
            identity,
            reader,
            applied: AtomicU64::new(applied),
            committed: AtomicU64::new(applied),
            between_entries: Mutex::new(conf_state),
            started: host.now(),
            ids: IdGenerator::new(identity.member_id, host.wall()),
            term: AtomicU64::new(0),
            leader: AtomicU64::new(0),
            last_leader: AtomicU64::new(0),
            leader_since_ns: AtomicI64::new(started_ns),
            started_ns,
            host,
            learner: AtomicBool::new(false),
            local_reads: AtomicBool::new(false),
            reads_wait_for_apply: AtomicBool::new(false),
            last_snapshot: AtomicU64::new(0),
            nospace_asked_ms: AtomicU64::new(0),
            compacting_since_ms: AtomicU64::new(0),
            phase: AtomicU8::new(STARTING),
            phase_changed: Condvar::new(),
            phase_lock: Mutex::new(None),
        }
    }

    /// Whether clients write, so that background work should take its time.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// Nanoseconds since 1970.
    pub(crate) fn wall_clock_ns(&self) -> i64 {
        nanos(self.host.wall())
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.leader.load(Ordering::Acquire) == self.identity.member_id
    }

    /// Clients may come.
    pub(crate) fn set_ready(&self) {
        let _guard = self.phase_lock.lock();
        if self.phase.load(Ordering::Acquire) == STARTING {
            self.phase.store(READY, Ordering::Release);
        }
        self.phase_changed.notify_all();
    }

    /// The member can not go on: its disk failed, so nothing that it would say can be trusted. Its threads end; the
    /// process exits with this reason.
    pub(crate) fn fail(&self, reason: &str) {
        {
            let mut why = self.phase_lock.lock();
            if self.phase.swap(FAILED, Ordering::AcqRel) != FAILED {
                *why = Some(reason.to_string());
            }
            self.phase_changed.notify_all();
        }
        self.close_queues();
    }

    /// How many members the cluster has.
    pub(crate) fn state_members(&self) -> usize {
        self.reader.members().len()
    }

    /// The newest revision, for log lines.
    pub(crate) fn state_revision(&self) -> i64 {
        self.reader.revision()
    }

    pub(crate) fn failed(&self) -> bool {
        self.phase.load(Ordering::Acquire) == FAILED
    }

    /// Whether clients may not come yet.
    pub(crate) fn is_starting(&self) -> bool {
        self.phase.load(Ordering::Acquire) == STARTING
    }

    /// Waits until clients may come (`true`) or the member stops.
    pub(crate) fn wait_ready(&self) -> bool {
        let mut guard = self.phase_lock.lock();
        while self.phase.load(Ordering::Acquire) == STARTING {
            self.phase_changed.wait(&mut guard);
        }
        self.phase.load(Ordering::Acquire) == READY
    }

    /// Whether the member stops or has failed.
    #[cfg(feature = "simulation")]
    pub(crate) fn is_stopping(&self) -> bool {
        self.phase.load(Ordering::Acquire) > READY
    }

    /// Waits until `deadline`; `true` at once when the member stops or fails.
    pub(crate) fn is_stopping_by(&self, deadline: Instant) -> bool {
        let mut guard = self.phase_lock.lock();
        loop {
            if self.phase.load(Ordering::Acquire) > READY {
                return true;
            }
            if self.phase_changed.wait_until(&mut guard, deadline).timed_out() {
                return self.phase.load(Ordering::Acquire) > READY;
            }
        }
    }

    /// Why the member failed, if it did.
    pub(crate) fn failure(&self) -> Option<String> {
        self.phase_lock.lock().clone()
    }

    /// Waits until the member stops or fails.
    pub(crate) fn wait_stopped(&self) {
        let mut guard = self.phase_lock.lock();
        while self.phase.load(Ordering::Acquire) <= READY {
            self.phase_changed.wait(&mut guard);
        }
    }

    /// Ends a running member: no more proposals; what is in the queues is finished.
    pub(crate) fn stop(&self) {
        let _guard = self.phase_lock.lock();
        if self.phase.load(Ordering::Acquire) <= READY {
            self.phase.store(STOPPING, Ordering::Release);
        }
        self.phase_changed.notify_all();
    }

    fn close_queues(&self) {
        self.raft_queue.close();
        self.log_queue.close();
        self.apply_queue.close();
        self.upkeep_queue.close();
        self.spare_queue.close();
        self.waiters.stop();
    }

    /// Proposes something that no client waits for.
    pub(crate) fn propose_internal(&self, mut request: pb::InternalRaftRequest) {
        request.header = Some(pb::RequestHeader { id: self.ids.next(), ..Default::default() });
        self.tell(Event::Propose(request.encode_to_vec().into()));
    }

    /// Proposes that v2 nodes which have expired by now are removed, if this member still leads.
    pub(crate) fn propose_v2_sync(&self, term: u64) {
        let request = v2pb::Request {
            id: Some(self.ids.next()),
            time: Some(self.wall_clock_ns()),
            ..state::v2::request("SYNC", "", "")
        };
        self.tell(Event::ProposeAsLeader(request.encode_to_vec().into(), term));
    }

    /// For what a member asks of the log on behalf of nobody, and what is only carried out for somebody who may.
    pub(crate) fn header_of_root(&self) -> Option<pb::RequestHeader> {
        let auth = self.reader.auth();
        auth.is_enabled().then(|| pb::RequestHeader {
            username: state::auth::ROOT.into(),
            auth_revision: auth.revision(),
            ..Default::default()
        })
    }

    /// Proposes what only a leader may decide. It is forgotten if this member no longer leads in the term in which it
    /// decided.
    pub(crate) fn propose_as_leader(&self, term: u64, mut request: pb::InternalRaftRequest) {
        request.header = Some(pb::RequestHeader { id: self.ids.next(), ..request.header.take().unwrap_or_default() });
        self.tell(Event::ProposeAsLeader(request.encode_to_vec().into(), term));
    }

    /// A renewed lease has its whole TTL before it again: what was noted of its rest no longer holds. Returns when every
    /// later leader will know that.
    pub(crate) async fn clear_checkpoint(&self, id: i64) -> Result<(), Error> {
        let checkpoints = vec![pb::LeaseCheckpoint { id, remaining_ttl: 0 }];
        let lease_checkpoint = Some(pb::LeaseCheckpointRequest { checkpoints });
        let request = pb::InternalRaftRequest { lease_checkpoint, ..Default::default() };
        let cleared = ask(|reply| {
            self.propose(request, reply);
            self.drive();
        });
        cleared.await.map(drop)
    }

    /// A request was refused for want of space: the cluster is to know. Asked at most once a second; the alarm
    /// itself is idempotent.
    pub(crate) fn raise_nospace(&self) {
        let now = self.now_ms();
        let last = self.nospace_asked_ms.load(Ordering::Acquire);
        if (last != 0 && now < last + 1000)
            || self.nospace_asked_ms.compare_exchange(last, now.max(1), Ordering::AcqRel, Ordering::Acquire).is_err()
        {
            return;
        }
        tracing::warn!(
            "quota-size-bytes" = self.settings.quota_bytes,
            "database space exceeded; raising alarm NOSPACE"
        );
        self.propose_internal(pb::InternalRaftRequest {
            alarm: Some(pb::AlarmRequest {
                action: pb::alarm_request::AlarmAction::Activate as i32,
                member_id: self.identity.member_id,
                alarm: pb::AlarmType::Nospace as i32,
            }),
            ..Default::default()
        });
    }

    /// The state as it is between two entries.
    pub(crate) fn image(&self) -> state::Image {
        let conf_state = self.between_entries.lock();
        let applied = self.applied.load(Ordering::SeqCst) + u64::from(mutant::on(mutant::SnapshotAhead));
        state::Image::take(&self.reader, applied, &conf_state)
    }

    fn refuse(&self, request: &pb::InternalRaftRequest, backlog: u64) -> Option<Error> {
        if self.leader() == 0 && self.phase.load(Ordering::Acquire) >= STOPPING {
            return Some(Error::Stopped);
        }
        // Revoking leases and alarms keep getting through: they are what ends the trouble.
        let share = if request.lease_revoke.is_some() || request.alarm.is_some() || request.compaction.is_some() {
            2
        } else {
            1
        };
        if backlog > MAX_APPLY_BACKLOG * share {
            return Some(Error::RequestTooManyRequests);
        }
        if self.reader.over_quota(request) {
            self.raise_nospace();
            return Some(Error::NoSpace);
        }
        None
    }
}

impl Node {
    /// Hands an encoded entry to consensus; `reply` waits for it to be applied.
    fn propose_encoded(&self, id: u64, data: Vec<u8>, reply: Reply) {
        let deadline_ms = self.now_ms() + self.settings.limits.request_timeout_ms;
        if let Err(reply) = self.waiters.add(id, reply, deadline_ms, data.len()) {
            return reply.send(Err(Error::RequestTooManyRequests));
        }
        if let Err(refused) = self.raft_queue.try_push(Event::Propose(data.into()))
            && let Some(reply) = self.waiters.remove(id)
        {
            reply.send(Err(match refused {
                PushError::Full => Error::RequestTooManyRequests,
                PushError::Closed => Error::Stopped,
            }));
        }
    }

    /// A compaction was applied; its work is done by and by.
    pub(crate) fn compaction_begins(&self) {
        self.metrics.compaction_last.set(self.wall_clock_ns() / 1_000_000_000);
        // One that comes while another is carried out is carried out with it.
        if self.compacting_since_ms.load(Ordering::Acquire) == 0 {
            self.compacting_since_ms.store(self.now_ms(), Ordering::Release);
        }
    }

    /// Some of the work was done, in this time.
    pub(crate) fn compaction_went_on(&self, took: Duration) {
        let since_ms = self.compacting_since_ms.load(Ordering::Acquire);
        if since_ms == 0 {
            return;
        }
        let ms = took.as_secs_f64() * 1000.0;
        self.metrics.compaction_pause.observe(ms);
        self.metrics.index_compaction_pause.observe(ms);
        if self.reader.store().compaction_done() {
            self.metrics.compaction_total.observe(self.now_ms().saturating_sub(since_ms) as f64);
            self.compacting_since_ms.store(0, Ordering::Release);
        }
    }

    /// The answer to a request with a deadline up to this says what was asked: it has taken more than half of what is worth a line
    /// in the log.
    pub(crate) fn long_ms(&self) -> u64 {
        let limits = &self.settings.limits;
        let long = u64::try_from(api::slow_threshold(limits).as_millis()).unwrap_or(u64::MAX) / 2;
        (self.now_ms() + limits.request_timeout_ms).saturating_sub(long)
    }

    fn apply_backlog(&self) -> u64 {
        let committed = self.committed.load(Ordering::Acquire);
        committed.saturating_sub(self.applied.load(Ordering::Acquire))
    }
}

impl Member for Node {
    fn propose(&self, mut request: pb::InternalRaftRequest, reply: Reply) {
        if let Some(error) = self.refuse(&request, self.apply_backlog()) {
            return reply.send(Err(error));
        }
        let id = self.ids.next();
        request.header = Some(pb::RequestHeader { id, ..request.header.take().unwrap_or_default() });
        let data = request.encode_to_vec();
        if data.len() > self.settings.limits.max_request_bytes {
            return reply.send(Err(Error::RequestTooLarge));
        }
        self.propose_encoded(id, data, reply);
    }

    fn propose_v2(&self, mut request: v2pb::Request, reply: Reply) {
        if let Some(error) = self.refuse(&pb::InternalRaftRequest::default(), self.apply_backlog()) {
            return reply.send(Err(error));
        }
        let id = self.ids.next();
        request.id = Some(id);
        self.propose_encoded(id, request.encode_to_vec(), reply);
    }

    fn applied_index(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    fn raft_index(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    fn set_log_level(&self, level: LogLevel) {
        logging::set_level(match level {
            LogLevel::Debug => logging::Level::Debug,
            LogLevel::Info => logging::Level::Info,
            LogLevel::Warn => logging::Level::Warn,
            LogLevel::Error => logging::Level::Error,
        });
    }

    fn self_stats(&self) -> SelfStats {
        let (received, sent) = self.peers.get().map(|peers| peers.append_rates()).unwrap_or_default();
        let leader_since_ns = self.leader_since_ns.load(Ordering::Relaxed);
        let led_ns = self.wall_clock_ns().saturating_sub(leader_since_ns);
        SelfStats {
            name: self.settings.attributes.name.clone(),
            started_ns: self.started_ns,
            leader: self.last_leader.load(Ordering::Relaxed),
            leader_since_ns,
            leader_uptime: GoDuration(Duration::from_nanos(u64::try_from(led_ns).unwrap_or(0))).to_string(),
            received: message_rate(received),
            sent: message_rate(sent),
        }
    }

    fn follower_stats(&self) -> Vec<FollowerStats> {
        let latencies = self.peers.get().map(|peers| peers.append_latencies()).unwrap_or_default();
        let stats = |(id, latency): (u64, peer::AppendLatency)| FollowerStats {
            id,
            current: latency.current_ms,
            average: latency.average_ms,
            standard_deviation: latency.standard_deviation_ms,
            minimum: latency.minimum_ms,
            maximum: latency.maximum_ms,
            fail: latency.fail,
            success: latency.success,
        };
        latencies.into_iter().map(stats).collect()
    }

    fn submit(&self) {
        if self.log_sent.load(Ordering::SeqCst) == self.log_synced.load(Ordering::SeqCst) {
            self.drive();
        }
    }

    fn read_index(&self, reply: Reply) {
        if mutant::on(mutant::ReadsUnasked) {
            return reply.send(Ok(Answer::Done));
        }
        // A refused reply is dropped, which answers it.
        drop(self.raft_queue.try_push(Event::Read(reply)));
        self.drive();
    }

    fn read_is_local(&self) -> bool {
        self.local_reads.load(Ordering::Acquire)
    }

    fn state(&self) -> &Reader {
        &self.reader
    }

    fn status(&self) -> Status {
        let size = self.reader.store().size();
        let cluster_version = self.reader.cluster_version().unwrap_or_default();
        Status {
            version: crate::ETCD_VERSION.into(),
            storage_version: cluster_version.clone(),
            cluster_version,
            leader: self.leader(),
            term: self.term(),
            raft_index: self.committed.load(Ordering::Acquire),
            applied_index: self.applied.load(Ordering::Acquire),
            is_learner: self.is_learner(),
            // What the files take from the disk, which gives space in blocks.
            db_size: i64::try_from(size.total.next_multiple_of(DISK_BLOCK)).unwrap_or(i64::MAX),
            db_size_in_use: i64::try_from(size.live.next_multiple_of(DISK_BLOCK)).unwrap_or(i64::MAX),
            quota_bytes: self.settings.quota_bytes,
            downgrade_target: Some(self.reader.downgrade()).filter(|d| d.enabled).map(|d| d.target_version),
        }
    }

    fn peer_traffic(&self) -> Vec<PeerTraffic> {
        self.peers.get().map(|peers| peers.traffic()).unwrap_or_default()
    }

    fn identity(&self) -> Identity {
        self.identity
    }

    fn term(&self) -> u64 {
        self.term.load(Ordering::Acquire)
    }

    fn leader(&self) -> u64 {
        self.leader.load(Ordering::Acquire)
    }

    fn is_learner(&self) -> bool {
        self.learner.load(Ordering::Acquire)
    }

    fn next_id(&self) -> u64 {
        self.ids.next()
    }

    fn lease_renew(&self, id: i64, reply: Reply) {
        let here = if self.read_is_local() { self.renew_here(id) } else { Renewal::NotPrimary };
        match here {
            Renewal::Renewed { ttl, clear_checkpoint: false } => {
                self.metrics.lease_renewed.inc();
                reply.send(Ok(Answer::Renewed(ttl)));
            }
            Renewal::Expired | Renewal::NotFound => reply.send(Ok(Answer::Renewed(0))),
            Renewal::Renewed { .. } | Renewal::NotPrimary => self.renew_lease(id, reply),
        }
    }

    fn lease_time_to_live(&self, id: i64, keys: bool, reply: Reply) {
        match self.time_to_live_here(id, keys) {
            Some(found) => reply.send(Ok(Answer::TimeToLive(found))),
            None => self.forward_time_to_live(id, keys, reply),
        }
    }

    fn change_membership(&self, change: MemberChange, reply: Reply) {
        self.begin_membership_change(change, reply);
    }

    fn move_leader(&self, target: u64, reply: Reply) {
        match self.reader.member(target) {
            Some(member) if !member.is_learner => {}
            _ => return reply.send(Err(Error::BadLeaderTransferee)),
        }
        if target == self.identity.member_id {
            return reply.send(Ok(Answer::Done));
        }
        self.tell(Event::Transfer { to: target, reply });
    }

    fn downgrade(&self, action: i32, version: String, reply: Reply) {
        self.begin_downgrade(action, version, reply);
    }

    fn now_ms(&self) -> u64 {
        // Starts at 1, so that 0 can mean "never".
        1 + u64::try_from(self.host.now().saturating_sub(self.started).as_millis()).unwrap_or(u64::MAX - 1)
    }

    fn limits(&self) -> &Limits {
        &self.settings.limits
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, Error> {
        Ok(Box::new(image::stream(self.image())?))
    }

    fn hash(&self) -> Result<u32, Error> {
        image::hash(&self.image())
    }

    /// There is nothing to do: space comes back in the background all the time.
    fn defragment(&self, reply: Reply) {
        self.upkeep_queue.push(UpkeepJob::Wake);
        reply.send(Ok(Answer::Done));
    }
}

fn message_rate(rate: peer::AppendRate) -> MessageRate {
    MessageRate {
        count: rate.count,
        packets_per_second: rate.messages_per_second,
        bytes_per_second: rate.bytes_per_second,
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// Request IDs: two bytes of the member's ID, five of the time in milliseconds, one counter; each is the one before plus 1,
/// so they stay unique while fewer than 256 are taken per millisecond on average since the start.
#[derive(Debug)]
struct IdGenerator(AtomicU64);

impl IdGenerator {
    fn new(member_id: u64, wall: Duration) -> Self {
        let ms = if mutant::on(mutant::IdsRepeat) { 0 } else { wall.as_millis() as u64 };
        Self(AtomicU64::new((member_id << 48) | ((ms & 0xff_ffff_ffff) << 8)))
    }

    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}
