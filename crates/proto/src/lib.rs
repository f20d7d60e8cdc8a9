//! The wire: every protobuf message that etcd's clients, peers and files use, generated from `proto/*.proto`.
//!
//! Field names and numbers are etcd's. `bytes` fields are [`bytes::Bytes`], so decoding a request from a shared buffer
//! copies no key and no value. With the feature `client` the gRPC client stubs are generated as well; the server
//! does not use generated service code (see `crates/api`).
#![allow(missing_docs, clippy::all, rustdoc::invalid_html_tags)]

mod secret;

/// The etcd that all programs here match, on the wire and in what they print: kube-apiserver and others switch features on
/// by it.
pub const ETCD_VERSION: &str = "3.7.1";

/// Version of the cluster and of the storage format that goes with [`ETCD_VERSION`].
pub const CLUSTER_VERSION: &str = "3.7.0";

/// Version of the API that goes with [`ETCD_VERSION`].
pub const API_VERSION: &str = "3.7";

pub mod schema;

/// Keys, values and events.
pub mod mvccpb {
    include!(concat!(env!("OUT_DIR"), "/mvccpb.rs"));
}
/// Users, roles and permissions as stored.
pub mod authpb {
    include!(concat!(env!("OUT_DIR"), "/authpb.rs"));
}
/// The v3 API and the log's own requests.
pub mod etcdserverpb {
    include!(concat!(env!("OUT_DIR"), "/etcdserverpb.rs"));
}
/// Member attributes as they travel in the log.
pub mod membershippb {
    include!(concat!(env!("OUT_DIR"), "/membershippb.rs"));
}
/// Leases as stored, and lease requests between members.
pub mod leasepb {
    include!(concat!(env!("OUT_DIR"), "/leasepb.rs"));
}
/// The lock service.
pub mod v3lockpb {
    include!(concat!(env!("OUT_DIR"), "/v3lockpb.rs"));
}
/// The election service.
pub mod v3electionpb {
    include!(concat!(env!("OUT_DIR"), "/v3electionpb.rs"));
}
/// Consensus messages and log entries.
pub mod raftpb {
    include!(concat!(env!("OUT_DIR"), "/raftpb.rs"));
}
/// Records of the write-ahead log.
pub mod walpb {
    include!(concat!(env!("OUT_DIR"), "/walpb.rs"));
}
/// The envelope of a `.snap` file.
pub mod snappb {
    include!(concat!(env!("OUT_DIR"), "/snappb.rs"));
}
/// The v2 API's log entry and the WAL's metadata record.
pub mod v2pb {
    include!(concat!(env!("OUT_DIR"), "/v2pb.rs"));
}
/// The standard gRPC health service.
pub mod healthpb {
    include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
}
