//! Overwriting and deleting: what compaction and giving space back cost those who go on writing.

use super::kv::{Mixture, bring_in};
use super::watch::{Watchers, put_once};
use super::{Settings, Target, check_count, measured, requests, revision};
use crate::control::Control;
use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::load::{self, Outcome, Until};
use crate::metric::{self, Measured};
use crate::process::{Space, Usage};
use prost::Message;
use proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DefragmentRequest, DefragmentResponse, DeleteRangeRequest, PutRequest,
    RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse, request_op::Request,
};
use proto::mvccpb::KeyValue;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Keys that are overwritten.
const OVERWRITE_KEYS: u64 = 10_000;
const OVERWRITE_CLIENTS: usize = 64;
const COMPACT_EVERY: Duration = Duration::from_secs(2);
/// An operator of etcd must defragment to get space back; every server is told to, also one that has no need.
const DEFRAGMENT_EVERY: Duration = Duration::from_secs(10);
/// The shortest run that holds one defragmentation with writing before and behind it.
const SHORTEST_OVERWRITE: Duration = Duration::from_secs(12);

/// Keys of which most are deleted, at scale 1.
const DELETE_KEYS: u64 = 1_000_000;
/// One of so many keys stays.
const KEEP_ONE_OF: u64 = 10;
/// Range deletes per transaction.
const DELETES_PER_TXN: u64 = 100;
const PROBE_INTERVAL: Duration = Duration::from_millis(1);
/// Probes that may be waiting; a stall beyond this many milliseconds shows in the gap all the same.
const PROBES_IN_FLIGHT: usize = 2000;
/// How long the server has to give space back.
const SPACE_PATIENCE: Duration = Duration::from_secs(60);
/// The probe goes on at least this long after compaction, to see what giving space back costs.
const SHORTEST_RECLAIM: Duration = Duration::from_secs(15);
const SPACE_FLOOR: f64 = 1.5;
const SPACE_GOAL: f64 = 1.3;

/// 64 clients overwrite a key set while it is compacted and defragmented; one watcher sees every change.
pub async fn overwrite_compact(target: &mut Target<'_>, settings: &Settings) -> Result<Measured, BenchError> {
    bring_in(target, OVERWRITE_KEYS).await?;
    let (key, range_end) = requests::all_keys();
    let mut watchers = Watchers::open(target.address, 1, key, range_end).await?;
    let warm_up = Duration::from_millis(500);
    let time = Until::Time { warm_up, measured: SHORTEST_OVERWRITE.max(settings.measured * 4) };
    let mut care = JoinSet::new();
    let control = target.control().await?;
    let board = Rc::clone(&watchers.board);
    care.spawn_local(async move {
        sleep(warm_up).await;
        board.longest_gap.set(Duration::ZERO);
        std::future::pending::<Result<(), BenchError>>().await
    });
    care.spawn_local(compact_regularly(control));
    care.spawn_local(defragment_regularly(target.control().await?));
    let requests = |share: std::ops::Range<usize>| Mixture::new(share.start, false, 0, OVERWRITE_KEYS);
    let outcome = load::run(target.address, target.pid, OVERWRITE_CLIENTS, time, requests).await?;
    watchers.board.close_gap();
    let gap = watchers.board.longest_gap.get();
    watchers.check()?;
    if let Some(failed) = care.try_join_next() {
        failed.map_err(|panicked| BenchError::Wrong(panicked.to_string()))??;
    }
    let mut figures = measured(&outcome, target)?;
    figures.push((&metric::GAP, gap.as_secs_f64() * 1e3));
    Ok(figures)
}

/// Compacts all but the newest revision; ends only with an error.
async fn compact_regularly(control: Control) -> Result<(), BenchError> {
    loop {
        sleep(COMPACT_EVERY).await;
        compact(&control).await?;
    }
}

