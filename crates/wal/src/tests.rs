//! The log as a whole: recorded logs of etcd, power cuts, damage.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use disk::mem::{Crash, Fault};
use disk::{Disk, MemDisk, Open};
use proptest::prelude::*;

use crate::record::{Encoder, Record};
use crate::segment::{self, Name};
use crate::{Entry, EntryKind, HardState, Identity, Replay, SnapshotMark, Wal, WalError, snap};

const DIR: &str = "/member/wal";
const IDENTITY: Identity = Identity { node_id: 7, cluster_id: 8 };

fn dir() -> &'static Path {
    Path::new(DIR)
}

fn entry(index: u64, term: u64, len: usize) -> Entry {
    // Never zero, so that a missing sector cannot look like data.
    let data: Vec<u8> = (0..len).map(|at| (index as u8).wrapping_add(at as u8) | 1).collect();
    Entry { kind: EntryKind::Normal, term, index, data: data.into() }
}

fn state(term: u64, commit: u64) -> HardState {
    HardState { term, vote: 7, commit }
}

fn open(disk: &MemDisk) -> Result<(Wal, Replay), WalError> {
    Wal::open(Arc::new(disk.clone()), dir(), SnapshotMark::START)
}

/// A log with these batches, each an entry and a hard state, everything durable.
fn log_of(entries: &[Entry]) -> (MemDisk, Wal) {
    let disk = MemDisk::new();
    let mut wal = Wal::create(Arc::new(disk.clone()), dir(), IDENTITY).unwrap();
    for entry in entries {
        let receipt = wal.append(std::slice::from_ref(entry), Some(&state(entry.term, entry.index - 1))).unwrap();
        assert!(receipt.waited() && receipt.index() == entry.index);
    }
    disk.sync_all();
    (disk, wal)
}

fn three_entries() -> Vec<Entry> {
    vec![entry(1, 1, 0), entry(2, 1, 700), entry(3, 2, 90)]
}

/// What was acknowledged is there, of the rest a beginning, and the log can be written and opened again.
fn check_image(what: &str, image: &MemDisk, kept: &[Entry], new: &[Entry]) -> Replay {
    let (mut wal, replay) = open(image).unwrap_or_else(|e| panic!("{what}: {e}"));
    let all: Vec<Entry> = kept.iter().chain(new).cloned().collect();
    let found = &replay.entries;
    assert!(found.len() >= kept.len() && all.starts_with(found), "{what}: {} entries", found.len());
    let next = entry(wal.last_index() + 1, 9, 40);
    wal.append(std::slice::from_ref(&next), Some(&state(9, 0))).unwrap();
    drop(wal);
    let (_, again) = open(&image.crash(Crash::LoseUnsynced)).unwrap_or_else(|e| panic!("{what}, then appended: {e}"));
    assert_eq!(again.repaired, None, "{what}: the end was clean");
    assert_eq!(again.entries.split_last(), Some((&next, &found[..])), "{what}");
    replay
}

// --- the recorded logs of etcd ---

struct Recorded {
    version: &'static str,
    end: u64,
    states: usize,
    commit: u64,
}

const RECORDED: [Recorded; 3] = [
    Recorded { version: "3.4.23", end: 25232, states: 211, commit: 212 },
    Recorded { version: "3.5.1", end: 25928, states: 211, commit: 212 },
    Recorded { version: "3.7.1", end: 24488, states: 212, commit: 211 },
];

impl Recorded {
    fn disk(&self) -> MemDisk {
        let path = format!("{}/tests/data/datadir-{}.tar.gz", env!("CARGO_MANIFEST_DIR"), self.version);
        let packed = flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap());
        let disk = MemDisk::new();
        for file in tar::Archive::new(packed).entries().unwrap() {
            let mut file = file.unwrap();
            let path = Path::new("/").join(file.path().unwrap());
            if matches!(path.extension(), Some(e) if e == "wal" || e == "snap") {
                let mut content = Vec::new();
                file.read_to_end(&mut content).unwrap();
                let len = content.len() as u64;
                content.truncate(content.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1));
                disk.write(&path, &content).unwrap();
                disk.open(&path, Open::Write).unwrap().set_len(len).unwrap();
            }
        }
        disk.sync_all();
        disk
    }
}

fn first_segment() -> PathBuf {
    Name { sequence: 0, index: 0 }.path(dir())
}

