//! Hands events to watchers.
//!
//! A watcher is *synced* when it has been given everything up to the hub's cursor; then each new event finds it, by its
//! key in a hash table or by its range in a tree. One that begins in the past *lags* and catches up in slices, taking
//! turns with other laggards. One whose stream takes no more is *detached*: nothing is kept for it but the revision
//! where it stopped, from where it lags once the stream is ready again.
//!
//! # Invariants
//! - A watcher is given every change of its keys from its start on exactly once, in revision order, a revision always
//!   as a whole.
//! - A response with header revision R comes after every event up to R for that watcher; a progress notification says
//!   just this.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use store::{KeyRange, RangeEnd, Store, StoreError};

use super::catch_up::{History, Interest, Slice, slice_of_feed};
use super::event::Event;
use super::feed::{Feed, Read, Subscription};
use super::ranges::Ranges;
use crate::{Error, Reader};

/// Revisions taken from the feed in one go.
const BATCHES: usize = 1_024;
/// Changes that all laggards together hold on to between their turns.
const MAX_HELD: usize = 256 << 10;

/// What a hub calls its client streams; chosen by its owner.
pub type StreamId = u64;

/// A request to watch.
#[derive(Clone, Debug, Default)]
pub struct WatchCreate {
    /// First key; empty means the key `\0`.
    pub key: Bytes,
    /// As in a range.
    pub range_end: Bytes,
    /// First revision wanted; 0 = from now on.
    pub start_revision: i64,
    /// ID wanted; 0 = choose.
    pub watch_id: i64,
    /// Send a progress notification when nothing was sent for a while.
    pub progress_notify: bool,
    /// Drop PUT events.
    pub no_put: bool,
    /// Drop DELETE events.
    pub no_delete: bool,
    /// Add the previous pair to each event.
    pub prev_kv: bool,
}

/// Events, each framed as field 11 of a `WatchResponse` (tag, length, `mvccpb.Event`): append them as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events(Held);

/// Nearly always there is one event, which then costs no allocation per watcher.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Held {
    #[default]
    None,
    One(Bytes),
    Many(Vec<Bytes>),
}

impl Events {
    /// The framed events in revision order.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.as_slice().iter()
    }

    /// The same as a slice.
    pub fn as_slice(&self) -> &[Bytes] {
        match &self.0 {
            Held::None => &[],
            Held::One(event) => std::slice::from_ref(event),
            Held::Many(events) => events,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// Bytes of all frames together.
    pub fn encoded_len(&self) -> usize {
        self.iter().map(Bytes::len).sum()
    }

    fn push(&mut self, event: Bytes) {
        self.0 = match mem::take(&mut self.0) {
            Held::None => Held::One(event),
            Held::One(first) => Held::Many(vec![first, event]),
            Held::Many(mut events) => {
                events.push(event);
                Held::Many(events)
            }
        };
    }
}

impl From<Vec<Bytes>> for Events {
    fn from(events: Vec<Bytes>) -> Self {
        Self(Held::Many(events))
    }
}

/// One response for one watcher, to be sent in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The watcher; -1 for rejections and for progress of the whole stream.
    pub watch_id: i64,
    /// `header.revision`.
    pub revision: i64,
    /// The rest.
    pub kind: OutputKind,
}

/// What a response says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// `created`.
    Created,
    /// `created` and `canceled` with this reason, watch_id -1.
    Rejected {
        /// `cancel_reason`.
        reason: String,
    },
    /// Events; all of a revision together.
    Events(Events),
    /// No events: everything up to `revision` has been sent.
    Progress,
    /// `canceled`; the watcher is gone.
    Canceled {
        /// `compact_revision`; 0 unless history it needed is gone.
        compact_revision: i64,
        /// `cancel_reason`.
        reason: String,
    },
}

/// What one poll found for one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamOutput {
    /// The stream.
    pub stream: StreamId,
    /// Its responses in order.
    pub items: Vec<Output>,
}

/// Where a watcher stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the index of the synced.
    Synced,
    /// In the queue of laggards.
    Lagging,
    /// Its stream takes no more.
    Detached,
    /// Cancelled, but still in the queue of laggards, which then frees its slot.
    Gone,
}

