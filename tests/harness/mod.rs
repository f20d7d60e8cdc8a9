//! Server processes, clusters of them, networks that fail, and clients, for tests.

mod arguments;
pub mod authority;
mod binaries;
mod client;
mod cluster;
mod disk;
mod http;
mod network;
mod papers;
mod process;

pub use arguments::{Arguments, program};
pub use binaries::{Binary, etcdctl, etcdutl, our_etcdctl, ours, peer_folders, peers, reference, reference_with_v2};
pub use client::{Client, connect, lazily};
pub use cluster::{Cluster, ClusterError, Place, Setup};
pub use disk::StallingDisk;
pub use http::{Http, HttpReply, HttpRequest, OpenReply};
pub use network::{Network, NetworkError};
pub use papers::Papers;
pub use process::{Options, ProcessError, Seat, Server, free_addresses, http_get};
