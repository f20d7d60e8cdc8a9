//! Frames and records: bytes to meaning and back. No files here.

use bytes::Bytes;
use prost::Message;
use proto::{raftpb, v2pb, walpb};

use crate::{Entry, EntryKind, HardState, Identity, SnapshotMark};

/// Bytes of the length that begins each frame.
pub(crate) const FRAME_HEAD: u64 = 8;
/// A torn write is torn at multiples of this: what drives write as a whole.
const SECTOR: usize = 512;

const METADATA: u64 = 1;
const ENTRY: u64 = 2;
const STATE: u64 = 3;
const CHECKSUM: u64 = 4;
const SNAPSHOT: u64 = 5;

/// A record, decoded.
#[derive(Debug, PartialEq)]
pub(crate) enum Record {
    Metadata(Identity),
    Entry(Entry),
    State(HardState),
    /// The checksum to go on with; the chain has been checked against it.
    Checksum,
    Snapshot(SnapshotMark),
}

/// Appends records to a buffer and carries the checksum chain along.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    /// Running checksum over the data of all records so far.
    pub checksum: u32,
    /// Frames that wait to be written.
    pub buffer: Vec<u8>,
}

impl Encoder {
    pub fn metadata(&mut self, identity: Identity) {
        let data = v2pb::Metadata { node_id: Some(identity.node_id), cluster_id: Some(identity.cluster_id) };
        self.frame(METADATA, &data.encode_to_vec(), &[]);
    }

    /// The entry's data is copied once, into the buffer; nothing is allocated.
    pub fn entry(&mut self, entry: &Entry) {
        let mut head = Small::new();
        let kind = match entry.kind {
            EntryKind::Normal => 0,
            EntryKind::ConfChange => 1,
            EntryKind::ConfChangeV2 => 2,
        };
        for (tag, value) in [(0x08, kind), (0x10, entry.term), (0x18, entry.index)] {
            head.byte(tag);
            head.varint(value);
        }
        // etcd tells "no data" and "empty data" apart in memory, but never logs the latter.
        if !entry.data.is_empty() {
            head.byte(0x22);
            head.varint(entry.data.len() as u64);
        }
        self.frame(ENTRY, head.as_slice(), &entry.data);
    }

    pub fn state(&mut self, state: &HardState) {
        let mut data = Small::new();
        for (tag, value) in [(0x08, state.term), (0x10, state.vote), (0x18, state.commit)] {
            data.byte(tag);
            data.varint(value);
        }
        self.frame(STATE, data.as_slice(), &[]);
    }

    /// Hands the running checksum to the segment that begins here. Not part of the chain itself.
    pub fn checksum(&mut self) {
        self.put(CHECKSUM, self.checksum, None);
    }

    pub fn snapshot(&mut self, mark: &SnapshotMark) {
        let conf_state = mark.conf_state.clone().map(explicit);
        let data = walpb::Snapshot { index: Some(mark.index), term: Some(mark.term), conf_state };
        self.frame(SNAPSHOT, &data.encode_to_vec(), &[]);
    }

    fn frame(&mut self, kind: u64, head: &[u8], tail: &[u8]) {
        self.checksum = crc32c::crc32c_append(crc32c::crc32c_append(self.checksum, head), tail);
        self.put(kind, self.checksum, Some((head, tail)));
    }

    fn put(&mut self, kind: u64, checksum: u32, data: Option<(&[u8], &[u8])>) {
        let mut fields = Small::new();
        fields.byte(0x08);
        fields.varint(kind);
        fields.byte(0x10);
        fields.varint(u64::from(checksum));
        let (head, tail) = data.unwrap_or_default();
        if data.is_some() {
            fields.byte(0x1a);
            fields.varint((head.len() + tail.len()) as u64);
        }
        let len = (fields.len + head.len() + tail.len()) as u64;
        let padding = len.wrapping_neg() % 8;
        let flag = if padding > 0 { (0x80 | padding) << 56 } else { 0 };
        self.buffer.extend_from_slice(&(len | flag).to_le_bytes());
        self.buffer.extend_from_slice(fields.as_slice());
        self.buffer.extend_from_slice(head);
        self.buffer.extend_from_slice(tail);
        self.buffer.extend_from_slice(&[0; 8][..padding as usize]);
    }
}

