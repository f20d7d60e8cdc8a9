//! Three members: load spread over all of them, the time without writes after the leader's death, and what a follower
//! costs its leader while it catches up.

use super::kv::{Mixture, PUT_KEYS, RANGE_KEYS};
use super::requests::{self, Counter, FillByTxn, TXN_OPERATIONS, Template};
use super::{Settings, VALUE_BYTES, load_figures};
use crate::control::Control;
use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::load::{self, Requests, Until};
use crate::metric::{self, Measured};
use crate::place::Place;
use crate::process::{Server, ServerSpec, Usage};
use crate::wire::Method;
use bytes::Bytes;
use proto::etcdserverpb::{PutRequest, PutResponse, StatusRequest, StatusResponse};
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// How many members a cluster has.
const MEMBERS: usize = 3;
/// How many times the leader is killed, at full scale.
const KILLS: f64 = 20.0;
/// After a kill a put is sent to each survivor so often: a member may drop what it gets while there is no leader.
const BETWEEN_PROBES: Duration = Duration::from_millis(5);
/// How long a single call may take.
const CALL_PATIENCE: Duration = Duration::from_secs(10);
/// How long a cluster may take to have a leader again, or a follower to catch up.
const PATIENCE: Duration = Duration::from_secs(300);
/// What a follower misses, at full scale.
const MISSED: u64 = 500_000;
/// The size of the values that it misses.
const MISSED_BYTES: usize = 1024;
/// Clients that write what it misses.
const MISSED_CLIENTS: usize = 256;
/// The writes that go on meanwhile: so many per tick, which makes 2,000 a second.
const STEADY_PER_TICK: u64 = 4;
const STEADY_TICK: Duration = Duration::from_millis(2);
/// The time over which the writes before are measured.
const BEFORE: Duration = Duration::from_secs(10);
/// Pause between two looks at the follower and at the leader's memory.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// A follower has caught up when it lacks no more than what is written in a tenth of a second.
const CAUGHT_UP: u64 = 200;

/// The workloads of clusters.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Puts to random keys through all members.
    Put { clients: usize },
    /// Linearizable reads of random keys through all members.
    Range { clients: usize },
    /// `kill -9` of the leader, again and again.
    Outage,
    /// A follower that has missed much comes back while writes go on.
    CatchUp,
}

/// Runs one of them on three fresh members.
pub async fn run(kind: Kind, spec: &ServerSpec, dir: &Path, settings: &Settings) -> Result<Measured, BenchError> {
    let mut cluster = Cluster { members: Server::cluster(spec, dir, MEMBERS)? };
    cluster.start().await?;
    match kind {
        Kind::Put { clients } => cluster.load(settings, clients, 0, PUT_KEYS).await,
        Kind::Range { clients } => {
            let counter = Counter::new(RANGE_KEYS / TXN_OPERATIONS);
            cluster.exhaust(MEMBERS, |_| FillByTxn::new(counter.clone())).await?;
            // As for single servers, because etcd 3.4 reads slowly after a large batch of writes.
            cluster.restart().await?;
            cluster.load(settings, clients, 100, RANGE_KEYS).await
        }
        Kind::Outage => cluster.outages((KILLS * settings.scale).round().max(1.0) as usize).await,
        Kind::CatchUp => cluster.catch_up(settings.keys(MISSED)).await,
    }
}

struct Cluster {
    members: Vec<Server>,
}

impl Cluster {
    async fn start(&mut self) -> Result<(), BenchError> {
        self.members.iter_mut().try_for_each(Server::spawn)?;
        for member in &mut self.members {
            member.first_read().await?;
        }
        self.rest().await
    }

    async fn restart(&mut self) -> Result<(), BenchError> {
        for member in &mut self.members {
            member.stop().await?;
        }
        self.start().await
    }

    async fn rest(&self) -> Result<(), BenchError> {
        for member in &self.members {
            member.rest().await?;
        }
        Ok(())
    }

    fn addresses(&self) -> Vec<Place> {
        self.members.iter().map(Server::address).collect()
    }

    async fn load(
        &self,
        settings: &Settings,
        clients: usize,
        range_percent: u32,
        keys: u64,
    ) -> Result<Measured, BenchError> {
        let pids: Vec<u32> = self.members.iter().filter_map(Server::pid).collect();
        let requests = |share: std::ops::Range<usize>| Mixture::new(share.start, false, range_percent, keys);
        let outcome = load::run_on(&self.addresses(), &pids, clients, settings.until(), requests).await?;
        load_figures(&outcome)
    }

