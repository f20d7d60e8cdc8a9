//! What goes wrong: many things at once, of kinds that the seed likes.

use std::collections::BTreeMap;

use disk::mem::Fault;

use crate::agenda::Event;
use crate::cluster::{Cluster, End, Trouble};
use crate::network::Weather;
use crate::random::Random;

/// A kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A process is killed.
    Kill,
    /// A process is told to stop.
    Stop,
    /// A machine loses power, between two turns.
    PowerLoss,
    /// A machine loses power in the middle of one.
    PowerLossWithin,
    /// All machines lose power at once.
    Blackout,
    /// A process is frozen.
    Freeze,
    /// A machine is cut off.
    Isolate,
    /// The network falls in two.
    Split,
    /// One way of one connection is cut.
    OneWay,
    /// The network becomes bad.
    Storm,
    /// A disk hangs.
    Stall,
    /// A sync fails.
    SyncFails,
    /// A write fails.
    WriteFails,
    /// A disk is full.
    Full,
    /// A clock runs wrong.
    Drift,
    /// Somebody sets a clock.
    SetClock,
}

const KINDS: [Kind; 16] = [
    Kind::Kill,
    Kind::Stop,
    Kind::PowerLoss,
    Kind::PowerLossWithin,
    Kind::Blackout,
    Kind::Freeze,
    Kind::Isolate,
    Kind::Split,
    Kind::OneWay,
    Kind::Storm,
    Kind::Stall,
    Kind::SyncFails,
    Kind::WriteFails,
    Kind::Full,
    Kind::Drift,
    Kind::SetClock,
];

/// How something that lasts ends.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// The network is whole again.
    Heal,
    /// It is good again.
    Calm,
    /// The disk has room again.
    Room(usize),
}

/// Makes trouble.
#[derive(Debug)]
pub struct Troubles {
    random: Random,
    /// Kinds that this seed likes, the more often it likes them.
    liked: Vec<Kind>,
    /// The mean time between two troubles, in microseconds.
    every_us: u64,
    endings: BTreeMap<u64, Ending>,
    next: u64,
    /// Whether there is any.
    pub active: bool,
}

impl Troubles {
    /// Draws what a seed likes.
    pub fn new(mut random: Random, disks_fail: bool) -> Self {
        let mut liked = Vec::new();
        for kind in KINDS {
            if matches!(kind, Kind::SyncFails | Kind::WriteFails | Kind::Full) && !disks_fail {
                continue;
            }
            for _ in 0..random.below(4) {
                liked.push(kind);
            }
        }
        let every_us = *random.pick(&[700_000, 2_000_000, 6_000_000]).unwrap_or(&2_000_000);
        Self { random, liked, every_us, endings: BTreeMap::new(), next: 0, active: true }
    }

    /// Plans the first trouble, and after each the next.
    pub fn plan(&mut self, cluster: &mut Cluster) {
        let wait = self.random.around(self.every_us);
        cluster.agenda.at(cluster.now_us + wait, Event::Trouble);
    }

    /// Makes or ends trouble.
    pub fn strike(&mut self, cluster: &mut Cluster, when: Trouble) {
        match when {
            Trouble::Over(number) => {
                if let Some(ending) = self.endings.remove(&number) {
                    self.end(cluster, ending);
                }
            }
            Trouble::Time => {
                self.plan(cluster);
                if self.active
                    && let Some(kind) = self.random.pick(&self.liked).copied()
                {
                    cluster.tally.troubles += 1;
                    self.make(cluster, kind);
                }
            }
        }
    }

    /// Ends all trouble and switches everything on.
    pub fn cease(&mut self, cluster: &mut Cluster) {
        self.active = false;
        self.endings.clear();
        cluster.network.heal();
        cluster.network.weather = Weather::fair();
        for at in 0..cluster.seats.len() {
            let now_us = cluster.now_us;
            let seat = &mut cluster.seats[at];
            if !seat.disk.is_off() {
                seat.disk.clear_faults();
            }
            seat.stalled_until_us = 0;
            seat.frozen_until_us = seat.frozen_until_us.min(now_us);
            cluster.agenda.at(now_us + 1, Event::Restart(at));
        }
        cluster.connections();
    }

    fn lasts(&mut self, cluster: &mut Cluster, mean_us: u64, ending: Ending) {
        let number = self.next;
        self.next += 1;
        self.endings.insert(number, ending);
        let time = self.random.around(mean_us);
        cluster.agenda.at(cluster.now_us + time, Event::Over(number));
    }

