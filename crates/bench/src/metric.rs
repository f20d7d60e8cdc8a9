//! What is measured, and what the comparison demands of it.

/// Which way is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Less is better.
    Lower,
    /// More is better.
    Higher,
    /// Only told, not judged.
    Told,
}

/// One kind of figure.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name in tables and JSON.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Which way is good.
    pub better: Better,
}

/// The figures of one run of a workload.
pub type Measured = Vec<(&'static Metric, f64)>;

macro_rules! metrics {
    ($($constant:ident = $name:literal, $unit:literal, $better:ident, $doc:literal;)*) => {
        $(#[doc = $doc] pub static $constant: Metric = Metric { name: $name, unit: $unit, better: Better::$better };)*
        /// Every metric there is.
        #[cfg(test)]
        static ALL: &[&Metric] = &[$(&$constant),*];
    };
}

metrics! {
    THROUGHPUT = "throughput", "/s", Higher, "Requests (or events) answered per second.";
    CPU = "server cpu", "us/op", Lower, "The server's CPU time per request or event, all threads, user and system.";
    CLIENT_CPU = "client cpu", "us/op", Told, "This program's own CPU time per request: what the load costs the machine.";
    P50 = "p50", "us", Lower, "Half of the requests took no longer.";
    P99 = "p99", "us", Lower, "99 % of the requests took no longer.";
    P999 = "p99.9", "us", Lower, "99.9 % of the requests took no longer.";
    MAX = "max", "us", Told, "The longest request.";
    EVENT_P50 = "event p50", "us", Lower, "From sending a put until a watcher has its event.";
    EVENT_P99 = "event p99", "us", Lower, "The same, 99 %.";
    PUT_P50 = "put p50", "us", Told, "The puts whose events are timed.";
    RSS = "rss", "MB", Lower, "Resident memory afterwards, mapped files included.";
    RSS_ANONYMOUS = "rss anon", "MB", Told, "Resident memory afterwards without mapped files.";
    RSS_RESTARTED = "rss restarted", "MB", Told, "Resident memory after the restart.";
    WATCHERS_RSS = "watchers' rss", "MB", Lower, "Resident memory that the waiting watchers added.";
    PEAK_RSS = "peak rss", "MB", Lower, "The highest resident memory of the process.";
    DISK_PER_PUT = "disk", "B/put", Lower, "Bytes sent to the disk per put, zeros written ahead into log files not counted.";
    DISK_PER_PUT_RAW = "disk raw", "B/put", Told, "The same with those zeros.";
    FILES_PER_PUT = "files", "B/put", Told, "Disk blocks of the data directory per put.";
    READY_CLEAN = "ready, clean stop", "s", Lower, "From starting again after SIGTERM to the first linearizable read.";
    READY_KILLED = "ready, kill -9", "s", Lower, "From starting again after kill -9 to the first linearizable read.";
    STOP = "stop", "s", Told, "From SIGTERM to the end of the process.";
    GAP = "longest gap", "ms", Lower, "The longest time in which nothing arrived.";
    SPACE = "space / live", "x", Lower, "Disk blocks of the store by live bytes, 60 s after compaction at the latest.";
    OUTAGE = "write outage", "ms", Lower, "From kill -9 of the leader until a put sent after it is acknowledged; median.";
    OUTAGE_LEAST = "least outage", "ms", Told, "The shortest of them.";
    OUTAGE_MOST = "longest outage", "ms", Told, "The longest of them.";
    CATCH_UP = "caught up", "s", Lower, "From starting the follower until it has applied what the leader has.";
    P99_BEFORE = "put p99 before", "us", Told, "At the leader while the follower is down.";
    P99_DURING = "put p99 during", "us", Told, "At the leader while the follower catches up.";
    P99_RATIO = "p99 during/before", "x", Lower, "What catching up costs the leader's clients.";
    EXTRA_RSS = "leader's extra rss", "MiB", Lower, "The leader's highest resident memory while the follower catches up, above that before.";
    SPACE_AFTER = "space <= 1.5x", "s", Told, "From compaction until the store took 1.5 times the live bytes; 60 if never.";
}

/// A bound of the comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// Of the ratio to the better of the other servers.
    Ratio {
        /// To be reached.
        floor: f64,
        /// To be wished for.
        goal: f64,
    },
    /// Of the figure itself.
    Absolute {
        /// To be reached.
        floor: f64,
        /// To be wished for.
        goal: f64,
    },
}

/// What the first server must reach in `metric` of `workload`; `None` where nothing is demanded.
pub fn bound(workload: &str, metric: &Metric) -> Option<Bound> {
    let ratio = |floor, goal| Some(Bound::Ratio { floor, goal });
    let many_clients = ["_64", "_256", "_1000"].iter().any(|suffix| workload.ends_with(suffix));
    match (workload, metric.name) {
        (name, "server cpu") if name.starts_with("put_") && many_clients => ratio(0.45, 0.3),
        (name, "server cpu") if name.starts_with("range_") && many_clients => ratio(0.4, 0.25),
        (name, "throughput") if name.starts_with("put_") && many_clients => ratio(1.6, 2.5),
        (name, "throughput") if name.starts_with("range_") && many_clients => ratio(1.5, 2.0),
        (name, "server cpu") if name.starts_with("cluster_") && many_clients => ratio(0.5, 0.3),
        (name, "throughput") if name.starts_with("cluster_") && many_clients => ratio(1.8, 3.0),
        ("cluster_outage", "write outage") => ratio(0.9, 0.3),
        ("cluster_catch_up", "p99 during/before") => Some(Bound::Absolute { floor: 1.3, goal: 1.1 }),
        ("cluster_catch_up", "leader's extra rss") => Some(Bound::Absolute { floor: 128.0, goal: 64.0 }),
        (name, "throughput") if name.starts_with("v2_") && many_clients => ratio(2.0, 3.0),
        ("v2_watchers_10k", "watchers' rss") => ratio(0.5, 0.25),
        ("put_256b_1", "p50") => ratio(1.0, 0.7),
        ("put_256b_64", "p99.9") => ratio(0.5, 0.25),
        ("watch_latency", "event p50") => ratio(1.0, 0.5),
        ("watch_fanout", "throughput") => ratio(2.0, 5.0),
        ("watch_fanout", "server cpu") => ratio(0.5, 0.2),
        ("lease_grant", "throughput") => ratio(1.5, 4.0),
        ("lease_keepalive", "throughput") => ratio(1.0, 1.5),
        ("fill_1m" | "list_100k_whole" | "list_100k_pages", "rss") => ratio(0.5, 0.3),
        ("fill_1m", "ready, clean stop" | "ready, kill -9") => ratio(0.3, 0.1),
        ("fill_1m", "disk") => ratio(0.8, 0.6),
        ("overwrite_compact", "p99.9") => ratio(0.5, 0.2),
        ("overwrite_compact", "longest gap") => ratio(0.3, 0.1),
        ("delete_90", "longest gap") => Some(Bound::Absolute { floor: 50.0, goal: 20.0 }),
        ("delete_90", "space / live") => Some(Bound::Absolute { floor: 1.5, goal: 1.3 }),
        _ => None,
    }
}

/// How a figure stands to its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As good as wished for.
    Goal,
    /// Good enough.
    Pass,
    /// Not good enough.
    Miss,
}

