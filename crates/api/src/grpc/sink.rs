//! Where the answer to a call goes: to a stream of HTTP/2, or into a pipe ([`super::pipe`]).

use std::task::{Context, Poll};

use bytes::Bytes;
use h2::SendStream;
use h2::server::SendResponse;
use http::HeaderMap;

use crate::grpc::InWork;
use crate::grpc::pipe::Answers;
use crate::grpc::wire::{Gone, head, status_into, trailers_ok};
use crate::status::Refusal;

/// Of a call that was not answered yet.
pub(crate) enum Sink {
    Http2(SendResponse<Bytes>, InWork),
    Pipe(Answers),
}

impl Sink {
    /// Answers with one message and OK.
    pub(crate) fn message(&mut self, frame: Bytes) -> Result<(), Gone> {
        match self {
            Sink::Http2(respond, _) => {
                let mut stream = respond.send_response(head(), false).map_err(|_| Gone)?;
                stream.send_data(frame, false).map_err(|_| Gone)?;
                stream.send_trailers(trailers_ok()).map_err(|_| Gone)
            }
            Sink::Pipe(answers) => answers.send(frame).and_then(|()| answers.end(Ok(()))),
        }
    }

    /// Refuses without a message.
    pub(crate) fn refuse(&mut self, refusal: &Refusal) -> Result<(), Gone> {
        match self {
            Sink::Http2(respond, _) => {
                let mut response = head();
                status_into(response.headers_mut(), refusal);
                respond.send_response(response, true).map(drop).map_err(|_| Gone)
            }
            Sink::Pipe(answers) => answers.end(Err(refusal.clone())),
        }
    }

    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Sink::Http2(respond, _) => respond.poll_reset(cx).map(|_| ()),
            Sink::Pipe(answers) => answers.poll_gone(cx),
        }
    }

    /// Begins an answer of many messages.
    pub(crate) fn stream(self) -> Result<StreamSink, Gone> {
        match self {
            Sink::Http2(mut respond, in_work) => {
                let stream = respond.send_response(head(), false).map_err(|_| Gone)?;
                Ok(StreamSink::Http2(stream, in_work))
            }
            Sink::Pipe(answers) => Ok(StreamSink::Pipe(answers)),
        }
    }
}

/// Of a call whose answer has begun.
pub(crate) enum StreamSink {
    Http2(SendStream<Bytes>, #[allow(dead_code)] InWork), // held, not read
    Pipe(Answers),
}

impl StreamSink {
    pub(crate) fn send(&mut self, data: Bytes) -> Result<(), Gone> {
        match self {
            StreamSink::Http2(stream, _) => stream.send_data(data, false).map_err(|_| Gone),
            StreamSink::Pipe(answers) => answers.send(data),
        }
    }

    pub(crate) fn has_room(&mut self) -> bool {
        match self {
            StreamSink::Http2(stream, _) => {
                stream.reserve_capacity(1);
                stream.capacity() > 0
            }
            StreamSink::Pipe(answers) => answers.has_room(),
        }
    }

    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        loop {
            if self.has_room() {
                return Poll::Ready(Ok(()));
            }
            let stream = match self {
                StreamSink::Http2(stream, _) => stream,
                StreamSink::Pipe(answers) => return answers.poll_room(cx),
            };
            match stream.poll_capacity(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(_) => return Poll::Ready(Err(Gone)),
            }
        }
    }

    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            StreamSink::Http2(stream, _) => stream.poll_reset(cx).map(|_| ()),
            StreamSink::Pipe(answers) => answers.poll_gone(cx),
        }
    }

    /// Ends the answer.
    pub(crate) fn end(&mut self, end: Result<(), &Refusal>) -> Result<(), Gone> {
        match self {
            StreamSink::Http2(stream, _) => {
                let trailers = match end {
                    Ok(()) => trailers_ok(),
                    Err(refusal) => {
                        let mut trailers = HeaderMap::with_capacity(2);
                        status_into(&mut trailers, refusal);
                        trailers
                    }
                };
                stream.send_trailers(trailers).map_err(|_| Gone)
            }
            StreamSink::Pipe(answers) => answers.end(end.map_err(Clone::clone)),
        }
    }
}
