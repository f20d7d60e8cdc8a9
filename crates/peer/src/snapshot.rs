//! Snapshots: a message and the bbolt file that belongs to it, in one post.
//!
//! ```text
//! length (8 bytes, big-endian) ‖ MsgSnap ‖ bbolt file to the end
//! ```
//!
//! A file may be gigabytes long and a disk slow, so only a few pieces are in memory on either side. The end of the
//! file has no mark of its own: both ends must tell a complete one from one that was cut off, and do so by the
//! end of the chunked encoding and by [`Piece::End`].

use std::io::{self, Read};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::StatusCode;
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prost::Message as _;
use proto::raftpb::{Message, MessageType};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::frame;
use crate::hub::{Hub, Peer, hex};
use crate::io::{Wire, handshake};
use crate::pipeline::{PostError, check_status, post_request};
use crate::serve::READ_TIMEOUT;

/// Longest message part, as in etcd 3.6.14 and 3.7.1.
const MAX_MESSAGE_BYTES: u64 = 64 << 20;
/// Pieces of a file that wait between the network and the disk.
const QUEUED_PIECES: usize = 8;
/// What a piece that is sent is long at most.
const PIECE_BYTES: usize = 256 << 10;
/// Snapshots that may arrive at once; raft needs one.
const MAX_INCOMING: usize = 4;
/// How long a receiver may take no bytes, as it will while its disk is busy.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a receiver may take to answer after the last byte: it syncs the file first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Where the file to send comes from.
pub(crate) type Source = Box<dyn Iterator<Item = io::Result<Bytes>> + Send>;

/// What travels between a connection and the thread that reads or writes the file.
enum Piece {
    Data(Bytes),
    /// The file is complete. Without it, it was cut off.
    End,
    Failed(io::Error),
}

/// Sends a snapshot and reports what came of it.
pub(crate) fn send(hub: &Rc<Hub>, message: Message, source: Source) {
    let id = message.to();
    let report = Report { hub: hub.clone(), id, delivered: false };
    let Some(peer) = hub.peer(id) else { return };
    let (hub, on) = (hub.clone(), peer.clone());
    hub.clone().spawn(&on, async move {
        let (index, size) = (snapshot_index(&message), message.encoded_len());
        tracing::info!("snapshot-index" = index, "remote-peer-id" = %hex(id), bytes = size, "sending database snapshot");
        let begun = Instant::now();
        match deliver(&hub, &peer, &message, source).await {
            Ok(bytes) => {
                hub.became_active(&peer);
                tracing::info!("snapshot-index" = index, "remote-peer-id" = %hex(id), bytes, took = ?begun.elapsed(), "sent database snapshot");
                report.delivered();
            }
            Err(error) => {
                hub.became_inactive(&peer, &error);
                peer.status.count_send_failure();
                if matches!(error, PostError::Removed) {
                    hub.local.removed(id);
                }
                tracing::warn!("snapshot-index" = index, "remote-peer-id" = %hex(id), %error, "failed to send database snapshot");
            }
        }
    });
}

/// Reports when it is dropped, so that raft is told even if the peer is removed meanwhile.
struct Report {
    hub: Rc<Hub>,
    id: u64,
    delivered: bool,
}

impl Report {
    fn delivered(mut self) {
        self.delivered = true;
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if !self.delivered {
            self.hub.local.report_unreachable(self.id);
        }
        self.hub.local.report_snapshot(self.id, self.delivered);
    }
}

fn snapshot_index(message: &Message) -> u64 {
    message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref()).map_or(0, |metadata| metadata.index())
}

