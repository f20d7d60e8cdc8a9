//! Kills a server under load, again and again, and checks that every promise survived.
//!
//! Each round, writers write and watchers watch until the process is killed at a random moment. Then it is started
//! again on the same directory (and killed once more while it starts, now and then), and the store's history is read
//! back and compared with what the writers know:
//! - an acknowledged write is in the history, at the revision that its answer named;
//! - a write without an answer is there once or not at all, and whole: a transaction leaves no half;
//! - revisions have no gaps, and versions and create revisions count as they must;
//! - a watcher that goes on from the last revision it saw has missed and repeated nothing;
//! - the current pairs, and the keys of a lease, are those that the history leads to.

use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{CompactionRequest, LeaseTimeToLiveRequest, RangeRequest, WatchCreateRequest};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::differential::WatchStream;
use crate::harness::{Binary, Client, Options, ProcessError, Server, connect};
use crate::load::{Acknowledged, History, LEASE, View, Watcher, Writer};

/// How long the watchers may take to see what is there to see.
const SEEN_WITHIN: Duration = Duration::from_secs(20);

/// What to kill, and how often.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The server.
    pub server: Binary,
    /// How many times it is killed under load.
    pub rounds: u32,
    /// Where the random moments and keys start from; the interleaving is the machine's.
    pub seed: u64,
    /// How many clients write at once.
    pub writers: usize,
    /// The longest stretch under load before the kill.
    pub longest_load: Duration,
    /// Print each round to stderr.
    pub verbose: bool,
}

/// What a run without a broken promise has covered.
#[derive(Debug, Default)]
pub struct Report {
    /// Kills under load.
    pub kills: u32,
    /// Kills while starting.
    pub kills_at_start: u32,
    /// Writes with an answer.
    pub acknowledged: u64,
    /// Writes without an answer that turned out to be done.
    pub unanswered_done: u64,
    /// Writes without an answer that turned out not to be done.
    pub unanswered_not_done: u64,
    /// Events seen by the watchers, all of them checked.
    pub watched: u64,
    /// The store's last revision.
    pub revision: i64,
    /// From the start of the process to healthy, after each kill.
    pub restarts: Vec<Duration>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut restarts = self.restarts.clone();
        restarts.sort();
        let median = restarts.get(restarts.len() / 2).copied().unwrap_or_default();
        let longest = restarts.last().copied().unwrap_or_default();
        writeln!(f, "{} kills under load, {} while starting", self.kills, self.kills_at_start)?;
        writeln!(f, "{} acknowledged writes, none lost; last revision {}", self.acknowledged, self.revision)?;
        let (done, not_done) = (self.unanswered_done, self.unanswered_not_done);
        writeln!(f, "{} writes without an answer: {done} done, {not_done} not done", done + not_done)?;
        writeln!(f, "{} events watched, none missed, none repeated", self.watched)?;
        writeln!(f, "ready again after {median:.0?} (median), {longest:.0?} (longest)")
    }
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The server did not start, for instance because it refuses the directory that the kill left.
    #[error("round {round}: {source}")]
    Process {
        /// Which round.
        round: u32,
        /// What happened.
        source: ProcessError,
    },
    /// The server could not be asked.
    #[error("seed {seed}, round {round}: {what}")]
    Asking {
        /// The seed.
        seed: u64,
        /// Which round.
        round: u32,
        /// What was asked and what came back.
        what: String,
    },
    /// The server broke a promise.
    #[error("seed {seed}, round {round}: broken promise: {what}")]
    Broken {
        /// The seed.
        seed: u64,
        /// Which round.
        round: u32,
        /// Which promise, and how.
        what: String,
    },
}

/// Kills `settings.rounds` times and checks after each.
pub async fn run(settings: &Settings) -> Result<Report, Failure> {
    let server =
        Server::spawned(&settings.server, Options { flags: vec!["--log-level=warn".into()], ..Options::default() });
    let server = server.map_err(|source| Failure::Process { round: 0, source })?;
    let addr = server.client_addr();
    let acknowledged = Acknowledged::default();
    let writer = |number| Writer::new(number, settings.seed, acknowledged.clone());
    let watcher = |view| Watcher::start(vec![addr], view, &tokio::runtime::Handle::current());
    let mut run = Run {
        settings,
        random: SmallRng::seed_from_u64(settings.seed),
        round: 0,
        history: History::default(),
        writers: (0..settings.writers).map(writer).collect(),
        watchers: View::ALL.into_iter().map(watcher).collect(),
        report: Report::default(),
    };
    let mut server = run.ready(server).await?;
    let mut client = run.connect(&server).await?;
    client.lease.lease_grant(LEASE).await.map_err(|status| run.asking("grant the lease", &status))?;
    for round in 1..=settings.rounds {
        run.round = round;
        server = run.load_and_kill(server).await?;
        server = run.start_again(server).await?;
        run.check(&server).await?;
        if settings.verbose {
            let report = &run.report;
            eprintln!("round {round}: {} acknowledged, revision {}", report.acknowledged, report.revision);
        }
    }
    Ok(run.report)
}

struct Run<'a> {
    settings: &'a Settings,
    random: SmallRng,
    round: u32,
    history: History,
    writers: Vec<Writer>,
    watchers: Vec<Watcher>,
    report: Report,
}

