//! What a member reaches beside its disk: time, work that waits, and the other members.
//!
//! Everything that is not decided by the member itself comes in through [`Host`] and [`Peers`], so that a member can live
//! in a process of its own ([`System`], [`peer::Transport`]) or, many of them in one thread, in a simulation.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::{Answer, Passage, PeerTraffic};
use bytes::Bytes;
use peer::{BoxFuture, CallError, Caller, Dialer, RemainingLease};
use proto::raftpb;
use state::Error;
use wal::Entry;

/// Answers to applied entries.
pub type Answers = [Answered];

/// The answer to an entry that was applied.
#[derive(Debug)]
pub struct Answered {
    /// The ID of the request in it.
    pub id: u64,
    /// What came of it.
    pub outcome: Result<Answer, Error>,
    /// What it took to get here; `None` if that is not known.
    pub(crate) passage: Option<Passage>,
    /// The entry's data.
    pub(crate) data: Bytes,
}

/// A database image on its way to another member.
pub type Pieces = Box<dyn Iterator<Item = std::io::Result<Bytes>> + Send>;

/// The place where a member lives.
pub trait Host: Send + Sync + 'static {
    /// Time since some fixed moment. Never goes back.
    fn now(&self) -> Duration;

    /// Time since 1970. Goes back when somebody sets the clock, so nothing is decided by it.
    fn wall(&self) -> Duration;

    /// Runs a task beside everything else.
    fn spawn(&self, task: BoxFuture<()>);

    /// Ends after so long.
    fn sleep(&self, time: Duration) -> BoxFuture<()>;

    /// Lets so much time pass on the thread that calls, which must be one that [`Host::work`] has given.
    fn block(&self, time: Duration);

    /// Runs something that takes long where nobody waits for it, and lets everything else go first. Answers whether it
    /// could be begun.
    fn work(&self, name: &str, work: Box<dyn FnOnce() + Send>) -> bool;

    /// Runs something that takes long, lets everything else go first, and returns when it is done.
    fn work_and_wait(&self, name: &str, work: &mut (dyn FnMut() + Send)) {
        let _ = name;
        work();
    }

    /// The member knows these entries to be committed. For whoever watches a member from outside.
    fn saw_committed(&self, entries: &[Entry]) {
        let _ = entries;
    }

    /// The member has applied everything up to this index; these are the answers of the last batch, whoever waits for them.
    fn saw_applied(&self, index: u64, answers: &Answers) {
        let _ = (index, answers);
    }
}

/// The connections to the other members.
pub trait Peers: Send + Sync + 'static {
    /// Sends messages, each to the member that it is addressed to. Never waits.
    fn send(&self, messages: Vec<raftpb::Message>);

    /// Sends a snapshot: its message, then the pieces of a bbolt file.
    fn send_snapshot(&self, message: raftpb::Message, pieces: Pieces);

    /// Begins to talk to a member. Nothing happens if it is known already.
    fn add(&self, id: u64, urls: Vec<String>);

    /// Replaces a member's URLs.
    fn update(&self, id: u64, urls: Vec<String>);

    /// Forgets a member.
    fn remove(&self, id: u64);

    /// The members that are known here, with the traffic so far.
    fn traffic(&self) -> Vec<PeerTraffic>;

    /// What appends came and went lately: received, sent.
    fn append_rates(&self) -> (peer::AppendRate, peer::AppendRate) {
        Default::default()
    }

    /// How long appends to the other members took.
    fn append_latencies(&self) -> Vec<(u64, peer::AppendLatency)> {
        Vec::new()
    }

    /// How long messages to and from this member have been getting through; `None` if they do not.
    fn connected_for(&self, id: u64) -> Option<Duration>;

    /// Asks the member at `url` for its version.
    fn version(&self, url: String, patience: Duration) -> BoxFuture<Result<peer::Version, CallError>>;

    /// Has the leader at `url` renew a lease; gives the TTL in seconds.
    fn renew_lease(&self, url: String, id: i64) -> BoxFuture<Result<i64, CallError>>;

    /// Asks the leader at `url` for a lease, and with `keys` for its keys.
    fn remaining_lease(&self, url: String, id: i64, keys: bool) -> BoxFuture<Result<RemainingLease, CallError>>;

    /// Has the leader at `url` promote a learner; gives the members afterwards.
    fn promote(&self, url: String, id: u64) -> BoxFuture<Result<Vec<peer::Member>, CallError>>;
}

