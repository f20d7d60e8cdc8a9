//! Sockets: binding, accepting, and spreading connections over the workers.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use api::{Serves, Shared, Worker};
use tls::{Acceptor, Pending, Socket, Stream};
use tokio::sync::mpsc;

/// Connections that wait for a worker to take them; beyond that the acceptor waits.
const HAND_OVER: usize = 256;
/// Connections that the kernel completes before they are accepted.
const BACKLOG: i32 = 4096;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Everything that clients may ask.
    Client,
    /// The same where HTTP has addresses of its own: gRPC only.
    Grpc,
    /// `--listen-client-http-urls`: all but gRPC.
    Http,
    /// Metrics and health only.
    Metrics,
}

impl Purpose {
    /// As etcd's log calls it.
    pub(crate) fn traffic(self) -> &'static str {
        match self {
            Self::Client => "grpc+http",
            Self::Grpc => "grpc",
            Self::Http | Self::Metrics => "http",
        }
    }
}

/// A bound socket.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// Where clients connect to.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) listener: Listener,
    pub(crate) purpose: Purpose,
    pub(crate) url: String,
    pub(crate) way: Way,
}

/// How to speak with who connects.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    Plain,
    Secure(Arc<Acceptor>),
    /// As the client begins: one address is listed with both schemes.
    Either(Arc<Acceptor>),
}

impl Bound {
    /// Where it is, for the log.
    pub(crate) fn address(&self) -> String {
        match &self.listener {
            Listener::Tcp(listener) => listener.local_addr().map_or_else(|_| self.url.clone(), |at| at.to_string()),
            Listener::Unix(_) => self.url.split_once("://").map_or("", |(_, path)| path).to_owned(),
        }
    }
}

/// How long a connection may be silent before the kernel asks the other side, and between two such questions.
const KEEP_ALIVE: std::time::Duration = std::time::Duration::from_secs(30);

/// Binds an address. Accepted sockets inherit its options.
pub(crate) fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )?;
    // A restarted member must get its port back although old connections linger.
    socket.set_reuse_address(true)?;
    // What a vanished client's connection holds is given back; etcd's listeners ask at the same times.
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Binds a Unix socket. What a member that did not stop cleanly has left there is removed.
pub(crate) fn bind_unix(path: &str) -> io::Result<std::os::unix::net::UnixListener> {
    use std::os::unix::fs::FileTypeExt as _;
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Wide ranges, snapshots and hashes that a worker may have running at a time; more wait.
const BLOCKING_THREADS: usize = 8;

/// TLS handshakes that a worker may have under way; beyond that the oldest is ended.
const HANDSHAKES: usize = 512;

/// A connection that was accepted.
enum Incoming {
    Tcp(std::net::TcpStream, SocketAddr),
    Unix(std::os::unix::net::UnixStream),
}

/// One accepted connection on its way to a worker.
struct Accepted {
    stream: Incoming,
    purpose: Purpose,
    way: Way,
}

impl Accepted {
    /// Registers the socket with the runtime of the calling thread.
    fn socket(self) -> io::Result<(Socket, Option<SocketAddr>, Way)> {
        match self.stream {
            Incoming::Tcp(stream, remote) => {
                // Small answers must not wait for the acknowledgement of earlier ones.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(error = %error, "cannot set TCP_NODELAY");
                }
                Ok((Socket::Tcp(tokio::net::TcpStream::from_std(stream)?), Some(remote), self.way))
            }
            Incoming::Unix(stream) => Ok((Socket::Unix(tokio::net::UnixStream::from_std(stream)?), None, self.way)),
        }
    }
}

/// The workers: threads that serve connections, each with its own runtime.
pub(crate) struct Workers {
    senders: Vec<mpsc::Sender<Accepted>>,
    threads: Vec<JoinHandle<()>>,
    next: usize,
}

impl Workers {
    /// Starts one worker per core.
    pub(crate) fn start(shared: &Arc<Shared>) -> io::Result<Self> {
        let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut senders = Vec::new();
        let mut threads = Vec::new();
        for number in 0..count {
            let (sender, receiver) = mpsc::channel(HAND_OVER);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(BLOCKING_THREADS)
                .build()?;
            let shared = Arc::clone(shared);
            threads.push(std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                let local = tokio::task::LocalSet::new();
                local.block_on(&runtime, serve(shared, receiver));
            })?);
            senders.push(sender);
        }
        Ok(Self { senders, threads, next: 0 })
    }

    /// Hands a connection to the next worker in turn. With few long-lived connections, turns balance best.
    async fn hand_over(&mut self, accepted: Accepted) {
        let sender = &self.senders[self.next % self.senders.len()];
        self.next = self.next.wrapping_add(1);
        // An error means that the worker has ended; the connection is closed with it.
        if sender.send(accepted).await.is_err() {
            tracing::debug!("a connection came after its worker ended");
        }
    }

    /// Waits for the workers to end; they do when the shared `closing` has turned true and their connections are done.
    pub(crate) fn join(self) {
        drop(self.senders);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

/// How long connections may take to finish what they have begun when the member stops.
const GRACE: std::time::Duration = std::time::Duration::from_secs(1);

async fn serve(shared: Arc<Shared>, mut connections: mpsc::Receiver<Accepted>) {
    let worker = Worker::new(Arc::clone(&shared));
    worker.start();
    let mut closing = shared.closing.clone();
    let open = Rc::new(std::cell::Cell::new(0usize));
    let handshakes = Pending::new(HANDSHAKES);
    loop {
        let accepted = tokio::select! {
            accepted = connections.recv() => accepted,
            _ = closing.wait_for(|closing| *closing) => None,
        };
        let Some(accepted) = accepted else { break };
        let purpose = accepted.purpose;
        let (socket, remote, way) = match accepted.socket() {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = %error, "cannot serve an accepted connection");
                continue;
            }
        };
        let worker = Rc::clone(&worker);
        let open = Rc::clone(&open);
        let handshakes = handshakes.clone();
        open.set(open.get() + 1);
        tokio::task::spawn_local(async move {
            if let Some((stream, client)) = begin(socket, remote, way, &handshakes).await {
                let client = api::Client { remote, ..client };
                match purpose {
                    Purpose::Client => api::serve_connection(stream, worker, client, Serves::Everything).await,
                    Purpose::Grpc => api::serve_connection(stream, worker, client, Serves::Grpc).await,
                    Purpose::Http => api::serve_connection(stream, worker, client, Serves::Http).await,
                    Purpose::Metrics => api::serve_metrics(stream, worker).await,
                }
            }
            open.set(open.get() - 1);
        });
    }
    let deadline = tokio::time::Instant::now() + GRACE;
    while open.get() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// What the client and this member speak through, and who the client is; none if it is not let in.
