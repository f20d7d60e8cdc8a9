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
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

/// Keys that are written and read.
const KEYS: u64 = 10_000;
/// Watchers that wait at once.
const WATCHERS: usize = 10_000;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
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
        let address = target.address;
        tasks.spawn_local(async move {
            let mut client = Client::connect(address).await?;
            for key in (share..KEYS).step_by(8) {
                client.ask(&set(key), 201).await?;
            }
            Ok::<_, io::Error>(())
        });
    }
    while let Some(filled) = tasks.join_next().await {
        filled.map_err(|panicked| BenchError::Wrong(panicked.to_string()))?.map_err(wrong)?;
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
        let mut client = Client::connect(target.address).await.map_err(wrong)?;
        let request = format!("GET /v2/keys/watched/{key}?wait=true HTTP/1.1\r\nHost: bench\r\n\r\n");
        client.wait(request.as_bytes()).await.map_err(wrong)?;
        waiting.push(client);
    }
    target.rest().await?;
    let after = usage(target)?;
    // They were really waiting: the last one is told.
    let mut writer = Client::connect(target.address).await.map_err(wrong)?;
    let told =
        format!("PUT /v2/keys/watched/{}?value=1 HTTP/1.1\r\nHost: bench\r\nContent-Length: 0\r\n\r\n", WATCHERS - 1);
    writer.ask(told.as_bytes(), 201).await.map_err(wrong)?;
    let last = waiting.last_mut().ok_or(BenchError::NothingMeasured)?;
    last.more().await.map_err(wrong)?;
    Ok(vec![
        (&metric::RSS, megabytes(after.rss_bytes)),
        (&metric::WATCHERS_RSS, megabytes(after.rss_bytes.saturating_sub(before.rss_bytes))),
    ])
}

fn wrong(error: io::Error) -> BenchError {
    BenchError::Wrong(error.to_string())
}

fn set(key: u64) -> Vec<u8> {
    let form = format!("value={}", "v".repeat(VALUE_BYTES));
    let kind = "application/x-www-form-urlencoded";
    let length = form.len();
    format!(
        "PUT /v2/keys/bench/{key:08} HTTP/1.1\r\nHost: bench\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{form}"
    )
    .into_bytes()
}

fn read(key: u64) -> Vec<u8> {
    format!("GET /v2/keys/bench/{key:08} HTTP/1.1\r\nHost: bench\r\n\r\n").into_bytes()
}

async fn load(target: &Target<'_>, settings: &Settings, clients: usize, puts: bool) -> Result<Measured, BenchError> {
    let Until::Time { warm_up, measured } = settings.until() else {
        return Err(BenchError::Wrong("this load has no end of its own".into()));
    };
    let start = Instant::now() + warm_up;
    let end = start + measured;
    let mut tasks = JoinSet::new();
    for number in 0..clients {
        let address = target.address;
        tasks.spawn_local(async move {
            let mut client = Client::connect(address).await?;
            let (mut random, mut latencies) = (random(number), Histogram::default());
            while Instant::now() < end {
                let key = random.random_range(0..KEYS);
                let request = if puts { set(key) } else { read(key) };
                let sent = Instant::now();
                let status = client.ask(&request, if puts { 201 } else { 200 }).await?;
                let now = Instant::now();
                if status && now >= start && now < end {
                    latencies.record(now - sent);
                }
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
    while let Some(client) = tasks.join_next().await {
        let client = client.map_err(|panicked| BenchError::Wrong(panicked.to_string()))?;
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
        Ok(Self { socket, answer: Vec::new() })
    }

    /// Asks and reads the whole answer. True if it has this status, or the one of a key that was there before.
    async fn ask(&mut self, request: &[u8], status: u16) -> io::Result<bool> {
        self.socket.write_all(request).await?;
        self.answer.clear();
        loop {
            self.more().await?;
            if let Some(length) = length(&self.answer)?
                && self.answer.len() >= length
            {
                let given = self.answer.get(9..12).unwrap_or_default();
                return match given == status.to_string().as_bytes() || given == b"200" {
                    true => Ok(true),
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
        let read = timeout(PATIENCE, self.socket.read_buf(&mut self.answer)).await;
        match read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ if self.answer.len() > MAX_ANSWER => Err(io::Error::other("the answer is too long")),
            _ => Ok(()),
        }
    }
}

/// The length of a whole answer; none until its head has arrived.
fn length(answer: &[u8]) -> io::Result<Option<usize>> {
    let Some(head) = answer.windows(4).position(|end| end == b"\r\n\r\n") else { return Ok(None) };
    let name = b"content-length: ";
    let begin = answer[..head].windows(name.len()).position(|at| at.eq_ignore_ascii_case(name));
    let begin = begin.ok_or_else(|| io::Error::other("an answer without a length"))? + name.len();
    let digits = answer[begin..].iter().take_while(|byte| byte.is_ascii_digit());
    let body =
        digits.fold(0_usize, |length, digit| length.saturating_mul(10).saturating_add(usize::from(digit - b'0')));
    Ok(Some((head + 4).saturating_add(body)))
}
