//! The world: machines, the network between them, clients, and time.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use api::mailbox::{Delivery, Mailbox, Reply, Ticket};
use api::{Answer, Member};
use bytes::{Bytes, BytesMut};
use disk::mem::{Crash, Fault};
use disk::{Disk, MemDisk};
use peer::{CallError, LeaseError, Local, PromoteError, StepError};
use prost::Message as _;
use proto::etcdserverpb as pb;
use proto::raftpb::Message;
use server::host::Neighbours;
use server::simulated::{Flags, SimulatedMember};
use state::{Error, Response};

use crate::agenda::{Agenda, Event, Happening};
use crate::client::{Client, Op, Outcome, is_verdict};
use crate::host::{Card, Drift, Machine, Outgoing, Question};
use crate::ledger::{Ledger, Violation, violation};
use crate::network::Network;
use crate::options::Settings;
use crate::random::Random;
use crate::tasks::Tasks;
use crate::trace::{Trace, digest};
use crate::workload::{Ask, Workload};

/// A machine's place in the world: its disk outlives its process.
pub struct Seat {
    /// What its member's flags say.
    pub flags: Flags,
    /// Its disk.
    pub disk: MemDisk,
    /// The member on it, while it runs.
    pub running: Option<Running>,
    /// Which life of its process this is, or was.
    pub life: u64,
    /// Until when the process is frozen.
    pub frozen_until_us: u64,
    /// Until when its disk hangs.
    pub stalled_until_us: u64,
    /// The member's ID, once it is known.
    pub id: u64,
    /// What its clock shows more than the true time.
    boot_us: u64,
    /// How wrong its clock runs.
    pub drift: Drift,
    /// Why the member last refused to start.
    refused: Option<String>,
    /// Whether the machine takes part: one whose member was removed does not.
    pub retired: bool,
}

/// A running process.
pub struct Running {
    /// The member.
    pub member: SimulatedMember,
    /// The machine it runs on.
    pub machine: Arc<Machine>,
    /// The member as clients know it.
    pub api: Arc<dyn Member>,
    link: Arc<dyn Local>,
    tasks: Tasks,
    sleepers: Vec<(u64, Waker)>,
    mailbox: Arc<Mailbox>,
    pending: BTreeMap<Ticket, Op>,
    next_ticket: Ticket,
    log_planned: bool,
    /// When the apply thread's next turn is planned, if one is.
    apply_planned_us: Option<u64>,
    spare_planned: bool,
    timers_planned_us: Option<u64>,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Killed; what it had written is still in the page cache.
    Killed,
    /// Its machine lost power; of what was not synced anything may be gone.
    PowerLost,
    /// Told to stop.
    Stopped,
}

/// What has happened in a run.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Operations that clients began.
    pub asked: u64,
    /// Those that were answered.
    pub answered: u64,
    /// Those whose outcome nobody knows.
    pub lost: u64,
    /// Processes that were started.
    pub starts: u64,
    /// Processes that ended, one way or another.
    pub ends: u64,
    /// Members that stopped because of their disks.
    pub disk_failures: u64,
    /// Snapshots that were delivered.
    pub snapshots: u64,
    /// Troubles of all kinds.
    pub troubles: u64,
}

/// A cluster, and everything around it.
pub struct Cluster {
    /// True time since the beginning, in microseconds.
    pub now_us: u64,
    /// What is going to happen.
    pub agenda: Agenda,
    /// Chance.
    pub random: Random,
    /// The machines.
    pub seats: Vec<Seat>,
    /// The network.
    pub network: Network,
    /// What was agreed on.
    pub ledger: Ledger,
    /// The story.
    pub trace: Trace,
    /// What has happened.
    pub tally: Tally,
    /// How this world is.
    pub settings: Settings,
    clients: Vec<Client>,
    workload: Workload,
    /// The newest index of the log that any client has been told of.
    floor: u64,
    /// Whether clients go on asking.
    pub asking: bool,
}

