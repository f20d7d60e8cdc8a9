//! Taking over the data directory of an etcd: the first start finds its bbolt file and its log, and no store of ours.
//!
//! Only the file is read in; log and `.snap` files stay what they are and are gone on with. The bbolt file stays too, but no
//! longer counts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::{Disk, File, Open};
use state::{Incoming, InstallError, Installed, LogEntry};
use store::{Mark, Writer};
use wal::snap::{self, SnapError, SnapFile};
use wal::{Entry, EntryKind, SnapshotMark, Wal, WalError};

/// Why the data of an etcd could not be taken over. Nothing has changed, but that the torn end of its log may have been cut
/// off, as etcd does at every start.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// A file cannot be used.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An etcd is running there.
    #[error("{0} is in use: stop the etcd that runs on this data directory")]
    InUse(PathBuf),
    /// Its log cannot be read.
    #[error("write-ahead log: {0}")]
    Wal(#[from] WalError),
    /// Its snapshot files cannot be read.
    #[error("{0}")]
    Snap(#[from] SnapError),
    /// Its state cannot be taken over.
    #[error("cannot take over the data of an etcd: {0}")]
    Install(#[from] InstallError),
}

/// Fills the store, if nothing has been applied to it yet and there is an etcd's data in `snap_dir` and `wal_dir`. Otherwise
/// does nothing.
pub(crate) fn take_over(
    disk: &Arc<dyn Disk>,
    snap_dir: &Path,
    wal_dir: &Path,
    mark: &Mark,
    writer: &mut Writer,
) -> Result<Option<Installed>, TakeoverError> {
    let path = snap_dir.join("db");
    if *mark != Mark::default() || !disk.exists(&path).map_err(at(&path))? {
        return Ok(None);
    }
    let file = open(disk.as_ref(), &path)?;
    if !file.try_lock().map_err(at(&path))? {
        return Err(TakeoverError::InUse(path));
    }
    let known = Wal::snapshots(disk.as_ref(), wal_dir)?;
    let newest = snap::load_newest_available(disk.as_ref(), snap_dir, &known)?;
    let snap = newest.unwrap_or_else(|| SnapFile {
        index: 0,
        term: 0,
        conf_state: Default::default(),
        data: Default::default(),
    });
    // One that was received, and not yet put in the place of the other when the etcd stopped, is the newer one.
    let received = snap_dir.join(format!("{:016x}.snap.db", snap.index));
    let (path, file) = match disk.exists(&received).map_err(at(&received))? {
        true => (received.clone(), open(disk.as_ref(), &received)?),
        false => (path, file),
    };
    tracing::info!(path = %path.display(), "snapshot-index" = snap.index, "taking over the data of an etcd");
    let from = SnapshotMark { index: snap.index, term: snap.term, conf_state: None };
    let (wal, replay) = Wal::open(Arc::clone(disk), wal_dir, from)?;
    drop(wal);
    let log: Vec<LogEntry> = replay.entries.into_iter().map(log_entry).collect();
    let name = path.display().to_string();
    let incoming = Incoming { name: &name, file, v2_json: &snap.data, index: snap.index, term: snap.term };
    let installed = state::import_etcd_db(writer, &incoming, &log)?;
    tracing::info!(
        "applied-index" = installed.mark.index,
        "current-rev" = installed.revision,
        "took over the data of an etcd; its db file is not needed any more"
    );
    if installed.has_v2_keys {
        tracing::info!("the keys in its v2 store are taken over as well");
    }
    Ok(Some(installed))
}

fn open(disk: &dyn Disk, path: &Path) -> Result<Arc<dyn File>, TakeoverError> {
    // Locks need a handle that may write.
    disk.open(path, Open::Write).map_err(at(path))
}

fn at(path: &Path) -> impl Fn(std::io::Error) -> TakeoverError + use<> {
    let path = path.to_path_buf();
    move |source| TakeoverError::Io { path: path.clone(), source }
}

fn log_entry(entry: Entry) -> LogEntry {
    let Entry { kind, term, index, data } = entry;
    LogEntry { index, term, is_conf_change: kind == EntryKind::ConfChange, data }
}

#[cfg(test)]
mod tests {
    use disk::RealDisk;

    use super::*;
    use crate::bootstrap::{Plan, boot};

    /// The data directories that three etcds left behind when they were killed: the first start takes them over, and the next
    /// one finds them taken.
    #[test]
    fn the_data_directory_of_an_etcd_is_taken_over_at_the_first_start() {
        for version in ["3.4.23", "3.5.1", "3.7.1"] {
            let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wal/tests/data");
            let packed = std::fs::File::open(data.join(format!("datadir-{version}.tar.gz"))).unwrap();
            let dir = tempfile::tempdir().unwrap();
            tar::Archive::new(flate2::read::GzDecoder::new(packed)).unpack(dir.path()).unwrap();
            let plan = Plan {
                name: "n1".into(),
                data_dir: dir.path().to_path_buf(),
                wal_dir: dir.path().join("member/wal"),
                initial_cluster: Vec::new(),
                token: String::new(),
                joins: false,
                force_new_cluster: false,
                quota_bytes: 0,
                heartbeat_ms: 100,
                election_ms: 1_000,
                pre_vote: true,
                store: store::Options::default(),
            };
            let disk: Arc<dyn Disk> = Arc::new(RealDisk);
            for start in 0..2 {
                let booted = boot(&disk, &crate::host::Network::default(), &plan, 1)
                    .unwrap_or_else(|e| panic!("{version}: {}", crate::chain(&e)));
                let (revision, index, hash) =
                    if version == "3.5.1" { (167, 207, 1934096889) } else { (172, 212, 2875972514) };
                assert_eq!(
                    (booted.mark.index, booted.reader.revision()),
                    (index, revision),
                    "{version}, start {start}"
                );
                let answer = booted.reader.hash_kv(0).unwrap();
                assert_eq!((answer.hash, answer.compact_revision), (hash, 70), "{version}, start {start}");
                let members = booted.reader.members();
                assert_eq!(booted.conf_state.voters, [members[0].id], "{version}");
                assert_eq!(members[0].id, booted.identity.node_id, "{version}");
                assert_eq!(booted.snapshot_index, 202, "{version}");
            }
        }
    }

    /// While an etcd runs, its file is its own.
    #[test]
    fn a_file_that_is_in_use_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let running = disk.open(&dir.path().join("db"), Open::CreateNew).unwrap();
        assert!(running.try_lock().unwrap());
        let (_, mut writer, mark) =
            store::Store::open(disk.clone(), &dir.path().join("store"), Default::default()).unwrap();
        let refused = take_over(&disk, dir.path(), &dir.path().join("wal"), &mark, &mut writer);
        assert!(matches!(refused, Err(TakeoverError::InUse(_))), "{refused:?}");
    }
}
