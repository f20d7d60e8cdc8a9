//! Whatever is done to a store, in whatever order, it answers like a model that forgets nothing.

mod common;

use common::{Run, small};
use disk::mem::Crash;
use rand::Rng;

/// Puts, deletes, rows and compactions, with background work, clean stops, killed processes and power cuts between.
#[test]
fn a_store_answers_like_its_model() {
    for seed in 0..40 {
        println!("seed {seed}");
        let mut run = Run::new(seed, small());
        for _ in 0..12 {
            for _ in 0..run.random.random_range(1..80) {
                run.step();
                match run.random.random_range(0..20) {
                    0..6 => drop(run.store.maintain().unwrap()),
                    6 => run.writer().flush().unwrap(),
                    7 => run.sync(),
                    _ => {}
                }
            }
            match run.random.random_range(0..6) {
                0 => run.settle(),
                1 => {
                    run.writer.take().unwrap().close().unwrap();
                    run.synced = run.ops.len() as u64;
                    let disk = run.disk.clone();
                    run.reopen(disk);
                }
                2 => {
                    let disk = run.disk.crash(Crash::KeepEverything);
                    run.reopen(disk);
                }
                3 => {
                    let disk = run.disk.crash(Crash::LoseUnsynced);
                    run.reopen(disk);
                }
                4 => {
                    let seed = run.random.random();
                    let disk = run.disk.crash(Crash::Random { seed });
                    run.reopen(disk);
                }
                _ => {}
            }
            run.check();
        }
    }
}
