//! The metrics, under etcd's names.
//!
//! A handle is resolved once, here; nothing on a request's way looks up a label. The counters that every call touches
//! are kept per worker ([`CallCounters`]) and added up when they are scraped, so that two cores never fight over one
//! cache line for the sake of a statistic.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use ::proto::etcdserverpb as pb;
use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, exponential_buckets, proto,
};

use crate::applies::{Applies, AppliesCollector};
use crate::durations::{self, Durations};
use crate::grpc::method::Method;
use crate::load::{Load, LoadCollector, Stint};
use crate::member::Member;
use crate::status::Code;
use crate::timing::Part;

/// Declares the struct, registers each metric under its name, and documents it with its help text.
macro_rules! metrics {
    ($(
        $field:ident: $kind:ident $name:literal $( [ $($label:literal),+ ] )? $( ($start:literal, $factor:literal, $count:literal) )?, $help:literal;
    )*) => {
        /// Every metric of the member; crate `server` and the API write to the handles, `/metrics` reads them.
        pub struct Metrics {
            $( #[doc = $help] pub $field: metrics!(@type $kind), )*
            /// Who causes load.
            pub load: Arc<Load>,
            /// Of the apply actor.
            pub applying: Stint,
            /// How long entries took to apply; the apply actor writes it.
            pub applies: Arc<Applies>,
            registry: Registry,
            calls: Arc<Calls>,
            /// The members that were known at the last scrape; held during one.
            peers: Mutex<BTreeSet<u64>>,
        }

        impl Metrics {
            fn register(calls: Arc<Calls>, registry: Registry) -> Result<Self, prometheus::Error> {
                $(
                    let $field = metrics!(@new $kind $name, $help, [$($($label),+)?], [$($start, $factor, $count)?]);
                    registry.register(Box::new($field.clone()))?;
                )*
                let load = Arc::new(Load::default());
                registry.register(Box::new(LoadCollector::new(load.clone())))?;
                let applies = Arc::new(Applies::default());
                registry.register(Box::new(AppliesCollector::new(applies.clone())))?;
                Ok(Self { $($field,)* load, applying: Stint::default(), applies, registry, calls, peers: Mutex::default() })
            }
        }
    };
    (@type counter) => { IntCounter };
    (@type gauge) => { IntGauge };
    (@type histogram) => { Histogram };
    (@type counters) => { IntCounterVec };
    (@type gauges) => { IntGaugeVec };
    (@type histograms) => { HistogramVec };
    (@new counter $name:literal, $help:literal, [], []) => { IntCounter::new($name, $help)? };
    (@new gauge $name:literal, $help:literal, [], []) => { IntGauge::new($name, $help)? };
    (@new counters $name:literal, $help:literal, [$($label:literal),+], []) => {
        IntCounterVec::new(Opts::new($name, $help), &[$($label),+])?
    };
    (@new gauges $name:literal, $help:literal, [$($label:literal),+], []) => {
        IntGaugeVec::new(Opts::new($name, $help), &[$($label),+])?
    };
    (@new histogram $name:literal, $help:literal, [], [$start:literal, $factor:literal, $count:literal]) => {
        Histogram::with_opts(HistogramOpts::new($name, $help).buckets(exponential_buckets($start, $factor, $count)?))?
    };
    (@new histograms $name:literal, $help:literal, [$($label:literal),+], [$start:literal, $factor:literal, $count:literal]) => {
        HistogramVec::new(
            HistogramOpts::new($name, $help).buckets(exponential_buckets($start, $factor, $count)?),
            &[$($label),+],
        )?
    };
}

metrics! {
    cluster_version: gauges "etcd_cluster_version" ["cluster_version"], "1 for the version the cluster has agreed on.";

    auth_revision: gauge "etcd_debugging_auth_revision", "Revision of the users, roles and permissions.";
    lease_granted: counter "etcd_debugging_lease_granted_total", "Leases granted.";
    lease_renewed: counter "etcd_debugging_lease_renewed_total", "Lease renewals seen by the leader.";
    lease_revoked: counter "etcd_debugging_lease_revoked_total", "Leases revoked, expired ones included.";
    lease_ttl: histogram "etcd_debugging_lease_ttl_total" (1.0, 2.0, 24), "TTLs granted, in seconds.";
    debugging_db_size: gauge "etcd_debugging_mvcc_db_total_size_in_bytes", "Bytes of the store's files, under the name of etcd 3.4.";
    debugging_deletes: counter "etcd_debugging_mvcc_delete_total", "Deletions applied, under the name of etcd 3.4.";
    debugging_puts: counter "etcd_debugging_mvcc_put_total", "Puts applied, under the name of etcd 3.4.";
    debugging_ranges: counter "etcd_debugging_mvcc_range_total", "Ranges answered, under the name of etcd 3.4 and 3.5.";
    debugging_txns: counter "etcd_debugging_mvcc_txn_total", "Transactions applied, under the name of etcd 3.4.";
    http_received: counters "etcd_http_received_total" ["method"], "Requests of the v2 API.";
    http_failed: counters "etcd_http_failed_total" ["method", "code"], "Requests of the v2 API that were refused.";
    http_successful: histograms "etcd_http_successful_duration_seconds" ["method"] (0.0005, 2.0, 13), "Duration of requests of the v2 API that were not refused.";
    compact_revision: gauge "etcd_debugging_mvcc_compact_revision", "Revision of the last compaction.";
    current_revision: gauge "etcd_debugging_mvcc_current_revision", "Newest revision of the store.";
    compaction_keys: counter "etcd_debugging_mvcc_db_compaction_keys_total", "Versions dropped by compactions.";
    compaction_last: gauge "etcd_debugging_mvcc_db_compaction_last", "Unix time of the last compaction.";
    compaction_pause: histogram "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds" (1.0, 2.0, 13), "How long one step of a compaction kept others waiting.";
    compaction_total: histogram "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds" (100.0, 2.0, 14), "Duration of whole compactions.";
    index_compaction_pause: histogram "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds" (0.5, 2.0, 14), "How long the index was held by a step of its compaction.";
    events: counter "etcd_debugging_mvcc_events_total", "Events sent to watchers.";
    keys: gauge "etcd_debugging_mvcc_keys_total", "Keys that live at the newest revision.";
    pending_events: gauge "etcd_debugging_mvcc_pending_events_total", "Events waiting to be sent to watchers.";
    slow_watchers: gauge "etcd_debugging_mvcc_slow_watcher_total", "Watchers that are behind and catching up.";
    watch_streams: gauge "etcd_debugging_mvcc_watch_stream_total", "Open watch streams.";
    watchers: gauge "etcd_debugging_mvcc_watcher_total", "Watchers.";
    total_put_size: gauge "etcd_debugging_mvcc_total_put_size_in_bytes", "Bytes of keys and values put.";
    alarms: gauges "etcd_debugging_server_alarms" ["server_id", "alarm_type"], "1 for every alarm that is raised.";
    lease_expired_total: counter "etcd_debugging_server_lease_expired_total", "Leases that ran out.";
    snap_marshalling: histogram "etcd_debugging_snap_save_marshalling_duration_seconds" (0.001, 2.0, 14), "Time to encode a .snap file.";
    snap_save_total: histogram "etcd_debugging_snap_save_total_duration_seconds" (0.001, 2.0, 14), "Time to write a .snap file.";

    backend_commit: histogram "etcd_disk_backend_commit_duration_seconds" (0.001, 2.0, 14), "Duration of handing to the file system what was applied; every 100 ms while something is.";
    defrag: histogram "etcd_disk_backend_defrag_duration_seconds" (0.1, 2.0, 13), "Duration of a defragmentation.";
    backend_snapshot: histogram "etcd_disk_backend_snapshot_duration_seconds" (0.01, 2.0, 17), "Duration of sending a snapshot.";
    defrag_inflight: gauge "etcd_disk_defrag_inflight", "Whether a defragmentation is running.";
    wal_fsync_duration: histogram "etcd_disk_wal_fsync_duration_seconds" (0.001, 2.0, 14), "Duration of a sync of the write-ahead log.";
    wal_write_bytes: gauge "etcd_disk_wal_write_bytes_total", "Bytes written to the write-ahead log.";
    wal_write: histogram "etcd_disk_wal_write_duration_seconds" (0.001, 2.0, 14), "Duration of a write to the write-ahead log.";

    open_read_transactions: gauge "etcd_mvcc_db_open_read_transactions", "Reads and snapshots that hold a revision.";
    db_total_size: gauge "etcd_mvcc_db_total_size_in_bytes", "Bytes of the store's files.";
    db_in_use: gauge "etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes in the store's files that are reachable.";
    deletes: counter "etcd_mvcc_delete_total", "Deletions applied.";
    hash: histogram "etcd_mvcc_hash_duration_seconds" (0.01, 2.0, 15), "Duration of Hash.";
    hash_kv: histogram "etcd_mvcc_hash_rev_duration_seconds" (0.01, 2.0, 15), "Duration of HashKV.";
    puts: counter "etcd_mvcc_put_total", "Puts applied.";
    ranges: counter "etcd_mvcc_range_total", "Ranges answered.";
    txns: counter "etcd_mvcc_txn_total", "Transactions applied.";

    active_peers: gauges "etcd_network_active_peers" ["Local", "Remote"], "Peers with an open connection.";
    disconnected_peers: counters "etcd_network_disconnected_peers_total" ["Local", "Remote"], "Connections to peers lost.";
    known_peers: gauges "etcd_network_known_peers" ["Local", "Remote"], "Peers in the membership.";
    peer_received_bytes: counters "etcd_network_peer_received_bytes_total" ["From"], "Bytes received from a peer.";
    peer_received_failures: counters "etcd_network_peer_received_failures_total" ["From"], "Failures to receive from a peer.";
    peer_round_trip: histograms "etcd_network_peer_round_trip_time_seconds" ["To"] (0.0001, 2.0, 16), "Round trip to a peer.";
    peer_sent_bytes: counters "etcd_network_peer_sent_bytes_total" ["To"], "Bytes sent to a peer.";
    peer_sent_failures: counters "etcd_network_peer_sent_failures_total" ["To"], "Failures to send to a peer.";
    stream_failures: counters "etcd_network_server_stream_failures_total" ["Type", "API"], "Streams of clients that failed.";
    snapshot_receive_failures: counters "etcd_network_snapshot_receive_failures" ["From"], "Snapshots not received.";
    snapshot_receive_inflights: gauges "etcd_network_snapshot_receive_inflights_total" ["From"], "Snapshots being received.";
    snapshot_receive_success: counters "etcd_network_snapshot_receive_success" ["From"], "Snapshots received.";
    snapshot_receive_total: histograms "etcd_network_snapshot_receive_total_duration_seconds" ["From"] (0.1, 2.0, 10), "Duration of receiving a snapshot.";
    snapshot_send_failures: counters "etcd_network_snapshot_send_failures" ["To"], "Snapshots not sent.";
    snapshot_send_inflights: gauges "etcd_network_snapshot_send_inflights_total" ["To"], "Snapshots being sent.";
    snapshot_send_success: counters "etcd_network_snapshot_send_success" ["To"], "Snapshots sent.";
    snapshot_send_total: histograms "etcd_network_snapshot_send_total_duration_seconds" ["To"] (0.1, 2.0, 10), "Duration of sending a snapshot.";

    client_requests: counters "etcd_server_client_requests_total" ["type", "client_api_version"], "Requests by the version of the client.";
    feature_enabled: gauges "etcd_server_feature_enabled" ["name", "stage"], "Whether a feature gate is on.";
    has_leader: gauge "etcd_server_has_leader", "Whether there is a leader.";
    health_failures: counter "etcd_server_health_failures", "Failed answers of /health.";
    health_success: counter "etcd_server_health_success", "Successful answers of /health.";
    healthcheck: gauges "etcd_server_healthcheck" ["type", "name"], "Result of a health check when it last ran.";
    healthchecks: counters "etcd_server_healthchecks_total" ["type", "name", "status"], "Health checks run.";
    heartbeat_send_failures: counter "etcd_server_heartbeat_send_failures_total", "Heartbeats that the leader sent late.";
    server_id: gauges "etcd_server_id" ["server_id"], "1 for this member's ID, in hex.";
    is_leader: gauge "etcd_server_is_leader", "Whether this member is the leader.";
    is_learner: gauge "etcd_server_is_learner", "Whether this member is a learner.";
    leader_changes_seen_total: counter "etcd_server_leader_changes_seen_total", "Changes of leader seen.";
    learner_promote_failures: counters "etcd_server_learner_promote_failures" ["Reason"], "Learners that could not be promoted.";
    learner_promote_successes: counter "etcd_server_learner_promote_successes", "Learners promoted.";
    proposals_applied: gauge "etcd_server_proposals_applied_total", "Applied raft index.";
    proposals_committed: gauge "etcd_server_proposals_committed_total", "Committed raft index.";
    proposals_failed: counter "etcd_server_proposals_failed_total", "Proposals that failed.";
    proposals_pending: gauge "etcd_server_proposals_pending", "Proposals under way.";
    quota_bytes: gauge "etcd_server_quota_backend_bytes", "Size of the store at which writes are refused.";
    read_indexes_failed: counter "etcd_server_read_indexes_failed_total", "Read barriers that failed.";
    request_duration: histograms "etcd_server_request_duration_seconds" ["type", "success"] (0.001, 2.0, 14), "Duration of a request.";
    slow_apply_total: counter "etcd_server_slow_apply_total", "Requests that took more than 100 ms to apply.";
    slow_read_indexes: counter "etcd_server_slow_read_indexes_total", "Read barriers that took longer than a request may.";
    snapshot_apply_in_progress: gauge "etcd_server_snapshot_apply_in_progress_total", "Whether a snapshot is being applied.";
    server_version: gauges "etcd_server_version" ["server_version"], "1 for the version that is reported on the wire.";

    snap_db_fsync: histogram "etcd_snap_db_fsync_duration_seconds" (0.001, 2.0, 14), "Duration of a sync of a received database.";
    snap_db_save_total: histogram "etcd_snap_db_save_total_duration_seconds" (0.1, 2.0, 10), "Duration of saving a received database.";
    snap_fsync: histogram "etcd_snap_fsync_duration_seconds" (0.001, 2.0, 14), "Duration of a sync of a .snap file.";
}

impl Metrics {
    /// All metrics, at zero. `extensive` adds the histograms of `--metrics=extensive`.
    pub fn new(extensive: bool) -> Arc<Self> {
        let registry = Registry::new();
        let calls = Arc::new(Calls::new(extensive));
        let metrics = registry
            .register(Box::new(CallCollector(calls.clone())))
            .and_then(|()| registry.register(Box::new(ProcessCollector::new())))
            .and_then(|()| Self::register(calls, registry))
            .expect("names and buckets are constants, and no name occurs twice");
        Arc::new(metrics)
    }

    /// Counters for one more worker.
    pub fn worker(&self) -> Arc<CallCounters> {
        let counters = Arc::new(CallCounters::new());
        self.calls.workers.lock().push(counters.clone());
        counters
    }

    /// The histogram of `method`'s durations, if `--metrics=extensive`.
    pub(crate) fn handling(&self, method: Method) -> Option<&Histogram> {
        self.calls.handling.as_ref().map(|(_, by_method)| &by_method[method as usize])
    }

    /// Everything in the text format, after the gauges that mirror the member's state have been brought up to date.
    pub fn scrape(&self, member: &dyn Member) -> Vec<u8> {
        let status = member.status();
        let reader = member.state();
        self.has_leader.set(i64::from(status.leader != 0));
        self.is_leader.set(i64::from(status.leader == member.identity().member_id));
        self.is_learner.set(i64::from(status.is_learner));
        self.proposals_applied.set(status.applied_index as i64);
        self.proposals_committed.set(status.raft_index as i64);
        self.quota_bytes.set(status.quota_bytes);
        self.db_total_size.set(status.db_size);
        self.debugging_db_size.set(status.db_size);
        self.auth_revision.set(i64::try_from(reader.auth().revision()).unwrap_or(i64::MAX));
        raise(&self.compaction_keys, reader.store().versions_dropped());
        raise(&self.debugging_deletes, self.deletes.get());
        raise(&self.debugging_puts, self.puts.get());
        raise(&self.debugging_ranges, self.ranges.get());
        raise(&self.debugging_txns, self.txns.get());
        self.keys.set(i64::try_from(reader.store().indexed_keys()).unwrap_or(i64::MAX));
        self.db_in_use.set(status.db_size_in_use);
        self.current_revision.set(reader.revision());
        self.compact_revision.set(reader.compact_revision());
        let mut watching = [0; 3];
        for worker in self.calls.workers.lock().iter() {
            let counts = [&worker.watch_streams, &worker.watchers, &worker.slow_watchers];
            watching.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count.get() as i64);
        }
        self.watch_streams.set(watching[0]);
        self.watchers.set(watching[1]);
        self.slow_watchers.set(watching[2]);
        self.cluster_version.reset();
        if !status.cluster_version.is_empty() {
            self.cluster_version.with_label_values(&[minor_version(&status.cluster_version)]).set(1);
        }
        self.server_version.with_label_values(&[&status.version]).set(1);
        self.server_id.with_label_values(&[&format!("{:x}", member.identity().member_id)]).set(1);
        self.alarms.reset();
        for alarm in reader.alarms(0) {
            let kind = pb::AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |kind| kind.as_str_name());
            self.alarms.with_label_values(&[&format!("{:x}", alarm.member_id), kind]).set(1);
        }
        self.mirror_peers(member);

        let mut text = Vec::with_capacity(64 << 10);
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::warn!(%error, "failed to encode metrics");
        }
        text
    }
}

