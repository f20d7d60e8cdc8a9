//! What the end-to-end tests share: real processes, real clients, and two long checks.
//!
//! - [`harness`] starts a server binary (ours or a real etcd) on free ports and a fresh directory and always reaps it.
//! - [`differential`] does the same random operations on two servers and compares every answer.
//! - [`kill9`] kills a server under load, again and again, and checks that every promise survived.
//!
//! The tests themselves are in `e2e/`; the two checks also have binaries in `bin/`, for long runs.

pub mod differential;
pub mod harness;
pub mod kill9;
