//! A long comparison of who may do what on two servers:
//!
//! `differential_auth --ops 20000 --seed 7 --reference /path/to/etcd [--subject /path/to/etcd]`
//!
//! Without `--subject` it is our own server, without `--reference` an installed etcd. Ends with status 1 at the first
//! difference, and says what it was. A reference before 3.7.1 is not asked what etcd has repaired since.

use std::process::ExitCode;

use keelson_tests::differential::{AuthSettings, run_auth};
use keelson_tests::harness::{Arguments, ours, program, reference};

fn main() -> ExitCode {
    program("differential_auth", settings, async |settings: &AuthSettings| {
        println!("reference: {}\nsubject:   {}", settings.reference.name, settings.subject.name);
        run_auth(settings).await
    })
}

/// What was typed, as settings.
fn settings(arguments: &mut Arguments) -> Result<AuthSettings, String> {
    let reference = arguments.binary("--reference").or_else(reference);
    Ok(AuthSettings {
        operations: arguments.number("--ops", 20_000)?,
        seed: arguments.number("--seed", 1)?,
        reference: reference.ok_or("no etcd to compare with: name one with --reference")?,
        subject: arguments.binary("--subject").unwrap_or_else(ours),
    })
}
