//! The peer port: takes connections, finds out what is asked, checks who asks.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ALLOW, CONTENT_LENGTH, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prost::Message as _;
use proto::etcdserverpb as pb;
use proto::leasepb::{LeaseInternalRequest, LeaseInternalResponse};
use serde::Deserialize;
use tls::{Acceptor, Pending, Socket, Stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::calls::{self, V2_DIGEST};
use crate::frame::{self, MAX_FRAME_BYTES};
use crate::headers::{self, CLUSTER_ID, RAFT_TO, Refusal, SERVER_VERSION, answer, check_cluster, error};
use crate::hub::{Hub, StreamKind, travels};
use crate::io::{MAX_BUFFER_BYTES, Wire};
use crate::local::{HashError, LeaseError, PromoteError};
use crate::outlet::{Body, StreamBody};
use crate::{probe, snapshot};

/// How long a peer may take for a head, for each piece of a body, and between two requests; as in etcd.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Most connections at once. A member needs about ten of each peer.
const MAX_CONNECTIONS: usize = 1024;
/// Most TLS handshakes at once.
pub(crate) const MAX_HANDSHAKES: usize = 256;
/// What a request other than a raft message may be long.
const MAX_REQUEST_BYTES: u64 = 1 << 20;
/// After accepting failed, as it does when there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The connections that are open.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connections(Rc<(Cell<usize>, Notify)>);

impl Connections {
    /// Returns when the last connection has ended.
    pub(crate) async fn wait_until_none(&self) {
        while self.0.0.get() > 0 {
            self.0.1.notified().await;
        }
    }

    fn open(&self) -> Option<OpenConnection> {
        let count = &self.0.0;
        (count.get() < MAX_CONNECTIONS).then(|| {
            count.set(count.get() + 1);
            OpenConnection(self.clone())
        })
    }
}

/// Counts as a connection until it is dropped.
struct OpenConnection(Connections);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let (count, changed) = &*self.0.0;
        count.set(count.get() - 1);
        changed.notify_one();
    }
}

/// A listener, and TLS if it is spoken there.
pub(crate) type Registered = (TcpListener, Option<Arc<Acceptor>>);

/// Takes connections for as long as it is not aborted.
pub(crate) async fn accept(hub: Rc<Hub>, (listener, tls): Registered, handshakes: Pending, connections: Connections) {
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection from a peer");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (hub, tls) = (hub.clone(), tls.clone());
        let (handshakes, connections) = (handshakes.clone(), connections.clone());
        tokio::task::spawn_local(async move {
            let Some(stream) = begin(stream, remote, tls.as_deref(), &handshakes).await else { return };
            // A connection beyond the limit is closed again.
            let Some(_open) = connections.open() else { return };
            serve_connection(hub, Wire::accepted(stream)).await;
        });
    }
}

/// What the peer and this member speak through; none if it is broken already or the peer is not let in.
async fn begin(stream: TcpStream, remote: SocketAddr, tls: Option<&Acceptor>, handshakes: &Pending) -> Option<Stream> {
    stream.set_nodelay(true).ok()?;
    let Some(tls) = tls else { return Some(stream.into()) };
    match handshakes.run(tls.accept(Socket::Tcp(stream), Some(remote.ip()))).await? {
        Ok((stream, _)) => Some(stream),
        Err(refused) => {
            refused.log("peer", &remote.to_string());
            None
        }
    }
}

