//! How raft messages are framed on the two kinds of streams. All integers are big-endian, of 64 bits, but for the
//! type byte.
//!
//! ```text
//! message   length ‖ Message
//! msgapp    0x00                                          link heartbeat
//!           0x01 ‖ n ‖ n × (length ‖ Entry) ‖ commit      append that continues the one before
//!           0x02 ‖ length ‖ Message                       any other append
//! ```
//!
//! Both ends of a `msgapp` stream remember the term and the index that the last append ended with; one that
//! starts there and is of that very term needs no more than its entries. A link heartbeat says that the connection
//! works; it is never handed on.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{decode_key, decode_varint, encode_varint, encoded_len_varint, skip_field};
use proto::raftpb::{Entry, Message, MessageType};

/// Longest message, and longest sum of the entries of one append; etcd's limit for a stream.
pub const MAX_FRAME_BYTES: u64 = 512 << 20;
/// Most entries in a message. Raft sends up to about 1 MiB at once, so the smallest entries stay below 200,000.
pub const MAX_ENTRIES: u64 = 1 << 20;
/// Frames up to this length are decoded without counting what they hold first.
const TRUSTED_BYTES: usize = 64 << 10;
/// Data from this length on is sent from where it lies; below, copying is cheaper.
const SHARED_BYTES: usize = 4 << 10;

const TAG_HEARTBEAT: u8 = 0;
const TAG_ENTRIES: u8 = 1;
const TAG_MESSAGE: u8 = 2;

/// A peer sent something that is not of the format. The stream cannot be followed any further.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A length above [`MAX_FRAME_BYTES`].
    #[error("frame of {length} bytes is above the limit of {limit}")]
    TooLong {
        /// As announced.
        length: u64,
        /// The limit.
        limit: u64,
    },
    /// More entries than [`MAX_ENTRIES`], or messages within messages.
    #[error("frame holds more than it may")]
    TooMany,
    /// No such type of frame.
    #[error("unknown type of frame {0}")]
    UnknownType(u8),
    /// An index beyond what 64 bits hold.
    #[error("index overflow")]
    Overflow,
    /// Not the protobuf message that it should be.
    #[error("{0}")]
    Malformed(#[from] prost::DecodeError),
}

/// Encoded bytes on their way to a socket: small pieces gathered, large ones shared.
#[derive(Debug, Default)]
pub struct Gather {
    gathered: BytesMut,
    ready: VecDeque<Bytes>,
    ready_bytes: usize,
}

impl Gather {
    /// Bytes that wait to be taken.
    pub fn len(&self) -> usize {
        self.ready_bytes + self.gathered.len()
    }

    /// Is there nothing to take?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the next piece, in order.
    pub fn pop(&mut self) -> Option<Bytes> {
        if let Some(piece) = self.ready.pop_front() {
            self.ready_bytes -= piece.len();
            return Some(piece);
        }
        (!self.gathered.is_empty()).then(|| self.gathered.split().freeze())
    }

    fn put_shared(&mut self, data: &Bytes) {
        if data.len() < SHARED_BYTES {
            self.gathered.extend_from_slice(data);
            return;
        }
        if !self.gathered.is_empty() {
            let piece = self.gathered.split().freeze();
            self.ready_bytes += piece.len();
            self.ready.push_back(piece);
        }
        self.ready_bytes += data.len();
        self.ready.push_back(data.clone());
    }

    fn put_message(&mut self, message: &Message) {
        let length = message.encoded_len();
        self.gathered.reserve(8 + length);
        self.gathered.put_u64(length as u64);
        message.encode_raw(&mut self.gathered);
    }

    /// A length and an entry, whose data stays where it is if it is large.
    fn put_entry(&mut self, entry: &Entry) {
        let length = entry.encoded_len();
        let data = match &entry.data {
            Some(data) if data.len() >= SHARED_BYTES => data,
            _ => {
                self.gathered.reserve(8 + length);
                self.gathered.put_u64(length as u64);
                entry.encode_raw(&mut self.gathered);
                return;
            }
        };
        // The data is the field with the highest number, so it comes last.
        const DATA_KEY: u8 = 4 << 3 | 2;
        let head = Entry { data: None, ..*entry };
        debug_assert_eq!(head.encoded_len() + 1 + encoded_len_varint(data.len() as u64) + data.len(), length);
        self.gathered.put_u64(length as u64);
        head.encode_raw(&mut self.gathered);
        self.gathered.put_u8(DATA_KEY);
        encode_varint(data.len() as u64, &mut self.gathered);
        self.put_shared(data);
    }
}

/// Where the last append of a `msgapp` stream ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    term: u64,
    index: u64,
}

impl Position {
    /// May this append be sent as entries alone?
    fn is_continued_by(self, message: &Message) -> bool {
        message.index() == self.index && message.log_term() == self.term && message.log_term() == message.term()
    }

    /// After an append that was sent as a whole.
    fn after(message: &Message) -> Self {
        let index = message.entries.last().map_or(message.index(), Entry::index);
        Self { term: message.term(), index }
    }
}

