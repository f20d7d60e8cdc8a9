//! The body of a request, as it is found in what was read.

use bytes::{Buf, Bytes, BytesMut};
use http::StatusCode;

use super::head::{Fault, Length};

/// The longest line that begins a chunk, and the most that may follow the last one.
const MAX_LINE_BYTES: usize = 4 << 10;

/// Cuts a body out of what is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader(State);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes, and that is all.
    Last(u64),
    /// The line before a chunk.
    Line,
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The line's end behind a chunk.
    ChunkEnd,
    /// Fields behind the last chunk, so many bytes of them so far.
    Fields(usize),
    Done,
}

impl Reader {
    pub(super) fn new(length: Length) -> Self {
        Self(match length {
            Length::Known(0) => State::Done,
            Length::Known(length) => State::Last(length),
            Length::Chunked => State::Line,
        })
    }

    /// Nothing of the body follows.
    pub(super) fn is_done(&self) -> bool {
        self.0 == State::Done
    }

    /// How many bytes are known to follow.
    pub(super) fn announced(&self) -> u64 {
        match self.0 {
            State::Last(left) | State::Chunk(left) => left,
            _ => 0,
        }
    }

    /// The next part of the body; none if more has to be read, or if it is done.
    pub(super) fn take(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, Fault> {
        const BAD: Fault = Fault(StatusCode::BAD_REQUEST, ": malformed chunked encoding");
        loop {
            match self.0 {
                State::Last(left) | State::Chunk(left) => {
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    if length == 0 {
                        return Ok(None);
                    }
                    let left = left - length as u64;
                    self.0 = match self.0 {
                        State::Last(_) if left == 0 => State::Done,
                        State::Last(_) => State::Last(left),
                        _ if left == 0 => State::ChunkEnd,
                        _ => State::Chunk(left),
                    };
                    return Ok(Some(input.split_to(length).freeze()));
                }
                State::ChunkEnd => match input.first_chunk::<2>() {
                    None => return Ok(None),
                    Some(b"\r\n") => {
                        input.advance(2);
                        self.0 = State::Line;
                    }
                    Some(_) => return Err(BAD),
                },
                State::Line => {
                    let Some(line) = line(input)? else { return Ok(None) };
                    // What follows a semicolon is an extension, of which there are none that anybody uses.
                    let digits = line[..].split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
                    let is_hex = !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit);
                    let digits = std::str::from_utf8(digits).ok().filter(|_| is_hex).ok_or(BAD)?;
                    self.0 = match u64::from_str_radix(digits, 16).map_err(|_| BAD)? {
                        0 => State::Fields(0),
                        size => State::Chunk(size),
                    };
                }
                // Nobody here knows any.
                State::Fields(so_far) => {
                    let Some(line) = line(input)? else { return Ok(None) };
                    let so_far = so_far + line.len();
                    self.0 = match line.is_empty() {
                        true => State::Done,
                        false if so_far > MAX_LINE_BYTES => return Err(BAD),
                        false => State::Fields(so_far),
                    };
                }
                State::Done => return Ok(None),
            }
        }
    }
}

/// A line, without its end, if it is there.
fn line(input: &mut BytesMut) -> Result<Option<BytesMut>, Fault> {
    match input.iter().take(MAX_LINE_BYTES + 2).position(|byte| *byte == b'\n') {
        Some(at) => {
            let mut line = input.split_to(at + 1);
            // A lone \n ends a line for some readers and not for others.
            if !line.ends_with(b"\r\n") {
                return Err(Fault(StatusCode::BAD_REQUEST, ": malformed chunked encoding"));
            }
            line.truncate(at - 1);
            Ok(Some(line))
        }
        None if input.len() > MAX_LINE_BYTES => Err(Fault(StatusCode::BAD_REQUEST, ": header line too long")),
        None => Ok(None),
    }
}
