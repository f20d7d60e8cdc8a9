//! Chance, from one seed.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The only source of chance in a simulation: the same seed and the same questions give the same answers.
#[derive(Clone, Debug)]
pub struct Random(StdRng);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// An independent source, so that what one part of the world asks does not shift the answers of another.
    pub fn fork(&mut self) -> Self {
        Self::new(self.0.random())
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0.random()
    }

    /// A number from 0 up to, and not with, `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.0.random_range(0..bound) }
    }

    /// A number from `from` up to and with `to`.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        self.0.random_range(from..=to)
    }

    /// Whether something happens that does so in `per_mille` of 1,000 cases.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.below(1000) < per_mille
    }

    /// A length of time around `mean`, mostly shorter and now and then several times as long.
    pub fn around(&mut self, mean: u64) -> u64 {
        let unit = self.0.random_range(0.000_1..1.0_f64);
        (-unit.ln() * mean as f64) as u64
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.below(of.len() as u64) as usize)
    }
}
