//! A member in somebody else's hands: the same parts as in [`crate::run()`], without threads.
//!
//! Where production waits in a thread's loop, here a simulator calls the turn of that loop whenever it likes: between any
//! two turns it may let time pass, deliver messages, cut the power, or do nothing for as long as a hung disk would.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::{Identity, Limits, Member, Metrics};
use disk::{Disk, File};
use peer::Local;
use proto::membershippb;
use raft_driver::Status;
use wal::{HardState, Wal};

use crate::applier::{self, Applier, Runner};
use crate::bootstrap::{self, BootError, Booted};
use crate::compactor::{Compactor, Retention};
use crate::consensus::{Consensus, Event, Ticks};
use crate::drive::{self, Core};
use crate::host::{Host, Neighbours, Peers};
use crate::log_writer::{self, LogJob};
use crate::member::{Node, Settings};
use crate::peers::Link;
use crate::upkeep::{Upkeep, UpkeepJob};
use crate::{downgrade, versions};

/// What a member's flags would say.
#[derive(Clone, Debug)]
pub struct Flags {
    /// `--name`.
    pub name: String,
    /// `--data-dir`.
    pub data_dir: PathBuf,
    /// `--initial-cluster`: name and peer URLs of every member.
    pub initial_cluster: Vec<(String, Vec<String>)>,
    /// `--initial-cluster-state existing`.
    pub joins: bool,
    /// `--heartbeat-interval`, which is also how often [`SimulatedMember::tick`] is called.
    pub heartbeat_ms: u64,
    /// `--election-timeout`.
    pub election_ms: u64,
    /// `--pre-vote`.
    pub pre_vote: bool,
    /// `--snapshot-count`.
    pub snapshot_count: u64,
    /// `--snapshot-catchup-entries`.
    pub snapshot_catchup_entries: u64,
    /// `--max-wals`, and `--max-snapshots`.
    pub max_files: usize,
    /// `--quota-backend-bytes`.
    pub quota_bytes: i64,
    /// `--auto-compaction-mode revision` with this retention.
    pub compact_keeping: Option<i64>,
    /// `--strict-reconfig-check`.
    pub strict_reconfig_check: bool,
    /// Size at which a new segment of the log is begun.
    pub log_segment_bytes: u64,
    /// Sizes of the store.
    pub store: store::Options,
}

/// A running member.
pub struct SimulatedMember {
    node: Arc<Node>,
    link: Arc<Link>,
    wal: Wal,
    log_jobs: VecDeque<LogJob>,
    upkeep: Upkeep,
    upkeep_jobs: VecDeque<UpkeepJob>,
    spare_jobs: VecDeque<wal::Prepare>,
    spares: VecDeque<wal::Prepare>,
    /// Ends with the process.
    _lock: Arc<dyn File>,
}

impl std::fmt::Debug for SimulatedMember {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.node.fmt(out)
    }
}

impl SimulatedMember {
    /// Starts a member from what its disk holds.
    ///
    /// # Errors
    /// As in production.
    pub fn start(
        flags: &Flags,
        disk: &Arc<dyn Disk>,
        neighbours: &dyn Neighbours,
        host: Arc<dyn Host>,
        peers: Arc<dyn Peers>,
        seed: u64,
    ) -> Result<Self, BootError> {
        let plan = bootstrap::Plan {
            name: flags.name.clone(),
            data_dir: flags.data_dir.clone(),
            wal_dir: flags.data_dir.join("member").join("wal"),
            initial_cluster: flags.initial_cluster.clone(),
            token: "sim".into(),
            joins: flags.joins,
            force_new_cluster: false,
            quota_bytes: flags.quota_bytes,
            heartbeat_ms: flags.heartbeat_ms,
            election_ms: flags.election_ms,
            pre_vote: flags.pre_vote,
            store: flags.store.clone(),
        };
        let booted = bootstrap::boot(disk, neighbours, &plan, seed)?;
        let Booted {
            identity, mut wal, driver, state, reader, mark, conf_state, snapshot_index, remotes, lock, ..
        } = booted;
        wal.set_segment_bytes(flags.log_segment_bytes);
        let settings = settings(flags, reader.quota_bytes());
        let ticks = |ms: u64| (ms / flags.heartbeat_ms).max(1);
        let limits = Ticks {
            retry: ticks(500),
            election: ticks(flags.election_ms),
            timeout: ticks(settings.limits.request_timeout_ms),
        };
        let identity = Identity { cluster_id: identity.cluster_id, member_id: identity.node_id };
        let core = Core::new(Consensus::new(driver, limits, seed));
        let count = flags.snapshot_count;
        let applier = Applier::new(state, reader.clone(), mark.index, conf_state.clone(), snapshot_index, count);
        let runner = Runner::new(applier);
        let metrics = Metrics::new(false);
        let disk = Arc::clone(disk);
        let node = Arc::new_cyclic(|this| {
            Node::new(
                this,
                settings,
                host,
                disk,
                metrics,
                identity,
                reader.clone(),
                mark.index,
                conf_state,
                core,
                runner,
            )
        });
        for (id, urls) in remotes {
            peers.add(id, urls);
        }
        for member in reader.members().into_iter().filter(|m| m.id != identity.member_id) {
            peers.add(member.id, member.peer_urls);
        }
        let _first = node.peers.set(peers);
        node.held_back.store(false, Ordering::Release);
        node.host.spawn(Box::pin(versions::watch(Arc::clone(&node))));
        node.host.spawn(Box::pin(downgrade::watch(Arc::clone(&node), Duration::from_secs(5))));
        Ok(Self {
            link: Arc::new(Link(Arc::clone(&node))),
            node,
            wal,
            log_jobs: VecDeque::new(),
            upkeep: Upkeep::new(flags.compact_keeping.map(|keep| Compactor::new(Retention::Revisions(keep)))),
            upkeep_jobs: VecDeque::new(),
            spare_jobs: VecDeque::new(),
            spares: VecDeque::new(),
            _lock: lock,
        })
    }

