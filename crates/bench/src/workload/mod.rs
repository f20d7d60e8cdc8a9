//! The workloads: each loads one fresh server in one way and returns its figures.

mod churn;
mod cluster;
mod fill;
mod kv;
mod lease;
mod requests;
mod v2;
mod watch;

use crate::control::Control;
use crate::error::BenchError;
use crate::load::{Outcome, Until};
use crate::metric::{self, Measured};
use crate::place::Place;
use crate::process::{Server, ServerSpec, Usage};
use proto::etcdserverpb::{RangeRequest, RangeResponse};
use std::path::Path;
use std::time::Duration;

/// The clients of workloads that are run with one number of them only.
const CLIENTS: usize = 64;
/// Value size of all workloads.
const VALUE_BYTES: usize = 256;

/// How long and how large.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The measured time of workloads that are bounded by time.
    pub measured: Duration,
    /// Factor on the number of keys of workloads that are bounded by it.
    pub scale: f64,
}

impl Settings {
    fn until(&self) -> Until {
        Until::Time { warm_up: Duration::from_millis(500), measured: self.measured }
    }

    /// `keys` at this scale: a multiple of 1000.
    fn keys(&self, keys: u64) -> u64 {
        ((keys as f64 * self.scale / 1000.0).round() as u64).max(1) * 1000
    }
}

/// The server that a workload runs against.
pub struct Target<'a> {
    /// Where it listens.
    pub address: Place,
    /// Its process, if figures can be had.
    pub pid: Option<u32>,
    /// Itself, if it may be stopped and started.
    pub server: Option<&'a mut Server>,
}

impl Target<'_> {
    fn usage(&self) -> Result<Option<Usage>, BenchError> {
        self.pid.map(Usage::of).transpose()
    }

    async fn rest(&self) -> Result<(), BenchError> {
        match &self.server {
            Some(server) => server.rest().await,
            None => Ok(()),
        }
    }

    /// Stops the server cleanly and starts it again, if that is ours to do.
    async fn restart(&mut self) -> Result<(), BenchError> {
        if let Some(server) = &mut self.server {
            server.stop().await?;
            server.start_again().await?;
            self.pid = server.pid();
            server.rest().await?;
        }
        Ok(())
    }

    async fn control(&self) -> Result<Control, BenchError> {
        Ok(Control::connect(self.address).await?)
    }
}

/// A named workload.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// As asked for on the command line and shown in the table.
    pub name: &'static str,
    /// It fills the server with very many keys: minutes, and run in fewer rounds.
    pub large: bool,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Put { clients: usize },
    Range { clients: usize, serializable: bool },
    Mixed,
    CompareAndPut,
    WatchLatency,
    WatchFanOut,
    LeaseGrant,
    LeaseKeepAlive,
    Fill,
    List { paged: bool },
    OverwriteCompact,
    DeleteMost,
    V2Put { clients: usize },
    V2Get { clients: usize },
    V2Watchers,
    Cluster(cluster::Kind),
}

/// All workloads of single servers in the order in which they run.
pub fn all() -> Vec<Workload> {
    let small = |name, kind| Workload { name, large: false, kind };
    let large = |name, kind| Workload { name, large: true, kind };
    vec![
        small("put_256b_1", Kind::Put { clients: 1 }),
        small("put_256b_64", Kind::Put { clients: 64 }),
        small("put_256b_256", Kind::Put { clients: 256 }),
        small("put_256b_1000", Kind::Put { clients: 1000 }),
        small("range_linearizable_1", Kind::Range { clients: 1, serializable: false }),
        small("range_linearizable_64", Kind::Range { clients: 64, serializable: false }),
        small("range_linearizable_256", Kind::Range { clients: 256, serializable: false }),
        small("range_linearizable_1000", Kind::Range { clients: 1000, serializable: false }),
        small("range_serializable_1", Kind::Range { clients: 1, serializable: true }),
        small("range_serializable_64", Kind::Range { clients: 64, serializable: true }),
        small("range_serializable_256", Kind::Range { clients: 256, serializable: true }),
        small("range_serializable_1000", Kind::Range { clients: 1000, serializable: true }),
        small("mixed_90_10", Kind::Mixed),
        small("txn_compare_and_put", Kind::CompareAndPut),
        small("watch_latency", Kind::WatchLatency),
        small("watch_fanout", Kind::WatchFanOut),
        small("lease_grant", Kind::LeaseGrant),
        small("lease_keepalive", Kind::LeaseKeepAlive),
        small("list_100k_whole", Kind::List { paged: false }),
        small("list_100k_pages", Kind::List { paged: true }),
        small("overwrite_compact", Kind::OverwriteCompact),
        large("fill_1m", Kind::Fill),
        large("delete_90", Kind::DeleteMost),
    ]
}

/// All workloads of the v2 API in the order in which they run. Not every etcd has it, so they are run when named.
pub fn of_v2() -> Vec<Workload> {
    let small = |name, kind| Workload { name, large: false, kind };
    vec![
        small("v2_put_256b_64", Kind::V2Put { clients: 64 }),
        small("v2_put_256b_256", Kind::V2Put { clients: 256 }),
        small("v2_get_64", Kind::V2Get { clients: 64 }),
        small("v2_get_256", Kind::V2Get { clients: 256 }),
        small("v2_watchers_10k", Kind::V2Watchers),
    ]
}

