//! Whether the checkers find what they are for: lives with one deliberate bug each.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use mutant::Mutant;
use rustix::time::ClockId;

use crate::campaign::{cpu_seconds, survive};
use crate::options::Options;

/// How much of a complaint is shown.
const SHOWN: usize = 110;

/// What became of a bug.
struct Found {
    mutant: Mutant,
    /// The seed that found it, and the complaint.
    caught: Option<(u64, String)>,
    /// Lives with it.
    lives: u64,
    /// CPU time of them, in seconds.
    cpu_seconds: f64,
}

/// Lives with each of the bugs until somebody complains, or no seed is left. Whether all were found.
pub fn run(options: &Options, mutants: &[Mutant]) -> bool {
    if !mutant::ACTIVE {
        eprintln!("no deliberate bugs in this build: cargo run --release -p sim --features mutants -- --mutants all");
        return false;
    }
    // An assertion that fails is a find like any other, and shown in the table.
    std::panic::set_hook(Box::new(|_| {}));
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    let worker = || {
        while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
            let row = hunt(options, *mutant);
            let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            found.push(row);
            eprintln!("{} of {}: {}", found.len(), mutants.len(), line(&found[found.len() - 1]));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..options.jobs.min(mutants.len()) {
            scope.spawn(worker);
        }
        worker();
    });
    let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    found.sort_by_key(|row| row.mutant);
    println!("| bug | what goes wrong | seed | lives | CPU s | the complaint |\n|---|---|---|---|---|---|");
    for row in &found {
        println!("{}", line(row));
    }
    let mut times: Vec<f64> = found.iter().filter(|row| row.caught.is_some()).map(|row| row.cpu_seconds).collect();
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    println!("\n{} of {} found, in {median:.2} s of CPU (median)", times.len(), found.len());
    times.len() == found.len()
}

fn hunt(options: &Options, mutant: Mutant) -> Found {
    let mut found = Found { mutant, caught: None, lives: 0, cpu_seconds: 0.0 };
    for seed in options.seeds.clone() {
        let begun = cpu_seconds(ClockId::ThreadCPUTime);
        make(Some(mutant));
        let verdict = survive(options, seed);
        make(None);
        found.lives += 1;
        found.cpu_seconds += cpu_seconds(ClockId::ThreadCPUTime) - begun;
        if let Some(violation) = verdict.violation {
            // What goes wrong without the bug is no find.
            match survive(options, seed).violation {
                None => {
                    found.caught = Some((seed, violation.0));
                    break;
                }
                Some(violation) => eprintln!("seed {seed} fails without any deliberate bug: {}", violation.0),
            }
        }
    }
    found
}

#[cfg(feature = "mutants")]
use mutant::make;

#[cfg(not(feature = "mutants"))]
fn make(_: Option<Mutant>) {}

/// A row of the table.
fn line(found: &Found) -> String {
    let Found { mutant, caught, lives, cpu_seconds } = found;
    let (seed, complaint) = match caught {
        Some((seed, complaint)) => (seed.to_string(), complaint.as_str()),
        None => ("-".to_owned(), "**escaped**"),
    };
    let mut text = format!("| {mutant:?} | {} | {seed} | {lives} | {cpu_seconds:.2} | ", mutant.what());
    for c in complaint.chars().take(SHOWN) {
        match c {
            '|' => text.push_str("\\|"),
            c if c.is_control() => text.push(' '),
            c => text.push(c),
        }
    }
    // Nothing can go wrong when a string is written to.
    let _written = write!(text, "{} |", if complaint.chars().count() > SHOWN { " …" } else { "" });
    text
}