/// Writes one kind of stream.
#[derive(Debug)]
pub enum Encoder {
    /// The stream `message`.
    Message,
    /// The stream `msgapp`; holds where it stands.
    #[doc(hidden)]
    Append(AppendEncoder),
}

/// What a writer of a `msgapp` stream remembers.
#[derive(Debug, Default)]
pub struct AppendEncoder(Position);

impl Encoder {
    /// A writer at the begin of a `message` stream.
    pub fn message() -> Self {
        Self::Message
    }

    /// A writer at the begin of a `msgapp` stream.
    pub fn append() -> Self {
        Self::Append(AppendEncoder::default())
    }

    /// Adds a message. On a `msgapp` stream it must be an append.
    pub fn encode(&mut self, message: &Message, out: &mut Gather) {
        let Self::Append(AppendEncoder(position)) = self else {
            out.put_message(message);
            return;
        };
        assert_eq!(message.r#type(), MessageType::MsgApp, "only appends travel on a msgapp stream");
        if !position.is_continued_by(message) {
            out.gathered.put_u8(TAG_MESSAGE);
            out.put_message(message);
            *position = Position::after(message);
            return;
        }
        out.gathered.put_u8(TAG_ENTRIES);
        out.gathered.put_u64(message.entries.len() as u64);
        for entry in &message.entries {
            out.put_entry(entry);
        }
        out.gathered.put_u64(message.commit());
        position.index += message.entries.len() as u64;
    }

    /// Adds a link heartbeat.
    pub fn heartbeat(&mut self, out: &mut Gather) {
        match self {
            Self::Message => {
                out.put_message(&Message { r#type: Some(MessageType::MsgHeartbeat as i32), ..Message::default() })
            }
            Self::Append(_) => out.gathered.put_u8(TAG_HEARTBEAT),
        }
    }
}

/// Reads one kind of stream.
#[derive(Debug)]
pub struct Decoder(State);

#[derive(Debug)]
enum State {
    Message(Option<u64>),
    Append(AppendDecoder),
}

/// What a reader of a `msgapp` stream remembers.
#[derive(Debug)]
struct AppendDecoder {
    remote: u64,
    local: u64,
    position: Position,
    expect: Expect,
    /// The entries of the append that is being read, and their length so far.
    entries: Vec<Entry>,
    entry_bytes: u64,
    /// Entries of it that are still to come.
    missing: u64,
}

#[derive(Clone, Copy, Debug)]
enum Expect {
    Type,
    Count,
    EntryLength,
    Entry(u64),
    Commit,
    MessageLength,
    Message(u64),
}

impl Decoder {
    /// A reader at the begin of a `message` stream.
    pub fn message() -> Self {
        Self(State::Message(None))
    }

    /// A reader at the begin of a `msgapp` stream from `remote` to `local`.
    pub fn append(remote: u64, local: u64) -> Self {
        Self(State::Append(AppendDecoder {
            remote,
            local,
            position: Position::default(),
            expect: Expect::Type,
            entries: Vec::new(),
            entry_bytes: 0,
            missing: 0,
        }))
    }

    /// Adds the messages that are complete in `input` to `out` and leaves the rest of `input` for the next time. The
    /// data of entries shares `input`'s memory.
    ///
    /// # Errors
    /// When the bytes are not of the format. What was added to `out` before is good.
    pub fn decode(&mut self, input: &mut BytesMut, out: &mut Vec<Message>) -> Result<(), FrameError> {
        match &mut self.0 {
            State::Message(length) => decode_messages(length, input, out),
            State::Append(decoder) => decoder.decode(input, out),
        }
    }
}

fn decode_messages(pending: &mut Option<u64>, input: &mut BytesMut, out: &mut Vec<Message>) -> Result<(), FrameError> {
    loop {
        let length = match *pending {
            Some(length) => length,
            None => match take_length(input)? {
                Some(length) => length,
                None => return Ok(()),
            },
        };
        *pending = Some(length);
        let Some(frame) = take(input, length) else { return Ok(()) };
        *pending = None;
        let message = decode_message(frame)?;
        if !is_link_heartbeat(&message) {
            out.push(message);
        }
    }
}

impl AppendDecoder {
    fn decode(&mut self, input: &mut BytesMut, out: &mut Vec<Message>) -> Result<(), FrameError> {
        loop {
            self.expect = match self.expect {
                Expect::Type => match input.try_get_u8() {
                    Err(_) => return Ok(()),
                    Ok(TAG_HEARTBEAT) => Expect::Type,
                    Ok(TAG_ENTRIES) => Expect::Count,
                    Ok(TAG_MESSAGE) => Expect::MessageLength,
                    Ok(other) => return Err(FrameError::UnknownType(other)),
                },
                Expect::Count => {
                    let Ok(count) = input.try_get_u64() else { return Ok(()) };
                    if count > MAX_ENTRIES {
                        return Err(FrameError::TooMany);
                    }
                    self.missing = count;
                    self.entry_bytes = 0;
                    if count == 0 { Expect::Commit } else { Expect::EntryLength }
                }
                Expect::EntryLength => {
                    let Some(length) = take_length(input)? else { return Ok(()) };
                    self.entry_bytes += length;
                    check_length(self.entry_bytes)?;
                    Expect::Entry(length)
                }
                Expect::Entry(length) => {
                    let Some(frame) = take(input, length) else { return Ok(()) };
                    self.entries.push(Entry::decode(frame)?);
                    self.missing -= 1;
                    if self.missing == 0 { Expect::Commit } else { Expect::EntryLength }
                }
                Expect::Commit => {
                    let Ok(commit) = input.try_get_u64() else { return Ok(()) };
                    out.push(self.append(commit)?);
                    Expect::Type
                }
                Expect::MessageLength => match take_length(input)? {
                    Some(length) => Expect::Message(length),
                    None => return Ok(()),
                },
                Expect::Message(length) => {
                    let Some(frame) = take(input, length) else { return Ok(()) };
                    let message = decode_message(frame)?;
                    self.position = Position::after(&message);
                    out.push(message);
                    Expect::Type
                }
            }
        }
    }

    /// The append that its entries were read of.
    fn append(&mut self, commit: u64) -> Result<Message, FrameError> {
        let Position { term, index } = self.position;
        let entries = std::mem::take(&mut self.entries);
        self.position.index = index.checked_add(entries.len() as u64).ok_or(FrameError::Overflow)?;
        Ok(Message {
            r#type: Some(MessageType::MsgApp as i32),
            to: Some(self.local),
            from: Some(self.remote),
            term: Some(term),
            log_term: Some(term),
            index: Some(index),
            entries,
            commit: Some(commit),
            ..Message::default()
        })
    }
}

/// Is this what a `message` stream carries to show that it works?
fn is_link_heartbeat(message: &Message) -> bool {
    message.r#type() == MessageType::MsgHeartbeat && message.from() == 0 && message.to() == 0
}

/// Decodes a message that came alone, as in `POST /raft`.
///
/// # Errors
/// When it is not one, or holds more than it may.
pub(crate) fn decode_message(frame: Bytes) -> Result<Message, FrameError> {
    // An entry of two bytes becomes a struct of 72, so a long frame is counted before it is decoded.
    if frame.len() > TRUSTED_BYTES {
        check_content(&frame)?;
    }
    let message = Message::decode(frame)?;
    if message.responses.is_empty() { Ok(message) } else { Err(FrameError::TooMany) }
}

/// Walks over the outermost fields of a message and counts what repeats.
fn check_content(mut frame: &[u8]) -> Result<(), FrameError> {
    const ENTRIES: u32 = 7;
    const SNAPSHOT: u32 = 9;
    const RESPONSES: u32 = 14;
    let mut entries = 0;
    while frame.has_remaining() {
        let (number, wire_type) = decode_key(&mut frame)?;
        entries += u64::from(number == ENTRIES);
        if number == RESPONSES || entries > MAX_ENTRIES {
            return Err(FrameError::TooMany);
        }
        if wire_type == prost::encoding::WireType::LengthDelimited {
            let length = decode_varint(&mut frame)?;
            let length = usize::try_from(length).unwrap_or(usize::MAX).min(frame.len());
            if number == SNAPSHOT {
                check_snapshot(&frame[..length])?;
            }
            frame.advance(length); // a length beyond the end is for the decoder to refuse
        } else {
            skip_field(wire_type, number, &mut frame, prost::encoding::DecodeContext::default())?;
        }
    }
    Ok(())
}

/// Walks over the outermost fields of a snapshot. Its metadata names the members, each in one byte that becomes eight.
fn check_snapshot(mut snapshot: &[u8]) -> Result<(), FrameError> {
    const METADATA: u32 = 2;
    while snapshot.has_remaining() {
        let (number, wire_type) = decode_key(&mut snapshot)?;
        if wire_type == prost::encoding::WireType::LengthDelimited {
            let length = decode_varint(&mut snapshot)?;
            let length = usize::try_from(length).unwrap_or(usize::MAX).min(snapshot.len());
            if number == METADATA && length > TRUSTED_BYTES {
                return Err(FrameError::TooMany);
            }
            snapshot.advance(length); // as above
        } else {
            skip_field(wire_type, number, &mut snapshot, prost::encoding::DecodeContext::default())?;
        }
    }
    Ok(())
}

fn check_length(length: u64) -> Result<(), FrameError> {
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong { length, limit: MAX_FRAME_BYTES });
    }
    Ok(())
}

fn take_length(input: &mut BytesMut) -> Result<Option<u64>, FrameError> {
    let Ok(length) = input.try_get_u64() else { return Ok(None) };
    check_length(length)?;
    Ok(Some(length))
}

fn take(input: &mut BytesMut, length: u64) -> Option<Bytes> {
    let length = usize::try_from(length).ok()?;
    (input.len() >= length).then(|| input.split_to(length).freeze())
}
