//! Ours and a real etcd answer the same: a short stretch of what `bin/differential.rs` does at length.

use keelson_tests::differential::{Failure, Settings, run};
use keelson_tests::harness::{ours, reference};

fn settings(operations: u64, seed: u64) -> Option<Settings> {
    let Some(reference) = reference() else {
        eprintln!("skipped: there is no etcd to compare with; .ci/peers fetches one");
        return None;
    };
    Some(Settings { operations, seed, subject: ours(), reference, plant_fault_at: None, verbose: false })
}

#[tokio::test]
async fn every_answer_equals_the_real_etcds() {
    for seed in [1, 2] {
        let Some(settings) = settings(4_000, seed) else { return };
        if let Err(failure) = run(&settings).await {
            panic!("{failure}");
        }
    }
}

/// The comparison would be worth nothing if it could not fail: the subject gets one put with another value.
#[tokio::test]
async fn a_planted_fault_is_found() {
    let Some(mut settings) = settings(4_000, 3) else { return };
    settings.subject = settings.reference.clone();
    settings.plant_fault_at = Some(1_000);
    let failure = run(&settings).await.expect_err("the fault was planted");
    let Failure::Difference(difference) = &failure else { panic!("not a difference: {failure}") };
    assert!((1_000..1_400).contains(&difference.number), "found late: {failure}");
}
