//! One thread's share of the clients: what its calls wait for, and the deliveries that end the waiting.
//!
//! A worker is bound to a single-threaded runtime; a connection stays with the worker that accepted it. Everything here
//! is therefore plain `RefCell`s. The only way in from another thread is the [`Mailbox`].
//!
//! # Invariants
//! - A borrow of a `RefCell` never lives across an `.await` or a call of the member: the member may answer at once.
//! - A ticket is delivered to exactly once (see [`Reply`]), and its slot is freed by that delivery and nothing else. A
//!   call that gave up earlier leaves an empty slot behind.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use proto::etcdserverpb::{InternalRaftRequest, RangeRequest, RangeResponse, ResponseHeader};
use state::Error;
use state::auth::Action;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use crate::auth::{Authenticator, Known};
use crate::caller::Caller;
use crate::grpc::guard::Unguarded;
use crate::grpc::method::Method;
use crate::grpc::wire::{PREFIX_BYTES, Responder};
use crate::grpc::{Read, answer_applied};
use crate::mailbox::{Delivery, Mailbox, Reply, Ticket};
use crate::member::{Answer, Member, Outcome};
use crate::metrics::{CallCounters, Metrics};
use crate::slow::{Subject, TRACES_PER_SECOND};
use crate::status::Code;
use crate::timing::Way;

/// Size of the buffer that small responses are cut from.
const ARENA_BYTES: usize = 64 << 10;
/// A message at least this large gets a buffer of its own, so that one slow reader does not hold others' bytes.
const OWN_BUFFER_BYTES: usize = 16 << 10;

/// What all workers have in common.
pub struct Shared {
    /// The member behind us.
    pub member: Arc<dyn Member>,
    /// Where everything is counted.
    pub metrics: Arc<Metrics>,
    /// Passwords and tokens.
    pub auth: Arc<Authenticator>,
    /// Settings of the plain HTTP side.
    pub http: crate::ops::HttpOptions,
    /// Turns true when the process stops: connections finish what they have begun and close.
    pub closing: watch::Receiver<bool>,
}

/// One thread's share of the clients.
pub struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) counters: Arc<CallCounters>,
    pub(crate) client_versions: RefCell<crate::grpc::ClientVersions>,
    pub(crate) watching: crate::grpc::watch::Desk,
    /// What it has learnt of tokens and permissions.
    pub(crate) known: RefCell<Known>,
    mailbox: Arc<Mailbox>,
    waiting: RefCell<Slots>,
    barrier: RefCell<Barrier>,
    deadlines: RefCell<BinaryHeap<Reverse<(Instant, Ticket, u32)>>>,
    /// The time for which the deadline task sleeps now.
    next_deadline: Cell<Option<Instant>>,
    deadline_moved: Notify,
    /// Something was asked of the member in this turn.
    asked: Notify,
    arena: RefCell<BytesMut>,
    /// When the last second with traces began, and how many it has.
    traces: Cell<(std::time::Instant, u32)>,
}

/// Who waits for a delivery.
#[derive(Debug)]
enum Waiting {
    /// A unary call that is answered with the result of its log entry.
    Call(Responder),
    /// A read that runs when the barrier it hangs on is passed.
    Read(Responder, Unguarded<Read>),
    /// The barrier for these reads, and when it was asked for.
    Barrier(Vec<Ticket>, Instant),
    /// A task of this worker.
    Task(oneshot::Sender<Outcome>),
    /// Nobody any more.
    Gone,
}

/// Reads that wait for a barrier. One is under way at a time; reads that arrive meanwhile may not use it (it may have
/// been passed before they came) and share the next.
#[derive(Debug, Default)]
struct Barrier {
    under_way: bool,
    next: Vec<Ticket>,
}

impl Worker {
    /// A worker; call it on its thread, inside its `LocalSet`, and then [`Worker::start`] it.
    pub fn new(shared: Arc<Shared>) -> Rc<Self> {
        let counters = shared.metrics.worker();
        let watching = crate::grpc::watch::Desk::new(shared.member.clone());
        Rc::new(Self {
            shared,
            counters,
            client_versions: RefCell::default(),
            watching,
            known: RefCell::default(),
            mailbox: Mailbox::new(),
            waiting: RefCell::default(),
            barrier: RefCell::default(),
            deadlines: RefCell::default(),
            next_deadline: Cell::new(None),
            deadline_moved: Notify::new(),
            asked: Notify::new(),
            arena: RefCell::new(BytesMut::with_capacity(ARENA_BYTES)),
            traces: Cell::new((std::time::Instant::now(), 0)),
        })
    }

