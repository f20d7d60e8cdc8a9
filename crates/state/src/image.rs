//! This state as a bbolt file, byte for byte what etcd would find in its own `db`: how it travels to other members and into
//! backups.
//!
//! An image is taken between two log entries and then belongs to that moment, however long its bytes take to leave: the
//! versions are pinned, the small tables copied. The bytes are made while they are taken away.

use std::io;
use std::ops::ControlFlow;
use std::sync::OnceLock;

use bolt::{Hash, HashScope, Layout, Plan, WriteError, Writer};
use bytes::Bytes;
use proto::raftpb;
use store::{Pin, Revision, StoreError, Table, Versions, bucket_key};

use crate::members::Cluster;
use crate::{Reader, v2};

/// etcd's buckets in byte order, and where their items come from.
const BUCKETS: [(&str, Source); 10] = [
    ("alarm", Source::Table(Table::Alarm)),
    ("auth", Source::Table(Table::Auth)),
    ("authRoles", Source::Table(Table::AuthRoles)),
    ("authUsers", Source::Table(Table::AuthUsers)),
    ("cluster", Source::Table(Table::Cluster)),
    ("key", Source::Versions),
    ("lease", Source::Table(Table::Lease)),
    ("members", Source::Table(Table::Members)),
    ("members_removed", Source::Table(Table::MembersRemoved)),
    ("meta", Source::Meta),
];

#[derive(Clone, Copy, Debug)]
enum Source {
    Table(Table),
    Versions,
    Meta,
}

/// About how long a piece is, in bytes.
const PIECE_BYTES: usize = 256 << 10;

/// Everything that a snapshot is made of, held still at one log index. While it lives, compaction waits.
#[derive(Debug)]
pub struct Image {
    pin: Pin,
    revision: i64,
    compacted: i64,
    tables: Vec<Vec<(Bytes, Bytes)>>,
    index: u64,
    term: u64,
    conf_state: raftpb::ConfState,
    v2: v2::Image,
    /// Made when it is asked for: the tree may be large.
    v2_json: OnceLock<Bytes>,
}

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The store could not be read.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// What it holds does not fit into a bbolt file.
    #[error("{0}")]
    Write(#[from] WriteError),
}

impl From<ImageError> for io::Error {
    fn from(error: ImageError) -> Self {
        io::Error::other(error)
    }
}

/// What a walk over an image meets.
enum Met<'a> {
    Bucket(&'a [u8]),
    Item(&'a [u8], &'a [u8]),
}

impl Image {
    /// Takes what must be taken between two entries; the caller keeps the applying side out meanwhile. Copies only the
    /// small tables. `index` is that of the last applied entry, `conf_state` the membership then.
    pub fn take(reader: &Reader, index: u64, conf_state: &raftpb::ConfState) -> Self {
        let store = reader.store().view();
        let (revision, compacted) = (store.revision(), store.compact_revision());
        let pin = store.pin(compacted);
        let term = reader.applied_term();
        let cluster = reader.0.cluster.read();
        let tables = BUCKETS
            .iter()
            .map(|(_, source)| match source {
                Source::Table(Table::Auth) => auth(store.rows(Table::Auth)),
                Source::Table(table) => store.rows(*table),
                Source::Versions => Vec::new(),
                Source::Meta => meta(&cluster, index, term, compacted, conf_state),
            })
            .collect();
        drop(cluster);
        let (v2, v2_json) = (reader.v2().image(), OnceLock::new());
        Self { pin, revision, compacted, tables, index, term, conf_state: conf_state.clone(), v2, v2_json }
    }

    /// Index of the last log entry in it.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The term of that entry.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// The membership at that index.
    pub fn conf_state(&self) -> &raftpb::ConfState {
        &self.conf_state
    }

    /// The v2 tree, which goes into a snapshot message beside the file. Takes a while if it is large.
    pub fn v2_json(&self) -> &Bytes {
        self.v2_json.get_or_init(|| self.v2.to_json().into())
    }

    fn versions(&self) -> Versions {
        self.pin.store().versions(self.compacted, self.revision)
    }

    /// Meets every bucket and item in the order of the file.
    fn walk(&self, each: &mut dyn FnMut(Met<'_>) -> Result<(), WriteError>) -> Result<(), ImageError> {
        for ((name, source), rows) in BUCKETS.iter().zip(&self.tables) {
            each(Met::Bucket(name.as_bytes()))?;
            for (key, value) in rows {
                each(Met::Item(key, value))?;
            }
            if let Source::Versions = source {
                let mut result = Ok(());
                self.versions().walk(|revision, tombstone, payload| {
                    let (key, len) = bucket_key(revision, tombstone);
                    result = each(Met::Item(&key[..len], payload));
                    if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                })?;
                result?;
            }
        }
        Ok(())
    }

    /// etcd's `Maintenance.Hash`.
    pub fn hash(&self) -> Result<u32, ImageError> {
        let mut hash = Hash::new(HashScope::Members);
        self.walk(&mut |met| {
            match met {
                Met::Bucket(name) => hash.bucket(name),
                Met::Item(key, value) => hash.item(key, value),
            }
            Ok(())
        })?;
        Ok(hash.finish())
    }

    fn plan(&self) -> Result<Layout, ImageError> {
        let mut plan = Plan::new();
        self.walk(&mut |met| match met {
            Met::Bucket(name) => plan.bucket(name),
            Met::Item(key, value) => plan.item(key.len(), value.len()),
        })?;
        Ok(plan.finish()?)
    }

    /// The file in pieces. Each call does its part of the work, from disk: take them on a thread that may wait. The
    /// first one goes through everything once, to find out how long the file will be.
    pub fn into_pieces(self) -> Pieces {
        Pieces { image: self, step: Step::Planning }
    }
}

/// A bbolt file on its way out. Ends after the first error.
#[derive(Debug)]
pub struct Pieces {
    image: Image,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Planning,
    Planned(Layout),
    Writing(Box<Writing>),
    Done,
}

#[derive(Debug)]
struct Writing {
    out: Writer<Vec<u8>>,
    /// The bucket that is being written, and how many of its rows have been.
    bucket: usize,
    rows: usize,
    versions: Option<Versions>,
}

impl Pieces {
    /// Length of the file in bytes.
    pub fn total_bytes(&mut self) -> Result<u64, ImageError> {
        if let Step::Planning = self.step {
            self.step = Step::Planned(self.image.plan()?);
        }
        Ok(match &self.step {
            Step::Planned(layout) => layout.size_bytes(),
            Step::Writing(writing) => writing.out.layout().size_bytes(),
            Step::Planning | Step::Done => 0,
        })
    }