impl Metrics {
    /// Brings what is known of the other members up to date.
    fn mirror_peers(&self, member: &dyn Member) {
        let mut before = self.peers.lock();
        let own_id = member.identity().member_id;
        let own = format!("{own_id:x}");
        let known: BTreeSet<u64> = member.state().members().iter().map(|m| m.id).filter(|id| *id != own_id).collect();
        for id in before.union(&known) {
            let labels = [own.as_str(), &format!("{id:x}")];
            self.known_peers.with_label_values(&labels).set(i64::from(known.contains(id)));
            if !known.contains(id) {
                self.active_peers.with_label_values(&labels).set(0);
            }
        }
        for peer in member.peer_traffic() {
            let id = format!("{:x}", peer.id);
            self.active_peers.with_label_values(&[&own, &id]).set(i64::from(peer.active));
            raise(&self.disconnected_peers.with_label_values(&[&own, &id]), peer.disconnects);
            raise(&self.peer_sent_bytes.with_label_values(&[&id]), peer.sent_bytes);
            raise(&self.peer_received_bytes.with_label_values(&[&id]), peer.received_bytes);
            raise(&self.peer_sent_failures.with_label_values(&[&id]), peer.send_failures);
            raise(&self.peer_received_failures.with_label_values(&[&id]), peer.receive_failures);
        }
        *before = known;
    }
}

