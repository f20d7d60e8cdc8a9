//! The log's thread: one write and one sync for everything that has queued up (group commit).

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wal::{HardState, SnapshotMark, Wal};

use wal::snap::{self, SnapFile};

use crate::applier::ApplyJob;
use crate::consensus::LogBatch;
use crate::member::Node;

/// Work for the log's thread.
#[derive(Debug)]
pub(crate) enum LogJob {
    /// Append and sync, then report the number to the raft actor.
    Append(LogBatch),
    /// Note a snapshot in the log; what lies before `release` is no longer needed.
    Snapshot { mark: SnapshotMark, release: u64 },
    /// The next segment is zeroed.
    Prepared(wal::Prepared),
    /// Remove files beyond this number that nothing needs.
    Purge { keep: usize },
    /// A clean stop: write the newest commit index.
    Close(HardState),
}

/// Why the log's thread cannot go on.
#[derive(Debug, thiserror::Error)]
enum LogError {
    #[error("write-ahead log: {0}")]
    Wal(#[from] wal::WalError),
    #[error("snapshot: {0}")]
    Snap(#[from] snap::SnapError),
}

/// A sync that takes this long is worth a warning, as in etcd.
const SLOW_SYNC: Duration = Duration::from_secs(1);

pub(crate) fn run(node: &Arc<Node>, mut wal: Wal) {
    let mut jobs = VecDeque::new();
    while node.log_queue.take_all(&mut jobs, None) {
        if turn(node, &mut wal, &mut jobs).is_break() {
            return;
        }
    }
}

/// One turn of the thread. Breaks if the member cannot go on.
pub(crate) fn turn(node: &Node, wal: &mut Wal, jobs: &mut VecDeque<LogJob>) -> ControlFlow<()> {
    if let Err(error) = carry_out(node, wal, jobs) {
        node.fail(&crate::chain(&error));
        return ControlFlow::Break(());
    }
    if let Some(prepare) = wal.prepare_next() {
        node.spare_queue.push(prepare);
    }
    ControlFlow::Continue(())
}

/// Carries out what has queued up; appends that follow each other become one.
fn carry_out(node: &Node, wal: &mut Wal, jobs: &mut VecDeque<LogJob>) -> Result<(), LogError> {
    let mut pending: Option<LogBatch> = None;
    for job in jobs.drain(..) {
        if let LogJob::Append(batch) = job {
            match &mut pending {
                Some(first) if batch.snapshot.is_none() => {
                    first.number = batch.number;
                    first.hard_state = batch.hard_state.or(first.hard_state);
                    first.entries.extend(batch.entries);
                    first.promises.extend(batch.promises);
                }
                pending => {
                    if let Some(earlier) = pending.replace(batch) {
                        append(node, wal, earlier)?;
                    }
                }
            }
            continue;
        }
        if let Some(batch) = pending.take() {
            append(node, wal, batch)?;
        }
        match job {
            LogJob::Append(_) => {}
            LogJob::Snapshot { mark, release } => {
                wal.save_snapshot(&mark)?;
                wal.release_before(release)?;
            }
            LogJob::Prepared(prepared) => wal.prepared(prepared),
            LogJob::Purge { keep } => {
                wal.purge(keep)?;
            }
            LogJob::Close(hard_state) => {
                // No promise hangs on a commit index.
                let _not_a_promise = wal.append(&[], Some(&hard_state))?;
            }
        }
    }
    if let Some(batch) = pending {
        append(node, wal, batch)?;
    }
    Ok(())
}

fn append(node: &Node, wal: &mut Wal, batch: LogBatch) -> Result<(), LogError> {
    let received = batch.snapshot;
    if let Some(received) = &received {
        // File first, then its record: a record never stands for nothing. The state follows when it is installed; a
        // member that dies before finds the bbolt file beside them when it starts.
        let raft_driver::Snapshot { index, term, conf_state, data } = received.clone();
        let file = SnapFile { index, term, conf_state: conf_state.clone(), data };
        if mutant::on(mutant::SnapshotMarkFirst) {
            wal.save_snapshot(&SnapshotMark { index, term, conf_state: Some(conf_state.clone()) })?;
        }
        snap::save(node.disk.as_ref(), &node.settings.snap_dir, &file)?;
        wal.save_snapshot(&SnapshotMark { index, term, conf_state: Some(conf_state) })?;
    }
    let before = Instant::now();
    let synced = wal.append(&batch.entries, batch.hard_state.as_ref())?;
    let took = before.elapsed();
    debug_assert!(synced.waited() || batch.entries.is_empty(), "entries are synced before they are reported");
    if synced.waited() {
        node.metrics.wal_fsync_duration.observe(took.as_secs_f64());
        // The write and the sync are one step here, and nearly all of it is the sync.
        node.metrics.wal_write.observe(took.as_secs_f64());
        node.metrics.wal_write_bytes.set(i64::try_from(wal.stats().bytes_written).unwrap_or(i64::MAX));
    }
    if took > SLOW_SYNC {
        tracing::warn!(took = ?took, "expected-duration" = ?SLOW_SYNC, "slow fdatasync");
    }
    if let Some(received) = received {
        node.apply_queue.push(ApplyJob::Install(received));
    }
    node.persisted(batch.number, batch.promises);
    Ok(())
}
