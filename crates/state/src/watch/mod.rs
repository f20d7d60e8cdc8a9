//! What watchers see.
//!
//! The applying side publishes every revision into one [`Feed`]; each API worker owns a [`Hub`] that reads the feed and
//! hands the events to its watchers. A hub is a plain value: it is called, it answers, it never waits.

mod catch_up;
mod event;
mod feed;
mod hub;
#[cfg(test)]
mod model_test;
mod ranges;

pub(crate) use event::Event;
pub use feed::{Feed, Subscription};
pub use hub::{Events, Hub, Output, OutputKind, StreamId, StreamOutput, WatchCreate};