    fn end(&mut self, cluster: &mut Cluster, ending: Ending) {
        let now_us = cluster.now_us;
        cluster.trace.say(now_us, format_args!("over: {ending:?}"));
        match ending {
            Ending::Heal => {
                cluster.network.heal();
                cluster.connections();
            }
            Ending::Calm => cluster.network.weather = Weather::fair(),
            Ending::Room(at) => {
                if !cluster.seats[at].disk.is_off() {
                    cluster.seats[at].disk.clear_faults();
                }
            }
        }
    }

    fn make(&mut self, cluster: &mut Cluster, kind: Kind) {
        let now_us = cluster.now_us;
        let at = self.random.below(cluster.seats.len() as u64) as usize;
        cluster.trace.say(now_us, format_args!("trouble: {kind:?} at m{at}"));
        let election_us = cluster.settings.election_ms * 1000;
        match kind {
            Kind::Kill => self.end_and_restart(cluster, at, End::Killed),
            Kind::Stop => self.end_and_restart(cluster, at, End::Stopped),
            Kind::PowerLoss => self.end_and_restart(cluster, at, End::PowerLost),
            Kind::PowerLossWithin => {
                let after = self.random.around(30) as usize;
                cluster.inject(at, Fault::PowerFails { after });
            }
            Kind::Blackout => {
                for at in 0..cluster.seats.len() {
                    self.end_and_restart(cluster, at, End::PowerLost);
                }
            }
            Kind::Freeze => {
                let time = self.random.around(3 * election_us).min(10 * election_us);
                cluster.seats[at].frozen_until_us = now_us + time;
                cluster.connections();
            }
            Kind::Isolate => {
                for other in (0..cluster.seats.len()).filter(|other| *other != at) {
                    cluster.network.cut(at, other);
                    cluster.network.cut(other, at);
                }
                self.cut(cluster);
            }
            Kind::Split => {
                let sides: Vec<bool> = cluster.seats.iter().map(|_| self.random.chance(500)).collect();
                for (a, b) in pairs(cluster.seats.len()).filter(|(a, b)| sides[*a] != sides[*b]) {
                    cluster.network.cut(a, b);
                }
                self.cut(cluster);
            }
            Kind::OneWay => {
                let to = self.random.below(cluster.seats.len() as u64) as usize;
                cluster.network.cut(at, to);
                self.cut(cluster);
            }
            Kind::Storm => {
                cluster.network.weather = Weather {
                    latency_us: self.random.between(300, 30_000),
                    loss: self.random.below(200),
                    duplicates: self.random.below(100),
                    reordered: self.random.below(300),
                    slow: self.random.below(100),
                };
                self.lasts(cluster, 10_000_000, Ending::Calm);
            }
            Kind::Stall => {
                let time = self.random.around(2 * election_us);
                cluster.seats[at].stalled_until_us = now_us + time;
            }
            Kind::SyncFails => {
                let after = self.random.below(20) as usize;
                cluster.inject(at, Fault::SyncFails { after });
            }
            Kind::WriteFails => {
                let after = self.random.below(40) as usize;
                cluster.inject(at, Fault::WriteFails { after });
            }
            Kind::Full => {
                let after_bytes = self.random.below(100_000);
                cluster.inject(at, Fault::Full { after_bytes });
                self.lasts(cluster, 5_000_000, Ending::Room(at));
            }
            Kind::Drift => {
                // Up to five in a thousand: bad clocks of real machines are ten times better.
                let drift = self.random.below(10_000) as i64 - 5_000;
                let seat = &mut cluster.seats[at];
                seat.drift = drift;
                if let Some(running) = &seat.running {
                    running.machine.advance(now_us);
                    running.machine.set_drift(drift);
                }
            }
            Kind::SetClock => {
                let offset_us = self.random.below(7_200_000_000) as i64 - 3_600_000_000;
                if let Some(running) = &cluster.seats[at].running {
                    running.machine.set_wall(offset_us);
                }
            }
        }
    }

    fn cut(&mut self, cluster: &mut Cluster) {
        cluster.connections();
        self.lasts(cluster, 5_000_000, Ending::Heal);
    }

    fn end_and_restart(&mut self, cluster: &mut Cluster, at: usize, how: End) {
        cluster.end(at, how);
        let wait = self.random.around(3_000_000);
        cluster.agenda.at(cluster.now_us + wait, Event::Restart(at));
    }
}

/// All ordered pairs of different numbers below `count`.
fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |a| (0..count).filter(move |b| *b != a).map(move |b| (a, b)))
}