#[test]
fn logs_of_etcd_read_as_recorded() {
    for recorded in RECORDED {
        let disk = recorded.disk();
        assert_eq!(disk.open(&first_segment(), Open::Read).unwrap().len().unwrap(), 64_000_000);
        let (wal, replay) = open(&disk).unwrap();
        assert_eq!(replay.entries.len(), 212, "{}", recorded.version);
        assert_eq!((wal.last_index(), replay.hard_state.commit), (212, recorded.commit));
        assert_eq!((replay.hard_state.term, replay.hard_state.vote), (2, replay.identity.node_id));
        assert_eq!(replay.entries[0].kind, EntryKind::ConfChange);
        assert_eq!(replay.repaired, None);
        drop(wal);

        let marks = Wal::snapshots(&disk, dir()).unwrap();
        assert_eq!(marks.iter().map(|mark| mark.index).collect::<Vec<_>>(), [0, 101, 202]);
        let newest = snap::load_newest_available(&disk, Path::new("/member/snap"), &marks).unwrap().unwrap();
        assert_eq!((newest.index, newest.term), (202, 2));
        assert_eq!(newest.conf_state.voters, [replay.identity.node_id]);
        assert!(newest.data.starts_with(b"{\"Root\":"));

        let (_, tail) = Wal::open(Arc::new(disk), dir(), marks[2].clone()).unwrap();
        assert_eq!(tail.entries, replay.entries[202..]);
    }
}

/// Every record of a recorded log, encoded by us, gives the recorded bytes; the `.snap` files as well. Not for 3.7, which
/// leaves out an entry's type when that is "normal"; readers of either kind take both.
#[test]
fn our_bytes_are_etcds() {
    for recorded in RECORDED.into_iter().filter(|recorded| recorded.version < "3.7") {
        let disk = recorded.disk();
        let file = disk.open(&first_segment(), Open::Read).unwrap();
        let mut ours = Encoder::default();
        let (mut entries, mut states, mut marks) = (0, 0, 0);
        let end = segment::read(file.as_ref(), &first_segment(), &mut 0, |record, offset| {
            assert_eq!(ours.buffer.len() as u64, offset, "{}", recorded.version);
            match &record {
                Record::Checksum => ours.checksum(),
                Record::Metadata(identity) => ours.metadata(*identity),
                Record::Entry(entry) => {
                    entries += 1;
                    ours.entry(entry);
                }
                Record::State(state) => {
                    states += 1;
                    ours.state(state);
                }
                Record::Snapshot(mark) => {
                    marks += 1;
                    ours.snapshot(mark);
                }
            }
            Ok(())
        });
        assert_eq!(end.unwrap().offset, recorded.end);
        assert_eq!(ours.buffer, disk.read(&first_segment()).unwrap()[..recorded.end as usize], "{}", recorded.version);
        assert_eq!((entries, states, marks), (212, recorded.states, 3), "{}", recorded.version);

        let dir = Path::new("/member/snap");
        let marks = Wal::snapshots(&disk, self::dir()).unwrap();
        for number in [2, 1] {
            let snap = snap::load_newest_available(&disk, dir, &marks[..=number]).unwrap().unwrap();
            let path = dir.join(format!("{:016x}-{:016x}.snap", snap.term, snap.index));
            let recorded = disk.read(&path).unwrap();
            snap::save(&disk, dir, &snap).unwrap();
            assert_eq!(disk.read(&path).unwrap(), recorded, "{}", path.display());
        }
    }
}

// --- writing and reading back ---

#[test]
fn what_was_appended_is_read_back() {
    let (disk, mut wal) = log_of(&three_entries());
    assert!(!wal.append(&[], Some(&state(2, 3))).unwrap().waited(), "a commit index alone can be learnt again");
    drop(wal);
    let (wal, replay) = open(&disk).unwrap();
    let expected = Replay { identity: IDENTITY, hard_state: state(2, 3), entries: three_entries(), repaired: None };
    assert_eq!(replay, expected);
    assert_eq!((wal.last_index(), wal.hard_state(), wal.identity()), (3, state(2, 3), IDENTITY));
}

#[test]
fn a_batch_is_one_write_and_one_sync() {
    let (disk, mut wal) = log_of(&[]);
    let before = disk.calls();
    let batch: Vec<Entry> = (1..=100).map(|index| entry(index, 1, 200)).collect();
    assert!(wal.append(&batch, Some(&state(1, 0))).unwrap().waited());
    let after = disk.calls();
    assert_eq!((after.writes - before.writes, after.syncs - before.syncs), (1, 1));

    // Only a commit index: no sync. The same again: not even a write. A new term: both.
    wal.append(&[], Some(&state(1, 100))).unwrap();
    wal.append(&[], Some(&state(1, 100))).unwrap();
    wal.append(&[], None).unwrap();
    let after_commit = disk.calls();
    assert_eq!((after_commit.writes - after.writes, after_commit.syncs - after.syncs), (1, 0));
    assert!(wal.append(&[], Some(&state(2, 100))).unwrap().waited());
    assert!(wal.append(&[], Some(&HardState { vote: 9, ..state(2, 100) })).unwrap().waited());
}

#[test]
fn a_rewritten_entry_replaces_itself_and_all_behind_it() {
    let (disk, mut wal) = log_of(&three_entries());
    wal.append(&[entry(2, 3, 10)], Some(&state(3, 1))).unwrap();
    assert_eq!(wal.last_index(), 2);
    drop(wal);
    assert_eq!(open(&disk).unwrap().1.entries, [entry(1, 1, 0), entry(2, 3, 10)]);
}

