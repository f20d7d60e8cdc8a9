//! Keeping a lease alive.

use crate::call::{Class, Client, Envelope};
use crate::error::Error;
use proto::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse, lease_client::LeaseClient};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

/// How long to wait before another member is asked.
const PAUSE: Duration = Duration::from_millis(100);
/// For how long a lease of unknown TTL is tried before it is given up.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// Renews one lease, three times in its lifetime, for as long as [`KeepAlive::next`] is called.
pub struct KeepAlive {
    client: Client,
    id: i64,
    stream: Option<Stream>,
    renew_at: Instant,
    /// When the lease has surely ended if nothing is heard.
    ends_at: Instant,
}

struct Stream {
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    responses: Streaming<LeaseKeepAliveResponse>,
}

impl Client {
    /// Keeps a lease alive.
    pub fn keep_alive(&self, id: i64) -> KeepAlive {
        let now = Instant::now();
        KeepAlive { client: self.clone(), id, stream: None, renew_at: now, ends_at: now + FIRST_ANSWER }
    }

    /// Renews a lease once. An unknown lease is etcd's `requested lease not found`.
    pub async fn keep_alive_once(&self, id: i64) -> Result<LeaseKeepAliveResponse, Error> {
        loop {
            let stream = open(self, id).await?;
            let mut responses = stream.responses;
            match responses.message().await {
                Ok(Some(response)) => return alive(response),
                Ok(None) => {}
                Err(status) if status.code() == Code::Unavailable => {}
                Err(status) => return Err(status.into()),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl KeepAlive {
    /// Renews the lease when it is time to, and gives the answer. Fails when the lease has ended.
    pub async fn next(&mut self) -> Result<LeaseKeepAliveResponse, Error> {
        tokio::time::sleep_until(self.renew_at.into()).await;
        let response = match tokio::time::timeout_at(self.ends_at.into(), self.renew()).await {
            Ok(response) => alive(response?)?,
            Err(_) => return Err(lease_not_found()),
        };
        let ttl = Duration::from_secs(response.ttl.unsigned_abs());
        let now = Instant::now();
        self.renew_at = now + ttl / 3;
        self.ends_at = now + ttl;
        Ok(response)
    }

    async fn renew(&mut self) -> Result<LeaseKeepAliveResponse, Error> {
        loop {
            let received = match &mut self.stream {
                // Opening sends the first request.
                None => self.stream.insert(open(&self.client, self.id).await?).responses.message().await,
                Some(stream) => match stream.requests.send(LeaseKeepAliveRequest { id: self.id }).await {
                    Ok(()) => stream.responses.message().await,
                    Err(_) => Ok(None),
                },
            };
            match received {
                Ok(Some(response)) => return Ok(response),
                Err(status) if is_final(&status) => return Err(status.into()),
                Ok(None) | Err(_) => self.stream = None,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Whether asking again is of no use. All other trouble may pass while the lease lives.
fn is_final(status: &tonic::Status) -> bool {
    use Code::{InvalidArgument, NotFound, PermissionDenied, Unauthenticated, Unimplemented};
    matches!(status.code(), InvalidArgument | NotFound | PermissionDenied | Unauthenticated | Unimplemented)
}

async fn open(client: &Client, id: i64) -> Result<Stream, Error> {
    let opened = client.run(Class::Repeatable, |channel, envelope: Envelope| {
        let (requests, receiver) = mpsc::channel(1);
        let sent = requests.try_send(LeaseKeepAliveRequest { id });
        debug_assert!(sent.is_ok(), "the queue is new");
        let request = envelope.stream(ReceiverStream::new(receiver));
        async move {
            let responses = LeaseClient::new(channel).lease_keep_alive(request).await?;
            Ok(responses.map(|responses| Stream { requests, responses }))
        }
    });
    opened.await
}

/// An answer without a TTL means that there is no such lease.
fn alive(response: LeaseKeepAliveResponse) -> Result<LeaseKeepAliveResponse, Error> {
    if response.ttl > 0 { Ok(response) } else { Err(lease_not_found()) }
}

fn lease_not_found() -> Error {
    Error::Server { code: Code::NotFound, message: "etcdserver: requested lease not found".to_owned() }
}
