//! The same random operations on two servers at once: every answer has to be equal.
//!
//! One server is the reference, a real etcd; the other is under test. What changes the store is done one operation at
//! a time, on both servers at once; reads between two changes are sent together. Watches run beside: some over the
//! whole run, some over a stretch of it, and groups of them from the past while nothing changes.
//!
//! The same seed gives the same operations as long as the answers are the same, so a difference can be found again.

mod auth;
mod exceptions;
mod generate;
mod operation;
mod v2;
mod watching;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{HashKvRequest, RangeRequest, WatchCreateRequest};

pub use auth::{AuthReport, AuthSettings, run as run_auth};
pub use exceptions::{Exception, Pair, TABLE, Version};
pub use operation::{Answer, Operation};
pub use v2::{V2Report, V2Settings, run as run_v2};
pub use watching::{WatchStream, Watched};

use crate::harness::{Binary, Client, Options, ProcessError, Server, connect};
pub(crate) use exceptions::{forgive, make_comparable};
pub(crate) use generate::Generator;
use watching::{History, WatchFailure, WatchPair};

/// What to compare, and for how long.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many operations; watches and their parts count as well.
    pub operations: u64,
    /// Where the random operations start from.
    pub seed: u64,
    /// The server that is taken to be right.
    pub reference: Binary,
    /// The server under test.
    pub subject: Binary,
    /// For a test of this test: from this operation on, the first put reaches the subject with another value.
    pub plant_fault_at: Option<u64>,
    /// Print progress to stderr.
    pub verbose: bool,
}

/// What a comparison without a difference has covered.
#[derive(Debug, Default)]
pub struct Report {
    /// Operations done on each server.
    pub operations: u64,
    /// How many of each kind.
    pub kinds: BTreeMap<&'static str, u64>,
    /// How many ended in each error.
    pub errors: BTreeMap<String, u64>,
    /// How often each exception of [`TABLE`] was needed.
    pub exceptions: BTreeMap<&'static str, u64>,
    /// Events compared on watches, without the observers.
    pub events: usize,
    /// The store's last revision.
    pub revision: i64,
    /// The time it took.
    pub took: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} operations in {:.1?}, all answers equal", self.operations, self.took)?;
        writeln!(f, "last revision {}, {} watch events compared", self.revision, self.events)?;
        for (kind, times) in &self.kinds {
            writeln!(f, "  {times:>8}  {kind}")?;
        }
        writeln!(f, "errors, equal on both:")?;
        for (error, times) in &self.errors {
            writeln!(f, "  {times:>8}  {error}")?;
        }
        writeln!(f, "exceptions used:")?;
        for (name, times) in &self.exceptions {
            writeln!(f, "  {times:>8}  {name}")?;
        }
        Ok(())
    }
}

/// Why a comparison ended early.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A server did not start.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A server could not be reached.
    #[error("connect to {server}: {source}")]
    Connect {
        /// Which server.
        server: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// A server does not say which version it is.
    #[error("{server} does not tell its version")]
    NoVersion {
        /// Which server.
        server: String,
    },
    /// The two servers answered differently.
    #[error("{0}")]
    Difference(Box<Difference>),
}

/// Two answers that should have been equal.
#[derive(Debug)]
pub struct Difference {
    /// The seed, to see it again.
    pub seed: u64,
    /// The number of the operation.
    pub number: u64,
    /// What was done and what came back.
    pub what: String,
    /// The last changes before it, oldest first.
    pub changes: Vec<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: operation {}: {}", self.seed, self.number, self.what)?;
        writeln!(f, "the changes before it:")?;
        self.changes.iter().try_for_each(|change| writeln!(f, "  {change}"))
    }
}

/// How many changes a difference shows.
const CHANGES_SHOWN: usize = 8;

