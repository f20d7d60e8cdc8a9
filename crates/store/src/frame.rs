//! Frames: the one shape in which everything is written, in segments and checkpoints alike (`FORMAT.md`).

use bytes::{Buf, BufMut};

/// Bytes before a frame's payload: length, checksum, kind, main, sub.
pub(crate) const HEADER: usize = 21;

/// Bytes of the header that the checksum and the length field cover: kind, main, sub.
const COVERED: usize = 13;

/// What a frame says. The numbers are the bytes on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A version of a key: `mvccpb.KeyValue`.
    Put = 1,
    /// The end of a key's life: `mvccpb.KeyValue` with only the key.
    Tombstone = 2,
    /// Table, key length, key, value.
    SetRow = 3,
    /// Table, key length, key.
    RemoveRow = 4,
    /// Everything before it is the effect of the log up to an index; `main` is the current revision.
    Mark = 5,
    /// A compaction at `main` was asked for.
    Compaction = 6,
    /// First frame of a segment.
    Segment = 7,
    /// First frame of a checkpoint.
    Checkpoint = 8,
    /// Segments that a checkpoint's locations point into.
    Segments = 9,
    /// Table rows of a checkpoint.
    Rows = 10,
    /// Keys and versions of a checkpoint.
    Keys = 11,
    /// Last frame of a checkpoint.
    End = 12,
    /// The one frame of a `MANIFEST`.
    Manifest = 13,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Put,
            2 => Self::Tombstone,
            3 => Self::SetRow,
            4 => Self::RemoveRow,
            5 => Self::Mark,
            6 => Self::Compaction,
            7 => Self::Segment,
            8 => Self::Checkpoint,
            9 => Self::Segments,
            10 => Self::Rows,
            11 => Self::Keys,
            12 => Self::End,
            13 => Self::Manifest,
            _ => return None,
        })
    }
}

/// A frame whose checksum has been verified.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    pub kind: Kind,
    pub main: i64,
    pub sub: u32,
    pub payload: &'a [u8],
}

/// Appends a frame to `out`; `encode` writes its payload. Returns the frame's length.
///
/// # Panics
/// If the frame is 4 GiB or longer: requests are limited far below that.
pub(crate) fn append(out: &mut Vec<u8>, kind: Kind, main: i64, sub: u32, encode: impl FnOnce(&mut Vec<u8>)) -> u32 {
    let start = out.len();
    out.put_u64_le(0);
    out.put_u8(kind as u8);
    out.put_i64_le(main);
    out.put_u32_le(sub);
    encode(out);
    let covered = out.len() - start - 8;
    let length = u32::try_from(covered).expect("a frame is shorter than 4 GiB");
    assert!(length < MAX_LENGTH, "a frame of {length} bytes");
    let sum = crc32c::crc32c(&out[start + 8..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
    length + 8
}

/// Frames stay below 1 GiB: the index keeps two flags beside a frame's length.
const MAX_LENGTH: u32 = (1 << 30) - 8;

/// The whole frame's length by its first four bytes, or what is wrong with them.
pub(crate) fn length(first: [u8; 4]) -> Result<usize, &'static str> {
    let covered = u32::from_le_bytes(first);
    if (covered as usize) < COVERED || covered >= MAX_LENGTH {
        return Err("impossible length");
    }
    Ok(covered as usize + 8)
}

/// Reads the frame that `bytes` holds from its first to its last byte.
pub(crate) fn parse(bytes: &[u8]) -> Result<Frame<'_>, &'static str> {
    let Some(first) = bytes.first_chunk::<4>() else { return Err("cut short") };
    if length(*first)? != bytes.len() {
        return Err("cut short");
    }
    if bytes[4..8] != crc32c::crc32c(&bytes[8..]).to_le_bytes() && !mutant::on(mutant::FrameChecksumUnchecked) {
        return Err("checksum mismatch");
    }
    parse_verified(bytes)
}

/// [`parse`] without the checksum, for a frame that has just been through it.
pub(crate) fn parse_verified(bytes: &[u8]) -> Result<Frame<'_>, &'static str> {
    let Some(mut header) = bytes.get(8..HEADER) else { return Err("cut short") };
    let Some(kind) = Kind::from_byte(header.get_u8()) else { return Err("unknown kind") };
    let main = header.get_i64_le();
    let sub = header.get_u32_le();
    Ok(Frame { kind, main, sub, payload: &bytes[HEADER..] })
}

/// The fields of a stored `mvccpb.KeyValue` that the index needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredKey<'a> {
    pub key: &'a [u8],
    pub create_revision: i64,
    pub version: i64,
    pub leased: bool,
}

