//! `backup`: copies the v2 tree's part of a data directory, for a new cluster of one member.
//!
//! What is copied are the newest `.snap` file and the log behind it, without what would tie the copy to the old cluster:
//! its IDs, changes of its membership, and its members' attributes. A member may be running on the directory meanwhile.

use super::app::{Action as Does, Command};
use super::context::{Context, Exit};
use super::flag::{switch, text};
use bolt::{Plan, ReadAt, Reader, WriteError, Writer};
use cli::raw;
use disk::{Disk, Open, RealDisk};
use prost::Message as _;
use proto::etcdserverpb::InternalRaftRequest;
use proto::v2pb::Request;
use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wal::snap;
use wal::{Entry, EntryKind, HardState, Identity, SnapshotMark, Wal};

pub const BACKUP: Command = Command {
    name: "backup",
    about: "copy a data directory",
    arguments: " ",
    description: "Copies the keys of the v2 API for a new cluster of one member, which is started with\n\n\
                  $ etcd --data-dir <backup-dir> --force-new-cluster",
    flags: &[
        text(&["data-dir"], "", "The data directory"),
        text(&["wal-dir"], "", "Its log, if that is elsewhere"),
        text(&["backup-dir"], "", "Where the copy goes"),
        text(&["backup-wal-dir"], "", "Where the copy of the log goes, if elsewhere"),
        switch(&["with-v3"], "Also copy the keys of the v3 API, from the directory of an etcd that does not run"),
    ],
    action: Does::Run(backup),
};

/// Buckets that say who the members are.
const MEMBERSHIP: [&[u8]; 3] = [b"cluster", b"members", b"members_removed"];
/// How many entries are written at once.
const BATCH: usize = 1_000;

fn backup(context: &Context) -> Result<(), Exit> {
    let flag = |name: &str| PathBuf::from(raw::argument(context.command.text(name)));
    let log_of = |wal_dir: &str, data_dir: &str| {
        let elsewhere = flag(wal_dir);
        if elsewhere.as_os_str().is_empty() { flag(data_dir).join("member/wal") } else { elsewhere }
    };
    Copy {
        disk: Arc::new(RealDisk),
        from: flag("data-dir").join("member/snap"),
        from_log: log_of("wal-dir", "data-dir"),
        to: flag("backup-dir").join("member/snap"),
        to_log: log_of("backup-wal-dir", "backup-dir"),
        with_v3: context.command.is("with-v3"),
    }
    .run()
    .map_err(Exit::plain)
}

/// A copy that is being made.
struct Copy {
    disk: Arc<dyn Disk>,
    from: PathBuf,
    from_log: PathBuf,
    to: PathBuf,
    to_log: PathBuf,
    with_v3: bool,
}

impl Copy {
    fn run(&self) -> Result<(), String> {
        let disk = self.disk.as_ref();
        let refused = |error: &dyn std::fmt::Display| error.to_string();
        disk.create_dir_all(&self.to)
            .map_err(|error| format!("failed creating backup snapshot dir {}: {error}", self.to.display()))?;
        let db = self.to.join("db");
        if self.with_v3 && self.from.with_file_name("store").exists() {
            return Err(format!(
                "{}: --with-v3 copies the file of an etcd, and this is no such directory; use `etcdctl snapshot save`",
                self.from.display()
            ));
        }
        let marks = Wal::snapshots(disk, &self.from_log).map_err(|error| refused(&error))?;
        let newest = snap::load_newest_available(disk, &self.from, &marks).map_err(|error| refused(&error))?;
        let mut mark = SnapshotMark::START;
        if let Some(newest) = &newest {
            snap::save(disk, &self.to, newest).map_err(|error| refused(&error))?;
            mark = SnapshotMark { index: newest.index, term: newest.term, conf_state: Some(newest.conf_state.clone()) };
        }
        let replay = Wal::read(disk, &self.from_log, SnapshotMark { conf_state: None, ..mark.clone() })
            .map_err(|error| refused(&error))?;
        let (entries, state) = untied(replay.entries, replay.hard_state, self.with_v3);
        if self.with_v3 {
            copy_db(&self.from.join("db"), &db)?;
        } else {
            write_empty_db(&db, state.commit)?;
        }
        let identity = Identity { node_id: random_id(), cluster_id: random_id() };
        let mut log = Wal::create(Arc::clone(&self.disk), &self.to_log, identity).map_err(|error| refused(&error))?;
        if mark.index > 0 {
            log.save_snapshot(&mark).map_err(|error| refused(&error))?;
        }
        for batch in entries.chunks(BATCH) {
            log.append(batch, None).map_err(|error| refused(&error))?;
        }
        log.append(&[], Some(&state)).map_err(|error| refused(&error))?;
        Ok(())
    }
}