    /// Runs requests until they run out, through the first member.
    async fn exhaust<R: Requests>(
        &self,
        clients: usize,
        requests: impl FnMut(std::ops::Range<usize>) -> R,
    ) -> Result<(), BenchError> {
        load::run_on(&self.addresses()[..1], &[], clients, Until::Exhausted, requests).await.map(drop)
    }

    /// What a member says of itself.
    async fn status(&self, member: usize) -> Result<StatusResponse, BenchError> {
        let asked = async {
            let control = Control::connect(self.members[member].address()).await?;
            control.call("/etcdserverpb.Maintenance/Status", &StatusRequest {}).await
        };
        let answer = timeout(CALL_PATIENCE, asked).await;
        Ok(answer.map_err(|_| BenchError::TimedOut("a call for the status", CALL_PATIENCE))??)
    }

    /// The member that leads.
    async fn leader(&self) -> Result<usize, BenchError> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            for member in 0..MEMBERS {
                if let Ok(status) = self.status(member).await
                    && status.header.as_ref().is_some_and(|header| header.member_id == status.leader)
                {
                    return Ok(member);
                }
            }
            sleep(LOOK_AGAIN).await;
        }
        Err(BenchError::TimedOut("the election of a leader", PATIENCE))
    }

    /// Kills the leader so many times and measures how long nothing can be written.
    async fn outages(&mut self, kills: usize) -> Result<Measured, BenchError> {
        let mut outages = Vec::with_capacity(kills);
        for _ in 0..kills {
            let leader = self.leader().await?;
            let mut survivors = Vec::new();
            for member in (0..MEMBERS).filter(|member| *member != leader) {
                survivors.push(Control::connect(self.members[member].address()).await?);
            }
            self.members[leader].kill();
            outages.push(first_put(survivors).await?.as_secs_f64() * 1e3);
            self.members[leader].start_again().await?;
            self.rest().await?;
        }
        outages.sort_by(f64::total_cmp);
        let (middle, last) = (outages.len() / 2, outages.len() - 1);
        Ok(vec![
            (&metric::OUTAGE, (outages[middle] + outages[last - middle]) / 2.0),
            (&metric::OUTAGE_LEAST, outages[0]),
            (&metric::OUTAGE_MOST, outages[last]),
        ])
    }

    /// A follower misses `missed` writes and comes back while others go on at a steady rate.
    async fn catch_up(&mut self, missed: u64) -> Result<Measured, BenchError> {
        let leader = self.leader().await?;
        let follower = (leader + 1) % MEMBERS;
        self.members[follower].stop().await?;
        let counter = Counter::new(missed);
        let requests = |_| Overwrite { template: Template::put(MISSED_BYTES), counter: counter.clone() };
        let address = self.members[leader].address();
        load::run(address, None, MISSED_CLIENTS, Until::Exhausted, requests).await?;
        self.members[leader].rest().await?;

        let steady = Steady::start(address).await?;
        sleep(Duration::from_secs(1)).await; // not counted, as every load's warm-up
        steady.take()?;
        sleep(BEFORE).await;
        let before = steady.take()?;
        let pid = self.members[leader].pid().unwrap_or_default();
        let rss_before = Usage::of(pid)?.rss_bytes;
        let mut rss_most = rss_before;
        let begun = Instant::now();
        self.members[follower].spawn()?;
        loop {
            rss_most = rss_most.max(Usage::of(pid)?.rss_bytes);
            if let (Ok(ahead), Ok(behind)) = (self.status(leader).await, self.status(follower).await)
                && ahead.raft_index.saturating_sub(behind.raft_applied_index) < CAUGHT_UP
                && behind.raft_applied_index > 0
            {
                break;
            }
            self.members[follower].check_alive()?;
            if begun.elapsed() > PATIENCE {
                return Err(BenchError::TimedOut("catching up", PATIENCE));
            }
            sleep(LOOK_AGAIN).await;
        }
        let took = begun.elapsed();
        let during = steady.take()?;
        if let Ok(status) = self.status(leader).await
            && status.header.as_ref().is_some_and(|header| header.member_id != status.leader)
        {
            return Err(BenchError::Wrong("another member leads now, so the first one was not measured".to_owned()));
        }
        let p99 = |latencies: &Histogram| latencies.quantile(0.99).as_secs_f64() * 1e6;
        Ok(vec![
            (&metric::CATCH_UP, took.as_secs_f64()),
            (&metric::P99_BEFORE, p99(&before)),
            (&metric::P99_DURING, p99(&during)),
            (&metric::P99_RATIO, p99(&during) / p99(&before)),
            (&metric::EXTRA_RSS, (rss_most - rss_before) as f64 / f64::from(1 << 20)),
            (&metric::MAX, during.max().as_secs_f64() * 1e6),
        ])
    }
}

