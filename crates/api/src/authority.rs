//! Clients that say `:authority: http://host:port`.
//!
//! Go's etcd clients up to 3.4 dial a single endpoint (`etcdctl endpoint status`, `move-leader`) with its whole URL as the
//! authority. Go's servers never look at it; the HTTP/2 library used here resets the stream with PROTOCOL_ERROR. So the
//! authority is mended on its way in, before the library sees it.
//!
//! # Invariants
//! - No frame and no header block changes its length: the value is overwritten in place by as many plain characters.
//! - The value never gets longer than the client's own once decoded (a Huffman code of a URL is shorter than the URL),
//!   so this side never evicts an entry from the HPACK table before the client does.

/// What an HTTP/2 client says before its first frame.
const PREFACE_BYTES: usize = 24;
const FRAME_HEAD_BYTES: usize = 9;
/// The largest frame we allow clients to send.
const MAX_FRAME_BYTES: usize = 16 << 10;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Index of `:authority` in HPACK's static table.
const AUTHORITY: usize = 1;
/// Pseudo-headers come first and there are four, after at most two table size updates.
const FIELDS_TO_LOOK_AT: usize = 6;

/// Follows the frames of one connection.
#[derive(Debug)]
pub(crate) struct Mender {
    /// Bytes to come that need no attention.
    skip: usize,
}

impl Mender {
    pub(crate) fn new() -> Self {
        Self { skip: PREFACE_BYTES }
    }

    /// Mends what is in `data`, which continues where the last call stopped. Returns how much may be passed on; the rest
    /// is part of a frame that must be seen whole, and is given again with more behind it.
    pub(crate) fn pass(&mut self, data: &mut [u8]) -> usize {
        let mut position = 0;
        loop {
            let skipped = self.skip.min(data.len() - position);
            self.skip -= skipped;
            position += skipped;
            let rest = &mut data[position..];
            let Some((head, payload)) = rest.split_at_mut_checked(FRAME_HEAD_BYTES) else { return position };
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            if head[3] != HEADERS || length > MAX_FRAME_BYTES {
                self.skip = FRAME_HEAD_BYTES + length;
                continue;
            }
            let Some(payload) = payload.get_mut(..length) else { return position };
            let padding = usize::from(head[4] & PADDED != 0);
            let priority = if head[4] & PRIORITY != 0 { 5 } else { 0 };
            if let Some(block) = payload.get_mut(padding + priority..) {
                // What cannot be read is left for the library to refuse.
                let _ = mend_block(block);
            }
            self.skip = FRAME_HEAD_BYTES + length;
        }
    }
}

/// Looks for a literal `:authority` in a header block. `None`: the block ends in the middle of a field.
fn mend_block(block: &mut [u8]) -> Option<()> {
    let mut position = 0;
    for _ in 0..FIELDS_TO_LOOK_AT {
        let first = *block.get(position)?;
        if first & 0x80 != 0 {
            // Name and value from a table.
            position = integer(block, position, 7)?.1;
        } else if first & 0xe0 == 0x20 {
            // A new size for the table.
            position = integer(block, position, 5)?.1;
        } else {
            let (name, mut at) = integer(block, position, if first & 0x40 != 0 { 6 } else { 4 })?;
            if name == 0 {
                let (length, start) = integer(block, at, 7)?;
                at = start.checked_add(length)?;
            }
            let (length, start) = integer(block, at, 7)?;
            let end = start.checked_add(length)?;
            let huffman = *block.get(at)? & 0x80 != 0;
            let value = block.get_mut(start..end)?;
            if name == AUTHORITY {
                if is_url(value, huffman) {
                    value.fill(b'x');
                    block[at] &= 0x7f;
                }
                return Some(());
            }
            position = end;
        }
    }
    Some(())
}

/// An integer with a prefix of `bits` (RFC 7541, 5.1), and where it ends.
fn integer(block: &[u8], mut position: usize, bits: u32) -> Option<(usize, usize)> {
    let mask = (1usize << bits) - 1;
    let mut value = usize::from(*block.get(position)?) & mask;
    position += 1;
    if value < mask {
        return Some((value, position));
    }
    for shift in [0, 7, 14] {
        let byte = *block.get(position)?;
        position += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, position));
        }
    }
    // Longer than any header block.
    None
}

/// Whether a header value begins with `http://` or `https://`.
fn is_url(value: &[u8], huffman: bool) -> bool {
    if !huffman {
        return value.starts_with(b"http://") || value.starts_with(b"https://");
    }
    // The codes of RFC 7541, appendix B, one after the other; `http://` ends one bit into the sixth byte, `https://` six.
    let http = value.starts_with(&[0x9d, 0x29, 0xae, 0xe3, 0x0c]) && value.get(5).is_some_and(|byte| byte & 0x80 == 0);
    let https =
        value.starts_with(&[0x9d, 0x29, 0xad, 0x17, 0x18]) && value.get(5).is_some_and(|byte| byte >> 2 == 0b011000);
    http || https
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, 4, 0, 0, 0, 1], payload].concat()
    }

    /// `:method POST` and `:scheme http` from the table, a literal `:path`, then the authority.
    fn block(authority: &[u8], huffman: bool) -> Vec<u8> {
        let flag = if huffman { 0x80 } else { 0 };
        [&[0x83, 0x86, 0x44, 2], b"/a".as_ref(), &[0x41, flag | authority.len() as u8], authority, &[0x40]].concat()
    }

    const URL: &[u8] = &[0x9d, 0x29, 0xae, 0xe3, 0x0c, 0x10, 1, 2, 3];

    #[test]
    fn an_authority_that_is_a_url_becomes_a_name_however_the_stream_is_cut() {
        let stream = |block: &[u8]| {
            [&[b'P'; PREFACE_BYTES], &*frame(4, &[0; 12]), &frame(1, block), &frame(0, &[7; 40]), &frame(1, &[0x82])]
                .concat()
        };
        for (url, huffman) in [(URL, true), (b"http://h:1".as_ref(), false), (b"https://h".as_ref(), false)] {
            let expected = stream(&block(&vec![b'x'; url.len()], false));
            let sent = stream(&block(url, huffman));
            for cut in 1..=sent.len() {
                let (mut mender, mut held, mut passed) = (Mender::new(), Vec::new(), Vec::new());
                for chunk in sent.chunks(cut) {
                    held.extend(chunk);
                    let pass = mender.pass(&mut held);
                    passed.extend(held.drain(..pass));
                }
                assert!(passed == expected && held.is_empty(), "cut every {cut} bytes");
            }
        }
    }

    #[test]
    fn any_other_authority_is_left_alone() {
        for (authority, huffman) in [(b"127.0.0.1:2379".as_ref(), false), (&[0x9d, 0x29, 0xae], true), (b"", false)] {
            let mut mended = block(authority, huffman);
            mend_block(&mut mended);
            assert_eq!(mended, block(authority, huffman));
        }
    }

    #[test]
    fn a_broken_block_is_left_to_the_library() {
        let whole = block(URL, true);
        for end in 0..whole.len() - 1 {
            mend_block(&mut whole[..end].to_vec());
        }
        mend_block(&mut [0x41, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    }
}
