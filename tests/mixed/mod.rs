//! Random operations on a cluster whose members are different etcds: each kind leads in turn, each sends and receives
//! snapshots, and all have to agree on everything.
//!
//! The operations are those of [`crate::differential`]. What changes the store is done through a random member, one at
//! a time; then every member is asked the same reads, and every answer has to be equal. A watch of everything is open
//! on each member. At the end of each stretch the history's checksum is compared at many revisions.
//!
//! Two things are not asked for. One is a lease with a negative ID, which real etcds forget when they start or take a
//! snapshot. The other is a read of an old or future revision inside a transaction. Real etcds leave reads
//! out of a transaction on every member but the one whose client waits for the answer. Where such a read fails, that member
//! refuses the transaction and the others do it, and from then on they differ (etcd's issue 18667, found by this check
//! on three members of one version).

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{PutRequest, RangeRequest, TxnRequest, WatchCreateRequest};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;
use tonic::Code;

use crate::differential::{
    Answer, Generator, Operation, Pair, Version, WatchStream, Watched, forgive, make_comparable,
};
use crate::harness::{Binary, Client, Cluster, Setup, http_get};

/// How many entries `--snapshot-count` lets pass; with the 5,000 that every etcd keeps for members that lag, a member
/// that missed [`MISSED`] writes can only catch up by a snapshot.
const SNAPSHOT_COUNT: u32 = 1_000;
/// Writes that a member misses.
const MISSED: u64 = 8_000;
/// How many of them are under way at once.
const MISSED_AT_ONCE: usize = 64;
/// Real etcds keep their whole log for so long after they have sent a snapshot.
const LOG_KEPT: Duration = Duration::from_secs(31);
/// How long after it the two members' metrics may take to show a snapshot.
const COUNTED_WITHIN: Duration = Duration::from_secs(10);
/// What a member counts when it has sent a snapshot, and when it has received one.
const SENT: &str = "etcd_network_snapshot_send_success";
const RECEIVED: &str = "etcd_network_snapshot_receive_success";
/// How many changes a difference shows.
const CHANGES_SHOWN: usize = 8;
/// Revisions at which checksums are compared at the end of a stretch.
const HASHES: i64 = 8;

/// What to mix.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program of each member.
    pub members: Vec<Binary>,
    /// How many operations, besides the writes that members miss.
    pub operations: u64,
    /// Where the random operations start from.
    pub seed: u64,
    /// Print progress to stderr.
    pub verbose: bool,
}

/// What a run without a difference has covered.
#[derive(Debug, Default)]
pub struct Report {
    /// Every member's program and version.
    pub members: Vec<String>,
    /// How many operations of each kind.
    pub kinds: BTreeMap<&'static str, u64>,
    /// How many ended in each error.
    pub errors: BTreeMap<String, u64>,
    /// How often each known difference between versions was seen.
    pub exceptions: BTreeMap<&'static str, u64>,
    /// Events that the watches of all members showed alike.
    pub events: usize,
    /// Revisions at which all checksums were equal.
    pub hashes: u64,
    /// Snapshots, by who sent to whom, with the time from the member's start until it was equal.
    pub snapshots: Vec<(String, Duration)>,
    /// The store's last revision.
    pub revision: i64,
    /// The time it took.
    pub took: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.members.iter().try_for_each(|member| writeln!(f, "{member}"))?;
        let operations: u64 = self.kinds.values().sum();
        writeln!(f, "{operations} operations in {:.0?}, all answers of all members equal", self.took)?;
        self.kinds.iter().try_for_each(|(kind, times)| writeln!(f, "  {times:>8}  {kind}"))?;
        writeln!(f, "errors, equal on all:")?;
        self.errors.iter().try_for_each(|(error, times)| writeln!(f, "  {times:>8}  {error}"))?;
        writeln!(f, "known differences between versions:")?;
        self.exceptions.iter().try_for_each(|(name, times)| writeln!(f, "  {times:>8}  {name}"))?;
        writeln!(f, "{} watch events equal on all members", self.events)?;
        writeln!(f, "HashKV equal on all members at {} revisions up to {}", self.hashes, self.revision)?;
        writeln!(f, "snapshots, and how long until the member was equal:")?;
        self.snapshots.iter().try_for_each(|(way, took)| writeln!(f, "  {way}: {took:.1?}"))
    }
}

