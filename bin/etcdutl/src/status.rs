//! `snapshot status`: what is in a file.

use crate::command;
use crate::db::{Db, DbError, Met};
use bolt::{Hash, HashScope};
use cli::flags::Parsed;
use cli::json::Object;
use cli::table::Table;
use cli::{Failure, Format, exit, go, terminal};
use std::collections::HashSet;
use std::path::Path;

#[derive(Debug, Default, PartialEq, Eq)]
struct Status {
    hash: u32,
    revision: i64,
    /// Keys that live at that revision.
    keys: usize,
    size: u64,
    /// Of the storage; empty before 3.6.
    version: String,
}

pub fn run(call: &Parsed) -> Result<(), Failure> {
    let [path] = &call.args[..] else {
        return Err(Failure::arguments("snapshot status requires exactly one argument"));
    };
    let format = command::format(call)?;
    let path = Path::new(path);
    if let Err(error) = std::fs::metadata(path) {
        let text = terminal::open_error(&path.display().to_string(), &error);
        return Err(Failure::new(exit::ERROR, text.replacen("open ", "stat ", 1)));
    }
    let db = Db::open(path, command::lock_timeout(call))?;
    let status = status(&db).map_err(|error| match error {
        DbError::Format { .. } => {
            Failure::new(exit::ERROR, format!("snapshot file integrity check failed. 1 errors found.\n{error}"))
        }
        other => other.into(),
    })?;
    status.show(format)
}

fn status(db: &Db) -> Result<Status, DbError> {
    let mut status = Status { size: db.reader.size_bytes(), ..Status::default() };
    if let Some(version) = db.meta("storageVersion")? {
        status.version = String::from_utf8_lossy(&version).into_owned();
    }
    let mut hash = Hash::new(HashScope::File);
    let mut live = HashSet::new();
    db.walk(&mut |met| {
        match met {
            Met::Bucket(name) => hash.bucket(name),
            Met::Row(bucket, key, value) => {
                hash.item(key, value);
                if bucket.as_ref() == b"key" {
                    let version = db.version(key, value)?;
                    status.revision = version.revision.main;
                    if version.is_tombstone {
                        live.remove(version.key.as_ref());
                    } else if !live.contains(version.key.as_ref()) {
                        // A copy: as read it shares the memory of its page.
                        live.insert(version.key.to_vec());
                    }
                }
            }
        }
        Ok::<_, DbError>(())
    })?;
    (status.hash, status.keys) = (hash.finish(), live.len());
    Ok(status)
}

impl Status {
    fn cells(&self) -> Vec<String> {
        vec![
            format!("{:x}", self.hash),
            self.revision.to_string(),
            self.keys.to_string(),
            go::human_bytes(self.size),
            self.version.clone(),
        ]
    }

    fn show(&self, format: Format) -> Result<(), Failure> {
        let Self { hash, revision, keys, size, version } = self;
        match format {
            Format::Simple => terminal::say(&self.cells().join(", ")),
            Format::Fields => terminal::say(&format!(
                "\"Hash\" : {hash}\n\"Revision\" : {revision}\n\"Keys\" : {keys}\n\"Size\" : {size}\n\"Version\" : {version}"
            )),
            Format::Json => {
                let mut out = String::new();
                let mut object = Object::begin(&mut out);
                object.number("hash", *hash);
                object.number("revision", *revision);
                object.number("totalKey", *keys as u64);
                object.number("totalSize", *size);
                object.text("version", version);
                object.end();
                terminal::say(&out);
            }
            Format::Table => {
                let head = vec!["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE", "VERSION"];
                terminal::print(Table { head, rows: vec![self.cells()] }.draw().as_bytes());
            }
            Format::Protobuf => return Err(command::unsupported(format)),
        }
        Ok(())
    }
}
