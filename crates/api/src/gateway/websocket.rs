//! The gateway over a WebSocket, for those who can neither send a body in pieces nor set headers: browsers. Each message is a
//! part of the request's body, each line of the answer a message.
//!
//! A token comes as `Sec-WebSocket-Protocol: Bearer, <token>`, or in the cookie `token`. Because a page's scripts may open a
//! WebSocket to anybody, and their browser adds its cookies, pages of other origins are refused unless `--cors` names them;
//! by default it names all of them.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use http::header::{
    AUTHORIZATION, CONNECTION, COOKIE, HOST, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::{Exchange, Piece, begin};
use crate::conn::closed;
use crate::ops::HttpOptions;
use crate::worker::Worker;

/// What the answer to a key is made with (RFC 6455, section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Whether a request asks for a WebSocket.
pub(crate) fn is_wanted(headers: &HeaderMap) -> bool {
    has_token(headers, &CONNECTION, "upgrade") && has_token(headers, &UPGRADE, "websocket")
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|found| found.trim().eq_ignore_ascii_case(token))
}

/// What a request to open a WebSocket is answered: the head that opens it, or the status of its refusal.
pub(crate) fn accept(head: &Parts, options: &HttpOptions) -> Result<Response<()>, StatusCode> {
    let key = head.headers.get(SEC_WEBSOCKET_KEY).filter(|key| {
        let decoded = STANDARD.decode(key.as_bytes());
        decoded.is_ok_and(|key| key.len() == 16)
    });
    let is_13 = has_token(&head.headers, &SEC_WEBSOCKET_VERSION, "13");
    let key = match key {
        Some(key) if is_13 && head.method == Method::GET => key,
        _ if head.method != Method::GET => return Err(StatusCode::METHOD_NOT_ALLOWED),
        _ => return Err(StatusCode::BAD_REQUEST),
    };
    if !is_welcome(&head.headers, options) {
        return Err(StatusCode::FORBIDDEN);
    }
    let digest = Sha1::new_with_prefix(key.as_bytes()).chain_update(GUID).finalize();
    let accept = HeaderValue::from_str(&STANDARD.encode(digest)).map_err(|_| StatusCode::BAD_REQUEST)?;
    let (mut response, ()) = Response::new(()).into_parts();
    response.status = StatusCode::SWITCHING_PROTOCOLS;
    response.headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    response.headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if protocol(&head.headers).is_some_and(|protocol| protocol.starts_with("Bearer")) {
        response.headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("Bearer"));
    }
    Ok(Response::from_parts(response, ()))
}

/// Whether the page from which the request comes, if it comes from one, may speak with us.
fn is_welcome(headers: &HeaderMap, options: &HttpOptions) -> bool {
    let Some(origin) = headers.get(ORIGIN).and_then(|origin| origin.to_str().ok()) else { return true };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let is_own = origin.split_once("://").is_some_and(|(_, of)| host.is_some_and(|host| of.eq_ignore_ascii_case(host)));
    is_own || options.cors.iter().any(|allowed| allowed == "*" || allowed == origin)
}

/// The answer to a request that opens no WebSocket.
pub(crate) fn refusal(status: StatusCode) -> Response<Bytes> {
    let mut response = Response::new(format!("{}\n", status.canonical_reason().unwrap_or_default()).into());
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    response
}

fn protocol(headers: &HeaderMap) -> Option<&str> {
    headers.get(SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()
}

/// The token, from where a browser can put it.
fn authorization(headers: &HeaderMap) -> Option<HeaderValue> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
    let mut cookies = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|cookie| cookie.trim().split_once('='));
    let token = match cookies.find(|(name, _)| *name == "token") {
        Some((_, token)) => token,
        // Some browsers put no blank behind the comma.
        None => protocol(headers)?.split_once("Bearer,")?.1.trim(),
    };
    HeaderValue::from_str(&format!("Bearer {token}")).ok()
}

/// Serves an open WebSocket until it is closed. `ahead`: what was read behind the request.
pub(crate) async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin,
    ahead: BytesMut,
    worker: &Rc<Worker>,
    name: &str,
    mut head: Parts,
) {
    if let Some(token) = authorization(&head.headers) {
        head.headers.insert(AUTHORIZATION, token);
    }
    let mut exchange = begin(worker, name, &head, true);
    drop(head);
    let max_bytes = super::max_text_bytes(worker);
    let config = WebSocketConfig::default().max_message_size(Some(max_bytes)).max_frame_size(Some(max_bytes));
    let mut socket = WebSocketStream::from_partially_read(io, ahead.to_vec(), Role::Server, Some(config)).await;
    let said = match &mut exchange {
        Ok(exchange) => converse(exchange, &mut socket, worker).await,
        Err(refusal) => say(&mut socket, super::error(refusal).body()).await,
    };
    if said.is_some() {
        // The other side may be gone; then it is closed as well.
        let _ = socket.close(None).await;
    }
}

/// `None`: the other side has gone.
async fn converse(
    exchange: &mut Exchange,
    socket: &mut WebSocketStream<impl AsyncRead + AsyncWrite + Unpin>,
    worker: &Rc<Worker>,
) -> Option<()> {
    enum Next {
        Asked(Message),
        Said(Option<Piece>),
        Gone,
    }
    let mut closing = pin!(closed(worker.shared.closing.clone()));
    loop {
        let next = poll_fn(|cx| {
            if closing.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Next::Said(None));
            }
            loop {
                let is_asked = exchange.wants_input();
                if is_asked && let Poll::Ready(message) = socket.poll_next_unpin(cx) {
                    return Poll::Ready(message.and_then(Result::ok).map_or(Next::Gone, Next::Asked));
                }
                if let Poll::Ready(piece) = exchange.poll_next(cx) {
                    return Poll::Ready(Next::Said(piece));
                }
                if is_asked || !exchange.wants_input() {
                    return Poll::Pending;
                }
            }
        });
        match next.await {
            Next::Asked(Message::Text(text)) => {
                exchange.push(text.as_bytes());
                exchange.push(b"\n");
            }
            Next::Asked(Message::Binary(bytes)) => {
                exchange.push(&bytes);
                exchange.push(b"\n");
            }
            Next::Asked(Message::Close(_)) | Next::Gone => return None,
            // Pings are answered by the library.
            Next::Asked(_) => {}
            Next::Said(Some(Piece::Whole(response))) => return say(socket, response.body()).await,
            Next::Said(Some(Piece::Head(_))) => {}
            Next::Said(Some(Piece::Data(line))) => say(socket, &line).await?,
            Next::Said(None) => return Some(()),
        }
    }
}

async fn say(socket: &mut WebSocketStream<impl AsyncRead + AsyncWrite + Unpin>, text: &[u8]) -> Option<()> {
    let text = std::str::from_utf8(text).unwrap_or_default().trim_end();
    if text.is_empty() {
        return Some(());
    }
    socket.send(Message::text(text)).await.ok()
}
