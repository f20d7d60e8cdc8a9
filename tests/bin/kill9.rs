//! `kill9 [--rounds 100] [--seed 1] [--writers 16] [--server /path/to/etcd]`
//!
//! Kills a server (ours by default) under load, again and again. Ends with status 1 at the first broken promise, and
//! says which.

use std::process::ExitCode;
use std::time::Duration;

use keelson_tests::harness::{Binary, ours};
use keelson_tests::kill9::{Settings, run};

fn main() -> ExitCode {
    let settings = match settings(std::env::args().skip(1)) {
        Ok(settings) => settings,
        Err(problem) => {
            eprintln!("kill9: {problem}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(problem) => {
            eprintln!("kill9: no runtime: {problem}");
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
    let (mut rounds, mut seed, mut writers, mut server) = (100, 1, 16, None);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
        let number = || value.parse::<u32>().map_err(|problem| format!("{flag} {value}: {problem}"));
        match flag.as_str() {
            "--rounds" => rounds = number()?,
            "--seed" => seed = number()?.into(),
            "--writers" => writers = number()? as usize,
            "--server" => server = Some(value),
            _ => return Err(format!("unknown flag {flag}")),
        }
    }
    let server = server.map_or_else(ours, Binary::at);
    Ok(Settings { server, rounds, seed, writers, longest_load: Duration::from_millis(800), verbose: true })
}
