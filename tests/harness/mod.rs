//! Server processes and clients for tests.

mod binaries;
mod client;
mod process;

pub use binaries::{Binary, etcdctl, ours, reference};
pub use client::{Client, connect};
pub use process::{Options, ProcessError, Server, http_get};
