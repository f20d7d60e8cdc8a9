//! gRPC, directly on HTTP/2.
pub mod method;
