//! What is acknowledged survives `kill -9`: a few rounds of what `bin/kill9.rs` does at length.

use std::time::Duration;

use keelson_tests::harness::ours;
use keelson_tests::kill9::{Settings, run};

#[tokio::test]
async fn no_acknowledged_write_is_lost_and_no_watcher_misses_or_repeats_an_event() {
    let settings = Settings {
        server: ours(),
        rounds: 8,
        seed: 5,
        writers: 16,
        longest_load: Duration::from_millis(500),
        verbose: false,
    };
    if let Err(failure) = run(&settings).await {
        panic!("{failure}");
    }
}