    /// The member as clients know it.
    pub fn member(&self) -> Arc<dyn Member> {
        Arc::clone(&self.node) as Arc<dyn Member>
    }

    /// The member as its peers know it.
    pub fn link(&self) -> Arc<dyn Local> {
        Arc::clone(&self.link) as Arc<dyn Local>
    }

    /// Where its consensus stands; `None` once it has ended.
    pub fn raft_status(&self) -> Option<Status> {
        self.node.core.lock().as_ref().map(Core::status)
    }

    /// Term and vote as they stand in the log.
    pub fn hard_state(&self) -> HardState {
        self.wal.hard_state()
    }

    /// Everything up to this index is applied.
    pub fn applied(&self) -> u64 {
        self.node.applied.load(Ordering::SeqCst)
    }

    /// Why the member cannot go on.
    pub fn failure(&self) -> Option<String> {
        self.node.failure()
    }

    /// Whether the member wants to end, because it was told to or because it was removed from the cluster.
    pub fn is_stopping(&self) -> bool {
        self.node.is_stopping()
    }

    /// Whether clients may come.
    pub fn is_ready(&self) -> bool {
        !self.node.is_starting() && !self.is_stopping()
    }

    /// The raft thread: one heartbeat interval has passed.
    pub fn tick(&self) {
        self.node.tell(Event::Tick);
    }

    /// Whether the log's thread has something to do.
    pub fn wants_log(&self) -> bool {
        !self.node.log_queue.is_empty()
    }

    /// A turn of the log's thread. Takes all that has queued up, and answers whether the member can go on.
    pub fn log(&mut self) -> bool {
        self.node.log_queue.take_now(&mut self.log_jobs);
        log_writer::turn(&self.node, &mut self.wal, &mut self.log_jobs).is_continue()
    }

    /// Whether the apply thread has something to do.
    pub fn wants_apply(&self) -> bool {
        !self.node.apply_queue.is_empty()
    }

    /// A turn of the apply thread. Breaks if the member cannot go on; else says when the next is due even if nothing comes.
    pub fn apply(&self) -> ControlFlow<(), Option<Duration>> {
        applier::turn(&self.node)
    }

    /// A turn of the upkeep thread. Breaks if the member cannot go on; else says when the next is due.
    pub fn upkeep(&mut self) -> ControlFlow<(), Duration> {
        self.node.upkeep_queue.take_now(&mut self.upkeep_jobs);
        self.upkeep.step(&self.node, &mut self.upkeep_jobs)
    }

    /// The same while another thread runs the raft actor: what upkeep wants of that waits until somebody brings the next event.
    pub fn upkeep_beside(&mut self) -> ControlFlow<(), Duration> {
        let node = Arc::clone(&self.node);
        let _busy = node.core.lock();
        self.upkeep()
    }

    /// Whether the thread that zeroes segments has something to do.
    pub fn wants_spare(&self) -> bool {
        !self.spares.is_empty() || !self.node.spare_queue.is_empty()
    }

    /// A turn of that thread.
    pub fn spare(&mut self) {
        self.node.spare_queue.take_now(&mut self.spare_jobs);
        self.spares.append(&mut self.spare_jobs);
        if let Some(prepare) = self.spares.pop_front()
            && let Ok(prepared) = prepare.run()
        {
            self.node.log_queue.push(LogJob::Prepared(prepared));
        }
    }

    /// A clean stop, as after SIGTERM.
    pub fn stop(mut self) {
        self.node.stop();
        drive::finish(&self.node);
        if self.log() {
            // What the last sync has committed is applied before the store is closed.
            let _closing = self.apply();
        }
        applier::close(&self.node);
        self.node.waiters.stop();
    }
}

fn settings(flags: &Flags, quota_bytes: i64) -> Settings {
    Settings {
        limits: Limits {
            request_timeout_ms: 5_000 + 2 * flags.election_ms,
            election_timeout_ms: flags.election_ms,
            watch_progress_interval_ms: 10_000,
            warning_apply: Duration::MAX,
            warning_unary_request: Duration::MAX,
            ..Limits::default()
        },
        attributes: membershippb::Attributes {
            name: flags.name.clone(),
            client_urls: vec![format!("http://{}:2379", flags.name)],
        },
        data_dir: flags.data_dir.clone(),
        snap_dir: flags.data_dir.join("member").join("snap"),
        strict_reconfig_check: flags.strict_reconfig_check,
        checkpoints_leases: true,
        max_wals: flags.max_files,
        max_snapshots: flags.max_files,
        token_ttl_ms: 300_000,
        snapshot_catchup_entries: flags.snapshot_catchup_entries,
        tick: Duration::from_millis(flags.heartbeat_ms),
        quota_bytes,
        dialer: peer::Dialer::default(),
    }
}
