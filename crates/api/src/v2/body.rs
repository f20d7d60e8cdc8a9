//! Bodies of answers: at once, or as events come.

use std::task::{Context, Poll};

use bytes::Bytes;
use state::v2::Watch;

/// The body of an HTTP/1.1 answer.
pub(crate) enum Body {
    /// All of it.
    Whole(Bytes),
    /// A line per event.
    Watch(Box<Watching>),
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self::Whole(Bytes::new())
    }
}

/// The events of a watch: all that come, or the first.
pub(crate) struct Watching {
    watch: Watch,
    stream: bool,
    done: bool,
}

impl Watching {
    pub(super) fn new(watch: Watch, stream: bool) -> Self {
        Self { watch, stream, done: false }
    }

    /// The next event's line; none once the watch has fallen too far behind.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.watch.poll_next(cx).map(|event| {
            self.done = !self.stream || event.is_none();
            event.map(|event| event.line())
        })
    }

    /// Nothing will come after what has come.
    pub(crate) fn is_done(&self) -> bool {
        self.done
    }
}