impl Run<'_> {
    /// Lets every writer write, and kills the server in the middle of it.
    async fn load_and_kill(&mut self, mut server: Server) -> Result<Server, Failure> {
        let mut under_way = Vec::with_capacity(self.writers.len());
        for writer in std::mem::take(&mut self.writers) {
            let client = self.connect(&server).await?;
            under_way.push(tokio::spawn(writer.write_until_the_server_is_gone(client)));
        }
        let longest = self.settings.longest_load.as_millis() as u64;
        tokio::time::sleep(Duration::from_millis(self.random.random_range(10..=longest.max(11)))).await;
        server.kill().map_err(|source| self.process(source))?;
        self.report.kills += 1;
        for writer in under_way {
            let mut writer = writer.await.expect("no writer panics");
            self.history.attempted(writer.take_attempts());
            self.writers.push(writer);
        }
        Ok(server)
    }

    /// Starts the server, sometimes with another kill while it starts, and waits until it serves.
    async fn start_again(&mut self, mut server: Server) -> Result<Server, Failure> {
        while self.random.random_ratio(1, 4) {
            server.spawn().map_err(|source| self.process(source))?;
            tokio::time::sleep(Duration::from_millis(self.random.random_range(0..300))).await;
            if let Some(status) = server.ended().map_err(|source| self.process(source))? {
                return Err(self.broken(format!("it ended at its start with {status}:\n{}", server.log())));
            }
            server.kill().map_err(|source| self.process(source))?;
            self.report.kills_at_start += 1;
        }
        server.spawn().map_err(|source| self.process(source))?;
        let started = Instant::now();
        let server = self.ready(server).await?;
        self.report.restarts.push(started.elapsed());
        Ok(server)
    }

    /// Waits until the server is healthy, on another thread: the watchers go on trying meanwhile.
    async fn ready(&self, mut server: Server) -> Result<Server, Failure> {
        let waiting = tokio::task::spawn_blocking(move || server.wait_ready().map(|()| server));
        waiting.await.expect("waiting does not panic").map_err(|source| self.process(source))
    }

    /// Holds the store against everything that is known of it.
    async fn check(&mut self, server: &Server) -> Result<(), Failure> {
        let mut client = self.connect(server).await?;
        let everything = Bytes::from_static(b"\0");
        let request =
            RangeRequest { key: everything.clone(), range_end: everything.clone(), ..RangeRequest::default() };
        let pairs = client.kv.range(request).await.map_err(|status| self.asking("read everything", &status))?;
        let pairs = pairs.into_inner();
        let revision = pairs.header.map_or(0, |header| header.revision);
        let verified = self.history.revision();
        if revision < verified {
            return Err(self.broken(format!("the store is at revision {revision}, it was at {verified} before")));
        }

        // What happened since the last round, as a watch from there sees it.
        let mut events = Vec::new();
        if revision > verified {
            let mut stream = WatchStream::open(&client).await.map_err(|what| self.broken(what))?;
            let create = WatchCreateRequest {
                key: everything.clone(),
                range_end: everything,
                start_revision: verified + 1,
                ..WatchCreateRequest::default()
            };
            stream.send(RequestUnion::CreateRequest(create)).map_err(|what| self.broken(what))?;
            let last = |stream: &WatchStream| stream.watches.get(&0).and_then(|watch| watch.last_revision());
            let complete = stream.receive_until("the whole history", |stream| last(stream) >= Some(revision)).await;
            complete.map_err(|what| self.broken(what))?;
            events = stream.watches.remove(&0).unwrap_or_default().events;
        }
        let outcome = self.history.extend(events.into_iter().map(|(event, _)| event), revision);
        let counted = outcome.map_err(|what| self.broken(what))?;
        self.history.equals(&pairs.kvs).map_err(|what| self.broken(what))?;

        let request = LeaseTimeToLiveRequest { id: LEASE.id, keys: true };
        let lease = client.lease.lease_time_to_live(request).await;
        let mut keys = lease.map_err(|status| self.asking("look at the lease", &status))?.into_inner().keys;
        keys.sort();
        self.history.keys_of_lease(LEASE.id, &keys).map_err(|what| self.broken(what))?;

        for watcher in &self.watchers {
            let watched = self.history.new_events(watcher.view());
            let seen = watcher.must_have_seen(&watched, SEEN_WITHIN).await;
            self.report.watched += seen.map_err(|what| self.broken(what))?;
        }
        self.history.forget_new_events();
        self.report.acknowledged += counted.acknowledged;
        self.report.unanswered_done += counted.unanswered_done;
        self.report.unanswered_not_done += counted.unanswered_not_done;
        self.report.revision = revision;

        // Everyone is at the head now, so that compacting takes nothing from anyone; the rounds after run on a store
        // whose garbage collection was killed as well.
        if self.random.random_ratio(1, 3) && revision > 2 {
            let request = CompactionRequest { revision, physical: self.random.random() };
            // A refusal is fine: nothing may have been written since the last compaction.
            client.kv.compact(request).await.ok();
        }
        Ok(())
    }

    async fn connect(&self, server: &Server) -> Result<Client, Failure> {
        connect(server.client_addr()).await.map_err(|source| {
            let what = format!("connect: {source}");
            Failure::Asking { seed: self.settings.seed, round: self.round, what }
        })
    }

    fn process(&self, source: ProcessError) -> Failure {
        Failure::Process { round: self.round, source }
    }

    fn asking(&self, what: &str, status: &tonic::Status) -> Failure {
        Failure::Asking { seed: self.settings.seed, round: self.round, what: format!("{what}: {status}") }
    }

    fn broken(&self, what: String) -> Failure {
        Failure::Broken { seed: self.settings.seed, round: self.round, what }
    }
}
