//! The life of machines: processes start, get their turns, and end.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use api::mailbox::Mailbox;
use disk::Disk;
use disk::mem::Crash;
use peer::StepError;
use prost::Message as _;
use proto::raftpb::Message;
use server::BootError;
use server::host::Neighbours;
use server::simulated::SimulatedMember;

use super::delivery::version_of;
use super::watching::Desk;
use super::{Cluster, End, Running, Seat, name_of, url_of};
use crate::agenda::{Event, Happening};
use crate::client::Outcome;
use crate::host::{Card, Machine};
use crate::ledger::{Violation, violation};
use crate::network::Network;
use crate::tasks::Tasks;
use crate::trace::digest;

/// Disk time of a turn of the log's thread, in microseconds.
const LOG_US: u64 = 300;
/// Before the apply thread gets to what is queued, in microseconds.
const APPLY_US: u64 = 60;

impl Cluster {
    /// Starts the process at a seat, if it does not run.
    pub fn start(&mut self, at: usize) -> Result<(), Violation> {
        if self.seats[at].running.is_some() || self.seats[at].retired {
            return Ok(());
        }
        if self.seats[at].flags.joins {
            let members = self.ledger.membership.members().values();
            let listed: Vec<_> = members.map(|member| (name_of(&member.peer_urls), member.peer_urls.clone())).collect();
            if self.seats[at].life == 0 && !listed.iter().any(|(name, _)| *name == self.seats[at].flags.name) {
                // Not added yet, or removed again before it ever ran.
                return Ok(());
            }
            self.seats[at].flags.initial_cluster = listed;
        }
        if self.settings.retunes && self.seats[at].life > 0 {
            // Whoever started it again has changed its flags.
            let snapshot_count = self.settings.draw_snapshot_count(&mut self.random);
            let flags = &mut self.seats[at].flags;
            flags.snapshot_count = snapshot_count;
            flags.heartbeat_ms = if self.random.chance(500) { 50 } else { 100 };
        }
        self.clear_faults(at);
        let seed = self.random.any();
        let now_us = self.now_us;
        let seat = &self.seats[at];
        let machine = Machine::new(now_us, seat.boot_us, seat.drift, seat.disk.clone());
        machine.set_wall(seat.wall_offset_us);
        let card = Arc::new(Card(Arc::clone(&machine)));
        let disk: Arc<dyn Disk> = Arc::new(seat.disk.clone());
        let directory = Directory { seats: &self.seats, network: &self.network, from: at, now_us };
        let member = match SimulatedMember::start(&seat.flags, &disk, &directory, card.clone(), card, seed) {
            Ok(member) => member,
            Err(error) if seat.disk.is_off() => {
                self.trace.say(now_us, format_args!("m{at} loses power while it starts: {error}"));
                let damage = Crash::Random { seed: self.random.any() };
                let seat = &mut self.seats[at];
                seat.disk = seat.disk.crash(damage);
                self.agenda.at(now_us + 500_000, Event::Restart(at));
                return Ok(());
            }
            Err(error @ BootError::Cluster(_)) if seat.flags.joins => {
                self.say(format_args!("m{at} cannot join: {error}"));
                self.later(1_000_000, Event::Restart(at));
                return Ok(());
            }
            Err(error) if self.may_fail(at) => {
                // It may have met a fault of its disk. If not, the cluster will not recover, and this line says why.
                self.trace.say(now_us, format_args!("m{at} cannot start: {error}"));
                let damage = Crash::Random { seed: self.random.any() };
                let seat = &mut self.seats[at];
                seat.refused = Some(format!("{error}: {:?}", std::error::Error::source(&error)));
                seat.disk = seat.disk.crash(damage);
                self.agenda.at(now_us + 1_000_000, Event::Restart(at));
                return Ok(());
            }
            Err(error) => return violation!("m{at} cannot start: {error}: {:?}", std::error::Error::source(&error)),
        };
        self.tally.starts += 1;
        self.ledger.remembers(member.member().identity().member_id, member.hard_state())?;
        let api = member.member();
        let link = member.link();
        let desk = Desk::new(&*api);
        let seat = &mut self.seats[at];
        seat.life += 1;
        seat.id = api.identity().member_id;
        self.trace.say(now_us, format_args!("m{at} starts as {:x}, applied {}", seat.id, member.applied()));
        seat.running = Some(Running {
            member,
            machine,
            api,
            link,
            tasks: Tasks::default(),
            sleepers: Vec::new(),
            mailbox: Mailbox::new(),
            pending: BTreeMap::new(),
            orders: BTreeSet::new(),
            epoch: None,
            read_revision: 0,
            next_ticket: 0,
            log_planned: false,
            apply_planned_us: None,
            spare_planned: false,
            timers_planned_us: None,
            desk,
            waits: Vec::new(),
        });
        let phase = self.random.below(self.seats[at].flags.heartbeat_ms * 1000);
        self.plan(at, phase, Happening::Tick);
        self.plan(at, phase / 2, Happening::Upkeep);
        self.connections();
        self.settle(at)
    }

