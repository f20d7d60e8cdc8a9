//! The Watch service.
//!
//! Each worker owns a [`Hub`] and one task that polls it when the feed has something new; the hub says what goes to
//! which stream, and the [`Desk`] encodes it and hands it to HTTP/2. Everything one poll finds for a stream leaves in
//! one piece. Beside that each stream has a task of its own, for what the *client* does: it asks, it makes room, it goes.
//!
//! # Memory
//! A stream whose client does not keep up is at most one poll ahead of its HTTP/2 window: as soon as something had to
//! be left in the send buffer the hub is told that the stream is not ready, and keeps nothing for it but a position.
//! Nothing more is read from such a client either, so it cannot pile up answers by asking.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::{HashMap, HashSet, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::watch_create_request::FilterType;
use proto::etcdserverpb::watch_request::RequestUnion;
use state::Error;
use state::auth::{Action, Place, Subject};
use state::watch::{Events, Hub, Output, OutputKind, StreamId, StreamOutput, WatchCreate};
use store::RangeEnd;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::caller::Caller;
use crate::grpc::decode;
use crate::grpc::guard::Guarded as _;
use crate::grpc::wire::{Broken, Gone, Incoming, Outgoing, PREFIX_BYTES, Responder};
use crate::member::Member;
use crate::status::Refusal;
use crate::worker::Worker;

/// Events taken from the hub before other tasks get a turn.
const POLL_BUDGET: usize = 4096;
/// How often the hub is asked for progress notifications that are due.
const TICK: Duration = Duration::from_millis(100);
/// An event at least this large is handed on as it is and not copied into the batch.
const SHARED_EVENT_BYTES: usize = 8 << 10;
/// Outputs that a subscription inside the server may hold before the hub is told to wait.
const SUBSCRIPTION_BACKLOG: usize = 64;

/// A worker's watchers and the streams they belong to.
pub(crate) struct Desk {
    member: Arc<dyn Member>,
    /// `None` until the first stream is opened: who has no watchers does not follow the feed.
    hub: RefCell<Option<Hub>>,
    streams: RefCell<HashMap<StreamId, Rc<Sink>>>,
    next_stream: Cell<StreamId>,
    /// Rung when the hub should be polled; by the apply thread, too.
    bell: Arc<Notify>,
    /// The users and roles with which all watchers have been found to be allowed.
    checked: Cell<u64>,
}

/// Where a stream's outputs go.
enum Sink {
    Client(ClientSink),
    Subscription(SubscriptionSink),
}

struct ClientSink {
    caller: Caller,
    /// Who the caller was when it was last looked at. A token that ends later ends no watch; a permission that does, does.
    user: RefCell<Option<Arc<str>>>,
    outgoing: RefCell<Outgoing>,
    /// Watchers whose large responses are split.
    fragmenting: RefCell<HashSet<i64>>,
    /// Set while the client's window is full.
    blocked: Cell<bool>,
    /// The stream's own task.
    task: RefCell<Waker>,
}

#[derive(Default)]
struct SubscriptionSink {
    outputs: RefCell<VecDeque<Output>>,
    blocked: Cell<bool>,
    task: RefCell<Option<Waker>>,
}

impl Desk {
    pub(crate) fn new(member: Arc<dyn Member>) -> Self {
        Self {
            member,
            hub: RefCell::default(),
            streams: RefCell::default(),
            next_stream: Cell::new(0),
            bell: Arc::new(Notify::new()),
            checked: Cell::new(0),
        }
    }

