//! Logs that real etcds wrote, applied here, must give what those etcds had: the strongest test there is.

mod recorded;

use std::sync::Arc;

use disk::{Disk, MemDisk};
use keelson_state::Reader;
use prost::Message;
use proto::{raftpb, snappb};
use recorded::{VERSIONS, apply, check, open, recorded, unpacked};

fn maintain(reader: &Reader) {
    while reader.store().maintain().expect("maintenance") {}
}

#[test]
fn the_log_of_a_real_etcd_gives_its_hashes() {
    for version in VERSIONS {
        let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
        let (mut state, reader) = open(&disk);
        let entries = recorded(version);
        assert_eq!(entries.last().map(|entry| entry.index), Some(212), "{version}");
        for entry in &entries {
            apply(&mut state, entry);
        }
        check(&reader, &format!("{version}, before the compaction is carried out"));
        maintain(&reader);
        assert!(state.compaction_done());
        check(&reader, &format!("{version}, after it"));

        let members = reader.members();
        assert_eq!(members.len(), 1, "{version}");
        assert!(!members[0].name.is_empty() && !members[0].client_urls.is_empty(), "{members:?}");
        let expected = format!("{}.0", version.rsplit_once('.').unwrap().0);
        assert_eq!(reader.cluster_version(), Some(expected), "{version}");

        let mark = state.sync().expect("a sync");
        assert_eq!(mark.index, 212, "{version}");
        let conf_state = raftpb::ConfState::decode(mark.conf_state).expect("a ConfState");
        assert_eq!(conf_state.voters, [members[0].id], "{version}");
        state.close().expect("a clean stop");
        drop(reader);
        let (state, reader) = open(&disk);
        assert_eq!(state.applied_index(), 212, "{version}");
        check(&reader, &format!("{version}, after a restart"));
        assert_eq!(reader.members(), members, "{version}");
    }
}

/// A member that is killed at any point and replays its log ends where one ends that never was.
#[test]
fn a_replay_from_any_point_ends_in_the_same_state() {
    let entries = recorded("3.7.1");
    for cut in (0..=entries.len()).step_by(9) {
        let disk = MemDisk::new();
        let shared: Arc<dyn Disk> = Arc::new(disk.fork());
        let (mut state, reader) = open(&shared);
        for (n, entry) in entries[..cut].iter().enumerate() {
            apply(&mut state, entry);
            match n % 7 {
                3 => state.flush().expect("a flush"),
                6 => drop(state.sync().expect("a sync")),
                _ => {}
            }
        }
        drop((state, reader)); // killed: what was not flushed is lost
        let (mut state, reader) = open(&shared);
        assert!(state.applied_index() <= cut as u64);
        for entry in &entries {
            apply(&mut state, entry); // those that are in the store already change nothing
        }
        maintain(&reader);
        check(&reader, &format!("killed after {cut} entries"));
    }
}

/// The membership in our snapshot files is what 3.7.1 wrote at the same point, byte for byte (but for its counters of
/// reads).
#[test]
fn a_snapshot_file_holds_what_etcd_writes() {
    let dir = unpacked("3.7.1");
    let file = std::fs::read(dir.path().join("member/snap/0000000000000002-00000000000000ca.snap")).expect("a file");
    let envelope = snappb::Snapshot::decode(&file[..]).expect("an envelope");
    let snapshot = raftpb::Snapshot::decode(envelope.data.unwrap_or_default()).expect("a snapshot");
    let theirs = String::from_utf8(snapshot.data.unwrap_or_default().to_vec()).expect("JSON");

    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let (mut state, reader) = open(&disk);
    for entry in recorded("3.7.1").iter().filter(|entry| entry.index <= 0xca) {
        apply(&mut state, entry);
    }
    let ours = String::from_utf8(reader.v2_snapshot_json()).expect("JSON");
    assert_eq!(ours.replace(r#""getsFail":0"#, r#""getsFail":1"#), theirs.trim_end());
}
