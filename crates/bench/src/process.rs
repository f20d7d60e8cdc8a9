//! A server under test: started on a fresh directory, watched through `/proc`, stopped or killed.

use crate::control::Control;
use crate::error::BenchError;
use crate::place::Place;
use proto::etcdserverpb::{RangeRequest, RangeResponse};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

/// How long a start may take; etcd needs seconds after a large fill.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// How long a clean stop may take.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
/// A server is at rest when it has written nothing for this long.
const REST: Duration = Duration::from_millis(300);
const REST_PATIENCE: Duration = Duration::from_secs(5);
/// Linux reports CPU time to user space in hundredths of a second, whatever its own tick is (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);
/// The size of a WAL segment in etcd's format.
const WAL_SEGMENT_BYTES: u64 = 64_000_000;

/// A server to compare, as given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSpec {
    /// What the table calls it.
    pub name: String,
    /// The binary.
    pub program: PathBuf,
    /// Further flags of this server.
    pub flags: Vec<String>,
}

impl ServerSpec {
    /// Reads `name=path [flags]`.
    pub fn parse(text: &str) -> Result<ServerSpec, String> {
        let (name, command) = text.split_once('=').ok_or_else(|| format!("`{text}` is not NAME=PATH"))?;
        let mut words = command.split_whitespace().map(str::to_owned);
        match words.next() {
            Some(program) if !name.is_empty() => {
                Ok(ServerSpec { name: name.to_owned(), program: program.into(), flags: words.collect() })
            }
            _ => Err(format!("`{text}` is not NAME=PATH")),
        }
    }
}

impl ServerSpec {
    fn scheme(&self, flags: [&str; 2]) -> &'static str {
        let has = |flag: &&str| self.flags.iter().any(|word| word.split('=').next() == Some(flag));
        if flags.iter().any(has) { "https" } else { "http" }
    }

    /// What its clients speak, going by its flags.
    fn client_scheme(&self) -> &'static str {
        self.scheme(["--auto-tls", "--cert-file"])
    }

    /// What its members speak.
    fn peer_scheme(&self) -> &'static str {
        self.scheme(["--peer-auto-tls", "--peer-cert-file"])
    }
}

/// What a process has used up to now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time of all its threads, user and system; resolution 10 ms.
    pub cpu: Duration,
    /// Resident memory now, mapped files included.
    pub rss_bytes: u64,
    /// Resident memory without mapped files.
    pub rss_anonymous_bytes: u64,
    /// The highest resident memory so far.
    pub peak_rss_bytes: u64,
    /// Bytes that it caused to be written to the disk (`write_bytes` of `/proc/PID/io`).
    pub written_bytes: u64,
}

impl Usage {
    /// Reads the figures of process `pid`.
    pub fn of(pid: u32) -> Result<Usage, BenchError> {
        let read = |name: &str| {
            let path = PathBuf::from(format!("/proc/{pid}/{name}"));
            fs::read_to_string(&path).map_err(|source| BenchError::File { path, source })
        };
        let (stat, status, io) = (read("stat")?, read("status")?, read("io")?);
        // The command's name is in parentheses and may hold anything; utime and stime are fields 14 and 15.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks: u64 =
            after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        let number = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
        };
        Ok(Usage {
            cpu: TICK * u32::try_from(ticks).unwrap_or(u32::MAX),
            rss_bytes: number(&status, "VmRSS") * 1024,
            rss_anonymous_bytes: number(&status, "RssAnon") * 1024,
            peak_rss_bytes: number(&status, "VmHWM") * 1024,
            written_bytes: number(&io, "write_bytes"),
        })
    }
}

/// What lies in a data directory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Space {
    /// Disk blocks of the store: all files but the log and its `.snap` files.
    pub store_bytes: u64,
    /// Disk blocks of everything.
    pub total_bytes: u64,
    /// Segments of the log that have ever been made, the one prepared ahead included.
    pub wal_segments: u64,
}

impl Space {
    /// Measures the data directory `dir`. Files that vanish meanwhile count as gone.
    pub fn of(dir: &Path) -> Space {
        let mut space = Space::default();
        let mut highest_segment = None;
        let mut pending = vec![dir.to_owned()];
        while let Some(dir) = pending.pop() {
            let in_wal = dir.file_name().is_some_and(|name| name == "wal");
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            for entry in entries.flatten() {
                let Ok(metadata) = entry.metadata() else { continue };
                if metadata.is_dir() {
                    pending.push(entry.path());
                    continue;
                }
                let bytes = metadata.blocks() * 512;
                space.total_bytes += bytes;
                let name = entry.file_name().to_string_lossy().into_owned();
                if in_wal {
                    match name.strip_suffix(".wal").and_then(|name| name.split('-').next()) {
                        Some(sequence) => highest_segment = highest_segment.max(u64::from_str_radix(sequence, 16).ok()),
                        None => space.wal_segments += u64::from(metadata.len() >= WAL_SEGMENT_BYTES / 2),
                    }
                } else if !name.ends_with(".snap") {
                    space.store_bytes += bytes;
                }
            }
        }
        space.wal_segments += highest_segment.map_or(0, |highest| highest + 1);
        space
    }

