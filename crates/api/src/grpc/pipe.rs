//! A call that is made inside the process, by the JSON gateway: what would travel over HTTP/2 goes through a pipe instead, with
//! the same framing and the same back-pressure. So the call takes the very same way as any other.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::grpc::wire::{Broken, Gone};
use crate::status::{Code, Refusal};

/// Bytes of an answer that wait in a pipe before whoever writes it has to wait.
const ROOM_BYTES: usize = 64 << 10;

/// A pipe: the caller's end, and the server's for requests and for answers.
pub(crate) fn pipe() -> (Call, Requests, Answers) {
    let shared = Rc::new(RefCell::new(Shared {
        request: None,
        no_more_requests: false,
        answers: VecDeque::new(),
        answer_bytes: 0,
        end: None,
        caller_gone: false,
        caller: Waker::noop().clone(),
        reader: Waker::noop().clone(),
        writer: Waker::noop().clone(),
    }));
    (Call(shared.clone()), Requests(shared.clone()), Answers(shared))
}

struct Shared {
    /// The request that waits to be taken.
    request: Option<Bytes>,
    no_more_requests: bool,
    answers: VecDeque<Bytes>,
    answer_bytes: usize,
    /// How the call ended; said behind the answers.
    end: Option<Result<(), Refusal>>,
    caller_gone: bool,
    caller: Waker,
    /// Of whoever takes requests.
    reader: Waker,
    /// Of whoever writes answers.
    writer: Waker,
}

/// The caller's end. Dropped, the call ends as if its client had reset it.
pub(crate) struct Call(Rc<RefCell<Shared>>);

/// What comes back from a call.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Messages with their prefixes, cut anywhere.
    Data(Bytes),
    End(Result<(), Refusal>),
}

impl Call {
    /// Ready when the next request may be sent: there is room for one.
    pub(crate) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut shared = self.0.borrow_mut();
        if shared.request.is_none() {
            return Poll::Ready(());
        }
        shared.caller.clone_from(cx.waker());
        Poll::Pending
    }

    pub(crate) fn send(&self, request: Bytes) {
        let mut shared = self.0.borrow_mut();
        debug_assert!(shared.request.is_none(), "sent before there was room");
        shared.request = Some(request);
        shared.reader.wake_by_ref();
    }

    /// Says that no request follows.
    pub(crate) fn finish(&self) {
        let mut shared = self.0.borrow_mut();
        shared.no_more_requests = true;
        shared.reader.wake_by_ref();
    }

    pub(crate) fn poll_answer(&self, cx: &mut Context<'_>) -> Poll<Answer> {
        let mut shared = self.0.borrow_mut();
        if let Some(data) = shared.answers.pop_front() {
            shared.answer_bytes -= data.len();
            shared.writer.wake_by_ref();
            return Poll::Ready(Answer::Data(data));
        }
        match shared.end.take() {
            Some(end) => Poll::Ready(Answer::End(end)),
            None => {
                shared.caller.clone_from(cx.waker());
                Poll::Pending
            }
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut shared = self.0.borrow_mut();
        shared.caller_gone = true;
        shared.answers.clear();
        shared.reader.wake_by_ref();
        shared.writer.wake_by_ref();
    }
}

/// The server's end for requests.
pub(crate) struct Requests(Rc<RefCell<Shared>>);

impl Requests {
    pub(crate) fn poll_message(&self, max_bytes: usize, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Broken>> {
        let mut shared = self.0.borrow_mut();
        if let Some(request) = shared.request.take() {
            shared.caller.wake_by_ref();
            if request.len() > max_bytes {
                let message = format!("grpc: received message larger than max ({} vs. {max_bytes})", request.len());
                return Poll::Ready(Err(Broken::Refused(Refusal::new(Code::ResourceExhausted, message))));
            }
            return Poll::Ready(Ok(Some(request)));
        }
        if shared.caller_gone {
            return Poll::Ready(Err(Broken::Reset));
        }
        if shared.no_more_requests {
            return Poll::Ready(Ok(None));
        }
        shared.reader.clone_from(cx.waker());
        Poll::Pending
    }
}

/// The server's end for answers. Dropped before the call has ended, it ends it.
pub(crate) struct Answers(Rc<RefCell<Shared>>);

impl Answers {
    pub(crate) fn send(&self, data: Bytes) -> Result<(), Gone> {
        let mut shared = self.0.borrow_mut();
        if shared.caller_gone {
            return Err(Gone);
        }
        shared.answer_bytes += data.len();
        shared.answers.push_back(data);
        shared.caller.wake_by_ref();
        Ok(())
    }

    pub(crate) fn has_room(&self) -> bool {
        self.0.borrow().answer_bytes < ROOM_BYTES
    }

    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        let mut shared = self.0.borrow_mut();
        if shared.caller_gone {
            return Poll::Ready(Err(Gone));
        }
        if shared.answer_bytes < ROOM_BYTES {
            return Poll::Ready(Ok(()));
        }
        shared.writer.clone_from(cx.waker());
        Poll::Pending
    }

    pub(crate) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut shared = self.0.borrow_mut();
        if shared.caller_gone {
            return Poll::Ready(());
        }
        shared.writer.clone_from(cx.waker());
        Poll::Pending
    }

    pub(crate) fn end(&self, end: Result<(), Refusal>) -> Result<(), Gone> {
        let mut shared = self.0.borrow_mut();
        if shared.caller_gone {
            return Err(Gone);
        }
        shared.end = Some(end);
        shared.caller.wake_by_ref();
        Ok(())
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        let mut shared = self.0.borrow_mut();
        // Taken again by the caller before this end is dropped, it is not said twice: nobody asks after the end.
        if shared.end.is_none() {
            shared.end = Some(Err(state::Error::Stopped.into()));
            shared.caller.wake_by_ref();
        }
    }
}
