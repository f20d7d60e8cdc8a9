//! Leases: granting them and keeping them alive.

use super::{CLIENTS, Settings, Target, measured};
use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::load::{self, Outcome, Requests};
use crate::metric::Measured;
use crate::process::Usage;
use crate::protobuf::integer;
use crate::wire::{Calls, Connection, Driver, Method, StreamId};
use prost::Message;
use proto::etcdserverpb::{LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

/// Long enough that no lease expires during a run.
const TTL_SECONDS: i64 = 3600;
const CONNECTIONS: usize = 8;

/// Grants leases as fast as it goes.
pub async fn grant(target: &mut Target<'_>, settings: &Settings) -> Result<Measured, BenchError> {
    let outcome = load::run(target.address, target.pid, CLIENTS, settings.until(), |_| Grant).await?;
    measured(&outcome, target)
}

struct Grant;

impl Requests for Grant {
    fn next(&mut self, _: usize, message: &mut Vec<u8>) -> Option<Method> {
        LeaseGrantRequest { ttl: TTL_SECONDS, id: 0 }.encode_raw(message);
        Some(Method::LeaseGrant)
    }

    fn accept(&mut self, _: usize, message: &[u8]) -> bool {
        integer(message, 2) != 0 && integer(message, 3) == TTL_SECONDS as u64
    }
}

/// One lease and one keep-alive stream per client, the next request when the last is answered.
pub async fn keep_alive(target: &mut Target<'_>, settings: &Settings) -> Result<Measured, BenchError> {
    const DRAIN: Duration = Duration::from_secs(30);
    let control = target.control().await?;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut leases = Vec::new();
        for _ in 0..CLIENTS / CONNECTIONS {
            let request = LeaseGrantRequest { ttl: TTL_SECONDS, id: 0 };
            let lease: LeaseGrantResponse = control.call(Method::LeaseGrant.path(), &request).await?;
            leases.push(LeaseKeepAliveRequest { id: lease.id }.encode_to_vec());
        }
        connections.push((Connection::open(target.address).await?, leases));
    }
    let start = Instant::now() + Duration::from_millis(500);
    let end = start + settings.measured;
    let mut tasks = JoinSet::new();
    for (mut connection, leases) in connections {
        let mut driver = KeepAlive {
            sent: vec![start; leases.len()],
            leases,
            start,
            end,
            latencies: Histogram::default(),
            failed: 0,
        };
        tasks.spawn_local(async move {
            for client in 0..driver.leases.len() {
                driver.sent[client] = Instant::now();
                connection.calls().start(client, Method::LeaseKeepAlive, &driver.leases[client], false);
            }
            connection.drive(&mut driver).await.map(|()| driver)
        });
    }
    sleep_until(start.into()).await;
    let (from, before, own_before) = (Instant::now(), target.usage()?, Usage::of(std::process::id())?.cpu);
    sleep_until(end.into()).await;
    let (elapsed, after, own_after) = (from.elapsed(), target.usage()?, Usage::of(std::process::id())?.cpu);
    let mut latencies = Histogram::default();
    let mut failed = 0;
    let join = async {
        while let Some(driver) = tasks.join_next().await {
            let driver = driver.map_err(|panicked| BenchError::Wrong(panicked.to_string()))??;
            latencies.merge(&driver.latencies);
            failed += driver.failed;
        }
        Ok::<(), BenchError>(())
    };
    timeout(DRAIN, join).await.map_err(|_| BenchError::TimedOut("the last keep-alives", DRAIN))??;
    if failed > 0 {
        let example = "a stream ended early or a lease was reported gone".to_owned();
        return Err(BenchError::Failed { failed, total: latencies.count(), example });
    }
    let server_cpu = before.zip(after).map(|(before, after)| after.cpu.saturating_sub(before.cpu));
    let client_cpu = own_after.saturating_sub(own_before);
    measured(&Outcome { latencies, elapsed, server_cpu, client_cpu }, target)
}

struct KeepAlive {
    leases: Vec<Vec<u8>>,
    sent: Vec<Instant>,
    start: Instant,
    end: Instant,
    latencies: Histogram,
    failed: u64,
}

impl Driver for KeepAlive {
    fn message(&mut self, calls: &mut Calls, stream: StreamId, client: usize, message: &[u8]) {
        let now = Instant::now();
        if integer(message, 3) != TTL_SECONDS as u64 {
            self.failed += 1;
        } else if (self.start..self.end).contains(&now) {
            self.latencies.record(now - self.sent[client]);
        }
        self.sent[client] = now;
        if now < self.end {
            calls.send(stream, &self.leases[client], false);
        } else {
            calls.finish(stream);
        }
    }

    fn ended(&mut self, _: &mut Calls, _: usize, _: bool) {
        self.failed += u64::from(Instant::now() < self.end);
    }
}
