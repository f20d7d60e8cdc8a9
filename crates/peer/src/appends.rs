//! Statistics of appends, the messages by which a leader replicates its log: how many go and come, how fast, and how long
//! each follower's take to leave. What etcd shows under `/v2/stats`.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prost::Message as _;
use proto::raftpb::{Message, MessageType};

/// Rates are worked out over so many messages, as in etcd.
const WINDOW: usize = 200;
/// Once nothing has gone for so long, the rate is 0.
const QUIET: Duration = Duration::from_secs(1);

/// Whether a message is one of those that are counted.
pub(crate) fn is_append(message: &Message) -> bool {
    message.r#type() == MessageType::MsgApp
}

/// Appends in one direction, all peers together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AppendRate {
    /// Since the start.
    pub count: u64,
    /// Over the last 200 of them; 0 if the last was more than a second ago.
    pub messages_per_second: f64,
    /// The same in encoded bytes.
    pub bytes_per_second: f64,
}

/// How long appends to a follower took to leave: on a stream from being queued to being written, as a post until it was
/// answered. In milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AppendLatency {
    /// The last one's.
    pub current_ms: f64,
    /// The mean of all.
    pub average_ms: f64,
    /// The root of their variance.
    pub standard_deviation_ms: f64,
    /// The shortest; 2^63 before there was any, as in etcd.
    pub minimum_ms: f64,
    /// The longest.
    pub maximum_ms: f64,
    /// Posts that failed.
    pub fail: u64,
    /// Appends that left.
    pub success: u64,
}

/// A sum from which [`AppendLatency`] is worked out.
#[derive(Clone, Copy, Debug)]
struct Latencies {
    current: f64,
    sum: f64,
    sum_of_squares: f64,
    minimum: f64,
    maximum: f64,
    fail: u64,
    success: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        let minimum = (1_u64 << 63) as f64;
        Self { current: 0.0, sum: 0.0, sum_of_squares: 0.0, minimum, maximum: 0.0, fail: 0, success: 0 }
    }
}

impl Latencies {
    fn add(&mut self, took: Duration) {
        let ms = took.as_secs_f64() * 1_000.0;
        self.current = ms;
        self.sum += ms;
        self.sum_of_squares += ms * ms;
        self.minimum = self.minimum.min(ms);
        self.maximum = self.maximum.max(ms);
        self.success += 1;
    }

    fn shown(&self) -> AppendLatency {
        let count = self.success.max(1) as f64;
        let average = self.sum / count;
        // Rounding may take a variance of nothing below zero.
        let variance = (self.sum_of_squares / count - average * average).max(0.0);
        AppendLatency {
            current_ms: self.current,
            average_ms: average,
            standard_deviation_ms: variance.sqrt(),
            minimum_ms: self.minimum,
            maximum_ms: self.maximum,
            fail: self.fail,
            success: self.success,
        }
    }
}

/// The last messages of one direction.
#[derive(Debug, Default)]
struct Window {
    count: u64,
    messages: VecDeque<(Instant, usize)>,
    bytes: usize,
}

impl Window {
    fn add(&mut self, at: Instant, bytes: usize) {
        if self.messages.len() == WINDOW {
            let (_, oldest) = self.messages.pop_front().unwrap_or((at, 0));
            self.bytes -= oldest;
        }
        self.messages.push_back((at, bytes));
        self.bytes += bytes;
        self.count += 1;
    }

    fn rate(&self, now: Instant) -> AppendRate {
        let quiet = AppendRate { count: self.count, ..AppendRate::default() };
        let (Some((first, _)), Some((last, _))) = (self.messages.front(), self.messages.back()) else { return quiet };
        let seconds = last.saturating_duration_since(*first).as_secs_f64();
        if now.saturating_duration_since(*last) > QUIET || seconds == 0.0 {
            return quiet;
        }
        AppendRate {
            messages_per_second: self.messages.len() as f64 / seconds,
            bytes_per_second: self.bytes as f64 / seconds,
            ..quiet
        }
    }
}

