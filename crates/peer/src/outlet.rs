//! The sending end of a stream: a queue that the hub fills, and the response body that empties it.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use proto::raftpb::Message;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use crate::appends::is_append;
use crate::frame::{Encoder, Gather};
use crate::hub::{Hub, Peer, StreamKind};
use crate::queue::MessageQueue;

/// How often a link heartbeat is sent: a third of the time after which etcd 3.4 gives a silent stream up.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_nanos(5_000_000_000 / 3);
/// Most messages that wait for a stream, as in etcd.
const MAX_QUEUED: usize = 4096;
/// Once so much is encoded, it is handed to the socket before more is.
const BATCH_BYTES: usize = 64 << 10;

/// Messages that wait for one stream.
#[derive(Debug, Default)]
pub(crate) struct Outlet {
    messages: MessageQueue,
    waker: RefCell<Option<Waker>>,
    closed: Cell<bool>,
}

impl Outlet {
    /// Adds a message; false if too much waits already.
    pub(crate) fn push(&self, message: Message, max_bytes: usize) -> bool {
        let fits = self.messages.push(message, MAX_QUEUED, max_bytes);
        self.wake();
        fits
    }

    /// The stream ends, with a proper end of its body, when what waits has left.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.wake();
    }

    /// Another stream takes this one's place, and what waits for it. This one ends at once.
    pub(crate) fn hand_over(&self, successor: &Outlet) {
        successor.messages.inherit(&self.messages);
        self.close();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The body of a stream's response. Dropping it tells the hub that the stream is gone.
pub(crate) struct StreamBody {
    hub: Rc<Hub>,
    peer: Rc<Peer>,
    kind: StreamKind,
    outlet: Rc<Outlet>,
    encoder: Encoder,
    encoded: Gather,
    heartbeat: Interval,
}

impl StreamBody {
    pub(crate) fn new(hub: Rc<Hub>, peer: Rc<Peer>, kind: StreamKind, outlet: Rc<Outlet>) -> Self {
        let mut heartbeat = interval_at(tokio::time::Instant::now() + HEARTBEAT_INTERVAL, HEARTBEAT_INTERVAL);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let encoder = match kind {
            StreamKind::Message => Encoder::message(),
            StreamKind::Append => Encoder::append(),
        };
        Self { hub, peer, kind, outlet, encoder, encoded: Gather::default(), heartbeat }
    }

    /// The next piece to write; `None` at the end.
    pub(crate) fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.encoded.is_empty() {
            while self.encoded.len() < BATCH_BYTES {
                let Some((message, since)) = self.outlet.messages.pop() else { break };
                self.encoder.encode(&message, &mut self.encoded);
                if is_append(&message) {
                    self.hub.shared.appends.left(self.peer.id, since.elapsed());
                }
            }
            if self.heartbeat.poll_tick(context).is_ready() {
                self.encoder.heartbeat(&mut self.encoded);
                // Asked again, so that the next tick wakes us.
                let _ = self.heartbeat.poll_tick(context);
            }
        }
        if let Some(piece) = self.encoded.pop() {
            self.peer.status.count_sent(piece.len());
            return Poll::Ready(Some(piece));
        }
        if self.outlet.closed.get() {
            return Poll::Ready(None);
        }
        self.outlet.waker.replace(Some(context.waker().clone()));
        Poll::Pending
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        self.hub.detach(&self.peer, self.kind, &self.outlet);
    }
}

/// The body of any answer: a whole one, or a stream.
pub(crate) enum Body {
    Whole(Option<Bytes>),
    Stream(Box<StreamBody>),
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self::Whole(None)
    }

    pub(crate) fn text(text: String) -> Self {
        Self::Whole(Some(text.into()))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Whole(body) => Poll::Ready(body.take().map(|body| Ok(Frame::data(body)))),
            Self::Stream(stream) => stream.poll_piece(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Whole(body) => http_body::SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64)),
            Self::Stream(_) => http_body::SizeHint::default(),
        }
    }
}