    /// Ends the process at a seat.
    pub fn end(&mut self, at: usize, how: End) {
        let now_us = self.now_us;
        let Some(running) = self.seats[at].running.take() else { return };
        self.trace.say(now_us, format_args!("m{at} ends: {how:?}"));
        self.tally.ends += 1;
        let Running { member, api, link, pending, tasks, desk, .. } = running;
        self.lose_streams(desk);
        drop((api, link, tasks));
        if how == End::Stopped {
            member.stop();
        }
        let seat = &mut self.seats[at];
        seat.life += 1;
        seat.frozen_until_us = 0;
        seat.disk = match how {
            // What the process had written is still there, still not synced, and some of it perhaps taken for synced.
            End::Killed | End::Stopped => seat.disk.fork(),
            End::PowerLost => {
                let damage = match self.random.below(4) {
                    0 => Crash::LoseUnsynced,
                    _ => Crash::Random { seed: self.random.any() },
                };
                seat.disk.crash(damage)
            }
        };
        let gone = seat.id;
        for op in pending.into_values() {
            // The client's connection breaks.
            let at = now_us + self.random.around(5_000);
            self.agenda.at(at, Event::Answer(op.client, op.number, Outcome::Lost));
        }
        self.connections();
        if how != End::PowerLost {
            for other in 0..self.seats.len() {
                let is_connected = self.network.is_open(at, other) && self.network.is_open(other, at);
                if other != at && is_connected {
                    let wait = self.random.around(3_000);
                    self.plan(other, wait, Happening::Gone(gone));
                }
            }
        }
    }

    /// Tells every machine which others it reaches.
    pub fn connections(&mut self) {
        let alive: Vec<(usize, u64)> = (0..self.seats.len())
            .filter(|at| self.seats[*at].running.is_some() && self.seats[*at].frozen_until_us <= self.now_us)
            .map(|at| (at, self.seats[at].id))
            .collect();
        for (at, seat) in self.seats.iter().enumerate() {
            let Some(running) = &seat.running else { continue };
            running.machine.advance(self.now_us);
            for (other, other_seat) in self.seats.iter().enumerate() {
                let reaches = self.network.is_open(at, other) && self.network.is_open(other, at);
                let connected = alive.contains(&(other, other_seat.id)) && reaches;
                running.machine.set_connected(other_seat.id, connected);
            }
        }
    }

    pub(super) fn plan(&mut self, at: usize, after_us: u64, happening: Happening) {
        let life = self.seats[at].life;
        self.agenda.at(self.now_us + after_us, Event::At(at, life, happening));
    }