/// Runs all of it, and says what went wrong.
pub async fn run(settings: &Settings) -> Result<Report, String> {
    let begun = Instant::now();
    let mut setup = Setup::new(settings.members.clone());
    setup.flags.extend(["--log-level=info".into(), format!("--snapshot-count={SNAPSHOT_COUNT}").into()]);
    let cluster = Cluster::start(setup).map_err(text)?;
    let mut clients = Vec::new();
    let mut versions = Vec::new();
    let mut report = Report::default();
    for (member, server) in cluster.servers().iter().enumerate() {
        let version = server.version().ok_or("a member does not tell its version")?;
        versions.push(Version::parse(&version).ok_or("a member's version is no version")?);
        report.members.push(format!("{}: {} {version}", server.name(), server.binary().name));
        clients.push(cluster.client(member).await.map_err(text)?);
    }
    let mut run = Run {
        settings,
        clients,
        versions,
        generator: Generator::new(settings.seed).with_lasting_leases(),
        random: SmallRng::seed_from_u64(settings.seed),
        report,
        changes: VecDeque::new(),
        last_snapshot: BTreeMap::new(),
        cluster,
    };
    let outcome = run.all().await;
    run.report.revision = run.generator.revision;
    run.report.took = begun.elapsed();
    let logs = std::env::temp_dir().join(format!("mixed-{}", settings.seed));
    outcome.map(|()| run.report).map_err(|what| {
        let changes: Vec<String> = run.changes.into();
        let changes = changes.join("\n  ");
        let kept = run.cluster.keep_logs(&logs).map_or_else(text, |()| logs.display().to_string());
        format!("seed {}: {what}\nthe last changes:\n  {changes}\nthe members' logs are in {kept}", settings.seed)
    })
}

struct Run<'a> {
    settings: &'a Settings,
    clients: Vec<Client>,
    versions: Vec<Version>,
    generator: Generator,
    random: SmallRng,
    report: Report,
    /// The last changes and their answers, oldest first.
    changes: VecDeque<String>,
    /// When each member has sent one.
    last_snapshot: BTreeMap<usize, Instant>,
    cluster: Cluster,
}

