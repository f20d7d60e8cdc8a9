//! `make-mirror`: keeps a copy of keys in another cluster.

use super::Command;
use crate::call::{Call, Failure, exit, read_credentials, tls_files};
use crate::flags::{Flag, Kind, number, switch, text};
use crate::raw;
use crate::terminal;
use bytes::Bytes;
use cli::Group;
use client::{Client, Delete, Get, Put, Txn};
use proto::etcdserverpb::{RangeRequest, WatchCreateRequest};
use proto::mvccpb::{Event, KeyValue, event::EventType};
use std::cell::Cell;
use std::time::Duration;

/// How many keys are read at a time.
const BATCH: i64 = 1000;
/// How often the number of mirrored keys is shown.
const REPORT: Duration = Duration::from_secs(30);

pub const MAKE_MIRROR: Command = Command {
    name: "make-mirror",
    group: Group::Utility,
    usage: "[options] <destination>",
    about: "Makes a mirror at the destination etcd cluster",
    example: "etcdctl make-mirror --prefix /app/ 10.0.1.1:2379",
    flags: &[
        text("prefix", "", "Mirror keys with this prefix."),
        number("rev", "0", "Revision to begin at, without copying what is there; 0 copies everything first."),
        number("max-txn-ops", "128", "Largest number of operations in a transaction."),
        text("dest-prefix", "", "Prefix at the destination, in place of --prefix."),
        switch("no-dest-prefix", "Take the prefix away at the destination."),
        text("dest-cert", "", "This client's certificate for the destination."),
        text("dest-key", "", "The key of that certificate."),
        text("dest-cacert", "", "What the destination's certificate is checked against."),
        Flag {
            name: "dest-insecure-transport",
            short: None,
            kind: Kind::Switch,
            default: "true",
            help: "Speak plain text to the destination.",
        },
        text("dest-user", "", "username[:password] at the destination."),
        text("dest-password", "", "Password at the destination."),
    ],
    run: Some(make_mirror),
    ..Command::NONE
};

/// What keys are called at the destination.
struct Renaming {
    from: Bytes,
    to: Bytes,
}

impl Renaming {
    fn apply(&self, key: &Bytes) -> Bytes {
        if self.from == self.to {
            return key.clone();
        }
        [&self.to, key.strip_prefix(&self.from[..]).unwrap_or(key)].concat().into()
    }
}

fn make_mirror(call: &Call) -> Result<(), Failure> {
    let [destination] = call.args()[..] else {
        return Err(Failure::arguments("make-mirror takes one destination argument"));
    };
    let flags = &call.parsed;
    let (prefix, new_prefix) = (flags.text("prefix"), flags.text("dest-prefix"));
    let no_prefix = flags.is("no-dest-prefix");
    if no_prefix && !new_prefix.is_empty() {
        return Err(Failure::arguments(
            "`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one",
        ));
    }
    let to = if no_prefix {
        ""
    } else if new_prefix.is_empty() {
        prefix
    } else {
        new_prefix
    };
    let renaming = Renaming { from: raw::bytes(prefix), to: raw::bytes(to) };
    let largest_txn = usize::try_from(flags.number("max-txn-ops")).ok().filter(|most| *most > 0).unwrap_or(usize::MAX);
    let credentials = read_credentials(flags.text("dest-user"), flags.text("dest-password"))?;
    let tls = tls_files(flags, "dest-");
    let tls = Some(tls).filter(|tls| *tls != client::Tls::default() || !flags.is("dest-insecure-transport"));
    let endpoints = destination.split(',').map(|endpoint| endpoint.trim().to_owned()).collect();
    call.block_on(async {
        let source = call.patient_client().await?;
        let target = call.client_of(|config| client::Config { endpoints, tls, credentials, ..config }).await?;
        let mirror = Mirror { source, target, renaming, largest_txn, done: Cell::new(0) };
        tokio::select! {
            outcome = mirror.run(prefix, flags.number("rev")) => outcome,
            never = mirror.report() => match never {},
        }
    })
}

struct Mirror {
    source: Client,
    target: Client,
    renaming: Renaming,
    largest_txn: usize,
    done: Cell<u64>,
}

impl Mirror {
    /// Shows the number of mirrored keys now and then.
    async fn report(&self) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(REPORT).await;
            terminal::say(&self.done.get().to_string());
        }
    }

    fn count(&self, keys: usize) {
        self.done.set(self.done.get() + keys as u64);
    }

    /// Copies what is there, then follows what happens. Ends only with an error.
    async fn run(&self, prefix: &str, from_revision: i64) -> Result<(), Failure> {
        let range: RangeRequest = Get::prefix(raw::bytes(prefix)).into();
        let next = if from_revision > 0 { from_revision } else { self.copy(&range).await? + 1 };
        let request = WatchCreateRequest {
            key: range.key,
            range_end: range.range_end,
            start_revision: next,
            ..Default::default()
        };
        let mut watcher = self.source.watch(request, true);
        loop {
            let events = watcher.next().await?.events;
            // One revision is one transaction, so that the copy is never seen half changed.
            let same_revision = |a: &Event, b: &Event| revision(a) == revision(b);
            for events in events.chunk_by(same_revision) {
                self.repeat(events).await?;
            }
        }
    }

    /// Copies all keys, as of one revision, and gives that revision.
    async fn copy(&self, range: &RangeRequest) -> Result<i64, Failure> {
        let mut request = RangeRequest { limit: BATCH, ..range.clone() };
        loop {
            let answer = self.source.range(request.clone()).await?;
            if request.revision == 0 {
                request.revision = answer.header.as_ref().map_or(0, |header| header.revision);
            }
            for kv in &answer.kvs {
                self.target.put(self.put(kv)).await?;
                self.count(1);
                terminal::progress("mirror", self.done.get(), 0, &|keys| format!("{keys} keys"));
            }
            match answer.kvs.last() {
                Some(last) if answer.more => request.key = [&last.key[..], b"\0"].concat().into(),
                _ => {
                    terminal::end_progress();
                    return Ok(request.revision);
                }
            }
        }
    }

    /// Repeats events of one revision at the destination.
    async fn repeat(&self, events: &[Event]) -> Result<(), Failure> {
        for events in events.chunks(self.largest_txn) {
            let mut transaction = Txn::new();
            for event in events {
                let Some(kv) = &event.kv else { continue };
                transaction = match event.r#type() {
                    EventType::Put => transaction.then(self.put(kv)),
                    EventType::Delete => transaction.then(Delete::key(self.renaming.apply(&kv.key))),
                };
            }
            self.target.txn(transaction).await.map_err(|error| Failure::new(exit::ERROR, error))?;
            self.count(events.len());
        }
        Ok(())
    }

    /// Leases are of their cluster, so they are not copied.
    fn put(&self, kv: &KeyValue) -> Put {
        Put::new(self.renaming.apply(&kv.key), kv.value.clone())
    }
}

fn revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_kept_replaced_or_taken_away() {
        let rename = |from: &str, to: &str| {
            let renaming = Renaming { from: raw::bytes(from), to: raw::bytes(to) };
            renaming.apply(&Bytes::from_static(b"/a/k"))
        };
        assert_eq!(rename("/a/", "/a/"), "/a/k");
        assert_eq!(rename("/a/", "/b/"), "/b/k");
        assert_eq!(rename("/a/", ""), "k");
        assert_eq!(rename("", "/b"), "/b/a/k");
    }
}
