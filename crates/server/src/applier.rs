//! The apply actor: the only writer of the state. A thread runs it, and for little things the log's thread.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use api::{Answer, Outbox, Passage};
use bytes::Bytes;
use disk::{Disk, Open};
use prost::Message as _;
use proto::raftpb;
use state::{Applied, Error, Fatal, Incoming, InstallError, Installed, MemberChange, Reader, Refusal, Response, State};
use wal::snap::SnapFile;
use wal::{Entry, EntryKind};

use crate::consensus::Event;
use crate::flights::Landed;
use crate::host::{Answered, Answers};
use crate::member::Node;
use crate::stopwatch::Stopwatch;
use crate::upkeep::UpkeepJob;

/// Why the apply actor cannot go on.
#[derive(Debug, thiserror::Error)]
enum ApplyError {
    #[error("apply: {0}")]
    Fatal(#[from] Fatal),
    #[error("install snapshot: {0}")]
    Install(#[from] InstallError),
}

/// What was applied is handed to the file system after this long at the latest, so that a restart replays little.
const FLUSH_AFTER: Duration = Duration::from_millis(100);

/// Work for the apply actor.
#[derive(Debug)]
pub(crate) enum ApplyJob {
    /// Committed entries, in order, and what their way through the log took.
    Entries(Vec<Entry>, Landed),
    /// A snapshot from the leader takes the place of the state. Its bbolt file lies in the snapshot directory.
    Install(raft_driver::Snapshot),
}

/// The bbolt file that comes with the snapshot at this index, as etcd names it.
pub(crate) fn snapshot_file_name(index: u64) -> String {
    format!("{index:016x}.snap.db")
}

/// The end of the name of one that is being received.
pub(crate) const PARTIAL: &str = ".part";

/// Removes what a stop has left of deliveries. For the start, when none is under way.
pub(crate) fn remove_partial(disk: &dyn Disk, dir: &Path) {
    remove_files(disk, dir, |name| name.ends_with(PARTIAL));
}

/// Removes received bbolt files up to this index: installed, or overtaken before they could be.
pub(crate) fn remove_received(disk: &dyn Disk, dir: &Path, index: u64) {
    remove_files(disk, dir, |name| received_index(name).is_some_and(|of| of <= index));
}

fn remove_files(disk: &dyn Disk, dir: &Path, is_meant: impl Fn(&str) -> bool) {
    let names = disk.list(dir).unwrap_or_default();
    for name in names.iter().filter(|name| is_meant(name)) {
        if let Err(error) = disk.remove(&dir.join(name)) {
            tracing::warn!(%error, file = name, "cannot remove a snapshot that is no longer needed");
        }
    }
}

/// The index in the name of a received bbolt file.
pub(crate) fn received_index(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_suffix(".snap.db")?, 16).ok()
}

/// Replaces the state by the bbolt file at `path`, which came with this snapshot.
pub(crate) fn install_file(
    disk: &dyn Disk,
    state: &mut State,
    path: &Path,
    snapshot: &SnapFile,
) -> Result<Installed, InstallError> {
    let name = path.display().to_string();
    let unreadable = |source| Refusal::Unfit { file: name.clone(), what: format!("cannot be opened: {source}") };
    let file = disk.open(path, Open::Read).map_err(unreadable)?;
    let incoming = Incoming { name: &name, file, v2_json: &snapshot.data, index: snapshot.index, term: snapshot.term };
    state.install(&incoming, &snapshot.conf_state)
}

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
    /// Answers to requests.
    pub(crate) answers: Vec<Answered>,
    /// Conf changes that are now in force, and what they did.
    pub(crate) conf_changes: Vec<(Entry, MemberChange)>,
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
    /// The v2 tree, which also says who the members are. It becomes JSON where nobody waits for it.
    pub(crate) v2: state::v2::Image,
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