/// The time until the first put that is sent from now on is acknowledged by any of these.
async fn first_put(servers: Vec<Control>) -> Result<Duration, BenchError> {
    let begun = Instant::now();
    let mut probes: JoinSet<Option<Instant>> = JoinSet::new();
    let request = PutRequest { key: "bench/outage".into(), value: requests::value(VALUE_BYTES), ..Default::default() };
    let mut tick = interval(BETWEEN_PROBES);
    while begun.elapsed() < PATIENCE {
        tokio::select! {
            _ = tick.tick() => for server in &servers {
                let (server, request) = (server.clone(), request.clone());
                probes.spawn_local(async move {
                    let put = server.call::<PutResponse>("/etcdserverpb.KV/Put", &request);
                    timeout(CALL_PATIENCE, put).await.ok()?.ok().map(|_| Instant::now())
                });
            },
            Some(probe) = probes.join_next() => if let Ok(Some(at)) = probe {
                return Ok(at - begun);
            },
        }
    }
    Err(BenchError::TimedOut("the election of another leader", PATIENCE))
}

/// Puts to a steady rate whatever the server does, each timed from when it was due.
struct Steady {
    latencies: Rc<RefCell<Histogram>>,
    failed: Rc<Cell<u64>>,
    task: tokio::task::JoinHandle<()>,
}

impl Steady {
    async fn start(address: Place) -> Result<Steady, BenchError> {
        let server = Control::connect(address).await?;
        let (latencies, failed) = (Rc::<RefCell<Histogram>>::default(), Rc::<Cell<u64>>::default());
        let (recorded, refused) = (Rc::clone(&latencies), Rc::clone(&failed));
        let value: Bytes = requests::value(MISSED_BYTES);
        let task = tokio::task::spawn_local(async move {
            let mut calls = JoinSet::new();
            let mut tick = interval(STEADY_TICK);
            tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for number in 0u64.. {
                let due = tick.tick().await;
                while calls.try_join_next().is_some() {}
                for place in 0..STEADY_PER_TICK {
                    let key = requests::key((number * STEADY_PER_TICK + place) % PUT_KEYS);
                    let request = PutRequest { key, value: value.clone(), ..Default::default() };
                    let (server, recorded, refused) = (server.clone(), Rc::clone(&recorded), Rc::clone(&refused));
                    calls.spawn_local(async move {
                        let put = server.call::<PutResponse>("/etcdserverpb.KV/Put", &request);
                        match timeout(CALL_PATIENCE, put).await {
                            Ok(Ok(_)) => recorded.borrow_mut().record(due.elapsed()),
                            _ => refused.set(refused.get() + 1),
                        }
                    });
                }
            }
        });
        Ok(Steady { latencies, failed, task })
    }

    /// What was measured since the last time; an error if any put failed.
    fn take(&self) -> Result<Histogram, BenchError> {
        let latencies = self.latencies.take();
        match (self.failed.replace(0), latencies.count()) {
            (0, 0) => Err(BenchError::NothingMeasured),
            (0, _) => Ok(latencies),
            (failed, answered) => {
                let total = failed + answered;
                Err(BenchError::Failed { failed, total, example: "a put at a steady rate".to_owned() })
            }
        }
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// So many puts, over the keys that all puts are spread over.
struct Overwrite {
    template: Template,
    counter: Counter,
}

impl Requests for Overwrite {
    fn next(&mut self, _: usize, message: &mut Vec<u8>) -> Option<Method> {
        let number = self.counter.take()?;
        self.template.write(number % PUT_KEYS, message);
        Some(Method::Put)
    }

    fn accept(&mut self, _: usize, message: &[u8]) -> bool {
        !message.is_empty()
    }
}