/// Brings a counter up to what was counted elsewhere. A member that was removed and came back is counted from 0 again.
fn raise(counter: &IntCounter, total: u64) {
    match total.checked_sub(counter.get()) {
        Some(more) => counter.inc_by(more),
        None => {
            counter.reset();
            counter.inc_by(total);
        }
    }
}

/// `3.7` of `3.7.0`, as the label of `etcd_cluster_version` has it.
fn minor_version(version: &str) -> &str {
    match version.match_indices('.').nth(1) {
        Some((end, _)) => &version[..end],
        None => version,
    }
}

/// A counter that only one thread writes: no locked instruction, only a store that other threads may read.
#[derive(Debug, Default)]
pub(crate) struct Single(AtomicU64);

impl Single {
    pub(crate) fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What one worker counts. Written by that worker only.
#[derive(Debug)]
pub struct CallCounters {
    methods: Vec<MethodCounters>,
    /// This worker's unfinished quantum; see [`Load`].
    pub(crate) stint: Stint,
    parts: [Durations; Part::ALL.len()],
    /// Ranges that failed and that did not.
    ranges: [Durations; 2],
    received_bytes: Single,
    sent_bytes: Single,
    watch_streams: Single,
    watchers: Single,
    slow_watchers: Single,
}

#[derive(Debug, Default)]
struct MethodCounters {
    started: Single,
    received: Single,
    sent: Single,
    handled: [Single; Code::ALL.len()],
}

impl CallCounters {
    fn new() -> Self {
        Self {
            methods: Method::ALL.iter().map(|_| MethodCounters::default()).collect(),
            stint: Stint::default(),
            parts: Default::default(),
            ranges: Default::default(),
            received_bytes: Single::default(),
            sent_bytes: Single::default(),
            watch_streams: Single::default(),
            watchers: Single::default(),
            slow_watchers: Single::default(),
        }
    }