#[derive(Debug)]
struct Watcher {
    stream: StreamId,
    watch_id: i64,
    interest: Interest,
    place: Place,
    /// Whether it is in the queue of laggards.
    queued: bool,
    /// The first revision it still wants. Of a synced one this only matters while it lies in the future: what comes
    /// next for it is after the hub's cursor.
    next: i64,
    /// The first revision it ever wanted, if it named one: it is not told of progress before that.
    start_revision: i64,
    progress_notify: bool,
    /// Nothing has been sent since the last round of progress notifications.
    quiet: bool,
    /// Events of this poll.
    pending: Events,
    /// What a laggard has looked up already.
    history: Option<History>,
}

#[derive(Debug)]
struct Stream {
    watchers: BTreeMap<i64, u32>,
    /// IDs of watchers that a compaction has ended: etcd does not give them out again on the same stream.
    spent: BTreeSet<i64>,
    next_id: i64,
    ready: bool,
    out: Vec<Output>,
    /// When to look for watchers that want a progress notification.
    progress_due_ms: Option<u64>,
    /// A progress request waits for the next poll.
    asked: bool,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            watchers: BTreeMap::new(),
            spent: BTreeSet::new(),
            next_id: 0,
            ready: true,
            out: Vec::new(),
            progress_due_ms: None,
            asked: false,
        }
    }
}

impl Stream {
    /// Whether a new watcher may not have this ID.
    fn has_used(&self, watch_id: i64) -> bool {
        self.watchers.contains_key(&watch_id) || self.spent.contains(&watch_id)
    }
}

/// Hands the feed's events to the watchers of one API worker. Not shared; polled by its owner.
#[derive(Debug)]
pub struct Hub {
    feed: Feed,
    store: Store,
    subscription: Subscription,
    progress_interval_ms: u64,
    /// Synced watchers have been given everything up to here.
    cursor: i64,
    watchers: Vec<Option<Watcher>>,
    free: Vec<u32>,
    /// Synced watchers of one key.
    keys: HashMap<Bytes, Vec<u32>>,
    /// Synced watchers of ranges.
    ranges: Ranges,
    laggards: VecDeque<u32>,
    /// Changes held in the laggards' histories.
    held: usize,
    streams: HashMap<StreamId, Stream>,
    /// Streams with output, in the order in which they got it.
    speaking: Vec<StreamId>,
    /// Streams that asked for progress.
    asking: Vec<StreamId>,
    total: usize,
    synced: usize,
    /// Scratch space: watchers found for one event.
    found: Vec<u32>,
}

impl Hub {
    /// A hub without watchers. `wake` is called (on the applying thread; it must only wake) when events arrive after
    /// [`Hub::arm`]. `progress_interval_ms`: see [`WatchCreate::progress_notify`].
    pub fn new(reader: &Reader, wake: Arc<dyn Fn() + Send + Sync>, progress_interval_ms: u64) -> Self {
        let feed = reader.feed().clone();
        Self {
            subscription: feed.subscribe(wake),
            store: reader.store().clone(),
            progress_interval_ms,
            cursor: feed.tail(),
            watchers: Vec::new(),
            free: Vec::new(),
            keys: HashMap::new(),
            ranges: Ranges::default(),
            laggards: VecDeque::new(),
            held: 0,
            streams: HashMap::new(),
            speaking: Vec::new(),
            asking: Vec::new(),
            total: 0,
            synced: 0,
            found: Vec::new(),
            feed,
        }
    }

