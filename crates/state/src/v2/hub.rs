//! What has happened lately, and who waits for what will.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::HISTORY;
use super::error::{Code, Error};
use super::event::{Action, Event};

/// Events that a watch may be behind; beyond that it ends.
const BEHIND: usize = 100;

/// The events of the past and the watches for the future.
#[derive(Debug, Default)]
pub(super) struct Hub {
    history: VecDeque<Arc<Event>>,
    /// The newest index.
    index: u64,
    /// By path, in the order of their beginning.
    watches: HashMap<String, BTreeMap<u64, Arc<Slot>>>,
    next_id: u64,
    count: u64,
}

/// One watch.
#[derive(Debug)]
struct Slot {
    since: u64,
    recursive: bool,
    stream: bool,
    inbox: Mutex<Inbox>,
}

#[derive(Debug, Default)]
struct Inbox {
    events: VecDeque<Arc<Event>>,
    ended: bool,
    waker: Option<Waker>,
}

impl Slot {
    /// Hands an event over if the watch is for it. Says so, and whether the watch goes on.
    fn take(&self, event: &Arc<Event>, on_path: bool, gone: bool) -> (bool, bool) {
        if !(self.recursive || on_path || gone) || event.index() < self.since {
            return (false, true);
        }
        let mut inbox = self.inbox.lock();
        let fits = inbox.events.len() < BEHIND;
        if fits {
            inbox.events.push_back(event.clone());
        } else {
            inbox.ended = true;
        }
        let waker = inbox.waker.take();
        drop(inbox);
        if let Some(waker) = waker {
            waker.wake();
        }
        (true, fits && self.stream)
    }