async fn compact(control: &Control) -> Result<i64, BenchError> {
    let revision = revision(control).await?;
    let request = CompactionRequest { revision, physical: false };
    control.call::<CompactionResponse>("/etcdserverpb.KV/Compact", &request).await?;
    Ok(revision)
}

async fn defragment_regularly(control: Control) -> Result<(), BenchError> {
    sleep(DEFRAGMENT_EVERY / 2).await;
    loop {
        defragment(&control).await?;
        sleep(DEFRAGMENT_EVERY).await;
    }
}

async fn defragment(control: &Control) -> Result<(), BenchError> {
    control.call::<DefragmentResponse>("/etcdserverpb.Maintenance/Defragment", &DefragmentRequest {}).await?;
    Ok(())
}

/// Deletes nine of ten keys, compacts, defragments as an operator would, and watches how a steady small load fares and
/// when the space is given back.
pub async fn delete_most(target: &mut Target<'_>, settings: &Settings) -> Result<Measured, BenchError> {
    let keys = settings.keys(DELETE_KEYS);
    bring_in(target, keys).await?;
    let dir = target.server.as_ref().map(|server| server.data_dir());
    let control = target.control().await?;
    let probe = Probe::start(target.control().await?);
    sleep(Duration::from_secs(1)).await;
    let (from, before, own_before) = (Instant::now(), target.usage()?, Usage::of(std::process::id())?.cpu);
    probe.seen.restart();
    delete(&control, keys).await?;
    check_count(&control, keys / KEEP_ONE_OF).await?;
    let compact_revision = compact(&control).await?;
    let compacted = Instant::now();
    let mut care = JoinSet::new();
    let operator = target.control().await?;
    care.spawn_local(async move {
        sleep(Duration::from_secs(2)).await;
        defragment(&operator).await
    });
    let survivors = live_bytes(&control, keys).await?;
    let (mut ratio, mut small_after) = (None, None);
    while let Some(dir) = &dir {
        // What was written since the compaction is history that must be kept: live as well.
        let history = u64::try_from(revision(&control).await? - compact_revision).unwrap_or(0) * probe.history_bytes;
        let now = Space::of(dir).store_bytes as f64 / (survivors + history) as f64;
        ratio = Some(now);
        if now <= SPACE_FLOOR && small_after.is_none() {
            small_after = Some(compacted.elapsed());
        }
        if compacted.elapsed() >= SPACE_PATIENCE || (now <= SPACE_GOAL && compacted.elapsed() >= SHORTEST_RECLAIM) {
            break;
        }
        sleep(Duration::from_millis(500)).await;
    }
    while let Some(done) = care.join_next().await {
        done.map_err(|panicked| BenchError::Wrong(panicked.to_string()))??;
    }
    let (elapsed, after) = (from.elapsed(), target.usage()?);
    let client_cpu = Usage::of(std::process::id())?.cpu.saturating_sub(own_before);
    let (latencies, gap) = probe.seen.end()?;
    let server_cpu = before.zip(after).map(|(before, after)| after.cpu.saturating_sub(before.cpu));
    let mut figures = vec![(&metric::GAP, gap.as_secs_f64() * 1e3)];
    figures.extend(ratio.map(|ratio| (&metric::SPACE, ratio)));
    if dir.is_some() {
        figures.push((&metric::SPACE_AFTER, small_after.unwrap_or(SPACE_PATIENCE).as_secs_f64()));
    }
    // Per operation means nothing here: the deletes are not among the probe's puts.
    let not_per_put = [metric::CPU.name, metric::CLIENT_CPU.name, metric::THROUGHPUT.name];
    let all = measured(&Outcome { latencies, elapsed, server_cpu, client_cpu }, target)?;
    figures.extend(all.into_iter().filter(|(metric, _)| !not_per_put.contains(&metric.name)));
    Ok(figures)
}