    /// Adds a watcher; the answers to send at once are returned, events come from [`Hub::poll`].
    pub fn create(&mut self, stream_id: StreamId, create: WatchCreate) -> Vec<Output> {
        let revision = self.feed.tail();
        if self.total == 0 {
            // Nobody has been listening.
            self.cursor = revision;
        }
        let rejected = |reason: String| vec![Output { watch_id: -1, revision, kind: OutputKind::Rejected { reason } }];
        // Copied: slices of the request would keep its whole buffer alive as long as the watch.
        let key = if create.key.is_empty() { Bytes::from_static(b"\0") } else { Bytes::copy_from_slice(&create.key) };
        let range = KeyRange::from_wire(key, Bytes::copy_from_slice(&create.range_end));
        if let RangeEnd::Before(end) = &range.end
            && range.start >= *end
        {
            return rejected("mvcc: watcher range is empty".into());
        }
        if create.start_revision < 0 {
            return rejected(Error::Compacted.to_string());
        }
        let stream = self.streams.entry(stream_id).or_default();
        let watch_id = if create.watch_id == 0 {
            while stream.has_used(stream.next_id) {
                stream.next_id += 1;
            }
            stream.next_id += 1;
            stream.next_id - 1
        } else if stream.has_used(create.watch_id) {
            return rejected("mvcc: duplicate watch ID provided on the WatchStream".into());
        } else {
            create.watch_id
        };
        let created = Output { watch_id, revision, kind: OutputKind::Created };
        let mut start_revision = create.start_revision;
        let compact_revision = self.store.compact_revision();
        if mutant::on(mutant::CompactedWatchSilent) && start_revision > 0 {
            start_revision = start_revision.max(compact_revision);
        }
        if start_revision > 0 && start_revision < compact_revision {
            stream.spent.insert(watch_id);
            let kind = OutputKind::Canceled { compact_revision, reason: String::new() };
            return vec![created, Output { watch_id, revision: 0, kind }];
        }
        let interest = Interest { range, no_put: create.no_put, no_delete: create.no_delete, prev_kv: create.prev_kv };
        let watcher = Watcher {
            stream: stream_id,
            watch_id,
            interest,
            place: Place::Detached,
            queued: false,
            next: match start_revision {
                0 => revision + 1,
                start => start + i64::from(mutant::on(mutant::ResumeSkipsOne)),
            },
            start_revision,
            progress_notify: create.progress_notify,
            quiet: true,
            pending: Events::default(),
            history: None,
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.watchers[at as usize] = Some(watcher);
                at
            }
            None => {
                self.watchers.push(Some(watcher));
                (self.watchers.len() - 1) as u32
            }
        };
        stream.watchers.insert(watch_id, at);
        let ready = stream.ready;
        self.total += 1;
        if ready {
            self.attach(at);
        }
        vec![created]
    }

    /// Removes a watcher. An unknown one gives no answer.
    pub fn cancel(&mut self, stream_id: StreamId, watch_id: i64) -> Option<Output> {
        let at = self.streams.get_mut(&stream_id)?.watchers.remove(&watch_id)?;
        self.remove(at);
        let kind = OutputKind::Canceled { compact_revision: 0, reason: String::new() };
        Some(Output { watch_id, revision: self.feed.tail(), kind })
    }

    /// Ends the watchers of a stream whose range fails `check`; the answer says why.
    pub fn end_unless(
        &mut self,
        stream_id: StreamId,
        check: &mut dyn FnMut(&KeyRange) -> Result<(), String>,
    ) -> Vec<Output> {
        let Some(stream) = self.streams.get(&stream_id) else { return Vec::new() };
        let fails = |(&watch_id, &at): (&i64, &u32)| {
            let watcher = self.watchers[at as usize].as_ref()?;
            Some((watch_id, check(&watcher.interest.range).err()?))
        };
        let ended: Vec<(i64, String)> = stream.watchers.iter().filter_map(fails).collect();
        let mut outputs = Vec::new();
        for (watch_id, reason) in ended {
            if let Some(Output { watch_id, revision, .. }) = self.cancel(stream_id, watch_id) {
                outputs.push(Output { watch_id, revision, kind: OutputKind::Canceled { compact_revision: 0, reason } });
            }
        }
        outputs
    }

    /// Removes a stream and all its watchers.
    pub fn close(&mut self, stream_id: StreamId) {
        let Some(stream) = self.streams.remove(&stream_id) else { return };
        for at in stream.watchers.into_values() {
            self.remove(at);
        }
    }

    /// Says whether the stream can take more. One that cannot is detached: it gets nothing and costs no memory until it
    /// is ready again, and then catches up from history. Poll after it has become ready.
    pub fn set_ready(&mut self, stream_id: StreamId, ready: bool) {
        let stream = self.streams.entry(stream_id).or_default();
        if mem::replace(&mut stream.ready, ready) == ready {
            return;
        }
        let watchers: Vec<u32> = stream.watchers.values().copied().collect();
        for at in watchers {
            if ready {
                if mutant::on(mutant::BlockedLosesEvents)
                    && let Some(watcher) = self.watchers[at as usize].as_mut()
                {
                    watcher.next = watcher.next.max(self.cursor + 1);
                }
                self.attach(at);
            } else {
                self.detach(at);
            }
        }
    }

    /// Asks for a progress notification (`watch_id` -1) of the whole stream; the next poll gives it if all its
    /// watchers are up to date then.
    pub fn request_progress(&mut self, stream_id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&stream_id)
            && !mem::replace(&mut stream.asked, true)
        {
            self.asking.push(stream_id);
        }
    }

    /// Takes new events and catches laggards up, about `budget` events at most. Second value: whether there is more to
    /// do right away (poll again after giving others a turn).
    pub fn poll(&mut self, budget: usize) -> (Vec<StreamOutput>, bool) {
        if self.total == 0 {
            self.cursor = self.feed.tail();
            self.laggards.clear();
            self.watchers.clear();
            self.free.clear();
        }
        let mut left = budget.max(1);
        let behind = self.take_new(&mut left);
        // Laggards get a turn even if the new events have used the budget up: they must not starve.
        self.serve_laggards(left.max(budget / 8));
        if !behind {
            self.answer_progress_requests();
        }
        let more = behind || !self.laggards.is_empty();
        (self.take_output(), more)
    }

    /// Asks to be woken at the next publish. `false`: something is there already, poll instead.
    pub fn arm(&mut self) -> bool {
        if !self.laggards.is_empty() || !self.asking.is_empty() {
            return false;
        }
        if self.total == 0 {
            return true; // nobody to wake up for; a first watcher begins at the newest revision
        }
        self.subscription.arm();
        let idle = self.feed.tail() == self.cursor;
        if !idle {
            self.subscription.disarm();
        }
        idle
    }

    /// Gives the progress notifications that are due; call about every 100 ms.
    pub fn tick(&mut self, now_ms: u64) -> Vec<StreamOutput> {
        let mut due: Vec<StreamId> = Vec::new();
        for (id, stream) in &mut self.streams {
            // Up to a tenth more, differing between streams, so that not all are due at the same moment.
            let jitter = self.progress_interval_ms / 10 * (id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) / 256;
            let next = now_ms.saturating_add(self.progress_interval_ms + jitter);
            match stream.progress_due_ms {
                None => stream.progress_due_ms = Some(next),
                Some(at) if at <= now_ms => {
                    stream.progress_due_ms = Some(next);
                    due.push(*id);
                }
                Some(_) => {}
            }
        }
        due.sort_unstable();
        for id in due {
            let watchers: Vec<u32> =
                self.streams.get(&id).map_or_else(Vec::new, |stream| stream.watchers.values().copied().collect());
            for at in watchers {
                let up_to_date = self.is_up_to_date(at);
                let Some(watcher) = self.watchers[at as usize].as_mut() else { continue };
                if watcher.progress_notify && mem::replace(&mut watcher.quiet, true) && up_to_date {
                    let output =
                        Output { watch_id: watcher.watch_id, revision: self.cursor, kind: OutputKind::Progress };
                    self.say(id, output);
                }
            }
        }
        self.take_output()
    }

    /// How many watchers there are, and how many of them lag behind or are detached.
    pub fn watchers(&self) -> (usize, usize) {
        (self.total, self.total - self.synced)
    }
}

