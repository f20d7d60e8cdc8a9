//! Who causes load: for which clients, users, methods and parts of the key space the most work is done.
//!
//! Works as a profiler does. Work is counted in time: what a call costs in any case, and what was measured of it. Each thread
//! that works adds up its time, and whenever a [`QUANTUM`] is full, the call at hand stands for it. Small calls so are seen
//! in proportion to their number, every long one is seen, and most calls cost one addition. Names are kept in sketches of a
//! fixed size (space-saving, Metwally et al. 2005): what causes more than a 64th of the work is in them for certain.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto as wire;
use prost::Message as _;
use proto::etcdserverpb as pb;
use serde_json::{Value, json};

use crate::durations;
use crate::metrics::{Single, family, label};

/// Time that one observation stands for.
const QUANTUM: Duration = Duration::from_millis(1);
/// What a call costs beside what is measured of it: HTTP/2, decoding, the log. Measured for puts and small ranges.
const CALL: Duration = Duration::from_micros(15);
/// Names that a sketch holds.
const NAMES: usize = 64;
/// How long observations count: until this has passed once or twice.
const WINDOW: Duration = Duration::from_secs(60);
/// Of each sketch, so many names are in `/metrics`, and on the page.
const SHOWN: usize = 10;
/// A name is cut off here.
const NAME_BYTES: usize = 64;

/// By what work is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum By {
    /// The client's address, without its port.
    Client,
    /// The RPC.
    Method,
    /// Who the client was found to be, with authentication.
    User,
    /// Where in the key space; see [`prefix`].
    Prefix,
}

impl By {
    const ALL: [By; 4] = [By::Client, By::Method, By::User, By::Prefix];

    /// What everybody may see. While there are users, their names and those of keys are nobody else's business.
    fn shown(is_guarded: bool) -> &'static [By] {
        if is_guarded { &Self::ALL[..2] } else { &Self::ALL }
    }

    fn name(self) -> &'static str {
        ["client", "method", "user", "prefix"][self as usize]
    }
}

/// One thread's unfinished quantum.
#[derive(Debug, Default)]
pub struct Stint(Single);

impl Stint {
    /// Adds a call for which so much work was measured. Answers how many quanta it stands for: nearly always none.
    pub fn add(&self, measured: Duration) -> u64 {
        let quantum = QUANTUM.as_nanos() as u64;
        let nanos = self.0.get() + u64::try_from((CALL + measured).as_nanos()).unwrap_or(u64::MAX / 2);
        self.0.set(nanos % quantum);
        nanos / quantum
    }
}

/// The names that the most quanta were counted for.
#[derive(Debug, Default)]
struct Sketch(Vec<(String, u64)>);

impl Sketch {
    fn add(&mut self, name: &str, quanta: u64) {
        if let Some((_, count)) = self.0.iter_mut().find(|(known, _)| known == name) {
            *count += quanta;
        } else if self.0.len() < NAMES {
            self.0.push((name.to_owned(), quanta));
        } else if let Some(least) = self.0.iter_mut().min_by_key(|(_, count)| *count) {
            // It may have been here before: counts are never too small, and too large by no more than the least.
            *least = (name.to_owned(), least.1 + quanta);
        }
    }
}

#[derive(Debug)]
struct Window {
    since: Instant,
    sketches: [Sketch; By::ALL.len()],
}

impl Window {
    fn new(since: Instant) -> Self {
        Self { since, sketches: Default::default() }
    }
}

/// What was observed lately.
#[derive(Debug)]
pub struct Load {
    /// The window that is filled and the one before it.
    windows: Mutex<(Window, Option<Window>)>,
}

impl Default for Load {
    fn default() -> Self {
        Self { windows: Mutex::new((Window::new(Instant::now()), None)) }
    }
}

/// A name and the time that was spent for it in a second, in seconds.
type Talker = (String, f64);

