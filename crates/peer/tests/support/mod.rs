//! A member that only records what its transport tells it, and the means to wait for that.
#![allow(dead_code)] // each test file uses its own part

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use peer::{
    BoxFuture, Config, HashError, HashKv, LeaseError, Local, PromoteError, RemainingLease, StepError, Transport,
};
use proto::raftpb::{Entry, Message, MessageType};

pub const CLUSTER: u64 = 0xc1;
/// Long enough for anything that happens at all, on a busy machine too.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a transport told its member.
#[derive(Debug, Default)]
pub struct Told {
    pub messages: Vec<Message>,
    pub unreachable: Vec<u64>,
    pub snapshots: Vec<(u64, bool)>,
    pub gone: Vec<(u64, Instant)>,
    pub removed_by: Vec<u64>,
    /// Index of the snapshot, and its file or why there is none.
    pub files: Vec<(u64, Result<Vec<u8>, String>)>,
    pub round_trips: usize,
}

#[derive(Debug, Default)]
pub struct Recorder {
    told: Mutex<Told>,
    changed: Condvar,
    pub removed: Mutex<BTreeSet<u64>>,
    /// Files are counted and not kept, as slowly as this per read.
    pub slow_disk: Mutex<Option<Duration>>,
}

impl Recorder {
    fn note(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.told.lock());
        self.changed.notify_all();
    }

    /// What `look` finds once it finds something.
    pub fn wait_for<T>(&self, what: &str, mut look: impl FnMut(&mut Told) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut told = self.told.lock();
        loop {
            if let Some(found) = look(&mut told) {
                return found;
            }
            if self.changed.wait_until(&mut told, deadline).timed_out() {
                let Told { messages, unreachable, snapshots, gone, removed_by, files, .. } = &*told;
                let types: Vec<_> = messages.iter().map(Message::r#type).collect();
                panic!(
                    "{what} did not happen: {types:?} {unreachable:?} {snapshots:?} {gone:?} {removed_by:?} {}",
                    files.len()
                );
            }
        }
    }

    /// Waits until `count` messages have come and takes them.
    pub fn take_messages(&self, count: usize) -> Vec<Message> {
        self.wait_for("enough messages", |told| {
            (told.messages.len() >= count).then(|| std::mem::take(&mut told.messages))
        })
    }

    pub fn look<T>(&self, look: impl FnOnce(&mut Told) -> T) -> T {
        look(&mut self.told.lock())
    }
}

impl Local for Recorder {
    fn step(&self, message: Message) -> Result<(), StepError> {
        if self.is_removed(message.from()) {
            return Err(StepError::Removed);
        }
        self.note(|told| told.messages.push(message));
        Ok(())
    }
    fn report_unreachable(&self, id: u64) {
        self.note(|told| told.unreachable.push(id));
    }
    fn report_snapshot(&self, id: u64, delivered: bool) {
        self.note(|told| told.snapshots.push((id, delivered)));
    }
    fn peer_gone(&self, id: u64) {
        self.note(|told| told.gone.push((id, Instant::now())));
    }
    fn removed(&self, by: u64) {
        self.note(|told| told.removed_by.push(by));
    }
    fn is_removed(&self, id: u64) -> bool {
        self.removed.lock().contains(&id)
    }
    fn members(&self) -> Vec<u8> {
        br#"[{"id":2,"peerURLs":["http://127.0.0.1:1"],"name":"b","clientURLs":["http://127.0.0.1:2"]}]"#.to_vec()
    }
    fn version(&self) -> Vec<u8> {
        br#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#.to_vec()
    }
    fn save_snapshot(&self, message: &Message, body: &mut dyn Read) -> Result<(), String> {
        let index = message.snapshot.as_ref().unwrap().metadata.as_ref().unwrap().index();
        let slow = *self.slow_disk.lock();
        let mut file = Vec::new();
        let mut buffer = vec![0; 1 << 20];
        let result = loop {
            match body.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(count) => match slow {
                    // Stands for a slow disk; nothing depends on how long it takes.
                    Some(pause) => std::thread::sleep(pause),
                    None => file.extend_from_slice(&buffer[..count]),
                },
                Err(error) => break Err(error.to_string()),
            }
        };
        self.note(|told| told.files.push((index, result.clone().map(|()| file))));
        result
    }
    fn renew_lease(&self, id: i64) -> BoxFuture<Result<i64, LeaseError>> {
        Box::pin(async move {
            match id {
                12345 => Ok(60),
                1 => Err(LeaseError::NotPrimary),
                2 => Err(LeaseError::Timeout),
                3 => Err(LeaseError::Other("disk on fire".into())),
                _ => Err(LeaseError::NotFound),
            }
        })
    }
    fn remaining_lease(&self, id: i64, keys: bool) -> BoxFuture<Result<RemainingLease, LeaseError>> {
        Box::pin(async move {
            let keys = if keys { vec!["a".into()] } else { Vec::new() };
            match id {
                12345 => Ok(RemainingLease { id, ttl: 59, granted_ttl: 60, keys }),
                1 => Err(LeaseError::NotPrimary),
                _ => Err(LeaseError::NotFound),
            }
        })
    }
    fn promote(&self, id: u64) -> BoxFuture<Result<Vec<u8>, PromoteError>> {
        let members = self.members();
        Box::pin(async move {
            match id {
                1 => Ok(members),
                2 => Err(PromoteError::NotLearner),
                3 => Err(PromoteError::NotReady),
                4 => Err(PromoteError::Other("no".into())),
                _ => Err(PromoteError::NotFound),
            }
        })
    }
    fn v2_digest(&self, log_index: u64) -> BoxFuture<Option<u64>> {
        Box::pin(std::future::ready((log_index == 3).then_some(0xfedc_ba98_7654_3210)))
    }

    fn hash_kv(&self, revision: i64) -> BoxFuture<Result<HashKv, HashError>> {
        Box::pin(async move {
            match revision {
                1 => Err(HashError::Compacted),
                99 => Err(HashError::Future),
                _ => Ok(HashKv {
                    revision: 12,
                    hash: 758021467,
                    compact_revision: -1,
                    hash_revision: Some(if revision == 0 { 12 } else { revision }),
                }),
            }
        })
    }
    fn downgrade_enabled(&self) -> BoxFuture<Result<bool, String>> {
        Box::pin(async { Ok(false) })
    }
    fn round_trip(&self, _id: u64, _took: Duration) {
        self.note(|told| told.round_trips += 1);
    }
}