impl Hub {
    /// Puts a detached watcher where it belongs now.
    fn attach(&mut self, at: u32) {
        let Some(watcher) = self.watchers[at as usize].as_mut() else { return };
        if watcher.next <= self.cursor {
            watcher.place = Place::Lagging;
            if !mem::replace(&mut watcher.queued, true) {
                self.laggards.push_back(at);
            }
            return;
        }
        watcher.place = Place::Synced;
        self.synced += 1;
        match &watcher.interest.range {
            KeyRange { start, end: RangeEnd::Single } => self.keys.entry(start.clone()).or_default().push(at),
            KeyRange { start, end: RangeEnd::Unbounded } => self.ranges.insert(start, &None, at),
            KeyRange { start, end: RangeEnd::Before(end) } => self.ranges.insert(start, &Some(end.clone()), at),
        }
    }

    /// Takes a watcher out of everything that costs time or memory. A place in the queue of laggards it may keep.
    fn detach(&mut self, at: u32) {
        let Some(watcher) = self.watchers[at as usize].as_mut() else { return };
        if let Some(history) = watcher.history.take() {
            self.held -= history.len();
        }
        if mem::replace(&mut watcher.place, Place::Detached) != Place::Synced {
            return;
        }
        self.synced -= 1;
        watcher.next = watcher.next.max(self.cursor + 1);
        match &watcher.interest.range {
            KeyRange { start, end: RangeEnd::Single } => {
                if let Some(watchers) = self.keys.get_mut(start) {
                    watchers.retain(|other| *other != at);
                    if watchers.is_empty() {
                        self.keys.remove(start);
                    }
                }
            }
            KeyRange { start, end: RangeEnd::Unbounded } => self.ranges.remove(start, &None, at),
            KeyRange { start, end: RangeEnd::Before(end) } => self.ranges.remove(start, &Some(end.clone()), at),
        }
    }