/// All that is counted. Written by the peer thread, read by whoever asks.
#[derive(Debug, Default)]
pub(crate) struct Appends {
    sent: Mutex<Window>,
    received: Mutex<Window>,
    /// By follower; who is removed is forgotten, as by 3.4.23.
    followers: Mutex<BTreeMap<u64, Latencies>>,
}

impl Appends {
    /// There is a follower, to which nothing has been sent yet.
    pub(crate) fn begin(&self, id: u64) {
        self.followers.lock().entry(id).or_default();
    }

    /// A peer was removed; what still comes of what was on its way is not counted.
    pub(crate) fn end(&self, id: u64) {
        self.followers.lock().remove(&id);
    }

    /// An append was given to a peer's queue.
    pub(crate) fn queued(&self, bytes: usize) {
        self.sent.lock().add(Instant::now(), bytes);
    }

    /// An append left.
    pub(crate) fn left(&self, id: u64, took: Duration) {
        if let Some(latencies) = self.followers.lock().get_mut(&id) {
            latencies.add(took);
        }
    }

    /// An append could not be delivered.
    pub(crate) fn failed(&self, id: u64) {
        if let Some(latencies) = self.followers.lock().get_mut(&id) {
            latencies.fail += 1;
        }
    }

    /// Messages have arrived.
    pub(crate) fn received(&self, messages: &[Message]) {
        for append in messages.iter().filter(|message| is_append(message)) {
            self.received.lock().add(Instant::now(), append.encoded_len());
        }
    }

    /// What was received and what was sent.
    pub(crate) fn rates(&self) -> (AppendRate, AppendRate) {
        let now = Instant::now();
        (self.received.lock().rate(now), self.sent.lock().rate(now))
    }

    pub(crate) fn latencies(&self) -> Vec<(u64, AppendLatency)> {
        self.followers.lock().iter().map(|(id, latencies)| (*id, latencies.shown())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_those_of_the_textbook() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.shown().minimum_ms, 9_223_372_036_854_775_808.0, "nothing was sent");
        for ms in [2, 4, 4, 4, 5, 5, 7, 9] {
            latencies.add(Duration::from_millis(ms));
        }
        let shown = latencies.shown();
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(near(shown.average_ms, 5.0) && near(shown.standard_deviation_ms, 2.0), "{shown:?}");
        assert!(near(shown.minimum_ms, 2.0) && near(shown.maximum_ms, 9.0) && near(shown.current_ms, 9.0));
        assert_eq!((shown.success, shown.fail), (8, 0));
    }

    #[test]
    fn who_was_removed_is_no_longer_shown() {
        let appends = Appends::default();
        appends.begin(1);
        appends.begin(2);
        appends.end(1);
        appends.left(1, Duration::from_millis(1));
        appends.failed(1);
        assert_eq!(appends.latencies().into_iter().map(|(id, _)| id).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn a_rate_covers_the_last_messages_and_ends_with_quiet() {
        let start = Instant::now();
        let mut window = Window::default();
        assert_eq!(window.rate(start), AppendRate::default());
        // Two slow ones that are pushed out by two hundred, 10 ms apart.
        window.add(start, 1 << 20);
        window.add(start + Duration::from_secs(100), 1 << 20);
        let mut last = start;
        for n in 0..WINDOW as u64 {
            last = start + Duration::from_secs(200) + Duration::from_millis(10 * n);
            window.add(last, 50);
        }
        let rate = window.rate(last);
        assert_eq!(rate.count, 202);
        assert!((rate.messages_per_second - 200.0 / 1.99).abs() < 1e-6, "{rate:?}");
        assert!((rate.bytes_per_second - 50.0 * 200.0 / 1.99).abs() < 1e-6, "{rate:?}");
        let later = window.rate(last + Duration::from_millis(1_001));
        assert_eq!(later, AppendRate { count: 202, ..AppendRate::default() });
    }

    #[test]
    fn a_single_message_has_no_rate() {
        let mut window = Window::default();
        let now = Instant::now();
        window.add(now, 50);
        assert_eq!(window.rate(now), AppendRate { count: 1, ..AppendRate::default() });
    }
}
