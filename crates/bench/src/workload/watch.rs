//! Watches: how soon an event arrives, and how many watchers can be served.

use super::{Settings, Target, VALUE_BYTES, megabytes, requests};
use crate::control::Control;
use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::metric::{self, Measured};
use crate::place::Place;
use crate::process::Usage;
use crate::protobuf::{Fields, Value, integer};
use crate::wire::{Calls, Connection, Driver, Method, StreamId, WireError};
use bytes::Bytes;
use prost::Message;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{PutRequest, PutResponse, WatchCreateRequest, WatchRequest};
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Connections that the watchers of one workload share.
const CONNECTIONS: usize = 8;
const FAN_OUT: usize = 1000;
/// Puts whose events may be under way before the next put waits.
const PUTS_AHEAD: u64 = 16;
/// How long watchers may take to be created, and an event to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

/// From sending a put to receiving its event on another connection, one put at a time.
pub async fn latency(target: &mut Target<'_>, settings: &Settings) -> Result<Measured, BenchError> {
    let watchers = Watchers::open(target.address, 1, requests::key(0), Bytes::new()).await?;
    let control = target.control().await?;
    let put = put_of(0);
    let (mut events, mut puts) = (Histogram::default(), Histogram::default());
    let (start, mut sent) = (Instant::now() + Duration::from_millis(500), 0);
    let end = start + settings.measured;
    let mut before = None;
    while Instant::now() < end {
        let from = Instant::now();
        if from >= start && before.is_none() {
            before = target.usage()?;
        }
        let _answer: PutResponse = control.call(Method::Put.path(), &put).await?;
        let acknowledged = from.elapsed();
        sent += 1;
        watchers.board.wait_for(sent).await?;
        if from >= start {
            puts.record(acknowledged);
            events.record(watchers.board.last_event.get().map_or(Duration::MAX, |event| event - from));
        }
    }
    if events.count() == 0 {
        return Err(BenchError::NothingMeasured);
    }
    let (after, count) = (target.usage()?, events.count() as f64);
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    let mut measured = vec![
        (&metric::EVENT_P50, micros(events.quantile(0.5))),
        (&metric::EVENT_P99, micros(events.quantile(0.99))),
        (&metric::PUT_P50, micros(puts.quantile(0.5))),
    ];
    if let (Some(before), Some(after)) = (before, after) {
        measured.push((&metric::CPU, micros(after.cpu.saturating_sub(before.cpu)) / count));
        measured.push((&metric::PEAK_RSS, megabytes(after.peak_rss_bytes)));
    }
    Ok(measured)
}

