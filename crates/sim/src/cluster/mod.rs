//! The world: machines, the network between them, clients, and time.
//!
//! Here is what there is, and how time passes. What happens to it is told by concern: [`machines`] (processes and their
//! turns), [`fate`] (what goes wrong), [`operator`] (who runs the cluster), [`delivery`] (what members say to each other),
//! [`clients`] (what clients ask), [`watching`] and [`waiting`] (what they are shown) and [`checks`] (what must be true).

mod checks;
mod clients;
mod delivery;
mod fate;
mod machines;
mod operator;
mod waiting;
mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Waker;

use api::Member;
use api::mailbox::{Mailbox, Ticket};
use disk::MemDisk;
use disk::mem::Fault;
use peer::Local;
use server::simulated::{Flags, SimulatedMember};
use state::watch::StreamId;

use crate::agenda::{Agenda, Event};
use crate::client::{Client, Op, Outcome};
use crate::host::{Drift, Machine};
use crate::ledger::{Ledger, Violation};
use crate::locker::Locker;
use crate::network::Network;
use crate::options::Settings;
use crate::random::Random;
use crate::tasks::Tasks;
use crate::trace::Trace;
use crate::without::Without;
use crate::workload::Workload;
pub use fate::Rot;
use operator::Operator;
pub use operator::Wish;
pub use waiting::Told;
use waiting::{Wait, Waiter};
pub use watching::Whim;
use watching::{Desk, Watcher};

/// A machine's place in the world: its disk outlives its process.
struct Seat {
    /// What its member's flags say.
    flags: Flags,
    /// Its disk.
    disk: MemDisk,
    /// The member on it, while it runs.
    running: Option<Running>,
    /// Which life of its process this is, or was.
    life: u64,
    /// Until when the process is frozen.
    frozen_until_us: u64,
    /// Until when its disk hangs.
    stalled_until_us: u64,
    /// The member's ID, once it is known.
    id: u64,
    /// What its clock shows more than the true time.
    boot_us: u64,
    /// What its clock on the wall is ahead of the truth.
    wall_offset_us: i64,
    /// How wrong its clock runs.
    drift: Drift,
    /// Why the member last refused to start.
    refused: Option<String>,
    /// Sectors that can never be read again.
    unreadable: Vec<Fault>,
    /// Whether the machine takes part: one whose member was removed does not.
    retired: bool,
}

impl Seat {
    /// A machine with an empty disk.
    fn new(flags: Flags, boot_us: u64) -> Self {
        Self {
            flags,
            disk: MemDisk::new(),
            running: None,
            life: 0,
            frozen_until_us: 0,
            stalled_until_us: 0,
            id: 0,
            boot_us,
            drift: 0,
            refused: None,
            unreadable: Vec::new(),
            wall_offset_us: 0,
            retired: false,
        }
    }
}

/// A running process.
struct Running {
    /// The member.
    member: SimulatedMember,
    /// The machine it runs on.
    machine: Arc<Machine>,
    /// The member as clients know it.
    api: Arc<dyn Member>,
    link: Arc<dyn Local>,
    tasks: Tasks,
    sleepers: Vec<(u64, Waker)>,
    mailbox: Arc<Mailbox>,
    pending: BTreeMap<Ticket, Op>,
    /// What the operator has asked for.
    orders: BTreeSet<Ticket>,
    /// Since which entry the members that it was last seen to have are members.
    epoch: Option<u64>,
    /// The newest revision that it has shown to a reader.
    read_revision: i64,
    next_ticket: Ticket,
    log_planned: bool,
    /// When the apply thread's next turn is planned, if one is.
    apply_planned_us: Option<u64>,
    spare_planned: bool,
    timers_planned_us: Option<u64>,
    desk: Desk,
    waits: Vec<Wait>,
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
    /// Those that were done.
    pub answered: u64,
    /// Those whose outcome nobody knows.
    pub lost: u64,
    /// Processes that were started.
    pub starts: u64,
    /// Processes that ended, one way or another.
    pub ends: u64,
    /// Members that stopped because of their disks.
    pub disk_failures: u64,
    /// Messages that watchers got.
    pub watched: u64,
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
    agenda: Agenda,
    /// Chance.
    random: Random,
    /// The machines.
    seats: Vec<Seat>,
    /// The network.
    network: Network,
    /// What was agreed on.
    pub ledger: Ledger,
    /// The story.
    pub trace: Trace,
    /// What has happened.
    pub tally: Tally,
    /// How this world is.
    pub settings: Settings,
    operator: Operator,
    /// The machine whose disk has gone bad.
    rotten: Option<usize>,
    clients: Vec<Client>,
    watchers: Vec<Watcher>,
    waiters: Vec<Waiter>,
    /// The newest stream of watches.
    last_stream: StreamId,
    workload: Workload,
    /// The newest index of the log that any client has been told of.
    floor: u64,
    /// Whether clients go on asking.
    pub asking: bool,
    without: Without,
    /// Until when whoever begins to lead is struck at once.
    hunted_until_us: u64,
    /// Whether nothing goes wrong at the moment.
    pub is_calm: bool,
    /// When a member last answered somebody who renewed a lease, perhaps long after the question.
    renewed_us: u64,
}

