//! Clients that watch: their streams begin on one member and go on on another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api::Member;
use state::watch::{Hub, Output, OutputKind, StreamId, StreamOutput, WatchCreate};

use super::Cluster;
use crate::agenda::{Event, Happening};
use crate::ledger::{Violation, violation};
use crate::watcher::{Means, Watch};

/// About how many events a hub takes in one turn; few, so that watchers come to lag.
const BUDGET: usize = 64;
/// How often a stream asks for progress, or is given up by its client, in microseconds.
const WHIM_US: u64 = 3_000_000;

/// A client with one stream of watches.
#[derive(Debug, Default)]
pub(super) struct Watcher {
    watches: Vec<Watch>,
    /// The stream: counted over all clients, so that none is mistaken for another.
    stream: StreamId,
    /// When what was sent last arrives.
    last_us: u64,
    /// Where the stream goes.
    seat: usize,
    /// Whether it takes no more at the moment.
    is_blocked: bool,
}

/// What a client wants of its stream.
#[derive(Debug)]
pub enum Whim {
    /// It begins it with these watches.
    Open(Vec<WatchCreate>),
    /// It asks how far it has got.
    Progress,
    /// It takes no more.
    Block,
    /// It takes more again.
    Unblock,
    /// It goes.
    Close,
}

/// A member's side: the hub of its API worker, and its streams.
pub(super) struct Desk {
    hub: Hub,
    woken: Arc<AtomicBool>,
    planned: bool,
    /// The client of each stream, and the revision that the next progress of the whole stream must reach.
    streams: BTreeMap<StreamId, (usize, i64)>,
}

impl Desk {
    pub(super) fn new(member: &dyn Member) -> Self {
        let woken = Arc::new(AtomicBool::new(false));
        let wake = Arc::clone(&woken);
        let wake = Arc::new(move || wake.store(true, Ordering::Relaxed));
        let hub = Hub::new(member.state(), wake, member.limits().watch_progress_interval_ms);
        Self { hub, woken, planned: false, streams: BTreeMap::new() }
    }

    /// Ends all streams; gives their clients.
    pub(super) fn close(self) -> impl Iterator<Item = usize> {
        self.streams.into_values().map(|(client, _)| client)
    }
}

impl Cluster {
    /// A client of watches begins a stream, where it has got to.
    pub(super) fn watch(&mut self, number: usize) {
        let seat = self.any_machine();
        self.last_stream += 1;
        let watcher = &mut self.watchers[number];
        watcher.stream = self.last_stream;
        watcher.last_us = 0;
        watcher.seat = seat;
        watcher.is_blocked = false;
        if watcher.watches.is_empty() || self.random.chance(100) {
            let count = self.random.between(1, 3);
            let revision = self.ledger.model.revision();
            watcher.watches = (1..=count).map(|id| Watch::new(self.workload.watch(id as i64, revision))).collect();
        }
        let creates = watcher.watches.iter_mut().map(Watch::resumed).collect();
        let stream = watcher.stream;
        self.whim(number, stream, Whim::Open(creates));
        self.later_whim(number);
    }

    fn whim(&mut self, client: usize, stream: StreamId, whim: Whim) {
        let seat = self.watchers[client].seat;
        let wait = self.random.around(200);
        self.plan(seat, wait, Happening::Watch { client, stream, whim });
    }

    fn later_whim(&mut self, number: usize) {
        let wait = self.random.around(WHIM_US);
        self.later(wait, Event::Whim(number, self.watchers[number].stream));
    }

    /// A client of watches makes up its mind.
    pub(super) fn fancy(&mut self, number: usize, stream: StreamId) {
        if self.watchers[number].stream != stream {
            return;
        }
        let watcher = &mut self.watchers[number];
        let whim = match self.random.below(10) {
            // When there is to be quiet, nobody stays blocked.
            _ if !self.asking && watcher.is_blocked => Whim::Unblock,
            0 if self.asking => Whim::Close,
            1 if self.asking => Whim::Block,
            2..4 => Whim::Unblock,
            _ => Whim::Progress,
        };
        match whim {
            Whim::Block => watcher.is_blocked = true,
            Whim::Unblock => watcher.is_blocked = false,
            _ => {}
        }
        if matches!(whim, Whim::Close) {
            self.later(1_000, Event::Watch(number));
        }
        self.whim(number, stream, whim);
        self.later_whim(number);
    }