/// 1,000 watchers of one key, each on a stream of its own, as so many clients would be; puts follow as the events
/// arrive. One operation here is one event at one watcher.
pub async fn fan_out(target: &mut Target<'_>, settings: &Settings) -> Result<Measured, BenchError> {
    let mut watchers = Watchers::open(target.address, FAN_OUT, requests::key(0), Bytes::new()).await?;
    let board = Rc::clone(&watchers.board);
    let control = target.control().await?;
    watchers.tasks.spawn_local(async move {
        let mut sent = 0;
        loop {
            while sent * FAN_OUT as u64 >= board.events.get() + PUTS_AHEAD * FAN_OUT as u64 {
                board.arrived.notified().await;
            }
            if control.call::<PutResponse>(Method::Put.path(), &put_of(0)).await.is_err() {
                board.broken.set(true);
                return Ok(());
            }
            sent += 1;
        }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let board = &watchers.board;
    let (from, events_before) = (Instant::now(), board.events.get());
    let (before, own_before) = (target.usage()?, Usage::of(std::process::id())?.cpu);
    tokio::time::sleep(settings.measured).await;
    let (elapsed, events) = (from.elapsed(), board.events.get() - events_before);
    let (after, own_after) = (target.usage()?, Usage::of(std::process::id())?.cpu);
    watchers.check()?;
    if events == 0 {
        return Err(BenchError::NothingMeasured);
    }
    let micros_each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / events as f64;
    let mut measured = vec![
        (&metric::THROUGHPUT, events as f64 / elapsed.as_secs_f64()),
        (&metric::CLIENT_CPU, micros_each(own_after.saturating_sub(own_before))),
    ];
    if let (Some(before), Some(after)) = (before, after) {
        measured.insert(1, (&metric::CPU, micros_each(after.cpu.saturating_sub(before.cpu))));
        measured.push((&metric::PEAK_RSS, megabytes(after.peak_rss_bytes)));
    }
    Ok(measured)
}

fn put_of(number: u64) -> PutRequest {
    PutRequest { key: requests::key(number), value: requests::value(VALUE_BYTES), ..Default::default() }
}

/// Watchers on connections of their own; gone when dropped.
pub struct Watchers {
    /// What they have seen.
    pub board: Rc<Board>,
    tasks: JoinSet<Result<(), WireError>>,
}

impl Watchers {
    /// Creates `count` watchers of a range, each on its own stream, and waits until all are confirmed.
    pub async fn open(address: Place, count: usize, key: Bytes, range_end: Bytes) -> Result<Watchers, BenchError> {
        let create = WatchCreateRequest { key, range_end, ..Default::default() };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }.encode_to_vec();
        let board = Rc::new(Board::default());
        let mut tasks = JoinSet::new();
        let connections = count.min(CONNECTIONS);
        for index in 0..connections {
            let mut connection = Connection::open(address).await?;
            for client in count * index / connections..count * (index + 1) / connections {
                connection.calls().start(client, Method::Watch, &create, false);
            }
            let mut driver = Watching { board: Rc::clone(&board) };
            tasks.spawn_local(async move { connection.drive(&mut driver).await });
        }
        let mut watchers = Watchers { board, tasks };
        let begun = Instant::now();
        while watchers.board.created.get() < count {
            if begun.elapsed() > PATIENCE {
                return Err(BenchError::TimedOut("the creation of the watchers", PATIENCE));
            }
            timeout(Duration::from_millis(100), watchers.board.arrived.notified()).await.ok(); // only paces this loop
            watchers.check()?;
        }
        Ok(watchers)
    }

    /// An error if a connection broke or a watcher was cancelled.
    pub fn check(&mut self) -> Result<(), BenchError> {
        if let Some(ended) = self.tasks.try_join_next() {
            ended.map_err(|panicked| BenchError::Wrong(panicked.to_string()))??;
            return Err(BenchError::Wrong("watch streams were ended by the server".to_owned()));
        }
        if self.board.broken.get() {
            return Err(BenchError::Wrong("a watcher was cancelled by the server, or a put failed".to_owned()));
        }
        Ok(())
    }
}

/// What a set of watchers has seen together.
#[derive(Default)]
pub struct Board {
    created: Cell<usize>,
    broken: Cell<bool>,
    /// Events received, each counted at each watcher.
    pub events: Cell<u64>,
    /// When the last one came.
    pub last_event: Cell<Option<Instant>>,
    /// The longest time between two arrivals since it was last set.
    pub longest_gap: Cell<Duration>,
    arrived: Notify,
}

impl Board {
    async fn wait_for(&self, events: u64) -> Result<(), BenchError> {
        while self.events.get() < events {
            timeout(PATIENCE, self.arrived.notified()).await.map_err(|_| BenchError::TimedOut("an event", PATIENCE))?;
        }
        Ok(())
    }

    /// Counts the time since the last event as a gap, too: a watch that has died shows no second arrival.
    pub fn close_gap(&self) {
        if let Some(last) = self.last_event.get() {
            self.longest_gap.set(self.longest_gap.get().max(last.elapsed()));
        }
    }
}

struct Watching {
    board: Rc<Board>,
}

impl Driver for Watching {
    fn message(&mut self, _: &mut Calls, _: StreamId, _: usize, message: &[u8]) {
        const CREATED: u64 = 3;
        const CANCELED: u64 = 4;
        const EVENTS: u64 = 11;
        let board = &self.board;
        let events =
            Fields(message).filter(|(field, value)| *field == EVENTS && matches!(value, Value::Bytes(_))).count();
        if events > 0 {
            let now = Instant::now();
            board.close_gap();
            board.last_event.set(Some(now));
            board.events.set(board.events.get() + events as u64);
        } else if integer(message, CANCELED) != 0 {
            board.broken.set(true);
        } else if integer(message, CREATED) != 0 {
            board.created.set(board.created.get() + 1);
        }
    }

    fn ended(&mut self, _: &mut Calls, _: usize, _: bool) {
        self.board.broken.set(true);
        self.board.arrived.notify_one();
    }

    fn batch_done(&mut self) {
        self.board.arrived.notify_one();
    }
}

/// One put of a key of the benches, by hand.
pub async fn put_once(control: &Control, request: &PutRequest) -> Result<(), BenchError> {
    control.call::<PutResponse>(Method::Put.path(), request).await?;
    Ok(())
}