    /// Forgets a watcher that its stream has forgotten already.
    fn remove(&mut self, at: u32) {
        self.detach(at);
        self.total -= 1;
        match self.watchers[at as usize].as_mut() {
            // The slot must not be used again while the queue names it.
            Some(watcher) if watcher.queued => watcher.place = Place::Gone,
            _ => {
                self.watchers[at as usize] = None;
                self.free.push(at);
            }
        }
    }

    fn say(&mut self, stream_id: StreamId, output: Output) {
        let Some(stream) = self.streams.get_mut(&stream_id) else { return };
        if stream.out.is_empty() {
            self.speaking.push(stream_id);
        }
        stream.out.push(output);
    }

    fn take_output(&mut self) -> Vec<StreamOutput> {
        let mut outputs = Vec::with_capacity(self.speaking.len());
        for stream_id in self.speaking.drain(..) {
            if let Some(stream) = self.streams.get_mut(&stream_id) {
                outputs.push(StreamOutput { stream: stream_id, items: mem::take(&mut stream.out) });
            }
        }
        outputs
    }

    /// Gives new events to the synced. Returns whether there are more.
    fn take_new(&mut self, left: &mut usize) -> bool {
        let Read { batches, tail, store } = self.feed.read(self.cursor + 1, i64::MAX, BATCHES, *left);
        let Some(batches) = batches else {
            if mutant::on(mutant::RingOverrunLost) {
                self.cursor = tail;
                return false;
            }
            // The feed has moved on without us: everybody has to catch up from the store.
            let synced: Vec<u32> = (0..self.watchers.len() as u32)
                .filter(|at| self.watchers[*at as usize].as_ref().is_some_and(|w| w.place == Place::Synced))
                .collect();
            for at in &synced {
                self.detach(*at);
            }
            self.cursor = tail;
            for at in synced {
                self.attach(at);
            }
            return false;
        };
        let mut given: Vec<u32> = Vec::new();
        for batch in &batches {
            for event in &batch.events {
                *left = left.saturating_sub(1 + self.give(event, &store, &mut given));
            }
            self.cursor = batch.revision;
            if *left == 0 {
                break;
            }
        }
        for at in given {
            let Some(watcher) = self.watchers[at as usize].as_mut() else { continue };
            let events = mem::take(&mut watcher.pending);
            if !events.is_empty() {
                watcher.quiet = false;
                let (stream, watch_id) = (watcher.stream, watcher.watch_id);
                self.say(stream, Output { watch_id, revision: self.cursor, kind: OutputKind::Events(events) });
            }
        }
        self.cursor < tail
    }

    /// Gives one event to every synced watcher that wants it, and notes those who have something pending now. Returns
    /// how many took it.
    fn give(&mut self, event: &Event, store: &Store, given: &mut Vec<u32>) -> usize {
        let mut found = mem::take(&mut self.found);
        found.clear();
        if let Some(watchers) = self.keys.get(event.key()) {
            found.extend_from_slice(watchers);
        }
        self.ranges.find_containing(event.key(), &mut found);
        for at in &found {
            let Some(watcher) = self.watchers[*at as usize].as_mut() else { continue };
            if event.revision < watcher.next || !watcher.interest.takes(event.deleted) {
                continue;
            }
            match watcher.interest.framed(event, store) {
                Ok(framed) => {
                    if watcher.pending.is_empty() {
                        given.push(*at);
                    }
                    watcher.pending.push(framed);
                }
                Err(error) => {
                    watcher.pending = Events::default();
                    self.fail(*at, &error);
                }
            }
        }
        let count = found.len();
        self.found = found;
        count
    }