impl Load {
    /// So many quanta were spent for these.
    pub fn spent(&self, quanta: u64, names: &[(By, &str)], now: Instant) {
        let mut windows = self.windows.lock();
        let (current, last) = &mut *windows;
        if now.saturating_duration_since(current.since) >= WINDOW {
            *last = Some(std::mem::replace(current, Window::new(now)));
        }
        for (by, name) in names {
            current.sketches[*by as usize].add(name, quanta);
        }
    }

    /// Who caused the most work, most first.
    fn top(&self, by: By, now: Instant) -> Vec<Talker> {
        let windows = self.windows.lock();
        let (current, last) = &*windows;
        // What ended long before nothing was observed any more is of no interest.
        let last = last.as_ref().filter(|_| now.saturating_duration_since(current.since) < WINDOW);
        let mut quanta = BTreeMap::<&str, u64>::new();
        for window in last.into_iter().chain([current]) {
            for (name, count) in &window.sketches[by as usize].0 {
                *quanta.entry(name).or_default() += count;
            }
        }
        let since = last.map_or(current.since, |last| last.since);
        let seconds = now.saturating_duration_since(since).as_secs_f64().max(1.0);
        let rate = |(name, quanta): (&str, u64)| (name.to_owned(), quanta as f64 * QUANTUM.as_secs_f64() / seconds);
        let mut talkers: Vec<Talker> = quanta.into_iter().map(rate).collect();
        talkers.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        talkers.truncate(SHOWN);
        talkers
    }

    /// For tools.
    pub(crate) fn json(&self, now: Instant, is_guarded: bool) -> Value {
        let list = |by: By| {
            let talkers = self.top(by, now).into_iter();
            let talkers: Vec<Value> = talkers.map(|(name, busy)| json!({ "name": name, "busy": busy })).collect();
            (by.name().to_owned(), Value::from(talkers))
        };
        Value::Object(By::shown(is_guarded).iter().copied().map(list).collect())
    }

