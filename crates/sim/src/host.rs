//! One machine as the member on it sees it: clock, tasks, network card.
//!
//! A member never acts on the world directly. What it wants is put into the machine's [`Tray`], from which the world takes it
//! after every turn; so nothing happens in the middle of one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use api::{Answer, PeerTraffic};
use bytes::Bytes;
use disk::MemDisk;
use parking_lot::Mutex;
use peer::{BoxFuture, CallError, RemainingLease};
use proto::raftpb::{Message, MessageType};
use server::host::{Answers, Host, Peers, Pieces};
use state::{Error, Response};
use wal::Entry;

use crate::tasks::Slot;

/// Nanoseconds that a clock gains or loses per millisecond of true time.
pub type Drift = i64;

/// What applying an entry gave.
#[derive(Clone, Debug, PartialEq)]
pub enum Given {
    /// To a request.
    Response(Box<Result<Response, Error>>),
    /// To anything else, printed.
    Other(String),
}

impl Given {
    /// Whether the request was carried out.
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Response(result) if result.is_ok())
    }

    /// Whether the member says that it has no room.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Response(result) if **result == Err(Error::NoSpace))
    }
}

/// A question to another member, outside of raft.
#[derive(Clone, Debug)]
pub enum Question {
    /// Which version is it?
    Version(Slot<Result<peer::Version, CallError>>),
    /// Renew a lease.
    Renew(i64, Slot<Result<i64, CallError>>),
    /// What remains of a lease, and which are its keys?
    Remaining(i64, bool, Slot<Result<RemainingLease, CallError>>),
    /// Promote a learner.
    Promote(u64, Slot<Result<Vec<peer::Member>, CallError>>),
}

impl Question {
    /// Nobody will answer.
    pub fn fail(&self) {
        match self {
            Self::Version(slot) => slot.fill(Err(CallError::TimedOut)),
            Self::Renew(_, slot) => slot.fill(Err(CallError::TimedOut)),
            Self::Remaining(_, _, slot) => slot.fill(Err(CallError::TimedOut)),
            Self::Promote(_, slot) => slot.fill(Err(CallError::TimedOut)),
        }
    }
}

/// What a member has put on the network.
pub enum Outgoing {
    /// A message of consensus, as it travels.
    Message {
        /// The member it is for.
        to: u64,
        /// Encoded.
        bytes: Bytes,
        /// The term in which it gives the receiver a vote, or asks everybody for theirs, which is a vote for the sender.
        vote: Option<u64>,
        /// Whether it must not arrive twice. A forwarded proposal would be carried out twice; between members it is TCP that
        /// keeps it from that, and everything else is indifferent to it.
        once: bool,
    },
    /// A snapshot and the pieces of its file.
    Snapshot {
        /// The message before it.
        message: Box<Message>,
        /// The file; an error if it could not be made.
        file: io::Result<Vec<Bytes>>,
    },
    /// A question to the member at a URL.
    Question {
        /// Where it listens.
        url: String,
        /// What is asked.
        question: Question,
    },
    /// The answer to a question.
    Answer {
        /// To this seat, in this life of its process.
        to: (usize, u64),
        /// Hands it over.
        deliver: Box<dyn FnOnce() + Send>,
    },
}

/// What a member wants of the world, and what it has let the world see.
#[derive(Default)]
pub struct Tray {
    /// Tasks to begin.
    pub tasks: Vec<BoxFuture<()>>,
    /// Who sleeps, and until when by this machine's clock, in microseconds.
    pub sleepers: Vec<(u64, Waker)>,
    /// Work that takes long.
    pub works: Vec<Box<dyn FnOnce() + Send>>,
    /// Messages.
    pub outgoing: Vec<Outgoing>,
    /// Entries that it has learned are committed.
    pub committed: Vec<Entry>,
    /// What it has applied: up to which index, and the answers by request ID.
    pub applied: Vec<(u64, Vec<(u64, Given)>)>,
}

struct Inner {
    /// Local time, in microseconds.
    now_us: u64,
    /// True time at which that was so.
    true_us: u64,
    drift: Drift,
    /// What the clock on the wall is ahead of 2026-01-01, in microseconds; set by whoever sets clocks.
    wall_offset_us: i64,
    tray: Tray,
    /// The members it talks to, where they listen.
    peers: BTreeMap<u64, Vec<String>>,
    /// Since when, by the true clock, messages to and from a member have been getting through.
    connected_us: BTreeMap<u64, u64>,
}

