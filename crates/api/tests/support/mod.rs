//! A server on a loopback port, with a member behind it that applies what it is asked without a log or a cluster.

#![allow(dead_code)] // each test file uses its part

use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Instant;

use bytes::Bytes;
use disk::MemDisk;
use http::{HeaderMap, Request};
use keelson_api::{
    Answer, AuthOptions, Authenticator, Client, HttpOptions, Identity, Limits, Member, Metrics, Outbox, Reply, Serves,
    Shared, SnapshotSource, Status, TimeToLive, Worker, serve_connection,
};
use prost::Message;
use proto::etcdserverpb::InternalRaftRequest;
use state::{Error, Reader, State};
use store::Store;
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::Channel;

pub const CLUSTER_ID: u64 = 0xcdf8_1818_1818_1818;
pub const MEMBER_ID: u64 = 0x8e9e_05c5_2164_694d;

/// Applies on a thread of its own, in the order asked, like the real one.
pub struct FakeMember {
    reader: Reader,
    proposals: Mutex<mpsc::Sender<(InternalRaftRequest, Reply)>>,
    limits: Limits,
    started: Instant,
    ids: AtomicU64,
    pub leader: AtomicU64,
    pub learner: AtomicBool,
    /// Whether linearizable reads need no barrier.
    pub local_reads: AtomicBool,
    /// Barriers that were asked for and not answered.
    pub barriers: Mutex<Vec<Reply>>,
    /// Held while nothing shall be applied.
    pub gate: Arc<Mutex<()>>,
}

impl FakeMember {
    fn new(limits: Limits) -> Arc<Self> {
        let disk: Arc<dyn disk::Disk> = Arc::new(MemDisk::new());
        let (store, writer, mark) =
            Store::open(disk, Path::new("/store"), store::Options::default()).expect("an empty store opens");
        let config = state::Config { quota_bytes: 0, heartbeat_ms: 100, election_timeout_ms: 1000 };
        let (state, reader) = State::open(store, writer, &mark, config).expect("an empty state opens");
        reader.lessor().promote(0, 0);
        let (sender, receiver) = mpsc::channel();
        let gate = Arc::new(Mutex::new(()));
        let member = Arc::new(Self {
            reader,
            proposals: Mutex::new(sender),
            limits,
            started: Instant::now(),
            ids: AtomicU64::new(1000),
            leader: AtomicU64::new(MEMBER_ID),
            learner: AtomicBool::new(false),
            local_reads: AtomicBool::new(true),
            barriers: Mutex::default(),
            gate: gate.clone(),
        });
        std::thread::spawn(move || apply_all(state, &receiver, &gate));
        member
    }
}

fn apply_all(mut state: State, proposals: &mpsc::Receiver<(InternalRaftRequest, Reply)>, gate: &Mutex<()>) {
    let mut outbox = Outbox::new();
    let mut index = 0;
    while let Ok(first) = proposals.recv() {
        let _open = gate.lock().expect("not poisoned");
        for (request, reply) in std::iter::once(first).chain(proposals.try_iter()) {
            index += 1;
            let applied = state.apply(index, 1, &request.encode_to_vec().into()).expect("a memory disk does not fail");
            outbox.push(reply, applied.result.map(Answer::Applied));
        }
        outbox.flush();
    }
}

impl Member for FakeMember {
    fn propose(&self, mut request: InternalRaftRequest, reply: Reply) {
        if request.encoded_len() > self.limits.max_request_bytes {
            return reply.send(Err(Error::RequestTooLarge));
        }
        let header = request.header.take().unwrap_or_default();
        request.header = Some(proto::etcdserverpb::RequestHeader { id: self.next_id(), ..header });
        // A closed channel drops the reply, which answers it.
        let _ = self.proposals.lock().expect("not poisoned").send((request, reply));
    }

    fn propose_v2(&self, request: proto::v2pb::Request, reply: Reply) {
        self.propose(InternalRaftRequest { v2: Some(request), ..Default::default() }, reply);
    }

    fn read_index(&self, reply: Reply) {
        self.barriers.lock().expect("not poisoned").push(reply);
    }

    fn read_is_local(&self) -> bool {
        self.local_reads.load(Ordering::Relaxed)
    }

    fn state(&self) -> &Reader {
        &self.reader
    }

    fn status(&self) -> Status {
        Status {
            version: "3.7.1".into(),
            cluster_version: "3.7.0".into(),
            storage_version: "3.7.0".into(),
            leader: self.leader(),
            term: self.term(),
            raft_index: 7,
            applied_index: 7,
            is_learner: self.is_learner(),
            db_size: 20480,
            db_size_in_use: 16384,
            quota_bytes: 2 << 30,
            downgrade_target: None,
        }
    }

    fn identity(&self) -> Identity {
        Identity { cluster_id: CLUSTER_ID, member_id: MEMBER_ID }
    }

    fn term(&self) -> u64 {
        2
    }

    fn leader(&self) -> u64 {
        self.leader.load(Ordering::Relaxed)
    }

    fn is_learner(&self) -> bool {
        self.learner.load(Ordering::Relaxed)
    }

    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    fn lease_renew(&self, id: i64, reply: Reply) {
        let ttl = match self.reader.lessor().renew(id, self.now_ms()) {
            state::lease::Renewal::Renewed { ttl, .. } => ttl,
            _ => 0,
        };
        reply.send(Ok(Answer::Renewed(ttl)));
    }

