//! Latencies in buckets whose width grows with the value: under 1 % error, a fixed amount of memory, cheap to merge.

use std::time::Duration;

/// Buckets per power of two; the relative error of a quantile is at most `1 / SUB_BUCKETS`.
const SUB_BUCKETS: u64 = 128;
const SUB_BITS: u32 = SUB_BUCKETS.trailing_zeros();
/// Values below `SUB_BUCKETS` have a bucket each; every higher power of two has `SUB_BUCKETS` of them.
const BUCKETS: usize = (64 - SUB_BITS as usize + 1) * SUB_BUCKETS as usize;

/// Counts of durations, kept in nanoseconds.
#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, value: Duration) {
        let nanos = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
        self.max = self.max.max(nanos);
    }

    /// Adds all that `other` has counted.
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    /// How many durations have been counted.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The longest duration, exact.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// The duration that a share `q` (0..=1) of all does not exceed, rounded up to its bucket; zero if there is none.
    pub fn quantile(&self, q: f64) -> Duration {
        let rank = ((self.total as f64 * q).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(highest(index).min(self.max));
            }
        }
        Duration::ZERO
    }
}

fn bucket(value: u64) -> usize {
    if value < SUB_BUCKETS {
        return value as usize;
    }
    let shift = 63 - value.leading_zeros() - SUB_BITS;
    let sub = (value >> shift) - SUB_BUCKETS;
    ((u64::from(shift) + 1) * SUB_BUCKETS + sub) as usize
}

/// The largest value that falls into a bucket.
fn highest(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUB_BUCKETS {
        return bucket;
    }
    let shift = bucket / SUB_BUCKETS - 1;
    let sub = bucket % SUB_BUCKETS + SUB_BUCKETS;
    (sub << shift) + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every value lies in a bucket that ends at or above it, and less than 1 % above it.
    #[test]
    fn a_bucket_is_never_wider_than_one_percent_of_its_values() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1u64 << shift) | (1u64 << shift >> 1), (1u64 << shift) - 1] {
                let end = highest(bucket(value));
                assert!(end >= value, "{value} counted in a bucket that ends at {end}");
                assert!((end - value) as f64 <= value as f64 / 100.0, "{value} reported as {end}");
            }
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let mut histogram = Histogram::default();
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros));
        }
        for (q, expected) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            let found = histogram.quantile(q).as_secs_f64() * 1e6;
            assert!((found - expected).abs() <= expected / 100.0, "quantile {q} is {found}, not {expected}");
        }
        assert_eq!(histogram.max(), Duration::from_millis(1));
    }

    #[test]
    fn an_empty_histogram_answers_zero() {
        assert_eq!(Histogram::default().quantile(0.5), Duration::ZERO);
    }

    #[test]
    fn merging_equals_counting_together() {
        let (mut left, mut right, mut both) = (Histogram::default(), Histogram::default(), Histogram::default());
        for micros in 1..=100 {
            if micros % 3 == 0 { &mut left } else { &mut right }.record(Duration::from_micros(micros));
            both.record(Duration::from_micros(micros));
        }
        left.merge(&right);
        assert_eq!((left.counts, left.total, left.max), (both.counts, both.total, both.max));
    }
}
