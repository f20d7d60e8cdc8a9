//! Whole clusters in one thread, on a simulated clock, network and disk, from one seed.
//!
//! What runs is what production runs: the crates from `disk` to `server`, a member's actors included. Only the threads that
//! wait around them, the sockets and the operating system are replaced. Read [`life`] first, then [`cluster`].

mod agenda;
mod campaign;
mod client;
mod cluster;
mod host;
mod lease;
mod ledger;
mod life;
mod locker;
mod membership;
mod model;
mod network;
mod options;
mod random;
mod shrink;
mod tasks;
mod teeth;
mod trace;
mod troubles;
mod v2;
mod watcher;
mod without;
mod workload;

use std::process::ExitCode;

use options::{Options, USAGE};

/// Lives are spent on small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--help") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let fine = match &options.mutants {
        Some(mutants) => teeth::run(&options, mutants),
        None if options.shrinks => shrink::run(&options, options.seeds.start),
        None => campaign::run(&options),
    };
    if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