/// Starts both servers on fresh directories, compares, and stops them.
pub async fn run(settings: &Settings) -> Result<Report, Failure> {
    let options = Options { flags: vec!["--log-level=warn".into()], ..Options::default() };
    let servers = [Server::start(&settings.reference, options.clone())?, Server::start(&settings.subject, options)?];
    let outcome = Comparison::begin(settings, &servers).await?.run().await;
    if outcome.is_err() {
        for mut server in servers {
            if let Some(status) = server.ended()? {
                let log = server.log();
                eprintln!("{} has ended: {status}\n{log}", server.binary().name);
            }
        }
    }
    outcome
}

struct Comparison<'a> {
    settings: &'a Settings,
    clients: [Client; 2],
    pair: Pair,
    generator: Generator,
    /// A watch on every key since the beginning, on each server.
    observers: [WatchStream; 2],
    history: History,
    live: Option<Live>,
    report: Report,
    changes: VecDeque<String>,
    started: Instant,
}

/// Watches that are open while the store changes.
struct Live {
    watches: WatchPair,
    changes_left: usize,
}

impl<'a> Comparison<'a> {
    async fn begin(settings: &'a Settings, servers: &[Server; 2]) -> Result<Comparison<'a>, Failure> {
        let name = |server: &Server| server.binary().name.clone();
        let client = async |server: &Server| {
            let connected = connect(server.client_addr()).await;
            connected.map_err(|source| Failure::Connect { server: name(server), source })
        };
        let version = |server: &Server| {
            let version = server.version().as_deref().and_then(Version::parse);
            version.ok_or_else(|| Failure::NoVersion { server: name(server) })
        };
        let clients = [client(&servers[0]).await?, client(&servers[1]).await?];
        let pair = Pair { reference: version(&servers[0])?, subject: version(&servers[1])? };
        let observer = async |client: &Client| -> Result<WatchStream, String> {
            let everything = Bytes::from_static(b"\0");
            let request = WatchCreateRequest {
                key: everything.clone(),
                range_end: everything,
                start_revision: 2,
                ..WatchCreateRequest::default()
            };
            let mut observer = WatchStream::open(client).await?;
            observer.send(RequestUnion::CreateRequest(request))?;
            observer.receive_until("created observer", |stream| stream.watches.contains_key(&0)).await?;
            Ok(observer)
        };
        let observers = [observer(&clients[0]).await, observer(&clients[1]).await];
        let mut comparison = Comparison {
            settings,
            pair,
            generator: Generator::new(settings.seed),
            observers: match observers {
                [Ok(reference), Ok(subject)] => [reference, subject],
                [reference, subject] => {
                    let what = format!("observers: {:?}, {:?}", reference.err(), subject.err());
                    let difference = Difference { seed: settings.seed, number: 0, what, changes: Vec::new() };
                    return Err(Failure::Difference(Box::new(difference)));
                }
            },
            clients,
            history: History::default(),
            live: None,
            report: Report::default(),
            changes: VecDeque::new(),
            started: Instant::now(),
        };
        comparison.report.exceptions = TABLE
            .iter()
            .filter(|exception| comparison.pair.straddles(exception.since))
            .map(|exception| (exception.name, 0))
            .collect();
        Ok(comparison)
    }

    async fn run(mut self) -> Result<Report, Failure> {
        let mut next_watches = 100;
        let mut next_word = 0;
        while self.report.operations < self.settings.operations {
            self.live_watches().await?;
            self.change().await?;
            let reads = self.generator.between(0, 4);
            self.reads(reads).await?;
            if self.report.operations >= next_watches {
                next_watches = self.report.operations + 400;
                self.watches_from_the_past().await?;
            }
            if self.settings.verbose && self.report.operations >= next_word {
                let (operations, revision) = (self.report.operations, self.generator.revision);
                eprintln!("{operations} operations, revision {revision}, {:.0?}", self.started.elapsed());
                next_word = operations + 20_000;
            }
        }
        self.everything_at_the_end().await?;
        self.report.revision = self.generator.revision;
        self.report.took = self.started.elapsed();
        Ok(self.report)
    }

    /// One operation that may change the store, alone.
    async fn change(&mut self) -> Result<(), Failure> {
        // Compacting what a watch has still to read would race with it, on either server.
        let operation = if self.live.is_none() && self.generator.once_in(150) {
            self.observe().await?;
            self.generator.compaction()
        } else {
            self.generator.change()
        };
        let mut for_subject = operation.clone();
        if let (Some(number), Operation::Put(put)) = (self.settings.plant_fault_at, &mut for_subject)
            && self.report.operations >= number
            && !put.ignore_value
        {
            put.value = Bytes::from_static(b"planted");
        }
        let newer = Version(3, 7, 0);
        let answers = tokio::join!(
            operation.perform(&self.clients[0], self.pair.reference >= newer),
            for_subject.perform(&self.clients[1], self.pair.subject >= newer),
        );
        if self.changes.len() == CHANGES_SHOWN {
            self.changes.pop_front();
        }
        self.changes.push_back(format!("{operation:?}"));
        self.compare(operation, answers.into())?;
        if let Some(live) = &mut self.live {
            live.changes_left = live.changes_left.saturating_sub(1);
        }
        Ok(())
    }

    /// Some operations that change nothing, all under way at once.
    async fn reads(&mut self, count: usize) -> Result<(), Failure> {
        let newer = Version(3, 7, 0);
        let mut under_way = Vec::with_capacity(count);
        for _ in 0..count {
            let operation = self.generator.read();
            let perform = |client: &Client, version: Version| {
                let (operation, client) = (operation.clone(), client.clone());
                tokio::spawn(async move { operation.perform(&client, version >= newer).await })
            };
            let answers =
                [perform(&self.clients[0], self.pair.reference), perform(&self.clients[1], self.pair.subject)];
            under_way.push((operation, answers));
        }
        for (operation, [reference, subject]) in under_way {
            let answers = [reference.await, subject.await].map(|answer| answer.expect("no read panics"));
            self.compare(operation, answers)?;
        }
        Ok(())
    }

    /// Opens watches on what is to come, and closes them some changes later.
    async fn live_watches(&mut self) -> Result<(), Failure> {
        match self.live.take() {
            Some(live) if live.changes_left > 0 => self.live = Some(live),
            Some(live) => {
                self.observe().await?;
                let compacted = self.generator.compacted;
                let events = live.watches.finish(&self.history, compacted, false).await;
                self.report.events += self.or_difference(events)?;
            }
            None if self.generator.once_in(60) => {
                let count = self.generator.between(1, 6);
                let requests = (0..count).map(|_| self.generator.live_watch()).collect();
                let watches = WatchPair::create([&self.clients[0], &self.clients[1]], requests, true).await;
                let watches = self.or_difference(watches)?;
                let changes_left = self.generator.between(5, 40);
                self.live = Some(Live { watches, changes_left });
                self.count("watch while changing", count as u64);
            }
            None => {}
        }
        Ok(())
    }

    /// A few streams of watches at once, while nothing changes.
    async fn watches_from_the_past(&mut self) -> Result<(), Failure> {
        const STREAMS: usize = 5;
        self.observe().await?;
        let compacted = self.generator.compacted;
        let mut streams = Vec::with_capacity(STREAMS);
        for _ in 0..STREAMS {
            let count = self.generator.between(1, 6);
            let mut requests: Vec<WatchCreateRequest> = (0..count).map(|_| self.generator.watch()).collect();
            // see the table's comment: a tombstone at the compacted revision may be there or not
            let deleted = self.history.deletes_at(compacted);
            requests.retain(|request| request.start_revision != compacted || compacted == 0 || !deleted);
            self.count("watch from the past", requests.len() as u64);
            let watches = WatchPair::create([&self.clients[0], &self.clients[1]], requests, true).await;
            streams.push(self.or_difference(watches)?);
        }
        for watches in streams {
            let progress = self.generator.once_in(3);
            let events = watches.finish(&self.history, compacted, progress).await;
            self.report.events += self.or_difference(events)?;
        }
        Ok(())
    }

    /// Takes in what the observers have seen up to now, and compares it.
    async fn observe(&mut self) -> Result<(), Failure> {
        let revision = self.generator.revision;
        let caught_up = |stream: &WatchStream| revision == 1 || stream.watches[&0].last_revision() >= Some(revision);
        let [reference, subject] = &mut self.observers;
        let outcome = tokio::join!(
            reference.receive_until("event of the last change", caught_up),
            subject.receive_until("event of the last change", caught_up),
        );
        if let (Err(_), _) | (_, Err(_)) = &outcome {
            return Err(self.difference(format!("observers at revision {revision}: {outcome:?}")));
        }
        let [reference, subject] =
            [reference, subject].map(|stream| stream.watches.get_mut(&0).map(Watched::take_events).unwrap_or_default());
        if reference != subject {
            let first = reference.iter().zip(&subject).find(|(reference, subject)| reference != subject);
            let text = format!("observers differ: {} and {} events, {first:?}", reference.len(), subject.len());
            return Err(self.difference(text));
        }
        self.history.events.extend(reference);
        Ok(())
    }

    /// The whole store, page by page, and the history's checksum at many revisions.
    async fn everything_at_the_end(&mut self) -> Result<(), Failure> {
        while self.live.is_some() {
            if let Some(live) = &mut self.live {
                live.changes_left = 0;
            }
            self.live_watches().await?;
        }
        self.watches_from_the_past().await?;
        let (revision, compacted) = (self.generator.revision, self.generator.compacted);
        let step = ((revision - compacted) / 20).max(1) as usize;
        for revision in (compacted..=revision).rev().step_by(step) {
            let everything = Bytes::from_static(b"\0");
            let request =
                RangeRequest { key: everything.clone(), range_end: everything, revision, ..RangeRequest::default() };
            let hash = Operation::HashKv(HashKvRequest { revision });
            for operation in [Operation::Range { request, streamed: true }, hash] {
                let newer = Version(3, 7, 0);
                let answers = tokio::join!(
                    operation.perform(&self.clients[0], self.pair.reference >= newer),
                    operation.perform(&self.clients[1], self.pair.subject >= newer),
                );
                self.compare(operation, answers.into())?;
            }
        }
        Ok(())
    }

    /// Compares two answers, lets the generator learn from them, and counts.
    fn compare(&mut self, operation: Operation, answers: [Answer; 2]) -> Result<(), Failure> {
        let [mut reference, mut subject] = answers.clone();
        make_comparable(&operation, &mut reference);
        make_comparable(&operation, &mut subject);
        for exception in forgive(self.pair, &operation, &mut reference, &mut subject) {
            *self.report.exceptions.entry(exception).or_default() += 1;
        }
        if reference != subject {
            let [reference, subject] = answers;
            return Err(self.difference(format!(
                "{}\n  {operation:?}\n  reference: {reference:?}\n  subject:   {subject:?}",
                operation.kind()
            )));
        }
        self.generator.learn(&operation, &answers[0]);
        self.count(operation.kind(), 1);
        if let Answer::Failed { code, text } = &reference {
            *self.report.errors.entry(format!("{code:?}: {text}")).or_default() += 1;
        }
        Ok(())
    }

    fn count(&mut self, kind: &'static str, times: u64) {
        self.report.operations += times;
        *self.report.kinds.entry(kind).or_default() += times;
    }

    fn or_difference<T>(&self, outcome: Result<T, WatchFailure>) -> Result<T, Failure> {
        outcome.map_err(|failure| self.difference(failure.0))
    }

    fn difference(&self, what: String) -> Failure {
        Failure::Difference(Box::new(Difference {
            seed: self.settings.seed,
            number: self.report.operations,
            what,
            changes: self.changes.iter().cloned().collect(),
        }))
    }
}
