//! One request to the gateway and its answer, whatever carries them: bytes of a body in, a head and bytes of a body out.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use proto::schema::Message;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{decode, encode};
use crate::caller::Caller;
use crate::grpc;
use crate::grpc::method::{Kind, Method};
use crate::grpc::pipe::{Answer, Call};
use crate::grpc::wire::Messages;
use crate::json::Scanner;
use crate::status::{Code, Refusal};
use crate::worker::Worker;

static GRPC_METADATA_CONTENT_TYPE: HeaderName = HeaderName::from_static("grpc-metadata-content-type");
static GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
static JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A message at least this large is translated on another thread, so that other clients do not wait for it.
const LARGE_BYTES: usize = 128 << 10;

/// A piece of the answer.
pub(crate) enum Piece {
    /// All of it.
    Whole(Response<Bytes>),
    /// Its head; data follow.
    Head(Response<()>),
    Data(Bytes),
}

pub(crate) struct Exchange {
    worker: Rc<Worker>,
    method: Method,
    request: &'static Message,
    response: &'static Message,
    caller: Caller,
    metadata: HeaderMap,
    /// Begin as soon as the request has come, though the body may go on.
    eager: bool,
    deadline: Option<Pin<Box<Sleep>>>,
    input: Input,
    /// Requests are read no more.
    is_deaf: bool,
    call: Option<Call>,
    frames: Messages,
    translating: Option<JoinHandle<Option<String>>>,
    /// The request of a call that has one, once it was read.
    first: Bytes,
    has_head: bool,
    /// The line that comes next.
    line: Option<Bytes>,
    /// Nothing more is said but for that line.
    is_done: bool,
}

/// The body as it has come so far.
#[derive(Default)]
struct Input {
    /// Not yet used, up to the end of the value that is being read.
    text: BytesMut,
    scanner: Scanner,
    /// How much of `text` the scanner has seen.
    scanned: usize,
    has_ended: bool,
}

impl Exchange {
    pub(super) fn new(
        worker: &Rc<Worker>,
        method: Method,
        (request, response): (&'static Message, &'static Message),
        head: &Parts,
        eager: bool,
    ) -> Result<Self, Refusal> {
        let deadline = match head.headers.get("grpc-timeout") {
            None => None,
            Some(value) => super::timeout(value)?.and_then(|timeout| Instant::now().checked_add(timeout)),
        };
        Ok(Self {
            worker: worker.clone(),
            method,
            request,
            response,
            caller: Caller::of_gateway(&head.headers),
            metadata: super::metadata(&head.headers),
            eager,
            deadline: deadline.map(|deadline| Box::pin(sleep_until(deadline))),
            input: Input::default(),
            is_deaf: false,
            call: None,
            // Answers are as large as they are.
            frames: Messages::new(u32::MAX as usize),
            translating: None,
            first: Bytes::new(),
            has_head: false,
            line: None,
            is_done: false,
        })
    }

    /// Whether requests may come as long as answers do.
    pub(crate) fn is_duplex(&self) -> bool {
        self.method.kind() == Kind::BidiStream
    }

    /// Whether more of the body is of use now. If not, [`Exchange::poll_next`] says when to look again.
    pub(crate) fn wants_input(&self) -> bool {
        self.is_deaf || self.input.text.len() == self.input.scanned
    }

    /// Takes more of the body.
    pub(crate) fn push(&mut self, chunk: &[u8]) {
        if !self.is_deaf {
            self.input.text.extend_from_slice(chunk);
        }
    }

    pub(crate) fn has_whole_body(&self) -> bool {
        self.input.has_ended
    }

    /// The body has ended.
    pub(crate) fn end_of_body(&mut self) {
        self.input.has_ended = true;
    }