async fn serve_connection(hub: Rc<Hub>, wire: Wire) {
    let service = service_fn(|request| respond(hub.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .max_buf_size(MAX_BUFFER_BYTES)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(wire), service);
    let mut connection = std::pin::pin!(connection);
    let mut closing = hub.closing.subscribe();
    let closed = async {
        if closing.wait_for(|closing| *closing).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = closed => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a peer's connection ended");
    }
}

/// The request is answered by closing its connection.
#[derive(Debug, thiserror::Error)]
#[error("request cannot be answered")]
struct Hang;

type Answer = Result<Response<Body>, Hang>;

async fn respond(hub: Rc<Hub>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let is = |method: Method| head.method == method;
    match path.as_str() {
        "/raft" if !is(Method::POST) => Ok(wrong_method(Some("POST"))),
        "/raft" => with_cluster_id(&hub, raft(&hub, &head, body).await),
        "/raft/snapshot" if !is(Method::POST) => Ok(wrong_method(Some("POST"))),
        "/raft/snapshot" => with_cluster_id(&hub, snapshot(&hub, &head, body).await),
        "/raft/probing" => Ok(probe::respond()),
        "/members" | "/version" | "/members/hashkv" | V2_DIGEST | "/downgrade/enabled" if !is(Method::GET) => {
            Ok(wrong_method(Some("GET")))
        }
        "/members" => {
            let mut members = hub.local.members();
            members.push(b'\n');
            with_cluster_id(&hub, Ok(answer("application/json", members)))
        }
        "/version" => Ok(answer("application/json", hub.local.version())),
        "/members/hashkv" => hash_kv(&hub, &head, body).await,
        V2_DIGEST => Ok(v2_digest(&hub, &head).await),
        "/downgrade/enabled" => with_cluster_id(&hub, Ok(downgrade_enabled(&hub).await)),
        "/leases" | "/leases/internal" if !is(Method::POST) => Ok(wrong_method(None)),
        "/leases" => Ok(renew_lease(&hub, &head, body).await),
        "/leases/internal" => Ok(remaining_lease(&hub, &head, body).await),
        _ => {
            if path.starts_with("/raft/stream/") {
                if !is(Method::GET) {
                    return Ok(wrong_method(Some("GET")));
                }
                let mut answer = with_cluster_id(&hub, stream(&hub, &head, &path))?;
                answer.headers_mut().insert(SERVER_VERSION, HeaderValue::from_static(hub.config.server_version));
                Ok(answer)
            } else if let Some(id) = path.strip_prefix("/members/promote/") {
                if !is(Method::POST) {
                    return Ok(wrong_method(Some("POST")));
                }
                with_cluster_id(&hub, Ok(promote(&hub, id).await))
            } else {
                Ok(error(StatusCode::NOT_FOUND, "404 page not found"))
            }
        }
    }
}

fn with_cluster_id(hub: &Hub, answer: Answer) -> Answer {
    let mut answer = answer?;
    if let Ok(id) = HeaderValue::try_from(format!("{:x}", hub.config.cluster_id)) {
        answer.headers_mut().insert(CLUSTER_ID, id);
    }
    Ok(answer)
}

fn wrong_method(allowed: Option<&'static str>) -> Response<Body> {
    let mut refusal = error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    if let Some(allowed) = allowed {
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    }
    refusal
}

fn no_content() -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

/// Checks version and cluster; gives what to answer if the request is refused.
fn refuse(hub: &Hub, headers: &HeaderMap) -> Option<Answer> {
    check_cluster(&hub.config, headers).err().map(|refusal| match refusal {
        Refusal::Precondition(text) => Ok(error(StatusCode::PRECONDITION_FAILED, text)),
        Refusal::Hang => Err(Hang),
    })
}

/// A sender that this member does not know yet, because it is behind, is remembered with the URLs that it tells.
fn remember(hub: &Rc<Hub>, headers: &HeaderMap) {
    if let Some((id, urls)) = headers::sender(headers) {
        hub.remember(id, &urls);
    }
}

/// Reads a body of limited length. `Err` holds what to answer: the text is that of the request in question.
async fn read_body(
    headers: &HeaderMap,
    body: Incoming,
    limit: u64,
    unreadable: &'static str,
) -> Result<Bytes, Response<Body>> {
    let refused = || error(StatusCode::BAD_REQUEST, unreadable);
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(refused());
    }
    let mut body = body;
    let mut read = Bytes::new();
    let mut gathered = BytesMut::new();
    loop {
        match timeout(READ_TIMEOUT, body.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => {
                let Ok(piece) = frame.into_data() else { continue };
                if (read.len() + gathered.len() + piece.len()) as u64 > limit {
                    return Err(refused());
                }
                if read.is_empty() && gathered.is_empty() {
                    read = piece;
                } else {
                    gathered.extend_from_slice(&std::mem::take(&mut read));
                    gathered.extend_from_slice(&piece);
                }
            }
            Ok(Some(Err(_))) | Err(_) => return Err(refused()),
        }
    }
    Ok(if gathered.is_empty() { read } else { gathered.freeze() })
}