/// Who can be asked while a member starts.
pub trait Neighbours {
    /// The members of the cluster that the member at `url` belongs to.
    fn members(&self, url: &str, patience: Duration) -> Result<peer::Members, String>;

    /// The version of the member at `url`.
    fn version(&self, url: &str, patience: Duration) -> Result<peer::Version, String>;
}

/// The operating system, and tokio's event loop.
#[derive(Debug)]
pub(crate) struct System {
    started: Instant,
    events: tokio::runtime::Handle,
}

impl System {
    /// With the event loop that this is called on.
    pub(crate) fn of_this_thread() -> Self {
        Self { started: Instant::now(), events: tokio::runtime::Handle::current() }
    }
}

impl Host for System {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn wall(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn spawn(&self, task: BoxFuture<()>) {
        self.events.spawn(task);
    }

    fn sleep(&self, time: Duration) -> BoxFuture<()> {
        Box::pin(tokio::time::sleep(time))
    }

    fn block(&self, time: Duration) {
        std::thread::sleep(time);
    }

    fn work(&self, name: &str, work: Box<dyn FnOnce() + Send>) -> bool {
        disk::in_background(name, work).is_ok()
    }

    fn work_and_wait(&self, name: &str, work: &mut (dyn FnMut() + Send)) {
        if disk::in_background_and_wait(name, &mut *work).is_err() {
            work();
        }
    }
}

/// How long one call of a peer may take.
const CALL: Duration = Duration::from_secs(5);

impl Peers for peer::Transport {
    fn send(&self, messages: Vec<raftpb::Message>) {
        peer::Transport::send(self, messages);
    }

    fn send_snapshot(&self, message: raftpb::Message, pieces: Pieces) {
        peer::Transport::send_snapshot(self, message, pieces);
    }

    fn add(&self, id: u64, urls: Vec<String>) {
        self.add_peer(id, urls);
    }

    fn update(&self, id: u64, urls: Vec<String>) {
        self.update_peer(id, urls);
    }

    fn remove(&self, id: u64) {
        self.remove_peer(id);
    }

    fn traffic(&self) -> Vec<PeerTraffic> {
        let traffic = |(id, status): (u64, peer::PeerStatus)| PeerTraffic {
            id,
            active: status.active_since.is_some(),
            disconnects: status.disconnects,
            sent_bytes: status.sent_bytes,
            received_bytes: status.received_bytes,
            send_failures: status.send_failures,
            receive_failures: status.receive_failures,
        };
        self.statuses().into_iter().map(traffic).collect()
    }

    fn append_rates(&self) -> (peer::AppendRate, peer::AppendRate) {
        peer::Transport::append_rates(self)
    }

    fn append_latencies(&self) -> Vec<(u64, peer::AppendLatency)> {
        peer::Transport::append_latencies(self)
    }

    fn connected_for(&self, id: u64) -> Option<Duration> {
        Some(Instant::now().saturating_duration_since(self.active_since(id)?))
    }

    fn version(&self, url: String, patience: Duration) -> BoxFuture<Result<peer::Version, CallError>> {
        let caller = self.caller(patience);
        Box::pin(async move { caller.version(&url).await })
    }

    fn renew_lease(&self, url: String, id: i64) -> BoxFuture<Result<i64, CallError>> {
        let caller = self.caller(CALL);
        Box::pin(async move { caller.renew_lease(&url, id).await })
    }

    fn remaining_lease(&self, url: String, id: i64, keys: bool) -> BoxFuture<Result<RemainingLease, CallError>> {
        let caller = self.caller(CALL);
        Box::pin(async move { caller.remaining_lease(&url, id, keys).await })
    }

    fn promote(&self, url: String, id: u64) -> BoxFuture<Result<Vec<peer::Member>, CallError>> {
        let caller = self.caller(CALL);
        Box::pin(async move { caller.promote(&url, id).await })
    }
}

/// The network that this machine is in.
#[derive(Clone, Default)]
pub(crate) struct Network(pub(crate) Dialer);

impl Neighbours for Network {
    fn members(&self, url: &str, patience: Duration) -> Result<peer::Members, String> {
        let caller = Caller::new(patience).through(&self.0);
        peer::blocking(caller.members(url)).map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }

    fn version(&self, url: &str, patience: Duration) -> Result<peer::Version, String> {
        let caller = Caller::new(patience).through(&self.0);
        peer::blocking(caller.version(url)).map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }
}
