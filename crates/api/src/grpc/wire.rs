//! gRPC's framing: length-prefixed messages in a request body, headers and trailers around a response.

use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use tokio::time::Instant;

use crate::auth::Access;
use crate::caller::Caller;
use crate::grpc::method::Method;
use crate::grpc::pipe::Requests;
pub(crate) use crate::grpc::sink::Sink;
use crate::grpc::sink::StreamSink;
use crate::load::{self, By};
use crate::slow::{self, Ended, Subject};
use crate::status::{Code, Refusal, message_header};
use crate::timing::{Part, Parts, Way};
use crate::worker::Worker;

/// Bytes before each message: a compression flag and the length.
pub(crate) const PREFIX_BYTES: usize = 5;

/// How much larger than a log request a gRPC message may be: what surrounds the keys and values needs room, too.
pub(crate) const MESSAGE_OVERHEAD_BYTES: usize = 512 << 10;

/// What a byte in a stream of answers costs, roughly; see [`load`].
const BYTE: Duration = Duration::from_nanos(1);

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
static GRPC_CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// Cuts a request body into messages. Holds at most one message and one DATA frame.
#[derive(Debug)]
pub(crate) struct Messages {
    /// The unread rest of one DATA frame; a message that lies in it is handed out without a copy.
    front: Bytes,
    /// A message that spans frames, while it grows. Only used while `front` is empty.
    spill: BytesMut,
    max_bytes: usize,
}

impl Messages {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { front: Bytes::new(), spill: BytesMut::new(), max_bytes }
    }

    /// Takes the next DATA frame.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        if self.spill.is_empty() && self.front.is_empty() {
            self.front = chunk;
        } else {
            self.spill.extend_from_slice(&self.front);
            self.front.clear();
            self.spill.extend_from_slice(&chunk);
        }
    }

    /// The next whole message. `None`: more frames are needed.
    pub(crate) fn next(&mut self, encoding: Option<&HeaderValue>) -> Result<Option<Bytes>, Refusal> {
        let held: &[u8] = if self.spill.is_empty() { &self.front } else { &self.spill };
        let Some((prefix, rest)) = held.split_first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        // Before anything is allocated for it.
        if length > self.max_bytes {
            let message = format!("grpc: received message larger than max ({length} vs. {})", self.max_bytes);
            return Err(Refusal::new(Code::ResourceExhausted, message));
        }
        match prefix[0] {
            0 => {}
            1 => return Err(compressed(encoding)),
            flag => {
                let message = format!("grpc: received unexpected payload format {flag}");
                return Err(Refusal::new(Code::Internal, message));
            }
        }
        if rest.len() < length {
            if !self.spill.is_empty() {
                let missing = length - rest.len();
                self.spill.reserve(missing);
            }
            return Ok(None);
        }
        let mut message = if self.spill.is_empty() {
            self.front.split_to(PREFIX_BYTES + length)
        } else {
            self.spill.split_to(PREFIX_BYTES + length).freeze()
        };
        message.advance(PREFIX_BYTES);
        Ok(Some(message))
    }
}

fn compressed(encoding: Option<&HeaderValue>) -> Refusal {
    match encoding.and_then(|value| value.to_str().ok()) {
        None | Some("identity") => {
            Refusal::new(Code::Internal, "grpc: compressed flag set with identity or empty encoding")
        }
        Some(name) => {
            let message = format!("grpc: Decompressor is not installed for grpc-encoding {name:?}");
            Refusal::new(Code::Unimplemented, message)
        }
    }
}

/// The incoming side of a call.
pub(crate) struct Incoming {
    source: Source,
    max_bytes: usize,
}

enum Source {
    Http2 { body: RecvStream, messages: Messages, encoding: Option<HeaderValue> },
    Pipe(Requests),
}

impl Incoming {
    pub(crate) fn new(body: RecvStream, max_bytes: usize, encoding: Option<HeaderValue>) -> Self {
        Self { source: Source::Http2 { body, messages: Messages::new(max_bytes), encoding }, max_bytes }
    }

    /// Of a call that is made inside the process.
    pub(crate) fn inside(requests: Requests, max_bytes: usize) -> Self {
        Self { source: Source::Pipe(requests), max_bytes }
    }