impl Run<'_> {
    async fn all(&mut self) -> Result<(), String> {
        let members = self.cluster.len();
        let stretches = (members * (members - 1)).max(1) as u64;
        for shift in 1..members {
            for leader in 0..members {
                self.cluster.move_leader(leader).await.map_err(text)?;
                self.stretch(self.settings.operations / stretches).await?;
                self.snapshot(leader, (leader + shift) % members).await?;
                self.say(&format!("node{} has led", leader + 1));
            }
        }
        self.stretch(self.settings.operations / 50).await
    }

    /// Operations under one leader, and everything compared after them.
    async fn stretch(&mut self, operations: u64) -> Result<(), String> {
        let mut observers = Vec::new();
        for client in &self.clients {
            observers.push(observe(client, self.generator.revision + 1).await?);
        }
        let goal = self.operations() + operations;
        let mut next_word = self.operations();
        while self.operations() < goal {
            let compacts = self.generator.once_in(150);
            let operation = if compacts {
                // Nobody may have to read what is compacted.
                self.same_events(&mut observers).await?;
                self.generator.compaction()
            } else {
                with_reads_of_the_present(self.generator.change())
            };
            let through = self.random.random_range(0..self.clients.len());
            let answer = self.perform(&operation, through).await?;
            if self.changes.len() == CHANGES_SHOWN {
                self.changes.pop_front();
            }
            self.changes.push_back(format!("through node{}: {operation:?}: {answer:?}", through + 1));
            self.generator.learn(&operation, &answer);
            self.count(&operation, &answer);
            let reads = self.generator.between(0, 4);
            if reads > 0 {
                self.all_have_applied().await?;
            }
            for _ in 0..reads {
                let read = self.generator.read();
                self.same_answer(read).await?;
            }
            if self.operations() >= next_word {
                self.say("");
                next_word += 10_000;
            }
        }
        self.same_events(&mut observers).await?;
        self.same_history().await
    }

    fn operations(&self) -> u64 {
        self.report.kinds.values().sum()
    }

    async fn perform(&self, operation: &Operation, member: usize) -> Result<Answer, String> {
        let has_range_stream = self.versions[member] >= Version(3, 7, 0);
        let answer = operation.perform(&self.clients[member], has_range_stream).await;
        match &answer {
            // Nothing is broken here, so nothing may be out of reach.
            Answer::Failed { code: Code::Unavailable | Code::DeadlineExceeded | Code::Unknown, .. } => {
                Err(format!("{} through node{}: {answer:?}", operation.kind(), member + 1))
            }
            _ => Ok(answer),
        }
    }

    /// A linearizable read on every member: after it, each has applied what was acknowledged before.
    async fn all_have_applied(&mut self) -> Result<(), String> {
        for (member, client) in self.clients.iter().enumerate() {
            let request = RangeRequest { key: Bytes::from_static(b"applied"), ..RangeRequest::default() };
            let answer = client.clone().kv.range(request).await;
            let answer = answer.map_err(|status| format!("read through node{}: {status}", member + 1))?.into_inner();
            let revision = answer.header.unwrap_or_default().revision;
            // A transaction that ends in an error may have written before it came to that, so the first member tells.
            if member == 0 {
                self.generator.revision = revision;
            }
            if revision != self.generator.revision {
                let newest = self.generator.revision;
                return Err(format!("a linearizable read through node{} is at {revision}, not {newest}", member + 1));
            }
        }
        Ok(())
    }

    /// The same read on every member.
    async fn same_answer(&mut self, operation: Operation) -> Result<(), String> {
        let mut first = self.perform(&operation, 0).await?;
        self.generator.learn(&operation, &first);
        self.count(&operation, &first);
        let said = first.clone();
        make_comparable(&operation, &mut first);
        for member in 1..self.clients.len() {
            let other = self.perform(&operation, member).await?;
            let (mut reference, mut subject) = (first.clone(), other.clone());
            make_comparable(&operation, &mut subject);
            let pair = Pair { reference: self.versions[0], subject: self.versions[member] };
            for exception in forgive(pair, &operation, &mut reference, &mut subject) {
                *self.report.exceptions.entry(exception).or_default() += 1;
            }
            if reference != subject {
                let revision = self.generator.revision;
                return Err(format!(
                    "at revision {revision}: {operation:?}\n  node1: {said:?}\n  node{}: {other:?}",
                    member + 1
                ));
            }
        }
        Ok(())
    }

    /// What the watches of all members have seen by now.
    async fn same_events(&mut self, observers: &mut [WatchStream]) -> Result<(), String> {
        let revision = self.generator.revision;
        let mut first = None;
        for (member, observer) in observers.iter_mut().enumerate() {
            let from = observer.watches.get(&0).and_then(|watch| watch.created_at).unwrap_or(0);
            let complete = |stream: &WatchStream| {
                revision <= from || stream.watches.get(&0).is_some_and(|watch| watch.last_revision() >= Some(revision))
            };
            let seen = observer.receive_until("event of the last change", complete).await;
            seen.map_err(|problem| format!("the watch on node{}: {problem}", member + 1))?;
            let events = observer.watches.get_mut(&0).map(Watched::take_events).unwrap_or_default();
            match &first {
                None => first = Some(events),
                Some(first) if *first == events => {}
                Some(first) => {
                    let differ = first.iter().zip(&events).find(|(first, event)| first != event);
                    let (one, other) = (first.len(), events.len());
                    return Err(format!("node1 saw {one} events, node{} {other}: {differ:?}", member + 1));
                }
            }
        }
        self.report.events += first.map_or(0, |events| events.len());
        Ok(())
    }

    /// The checksum over the history at many revisions.
    async fn same_history(&mut self) -> Result<(), String> {
        self.cluster.must_be_equal().await.map_err(text)?;
        let (oldest, newest) = (self.generator.compacted + 1, self.generator.revision);
        let step = ((newest - oldest) / HASHES).max(1) as usize;
        for revision in (oldest..=newest).rev().step_by(step) {
            self.cluster.must_be_equal_at(revision).await.map_err(text)?;
            self.report.hashes += 1;
        }
        Ok(())
    }

    /// Stops a member, writes more than the leader keeps for it, and starts it again.
    async fn snapshot(&mut self, leader: usize, behind: usize) -> Result<(), String> {
        if let Some(since) = self.last_snapshot.get(&leader) {
            tokio::time::sleep(LOG_KEPT.saturating_sub(since.elapsed())).await;
        }
        self.cluster.move_leader(leader).await.map_err(text)?;
        self.cluster.member(behind).stop().map_err(text)?;
        let mut writing = JoinSet::new();
        for number in 0..MISSED {
            if writing.len() == MISSED_AT_ONCE {
                self.written(writing.join_next().await)?;
            }
            let mut client = self.clients[leader].clone();
            let (key, value) = (format!("missed/{}", number % 100), format!("by node{}: {number}", behind + 1));
            let put = PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
            writing.spawn(async move { client.kv.put(put).await.map(|answer| answer.into_inner().header) });
        }
        while let Some(written) = writing.join_next().await {
            self.written(Some(written))?;
        }
        let started = Instant::now();
        let sent = self.count_of(leader, SENT)?;
        self.cluster.restart(behind).map_err(text)?;
        self.clients[behind] = self.cluster.client(behind).await.map_err(text)?;
        self.same_history().await?;
        let took = started.elapsed();
        let way = format!("node{} (leader) to node{}", leader + 1, behind + 1);
        // The sender counts when it has read the receiver's answer, which may be after the snapshot has had its effect.
        let counted_by = Instant::now() + COUNTED_WITHIN;
        while self.count_of(leader, SENT)? + self.count_of(behind, RECEIVED)? <= sent {
            if Instant::now() > counted_by {
                let led = self.cluster.leader().await;
                return Err(format!("{way}: caught up without a snapshot, say the metrics of both; {led:?} leads"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.last_snapshot.insert(leader, Instant::now());
        self.report.snapshots.push((way, took));
        Ok(())
    }

    fn written(
        &mut self,
        written: Option<
            Result<Result<Option<proto::etcdserverpb::ResponseHeader>, tonic::Status>, tokio::task::JoinError>,
        >,
    ) -> Result<(), String> {
        let header = written.ok_or("nothing is being written")?.map_err(text)?.map_err(text)?.unwrap_or_default();
        self.generator.revision = self.generator.revision.max(header.revision);
        Ok(())
    }

    /// The sum of a metric over all its labels.
    fn count_of(&self, member: usize, metric: &str) -> Result<f64, String> {
        let metrics = http_get(self.cluster.servers()[member].client_addr(), "/metrics").map_err(text)?;
        let values = metrics.lines().filter(|line| line.starts_with(metric));
        Ok(values.filter_map(|line| line.split_whitespace().last()?.parse::<f64>().ok()).sum())
    }

    fn count(&mut self, operation: &Operation, answer: &Answer) {
        *self.report.kinds.entry(operation.kind()).or_default() += 1;
        if let Answer::Failed { code, text } = answer {
            *self.report.errors.entry(format!("{code:?}: {text}")).or_default() += 1;
        }
    }

    fn say(&self, what: &str) {
        if self.settings.verbose {
            eprintln!("{} operations, revision {}. {what}", self.operations(), self.generator.revision);
        }
    }
}

/// The operation, without revisions in the reads of its transaction; see the module.
fn with_reads_of_the_present(mut operation: Operation) -> Operation {
    if let Operation::Txn(request) = &mut operation {
        read_the_present(request);
    }
    operation
}

fn read_the_present(request: &mut TxnRequest) {
    for operation in request.success.iter_mut().chain(&mut request.failure) {
        match &mut operation.request {
            Some(Request::RequestRange(range)) => range.revision = 0,
            Some(Request::RequestTxn(nested)) => read_the_present(nested),
            _ => {}
        }
    }
}

/// A watch of everything from a revision on.
async fn observe(client: &Client, start_revision: i64) -> Result<WatchStream, String> {
    let everything = Bytes::from_static(b"\0");
    let mut stream = WatchStream::open(client).await?;
    stream.send(RequestUnion::CreateRequest(WatchCreateRequest {
        key: everything.clone(),
        range_end: everything,
        start_revision,
        ..WatchCreateRequest::default()
    }))?;
    stream.receive_until("created watch", |stream| stream.watches.contains_key(&0)).await?;
    Ok(stream)
}

fn text(problem: impl fmt::Display) -> String {
    problem.to_string()
}
