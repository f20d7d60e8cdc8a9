//! The clients that work while members fail: each goes to another member when one lets it down.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use proto::etcdserverpb::{LeaseGrantRequest, LeaseKeepAliveRequest};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::harness::{Client, lazily};
use crate::load::{Acknowledged, Attempt, Read, Writer, any_key, read};

/// How long a client waits for an answer before it asks another member.
const PATIENCE: Duration = Duration::from_secs(4);
/// Pause of a client that two members have let down.
const BREATH: Duration = Duration::from_millis(20);
/// Pause of a reader between two reads: the history can be held against so many and the machine has other work.
const BETWEEN_READS: Duration = Duration::from_millis(5);
/// Pause between two renewals of the lease that is kept alive.
const BETWEEN_RENEWALS: Duration = Duration::from_millis(300);
/// The lease that is kept alive, in seconds. Long enough for any single fault.
const KEPT_TTL: i64 = 20;
/// Pause between two probes after a kill.
const BETWEEN_PROBES: Duration = Duration::from_millis(5);
/// How long there may be no answer at all after a kill.
const PROBED_WITHIN: Duration = Duration::from_secs(30);
/// The writer's number of a probe.
const PROBE: usize = usize::MAX;

/// A thread with a runtime of its own, so that clients go on while the test itself waits for a process.
#[derive(Debug)]
pub struct Background {
    handle: Handle,
    /// Dropping it ends the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts the thread, in the network of the calling one.
    pub fn start() -> std::io::Result<Background> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            // Either way it is the end.
            runtime.block_on(stopped).ok();
        });
        Ok(Background { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Where tasks are started.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has panicked if a client has, which was told then.
            thread.join().ok();
        }
    }
}

/// What the clients of one stretch have done.
#[derive(Debug, Default)]
pub struct Work {
    /// All writes.
    pub attempts: Vec<Attempt>,
    /// All reads that were answered.
    pub reads: Vec<Read>,
    /// The longest time in which no write was acknowledged.
    pub longest_silence: Duration,
    /// Leases that expired while they were being kept alive: each is a broken promise.
    pub expired_leases: Vec<String>,
}

/// What the clients of one stretch share.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: Acknowledged,
    /// Writes that two members in a row have not acknowledged.
    failed_twice: AtomicU64,
    /// When a write was last acknowledged, and the longest time between two.
    silence: Mutex<(Option<Instant>, Duration)>,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn heard(&self) {
        let mut silence = self.silence.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, longest) = &mut *silence;
        *longest = last.map_or(*longest, |last| last.elapsed().max(*longest));
        *last = Some(Instant::now());
    }
}

/// Writers, readers and one who keeps a lease, at work.
#[derive(Debug)]
pub struct Crowd {
    shared: Arc<Shared>,
    writers: JoinSet<Writer>,
    readers: JoinSet<Vec<Read>>,
    keeper: tokio::task::JoinHandle<Vec<String>>,
}

impl Crowd {
    /// Sets everyone to work.
    pub fn start(
        background: &Background,
        members: &[SocketAddr],
        writers: Vec<Writer>,
        readers: usize,
        acknowledged: Acknowledged,
        seed: u64,
    ) -> Crowd {
        let shared = Arc::new(Shared { acknowledged, ..Shared::default() });
        let entered = background.handle().enter();
        let clients: Vec<Client> = members.iter().copied().map(lazily).collect();
        let count = writers.len();
        let mut crowd = Crowd {
            shared: Arc::clone(&shared),
            writers: JoinSet::new(),
            readers: JoinSet::new(),
            keeper: background.handle().spawn(keep_a_lease(clients.clone(), Arc::clone(&shared))),
        };
        for (number, writer) in writers.into_iter().enumerate() {
            crowd.writers.spawn(write(writer, clients.clone(), number, Arc::clone(&shared)));
        }
        for number in 0..readers {
            let random = SmallRng::seed_from_u64(seed.wrapping_add(number as u64));
            crowd.readers.spawn(read_on(clients.clone(), number, count, random, Arc::clone(&shared)));
        }
        drop(entered);
        crowd
    }

    /// How many writes two members in a row have failed until now.
    pub fn failed_twice(&self) -> u64 {
        self.shared.failed_twice.load(Ordering::SeqCst)
    }

    /// Lets everyone finish what is under way.
    pub async fn stop(mut self) -> (Vec<Writer>, Work) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let mut writers = Vec::new();
        let mut work = Work::default();
        while let Some(writer) = self.writers.join_next().await {
            let mut writer = writer.expect("no writer panics");
            work.attempts.extend(writer.take_attempts());
            writers.push(writer);
        }
        while let Some(reads) = self.readers.join_next().await {
            work.reads.extend(reads.expect("no reader panics"));
        }
        work.expired_leases = self.keeper.await.expect("the keeper of the lease does not panic");
        work.longest_silence = self.shared.silence.lock().unwrap_or_else(PoisonError::into_inner).1;
        (writers, work)
    }
}

