//! The handle that the rest of the member holds, and the thread behind it.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use prost::Message as _;
use proto::raftpb::Message;
use tls::Pending;
use tokio::sync::Notify;

use crate::appends::{AppendLatency, AppendRate, Appends};
use crate::calls::Caller;
use crate::hub::Hub;
use crate::io::Dialer;
use crate::local::Local;
use crate::{serve, snapshot};

/// Most messages that wait until the peer thread takes them; it takes all of them at once, within microseconds.
const MAX_INBOX_MESSAGES: usize = 16 << 10;
/// Their summed length, above which more are dropped.
const MAX_INBOX_BYTES: usize = 256 << 20;
/// How long the last messages may take to leave when the transport stops.
const GRACE: Duration = Duration::from_millis(200);

/// Settings of a [`Transport`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster; peers of another one are refused.
    pub cluster_id: u64,
    /// This member.
    pub member_id: u64,
    /// Advertised peer URLs, told to every peer.
    pub peer_urls: Vec<String>,
    /// Told to every peer, and compared with what it tells; full, as in `3.7.1`.
    pub server_version: &'static str,
    /// The oldest version that this member understands.
    pub min_cluster_version: &'static str,
    /// How long opening a connection may take.
    pub dial_timeout: Duration,
    /// How to connect.
    pub dialer: Dialer,
    /// What may wait for one stream of one peer, in encoded bytes (the data of entries is shared, not copied). One
    /// message always fits. More is dropped, and raft sends it again.
    pub max_queued_bytes: usize,
}

impl Config {
    /// The settings of a member, with the rest as etcd has it or as is sensible.
    pub fn new(cluster_id: u64, member_id: u64, peer_urls: Vec<String>, server_version: &'static str) -> Self {
        Self {
            cluster_id,
            member_id,
            peer_urls,
            server_version,
            min_cluster_version: "3.0.0",
            dial_timeout: Duration::from_secs(3),
            dialer: Dialer::default(),
            max_queued_bytes: 64 << 20,
        }
    }
}

/// Where peers connect to.
#[derive(Debug)]
pub struct Listener {
    /// Already bound.
    pub socket: TcpListener,
    /// TLS, if it is spoken there.
    pub tls: Option<Arc<tls::Acceptor>>,
}

impl From<TcpListener> for Listener {
    fn from(socket: TcpListener) -> Self {
        Self { socket, tls: None }
    }
}

/// What is counted of one peer.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    active_since: Mutex<Option<Instant>>,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    send_failures: AtomicU64,
    receive_failures: AtomicU64,
    disconnects: AtomicU64,
    round_trip_nanos: AtomicU64,
    open_streams: AtomicU64,
}

impl Counters {
    /// Gives true if it was inactive.
    pub(crate) fn activate(&self) -> bool {
        let mut since = self.active_since.lock();
        let was_inactive = since.is_none();
        since.get_or_insert_with(Instant::now);
        was_inactive
    }

    /// Gives true if it was active.
    pub(crate) fn deactivate(&self) -> bool {
        let was_active = self.active_since.lock().take().is_some();
        if was_active {
            self.disconnects.fetch_add(1, Ordering::Relaxed);
        }
        was_active
    }

