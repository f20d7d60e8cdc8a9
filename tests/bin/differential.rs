//! A long comparison of two servers:
//!
//! `differential --ops 200000 --seed 7 --reference /path/to/etcd [--subject /path/to/etcd] [--plant-fault-at N]`
//!
//! Without `--subject` it is our own server, without `--reference` an installed etcd. Ends with status 1 at the first
//! difference, and says what it was.

use std::process::ExitCode;

use keelson_tests::differential::{Settings, run};
use keelson_tests::harness::{Binary, ours, reference};

fn main() -> ExitCode {
    let settings = match settings(std::env::args().skip(1)) {
        Ok(settings) => settings,
        Err(problem) => {
            eprintln!("differential: {problem}");
            return ExitCode::from(2);
        }
    };
    println!("reference: {}\nsubject:   {}", settings.reference.name, settings.subject.name);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(problem) => {
            eprintln!("differential: no runtime: {problem}");
            return ExitCode::from(2);
        }
    };
    match runtime.block_on(run(&settings)) {
        Ok(report) => {
            print!("{report}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{failure}");
            ExitCode::FAILURE
        }
    }
}

/// What was typed, as settings.
fn settings(mut arguments: impl Iterator<Item = String>) -> Result<Settings, String> {
    let (mut operations, mut seed, mut plant_fault_at) = (200_000, 1, None);
    let (mut reference_path, mut subject_path) = (None, None);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|problem| format!("{flag} {value}: {problem}"));
        match flag.as_str() {
            "--ops" => operations = number()?,
            "--seed" => seed = number()?,
            "--plant-fault-at" => plant_fault_at = Some(number()?),
            "--reference" => reference_path = Some(value),
            "--subject" => subject_path = Some(value),
            _ => return Err(format!("unknown flag {flag}")),
        }
    }
    let reference = reference_path.map(Binary::at).or_else(reference);
    Ok(Settings {
        operations,
        seed,
        reference: reference.ok_or("no etcd to compare with: name one with --reference")?,
        subject: subject_path.map_or_else(ours, Binary::at),
        plant_fault_at,
        verbose: true,
    })
}
