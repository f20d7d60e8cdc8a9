//! One file of the log: its name, and reading it.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use disk::{Disk, File};

use crate::record::{self, FRAME_HEAD, Record, Refusal};
use crate::{WalError, io_error};

/// How much is read or written at once where a whole file is worked through.
pub(crate) const BLOCK: usize = 1 << 20;

/// A segment's name: its place in the row, and the index of the first entry that it may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub sequence: u64,
    pub index: u64,
}

impl Name {
    pub fn parse(name: &str) -> Option<Name> {
        let (sequence, index) = name.strip_suffix(".wal")?.split_once('-')?;
        let hex = |digits: &str| {
            let well_formed = digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit());
            well_formed.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        Some(Name { sequence: hex(sequence)?, index: hex(index)? })
    }

    pub fn path(self, dir: &Path) -> PathBuf {
        dir.join(self.to_string())
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}-{:016x}.wal", self.sequence, self.index)
    }
}

/// The segments in a directory, oldest first. Other names (`.tmp`, `.broken`) are none of ours here.
pub(crate) fn names(disk: &dyn Disk, dir: &Path) -> Result<Vec<Name>, WalError> {
    match disk.list(dir) {
        Ok(names) => {
            let mut names: Vec<Name> = names.iter().filter_map(|name| Name::parse(name)).collect();
            names.sort();
            Ok(names)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(io_error(dir, "list the log's directory")(e)),
    }
}

/// Refuses a row with a hole in it.
pub(crate) fn check_row(dir: &Path, names: &[Name]) -> Result<(), WalError> {
    for pair in names.windows(2) {
        let missing = pair[0].sequence.wrapping_add(1);
        if pair[1].sequence != missing {
            return Err(WalError::MissingSegment { dir: dir.to_owned(), missing, before: pair[1].to_string() });
        }
    }
    Ok(())
}

/// How a segment ended.
#[derive(Debug)]
pub(crate) struct End {
    /// Where the last good record ends.
    pub offset: u64,
    /// A record behind it that was not written completely, told as the error that it is anywhere but at the log's end.
    pub torn: Option<WalError>,
}

/// Reads a segment from its beginning, checks the chain, and shows every record with its offset to `visit`.
pub(crate) fn read(
    file: &dyn File,
    path: &Path,
    checksum: &mut u32,
    mut visit: impl FnMut(Record, u64) -> Result<(), WalError>,
) -> Result<End, WalError> {
    let (content, file_len) = load(file).map_err(io_error(path, "read a segment"))?;
    let malformed = |offset: u64, problem| WalError::Malformed { file: path.to_owned(), offset, problem };
    let mut offset = 0;
    loop {
        let at = offset as usize;
        let Some(head) = content.get(at..at + FRAME_HEAD as usize) else {
            // Fewer than 8 bytes are left in the file.
            let cut = content[at..].iter().any(|&byte| byte != 0);
            return Ok(End { offset, torn: cut.then(|| malformed(offset, "the file ends inside a length")) });
        };
        let head = head.try_into().expect("the slice is 8 bytes long");
        let Some((len, padding)) = record::frame_lengths(head) else {
            return Ok(End { offset, torn: None });
        };
        let body_at = offset + FRAME_HEAD;
        // A length never lies across two sectors, so a wrong one is not the work of a power cut.
        if !(len + padding).is_multiple_of(8) {
            return Err(malformed(offset, "the record is not padded to a multiple of 8 bytes"));
        }
        if len > file_len - body_at || padding > file_len - body_at - len {
            return Ok(End { offset, torn: Some(malformed(offset, "the record is longer than the rest of the file")) });
        }
        let body = at + FRAME_HEAD as usize..at + (FRAME_HEAD + len) as usize;
        match record::decode(content.slice(body.clone()), checksum) {
            Ok(record) => visit(record, offset)?,
            Err(refusal) => {
                let error = match refusal {
                    Refusal::Malformed(problem) => malformed(offset, problem),
                    Refusal::Checksum { expected, found } => {
                        WalError::ChecksumMismatch { file: path.to_owned(), offset, expected, found }
                    }
                };
                let torn = record::is_torn(&content[body.start..body.end + padding as usize], body_at);
                return if torn { Ok(End { offset, torn: Some(error) }) } else { Err(error) };
            }
        }
        offset = body_at + len + padding;
    }
}

/// The used part of a segment, up to the first frame that is the end or cannot be complete, and the file's length. Follows
/// the lengths of the frames, so that the zeros behind them (most of a young segment) are not read.
fn load(file: &dyn File) -> io::Result<(Bytes, u64)> {
    let file_len = file.len()?;
    let mut content: Vec<u8> = Vec::new();
    let mut at = 0;
    loop {
        // `end` is at most the file's length, so a bad length cannot make us allocate more than the file holds.
        let end = file_len.min(at + FRAME_HEAD);
        if end > content.len() as u64 && !read_on(file, &mut content, end, file_len)? {
            let got = content.len() as u64;
            return Ok((content.into(), got));
        }
        let head = content.get(at as usize..(at + FRAME_HEAD) as usize).and_then(|head| head.try_into().ok());
        let Some((len, padding)) = head.and_then(record::frame_lengths) else { break };
        match at.checked_add(FRAME_HEAD + len + padding) {
            Some(next) if next <= file_len => at = next,
            _ => break,
        }
    }
    Ok((content.into(), file_len))
}

/// Reads until `content` holds at least `end` bytes of the file, and a block more; `false` if the file has become shorter.
fn read_on(file: &dyn File, content: &mut Vec<u8>, end: u64, file_len: u64) -> io::Result<bool> {
    let have = content.len();
    let goal = usize::try_from(file_len.min(end + BLOCK as u64)).map_err(io::Error::other)?;
    content.try_reserve(goal - have).map_err(io::Error::other)?;
    content.resize(goal, 0);
    let got = file.read_at(&mut content[have..], have as u64)?;
    content.truncate(have + got);
    Ok(content.len() as u64 >= end)
}

/// Where behind the end of the log (at `offset`) a record stands that was written only after what is missing there had been
/// synced. A power cut cannot leave that; a lost or damaged sector can.
pub(crate) fn later_batch(file: &dyn File, offset: u64) -> io::Result<Option<u64>> {
    let mut block = vec![0; BLOCK];
    let zeros = vec![0; BLOCK];
    let mut used_end = None;
    let mut at = offset;
    loop {
        let got = file.read_at(&mut block, at)?;
        if got == 0 {
            break;
        }
        // Comparing whole blocks first is much faster, and nearly always enough.
        if block[..got] != zeros[..got]
            && let Some(last) = block[..got].iter().rposition(|&byte| byte != 0)
        {
            used_end = Some(at + last as u64 + 1);
        }
        at += got as u64;
    }
    let Some(used_end) = used_end else { return Ok(None) };
    let len = usize::try_from(used_end - offset).map_err(io::Error::other)?;
    let mut content = Vec::new();
    content.try_reserve_exact(len + 8).map_err(io::Error::other)?;
    content.resize(len, 0);
    let got = file.read_at(&mut content, offset)?;
    content.truncate(got);
    // The padding of the last frame is zeros too.
    content.resize(got.next_multiple_of(8), 0);
    Ok(record::proof_of_later_batch(&content.into()).map(|at| offset + at as u64))
}

/// Writes the bytes from `from` to `to` once more as they are, so that a sync has something to do.
pub(crate) fn rewrite(file: &dyn File, from: u64, to: u64) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    let mut at = from;
    while at < to {
        let length = (to - at).min(BLOCK as u64) as usize;
        let got = file.read_at(&mut block[..length], at)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.write_at(&block[..got], at)?;
        at += got as u64;
    }
    Ok(())
}

/// Makes everything from `offset` on zero, durably. Only blocks that are not zero yet are written, so a segment that
/// was written ahead with zeros stays so.
pub(crate) fn zero_from(file: &dyn File, offset: u64) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    let zeros = vec![0; BLOCK];
    let mut at = offset;
    let mut dirty = false;
    loop {
        let got = file.read_at(&mut block, at)?;
        if got == 0 {
            break;
        }
        if block[..got] != zeros[..got] {
            file.write_at(&zeros[..got], at)?;
            dirty = true;
        }
        at += got as u64;
    }
    if dirty { file.sync() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_strange_ones_are_ignored() {
        let name = Name { sequence: 3, index: 0xabc };
        assert_eq!(name.to_string(), "0000000000000003-0000000000000abc.wal");
        assert_eq!(Name::parse(&name.to_string()), Some(name));
        for other in ["0.tmp", "x.wal", "0-0.wal", "+000000000000003-0000000000000abc.wal", "a.wal.broken"] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }
}
