//! Many lives, side by side.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};

use crate::cluster::Tally;
use crate::ledger::Violation;
use crate::life::{Verdict, live};
use crate::options::Options;

/// Progress is shown this often.
const SHOW: Duration = Duration::from_secs(10);

/// What is known so far.
struct Progress {
    lives: u64,
    failures: Vec<Verdict>,
    simulated_us: u64,
    asked: u64,
    shown: Instant,
}

/// Runs all seeds. Whether all promises were kept.
pub fn run(options: &Options) -> bool {
    let begun = Instant::now();
    let cpu_begun = cpu_seconds(ClockId::ProcessCPUTime);
    let next = AtomicU64::new(options.seeds.start);
    let progress =
        Mutex::new(Progress { lives: 0, failures: Vec::new(), simulated_us: 0, asked: 0, shown: Instant::now() });
    let total = options.seeds.end.saturating_sub(options.seeds.start);
    let is_one = total == 1;
    let worker = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= options.seeds.end {
                return;
            }
            let verdict = judge(options, seed);
            let mut progress = progress.lock();
            progress.lives += 1;
            progress.simulated_us += verdict.simulated_us;
            progress.asked += verdict.tally.asked;
            if is_one || verdict.violation.is_some() {
                tell(&verdict);
            }
            if verdict.violation.is_some() {
                progress.failures.push(verdict);
            }
            if !is_one && progress.shown.elapsed() >= SHOW {
                progress.shown = Instant::now();
                println!("{} of {total} seeds, {} failed", progress.lives, progress.failures.len());
            }
        }
    };
    let jobs = options.jobs.min(usize::try_from(total).unwrap_or(usize::MAX));
    std::thread::scope(|scope| {
        for _ in 1..jobs {
            scope.spawn(worker);
        }
        worker();
    });
    let progress = progress.into_inner();
    let took = begun.elapsed().as_secs_f64();
    let simulated = progress.simulated_us as f64 / 1e6;
    // The processor's time and not the clock's: the machine may have other things to do.
    let cpu = cpu_seconds(ClockId::ProcessCPUTime) - cpu_begun;
    println!(
        "{} seeds, {:.1} h simulated in {took:.1} s, {cpu:.1} s of CPU: {:.0} times real time per core; {} requests, {:.1} per \
         simulated second; {} failed",
        progress.lives,
        simulated / 3600.0,
        simulated / cpu,
        progress.asked,
        progress.asked as f64 / simulated,
        progress.failures.len()
    );
    progress.failures.is_empty()
}

/// CPU time so far, in seconds: of the process or of the thread.
pub fn cpu_seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Lives a seed. An assertion of the members' that does not hold is a broken promise like any other.
pub fn survive(options: &Options, seed: u64) -> Verdict {
    catch_unwind(AssertUnwindSafe(|| live(options, seed))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
        Verdict {
            seed,
            trace_hash: 0,
            simulated_us: 0,
            members: 0,
            tally: Tally::default(),
            entries: 0,
            compared: 0,
            violation: Some(Violation(format!("a panic: {text}"))),
        }
    })
}

/// Lives a seed, twice if asked to.
fn judge(options: &Options, seed: u64) -> Verdict {
    let mut verdict = survive(options, seed);
    if options.twice {
        let again = survive(options, seed);
        if again.trace_hash != verdict.trace_hash {
            let text = format!("two runs differ: {:016x} and {:016x}", verdict.trace_hash, again.trace_hash);
            verdict.violation.get_or_insert(Violation(text));
        }
    }
    verdict
}

fn tell(verdict: &Verdict) {
    let Verdict { seed, trace_hash, simulated_us, members, tally, entries, compared, violation } = verdict;
    println!(
        "seed {seed}: {members} members, {:.0} s simulated, {entries} entries, {compared} answers compared",
        *simulated_us as f64 / 1e6
    );
    println!(
        "  {} requests, {} done, {} with unknown outcome; {} troubles; {} starts; {} snapshots; {} disk failures; {} shown to watchers",
        tally.asked,
        tally.answered,
        tally.lost,
        tally.troubles,
        tally.starts,
        tally.snapshots,
        tally.disk_failures,
        tally.watched
    );
    println!("  trace {trace_hash:016x}");
    match violation {
        Some(violation) => println!(
            "  BROKEN: {}\n  again, with the same options: sim --seed {seed} --trace, or --shrink for a smaller life",
            violation.0
        ),
        None => println!("  all promises kept"),
    }
}