    /// How many watch streams and watchers there are now, and how many of those lag behind.
    pub(crate) fn watching(&self, streams: usize, watchers: usize, slow: usize) {
        self.watch_streams.set(streams as u64);
        self.watchers.set(watchers as u64);
        self.slow_watchers.set(slow as u64);
    }

    /// So long a part of a request took.
    pub(crate) fn took(&self, part: Part, duration: Duration) {
        self.parts[part as usize].observe(duration);
    }

    /// So long a range took, without what it waited for.
    pub(crate) fn ranged(&self, success: bool, duration: Duration) {
        self.ranges[usize::from(success)].observe(duration);
    }

    /// A call began.
    pub(crate) fn started(&self, method: Method) {
        self.methods[method as usize].started.add(1);
    }

    /// A message of `bytes` came in.
    pub(crate) fn received(&self, method: Method, bytes: usize) {
        self.methods[method as usize].received.add(1);
        self.received_bytes.add(bytes as u64);
    }

    /// `messages` of `bytes` in all went out.
    pub(crate) fn sent(&self, method: Method, messages: u64, bytes: usize) {
        self.methods[method as usize].sent.add(messages);
        self.sent_bytes.add(bytes as u64);
    }

    /// A call ended.
    pub(crate) fn handled(&self, method: Method, code: Code) {
        self.methods[method as usize].handled[code as usize].add(1);
    }
}

/// The counters of all workers, and what is measured across them.
struct Calls {
    workers: Mutex<Vec<Arc<CallCounters>>>,
    /// With `--metrics=extensive`: the family, and its histograms by method.
    handling: Option<(HistogramVec, Vec<Histogram>)>,
    descs: Vec<Desc>,
}

impl Calls {
    fn new(extensive: bool) -> Self {
        let handling = extensive.then(|| {
            let family = HistogramVec::new(
                HistogramOpts::new("grpc_server_handling_seconds", "Duration of RPCs, until they were answered."),
                &["grpc_type", "grpc_service", "grpc_method"],
            )
            .expect("name and labels are valid constants");
            let by_method = Method::ALL
                .iter()
                .map(|m| family.with_label_values(&[m.kind().label(), m.service(), m.name()]))
                .collect();
            (family, by_method)
        });
        Self { workers: Mutex::default(), handling, descs: Self::descs() }
    }