/// A member that is asked while another starts.
struct Directory<'a>(&'a [Seat]);

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
        let seat = self.0.iter().find(|seat| url_of(&seat.flags.name) == url);
        seat.and_then(|seat| seat.running.as_ref()).ok_or_else(|| "connection refused".to_owned())
    }
}

fn version_of(running: &Running) -> peer::Version {
    let status = running.api.status();
    let cluster = if status.cluster_version.is_empty() { "not_decided".into() } else { status.cluster_version };
    peer::Version { server: status.version, cluster, storage: None }
}

/// Where the member of this name listens for its peers.
pub fn url_of(name: &str) -> String {
    format!("http://{name}:2380")
}

/// Disk time of a turn of the log's thread, in microseconds.
const LOG_US: u64 = 300;
/// Before the apply thread gets to what is queued, in microseconds.
const APPLY_US: u64 = 60;
/// How long a client waits for an answer, in microseconds.
const PATIENCE_US: u64 = 10_000_000;

impl Cluster {
    /// A cluster of machines that have never been switched on.
    pub fn new(settings: Settings, mut random: Random) -> Self {
        let names: Vec<String> = (0..settings.members).map(|number| format!("m{number}")).collect();
        let initial: Vec<(String, Vec<String>)> = names.iter().map(|name| (name.clone(), vec![url_of(name)])).collect();
        let seats = names.iter().map(|name| Seat {
            flags: settings.flags(name, initial.clone(), false),
            disk: MemDisk::new(),
            running: None,
            life: 0,
            frozen_until_us: 0,
            stalled_until_us: 0,
            id: 0,
            boot_us: random.below(1_000_000_000),
            drift: 0,
            refused: None,
            retired: false,
        });
        let seats = seats.collect();
        let clients = (0..settings.clients).map(|_| Client::default()).collect();
        Self {
            now_us: 0,
            agenda: Agenda::default(),
            seats,
            network: Network::new(random.fork()),
            ledger: Ledger::new(settings.min_lease_ttl()),
            trace: Trace::default(),
            tally: Tally::default(),
            workload: Workload::new(random.fork()),
            random,
            clients,
            floor: 0,
            asking: true,
            settings,
        }
    }

    /// Switches everything on.
    pub fn begin(&mut self) -> Result<(), Violation> {
        for seat in 0..self.seats.len() {
            self.start(seat)?;
        }
        for client in 0..self.clients.len() {
            let at = self.now_us + self.random.below(1_000_000);
            self.agenda.at(at, Event::Client(client));
        }
        Ok(())
    }

    /// Lets things happen until a moment.
    pub fn run_until(&mut self, until_us: u64, troubles: &mut dyn FnMut(&mut Self, Trouble)) -> Result<(), Violation> {
        while self.now_us < until_us {
            let Some((time_us, event)) = self.agenda.pop() else { return Ok(()) };
            self.now_us = time_us.max(self.now_us);
            self.trace.note(time_us);
            match event {
                Event::At(seat, life, happening) => self.happen(seat, life, happening)?,
                Event::Client(client) => self.ask(client),
                Event::Answer(client, number, outcome) => self.answered(client, number, outcome)?,
                Event::Patience(client, number) => self.answered(client, number, Outcome::Lost)?,
                Event::Answered(seat, life, deliver) => {
                    if self.seats[seat].life == life {
                        deliver();
                        self.settle(seat)?;
                    }
                }
                Event::Trouble => troubles(self, Trouble::Time),
                Event::Over(number) => troubles(self, Trouble::Over(number)),
                Event::Restart(seat) => self.start(seat)?,
            }
        }
        Ok(())
    }

    // --- processes ---

