//! `etcdutl`: what is done to files while no member runs on them. Commands, texts and exit codes are etcd's.
//!
//! Files are etcd's bbolt files: snapshots, and the `member/snap/db` of an etcd. Where a command takes a data directory, that
//! may be ours or an etcd's ([`data_dir`]).

mod command;
mod copy;
mod data_dir;
mod db;
mod defrag;
mod hashkv;
mod migrate;
mod restore;
mod status;

use cli::{Asked, Failure, exit, raw, terminal};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| raw::text(word.as_bytes())).collect();
    match cli::find(&command::ROOT, &words).ask() {
        Asked::Help(text) => terminal::print(text.as_bytes()),
        Asked::Mistake(text) => {
            eprint!("{text}");
            return ExitCode::from(exit::ERROR);
        }
        Asked::Run(run, parsed) => {
            if let Err(Failure { code, text }) = run(&parsed) {
                if let Some(text) = text {
                    eprintln!("Error: {text}");
                }
                return ExitCode::from(code);
            }
        }
    }
    ExitCode::SUCCESS
}

/// A line on stderr that says what is going on.
fn log(level: &str, message: &str, fields: &[(&str, &str)]) {
    terminal::log_as("", level, message, fields);
}