    /// The next message; `Ok(None)` when the client has half-closed. An error that is no [`Refusal`] means that the
    /// stream was reset or the connection broke.
    pub(crate) fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Broken>> {
        let (body, messages, encoding) = match &mut self.source {
            Source::Http2 { body, messages, encoding } => (body, messages, encoding),
            Source::Pipe(requests) => return requests.poll_message(self.max_bytes, cx),
        };
        loop {
            if let Some(message) = messages.next(encoding.as_ref()).map_err(Broken::Refused)? {
                return Poll::Ready(Ok(Some(message)));
            }
            match body.poll_data(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(Ok(None)),
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(Broken::Reset)),
                Poll::Ready(Some(Ok(chunk))) => {
                    // Cannot fail for bytes that were just received; if it does the stream is gone and says so next.
                    let _ = body.flow_control().release_capacity(chunk.len());
                    messages.push(chunk);
                }
            }
        }
    }

    pub(crate) async fn message(&mut self) -> Result<Option<Bytes>, Broken> {
        std::future::poll_fn(|cx| self.poll_message(cx)).await
    }
}

/// Why no further message comes.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The client reset the stream or the connection is gone: nobody is there to be answered.
    Reset,
    /// What it sent cannot be accepted.
    Refused(Refusal),
}

/// The outgoing side of a call that was not answered yet. Dropped unanswered, the stream is reset.
pub(crate) struct Responder {
    sink: Sink,
    pub(crate) method: Method,
    pub(crate) caller: Caller,
    /// Who the caller was found to be; nobody until it was looked at.
    pub(crate) access: Access,
    /// When the client gives up, from `grpc-timeout`.
    pub(crate) deadline: Option<Instant>,
    /// When the call came in.
    arrived: std::time::Instant,
    /// What it has waited for since.
    pub(crate) way: Way,
}

impl std::fmt::Debug for Responder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Responder").field("method", &self.method).field("caller", &self.caller).finish_non_exhaustive()
    }
}

impl Responder {
    pub(crate) fn new(
        sink: Sink,
        method: Method,
        caller: Caller,
        deadline: Option<Instant>,
        arrived: std::time::Instant,
    ) -> Self {
        let way = Way::Direct;
        Self { sink, method, caller, access: Access::default(), deadline, arrived, way }
    }

    /// Answers with one message, `frame` (prefix included), and OK.
    pub(crate) fn message(self, worker: &Worker, frame: Bytes) {
        self.message_about(worker, frame, Subject::Unknown);
    }

    /// The same to a call that asked for this.
    pub(crate) fn message_about(mut self, worker: &Worker, frame: Bytes, subject: Subject<'_>) {
        self.note(worker, Ok(&frame), subject);
        let bytes = frame.len() - PREFIX_BYTES;
        // Gone: it is counted as such and nobody else needs to know.
        let code = match self.sink.message(frame) {
            Ok(()) => Code::Ok,
            Err(Gone) => Code::Canceled,
        };
        worker.counters.sent(self.method, 1, bytes);
        worker.finished(self.method, || self.arrived.elapsed(), code);
    }

    /// Refuses the call.
    pub(crate) fn refuse(self, worker: &Worker, refusal: impl Into<Refusal>) {
        self.refuse_about(worker, refusal, Subject::Unknown);
    }

    /// The same to a call that asked for this.
    pub(crate) fn refuse_about(mut self, worker: &Worker, refusal: impl Into<Refusal>, subject: Subject<'_>) {
        let refusal = refusal.into();
        self.note(worker, Err(&refusal), subject);
        let code = match self.sink.refuse(&refusal) {
            Ok(()) => refusal.code,
            Err(Gone) => Code::Canceled,
        };
        worker.finished(self.method, || self.arrived.elapsed(), code);
    }

    /// Answers with a message or refuses.
    pub(crate) fn answer(self, worker: &Worker, result: Result<Bytes, impl Into<Refusal>>) {
        self.answer_about(worker, result, Subject::Unknown);
    }

    /// The same to a call that asked for this.
    pub(crate) fn answer_about(self, worker: &Worker, result: Result<Bytes, impl Into<Refusal>>, subject: Subject<'_>) {
        match result {
            Ok(frame) => self.message_about(worker, frame, subject),
            Err(error) => self.refuse_about(worker, error, subject),
        }
    }

