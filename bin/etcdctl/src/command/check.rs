//! `check perf` and `check datascale`: is this cluster up to a load?

use super::Command;
use crate::call::{Call, Failure, exit};
use crate::flags::{Flag, switch, text};
use crate::terminal;
use cli::Group;
use client::{Client, Delete, Get, Put};
use proto::etcdserverpb::{CompactionRequest, DefragmentRequest};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

/// How long `check perf` writes.
const PERF_TIME: Duration = Duration::from_secs(60);
/// The slowest write, and the spread of all, that pass.
const SLOWEST: Duration = Duration::from_millis(500);
const LARGEST_STDDEV: Duration = Duration::from_millis(100);
/// The share of the wanted rate that passes.
const ENOUGH: f64 = 0.9;
/// How large an answer of `/metrics` may be, in bytes.
const METRICS_BOUND: usize = 16 << 20;
/// How long it may take.
const METRICS_PATIENCE: Duration = Duration::from_secs(10);

const fn flags(prefix: &'static str) -> [Flag; 4] {
    [
        text("load", "s", "How much: s(mall), m(edium), l(arge) or xl(xLarge)."),
        text("prefix", prefix, "Prefix of the keys that are written. They are deleted again."),
        switch("auto-compact", "Compact the history when done."),
        switch("auto-defrag", "Defragment the endpoints when done."),
    ]
}

pub const CHECK: Command = Command {
    name: "check",
    about: "commands for checking properties of the etcd cluster",
    commands: &[
        Command {
            name: "perf",
            usage: "[options]",
            about: "Check the performance of the etcd cluster",
            example: "etcdctl check perf --load m",
            flags: &flags("/etcdctl-check-perf/"),
            run: Some(perf),
            ..Command::NONE
        },
        Command {
            name: "datascale",
            usage: "[options]",
            about: "Check the memory usage of holding data for different workloads on a given server endpoint.",
            example: "etcdctl --endpoints=10.0.0.1:2379 check datascale --load s",
            flags: &flags("/etcdctl-check-datascale/"),
            run: Some(datascale),
            ..Command::NONE
        },
    ],
    group: Group::Utility,
    ..Command::NONE
};

/// One of the four loads: puts per second or in all, and from how many clients.
struct Load {
    puts: u64,
    clients: u64,
}

fn load(call: &Call, sizes: [(u64, u64); 4]) -> Result<Load, Failure> {
    let (puts, clients) = match call.parsed.text("load") {
        "s" | "small" => sizes[0],
        "m" | "medium" => sizes[1],
        "l" | "large" => sizes[2],
        "xl" | "xLarge" => sizes[3],
        other => return Err(Failure::new(exit::BAD_FEATURE, format!("unknown load option {other}"))),
    };
    Ok(Load { puts, clients })
}

/// What was measured.
#[derive(Default)]
struct Measured {
    latencies: Vec<Duration>,
    errors: Vec<String>,
    elapsed: Duration,
}

/// Writes keys from many clients. `next` says when the nth put is due, or `None` when it is over.
async fn write_keys(
    client: &Client,
    prefix: &str,
    sizes: (usize, usize),
    clients: u64,
    next: impl Fn(u64) -> Option<Duration> + Send + Sync + 'static,
) -> Measured {
    let begun = Instant::now();
    let (turn, next) = (Arc::new(AtomicU64::new(0)), Arc::new(next));
    let mut writers = JoinSet::new();
    for _ in 0..clients {
        let (client, prefix, turn, next) = (client.clone(), prefix.to_owned(), turn.clone(), next.clone());
        writers.spawn(async move {
            let (mut latencies, mut errors) = (Vec::new(), Vec::new());
            let value = "v".repeat(sizes.1);
            loop {
                let number = turn.fetch_add(1, Ordering::Relaxed);
                let Some(due) = next(number) else { return (latencies, errors) };
                tokio::time::sleep_until((begun + due).into()).await;
                let width = sizes.0.saturating_sub(prefix.len());
                let key = format!("{prefix}{number:0width$}");
                let sent = Instant::now();
                match client.put(Put::new(key, value.clone())).await {
                    Ok(_) => latencies.push(sent.elapsed()),
                    Err(error) => errors.push(error.to_string()),
                }
            }
        });
    }
    let mut measured = Measured::default();
    while let Some(writer) = writers.join_next().await {
        match writer {
            Ok((latencies, errors)) => {
                measured.latencies.extend(latencies);
                measured.errors.extend(errors);
            }
            Err(error) => measured.errors.push(error.to_string()),
        }
    }
    measured.elapsed = begun.elapsed();
    measured
}