async fn raft(hub: &Rc<Hub>, head: &Parts, body: Incoming) -> Answer {
    if let Some(answer) = refuse(hub, &head.headers) {
        return answer;
    }
    remember(hub, &head.headers);
    let body = match read_body(&head.headers, body, MAX_FRAME_BYTES, "error reading raft message").await {
        Ok(body) => body,
        Err(answer) => return Ok(answer),
    };
    let length = body.len();
    let Ok(message) = frame::decode_message(body) else {
        return Ok(error(StatusCode::BAD_REQUEST, "error unmarshalling raft message"));
    };
    if let Some(peer) = hub.peer(message.from()) {
        peer.status.count_received(length);
    }
    let refused = || error(StatusCode::INTERNAL_SERVER_ERROR, "error processing raft message");
    if message.to() != hub.config.member_id {
        return Ok(refused());
    }
    if !travels(&message) {
        return Ok(no_content());
    }
    Ok(match hub.local.step(message) {
        Ok(()) => no_content(),
        Err(error) => {
            tracing::debug!(%error, "failed to process a raft message");
            refused()
        }
    })
}

async fn snapshot(hub: &Rc<Hub>, head: &Parts, body: Incoming) -> Answer {
    if let Some(answer) = refuse(hub, &head.headers) {
        return answer;
    }
    remember(hub, &head.headers);
    Ok(match snapshot::receive(hub, body).await {
        Ok(()) => no_content(),
        Err(refusal) => {
            tracing::warn!(error = %refusal, "failed to receive a snapshot");
            error(refusal.status(), refusal)
        }
    })
}

/// Opens a stream to the peer that asks for it.
fn stream(hub: &Rc<Hub>, head: &Parts, path: &str) -> Answer {
    if let Some(answer) = refuse(hub, &head.headers) {
        return answer;
    }
    let rest = path.strip_prefix("/raft/stream/").unwrap_or(path);
    let (kind, from) = match rest.split_once('/') {
        Some(("message", from)) => (StreamKind::Message, from),
        Some(("msgapp", from)) => (StreamKind::Append, from),
        _ => return Ok(error(StatusCode::NOT_FOUND, "invalid path")),
    };
    let Some(from) = parse_id(from) else {
        return Ok(error(StatusCode::NOT_FOUND, "invalid from"));
    };
    if hub.local.is_removed(from) {
        return Ok(error(StatusCode::GONE, "removed member"));
    }
    let Some(peer) = hub.peer(from).filter(|peer| !peer.is_remote) else {
        // It may be a member that this one does not know of yet, because it is behind.
        if let Some((_, urls)) = headers::sender(&head.headers) {
            hub.remember(from, &urls);
        }
        return Ok(error(StatusCode::NOT_FOUND, "error sender not found"));
    };
    if headers::id(&head.headers, RAFT_TO) != Some(hub.config.member_id) {
        return Ok(error(StatusCode::PRECONDITION_FAILED, "to field mismatch"));
    }
    let outlet = hub.attach(&peer, kind);
    Ok(Response::new(Body::Stream(Box::new(StreamBody::new(hub.clone(), peer, kind, outlet)))))
}

/// An ID in hex, as Go parses it: no sign, no prefix.
fn parse_id(text: &str) -> Option<u64> {
    if text.starts_with('+') { None } else { u64::from_str_radix(text, 16).ok() }
}

