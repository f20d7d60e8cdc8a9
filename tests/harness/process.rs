//! One server process: started, waited for, signalled, restarted, and reaped whatever happens.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tls::Connector;

use super::Binary;

/// How long a server may take to serve. A loaded machine is slow, and a wrong server is a failure anyway.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long a server may take to stop after SIGTERM.
const STOPPED_WITHIN: Duration = Duration::from_secs(20);
/// Pause between two looks at a process or a port; there is nothing to wait on.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What went wrong with a process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The program could not be started or watched.
    #[error("{binary}: {action}: {source}")]
    Io {
        /// Which program.
        binary: String,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It ended before it was ready.
    #[error("{binary} ended with {status} before it served; its last lines:\n{log}")]
    Ended {
        /// Which program.
        binary: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote.
        log: String,
    },
    /// It runs and does not do what was waited for.
    #[error("{binary} was not {what} within {within:?}; its last lines:\n{log}")]
    TimedOut {
        /// Which program.
        binary: String,
        /// What was waited for.
        what: &'static str,
        /// For how long.
        within: Duration,
        /// The end of what it wrote.
        log: String,
    },
}

/// How to start a server.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// More flags, after those that name the addresses and the data directory.
    pub flags: Vec<OsString>,
    /// The data directory; a fresh one inside the server's own temporary directory if `None`.
    pub data_dir: Option<PathBuf>,
    /// How to connect to it in TLS: then it listens in TLS for clients, and for members if [`Options::peers_in_tls`].
    pub tls: Option<Arc<Connector>>,
    /// Members speak TLS with each other.
    pub peers_in_tls: bool,
    /// Its place in a cluster; the only member of its own, on free ports of 127.0.0.1, if `None`.
    pub seat: Option<Seat>,
}

/// A member's place in a cluster: what the others call it, and where they find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// `--name`.
    pub name: String,
    /// Where it is advertised to clients.
    pub client: SocketAddr,
    /// Where it is advertised to members.
    pub peer: SocketAddr,
    /// The network namespace that its process lives in, where it listens on every address; ours if `None`.
    pub namespace: Option<String>,
    /// `--initial-cluster`; empty for a member that finds the others in another way.
    pub initial_cluster: String,
}

impl Seat {
    /// The only member of a cluster on two free ports.
    fn alone(peers_in_tls: bool) -> std::io::Result<Seat> {
        let [client, peer] = free_addresses()?;
        let initial_cluster = format!("default={}://{peer}", scheme(peers_in_tls));
        Ok(Seat { name: "default".into(), client, peer, namespace: None, initial_cluster })
    }

    /// The address to listen on for the one that is advertised.
    fn listening(&self, advertised: SocketAddr) -> SocketAddr {
        match self.namespace {
            Some(_) => SocketAddr::from(([0, 0, 0, 0], advertised.port())),
            None => advertised,
        }
    }
}

fn scheme(is_in_tls: bool) -> &'static str {
    if is_in_tls { "https" } else { "http" }
}

/// A server process. Dropping it kills and reaps the process and removes its files.
#[derive(Debug)]
pub struct Server {
    binary: Binary,
    child: Option<Child>,
    seat: Seat,
    data_dir: PathBuf,
    flags: Vec<OsString>,
    tls: Option<Arc<Connector>>,
    peers_in_tls: bool,
    home: TempDir,
}

impl Server {
    /// Starts `binary` and waits until it serves.
    pub fn start(binary: &Binary, options: Options) -> Result<Server, ProcessError> {
        let mut server = Server::spawned(binary, options)?;
        server.wait_ready()?;
        Ok(server)
    }

    /// Starts `binary` without waiting: for tests of a start that must fail, or is to be interrupted.
    pub fn spawned(binary: &Binary, options: Options) -> Result<Server, ProcessError> {
        let home = tempfile::Builder::new().prefix("keelson-test-").tempdir().map_err(|source| ProcessError::Io {
            binary: binary.name.clone(),
            action: "make a temporary directory",
            source,
        })?;
        let (tls, peers_in_tls) = (options.tls, options.peers_in_tls);
        let seat = options.seat.map_or_else(|| Seat::alone(peers_in_tls), Ok).map_err(|source| ProcessError::Io {
            binary: binary.name.clone(),
            action: "find free ports",
            source,
        })?;
        let data_dir = options.data_dir.unwrap_or_else(|| home.path().join("data"));
        let flags = options.flags;
        let mut server = Server { binary: binary.clone(), child: None, seat, data_dir, flags, tls, peers_in_tls, home };
        server.spawn()?;
        Ok(server)
    }

