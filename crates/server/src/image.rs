//! This member's state as a bbolt file, byte for byte what etcd would find in its own `db`.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use api::SnapshotSource;
use bolt::{Hash, HashScope, Layout, Plan, Writer};
use bytes::Bytes;
use proto::raftpb;
use state::{Error, Reader};
use store::{Pin, Revision, Store, StoreError, Table};

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

/// Everything a file is made of, held still at one applied index.
#[derive(Debug)]
pub(crate) struct Image {
    store: Store,
    /// Keeps the versions from being compacted away until the last one is written.
    _pin: Pin,
    revision: i64,
    compacted: i64,
    tables: Vec<Vec<(Bytes, Bytes)>>,
}

/// What a walk over an image meets.
enum Met<'a> {
    Bucket(&'a [u8]),
    Item(&'a [u8], &'a [u8]),
}

impl Image {
    /// Takes what must be taken between two entries; the caller keeps the apply thread out meanwhile. Copies only the small
    /// tables.
    pub(crate) fn take(reader: &Reader, applied: u64, term: u64, conf_state: &raftpb::ConfState) -> Self {
        let store = reader.store().clone();
        let (revision, compacted) = (store.revision(), store.compact_revision());
        let pin = store.pin(compacted);
        let tables = BUCKETS
            .iter()
            .map(|(_, source)| match source {
                Source::Table(Table::Auth) => auth(store.rows(Table::Auth)),
                Source::Table(table) => store.rows(*table),
                Source::Versions => Vec::new(),
                Source::Meta => meta(reader, applied, term, conf_state),
            })
            .collect();
        Self { store, _pin: pin, revision, compacted, tables }
    }

    /// Meets every bucket and item in the order of the file.
    fn walk<E: From<StoreError>>(&self, each: &mut dyn FnMut(Met<'_>) -> Result<(), E>) -> Result<(), E> {
        for ((name, source), rows) in BUCKETS.iter().zip(&self.tables) {
            each(Met::Bucket(name.as_bytes()))?;
            for (key, value) in rows {
                each(Met::Item(key, value))?;
            }
            if let Source::Versions = source {
                let mut result = Ok(());
                self.store.export_as_of(self.compacted, self.revision, &mut |revision, tombstone, payload| {
                    let (key, len) = revision_key(revision, tombstone);
                    result = each(Met::Item(&key[..len], &payload));
                    if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                })?;
                result?;
            }
        }
        Ok(())
    }

    /// etcd's `Maintenance.Hash`.
    pub(crate) fn hash(&self) -> Result<u32, Error> {
        let mut hash = Hash::new(HashScope::Members);
        self.walk::<ImageError>(&mut |met| {
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
        self.walk::<ImageError>(&mut |met| {
            match met {
                Met::Bucket(name) => plan.bucket(name)?,
                Met::Item(key, value) => plan.item(key.len(), value.len())?,
            }
            Ok(())
        })?;
        Ok(plan.finish()?)
    }

    /// Begins to write the file. Its pieces are made on a thread of their own, a few ahead of who takes them.
    pub(crate) fn stream(self) -> Result<ImageStream, Error> {
        let layout = self.plan()?;
        let (sender, pieces) = sync_channel(PIECES_AHEAD);
        std::thread::Builder::new()
            .name("snapshot".into())
            .spawn(move || {
                let result = self.write(layout, &sender);
                if let Err(error) = result
                    && !matches!(error, ImageError::Gone)
                {
                    // Who listened is told; who has gone does not need to know.
                    drop(sender.send(Err(error.into())));
                }
            })
            .map_err(|e| Error::Internal(format!("snapshot: {e}")))?;
        Ok(ImageStream { total_bytes: layout.size_bytes(), pieces })
    }

    fn write(&self, layout: Layout, sender: &SyncSender<Result<Bytes, Error>>) -> Result<(), ImageError> {
        let mut writer = Writer::new(Vec::with_capacity(PIECE_BYTES), layout)?;
        self.walk::<ImageError>(&mut |met| {
            match met {
                Met::Bucket(name) => writer.bucket(name)?,
                Met::Item(key, value) => writer.item(key, value)?,
            }
            if writer.out_mut().len() >= PIECE_BYTES {
                let piece = std::mem::replace(writer.out_mut(), Vec::with_capacity(PIECE_BYTES));
                sender.send(Ok(piece.into())).map_err(|_| ImageError::Gone)?;
            }
            Ok(())
        })?;
        let rest = writer.finish()?;
        if !rest.is_empty() {
            sender.send(Ok(rest.into())).map_err(|_| ImageError::Gone)?;
        }
        Ok(())
    }
}

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
enum ImageError {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Write(#[from] bolt::WriteError),
    /// Nobody takes the pieces any more.
    #[error("abandoned")]
    Gone,
}

impl From<ImageError> for Error {
    fn from(error: ImageError) -> Self {
        Error::Internal(format!("snapshot: {}", crate::chain(&error)))
    }
}

/// Pieces of about this size are handed out,
const PIECE_BYTES: usize = 256 << 10;
/// and this many are made ahead.
const PIECES_AHEAD: usize = 4;

/// A bbolt file on its way out.
#[derive(Debug)]
pub(crate) struct ImageStream {
    total_bytes: u64,
    pieces: Receiver<Result<Bytes, Error>>,
}

impl SnapshotSource for ImageStream {
    fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, Error> {
        self.pieces.recv().ok().transpose()
    }
}

/// A version's key in etcd's `key` bucket, and its length: main, `_`, sub, and `t` for a tombstone.
fn revision_key(revision: Revision, tombstone: bool) -> ([u8; 18], usize) {
    let mut key = [0; 18];
    key[..8].copy_from_slice(&revision.main.to_be_bytes());
    key[8] = b'_';
    key[9..17].copy_from_slice(&revision.sub.to_be_bytes());
    key[17] = b't';
    (key, if tombstone { 18 } else { 17 })
}

/// etcd writes the revision of its users, 1, before there are any.
fn auth(mut rows: Vec<(Bytes, Bytes)>) -> Vec<(Bytes, Bytes)> {
    const REVISION: &[u8] = b"authRevision";
    if let Err(place) = rows.binary_search_by(|(key, _)| key.as_ref().cmp(REVISION)) {
        rows.insert(place, (Bytes::from_static(REVISION), Bytes::copy_from_slice(&1u64.to_be_bytes())));
    }
    rows
}

fn meta(reader: &Reader, applied: u64, term: u64, conf_state: &raftpb::ConfState) -> Vec<(Bytes, Bytes)> {
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
    row("consistent_index", applied.to_be_bytes().to_vec());
    let compacted = reader.compact_revision();
    if compacted >= 0 {
        let mut revision = Vec::with_capacity(17);
        revision.extend_from_slice(&compacted.to_be_bytes());
        revision.push(b'_');
        revision.extend_from_slice(&0i64.to_be_bytes());
        row("finishedCompactRev", revision.clone());
        row("scheduledCompactRev", revision);
    }
    if let Some(version) = reader.cluster_version() {
        row("storageVersion", version.into_bytes());
    }
    row("term", term.to_be_bytes().to_vec());
    rows
}
