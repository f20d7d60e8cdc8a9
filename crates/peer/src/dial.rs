//! The receiving end of a stream: dial the peer, ask for the stream, read it until it ends, begin again.

use std::fmt::Write as _;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::chunked::{ChunkDecoder, ChunkError};
use crate::frame::{Decoder, FrameError};
use crate::headers::{self, RAFT_TO};
use crate::hub::{Hub, Peer, StreamKind, hex};
use crate::io::{Dialer, Wire, title_case};
use crate::url::PeerUrl;

/// At most one dial per stream in this time, as etcd does.
const REDIAL_INTERVAL: Duration = Duration::from_millis(100);
/// A stream that brings nothing for so long, not even a link heartbeat, is given up.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest head of an answer.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// What is read of the text of a refusal.
const MAX_REFUSAL_BYTES: usize = 1 << 10;
/// What is read at once. An entry that lives on keeps this much memory with it at worst.
const READ_BYTES: usize = 64 << 10;
/// With less room than this, a new buffer is begun.
const MIN_READ_BYTES: usize = 8 << 10;
/// When to look whether a peer whose connections were cut still listens. While a process dies, its sockets are closed
/// one by one, and a dial may still reach the last of them.
const GONE_CHECKS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(2), Duration::from_millis(10), Duration::from_millis(40)];
/// How long such a look may take. A host that does not answer is not known to be gone.
const GONE_CHECK_TIMEOUT: Duration = Duration::from_millis(50);

/// Why a peer gave no stream.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the member has been permanently removed from the cluster")]
    Removed,
    #[error("{}: {text}", status.as_u16())]
    Refused { status: StatusCode, text: String },
    #[error("malformed answer: {0}")]
    Malformed(String),
}

impl DialError {
    /// Could the process behind the address be dead?
    fn is_cut(&self) -> bool {
        use io::ErrorKind as Kind;
        let Self::Io(error) = self else { return false };
        matches!(
            error.kind(),
            Kind::ConnectionRefused
                | Kind::ConnectionReset
                | Kind::ConnectionAborted
                | Kind::BrokenPipe
                | Kind::UnexpectedEof
        )
    }
}

/// How a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("EOF")]
    Ended,
    #[error("unexpected EOF")]
    Closed,
    #[error("nothing received for {} seconds", SILENCE_TIMEOUT.as_secs())]
    Silent,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Chunk(#[from] ChunkError),
    #[error("{0}")]
    Frame(#[from] FrameError),
}

/// Keeps one stream from a peer open for as long as it is a peer.
pub(crate) async fn run(hub: Rc<Hub>, peer: Rc<Peer>, kind: StreamKind) {
    let mut was_lost = false;
    let mut last_error = String::new();
    loop {
        let next_dial = Instant::now() + REDIAL_INTERVAL;
        if let Some(url) = peer.picker.pick() {
            match dial(&hub, &peer, kind, &url).await {
                Ok(stream) => {
                    peer.told_gone.set(false);
                    last_error.clear();
                    hub.became_active(&peer);
                    log_stream(&hub, &peer, kind, "established TCP streaming connection with remote peer", None);
                    let end = follow(&hub, &peer, kind, stream).await;
                    if !matches!(end, End::Ended) {
                        peer.status.count_receive_failure();
                    }
                    hub.became_inactive(&peer, &end);
                    log_stream(&hub, &peer, kind, "lost TCP streaming connection with remote peer", Some(&end));
                    was_lost = true;
                }
                Err(error) => {
                    peer.picker.failed(&url);
                    hub.became_inactive(&peer, &error);
                    let text = error.to_string();
                    // Ten times a second the same line would help nobody.
                    if text != last_error {
                        tracing::warn!("remote-peer-id" = %hex(peer.id), "stream-reader-type" = kind.name(), error = text, "failed to dial a stream of remote peer");
                        last_error = text;
                    }
                    if matches!(error, DialError::Removed) {
                        hub.local.removed(peer.id);
                    }
                    if std::mem::take(&mut was_lost)
                        && error.is_cut()
                        && nobody_listens(&hub.config.dialer, &peer, &error).await
                    {
                        tell_gone(&hub, &peer);
                    }
                }
            }
        }
        sleep_until(next_dial).await;
    }
}

fn log_stream(hub: &Hub, peer: &Peer, kind: StreamKind, event: &str, end: Option<&End>) {
    let (local, remote, reader) = (hex(hub.config.member_id), hex(peer.id), kind.name());
    match end {
        None => {
            tracing::info!("stream-reader-type" = reader, "local-member-id" = %local, "remote-peer-id" = %remote, "{event}")
        }
        Some(end) => {
            tracing::warn!("stream-reader-type" = reader, "local-member-id" = %local, "remote-peer-id" = %remote, error = %end, "{event}");
        }
    }
}

fn tell_gone(hub: &Hub, peer: &Peer) {
    if !peer.told_gone.replace(true) {
        tracing::info!("remote-peer-id" = %hex(peer.id), "remote peer closed its connections and listens no more");
        hub.local.peer_gone(peer.id);
    }
}

/// Is the connection refused at every address of the peer?
async fn nobody_listens(dialer: &Dialer, peer: &Peer, first: &DialError) -> bool {
    let urls = peer.picker.all();
    let was_refused = matches!(first, DialError::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused);
    if was_refused && urls.len() == 1 {
        return true;
    }
    for pause in GONE_CHECKS {
        sleep(pause).await;
        let mut refused = 0;
        for url in &urls {
            match Wire::connect(dialer, url, GONE_CHECK_TIMEOUT).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => refused += 1,
                _ => break,
            }
        }
        if refused == urls.len() {
            return true;
        }
    }
    false
}