async fn promote(hub: &Hub, id: &str) -> Response<Body> {
    let Ok(id) = id.parse::<u64>() else {
        return error(StatusCode::NOT_FOUND, format_args!("member {id} not found in cluster"));
    };
    match hub.local.promote(id).await {
        Ok(mut members) => {
            members.push(b'\n');
            answer("application/json", members)
        }
        Err(failure @ PromoteError::NotFound) => error(StatusCode::NOT_FOUND, failure),
        Err(failure @ (PromoteError::NotLearner | PromoteError::NotReady)) => {
            error(StatusCode::PRECONDITION_FAILED, failure)
        }
        Err(PromoteError::Other(text)) => {
            tracing::warn!(error = text, "failed to promote a member");
            let mut failure = answer("application/json", r#"{"message":"Internal Server Error"}"#);
            *failure.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            failure
        }
    }
}

async fn hash_kv(hub: &Hub, head: &Parts, body: Incoming) -> Answer {
    #[derive(Deserialize)]
    struct HashRequest {
        #[serde(default)]
        revision: i64,
    }
    if head.headers.contains_key(CLUSTER_ID) && headers::id(&head.headers, CLUSTER_ID) != Some(hub.config.cluster_id) {
        return with_cluster_id(hub, Ok(error(StatusCode::PRECONDITION_FAILED, headers::CLUSTER_MISMATCH)));
    }
    let body = match read_body(&head.headers, body, MAX_REQUEST_BYTES, "error reading body").await {
        Ok(body) => body,
        Err(answer) => return Ok(answer),
    };
    let Ok(HashRequest { revision }) = serde_json::from_slice(&body) else {
        return Ok(error(StatusCode::BAD_REQUEST, "error unmarshalling request"));
    };
    match hub.local.hash_kv(revision).await {
        Ok(hash) => with_cluster_id(hub, Ok(answer("application/json", calls::hash_body(&hash)))),
        Err(failure @ (HashError::Compacted | HashError::Future)) => Ok(error(StatusCode::BAD_REQUEST, failure)),
        Err(failure @ HashError::Other(_)) => Ok(error(StatusCode::INTERNAL_SERVER_ERROR, failure)),
    }
}

/// The query is `log_index=N`; the answer a number in hex.
async fn v2_digest(hub: &Hub, head: &Parts) -> Response<Body> {
    if headers::id(&head.headers, CLUSTER_ID) != Some(hub.config.cluster_id) {
        return error(StatusCode::PRECONDITION_FAILED, headers::CLUSTER_MISMATCH);
    }
    let asked = head.uri.query().and_then(|query| query.strip_prefix("log_index=")?.parse().ok());
    let Some(log_index) = asked else { return error(StatusCode::BAD_REQUEST, "no log index") };
    match hub.local.v2_digest(log_index).await {
        Some(digest) => answer("text/plain", format!("{digest:x}")),
        None => error(StatusCode::CONFLICT, "not known any more, or not yet"),
    }
}

async fn downgrade_enabled(hub: &Hub) -> Response<Body> {
    match hub.local.downgrade_enabled().await {
        Ok(enabled) => answer("text/plain", enabled.to_string()),
        Err(text) => error(StatusCode::INTERNAL_SERVER_ERROR, text),
    }
}

/// Reads and decodes a lease request.
async fn lease_request<M: prost::Message + Default>(head: &Parts, body: Incoming) -> Result<M, Response<Body>> {
    let body = read_body(&head.headers, body, MAX_REQUEST_BYTES, "error reading body").await?;
    M::decode(body).map_err(|_| error(StatusCode::BAD_REQUEST, "error unmarshalling request"))
}

async fn renew_lease(hub: &Hub, head: &Parts, body: Incoming) -> Response<Body> {
    let request: pb::LeaseKeepAliveRequest = match lease_request(head, body).await {
        Ok(request) => request,
        Err(answer) => return answer,
    };
    match hub.local.renew_lease(request.id).await {
        Ok(ttl) => {
            let renewed = pb::LeaseKeepAliveResponse { id: request.id, ttl, ..Default::default() };
            answer("application/protobuf", renewed.encode_to_vec())
        }
        Err(failure) => lease_failure(&failure),
    }
}

async fn remaining_lease(hub: &Hub, head: &Parts, body: Incoming) -> Response<Body> {
    let request: LeaseInternalRequest = match lease_request(head, body).await {
        Ok(request) => request,
        Err(answer) => return answer,
    };
    // An etcd ends the connection when the inner request is absent; no lease has the ID zero.
    let request = request.lease_time_to_live_request.unwrap_or_default();
    match hub.local.remaining_lease(request.id, request.keys).await {
        Ok(lease) => {
            let remaining = pb::LeaseTimeToLiveResponse {
                header: Some(pb::ResponseHeader::default()),
                id: lease.id,
                ttl: lease.ttl,
                granted_ttl: lease.granted_ttl,
                keys: lease.keys,
            };
            let response = LeaseInternalResponse { lease_time_to_live_response: Some(remaining) };
            answer("application/protobuf", response.encode_to_vec())
        }
        Err(failure) => lease_failure(&failure),
    }
}

fn lease_failure(failure: &LeaseError) -> Response<Body> {
    let status = match failure {
        LeaseError::NotFound => StatusCode::NOT_FOUND,
        LeaseError::NotPrimary => StatusCode::BAD_REQUEST,
        LeaseError::Timeout => StatusCode::REQUEST_TIMEOUT,
        LeaseError::Other(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    error(status, failure)
}
