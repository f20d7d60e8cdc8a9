//! `etcdctl` for the v2 API (`ETCDCTL_API=2`): etcd 3.4's tool, with its texts and exit codes.
//!
//! It speaks HTTP/1.1 by itself, without a runtime: a command is one or two requests, and starting one would take longer
//! than they do.

mod app;
mod auth;
mod backup;
mod cluster;
mod context;
mod endpoint;
mod flag;
mod health;
mod help;
mod http;
mod json;
mod keys;
mod member;
mod secure;
mod watch;

use std::process::ExitCode;

/// Runs the command that these words mean.
pub fn run(words: &[String]) -> ExitCode {
    match app::run(words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            eprint!("{}", exit.text);
            ExitCode::from(exit.code)
        }
    }
}
