//! The commands.

mod auth;
mod check;
mod endpoint;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod member;
mod mirror;
mod misc;
mod snapshot;
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
        maintenance::ALARM,
        maintenance::DEFRAG,
        endpoint::ENDPOINT,
        maintenance::MOVE_LEADER,
        watch::WATCH,
        misc::VERSION_COMMAND,
        lease::LEASE,
        member::MEMBER,
        snapshot::SNAPSHOT,
        mirror::MAKE_MIRROR,
        lock::LOCK,
        lock::ELECT,
        auth::AUTH,
        auth::USER,
        auth::ROLE,
        check::CHECK,
        misc::COMPLETION,
        maintenance::DOWNGRADE,
        misc::OPTIONS,
        misc::COMPLETE,
    ],
    ..Command::NONE
};
