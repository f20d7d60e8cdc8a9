//! What the targets share: checksums are made right before bytes are handed on, because a fuzzer does not guess them, and
//! behind them is where the code begins.

use bytes::Bytes;
use prost::Message;
use proto::walpb;

/// Splits `data` into `parts` pieces, the first ones preceded by a length of two bytes, the last one the rest.
pub fn pieces<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut rest = data;
    std::array::from_fn(|n| {
        if n + 1 == N {
            return rest;
        }
        let Some((length, after)) = rest.split_first_chunk::<2>() else { return &[][..] };
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (piece, after) = after.split_at(length);
        rest = after;
        piece
    })
}

/// The records of a WAL segment with the checksums that they ought to have. Stops, and leaves the rest as it is, where there
/// is no record any more.
pub fn with_wal_checksums(mut rest: &[u8]) -> Vec<u8> {
    const CHECKSUM: i64 = 4;
    let mut out = Vec::with_capacity(rest.len());
    let mut checksum = 0;
    while let Some((length, after)) = rest.split_first_chunk::<8>() {
        let length = u64::from_le_bytes(*length);
        let (bytes, padding) = ((length & (1 << 56) - 1) as usize, (length >> 56) as usize & 7);
        let Some(record) = after.get(..bytes).filter(|bytes| !bytes.is_empty()) else { break };
        let Ok(mut record) = walpb::Record::decode(record) else { break };
        if i64::from(record.r#type.unwrap_or_default()) != CHECKSUM {
            checksum = crc32c::crc32c_append(checksum, record.data.as_deref().unwrap_or_default());
        }
        record.crc = Some(checksum);
        let record = record.encode_to_vec();
        let pad = record.len().wrapping_neg() % 8;
        let flag = if pad > 0 { (0x80 | pad as u64) << 56 } else { 0 };
        out.extend((record.len() as u64 | flag).to_le_bytes());
        out.extend(record);
        out.extend(&[0; 8][..pad]);
        rest = after.get(bytes + padding..).unwrap_or_default();
    }
    out.extend(rest);
    out
}

/// The frames of a store's file, each with the checksum that it ought to have.
pub fn with_frame_checksums(data: &[u8]) -> Vec<u8> {
    let mut out = data.to_vec();
    let mut at = 0;
    while let Some(first) = out.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        let Some(end) = (at + 8).checked_add(u32::from_le_bytes(*first) as usize) else { break };
        let Some(covered) = out.get(at + 8..end) else { break };
        let sum = crc32c::crc32c(covered).to_le_bytes();
        out[at + 4..at + 8].copy_from_slice(&sum);
        at = end;
    }
    out
}

/// A bbolt file whose first two meta pages have the checksums that they ought to have.
pub fn with_meta_checksums(data: &[u8]) -> Bytes {
    const PAGE_HEADER: usize = 16;
    let mut out = data.to_vec();
    for page in [0, 4096] {
        let body = page + PAGE_HEADER;
        let Some(covered) = out.get(body..body + 56) else { continue };
        let sum = covered
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        if let Some(place) = out.get_mut(body + 56..body + 64) {
            place.copy_from_slice(&sum.to_le_bytes());
        }
    }
    out.into()
}