/// Refuses to write among keys that are somebody's.
async fn refuse_used_prefix(client: &Client, prefix: &str) -> Result<(), Failure> {
    let found = client.range(Get::prefix(prefix.to_owned()).limit(1)).await?;
    if found.kvs.is_empty() {
        return Ok(());
    }
    let text = format!("prefix {prefix:?} has keys. Delete with 'etcdctl del --prefix {prefix}' first");
    Err(Failure::new(exit::INVALID_INPUT, text))
}

/// Deletes the keys, and frees their space if that is wanted.
async fn clean_up(call: &Call, client: &Client, prefix: &str) -> Result<(), Failure> {
    let deleted = client.delete(Delete::prefix(prefix.to_owned())).await?;
    if call.parsed.is("auto-compact") {
        let revision = deleted.header.map_or(0, |header| header.revision);
        terminal::say(&format!("Compacting with revision {revision}"));
        client.compact(CompactionRequest { revision, physical: true }).await?;
        terminal::say(&format!("Compacted with revision {revision}"));
    }
    if call.parsed.is("auto-defrag") {
        for endpoint in client.endpoints() {
            terminal::say(&format!("Defragmenting {endpoint:?}"));
            client.only(endpoint)?.defragment(DefragmentRequest {}).await?;
            terminal::say(&format!("Defragmented {endpoint:?}"));
        }
    }
    Ok(())
}

fn verdict(passed: bool) -> Result<(), Failure> {
    terminal::say(if passed { "PASS" } else { "FAIL" });
    if passed { Ok(()) } else { Err(Failure::silent(exit::ERROR)) }
}

fn perf(call: &Call) -> Result<(), Failure> {
    let load = load(call, [(150, 50), (1000, 200), (8000, 500), (15_000, 1000)])?;
    let prefix = call.parsed.text("prefix");
    call.block_on(async {
        let client = call.patient_client().await?;
        refuse_used_prefix(&client, prefix).await?;
        let rate = load.puts;
        let due = move |number| Some(Duration::from_secs(number) / rate as u32).filter(|due| *due < PERF_TIME);
        let writing = write_keys(&client, prefix, (256, 1024), load.clients, due);
        let measured = tokio::select! {
            measured = writing => measured,
            never = show_clock(PERF_TIME) => match never {},
        };
        terminal::end_progress();
        clean_up(call, &client, prefix).await?;
        if let Some(error) = measured.errors.first() {
            terminal::say(&format!("FAIL: too many errors\nFAIL: ERROR({error}) -> {}", measured.errors.len()));
        }
        let passed = judge(&measured, rate) && measured.errors.is_empty();
        verdict(passed)
    })
}