/// The machine, shared between the world and the member on it.
pub struct Machine {
    inner: Mutex<Inner>,
    /// Nothing leaves a machine without power.
    disk: MemDisk,
}

/// 2026-01-01, in seconds since 1970.
const EPOCH_SECONDS: u64 = 1_767_225_600;

impl Machine {
    /// A machine that is switched on at this moment. Its clock shows `boot_us` more than the true time.
    pub fn new(true_us: u64, boot_us: u64, drift: Drift, disk: MemDisk) -> Arc<Self> {
        let inner = Inner {
            now_us: true_us + boot_us,
            true_us,
            drift,
            wall_offset_us: 0,
            tray: Tray::default(),
            peers: BTreeMap::new(),
            connected_us: BTreeMap::new(),
        };
        Arc::new(Self { inner: Mutex::new(inner), disk })
    }

    /// Lets time pass on this machine. Returns its local time in microseconds.
    pub fn advance(&self, true_us: u64) -> u64 {
        let mut inner = self.inner.lock();
        let passed = true_us.saturating_sub(inner.true_us);
        let gained = passed as i64 * inner.drift / 1_000_000;
        inner.now_us += passed.saturating_add_signed(gained);
        inner.true_us = true_us;
        inner.now_us
    }

    /// How much true time passes while this clock advances by so much.
    pub fn true_time(&self, local_us: u64) -> u64 {
        let drift = self.inner.lock().drift;
        (local_us as i64 * 1_000_000 / (1_000_000 + drift)).max(0) as u64
    }

    /// Makes the clock run faster or slower from now on.
    pub fn set_drift(&self, drift: Drift) {
        self.inner.lock().drift = drift;
    }

    /// Sets the clock on the wall.
    pub fn set_wall(&self, offset_us: i64) {
        self.inner.lock().wall_offset_us = offset_us;
    }

    /// What the clock on the wall shows, in nanoseconds since 1970.
    pub fn wall_ns(&self) -> i64 {
        let inner = self.inner.lock();
        let us = EPOCH_SECONDS * 1_000_000 + inner.true_us;
        us.saturating_add_signed(inner.wall_offset_us) as i64 * 1_000
    }

    /// Takes what the member has put out.
    pub fn take(&self) -> Tray {
        std::mem::take(&mut self.inner.lock().tray)
    }

    /// The sleepers whose time has come by this machine's clock; and when the next one's comes.
    pub fn due(&self, sleepers: &mut Vec<(u64, Waker)>) -> Option<u64> {
        let now = self.inner.lock().now_us;
        for (_, waker) in sleepers.extract_if(.., |(until, _)| *until <= now) {
            waker.wake();
        }
        sleepers.iter().map(|(until, _)| until.saturating_sub(now)).min()
    }

    /// Whether it talks to this member.
    pub fn knows(&self, id: u64) -> bool {
        self.inner.lock().peers.contains_key(&id)
    }

    /// Somebody has introduced itself; whom the member does not know, because it is behind, it can answer from now on.
    pub fn remember(&self, id: u64, url: String) {
        self.inner.lock().peers.entry(id).or_insert_with(|| vec![url]);
    }

    /// Whether it talks to this member, and messages get through.
    pub fn reaches(&self, id: u64) -> bool {
        let inner = self.inner.lock();
        inner.peers.contains_key(&id) && inner.connected_us.contains_key(&id)
    }

    /// Says whether messages to and from a member get through.
    pub fn set_connected(&self, id: u64, connected: bool) {
        let inner = &mut *self.inner.lock();
        if connected {
            inner.connected_us.entry(id).or_insert(inner.true_us);
        } else {
            inner.connected_us.remove(&id);
        }
    }

    /// Sends the answer to a question that this life of a process at this seat has asked.
    pub fn answer<T: Send + 'static>(&self, to: (usize, u64), slot: Slot<T>, answer: T) {
        self.put(Outgoing::Answer { to, deliver: Box::new(move || slot.fill(answer)) });
    }

    fn ask<T: Send + 'static>(
        &self,
        url: String,
        question: impl FnOnce(Slot<Result<T, CallError>>) -> Question,
    ) -> BoxFuture<Result<T, CallError>> {
        let slot = Slot::default();
        let question = question(slot.clone());
        self.put(Outgoing::Question { url, question });
        Box::pin(async move { slot.take().await })
    }

    fn put(&self, outgoing: Outgoing) {
        if !self.disk.is_off() {
            self.inner.lock().tray.outgoing.push(outgoing);
        }
    }
}