    /// A client's wish arrives at a member.
    pub(super) fn whim_arrives(&mut self, at: usize, client: usize, stream: StreamId, whim: Whim) {
        let Some(running) = &mut self.seats[at].running else { return };
        let desk = &mut running.desk;
        let mut said = Vec::new();
        match whim {
            Whim::Open(_) if running.api.is_learner() => return self.lose_stream(client, stream),
            Whim::Open(creates) => {
                desk.streams.insert(stream, (client, 0));
                for create in creates {
                    said.extend(desk.hub.create(stream, create));
                }
            }
            Whim::Close => {
                desk.streams.remove(&stream);
                desk.hub.close(stream);
            }
            Whim::Progress | Whim::Block | Whim::Unblock if !desk.streams.contains_key(&stream) => return,
            Whim::Progress => {
                if let Some((_, floor)) = desk.streams.get_mut(&stream) {
                    *floor = running.api.state().revision();
                }
                desk.hub.request_progress(stream);
            }
            Whim::Block => desk.hub.set_ready(stream, false),
            Whim::Unblock => desk.hub.set_ready(stream, true),
        }
        desk.woken.store(true, Ordering::Relaxed);
        self.pass_on(client, stream, said);
    }

    /// The stream is not there: the client begins another, after a while.
    pub(super) fn lose_stream(&mut self, client: usize, stream: StreamId) {
        if self.watchers[client].stream == stream {
            let wait = self.random.around(300_000);
            self.last_stream += 1;
            self.watchers[client].stream = self.last_stream;
            self.later(wait, Event::Watch(client));
        }
    }

    /// All streams to a process break.
    pub(super) fn lose_streams(&mut self, desk: Desk) {
        for client in desk.close() {
            let stream = self.watchers[client].stream;
            self.lose_stream(client, stream);
        }
    }

    /// A turn of the task that feeds the watchers; with `tick`, it also looks for those that want to hear of progress.
    pub(super) fn feed_watchers(&mut self, at: usize, tick: bool) -> Result<(), Violation> {
        let Some(running) = &mut self.seats[at].running else { return Ok(()) };
        let desk = &mut running.desk;
        let mut outputs = Vec::new();
        if tick {
            outputs = desk.hub.tick(running.api.now_ms());
        } else {
            desk.planned = false;
            let (found, more) = desk.hub.poll(BUDGET);
            outputs.extend(found);
            desk.woken.store(more || !desk.hub.arm(), Ordering::Relaxed);
        }
        if self.seats[at].disk.is_off() {
            return Ok(());
        }
        for StreamOutput { stream, items } in outputs {
            let Some(running) = &mut self.seats[at].running else { return Ok(()) };
            let Some((client, floor)) = running.desk.streams.get_mut(&stream) else { continue };
            let client = *client;
            for item in &items {
                if item.watch_id == -1 && item.revision < std::mem::take(floor) {
                    return violation!(
                        "m{at} reports progress up to {}, and had more when it was asked",
                        item.revision
                    );
                }
            }
            self.pass_on(client, stream, items);
        }
        Ok(())
    }

    /// Plans the next turn of that task, if it has something to do.
    pub(super) fn plan_watchers(&mut self, at: usize) {
        let Some(running) = &mut self.seats[at].running else { return };
        if running.desk.woken.load(Ordering::Relaxed) && !running.desk.planned {
            running.desk.planned = true;
            let wait = self.random.around(300);
            self.plan(at, wait, Happening::Watchers);
        }
    }

    fn pass_on(&mut self, client: usize, stream: StreamId, items: Vec<Output>) {
        if items.is_empty() {
            return;
        }
        // In order, as on any connection.
        let when = (self.now_us + self.random.around(200)).max(self.watchers[client].last_us);
        self.watchers[client].last_us = when;
        self.agenda.at(when, Event::Watched(client, stream, items));
    }

    /// A client is shown something.
    pub(super) fn watched(&mut self, number: usize, stream: StreamId, items: &[Output]) -> Result<(), Violation> {
        if self.watchers[number].stream != stream {
            return Ok(());
        }
        // The disk may have been replaced since.
        let seat = self.watchers[number].seat;
        let may_fail = self.may_fail(seat) || self.seats[seat].retired;
        for item in items {
            self.trace.say(self.now_us, format_args!("w{number} {stream} {item:?}"));
            self.tally.watched += 1;
            let watcher = &mut self.watchers[number];
            let model = &self.ledger.model;
            let mut has_ended = false;
            for watch in watcher.watches.iter_mut().filter(|w| [-1, w.create.watch_id].contains(&item.watch_id)) {
                let means = watch.take(item, model)?;
                if means == Means::Broken && !may_fail {
                    return violation!("a watch was ended on a disk without a fault: {item:?}");
                }
                has_ended |= matches!(item.kind, OutputKind::Canceled { .. });
            }
            if has_ended {
                // This client begins all of its watches again.
                self.whim(number, stream, Whim::Close);
                self.lose_stream(number, stream);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether all watchers have been shown everything.
    pub(super) fn watchers_are_complete(&self) -> bool {
        self.lacking().next().is_none()
    }

    /// The watches that have not been shown everything.
    pub(super) fn lacking(&self) -> impl Iterator<Item = &Watch> {
        let watches = self.watchers.iter().flat_map(|watcher| &watcher.watches);
        watches.filter(|watch| !watch.is_complete(&self.ledger.model))
    }
}