/// Writes `mvccpb.KeyValue` as proto3 does: fields in order, zeros left out. HashKV and snapshots use these bytes.
pub(crate) fn encode_key_value(
    out: &mut Vec<u8>,
    key: &[u8],
    create_revision: i64,
    mod_revision: i64,
    version: i64,
    value: &[u8],
    lease: i64,
) {
    put_bytes_field(out, 0x0a, key);
    put_int_field(out, 0x10, create_revision);
    put_int_field(out, 0x18, mod_revision);
    put_int_field(out, 0x20, version);
    put_bytes_field(out, 0x2a, value);
    put_int_field(out, 0x30, lease);
}

fn put_bytes_field(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.push(tag);
        put_varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
}

fn put_int_field(out: &mut Vec<u8>, tag: u8, value: i64) {
    if value != 0 {
        out.push(tag);
        put_varint(out, value as u64);
    }
}

/// Reads a stored `mvccpb.KeyValue` without copying; `None` if it is none of ours.
pub(crate) fn decode_key_value(mut bytes: &[u8]) -> Option<StoredKey<'_>> {
    let mut stored = StoredKey { key: &[], create_revision: 0, version: 0, leased: false };
    while let Some((&tag, rest)) = bytes.split_first() {
        bytes = rest;
        let value = get_varint(&mut bytes)?;
        match tag {
            0x0a => stored.key = take(&mut bytes, value)?,
            0x10 => stored.create_revision = value as i64,
            0x18 => {}
            0x20 => stored.version = value as i64,
            0x2a => {
                take(&mut bytes, value)?;
            }
            0x30 => stored.leased = value != 0,
            _ => return None,
        }
    }
    Some(stored)
}

/// Writes a base-128 integer.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads a base-128 integer.
pub(crate) fn get_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Reads an integer that must fit 32 bits.
pub(crate) fn get_u32(bytes: &mut &[u8]) -> Option<u32> {
    get_varint(bytes)?.try_into().ok()
}

/// Splits the next `count` bytes off.
pub(crate) fn take<'a>(bytes: &mut &'a [u8], count: u64) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(usize::try_from(count).ok()?)?;
    *bytes = rest;
    Some(taken)
}

/// Writes a length and the bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads what [`put_bytes`] wrote.
pub(crate) fn get_bytes<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let count = get_varint(bytes)?;
    take(bytes, count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    /// The stored bytes are what any protobuf library would write, because etcd hashes and exports them.
    #[test]
    fn a_stored_key_value_is_plain_proto3() {
        for (key, create, modified, version, value, lease) in [
            (&b"k"[..], 2, 300, 7, &b"v"[..], 0x7000_0000_0000_0001),
            (b"k", 2, 2, 1, b"", 0),
            (b"", 0, 0, 0, b"", -1),
            (&[0xff; 300], i64::MAX, i64::MAX, i64::MAX, &[0; 70_000], 5),
        ] {
            let mut ours = Vec::new();
            encode_key_value(&mut ours, key, create, modified, version, value, lease);
            let theirs = proto::mvccpb::KeyValue {
                key: key.to_vec().into(),
                create_revision: create,
                mod_revision: modified,
                version,
                value: value.to_vec().into(),
                lease,
            };
            assert_eq!(ours, theirs.encode_to_vec());
            assert_eq!(
                decode_key_value(&ours),
                Some(StoredKey { key, create_revision: create, version, leased: lease != 0 })
            );
        }
    }

    /// Whatever stands in a file, reading it as a frame gives the frame or an error.
    #[test]
    fn a_damaged_frame_is_refused_at_every_bit() {
        let mut bytes = Vec::new();
        append(&mut bytes, Kind::Put, 5, 1, |out| encode_key_value(out, b"key", 5, 5, 1, b"value", 9));
        assert!(parse(&bytes).is_ok());
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&damaged).is_err(), "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert!(parse(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