    pub(crate) fn count_sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_received(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_send_failure(&self) {
        self.send_failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_receive_failure(&self) {
        self.receive_failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn set_round_trip(&self, took: Duration) {
        self.round_trip_nanos.store(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn set_open_streams(&self, count: usize) {
        self.open_streams.store(count as u64, Ordering::Relaxed);
    }

    fn status(&self) -> PeerStatus {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PeerStatus {
            active_since: *self.active_since.lock(),
            sent_bytes: read(&self.sent_bytes),
            received_bytes: read(&self.received_bytes),
            send_failures: read(&self.send_failures),
            receive_failures: read(&self.receive_failures),
            disconnects: read(&self.disconnects),
            round_trip: Some(Duration::from_nanos(read(&self.round_trip_nanos))).filter(|took| !took.is_zero()),
        }
    }
}

/// A peer as seen from here; what etcd's `etcd_network_*` metrics are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerStatus {
    /// Since when messages get through; `None` while they do not.
    pub active_since: Option<Instant>,
    /// Bytes of messages sent, on all ways.
    pub sent_bytes: u64,
    /// Bytes of messages received.
    pub received_bytes: u64,
    /// Messages that were dropped or not delivered, as far as it was noticed.
    pub send_failures: u64,
    /// Streams that broke while they were read, and messages that could not be decoded.
    pub receive_failures: u64,
    /// How often the peer became inactive.
    pub disconnects: u64,
    /// How long the last probe took.
    pub round_trip: Option<Duration>,
}

/// What waits for the peer thread. One list, so that orders are carried out in the order in which they were given.
#[derive(Default)]
struct Inbox {
    orders: Vec<Order>,
    messages: usize,
    bytes: usize,
    stopped: bool,
}

enum Order {
    Send(Vec<Message>),
    Add { id: u64, urls: Vec<String>, is_remote: bool },
    Update { id: u64, urls: Vec<String> },
    Remove { id: u64 },
    Snapshot { message: Box<Message>, body: snapshot::Source },
    Stop,
}

/// Shared between the handles and the thread.
#[derive(Default)]
pub(crate) struct Shared {
    inbox: Mutex<Inbox>,
    filled: Notify,
    pub(crate) statuses: RwLock<BTreeMap<u64, Arc<Counters>>>,
    pub(crate) appends: Appends,
}

impl Shared {
    fn order(&self, order: Order) {
        let mut inbox = self.inbox.lock();
        if inbox.stopped {
            return;
        }
        let was_empty = inbox.orders.is_empty();
        inbox.orders.push(order);
        drop(inbox);
        // Whoever finds it filled can count on the wake-up of whoever filled it first.
        if was_empty {
            self.filled.notify_one();
        }
    }
}

/// Sends to the peers and receives from them. Clones are handles of the same.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
    local: Arc<dyn Local>,
    dialer: Dialer,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Transport").finish_non_exhaustive()
    }
}

impl Transport {
    /// Starts the thread `peer`, which serves the listeners (already bound) from now on and dials peers as they are
    /// added.
    ///
    /// # Errors
    /// When the thread or its event loop cannot be made, or a listener cannot be registered with it.
    pub fn start(config: Config, listeners: Vec<Listener>, local: Arc<dyn Local>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(64)
            .thread_name("peer-blocking")
            .thread_keep_alive(Duration::from_secs(1))
            .build()?;
        let listeners = {
            let _inside = runtime.enter();
            let register = |Listener { socket, tls }: Listener| {
                socket.set_nonblocking(true)?;
                Ok((tokio::net::TcpListener::from_std(socket)?, tls))
            };
            listeners.into_iter().map(register).collect::<io::Result<Vec<_>>>()?
        };
        let shared = Arc::new(Shared::default());
        let dialer = config.dialer.clone();
        let (for_thread, local_for_thread) = (shared.clone(), local.clone());
        let thread = std::thread::Builder::new().name("peer".into()).spawn(move || {
            let tasks = tokio::task::LocalSet::new();
            tasks.block_on(&runtime, async {
                let hub = Rc::new(Hub::new(config, local_for_thread, for_thread));
                run(hub, listeners).await;
            });
            drop(tasks);
            // A blocking thread may be in the middle of saving a snapshot; its reader fails, so it ends by itself.
            runtime.shutdown_background();
        })?;
        Ok(Self { shared, local, dialer, thread: Arc::new(Mutex::new(Some(thread))) })
    }

    /// Calls members the way this transport dials them.
    pub fn caller(&self, timeout: Duration) -> Caller {
        Caller::new(timeout).through(&self.dialer)
    }

    /// Starts to talk to a peer. Nothing happens if it is one already.
    pub fn add_peer(&self, id: u64, urls: Vec<String>) {
        self.shared.order(Order::Add { id, urls, is_remote: false });
    }

    /// Remembers where a member listens that is not known from the log yet, so that it can be answered and sent a
    /// snapshot. It gets no streams.
    pub fn add_remote(&self, id: u64, urls: Vec<String>) {
        self.shared.order(Order::Add { id, urls, is_remote: true });
    }

    /// Replaces a peer's URLs.
    pub fn update_peer(&self, id: u64, urls: Vec<String>) {
        self.shared.order(Order::Update { id, urls });
    }

    /// Forgets a peer and cuts its streams.
    pub fn remove_peer(&self, id: u64) {
        self.shared.order(Order::Remove { id });
    }

    /// Sends messages, each to the member it is addressed to. Never blocks; messages to unknown members are dropped, and
    /// so are those that find a full queue, which is told by [`Local::report_unreachable`]. Snapshots go
    /// through [`Transport::send_snapshot`].
    pub fn send(&self, messages: Vec<Message>) {
        if messages.is_empty() {
            return;
        }
        let bytes: usize = messages.iter().map(Message::encoded_len).sum();
        let mut inbox = self.shared.inbox.lock();
        if inbox.stopped {
            return;
        }
        let is_full = inbox.messages + messages.len() > MAX_INBOX_MESSAGES || inbox.bytes + bytes > MAX_INBOX_BYTES;
        if is_full && inbox.messages > 0 {
            drop(inbox);
            let mut dropped: Vec<u64> = messages.iter().map(Message::to).collect();
            dropped.sort_unstable();
            dropped.dedup();
            for id in dropped {
                self.local.report_unreachable(id);
            }
            return;
        }
        let was_empty = inbox.orders.is_empty();
        inbox.messages += messages.len();
        inbox.bytes += bytes;
        match inbox.orders.last_mut() {
            Some(Order::Send(waiting)) => waiting.extend(messages),
            _ => inbox.orders.push(Order::Send(messages)),
        }
        drop(inbox);
        if was_empty {
            self.shared.filled.notify_one();
        }
    }

    /// Sends a snapshot: `message` (a MsgSnap with metadata and data), then the pieces of a bbolt file. The pieces are
    /// pulled on a thread of their own, no faster than the peer takes them; `body` may take its time (a few seconds at most,
    /// or the peer gives up). [`Local::report_snapshot`] tells what came of it.
    pub fn send_snapshot(&self, message: Message, body: Box<dyn Iterator<Item = io::Result<Bytes>> + Send>) {
        self.shared.order(Order::Snapshot { message: Box::new(message), body });
    }

    /// Since when messages to and from this peer get through; `None` if they do not, or if there is no such peer.
    pub fn active_since(&self, id: u64) -> Option<Instant> {
        self.shared.statuses.read().get(&id).and_then(|counters| *counters.active_since.lock())
    }

    /// How many streams this peer has opened to us: messages to it leave on them, and only without them by posts.
    pub fn open_streams(&self, id: u64) -> usize {
        self.shared
            .statuses
            .read()
            .get(&id)
            .map_or(0, |counters| counters.open_streams.load(Ordering::Relaxed) as usize)
    }

    /// Every peer and what was counted of it.
    pub fn statuses(&self) -> Vec<(u64, PeerStatus)> {
        self.shared.statuses.read().iter().map(|(&id, counters)| (id, counters.status())).collect()
    }

    /// Appends that were received, and those that were sent.
    pub fn append_rates(&self) -> (AppendRate, AppendRate) {
        self.shared.appends.rates()
    }

    /// Every peer, and how long appends to it took.
    pub fn append_latencies(&self) -> Vec<(u64, AppendLatency)> {
        self.shared.appends.latencies()
    }

    /// Lets what was sent so far leave (for at most a fifth of a second), ends all connections, closes the listeners and
    /// waits for the thread. Must not be called from within [`Local`].
    pub fn stop(&self) {
        self.shared.order(Order::Stop);
        let Some(thread) = self.thread.lock().take() else { return };
        if thread.join().is_err() {
            tracing::error!("the peer thread panicked");
        }
    }
}

/// The peer thread's main task.
async fn run(hub: Rc<Hub>, listeners: Vec<serve::Registered>) {
    let connections = serve::Connections::default();
    let handshakes = Pending::new(serve::MAX_HANDSHAKES);
    let acceptors: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            tokio::task::spawn_local(serve::accept(hub.clone(), listener, handshakes.clone(), connections.clone()))
        })
        .collect();
    'running: loop {
        hub.shared.filled.notified().await;
        let orders = {
            let mut inbox = hub.shared.inbox.lock();
            inbox.messages = 0;
            inbox.bytes = 0;
            std::mem::take(&mut inbox.orders)
        };
        for order in orders {
            match order {
                Order::Send(messages) => messages.into_iter().for_each(|message| hub.send(message)),
                Order::Add { id, urls, is_remote } => hub.add(id, &urls, is_remote),
                Order::Update { id, urls } => hub.update(id, &urls),
                Order::Remove { id } => hub.remove(id),
                Order::Snapshot { message, body } => snapshot::send(&hub, *message, body),
                Order::Stop => break 'running,
            }
        }
    }
    {
        let mut inbox = hub.shared.inbox.lock();
        inbox.stopped = true;
        inbox.orders.clear();
    }
    for acceptor in acceptors {
        acceptor.abort();
    }
    hub.close();
    // Only politeness: a peer notices a cut connection as well as an ended one.
    let _ = tokio::time::timeout(GRACE, connections.wait_until_none()).await;
}
