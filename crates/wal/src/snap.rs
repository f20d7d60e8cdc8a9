//! `.snap` files: the state of the v2 tree and of the membership at one index, as etcd writes them.
//!
//! A file is named `<term>-<index>.snap` (16 hex digits each) and holds `{ 1: CRC-32C of the rest, 2: raftpb.Snapshot }`.
//! It counts only if the log has a mark for it: first the file, then the mark ([`crate::Wal::save_snapshot`]).

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use disk::{Disk, Open};
use prost::Message;
use proto::{raftpb, snappb};

use crate::SnapshotMark;
use crate::record::explicit;

/// The content of a `.snap` file.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapFile {
    /// Index of the last entry in it.
    pub index: u64,
    /// Term of that entry.
    pub term: u64,
    /// Who voted at that index.
    pub conf_state: raftpb::ConfState,
    /// The v2 tree as JSON.
    pub data: Bytes,
}

/// Why a snapshot file could not be written, read or removed.
#[derive(Debug, thiserror::Error)]
#[error("{}: {action}", file.display())]
pub struct SnapError {
    /// The file or directory.
    pub file: PathBuf,
    /// What was tried.
    pub action: &'static str,
    /// What the system answered.
    #[source]
    pub source: io::Error,
}

fn failed<'a>(file: &'a Path, action: &'static str) -> impl FnOnce(io::Error) -> SnapError + 'a {
    move |source| SnapError { file: file.to_owned(), action, source }
}

/// Writes a snapshot file, durably, and returns its path. After a crash it is there whole or not at all.
pub fn save(disk: &dyn Disk, dir: &Path, snap: &SnapFile) -> Result<PathBuf, SnapError> {
    let path = dir.join(format!("{:016x}-{:016x}.snap", snap.term, snap.index));
    let tmp = path.with_extension("snap.tmp");
    let file = disk.open(&tmp, Open::Truncate).map_err(failed(&tmp, "create a snapshot file"))?;
    file.write_at(&encode(snap), 0).map_err(failed(&tmp, "write a snapshot file"))?;
    file.sync().map_err(failed(&tmp, "sync a snapshot file"))?;
    disk.rename(&tmp, &path).map_err(failed(&path, "put a snapshot file in its place"))?;
    disk.sync_dir(dir).map_err(failed(dir, "sync the snapshot directory"))?;
    Ok(path)
}

/// The newest snapshot file that the log vouches for; `None` if there is none. A damaged file is renamed to
/// `<name>.broken` and the next older one is tried. A file that cannot be read at all is an error: it may well be good.
pub fn load_newest_available(
    disk: &dyn Disk,
    dir: &Path,
    marks: &[SnapshotMark],
) -> Result<Option<SnapFile>, SnapError> {
    for name in names(disk, dir, ".snap")?.iter().rev() {
        let path = dir.join(name);
        let file = disk.open(&path, Open::Read).map_err(failed(&path, "open a snapshot file"))?;
        let read = || -> io::Result<Bytes> {
            let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
            let mut content = Vec::new();
            content.try_reserve_exact(len).map_err(io::Error::other)?;
            content.resize(len, 0);
            let got = file.read_at(&mut content, 0)?;
            content.truncate(got);
            Ok(content.into())
        };
        match decode(read().map_err(failed(&path, "read a snapshot file"))?) {
            Some(snap) if marks.iter().any(|mark| (mark.index, mark.term) == (snap.index, snap.term)) => {
                return Ok(Some(snap));
            }
            Some(_) => {}
            None => {
                let mut broken = path.clone().into_os_string();
                broken.push(".broken");
                disk.rename(&path, Path::new(&broken)).map_err(failed(&path, "set a damaged snapshot file aside"))?;
            }
        }
    }
    Ok(None)
}

/// Removes the oldest `.snap` files until at most `keep` are left (0: keeps all); returns how many went.
pub fn purge(disk: &dyn Disk, dir: &Path, keep: usize) -> Result<usize, SnapError> {
    if keep == 0 {
        return Ok(0);
    }
    let names = names(disk, dir, ".snap")?;
    let removed = names.len().saturating_sub(keep);
    for name in names.iter().take(removed) {
        let path = dir.join(name);
        disk.remove(&path).map_err(failed(&path, "remove an old snapshot file"))?;
    }
    if removed > 0 {
        disk.sync_dir(dir).map_err(failed(dir, "sync the snapshot directory"))?;
    }
    Ok(removed)
}