    /// Applies committed entries in order. `stopwatch` is told of each.
    pub(crate) fn apply(
        &mut self,
        entries: Vec<Entry>,
        effects: &mut Effects,
        stopwatch: &mut Stopwatch<'_>,
    ) -> Result<(), Fatal> {
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
                    let passage = stopwatch.applied(entry.index, &entry.data, &result);
                    self.answer(request_id, result, passage, entry.data, effects);
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

    fn answer(
        &mut self,
        id: u64,
        result: Result<Response, Error>,
        passage: Option<Passage>,
        data: Bytes,
        effects: &mut Effects,
    ) {
        if id == 0 {
            return;
        }
        match result {
            Ok(response @ Response::Compact { physical: true, .. }) => {
                effects.compactions.push((id, Answer::Applied(response)));
            }
            result => {
                let outcome = result.map(Answer::Applied);
                effects.answers.push(Answered { id, outcome, passage, data });
            }
        }
    }

    fn apply_conf_change(&mut self, entry: &Entry, effects: &mut Effects) -> Result<(), Fatal> {
        let Ok(change) = raftpb::ConfChange::decode(entry.data.clone()) else {
            self.state.apply(entry.index, entry.term, &bytes::Bytes::new())?;
            return Ok(());
        };
        let next = raft_driver::next_conf_state(&self.conf_state, &change);
        let changed = self.state.apply_conf_change(entry.index, entry.term, &change, next.encode_to_vec().into())?;
        if changed.request_id != 0 {
            let outcome = changed.result.map(|members| Answer::Members { added: None, members });
            let id = changed.request_id;
            effects.answers.push(Answered { id, outcome, passage: None, data: Bytes::new() });
        }
        if !matches!(changed.change, MemberChange::None) {
            self.conf_state = next;
            effects.conf_changes.push((entry.clone(), changed.change));
        }
        Ok(())
    }

    fn install(&mut self, disk: &dyn Disk, path: &Path, snapshot: &raft_driver::Snapshot) -> Result<(), InstallError> {
        let raft_driver::Snapshot { index, term, conf_state, data } = snapshot.clone();
        let installed = install_file(disk, &mut self.state, path, &SnapFile { index, term, conf_state, data })?;
        self.applied = installed.mark.index;
        self.snapshot_index = snapshot.index;
        self.conf_state = snapshot.conf_state.clone();
        Ok(())
    }

    fn plan_snapshot(&mut self, index: u64, term: u64) -> Result<SnapshotPlan, Fatal> {
        self.state.flush()?;
        Ok(SnapshotPlan { index, term, conf_state: self.conf_state.clone(), v2: self.reader.v2().image() })
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

/// The apply actor and what it works with.
#[derive(Debug)]
pub(crate) struct Runner {
    applier: Applier,
    jobs: VecDeque<ApplyJob>,
    replies: Outbox,
    /// When something was applied, by the host's clock, that the file system does not have.
    dirty_since: Option<Duration>,
}

/// The thread.
pub(crate) fn run(node: &Arc<Node>) {
    let mut flush_at = None;
    while node.apply_queue.wait(flush_at) {
        let ControlFlow::Continue(flush_in) = turn(node) else { return };
        flush_at = flush_in.map(|wait| Instant::now() + wait);
    }
    close(node);
}

/// One turn of the thread: everything that has queued up. Answers when it wants the next one even if nothing comes, or
/// breaks if the member cannot go on.
pub(crate) fn turn(node: &Node) -> ControlFlow<(), Option<Duration>> {
    let mut runner = node.runner.lock();
    let Some(runner) = runner.as_mut() else { return ControlFlow::Break(()) };
    node.apply_queue.take_now(&mut runner.jobs);
    if let Err(error) = runner.turn(node).and_then(|()| Ok(runner.flush_if_due(node)?)) {
        node.fail(&crate::chain(&error));
        return ControlFlow::Break(());
    }
    ControlFlow::Continue(runner.flush_in(node))
}

/// Closes the store after a clean stop.
pub(crate) fn close(node: &Node) {
    if let Some(runner) = node.runner.lock().take()
        && !node.failed()
        && let Err(error) = runner.applier.close()
    {
        tracing::error!(error = %crate::chain(&error), "failed to close the store");
    }
}

/// Entries that are applied by whoever has them, if there are no more.
const FEW: usize = 4;
/// And if they are no larger: together they take less time than waking a thread.
const SMALL_BYTES: usize = 16 * 1024;
/// An `InternalRaftRequest` with a put begins with this byte (field 4, length-delimited). Other requests may take long.
const PUT_TAG: u8 = 0x22;

fn is_little(jobs: &VecDeque<ApplyJob>) -> bool {
    if jobs.iter().any(|job| matches!(job, ApplyJob::Install(_))) {
        return false;
    }
    let mut entries =
        jobs.iter().filter_map(|job| if let ApplyJob::Entries(e, _) = job { Some(e) } else { None }).flatten();
    let is_small_put =
        |e: &Entry| e.kind == EntryKind::Normal && e.data.len() <= SMALL_BYTES && e.data.first() == Some(&PUT_TAG);
    entries.by_ref().take(FEW).all(is_small_put) && entries.next().is_none()
}

/// Applies what is queued on the calling thread, if that is little and nobody else is at it. The apply thread is told to
/// flush it later.
pub(crate) fn apply_little(node: &Node) {
    let Some(mut guard) = node.runner.try_lock() else { return };
    let Some(runner) = guard.as_mut() else { return };
    if !node.apply_queue.take_if(&mut runner.jobs, is_little) {
        return;
    }
    let was_clean = runner.dirty_since.is_none();
    if let Err(error) = runner.turn(node) {
        node.fail(&crate::chain(&error));
    }
    drop(guard);
    if was_clean {
        node.apply_queue.push(ApplyJob::Entries(Vec::new(), Landed::default()));
    }
}

/// Counts what was applied, for the metrics.
fn count(node: &Node, answers: &Answers) {
    let (mut puts, mut deletes, mut txns) = (0, 0, 0);
    for answered in answers {
        match &answered.outcome {
            Ok(Answer::Applied(Response::Put(_))) => puts += 1,
            Ok(Answer::Applied(Response::DeleteRange(_))) => deletes += 1,
            Ok(Answer::Applied(Response::Txn(_))) => txns += 1,
            Ok(Answer::Applied(Response::LeaseGrant(granted))) => {
                node.metrics.lease_granted.inc();
                node.metrics.lease_ttl.observe(granted.ttl as f64);
            }
            Ok(Answer::Applied(Response::LeaseRevoke(_))) => node.metrics.lease_revoked.inc(),
            Ok(Answer::Applied(Response::Compact { .. })) => node.compaction_begins(),
            _ => {}
        }
    }
    node.metrics.puts.inc_by(puts);
    node.metrics.deletes.inc_by(deletes);
    node.metrics.txns.inc_by(txns);
}

impl Runner {
    pub(crate) fn new(applier: Applier) -> Self {
        Self { applier, jobs: VecDeque::new(), replies: Outbox::new(), dirty_since: None }
    }

    fn turn(&mut self, node: &Node) -> Result<(), ApplyError> {
        if !self.jobs.is_empty() {
            self.dirty_since.get_or_insert_with(|| node.host.now());
        }
        while let Some(job) = self.jobs.pop_front() {
            match job {
                ApplyJob::Entries(entries, landed) => self.apply(node, entries, &landed)?,
                ApplyJob::Install(snapshot) => self.install(node, &snapshot)?,
            }
        }
        if node.reads_wait_for_apply.load(Ordering::SeqCst) {
            node.tell(Event::Applied);
        }
        Ok(())
    }

    fn apply(&mut self, node: &Node, entries: Vec<Entry>, landed: &Landed) -> Result<(), ApplyError> {
        let mut effects = Effects::default();
        let mut gate = node.between_entries.lock();
        let mut stopwatch = Stopwatch::start(&node.metrics, node.settings.limits.warning_apply, landed);
        self.applier.apply(entries, &mut effects, &mut stopwatch)?;
        if !effects.conf_changes.is_empty() {
            gate.clone_from(&self.applier.conf_state);
        }
        // A conf change is in force before raft hears that its entry is applied.
        for (entry, _) in effects.conf_changes.iter().filter(|_| !mutant::on(mutant::ConfChangeUnenforced)) {
            node.raft_queue.push(Event::ConfChange(entry.clone()));
        }
        node.applied.store(self.applier.applied(), Ordering::SeqCst);
        drop(gate);
        if !effects.conf_changes.is_empty() {
            node.drive();
        }
        for (_, change) in effects.conf_changes {
            node.membership_changed(&change);
        }
        let compacts = !effects.compactions.is_empty();
        for (id, answer) in effects.compactions {
            node.waiters.hold_compaction(id, answer);
            node.upkeep_queue.push(UpkeepJob::Wake);
        }
        node.host.saw_applied(self.applier.applied(), &effects.answers);
        count(node, &effects.answers);
        if compacts {
            node.compaction_begins();
        }
        node.metrics.total_put_size.set(i64::try_from(self.applier.state.put_bytes()).unwrap_or(i64::MAX));
        node.waiters.answer(&mut effects.answers, node.long_ms(), &mut self.replies);
        self.replies.flush();
        if effects.raise_no_space {
            node.raise_nospace();
        }
        if let Some(plan) = effects.snapshot {
            node.upkeep_queue.push(UpkeepJob::Snapshot(Box::new(plan)));
        }
        Ok(())
    }

    /// Replaces the state by a snapshot whose bbolt file was saved before its message was stepped.
    fn install(&mut self, node: &Node, snapshot: &raft_driver::Snapshot) -> Result<(), ApplyError> {
        let path = node.settings.snap_dir.join(snapshot_file_name(snapshot.index));
        tracing::info!("snapshot-index" = snapshot.index, path = %path.display(), "installing the leader's snapshot");
        let mut gate = node.between_entries.lock();
        node.metrics.snapshot_apply_in_progress.set(1);
        let mut installed = Ok(());
        let applier = &mut self.applier;
        // Until it is done this member is of no use to anybody, so it need not hurry at the expense of who is.
        node.host.work_and_wait("install", &mut || installed = applier.install(node.disk.as_ref(), &path, snapshot));
        installed?;
        node.applied.store(self.applier.applied(), Ordering::SeqCst);
        gate.clone_from(&self.applier.conf_state);
        drop(gate);
        remove_received(node.disk.as_ref(), &node.settings.snap_dir, snapshot.index);
        node.last_snapshot.store(snapshot.index, Ordering::Release);
        node.membership_replaced();
        node.host.saw_applied(self.applier.applied(), &[]);
        tracing::info!("snapshot-index" = snapshot.index, "current-rev" = node.state_revision(), "applied snapshot");
        node.tell(Event::Applied);
        Ok(())
    }

    /// How long what is applied may still wait until it is given to the file system; `None` if there is nothing.
    fn flush_in(&self, node: &Node) -> Option<Duration> {
        self.dirty_since.map(|since| (since + FLUSH_AFTER).saturating_sub(node.host.now()))
    }

    fn flush_if_due(&mut self, node: &Node) -> Result<(), Fatal> {
        if self.flush_in(node) == Some(Duration::ZERO) {
            let begun = Instant::now();
            self.applier.flush()?;
            node.metrics.backend_commit.observe(begun.elapsed().as_secs_f64());
            self.dirty_since = None;
        }
        Ok(())
    }
}
