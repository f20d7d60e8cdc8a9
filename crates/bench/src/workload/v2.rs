//! The v2 API over HTTP/1.1: each client has a connection of its own, which it keeps. Servers have to be given
//! `--enable-v2`.

use super::requests::random;
use super::{Settings, Target, VALUE_BYTES, load_figures, megabytes};
use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::load::{Outcome, Until};
use crate::metric::{self, Measured};
use crate::process::Usage;
use rand::Rng;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

/// Keys that are written and read.
const KEYS: u64 = 10_000;
/// Watchers that wait at once.
const WATCHERS: usize = 10_000;
/// Digits of a key's name.
const KEY_DIGITS: usize = 8;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to bring in all keys.
const FILL_PATIENCE: Duration = Duration::from_secs(300);
/// The longest answer that is understood.
const MAX_ANSWER: usize = 1 << 20;

/// Sets of 256 bytes to random keys.
pub async fn put(target: &mut Target<'_>, settings: &Settings, clients: usize) -> Result<Measured, BenchError> {
    load(target, settings, clients, true).await
}

/// Reads of single random keys, all of which are there.
pub async fn get(target: &mut Target<'_>, settings: &Settings, clients: usize) -> Result<Measured, BenchError> {
    let mut tasks = JoinSet::new();
    for share in 0..8 {
        let address = target.address.address;
        tasks.spawn_local(async move {
            let (mut client, mut set) = (Client::connect(address).await?, Template::set());
            for key in (share..KEYS).step_by(8) {
                client.ask(set.of(key), b"201").await?;
            }
            Ok::<_, io::Error>(())
        });
    }
    while let Some(filled) = joined(&mut tasks, FILL_PATIENCE).await? {
        filled.map_err(wrong)?;
    }
    target.rest().await?;
    load(target, settings, clients, false).await
}

/// What a waiting watcher costs: connections that each wait for a key of their own, and memory before and after.
pub async fn watchers(target: &mut Target<'_>) -> Result<Measured, BenchError> {
    let usage = |target: &Target<'_>| {
        target.usage()?.ok_or_else(|| BenchError::Wrong("the memory of a server elsewhere cannot be seen".into()))
    };
    let before = usage(target)?;
    let mut waiting = Vec::with_capacity(WATCHERS);
    for key in 0..WATCHERS {
        let mut client = in_time(Client::connect(target.address.address)).await?;
        let request = format!("GET /v2/keys/watched/{key}?wait=true HTTP/1.1\r\nHost: bench\r\n\r\n");
        in_time(client.wait(request.as_bytes())).await?;
        waiting.push(client);
    }
    target.rest().await?;
    let after = usage(target)?;
    // They were really waiting: the last one is told.
    let mut writer = in_time(Client::connect(target.address.address)).await?;
    let told =
        format!("PUT /v2/keys/watched/{}?value=1 HTTP/1.1\r\nHost: bench\r\nContent-Length: 0\r\n\r\n", WATCHERS - 1);
    in_time(writer.ask(told.as_bytes(), b"201")).await?;
    let last = waiting.last_mut().ok_or(BenchError::NothingMeasured)?;
    in_time(last.more()).await?;
    Ok(vec![
        (&metric::RSS, megabytes(after.rss_bytes)),
        (&metric::WATCHERS_RSS, megabytes(after.rss_bytes.saturating_sub(before.rss_bytes))),
    ])
}

/// What the next task to end has brought; none if all have ended.
async fn joined<T: 'static>(tasks: &mut JoinSet<T>, patience: Duration) -> Result<Option<T>, BenchError> {
    let ended = timeout(patience, tasks.join_next()).await;
    let ended = ended.map_err(|_| BenchError::Wrong(format!("no answer within {patience:?}")))?;
    ended.transpose().map_err(|panicked| BenchError::Wrong(panicked.to_string()))
}

fn wrong(error: io::Error) -> BenchError {
    BenchError::Wrong(error.to_string())
}

/// A request of which only the key's digits change: writing it anew each time would be the client's largest cost.
struct Template {
    text: Vec<u8>,
    digits: Range<usize>,
}

impl Template {
    fn new(method: &str, rest: &str) -> Self {
        let before = format!("{method} /v2/keys/bench/");
        let digits = before.len()..before.len() + KEY_DIGITS;
        let text = format!("{before}{:0KEY_DIGITS$} HTTP/1.1\r\nHost: bench\r\n{rest}", 0).into_bytes();
        Self { text, digits }
    }

