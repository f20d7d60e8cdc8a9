//! Heads of requests, paths, queries, forms and JSON bodies of the v2 API.
#![no_main]

use keelson_fuzz::pieces;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [head, body] = pieces(data);
    api::fuzzing::v2_request(head, body);
});