    fn piece(&mut self) -> Result<Option<Bytes>, ImageError> {
        self.total_bytes()?;
        let mut writing = match std::mem::replace(&mut self.step, Step::Done) {
            Step::Planned(layout) => Box::new(Writing {
                out: Writer::new(Vec::with_capacity(PIECE_BYTES), layout)?,
                bucket: 0,
                rows: 0,
                versions: None,
            }),
            Step::Writing(writing) => writing,
            Step::Planning | Step::Done => return Ok(None),
        };
        while let Some((name, source)) = BUCKETS.get(writing.bucket) {
            let Writing { out, bucket, rows, versions } = &mut *writing;
            if *rows == 0 && versions.is_none() {
                out.bucket(name.as_bytes())?;
            }
            let mut ended = true;
            if let Source::Versions = source {
                let mut result = Ok(());
                ended =
                    versions.get_or_insert_with(|| self.image.versions()).walk(|revision, tombstone, payload| {
                        let (key, len) = bucket_key(revision, tombstone);
                        result = out.item(&key[..len], payload);
                        let goes_on = result.is_ok() && out.out_mut().len() < PIECE_BYTES;
                        if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                    })?;
                result?;
            } else {
                for (key, value) in &self.image.tables[*bucket][*rows..] {
                    if out.out_mut().len() >= PIECE_BYTES {
                        ended = false;
                        break;
                    }
                    out.item(key, value)?;
                    *rows += 1;
                }
            }
            if ended {
                (*bucket, *rows, *versions) = (*bucket + 1, 0, None);
            }
            if out.out_mut().len() >= PIECE_BYTES {
                let piece = std::mem::replace(out.out_mut(), Vec::with_capacity(PIECE_BYTES));
                self.step = Step::Writing(writing);
                return Ok(Some(piece.into()));
            }
        }
        let rest = writing.out.finish()?;
        Ok((!rest.is_empty()).then(|| rest.into()))
    }
}

impl Iterator for Pieces {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.piece();
        if piece.is_err() {
            self.step = Step::Done;
        }
        piece.map_err(io::Error::from).transpose()
    }
}

/// etcd writes the revision of its users, 1, before there are any.
fn auth(mut rows: Vec<(Bytes, Bytes)>) -> Vec<(Bytes, Bytes)> {
    const REVISION: &[u8] = b"authRevision";
    if let Err(place) = rows.binary_search_by(|(key, _)| key.as_ref().cmp(REVISION)) {
        rows.insert(place, (Bytes::from_static(REVISION), Bytes::copy_from_slice(&1u64.to_be_bytes())));
    }
    rows
}

fn meta(
    cluster: &Cluster,
    index: u64,
    term: u64,
    compacted: i64,
    conf_state: &raftpb::ConfState,
) -> Vec<(Bytes, Bytes)> {
    let mut rows: Vec<(Bytes, Bytes)> = Vec::new();
    let mut row = |key: &'static str, value: Vec<u8>| rows.push((Bytes::from_static(key.as_bytes()), value.into()));
    let ids = |ids: &[u64]| serde_json::Value::from(ids.to_vec());
    let mut json = serde_json::Map::new();
    for (name, list) in [
        ("voters", &conf_state.voters),
        ("learners", &conf_state.learners),
        ("voters_outgoing", &conf_state.voters_outgoing),
        ("learners_next", &conf_state.learners_next),
    ] {
        if !list.is_empty() {
            json.insert(name.to_string(), ids(list));
        }
    }
    json.insert("auto_leave".to_string(), conf_state.auto_leave.unwrap_or(false).into());
    row("confState", serde_json::Value::Object(json).to_string().into_bytes());
    row("consistent_index", index.to_be_bytes().to_vec());
    if compacted >= 0 {
        let (revision, _) = bucket_key(Revision { main: compacted, sub: 0 }, false);
        row("finishedCompactRev", revision[..17].to_vec());
        row("scheduledCompactRev", revision[..17].to_vec());
    }
    // Members before 3.6 have no such row; it would tell later ones that the buckets count on the membership.
    if let Some(version) = cluster.version.as_ref().filter(|_| cluster.is_at_least(3, 6)) {
        row("storageVersion", version.clone().into_bytes());
    }
    row("term", term.to_be_bytes().to_vec());
    rows
}
