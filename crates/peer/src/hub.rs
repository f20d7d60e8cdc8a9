//! The peers, and which way a message takes to each.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use prost::Message as _;
use proto::raftpb::{Message, MessageType};
use tokio::task::AbortHandle;

use crate::appends::is_append;
use crate::local::Local;
use crate::outlet::Outlet;
use crate::pipeline::Pipeline;
use crate::transport::{Config, Counters, Shared};
use crate::url::Picker;
use crate::{dial, probe};

/// Most senders that are remembered without being peers.
const MAX_REMEMBERED: usize = 64;

/// The two kinds of streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamKind {
    Message,
    Append,
}

impl StreamKind {
    /// As in the path `/raft/stream/<this>/<id>`.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Append => "msgapp",
        }
    }

    /// As in etcd's log lines.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Message => "stream Message",
            Self::Append => "stream MsgApp v2",
        }
    }
}

/// Another member.
#[derive(Debug)]
pub(crate) struct Peer {
    pub id: u64,
    /// Known only from a request of its own, before this member has applied its addition. Has no streams.
    pub is_remote: bool,
    pub picker: Picker,
    pub status: Arc<Counters>,
    pub pipeline: Pipeline,
    outlets: [RefCell<Option<Rc<Outlet>>>; 2],
    /// [`Local::peer_gone`] was told, and no stream was seen since.
    pub told_gone: Cell<bool>,
    tasks: RefCell<Vec<AbortHandle>>,
}

impl Peer {
    fn outlet(&self, kind: StreamKind) -> &RefCell<Option<Rc<Outlet>>> {
        &self.outlets[kind as usize]
    }

    fn note_streams(&self) {
        self.status.set_open_streams(self.outlets.iter().filter(|outlet| outlet.borrow().is_some()).count());
    }

    /// The queue for a message that does not go as a snapshot, if a stream is there for it.
    fn outlet_for(&self, message: &Message) -> Option<Rc<Outlet>> {
        if message.r#type() == MessageType::MsgApp
            && let Some(outlet) = &*self.outlet(StreamKind::Append).borrow()
        {
            return Some(outlet.clone());
        }
        self.outlet(StreamKind::Message).borrow().clone()
    }
}

/// Everything that lives on the peer thread.
pub(crate) struct Hub {
    pub config: Config,
    pub local: Arc<dyn Local>,
    pub shared: Arc<Shared>,
    peers: RefCell<BTreeMap<u64, Rc<Peer>>>,
    /// Snapshots that are being received.
    pub incoming_snapshots: Cell<usize>,
    /// Set when the transport stops: connections end after their current answer.
    pub closing: tokio::sync::watch::Sender<bool>,
}

impl Hub {
    pub(crate) fn new(config: Config, local: Arc<dyn Local>, shared: Arc<Shared>) -> Self {
        Self {
            config,
            local,
            shared,
            peers: RefCell::default(),
            incoming_snapshots: Cell::new(0),
            closing: tokio::sync::watch::Sender::new(false),
        }
    }

    /// Adds a peer and starts to dial it. One that is there already is left alone, unless it was only remembered.
    pub(crate) fn add(self: &Rc<Self>, id: u64, urls: &[String], is_remote: bool) {
        if id == self.config.member_id {
            return;
        }
        if let Some(old) = self.peer(id) {
            if is_remote || !old.is_remote {
                return;
            }
            self.remove(id);
        }
        let peer = Rc::new(Peer {
            id,
            is_remote,
            picker: Picker::new(id, urls),
            status: Arc::new(Counters::default()),
            pipeline: Pipeline::default(),
            outlets: Default::default(),
            told_gone: Cell::new(false),
            tasks: RefCell::default(),
        });
        if !is_remote {
            self.shared.statuses.write().insert(id, peer.status.clone());
            self.shared.appends.begin(id);
            self.spawn(&peer, dial::run(self.clone(), peer.clone(), StreamKind::Message));
            self.spawn(&peer, dial::run(self.clone(), peer.clone(), StreamKind::Append));
            self.spawn(&peer, probe::run(self.clone(), peer.clone()));
        }
        for _ in 0..crate::pipeline::CONNECTIONS {
            self.spawn(&peer, crate::pipeline::run(self.clone(), peer.clone()));
        }
        self.peers.borrow_mut().insert(id, peer);
        let what = if is_remote { "started remote peer" } else { "starting remote peer" };
        tracing::info!("remote-peer-id" = %hex(id), "remote-peer-urls" = ?urls, "{what}");
    }

