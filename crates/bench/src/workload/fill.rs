//! Many keys: what they cost in memory, on disk and at a restart, and what listing them costs.

use super::kv::bring_in;
use super::requests::{self, Counter, Template};
use super::{Settings, Target, VALUE_BYTES, check_count, measured, megabytes};
use crate::control::Control;
use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::load::{self, Requests, Until};
use crate::metric::{self, Measured};
use crate::process::{Space, Usage};
use crate::wire::Method;
use proto::etcdserverpb::{RangeRequest, RangeResponse};
use std::time::Instant;

/// Keys of the large fill at scale 1.
const FILL_KEYS: u64 = 1_000_000;
/// Clients that fill: many, so that slow disks are kept busy.
const FILL_CLIENTS: usize = 256;
/// Keys that are listed at scale 1.
const LIST_KEYS: u64 = 100_000;
const LISTS: usize = 5;
const PAGE: i64 = 500;

/// Single puts of distinct keys in scattered order; then memory, disk, and readiness after `kill -9` and a clean stop.
pub async fn fill(target: &mut Target<'_>, settings: &Settings) -> Result<Measured, BenchError> {
    let keys = settings.keys(FILL_KEYS);
    let disk = |target: &Target<'_>| -> Result<Option<(Usage, Space)>, BenchError> {
        let dir = target.server.as_ref().map(|server| server.data_dir());
        Ok(target.usage()?.zip(dir.map(|dir| Space::of(&dir))))
    };
    let before = disk(target)?;
    let counter = Counter::new(keys);
    let requests = |_| FillByPut { template: Template::put(VALUE_BYTES), counter: counter.clone() };
    let outcome = load::run(target.address, target.pid, FILL_CLIENTS, Until::Exhausted, requests).await?;
    target.rest().await?;
    let mut figures = measured(&outcome, target)?;
    if let Some(usage) = target.usage()? {
        figures.push((&metric::RSS, megabytes(usage.rss_bytes)));
        figures.push((&metric::RSS_ANONYMOUS, megabytes(usage.rss_anonymous_bytes)));
    }
    if let (Some((usage, space)), Some((after, space_after))) = (before, disk(target)?) {
        let raw = after.written_bytes.saturating_sub(usage.written_bytes);
        // A server that writes zeros ahead of its log has done so before its first request; one that only reserves
        // space has written next to nothing by then.
        let zeroes_ahead = space.wal_segments > 0 && usage.written_bytes >= 4 << 20;
        let zeros = if zeroes_ahead { space_after.segment_bytes_since(&space) } else { 0 };
        figures.push((&metric::DISK_PER_PUT, raw.saturating_sub(zeros) as f64 / keys as f64));
        figures.push((&metric::DISK_PER_PUT_RAW, raw as f64 / keys as f64));
        figures.push((&metric::FILES_PER_PUT, space_after.total_bytes as f64 / keys as f64));
    }
    let Some(server) = &mut target.server else { return Ok(figures) };
    // Killed first: after a clean stop there would be nothing left to recover.
    server.kill();
    let killed = server.start_again().await?;
    check_count(&Control::connect(server.address()).await?, keys).await?;
    server.rest().await?;
    let restarted = server.pid().map(Usage::of).transpose()?.unwrap_or_default();
    let stop = server.stop().await?;
    let clean = server.start_again().await?;
    check_count(&Control::connect(server.address()).await?, keys).await?;
    figures.extend([
        (&metric::READY_KILLED, killed.as_secs_f64()),
        (&metric::READY_CLEAN, clean.as_secs_f64()),
        (&metric::STOP, stop.as_secs_f64()),
        (&metric::RSS_RESTARTED, megabytes(restarted.rss_bytes)),
    ]);
    Ok(figures)
}

struct FillByPut {
    template: Template,
    counter: Counter,
}

impl Requests for FillByPut {
    fn next(&mut self, _: usize, message: &mut Vec<u8>) -> Option<Method> {
        self.template.write(self.counter.take_scattered()?, message);
        Some(Method::Put)
    }

    fn accept(&mut self, _: usize, message: &[u8]) -> bool {
        !message.is_empty()
    }
}

/// Lists all keys several times, in one answer or in pages; one operation is one whole list.
pub async fn list(target: &mut Target<'_>, settings: &Settings, paged: bool) -> Result<Measured, BenchError> {
    let keys = settings.keys(LIST_KEYS);
    bring_in(target, keys).await?;
    let control = target.control().await?;
    let (from, before, own_before) = (Instant::now(), target.usage()?, Usage::of(std::process::id())?.cpu);
    let mut latencies = Histogram::default();
    for _ in 0..LISTS {
        let begun = Instant::now();
        let listed = list_once(&control, if paged { PAGE } else { 0 }).await?;
        if listed != keys {
            return Err(BenchError::Wrong(format!("{listed} keys listed, {keys} are there")));
        }
        latencies.record(begun.elapsed());
    }
    let (elapsed, after) = (from.elapsed(), target.usage()?);
    let client_cpu = Usage::of(std::process::id())?.cpu.saturating_sub(own_before);
    let server_cpu = before.zip(after).map(|(before, after)| after.cpu.saturating_sub(before.cpu));
    let mut figures = measured(&load::Outcome { latencies, elapsed, server_cpu, client_cpu }, target)?;
    if let Some(usage) = after {
        figures.push((&metric::RSS, megabytes(usage.rss_bytes)));
        figures.push((&metric::RSS_ANONYMOUS, megabytes(usage.rss_anonymous_bytes)));
    }
    Ok(figures)
}

/// Reads all keys at one revision, `limit` at a time (0: all at once); returns how many came, in order.
async fn list_once(control: &Control, limit: i64) -> Result<u64, BenchError> {
    let (mut key, range_end) = requests::all_keys();
    let (mut listed, mut revision) = (0, 0);
    loop {
        let request = RangeRequest { key, range_end: range_end.clone(), limit, revision, ..Default::default() };
        let answer: RangeResponse = control.call(Method::Range.path(), &request).await?;
        listed += answer.kvs.len() as u64;
        revision = answer.header.map_or(0, |header| header.revision);
        let Some(last) = answer.kvs.last().filter(|_| answer.more) else { return Ok(listed) };
        key = [&last.key[..], &[0]].concat().into();
    }
}