/// The names with this ending, oldest first. No directory, no names.
fn names(disk: &dyn Disk, dir: &Path, suffix: &str) -> Result<Vec<String>, SnapError> {
    match disk.list(dir) {
        Ok(mut names) => {
            names.retain(|name| name.ends_with(suffix));
            Ok(names)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(failed(dir, "list the snapshot directory")(e)),
    }
}

fn encode(snap: &SnapFile) -> Vec<u8> {
    let metadata = raftpb::SnapshotMetadata {
        conf_state: Some(explicit(snap.conf_state.clone())),
        index: Some(snap.index),
        term: Some(snap.term),
    };
    let inner = raftpb::Snapshot { data: Some(snap.data.clone()), metadata: Some(metadata) }.encode_to_vec();
    snappb::Snapshot { crc: Some(crc32c::crc32c(&inner)), data: Some(inner.into()) }.encode_to_vec()
}

/// `None`: not a (whole) snapshot file.
fn decode(content: Bytes) -> Option<SnapFile> {
    let outer = snappb::Snapshot::decode(content).ok()?;
    let inner = outer.data.filter(|data| !data.is_empty())?;
    // etcd takes a checksum of zero for "none", which it never writes.
    let crc = outer.crc.filter(|&crc| crc != 0)?;
    if crc32c::crc32c(&inner) != crc {
        return None;
    }
    let snapshot = raftpb::Snapshot::decode(inner).ok()?;
    let metadata = snapshot.metadata.unwrap_or_default();
    Some(SnapFile {
        index: metadata.index.unwrap_or(0),
        term: metadata.term.unwrap_or(0),
        conf_state: metadata.conf_state.unwrap_or_default(),
        data: snapshot.data.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use disk::MemDisk;

    use super::*;

    fn snap(index: u64) -> SnapFile {
        let conf_state = explicit(raftpb::ConfState { voters: vec![7], ..Default::default() });
        SnapFile { index, term: 2, conf_state, data: Bytes::from(format!("tree at {index}")) }
    }

    fn mark(index: u64) -> SnapshotMark {
        SnapshotMark { index, term: 2, conf_state: None }
    }

    fn disk_with(indexes: &[u64]) -> (MemDisk, &'static Path) {
        let (disk, dir) = (MemDisk::new(), Path::new("/snap"));
        disk.create_dir_all(dir).unwrap();
        disk.sync_all();
        for &index in indexes {
            save(&disk, dir, &snap(index)).unwrap();
        }
        (disk, dir)
    }

    #[test]
    fn the_newest_file_with_a_mark_is_loaded() {
        let (disk, dir) = disk_with(&[10, 300, 20]);
        let marks = [SnapshotMark::START, mark(10), mark(20)];
        assert_eq!(load_newest_available(&disk, dir, &marks).unwrap(), Some(snap(20)));
        assert_eq!(load_newest_available(&disk, dir, &marks[..1]).unwrap(), None);
        assert_eq!(load_newest_available(&disk, Path::new("/nowhere"), &marks).unwrap(), None);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_the_next_older_one_taken() {
        let (disk, dir) = disk_with(&[10, 20]);
        let newest = dir.join("0000000000000002-0000000000000014.snap");
        disk.flip_bit(&newest, 20, 3);
        assert_eq!(load_newest_available(&disk, dir, &[mark(10), mark(20)]).unwrap(), Some(snap(10)));
        assert!(!disk.exists(&newest).unwrap());
        assert!(disk.exists(&dir.join("0000000000000002-0000000000000014.snap.broken")).unwrap());
    }

    #[test]
    fn an_unreadable_file_is_an_error_and_stays_where_it_is() {
        let (disk, dir) = disk_with(&[10]);
        let path = dir.join("0000000000000002-000000000000000a.snap");
        disk.inject(disk::mem::Fault::ReadFails { path: path.clone(), offset: 5 });
        assert_eq!(load_newest_available(&disk, dir, &[mark(10)]).unwrap_err().file, path);
        assert!(disk.exists(&path).unwrap());
    }

    #[test]
    fn a_crash_during_save_leaves_the_whole_file_or_none() {
        let (disk, dir) = disk_with(&[10]);
        for (what, image) in disk.crash_images_during(|| save(&disk, dir, &snap(20)).unwrap()).1 {
            let found = load_newest_available(&image, dir, &[mark(10), mark(20)]).unwrap();
            assert!(found == Some(snap(10)) || found == Some(snap(20)), "{what}: {found:?}");
            assert!(!image.list(dir).unwrap().iter().any(|name| name.ends_with(".broken")), "{what}");
        }
        let after = disk.crash(disk::mem::Crash::LoseUnsynced);
        assert_eq!(load_newest_available(&after, dir, &[mark(20)]).unwrap(), Some(snap(20)));
    }

    #[test]
    fn purge_keeps_the_newest() {
        let (disk, dir) = disk_with(&[1, 2, 3, 4]);
        assert_eq!(purge(&disk, dir, 0).unwrap(), 0);
        assert_eq!(purge(&disk, dir, 2).unwrap(), 2);
        assert_eq!(load_newest_available(&disk, dir, &[mark(3)]).unwrap(), Some(snap(3)));
        assert_eq!(names(&disk, dir, ".snap").unwrap().len(), 2);
    }
}
