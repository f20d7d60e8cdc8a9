//! `snapshot restore`: the data directory of a member of a new cluster that begins with what is in a snapshot.
//!
//! What is made is the data directory of an etcd: a bbolt file, a `.snap` and a log that begins with the new cluster's members.
//! A member of ours takes it over at its first start, and so does any etcd.

use crate::copy::{Changes, CopyError, Rows, copy};
use crate::data_dir::{DataDir, OpenError};
use crate::db::{Db, DbError, revision};
use crate::{command, log};
use bytes::Bytes;
use cli::flags::Parsed;
use cli::{Failure, go, terminal};
use disk::{Disk, Open, RealDisk};
use prost::Message as _;
use proto::raftpb;
use server::config::{ClusterError, Config, Url, UrlError};
use sha2::{Digest, Sha256};
use state::{Image, members};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use store::{Revision, bucket_key};
use wal::snap::{self, SnapFile};
use wal::{Entry, EntryKind, HardState, Identity, SnapshotMark, Wal};

/// The length of the sum at the end of a snapshot.
const SUM_BYTES: u64 = 32;
/// Files of bbolt are made of pages, whose size is a multiple of this; so the rest tells whether there is a sum.
const SECTOR_BYTES: u64 = 512;
/// The new cluster's first term.
const TERM: u64 = 1;

