//! `kill9 [--rounds 100] [--seed 1] [--writers 16] [--server /path/to/etcd]`
//!
//! Kills a server (ours by default) under load, again and again. Ends with status 1 at the first broken promise, and
//! says which.

use std::process::ExitCode;
use std::time::Duration;

use keelson_tests::harness::{Arguments, ours, program};
use keelson_tests::kill9::{Settings, run};

fn main() -> ExitCode {
    program("kill9", settings, run)
}

/// What was typed, as settings.
fn settings(arguments: &mut Arguments) -> Result<Settings, String> {
    Ok(Settings {
        server: arguments.binary("--server").unwrap_or_else(ours),
        rounds: arguments.number("--rounds", 100)?,
        seed: arguments.number("--seed", 1)?,
        writers: arguments.number("--writers", 16)?,
        longest_load: Duration::from_millis(800),
        verbose: true,
    })
}
