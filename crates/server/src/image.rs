//! This member's state as a bbolt file, byte for byte what etcd would find in its own `db`.

use std::collections::VecDeque;

use api::SnapshotSource;
use bolt::{Hash, HashScope, Layout, Plan, Writer};
use bytes::Bytes;
use proto::raftpb;
use state::{Error, Reader};
use store::{Pin, Store, Table, Version};

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
    tables: Vec<Vec<(Bytes, Bytes)>>,
}

impl Image {
    /// Takes what must be taken between two entries; the caller keeps the apply thread out meanwhile. Copies only the small
    /// tables.
    pub(crate) fn take(reader: &Reader, applied: u64, term: u64, conf_state: &raftpb::ConfState) -> Self {
        let store = reader.store().clone();
        let revision = store.revision();
        let pin = store.pin(revision);
        let tables = BUCKETS
            .iter()
            .map(|(_, source)| match source {
                Source::Table(table) => store.rows(*table),
                Source::Versions => Vec::new(),
                Source::Meta => meta(reader, applied, term, conf_state),
            })
            .collect();
        Self { store, _pin: pin, revision, tables }
    }

    fn versions(&self) -> Vec<Version> {
        self.store.versions(self.revision)
    }

    /// etcd's `Maintenance.Hash`.
    pub(crate) fn hash(&self) -> Result<u32, Error> {
        let mut hash = Hash::new(HashScope::Maintenance);
        for ((name, source), rows) in BUCKETS.iter().zip(&self.tables) {
            hash.bucket(name.as_bytes());
            for (key, value) in rows {
                hash.item(key, value);
            }
            if let Source::Versions = source {
                for chunk in self.versions().chunks(CHUNK_VERSIONS) {
                    let mut at = 0;
                    let locations: Vec<_> = chunk.iter().map(|v| v.location).collect();
                    self.store
                        .read_many(&locations, &mut |payload| {
                            hash.item(&revision_key(&chunk[at]), &payload);
                            at += 1;
                        })
                        .map_err(|e| Error::Internal(e.to_string()))?;
                }
            }
        }
        Ok(hash.finish())
    }

    /// Begins to stream the file.
    pub(crate) fn stream(self) -> Result<ImageStream, Error> {
        let internal = |e: bolt::WriteError| Error::Internal(format!("snapshot: {e}"));
        let versions = self.versions();
        let mut plan = Plan::new();
        for ((name, source), rows) in BUCKETS.iter().zip(&self.tables) {
            plan.bucket(name.as_bytes()).map_err(internal)?;
            for (key, value) in rows {
                plan.item(key.len(), value.len()).map_err(internal)?;
            }
            if let Source::Versions = source {
                for version in &versions {
                    plan.item(revision_key(version).len(), version.location.payload_len()).map_err(internal)?;
                }
            }
        }
        let layout = plan.finish().map_err(internal)?;
        let writer = Writer::new(Vec::new(), layout).map_err(internal)?;
        Ok(ImageStream { image: self, layout, writer: Some(writer), versions: versions.into(), bucket: 0, open: false })
    }
}

/// Versions read from the store at a time.
const CHUNK_VERSIONS: usize = 256;
/// The stream hands out pieces of about this size.
const CHUNK_BYTES: usize = 256 << 10;

/// A bbolt file on its way out; memory is one chunk, plus 40 bytes per version.
#[derive(Debug)]
pub(crate) struct ImageStream {
    image: Image,
    layout: Layout,
    /// `None` after the last byte.
    writer: Option<Writer<Vec<u8>>>,
    versions: VecDeque<Version>,
    bucket: usize,
    /// Whether the current bucket has been begun.
    open: bool,
}

impl ImageStream {
    /// Writes a little more into the buffer; `false` when all is written.
    fn step(&mut self, writer: &mut Writer<Vec<u8>>) -> Result<bool, Error> {
        let internal = |e: bolt::WriteError| Error::Internal(format!("snapshot: {e}"));
        let Some((name, source)) = BUCKETS.get(self.bucket) else { return Ok(false) };
        if !self.open {
            writer.bucket(name.as_bytes()).map_err(internal)?;
            for (key, value) in std::mem::take(&mut self.image.tables[self.bucket]) {
                writer.item(&key, &value).map_err(internal)?;
            }
            self.open = true;
        }
        if let Source::Versions = source
            && !self.versions.is_empty()
        {
            let chunk: Vec<Version> =
                self.versions.drain(..self.versions.len().min(CHUNK_VERSIONS)).collect();
            let locations: Vec<_> = chunk.iter().map(|v| v.location).collect();
            let mut at = 0;
            let mut written = Ok(());
            self.image
                .store
                .read_many(&locations, &mut |payload| {
                    if written.is_ok() {
                        written = writer.item(&revision_key(&chunk[at]), &payload);
                    }
                    at += 1;
                })
                .map_err(|e| Error::Internal(e.to_string()))?;
            written.map_err(internal)?;
            return Ok(true);
        }
        self.bucket += 1;
        self.open = false;
        Ok(true)
    }
}

impl SnapshotSource for ImageStream {
    fn total_bytes(&self) -> u64 {
        self.layout.size_bytes()
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(mut writer) = self.writer.take() else { return Ok(None) };
        while writer.out_mut().len() < CHUNK_BYTES {
            if !self.step(&mut writer)? {
                let rest = writer.finish().map_err(|e| Error::Internal(format!("snapshot: {e}")))?;
                return Ok((!rest.is_empty()).then(|| rest.into()));
            }
        }
        let chunk = std::mem::take(writer.out_mut());
        self.writer = Some(writer);
        Ok(Some(chunk.into()))
    }
}

/// A version's key in etcd's `key` bucket: main, `_`, sub, and `t` for a tombstone.
fn revision_key(version: &Version) -> Vec<u8> {
    let mut key = Vec::with_capacity(18);
    key.extend_from_slice(&version.revision.main.to_be_bytes());
    key.push(b'_');
    key.extend_from_slice(&version.revision.sub.to_be_bytes());
    if version.tombstone {
        key.push(b't');
    }
    key
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