/// When trouble is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Trouble {
    /// It is time for some.
    Time,
    /// The one with this number ends.
    Over(u64),
}

/// Where the member of this name listens for its peers.
fn url_of(name: &str) -> String {
    format!("http://{name}:2380")
}

/// The name of the member that listens there.
fn name_of(urls: &[String]) -> String {
    let host = urls.first().and_then(|url| url.strip_prefix("http://")?.strip_suffix(":2380"));
    host.unwrap_or_default().to_owned()
}

/// The directory of a member's data.
pub fn data_dir() -> PathBuf {
    PathBuf::from("/data")
}

impl Cluster {
    /// A cluster of machines that have never been switched on.
    pub fn new(settings: Settings, mut random: Random, without: Without) -> Self {
        let names: Vec<String> = (0..settings.members).map(|number| format!("m{number}")).collect();
        let initial: Vec<(String, Vec<String>)> = names.iter().map(|name| (name.clone(), vec![url_of(name)])).collect();
        let seat = |name: &String| Seat::new(settings.flags(name, initial.clone(), false), random.below(1_000_000_000));
        let seats = names.iter().map(seat).collect();
        let mut client = |number| {
            let locker = (number < settings.lockers).then(|| Locker::new(random.fork()));
            Client { locker, ..Client::default() }
        };
        let clients = (0..settings.clients).map(&mut client).collect();
        let mut workload = Workload::new(random.fork(), settings.speaks_v2);
        let waiters = if settings.speaks_v2 { settings.watchers } else { 0 };
        let waiters = (0..waiters).map(|_| Waiter::new(workload.wait())).collect();
        let watchers = (0..settings.watchers).map(|_| Watcher::default()).collect();
        Self {
            now_us: 0,
            agenda: Agenda::default(),
            seats,
            network: Network::new(random.fork()),
            ledger: Ledger::new(settings.min_lease_ttl(), settings.quota_bytes > 0),
            trace: Trace::default(),
            tally: Tally::default(),
            workload,
            random,
            operator: Operator::default(),
            rotten: None,
            clients,
            watchers,
            waiters,
            last_stream: 0,
            floor: 0,
            renewed_us: 0,
            asking: true,
            is_calm: false,
            without,
            hunted_until_us: 0,
            settings,
        }
    }

    /// Any machine that takes part.
    fn any_machine(&mut self) -> usize {
        let present: Vec<usize> = (0..self.seats.len()).filter(|at| !self.seats[*at].retired).collect();
        self.random.pick(&present).copied().unwrap_or(0)
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
        for watcher in 0..self.watchers.len() {
            self.later(1_000_000, Event::Watch(watcher));
        }
        for waiter in 0..self.waiters.len() {
            self.later(1_000_000, Event::WaitOver(waiter, 0));
        }
        self.look_later();
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
                Event::Watch(watcher) => self.watch(watcher),
                Event::Whim(watcher, stream) => self.fancy(watcher, stream),
                Event::Watched(watcher, stream, items) => self.watched(watcher, stream, &items)?,
                Event::WaitOver(waiter, request) => self.wait_is_over(waiter, request),
                Event::Waited(waiter, request, told) => self.waited(waiter, request, told)?,
                Event::Trouble => troubles(self, Trouble::Time),
                Event::Over(number) => troubles(self, Trouble::Over(number)),
                Event::Operator => self.operate()?,
                Event::HandOver => self.move_leader()?,
                Event::Hunted(seat) => self.strike_leader(seat),
                Event::Restart(seat) => self.start(seat)?,
            }
        }
        Ok(())
    }
}