/// Deletes the keys that do not stay, many ranges to a transaction, one transaction at a time.
async fn delete(control: &Control, keys: u64) -> Result<(), BenchError> {
    let groups: Vec<u64> = (0..keys / KEEP_ONE_OF).collect();
    for groups in groups.chunks(DELETES_PER_TXN as usize) {
        let ranges = groups.iter().map(|group| DeleteRangeRequest {
            key: requests::key(group * KEEP_ONE_OF + 1),
            range_end: requests::key((group + 1) * KEEP_ONE_OF),
            prev_kv: false,
        });
        let operations = ranges.map(|range| RequestOp { request: Some(Request::RequestDeleteRange(range)) });
        let txn = TxnRequest { success: operations.collect(), ..Default::default() };
        let answer: TxnResponse = control.call("/etcdserverpb.KV/Txn", &txn).await?;
        if !answer.succeeded {
            return Err(BenchError::Wrong("a transaction without conditions did not succeed".to_owned()));
        }
    }
    Ok(())
}

/// The encoded size of all keys that stayed, from a part of them: they are alike.
async fn live_bytes(control: &Control, keys: u64) -> Result<u64, BenchError> {
    const PART: i64 = 1000;
    let (key, range_end) = requests::all_keys();
    let request = RangeRequest { key, range_end, limit: PART, ..Default::default() };
    let answer: RangeResponse = control.call("/etcdserverpb.KV/Range", &request).await?;
    let part: usize = answer.kvs.iter().map(Message::encoded_len).sum();
    Ok(part as u64 * (keys / KEEP_ONE_OF) / answer.kvs.len().max(1) as u64)
}

/// A thousand small puts a second, sent whether or not earlier ones are answered. Ends when dropped.
struct Probe {
    seen: Rc<Seen>,
    /// What one of its puts adds to the history.
    history_bytes: u64,
    _task: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    latencies: RefCell<Histogram>,
    last: Cell<Option<Instant>>,
    longest_gap: Cell<Duration>,
    failed: RefCell<Option<BenchError>>,
}

impl Seen {
    /// Counts the time since the last answer, or since the beginning.
    fn close_gap(&self) {
        if let Some(last) = self.last.get() {
            self.longest_gap.set(self.longest_gap.get().max(last.elapsed()));
        }
    }

    fn restart(&self) {
        self.latencies.take();
        self.longest_gap.set(Duration::ZERO);
        self.last.set(Some(Instant::now()));
    }

    fn end(&self) -> Result<(Histogram, Duration), BenchError> {
        self.close_gap();
        match self.failed.take() {
            Some(error) => Err(error),
            None => Ok((self.latencies.take(), self.longest_gap.get())),
        }
    }
}

impl Probe {
    fn start(control: Control) -> Probe {
        let put = PutRequest { key: "bench/probe".into(), value: requests::value(16), ..Default::default() };
        // Revisions of some millions take four bytes each in the encoding.
        let stored = KeyValue {
            key: put.key.clone(),
            value: put.value.clone(),
            create_revision: 1 << 21,
            mod_revision: 1 << 21,
            version: 1 << 14,
            lease: 0,
        };
        let seen = Rc::new(Seen::default());
        let mut task = JoinSet::new();
        task.spawn_local(probe(control, put, Rc::clone(&seen)));
        Probe { seen, history_bytes: stored.encoded_len() as u64, _task: task }
    }
}

async fn probe(control: Control, put: PutRequest, seen: Rc<Seen>) {
    let mut ticks = interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut puts = JoinSet::new();
    loop {
        ticks.tick().await;
        while puts.try_join_next().is_some() {}
        if puts.len() >= PROBES_IN_FLIGHT {
            continue;
        }
        let (control, put, seen) = (control.clone(), put.clone(), Rc::clone(&seen));
        puts.spawn_local(async move {
            let sent = Instant::now();
            match put_once(&control, &put).await {
                Ok(()) => {
                    seen.close_gap();
                    seen.last.set(Some(Instant::now()));
                    seen.latencies.borrow_mut().record(sent.elapsed());
                }
                Err(error) => {
                    seen.failed.borrow_mut().get_or_insert(error);
                }
            }
        });
    }
}