async fn begin(
    socket: Socket,
    remote: Option<SocketAddr>,
    way: Way,
    handshakes: &Pending,
) -> Option<(Stream, api::Client)> {
    let (acceptor, may_be_plain) = match way {
        Way::Plain => return Some((Stream::Plain(socket), api::Client::default())),
        Way::Secure(acceptor) => (acceptor, false),
        Way::Either(acceptor) => (acceptor, true),
    };
    // In a box, because few connections ever get to what comes behind a handshake and all would keep room for it.
    let handshake = Box::pin(async {
        if may_be_plain {
            let first = tokio::time::timeout(tls::HANDSHAKE_TIMEOUT, socket.first_byte()).await;
            let first = first.ok().and_then(Result::ok).flatten()?;
            if !Acceptor::is_hello(first) {
                return Some((Stream::Plain(socket), api::Client::default()));
            }
        }
        match acceptor.accept(socket, remote.map(|remote| remote.ip())).await {
            Ok((stream, verified)) => {
                let client = api::Client { common_name: verified.common_name, is_secure: true, remote };
                Some((stream, client))
            }
            Err(refused) => {
                refused.log("client", &remote.map_or_else(|| "@".to_owned(), |remote| remote.to_string()));
                None
            }
        }
    });
    handshakes.run(handshake).await?
}

/// Accepts until the future is dropped.
pub(crate) async fn accept(bound: Bound, workers: Rc<tokio::sync::Mutex<Workers>>) {
    let Bound { listener, purpose, url, way } = bound;
    let Some(listener) = register(listener, &url) else { return };
    loop {
        let stream = next(&listener, &url).await;
        workers.lock().await.hand_over(Accepted { stream, purpose, way: way.clone() }).await;
    }
}

fn register(listener: Listener, url: &str) -> Option<Registered> {
    let outcome = match listener {
        Listener::Tcp(listener) => tokio::net::TcpListener::from_std(listener).map(Registered::Tcp),
        Listener::Unix(listener) => tokio::net::UnixListener::from_std(listener).map(Registered::Unix),
    };
    outcome.inspect_err(|error| tracing::error!(error = %error, url, "cannot listen")).ok()
}

/// The next connection.
async fn next(listener: &Registered, url: &str) -> Incoming {
    loop {
        match listener.accept().await {
            Ok(stream) => return stream,
            Err(error) => {
                // Out of file descriptors, most likely: give the process time to close some.
                tracing::warn!(error = %error, url, "failed to accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

/// Accepts until the future is dropped, and serves on the calling thread.
pub(crate) async fn serve_here<F>(bound: Bound, serve: impl Fn(Stream, api::Client, Option<SocketAddr>) -> F + 'static)
where
    F: Future<Output = ()> + 'static,
{
    let Bound { listener, purpose, url, way } = bound;
    let Some(listener) = register(listener, &url) else { return };
    let (serve, handshakes) = (Rc::new(serve), Pending::new(HANDSHAKES));
    loop {
        let stream = next(&listener, &url).await;
        let accepted = Accepted { stream, purpose, way: way.clone() };
        let Ok((socket, remote, way)) = accepted.socket() else { continue };
        let (serve, handshakes) = (Rc::clone(&serve), handshakes.clone());
        tokio::task::spawn_local(async move {
            if let Some((stream, client)) = begin(socket, remote, way, &handshakes).await {
                serve(stream, client, remote).await;
            }
        });
    }
}

/// A listener of this thread's runtime.
enum Registered {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

impl Registered {
    async fn accept(&self) -> io::Result<Incoming> {
        match self {
            Self::Tcp(listener) => {
                let (stream, remote) = listener.accept().await?;
                Ok(Incoming::Tcp(stream.into_std()?, remote))
            }
            Self::Unix(listener) => Ok(Incoming::Unix(listener.accept().await?.0.into_std()?)),
        }
    }
}
