//! Closed-loop load: a number of clients, each with one request in flight, spread over a few connections.

use crate::control::Control;
use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::place::Place;
use crate::process::Usage;
use crate::wire::{Calls, Connection, Driver, Method, StreamId};
use std::ops::Range;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

/// Clients share connections, as the goroutines of one program do; the same for every server.
const CONNECTIONS: usize = 8;
/// After the measured time, calls in flight get this long to end.
const DRAIN: Duration = Duration::from_secs(30);
/// A connection gives up after so many failed requests.
const REFUSALS: u64 = 1000;
/// No load that ends by itself may take longer.
const COUNTED_PATIENCE: Duration = Duration::from_secs(1200);

/// What the clients of one connection ask, and whether they got it.
pub trait Requests: 'static {
    /// The next request of `client` (0.. within the connection), written into the empty `message`; `None` to stop.
    fn next(&mut self, client: usize, message: &mut Vec<u8>) -> Option<Method>;

    /// Whether `message` is a right answer to the client's last request.
    fn accept(&mut self, client: usize, message: &[u8]) -> bool;
}

/// When a load ends.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After a warm-up and a measured time.
    Time {
        /// Not counted.
        warm_up: Duration,
        /// Counted.
        measured: Duration,
    },
    /// When the requests run out. Each counts until it has succeeded: one that fails (on an overloaded machine etcd
    /// drops a put after seven seconds) is sent again.
    Exhausted,
}

/// What a load has shown.
pub struct Outcome {
    /// Of the requests answered within the measured time.
    pub latencies: Histogram,
    /// The measured time.
    pub elapsed: Duration,
    /// The server's use during that time, if its process is known.
    pub server_cpu: Option<Duration>,
    /// This program's own CPU time.
    pub client_cpu: Duration,
}

/// Runs `clients` clients against `address`; `requests` makes what those of one connection ask, given their numbers.
pub async fn run<R: Requests>(
    address: Place,
    pid: Option<u32>,
    clients: usize,
    until: Until,
    requests: impl FnMut(Range<usize>) -> R,
) -> Result<Outcome, BenchError> {
    run_on(&[address], pid.as_slice(), clients, until, requests).await
}

/// The same against several servers, each with its share of the clients; their CPU time is summed up.
pub async fn run_on<R: Requests>(
    addresses: &[Place],
    pids: &[u32],
    clients: usize,
    until: Until,
    mut requests: impl FnMut(Range<usize>) -> R,
) -> Result<Outcome, BenchError> {
    let connections = clients.clamp(1, CONNECTIONS.next_multiple_of(addresses.len()));
    let mut open = Vec::new();
    for index in 0..connections {
        let share = clients * index / connections..clients * (index + 1) / connections;
        let connection = Connection::open(addresses[index % addresses.len()]).await?;
        if connection.max_streams() < share.len() {
            let (limit, needed) = (connection.max_streams(), share.len());
            return Err(BenchError::Wrong(format!("{limit} streams per connection allowed, {needed} needed")));
        }
        open.push((connection, share));
    }
    let begun = Instant::now();
    let (start, end) = match until {
        Until::Time { warm_up, measured } => (begun + warm_up, Some(begun + warm_up + measured)),
        Until::Exhausted => (begun, None),
    };
    let mut tasks = JoinSet::new();
    for (mut connection, share) in open {
        let clients = share.len();
        let mut driver = ClosedLoop::new(requests(share), clients, start, end);
        tasks.spawn_local(async move {
            for client in 0..clients {
                driver.ask(connection.calls(), client);
            }
            connection.drive(&mut driver).await.map(|()| driver)
        });
    }
    let (before, own_before, measured_from);
    let mut finished = Vec::new();
    if end.is_some() {
        sleep_until(start.into()).await;
    }
    before = cpu_of(pids)?;
    own_before = Usage::of(std::process::id())?.cpu;
    measured_from = if end.is_some() { Instant::now() } else { start };
    if let Some(end) = end {
        sleep_until(end.into()).await;
    } else {
        finished = timeout(COUNTED_PATIENCE, join(&mut tasks))
            .await
            .map_err(|_| BenchError::TimedOut("the load", COUNTED_PATIENCE))??;
    }
    let elapsed = measured_from.elapsed();
    let after = cpu_of(pids)?;
    let client_cpu = Usage::of(std::process::id())?.cpu.saturating_sub(own_before);
    if end.is_some() {
        finished =
            timeout(DRAIN, join(&mut tasks)).await.map_err(|_| BenchError::TimedOut("the last calls", DRAIN))??;
    }
    let mut latencies = Histogram::default();
    let (mut failed, mut total) = (0, 0);
    let mut refused = None;
    for driver in &mut finished {
        latencies.merge(&driver.latencies);
        failed += driver.failed;
        total += driver.total;
        refused = refused.or(driver.refused.take());
    }
    if let Some((method, message)) = refused.filter(|_| end.is_some() || failed >= REFUSALS) {
        let example = explain(addresses[0], method, &message).await;
        return Err(BenchError::Failed { failed, total, example });
    }
    let server_cpu = before.zip(after).map(|(before, after)| after.saturating_sub(before));
    Ok(Outcome { latencies, elapsed, server_cpu, client_cpu })
}