    /// Bytes in the segments of the log made since `before`.
    pub fn segment_bytes_since(&self, before: &Space) -> u64 {
        self.wal_segments.saturating_sub(before.wal_segments) * WAL_SEGMENT_BYTES
    }
}

/// A running server of ours to measure. Killed when dropped; its directory is the caller's.
pub struct Server {
    spec: ServerSpec,
    dir: PathBuf,
    name: String,
    initial_cluster: String,
    client: SocketAddr,
    peer: SocketAddr,
    child: Option<Child>,
}

impl Server {
    /// Starts `spec` with its data under `dir`, alone, and waits until it answers; returns it and the time that took.
    pub async fn start(spec: &ServerSpec, dir: &Path) -> Result<(Server, Duration), BenchError> {
        let mut server = Server::cluster(spec, dir, 1)?.remove(0);
        let took = server.start_again().await?;
        Ok((server, took))
    }

    /// The `count` members of a cluster, with their data under `dir`, not yet started.
    pub fn cluster(spec: &ServerSpec, dir: &Path, count: usize) -> Result<Vec<Server>, BenchError> {
        let file = |source| BenchError::File { path: dir.to_owned(), source };
        let addresses = free_addresses(2 * count).map_err(file)?;
        let (clients, peers) = addresses.split_at(count);
        let name = |number: usize| format!("bench{number}");
        let named =
            peers.iter().enumerate().map(|(number, peer)| format!("{}={}://{peer}", name(number), spec.peer_scheme()));
        let initial_cluster = named.collect::<Vec<_>>().join(",");
        let members = clients.iter().zip(peers).enumerate().map(|(number, (client, peer))| {
            let (name, initial_cluster) = (name(number), initial_cluster.clone());
            let dir = dir.join(&name);
            fs::create_dir_all(&dir).map_err(file)?;
            let (spec, client, peer) = (spec.clone(), *client, *peer);
            Ok(Server { spec, dir, name, initial_cluster, client, peer, child: None })
        });
        members.collect()
    }

    /// Starts it on the directory that it has; returns the time from there to the first linearizable read.
    pub async fn start_again(&mut self) -> Result<Duration, BenchError> {
        let started = Instant::now();
        self.spawn()?;
        self.first_read().await?;
        Ok(started.elapsed())
    }

