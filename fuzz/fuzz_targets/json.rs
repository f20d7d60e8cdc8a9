//! Bodies of requests to the JSON gateway.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some((which, text)) = data.split_first() {
        api::fuzzing::json(usize::from(*which), text);
    }
});