/// An ID that nobody has.
fn random_id() -> u64 {
    // The standard library seeds its hashers from the system's randomness.
    RandomState::new().build_hasher().finish() | 1
}

/// The entries without those that tie them to their cluster, numbered without gaps, and the state that fits.
fn untied(entries: Vec<Entry>, mut state: HardState, with_v3: bool) -> (Vec<Entry>, HardState) {
    let commit = state.commit;
    let mut removed = 0;
    let mut kept = Vec::with_capacity(entries.len());
    for entry in entries {
        match reason_to_leave_out(&entry, with_v3) {
            Some(reason) => {
                eprintln!("ignoring {reason}");
                removed += 1;
                // What is not yet agreed upon has not moved the commit index.
                state.commit -= u64::from(entry.index <= commit);
            }
            None => kept.push(Entry { index: entry.index - removed, ..entry }),
        }
    }
    (kept, state)
}

fn reason_to_leave_out(entry: &Entry, with_v3: bool) -> Option<String> {
    if entry.kind != EntryKind::Normal {
        return Some("EntryConfChange raft entry".to_owned());
    }
    let (v2, is_v3) = match InternalRaftRequest::decode(entry.data.clone()) {
        Ok(request) => (request.v2, request.header.is_some()),
        Err(_) => (Request::decode(entry.data.clone()).ok(), false),
    };
    match v2 {
        Some(request) => {
            let path = String::from_utf8_lossy(request.path()).into_owned();
            let ties = request.method() == "PUT" && is_member_attributes(&path);
            ties.then(|| format!("member attribute update on {path}"))
        }
        None if is_v3 && !with_v3 => Some("v3 raft entry".to_owned()),
        None => None,
    }
}

/// `/0/members/<ID>/attributes`
fn is_member_attributes(path: &str) -> bool {
    let id = path.strip_prefix("/0/members/").and_then(|rest| rest.strip_suffix("/attributes"));
    id.is_some_and(|id| (1..=16).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// A file that says only up to where v3 entries have been applied: all of them, since none is in the log.
fn write_empty_db(path: &Path, index: u64) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let (bucket, key, value) = (b"meta", b"consistent_index", index.to_be_bytes());
    let mut plan = Plan::new();
    plan.bucket(bucket).map_err(|error| failed(&error))?;
    plan.item(key.len(), value.len()).map_err(|error| failed(&error))?;
    let layout = plan.finish().map_err(|error| failed(&error))?;
    let out = BufWriter::new(File::create(path).map_err(|error| failed(&error))?);
    let mut writer = Writer::new(out, layout).map_err(|error| failed(&error))?;
    writer.bucket(bucket).map_err(|error| failed(&error))?;
    writer.item(key, &value).map_err(|error| failed(&error))?;
    finish(writer).map_err(|error| failed(&error))
}

fn finish(writer: Writer<BufWriter<File>>) -> Result<(), String> {
    let mut out = writer.finish().map_err(|error| error.to_string())?;
    out.flush().and_then(|()| out.get_ref().sync_all()).map_err(|error| error.to_string())
}

/// Copies an etcd's file without its members.
fn copy_db(from: &Path, to: &Path) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", from.display());
    // Locks need a handle that may write.
    let file = RealDisk.open(from, Open::Write).map_err(|error| failed(&error))?;
    if !file.try_lock().map_err(|error| failed(&error))? {
        return Err(format!("{}: an etcd runs on it; stop it, or use `etcdctl snapshot save`", from.display()));
    }
    let reader = Reader::open(file).map_err(|error| failed(&error))?;
    let mut plan = Plan::new();
    walk(&reader, |step| match step {
        Step::Bucket(name) => plan.bucket(name),
        Step::Item(key, value) => plan.item(key.len(), value.len()),
    })
    .map_err(|error| failed(&error))?;
    let layout = plan.finish().map_err(|error| failed(&error))?;
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", to.display());
    let out = BufWriter::new(File::create(to).map_err(|error| failed(&error))?);
    let mut writer = Writer::new(out, layout).map_err(|error| failed(&error))?;
    walk(&reader, |step| match step {
        Step::Bucket(name) => writer.bucket(name),
        Step::Item(key, value) => writer.item(key, value),
    })
    .map_err(|error| failed(&error))?;
    finish(writer).map_err(|error| failed(&error))
}