/// etcd always writes `auto_leave`, even when false.
pub(crate) fn explicit(mut conf_state: raftpb::ConfState) -> raftpb::ConfState {
    conf_state.auto_leave.get_or_insert(false);
    conf_state
}

/// A few bytes of protobuf on the stack: at most three varint fields and one length.
struct Small {
    bytes: [u8; 48],
    len: usize,
}

impl Small {
    fn new() -> Small {
        Small { bytes: [0; 48], len: 0 }
    }

    fn byte(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.byte(value as u8 | 0x80);
            value >>= 7;
        }
        self.byte(value as u8);
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Length of the body and of the padding behind it; `None` at the end of the log.
pub(crate) fn frame_lengths(head: [u8; 8]) -> Option<(u64, u64)> {
    let head = u64::from_le_bytes(head);
    let padding = if head >> 63 == 1 { (head >> 56) & 7 } else { 0 };
    (head != 0).then_some((head & 0x00ff_ffff_ffff_ffff, padding))
}

/// Why a frame's body was refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Checksum { expected: u32, found: u32 },
    Malformed(&'static str),
}

/// Decodes a frame's body and moves the checksum chain on. Entry data shares the body's memory.
pub(crate) fn decode(body: Bytes, checksum: &mut u32) -> Result<Record, Refusal> {
    let malformed = |problem| move |_| Refusal::Malformed(problem);
    let record = walpb::Record::decode(body).map_err(malformed("not a record"))?;
    let kind = record.r#type.unwrap_or(0) as u64;
    let found = record.crc.unwrap_or(0);
    let data = record.data.unwrap_or_default();
    if kind == CHECKSUM {
        // A reader that begins in the middle of a log has no checksum yet and takes what the segment begins with.
        if *checksum != 0 && *checksum != found {
            return Err(Refusal::Checksum { expected: *checksum, found });
        }
        *checksum = found;
        return Ok(Record::Checksum);
    }
    let expected = crc32c::crc32c_append(*checksum, &data);
    if expected != found && !mutant::on(mutant::LogChecksumUnchecked) {
        return Err(Refusal::Checksum { expected, found });
    }
    *checksum = expected;
    match kind {
        METADATA => {
            let metadata = v2pb::Metadata::decode(data).map_err(malformed("not a metadata record"))?;
            let (node_id, cluster_id) = (metadata.node_id.unwrap_or(0), metadata.cluster_id.unwrap_or(0));
            Ok(Record::Metadata(Identity { node_id, cluster_id }))
        }
        ENTRY => {
            let entry = raftpb::Entry::decode(data).map_err(malformed("not an entry"))?;
            let kind = match entry.r#type.unwrap_or(0) {
                0 => EntryKind::Normal,
                1 => EntryKind::ConfChange,
                2 => EntryKind::ConfChangeV2,
                _ => return Err(Refusal::Malformed("an entry of unknown type")),
            };
            let (term, index) = (entry.term.unwrap_or(0), entry.index.unwrap_or(0));
            Ok(Record::Entry(Entry { kind, term, index, data: entry.data.unwrap_or_default() }))
        }
        STATE => {
            let state = raftpb::HardState::decode(data).map_err(malformed("not a hard state"))?;
            let [term, vote, commit] = [state.term, state.vote, state.commit].map(Option::unwrap_or_default);
            Ok(Record::State(HardState { term, vote, commit }))
        }
        SNAPSHOT => {
            let mark = walpb::Snapshot::decode(data).map_err(malformed("not a snapshot mark"))?;
            let (index, term) = (mark.index.unwrap_or(0), mark.term.unwrap_or(0));
            Ok(Record::Snapshot(SnapshotMark { index, term, conf_state: mark.conf_state }))
        }
        _ => Err(Refusal::Malformed("a record of unknown type")),
    }
}

