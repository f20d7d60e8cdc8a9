//! The way for messages while a stream is away: one `POST /raft` each.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use prost::Message as _;
use proto::raftpb::Message;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::appends::is_append;
use crate::headers;
use crate::hub::{Hub, Peer, hex};
use crate::io::{Wire, handshake};
use crate::queue::MessageQueue;
use crate::url::PeerUrl;

/// How many posts to a peer may be under way.
pub(crate) const CONNECTIONS: usize = 4;
/// How many messages may wait for one of them.
const MAX_QUEUED: usize = 64;
/// How long an answer may take. The write has its own limit, so this is for raft to take the message.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages that wait to be posted to a peer.
#[derive(Debug, Default)]
pub(crate) struct Pipeline {
    messages: MessageQueue,
    filled: Notify,
}

impl Pipeline {
    /// Adds a message; false if too much waits already.
    pub(crate) fn push(&self, message: Message, max_bytes: usize) -> bool {
        let fits = self.messages.push(message, MAX_QUEUED, max_bytes);
        self.filled.notify_one();
        fits
    }

    async fn pop(&self) -> Message {
        loop {
            if let Some((message, _)) = self.messages.pop() {
                if !self.messages.is_empty() {
                    self.filled.notify_one();
                }
                return message;
            }
            self.filled.notified().await;
        }
    }
}

/// Why a message was not delivered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PostError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("no answer in time")]
    TimedOut,
    #[error("no usable URL")]
    NoUrl,
    #[error("the member has been permanently removed from the cluster")]
    Removed,
    #[error("unexpected http status {}", .0.as_u16())]
    Status(StatusCode),
}

/// Looks at the status of an answer to a post.
pub(crate) fn check_status(status: StatusCode) -> Result<(), PostError> {
    match status {
        StatusCode::NO_CONTENT => Ok(()),
        StatusCode::FORBIDDEN | StatusCode::GONE => Err(PostError::Removed),
        other => Err(PostError::Status(other)),
    }
}

/// A connection that is kept between posts.
type Kept = Option<(PeerUrl, SendRequest<Full<Bytes>>)>;

/// Posts what waits, one after the other. Several of these run for each peer.
pub(crate) async fn run(hub: Rc<Hub>, peer: Rc<Peer>) {
    let mut kept = None;
    loop {
        let message = peer.pipeline.pop().await;
        let body = Bytes::from(message.encode_to_vec());
        let (length, begun) = (body.len(), Instant::now());
        match deliver(&hub, &peer, &mut kept, body).await {
            Ok(()) => {
                hub.became_active(&peer);
                peer.status.count_sent(length);
                if is_append(&message) {
                    hub.shared.appends.left(peer.id, begun.elapsed());
                }
            }
            Err(error) => {
                hub.became_inactive(&peer, &error);
                peer.status.count_send_failure();
                if is_append(&message) {
                    hub.shared.appends.failed(peer.id);
                }
                tracing::debug!("remote-peer-id" = %hex(peer.id), %error, "failed to post a message");
                if matches!(error, PostError::Removed) {
                    hub.local.removed(peer.id);
                }
                hub.local.report_unreachable(peer.id);
            }
        }
    }
}

/// Posts a message, on the kept connection if it still works.
async fn deliver(hub: &Hub, peer: &Peer, kept: &mut Kept, body: Bytes) -> Result<(), PostError> {
    let url = peer.picker.pick().ok_or(PostError::NoUrl)?;
    if let Some((to, sender)) = kept.as_mut()
        && *to == url
        && !sender.is_closed()
    {
        match post(hub, &url, sender, body.clone()).await {
            // The peer may close an idle connection just when it is used again. Raft messages may arrive twice.
            Err(PostError::Http(_)) => {}
            result => return result,
        }
    }
    *kept = None;
    let result = async {
        let wire = Wire::connect(&hub.config.dialer, &url, hub.config.dial_timeout).await?;
        let (mut sender, connection) = handshake(wire).await?;
        tokio::task::spawn_local(async move {
            // How it ends is seen by whoever uses it.
            let _ = connection.await;
        });
        post(hub, &url, &mut sender, body).await?;
        *kept = Some((url.clone(), sender));
        Ok(())
    }
    .await;
    if let Err(PostError::Io(_) | PostError::Http(_) | PostError::TimedOut) = result {
        peer.picker.failed(&url);
    }
    result
}

async fn post(hub: &Hub, url: &PeerUrl, sender: &mut SendRequest<Full<Bytes>>, body: Bytes) -> Result<(), PostError> {
    sender.ready().await?;
    let request = post_request(hub, url, "/raft", "application/protobuf", Full::new(body));
    let response = timeout(ANSWER_TIMEOUT, sender.send_request(request)).await.map_err(|_| PostError::TimedOut)??;
    check_status(response.status())
}

/// A post with the headers by which this member introduces itself.
pub(crate) fn post_request<B>(
    hub: &Hub,
    url: &PeerUrl,
    path: &'static str,
    content_type: &'static str,
    body: B,
) -> Request<B> {
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static(path);
    let headers = request.headers_mut();
    let introduction = headers::introduction(&hub.config);
    for (name, value) in [(HOST, url.authority.clone())].into_iter().chain(introduction) {
        // A URL that is no header value was refused by whoever checked the flags.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    request
}
