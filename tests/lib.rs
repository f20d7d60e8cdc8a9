//! What the end-to-end tests share: real processes, real clients, and long checks.
//!
//! - [`harness`] starts a server binary (ours or a real etcd) on free ports and a fresh directory and always reaps it.
//! - [`differential`] does the same random operations on two servers and compares every answer.
//! - [`load`] writes, reads and watches, and judges what it was told against what the store has really done.
//! - [`faults`] breaks a cluster under that load in every way it knows, one or two at a time.
//! - [`mixed`] does random operations on a cluster whose members are different etcds.
//! - [`docs`] types the commands of documents and compares what comes with what they show.
//! - [`kill9`] kills a server under load, again and again, and checks that every promise survived.
//!
//! The tests themselves are in `e2e/`; the checks also have binaries in `bin/`, for long runs.

pub mod differential;
pub mod docs;
pub mod faults;
pub mod harness;
pub mod kill9;
pub mod load;
pub mod mixed;
