//! A whole state from outside: another member's snapshot, or the data of an etcd whose place this member takes.
//!
//! Both are a bbolt file with etcd's buckets, and beside it the v2 store as JSON. The file is read once, front to back;
//! what it holds goes into a replacement of the store's content, and only when everything has been understood does
//! that come into force. A file that is refused has changed nothing.
//!
//! # Whose word counts on the membership
//! Up to 3.5, etcd goes by its v2 store; the buckets for members are written too, but have been known to be behind. From
//! 3.6 on, which is told by `storageVersion` in bucket `meta`, the buckets count; unless they are those of another cluster.

use std::sync::Arc;

use bolt::ReadError;
use bytes::Bytes;
use prost::Message;
use proto::membershippb::ClusterVersionSetRequest;
use proto::raftpb;
use store::{Mark, Ready, Revision, StoreError, Table, Writer};

use crate::Member;
use crate::alarm::Alarms;
use crate::apply::{self, Entry, Fatal, State, V2Fact};
use crate::auth::Policy;
use crate::lease::Lessor;
use crate::members::{Attributes, Cluster, Planned};
use crate::v2::{Touched, V2};
use crate::v2_snapshot;

/// A state to be taken over.
#[derive(Clone, Debug)]
pub struct Incoming<'a> {
    /// What messages call the file.
    pub name: &'a str,
    /// etcd's bbolt file. It must not change meanwhile.
    pub file: Arc<dyn disk::File>,
    /// The v2 store as JSON, as a snapshot message or a `.snap` file has it; empty if there is none.
    pub v2_json: &'a [u8],
    /// Index of the last log entry that is in the v2 store, and at least in the file.
    pub index: u64,
    /// Its term.
    pub term: u64,
}

/// What was taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Up to where the log has been applied now: the incoming index, or a later one if the file was ahead of it.
    pub mark: Mark,
    /// The newest revision.
    pub revision: i64,
    /// The last compaction; -1 = never.
    pub compact_revision: i64,
    /// There are keys of users in the v2 store.
    pub has_v2_keys: bool,
}

/// A log entry that the file already contains, but the v2 store may not.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct LogEntry {
    pub index: u64,
    pub term: u64,
    /// A configuration change; otherwise a normal entry.
    pub is_conf_change: bool,
    pub data: Bytes,
}

/// Why a state was refused. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The file does not follow bbolt's format, or cannot be read.
    #[error("{file}: {source}")]
    Read {
        /// The file.
        file: String,
        /// Where, and what is wrong there.
        source: ReadError,
    },
    /// Something in it does not mean anything.
    #[error("{file}: bucket {bucket}, byte {offset} of the file: {what}")]
    Content {
        /// The file.
        file: String,
        /// The bucket.
        bucket: &'static str,
        /// Byte in the file where the item's table entry stands; 0 if the bucket as a whole is meant.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The v2 store that came with it cannot be understood.
    #[error("the v2 store that belongs to {file}: {what}")]
    V2 {
        /// The file.
        file: String,
        /// What is wrong.
        what: String,
    },
    /// It is sound, but not what this member can go on from.
    #[error("{file}: {what}")]
    Unfit {
        /// The file.
        file: String,
        /// Why.
        what: String,
    },
}

/// Why a state was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// It is not good; the old state is untouched, and the member may go on.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    /// This member's own disk failed; it must stop.
    #[error("{0}")]
    Fatal(#[from] Fatal),
}

impl From<StoreError> for InstallError {
    fn from(error: StoreError) -> Self {
        Self::Fatal(error.into())
    }
}

/// The small buckets and the tables that they become.
const TABLES: [(&str, Table); 8] = [
    ("lease", Table::Lease),
    ("alarm", Table::Alarm),
    ("cluster", Table::Cluster),
    ("members", Table::Members),
    ("members_removed", Table::MembersRemoved),
    ("auth", Table::Auth),
    ("authUsers", Table::AuthUsers),
    ("authRoles", Table::AuthRoles),
];

/// What is wrong with an item.
enum Fault {
    /// It means nothing.
    Content(String),
    /// It could not be stored.
    Store(StoreError),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Corrupt { what, .. } => Self::Content(what),
            error => Self::Store(error),
        }
    }
}

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Self::Content(what)
    }
}

/// An etcd's bbolt file.
struct Db<'a> {
    name: &'a str,
    reader: bolt::Reader<Arc<dyn disk::File>>,
}