    /// The next piece of the answer; none at its end.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        if let Some(line) = self.line.take() {
            return Poll::Ready(Some(Piece::Data(line)));
        }
        if self.is_done {
            return Poll::Ready(None);
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            // In the words of the client that the gateway is in etcd.
            return Poll::Ready(self.refuse(Refusal::new(Code::DeadlineExceeded, "context deadline exceeded")));
        }
        if let Err(refusal) = self.take_requests(cx) {
            return Poll::Ready(self.refuse(refusal));
        }
        loop {
            if let Some(translating) = &mut self.translating {
                let json = ready!(Pin::new(translating).poll(cx));
                self.translating = None;
                return Poll::Ready(self.say(json.unwrap_or(None)));
            }
            match self.frames.next(None) {
                Ok(Some(message)) if message.len() >= LARGE_BYTES => {
                    let response = self.response;
                    self.translating = Some(spawn_blocking(move || to_json(&message, response)));
                    continue;
                }
                Ok(Some(message)) => {
                    let json = to_json(&message, self.response);
                    return Poll::Ready(self.say(json));
                }
                Ok(None) => {}
                Err(refusal) => return Poll::Ready(self.refuse(refusal)),
            }
            let Some(call) = &self.call else { return Poll::Pending };
            match ready!(call.poll_answer(cx)) {
                Answer::Data(data) => self.frames.push(data),
                Answer::End(Err(refusal)) => return Poll::Ready(self.refuse(refusal)),
                Answer::End(Ok(())) => {
                    self.end();
                    return Poll::Ready((!self.has_head).then(|| Piece::Whole(Response::new(Bytes::new()))));
                }
            }
        }
    }

    // --- requests ---

    /// Hands on what has come of requests.
    fn take_requests(&mut self, cx: &mut Context<'_>) -> Result<(), Refusal> {
        if self.is_duplex() { self.take_many(cx) } else { self.take_one() }
    }

    /// The one request of a call: the first value of the body. What follows is not looked at.
    fn take_one(&mut self) -> Result<(), Refusal> {
        if !self.is_deaf {
            let invalid = |fault| Refusal::new(Code::InvalidArgument, fault);
            match self.input.next_value().map_err(invalid)? {
                Some(text) => self.first = decode::decode(&text, self.request).map_err(invalid)?.into(),
                // No body at all is a request without fields.
                None if self.input.has_ended => {}
                None => return self.check_room(),
            }
            self.is_deaf = true;
            self.input.text = BytesMut::new();
        }
        if self.call.is_none() && (self.eager || self.input.has_ended) {
            let call = grpc::begin_inside(&self.worker, self.method, self.caller.clone(), &self.metadata, |call| {
                call.send(mem::take(&mut self.first));
                call.finish();
            });
            self.call = Some(call);
        }
        Ok(())
    }

    fn take_many(&mut self, cx: &mut Context<'_>) -> Result<(), Refusal> {
        let invalid = |fault| Refusal::new(Code::InvalidArgument, format!("Failed to decode request: {fault}"));
        let call = self.call.get_or_insert_with(|| {
            grpc::begin_inside(&self.worker, self.method, self.caller.clone(), &self.metadata, |_| {})
        });
        while !self.is_deaf && call.poll_ready(cx).is_ready() {
            match self.input.next_value().map_err(invalid)? {
                Some(text) => call.send(decode::decode(&text, self.request).map_err(invalid)?.into()),
                None if self.input.has_ended => {
                    call.finish();
                    self.is_deaf = true;
                }
                None => return self.check_room(),
            }
        }
        Ok(())
    }

    fn check_room(&self) -> Result<(), Refusal> {
        let (length, max) = (self.input.text.len(), super::max_text_bytes(&self.worker));
        if length <= max {
            return Ok(());
        }
        Err(Refusal::new(
            Code::ResourceExhausted,
            format!("grpc: received message larger than max ({length} vs. {max})"),
        ))
    }

    // --- answers ---

    /// Says a message; none if it could not be translated.
    fn say(&mut self, json: Option<String>) -> Option<Piece> {
        let Some(json) = json else {
            return self.refuse(Refusal::new(Code::Internal, "failed to marshal the response"));
        };
        if self.method.kind() == Kind::Unary {
            self.end();
            let mut response = super::json(StatusCode::OK, json);
            response.headers_mut().insert(GRPC_METADATA_CONTENT_TYPE.clone(), GRPC.clone());
            return Some(Piece::Whole(response));
        }
        self.line(StatusCode::OK, "result", &json)
    }

    /// Ends it with an error.
    fn refuse(&mut self, refusal: Refusal) -> Option<Piece> {
        let json = super::error_json(&refusal);
        // What a client does wrong while it streams is told in its stream, even if nothing else was.
        let is_own_fault = self.is_duplex() && self.call.is_some() && refusal.message.starts_with("Failed to decode");
        self.end();
        if self.has_head || is_own_fault {
            return self.line(super::http_status(refusal.code), "error", &json);
        }
        Some(Piece::Whole(super::error(&refusal)))
    }

    fn line(&mut self, status: StatusCode, kind: &str, json: &str) -> Option<Piece> {
        let line = Bytes::from(format!("{{\"{kind}\":{json}}}\n"));
        if mem::replace(&mut self.has_head, true) {
            return Some(Piece::Data(line));
        }
        self.line = Some(line);
        let (mut head, ()) = Response::new(()).into_parts();
        head.status = status;
        head.headers.insert(CONTENT_TYPE, JSON.clone());
        if status == StatusCode::OK {
            head.headers.insert(GRPC_METADATA_CONTENT_TYPE.clone(), GRPC.clone());
        }
        Some(Piece::Head(Response::from_parts(head, ())))
    }

    /// Nothing more is asked or said, but for a line that waits.
    fn end(&mut self) {
        self.is_done = true;
        self.is_deaf = true;
        self.call = None;
        self.translating = None;
    }
}

fn to_json(message: &[u8], schema: &'static Message) -> Option<String> {
    let mut json = String::with_capacity(message.len() / 2 * 3 + 64);
    encode::encode(message, schema, &mut json)?;
    Some(json)
}

impl Input {
    /// The next whole value; none if more has to come.
    fn next_value(&mut self) -> Result<Option<Bytes>, String> {
        let end = self.scanner.scan(&self.text[self.scanned..])?.map(|end| self.scanned + end);
        self.scanned = self.text.len();
        let end = match end {
            Some(end) => end,
            None if !self.has_ended => {
                if self.scanner.is_blank() {
                    self.text.clear();
                    self.scanned = 0;
                }
                return Ok(None);
            }
            None if self.scanner.is_blank() => return Ok(None),
            None if self.scanner.may_end() => self.text.len(),
            None => return Err("unexpected EOF".into()),
        };
        self.scanner = Scanner::default();
        self.scanned = 0;
        let mut value = self.text.split_to(end).freeze();
        // Where something is wrong is counted from where the value begins.
        let blanks = value.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        value.advance(blanks);
        Ok(Some(value))
    }
}