/// [`Machine`] as its member's [`Host`] and [`Peers`].
pub struct Card(pub Arc<Machine>);

impl Host for Card {
    fn now(&self) -> Duration {
        Duration::from_micros(self.0.inner.lock().now_us)
    }

    fn wall(&self) -> Duration {
        Duration::from_nanos(self.0.wall_ns() as u64)
    }

    fn spawn(&self, task: BoxFuture<()>) {
        self.0.inner.lock().tray.tasks.push(task);
    }

    fn sleep(&self, time: Duration) -> BoxFuture<()> {
        let machine = Arc::clone(&self.0);
        let until = machine.inner.lock().now_us + time.as_micros() as u64;
        Box::pin(std::future::poll_fn(move |cx| {
            let mut inner = machine.inner.lock();
            if inner.now_us >= until {
                return Poll::Ready(());
            }
            inner.tray.sleepers.push((until, cx.waker().clone()));
            Poll::Pending
        }))
    }

    /// Snapshots are not paced here: what their way takes is the network's matter.
    fn block(&self, _: Duration) {}

    fn work(&self, _: &str, work: Box<dyn FnOnce() + Send>) -> bool {
        self.0.inner.lock().tray.works.push(work);
        true
    }

    fn saw_committed(&self, entries: &[Entry]) {
        self.0.inner.lock().tray.committed.extend_from_slice(entries);
    }

    fn saw_applied(&self, index: u64, answers: &Answers) {
        let given = |answer: &Result<Answer, Error>| match answer {
            Ok(Answer::Applied(response)) => Given::Response(Box::new(Ok(response.clone()))),
            Err(error) => Given::Response(Box::new(Err(error.clone()))),
            Ok(other) => Given::Other(format!("{other:?}")),
        };
        let answers = answers.iter().map(|answered| (answered.id, given(&answered.outcome))).collect();
        self.0.inner.lock().tray.applied.push((index, answers));
    }
}

impl Peers for Card {
    fn send(&self, messages: Vec<Message>) {
        for message in messages {
            let bytes = prost::Message::encode_to_vec(&message).into();
            let kind = message.r#type();
            let once = kind == MessageType::MsgProp;
            let votes =
                kind == MessageType::MsgVote || kind == MessageType::MsgVoteResp && !message.reject.unwrap_or(false);
            let vote = message.term.filter(|_| votes);
            self.0.put(Outgoing::Message { to: message.to.unwrap_or(0), bytes, vote, once });
        }
    }

    fn send_snapshot(&self, message: Message, pieces: Pieces) {
        let file = pieces.collect();
        self.0.put(Outgoing::Snapshot { message: Box::new(message), file });
    }

    fn add(&self, id: u64, urls: Vec<String>) {
        self.0.inner.lock().peers.entry(id).or_insert(urls);
    }

    fn update(&self, id: u64, urls: Vec<String>) {
        if let Some(known) = self.0.inner.lock().peers.get_mut(&id) {
            *known = urls;
        }
    }

    fn remove(&self, id: u64) {
        let inner = &mut *self.0.inner.lock();
        inner.peers.remove(&id);
        inner.connected_us.remove(&id);
    }

    fn traffic(&self) -> Vec<PeerTraffic> {
        let inner = self.0.inner.lock();
        let ids: BTreeSet<u64> = inner.peers.keys().copied().collect();
        let traffic = |id: u64| PeerTraffic { id, active: inner.connected_us.contains_key(&id), ..Default::default() };
        ids.into_iter().map(traffic).collect()
    }

    fn connected_for(&self, id: u64) -> Option<Duration> {
        let inner = self.0.inner.lock();
        let since = inner.connected_us.get(&id)?;
        Some(Duration::from_micros(inner.true_us - since))
    }

    fn version(&self, url: String, _: Duration) -> BoxFuture<Result<peer::Version, CallError>> {
        self.0.ask(url, Question::Version)
    }

    fn renew_lease(&self, url: String, id: i64) -> BoxFuture<Result<i64, CallError>> {
        self.0.ask(url, |slot| Question::Renew(id, slot))
    }

    fn remaining_lease(&self, url: String, id: i64, keys: bool) -> BoxFuture<Result<RemainingLease, CallError>> {
        self.0.ask(url, |slot| Question::Remaining(id, keys, slot))
    }

    fn promote(&self, url: String, id: u64) -> BoxFuture<Result<Vec<peer::Member>, CallError>> {
        self.0.ask(url, |slot| Question::Promote(id, slot))
    }
}
