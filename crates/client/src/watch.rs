//! Watching keys, across connections.

use crate::call::{Class, Client, Envelope};
use crate::error::Error;
use proto::etcdserverpb::{
    self as pb, WatchCreateRequest, WatchRequest, WatchResponse, watch_client::WatchClient, watch_request::RequestUnion,
};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status, Streaming};

/// How long a watcher waits before it asks another member to go on.
const PAUSE: Duration = Duration::from_millis(100);
/// How many requests may wait to be sent. There is one at the beginning and one per wish for progress.
const REQUESTS: usize = 16;

/// One watch. It survives its connection: events are neither lost nor repeated, because it goes on at the revision after
/// the last one it has seen.
pub struct Watcher {
    client: Client,
    /// What to ask for when the stream has to be opened (again).
    request: WatchCreateRequest,
    requires_leader: bool,
    stream: Option<Stream>,
}

struct Stream {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Client {
    /// Watches the keys of `request`. Nothing is sent before the first [`Watcher::next`].
    ///
    /// With `requires_leader`, a member that has lost its cluster ends the watch instead of going silent.
    pub fn watch(&self, request: WatchCreateRequest, requires_leader: bool) -> Watcher {
        // Answers in fragments would have to be put together again, and our bound of an answer is 2 GiB.
        let request = WatchCreateRequest { fragment: false, ..request };
        Watcher { client: self.clone(), request, requires_leader, stream: None }
    }
}

impl Watcher {
    /// The next response: events, or a notification of progress (no events). Fails when the server ends the watch.
    pub async fn next(&mut self) -> Result<WatchResponse, Error> {
        loop {
            let received = match &mut self.stream {
                None => {
                    self.stream = Some(self.open().await?);
                    continue;
                }
                Some(stream) => stream.responses.message().await,
            };
            match received {
                Ok(Some(response)) => {
                    if let Some(response) = self.take(response)? {
                        return Ok(response);
                    }
                }
                Err(status) if ends_the_watch(&status) => return Err(status.into()),
                Ok(None) | Err(_) => {
                    self.stream = None;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Asks how far the watch is; the answer is a response without events. Lost if there is no connection just now.
    pub fn request_progress(&self) {
        if let Some(stream) = &self.stream {
            let wish = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
            // If so many wishes wait already, one more would tell nothing new.
            let _full_or_closed = stream.requests.try_send(WatchRequest { request_union: Some(wish) });
        }
    }

    async fn open(&self) -> Result<Stream, Error> {
        let largest_answer = self.client.config().max_response_bytes;
        let opened = self.client.run(Class::Repeatable, |channel, envelope: Envelope| {
            let (requests, receiver) = mpsc::channel(REQUESTS);
            let create = RequestUnion::CreateRequest(self.request.clone());
            let sent = requests.try_send(WatchRequest { request_union: Some(create) });
            debug_assert!(sent.is_ok(), "the queue is new");
            let mut request = envelope.stream(ReceiverStream::new(receiver));
            if self.requires_leader {
                request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
            }
            let mut stub = WatchClient::new(channel).max_decoding_message_size(largest_answer);
            async move {
                let responses = stub.watch(request).await?;
                Ok(responses.map(|responses| Stream { requests, responses }))
            }
        });
        opened.await
    }

    /// Notes how far the watch is. `None` for responses that only concern the stream.
    fn take(&mut self, response: WatchResponse) -> Result<Option<WatchResponse>, Error> {
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        if response.canceled {
            let reason = if response.compact_revision != 0 {
                "etcdserver: mvcc: required revision has been compacted".to_owned()
            } else {
                response.cancel_reason
            };
            return Err(Error::WatchCanceled { reason, compact_revision: response.compact_revision });
        }
        if response.created {
            if self.request.start_revision == 0 {
                self.request.start_revision = revision + 1;
            }
            return Ok(None);
        }
        // What a response without events names is complete; with events, the last one says how far it goes.
        let last = response.events.last().and_then(|event| event.kv.as_ref()).map_or(revision, |kv| kv.mod_revision);
        self.request.start_revision = self.request.start_revision.max(last + 1);
        Ok(Some(response))
    }
}

/// As in etcd's client: only trouble of a connection or a member is worth another try, and not the loss of the leader.
fn ends_the_watch(status: &Status) -> bool {
    !matches!(status.code(), Code::Unavailable | Code::Internal | Code::Unknown | Code::Cancelled)
        || status.message() == "etcdserver: no leader"
}