/// A stream that has begun, and what was read of its body along with the head.
struct Stream {
    wire: Wire,
    raw: BytesMut,
}

async fn dial(hub: &Hub, peer: &Peer, kind: StreamKind, url: &PeerUrl) -> Result<Stream, DialError> {
    let deadline = Instant::now() + hub.config.dial_timeout;
    let timed_out = |_| io::Error::new(io::ErrorKind::TimedOut, "dial timed out");
    let mut wire = Wire::connect(&hub.config.dialer, url, hub.config.dial_timeout).await?;
    let request = request(hub, peer, kind, url);
    timeout_at(deadline, wire.write_all(request.as_bytes())).await.map_err(timed_out)??;
    timeout_at(deadline, wire.flush()).await.map_err(timed_out)??;

    let mut raw = BytesMut::with_capacity(READ_BYTES);
    let head = loop {
        if timeout_at(deadline, wire.read_buf(&mut raw)).await.map_err(timed_out)?? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if let Some(head) = parse_head(&raw)? {
            break head;
        }
        if raw.len() >= MAX_HEAD_BYTES {
            return Err(DialError::Malformed("head too long".into()));
        }
    };
    raw.advance(head.length);
    match head.status {
        StatusCode::OK if head.is_chunked => Ok(Stream { wire, raw }),
        StatusCode::OK => Err(DialError::Malformed("not in chunked encoding".into())),
        StatusCode::GONE => Err(DialError::Removed),
        status => {
            let wanted = head.content_length.min(MAX_REFUSAL_BYTES);
            while raw.len() < wanted && timeout_at(deadline, wire.read_buf(&mut raw)).await.map_err(timed_out)?? > 0 {}
            raw.truncate(wanted);
            Err(DialError::Refused { status, text: String::from_utf8_lossy(&raw).trim_end().to_owned() })
        }
    }
}

fn request(hub: &Hub, peer: &Peer, kind: StreamKind, url: &PeerUrl) -> String {
    let mut request = format!(
        "GET /raft/stream/{}/{:x} HTTP/1.1\r\nHost: {}\r\nUser-Agent: keelson\r\n",
        kind.path(),
        hub.config.member_id,
        url.authority
    );
    let to = (RAFT_TO, format!("{:x}", peer.id));
    for (name, value) in headers::introduction(&hub.config).iter().chain([&to]) {
        // Writing to a string does not fail.
        let _ = write!(request, "{}: {value}\r\n", title_case(name));
    }
    request.push_str("\r\n");
    request
}

/// What matters of an answer's head.
struct Head {
    length: usize,
    status: StatusCode,
    is_chunked: bool,
    content_length: usize,
}

fn parse_head(raw: &[u8]) -> Result<Option<Head>, DialError> {
    let malformed = |what: &dyn std::fmt::Display| DialError::Malformed(what.to_string());
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(raw).map_err(|error| malformed(&error))? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Ok(None),
    };
    let status = StatusCode::from_u16(response.code.unwrap_or(0)).map_err(|error| malformed(&error))?;
    let value = |name: &str| {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok()
    };
    Ok(Some(Head {
        length,
        status,
        is_chunked: value("transfer-encoding").is_some_and(|coding| coding.trim().eq_ignore_ascii_case("chunked")),
        content_length: value("content-length").and_then(|length| length.trim().parse().ok()).unwrap_or(0),
    }))
}

/// Reads a stream until it ends, and says why it did.
async fn follow(hub: &Hub, peer: &Peer, kind: StreamKind, stream: Stream) -> End {
    let Err(end) = read(hub, peer, kind, stream).await;
    end
}

async fn read(hub: &Hub, peer: &Peer, kind: StreamKind, stream: Stream) -> Result<std::convert::Infallible, End> {
    let Stream { mut wire, mut raw } = stream;
    let mut chunks = ChunkDecoder::new();
    let mut plain = BytesMut::new();
    let mut decoder = match kind {
        StreamKind::Message => Decoder::message(),
        StreamKind::Append => Decoder::append(peer.id, hub.config.member_id),
    };
    let mut messages = Vec::new();
    let mut heard = Instant::now();
    let mut alarm = pin!(sleep_until(heard + SILENCE_TIMEOUT));
    loop {
        let framing = chunks.decode(&mut raw, &mut plain);
        let content = decoder.decode(&mut plain, &mut messages);
        hub.receive(&mut messages);
        framing?;
        content?;
        if chunks.is_done() {
            return Err(End::Ended);
        }
        if raw.capacity() - raw.len() < MIN_READ_BYTES {
            raw.reserve(READ_BYTES);
        }
        let count = loop {
            tokio::select! {
                biased;
                count = wire.read_buf(&mut raw) => break count?,
                // The alarm is set anew only when it rings, not with every read.
                () = &mut alarm => {
                    let due = heard + SILENCE_TIMEOUT;
                    if due <= Instant::now() {
                        return Err(End::Silent);
                    }
                    alarm.as_mut().reset(due);
                }
            }
        };
        if count == 0 {
            return Err(End::Closed);
        }
        heard = Instant::now();
        peer.status.count_received(count);
    }
}