    /// The hub, for the length of a statement.
    fn hub(&self) -> RefMut<'_, Hub> {
        RefMut::map(self.hub.borrow_mut(), |hub| {
            hub.get_or_insert_with(|| {
                let bell = self.bell.clone();
                let interval_ms = self.member.limits().watch_progress_interval_ms;
                Hub::new(self.member.state(), Arc::new(move || bell.notify_one()), interval_ms)
            })
        })
    }

    fn open(&self, sink: Sink) -> (StreamId, Rc<Sink>) {
        let id = self.next_stream.get();
        self.next_stream.set(id + 1);
        let sink = Rc::new(sink);
        self.streams.borrow_mut().insert(id, sink.clone());
        (id, sink)
    }

    fn close(&self, id: StreamId) {
        self.streams.borrow_mut().remove(&id);
        self.hub().close(id);
    }

    fn set_ready(&self, id: StreamId, ready: bool) {
        self.hub().set_ready(id, ready);
        if ready {
            self.bell.notify_one();
        }
    }

    fn send(&self, worker: &Worker, outputs: Vec<StreamOutput>) {
        for StreamOutput { stream, items } in outputs {
            self.send_to(worker, stream, items);
        }
    }

    fn send_to(&self, worker: &Worker, id: StreamId, items: Vec<Output>) {
        let sink = self.streams.borrow().get(&id).cloned();
        match sink.as_deref() {
            Some(Sink::Client(client)) => {
                let gone = client.send(worker, &items).is_err();
                let blocked = !gone && !client.outgoing.borrow_mut().has_room();
                if blocked && !client.blocked.replace(true) {
                    self.set_ready(id, false);
                }
                // Its own task finds out what to do about it.
                if gone || blocked {
                    client.task.borrow().wake_by_ref();
                }
            }
            Some(Sink::Subscription(subscription)) => {
                let mut outputs = subscription.outputs.borrow_mut();
                outputs.extend(items);
                if outputs.len() > SUBSCRIPTION_BACKLOG && !subscription.blocked.replace(true) {
                    self.set_ready(id, false);
                }
                if let Some(task) = subscription.task.take() {
                    task.wake();
                }
            }
            // Closed while the output was on its way.
            None => {}
        }
    }

    /// Ends the watches whose clients may no longer watch. Called between finding events and sending them: users and roles
    /// change before what comes behind them in the log is found, so whoever has lost a permission is given nothing that was
    /// written afterwards.
    fn end_forbidden(&self, worker: &Worker) -> Vec<StreamOutput> {
        let auth = self.member.state().auth();
        let version = auth.version();
        if self.checked.replace(version) == version || !auth.is_enabled() {
            return Vec::new();
        }
        let mut all = Vec::new();
        let (policy, lessor) = (worker.policy(), self.member.state().lessor());
        let streams: Vec<_> = self.streams.borrow().iter().map(|(id, sink)| (*id, sink.clone())).collect();
        for (id, sink) in streams {
            let Sink::Client(client) = &*sink else { continue };
            let user = client.user(worker);
            let revision = if user.is_some() { policy.revision() } else { 0 };
            let subject = Subject { user: user.as_deref().unwrap_or_default(), revision };
            let items = self.hub().end_unless(id, &mut |range| {
                let range_end: &[u8] = match &range.end {
                    RangeEnd::Single => b"",
                    RangeEnd::Unbounded => b"\0",
                    RangeEnd::Before(end) => end,
                };
                let action = Action::Watch { key: &range.start, range_end };
                policy.permits(subject, &action, Place::Member, lessor).map_err(cancel_reason)
            });
            if !items.is_empty() {
                all.push(StreamOutput { stream: id, items });
            }
        }
        all
    }

    fn count(&self, worker: &Worker) {
        let (watchers, slow) = self.hub().watchers();
        worker.counters.watching(self.streams.borrow().len(), watchers, slow);
    }
}

/// Takes from the hub what there is for this worker's streams, for ever.
pub(crate) async fn run(worker: Rc<Worker>) {
    let desk = &worker.watching;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while desk.streams.borrow().is_empty() {
        desk.bell.notified().await;
    }
    loop {
        let (mut outputs, more) = desk.hub().poll(POLL_BUDGET);
        let ended = desk.end_forbidden(&worker);
        for StreamOutput { stream, items } in &ended {
            let has_ended = |output: &Output| items.iter().any(|ended| ended.watch_id == output.watch_id);
            for found in outputs.iter_mut().filter(|found| found.stream == *stream) {
                found.items.retain(|output| !has_ended(output));
            }
        }
        desk.send(&worker, outputs);
        desk.send(&worker, ended);
        desk.count(&worker);
        if more || !desk.hub().arm() {
            yield_now().await;
            continue;
        }
        // Without watchers there is no progress to report, and an idle member does not wake up ten times a second.
        let has_watchers = desk.hub().watchers().0 > 0;
        tokio::select! {
            () = desk.bell.notified() => {}
            _ = ticks.tick(), if has_watchers => {
                desk.send(&worker, desk.end_forbidden(&worker));
                let due = desk.hub().tick(worker.member().now_ms());
                desk.send(&worker, due);
            }
        }
    }
}