    /// Spawns the worker's own tasks onto the current `LocalSet`. They run until it is dropped.
    pub fn start(self: &Rc<Self>) {
        tokio::task::spawn_local(self.clone().deliver());
        tokio::task::spawn_local(self.clone().watch_deadlines());
        tokio::task::spawn_local(self.clone().submit());
        tokio::task::spawn_local(crate::grpc::watch::run(self.clone()));
    }

    /// The member behind us.
    pub(crate) fn member(&self) -> &dyn Member {
        &*self.shared.member
    }

    /// The largest gRPC message that is accepted.
    pub(crate) fn max_message_bytes(&self) -> usize {
        self.member().limits().max_request_bytes + crate::grpc::wire::MESSAGE_OVERHEAD_BYTES
    }

    // --- waiting ---

    fn register(&self, waiting: Waiting, deadline: Option<Instant>) -> Ticket {
        let (ticket, turn) = self.waiting.borrow_mut().insert(waiting);
        if let Some(deadline) = deadline {
            let mut deadlines = self.deadlines.borrow_mut();
            deadlines.push(Reverse((deadline, ticket, turn)));
            // Most calls end long before their deadline; sweep out their entries before they pile up.
            let slots = self.waiting.borrow();
            if deadlines.len() > 1024 + 2 * slots.used() {
                deadlines.retain(|Reverse((_, ticket, turn))| slots.is_waiting(*ticket, *turn));
            }
            if self.next_deadline.get().is_none_or(|next| deadline < next) {
                self.deadline_moved.notify_one();
            }
        }
        ticket
    }

    fn reply(&self, ticket: Ticket) -> Reply {
        Reply::new(self.mailbox.clone(), ticket)
    }

    /// Proposes in the name of whoever calls; the call is answered with the result.
    pub(crate) fn propose(&self, mut request: InternalRaftRequest, responder: Responder) {
        responder.access.sign(&mut request);
        let deadline = responder.deadline;
        let ticket = self.register(Waiting::Call(responder), deadline);
        self.member().propose(request, self.reply(ticket));
        self.asked.notify_one();
    }

    /// Runs the read when a barrier that began after this moment has been passed.
    pub(crate) fn read_after_barrier(&self, responder: Responder, read: Unguarded<Read>) {
        let deadline = responder.deadline;
        let ticket = self.register(Waiting::Read(responder, read), deadline);
        self.barrier.borrow_mut().next.push(ticket);
        self.begin_barrier();
    }

    fn begin_barrier(&self) {
        let reads = {
            let mut barrier = self.barrier.borrow_mut();
            if barrier.under_way || barrier.next.is_empty() {
                return;
            }
            barrier.under_way = true;
            mem::take(&mut barrier.next)
        };
        let ticket = self.register(Waiting::Barrier(reads, Instant::now()), None);
        self.member().read_index(self.reply(ticket));
    }

    /// Asks the member on behalf of a task.
    pub(crate) async fn ask(&self, question: impl FnOnce(&dyn Member, Reply)) -> Outcome {
        let (sender, receiver) = oneshot::channel();
        let ticket = self.register(Waiting::Task(sender), None);
        question(self.member(), self.reply(ticket));
        self.asked.notify_one();
        receiver.await.unwrap_or(Err(Error::Stopped))
    }

    /// Passes when this member has applied whatever was committed when it was called.
    pub(crate) async fn barrier(&self) -> Result<(), Error> {
        if self.member().read_is_local() {
            return Ok(());
        }
        self.ask(|member, reply| member.read_index(reply)).await.map(|_| ())
    }

    /// Proposes on behalf of a task, in the name of a caller.
    pub(crate) async fn apply_for(
        &self,
        caller: &Caller,
        mut request: InternalRaftRequest,
    ) -> Result<state::Response, Error> {
        let access = self.authorise_soon(caller, &Action::of_entry(&request)).await?;
        access.sign(&mut request);
        self.apply(request).await
    }

    /// Reads on behalf of a task, in the name of a caller, what this member has applied.
    pub(crate) async fn range_for(&self, caller: &Caller, request: &RangeRequest) -> Result<RangeResponse, Error> {
        let access = self.authorise_soon(caller, &Action::Range(request)).await?;
        let response = self.member().state().range(request)?;
        self.holds(&access)?;
        Ok(response)
    }