    /// Runs a task for as long as the peer is one.
    pub(crate) fn spawn(&self, peer: &Rc<Peer>, task: impl Future<Output = ()> + 'static) {
        let handle = tokio::task::spawn_local(task).abort_handle();
        let mut tasks = peer.tasks.borrow_mut();
        tasks.retain(|task| !task.is_finished());
        tasks.push(handle);
    }

    /// Replaces a peer's addresses. Its streams go on as they are; the next dial uses the new ones.
    pub(crate) fn update(&self, id: u64, urls: &[String]) {
        if let Some(peer) = self.peer(id) {
            peer.picker.update(id, urls);
            tracing::info!("remote-peer-id" = %hex(id), "updated-remote-peer-urls" = ?urls, "updated remote peer");
        }
    }

    /// Forgets a peer and cuts its streams.
    pub(crate) fn remove(&self, id: u64) {
        let Some(peer) = self.peers.borrow_mut().remove(&id) else { return };
        self.shared.statuses.write().remove(&id);
        self.shared.appends.end(id);
        for task in peer.tasks.take() {
            task.abort();
        }
        for outlet in &peer.outlets {
            if let Some(outlet) = outlet.take() {
                outlet.close();
            }
        }
        tracing::info!("local-member-id" = %hex(self.config.member_id), "removed-remote-peer-id" = %hex(id), "removed remote peer");
    }

    /// Ends every stream after what waits for it has left.
    pub(crate) fn close(&self) {
        self.closing.send_replace(true);
        let ids: Vec<u64> = self.peers.borrow().keys().copied().collect();
        for id in ids {
            let Some(peer) = self.peers.borrow_mut().remove(&id) else { continue };
            for task in peer.tasks.take() {
                task.abort();
            }
            for outlet in &peer.outlets {
                if let Some(outlet) = outlet.take() {
                    outlet.close();
                }
            }
        }
    }

    /// Notes where a sender listens that is no peer. How many can be noted is limited: anyone can claim to be anyone.
    pub(crate) fn remember(self: &Rc<Self>, id: u64, urls: &[String]) {
        let remembered = self.peers.borrow().values().filter(|peer| peer.is_remote).count();
        if remembered < MAX_REMEMBERED && !self.local.is_removed(id) {
            self.add(id, urls, true);
        }
    }

    /// The peer or remembered sender of this ID.
    pub(crate) fn peer(&self, id: u64) -> Option<Rc<Peer>> {
        self.peers.borrow().get(&id).cloned()
    }

