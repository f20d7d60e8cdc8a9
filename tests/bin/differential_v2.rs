//! A long comparison of two servers' v2 API:
//!
//! `differential_v2 --ops 50000 --seed 7 --reference /usr/bin/etcd [--subject /path/to/etcd]`
//!
//! Without `--subject` it is our own server, without `--reference` an installed etcd of the 3.4 line or older. Ends with
//! status 1 at the first difference, and says what it was.

use std::process::ExitCode;

use keelson_tests::differential::{V2Settings, run_v2};
use keelson_tests::harness::{Arguments, ours, program, reference_with_v2};

fn main() -> ExitCode {
    program("differential_v2", settings, async |settings: &V2Settings| {
        println!("reference: {}\nsubject:   {}", settings.reference.name, settings.subject.name);
        run_v2(settings).await
    })
}

/// What was typed, as settings.
fn settings(arguments: &mut Arguments) -> Result<V2Settings, String> {
    let reference = arguments.binary("--reference").or_else(reference_with_v2);
    Ok(V2Settings {
        operations: arguments.number("--ops", 50_000)?,
        seed: arguments.number("--seed", 1)?,
        reference: reference.ok_or("no etcd to compare with: name one with --reference")?,
        subject: arguments.binary("--subject").unwrap_or_else(ours),
        verbose: true,
    })
}
