//! Breaks a cluster under load, again and again, and checks that every promise survived.
//!
//! Each round, writers, readers and one who keeps a lease are at work through all members and watchers watch, while one
//! member or two fail in a way the seed chooses, and now and then all are restarted one after the other. Then
//! everything is healed, and the store's history is held against what the clients know:
//! - everything that a single member promises across a `kill -9` (see [`crate::kill9`]);
//! - a read is the state at the revision that its answer names; if it was linearizable, nothing that anyone had been
//!   told before it was sent is missing from it;
//! - a lease that is kept alive does not expire;
//! - all members have the same history;
//! - while members are restarted one at a time, no request fails on two members in a row.

mod crowd;
mod fault;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{CompactionRequest, LeaseTimeToLiveRequest, RangeRequest, WatchCreateRequest};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::differential::WatchStream;
use crate::harness::{Binary, Cluster, Network, Place, Setup, StallingDisk};
use crate::load::{Acknowledged, Attempt, Counted, History, LEASE, View, Watcher, Writer};
use crowd::{Background, Crowd, Work, outage};
use fault::{Fault, Kind};

/// How long the watchers may take to see what is there to see.
const SEEN_WITHIN: Duration = Duration::from_secs(60);
/// Readers at work.
const READERS: usize = 4;

/// What to break, and how often.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program of each member.
    pub members: Vec<Binary>,
    /// Further flags of every member.
    pub flags: Vec<String>,
    /// How many rounds at most.
    pub rounds: u32,
    /// No round begins after this time.
    pub time: Duration,
    /// Where the random faults and keys start from; the interleaving is the machine's.
    pub seed: u64,
    /// How many clients write at once.
    pub writers: usize,
    /// The longest time that a fault lasts.
    pub longest_fault: Duration,
    /// Only this kind of fault, as [`Kind`] spells it, for looking into one.
    pub only: Option<String>,
    /// Where members' logs are put when a promise is broken.
    pub logs: PathBuf,
    /// Print each round to stderr.
    pub verbose: bool,
}

/// What a run without a broken promise has covered.
#[derive(Debug, Default)]
pub struct Report {
    /// How often each fault happened.
    pub faults: BTreeMap<String, u32>,
    /// Faults that this machine cannot make, and why.
    pub skipped: Vec<String>,
    /// Rounds in which all members were restarted one after the other.
    pub rolling_restarts: u32,
    /// What the clients did.
    pub counted: Counted,
    /// Reads held against the history.
    pub reads: u64,
    /// Events seen by the watchers, all of them checked.
    pub watched: u64,
    /// The store's last revision.
    pub revision: i64,
    /// From the kill of a leader until a write that was sent after it was acknowledged.
    pub outages: Vec<Duration>,
    /// The longest time without an acknowledged write in each round, by what went wrong.
    pub silences: BTreeMap<String, Vec<Duration>>,
    /// The time it took.
    pub took: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: u32 = self.faults.values().sum();
        writeln!(f, "{faults} faults and {} rolling restarts in {:.0?}", self.rolling_restarts, self.took)?;
        for (fault, times) in &self.faults {
            writeln!(f, "  {times:>6}  {fault}")?;
        }
        self.skipped.iter().try_for_each(|reason| writeln!(f, "skipped: {reason}"))?;
        let counted = &self.counted;
        writeln!(f, "{} acknowledged writes, none lost; last revision {}", counted.acknowledged, self.revision)?;
        let (done, not_done) = (counted.unanswered_done, counted.unanswered_not_done);
        writeln!(f, "writes without an answer: {done} done, {not_done} never done")?;
        writeln!(f, "{} reads, none stale or wrong", self.reads)?;
        writeln!(f, "{} events watched, none missed, none repeated", self.watched)?;
        writeln!(f, "no request failed on two members in a row in a rolling restart; all members equal each time")?;
        writeln!(f, "after a leader's kill, writes again after {}", Spread(&self.outages))?;
        writeln!(f, "longest time without an acknowledged write:")?;
        let mut silences = self.silences.iter();
        silences.try_for_each(|(fault, silences)| writeln!(f, "  {fault}: {}", Spread(silences)))
    }
}

/// A distribution in one line.
struct Spread<'a>(&'a [Duration]);

impl fmt::Display for Spread<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.0.to_vec();
        sorted.sort();
        let at = |share: f64| sorted.get((sorted.len().saturating_sub(1) as f64 * share).round() as usize);
        let [least, median, p90, most] = [0.0, 0.5, 0.9, 1.0].map(|share| at(share).copied().unwrap_or_default());
        let times = sorted.len();
        write!(f, "{least:.2?} / {median:.2?} / {p90:.2?} / {most:.2?} (least, median, 90 %, most of {times})")
    }
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
#[error("seed {seed}, round {round} ({faults}): {what}\nthe members' logs are in {logs}")]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// Which round.
    pub round: u32,
    /// What went wrong with the cluster in it.
    pub faults: String,
    /// What should not have happened.
    pub what: String,
    /// Where to look.
    pub logs: String,
}

