//! What goes wrong: many things at once, of kinds that the seed likes.

use std::collections::BTreeMap;

use disk::mem::Fault;

use crate::agenda::Event;
use crate::cluster::{Cluster, End, Rot, Trouble, Wish};
use crate::network::Weather;
use crate::options::Settings;
use crate::random::Random;
use crate::without::Without;

/// A kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
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
    /// Whoever begins to lead is struck.
    Hunt,
    /// The leader is told to hand over.
    HandOver,
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
    /// The cluster is to have one member more.
    Grow,
    /// It is to have one less.
    Shrink,
    /// A disk is lost.
    Replace,
    /// A disk goes bad where nobody writes any more.
    Rot,
}

/// All kinds.
pub const KINDS: [Kind; 22] = [
    Kind::Kill,
    Kind::Stop,
    Kind::PowerLoss,
    Kind::PowerLossWithin,
    Kind::Blackout,
    Kind::Freeze,
    Kind::Hunt,
    Kind::HandOver,
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
    Kind::Grow,
    Kind::Shrink,
    Kind::Replace,
    Kind::Rot,
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
    without: Without,
    /// Whether there is any.
    pub active: bool,
}

impl Troubles {
    /// Draws what a seed likes.
    pub fn new(mut random: Random, settings: &Settings, without: &Without) -> Self {
        let mut liked = Vec::new();
        for kind in KINDS {
            let may = match kind {
                Kind::SyncFails | Kind::WriteFails | Kind::Full => settings.disks_fail,
                Kind::Rot => settings.disks_rot,
                Kind::Grow | Kind::Shrink | Kind::Replace => settings.reconfigures,
                _ => true,
            };
            if !may {
                continue;
            }
            for _ in 0..random.below(4) {
                liked.push(kind);
            }
        }
        let every_us = *random.pick(&[700_000, 2_000_000, 6_000_000]).unwrap_or(&2_000_000);
        liked.retain(|kind| !without.has_kind(*kind));
        let without = without.clone();
        Self { random, liked, every_us, endings: BTreeMap::new(), next: 0, without, active: true }
    }

    /// Plans the first trouble, and after each the next.
    pub fn plan(&mut self, cluster: &mut Cluster) {
        let wait = self.random.around(self.every_us);
        cluster.later(wait, Event::Trouble);
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
                    let number = cluster.tally.troubles;
                    cluster.tally.troubles += 1;
                    if !self.without.has_trouble(number) {
                        self.make(cluster, kind);
                    }
                }
            }
        }
    }

    /// Ends all trouble and switches everything on.
    pub fn cease(&mut self, cluster: &mut Cluster) {
        self.active = false;
        self.endings.clear();
        cluster.calm();
    }

    fn lasts(&mut self, cluster: &mut Cluster, mean_us: u64, ending: Ending) {
        let number = self.next;
        self.next += 1;
        self.endings.insert(number, ending);
        let time = self.random.around(mean_us);
        cluster.later(time, Event::Over(number));
    }

    fn end(&mut self, cluster: &mut Cluster, ending: Ending) {
        cluster.say(format_args!("over: {ending:?}"));
        match ending {
            Ending::Heal => cluster.heal(),
            Ending::Calm => cluster.set_weather(Weather::fair()),
            Ending::Room(at) => cluster.clear_faults(at),
        }
    }

    fn make(&mut self, cluster: &mut Cluster, kind: Kind) {
        let machines = cluster.machines();
        let at = self.random.below(machines as u64) as usize;
        cluster.say(format_args!("trouble: {kind:?} at m{at}"));
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
                for at in 0..machines {
                    self.end_and_restart(cluster, at, End::PowerLost);
                }
            }
            Kind::Freeze => {
                let time = self.random.around(3 * election_us).min(10 * election_us);
                cluster.freeze(at, time);
            }
            Kind::Hunt => {
                let time = self.random.around(8 * election_us);
                cluster.hunt(time);
            }
            Kind::HandOver => cluster.later(0, Event::HandOver),
            Kind::Isolate => {
                let others = (0..machines).filter(|other| *other != at);
                self.cut(cluster, others.flat_map(|other| [(at, other), (other, at)]));
            }
            Kind::Split => {
                let sides: Vec<bool> = (0..machines).map(|_| self.random.chance(500)).collect();
                self.cut(cluster, pairs(machines).filter(|(a, b)| sides[*a] != sides[*b]));
            }
            Kind::OneWay => {
                let to = self.random.below(machines as u64) as usize;
                self.cut(cluster, std::iter::once((at, to)));
            }
            Kind::Storm => {
                cluster.set_weather(Weather {
                    latency_us: self.random.between(300, 30_000),
                    loss: self.random.below(200),
                    duplicates: self.random.below(100),
                    reordered: self.random.below(300),
                    slow: self.random.below(100),
                });
                self.lasts(cluster, 10_000_000, Ending::Calm);
            }
            Kind::Stall => {
                let time = self.random.around(2 * election_us);
                cluster.stall(at, time);
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
                cluster.set_drift(at, drift);
            }
            Kind::SetClock => {
                let offset_us = self.random.below(7_200_000_000) as i64 - 3_600_000_000;
                cluster.set_wall(at, offset_us);
            }
            Kind::Rot => {
                let rot = *self.random.pick(&[Rot::Flip, Rot::Astray, Rot::Unreadable]).unwrap_or(&Rot::Flip);
                cluster.rot(at, rot);
            }
            Kind::Grow => cluster.wish(Wish::Grow { learner: self.random.chance(500) }),
            Kind::Shrink => cluster.wish(Wish::Shrink { leader: self.random.chance(300) }),
            Kind::Replace => cluster.wish(Wish::Replace { learner: self.random.chance(500) }),
        }
    }

    fn cut(&mut self, cluster: &mut Cluster, ways: impl Iterator<Item = (usize, usize)>) {
        cluster.cut(ways);
        self.lasts(cluster, 5_000_000, Ending::Heal);
    }

    fn end_and_restart(&mut self, cluster: &mut Cluster, at: usize, how: End) {
        // Some are started again by another process that waits for just that.
        let mean_us = if self.random.chance(300) { 30_000 } else { 3_000_000 };
        let wait = self.random.around(mean_us);
        cluster.strike_down(at, how, wait);
    }
}

/// All ordered pairs of different numbers below `count`.
fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |a| (0..count).filter(move |b| *b != a).map(move |b| (a, b)))
}
