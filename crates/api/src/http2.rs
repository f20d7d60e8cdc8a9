//! Plain HTTP over HTTP/2: the same answers as over HTTP/1.1.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::request::Parts;
use http::{Method, Response};

use crate::gateway::{Exchange, Piece};
use crate::http1::{MAX_BODY_BYTES, Payload};
use crate::ops::{self, Port};
use crate::v2::{Body, Watching};
use crate::worker::Worker;

/// The client has gone.
struct Gone;

impl From<h2::Error> for Gone {
    fn from(_: h2::Error) -> Self {
        Self
    }
}

/// Answers a request.
pub(crate) async fn serve(worker: Rc<Worker>, port: Port, head: Parts, body: RecvStream, send: SendResponse<Bytes>) {
    // Nobody is left who would want to know.
    let _ = answer(worker, port, head, body, send).await;
}

async fn answer(
    worker: Rc<Worker>,
    port: Port,
    head: Parts,
    body: RecvStream,
    mut send: SendResponse<Bytes>,
) -> Result<(), Gone> {
    let is_head = head.method == Method::HEAD;
    match ops::begin_gateway(&worker, port, &head) {
        Some(Ok(exchange)) => return run_exchange(&worker, &head, exchange, body, send).await,
        Some(Err(response)) => return whole(&mut send, response, is_head).await,
        None => {}
    }
    let payload = read_all(body).await?;
    let answer = ops::serve(&worker, port, head, payload).await;
    let (head, body) = Response::<Body>::from(answer).into_parts();
    match body {
        Body::Whole(body) => whole(&mut send, Response::from_parts(head, body), is_head).await,
        Body::Watch(watching) => {
            let stream = send.send_response(Response::from_parts(head, ()), false)?;
            events(&worker, watching, stream).await
        }
    }
}

async fn whole(send: &mut SendResponse<Bytes>, response: Response<Bytes>, is_head: bool) -> Result<(), Gone> {
    let (head, mut body) = response.into_parts();
    let is_empty = body.is_empty() || is_head;
    let mut stream = send.send_response(Response::from_parts(head, ()), is_empty)?;
    while !is_empty && !body.is_empty() {
        // In pieces, so that only what the client takes is kept twice.
        poll_fn(|cx| poll_room(&mut stream, cx)).await?;
        let piece = body.split_to(body.len().min(stream.capacity()));
        stream.send_data(piece, body.is_empty())?;
    }
    Ok(())
}

async fn read_all(mut body: RecvStream) -> Result<Payload, Gone> {
    let mut whole = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        let _ = body.flow_control().release_capacity(chunk.len());
        if whole.len() + chunk.len() > MAX_BODY_BYTES {
            return Ok(Err("http: POST too large"));
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(Ok(whole.freeze()))
}

/// Ready when the client's window takes something.
fn poll_room(stream: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
    loop {
        stream.reserve_capacity(1);
        if stream.capacity() > 0 {
            return Poll::Ready(Ok(()));
        }
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            _ => return Poll::Ready(Err(Gone)),
        }
    }
}

async fn events(worker: &Worker, mut watching: Box<Watching>, mut stream: SendStream<Bytes>) -> Result<(), Gone> {
    let mut closing = std::pin::pin!(crate::conn::closed(worker.shared.closing.clone()));
    loop {
        let event = poll_fn(|cx| {
            if stream.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Gone));
            }
            if closing.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(None));
            }
            ready!(poll_room(&mut stream, cx))?;
            watching.poll_next(cx).map(Ok)
        })
        .await?;
        let is_last = event.is_none() || watching.is_done();
        stream.send_data(event.unwrap_or_default(), is_last)?;
        if is_last {
            return Ok(());
        }
    }
}

/// Answers a request to the gateway, whose body may come while the answer goes.
async fn run_exchange(
    worker: &Worker,
    request: &Parts,
    mut exchange: Box<Exchange>,
    mut body: RecvStream,
    mut send: SendResponse<Bytes>,
) -> Result<(), Gone> {
    let mut stream: Option<SendStream<Bytes>> = None;
    loop {
        let piece = poll_fn(|cx| {
            let is_gone = match &mut stream {
                Some(stream) => {
                    let is_gone = stream.poll_reset(cx).is_ready();
                    if !is_gone {
                        ready!(poll_room(stream, cx))?;
                    }
                    is_gone
                }
                None => send.poll_reset(cx).is_ready(),
            };
            if is_gone {
                return Poll::Ready(Err(Gone));
            }
            loop {
                let has_fed = poll_feed(&mut exchange, &mut body, cx)?;
                if let Poll::Ready(piece) = exchange.poll_next(cx) {
                    return Poll::Ready(Ok(piece));
                }
                if !has_fed {
                    return Poll::Pending;
                }
            }
        })
        .await?;
        match piece {
            Some(Piece::Whole(mut response)) => {
                worker.shared.http.allow_origin(&request.headers, response.headers_mut());
                return whole(&mut send, response, request.method == Method::HEAD).await;
            }
            Some(Piece::Head(mut response)) => {
                worker.shared.http.allow_origin(&request.headers, response.headers_mut());
                stream = Some(send.send_response(response, false)?);
            }
            Some(Piece::Data(data)) => {
                if let Some(stream) = &mut stream {
                    stream.send_data(data, false)?;
                }
            }
            None => {
                if let Some(stream) = &mut stream {
                    stream.send_data(Bytes::new(), true)?;
                }
                return Ok(());
            }
        }
    }
}

fn poll_feed(exchange: &mut Exchange, body: &mut RecvStream, cx: &mut Context<'_>) -> Result<bool, Gone> {
    if exchange.has_whole_body() || !exchange.wants_input() {
        return Ok(false);
    }
    match body.poll_data(cx) {
        Poll::Pending => Ok(false),
        Poll::Ready(Some(Ok(chunk))) => {
            exchange.push(&chunk);
            let _ = body.flow_control().release_capacity(chunk.len());
            Ok(true)
        }
        Poll::Ready(Some(Err(_))) => Err(Gone),
        Poll::Ready(None) => {
            exchange.end_of_body();
            Ok(true)
        }
    }
}
