//! `defrag`: gives the space of an etcd's deleted pages back to the file system.

use crate::copy::{Changes, CopyError, copy};
use crate::data_dir::DataDir;
use crate::db::Db;
use crate::{command, log};
use cli::flags::Parsed;
use cli::{Failure, exit, go};
use std::fs::File;
use std::path::Path;
use std::time::Instant;

pub fn run(call: &Parsed) -> Result<(), Failure> {
    let data_dir = call.text("data-dir");
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(exit::ERROR, format!("Failed to defragment etcd data[{data_dir}] ({error})"))
    };
    let dir = DataDir::new(data_dir);
    if dir.is_ours() {
        log(
            "info",
            "nothing to do: this store gives space back by itself while its member runs",
            &[("path", data_dir)],
        );
        return Ok(());
    }
    let path = dir.db();
    let db = Db::open(&path, command::lock_timeout(call)).map_err(|error| failed(&error))?;
    let begun = Instant::now();
    let before = db.reader.size_bytes();
    log(
        "info",
        "defragmenting",
        &[("path", &path.display().to_string()), ("current-db-size", &go::human_bytes(before))],
    );
    replace(&db, &Changes::default(), &path, "defrag").map_err(|error| failed(&error))?;
    let after = std::fs::metadata(&path).map_err(|error| failed(&error))?.len();
    log(
        "info",
        "finished defragmenting directory",
        &[
            ("path", &path.display().to_string()),
            ("current-db-size", &go::human_bytes(after)),
            ("took", &go::duration(begun.elapsed())),
        ],
    );
    Ok(())
}

/// Puts a changed copy in the place of the file at `path`. A power cut at any moment leaves the one or the other.
pub fn replace(db: &Db, changes: &Changes, path: &Path, title: &str) -> Result<(), CopyError> {
    let io = |source| CopyError::Io { path: path.to_owned(), source };
    let copied = path.with_file_name("db.tmp.etcdutl");
    match std::fs::remove_file(&copied) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    if let Err(error) = copy(db, changes, &copied, title) {
        // Half a copy is of no use; the original stands.
        let _gone = std::fs::remove_file(&copied);
        return Err(error);
    }
    std::fs::rename(&copied, path).map_err(io)?;
    File::open(path.parent().unwrap_or(Path::new("."))).and_then(|dir| dir.sync_all()).map_err(io)
}