    /// The watch comes to its end.
    fn end(&self) {
        let mut inbox = self.inbox.lock();
        inbox.ended = true;
        let waker = inbox.waker.take();
        drop(inbox);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Whether a key below `watched` is hidden from it: one of the names in between begins with an underscore.
fn is_hidden(watched: &str, key: &str) -> bool {
    key.get(watched.len()..).is_some_and(|below| {
        let clean = super::tree::clean(below);
        clean.contains("/_")
    })
}

impl Hub {
    pub(super) fn new(history: VecDeque<Arc<Event>>, index: u64) -> Self {
        Self { history, index, ..Self::default() }
    }

    pub(super) fn watchers(&self) -> u64 {
        self.count
    }

    pub(super) fn history(&self) -> Vec<Arc<Event>> {
        self.history.iter().cloned().collect()
    }

    /// Takes over another hub's past; the watches stay. What has happened there since the newest event here is told as if
    /// it happened now; who might miss something because the past does not reach back so far is not told to go on waiting.
    pub(super) fn take_history(&mut self, other: &mut Hub) {
        let known = std::mem::replace(&mut self.index, other.index);
        let known = if mutant::on(mutant::V2InstallSilent) { other.index } else { known };
        self.history = std::mem::take(&mut other.history);
        let missed: Vec<Arc<Event>> = self.history.iter().filter(|event| event.index() > known).cloned().collect();
        if missed.first().is_none_or(|event| event.index() > known + 1) && self.index > known {
            let oldest = missed.first().map_or(self.index + 1, |event| event.index());
            self.end_before(oldest);
        }
        for event in missed.iter().filter(|event| !event.refresh) {
            // An event does not say which paths went with its directory; it is enough to know those that somebody watches.
            let is_gone =
                event.node.dir && matches!(event.action, Action::Delete | Action::CompareAndDelete | Action::Expire);
            let below = format!("{}/", event.node.key);
            let mut removed: Vec<String> =
                self.watches.keys().filter(|path| path.starts_with(&below)).cloned().collect();
            removed.sort_unstable();
            self.tell_all(event, if is_gone { &removed } else { &[] });
        }
    }

    /// Ends the watches that want to know of something before an index. Who waits for what is still to come, because it has
    /// heard of more elsewhere than this member knew, misses nothing.
    fn end_before(&mut self, oldest: u64) {
        let mut ended = 0;
        self.watches.retain(|_, watches| {
            watches.retain(|_, slot| {
                let goes_on = slot.since >= oldest;
                if !goes_on {
                    slot.end();
                    ended += 1;
                }
                goes_on
            });
            !watches.is_empty()
        });
        self.count -= ended;
    }

    /// Adds an event and tells those who wait for it. `removed` are the paths that are gone with it.
    pub(super) fn publish(&mut self, event: &Arc<Event>, removed: &[String]) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(event.clone());
        self.index = event.index();
        if (!event.refresh || mutant::on(mutant::V2RefreshTells)) && !self.watches.is_empty() {
            self.tell_all(event, removed);
        }
    }

    fn tell_all(&mut self, event: &Arc<Event>, removed: &[String]) {
        for path in removed {
            self.tell(event, path, true);
        }
        let key = &event.node.key;
        self.tell(event, "/", false);
        for (at, _) in key.match_indices('/').skip(1) {
            self.tell(event, &key[..at], false);
        }
        if key != "/" {
            self.tell(event, key, false);
        }
    }

    fn tell(&mut self, event: &Arc<Event>, path: &str, gone: bool) {
        let Some(watches) = self.watches.get_mut(path) else { return };
        let on_path = event.node.key == path;
        if !on_path && !mutant::on(mutant::V2HiddenShown) && is_hidden(path, &event.node.key) {
            return;
        }
        let before = watches.len();
        watches.retain(|_, slot| {
            let (_, goes_on) = slot.take(event, on_path, gone);
            goes_on
        });
        self.count -= (before - watches.len()) as u64;
        if watches.is_empty() {
            self.watches.remove(path);
        }
    }

    /// The first event of the past that such a watch is for.
    fn scan(&self, path: &str, recursive: bool, since: u64) -> Result<Option<Arc<Event>>, Error> {
        let oldest = self.history.front().map_or(0, |event| event.index());
        if since < oldest {
            let cause = format!("the requested history has been cleared [{oldest}/{since}]");
            return Err(Error::new(Code::EventIndexCleared, cause, self.index));
        }
        let below = if path == "/" { path.to_owned() } else { format!("{path}/") };
        let from = self.history.partition_point(|event| event.index() < since);
        let found = self.history.range(from..).find(|event| {
            let key = event.node.key.as_str();
            let above = matches!(event.action, Action::Delete | Action::Expire)
                && event.prev.as_ref().is_some_and(|prev| prev.dir && path.starts_with(prev.key.as_str()));
            !event.refresh && (key == path || (recursive && key.starts_with(&below)) || above)
        });
        Ok(found.cloned())
    }

    pub(super) fn watch(
        this: &Arc<Mutex<Self>>,
        path: &str,
        recursive: bool,
        stream: bool,
        since: u64,
    ) -> Result<Watch, Error> {
        let mut hub = this.lock();
        let start_index = hub.index;
        let since = if since == 0 { start_index + 1 } else { since };
        let known = hub.scan(path, recursive, since)?;
        let slot = Arc::new(Slot { since, recursive, stream, inbox: Mutex::default() });
        let registered = if let Some(event) = known {
            slot.inbox.lock().events.push_back(event);
            None
        } else {
            let id = hub.next_id;
            hub.next_id += 1;
            hub.count += 1;
            hub.watches.entry(path.to_owned()).or_default().insert(id, slot.clone());
            Some((path.to_owned(), id))
        };
        Ok(Watch { start_index, slot, registered, hub: this.clone() })
    }

    fn forget(&mut self, path: &str, id: u64) {
        let Some(watches) = self.watches.get_mut(path) else { return };
        if watches.remove(&id).is_some() {
            self.count -= 1;
        }
        if watches.is_empty() {
            self.watches.remove(path);
        }
    }
}

/// A watch. It ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    /// The index when it began.
    pub start_index: u64,
    slot: Arc<Slot>,
    /// Under which path and number it is registered; not if the past had its event.
    registered: Option<(String, u64)>,
    hub: Arc<Mutex<Hub>>,
}

impl Watch {
    /// The next event; `None` once the watch has fallen too far behind and ended.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Arc<Event>>> {
        let mut inbox = self.slot.inbox.lock();
        if let Some(event) = inbox.events.pop_front() {
            return Poll::Ready(Some(event));
        }
        if inbox.ended {
            return Poll::Ready(None);
        }
        match &mut inbox.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            waker => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some((path, id)) = &self.registered {
            self.hub.lock().forget(path, *id);
        }
    }
}
