//! `snapshot save`: the whole state of a member in a file.

use super::Command;
use crate::call::{Call, Failure, exit};
use crate::{go, terminal};
use cli::Group;
use client::Client;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

/// The file ends with the SHA-256 sum of everything before.
const SUM_BYTES: usize = 32;

pub const SNAPSHOT: Command = Command {
    name: "snapshot",
    group: Group::Maintenance,
    about: "Manages etcd node snapshots",
    commands: &[Command {
        name: "save",
        usage: "<filename>",
        about: "Stores an etcd node backend snapshot to a given file",
        example: "etcdctl --endpoints=10.0.0.1:2379 snapshot save backup.db",
        run: Some(save),
        ..Command::NONE
    }],
    ..Command::NONE
};

fn save(call: &Call) -> Result<(), Failure> {
    let [path] = call.args()[..] else {
        return Err(Failure::arguments("snapshot save expects one argument <filename>"));
    };
    let interrupted = |text: String| Failure::new(exit::INTERRUPTED, text);
    let version = call.block_on(async {
        let client = call.patient_client().await?;
        if let [_, _, ..] = client.endpoints() {
            return Err(interrupted(format!(
                "snapshot must be requested to one selected node, not multiple [{}]",
                client.endpoints().join(" ")
            )));
        }
        let part = format!("{path}.part");
        let fetched = match call.typed_timeout() {
            None => fetch(&client, &part).await,
            Some(timeout) => match tokio::time::timeout(timeout, fetch(&client, &part)).await {
                Ok(fetched) => fetched,
                Err(_) => Err("context deadline exceeded".to_owned()),
            },
        };
        let version = match fetched {
            Ok(version) => version,
            Err(reason) => {
                // Half a snapshot is of no use; what cannot be removed was perhaps never made.
                let _gone = std::fs::remove_file(&part);
                return Err(interrupted(reason));
            }
        };
        put_in_place(&part, path)
            .map_err(|error| interrupted(format!("could not rename {part} to {path} ({error})")))?;
        terminal::log("info", "saved", &[("path", path)]);
        Ok(version)
    })?;
    terminal::say(&format!("Snapshot saved at {path}"));
    if !version.is_empty() {
        terminal::say(&format!("Server version {version}"));
    }
    Ok(())
}

/// Writes the snapshot to `path`, checks its sum and syncs it. Gives the version that the server names.
async fn fetch(client: &Client, path: &str) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("could not write {path} ({error})");
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let file = file.map_err(|error| format!("could not open {path} ({})", terminal::open_error(path, &error)))?;
    terminal::log("info", "created temporary db file", &[("path", path)]);
    let begun = Instant::now();
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut tail = SumTail::default();
    let mut version = String::new();
    let mut size: u64 = 0;
    let mut answers = client.snapshot().await.map_err(|error| error.to_string())?;
    terminal::log("info", "fetching snapshot", &[("endpoint", &client.endpoints().join(","))]);
    while let Some(answer) = answers.next().await.map_err(|error| error.to_string())? {
        if !answer.version.is_empty() {
            version = answer.version;
        }
        out.write_all(&answer.blob).map_err(failed)?;
        tail.take(&answer.blob);
        size += answer.blob.len() as u64;
        terminal::progress("snapshot", size, size + answer.remaining_bytes, &go::human_bytes);
    }
    terminal::end_progress();
    if !tail.ends_well() {
        return Err(format!(
            "sha256 checksum not found or wrong [bytes: {size}]: the snapshot is damaged or incomplete"
        ));
    }
    out.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)?;
    let fields = [("size", go::human_bytes(size)), ("took", go::duration(begun.elapsed()))];
    terminal::log("info", "fetched snapshot", &[(fields[0].0, &fields[0].1), (fields[1].0, &fields[1].1)]);
    Ok(version)
}

/// Gives the file its name, and makes that last.
fn put_in_place(part: &str, path: &str) -> std::io::Result<()> {
    std::fs::rename(part, path)?;
    let folder = Path::new(path).parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Sums everything but the last 32 bytes, which are the sum.
#[derive(Default)]
struct SumTail {
    sum: Sha256,
    held: Vec<u8>,
}

impl SumTail {
    fn take(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        let summed = self.held.len().saturating_sub(SUM_BYTES);
        self.sum.update(&self.held[..summed]);
        self.held.drain(..summed);
    }

    fn ends_well(self) -> bool {
        self.sum.finalize().as_slice() == self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_whole_only_with_the_right_sum_at_its_end() {
        let whole = |pieces: &[&[u8]]| {
            let mut tail = SumTail::default();
            pieces.iter().for_each(|piece| tail.take(piece));
            tail.ends_well()
        };
        let sum = Sha256::digest(b"content");
        assert!(whole(&[b"con", b"tent", &sum[..5], &sum[5..]]));
        assert!(!whole(&[b"content", &sum[..31]]));
        assert!(!whole(&[b"c0ntent", &sum]));
        assert!(!whole(&[]));
    }
}
