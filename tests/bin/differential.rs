//! A long comparison of two servers:
//!
//! `differential --ops 200000 --seed 7 --reference /path/to/etcd [--subject /path/to/etcd] [--plant-fault-at N]`
//!
//! Without `--subject` it is our own server, without `--reference` an installed etcd. Ends with status 1 at the first
//! difference, and says what it was.

use std::process::ExitCode;

use keelson_tests::differential::{Settings, run};
use keelson_tests::harness::{Arguments, ours, program, reference};

fn main() -> ExitCode {
    program("differential", settings, async |settings: &Settings| {
        println!("reference: {}\nsubject:   {}", settings.reference.name, settings.subject.name);
        run(settings).await
    })
}

/// What was typed, as settings.
fn settings(arguments: &mut Arguments) -> Result<Settings, String> {
    let reference = arguments.binary("--reference").or_else(reference);
    Ok(Settings {
        operations: arguments.number("--ops", 200_000)?,
        seed: arguments.number("--seed", 1)?,
        reference: reference.ok_or("no etcd to compare with: name one with --reference")?,
        subject: arguments.binary("--subject").unwrap_or_else(ours),
        plant_fault_at: match arguments.number("--plant-fault-at", 0)? {
            0 => None,
            operation => Some(operation),
        },
        verbose: true,
    })
}