/// Two batches that wait together are written together, the second replacing a part of the first.
#[test]
fn an_entry_may_be_replaced_within_one_append() {
    let (disk, mut wal) = log_of(&three_entries());
    let batch = [entry(4, 3, 10), entry(5, 3, 10), entry(4, 2, 20), entry(5, 4, 30)];
    wal.append(&batch, Some(&state(4, 3))).unwrap();
    drop(wal);
    let (wal, replay) = open(&disk).unwrap();
    assert_eq!((wal.last_index(), &replay.entries[3..]), (5, &batch[2..]));
}

#[test]
#[should_panic(expected = "follows term 4")]
fn a_term_that_goes_down_is_our_own_bug() {
    let (_disk, mut wal) = log_of(&three_entries());
    let _ = wal.append(&[entry(4, 4, 0), entry(5, 3, 0)], None);
}

#[test]
#[should_panic(expected = "would leave a gap")]
fn a_gap_is_our_own_bug() {
    let (_disk, mut wal) = log_of(&three_entries());
    let _ = wal.append(&[entry(5, 2, 0)], None);
}

#[test]
fn a_snapshot_beyond_the_end_moves_the_end() {
    let (disk, mut wal) = log_of(&three_entries());
    let mark = SnapshotMark { index: 50, term: 4, conf_state: None };
    wal.save_snapshot(&mark).unwrap();
    wal.append(&[entry(51, 4, 5)], Some(&state(4, 51))).unwrap();
    drop(wal);
    assert_eq!(Wal::snapshots(&disk, dir()).unwrap(), [SnapshotMark::START, mark.clone()]);
    let (wal, replay) = Wal::open(Arc::new(disk.clone()), dir(), mark).unwrap();
    assert_eq!((wal.last_index(), replay.entries), (51, vec![entry(51, 4, 5)]));
    drop(wal);
    // From the beginning, the entries between are missing, and that is said.
    match open(&disk) {
        Err(WalError::MissingEntries { expected: 4, found: 51, file, .. }) => assert_eq!(file, first_segment()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_snapshot_that_the_log_does_not_know_is_refused() {
    let (disk, mut wal) = log_of(&three_entries());
    wal.save_snapshot(&SnapshotMark { index: 2, term: 1, conf_state: None }).unwrap();
    drop(wal);
    let open = |index, term| {
        Wal::open(Arc::new(disk.clone()), dir(), SnapshotMark { index, term, conf_state: None }).map(|_| ())
    };
    assert!(matches!(open(3, 2), Err(WalError::SnapshotNotFound { index: 3, .. })));
    assert!(matches!(open(2, 9), Err(WalError::SnapshotMismatch { index: 2, wanted: 9, found: 1, .. })));
    open(2, 1).unwrap();
}

#[test]
fn a_mark_beyond_the_commit_index_is_not_offered() {
    let (disk, mut wal) = log_of(&three_entries());
    wal.save_snapshot(&SnapshotMark { index: 3, term: 2, conf_state: None }).unwrap();
    drop(wal);
    assert_eq!(Wal::snapshots(&disk, dir()).unwrap(), [SnapshotMark::START], "the log says commit = 2");
}

#[test]
fn two_cannot_work_on_one_log() {
    let (disk, wal) = log_of(&three_entries());
    assert!(matches!(open(&disk), Err(WalError::Locked { .. })));
    drop(wal);
    open(&disk).unwrap();
}

#[test]
fn a_log_in_use_can_be_read_and_its_torn_end_is_left_alone() {
    let (disk, mut wal) = log_of(&three_entries());
    let read = || Wal::read(&disk, dir(), SnapshotMark::START).unwrap();
    assert_eq!((read().entries, read().identity, read().repaired), (three_entries(), IDENTITY, None));
    // A sector of the last record has not reached the disk.
    let sector = (wal.stats().bytes_written / 512 + 2) * 512;
    wal.append(&[entry(4, 2, 2_000)], None).unwrap();
    disk.open(&first_segment(), Open::Write).unwrap().write_at(&[0; 512], sector).unwrap();
    assert_eq!(read().entries, three_entries());
    drop(wal);
    assert!(open(&disk).unwrap().1.repaired.is_some(), "it was not repaired before");
}

#[test]
fn an_existing_log_is_not_overwritten_and_a_missing_one_not_invented() {
    let (disk, wal) = log_of(&three_entries());
    drop(wal);
    assert!(Wal::exists(&disk, dir()).unwrap());
    assert!(matches!(Wal::create(Arc::new(disk), dir(), IDENTITY), Err(WalError::Exists { .. })));
    assert!(!Wal::exists(&MemDisk::new(), dir()).unwrap());
    assert!(matches!(open(&MemDisk::new()), Err(WalError::NotFound { .. })));
}

// --- segments ---

/// Appends entries one by one; returns them.
fn grow(wal: &mut Wal, count: u64, len: usize) -> Vec<Entry> {
    let from = wal.last_index() + 1;
    let entries: Vec<Entry> = (from..from + count).map(|index| entry(index, 2, len)).collect();
    for entry in &entries {
        wal.append(std::slice::from_ref(entry), Some(&state(2, entry.index - 1))).unwrap();
    }
    entries
}

fn segments(disk: &MemDisk) -> Vec<Name> {
    segment::names(disk, dir()).unwrap()
}

#[test]
fn a_full_segment_is_followed_by_the_next() {
    let (disk, mut wal) = log_of(&[]);
    wal.set_segment_bytes(4096);
    let entries = grow(&mut wal, 30, 500);
    drop(wal);
    let names = segments(&disk);
    assert_eq!(names.len(), 4);
    for (number, name) in names.iter().enumerate().skip(1) {
        // Named by the first entry inside, and the one before it ends right after the entry that filled it.
        assert_eq!((name.sequence, name.index), (number as u64, 8 * number as u64 + 1));
        let len = disk.open(&names[number - 1].path(dir()), Open::Read).unwrap().len().unwrap();
        assert!((4096..4096 + 700).contains(&len), "{len}");
    }
    let (_, replay) = open(&disk).unwrap();
    assert_eq!((replay.entries, replay.hard_state), (entries, state(2, 29)));
}

#[test]
fn a_log_can_be_opened_from_a_snapshot_in_a_later_segment_alone() {
    let (disk, mut wal) = log_of(&[]);
    wal.set_segment_bytes(4096);
    let entries = grow(&mut wal, 20, 500);
    let mark = SnapshotMark { index: 18, term: 2, conf_state: None };
    wal.save_snapshot(&mark).unwrap();
    assert_eq!(wal.purge(1).unwrap(), 0, "nothing is released yet");
    wal.release_before(18).unwrap();
    assert_eq!(wal.purge(0).unwrap(), 0, "0 keeps all");
    assert_eq!(wal.purge(1).unwrap(), 2, "of three segments, the last holds entry 18");
    drop(wal);
    let (mut wal, replay) = Wal::open(Arc::new(disk.clone()), dir(), mark.clone()).unwrap();
    assert_eq!(replay.entries, entries[18..]);
    wal.set_segment_bytes(4096);
    grow(&mut wal, 10, 500);
    drop(wal);
    assert_eq!(Wal::open(Arc::new(disk.clone()), dir(), mark).unwrap().1.entries.len(), 12);
    assert!(matches!(open(&disk), Err(WalError::StartsLater { index: 0, .. })));
}

#[test]
fn a_missing_segment_is_named() {
    let (disk, mut wal) = log_of(&[]);
    wal.set_segment_bytes(4096);
    grow(&mut wal, 20, 500);
    drop(wal);
    disk.remove(&segments(&disk)[1].path(dir())).unwrap();
    assert!(matches!(open(&disk), Err(WalError::MissingSegment { missing: 1, .. })));
    assert!(matches!(Wal::snapshots(&disk, dir()), Err(WalError::MissingSegment { missing: 1, .. })));
}

#[test]
fn a_prepared_segment_is_taken_and_the_fill_never_touches_the_log() {
    let (disk, mut wal) = log_of(&[]);
    wal.set_segment_bytes(3 << 20);
    let fill = wal.prepare_next().unwrap();
    assert!(wal.prepare_next().is_none(), "one at a time");
    // The log grows far beyond the first zeros before the fill gets to run.
    let mut entries = grow(&mut wal, 20, 100_000);
    wal.prepared(fill.run().unwrap());
    prepare_all(&mut wal);
    assert_eq!(disk.open(&first_segment(), Open::Read).unwrap().len().unwrap(), 3 << 20);
    assert!(wal.prepare_next().is_none(), "all is prepared");
    entries.extend(grow(&mut wal, 15, 100_000));
    assert_eq!(wal.stats().cuts, 1);
    assert_eq!(disk.open(&segments(&disk)[1].path(dir()), Open::Read).unwrap().len().unwrap(), 3 << 20);
    // A fill that comes too late for its segment does no harm.
    drop(wal);
    let (mut wal, _) = open(&disk).unwrap();
    wal.set_segment_bytes(6 << 20);
    let late = wal.prepare_next().unwrap();
    entries.extend(grow(&mut wal, 60, 100_000));
    wal.prepared(late.run().unwrap());
    let abandoned = wal.prepare_next().unwrap();
    drop(abandoned);
    assert!(wal.prepare_next().is_some(), "an abandoned preparation is offered again");
    drop(wal);
    assert_eq!(open(&disk).unwrap().1.entries, entries);
}

fn prepare_all(wal: &mut Wal) {
    while let Some(work) = wal.prepare_next() {
        wal.prepared(work.run().unwrap());
    }
}

/// A device that is busy with zeros makes every sync of the log wait, so a log that hardly grows gets few of them.
#[test]
fn zeros_are_kept_a_short_way_ahead_of_the_log() {
    let (disk, mut wal) = log_of(&[]);
    let length = |disk: &MemDisk| disk.open(&first_segment(), Open::Read).unwrap().len().unwrap();
    prepare_all(&mut wal);
    assert!(((8 << 20)..=(9 << 20)).contains(&length(&disk)), "{}", length(&disk));
    assert!(!disk.exists(&dir().join("0.tmp")).unwrap(), "the next segment is far away");
    let entries = grow(&mut wal, 50, 100_000);
    prepare_all(&mut wal);
    assert!(((12 << 20)..=(14 << 20)).contains(&length(&disk)), "{}", length(&disk));
    drop(wal);
    assert_eq!(open(&disk).unwrap().1.entries, entries);
}

#[test]
fn the_fill_and_the_log_can_run_at_once() {
    let (disk, mut wal) = log_of(&[]);
    wal.set_segment_bytes(8 << 20);
    let fill = wal.prepare_next().unwrap();
    let filler = std::thread::spawn(move || fill.run().unwrap());
    let entries = grow(&mut wal, 200, 30_000);
    wal.prepared(filler.join().unwrap());
    drop(wal);
    assert_eq!(open(&disk).unwrap().1.entries, entries);
}

// --- power cuts ---

#[test]
fn a_crash_during_create_leaves_a_whole_log_or_none() {
    let disk = MemDisk::new();
    let create = |disk: &MemDisk| Wal::create(Arc::new(disk.clone()), dir(), IDENTITY);
    let ((), images) = disk.crash_images_during(|| drop(create(&disk).unwrap()));
    for (what, image) in images {
        if !Wal::exists(&image, dir()).unwrap() {
            create(&image).unwrap_or_else(|e| panic!("{what}: {e}"));
        }
        let replay = check_image(&what, &image, &[], &[]);
        assert_eq!((replay.identity, replay.repaired), (IDENTITY, None), "{what}");
    }
}

/// Cutting power during an append loses of that append, and nothing before it.
#[test]
fn a_torn_append_takes_nothing_else_with_it() {
    let kept = three_entries();
    let (disk, mut wal) = log_of(&kept);
    let new = vec![entry(4, 2, 1300), entry(5, 2, 0), entry(6, 3, 4000)];
    let ((), images) = disk.crash_images_during(|| {
        wal.append(&new, Some(&state(3, 3))).map(|_| ()).unwrap();
    });
    let mut outcomes = BTreeMap::new();
    for (what, image) in images {
        let replay = check_image(&what, &image, &kept, &new);
        let complete = replay.hard_state == state(3, 3);
        assert!(complete && replay.entries.len() == 6 || replay.hard_state == state(2, 2), "{what}");
        *outcomes.entry((replay.entries.len(), complete, replay.repaired.is_some())).or_insert(0) += 1;
    }
    // The images are worth something only if all these happen.
    for wanted in [(3, false, false), (3, false, true), (5, false, true), (6, true, false)] {
        assert!(outcomes.contains_key(&wanted), "{wanted:?} never happened: {outcomes:?}");
    }
    assert_eq!(open(&disk.crash(Crash::LoseUnsynced)).unwrap().1.entries.len(), 6, "acknowledged");
}

/// Hard states without a sync may pile up; what was synced before and after them holds all the same.
#[test]
fn unsynced_commit_indexes_do_not_endanger_what_follows() {
    let kept = three_entries();
    let (disk, mut wal) = log_of(&kept);
    for commit in 0..60 {
        wal.append(&[], Some(&state(2, commit))).unwrap();
    }
    let new = vec![entry(4, 2, 600), entry(5, 2, 600)];
    let ((), images) = disk.crash_images_during(|| {
        for entry in &new {
            wal.append(std::slice::from_ref(entry), Some(&state(2, 60 + entry.index))).map(|_| ()).unwrap();
        }
    });
    for (what, image) in images {
        check_image(&what, &image, &kept, &new);
    }
}

#[test]
fn a_crash_during_a_cut_loses_nothing_acknowledged() {
    for prepared in [false, true] {
        let kept = vec![entry(1, 1, 2000), entry(2, 1, 1900)];
        let (disk, mut wal) = log_of(&kept);
        wal.set_segment_bytes(4096);
        if prepared {
            while let Some(work) = wal.prepare_next() {
                wal.prepared(work.run().unwrap());
            }
        }
        let new = vec![entry(3, 2, 900), entry(4, 2, 100)];
        let ((), images) = disk.crash_images_during(|| {
            for entry in &new {
                wal.append(std::slice::from_ref(entry), Some(&state(2, 2))).map(|_| ()).unwrap();
            }
        });
        assert_eq!(wal.stats().cuts, 1);
        for (what, image) in images {
            check_image(&what, &image, &kept, &new);
            assert!(!image.list(dir()).unwrap().iter().any(|name| name.ends_with(".tmp")), "{what}");
        }
        assert_eq!(open(&disk.crash(Crash::LoseUnsynced)).unwrap().1.entries.len(), 4);
    }
}

/// A snapshot from the leader is acknowledged when its mark and the commit index that comes with it are written: a power
/// cut after that must not make the mark one of a snapshot that was never committed. Found by simulation.
#[test]
fn a_snapshot_beyond_the_log_survives_a_power_cut_once_its_commit_index_is_written() {
    let (disk, mut wal) = log_of(&three_entries());
    wal.save_snapshot(&SnapshotMark { index: 9, term: 2, conf_state: None }).unwrap();
    assert!(wal.append(&[], Some(&state(2, 9))).unwrap().waited(), "the commit index makes the mark count");
    assert!(!wal.append(&[], Some(&state(2, 10))).unwrap().waited(), "any other can wait");
    let left = disk.crash(Crash::LoseUnsynced);
    let known = Wal::snapshots(&left, dir()).unwrap();
    assert_eq!(known.last().map(|mark| mark.index), Some(9));
}

#[test]
fn a_crash_during_save_snapshot_keeps_the_mark_or_not() {
    let kept = three_entries();
    let (disk, mut wal) = log_of(&kept);
    wal.append(&[], Some(&state(2, 3))).unwrap();
    disk.sync_all();
    let mark = SnapshotMark { index: 3, term: 2, conf_state: None };
    let ((), images) = disk.crash_images_during(|| wal.save_snapshot(&mark).unwrap());
    for (what, image) in images {
        let marks = Wal::snapshots(&image, dir()).unwrap();
        assert!(marks == [SnapshotMark::START] || marks == [SnapshotMark::START, mark.clone()], "{what}");
        check_image(&what, &image, &kept, &[]);
    }
    assert_eq!(Wal::snapshots(&disk.crash(Crash::LoseUnsynced), dir()).unwrap().len(), 2);
}

/// Opening a torn log repairs it; a crash in the middle of that must leave something that can be repaired again.
#[test]
fn a_crash_during_a_repair_is_repaired() {
    let kept = three_entries();
    let (disk, mut wal) = log_of(&kept);
    let new = vec![entry(4, 2, 1300), entry(5, 2, 2000)];
    let ((), images) = disk.crash_images_during(|| {
        wal.append(&new, Some(&state(2, 3))).map(|_| ()).unwrap();
    });
    drop(wal);
    let mut repairs = 0;
    for (what, image) in images.into_iter().step_by(11) {
        let before = image.fork();
        let (repaired, second_crashes) = image.crash_images_during(|| open(&image).unwrap().1.repaired);
        if let Some(repair) = repaired {
            repairs += 1;
            assert_eq!(repair.file, first_segment());
            assert_eq!(image.read(&repair.kept_as).unwrap(), before.read(&first_segment()).unwrap(), "{what}");
        }
        for (second, image) in second_crashes.into_iter().step_by(3) {
            check_image(&format!("{what}; opened, {second}"), &image, &kept, &new);
        }
    }
    assert!(repairs > 0, "no image was torn");
}

// --- a disk that fails ---

#[test]
fn after_a_failed_sync_the_log_takes_nothing_more() {
    let kept = three_entries();
    let (disk, mut wal) = log_of(&kept);
    disk.inject(Fault::SyncFails { after: 0 });
    let lost = [entry(4, 2, 100)];
    assert!(matches!(wal.append(&lost, None), Err(WalError::Io { action: "sync the log", .. })));
    assert!(matches!(wal.append(&[entry(5, 2, 1)], None), Err(WalError::Closed { .. })), "the disk is fine again, but");
    assert!(matches!(wal.save_snapshot(&SnapshotMark::START), Err(WalError::Closed { .. })));
    assert!(matches!(wal.purge(1), Err(WalError::Closed { .. })));
    assert!(wal.prepare_next().is_none());
    drop(wal);
    assert_eq!(open(&disk.crash(Crash::KeepEverything)).unwrap().1.entries, kept);
}

/// A process that starts after a failed sync still sees what it failed to write, in the page cache. What an open has shown
/// has to be there after a power cut.
#[test]
fn what_an_open_shows_after_a_failed_sync_is_durable() {
    for len in [100, 3 << 20, 20 << 20] {
        let kept = three_entries();
        let (disk, mut wal) = log_of(&kept);
        disk.inject(Fault::SyncFails { after: 0 });
        let unsure = [entry(4, 2, len)];
        assert!(wal.append(&unsure, None).is_err());
        drop(wal);
        let restarted = disk.fork();
        let (wal, shown) = open(&restarted).unwrap();
        drop(wal);
        assert!(len > 8 << 20 || shown.entries.len() == 4, "the page cache shows {len} bytes");
        let (_, found) = open(&restarted.crash(Crash::LoseUnsynced)).unwrap();
        assert_eq!(found.entries, shown.entries, "{len} bytes");
    }
}

#[test]
fn a_full_disk_closes_the_log_and_costs_only_the_batch() {
    for room in (0..2000).step_by(100) {
        let kept = three_entries();
        let (disk, mut wal) = log_of(&kept);
        disk.inject(Fault::Full { after_bytes: room });
        let new = [entry(4, 2, 800), entry(5, 2, 1200)];
        assert!(matches!(wal.append(&new, Some(&state(2, 3))), Err(WalError::Io { .. })));
        assert!(matches!(wal.append(&new, None), Err(WalError::Closed { .. })));
        drop(wal);
        disk.clear_faults();
        check_image(&format!("room for {room} bytes"), &disk.crash(Crash::KeepEverything), &kept, &new);
    }
}

#[test]
fn a_disk_that_fails_in_the_middle_of_a_cut_closes_the_log() {
    for after in 0..6 {
        let kept = vec![entry(1, 1, 2000), entry(2, 1, 1900)];
        let (disk, mut wal) = log_of(&kept);
        wal.set_segment_bytes(4096);
        disk.inject(Fault::SyncFails { after });
        let new = [entry(3, 2, 900)];
        match wal.append(&new, None) {
            Ok(_) => assert!(after > 3),
            Err(error) => {
                assert!(matches!(error, WalError::Io { .. }));
                assert!(matches!(wal.append(&[], Some(&state(3, 3))), Err(WalError::Closed { .. })));
            }
        }
        drop(wal);
        disk.clear_faults();
        check_image(&format!("sync {after}"), &disk.crash(Crash::LoseUnsynced), &kept, &new);
    }
}

#[test]
fn an_unreadable_segment_is_an_error() {
    let (disk, wal) = log_of(&three_entries());
    drop(wal);
    disk.inject(Fault::ReadFails { path: first_segment(), offset: 100 });
    assert!(matches!(open(&disk), Err(WalError::Io { action: "read a segment", .. })));
}

// --- damage ---

/// A flipped bit anywhere among the records is found, and told with file and offset. Only in the last two batches can a
/// damaged length look like a torn write (etcd's rule); before them, later records prove that it is none.
#[test]
fn a_flipped_bit_is_found() {
    let entries: Vec<Entry> = (1..=8).map(|index| entry(index, 1, 40)).collect();
    let (disk, wal) = log_of(&entries);
    drop(wal);
    let file = disk.open(&first_segment(), Open::Read).unwrap();
    let mut starts = Vec::new();
    let mut entry_starts = Vec::new();
    let end = segment::read(file.as_ref(), &first_segment(), &mut 0, |record, offset| {
        starts.push(offset);
        if matches!(record, Record::Entry(_)) {
            entry_starts.push(offset);
        }
        Ok(())
    });
    let end = end.unwrap().offset;
    // Padding is not covered by the checksum; nothing depends on it.
    let content = disk.read(&first_segment()).unwrap();
    for offset in 0..end {
        let start = *starts.iter().rev().find(|&&start| start <= offset).unwrap();
        let head: [u8; 8] = content[start as usize..start as usize + 8].try_into().unwrap();
        let (len, _) = crate::record::frame_lengths(head).unwrap();
        if offset >= start + 8 + len {
            continue;
        }
        for bit in [0, 4, 7] {
            let image = disk.fork();
            image.flip_bit(&first_segment(), offset, bit);
            let what = format!("byte {offset}, bit {bit}, in the record at {start}");
            match open(&image) {
                Err(
                    WalError::ChecksumMismatch { file, offset: at, .. }
                    | WalError::Malformed { file, offset: at, .. }
                    | WalError::LostRecord { file, offset: at, .. },
                ) => {
                    assert_eq!(file, first_segment());
                    // A wrong type is noticed at the next record, if not at once.
                    let next = starts.iter().copied().find(|&next| next > start).unwrap_or(end);
                    assert!(at == start || at == next, "{what}: told as {at}");
                }
                Err(
                    WalError::NoIdentity { .. } | WalError::SnapshotNotFound { .. } | WalError::MissingEntries { .. },
                ) => {}
                Err(other) => panic!("{what}: {other}"),
                // Some bits mean nothing: in a length's top byte, and beyond bit 31 of a checksum.
                Ok((_, replay)) if replay.entries == entries => {}
                Ok((_, replay)) => {
                    assert!(offset >= entry_starts[entry_starts.len() - 2], "{what} went unseen");
                    // The format leaves a record's type outside of the checksum.
                    let is_type = offset == start + 9;
                    assert!(is_type || entries.starts_with(&replay.entries), "{what} gave wrong entries");
                }
            }
        }
    }
}

/// A sector that reads as zeros in the middle of the log is not its end, whatever it hits.
#[test]
fn a_lost_sector_is_not_taken_for_the_end() {
    let entries: Vec<Entry> = (1..=40).map(|index| entry(index, 1, 100)).collect();
    let (disk, wal) = log_of(&entries);
    drop(wal);
    for sector in 1..8 {
        let image = disk.fork();
        image.open(&first_segment(), Open::Write).unwrap().write_at(&[0; 512], sector * 512).unwrap();
        match open(&image) {
            Err(WalError::LostRecord { file, offset, later }) => {
                assert_eq!(file, first_segment());
                assert!(offset < (sector + 1) * 512 && later > offset);
            }
            other => panic!("sector {sector}: {:?}", other.map(|(_, replay)| replay.entries.len())),
        }
        assert_eq!(image.list(dir()).unwrap().len(), 1, "nothing was changed");
    }
}

#[test]
fn damage_in_an_older_segment_is_refused_even_if_it_looks_torn() {
    let (disk, mut wal) = log_of(&[]);
    wal.set_segment_bytes(4096);
    grow(&mut wal, 20, 500);
    drop(wal);
    let older = segments(&disk)[0].path(dir());
    for sector in 1..8 {
        let image = disk.fork();
        image.open(&older, Open::Write).unwrap().write_at(&[0; 512], sector * 512).unwrap();
        let error = open(&image).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("record at byte"), "{error}");
    }
}

#[test]
fn segments_of_two_members_do_not_mix() {
    let (disk, mut wal) = log_of(&[]);
    wal.set_segment_bytes(4096);
    grow(&mut wal, 10, 500);
    drop(wal);
    let second = segments(&disk)[1].path(dir());
    let mut foreign = Encoder::default();
    foreign.metadata(Identity { node_id: 9, cluster_id: 9 });
    disk.write(&second, &foreign.buffer).unwrap();
    assert!(open(&disk).is_err());
    // The same with a valid chain: only who wrote it is wrong.
    let mut checksum = 0;
    let first = disk.open(&first_segment(), Open::Read).unwrap();
    segment::read(first.as_ref(), &first_segment(), &mut checksum, |_, _| Ok(())).unwrap();
    let mut foreign = Encoder { checksum, buffer: Vec::new() };
    foreign.checksum();
    foreign.metadata(Identity { node_id: 9, cluster_id: 9 });
    disk.write(&second, &foreign.buffer).unwrap();
    match open(&disk) {
        Err(WalError::ConflictingIdentity { expected: IDENTITY, found, file, offset: 16 }) => {
            assert_eq!((found.node_id, file), (9, second));
        }
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever lies in a segment, reading it ends in a result: no panic, no endless loop, no huge allocation.
    #[test]
    fn arbitrary_bytes_are_read_without_a_panic(
        mut content in proptest::collection::vec(any::<u8>(), 0..2000),
        head in proptest::collection::vec((0usize..2000, 0u8..64), 0..20),
    ) {
        // Plausible lengths here and there, or nearly every case would end at the first frame.
        for (at, len) in head {
            if let Some(frame) = content.get_mut(at / 8 * 8..at / 8 * 8 + 8) {
                frame.copy_from_slice(&u64::from(len).to_le_bytes());
            }
        }
        let disk = MemDisk::new();
        disk.write(&first_segment(), &content).unwrap();
        let _ = Wal::snapshots(&disk, dir());
        let _ = open(&disk);
        disk.write(Path::new("/snap/0000000000000001-0000000000000001.snap"), &content).unwrap();
        let _ = snap::load_newest_available(&disk, Path::new("/snap"), &[SnapshotMark::START]);
    }

    /// A log of etcd's with some bytes changed is read, refused or repaired, and then opens the same way again.
    #[test]
    fn a_changed_log_is_read_or_refused(changes in proptest::collection::vec((0usize..6000, any::<u8>(), 1usize..9), 1..4)) {
        let mut content = small_log();
        for (at, value, len) in changes {
            let end = content.len().min(at + len);
            if at < end {
                content[at..end].fill(value);
            }
        }
        let disk = MemDisk::new();
        disk.write(&first_segment(), &content).unwrap();
        if let Ok((wal, replay)) = open(&disk) {
            drop(wal);
            let (_, again) = open(&disk).unwrap();
            prop_assert_eq!(Replay { repaired: None, ..replay }, again);
        }
    }
}

/// The first segment of a small log, without most of its zeros.
fn small_log() -> Vec<u8> {
    let (disk, mut wal) = log_of(&three_entries());
    grow(&mut wal, 10, 300);
    drop(wal);
    let mut content = disk.read(&first_segment()).unwrap();
    content.truncate(8192);
    content
}

/// A record may say that it is as long as the address space; that must not be believed.
#[test]
fn a_huge_length_allocates_nothing() {
    let (disk, wal) = log_of(&three_entries());
    drop(wal);
    let file = disk.open(&first_segment(), Open::Write).unwrap();
    let end = segment::read(file.as_ref(), &first_segment(), &mut 0, |_, _| Ok(())).unwrap().offset;
    for len in [0x00ff_ffff_ffff_fff8_u64, 0x87ff_ffff_ffff_fff9, 1 << 40, 2 << 20] {
        let image = disk.fork();
        image.open(&first_segment(), Open::Write).unwrap().write_at(&len.to_le_bytes(), end).unwrap();
        let (_, replay) = open(&image).unwrap();
        assert_eq!(replay.repaired.map(|repair| repair.at), Some(end));
        assert_eq!(replay.entries, three_entries());
    }
}

#[test]
fn entry_data_shares_the_memory_that_the_segment_was_read_into() {
    let (disk, wal) = log_of(&[entry(1, 1, 1000), entry(2, 1, 1000)]);
    drop(wal);
    let (_, replay) = open(&disk).unwrap();
    let [first, second] = [0, 1].map(|number: usize| replay.entries[number].data.as_ptr() as usize);
    assert!((1000..1200).contains(&(second - first)), "one buffer behind both");
    let _: &Bytes = &replay.entries[0].data;
}
