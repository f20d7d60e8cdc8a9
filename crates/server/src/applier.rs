//! The apply thread: the only writer of the state.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use api::{Answer, Outbox};
use prost::Message as _;
use proto::raftpb;
use state::{Applied, Error, Fatal, MemberChange, Reader, Response, State};
use wal::{Entry, EntryKind};

use crate::consensus::Event;
use crate::member::Node;
use crate::upkeep::UpkeepJob;

/// What was applied is handed to the file system after this long at the latest, so that a restart replays little.
const FLUSH_AFTER: Duration = Duration::from_millis(100);

/// The apply actor.
#[derive(Debug)]
pub(crate) struct Applier {
    state: State,
    reader: Reader,
    /// Entries at or below this are already in the store.
    applied: u64,
    /// Membership as raft knows it; goes into every mark.
    conf_state: raftpb::ConfState,
    snapshot_index: u64,
    snapshot_count: u64,
}

/// What applying a batch has brought about.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Answers by request ID.
    pub(crate) answers: Vec<(u64, Result<Answer, Error>)>,
    /// Conf changes that are now in force.
    pub(crate) conf_changes: Vec<bytes::Bytes>,
    /// Physical compactions whose client waits until their work is done.
    pub(crate) compactions: Vec<(u64, Answer)>,
    /// The quota is used up and the cluster should know.
    pub(crate) raise_no_space: bool,
    /// It is time for a snapshot.
    pub(crate) snapshot: Option<SnapshotPlan>,
}

/// A snapshot to be written once the store is synced up to its index.
#[derive(Debug)]
pub(crate) struct SnapshotPlan {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) conf_state: raftpb::ConfState,
    /// The v2 store in etcd's JSON: membership and cluster version.
    pub(crate) data: Vec<u8>,
}

impl Applier {
    pub(crate) fn new(
        state: State,
        reader: Reader,
        applied: u64,
        conf_state: raftpb::ConfState,
        snapshot_index: u64,
        snapshot_count: u64,
    ) -> Self {
        Self { state, reader, applied, conf_state, snapshot_index, snapshot_count }
    }

    /// Applies committed entries in order.
    pub(crate) fn apply(&mut self, entries: Vec<Entry>, effects: &mut Effects) -> Result<(), Fatal> {
        for entry in entries {
            if entry.index <= self.applied {
                continue;
            }
            assert_eq!(entry.index, self.applied + 1, "entries are applied without gaps");
            match entry.kind {
                EntryKind::Normal => {
                    let Applied { request_id, result, raise_no_space } =
                        self.state.apply(entry.index, entry.term, &entry.data)?;
                    effects.raise_no_space |= raise_no_space;
                    self.answer(request_id, result, effects);
                }
                EntryKind::ConfChange => self.apply_conf_change(&entry, effects)?,
                // etcd never writes these; one that comes all the same is a no-op on every member alike.
                EntryKind::ConfChangeV2 => {
                    self.state.apply(entry.index, entry.term, &bytes::Bytes::new())?;
                }
            }
            self.applied = entry.index;
            if entry.index - self.snapshot_index >= self.snapshot_count {
                self.snapshot_index = entry.index;
                effects.snapshot = Some(self.plan_snapshot(entry.index, entry.term)?);
            }
        }
        Ok(())
    }

    fn answer(&mut self, id: u64, result: Result<Response, Error>, effects: &mut Effects) {
        if id == 0 {
            return;
        }
        match result {
            Ok(response @ Response::Compact { physical: true, .. }) => {
                effects.compactions.push((id, Answer::Applied(response)));
            }
            result => effects.answers.push((id, result.map(Answer::Applied))),
        }
    }

    fn apply_conf_change(&mut self, entry: &Entry, effects: &mut Effects) -> Result<(), Fatal> {
        let Ok(change) = raftpb::ConfChange::decode(entry.data.clone()) else {
            self.state.apply(entry.index, entry.term, &bytes::Bytes::new())?;
            return Ok(());
        };
        let next = raft_driver::next_conf_state(&self.conf_state, &change);
        let changed = self.state.apply_conf_change(entry.index, entry.term, &change, next.encode_to_vec().into())?;
        if !matches!(changed.change, MemberChange::None) {
            self.conf_state = next;
            effects.conf_changes.push(entry.data.clone());
        }
        Ok(())
    }