    fn lease_time_to_live(&self, id: i64, keys: bool, reply: Reply) {
        let answer = match self.reader.lessor().time_to_live(id, keys, self.now_ms()) {
            Some(found) => TimeToLive { ttl: found.ttl, granted_ttl: found.granted_ttl, keys: found.keys },
            None => TimeToLive { ttl: -1, ..Default::default() },
        };
        reply.send(Ok(Answer::TimeToLive(answer)));
    }

    fn now_ms(&self) -> u64 {
        1 + self.started.elapsed().as_millis() as u64
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, Error> {
        Ok(Box::new(Image { pieces: vec![Bytes::from(vec![2; 5000]), Bytes::from(vec![1; 40_000])] }))
    }

    fn defragment(&self, reply: Reply) {
        reply.send(Ok(Answer::Done));
    }
}

struct Image {
    /// The last comes first.
    pieces: Vec<Bytes>,
}

impl SnapshotSource for Image {
    fn total_bytes(&self) -> u64 {
        45_000
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, Error> {
        Ok(self.pieces.pop())
    }
}

/// A server that stops when dropped.
pub struct Server {
    pub address: SocketAddr,
    pub member: Arc<FakeMember>,
    /// Of the worker's thread.
    schedule: std::path::PathBuf,
    close: tokio::sync::watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub fn start() -> Self {
        Self::with_limits(Limits::default())
    }

    pub fn with_limits(limits: Limits) -> Self {
        Self::with(limits, HttpOptions::default())
    }

    pub fn with(limits: Limits, http: HttpOptions) -> Self {
        let member = FakeMember::new(limits);
        let (close, closing) = tokio::sync::watch::channel(false);
        let shared = Arc::new(Shared {
            member: member.clone(),
            metrics: Metrics::new(false),
            auth: Arc::new(
                Authenticator::new(&AuthOptions { bcrypt_cost: 4, ..AuthOptions::default() }).expect("good options"),
            ),
            http,
            closing: closing.clone(),
        });
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
                let schedule = std::fs::canonicalize("/proc/thread-self").expect("Linux").join("schedstat");
                tell.send((listener.local_addr().expect("bound"), schedule)).expect("the test waits");
                serve(shared, listener, closing).await;
            });
        });
        let (address, schedule) = told.recv().expect("the server starts");
        Self { address, member, schedule, close, thread: Some(thread) }
    }

    /// CPU time that the worker's thread has used.
    pub fn worker_cpu(&self) -> std::time::Duration {
        let line = std::fs::read_to_string(&self.schedule).expect("the thread lives");
        let nanos = line.split(' ').next().and_then(|field| field.parse().ok()).expect("nanoseconds come first");
        std::time::Duration::from_nanos(nanos)
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", self.address)).expect("a URL");
        endpoint.connect().await.expect("the server listens")
    }

    /// Waits until `holds`, for things that happen on the server's threads.
    pub async fn wait_until(&self, what: &str, holds: impl Fn(&FakeMember) -> bool) {
        let deadline = Instant::now() + std::time::Duration::from_secs(10);
        while !holds(&self.member) {
            assert!(Instant::now() < deadline, "never came: {what}");
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    /// Waits until `/metrics` shows this line.
    pub async fn wait_for_metric(&self, line: &str) {
        let deadline = Instant::now() + std::time::Duration::from_secs(10);
        while !self.http1("GET", "/metrics").await.lines().any(|found| found == line) {
            assert!(Instant::now() < deadline, "never came: {line}");
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    /// Answers all barriers that wait.
    pub fn pass_barriers(&self) {
        for reply in self.member.barriers.lock().expect("not poisoned").drain(..) {
            reply.send(Ok(Answer::Done));
        }
    }

    /// One gRPC call by hand: what came in the headers or trailers, and the body.
    pub async fn raw_call(&self, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> (HeaderMap, Vec<u8>) {
        let stream = TcpStream::connect(self.address).await.expect("the server listens");
        let (client, connection) = h2::client::handshake(stream).await.expect("it speaks HTTP/2");
        let driver = tokio::spawn(connection);
        let mut client = client.ready().await.expect("the connection stands");
        let mut request = Request::post(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.header("te", "trailers").body(()).expect("a request");
        let (response, mut send) = client.send_request(request, false).expect("sent");
        send.send_data(body.into(), true).expect("sent");
        let (head, mut body) = response.await.expect("answered").into_parts();
        let mut seen = head.headers;
        seen.insert("http-status", head.status.as_u16().into());
        let mut received = Vec::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.expect("whole");
            body.flow_control().release_capacity(chunk.len()).expect("received");
            received.extend(chunk);
        }
        if let Some(trailers) = body.trailers().await.expect("whole") {
            seen.extend(trailers);
        }
        driver.abort();
        (seen, received)
    }

    /// One plain HTTP/1.1 request by hand: the whole answer.
    pub async fn http1(&self, method: &str, path: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = TcpStream::connect(self.address).await.expect("the server listens");
        let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the server panicked");
        }
    }
}

async fn serve(shared: Arc<Shared>, listener: TcpListener, mut closing: tokio::sync::watch::Receiver<bool>) {
    let worker = Worker::new(shared);
    worker.start();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.expect("accepting works");
                stream.set_nodelay(true).expect("a TCP socket");
                tokio::task::spawn_local(serve_connection(stream, Rc::clone(&worker), Client::default(), Serves::Everything));
            }
            _ = closing.wait_for(|closing| *closing) => return,
        }
    }
}

/// A message as it stands in a gRPC body.
pub fn frame(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    framed
}
