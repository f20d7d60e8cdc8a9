//! Running the raft actor.
//!
//! It has no thread of its own: waking a thread costs more than most of its turns. Whoever brings it an event (a worker
//! with a proposal, the log's thread with a receipt, the peer thread with a message) runs it if it is free, and the
//! raft thread only keeps its time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use api::Member as _;
use proto::raftpb;

use crate::applier::{self, ApplyJob};
use crate::consensus::{Consensus, Event, Outbox};
use crate::flights::Flights;
use crate::log_writer::LogJob;
use crate::member::Node;
use crate::upkeep::UpkeepJob;

/// The raft actor and what it works with.
#[derive(Debug)]
pub(crate) struct Core {
    consensus: Consensus,
    events: VecDeque<Event>,
    out: Outbox,
    /// What is on its way through the log.
    flights: Flights,
}

impl Core {
    pub(crate) fn new(consensus: Consensus) -> Self {
        Self { consensus, events: VecDeque::new(), out: Outbox::default(), flights: Flights::default() }
    }

    /// Where consensus stands.
    #[cfg(feature = "simulation")]
    pub(crate) fn status(&self) -> raft_driver::Status {
        self.consensus.status()
    }

    /// One turn: everything that has queued up, and what follows from it.
    fn turn(&mut self, node: &Node) {
        loop {
            // Looked at first: a conf change is queued before the index that it belongs to shows as applied, and must be in
            // force before raft hears of that.
            let applied = node.applied.load(Ordering::SeqCst);
            node.raft_queue.take_now(&mut self.events);
            for event in self.events.drain(..) {
                if let Event::Persisted(number) = event {
                    node.log_synced.store(number, Ordering::SeqCst);
                    self.flights.synced(number);
                }
                self.consensus.handle(event);
            }
            self.consensus.finish(applied, &mut self.out);
            pass_on(node, &self.consensus, &mut self.out, &mut self.flights);
            // The apply thread stores how far it is and then looks whether anybody waits; here it is said that somebody
            // waits and then looked again, so one of the two sees the other.
            if !self.consensus.wants_applied() || node.applied.load(Ordering::SeqCst) == applied {
                return;
            }
        }
    }
}

impl Node {
    /// Runs the raft actor if nobody else does at this moment.
    ///
    /// Who runs it looks once more after letting go of it, so an event that is queued while it runs is never left lying.
    fn run_core(&self) {
        loop {
            {
                let Some(mut core) = self.core.try_lock() else { return };
                let Some(core) = core.as_mut() else { return };
                core.turn(self);
            }
            if self.raft_queue.is_empty() {
                return;
            }
        }
    }

    /// Has the queued events handled.
    pub(crate) fn drive(&self) {
        self.run_core();
        self.apply_queue.wake();
    }

    /// An event that must not wait.
    pub(crate) fn tell(&self, event: Event) {
        self.raft_queue.push(event);
        self.drive();
    }

    /// The log's thread reports a sync; what was promised for it leaves. What that commits it applies itself when it is
    /// little: the client's answer then has one thread less on its way.
    pub(crate) fn persisted(&self, number: u64, promises: Vec<raftpb::Message>) {
        // The receipt is queued before anybody can answer a promise, and so is handled before any such answer.
        self.raft_queue.push(Event::Persisted(number));
        self.send(promises);
        self.run_core();
        applier::apply_little(self);
        self.apply_queue.wake();
    }
}

/// The raft thread: keeps time for the raft actor, and ends it.
pub(crate) fn run_consensus(node: &Arc<Node>) {
    let mut next_tick = Instant::now() + node.settings.tick;
    let mut last_tick = Instant::now();
    while !node.is_stopping_by(next_tick) {
        let led = node.is_leader();
        node.tell(Event::Tick);
        let since = std::mem::replace(&mut last_tick, Instant::now()).elapsed();
        if led && since > 2 * node.settings.tick {
            heartbeats_late(node, since);
        }
        // After a pause of the whole process there is no sense in ticking for the time that was slept through.
        next_tick = (next_tick + node.settings.tick).max(Instant::now());
    }
    finish(node);
}