impl<'a> Db<'a> {
    fn open(incoming: &Incoming<'a>) -> Result<Self, Refusal> {
        let opened = bolt::Reader::open(incoming.file.clone());
        let reader = opened.map_err(|source| Refusal::Read { file: incoming.name.to_owned(), source })?;
        Ok(Self { name: incoming.name, reader })
    }

    /// Visits the items of a bucket in order. One that is missing is empty.
    fn each(
        &self,
        bucket: &'static str,
        visit: &mut dyn FnMut(&Bytes, &Bytes) -> Result<(), Fault>,
    ) -> Result<(), InstallError> {
        let unreadable = |source| Refusal::Read { file: self.name.to_owned(), source };
        let Some(found) = self.reader.bucket(bucket.as_bytes()).map_err(unreadable)? else { return Ok(()) };
        let mut items = found.items();
        while let Some(item) = items.next() {
            let (key, value) = item.map_err(unreadable)?;
            match visit(&key, &value) {
                Ok(()) => {}
                Err(Fault::Content(what)) => {
                    let (file, offset) = (self.name.to_owned(), items.offset());
                    let what = format!("key {}: {what}", key.escape_ascii());
                    return Err(Refusal::Content { file, bucket, offset, what }.into());
                }
                Err(Fault::Store(error)) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn unfit(&self, what: String) -> Refusal {
        Refusal::Unfit { file: self.name.to_owned(), what }
    }
}

/// What stands in bucket `meta`.
#[derive(Default)]
struct Meta {
    /// Entries up to this one are in the file.
    consistent_index: Option<u64>,
    /// The term of that entry; members up to 3.4 do not note it.
    term: Option<u64>,
    /// The last compaction that was begun; -1 = never. What it has left to do is done while the file is read.
    compacted: i64,
    /// The buckets count on the membership.
    buckets_count: bool,
}

impl Meta {
    fn read(db: &Db<'_>) -> Result<Self, InstallError> {
        let mut meta = Self { compacted: -1, ..Self::default() };
        db.each("meta", &mut |key, value| {
            let number = || {
                let bytes = <[u8; 8]>::try_from(value.as_ref());
                bytes.map(u64::from_be_bytes).map_err(|_| format!("{} bytes instead of 8", value.len()))
            };
            match key.as_ref() {
                b"consistent_index" => meta.consistent_index = Some(number()?),
                b"term" => meta.term = Some(number()?),
                b"scheduledCompactRev" | b"finishedCompactRev" => {
                    let (revision, _) = revision(value).ok_or_else(|| "not a revision".to_owned())?;
                    meta.compacted = meta.compacted.max(revision.main);
                }
                b"storageVersion" => meta.buckets_count = true,
                _ => {}
            }
            Ok(())
        })?;
        Ok(meta)
    }
}

/// Reads a key of bucket `key`: main, `_`, sub, and `t` for a tombstone.
fn revision(key: &[u8]) -> Option<(Revision, bool)> {
    let (main, rest) = key.split_first_chunk::<8>()?;
    let (sub, rest) = rest.strip_prefix(b"_")?.split_first_chunk::<8>()?;
    let deleted = match rest {
        [] => false,
        b"t" => true,
        _ => return None,
    };
    Some((Revision { main: i64::from_be_bytes(*main), sub: i64::from_be_bytes(*sub) }, deleted))
}

/// What the tables amount to in memory.
struct Tables {
    lessor: Lessor,
    cluster: Cluster,
    alarms: Alarms,
    policy: Policy,
    v2: V2,
}

/// Understands everything and puts it in a replacement of the writer's content. `log` holds the entries behind the v2
/// store that the file contains; `conf_state` is the voters' list, or `None` if it follows from the membership.
fn load<'w>(
    writer: &'w mut Writer,
    incoming: &Incoming<'_>,
    log: &[LogEntry],
    conf_state: Option<&raftpb::ConfState>,
    lessor: Lessor,
) -> Result<(Ready<'w>, Tables, Installed), InstallError> {
    let db = Db::open(incoming)?;
    let meta = Meta::read(&db)?;
    let Some(consistent_index) = meta.consistent_index else {
        return Err(db.unfit("it does not say which log entries it holds: not the file of an etcd".into()).into());
    };
    if consistent_index < incoming.index {
        let what = format!("it holds log entries up to {consistent_index}, but should up to {}", incoming.index);
        return Err(db.unfit(what).into());
    }

    let mut replacement = writer.replace()?;
    let mut cluster = Cluster::default();
    for (bucket, table) in TABLES {
        let is_membership = matches!(table, Table::Cluster | Table::Members | Table::MembersRemoved);
        db.each(bucket, &mut |key, value| {
            if is_membership {
                return Ok(cluster.restore(table, key, value)?);
            }
            if table == Table::Lease {
                lessor.restore(&Message::decode(value.clone()).map_err(|error: prost::DecodeError| error.to_string())?);
            }
            Ok(replacement.row(table, key, value)?)
        })?;
    }
    let v2 = |what| Refusal::V2 { file: incoming.name.to_owned(), what };
    let tree = match incoming.v2_json {
        [] if incoming.index == 0 && !log.is_empty() => Some(V2::default()),
        [] => None,
        json => Some(V2::from_json(json).map_err(v2)?),
    };
    let has_v2_keys = match incoming.v2_json {
        [] => {
            // The log says all of it from the first entry on.
            if !meta.buckets_count && incoming.index == 0 && !log.is_empty() {
                cluster = Cluster { downgrade: cluster.downgrade, ..Cluster::default() };
            }
            false
        }
        json => {
            let tree = v2_snapshot::read(json).map_err(v2)?;
            // Both are of the same entry. If they name different members, the log is that of another cluster: somebody has
            // restored a snapshot who does not know the buckets (the tool of 3.4).
            let is_restored =
                consistent_index == incoming.index && !cluster.members.keys().eq(tree.cluster.members.keys());
            if !meta.buckets_count || is_restored {
                let known = std::mem::replace(&mut cluster.members, tree.cluster.members);
                cluster = Cluster { members: cluster.members, downgrade: cluster.downgrade, ..tree.cluster };
                // A founder's name stands in the change that made it a member. The tree has it only once the founder has told
                // it, and whoever applied that change knows it before.
                for member in cluster.members.values_mut().filter(|member| member.name.is_empty()) {
                    if let Some(known) = known.get(&member.id) {
                        member.name.clone_from(&known.name);
                    }
                }
            }
            tree.has_keys
        }
    };
    let behind = log.iter().filter(|entry| entry.index > incoming.index && entry.index <= consistent_index);
    let mut term = if consistent_index == incoming.index { Some(incoming.term) } else { meta.term };
    let mut next = incoming.index;
    for entry in behind {
        next += 1;
        if entry.index != next {
            return Err(db.unfit(format!("log entry {next} is missing, which it goes on from")).into());
        }
        if entry.index == consistent_index {
            term = Some(entry.term);
        }
        // Where the buckets count, the cluster is not touched.
        let mut spare = Cluster::default();
        let cluster = if meta.buckets_count { &mut spare } else { &mut cluster };
        replay(cluster, tree.as_ref(), entry).map_err(|what| Fatal::BadEntry { index: entry.index, what })?;
    }
    if !meta.buckets_count && next < consistent_index && conf_state.is_none() {
        return Err(db.unfit(format!("log entry {} is missing, which it contains", next + 1)).into());
    }
    let Some(term) = term else {
        return Err(db.unfit(format!("the term of log entry {consistent_index} is not on record")).into());
    };
    let v2 = tree.unwrap_or_else(|| V2::of_cluster(&cluster));
    for (key, value) in v2.all_rows() {
        replacement.row(Table::V2, &key, &value.unwrap_or_default())?;
    }
    for (table, key, value) in cluster.rows() {
        replacement.row(table, &key, &value.unwrap_or_default())?;
    }
    db.each("key", &mut |key, value| {
        let (revision, deleted) = revision(key).ok_or_else(|| "not a revision".to_owned())?;
        Ok(replacement.version(revision, deleted, value)?)
    })?;

    let conf_state = conf_state.cloned().unwrap_or_else(|| cluster.conf_state());
    let mark = Mark { index: consistent_index, term, conf_state: conf_state.encode_to_vec().into() };
    let ready = replacement.finish(1, meta.compacted, mark.clone())?;
    let refused = |fatal| match fatal {
        Fatal::Store(error) => InstallError::from(error),
        other => db.unfit(other.to_string()).into(),
    };
    apply::attach_keys(ready.store(), &lessor)?;
    let alarms = Alarms::restore(ready.store()).map_err(refused)?;
    let policy = Policy::restore(ready.store()).map_err(refused)?;
    let (revision, compact_revision) = (ready.store().revision(), ready.store().compact_revision());
    let installed = Installed { mark, revision, compact_revision, has_v2_keys };
    Ok((ready, Tables { lessor, cluster, alarms, policy, v2 }, installed))
}

/// What a log entry does to the membership and the v2 tree, and nothing else.
fn replay(cluster: &mut Cluster, tree: Option<&V2>, entry: &LogEntry) -> Result<(), String> {
    let mut touched = Touched::default();
    if entry.is_conf_change {
        let change = raftpb::ConfChange::decode(entry.data.clone()).map_err(|error| error.to_string())?;
        let Ok(planned) = cluster.plan(&change)? else { return Ok(()) };
        cluster.carry_out(&planned);
        if let Some(tree) = tree {
            let member = |id| cluster.members.get(id);
            match &planned {
                Planned::Add(member) => tree.add_member(member, &mut touched),
                Planned::Promote(id) | Planned::Update(Member { id, .. }) => {
                    member(id).inspect(|member| tree.update_member(member, &mut touched));
                }
                Planned::Remove(id) => tree.remove_member(*id, &mut touched),
            }
        }
        return Ok(());
    }
    let (version, attributes) = match apply::decode(entry.index, &entry.data).map_err(|error| error.to_string())? {
        Entry::Empty => (None, None),
        Entry::V2(request) => match apply::v2_fact(&request) {
            Some(V2Fact::Version(version)) => (Some(version), None),
            Some(V2Fact::Attributes(id, attributes)) => (None, attributes.ok().map(|attributes| (id, attributes))),
            None => {
                // What becomes of it was its client's business.
                let _outcome = tree.map(|tree| tree.apply(&request, &mut touched));
                (None, None)
            }
        },
        Entry::V3(request) => {
            let version = request.cluster_version_set.map(|ClusterVersionSetRequest { ver, .. }| ver);
            let attributes = request.cluster_member_attr_set.map(|set| {
                let attributes = set.member_attributes.unwrap_or_default();
                (set.member_id, Attributes { name: attributes.name, client_urls: attributes.client_urls })
            });
            (version, attributes)
        }
    };
    if let Some(version) = version {
        cluster.set_version(&version);
        tree.inspect(|tree| tree.set_version(&version, &mut touched));
    }
    if let Some((id, attributes)) = attributes
        && cluster.set_attributes(id, attributes.clone()).is_some()
    {
        tree.inspect(|tree| tree.set_attributes(id, &attributes, &mut touched));
    }
    Ok(())
}

/// Fills an empty store from the data directory of an etcd. `log` holds the entries behind `incoming.index` up to, at
/// least, the last one that the file contains: up to 3.5 they are needed to bring the membership to where the keys are.
/// Afterwards [`State::open`] finds a member at the mark that is returned.
pub fn import_etcd_db(
    writer: &mut Writer,
    incoming: &Incoming<'_>,
    log: &[LogEntry],
) -> Result<Installed, InstallError> {
    let (ready, _, installed) = load(writer, incoming, log, None, Lessor::new(0))?;
    ready.install(|switch| switch())?;
    Ok(installed)
}

impl State {
    /// Takes over another member's state, which is ahead of this one's. Readers and watchers go on: whoever reads at this
    /// moment sees the old state or the new one, watchers are given what happened in between, or are cancelled if it
    /// has been compacted. After a power cut at any moment the next start finds the old state or the new one.
    ///
    /// `conf_state` is the membership at `incoming.index`. The log goes on behind [`Installed::mark`].
    pub fn install(
        &mut self,
        incoming: &Incoming<'_>,
        conf_state: &raftpb::ConfState,
    ) -> Result<Installed, InstallError> {
        let unfit = |what| Refusal::Unfit { file: incoming.name.to_owned(), what };
        let shared = &self.shared;
        if incoming.index <= self.applied_index {
            let what = format!("it is of log entry {}, and {} has been applied", incoming.index, self.applied_index);
            return Err(unfit(what).into());
        }
        let before = shared.store.revision();
        let lessor = shared.lessor.another();
        let (ready, tables, installed) = load(&mut self.writer, incoming, &[], Some(conf_state), lessor)?;
        if installed.revision < before {
            let what = format!("it is of revision {}, but a later log entry than {before} here", installed.revision);
            return Err(unfit(what).into());
        }
        ready.install(|switch| {
            // Held together, so that nobody finds one of them changed and the next one not yet.
            let (mut cluster, mut alarms) = (shared.cluster.write(), shared.alarms.write());
            shared.feed.restart(|| {
                switch();
                shared.store.view()
            });
            if !mutant::on(mutant::InstallForgetsLeases) {
                shared.lessor.adopt(tables.lessor);
            }
            (*cluster, *alarms) = (tables.cluster, tables.alarms);
            shared.auth.put_in_force(tables.policy);
            if !mutant::on(mutant::InstallForgetsV2) {
                shared.v2.replace(tables.v2, installed.mark.index);
            }
        })?;
        self.advance(installed.mark.index, installed.mark.term);
        self.conf_state = installed.mark.conf_state.clone();
        Ok(installed)
    }
}