    pub(super) fn happen(&mut self, at: usize, life: u64, happening: Happening) -> Result<(), Violation> {
        let now_us = self.now_us;
        if self.seats[at].life != life || self.seats[at].running.is_none() {
            self.miss(at, happening);
            return Ok(());
        }
        if self.seats[at].frozen_until_us > now_us {
            self.agenda.at(self.seats[at].frozen_until_us, Event::At(at, life, happening));
            return Ok(());
        }
        let heartbeat_ms = self.seats[at].flags.heartbeat_ms;
        let beside = matches!(happening, Happening::Upkeep) && self.random.chance(250);
        let Some(running) = &mut self.seats[at].running else { return Ok(()) };
        running.machine.advance(now_us);
        let mut next = None;
        match happening {
            Happening::Tick => {
                running.member.tick();
                let interval = running.machine.true_time(heartbeat_ms * 1000);
                self.feed_watchers(at, true)?;
                next = Some((interval, Happening::Tick));
            }
            Happening::Log => {
                running.log_planned = false;
                let _goes_on = running.member.log();
            }
            Happening::Apply => {
                running.apply_planned_us = None;
                if let ControlFlow::Continue(Some(wait)) = running.member.apply() {
                    let wait = running.machine.true_time(wait.as_micros() as u64).max(1);
                    running.apply_planned_us = Some(now_us + wait);
                    next = Some((wait, Happening::Apply));
                }
            }
            Happening::Upkeep => {
                let turn = if beside { running.member.upkeep_beside() } else { running.member.upkeep() };
                if let ControlFlow::Continue(pause) = turn {
                    next = Some((running.machine.true_time(pause.as_micros() as u64), Happening::Upkeep));
                }
            }
            Happening::Spare => {
                running.spare_planned = false;
                running.member.spare();
            }
            Happening::Thaw => self.connections(),
            Happening::Timers => running.timers_planned_us = None,
            Happening::Work(work) => work(),
            Happening::Message { from, bytes } => {
                let Ok(message) = Message::decode(bytes) else {
                    return violation!("m{from} sent a message that cannot be decoded");
                };
                let sender = &self.seats[from];
                let Some(running) = &self.seats[at].running else { return Ok(()) };
                if !running.link.is_removed(sender.id) {
                    running.machine.remember(sender.id, url_of(&sender.flags.name));
                }
                let to = message.to.unwrap_or(0);
                if to == running.api.identity().member_id
                    && let Err(StepError::Removed) = running.link.step(message)
                {
                    let by = self.seats[at].id;
                    self.plan(from, 500, Happening::Removed(by));
                }
            }
            Happening::Snapshot { from, message, file } => self.snapshot_arrives(at, from, *message, &file),
            Happening::SnapshotEnded { to, delivered } => running.link.report_snapshot(to, delivered),
            Happening::Unreachable(id) => running.link.report_unreachable(id),
            Happening::Gone(id) => running.link.peer_gone(id),
            Happening::Removed(by) => running.link.removed(by),
            Happening::Question { from, question } => self.question_arrives(at, from, question),
            Happening::Answer(deliver) => deliver(),
            Happening::Request(op) => self.request_arrives(at, op)?,
            Happening::Watch { client, stream, whim } => self.whim_arrives(at, client, stream, whim),
            Happening::Wait { client, request } => self.wait_arrives(at, client, request)?,
            Happening::Watchers => self.feed_watchers(at, false)?,
        }
        if let Some((after_us, happening)) = next {
            self.plan(at, after_us, happening);
        }
        self.settle(at)
    }

    /// What happens to a process that is not there.
    fn miss(&mut self, at: usize, happening: Happening) {
        match happening {
            Happening::Request(op) => {
                let when = self.now_us + 200;
                self.agenda.at(when, Event::Answer(op.client, op.number, Outcome::Unsent));
            }
            Happening::Message { from, .. } => {
                let id = self.seats[at].id;
                self.plan(from, 300, Happening::Unreachable(id));
            }
            Happening::Snapshot { from, message, .. } => {
                let to = message.to.unwrap_or(0);
                self.plan(from, 300, Happening::SnapshotEnded { to, delivered: false });
            }
            Happening::Question { question, from: (seat, life), .. } => {
                let fail = Happening::Answer(Box::new(move || question.fail()));
                self.agenda.at(self.now_us + 300, Event::At(seat, life, fail));
            }
            Happening::Watch { client, stream, .. } => self.lose_stream(client, stream),
            _ => {}
        }
    }

    /// After a turn of a process: takes what it has put out, and plans the turns that it wants.
    pub(super) fn settle(&mut self, at: usize) -> Result<(), Violation> {
        loop {
            let now_us = self.now_us;
            let seat = &mut self.seats[at];
            let life = seat.life;
            let Some(running) = &mut seat.running else { return Ok(()) };
            let tray = running.machine.take();
            for task in tray.tasks {
                running.tasks.begin(task);
            }
            running.sleepers.extend(tray.sleepers);
            if let Some(wait) = running.machine.due(&mut running.sleepers) {
                let when = now_us + running.machine.true_time(wait).max(1);
                if running.timers_planned_us.is_none_or(|planned| when < planned) {
                    running.timers_planned_us = Some(when);
                    self.agenda.at(when, Event::At(at, life, Happening::Timers));
                }
            }
            let polled = running.tasks.run();
            for work in tray.works {
                let takes = 1_000 + self.random.around(20_000);
                self.agenda.at(now_us + takes, Event::At(at, life, Happening::Work(work)));
            }
            for entry in &tray.committed {
                self.ledger.committed(at, entry, now_us)?;
                self.trace.note(entry.index ^ digest(&entry.data));
            }
            for (index, answers) in tray.applied {
                self.ledger.applied(at, index, answers)?;
            }
            for outgoing in tray.outgoing {
                self.send(at, outgoing)?;
            }
            self.check_members(at)?;
            let delivered = self.deliveries(at)?;
            if !polled && !delivered {
                break;
            }
        }
        self.plan_watchers(at);
        self.tell_waiters(at);
        self.after_turn(at)
    }