/// Ends the raft actor after a clean stop; what it still has to say is the log's and the apply thread's last work.
pub(crate) fn finish(node: &Node) {
    node.raft_queue.close();
    if let Some(mut core) = node.core.lock().take() {
        core.turn(node);
        core.consensus.stop();
        node.log_queue.push(LogJob::Close(core.consensus.hard_state()));
    }
    node.log_queue.close();
    node.apply_queue.close();
}

/// A leader's ticks are its heartbeats; followers that miss too many elect another one.
fn heartbeats_late(node: &Node, since: Duration) {
    let others = node.state_members().saturating_sub(1) as u64;
    if others == 0 {
        return;
    }
    node.metrics.heartbeat_send_failures.inc_by(others);
    tracing::warn!(
        "heartbeat-interval" = ?node.settings.tick,
        "expected-duration" = ?(2 * node.settings.tick),
        "exceeded-duration" = ?since.saturating_sub(2 * node.settings.tick),
        "leader failed to send out heartbeat on time; took too long, leader is overloaded likely from slow disk"
    );
}

fn pass_on(node: &Node, consensus: &Consensus, out: &mut Outbox, flights: &mut Flights) {
    node.send(std::mem::take(&mut out.messages));
    for batch in out.log.drain(..) {
        flights.begin(&batch);
        node.log_sent.store(batch.number, Ordering::SeqCst);
        node.log_queue.push(LogJob::Append(batch));
    }
    for (id, error) in out.refused.drain(..) {
        if let Some(reply) = node.waiters.remove(id) {
            out.replies.push(reply, Err(error));
        }
    }
    if let Some(reason) = out.fatal.take() {
        node.fail(&reason);
    }
    let status = consensus.status();
    node.committed.store(status.commit_index, Ordering::Release);
    if !out.committed.is_empty() {
        node.host.saw_committed(&out.committed);
        // Who runs the actor wakes the apply thread when it has let go of it, or does its work.
        let flights = flights.committed(&out.committed);
        node.apply_queue.push_quietly(ApplyJob::Entries(std::mem::take(&mut out.committed), flights));
    }
    out.replies.flush();
    node.reads_wait_for_apply.store(consensus.wants_applied(), Ordering::SeqCst);
    let leader_before = node.leader.load(Ordering::Acquire);
    node.term.store(status.term, Ordering::Release);
    node.learner.store(status.learner, Ordering::Release);
    node.local_reads.store(consensus.reads_are_local(), Ordering::Release);
    if status.leader != leader_before {
        node.leader.store(status.leader, Ordering::Release);
        if status.leader != 0 && node.last_leader.swap(status.leader, Ordering::Relaxed) != status.leader {
            node.leader_since_ns.store(node.wall_clock_ns(), Ordering::Relaxed);
        }
        if leader_before != 0 {
            node.leader_lost_ms.store(node.now_ms(), Ordering::Release);
        }
        log_leader(node.identity.member_id, leader_before, &status);
        if status.leader != 0 {
            node.metrics.leader_changes_seen_total.inc();
        }
        node.upkeep_queue.push(UpkeepJob::Wake);
    }
}

fn log_leader(own: u64, before: u64, status: &raft_driver::Status) {
    let (leader, term) = (status.leader, status.term);
    if leader == own {
        tracing::info!(target: "raft", "{own:x} became leader at term {term}");
    }
    match (before, leader) {
        (0, _) => tracing::info!(target: "raft", "raft.node: {own:x} elected leader {leader:x} at term {term}"),
        (_, 0) => tracing::info!(target: "raft", "raft.node: {own:x} lost leader {before:x} at term {term}"),
        _ => {
            tracing::info!(target: "raft", "raft.node: {own:x} changed leader from {before:x} to {leader:x} at term {term}")
        }
    }
}
