//! Sockets: binding, accepting, and spreading connections over the workers.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use api::{Shared, Worker};
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
    /// Metrics and health only.
    Metrics,
}

/// A bound socket.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) listener: std::net::TcpListener,
    pub(crate) purpose: Purpose,
    pub(crate) url: String,
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

/// Wide ranges, snapshots and hashes that a worker may have running at a time; more wait.
const BLOCKING_THREADS: usize = 8;

/// One accepted connection on its way to a worker.
struct Accepted {
    stream: std::net::TcpStream,
    purpose: Purpose,
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
    loop {
        let accepted = tokio::select! {
            accepted = connections.recv() => accepted,
            _ = closing.wait_for(|closing| *closing) => None,
        };
        let Some(Accepted { stream, purpose }) = accepted else { break };
        // Small answers must not wait for the acknowledgement of earlier ones.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(error = %error, "cannot set TCP_NODELAY");
        }
        let stream = match tokio::net::TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(error = %error, "cannot serve an accepted connection");
                continue;
            }
        };
        let worker = Rc::clone(&worker);
        let open = Rc::clone(&open);
        open.set(open.get() + 1);
        tokio::task::spawn_local(async move {
            match purpose {
                Purpose::Client => api::serve_connection(stream, worker, api::Client::default()).await,
                Purpose::Metrics => api::serve_metrics(stream, worker).await,
            }
            open.set(open.get() - 1);
        });
    }
    let deadline = tokio::time::Instant::now() + GRACE;
    while open.get() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// Accepts until the future is dropped.
pub(crate) async fn accept(bound: Bound, workers: Rc<tokio::sync::Mutex<Workers>>) {
    let listener = match tokio::net::TcpListener::from_std(bound.listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(error = %error, url = bound.url, "cannot listen");
            return;
        }
    };
    loop {
        match listener.accept().await.and_then(|(stream, _)| stream.into_std()) {
            Ok(stream) => workers.lock().await.hand_over(Accepted { stream, purpose: bound.purpose }).await,
            Err(error) => {
                // Out of file descriptors, most likely: give the process time to close some.
                tracing::warn!(error = %error, url = bound.url, "failed to accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}