    /// Starts the process at a seat, if it does not run.
    pub fn start(&mut self, at: usize) -> Result<(), Violation> {
        if self.seats[at].running.is_some() || self.seats[at].retired {
            return Ok(());
        }
        let seed = self.random.any();
        let now_us = self.now_us;
        let seat = &self.seats[at];
        let machine = Machine::new(now_us, seat.boot_us, seat.drift, seat.disk.clone());
        let card = Arc::new(Card(Arc::clone(&machine)));
        let disk: Arc<dyn Disk> = Arc::new(seat.disk.clone());
        let directory = Directory(&self.seats);
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
            Err(error) if self.settings.disks_fail => {
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
        let api = member.member();
        let link = member.link();
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
            next_ticket: 0,
            log_planned: false,
            apply_planned_us: None,
            spare_planned: false,
            timers_planned_us: None,
        });
        let phase = self.random.below(self.settings.heartbeat_ms * 1000);
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
        let Running { member, api, link, pending, tasks, .. } = running;
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

    fn plan(&mut self, at: usize, after_us: u64, happening: Happening) {
        let life = self.seats[at].life;
        self.agenda.at(self.now_us + after_us, Event::At(at, life, happening));
    }

    fn happen(&mut self, at: usize, life: u64, happening: Happening) -> Result<(), Violation> {
        let now_us = self.now_us;
        if self.seats[at].life != life || self.seats[at].running.is_none() {
            self.miss(at, happening);
            return Ok(());
        }
        if self.seats[at].frozen_until_us > now_us {
            self.agenda.at(self.seats[at].frozen_until_us, Event::At(at, life, happening));
            return Ok(());
        }
        let Some(running) = &mut self.seats[at].running else { return Ok(()) };
        running.machine.advance(now_us);
        let mut next = None;
        match happening {
            Happening::Tick => {
                running.member.tick();
                let interval = running.machine.true_time(self.settings.heartbeat_ms * 1000);
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
                if let ControlFlow::Continue(pause) = running.member.upkeep() {
                    next = Some((running.machine.true_time(pause.as_micros() as u64), Happening::Upkeep));
                }
            }
            Happening::Spare => {
                running.spare_planned = false;
                running.member.spare();
            }
            Happening::Timers => running.timers_planned_us = None,
            Happening::Work(work) => work(),
            Happening::Message { from, bytes } => {
                let Ok(message) = Message::decode(bytes) else {
                    return violation!("m{from} sent a message that cannot be decoded");
                };
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
            Happening::Request(op) => self.request_arrives(at, op),
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
                let fail = Box::new(move || question.fail());
                self.agenda.at(self.now_us + 300, Event::Answered(seat, life, fail));
            }
            _ => {}
        }
    }

