//! Bodies of answers: at once, or as events come.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use state::v2::Watch;
use tokio::sync::watch;

/// The body of an HTTP/1.1 answer.
pub(crate) enum Body {
    /// All of it; `None` once it has been taken.
    Whole(Option<Bytes>),
    /// A line per event.
    Watch(Box<Watching>),
}

pub(crate) struct Watching {
    watch: Watch,
    stream: bool,
    done: bool,
    /// Ends when the process stops.
    closed: Pin<Box<dyn Future<Output = ()>>>,
}

impl Body {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }

    pub(crate) fn empty() -> Self {
        Self::Whole(None)
    }

    /// The events of a watch: all that come, or the first.
    pub(super) fn watch(watch: Watch, stream: bool, mut closing: watch::Receiver<bool>) -> Self {
        let closed = Box::pin(async move {
            if closing.wait_for(|closing| *closing).await.is_err() {
                // Whoever would have told us is gone, so nobody wants us to stop.
                std::future::pending().await
            }
        });
        Self::Watch(Box::new(Watching { watch, stream, done: false, closed }))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Watch(watching) => {
                if watching.done || watching.closed.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                watching.watch.poll_next(cx).map(|event| {
                    watching.done = !watching.stream || event.is_none();
                    event.map(|event| Ok(Frame::data(event.line())))
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Watch(watching) => watching.done,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Watch(_) => SizeHint::default(),
        }
    }
}
