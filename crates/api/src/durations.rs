//! A histogram that only one thread writes.

use std::collections::HashMap;
use std::time::Duration;

use prometheus::core::Desc;
use prometheus::proto;

use crate::metrics::Single;

/// Buckets, without the last, which takes everything.
const BUCKETS: usize = 20;
/// The upper bound of the first; each is twice the one before. As in `etcd_server_apply_duration_seconds`.
const FIRST_NANOS: u64 = 100_000;

/// Durations by size, as `etcd_server_apply_duration_seconds` has them. Observing one takes no locked instruction, so it costs
/// nanoseconds; only one thread at a time may do it.
#[derive(Debug, Default)]
pub struct Durations {
    /// The last is for what fits no bucket.
    counts: [Single; BUCKETS + 1],
    nanos: Single,
}

impl Durations {
    /// Counts one.
    pub fn observe(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)].add(1);
        self.nanos.add(nanos);
    }
}

/// The first bucket whose bound is not below.
fn bucket(nanos: u64) -> usize {
    let doublings = u64::BITS - (nanos.saturating_sub(1) / FIRST_NANOS).leading_zeros();
    (doublings as usize).min(BUCKETS)
}

/// The sum of histograms with these labels.
pub(crate) fn metric<'a>(
    labels: Vec<proto::LabelPair>,
    histograms: impl Iterator<Item = &'a Durations>,
) -> proto::Metric {
    let mut counts = [0; BUCKETS + 1];
    let mut nanos = 0;
    for durations in histograms {
        counts.iter_mut().zip(&durations.counts).for_each(|(sum, count)| *sum += count.get());
        nanos += durations.nanos.get();
    }
    let mut below = 0;
    let buckets = counts.iter().take(BUCKETS).enumerate().map(|(number, count)| {
        below += count;
        let mut bucket = proto::Bucket::default();
        // Divided last, so that the bounds read as they should: 0.0001, 0.0002.
        bucket.set_upper_bound((FIRST_NANOS << number) as f64 / 1e9);
        bucket.set_cumulative_count(below);
        bucket
    });
    let mut histogram = proto::Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(counts.iter().sum());
    histogram.set_sample_sum(nanos as f64 / 1e9);
    let mut metric = proto::Metric::from_label(labels);
    metric.set_histogram(histogram);
    metric
}

/// What describes a family to the registry.
pub(crate) fn desc(name: &str, help: &str, labels: &[&str]) -> Desc {
    let labels = labels.iter().map(ToString::to_string).collect();
    Desc::new(name.into(), help.into(), labels, HashMap::new()).expect("name and labels are valid constants")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(100_000), 0);
        assert_eq!(bucket(100_001), 1);
        assert_eq!(bucket(200_000), 1);
        assert_eq!(bucket(200_001), 2);
        assert_eq!(bucket(FIRST_NANOS << 19), 19);
        assert_eq!(bucket((FIRST_NANOS << 19) + 1), 20);
        assert_eq!(bucket(u64::MAX), 20);
    }

    #[test]
    fn histograms_add_up() {
        let [one, other] = [Durations::default(), Durations::default()];
        one.observe(Duration::from_micros(150));
        other.observe(Duration::from_micros(50));
        other.observe(Duration::from_secs(1000));
        let metric = metric(Vec::new(), [&one, &other].into_iter());
        let histogram = metric.get_histogram();
        assert_eq!(histogram.get_sample_count(), 3);
        let below: Vec<u64> = histogram.get_bucket().iter().map(|b| b.cumulative_count()).collect();
        assert_eq!((below.len(), below[0], below[1], below[19]), (20, 1, 2, 2));
        let bounds: Vec<f64> = histogram.get_bucket().iter().map(|b| b.upper_bound()).collect();
        assert_eq!(bounds[..3], [0.0001, 0.0002, 0.0004]);
    }
}