/// What comes next in a bbolt file.
enum Step<'a> {
    Bucket(&'a [u8]),
    Item(&'a [u8], &'a [u8]),
}

/// Walks through a file, past the buckets that say who the members are.
fn walk<R: ReadAt>(reader: &Reader<R>, mut take: impl FnMut(Step<'_>) -> Result<(), WriteError>) -> Result<(), String> {
    for bucket in reader.buckets() {
        let bucket = bucket.map_err(|error| error.to_string())?;
        if MEMBERSHIP.contains(&bucket.name().as_ref()) {
            continue;
        }
        take(Step::Bucket(bucket.name())).map_err(|error| error.to_string())?;
        for item in bucket.items() {
            let (key, value) = item.map_err(|error| error.to_string())?;
            take(Step::Item(&key, &value)).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::etcdserverpb::RequestHeader;

    fn entry(index: u64, kind: EntryKind, data: Vec<u8>) -> Entry {
        Entry { kind, term: 2, index, data: data.into() }
    }

    fn v2(path: &str) -> Vec<u8> {
        let (method, path) = (Some("PUT".to_owned()), Some(path.to_owned().into()));
        let request = Request { method, path, ..Request::default() };
        InternalRaftRequest { v2: Some(request), ..Default::default() }.encode_to_vec()
    }

    #[test]
    fn what_ties_a_log_to_its_cluster_is_left_out_and_the_rest_moves_up() {
        let v3 = InternalRaftRequest { header: Some(RequestHeader::default()), ..Default::default() }.encode_to_vec();
        let log = || {
            vec![
                entry(5, EntryKind::Normal, Vec::new()),
                entry(6, EntryKind::ConfChange, vec![1]),
                entry(7, EntryKind::Normal, v2("/0/members/8e9e05c52164694d/attributes")),
                entry(8, EntryKind::Normal, v2("/1/a")),
                entry(9, EntryKind::Normal, v3.clone()),
                entry(10, EntryKind::Normal, v2("/1/b")),
                entry(11, EntryKind::ConfChange, vec![1]),
            ]
        };
        let state = HardState { term: 2, vote: 1, commit: 10 };
        let indexes = |with_v3| {
            let (entries, state) = untied(log(), state, with_v3);
            (entries.iter().map(|entry| entry.index).collect::<Vec<_>>(), state.commit)
        };
        assert_eq!(indexes(false), (vec![5, 6, 7], 7));
        assert_eq!(indexes(true), (vec![5, 6, 7, 8], 8));
        let (entries, _) = untied(log(), state, false);
        assert_eq!(entries[2].data, v2("/1/b"));
    }

    #[test]
    fn only_a_members_attributes_are_member_attributes() {
        assert!(is_member_attributes("/0/members/8e9e05c52164694d/attributes"));
        for path in [
            "/1/members/1/attributes",
            "/0/members/1/raftAttributes",
            "/0/members//attributes",
            "/0/members/x/attributes",
        ] {
            assert!(!is_member_attributes(path), "{path}");
        }
    }
}
