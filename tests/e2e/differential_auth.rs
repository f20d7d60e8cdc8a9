//! Ours and a real etcd allow and refuse the same: a short stretch of what `bin/differential_auth.rs` does at length.

use keelson_tests::differential::{AuthSettings, run_auth};
use keelson_tests::harness::{ours, reference};

#[tokio::test]
#[ignore = "with KEELSON_REFERENCE=/path/to/etcd of 3.7.1: older ones refuse watches in other words"]
async fn users_may_do_what_they_may_do_on_the_real_etcd() {
    let Some(reference) = reference() else {
        eprintln!("skipped: there is no etcd to compare with; .ci/peers fetches one");
        return;
    };
    for seed in [1, 2] {
        let settings = AuthSettings { operations: 1_500, seed, subject: ours(), reference: reference.clone() };
        if let Err(failure) = run_auth(&settings).await {
            panic!("{failure}");
        }
    }
}