/// What all of these processes have used; `None` if there are none.
fn cpu_of(pids: &[u32]) -> Result<Option<Duration>, BenchError> {
    let cpu = pids.iter().map(|pid| Usage::of(*pid).map(|usage| usage.cpu)).sum::<Result<Duration, BenchError>>()?;
    Ok((!pids.is_empty()).then_some(cpu))
}

async fn join<R: Requests>(
    tasks: &mut JoinSet<Result<ClosedLoop<R>, crate::wire::WireError>>,
) -> Result<Vec<ClosedLoop<R>>, BenchError> {
    let mut drivers = Vec::new();
    while let Some(driver) = tasks.join_next().await {
        match driver {
            Ok(driver) => drivers.push(driver?),
            Err(panicked) => return Err(BenchError::Wrong(panicked.to_string())),
        }
    }
    Ok(drivers)
}

/// Repeats the request that failed, to learn the server's words.
async fn explain(address: Place, method: Method, message: &[u8]) -> String {
    let answer = async { Control::connect(address).await?.call_encoded(method.path(), message).await };
    match timeout(DRAIN, answer).await {
        Ok(Ok(_)) => "repeated, it is answered".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "repeated, it is not answered".to_owned(),
    }
}

/// The driver of one connection.
struct ClosedLoop<R> {
    requests: R,
    clients: Vec<Client>,
    start: Instant,
    end: Option<Instant>,
    latencies: Histogram,
    failed: u64,
    /// The first request that failed.
    refused: Option<(Method, Vec<u8>)>,
    total: u64,
}

struct Client {
    /// Its last request.
    method: Method,
    message: Vec<u8>,
    sent: Instant,
    /// Whether a right answer has come.
    right: bool,
}

impl<R: Requests> ClosedLoop<R> {
    fn new(requests: R, clients: usize, start: Instant, end: Option<Instant>) -> ClosedLoop<R> {
        let client = |_| Client { method: Method::Put, message: Vec::new(), sent: start, right: false };
        ClosedLoop {
            requests,
            clients: (0..clients).map(client).collect(),
            start,
            end,
            latencies: Histogram::default(),
            failed: 0,
            refused: None,
            total: 0,
        }
    }

    /// Sends the client's next request, if it has one.
    fn ask(&mut self, calls: &mut Calls, number: usize) {
        let client = &mut self.clients[number];
        client.message.clear();
        if let Some(method) = self.requests.next(number, &mut client.message) {
            client.method = method;
            self.send(calls, number);
        }
    }

    /// Sends the client's request, for the first time or again.
    fn send(&mut self, calls: &mut Calls, number: usize) {
        let client = &mut self.clients[number];
        client.right = false;
        client.sent = Instant::now();
        calls.start(number, client.method, &client.message, true);
    }
}

impl<R: Requests> Driver for ClosedLoop<R> {
    fn message(&mut self, _: &mut Calls, _: StreamId, client: usize, message: &[u8]) {
        self.clients[client].right = self.requests.accept(client, message);
    }

    fn ended(&mut self, calls: &mut Calls, number: usize, answered: bool) {
        let now = Instant::now();
        let client = &self.clients[number];
        let right = answered && client.right;
        self.total += 1;
        if !right {
            self.failed += 1;
            self.refused.get_or_insert_with(|| (client.method, client.message.clone()));
        } else if now >= self.start && self.end.is_none_or(|end| now < end) {
            self.latencies.record(now - client.sent);
        }
        // A server that refuses everything would be asked as fast as it can refuse: that measures nothing.
        if self.end.is_some_and(|end| now >= end) || self.failed >= REFUSALS {
            return;
        }
        if right || self.end.is_some() { self.ask(calls, number) } else { self.send(calls, number) }
    }
}
