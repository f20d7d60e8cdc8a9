//! The world: machines, the network between them, clients, and time.
//!
//! Here is what there is, and how time passes. What happens to it is told by concern: [`machines`] (processes and their
//! turns), [`fate`] (what goes wrong), [`delivery`] (what members say to each other), [`clients`] (what clients ask) and
//! [`checks`] (what must be true).

mod checks;
mod clients;
mod delivery;
mod fate;
mod machines;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Waker;

use api::Member;
use api::mailbox::{Mailbox, Ticket};
use disk::MemDisk;
use peer::Local;
use server::simulated::{Flags, SimulatedMember};

use crate::agenda::{Agenda, Event};
use crate::client::{Client, Op, Outcome};
use crate::host::{Drift, Machine};
use crate::ledger::{Ledger, Violation};
use crate::network::Network;
use crate::options::Settings;
use crate::random::Random;
use crate::tasks::Tasks;
use crate::trace::Trace;
use crate::workload::Workload;

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
    /// How wrong its clock runs.
    drift: Drift,
    /// Why the member last refused to start.
    refused: Option<String>,
    /// Whether the machine takes part: one whose member was removed does not.
    retired: bool,
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
    clients: Vec<Client>,
    workload: Workload,
    /// The newest index of the log that any client has been told of.
    floor: u64,
    /// Whether clients go on asking.
    pub asking: bool,
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

/// The directory of a member's data.
pub fn data_dir() -> PathBuf {
    PathBuf::from("/data")
}

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
                Event::Trouble => troubles(self, Trouble::Time),
                Event::Over(number) => troubles(self, Trouble::Over(number)),
                Event::Restart(seat) => self.start(seat)?,
            }
        }
        Ok(())
    }
}