    /// Proposes on behalf of a task.
    pub(crate) async fn apply(&self, request: InternalRaftRequest) -> Result<state::Response, Error> {
        match self.ask(|member, reply| member.propose(request, reply)).await? {
            Answer::Applied(response) => Ok(response),
            other => Err(mismatched(&other)),
        }
    }

    /// Has the member begin with what was asked of it. This task is woken by the first question of a turn and so comes
    /// behind the connections that were ready then: their requests become one batch.
    async fn submit(self: Rc<Self>) {
        loop {
            self.asked.notified().await;
            self.member().submit();
        }
    }

    // --- deliveries ---

    async fn deliver(self: Rc<Self>) {
        let mut deliveries = Vec::new();
        loop {
            std::future::poll_fn(|cx| self.mailbox.poll_take(&mut deliveries, cx)).await;
            for delivery in deliveries.drain(..) {
                self.hand_over(delivery);
            }
            // Connections get their turn even when answers never stop coming.
            yield_now().await;
        }
    }

    fn hand_over(self: &Rc<Self>, Delivery { ticket, outcome, passage, entry }: Delivery) {
        let waiting = self.waiting.borrow_mut().remove(ticket);
        match waiting {
            Waiting::Call(mut responder) => {
                if let Some(passage) = passage {
                    responder.way = Way::Entry(passage);
                }
                let subject = entry.as_ref().map_or(Subject::Unknown, |entry| Subject::Entry(entry));
                match outcome {
                    Ok(Answer::Applied(response)) => answer_applied(self, responder, response, subject),
                    Ok(other) => responder.refuse(self, mismatched(&other)),
                    Err(error) => responder.refuse_about(self, error, subject),
                }
            }
            Waiting::Barrier(reads, asked) => {
                let (asked, passed) = (asked.into_std(), Instant::now().into_std());
                self.count_barrier(outcome.is_ok(), passed.saturating_duration_since(asked));
                self.barrier.borrow_mut().under_way = false;
                self.begin_barrier();
                for ticket in reads {
                    let waiting = self.waiting.borrow_mut().remove(ticket);
                    match (waiting, &outcome) {
                        (Waiting::Read(mut responder, read), Ok(_)) => {
                            responder.way = Way::Barrier { asked, passed };
                            read.run(self, responder);
                        }
                        (Waiting::Read(responder, _), Err(error)) => responder.refuse(self, error),
                        (Waiting::Gone, _) => {}
                        (other, _) => unreachable!("a barrier holds reads, not {other:?}"),
                    }
                }
            }
            // An error means that the task was dropped with its connection.
            Waiting::Task(sender) => drop(sender.send(outcome)),
            Waiting::Gone => {}
            Waiting::Read(..) => unreachable!("a read is delivered to by its barrier"),
        }
    }

    // --- deadlines ---

    async fn watch_deadlines(self: Rc<Self>) {
        loop {
            let next = self.deadlines.borrow().peek().map(|Reverse((at, ..))| *at);
            self.next_deadline.set(next);
            match next {
                None => self.deadline_moved.notified().await,
                Some(at) => {
                    tokio::select! {
                        () = sleep_until(at) => self.expire(),
                        () = self.deadline_moved.notified() => {}
                    }
                }
            }
        }
    }

    fn expire(&self) {
        let now = Instant::now();
        loop {
            let (ticket, turn) = {
                let mut deadlines = self.deadlines.borrow_mut();
                match deadlines.peek() {
                    Some(&Reverse((at, ticket, turn))) if at <= now => {
                        deadlines.pop();
                        (ticket, turn)
                    }
                    _ => return,
                }
            };
            let waiting = self.waiting.borrow_mut().give_up(ticket, turn);
            if let Some(Waiting::Call(responder) | Waiting::Read(responder, _)) = waiting {
                responder.refuse(self, Error::DeadlineExceeded);
            }
        }
    }

    // --- encoding ---

    /// The header of a response at `revision`.
    pub(crate) fn header(&self, revision: i64) -> ResponseHeader {
        let identity = self.member().identity();
        ResponseHeader {
            cluster_id: identity.cluster_id,
            member_id: identity.member_id,
            revision,
            raft_term: self.member().term(),
        }
    }

    /// Completes a header that so far holds only the revision, or not even that: then the live one is filled in.
    pub(crate) fn complete(&self, header: &mut Option<ResponseHeader>) {
        let revision = match header {
            Some(ResponseHeader { revision, .. }) if *revision != 0 => *revision,
            _ => self.member().state().revision(),
        };
        *header = Some(self.header(revision));
    }

