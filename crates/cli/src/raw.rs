//! Any bytes as a text and back: keys and values need not be UTF-8, but what is typed is handled as text.
//!
//! A byte that belongs to no character stands for itself as one of 128 characters at the end of Unicode's last private
//! plane. Where such a character is typed itself, its four bytes are treated the same way, so nothing is ambiguous.

use bytes::Bytes;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// U+10FF00; a byte `b` above 0x7F becomes the character `b` behind it.
const BASE: u32 = 0x10_FF00;

fn byte_of(character: char) -> Option<u8> {
    (character as u32).checked_sub(BASE).and_then(|byte| u8::try_from(byte).ok()).filter(|byte| *byte >= 0x80)
}

/// The text that stands for these bytes; for UTF-8 it is what they say.
pub fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let escaped = |byte: &u8| char::from_u32(BASE + u32::from(*byte)).unwrap_or(char::REPLACEMENT_CHARACTER);
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match byte_of(character) {
                None => text.push(character),
                Some(_) => text.extend(character.encode_utf8(&mut [0; 4]).as_bytes().iter().map(escaped)),
            }
        }
        text.extend(chunk.invalid().iter().map(escaped));
    }
    text
}

/// The bytes that a text stands for.
pub fn bytes(text: &str) -> Bytes {
    let mut bytes = Vec::with_capacity(text.len());
    text.chars().for_each(|character| push(&mut bytes, character));
    bytes.into()
}

/// A word as a program is given it.
pub fn argument(text: &str) -> OsString {
    OsString::from_vec(bytes(text).into())
}

/// Adds what a character of a text stands for.
pub fn push(bytes: &mut Vec<u8>, character: char) {
    match byte_of(character) {
        None => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        Some(byte) => bytes.push(byte),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_string_of_bytes_comes_back() {
        assert_eq!(text("a 中 \u{10fffd}x".as_bytes()).chars().take(4).collect::<String>(), "a 中 ");
        let all: Vec<u8> = (0..=255).collect();
        for given in
            [&b""[..], b"plain", "中文".as_bytes(), b"\xff", b"a\xffb\xc3", "\u{10ffff}\u{10ff80}".as_bytes(), &all]
        {
            assert_eq!(bytes(&text(given)), given);
        }
    }
}