async fn write(mut writer: Writer, mut members: Vec<Client>, mut home: usize, shared: Arc<Shared>) -> Writer {
    let count = members.len();
    while !shared.stopped() {
        let mut tries = 0;
        loop {
            if writer.write(&mut members[home % count], PATIENCE).await {
                shared.heard();
                break;
            }
            home += 1;
            tries += 1;
            if tries == 2 {
                shared.failed_twice.fetch_add(1, Ordering::SeqCst);
            }
            if shared.stopped() {
                break;
            }
            if tries > 1 {
                sleep(BREATH).await;
            }
        }
    }
    writer
}

async fn read_on(
    mut members: Vec<Client>,
    home: usize,
    writers: usize,
    mut random: SmallRng,
    shared: Arc<Shared>,
) -> Vec<Read> {
    let count = members.len();
    let mut reads = Vec::new();
    while !shared.stopped() {
        // Mostly its own member, so that one that is stuck does not take all readers with it.
        let member = if random.random_ratio(3, 4) { home % count } else { random.random_range(0..count) };
        let key = any_key(writers, &mut random);
        let serializable = random.random_ratio(1, 4);
        let answer = read(&mut members[member], member, key, serializable, &shared.acknowledged);
        if let Ok(Ok(read)) = timeout(PATIENCE, answer).await {
            reads.push(read);
        }
        sleep(BETWEEN_READS).await;
    }
    reads
}

/// Keeps a lease alive through one member after the other. A lease may expire only if no renewal was acknowledged for
/// as long as it lives.
async fn keep_a_lease(members: Vec<Client>, shared: Arc<Shared>) -> Vec<String> {
    let mut expired = Vec::new();
    let mut lease = None;
    for mut client in members.into_iter().cycle() {
        if shared.stopped() {
            break;
        }
        sleep(BETWEEN_RENEWALS).await;
        let asked = Instant::now();
        let Some((id, renewed)) = lease else {
            let grant = client.lease.lease_grant(LeaseGrantRequest { ttl: KEPT_TTL, id: 0 });
            if let Ok(Ok(granted)) = timeout(PATIENCE, grant).await {
                lease = Some((granted.into_inner().id, asked));
            }
            continue;
        };
        let renewal = async {
            let request = tonic::codegen::tokio_stream::iter([LeaseKeepAliveRequest { id }]);
            client.lease.lease_keep_alive(request).await.ok()?.into_inner().message().await.ok()?
        };
        match timeout(PATIENCE, renewal).await {
            Ok(Some(answer)) if answer.ttl > 0 => lease = Some((id, asked)),
            Ok(Some(_)) => {
                let since: Duration = renewed.elapsed();
                if since.as_secs() < KEPT_TTL as u64 {
                    expired.push(format!("lease {id:x} was renewed for {KEPT_TTL} s and gone after {since:.1?}"));
                }
                lease = None;
            }
            Ok(None) | Err(_) => {}
        }
    }
    expired
}

/// How long it takes until a write that was sent after this moment is acknowledged by any of `members`: new ones are
/// sent all the time, because a member may drop what it gets while there is no leader. Returns the probes as well.
pub async fn outage(members: &[SocketAddr], acknowledged: &Acknowledged) -> Result<(Duration, Vec<Attempt>), String> {
    let begun = Instant::now();
    let clients: Vec<Client> = members.iter().copied().map(lazily).collect();
    let mut probes = JoinSet::new();
    let mut attempts = Vec::new();
    let mut first = None;
    let mut sent = 0u64;
    while first.is_none() {
        if begun.elapsed() > PROBED_WITHIN {
            return Err(format!("no write was acknowledged within {PROBED_WITHIN:?} after a kill"));
        }
        for client in &clients {
            let (mut client, acknowledged) = (client.clone(), acknowledged.clone());
            sent += 1;
            let key = format!("probe/{}", sent % 8).into();
            let value = format!("probe-{:?}-{sent}", begun).into();
            let mut attempt =
                Attempt { writer: PROBE, puts: vec![(key, 0)], deletes: vec![], value, floor: 0, acknowledged: None };
            probes.spawn(async move {
                attempt.send(&mut client, PATIENCE, &acknowledged).await;
                (attempt, Instant::now())
            });
        }
        sleep(BETWEEN_PROBES).await;
        while let Some(probe) = probes.try_join_next() {
            let (attempt, at) = probe.expect("no probe panics");
            if attempt.acknowledged.is_some() {
                first = first.min(Some(at)).or(Some(at));
            }
            attempts.push(attempt);
        }
    }
    while let Some(probe) = probes.join_next().await {
        attempts.push(probe.expect("no probe panics").0);
    }
    Ok((first.map_or(Duration::MAX, |first| first - begun), attempts))
}