/// What a client's stream did next.
enum Event {
    Asked(Bytes),
    HalfClosed,
    HasRoom,
    LostLeader,
    Gone,
    Refused(Refusal),
}

/// Serves one Watch stream until its client goes.
pub(crate) async fn serve(worker: Rc<Worker>, responder: Responder, mut incoming: Incoming, require_leader: bool) {
    let (method, caller) = (responder.method, responder.caller.clone());
    let Some(outgoing) = responder.stream(&worker) else { return };
    let (id, sink) = worker.watching.open(Sink::Client(ClientSink {
        caller,
        user: RefCell::default(),
        outgoing: RefCell::new(outgoing),
        fragmenting: RefCell::default(),
        blocked: Cell::new(false),
        task: RefCell::new(Waker::noop().clone()),
    }));
    let _closes = CloseOnDrop { worker: worker.clone(), id };
    let Sink::Client(client) = &*sink else { unreachable!("opened as a client's stream above") };
    let mut leader = require_leader.then(|| LeaderWatch::new(worker.member()));
    let mut half_closed = false;
    let refusal = loop {
        let event = poll_fn(|cx| {
            client.task.borrow_mut().clone_from(cx.waker());
            if let Some(leader) = &mut leader
                && leader.poll_lost(worker.member(), cx).is_ready()
            {
                return Poll::Ready(Event::LostLeader);
            }
            let mut outgoing = client.outgoing.borrow_mut();
            if outgoing.poll_gone(cx).is_ready() {
                return Poll::Ready(Event::Gone);
            }
            if client.blocked.get() {
                return outgoing.poll_room(cx).map(|room| match room {
                    Ok(()) => Event::HasRoom,
                    Err(Gone) => Event::Gone,
                });
            }
            // The client may end its side and go on listening.
            if half_closed {
                return Poll::Pending;
            }
            incoming.poll_message(cx).map(|message| match message {
                Ok(Some(message)) => Event::Asked(message),
                Ok(None) => Event::HalfClosed,
                Err(Broken::Reset) => Event::Gone,
                Err(Broken::Refused(refusal)) => Event::Refused(refusal),
            })
        })
        .await;
        match event {
            Event::Asked(message) => {
                worker.counters.received(method, message.len());
                match decode::<pb::WatchRequest>(message) {
                    Ok(request) => handle(&worker, id, client, request).await,
                    Err(refusal) => break Some(refusal),
                }
            }
            Event::HalfClosed => half_closed = true,
            Event::HasRoom => {
                client.blocked.set(false);
                worker.watching.set_ready(id, true);
            }
            Event::LostLeader => break Some(Error::NoLeader.into()),
            Event::Refused(refusal) => break Some(refusal),
            Event::Gone => break None,
        }
    };
    worker.watching.close(id);
    drop(_closes);
    let Some(Sink::Client(client)) = Rc::into_inner(sink) else { return };
    match refusal {
        Some(refusal) => client.outgoing.into_inner().refuse(&worker, refusal),
        None => client.outgoing.into_inner().abandoned(&worker),
    }
}

async fn handle(worker: &Worker, id: StreamId, client: &ClientSink, request: pb::WatchRequest) {
    let desk = &worker.watching;
    match request.request_union {
        Some(RequestUnion::CreateRequest(request)) => {
            let fragment = request.fragment;
            // What it asks for is not there, whoever asks.
            if request.start_revision >= 0
                && let Err(error) = client.authorise(worker, &request).await
            {
                let kind = OutputKind::Rejected { reason: cancel_reason(error) };
                let revision = worker.member().state().revision();
                return desk.send_to(worker, id, vec![Output { watch_id: -1, revision, kind }]);
            }
            let outputs = desk.hub().create(id, watch_create(request));
            if fragment {
                let created = outputs.iter().filter(|output| output.kind == OutputKind::Created);
                client.fragmenting.borrow_mut().extend(created.map(|output| output.watch_id));
            }
            // At once, so that no event can come before it.
            desk.send_to(worker, id, outputs);
            desk.bell.notify_one();
        }
        Some(RequestUnion::CancelRequest(request)) => {
            client.fragmenting.borrow_mut().remove(&request.watch_id);
            let output = desk.hub().cancel(id, request.watch_id);
            desk.send_to(worker, id, output.into_iter().collect());
        }
        Some(RequestUnion::ProgressRequest(_)) => {
            desk.hub().request_progress(id);
            desk.bell.notify_one();
        }
        // From a newer client; etcd ignores it.
        None => {}
    }
}