    fn plan_snapshot(&mut self, index: u64, term: u64) -> Result<SnapshotPlan, Fatal> {
        self.state.flush()?;
        Ok(SnapshotPlan { index, term, conf_state: self.conf_state.clone(), data: self.reader.v2_snapshot_json() })
    }

    pub(crate) fn flush(&mut self) -> Result<(), Fatal> {
        self.state.flush()
    }

    pub(crate) fn close(self) -> Result<(), Fatal> {
        self.state.close()
    }

    pub(crate) fn applied(&self) -> u64 {
        self.applied
    }
}

/// The thread.
pub(crate) fn run(node: &Arc<Node>, mut applier: Applier) {
    let mut jobs = VecDeque::new();
    let mut replies = Outbox::new();
    let mut dirty_since: Option<Instant> = None;
    while node.apply_queue.take_all(&mut jobs, dirty_since.map(|since| since + FLUSH_AFTER)) {
        if let Err(error) = turn(node, &mut applier, &mut jobs, &mut replies, &mut dirty_since) {
            node.fail(&format!("apply: {}", crate::chain(&error)));
            return;
        }
    }
    if !node.failed()
        && let Err(error) = applier.close()
    {
        tracing::error!(error = %crate::chain(&error), "failed to close the store");
    }
}

/// Counts what was applied, for the metrics.
fn count(node: &Node, answers: &[(u64, Result<Answer, Error>)]) {
    let (mut puts, mut deletes, mut txns) = (0, 0, 0);
    for (_, outcome) in answers {
        match outcome {
            Ok(Answer::Applied(Response::Put(_))) => puts += 1,
            Ok(Answer::Applied(Response::DeleteRange(_))) => deletes += 1,
            Ok(Answer::Applied(Response::Txn(_))) => txns += 1,
            Ok(Answer::Applied(Response::LeaseGrant(granted))) => {
                node.metrics.lease_granted.inc();
                node.metrics.lease_ttl.observe(granted.ttl as f64);
            }
            Ok(Answer::Applied(Response::LeaseRevoke(_))) => node.metrics.lease_revoked.inc(),
            _ => {}
        }
    }
    node.metrics.puts.inc_by(puts);
    node.metrics.deletes.inc_by(deletes);
    node.metrics.txns.inc_by(txns);
}

fn turn(
    node: &Node,
    applier: &mut Applier,
    jobs: &mut VecDeque<Vec<Entry>>,
    replies: &mut Outbox,
    dirty_since: &mut Option<Instant>,
) -> Result<(), Fatal> {
    let now = Instant::now();
    if !jobs.is_empty() && dirty_since.is_none() {
        *dirty_since = Some(now);
    }
    for entries in jobs.drain(..) {
        let mut effects = Effects::default();
        let before = Instant::now();
        let mut gate = node.between_entries.lock();
        applier.apply(entries, &mut effects)?;
        let took = before.elapsed();
        node.applied.store(applier.applied(), Ordering::SeqCst);
        if !effects.conf_changes.is_empty() {
            gate.clone_from(&applier.conf_state);
        }
        drop(gate);
        for change in effects.conf_changes {
            node.raft_queue.push(Event::ConfChange(change));
        }
        for (id, answer) in effects.compactions {
            node.waiters.hold_compaction(id, answer);
            node.upkeep_queue.push(UpkeepJob::Wake);
        }
        count(node, &effects.answers);
        node.waiters.answer(&mut effects.answers, replies);
        replies.flush();
        if effects.raise_no_space {
            node.raise_nospace();
        }
        if let Some(plan) = effects.snapshot {
            node.upkeep_queue.push(UpkeepJob::Snapshot(plan));
        }
        if took > node.settings.warning_apply_duration {
            tracing::warn!(took = ?took, "expected-duration" = ?node.settings.warning_apply_duration, "apply request took too long");
            node.metrics.slow_apply_total.inc();
        }
    }
    if node.reads_wait_for_apply.load(Ordering::SeqCst) {
        node.raft_queue.push(Event::Applied);
    }
    if dirty_since.is_some_and(|since| now.duration_since(since) >= FLUSH_AFTER) {
        applier.flush()?;
        *dirty_since = None;
    }
    Ok(())
}
