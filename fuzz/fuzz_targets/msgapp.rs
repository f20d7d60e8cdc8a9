//! The two streams between members, in pieces.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use peer::frame::{Decoder, Encoder, Gather};

fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else { return };
    let append = first & 1 == 1;
    let decoder = || if append { Decoder::append(2, 1) } else { Decoder::message() };
    let mut whole = Vec::new();
    let whole_result = decoder().decode(&mut BytesMut::from(data), &mut whole).is_ok();

    let (mut pieces, mut input, mut found) = (decoder(), BytesMut::new(), Vec::new());
    let mut result = true;
    for piece in data.chunks(usize::from(first >> 1) + 1) {
        input.extend_from_slice(piece);
        if pieces.decode(&mut input, &mut found).is_err() {
            result = false;
            break;
        }
    }
    assert_eq!((whole_result, &whole), (result, &found), "it matters how the bytes arrive");
    // What was understood can be said again.
    let mut out = Gather::default();
    for message in &whole {
        Encoder::message().encode(message, &mut out);
    }
});
