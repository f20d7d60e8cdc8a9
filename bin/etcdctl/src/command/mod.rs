//! The commands.

mod endpoint;
mod kv;
mod lease;
mod member;
mod txn;
mod watch;
mod words;

use crate::call::GLOBAL_FLAGS;
use crate::cli::Command;

/// The program. The order is that of etcdctl, which decides in what order similar names are suggested.
pub static ROOT: Command = Command {
    name: "etcdctl",
    about: "A simple command line client for etcd3.",
    flags: GLOBAL_FLAGS,
    commands: &[
        kv::GET,
        kv::PUT,
        kv::DEL,
        txn::TXN,
        kv::COMPACTION,
        endpoint::ENDPOINT,
        watch::WATCH,
        lease::LEASE,
        member::MEMBER,
    ],
    ..Command::NONE
};
