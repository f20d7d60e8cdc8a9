//! Who can reach whom, and how long it takes.

use std::collections::{BTreeMap, BTreeSet};

use crate::random::Random;

/// How the network is at the moment.
#[derive(Clone, Debug)]
pub struct Weather {
    /// The usual way of a message, in microseconds.
    pub latency_us: u64,
    /// Messages lost, of 1,000.
    pub loss: u64,
    /// Messages that arrive twice, of 1,000.
    pub duplicates: u64,
    /// Messages that others overtake, of 1,000.
    pub reordered: u64,
    /// Messages that take many times as long, of 1,000.
    pub slow: u64,
}

impl Weather {
    /// A network that works.
    pub fn fair() -> Self {
        Self { latency_us: 300, loss: 0, duplicates: 0, reordered: 0, slow: 0 }
    }
}

/// The network between machines, which are numbered.
#[derive(Debug)]
pub struct Network {
    /// How it is.
    pub weather: Weather,
    /// Ways that are cut, from and to.
    cut: BTreeSet<(usize, usize)>,
    /// When the last message on a way arrives: on a stream nothing overtakes.
    last_us: BTreeMap<(usize, usize), u64>,
    random: Random,
}

impl Network {
    /// A network that works.
    pub fn new(random: Random) -> Self {
        Self { weather: Weather::fair(), cut: BTreeSet::new(), last_us: BTreeMap::new(), random }
    }

    /// Cuts one way.
    pub fn cut(&mut self, from: usize, to: usize) {
        self.cut.insert((from, to));
    }

    /// Mends all ways.
    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Whether messages can go this way.
    pub fn is_open(&self, from: usize, to: usize) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// When a message of so many bytes that leaves now arrives: never, once, or twice.
    pub fn send(&mut self, now_us: u64, from: usize, to: usize, bytes: usize) -> Vec<u64> {
        if !self.is_open(from, to) || self.random.chance(self.weather.loss) {
            return Vec::new();
        }
        // A gigabit a second.
        let mut takes =
            self.weather.latency_us / 2 + self.random.around(self.weather.latency_us / 2) + bytes as u64 / 125;
        if self.random.chance(self.weather.slow) {
            takes += self.random.around(100 * self.weather.latency_us);
        }
        let mut at = now_us + takes;
        if !self.random.chance(self.weather.reordered) {
            let last = self.last_us.entry((from, to)).or_default();
            at = at.max(*last);
            *last = at;
        }
        let mut arrivals = vec![at];
        if self.random.chance(self.weather.duplicates) {
            arrivals.push(at + self.random.around(10 * self.weather.latency_us));
        }
        arrivals
    }
}