impl Verdict {
    /// Judges `value` (a ratio for a ratio's bound) where `better` is the good direction.
    pub fn of(value: f64, floor: f64, goal: f64, better: Better) -> Verdict {
        let reaches = |bound: f64| if better == Better::Higher { value >= bound } else { value <= bound };
        match (reaches(goal), reaches(floor)) {
            (true, _) => Verdict::Goal,
            (false, true) => Verdict::Pass,
            (false, false) => Verdict::Miss,
        }
    }

    /// As the table shows it.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Goal => "GOAL",
            Verdict::Pass => "pass",
            Verdict::Miss => "MISS",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{all, of_clusters, of_v2};

    /// Each demand of the comparison names a workload and a metric that exist: a renamed one would never be judged.
    #[test]
    fn the_demands_meet_existing_workloads_and_metrics() {
        let mut demands: Vec<String> = Vec::new();
        for workload in all().into_iter().chain(of_v2()).chain(of_clusters()) {
            for metric in ALL.iter().filter(|metric| bound(workload.name, metric).is_some()) {
                assert_ne!(metric.better, Better::Told, "{} is not judged", metric.name);
                demands.push(format!("{}: {}", workload.name, metric.name));
            }
        }
        // CPU and throughput at three client counts of three workloads and two of clusters, the single ones, and those of
        // the v2 API: throughput at two client counts of two workloads, and the memory of watchers.
        assert_eq!(demands.len(), (3 + 2) * 3 * 2 + 17 + 3 + 2 * 2 + 1, "{demands:#?}");
    }

    #[test]
    fn a_verdict_follows_the_good_direction() {
        assert_eq!(Verdict::of(0.2, 0.45, 0.3, Better::Lower), Verdict::Goal);
        assert_eq!(Verdict::of(0.4, 0.45, 0.3, Better::Lower), Verdict::Pass);
        assert_eq!(Verdict::of(0.5, 0.45, 0.3, Better::Lower), Verdict::Miss);
        assert_eq!(Verdict::of(2.0, 1.6, 2.5, Better::Higher), Verdict::Pass);
        assert_eq!(Verdict::of(1.0, 1.6, 2.5, Better::Higher), Verdict::Miss);
    }
}