/// Gives the number of bytes sent.
async fn deliver(hub: &Hub, peer: &Peer, message: &Message, source: Source) -> Result<usize, PostError> {
    let url = peer.picker.pick().ok_or(PostError::NoUrl)?;
    let result = async {
        let wire =
            Wire::connect(&hub.config.dialer, &url, hub.config.dial_timeout).await?.with_write_timeout(WRITE_TIMEOUT);
        let (mut sender, connection) = handshake(wire).await?;
        let (pieces, arriving) = mpsc::channel(QUEUED_PIECES);
        disk::in_background("snapshot", move || pull(source, &pieces)).map_err(PostError::Io)?;

        let mut head = BytesMut::with_capacity(8 + message.encoded_len());
        head.put_u64(message.encoded_len() as u64);
        message.encode_raw(&mut head);
        let all_sent = Rc::new(tokio::sync::Notify::new());
        let sent_bytes = Rc::new(std::cell::Cell::new(0));
        let body = FileBody {
            head: Some(head.freeze()),
            pieces: arriving,
            status: peer.status.clone(),
            sent_bytes: sent_bytes.clone(),
            all_sent: all_sent.clone(),
        };
        let request = post_request(hub, &url, "/raft/snapshot", "application/octet-stream", body);
        let answer = sender.send_request(request);
        let too_late = async {
            all_sent.notified().await;
            tokio::time::sleep(ANSWER_TIMEOUT).await;
        };
        tokio::pin!(connection, answer);
        let response = tokio::select! {
            response = async {
                tokio::select! {
                    response = &mut answer => response,
                    // The connection's own end brings the answer, or why there is none.
                    ended = &mut connection => match ended {
                        Ok(()) => answer.await,
                        Err(error) => Err(error),
                    },
                }
            } => response?,
            () = too_late => return Err(PostError::TimedOut),
        };
        check_status(response.status())?;
        Ok(sent_bytes.get())
    }
    .await;
    if let Err(PostError::Io(_) | PostError::Http(_) | PostError::TimedOut) = result {
        peer.picker.failed(&url);
    }
    result
}

/// Pulls a file's pieces and passes them on, no faster than they are taken. Runs on its own thread.
fn pull(source: Source, pieces: &mpsc::Sender<Piece>) {
    for piece in source {
        let mut piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                let _ = pieces.blocking_send(Piece::Failed(error)); // whoever is gone needs no reason
                return;
            }
        };
        while !piece.is_empty() {
            let part = piece.split_to(piece.len().min(PIECE_BYTES));
            if pieces.blocking_send(Piece::Data(part)).is_err() {
                return;
            }
        }
    }
    let _ = pieces.blocking_send(Piece::End); // the same
}

/// The body of a post: the message, then the file as its pieces come.
struct FileBody {
    head: Option<Bytes>,
    pieces: mpsc::Receiver<Piece>,
    status: std::sync::Arc<crate::transport::Counters>,
    sent_bytes: Rc<std::cell::Cell<usize>>,
    all_sent: Rc<tokio::sync::Notify>,
}

impl http_body::Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let piece = match self.head.take() {
            Some(head) => head,
            None => match ready!(self.pieces.poll_recv(context)) {
                Some(Piece::Data(piece)) => piece,
                Some(Piece::End) => {
                    self.all_sent.notify_one();
                    return Poll::Ready(None);
                }
                Some(Piece::Failed(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    let error = io::Error::new(io::ErrorKind::UnexpectedEof, "the snapshot's reader stopped");
                    return Poll::Ready(Some(Err(error)));
                }
            },
        };
        self.sent_bytes.set(self.sent_bytes.get() + piece.len());
        self.status.count_sent(piece.len());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

/// Why a snapshot was not taken; the texts are etcd's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error("failed to decode raft message ({0})")]
    Undecodable(&'static str),
    #[error("wrong raft message type")]
    WrongType,
    #[error("failed to save KV snapshot ({0})")]
    NotSaved(String),
    #[error("failed to process raft message ({0})")]
    NotProcessed(String),
}

impl ReceiveError {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Undecodable(_) | Self::WrongType => StatusCode::BAD_REQUEST,
            Self::NotSaved(_) | Self::NotProcessed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Receives a snapshot: has its file saved, then steps its message.
pub(crate) async fn receive(hub: &Rc<Hub>, mut body: Incoming) -> Result<(), ReceiveError> {
    if hub.incoming_snapshots.get() >= MAX_INCOMING {
        return Err(ReceiveError::NotSaved("too many snapshots at once".into()));
    }
    let _counted = Counted::new(hub.clone());

    let (message, rest) = receive_message(&mut body).await?;
    if message.r#type() != MessageType::MsgSnap || message.snapshot.is_none() {
        return Err(ReceiveError::WrongType);
    }
    if message.to() != hub.config.member_id {
        return Err(ReceiveError::NotProcessed("not addressed to this member".into()));
    }
    let (from, index) = (message.from(), snapshot_index(&message));
    tracing::info!("remote-snapshot-sender-id" = %hex(from), "incoming-snapshot-index" = index, "receiving database snapshot");