    fn after_turn(&mut self, at: usize) -> Result<(), Violation> {
        let now_us = self.now_us;
        let seat = &mut self.seats[at];
        let Some(running) = &mut seat.running else { return Ok(()) };
        if running.api.leader() == seat.id && seat.id != 0 {
            let begins = self.ledger.leads(seat.id, running.api.term(), now_us)?;
            if begins && now_us < self.hunted_until_us {
                let wait = self.random.around(2_000);
                self.later(wait, Event::Hunted(at));
            }
        }
        let seat = &mut self.seats[at];
        let Some(running) = &mut seat.running else { return Ok(()) };
        if seat.disk.is_off() {
            self.end(at, End::PowerLost);
            let wait = self.random.around(2_000_000);
            self.agenda.at(now_us + wait, Event::Restart(at));
            return Ok(());
        }
        if let Some(reason) = running.member.failure() {
            self.trace.say(now_us, format_args!("m{at} fails: {reason}"));
            self.tally.disk_failures += 1;
            if !self.may_fail(at) {
                return violation!("m{at} stopped on a disk without a fault: {reason}");
            }
            // Whoever starts it again finds in memory what the disk has not taken, or the machine is restarted.
            let how = if self.random.chance(500) { End::Killed } else { End::PowerLost };
            self.end(at, how);
            let wait = self.random.around(2_000_000);
            self.agenda.at(now_us + wait, Event::Restart(at));
            return Ok(());
        }
        if running.member.is_stopping() {
            self.end(at, End::Stopped);
            self.seats[at].retired = true;
            return Ok(());
        }
        let life = seat.life;
        if running.member.wants_log() && !running.log_planned {
            running.log_planned = true;
            let when = (now_us + self.random.between(LOG_US / 4, 2 * LOG_US)).max(seat.stalled_until_us);
            self.agenda.at(when, Event::At(at, life, Happening::Log));
        }
        if running.member.wants_apply() {
            let when = now_us + self.random.around(APPLY_US);
            if running.apply_planned_us.is_none_or(|planned| when < planned) {
                running.apply_planned_us = Some(when);
                self.agenda.at(when, Event::At(at, life, Happening::Apply));
            }
        }
        if running.member.wants_spare() && !running.spare_planned {
            running.spare_planned = true;
            let wait = self.random.around(20_000);
            self.agenda.at(now_us + wait, Event::At(at, life, Happening::Spare));
        }
        Ok(())
    }
}

/// A member that is asked while another starts.
struct Directory<'a> {
    seats: &'a [Seat],
    network: &'a Network,
    from: usize,
    now_us: u64,
}

impl Neighbours for Directory<'_> {
    fn members(&self, url: &str, _: std::time::Duration) -> Result<peer::Members, String> {
        let running = self.running(url)?;
        let members = running.api.state().members().into_iter().map(|m| peer::Member {
            id: m.id,
            peer_urls: m.peer_urls,
            is_learner: m.is_learner,
            name: m.name,
            client_urls: m.client_urls,
        });
        Ok(peer::Members { cluster_id: running.api.identity().cluster_id, members: members.collect() })
    }

    fn version(&self, url: &str, _: std::time::Duration) -> Result<peer::Version, String> {
        Ok(version_of(self.running(url)?))
    }
}

impl Directory<'_> {
    fn running(&self, url: &str) -> Result<&Running, String> {
        let at = self.seats.iter().position(|seat| url_of(&seat.flags.name) == url);
        let reached = at.filter(|at| self.network.is_open(self.from, *at) && self.network.is_open(*at, self.from));
        let seat = reached.map(|at| &self.seats[at]).filter(|seat| seat.frozen_until_us <= self.now_us);
        seat.and_then(|seat| seat.running.as_ref()).ok_or_else(|| "it cannot be reached".to_owned())
    }
}