/// Why nothing was restored. What had been made is gone again.
#[derive(Debug, thiserror::Error)]
enum RestoreError {
    #[error("{0}")]
    Url(#[from] UrlError),
    #[error("{0}")]
    Cluster(ClusterError),
    #[error("data-dir {} not empty or could not be read", quoted(.0))]
    DataDirInUse(PathBuf),
    #[error("wal-dir {} exists", quoted(.0))]
    WalDirExists(PathBuf),
    #[error("{0}")]
    Io(String),
    #[error("snapshot missing hash but --skip-hash-check=false")]
    NoSum,
    #[error("expected sha256 {}, got {}: the file is damaged, or was cut off", go_bytes(.expected), go_bytes(.found))]
    WrongSum { expected: Vec<u8>, found: Vec<u8> },
    #[error("{0}")]
    Db(#[from] DbError),
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("{0}")]
    Copy(#[from] CopyError),
    #[error("cannot raise revision {latest} by {by}")]
    TooFar { latest: i64, by: u64 },
    #[error("write-ahead log: {0}")]
    Wal(#[from] wal::WalError),
    #[error("{0}")]
    Snap(#[from] snap::SnapError),
}

fn quoted(path: &Path) -> String {
    go::quote(path.display().to_string().as_bytes())
}

/// Bytes as Go's `%v` has them.
fn go_bytes(bytes: &[u8]) -> String {
    format!("[{}]", bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(" "))
}

fn io_at(path: &Path) -> impl Fn(io::Error) -> RestoreError + use<> {
    let path = path.display().to_string();
    move |error| RestoreError::Io(terminal::open_error(&path, &error))
}

pub fn run(call: &Parsed) -> Result<(), Failure> {
    let [path] = &call.args[..] else {
        return Err(Failure::arguments("snapshot restore requires exactly one argument"));
    };
    let bump = call.unsigned("bump-revision");
    if bump > 0 && !call.is("mark-compacted") {
        return Err(Failure::arguments("--mark-compacted required if --revision-bump > 0"));
    }
    let name = call.text("name");
    let data_dir = match call.text("data-dir") {
        "" => format!("{name}.etcd"),
        typed => typed.to_owned(),
    };
    let dir = DataDir::new(&data_dir);
    let wal_dir = match call.text("wal-dir") {
        "" => dir.wal(),
        typed => PathBuf::from(typed),
    };
    let founders = founders(call).map_err(Failure::from)?;
    let restore = Restore {
        source: PathBuf::from(path),
        dir,
        wal_dir,
        founders,
        name: name.to_owned(),
        checks_sum: !call.is("skip-hash-check"),
        bump,
        patience: command::lock_timeout(call),
    };
    Ok(restore.run()?)
}

/// The members of the new cluster, in the order of their IDs.
fn founders(call: &Parsed) -> Result<Vec<members::Member>, RestoreError> {
    let token = call.text("initial-cluster-token");
    let config = Config {
        name: call.text("name").to_owned(),
        data_dir: PathBuf::new(),
        initial_cluster: call.text("initial-cluster").to_owned(),
        initial_cluster_token: token.to_owned(),
        advertise_peer_urls: Url::parse_list(call.text("initial-advertise-peer-urls"))?,
        ..Config::default()
    };
    let members = config.initial_members().map_err(|error| match error {
        ClusterError::Url(error) => error.into(),
        other => RestoreError::Cluster(other),
    })?;
    let member = |(name, urls): (String, Vec<Url>)| {
        let peer_urls: Vec<String> = urls.iter().map(Url::to_string).collect();
        members::Member { id: members::member_id(&peer_urls, token), name, peer_urls, ..Default::default() }
    };
    let mut founders: Vec<_> = members.into_iter().map(member).collect();
    founders.sort_by_key(|member| member.id);
    Ok(founders)
}

struct Restore {
    source: PathBuf,
    dir: DataDir,
    wal_dir: PathBuf,
    founders: Vec<members::Member>,
    name: String,
    checks_sum: bool,
    bump: u64,
    patience: Option<Duration>,
}

impl Restore {
    fn run(&self) -> Result<(), RestoreError> {
        let is_empty = |dir: &Path| std::fs::read_dir(dir).map(|mut entries| entries.next().is_none());
        if self.dir.path.exists() && !is_empty(&self.dir.path).unwrap_or(false) {
            return Err(RestoreError::DataDirInUse(self.dir.path.clone()));
        }
        if self.wal_dir.exists() {
            return Err(RestoreError::WalDirExists(self.wal_dir.clone()));
        }
        self.tell("restoring snapshot");
        let made = self.make();
        if made.is_err() {
            // Neither was there before. What cannot be removed is named by the next attempt.
            let _gone = std::fs::remove_dir_all(self.dir.path.join("member"));
            let _gone = std::fs::remove_dir_all(&self.wal_dir);
        }
        made?;
        self.tell("restored snapshot");
        Ok(())
    }

    fn tell(&self, message: &str) {
        let text = |path: &Path| path.display().to_string();
        log(
            "info",
            message,
            &[
                ("path", &text(&self.source)),
                ("wal-dir", &text(&self.wal_dir)),
                ("data-dir", &text(&self.dir.path)),
                ("snap-dir", &text(&self.dir.snap())),
            ],
        );
    }

    fn make(&self) -> Result<(), RestoreError> {
        let snap_dir = self.dir.snap();
        let original = match DataDir::meant_by(&self.source) {
            Some(ours) if ours.is_ours() => {
                make_dir(&snap_dir)?;
                self.export(&ours)?
            }
            _ => {
                if self.checks_sum {
                    check_sum(&self.source)?;
                }
                Db::open(&self.source, self.patience)?
            }
        };
        let changes = self.changes(&original)?;
        make_dir(&snap_dir)?;
        copy(&original, &changes, &self.dir.db(), "restore")?;
        let exported = self.exported();
        if exported.exists() {
            std::fs::remove_file(&exported).map_err(io_at(&exported))?;
        }
        self.write_log()?;
        // Durable all the way up.
        for dir in self.dir.snap().ancestors().chain(self.wal_dir.parent()) {
            let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_at(dir))?;
        }
        Ok(())
    }

    fn exported(&self) -> PathBuf {
        self.dir.snap().join("db.export")
    }

    /// A data directory of ours, as a file of bbolt.
    fn export(&self, ours: &DataDir) -> Result<Db, RestoreError> {
        if self.checks_sum {
            return Err(RestoreError::NoSum);
        }
        let opened = ours.open(self.patience)?;
        let conf_state = raftpb::ConfState::decode(opened.mark.conf_state.clone()).unwrap_or_default();
        let path = self.exported();
        let mut out = BufWriter::new(File::create_new(&path).map_err(io_at(&path))?);
        for piece in Image::take(&opened.reader, opened.mark.index, &conf_state).into_pieces() {
            piece.and_then(|piece| out.write_all(&piece)).map_err(io_at(&path))?;
        }
        out.flush().map_err(io_at(&path))?;
        Ok(Db::of(&path, RealDisk.open(&path, Open::Read).map_err(io_at(&path))?)?)
    }

    /// What makes the state of the old cluster that of the new one.
    fn changes(&self, original: &Db) -> Result<Changes, RestoreError> {
        let index = self.founders.len() as u64;
        let mut changes = Changes::default();
        let mut meta: Rows = original.rows("meta")?.into_iter().collect();
        let mut set = |key: &'static str, value: Vec<u8>| drop(meta.insert(Bytes::from(key), value.into()));
        set("consistent_index", index.to_be_bytes().to_vec());
        set("term", TERM.to_be_bytes().to_vec());
        set("confState", serde_json::json!({ "voters": self.ids(), "auto_leave": false }).to_string().into_bytes());
        if self.bump > 0 {
            let raised = self.raised(original)?;
            let row = |revision| Bytes::copy_from_slice(&bucket_key(revision, false).0[..17]);
            set("scheduledCompactRev", row(raised).to_vec());
            changes.last_version = Some((row(raised), Bytes::new()));
        }
        changes.buckets.insert("meta", meta);
        let row = |member: &members::Member| {
            (format!("{:x}", member.id).into_bytes().into(), members::add_context(member).into())
        };
        changes.buckets.insert("members", self.founders.iter().map(row).collect());
        changes.buckets.insert("members_removed", Rows::new());
        Ok(changes)
    }

    fn ids(&self) -> Vec<u64> {
        self.founders.iter().map(|member| member.id).collect()
    }

    /// The revision that takes the place of the newest one.
    fn raised(&self, original: &Db) -> Result<Revision, RestoreError> {
        let mut latest = 0;
        for (key, _) in original.rows("key")? {
            latest = revision(&key).map_or(latest, |(revision, _)| latest.max(revision.main));
        }
        let raised = i64::try_from(self.bump).ok().and_then(|by| latest.checked_add(by));
        let main = raised.ok_or(RestoreError::TooFar { latest, by: self.bump })?;
        log(
            "info",
            "bumping latest revision",
            &[
                ("latest-revision", &latest.to_string()),
                ("bump-amount", &self.bump.to_string()),
                ("new-latest-revision", &main.to_string()),
            ],
        );
        log("info", "marking revision compacted", &[("revision", &main.to_string())]);
        Ok(Revision { main, sub: 0 })
    }

    /// The log of a cluster that has just been founded, and a snapshot up to there.
    fn write_log(&self) -> Result<(), RestoreError> {
        let ids = self.ids();
        let own = self.founders.iter().find(|member| member.name == self.name).map_or(0, |member| member.id);
        let identity = Identity { node_id: own, cluster_id: members::cluster_id(&ids) };
        if let Some(parent) = self.wal_dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            make_dir(parent)?;
        }
        let mut wal = Wal::create(Arc::new(RealDisk), &self.wal_dir, identity)?;
        let entries: Vec<Entry> = self.founders.iter().zip(1..).map(|(member, index)| added(member, index)).collect();
        let (index, vote) = (entries.len() as u64, ids.first().copied().unwrap_or(0));
        // Synced here, and known to nobody else yet.
        let _synced = wal.append(&entries, Some(&HardState { term: TERM, vote, commit: index }))?;
        let conf_state = raftpb::ConfState { voters: ids, auto_leave: Some(false), ..Default::default() };
        let data = state::v2::founding_json(&self.founders).into();
        let snap = SnapFile { index, term: TERM, conf_state: conf_state.clone(), data };
        snap::save(&RealDisk, &self.dir.snap(), &snap)?;
        wal.save_snapshot(&SnapshotMark { index, term: TERM, conf_state: Some(conf_state) })?;
        Ok(())
    }
}

/// The log's entry that makes somebody a member.
fn added(member: &members::Member, index: u64) -> Entry {
    let change = raftpb::ConfChange {
        r#type: Some(raftpb::ConfChangeType::ConfChangeAddNode as i32),
        node_id: Some(member.id),
        context: Some(members::add_context(member).into()),
        ..Default::default()
    };
    Entry { kind: EntryKind::ConfChange, term: TERM, index, data: change.encode_to_vec().into() }
}

fn make_dir(dir: &Path) -> Result<(), RestoreError> {
    RealDisk.create_dir_all(dir).map_err(io_at(dir))
}

/// Compares the sum at the end of a snapshot with that of everything before.
fn check_sum(path: &Path) -> Result<(), RestoreError> {
    let failed = io_at(path);
    let file = File::open(path).map_err(&failed)?;
    let len = file.metadata().map_err(&failed)?.len();
    if len % SECTOR_BYTES != SUM_BYTES {
        return Err(RestoreError::NoSum);
    }
    let mut content = BufReader::with_capacity(1 << 20, file);
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let (mut done, total) = (0, len - SUM_BYTES);
    while done < total {
        let wanted = usize::try_from(total - done).map_or(buffer.len(), |left| left.min(buffer.len()));
        content.read_exact(&mut buffer[..wanted]).map_err(&failed)?;
        sum.update(&buffer[..wanted]);
        done += wanted as u64;
        if total > 64 << 20 {
            terminal::progress("check", done, total, &go::human_bytes);
        }
    }
    if total > 64 << 20 {
        terminal::end_progress();
    }
    let mut expected = Vec::new();
    content.read_to_end(&mut expected).map_err(&failed)?;
    let found = sum.finalize().to_vec();
    if expected == found { Ok(()) } else { Err(RestoreError::WrongSum { expected, found }) }
}