/// Why a watch is not, or no longer, allowed. What nobody else is to know is a denied permission.
fn cancel_reason(error: Error) -> String {
    let told = match error {
        Error::InvalidAuthToken | Error::AuthOldRevision | Error::UserEmpty => error,
        _ => Error::PermissionDenied,
    };
    Refusal::from(told).describe()
}

impl ClientSink {
    async fn authorise(&self, worker: &Worker, request: &pb::WatchCreateRequest) -> Result<(), Error> {
        let access = worker.authorise_soon(&self.caller, &request.action()).await?;
        self.user.replace(access.user().cloned());
        Ok(())
    }

    /// Whose watches these are.
    fn user(&self, worker: &Worker) -> Option<Arc<str>> {
        let known = self.user.borrow().clone();
        known.or_else(|| worker.identify(&self.caller).ok()?.user().cloned())
    }
}

fn watch_create(request: pb::WatchCreateRequest) -> WatchCreate {
    let has = |filter: FilterType| request.filters.contains(&i32::from(filter));
    WatchCreate {
        start_revision: request.start_revision,
        watch_id: request.watch_id,
        progress_notify: request.progress_notify,
        no_put: has(FilterType::Noput),
        no_delete: has(FilterType::Nodelete),
        prev_kv: request.prev_kv,
        key: request.key,
        range_end: request.range_end,
    }
}

struct CloseOnDrop {
    worker: Rc<Worker>,
    id: StreamId,
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.worker.watching.close(self.id);
    }
}

/// Tells when there has been no leader for three election timeouts, for clients that asked to know.
struct LeaderWatch {
    checks: Interval,
    missed: u32,
}

impl LeaderWatch {
    fn new(member: &dyn Member) -> Self {
        let mut checks = interval(Duration::from_millis(member.limits().election_timeout_ms.max(1)));
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { checks, missed: 0 }
    }

