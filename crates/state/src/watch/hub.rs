//! The feed of events and the hub that hands them to watchers.

use std::sync::Arc;

use bytes::Bytes;

use crate::Reader;

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
pub struct Events(Vec<Bytes>);

impl Events {
    /// The framed events in revision order.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.0.iter()
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Bytes of all frames together.
    pub fn encoded_len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
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
#[derive(Clone, Debug)]
pub struct StreamOutput {
    /// The stream.
    pub stream: StreamId,
    /// Its responses in order.
    pub items: Vec<Output>,
}

/// Hands the feed's events to the watchers of one API worker. Not shared; polled by its owner.
#[derive(Debug)]
pub struct Hub {}

#[allow(unused_variables)]
impl Hub {
    /// A hub without watchers. `wake` is called (on the applying thread; it must only wake) when events arrive after
    /// [`Hub::arm`]. `progress_interval_ms`: see `progress_notify`.
    pub fn new(reader: &Reader, wake: Arc<dyn Fn() + Send + Sync>, progress_interval_ms: u64) -> Self {
        todo!()
    }
    /// Adds a watcher; the answer to send is returned, events come from [`Hub::poll`].
    pub fn create(&mut self, stream: StreamId, create: WatchCreate) -> Vec<Output> {
        todo!()
    }
    /// Removes a watcher. An unknown one gives no answer.
    pub fn cancel(&mut self, stream: StreamId, watch_id: i64) -> Option<Output> {
        todo!()
    }
    /// Removes a stream and all its watchers.
    pub fn close(&mut self, stream: StreamId) {
        todo!()
    }
    /// Says whether the stream can take more. One that cannot is detached: it gets nothing and costs no memory until it
    /// is ready again, and then catches up from history.
    pub fn set_ready(&mut self, stream: StreamId, ready: bool) {
        todo!()
    }
    /// Asks for a progress notification (`watch_id` -1) of the whole stream; the next poll gives it if all its
    /// watchers are up to date then.
    pub fn request_progress(&mut self, stream: StreamId) {
        todo!()
    }
    /// Takes new events and catches laggards up, about `budget` events at most. Second value: whether there is more to
    /// do right away (poll again after giving others a turn).
    pub fn poll(&mut self, budget: usize) -> (Vec<StreamOutput>, bool) {
        todo!()
    }
    /// Asks to be woken at the next publish. `false`: something is there already, poll instead.
    pub fn arm(&mut self) -> bool {
        todo!()
    }
    /// Gives the progress notifications that are due; call about every 100 ms.
    pub fn tick(&mut self, now_ms: u64) -> Vec<StreamOutput> {
        todo!()
    }
    /// How many watchers there are, and how many of them lag behind or are detached.
    pub fn watchers(&self) -> (usize, usize) {
        todo!()
    }
}