    /// A message with its prefix.
    pub(crate) fn frame(&self, message: &impl prost::Message) -> Bytes {
        let length = message.encoded_len();
        let mut own;
        let mut arena;
        let buffer: &mut BytesMut = if length >= OWN_BUFFER_BYTES {
            own = BytesMut::with_capacity(PREFIX_BYTES + length);
            &mut own
        } else {
            arena = self.arena.borrow_mut();
            arena.reserve(PREFIX_BYTES + length);
            &mut arena
        };
        buffer.put_u8(0);
        buffer.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        message.encode_raw(buffer);
        buffer.split().freeze()
    }

    /// A message with its prefix, written by `write`, which knows only afterwards how long it is.
    pub(crate) fn frame_with<E>(&self, write: impl FnOnce(&mut BytesMut) -> Result<(), E>) -> Result<Bytes, E> {
        let mut buffer = self.arena.borrow_mut();
        if buffer.capacity() < 256 {
            buffer.reserve(ARENA_BYTES);
        }
        frame_into(&mut buffer, write)
    }

    // --- counting ---

    fn count_barrier(&self, passed: bool, took: Duration) {
        let metrics = &self.shared.metrics;
        if !passed {
            metrics.read_indexes_failed.inc();
        }
        if took >= Duration::from_millis(self.member().limits().request_timeout_ms) {
            metrics.slow_read_indexes.inc();
        }
    }

    /// Whether one more trace may be written at this moment.
    pub(crate) fn may_trace(&self, now: std::time::Instant) -> bool {
        let (since, written) = self.traces.get();
        let (since, written) =
            if now.saturating_duration_since(since) > Duration::from_secs(1) { (now, 0) } else { (since, written) };
        self.traces.set((since, written + 1));
        written < TRACES_PER_SECOND
    }

    /// A call has ended.
    pub(crate) fn finished(&self, method: Method, took: impl FnOnce() -> Duration, code: Code) {
        self.counters.handled(method, code);
        if let Some(histogram) = self.shared.metrics.handling(method) {
            histogram.observe(took().as_secs_f64());
        }
    }
}

/// See [`Worker::frame_with`]; `buffer` must be empty and is empty again afterwards.
pub(crate) fn frame_into<E>(
    buffer: &mut BytesMut,
    write: impl FnOnce(&mut BytesMut) -> Result<(), E>,
) -> Result<Bytes, E> {
    buffer.put_bytes(0, PREFIX_BYTES);
    if let Err(error) = write(buffer) {
        buffer.clear();
        return Err(error);
    }
    let length = u32::try_from(buffer.len() - PREFIX_BYTES).unwrap_or(u32::MAX);
    buffer[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(buffer.split().freeze())
}

/// The member answered another question than the one it was asked.
pub(crate) fn mismatched(answer: &Answer) -> Error {
    Error::Internal(format!("etcdserver: unexpected answer {answer:?}"))
}

/// Numbered places, reused.
#[derive(Debug, Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<Ticket>,
}

#[derive(Debug)]
struct Slot {
    /// How often the place has been used, so that a stale deadline does not hit its next user.
    turn: u32,
    waiting: Waiting,
}

impl Slots {
    fn used(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn insert(&mut self, waiting: Waiting) -> (Ticket, u32) {
        match self.free.pop() {
            Some(ticket) => {
                let slot = &mut self.slots[ticket as usize];
                slot.turn = slot.turn.wrapping_add(1);
                slot.waiting = waiting;
                (ticket, slot.turn)
            }
            None => {
                let ticket = Ticket::try_from(self.slots.len()).expect("memory ends before four billion calls");
                self.slots.push(Slot { turn: 0, waiting });
                (ticket, 0)
            }
        }
    }

    fn remove(&mut self, ticket: Ticket) -> Waiting {
        self.free.push(ticket);
        mem::replace(&mut self.slots[ticket as usize].waiting, Waiting::Gone)
    }

    fn is_waiting(&self, ticket: Ticket, turn: u32) -> bool {
        let slot = &self.slots[ticket as usize];
        slot.turn == turn && !matches!(slot.waiting, Waiting::Gone)
    }

    /// Takes out who waits, but leaves the place taken until its delivery has come.
    fn give_up(&mut self, ticket: Ticket, turn: u32) -> Option<Waiting> {
        let slot = &mut self.slots[ticket as usize];
        (slot.turn == turn).then(|| mem::replace(&mut slot.waiting, Waiting::Gone))
    }
}