    /// Sets a key.
    fn set() -> Self {
        let form = format!("value={}", "v".repeat(VALUE_BYTES));
        let kind = "application/x-www-form-urlencoded";
        Self::new("PUT", &format!("Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n{form}", form.len()))
    }

    /// Reads a key.
    fn read() -> Self {
        Self::new("GET", "\r\n")
    }

    fn of(&mut self, mut key: u64) -> &[u8] {
        for digit in self.text[self.digits.clone()].iter_mut().rev() {
            *digit = b'0' + (key % 10) as u8;
            key /= 10;
        }
        &self.text
    }
}

async fn load(target: &Target<'_>, settings: &Settings, clients: usize, puts: bool) -> Result<Measured, BenchError> {
    let Until::Time { warm_up, measured } = settings.until() else {
        return Err(BenchError::Wrong("this load has no end of its own".into()));
    };
    let start = Instant::now() + warm_up;
    let end = start + measured;
    let mut tasks = JoinSet::new();
    for number in 0..clients {
        let address = target.address.address;
        tasks.spawn_local(async move {
            let mut client = Client::connect(address).await?;
            let (mut random, mut latencies) = (random(number), Histogram::default());
            let (mut request, status) = if puts { (Template::set(), b"201") } else { (Template::read(), b"200") };
            let mut sent = Instant::now();
            while sent < end {
                client.ask(request.of(random.random_range(0..KEYS)), status).await?;
                let now = Instant::now();
                if now >= start && now < end {
                    latencies.record(now - sent);
                }
                sent = now;
            }
            Ok::<_, io::Error>(latencies)
        });
    }
    sleep_until(start.into()).await;
    let (before, own_before, measured_from) = (target.usage()?, Usage::of(std::process::id())?.cpu, Instant::now());
    sleep_until(end.into()).await;
    let elapsed = measured_from.elapsed();
    let after = target.usage()?;
    let client_cpu = Usage::of(std::process::id())?.cpu.saturating_sub(own_before);
    let mut latencies = Histogram::default();
    while let Some(client) = joined(&mut tasks, PATIENCE).await? {
        latencies.merge(&client.map_err(wrong)?);
    }
    let server_cpu = before.zip(after).map(|(before, after)| after.cpu.saturating_sub(before.cpu));
    let mut measured = load_figures(&Outcome { latencies, elapsed, server_cpu, client_cpu })?;
    if let Some(after) = after {
        measured.push((&metric::PEAK_RSS, megabytes(after.peak_rss_bytes)));
    }
    Ok(measured)
}

/// One connection.
struct Client {
    socket: TcpStream,
    answer: Vec<u8>,
}

impl Client {
    async fn connect(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        Ok(Self { socket, answer: Vec::with_capacity(2 << 10) })
    }

    /// Asks and reads the whole answer, which must have this status, or the one of a key that was there before.
    async fn ask(&mut self, request: &[u8], status: &[u8]) -> io::Result<()> {
        self.answer.clear();
        self.socket.write_all(request).await?;
        loop {
            self.more().await?;
            if length(&self.answer)?.is_some_and(|length| self.answer.len() >= length) {
                let given = self.answer.get(9..12).unwrap_or_default();
                return match given == status || given == b"200" {
                    true => Ok(()),
                    false => Err(io::Error::other(String::from_utf8_lossy(&self.answer).into_owned())),
                };
            }
        }
    }

    /// Asks for a watch and reads the head of the answer.
    async fn wait(&mut self, request: &[u8]) -> io::Result<()> {
        self.socket.write_all(request).await?;
        while !self.answer.windows(4).any(|end| end == b"\r\n\r\n") {
            self.more().await?;
        }
        Ok(())
    }

    async fn more(&mut self) -> io::Result<()> {
        match self.socket.read_buf(&mut self.answer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ if self.answer.len() > MAX_ANSWER => Err(io::Error::other("the answer is too long")),
            _ => Ok(()),
        }
    }
}

/// Bounds what a server may keep us waiting for. Not around single answers under load: that would set a timer for each.
async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> Result<T, BenchError> {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(wrong)
}

/// The length of a whole answer; none until its head has arrived.
fn length(answer: &[u8]) -> io::Result<Option<usize>> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(begin) = head.parse(answer).map_err(io::Error::other)? else { return Ok(None) };
    let length = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|field| std::str::from_utf8(field.value).ok()?.parse::<usize>().ok());
    let length = length.ok_or_else(|| io::Error::other("an answer without a length"))?;
    Ok(Some(begin.saturating_add(length)))
}
