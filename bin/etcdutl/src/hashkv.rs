//! `hashkv`: the sum over the history of keys by which members are compared.

use crate::command;
use crate::data_dir::DataDir;
use crate::db::{Db, DbError, Met};
use bytes::Bytes;
use cli::flags::Parsed;
use cli::json::Object;
use cli::table::Table;
use cli::{Failure, Format, exit, terminal};
use std::collections::HashMap;
use std::path::Path;
use store::Revision;

#[derive(Debug, PartialEq, Eq)]
struct HashKv {
    hash: u32,
    revision: i64,
    /// -1 if there was never one.
    compact_revision: i64,
}

/// Why there is no sum.
#[derive(Debug, thiserror::Error)]
enum HashError {
    #[error("{0}")]
    Db(#[from] DbError),
    #[error("mvcc: required revision has been compacted")]
    Compacted,
    #[error("mvcc: required revision is a future revision")]
    Future,
}

pub fn run(call: &Parsed) -> Result<(), Failure> {
    let [path] = &call.args[..] else {
        return Err(Failure::new(exit::ERROR, format!("accepts 1 arg(s), received {}", call.args.len())));
    };
    let format = command::format(call)?;
    let (at, patience) = (call.number("rev"), command::lock_timeout(call));
    let path = Path::new(path);
    let found = match DataDir::meant_by(path) {
        Some(dir) if dir.is_ours() => {
            let found = dir.open(patience)?.reader.hash_kv(at)?;
            HashKv { hash: found.hash, revision: found.hash_revision, compact_revision: found.compact_revision }
        }
        Some(dir) => hash_kv(&Db::open(&dir.db(), patience)?, at)?,
        None => hash_kv(&Db::open(path, patience)?, at)?,
    };
    found.show(format)
}

/// The sum over an etcd's file. Members that are at different points of the same compaction agree: of what lies at or
/// below it, only those versions count that it keeps.
fn hash_kv(db: &Db, at: i64) -> Result<HashKv, HashError> {
    let compacted = db.compact_revision()?;
    let mut newest: HashMap<Vec<u8>, (Revision, bool)> = HashMap::new();
    // An empty history is at revision 1, and a compaction moves it on.
    let mut current = compacted.max(1);
    each_version(db, &mut |revision, key, _, value| {
        current = current.max(revision.main);
        if at > 0 && revision.main > at {
            return Ok(());
        }
        let version = db.version(key, value)?;
        match newest.get_mut(version.key.as_ref()) {
            Some(known) => *known = (revision, version.is_tombstone),
            None => drop(newest.insert(version.key.to_vec(), (revision, version.is_tombstone))),
        }
        Ok(())
    })?;
    if at > 0 && at < compacted {
        return Err(HashError::Compacted);
    }
    if at > current {
        return Err(HashError::Future);
    }
    let at = if at <= 0 { current } else { at };
    let anything_lives = newest.values().any(|(_, is_tombstone)| !is_tombstone);
    // Without anything that a compaction at `at` would keep, etcd leaves nothing out but what the last one removes.
    let mut kept_by_last: HashMap<Vec<u8>, (Revision, bool)> = HashMap::new();
    if !anything_lives {
        each_version(db, &mut |revision, key, _, value| {
            if revision.main <= compacted {
                let version = db.version(key, value)?;
                kept_by_last.insert(version.key.to_vec(), (revision, version.is_tombstone));
            }
            Ok(())
        })?;
    }
    let kept = if anything_lives { &newest } else { &kept_by_last };
    let mut hash = crc32c::crc32c(b"key");
    each_version(db, &mut |revision, key, is_tombstone, value| {
        if revision.main > at {
            return Ok(());
        }
        if revision.main <= compacted {
            let version = db.version(key, value)?;
            let counts = !is_tombstone && kept.get(version.key.as_ref()) == Some(&(revision, false));
            if !counts {
                return Ok(());
            }
        }
        hash = crc32c::crc32c_append(hash, key);
        hash = crc32c::crc32c_append(hash, value);
        Ok(())
    })?;
    Ok(HashKv { hash, revision: at, compact_revision: compacted })
}

type Visit<'a> = dyn FnMut(Revision, &Bytes, bool, &Bytes) -> Result<(), DbError> + 'a;

fn each_version(db: &Db, visit: &mut Visit<'_>) -> Result<(), DbError> {
    db.walk(&mut |met| match met {
        Met::Row(bucket, key, value) if bucket.as_ref() == b"key" => {
            let version = db.version(key, value)?;
            visit(version.revision, key, version.is_tombstone, value)
        }
        _ => Ok(()),
    })
}

impl HashKv {
    fn cells(&self) -> Vec<String> {
        vec![self.hash.to_string(), self.revision.to_string(), self.compact_revision.to_string()]
    }

    fn show(&self, format: Format) -> Result<(), Failure> {
        let Self { hash, revision, compact_revision } = self;
        match format {
            Format::Simple => terminal::say(&self.cells().join(", ")),
            Format::Fields => terminal::say(&format!(
                "\"Hash\" : {hash}\n\"Hash revision\" : {revision}\n\"Compact revision\" : {compact_revision}"
            )),
            Format::Json => {
                let mut out = String::new();
                let mut object = Object::begin(&mut out);
                object.number("hash", *hash);
                object.number("hashRevision", *revision);
                object.number("compactRevision", *compact_revision);
                object.end();
                terminal::say(&out);
            }
            Format::Table => {
                let head = vec!["HASH", "HASH REVISION", "COMPACT REVISION"];
                terminal::print(Table { head, rows: vec![self.cells()] }.draw().as_bytes());
            }
            Format::Protobuf => return Err(command::unsupported(format)),
        }
        Ok(())
    }
}
