//! Takes the chunked transfer coding off a response body, as its pieces arrive (RFC 9112, section 7.1).

use bytes::{Buf, BytesMut};

/// Longest chunk head: sixteen digits, and an extension that nobody sends.
const MAX_HEAD_BYTES: usize = 256;

/// The coding is broken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("malformed chunked encoding")]
pub(crate) struct ChunkError;

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
enum Expect {
    Head,
    Data(u64),
    DataEnd,
    /// The last chunk was seen.
    Nothing,
}

/// The state between two reads.
#[derive(Debug)]
pub(crate) struct ChunkDecoder {
    expect: Expect,
}

impl ChunkDecoder {
    pub(crate) fn new() -> Self {
        Self { expect: Expect::Head }
    }

    /// Was the last chunk seen? Then the peer ended the body on purpose.
    pub(crate) fn is_done(&self) -> bool {
        self.expect == Expect::Nothing
    }

    /// Moves the content of `raw` to the end of `plain`, as far as it has arrived. Bytes that follow one another in
    /// memory are not copied.
    pub(crate) fn decode(&mut self, raw: &mut BytesMut, plain: &mut BytesMut) -> Result<(), ChunkError> {
        loop {
            match self.expect {
                Expect::Head => {
                    let Some(end) = raw.iter().take(MAX_HEAD_BYTES).position(|&byte| byte == b'\n') else {
                        return if raw.len() >= MAX_HEAD_BYTES { Err(ChunkError) } else { Ok(()) };
                    };
                    let length = chunk_length(&raw[..end]).ok_or(ChunkError)?;
                    raw.advance(end + 1);
                    // Trailers may follow the last chunk; the body has ended all the same.
                    self.expect = if length == 0 { Expect::Nothing } else { Expect::Data(length) };
                }
                Expect::Data(remaining) => {
                    if raw.is_empty() {
                        return Ok(());
                    }
                    let taken = usize::try_from(remaining).unwrap_or(usize::MAX).min(raw.len());
                    plain.unsplit(raw.split_to(taken));
                    let remaining = remaining - taken as u64;
                    self.expect = if remaining == 0 { Expect::DataEnd } else { Expect::Data(remaining) };
                }
                Expect::DataEnd => {
                    if raw.len() < 2 {
                        return Ok(());
                    }
                    if !raw.starts_with(b"\r\n") {
                        return Err(ChunkError);
                    }
                    raw.advance(2);
                    self.expect = Expect::Head;
                }
                Expect::Nothing => return Ok(()),
            }
        }
    }
}

fn chunk_length(line: &[u8]) -> Option<u64> {
    let line = line.strip_suffix(b"\r")?;
    let digits = line.split(|&byte| byte == b';').next()?.trim_ascii();
    if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_in_pieces(input: &[u8], size: usize) -> Result<(Vec<u8>, bool), ChunkError> {
        let (mut decoder, mut raw, mut plain) = (ChunkDecoder::new(), BytesMut::new(), BytesMut::new());
        for piece in input.chunks(size) {
            raw.extend_from_slice(piece);
            decoder.decode(&mut raw, &mut plain)?;
        }
        Ok((plain.to_vec(), decoder.is_done()))
    }

    #[test]
    fn the_content_is_the_same_however_the_bytes_arrive() {
        let input = b"5\r\nhello\r\n1;x=y\r\n \r\n00000B\r\nwide world!\r\n0\r\n\r\n";
        for size in 1..=input.len() {
            assert_eq!(decode_in_pieces(input, size), Ok((b"hello wide world!".to_vec(), true)), "pieces of {size}");
        }
        assert_eq!(decode_in_pieces(b"5\r\nhel", 2), Ok((b"hel".to_vec(), false)));
    }

    #[test]
    fn what_is_not_chunked_encoding_is_refused() {
        let endless = vec![b'1'; 300];
        let cases: [&[u8]; 7] =
            [b"\r\n", b"g\r\n", b"-1\r\n", b"5\nhello", b"1\r\nabc", b"11111111111111111\r\n", &endless];
        for case in cases {
            assert_eq!(decode_in_pieces(case, 3), Err(ChunkError), "{case:?}");
        }
    }
}