/// A transport with a recording member.
pub struct Member {
    pub id: u64,
    pub address: SocketAddr,
    pub local: Arc<Recorder>,
    pub transport: Transport,
}

impl Member {
    pub fn start(id: u64) -> Self {
        Self::start_at(id, TcpListener::bind("127.0.0.1:0").unwrap(), |_| ())
    }

    pub fn start_at(id: u64, listener: TcpListener, configure: impl FnOnce(&mut Config)) -> Self {
        let address = listener.local_addr().unwrap();
        let mut config = Config::new(CLUSTER, id, vec![format!("http://{address}")], "3.7.1");
        configure(&mut config);
        let local = Arc::new(Recorder::default());
        let transport = Transport::start(config, vec![listener.into()], local.clone()).unwrap();
        Self { id, address, local, transport }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn add(&self, other: &Member) {
        self.transport.add_peer(other.id, vec![other.url()]);
    }

    /// Two members that have all their streams.
    pub fn pair() -> (Self, Self) {
        let (a, b) = (Self::start(1), Self::start(2));
        a.add(&b);
        b.add(&a);
        a.wait_until_streams_to(&b);
        b.wait_until_streams_to(&a);
        (a, b)
    }

    /// Waits until both streams to `other` are there.
    pub fn wait_until_streams_to(&self, other: &Member) {
        wait_until("the streams are there", || self.transport.open_streams(other.id) == 2);
    }
}

/// Looks every now and then until something holds.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not reached: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.transport.stop();
    }
}

pub fn heartbeat(from: u64, to: u64, commit: u64) -> Message {
    Message {
        r#type: Some(MessageType::MsgHeartbeat as i32),
        from: Some(from),
        to: Some(to),
        term: Some(2),
        commit: Some(commit),
        ..Message::default()
    }
}

/// An append of one entry that follows `index` in the same term.
pub fn append(from: u64, to: u64, index: u64, data: impl Into<bytes::Bytes>) -> Message {
    let entry = Entry { term: Some(2), index: Some(index + 1), r#type: None, data: Some(data.into()) };
    Message {
        r#type: Some(MessageType::MsgApp as i32),
        from: Some(from),
        to: Some(to),
        term: Some(2),
        log_term: Some(2),
        index: Some(index),
        commit: Some(index),
        entries: vec![entry],
        ..Message::default()
    }
}

/// An answer as it came over the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// 0 when the connection was closed without an answer.
    pub status: u16,
    /// Lines, sorted, without those that differ from one answer to the next.
    pub headers: Vec<String>,
    pub body: String,
}

/// Sends bytes on a new connection and reads what comes until it is closed, or until as much came as was announced.
pub fn exchange(address: SocketAddr, request: &[u8]) -> Reply {
    use std::io::Write;
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // A server that refuses early may close before it has read everything.
    let _ = stream.write_all(request);
    read_reply(&mut stream, request.starts_with(b"HEAD"))
}

fn read_reply(stream: &mut std::net::TcpStream, is_head: bool) -> Reply {
    let mut raw = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = raw.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(raw[..end].to_vec()).unwrap();
            let mut lines = head.lines();
            let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
            let wanted = if is_head { 0 } else { length.unwrap_or(0) };
            if raw.len() - end - 4 >= wanted {
                let mut headers: Vec<_> = lines
                    .filter(|line| !line.starts_with("Date:") && !line.starts_with("Connection:"))
                    .map(str::to_owned)
                    .collect();
                headers.sort();
                return Reply { status, headers, body: String::from_utf8_lossy(&raw[end + 4..]).into_owned() };
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return Reply::default(),
            Ok(count) => raw.extend_from_slice(&buffer[..count]),
        }
    }
}

/// A request with the headers by which a member introduces itself; `changes` replaces some, an empty value leaves one
/// out.
pub fn request(
    method: &str,
    path: &str,
    introduction: &[(&str, String)],
    changes: &[(&str, &str)],
    body: &[u8],
) -> Vec<u8> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n");
    for (name, value) in introduction {
        if !changes.iter().any(|(changed, _)| changed == name) {
            request += &format!("{name}: {value}\r\n");
        }
    }
    for (name, value) in changes.iter().filter(|(_, value)| !value.is_empty()) {
        request += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        request += &format!("Content-Length: {}\r\n", body.len());
    }
    request += "\r\n";
    [request.as_bytes(), body].concat()
}

/// The headers of a member of 3.4.
pub fn introduction(cluster: u64, from: u64, to: u64) -> Vec<(&'static str, String)> {
    vec![
        ("X-Etcd-Cluster-Id", format!("{cluster:x}")),
        ("X-Server-From", format!("{from:x}")),
        ("X-Server-Version", "3.4.23".into()),
        ("X-Min-Cluster-Version", "3.0.0".into()),
        ("X-Raft-To", format!("{to:x}")),
    ]
}
