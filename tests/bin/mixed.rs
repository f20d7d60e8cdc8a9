//! `mixed --members BIN,BIN,BIN [--ops 100000] [--seed 1]`
//!
//! Random operations on a cluster of these programs (`ours` names our own), each leading in turn and each sending and
//! receiving snapshots. Ends with status 1 at the first difference between members, and says what it was.

use std::process::ExitCode;

use keelson_tests::harness::{Arguments, program};
use keelson_tests::mixed::{Settings, run};

fn main() -> ExitCode {
    program("mixed", settings, run)
}

/// What was typed, as settings.
fn settings(arguments: &mut Arguments) -> Result<Settings, String> {
    Ok(Settings {
        members: arguments.binaries("--members").ok_or("which programs? name them with --members")?,
        operations: arguments.number("--ops", 100_000)?,
        seed: arguments.number("--seed", 1)?,
        verbose: true,
    })
}