    /// Starts the program again on the same data and the same ports, without waiting until it serves.
    ///
    /// # Panics
    /// If it still runs: two processes on one data directory is another test.
    pub fn spawn(&mut self) -> Result<(), ProcessError> {
        assert!(self.child.is_none(), "{} already runs", self.binary.name);
        let log = File::options().create(true).append(true).open(self.log_path());
        let log = log.map_err(|source| self.io("open its log", source))?;
        let errors = log.try_clone().map_err(|source| self.io("open its log", source))?;
        let seat = &self.seat;
        let url = |address: SocketAddr| format!("{}://{address}", scheme(self.tls.is_some()));
        let peer_url = |address: SocketAddr| format!("{}://{address}", scheme(self.peers_in_tls));
        let mut command = match &seat.namespace {
            None => Command::new(&self.binary.path),
            Some(namespace) => {
                let mut command = Command::new("ip"); // which becomes the server, with the same process ID
                command.args(["netns", "exec", namespace]).arg(&self.binary.path);
                command
            }
        };
        command.args(["--name", &seat.name, "--logger", "zap", "--data-dir"]).arg(&self.data_dir);
        command.args(["--listen-client-urls", &url(seat.listening(seat.client))]);
        command.args(["--advertise-client-urls", &url(seat.client)]);
        command.args(["--listen-peer-urls", &peer_url(seat.listening(seat.peer))]);
        command.args(["--initial-advertise-peer-urls", &peer_url(seat.peer)]);
        if !seat.initial_cluster.is_empty() {
            command.args(["--initial-cluster", &seat.initial_cluster]);
        }
        command.args(&self.flags);
        // A developer's own settings must not reach the servers under test.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD_")) {
            command.env_remove(name);
        }
        command.current_dir(self.home.path()).stdin(Stdio::null()).stdout(log).stderr(errors);
        self.child = Some(command.spawn().map_err(|source| self.io("start", source))?);
        Ok(())
    }

    /// Waits until the server says that it is healthy, which for etcd includes a leader and a read through it.
    pub fn wait_ready(&mut self) -> Result<(), ProcessError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if let Some(status) = self.ended()? {
                return Err(ProcessError::Ended { binary: self.binary.name.clone(), status, log: self.log_tail() });
            }
            if self.is_healthy() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.timed_out("ready", READY_WITHIN));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Whether `/health` says so now.
    pub fn is_healthy(&self) -> bool {
        self.get("/health").is_ok_and(|answer| answer.contains(r#""health":"true""#))
    }

    /// One GET at its client port; see [`http_get`].
    pub fn get(&self, path: &str) -> std::io::Result<String> {
        match &self.tls {
            None => http_get(self.client_addr(), path),
            Some(tls) => {
                let socket = connect_for_http(self.client_addr())?;
                exchange(tls.connect_blocking(socket, "127.0.0.1")?, self.client_addr(), path)
            }
        }
    }

    /// The exit status if the process has ended, without waiting.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        match &mut self.child {
            None => Ok(None),
            Some(child) => match child.try_wait() {
                Ok(Some(status)) => {
                    self.child = None;
                    Ok(Some(status))
                }
                Ok(None) => Ok(None),
                Err(source) => Err(self.io("look after", source)),
            },
        }
    }

    /// Waits until the process has ended by itself.
    pub fn wait_ended(&mut self, within: Duration) -> Result<ExitStatus, ProcessError> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(self.timed_out("ended", within));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// SIGTERM, and waits for the end: a clean stop.
    pub fn stop(&mut self) -> Result<ExitStatus, ProcessError> {
        self.signal(Signal::TERM)?;
        self.wait_ended(STOPPED_WITHIN)
    }

    /// SIGSTOP: the process stands still and its sockets stay open, as on a machine that hangs.
    pub fn pause(&self) -> Result<(), ProcessError> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT, the end of [`Server::pause`].
    pub fn resume(&self) -> Result<(), ProcessError> {
        self.signal(Signal::CONT)
    }

    /// Whether a process is there, as far as is known without asking the system.
    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// The process's ID, if there is one.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Its place in the cluster; a change counts from the next start on.
    pub fn seat_mut(&mut self) -> &mut Seat {
        &mut self.seat
    }

    /// Its further flags; a change counts from the next start on.
    pub fn flags_mut(&mut self) -> &mut Vec<OsString> {
        &mut self.flags
    }

    fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        let Some(child) = &self.child else { return Ok(()) };
        kill_process(Pid::from_child(child), signal).map_err(|source| self.io("signal", source.into()))
    }

    /// SIGKILL, as a crash of the process; what the kernel has of its writes stays.
    pub fn kill(&mut self) -> Result<(), ProcessError> {
        if let Some(mut child) = self.child.take() {
            child.kill().and_then(|()| child.wait()).map_err(|source| self.io("kill", source))?;
        }
        Ok(())
    }

    /// Where clients connect.
    pub fn client_addr(&self) -> SocketAddr {
        self.seat.client
    }

    /// Where members connect.
    pub fn peer_url(&self) -> String {
        format!("{}://{}", scheme(self.peers_in_tls), self.seat.peer)
    }

    /// What the cluster calls it.
    pub fn name(&self) -> &str {
        &self.seat.name
    }

    /// The same as a URL.
    pub fn client_url(&self) -> String {
        format!("{}://{}", scheme(self.tls.is_some()), self.client_addr())
    }

    /// Where the data is.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The program.
    pub fn binary(&self) -> &Binary {
        &self.binary
    }

    /// Everything that it has written to stdout and stderr.
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(self.log_path()) {
            // A log that cannot be read to its end is still worth showing.
            file.read_to_end(&mut text).ok();
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The server's version as `/version` gives it, for instance `3.5.1`.
    pub fn version(&self) -> Option<String> {
        let answer = self.get("/version").ok()?;
        let body = answer.split("\r\n\r\n").nth(1)?;
        let value: serde_json::Value = serde_json::from_str(body.trim()).ok()?;
        Some(value.get("etcdserver")?.as_str()?.to_owned())
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn io(&self, action: &'static str, source: std::io::Error) -> ProcessError {
        ProcessError::Io { binary: self.binary.name.clone(), action, source }
    }

    fn timed_out(&self, what: &'static str, within: Duration) -> ProcessError {
        ProcessError::TimedOut { binary: self.binary.name.clone(), what, within, log: self.log_tail() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing can be done about a process that cannot be killed, and a panic in drop would hide the test's own.
        self.kill().ok();
        if std::thread::panicking() {
            eprintln!("--- the last lines of {}:\n{}", self.binary.name, self.log_tail());
        }
    }
}

/// One GET without a client library, so that a broken server cannot confuse it: the whole answer as text, at most 1 MiB.
/// It is of HTTP/1.0, which has no chunks that could cut a line in two.
pub fn http_get(server: SocketAddr, path: &str) -> std::io::Result<String> {
    exchange(connect_for_http(server)?, server, path)
}

fn connect_for_http(server: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&server, Duration::from_secs(2))?;
    socket.set_read_timeout(Some(Duration::from_secs(8)))?;
    Ok(socket)
}

fn exchange(mut socket: impl Read + Write, server: SocketAddr, path: &str) -> std::io::Result<String> {
    write!(socket, "GET {path} HTTP/1.0\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    socket.flush()?;
    let mut answer = Vec::new();
    socket.take(1 << 20).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Addresses of 127.0.0.1 that were free a moment ago.
pub fn free_addresses<const N: usize>() -> std::io::Result<[SocketAddr; N]> {
    // All are held until all are found, or one might be found twice.
    let mut addresses = [SocketAddr::from(([127, 0, 0, 1], 0)); N];
    let mut held = Vec::with_capacity(N);
    for address in &mut addresses {
        let listener = TcpListener::bind(*address)?;
        *address = listener.local_addr()?;
        held.push(listener);
    }
    Ok(addresses)
}