    fn descs() -> Vec<Desc> {
        let mut descs: Vec<_> = FAMILIES.iter().map(Family::desc).collect();
        descs.push(durations::desc(PARTS, PARTS_HELP, &["part", "type"]));
        descs.push(durations::desc(RANGES, RANGES_HELP, &["success"]));
        descs
    }
}

/// The families that are summed over the workers.
struct Family {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
}

impl Family {
    fn desc(&self) -> Desc {
        let labels = self.labels.iter().map(ToString::to_string).collect();
        Desc::new(self.name.into(), self.help.into(), labels, HashMap::new())
            .expect("name and labels are valid constants")
    }

    fn of(&self, metrics: Vec<proto::Metric>) -> proto::MetricFamily {
        family(self.name, self.help, proto::MetricType::COUNTER, metrics)
    }
}

const METHOD_LABELS: &[&str] = &["grpc_type", "grpc_service", "grpc_method"];
const FAMILIES: [Family; 6] = [
    Family { name: "grpc_server_started_total", help: "RPCs begun.", labels: METHOD_LABELS },
    Family { name: "grpc_server_msg_received_total", help: "Messages received in RPCs.", labels: METHOD_LABELS },
    Family { name: "grpc_server_msg_sent_total", help: "Messages sent in RPCs.", labels: METHOD_LABELS },
    Family {
        name: "grpc_server_handled_total",
        help: "RPCs ended, by code.",
        labels: &["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
    },
    Family { name: "etcd_network_client_grpc_received_bytes_total", help: "Bytes received from clients.", labels: &[] },
    Family { name: "etcd_network_client_grpc_sent_bytes_total", help: "Bytes sent to clients.", labels: &[] },
];

/// Where the time of requests goes; see [`crate::timing`].
const PARTS: &str = "keelson_request_part_duration_seconds";
const PARTS_HELP: &str = "What requests spent their time on; the parts of a request sum to its whole.";
const RANGES: &str = "etcd_server_range_duration_seconds";
const RANGES_HELP: &str = "Duration of a range.";

struct CallCollector(Arc<Calls>);

impl Collector for CallCollector {
    fn desc(&self) -> Vec<&Desc> {
        let mut descs: Vec<_> = self.0.descs.iter().collect();
        if let Some((family, _)) = &self.0.handling {
            descs.extend(family.desc());
        }
        descs
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let workers = self.0.workers.lock();
        let sum = |of: &dyn Fn(&CallCounters) -> u64| workers.iter().map(|worker| of(worker)).sum::<u64>();
        let per_method = |of: &dyn Fn(&MethodCounters) -> u64| -> Vec<proto::Metric> {
            let value = |m: Method| sum(&|worker: &CallCounters| of(&worker.methods[m as usize]));
            Method::ALL.iter().map(|&m| counter(method_labels(m), value(m))).collect()
        };
        let mut handled = Vec::new();
        for &method in Method::ALL {
            for code in Code::ALL {
                let count = sum(&|worker: &CallCounters| worker.methods[method as usize].handled[code as usize].get());
                // All codes of all methods would be 900 lines; OK is always there, the others once they have happened.
                if count > 0 || code == Code::Ok {
                    let mut labels = method_labels(method);
                    labels.insert(0, label("grpc_code", code.name()));
                    handled.push(counter(labels, count));
                }
            }
        }
        let [started_family, received_family, sent_family, handled_family, received_bytes, sent_bytes] = &FAMILIES;
        let mut families = vec![
            started_family.of(per_method(&|m| m.started.get())),
            received_family.of(per_method(&|m| m.received.get())),
            sent_family.of(per_method(&|m| m.sent.get())),
            handled_family.of(handled),
            received_bytes.of(vec![counter(Vec::new(), sum(&|worker| worker.received_bytes.get()))]),
            sent_bytes.of(vec![counter(Vec::new(), sum(&|worker| worker.sent_bytes.get()))]),
        ];
        let parts = Part::ALL.iter().map(|&part| {
            let (name, kind) = part.labels();
            let of_workers = workers.iter().map(|worker| &worker.parts[part as usize]);
            durations::metric(vec![label("part", name), label("type", kind)], of_workers)
        });
        families.push(family(PARTS, PARTS_HELP, proto::MetricType::HISTOGRAM, parts.collect()));
        let ranges = ["false", "true"].into_iter().enumerate().map(|(place, success)| {
            durations::metric(vec![label("success", success)], workers.iter().map(|worker| &worker.ranges[place]))
        });
        families.push(family(RANGES, RANGES_HELP, proto::MetricType::HISTOGRAM, ranges.collect()));
        if let Some((family, _)) = &self.0.handling {
            families.extend(family.collect());
        }
        families
    }
}

pub(crate) fn label(name: &str, value: &str) -> proto::LabelPair {
    let mut pair = proto::LabelPair::default();
    pair.set_name(name.into());
    pair.set_value(value.into());
    pair
}

/// In the order of their names, as the text format has them.
fn method_labels(method: Method) -> Vec<proto::LabelPair> {
    vec![
        label("grpc_method", method.name()),
        label("grpc_service", method.service()),
        label("grpc_type", method.kind().label()),
    ]
}

fn counter(labels: Vec<proto::LabelPair>, value: u64) -> proto::Metric {
    let mut counter = proto::Counter::default();
    counter.set_value(value as f64);
    let mut metric = proto::Metric::from_label(labels);
    metric.set_counter(counter);
    metric
}

fn gauge(value: f64) -> proto::Metric {
    let mut gauge = proto::Gauge::default();
    gauge.set_value(value);
    proto::Metric::from_gauge(gauge)
}

pub(crate) fn family(
    name: &str,
    help: &str,
    kind: proto::MetricType,
    metrics: Vec<proto::Metric>,
) -> proto::MetricFamily {
    let mut family = proto::MetricFamily::default();
    family.set_name(name.into());
    family.set_help(help.into());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

/// `process_*` and `os_fd_*`, read from `/proc/self` when scraped.
struct ProcessCollector {
    descs: Vec<Desc>,
    /// Seconds since the epoch, which does not change and takes a second file to work out.
    start_time: f64,
}

const PROCESS_FAMILIES: [Family; 9] = [
    Family { name: "os_fd_limit", help: "Limit on open file descriptors.", labels: &[] },
    Family { name: "os_fd_used", help: "Open file descriptors.", labels: &[] },
    Family { name: "process_cpu_seconds_total", help: "CPU time used, in seconds.", labels: &[] },
    Family { name: "process_max_fds", help: "Limit on open file descriptors.", labels: &[] },
    Family { name: "process_open_fds", help: "Open file descriptors.", labels: &[] },
    Family { name: "process_resident_memory_bytes", help: "Memory in use.", labels: &[] },
    Family { name: "process_start_time_seconds", help: "When the process was started, in Unix time.", labels: &[] },
    Family { name: "process_virtual_memory_bytes", help: "Address space in use.", labels: &[] },
    Family { name: "process_virtual_memory_max_bytes", help: "Limit on the address space; -1 = none.", labels: &[] },
];

/// Linux reports CPU time in these to user space on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;
const PAGE_BYTES: f64 = 4096.0;

#[derive(Default)]
struct ProcStat {
    cpu_seconds: f64,
    start_ticks: f64,
    virtual_bytes: f64,
    resident_bytes: f64,
}

impl ProcStat {
    fn read() -> Self {
        let Ok(line) = fs::read_to_string("/proc/self/stat") else { return Self::default() };
        // The second field is the program's name in parentheses and may hold anything; count from its end.
        let Some((_, rest)) = line.rsplit_once(')') else { return Self::default() };
        let fields: Vec<f64> = rest.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0.0);
        Self {
            cpu_seconds: (field(14) + field(15)) / TICKS_PER_SECOND,
            start_ticks: field(22),
            virtual_bytes: field(23),
            resident_bytes: field(24) * PAGE_BYTES,
        }
    }
}

/// The soft limit on a line of `/proc/self/limits`; -1 = unlimited or unknown.
fn soft_limit(limits: &str, name: &str) -> f64 {
    let value = limits.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    value.and_then(|value| value.parse().ok()).unwrap_or(-1.0)
}

/// How many file descriptors are open and how many may be.
pub(crate) fn file_descriptors() -> (f64, f64) {
    let open = fs::read_dir("/proc/self/fd").map(|entries| entries.count().saturating_sub(1)).unwrap_or(0);
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    (open as f64, soft_limit(&limits, "Max open files"))
}

impl ProcessCollector {
    fn new() -> Self {
        let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
        let uptime: f64 = uptime.split_whitespace().next().and_then(|v| v.parse().ok()).unwrap_or(0.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let start_time = now.as_secs_f64() - uptime + ProcStat::read().start_ticks / TICKS_PER_SECOND;
        Self { descs: PROCESS_FAMILIES.iter().map(Family::desc).collect(), start_time }
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let stat = ProcStat::read();
        let (open, limit) = file_descriptors();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let values = [
            limit,
            open,
            stat.cpu_seconds,
            limit,
            open,
            stat.resident_bytes,
            self.start_time,
            stat.virtual_bytes,
            soft_limit(&limits, "Max address space"),
        ];
        let metrics = PROCESS_FAMILIES.iter().zip(values);
        metrics
            .map(|(known, value)| {
                if known.name.ends_with("_total") {
                    let mut counter = proto::Counter::default();
                    counter.set_value(value);
                    let mut metric = proto::Metric::from_label(Vec::new());
                    metric.set_counter(counter);
                    family(known.name, known.help, proto::MetricType::COUNTER, vec![metric])
                } else {
                    family(known.name, known.help, proto::MetricType::GAUGE, vec![gauge(value)])
                }
            })
            .collect()
    }
}