    /// Starts its process without waiting.
    pub fn spawn(&mut self) -> Result<(), BenchError> {
        self.kill();
        let log_path = self.log_path();
        let log = File::options().create(true).append(true).open(&log_path);
        let log = log.map_err(|source| BenchError::File { path: log_path.clone(), source })?;
        let client = format!("{}://{}", self.spec.client_scheme(), self.client);
        let peer = format!("{}://{}", self.spec.peer_scheme(), self.peer);
        let child = Command::new(&self.spec.program)
            .args(["--name", &self.name, "--quota-backend-bytes", "8589934592"])
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &self.initial_cluster])
            .args(&self.spec.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|source| BenchError::Start { program: self.spec.program.clone(), source })?;
        self.child = Some(child);
        Ok(())
    }

    /// Where clients connect.
    pub fn address(&self) -> Place {
        Place { address: self.client, is_secure: self.spec.client_scheme() == "https" }
    }

    /// Its process, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The directory that it was told to use.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// SIGTERM; returns the time until it is gone.
    pub async fn stop(&mut self) -> Result<Duration, BenchError> {
        let begun = Instant::now();
        self.signal(Signal::TERM);
        while let Some(child) = &mut self.child {
            match child.try_wait() {
                Ok(None) if begun.elapsed() > STOP_PATIENCE => return Err(BenchError::NotStopped(STOP_PATIENCE)),
                Ok(None) => sleep(Duration::from_millis(2)).await,
                Ok(Some(_)) | Err(_) => self.child = None,
            }
        }
        Ok(begun.elapsed())
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only for a process that is gone already.
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// Waits until the server has written nothing for a moment, so that its background work at the start or after a
    /// load (preparing log files, committing) is neither missed nor counted to the next step. Bounded.
    pub async fn rest(&self) -> Result<(), BenchError> {
        let begun = Instant::now();
        let (mut last, mut since) = (0, begun);
        while let Some(pid) = self.pid() {
            let written = Usage::of(pid)?.written_bytes;
            if written != last {
                (last, since) = (written, Instant::now());
            }
            if since.elapsed() >= REST || begun.elapsed() >= REST_PATIENCE {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// An error if the process has ended by itself.
    pub fn check_alive(&mut self) -> Result<(), BenchError> {
        let Some(child) = &mut self.child else { return Ok(()) };
        match child.try_wait() {
            Ok(Some(status)) => {
                self.child = None;
                Err(BenchError::Exited { status: status.to_string(), log: self.log_end() })
            }
            Ok(None) | Err(_) => Ok(()),
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid {
            kill_process(pid, signal).ok(); // fails only if it is gone, which the wait notices
        }
    }

    /// Waits for the first linearizable read to succeed. A new read is sent every few milliseconds beside those that
    /// wait, because a server may drop what reaches it before it leads.
    pub async fn first_read(&mut self) -> Result<(), BenchError> {
        const INTERVAL: Duration = Duration::from_millis(5);
        const ATTEMPT: Duration = Duration::from_secs(1);
        const IN_FLIGHT: usize = 200;
        let begun = Instant::now();
        let answered = Rc::new(Notify::new());
        let mut attempts = tokio::task::JoinSet::new();
        loop {
            if timeout(INTERVAL, answered.notified()).await.is_ok() {
                return Ok(());
            }
            self.check_alive()?;
            if begun.elapsed() > START_PATIENCE {
                return Err(BenchError::NotReady(START_PATIENCE, self.log_end()));
            }
            while attempts.try_join_next().is_some() {}
            if attempts.len() < IN_FLIGHT {
                let (address, answered) = (self.address(), Rc::clone(&answered));
                attempts.spawn_local(timeout(ATTEMPT, async move {
                    if linearizable_read(address).await.is_ok() {
                        answered.notify_one();
                    }
                }));
            }
        }
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// The last lines of the server's log, at most a few kilobytes.
    fn log_end(&self) -> String {
        let end = || -> io::Result<String> {
            let mut file = File::open(self.log_path())?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(3000)))?;
            let mut text = Vec::new();
            file.take(3000).read_to_end(&mut text)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        };
        end().unwrap_or_else(|error| format!("(no log: {error})"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn linearizable_read(address: Place) -> Result<(), BenchError> {
    let control = Control::connect(address).await?;
    let request = RangeRequest { key: "bench/ready".into(), ..Default::default() };
    let _answer: RangeResponse = control.call("/etcdserverpb.KV/Range", &request).await?;
    Ok(())
}

/// Addresses of 127.0.0.1 that nobody uses at this moment.
fn free_addresses(count: usize) -> io::Result<Vec<SocketAddr>> {
    // All are held until all are found, or one might be found twice.
    let held = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<Vec<_>>>()?;
    held.iter().map(TcpListener::local_addr).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_name_a_path_and_flags() {
        let spec = ServerSpec::parse("ours=target/release/etcd --max-wals=2").expect("well formed");
        assert_eq!((spec.name.as_str(), spec.program.as_path()), ("ours", Path::new("target/release/etcd")));
        assert_eq!(spec.flags, ["--max-wals=2"]);
        assert!(ServerSpec::parse("/usr/bin/etcd").is_err());
        assert!(ServerSpec::parse("=x").is_err());
    }

    /// The figures of this very process: it has memory, and burning CPU shows.
    #[test]
    fn usage_reads_what_the_process_has_used() {
        let pid = std::process::id();
        let before = Usage::of(pid).expect("our own process can be read");
        let mut sum = 0u64;
        while Usage::of(pid).expect("still there").cpu < before.cpu + TICK * 2 {
            sum = std::hint::black_box((0..100_000u64).sum::<u64>() ^ sum);
        }
        assert!(before.rss_bytes > 0 && before.peak_rss_bytes >= before.rss_bytes / 2, "{before:?}");
        assert!(Usage::of(0).is_err());
    }

    #[test]
    fn space_counts_segments_ever_made_and_leaves_the_log_out_of_the_store() {
        let dir = std::env::temp_dir().join(format!("keelson-bench-space-{}", std::process::id()));
        let (wal, snap) = (dir.join("member/wal"), dir.join("member/snap"));
        fs::create_dir_all(&wal).and_then(|()| fs::create_dir_all(&snap)).expect("a directory");
        fs::write(wal.join("0000000000000004-0000000000000009.wal"), [1; 5000]).expect("a file");
        File::create(wal.join("1.tmp")).and_then(|file| file.set_len(WAL_SEGMENT_BYTES)).expect("a file");
        fs::write(snap.join("0000000000000001-0000000000000002.snap"), [1; 5000]).expect("a file");
        fs::write(snap.join("db"), [1; 9000]).expect("a file");
        let space = Space::of(&dir);
        fs::remove_dir_all(&dir).expect("removed");
        assert_eq!(space.wal_segments, 6, "0 to 4 and the prepared one");
        assert!(space.store_bytes >= 9000 && space.store_bytes < 14_000, "{space:?}");
        assert!(space.total_bytes >= 19_000, "{space:?}");
    }
}
