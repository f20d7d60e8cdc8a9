//! The counters of `/v2/stats/store`.

use std::sync::atomic::{AtomicU64, Ordering};

/// What is counted, in etcd's order.
#[derive(Clone, Copy, Debug)]
pub(super) enum Counter {
    GetsSuccess,
    GetsFail,
    SetsSuccess,
    SetsFail,
    DeleteSuccess,
    DeleteFail,
    UpdateSuccess,
    UpdateFail,
    CreateSuccess,
    CreateFail,
    CompareAndSwapSuccess,
    CompareAndSwapFail,
    CompareAndDeleteSuccess,
    CompareAndDeleteFail,
    ExpireCount,
}

/// Their names on the wire; `watchers` follows.
const NAMES: [&str; 15] = [
    "getsSuccess",
    "getsFail",
    "setsSuccess",
    "setsFail",
    "deleteSuccess",
    "deleteFail",
    "updateSuccess",
    "updateFail",
    "createSuccess",
    "createFail",
    "compareAndSwapSuccess",
    "compareAndSwapFail",
    "compareAndDeleteSuccess",
    "compareAndDeleteFail",
    "expireCount",
];

/// This member's counts. Writes are the same everywhere; reads are counted where they are answered.
#[derive(Debug, Default)]
pub(super) struct Stats([AtomicU64; NAMES.len()]);

impl Stats {
    pub(super) fn count(&self, counter: Counter) {
        self.0[counter as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Counters {
        let mut counts = [0; NAMES.len()];
        for (count, counter) in counts.iter_mut().zip(&self.0) {
            *count = counter.load(Ordering::Relaxed);
        }
        Counters { counts, watchers: 0 }
    }

    pub(super) fn replace(&self, counters: &Counters) {
        for (counter, count) in self.0.iter().zip(counters.counts) {
            counter.store(count, Ordering::Relaxed);
        }
    }
}

/// The counts at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub(super) counts: [u64; NAMES.len()],
    /// Watches that are open.
    pub watchers: u64,
}

impl Counters {
    /// As `/v2/stats/store` and snapshots have them.
    pub fn to_json(&self) -> String {
        let mut out = String::with_capacity(384);
        for (name, count) in NAMES.iter().zip(&self.counts) {
            out.push_str(if out.is_empty() { "{\"" } else { ",\"" });
            out.push_str(name);
            out.push_str(&format!("\":{count}"));
        }
        out.push_str(&format!(",\"watchers\":{}}}", self.watchers));
        out
    }

    /// Reads them; what is missing is 0. Watches end with the member that served them.
    pub(super) fn from_json(json: &serde_json::Value) -> Self {
        let mut counters = Self::default();
        for (count, name) in counters.counts.iter_mut().zip(NAMES) {
            *count = json.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
        }
        counters
    }
}