/// Breaks things round by round and checks after each.
pub async fn run(settings: &Settings) -> Result<Report, Failure> {
    let begun = Instant::now();
    let mut report = Report::default();
    let network = note(Network::available(), &mut report.skipped);
    let disks = note(StallingDisk::create().map(drop), &mut report.skipped);
    let setup = Setup {
        place: if network { Place::Namespaces } else { Place::Loopback },
        stalling_disks: disks,
        flags: settings.flags.iter().map(Into::into).collect(),
        ..Setup::new(settings.members.clone())
    };
    let mut possible = Kind::possible(network, disks);
    if let Some(only) = &settings.only {
        possible.retain(|kind| format!("{kind:?}") == *only);
    }
    let early = |what: String| Failure {
        seed: settings.seed,
        round: 0,
        faults: "at the start".into(),
        what,
        logs: "(nowhere)".into(),
    };
    let cluster = Cluster::start(setup).map_err(|problem| early(problem.to_string()))?;
    let background = Background::start().map_err(|problem| early(problem.to_string()))?;
    let acknowledged = Acknowledged::default();
    let writer = |number| Writer::new(number, settings.seed, acknowledged.clone());
    let addresses = cluster.addresses();
    let watcher = |(number, view): (usize, View)| {
        let mut servers = addresses.clone();
        servers.rotate_left(number % addresses.len());
        Watcher::start(servers, view, background.handle())
    };
    let mut run = Run {
        settings,
        possible,
        random: SmallRng::seed_from_u64(settings.seed),
        history: History::with_late_writes(),
        writers: (0..settings.writers).map(writer).collect(),
        watchers: View::ALL.into_iter().enumerate().map(watcher).collect(),
        acknowledged,
        background,
        report,
        cluster,
    };
    let (mut round, mut faults) = (0, "at the start".to_owned());
    let mut outcome = run.begin().await;
    while outcome.is_ok() && round < settings.rounds && begun.elapsed() < settings.time {
        round += 1;
        outcome = run.round(round, &mut faults).await;
        if settings.verbose {
            let report = &run.report;
            let acknowledged = report.counted.acknowledged;
            eprintln!("round {round}: {faults}: {acknowledged} acknowledged, revision {}", report.revision);
        }
    }
    run.report.took = begun.elapsed();
    outcome.map(|()| run.report).map_err(|what| {
        let logs = settings.logs.join(format!("faults-{}-{round}", settings.seed));
        let kept = run.cluster.keep_logs(&logs);
        let logs = kept.map_or_else(|problem| problem.to_string(), |()| logs.display().to_string());
        Failure { seed: settings.seed, round, faults, what, logs }
    })
}

/// Whether something is possible here; if not, the reason goes into the report.
fn note(possible: Result<(), String>, skipped: &mut Vec<String>) -> bool {
    possible.map_err(|reason| skipped.push(reason)).is_ok()
}

struct Run<'a> {
    settings: &'a Settings,
    possible: Vec<Kind>,
    random: SmallRng,
    history: History,
    writers: Vec<Writer>,
    watchers: Vec<Watcher>,
    acknowledged: Acknowledged,
    report: Report,
    cluster: Cluster,
    // Last, so that clients outlive what they are used by.
    background: Background,
}