    let (pieces, arriving) = mpsc::channel(QUEUED_PIECES);
    let local = hub.local.clone();
    let (done, mut saving) = oneshot::channel();
    let save = move || {
        let mut reader = FileReader { pieces: arriving, current: Bytes::new(), ended: false };
        let saved = local.save_snapshot(&message, &mut reader);
        let _ = done.send((message, saved)); // nobody waits any more when the member stops
    };
    disk::in_background("snapshot", save).map_err(|error| ReceiveError::NotSaved(error.to_string()))?;
    let pump = pump(hub, from, body, rest, pieces);
    tokio::pin!(pump);
    let mut is_pumping = true;
    let saved = loop {
        tokio::select! {
            saved = &mut saving => break saved,
            () = &mut pump, if is_pumping => is_pumping = false,
        }
    };
    let (message, saved) = saved.map_err(|error| ReceiveError::NotSaved(error.to_string()))?;
    saved.map_err(ReceiveError::NotSaved)?;
    tracing::info!("remote-snapshot-sender-id" = %hex(from), "incoming-snapshot-index" = index, "received and saved database snapshot");
    hub.local.step(message).map_err(|error| ReceiveError::NotProcessed(error.to_string()))
}

/// Counts as a snapshot that arrives until it is dropped.
struct Counted(Rc<Hub>);

impl Counted {
    fn new(hub: Rc<Hub>) -> Self {
        hub.incoming_snapshots.set(hub.incoming_snapshots.get() + 1);
        Self(hub)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.incoming_snapshots.set(self.0.incoming_snapshots.get() - 1);
    }
}

/// Receives the message part, and what came of the file along with it.
async fn receive_message(body: &mut Incoming) -> Result<(Message, Bytes), ReceiveError> {
    let mut gathered = BytesMut::new();
    let mut length = None;
    loop {
        if length.is_none() && gathered.len() >= 8 {
            let announced = gathered.get_u64();
            if announced > MAX_MESSAGE_BYTES {
                return Err(ReceiveError::Undecodable("rafthttp: error limit exceeded"));
            }
            length = Some(announced as usize);
        }
        if let Some(length) = length
            && gathered.len() >= length
        {
            let message = frame::decode_message(gathered.split_to(length).freeze());
            let message =
                message.map_err(|_| ReceiveError::Undecodable("proto: cannot parse invalid wire-format data"))?;
            return Ok((message, gathered.freeze()));
        }
        match timeout(READ_TIMEOUT, body.frame()).await {
            Ok(Some(Ok(frame))) => {
                if let Ok(piece) = frame.into_data() {
                    gathered.extend_from_slice(&piece);
                }
            }
            Ok(None) if gathered.is_empty() => return Err(ReceiveError::Undecodable("EOF")),
            Ok(None | Some(Err(_))) => return Err(ReceiveError::Undecodable("unexpected EOF")),
            Err(_) => return Err(ReceiveError::Undecodable("i/o timeout")),
        }
    }
}

/// Passes a body's pieces on until it ends or the other side has gone.
async fn pump(hub: &Hub, from: u64, mut body: Incoming, first: Bytes, pieces: mpsc::Sender<Piece>) {
    let peer = hub.peer(from);
    let mut piece = Piece::Data(first);
    loop {
        if let (Some(peer), Piece::Data(data)) = (&peer, &piece) {
            peer.status.count_received(data.len());
        }
        let is_last = !matches!(piece, Piece::Data(_));
        if pieces.send(piece).await.is_err() || is_last {
            return;
        }
        piece = match timeout(READ_TIMEOUT, body.frame()).await {
            Ok(None) => Piece::End,
            Ok(Some(Ok(frame))) => Piece::Data(frame.into_data().unwrap_or_default()),
            Ok(Some(Err(error))) => Piece::Failed(io::Error::new(io::ErrorKind::UnexpectedEof, error)),
            Err(_) => Piece::Failed(io::Error::new(io::ErrorKind::TimedOut, "i/o timeout")),
        };
    }
}

/// The file as [`crate::Local::save_snapshot`] reads it.
struct FileReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(piece)) => self.current = piece,
                Some(Piece::End) => self.ended = true,
                Some(Piece::Failed(error)) => return Err(error),
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed")),
            }
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