/// A bar that fills with time.
async fn show_clock(total: Duration) -> std::convert::Infallible {
    let begun = Instant::now();
    loop {
        let done = begun.elapsed().min(total);
        terminal::progress("check", done.as_secs(), total.as_secs(), &|seconds| format!("{seconds}s"));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Says what passes and what does not.
fn judge(measured: &Measured, rate: u64) -> bool {
    let count = measured.latencies.len() as f64;
    let throughput = count / measured.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
    let slowest = measured.latencies.iter().max().copied().unwrap_or_default();
    let mean = measured.latencies.iter().map(Duration::as_secs_f64).sum::<f64>() / count.max(1.0);
    let variance = measured.latencies.iter().map(|latency| (latency.as_secs_f64() - mean).powi(2)).sum::<f64>();
    let stddev = (variance / count.max(1.0)).sqrt();
    let mut passed = true;
    let mut line = |good: bool, pass: String, fail: String| {
        passed &= good;
        terminal::say(&if good { format!("PASS: {pass}") } else { format!("FAIL: {fail}") });
    };
    // Cut off to whole writes, as etcdctl does.
    let whole = throughput as u64;
    line(
        throughput > rate as f64 * ENOUGH,
        format!("Throughput is {whole} writes/s"),
        format!("Throughput too low: {whole} writes/s"),
    );
    let seconds = slowest.as_secs_f64();
    line(
        slowest <= SLOWEST,
        format!("Slowest request took {seconds:.6}s"),
        format!("Slowest request took too long: {seconds:.6}s"),
    );
    line(
        stddev <= LARGEST_STDDEV.as_secs_f64(),
        format!("Stddev is {stddev:.6}s"),
        format!("Stddev too high: {stddev:.6}s"),
    );
    passed
}

fn datascale(call: &Call) -> Result<(), Failure> {
    const PAIR_BYTES: usize = 1024;
    let load = load(call, [(10_000, 50), (100_000, 200), (1_000_000, 500), (3_000_000, 1000)])?;
    let prefix = call.parsed.text("prefix");
    call.block_on(async {
        let client = call.patient_client().await?;
        refuse_used_prefix(&client, prefix).await?;
        let endpoint = client.endpoints()[0].clone();
        let before = resident_memory(&endpoint).await;
        let Ok(before) = before else {
            terminal::say("FAIL: Could not read process_resident_memory_bytes before the put operations.");
            return Err(Failure::silent(exit::ERROR));
        };
        let (puts, clients) = (load.puts, load.clients);
        terminal::say(&format!(
            "Start data scale check for work load [{puts} key-value pairs, {PAIR_BYTES} bytes per key-value, {clients} concurrent clients]."
        ));
        let written = Arc::new(AtomicU64::new(0));
        let counter = written.clone();
        let next = move |number| {
            counter.fetch_max(number, Ordering::Relaxed);
            (number < puts).then_some(Duration::ZERO)
        };
        let show = async {
            loop {
                terminal::progress("check", written.load(Ordering::Relaxed), puts, &|keys| format!("{keys} keys"));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let measured = tokio::select! {
            measured = write_keys(&client, prefix, (PAIR_BYTES / 2, PAIR_BYTES / 2), clients, next) => measured,
            never = show => { let never: std::convert::Infallible = never; match never {} },
        };
        terminal::end_progress();
        let after = resident_memory(&endpoint).await;
        clean_up(call, &client, prefix).await?;
        if let Some(error) = measured.errors.first() {
            terminal::say(&format!("FAIL: too many errors\nFAIL: ERROR({error}) -> {}", measured.errors.len()));
            return Err(Failure::silent(exit::ERROR));
        }
        let Ok(after) = after else {
            terminal::say("FAIL: Could not read process_resident_memory_bytes after the put operations.");
            return Err(Failure::silent(exit::ERROR));
        };
        let megabytes = (after - before) / f64::from(1 << 20);
        terminal::say(&format!("PASS: Approximate system memory used : {megabytes:.2} MB."));
        Ok(())
    })
}

/// `process_resident_memory_bytes` of the server at an endpoint.
async fn resident_memory(endpoint: &str) -> io::Result<f64> {
    let authority = endpoint.strip_prefix("http://").unwrap_or(endpoint).trim_end_matches('/');
    // HTTP/1.0, so that the answer does not come in chunks.
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {authority}\r\n\r\n");
    let mut answer = Vec::new();
    tokio::time::timeout(METRICS_PATIENCE, async {
        let mut stream = tokio::net::TcpStream::connect(authority).await?;
        stream.write_all(request.as_bytes()).await?;
        stream.take(METRICS_BOUND as u64).read_to_end(&mut answer).await
    })
    .await??;
    let text = String::from_utf8_lossy(&answer);
    let mut values = text.lines().filter_map(|line| line.strip_prefix("process_resident_memory_bytes "));
    let missing = || io::Error::other("no process_resident_memory_bytes");
    values.next().and_then(|value| value.trim().parse().ok()).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_passes_by_rate_slowest_and_spread() {
        let measured = |latency: Duration, count: usize| Measured {
            latencies: vec![latency; count],
            errors: Vec::new(),
            elapsed: Duration::from_secs(10),
        };
        assert!(judge(&measured(Duration::from_millis(2), 1000), 100));
        assert!(!judge(&measured(Duration::from_millis(2), 900), 100), "not more than nine tenths of the rate");
        assert!(!judge(&measured(Duration::from_millis(600), 1000), 100), "too slow");
    }
}