    /// Notes what the call's time went to, and tells of it in the log if it was long.
    fn note(&self, worker: &Worker, response: Result<&Bytes, &Refusal>, subject: Subject<'_>) {
        let answered = std::time::Instant::now();
        let is_read = matches!(subject, Subject::Range(_) | Subject::Txn(_));
        let parts = Parts::of(self.way, is_read, self.arrived, answered);
        for (part, took) in parts.all() {
            worker.counters.took(*part, *took);
            if *part == Part::Read && self.method == Method::Range {
                worker.counters.ranged(response.is_ok(), *took);
            }
        }
        let quanta = worker.counters.stint.add(parts.work());
        if quanta > 0 {
            let key = match subject {
                Subject::Range(range) => Some(range.key.clone()),
                Subject::Txn(txn) => load::key_of_txn(txn),
                // Of writes the apply actor knows.
                Subject::Entry(_) | Subject::Unknown => None,
            };
            let prefix = key.map(|key| load::prefix(&key));
            let by_prefix = prefix.as_deref().map(|prefix| (By::Prefix, prefix));
            let by_user = self.access.user().map(|name| (By::User, &**name));
            spent(worker, quanta, self.method, self.caller.remote(), by_prefix.into_iter().chain(by_user), answered);
        }
        let limits = worker.member().limits();
        if answered.saturating_duration_since(self.arrived) > slow::threshold(limits) {
            let response = response.map(|frame| frame.slice(PREFIX_BYTES..)).map_err(|refusal| &*refusal.message);
            let (method, remote, arrived) = (self.method, self.caller.remote(), self.arrived);
            Ended { method, remote, subject, response, arrived, answered, parts }
                .tell(limits, || worker.may_trace(answered));
        }
    }

    /// Ready when the client has reset the call or its connection is gone.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.sink.poll_gone(cx)
    }

    /// Notes that the client went away before it was answered.
    pub(crate) fn abandoned(self, worker: &Worker) {
        worker.finished(self.method, || self.arrived.elapsed(), Code::Canceled);
    }

    /// Sends the headers and keeps the stream open for messages. `None`: the client has gone.
    pub(crate) fn stream(self, worker: &Worker) -> Option<Outgoing> {
        let (method, arrived) = (self.method, self.arrived);
        match self.sink.stream() {
            Ok(sink) => Some(Outgoing { sink, method, arrived }),
            Err(Gone) => {
                worker.finished(method, || arrived.elapsed(), Code::Canceled);
                None
            }
        }
    }
}

/// The outgoing side of a stream of messages.
pub(crate) struct Outgoing {
    sink: StreamSink,
    method: Method,
    arrived: std::time::Instant,
}

/// The client reset the stream or its connection is gone.
#[derive(Debug)]
pub(crate) struct Gone;

impl Outgoing {
    /// Hands on `data` (`messages` whole messages with their prefixes); what the client's window does not take yet is kept.
    /// The caller looks at [`Outgoing::has_room`] before it sends more.
    pub(crate) fn send_now(&mut self, worker: &Worker, data: Bytes, messages: u64) -> Result<(), Gone> {
        worker.counters.sent(self.method, messages, data.len());
        let quanta = worker.counters.stint.add(BYTE * u32::try_from(data.len()).unwrap_or(u32::MAX));
        if quanta > 0 {
            spent(worker, quanta, self.method, None, std::iter::empty(), std::time::Instant::now());
        }
        self.sink.send(data)
    }

    /// Whether everything sent so far has left for the client's window and there is room for more.
    pub(crate) fn has_room(&mut self) -> bool {
        self.sink.has_room()
    }

    /// Ready when [`Outgoing::has_room`].
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        self.sink.poll_room(cx)
    }

    /// Waits for room, then sends.
    pub(crate) async fn send(&mut self, worker: &Worker, frame: Bytes) -> Result<(), Gone> {
        std::future::poll_fn(|cx| self.poll_room(cx)).await?;
        self.send_now(worker, frame, 1)
    }

    /// Ready when the client has reset the stream or its connection is gone.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.sink.poll_gone(cx)
    }

    /// Ends the stream with OK.
    pub(crate) fn end(mut self, worker: &Worker) {
        let code = match self.sink.end(Ok(())) {
            Ok(()) => Code::Ok,
            Err(Gone) => Code::Canceled,
        };
        worker.finished(self.method, || self.arrived.elapsed(), code);
    }

    /// Ends the stream with an error.
    pub(crate) fn refuse(mut self, worker: &Worker, refusal: impl Into<Refusal>) {
        let refusal = refusal.into();
        let code = match self.sink.end(Err(&refusal)) {
            Ok(()) => refusal.code,
            Err(Gone) => Code::Canceled,
        };
        worker.finished(self.method, || self.arrived.elapsed(), code);
    }

    /// Notes that the client went away.
    pub(crate) fn abandoned(self, worker: &Worker) {
        worker.finished(self.method, || self.arrived.elapsed(), Code::Canceled);
    }
}