/// Whether these frames show that the log went on after a sync: an entry, later a hard state, later anything. A batch is
/// entries and then at most one hard state, so the last record belongs to a later batch, and a batch with an entry is
/// synced before the next one is written. Whatever stands before that entry had therefore been durable.
///
/// `content` begins on a frame boundary (a multiple of 8) but not necessarily with a frame. Returns where in it the proof
/// ends. Frames count only if the checksum chain leads from one to the next.
pub(crate) fn proof_of_later_batch(content: &Bytes) -> Option<usize> {
    let frame_at = |at: usize| {
        let head = content.get(at..at + FRAME_HEAD as usize)?.try_into().ok()?;
        let (len, padding) = frame_lengths(head)?;
        let begin = at + FRAME_HEAD as usize;
        let end = begin.checked_add(usize::try_from(len).ok()?)?;
        // Every record begins with its type and its checksum; that rules out almost all places that are none.
        let body = content.get(begin..end)?;
        if !matches!(body, [0x08, 1..=5, 0x10, ..]) {
            return None;
        }
        let record = walpb::Record::decode(content.slice(begin..end)).ok()?;
        Some((record, end + padding as usize))
    };
    let mut start = 0;
    while start < content.len() {
        let (mut at, mut frames, mut checksum) = (start, 0, 0);
        let (mut entry, mut state) = (false, false);
        while let Some((record, next)) = frame_at(at) {
            let found = record.crc.unwrap_or(0);
            let data = record.data.unwrap_or_default();
            if frames > 0 && crc32c::crc32c_append(checksum, &data) != found {
                break;
            }
            if state {
                return Some(at);
            }
            let kind = record.r#type.unwrap_or(0) as u64;
            entry |= kind == ENTRY;
            state |= entry && kind == STATE;
            (at, frames, checksum) = (next, frames + 1, found);
        }
        // One frame alone may be an accident; what a chain has covered need not be looked at again.
        start = if frames > 1 { at } else { start + 8 };
    }
    None
}

/// Whether a bad frame was never written completely: some part of it that lies in one sector is all zeros, as the file was
/// before. `body` (with padding) begins at `offset` of the file. This is etcd's rule.
pub(crate) fn is_torn(body: &[u8], offset: u64) -> bool {
    let to_boundary = (SECTOR - offset as usize % SECTOR).min(body.len());
    let (first, rest) = body.split_at(to_boundary);
    std::iter::once(first).chain(rest.chunks(SECTOR)).any(|part| !part.is_empty() && part.iter().all(|&b| b == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body_of(encoder: &Encoder) -> Bytes {
        let (len, padding) = frame_lengths(encoder.buffer[..8].try_into().unwrap()).unwrap();
        assert_eq!(8 + len + padding, encoder.buffer.len() as u64);
        Bytes::copy_from_slice(&encoder.buffer[8..8 + len as usize])
    }

    /// The first 16 bytes of every log that etcd writes.
    #[test]
    fn the_first_record_of_a_log_is_etcds() {
        let mut encoder = Encoder::default();
        encoder.checksum();
        assert_eq!(encoder.buffer, [4, 0, 0, 0, 0, 0, 0, 0x84, 8, 4, 0x10, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn an_entry_reads_back_as_written() {
        for len in [0, 1, 7, 8, 9, 300] {
            let entry = Entry { kind: EntryKind::ConfChange, term: u64::MAX, index: 300, data: vec![7; len].into() };
            let mut encoder = Encoder { checksum: 99, ..Encoder::default() };
            encoder.entry(&entry);
            let mut checksum = 99;
            assert_eq!(decode(body_of(&encoder), &mut checksum), Ok(Record::Entry(entry)));
            assert_eq!(checksum, encoder.checksum);
        }
    }

    #[test]
    fn our_encoding_is_the_one_of_the_protobuf_library() {
        let entry = Entry { kind: EntryKind::Normal, term: 3, index: 1 << 40, data: "hello".into() };
        let mut encoder = Encoder::default();
        encoder.entry(&entry);
        let record = walpb::Record::decode(body_of(&encoder)).unwrap();
        let message = raftpb::Entry {
            r#type: Some(0),
            term: Some(3),
            index: Some(1 << 40),
            data: Some(Bytes::from_static(b"hello")),
        };
        assert_eq!(record.data.clone().unwrap(), message.encode_to_vec());
        assert_eq!(record.crc, Some(crc32c::crc32c(&message.encode_to_vec())));
        assert_eq!(record.encode_to_vec(), body_of(&encoder));
    }

    #[test]
    fn a_frame_is_torn_if_one_of_its_sectors_is_missing() {
        let mut body = vec![1; 1200];
        assert!(!is_torn(&body, 8));
        body[504..1016].fill(0); // exactly the second sector of a frame whose body begins at byte 8
        assert!(is_torn(&body, 8));
        body[1015] = 1;
        assert!(!is_torn(&body, 8));
        assert!(is_torn(&[1, 0], 511) && !is_torn(&[1, 0], 510));
    }
}