    /// For people.
    pub(crate) fn html(&self, now: Instant, is_guarded: bool) -> String {
        let mut page = String::from(
            "<!DOCTYPE html><meta charset=\"utf-8\"><title>Load</title><style>body{font-family:sans-serif;margin:2em}\
             td{padding-right:2em}</style><h1>Who causes load</h1><p>Time spent in a second, over the last minute or two. \
             The same for tools: <a href=\"?format=json\">JSON</a>.</p>",
        );
        for &by in By::shown(is_guarded) {
            page.push_str(&format!("<h2>By {}</h2><table>", by.name()));
            for (name, busy) in self.top(by, now) {
                page.push_str(&format!("<tr><td>{:.1} ms</td><td>{}</td></tr>", busy * 1000.0, escaped(&name)));
            }
            page.push_str("</table>");
        }
        page
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The part of the key space that a key is in: up to its third slash, as in `/registry/pods/`; without slashes, its first bytes.
pub fn prefix(key: &[u8]) -> String {
    let slashes = key.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(place, _)| place + 1);
    let end = slashes.take(3).last().unwrap_or(8).min(NAME_BYTES).min(key.len());
    key[..end].escape_ascii().to_string()
}

/// The key that a log entry is about, the first of them if there are several.
pub fn key_of_entry(data: &Bytes) -> Option<Bytes> {
    let request = pb::InternalRaftRequest::decode(data.clone()).ok()?;
    let put = request.put.map(|put| put.key);
    put.or(request.delete_range.map(|delete| delete.key)).or_else(|| key_of_txn(&request.txn?))
}

/// The first key in a transaction.
pub(crate) fn key_of_txn(txn: &pb::TxnRequest) -> Option<Bytes> {
    use pb::request_op::Request;
    let op = txn.success.iter().chain(&txn.failure).find_map(|op| match op.request.as_ref()? {
        Request::RequestPut(put) => Some(put.key.clone()),
        Request::RequestRange(range) => Some(range.key.clone()),
        Request::RequestDeleteRange(delete) => Some(delete.key.clone()),
        Request::RequestTxn(txn) => key_of_txn(txn),
    });
    op.or_else(|| txn.compare.first().map(|compare| compare.key.clone()))
}

const NAME: &str = "keelson_load_busy_ratio";
const HELP: &str = "Time spent in a second for those that the most is spent for, over the last minute or two.";

/// Shows [`Load`]. Users and prefixes are only on the page: a series for each that ever was would be too many.
pub(crate) struct LoadCollector {
    load: std::sync::Arc<Load>,
    desc: Desc,
}

impl LoadCollector {
    pub(crate) fn new(load: std::sync::Arc<Load>) -> Self {
        Self { load, desc: durations::desc(NAME, HELP, &["by", "name"]) }
    }
}

impl Collector for LoadCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<wire::MetricFamily> {
        let now = Instant::now();
        let mut metrics = Vec::new();
        for by in [By::Client, By::Method] {
            for (name, busy) in self.load.top(by, now) {
                let mut gauge = wire::Gauge::default();
                gauge.set_value(busy);
                let mut metric = wire::Metric::from_label(vec![label("by", by.name()), label("name", &name)]);
                metric.set_gauge(gauge);
                metrics.push(metric);
            }
        }
        if metrics.is_empty() { Vec::new() } else { vec![family(NAME, HELP, wire::MetricType::GAUGE, metrics)] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_calls_are_seen_in_proportion_and_long_ones_always() {
        let stint = Stint::default();
        let small: u64 = (0..10_000).map(|_| stint.add(Duration::from_micros(5))).sum();
        assert_eq!(small, 200, "10,000 calls of 20 us are 200 ms");
        assert!(stint.add(Duration::from_millis(50)) >= 50);
    }

    #[test]
    fn who_causes_much_is_found_among_many_who_cause_little() {
        let (load, now) = (Load::default(), Instant::now());
        for number in 0..1000 {
            load.spent(1, &[(By::Client, &format!("10.0.{}.{}", number / 250, number % 250))], now);
            load.spent(1, &[(By::Client, "10.9.9.9")], now);
        }
        let top = load.top(By::Client, now);
        assert_eq!((top[0].0.as_str(), top.len()), ("10.9.9.9", SHOWN));
        assert!(load.windows.lock().0.sketches[By::Client as usize].0.len() <= NAMES);
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let (load, now) = (Load::default(), Instant::now());
        load.spent(5, &[(By::Method, "Put")], now);
        load.spent(5, &[(By::Method, "Range")], now + WINDOW);
        assert_eq!(load.top(By::Method, now + WINDOW).len(), 2, "the window before still counts");
        load.spent(5, &[(By::Method, "Txn")], now + 2 * WINDOW);
        let names: Vec<String> = load.top(By::Method, now + 2 * WINDOW).into_iter().map(|(name, _)| name).collect();
        assert!(!names.contains(&"Put".to_owned()), "{names:?}");
    }

    #[test]
    fn keys_are_told_apart_by_the_begin_of_their_path() {
        assert_eq!(prefix(b"/registry/pods/default/a"), "/registry/pods/");
        assert_eq!(prefix(b"/registry/pods"), "/registry/");
        assert_eq!(prefix(b"a/b"), "a/");
        assert_eq!(prefix(b"0123456789"), "01234567");
        assert_eq!(prefix(b"\xff"), "\\xff");
        assert_eq!(prefix(b""), "");
        assert!(prefix(&[b'/'; 1000]).len() <= NAME_BYTES);
    }

    #[test]
    fn the_page_shows_no_markup_of_a_clients_choice() {
        let load = Load::default();
        load.spent(1, &[(By::Prefix, "<script>")], Instant::now());
        assert!(!load.html(Instant::now(), false).contains("<script>"));
        assert!(load.html(Instant::now(), false).contains("&lt;script&gt;"));
        assert!(!load.html(Instant::now(), true).contains("script"), "keys are not shown while there are users");
    }
}