    /// Ends a watcher that cannot be given what it is owed.
    fn fail(&mut self, at: u32, error: &StoreError) {
        let Some(watcher) = self.watchers[at as usize].as_ref() else { return };
        let (stream_id, watch_id) = (watcher.stream, watcher.watch_id);
        let kind = match error {
            StoreError::Compacted => {
                OutputKind::Canceled { compact_revision: self.store.compact_revision(), reason: String::new() }
            }
            other => OutputKind::Canceled { compact_revision: 0, reason: other.to_string() },
        };
        if let Some(stream) = self.streams.get_mut(&stream_id) {
            stream.watchers.remove(&watch_id);
            stream.spent.insert(watch_id);
        }
        self.remove(at);
        self.say(stream_id, Output { watch_id, revision: 0, kind });
    }

    /// Gives laggards a slice each, in turn, until the budget is used up or each has had one.
    fn serve_laggards(&mut self, mut left: usize) {
        for _ in 0..self.laggards.len() {
            if left == 0 {
                return;
            }
            let Some(at) = self.laggards.pop_front() else { return };
            let Some(mut watcher) = self.watchers[at as usize].take() else { continue };
            watcher.queued = false;
            if watcher.place == Place::Gone {
                self.free.push(at);
                continue;
            }
            if watcher.place != Place::Lagging {
                self.watchers[at as usize] = Some(watcher);
                continue;
            }
            let slice = self.next_slice(&mut watcher);
            let (stream, watch_id, next) = (watcher.stream, watcher.watch_id, watcher.next);
            watcher.place = Place::Detached;
            match slice {
                Ok(slice) => {
                    assert!(slice.through >= next, "a slice covers at least one revision");
                    left = left.saturating_sub(slice.cost.max(1));
                    watcher.next = slice.through + 1;
                    if !slice.events.is_empty() {
                        watcher.quiet = false;
                        let kind = OutputKind::Events(slice.events.into());
                        self.say(stream, Output { watch_id, revision: slice.through, kind });
                    }
                    self.watchers[at as usize] = Some(watcher);
                    self.attach(at);
                }
                Err(error) => {
                    self.watchers[at as usize] = Some(watcher);
                    self.fail(at, &error);
                }
            }
        }
    }

    /// The next events of a laggard: from the feed if it still holds them, else from the store.
    fn next_slice(&mut self, watcher: &mut Watcher) -> Result<Slice, StoreError> {
        let interest = &watcher.interest;
        if watcher.history.is_none() {
            let Read { batches, store, .. } = self.feed.read(watcher.next, self.cursor, BATCHES, BATCHES);
            if let Some(batches) = batches {
                return slice_of_feed(interest, watcher.next, &batches, &store);
            }
            let history = History::look_up(interest, watcher.next, self.cursor, &store)?;
            self.held += history.len();
            watcher.history = Some(history);
        }
        let Some(mut history) = watcher.history.take() else { return Err(StoreError::Compacted) };
        let before = history.len();
        let slice = history.slice(interest);
        if history.len() == 0 || slice.is_err() || self.held > MAX_HELD {
            // Nothing left, or too much for all together: look the rest up again at the next turn.
            self.held -= before;
        } else {
            self.held -= before - history.len();
            watcher.history = Some(history);
        }
        slice
    }

    /// Whether a watcher has been given everything up to the cursor, and wants to hear of that revision.
    fn is_up_to_date(&self, at: u32) -> bool {
        let watcher = self.watchers[at as usize].as_ref();
        let is_early = mutant::on(mutant::ProgressEarly);
        watcher.is_some_and(|w| (w.place == Place::Synced || is_early) && w.start_revision <= self.cursor)
    }

    /// Answers the streams whose watchers are all up to date; the others get no answer, as in etcd.
    fn answer_progress_requests(&mut self) {
        for stream_id in mem::take(&mut self.asking) {
            let Some(stream) = self.streams.get_mut(&stream_id) else { continue };
            stream.asked = false;
            let watchers: Vec<u32> = stream.watchers.values().copied().collect();
            if !watchers.is_empty() && watchers.iter().all(|at| self.is_up_to_date(*at)) {
                let output = Output { watch_id: -1, revision: self.cursor, kind: OutputKind::Progress };
                self.say(stream_id, output);
            }
        }
    }
}
