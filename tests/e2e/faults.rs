//! A cluster keeps its promises while members fail: a few rounds of what `bin/faults.rs` does at length.

use std::time::Duration;

use keelson_tests::faults::{Settings, run};
use keelson_tests::harness::ours;

#[tokio::test]
async fn no_promise_is_broken_while_members_fail() {
    let settings = Settings {
        members: vec![ours(); 3],
        flags: vec!["--log-level=info".into()],
        rounds: 3,
        time: Duration::MAX,
        seed: 2,
        writers: 16,
        longest_fault: Duration::from_secs(2),
        only: None,
        logs: std::env::temp_dir(),
        verbose: false,
    };
    if let Err(failure) = run(&settings).await {
        panic!("{failure}");
    }
}
