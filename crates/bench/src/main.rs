//! `keelson-bench`: loads etcd servers and compares them side by side. See the README beside `Cargo.toml`.

mod compare;
mod control;
mod error;
mod histogram;
mod load;
mod metric;
mod options;
mod place;
mod process;
mod protobuf;
mod report;
mod wire;
mod workload;

use error::BenchError;
use options::Command;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let command = match options::parse(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(sentence) => {
            eprintln!("{sentence}; see keelson-bench --help");
            return ExitCode::from(2);
        }
    };
    match command {
        Command::Help => print!("{}", options::HELP),
        Command::List => workload::all()
            .iter()
            .chain(&workload::of_v2())
            .chain(&workload::of_clusters())
            .for_each(|workload| println!("{}", workload.name)),
        command => {
            return match measure(&command) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(error) => {
                    eprintln!("{error}");
                    ExitCode::FAILURE
                }
            };
        }
    }
    ExitCode::SUCCESS
}

/// One thread does everything: the load must not take both cores from the server.
fn measure(command: &Command) -> Result<bool, BenchError> {
    let runtime_error = |source| BenchError::File { path: "(runtime)".into(), source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(runtime_error)?;
    let work = async {
        match command {
            Command::Compare(options) => compare::compare(options).await,
            Command::Run(options) => compare::run(options).await,
            Command::Help | Command::List => Ok(true),
        }
    };
    let interrupted = async {
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return std::future::pending().await;
        };
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    };
    tokio::task::LocalSet::new().block_on(&runtime, async {
        // Dropping the work kills the server it runs and removes its directory.
        tokio::select! {
            done = work => done,
            () = interrupted => { eprintln!("interrupted"); Ok(false) }
        }
    })
}