    /// After a turn of a process: takes what it has put out, and plans the turns that it wants.
    fn settle(&mut self, at: usize) -> Result<(), Violation> {
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
                self.send(at, outgoing);
            }
            let delivered = self.deliveries(at)?;
            if !polled && !delivered {
                break;
            }
        }
        self.after_turn(at)
    }

    fn after_turn(&mut self, at: usize) -> Result<(), Violation> {
        let now_us = self.now_us;
        let seat = &mut self.seats[at];
        let Some(running) = &mut seat.running else { return Ok(()) };
        if running.api.leader() == seat.id && seat.id != 0 {
            self.ledger.leads(seat.id, running.api.term())?;
        }
        if seat.disk.is_off() {
            self.end(at, End::PowerLost);
            let wait = self.random.around(2_000_000);
            self.agenda.at(now_us + wait, Event::Restart(at));
            return Ok(());
        }
        if let Some(reason) = running.member.failure() {
            self.trace.say(now_us, format_args!("m{at} fails: {reason}"));
            self.tally.disk_failures += 1;
            if !self.settings.disks_fail {
                return violation!("m{at} stopped on a disk without a fault: {reason}");
            }
            // A disk that failed to sync has dropped what it could not write; the machine is restarted.
            self.end(at, End::PowerLost);
            self.seats[at].disk.clear_faults();
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

    // --- between members ---

    fn seat_of(&self, id: u64) -> Option<usize> {
        self.seats.iter().position(|seat| seat.id == id && !seat.retired)
    }

    fn send(&mut self, from: usize, outgoing: Outgoing) {
        let now_us = self.now_us;
        match outgoing {
            Outgoing::Message { to, bytes, once } => {
                let knows = self.seats[from].running.as_ref().is_some_and(|running| running.machine.knows(to));
                let Some(seat) = self.seat_of(to).filter(|_| knows) else { return };
                self.trace.note(digest(&bytes));
                let mut arrivals = self.network.send(now_us, from, seat, bytes.len());
                if once {
                    arrivals.truncate(1);
                }
                if arrivals.is_empty() && self.random.chance(300) {
                    self.plan(from, 1_000, Happening::Unreachable(to));
                }
                let life = self.seats[seat].life;
                for when in arrivals {
                    let message = Happening::Message { from, bytes: bytes.clone() };
                    self.agenda.at(when, Event::At(seat, life, message));
                }
            }
            Outgoing::Snapshot { message, file } => {
                let to = message.to.unwrap_or(0);
                let arrival = match (self.seat_of(to), file) {
                    (Some(seat), Ok(file)) => {
                        let bytes = file.iter().map(Bytes::len).sum();
                        self.network.send(now_us, from, seat, bytes).first().map(|when| (seat, *when, file))
                    }
                    _ => None,
                };
                match arrival {
                    Some((seat, when, file)) => {
                        let life = self.seats[seat].life;
                        let when = when + self.random.around(30_000);
                        self.agenda.at(when, Event::At(seat, life, Happening::Snapshot { from, message, file }));
                    }
                    None => self.plan(from, 2_000, Happening::SnapshotEnded { to, delivered: false }),
                }
            }
            Outgoing::Question { url, question } => {
                let asker = (from, self.seats[from].life);
                let seat = self.seats.iter().position(|seat| url_of(&seat.flags.name) == url);
                let arrival = seat.and_then(|seat| Some((seat, *self.network.send(now_us, from, seat, 200).first()?)));
                // An answer that came first is the one that counts.
                let gives_up = question.clone();
                let fail = Box::new(move || gives_up.fail());
                self.agenda.at(now_us + 5_000_000, Event::Answered(asker.0, asker.1, fail));
                if let Some((seat, when)) = arrival {
                    let life = self.seats[seat].life;
                    self.agenda.at(when, Event::At(seat, life, Happening::Question { from: asker, question }));
                }
            }
        }
    }

    fn snapshot_arrives(&mut self, at: usize, from: usize, message: Message, file: &[Bytes]) {
        let Some(running) = &self.seats[at].running else { return };
        let to = message.to.unwrap_or(0);
        let whole: Vec<u8> = file.concat();
        let delivered = to == running.api.identity().member_id
            && running.link.save_snapshot(&message, &mut whole.as_slice()).is_ok()
            && running.link.step(message).is_ok();
        self.tally.snapshots += u64::from(delivered);
        self.trace.say(self.now_us, format_args!("m{at} gets a snapshot of {} bytes from m{from}", whole.len()));
        self.plan(from, 1_000, Happening::SnapshotEnded { to, delivered });
    }

    /// Answers a question on this seat's tasks, and sends the answer back over the network.
    fn question_arrives(&mut self, at: usize, asker: (usize, u64), question: Question) {
        let back = self.network.send(self.now_us, at, asker.0, 200).first().copied();
        let Some(running) = &mut self.seats[at].running else { return };
        let Some(back) = back else { return };
        // The way back takes as long as it takes now, whenever the answer is ready.
        let _way = back - self.now_us;
        let link = Arc::clone(&running.link);
        match question {
            Question::Version(slot) => slot.fill(Ok(version_of(running))),
            Question::Renew(id, slot) => running.tasks.begin(Box::pin(async move {
                slot.fill(link.renew_lease(id).await.map_err(refused_lease));
            })),
            Question::Remaining(id, keys, slot) => running.tasks.begin(Box::pin(async move {
                slot.fill(link.remaining_lease(id, keys).await.map_err(refused_lease));
            })),
            Question::Promote(id, slot) => running.tasks.begin(Box::pin(async move {
                let refused = |error: PromoteError| {
                    let status = match error {
                        PromoteError::NotFound => 404,
                        PromoteError::NotLearner | PromoteError::NotReady => 412,
                        PromoteError::Other(_) => 500,
                    };
                    CallError::Refused { status, text: error.to_string() }
                };
                // Whoever asked looks at the membership itself.
                slot.fill(link.promote(id).await.map(|_| Vec::new()).map_err(refused));
            })),
        }
        // The asker's task runs when its process gets its next turn.
        let wake = Box::new(|| {});
        self.agenda.at(back, Event::Answered(asker.0, asker.1, wake));
    }

    // --- clients ---

    /// A client begins its next operation.
    fn ask(&mut self, number: usize) {
        if !self.asking {
            let later = self.now_us + 500_000;
            self.agenda.at(later, Event::Client(number));
            return;
        }
        let ask = self.workload.next(self.ledger.model.revision());
        let client = &mut self.clients[number];
        client.begun += 1;
        self.tally.asked += 1;
        if self.random.chance(150) {
            client.seat = self.random.below(self.seats.len() as u64) as usize;
        }
        let tag = format!("c{number}-{}", client.begun);
        let op = Op { client: number, number: client.begun, tag, ask, floor: self.floor, asked_us: self.now_us };
        client.waiting = Some(op.clone());
        let seat = client.seat;
        let begun = client.begun;
        let wait = self.random.around(200);
        self.plan(seat, wait, Happening::Request(op));
        self.agenda.at(self.now_us + PATIENCE_US, Event::Patience(number, begun));
    }

    fn request_arrives(&mut self, at: usize, op: Op) {
        let Some(running) = &mut self.seats[at].running else { return };
        let ticket = running.next_ticket;
        running.next_ticket += 1;
        let reply = Reply::new(Arc::clone(&running.mailbox), ticket);
        let api = Arc::clone(&running.api);
        let mut now = None;
        match &op.ask {
            Ask::Write(request) => {
                let mut request = (**request).clone();
                // A member passes on who asks. Nobody is logged in, so it says nothing to the state machine.
                request.header = Some(pb::RequestHeader { username: op.tag.clone(), ..Default::default() });
                api.propose(request, reply);
                api.submit();
            }
            Ask::Range(range) if range.serializable || api.read_is_local() => now = Some(read(&api, &op.ask)),
            Ask::ReadTxn(txn) if state::Reader::is_serializable(txn) || api.read_is_local() => {
                now = Some(read(&api, &op.ask));
            }
            Ask::Range(_) | Ask::ReadTxn(_) => {
                if api.is_learner() {
                    now = Some(Outcome::Unsent);
                } else {
                    api.read_index(reply);
                }
            }
            Ask::Renew(id) => api.lease_renew(*id, reply),
        }
        match now {
            Some(outcome) => self.reply(&op, outcome),
            None => drop(running.pending.insert(ticket, op)),
        }
    }

    fn reply(&mut self, op: &Op, outcome: Outcome) {
        let way = self.random.around(200);
        self.agenda.at(self.now_us + way, Event::Answer(op.client, op.number, outcome));
    }

    /// Passes on what a member has answered. Whether there was anything.
    fn deliveries(&mut self, at: usize) -> Result<bool, Violation> {
        let Some(running) = &mut self.seats[at].running else { return Ok(false) };
        let mut deliveries: Vec<Delivery> = Vec::new();
        let mut context = Context::from_waker(Waker::noop());
        if running.mailbox.poll_take(&mut deliveries, &mut context) == Poll::Pending {
            return Ok(false);
        }
        let api = Arc::clone(&running.api);
        let mut answers = Vec::new();
        for Delivery { ticket, outcome } in deliveries {
            let Some(op) = running.pending.remove(&ticket) else { continue };
            let outcome = match (&op.ask, outcome) {
                (Ask::Write(_), Ok(Answer::Applied(response))) => Outcome::Wrote(Ok(response)),
                (Ask::Write(_), Err(error)) => Outcome::Wrote(Err(error)),
                (Ask::Range(_) | Ask::ReadTxn(_), Ok(Answer::Done)) => read(&api, &op.ask),
                (Ask::Range(_), Err(error)) => Outcome::Ranged(Err(error)),
                (Ask::ReadTxn(_), Err(error)) => Outcome::ReadTxn(Err(error)),
                (Ask::Renew(_), Ok(Answer::Renewed(ttl))) => Outcome::Renewed(Ok(ttl)),
                (Ask::Renew(_), Err(error)) => Outcome::Renewed(Err(error)),
                (ask, Ok(other)) => return violation!("{ask:?} was answered with {other:?}"),
            };
            answers.push((op, outcome));
        }
        // A member without power answers nobody.
        if !self.seats[at].disk.is_off() {
            for (op, outcome) in answers {
                self.reply(&op, outcome);
            }
        }
        Ok(true)
    }

    fn answered(&mut self, number: usize, op: u64, outcome: Outcome) -> Result<(), Violation> {
        let client = &mut self.clients[number];
        if client.waiting.as_ref().is_none_or(|waiting| waiting.number != op) {
            return Ok(());
        }
        let Some(op) = client.waiting.take() else { return Ok(()) };
        self.trace.say(self.now_us, format_args!("{} {:?}: {outcome:?}", op.tag, op.ask));
        let known = self.check(&op, &outcome)?;
        self.floor = self.floor.max(known);
        match outcome {
            Outcome::Lost => self.tally.lost += 1,
            _ => self.tally.answered += 1,
        }
        if matches!(outcome, Outcome::Unsent | Outcome::Lost) || self.random.chance(30) {
            self.clients[number].seat = self.random.below(self.seats.len() as u64) as usize;
        }
        let pause = self.random.around(self.settings.pause_us);
        self.agenda.at(self.now_us + pause, Event::Client(number));
        Ok(())
    }

    /// Checks an outcome. Gives the newest index of the log that the client knows of now.
    fn check(&mut self, op: &Op, outcome: &Outcome) -> Result<u64, Violation> {
        self.trace.note(op.number);
        match (&op.ask, outcome) {
            (Ask::Write(request), Outcome::Wrote(result)) => {
                if result.as_ref().is_err_and(|error| !is_verdict(error)) {
                    return Ok(0);
                }
                let place = self.ledger.wrote(&op.tag, op.floor, result)?;
                self.trace.note(place.index);
                if let Some(grant) = &request.lease_grant
                    && result.is_ok()
                {
                    self.workload.leases.push(grant.id);
                    if self.workload.leases.len() > 12 {
                        self.workload.leases.remove(0);
                    }
                }
                if let Ok(Response::LeaseGrant(granted)) = result {
                    self.ledger.leases.promised(granted.id, op.asked_us, granted.ttl)?;
                }
                if let Ok(Response::LeaseRevoke(_)) = result
                    && let Some(revoke) = &request.lease_revoke
                {
                    self.workload.leases.retain(|id| *id != revoke.id);
                }
                Ok(place.index)
            }
            (Ask::Range(request), Outcome::Ranged(result)) => {
                let floor = if request.serializable { 0 } else { op.floor };
                self.ledger.ranged(&op.tag, request, floor, result)
            }
            (Ask::ReadTxn(request), Outcome::ReadTxn(Ok(response))) => {
                let floor = if state::Reader::is_serializable(request) { 0 } else { op.floor };
                self.ledger.read_txn(&op.tag, request, floor, response)
            }
            (Ask::Renew(id), Outcome::Renewed(Ok(ttl))) if *ttl > 0 => {
                self.ledger.leases.promised(*id, op.asked_us, *ttl)?;
                Ok(0)
            }
            _ => Ok(0),
        }
    }

    // --- the end ---

    /// Whether everybody runs and has applied all that was agreed on.
    pub fn is_settled(&self) -> bool {
        let last = self.ledger.last_index();
        self.seats.iter().filter(|seat| !seat.retired).all(|seat| {
            seat.running.as_ref().is_some_and(|running| {
                running.member.applied() == last
                    && running.api.leader() != 0
                    && !running.member.wants_log()
                    && running.member.is_ready()
            })
        })
    }

    /// Where everybody stands, for a message.
    pub fn seen(&self) -> String {
        let mut text = format!("agreed up to {}", self.ledger.last_index());
        for (at, seat) in self.seats.iter().enumerate() {
            let status = seat.running.as_ref().map(|running| {
                let status = running.member.raft_status();
                let (term, leader) = (running.api.term(), running.api.leader());
                let busy = (running.member.wants_log(), running.member.wants_apply());
                format!("applied {}, term {term}, leader {leader:x}, {busy:?}, {status:?}", running.member.applied())
            });
            text.push_str(&format!(
                "; m{at} ({:x}): {}",
                seat.id,
                status.unwrap_or_else(|| format!("down, {:?}", seat.refused))
            ));
        }
        text
    }

    /// Compares what all running members hold.
    pub fn compare(&mut self) -> Result<(), Violation> {
        let mut first: Option<(usize, String)> = None;
        for at in 0..self.seats.len() {
            let Some(running) = &self.seats[at].running else { continue };
            if running.member.applied() != self.ledger.last_index() {
                continue;
            }
            let reader = running.api.state().clone();
            let hash = reader.hash_kv(0).map_err(|error| Violation(format!("m{at} cannot hash its keys: {error}")))?;
            self.ledger.hashed(at, &hash)?;
            let everything = pb::RangeRequest {
                key: Bytes::from_static(b"\0"),
                range_end: Bytes::from_static(b"\0"),
                ..Default::default()
            };
            let range = reader.range(&everything);
            self.ledger.ranged("the final comparison", &everything, self.ledger.last_index(), &range)?;
            let mut leases = reader.lessor().leases();
            leases.sort_unstable();
            let expected: Vec<i64> = self.ledger.model.leases().collect();
            if leases != expected {
                return violation!("m{at} has the leases {leases:?}, expected {expected:?}");
            }
            let rest = format!("{:?} {:?} {:?}", reader.members(), reader.alarms(0), reader.cluster_version());
            match &first {
                Some((other, theirs)) if *theirs != rest => {
                    return violation!("m{other} and m{at} differ: {theirs} and {rest}");
                }
                Some(_) => {}
                None => first = Some((at, rest)),
            }
        }
        Ok(())
    }

    /// Arms a fault of a machine's disk.
    pub fn inject(&mut self, at: usize, fault: Fault) {
        self.trace.say(self.now_us, format_args!("m{at}'s disk: {fault:?}"));
        self.seats[at].disk.inject(fault);
    }
}

/// When trouble is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Trouble {
    /// It is time for some.
    Time,
    /// The one with this number ends.
    Over(u64),
}

fn refused_lease(error: LeaseError) -> CallError {
    let status = match error {
        LeaseError::NotFound => 404,
        LeaseError::NotPrimary => 400,
        LeaseError::Timeout => 408,
        LeaseError::Other(_) => 500,
    };
    CallError::Refused { status, text: error.to_string() }
}

/// Answers a read from what a member has applied, as its API does.
fn read(api: &Arc<dyn Member>, ask: &Ask) -> Outcome {
    match ask {
        Ask::Range(request) => {
            let mut out = BytesMut::new();
            let header = pb::ResponseHeader::default();
            let read = api.state().range_encoded(request, &header, &mut out);
            let decode = || pb::RangeResponse::decode(out.freeze()).map_err(|error| Error::Internal(error.to_string()));
            Outcome::Ranged(read.and_then(|()| decode()))
        }
        Ask::ReadTxn(request) => Outcome::ReadTxn(api.state().txn_read_only(request)),
        Ask::Write(_) | Ask::Renew(_) => Outcome::Unsent,
    }
}

/// The directory of a member's data.
pub fn data_dir() -> PathBuf {
    PathBuf::from("/data")
}