    fn poll_lost(&mut self, member: &dyn Member, cx: &mut Context<'_>) -> Poll<()> {
        while self.checks.poll_tick(cx).is_ready() {
            self.missed = if member.leader() == 0 { self.missed + 1 } else { 0 };
            if self.missed >= 3 {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

// --- encoding ---

impl ClientSink {
    /// Sends `items` in one piece, but for large events, which are handed on without a copy.
    fn send(&self, worker: &Worker, items: &[Output]) -> Result<(), Gone> {
        let mut outgoing = self.outgoing.borrow_mut();
        let mut batch = Batch { worker, outgoing: &mut outgoing, buffer: BytesMut::new(), messages: 0 };
        for item in items {
            let mut head = head(worker, item);
            match &item.kind {
                OutputKind::Events(events) => {
                    worker.shared.metrics.events.inc_by(events.len() as u64);
                    if head.encoded_len() + events.encoded_len() >= worker.max_message_bytes()
                        && events.len() > 1
                        && self.fragmenting.borrow().contains(&item.watch_id)
                    {
                        batch.fragments(&mut head, events)?;
                    } else {
                        batch.message(&head, events.iter(), events.encoded_len())?;
                    }
                }
                OutputKind::Canceled { .. } => {
                    self.fragmenting.borrow_mut().remove(&item.watch_id);
                    batch.message(&head, [].iter(), 0)?;
                }
                OutputKind::Created | OutputKind::Rejected { .. } | OutputKind::Progress => {
                    batch.message(&head, [].iter(), 0)?;
                }
            }
        }
        batch.flush()
    }
}

/// A response without its events.
fn head(worker: &Worker, output: &Output) -> pb::WatchResponse {
    let mut response = pb::WatchResponse {
        header: Some(worker.header(output.revision)),
        watch_id: output.watch_id,
        ..Default::default()
    };
    match &output.kind {
        OutputKind::Created => response.created = true,
        OutputKind::Rejected { reason } => {
            response.created = true;
            response.canceled = true;
            response.cancel_reason.clone_from(reason);
        }
        OutputKind::Canceled { compact_revision, reason } => {
            response.canceled = true;
            response.compact_revision = *compact_revision;
            response.cancel_reason.clone_from(reason);
        }
        OutputKind::Events(_) | OutputKind::Progress => {}
    }
    response
}

/// Responses on their way into one DATA frame.
struct Batch<'a> {
    worker: &'a Worker,
    outgoing: &'a mut Outgoing,
    buffer: BytesMut,
    /// Whole messages in `buffer` (one that ends with a shared event counts when its end has been added).
    messages: u64,
}

impl Batch<'_> {
    /// Adds a response. `events` are frames of its field 11, so that they are simply appended.
    fn message<'e>(
        &mut self,
        head: &pb::WatchResponse,
        events: impl Iterator<Item = &'e Bytes>,
        events_bytes: usize,
    ) -> Result<(), Gone> {
        let length = head.encoded_len() + events_bytes;
        self.buffer.reserve(PREFIX_BYTES + length.min(4 * SHARED_EVENT_BYTES));
        self.buffer.put_u8(0);
        self.buffer.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        head.encode_raw(&mut self.buffer);
        for event in events {
            if event.len() >= SHARED_EVENT_BYTES {
                self.flush()?;
                self.outgoing.send_now(self.worker, event.clone(), 0)?;
            } else {
                self.buffer.put_slice(event);
            }
        }
        self.messages += 1;
        Ok(())
    }

    /// Adds a response in pieces that are no larger than they have to be; all but the last are marked.
    fn fragments(&mut self, head: &mut pb::WatchResponse, events: &Events) -> Result<(), Gone> {
        let max_bytes = self.worker.max_message_bytes();
        let all: Vec<&Bytes> = events.iter().collect();
        let mut rest = &all[..];
        while !rest.is_empty() {
            let mut bytes = rest[0].len();
            let mut count = 1;
            while count < rest.len() && head.encoded_len() + bytes + rest[count].len() < max_bytes {
                bytes += rest[count].len();
                count += 1;
            }
            let (piece, after) = rest.split_at(count);
            head.fragment = !after.is_empty();
            self.message(head, piece.iter().copied(), bytes)?;
            rest = after;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Gone> {
        let messages = std::mem::take(&mut self.messages);
        if self.buffer.is_empty() {
            // The last message ended with a shared event, which has left already.
            self.worker.counters.sent(crate::grpc::Method::Watch, messages, 0);
            return Ok(());
        }
        self.outgoing.send_now(self.worker, self.buffer.split().freeze(), messages)
    }
}

// --- watching from inside ---

/// A watch by the server itself, for locks and elections.
pub(crate) struct Subscription {
    worker: Rc<Worker>,
    id: StreamId,
    sink: Rc<Sink>,
}

impl Subscription {
    pub(crate) fn new(worker: &Rc<Worker>, create: WatchCreate) -> Self {
        let desk = &worker.watching;
        let (id, sink) = desk.open(Sink::Subscription(SubscriptionSink::default()));
        let outputs = desk.hub().create(id, create);
        desk.send_to(worker, id, outputs);
        desk.bell.notify_one();
        Self { worker: worker.clone(), id, sink }
    }

    /// The next output that is more than the confirmation of the watch.
    pub(crate) async fn next(&mut self) -> Output {
        let Sink::Subscription(subscription) = &*self.sink else { unreachable!("opened as a subscription") };
        poll_fn(|cx| {
            loop {
                match subscription.outputs.borrow_mut().pop_front() {
                    Some(Output { kind: OutputKind::Created, .. }) => {}
                    Some(output) => return Poll::Ready(output),
                    None => break,
                }
            }
            *subscription.task.borrow_mut() = Some(cx.waker().clone());
            if subscription.blocked.replace(false) {
                self.worker.watching.set_ready(self.id, true);
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.worker.watching.close(self.id);
    }
}

/// The events of an output, decoded.
pub(crate) fn decoded(events: &Events) -> Vec<proto::mvccpb::Event> {
    let frames: Vec<u8> = events.iter().flatten().copied().collect();
    // The frames are our own store's; they decode unless it is broken, and then there is nothing to report.
    pb::WatchResponse::decode(frames.as_slice()).map(|response| response.events).unwrap_or_default()
}