impl Run<'_> {
    async fn begin(&mut self) -> Result<(), String> {
        let mut client = self.cluster.client(0).await.map_err(text)?;
        client.lease.lease_grant(LEASE).await.map(drop).map_err(text)
    }

    async fn round(&mut self, round: u32, faults: &mut String) -> Result<(), String> {
        let everyone: Vec<usize> = (0..self.cluster.len()).collect();
        let leader = self.cluster.wait_for_leader(&everyone).await.map_err(text)?;
        let seed = self.settings.seed.wrapping_add(u64::from(round));
        let members = self.cluster.addresses();
        let writers = std::mem::take(&mut self.writers);
        let crowd = Crowd::start(&self.background, &members, writers, READERS, self.acknowledged.clone(), seed);
        self.pause(300..1000).await;
        let mut probes = Vec::new();
        if self.settings.only.is_none() && round.is_multiple_of(6) {
            "rolling restart".clone_into(faults);
            self.rolling_restart(&crowd).await?;
        } else {
            let chosen = Fault::choose(&mut self.random, &self.possible, self.cluster.len(), leader);
            *faults = chosen.iter().map(Fault::to_string).collect::<Vec<_>>().join(" + ");
            let longest = self.settings.longest_fault.as_millis() as u64;
            let time = Duration::from_millis(self.random.random_range(longest / 4..=longest));
            let begun = Instant::now();
            for fault in &chosen {
                fault.strike(&mut self.cluster, time).map_err(text)?;
                *self.report.faults.entry(fault.to_string()).or_default() += 1;
            }
            if let [Fault { kind: Kind::Killed, leads: true, .. }] = chosen[..] {
                let survivors: Vec<_> = (0..members.len()).filter(|member| *member != leader).collect();
                let survivors: Vec<_> = survivors.into_iter().map(|member| members[member]).collect();
                let (outage, sent) = outage(&survivors, &self.acknowledged).await?;
                self.report.outages.push(outage);
                probes = sent;
            }
            tokio::time::sleep(time.saturating_sub(begun.elapsed())).await;
            for fault in chosen {
                fault.heal(&mut self.cluster).map_err(text)?;
            }
            if self.settings_have_network() {
                self.cluster.network().heal().map_err(text)?;
            }
            self.cluster.wait_ready().map_err(text)?;
        }
        self.pause(200..600).await;
        let (writers, work) = crowd.stop().await;
        self.writers = writers;
        self.report.silences.entry(faults.clone()).or_default().push(work.longest_silence);
        self.check(work, probes).await
    }

    fn settings_have_network(&self) -> bool {
        self.possible.iter().any(|kind| !matches!(kind, Kind::Killed | Kind::Paused | Kind::DiskHangs))
    }

    async fn pause(&mut self, milliseconds: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.random.random_range(milliseconds))).await;
    }

    /// SIGTERM and start, one member after the other; the next when the one before serves again.
    async fn rolling_restart(&mut self, crowd: &Crowd) -> Result<(), String> {
        let before = crowd.failed_twice();
        for member in 0..self.cluster.len() {
            self.cluster.member(member).stop().map_err(text)?;
            self.cluster.restart(member).map_err(text)?;
            self.pause(100..400).await;
        }
        self.report.rolling_restarts += 1;
        match crowd.failed_twice() - before {
            0 => Ok(()),
            failed => Err(format!("{failed} requests failed on two members in a row in a rolling restart")),
        }
    }

    /// Holds the store against everything that is known of it.
    async fn check(&mut self, work: Work, probes: Vec<Attempt>) -> Result<(), String> {
        if let Some(expired) = work.expired_leases.first() {
            return Err(expired.clone());
        }
        self.report.reads += work.reads.len() as u64;
        self.history.attempted(work.attempts);
        self.history.attempted(probes);
        self.history.has_shown(work.reads);
        self.cluster.must_be_equal().await.map_err(text)?;

        let asked = self.random.random_range(0..self.cluster.len());
        let mut client = self.cluster.client(asked).await.map_err(text)?;
        let everything = Bytes::from_static(b"\0");
        let request =
            RangeRequest { key: everything.clone(), range_end: everything.clone(), ..RangeRequest::default() };
        let pairs = client.kv.range(request).await.map_err(text)?.into_inner();
        let revision = pairs.header.map_or(0, |header| header.revision);
        let verified = self.history.revision();
        if revision < verified {
            return Err(format!("the store is at revision {revision}, it was at {verified} before"));
        }
        let mut events = Vec::new();
        if revision > verified {
            let mut stream = WatchStream::open(&client).await?;
            stream.send(RequestUnion::CreateRequest(WatchCreateRequest {
                key: everything.clone(),
                range_end: everything,
                start_revision: verified + 1,
                ..WatchCreateRequest::default()
            }))?;
            let last = |stream: &WatchStream| stream.watches.get(&0).and_then(|watch| watch.last_revision());
            stream.receive_until("the whole history", |stream| last(stream) >= Some(revision)).await?;
            events = stream.watches.remove(&0).unwrap_or_default().events;
        }
        // A write that a member has held back may come even now; it is for the next time.
        let known = |event: &proto::mvccpb::Event| event.kv.as_ref().is_some_and(|pair| pair.mod_revision <= revision);
        let events = events.into_iter().map(|(event, _)| event).filter(known);
        let counted = self.history.extend(events, revision)?;
        self.history.equals(&pairs.kvs)?;

        let request = LeaseTimeToLiveRequest { id: LEASE.id, keys: true };
        let mut keys = client.lease.lease_time_to_live(request).await.map_err(text)?.into_inner().keys;
        keys.sort();
        self.history.keys_of_lease(LEASE.id, &keys)?;

        for watcher in &self.watchers {
            let watched = self.history.new_events(watcher.view());
            self.report.watched += watcher.must_have_seen(&watched, SEEN_WITHIN).await?;
        }
        self.history.forget_new_events();
        self.report.counted.acknowledged += counted.acknowledged;
        self.report.counted.unanswered_done += counted.unanswered_done;
        self.report.counted.unanswered_not_done = counted.unanswered_not_done;
        self.report.revision = revision;

        if self.random.random_ratio(1, 3) && revision > 2 {
            let request = CompactionRequest { revision, physical: self.random.random() };
            // A refusal is fine: nothing may have been written since the last compaction.
            client.kv.compact(request).await.ok();
        }
        Ok(())
    }
}

fn text(problem: impl fmt::Display) -> String {
    problem.to_string()
}
