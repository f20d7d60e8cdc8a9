//! Ours and a real etcd answer the same to `/v2`: a short stretch of what `bin/differential_v2.rs` does at length.

use keelson_tests::differential::{V2Settings, run_v2};
use keelson_tests::harness::{ours, reference_with_v2};

#[tokio::test]
async fn every_answer_equals_the_real_etcds() {
    let Some(reference) = reference_with_v2() else {
        eprintln!("skipped: there is no etcd with a v2 API to compare with; .ci/peers fetches one");
        return;
    };
    let settings = V2Settings { operations: 4_000, seed: 1, reference, subject: ours(), verbose: false };
    if let Err(failure) = run_v2(&settings).await {
        panic!("{failure}");
    }
}