    /// Puts a message into the queue that it belongs to. A full queue drops it.
    pub(crate) fn send(&self, message: Message) {
        let id = message.to();
        let Some(peer) = self.peer(id) else {
            tracing::debug!("remote-peer-id" = %hex(id), r#type = ?message.r#type(), "no such peer, message dropped");
            return;
        };
        if message.r#type() == MessageType::MsgSnap {
            // It would arrive without its data, and the receiver would restore nothing.
            tracing::error!("remote-peer-id" = %hex(id), "a snapshot message must be sent with its body; dropped");
            self.local.report_snapshot(id, false);
            return;
        }
        if is_append(&message) {
            self.shared.appends.queued(message.encoded_len());
        }
        let (message_type, max_bytes) = (message.r#type(), self.config.max_queued_bytes);
        let fits = match peer.outlet_for(&message) {
            Some(outlet) => outlet.push(message, max_bytes),
            None => peer.pipeline.push(message, max_bytes),
        };
        if !fits {
            peer.status.count_send_failure();
            self.local.report_unreachable(id);
            tracing::debug!("remote-peer-id" = %hex(id), r#type = ?message_type, "dropped internal Raft message since sending buffer is full");
        }
    }

    /// A peer has opened a stream: from now on it takes what is sent to that peer. An older one of its kind ends.
    pub(crate) fn attach(&self, peer: &Rc<Peer>, kind: StreamKind) -> Rc<Outlet> {
        let outlet = Rc::new(Outlet::default());
        if let Some(old) = peer.outlet(kind).replace(Some(outlet.clone())) {
            old.hand_over(&outlet);
            tracing::info!("local-member-id" = %hex(self.config.member_id), "remote-peer-id" = %hex(peer.id), "stream-writer-type" = kind.name(), "closed TCP streaming connection with remote peer");
        }
        tracing::info!("local-member-id" = %hex(self.config.member_id), "remote-peer-id" = %hex(peer.id), "stream-writer-type" = kind.name(), "established TCP streaming connection with remote peer");
        peer.note_streams();
        self.became_active(peer);
        outlet
    }

    /// A stream's connection is gone. If it was the current one, what was written last may be lost.
    pub(crate) fn detach(&self, peer: &Rc<Peer>, kind: StreamKind, outlet: &Rc<Outlet>) {
        let is_current = peer.outlet(kind).borrow().as_ref().is_some_and(|current| Rc::ptr_eq(current, outlet));
        if !is_current {
            return;
        }
        peer.outlet(kind).take();
        peer.note_streams();
        self.became_inactive(peer, &"the connection ended");
        tracing::warn!("local-member-id" = %hex(self.config.member_id), "remote-peer-id" = %hex(peer.id), "stream-writer-type" = kind.name(), "lost TCP streaming connection with remote peer");
        self.local.report_unreachable(peer.id);
    }

    /// Something went through to or from this peer.
    pub(crate) fn became_active(&self, peer: &Peer) {
        if peer.status.activate() {
            tracing::info!("peer-id" = %hex(peer.id), "peer became active");
        }
    }

    /// Something did not.
    pub(crate) fn became_inactive(&self, peer: &Peer, why: &dyn std::fmt::Display) {
        if peer.status.deactivate() {
            tracing::warn!("peer-id" = %hex(peer.id), error = %why, "peer became inactive (message send to peer failed)");
        }
    }

    /// Hands on what arrived on a stream. `messages` is empty afterwards.
    pub(crate) fn receive(&self, messages: &mut Vec<Message>) {
        messages.retain(|message| message.to() == self.config.member_id && travels(message));
        if !messages.is_empty() {
            self.shared.appends.received(messages);
            self.local.step_all(messages);
            messages.clear();
        }
    }
}

/// Is this a message that one member sends to another? Those that raft addresses to itself are ignored when they come
/// from outside. A snapshot comes only with its body. A proposal of nothing would end an etcd leader.
pub(crate) fn travels(message: &Message) -> bool {
    use MessageType as Type;
    let Some(Ok(message_type)) = message.r#type.map(Type::try_from) else {
        // Left out, it is the first of the enumeration, a local one; another number is unknown here.
        return false;
    };
    match message_type {
        Type::MsgProp => !message.entries.is_empty(),
        Type::MsgApp
        | Type::MsgAppResp
        | Type::MsgVote
        | Type::MsgVoteResp
        | Type::MsgHeartbeat
        | Type::MsgHeartbeatResp
        | Type::MsgTransferLeader
        | Type::MsgTimeoutNow
        | Type::MsgReadIndex
        | Type::MsgReadIndexResp
        | Type::MsgPreVote
        | Type::MsgPreVoteResp => true,
        Type::MsgHup
        | Type::MsgBeat
        | Type::MsgSnap
        | Type::MsgUnreachable
        | Type::MsgSnapStatus
        | Type::MsgCheckQuorum
        | Type::MsgStorageAppend
        | Type::MsgStorageAppendResp
        | Type::MsgStorageApply
        | Type::MsgStorageApplyResp
        | Type::MsgForgetLeader => false,
    }
}

/// An ID as etcd writes it.
pub(crate) fn hex(id: u64) -> Hex {
    Hex(id)
}

/// See [`hex`].
pub(crate) struct Hex(u64);

impl std::fmt::Display for Hex {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:x}", self.0)
    }
}