/// All workloads of clusters in the order in which they run.
pub fn of_clusters() -> Vec<Workload> {
    use cluster::Kind::{CatchUp, Outage, Put, Range};
    let small = |name, kind| Workload { name, large: false, kind: Kind::Cluster(kind) };
    let large = |name, kind| Workload { name, large: true, kind: Kind::Cluster(kind) };
    vec![
        small("cluster_put_256b_64", Put { clients: 64 }),
        small("cluster_put_256b_256", Put { clients: 256 }),
        small("cluster_put_256b_1000", Put { clients: 1000 }),
        small("cluster_range_linearizable_64", Range { clients: 64 }),
        small("cluster_range_linearizable_256", Range { clients: 256 }),
        small("cluster_range_linearizable_1000", Range { clients: 1000 }),
        large("cluster_outage", Outage),
        large("cluster_catch_up", CatchUp),
    ]
}

impl Workload {
    /// Whether it needs several members.
    pub fn is_of_clusters(&self) -> bool {
        matches!(self.kind, Kind::Cluster(_))
    }

    /// Runs it once against three fresh members with their data under `dir`.
    pub async fn run_on_cluster(
        &self,
        spec: &ServerSpec,
        dir: &Path,
        settings: &Settings,
    ) -> Result<Measured, BenchError> {
        match self.kind {
            Kind::Cluster(kind) => cluster::run(kind, spec, dir, settings).await,
            _ => Err(BenchError::Wrong(format!("{} is for single servers", self.name))),
        }
    }

    /// Runs it once against a fresh server.
    pub async fn run(&self, target: &mut Target<'_>, settings: &Settings) -> Result<Measured, BenchError> {
        target.rest().await?;
        match self.kind {
            Kind::Put { clients } => kv::put(target, settings, clients).await,
            Kind::Range { clients, serializable } => kv::range(target, settings, clients, serializable).await,
            Kind::Mixed => kv::mixed(target, settings).await,
            Kind::CompareAndPut => kv::compare_and_put(target, settings).await,
            Kind::WatchLatency => watch::latency(target, settings).await,
            Kind::WatchFanOut => watch::fan_out(target, settings).await,
            Kind::LeaseGrant => lease::grant(target, settings).await,
            Kind::LeaseKeepAlive => lease::keep_alive(target, settings).await,
            Kind::Fill => fill::fill(target, settings).await,
            Kind::List { paged } => fill::list(target, settings, paged).await,
            Kind::OverwriteCompact => churn::overwrite_compact(target, settings).await,
            Kind::DeleteMost => churn::delete_most(target, settings).await,
            Kind::V2Put { clients } => v2::put(target, settings, clients).await,
            Kind::V2Get { clients } => v2::get(target, settings, clients).await,
            Kind::V2Watchers => v2::watchers(target).await,
            Kind::Cluster(_) => Err(BenchError::Wrong(format!("{} is for clusters", self.name))),
        }
    }
}

/// The figures that every load of one server has.
fn measured(outcome: &Outcome, target: &Target<'_>) -> Result<Measured, BenchError> {
    let mut measured = load_figures(outcome)?;
    if let Some(usage) = target.usage()? {
        measured.push((&metric::PEAK_RSS, megabytes(usage.peak_rss_bytes)));
    }
    Ok(measured)
}

/// The figures that every load has.
fn load_figures(outcome: &Outcome) -> Result<Measured, BenchError> {
    let latencies = &outcome.latencies;
    let count = latencies.count();
    if count == 0 {
        return Err(BenchError::NothingMeasured);
    }
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    let mut measured = vec![(&metric::THROUGHPUT, count as f64 / outcome.elapsed.as_secs_f64())];
    if let Some(cpu) = outcome.server_cpu {
        measured.push((&metric::CPU, micros(cpu) / count as f64));
    }
    measured.extend([
        (&metric::P50, micros(latencies.quantile(0.5))),
        (&metric::P99, micros(latencies.quantile(0.99))),
        (&metric::P999, micros(latencies.quantile(0.999))),
        (&metric::MAX, micros(latencies.max())),
        (&metric::CLIENT_CPU, micros(outcome.client_cpu) / count as f64),
    ]);
    Ok(measured)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// How many keys of the benches the server has, by a linearizable read; an error if that is not `expected`.
async fn check_count(control: &Control, expected: u64) -> Result<(), BenchError> {
    let (key, range_end) = requests::all_keys();
    let request = RangeRequest { key, range_end, count_only: true, ..Default::default() };
    let answer: RangeResponse = control.call("/etcdserverpb.KV/Range", &request).await?;
    if u64::try_from(answer.count) == Ok(expected) {
        return Ok(());
    }
    Err(BenchError::Wrong(format!("{expected} keys were acknowledged, {} are there", answer.count)))
}

/// The store's revision now.
async fn revision(control: &Control) -> Result<i64, BenchError> {
    let request = RangeRequest { key: "bench/none".into(), count_only: true, ..Default::default() };
    let answer: RangeResponse = control.call("/etcdserverpb.KV/Range", &request).await?;
    Ok(answer.header.map_or(0, |header| header.revision))
}
