//! `faults [--members BIN,BIN,BIN] [--rounds N] [--minutes N] [--seed 1] [--writers 16] [--fault-seconds 6] [--only Paused]
//! [--flags "--snapshot-count=1000"] [--logs DIR]`
//!
//! Breaks a cluster (of ours by default; `ours` also names it in a list) under load in every way this machine can. Ends
//! with status 1 at the first broken promise, and says which.

use std::process::ExitCode;
use std::time::Duration;

use keelson_tests::faults::{Settings, run};
use keelson_tests::harness::{Arguments, ours, program};

fn main() -> ExitCode {
    program("faults", settings, run)
}

/// Some of the watchers see the keys of the writers 3 to 8 only; where none of these writes, what they resume from gets
/// compacted.
const LEAST_WRITERS: usize = 5;

/// What was typed, as settings.
fn settings(arguments: &mut Arguments) -> Result<Settings, String> {
    let minutes: Option<u64> = arguments
        .text("--minutes")
        .map(|text| text.parse())
        .transpose()
        .map_err(|problem| format!("--minutes: {problem}"))?;
    let writers = arguments.number("--writers", 16)?;
    if writers < LEAST_WRITERS {
        return Err(format!("--writers: at least {LEAST_WRITERS}"));
    }
    let flags = arguments.text("--flags").unwrap_or_else(|| "--log-level=info".into());
    Ok(Settings {
        members: arguments.binaries("--members").unwrap_or_else(|| vec![ours(); 3]),
        flags: flags.split_whitespace().map(str::to_owned).collect(),
        rounds: arguments.number("--rounds", if minutes.is_some() { u32::MAX } else { 20 })?,
        time: minutes.map_or(Duration::MAX, |minutes| Duration::from_secs(60 * minutes)),
        seed: arguments.number("--seed", 1)?,
        writers,
        longest_fault: Duration::from_secs(arguments.number("--fault-seconds", 6)?),
        only: arguments.text("--only"),
        logs: arguments.text("--logs").map_or_else(std::env::temp_dir, Into::into),
        verbose: true,
    })
}
