//! A client that watches through all kills: whenever the stream breaks, it goes on after the last revision it saw.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use proto::etcdserverpb::WatchCreateRequest;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::mvccpb::Event;
use proto::mvccpb::event::EventType;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::differential::WatchStream;
use crate::harness::connect;

/// Pause before the next try to reach a server that is down.
const TRY_AGAIN: Duration = Duration::from_millis(10);
/// Pause between two looks at what a watcher has seen.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// What a watcher asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Every event.
    All,
    /// Every event, with the pair before it.
    WithPrevious,
    /// The keys of some writers.
    SomeKeys,
    /// Every put.
    Puts,
}

impl View {
    /// One watcher for each.
    pub const ALL: [View; 4] = [View::All, View::WithPrevious, View::SomeKeys, View::Puts];

    /// Whether this watcher gets the event.
    pub fn shows(self, event: &Event) -> bool {
        let key: &[u8] = event.kv.as_ref().map_or(b"", |pair| &pair.key);
        match self {
            View::All | View::WithPrevious => true,
            View::SomeKeys => key >= &b"writer03/"[..] && key < &b"writer09/"[..],
            View::Puts => event.r#type() == EventType::Put,
        }
    }

    /// The event as this watcher gets it, from one with its previous pair.
    pub fn as_shown(self, event: &Event) -> Event {
        let prev_kv = if self == View::WithPrevious { event.prev_kv.clone() } else { None };
        Event { prev_kv, ..event.clone() }
    }

    fn request(self, start_revision: i64) -> WatchCreateRequest {
        const NODELETE: i32 = 1;
        let (key, range_end) = match self {
            View::SomeKeys => (&b"writer03/"[..], &b"writer09/"[..]),
            _ => (&b"\0"[..], &b"\0"[..]),
        };
        WatchCreateRequest {
            key: Bytes::from_static(key),
            range_end: Bytes::from_static(range_end),
            start_revision,
            prev_kv: self == View::WithPrevious,
            filters: if self == View::Puts { vec![NODELETE] } else { vec![] },
            ..WatchCreateRequest::default()
        }
    }
}

/// A watcher at work.
#[derive(Debug)]
pub struct Watcher {
    view: View,
    /// What it has seen and nobody has looked at, or what went wrong.
    seen: Arc<Mutex<Result<Vec<Event>, String>>>,
    task: JoinHandle<()>,
}

impl Watcher {
    /// Starts to watch from the first revision on; the servers may be started later. It uses one of them until the
    /// stream breaks, then the next.
    pub fn start(servers: Vec<SocketAddr>, view: View, runtime: &Handle) -> Watcher {
        let seen = Arc::new(Mutex::new(Ok(Vec::new())));
        let task = runtime.spawn(watch(servers, view, Arc::clone(&seen)));
        Watcher { view, seen, task }
    }

    /// What it asks for.
    pub fn view(&self) -> View {
        self.view
    }

    /// Waits until the watcher has seen as many events as `expected` has, and compares. Returns their number. What it
    /// has seen beyond is for the next time.
    pub async fn must_have_seen(&self, expected: &[Event], within: Duration) -> Result<u64, String> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let seen = match &mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner) {
                Err(what) => return Err(format!("watcher {:?}: {what}", self.view)),
                Ok(seen) if seen.len() >= expected.len() => seen.drain(..expected.len()).collect(),
                Ok(seen) if tokio::time::Instant::now() > deadline => {
                    let (there, due) = (seen.len(), expected.len());
                    return Err(format!("watcher {:?} has {there} of {due} events after {within:?}", self.view));
                }
                Ok(_) => Vec::new(),
            };
            if seen.len() >= expected.len() {
                if seen != expected {
                    let first = expected.iter().zip(&seen).find(|(expected, event)| expected != event);
                    let (there, due) = (seen.len(), expected.len());
                    return Err(format!("watcher {:?} saw {there} events, not {due}: {first:?}", self.view));
                }
                return Ok(seen.len() as u64);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Watches until something other than a broken connection goes wrong.
async fn watch(servers: Vec<SocketAddr>, view: View, seen: Arc<Mutex<Result<Vec<Event>, String>>>) {
    let mut next_revision = 2;
    for server in servers.into_iter().cycle() {
        if let Ok(client) = connect(server).await
            && let Ok(mut stream) = WatchStream::open(&client).await
            && stream.send(RequestUnion::CreateRequest(view.request(next_revision))).is_ok()
        {
            while let Ok(()) = stream.receive_one().await {
                let events = stream.watches.get_mut(&0).map(|watch| watch.take_events()).unwrap_or_default();
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(ended) = stream.watches.get(&0).and_then(|watch| watch.ended.as_ref()) {
                    *seen = Err(format!("cancelled by the server: {ended:?}"));
                    return;
                }
                for event in events {
                    let at = event.kv.as_ref().map_or(0, |pair| pair.mod_revision);
                    if at < next_revision - 1 {
                        *seen = Err(format!("asked for revision {next_revision} on, got {at}"));
                        return;
                    }
                    next_revision = at + 1;
                    if let Ok(seen) = &mut *seen {
                        seen.push(event);
                    }
                }
            }
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}
