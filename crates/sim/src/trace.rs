//! What happened, as a number to compare two runs by, and in words for whoever looks for a cause.

use std::fmt;

/// The story of a run.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    /// Whether lines are printed as they come.
    pub aloud: bool,
}

impl Trace {
    /// Takes note of a number.
    pub fn note(&mut self, number: u64) {
        self.hash = (self.hash.rotate_left(23) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    /// A line for the reader; `now_us` is when. What it says must follow from what was noted.
    pub fn say(&mut self, now_us: u64, line: fmt::Arguments<'_>) {
        self.note(now_us);
        if self.aloud {
            println!("{:>12.6} {line}", now_us as f64 / 1e6);
        }
    }

    /// Equal for runs that went the same way.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}

/// A number that stands for bytes: 64 bits of FNV-1a.
pub fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