/// Notes that so many quanta of work were done for a call.
fn spent<'a>(
    worker: &Worker,
    quanta: u64,
    method: Method,
    remote: Option<SocketAddr>,
    more: impl Iterator<Item = (By, &'a str)>,
    now: std::time::Instant,
) {
    let address = remote.map(|remote| remote.ip().to_string());
    let mut names = vec![(By::Method, method.name())];
    for name in more {
        names.push(name);
    }
    names.extend(address.as_deref().map(|address| (By::Client, address)));
    worker.shared.metrics.load.spent(quanta, &names, now);
}

/// Refuses a call of a method that does not exist.
pub(crate) fn refuse_unknown(respond: &mut SendResponse<Bytes>, message: String) {
    let mut response = head();
    status_into(response.headers_mut(), &Refusal::new(Code::Unimplemented, message));
    // An error means that the client has gone.
    let _ = respond.send_response(response, true);
}

pub(crate) fn head() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE.clone());
    response
}

pub(crate) fn trailers_ok() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert(GRPC_STATUS.clone(), Code::Ok.header());
    trailers
}

pub(crate) fn status_into(headers: &mut HeaderMap, refusal: &Refusal) {
    headers.insert(GRPC_STATUS.clone(), refusal.code.header());
    headers.insert(GRPC_MESSAGE.clone(), message_header(&refusal.message));
}

/// The value of `grpc-timeout`: up to eight digits and a unit.
pub(crate) fn parse_timeout(value: &HeaderValue) -> Result<Duration, Refusal> {
    let malformed = || {
        let shown = String::from_utf8_lossy(value.as_bytes());
        Refusal::new(Code::Internal, format!("malformed grpc-timeout: {shown:?}"))
    };
    let (&unit, digits) = value.as_bytes().split_last().ok_or_else(malformed)?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(malformed());
    }
    let number = digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    Ok(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return Err(malformed()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(message: &[u8]) -> Vec<u8> {
        let mut framed = vec![0];
        framed.extend((message.len() as u32).to_be_bytes());
        framed.extend(message);
        framed
    }

    #[test]
    fn messages_are_found_however_the_body_is_cut() {
        let body = [frame(b"one"), frame(b""), frame(b"three")].concat();
        for cut in 1..body.len() {
            let mut messages = Messages::new(100);
            let mut found = Vec::new();
            for chunk in body.chunks(cut) {
                messages.push(Bytes::copy_from_slice(chunk));
                while let Some(message) = messages.next(None).expect("well-formed") {
                    found.push(message);
                }
            }
            assert_eq!(found, ["one", "", "three"], "cut every {cut} bytes");
        }
    }

    #[test]
    fn a_message_that_is_too_large_is_refused_by_its_prefix() {
        let mut messages = Messages::new(100);
        messages.push(Bytes::from_static(&[0, 0, 0, 0, 101]));
        let refusal = messages.next(None).expect_err("too large");
        assert_eq!(refusal.code, Code::ResourceExhausted);
        assert_eq!(refusal.message, "grpc: received message larger than max (101 vs. 100)");
    }

    #[test]
    fn a_compressed_message_is_refused() {
        let mut messages = Messages::new(100);
        messages.push(Bytes::from_static(&[1, 0, 0, 0, 0]));
        let gzip = HeaderValue::from_static("gzip");
        assert_eq!(messages.next(Some(&gzip)).expect_err("compressed").code, Code::Unimplemented);
    }

    #[test]
    fn timeouts_are_read_in_every_unit() {
        let parse = |text: &'static str| parse_timeout(&HeaderValue::from_static(text));
        assert_eq!(parse("5S").ok(), Some(Duration::from_secs(5)));
        assert_eq!(parse("4999818u").ok(), Some(Duration::from_micros(4_999_818)));
        assert_eq!(parse("1H").ok(), Some(Duration::from_secs(3600)));
        for bad in ["", "S", "5", "5x", "123456789S", "-1S"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
