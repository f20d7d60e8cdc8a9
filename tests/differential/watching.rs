//! Watch streams under comparison: what has been received, what has to come, and whether two servers agree.
//!
//! Servers may cut a catch-up into different batches, so events are compared watch by watch and not response by
//! response. How many have to come is computed from the history that an observer has seen, so nothing waits in vain,
//! and the cancellation at the end flushes out what should not have come.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse};
use proto::mvccpb::{Event, event::EventType};
use tokio::sync::mpsc;
use tonic::Status;
use tonic::codegen::tokio_stream::wrappers::UnboundedReceiverStream;

use crate::harness::Client;

/// How long a server may take to deliver what is due.
const DUE_WITHIN: Duration = Duration::from_secs(20);
/// Pause between two progress requests: a server may leave one unanswered while a watch of the stream catches up.
const PROGRESS_AGAIN: Duration = Duration::from_millis(20);
/// The watch ID of answers that belong to no watch.
const NO_WATCH: i64 = -1;

/// The events of a store since its beginning, as an observer of every key has seen them.
#[derive(Debug, Default)]
pub struct History {
    /// In the order of their revisions.
    pub events: Vec<Event>,
}

impl History {
    /// How many events a watch has to deliver that was created as `request` on a store at `created_at`.
    pub fn due(&self, request: &WatchCreateRequest, created_at: i64) -> usize {
        let from = if request.start_revision > 0 { request.start_revision } else { created_at + 1 };
        let first = self.events.partition_point(|event| mod_revision(event) < from);
        self.events[first..].iter().filter(|event| wants(request, event)).count()
    }

    /// The newest revision that it knows of.
    pub fn revision(&self) -> i64 {
        self.events.last().map_or(1, mod_revision)
    }

    /// Whether `revision` deleted any key.
    pub fn deletes_at(&self, revision: i64) -> bool {
        let first = self.events.partition_point(|event| mod_revision(event) < revision);
        let at = self.events[first..].iter().take_while(|event| mod_revision(event) == revision);
        at.into_iter().any(|event| event.r#type() == EventType::Delete)
    }
}

fn mod_revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |pair| pair.mod_revision)
}

/// Whether the watch is on the event's key and does not filter its type out.
fn wants(request: &WatchCreateRequest, event: &Event) -> bool {
    let key: &[u8] = event.kv.as_ref().map_or(b"", |pair| &pair.key);
    let start: &[u8] = if request.key.is_empty() { b"\0" } else { &request.key };
    let inside = match &request.range_end[..] {
        b"" => key == start,
        b"\0" => key >= start,
        end => key >= start && key < end,
    };
    // A filter's number is that of the event type it drops.
    inside && !request.filters.contains(&event.r#type)
}

/// What has come for one watch.
#[derive(Debug, Default, PartialEq)]
pub struct Watched {
    /// The revision in the header of `created`.
    pub created_at: Option<i64>,
    /// The events, each with the revision in the header of its response.
    pub events: Vec<(Event, i64)>,
    /// The response that ended it.
    pub ended: Option<WatchResponse>,
    /// The revision of the last event, kept when the events are taken.
    last_revision: i64,
    /// The last response announced more of the same revision.
    fragment: bool,
}

impl Watched {
    /// The revision of the last event that came.
    pub fn last_revision(&self) -> Option<i64> {
        (self.last_revision > 0).then_some(self.last_revision)
    }

    /// The events that came since the last time.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events).into_iter().map(|(event, _)| event).collect()
    }
}

/// One watch stream to one server.
pub struct WatchStream {
    requests: mpsc::UnboundedSender<WatchRequest>,
    responses: mpsc::UnboundedReceiver<Result<WatchResponse, Status>>,
    /// By watch ID.
    pub watches: BTreeMap<i64, Watched>,
    /// Refused creations, in their order.
    pub refused: Vec<WatchResponse>,
    /// Answers to progress requests.
    pub progress: Vec<WatchResponse>,
}

impl WatchStream {
    /// Opens a stream. Responses are taken off the wire as they come, so that the server never finds us slow.
    pub async fn open(client: &Client) -> Result<WatchStream, String> {
        let (requests, outgoing) = mpsc::unbounded_channel();
        // A server may keep its headers until the first message, so the stream must not be waited for without one.
        let first = WatchRequest { request_union: None };
        requests.send(first).map_err(|_| "the request queue is closed".to_owned())?;
        let (incoming, responses) = mpsc::unbounded_channel();
        let mut client = client.clone();
        tokio::spawn(async move {
            let mut stream = match client.watch.watch(UnboundedReceiverStream::new(outgoing)).await {
                Ok(stream) => stream.into_inner(),
                Err(status) => return drop(incoming.send(Err(status))),
            };
            while let Some(response) = stream.message().await.transpose() {
                let failed = response.is_err();
                if incoming.send(response).is_err() || failed {
                    return;
                }
            }
        });
        Ok(WatchStream { requests, responses, watches: BTreeMap::new(), refused: Vec::new(), progress: Vec::new() })
    }

    /// Sends one request; answers are seen by [`WatchStream::receive_until`].
    pub fn send(&self, request: RequestUnion) -> Result<(), String> {
        let request = WatchRequest { request_union: Some(request) };
        self.requests.send(request).map_err(|_| "the watch stream is closed".to_owned())
    }

    /// Receives until `done`, and fails when that takes too long or a response breaks a promise.
    pub async fn receive_until(
        &mut self,
        what: &str,
        mut done: impl FnMut(&WatchStream) -> bool,
    ) -> Result<(), String> {
        let deadline = tokio::time::Instant::now() + DUE_WITHIN;
        while !done(self) {
            match tokio::time::timeout_at(deadline, self.responses.recv()).await {
                Ok(Some(Ok(response))) => self.take(response)?,
                Ok(Some(Err(status))) => return Err(format!("the watch stream failed: {status}")),
                Ok(None) => return Err("the watch stream ended".to_owned()),
                Err(_) => return Err(format!("no {what} within {DUE_WITHIN:?}")),
            }
        }
        Ok(())
    }

    /// Receives one response, however long it takes.
    pub async fn receive_one(&mut self) -> Result<(), String> {
        match self.responses.recv().await {
            Some(Ok(response)) => self.take(response),
            Some(Err(status)) => Err(format!("the watch stream failed: {status}")),
            None => Err("the watch stream ended".to_owned()),
        }
    }

    /// Asks for progress until the server answers, as it must once every watch of the stream has caught up.
    async fn ask_for_progress(&mut self) -> Result<(), String> {
        let deadline = tokio::time::Instant::now() + DUE_WITHIN;
        while self.progress.is_empty() {
            if tokio::time::Instant::now() > deadline {
                return Err(format!("no answer to a progress request within {DUE_WITHIN:?}"));
            }
            self.send(RequestUnion::ProgressRequest(WatchProgressRequest {}))?;
            match tokio::time::timeout(PROGRESS_AGAIN, self.responses.recv()).await {
                Ok(Some(Ok(response))) => self.take(response)?,
                Ok(Some(Err(status))) => return Err(format!("the watch stream failed: {status}")),
                Ok(None) => return Err("the watch stream ended".to_owned()),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Files a response under its watch and checks what any server promises about the sequence.
    fn take(&mut self, mut response: WatchResponse) -> Result<(), String> {
        let header = response.header.get_or_insert_default();
        let revision = header.revision;
        (header.cluster_id, header.member_id, header.raft_term) = (0, 0, 0);
        if response.watch_id == NO_WATCH && response.created && response.canceled {
            self.refused.push(response);
            return Ok(());
        }
        if response.watch_id == NO_WATCH && !response.created && !response.canceled && response.events.is_empty() {
            self.progress.push(response);
            return Ok(());
        }
        let id = response.watch_id;
        let watched = self.watches.entry(id).or_default();
        if response.created {
            if watched.created_at.replace(revision).is_some() && watched.ended.is_none() {
                return Err(format!("watch {id} was created twice"));
            }
            if watched.ended.take().is_some() {
                return Err(format!("watch ID {id} was used again on one stream"));
            }
        } else if watched.created_at.is_none() {
            return Err(format!("watch {id}: a response before created: {response:?}"));
        } else if watched.ended.is_some() {
            return Err(format!("watch {id}: a response after its end: {response:?}"));
        }
        for (place, event) in response.events.iter().enumerate() {
            let at = mod_revision(event);
            let before = watched.last_revision;
            let goes_on = if place == 0 { watched.fragment } else { true };
            if at < before || (at == before && !goes_on) {
                return Err(format!("watch {id}: revision {at} came after revision {before} had been delivered"));
            }
            if at > revision {
                return Err(format!("watch {id}: an event of revision {at} under a header of revision {revision}"));
            }
            watched.last_revision = at;
            watched.events.push((event.clone(), revision));
        }
        watched.fragment = response.fragment;
        if response.canceled {
            response.created = false;
            watched.ended = Some(response);
        }
        Ok(())
    }
}

/// The same watches on two servers.
pub struct WatchPair {
    /// To the server that is taken to be right, and to the one under test.
    pub streams: [WatchStream; 2],
    /// What was asked for, by watch ID as the first server assigned them.
    created: BTreeMap<i64, WatchCreateRequest>,
    /// Headers of events are comparable too.
    exact_headers: bool,
}

/// A disagreement between the two servers, or a promise that one of them broke.
#[derive(Debug)]
pub struct WatchFailure(pub String);

impl WatchPair {
    /// Opens a stream on both servers and creates the watches one after the other.
    ///
    /// `exact_headers` says that also the headers' revisions of event responses have to agree, which holds while the
    /// store does not change, and for watches that have nothing to catch up with.
    pub async fn create(
        clients: [&Client; 2],
        requests: Vec<WatchCreateRequest>,
        exact_headers: bool,
    ) -> Result<WatchPair, WatchFailure> {
        let open = tokio::join!(WatchStream::open(clients[0]), WatchStream::open(clients[1]));
        let mut streams = [open.0.map_err(WatchFailure)?, open.1.map_err(WatchFailure)?];
        let mut created = BTreeMap::new();
        for request in requests {
            let [first, second] = &mut streams;
            let answered = |stream: &WatchStream| {
                stream.refused.len() + stream.watches.values().filter(|watch| watch.created_at.is_some()).count()
            };
            let before = (answered(first), answered(second));
            let known: Vec<i64> = first.watches.keys().copied().collect();
            for stream in [&*first, &*second] {
                stream.send(RequestUnion::CreateRequest(request.clone())).map_err(WatchFailure)?;
            }
            let outcome = tokio::join!(
                first.receive_until("answer to a watch creation", |stream| answered(stream) > before.0),
                second.receive_until("answer to a watch creation", |stream| answered(stream) > before.1),
            );
            both(outcome, || format!("creating {request:?}"))?;
            let new = first.watches.keys().find(|id| !known.contains(id));
            created.extend(new.map(|id| (*id, request)));
        }
        let pair = WatchPair { streams, created, exact_headers };
        pair.agree_on("the watches created", |stream| {
            let created: Vec<(i64, Option<i64>)> =
                stream.watches.iter().map(|(id, watch)| (*id, watch.created_at)).collect();
            (created, stream.refused.clone())
        })?;
        Ok(pair)
    }

    /// Waits for all that `history` says is due, asks for progress if `progress`, cancels everything, and compares.
    /// Returns how many events were compared.
    pub async fn finish(mut self, history: &History, compacted: i64, progress: bool) -> Result<usize, WatchFailure> {
        let mut due = BTreeMap::new();
        for (id, request) in &self.created {
            let created_at = self.streams[0].watches[id].created_at.unwrap_or(0);
            let too_old = request.start_revision > 0 && request.start_revision < compacted;
            let events = if too_old { None } else { Some(history.due(request, created_at)) };
            due.insert(*id, events);
        }
        let arrived = |stream: &WatchStream| {
            due.iter().all(|(id, events)| match (stream.watches.get(id), events) {
                (Some(watch), Some(events)) => watch.events.len() >= *events || watch.ended.is_some(),
                (Some(watch), None) => watch.ended.is_some(),
                (None, _) => false,
            })
        };
        let [first, second] = &mut self.streams;
        let outcome = tokio::join!(
            first.receive_until("all events that are due", arrived),
            second.receive_until("all events that are due", arrived),
        );
        let asked = &self.created;
        both(outcome, || format!("due {due:?} of {asked:?}"))?;
        // Newer servers leave the request unanswered while a watch of the stream waits for the future or was ended by a
        // compaction, and where there is no watch at all; older ones answer.
        let at_the_head = |request: &WatchCreateRequest| {
            request.start_revision <= history.revision()
                && (request.start_revision <= 0 || request.start_revision >= compacted)
        };
        if progress && !self.created.is_empty() && self.created.values().all(at_the_head) {
            let outcome = tokio::join!(first.ask_for_progress(), second.ask_for_progress());
            both(outcome, || "asking for progress".to_owned())?;
        }
        // An unknown watch ID gets no answer, so this one must not be seen.
        const UNKNOWN: i64 = 1 << 40;
        let alive: Vec<i64> = due.iter().filter(|(_, events)| events.is_some()).map(|(id, _)| *id).collect();
        for stream in [&*first, &*second] {
            for watch_id in alive.iter().copied().chain([UNKNOWN]) {
                let cancel = WatchCancelRequest { watch_id };
                stream.send(RequestUnion::CancelRequest(cancel)).map_err(WatchFailure)?;
            }
        }
        let ended = |stream: &WatchStream| {
            due.keys().all(|id| stream.watches.get(id).is_some_and(|watch| watch.ended.is_some()))
        };
        let outcome = tokio::join!(
            first.receive_until("answer to the cancellations", ended),
            second.receive_until("answer to the cancellations", ended),
        );
        both(outcome, || format!("cancelling {alive:?}"))?;

        for (id, expected) in &due {
            let (seen, asked) = (&self.streams[0].watches[id].events, &self.created[id]);
            let expected = expected.unwrap_or(0);
            if seen.len() != expected {
                let text = format!("watch {id} ({asked:?}): {} events where {expected} are due", seen.len());
                return Err(WatchFailure(text));
            }
        }
        for id in due.keys() {
            self.agree_on_events(*id)?;
        }
        self.agree_on("how the watches ended", |stream| {
            stream.watches.iter().map(|(id, watch)| (*id, watch.ended.clone())).collect::<Vec<_>>()
        })?;
        // How many there are depends on how often we had to ask; nothing changed meanwhile, so they are all the same.
        self.agree_on("the answers to progress requests", |stream| {
            let mut progress = stream.progress.clone();
            progress.dedup();
            progress
        })?;
        Ok(self.streams[0].watches.values().map(|watch| watch.events.len()).sum())
    }

    /// Compares the events of one watch, and names the first that differ.
    fn agree_on_events(&self, id: i64) -> Result<(), WatchFailure> {
        let [reference, subject] = self.streams.each_ref().map(|stream| &stream.watches[&id]);
        let request = self.created.get(&id);
        let created_at = reference.created_at.unwrap_or(0);
        let catches_up = request.is_some_and(|request| (1..=created_at).contains(&request.start_revision));
        let agree = |reference: &(Event, i64), subject: &(Event, i64)| {
            let headers = match self.exact_headers {
                // see the comment of the table of exceptions
                true if catches_up => subject.1 <= reference.1,
                true => subject.1 == reference.1,
                false => true,
            };
            reference.0 == subject.0 && headers
        };
        let count = reference.events.len().max(subject.events.len());
        for place in 0..count {
            let (reference, subject) = (reference.events.get(place), subject.events.get(place));
            if !matches!((reference, subject), (Some(reference), Some(subject)) if agree(reference, subject)) {
                return Err(WatchFailure(format!(
                    "event {place} of {count} or its header's revision differ on watch {id}\n  \
                     asked:     {request:?}\n  reference: {reference:?}\n  subject:   {subject:?}",
                )));
            }
        }
        Ok(())
    }

    fn agree_on<T: PartialEq + std::fmt::Debug>(
        &self,
        what: &str,
        of: impl Fn(&WatchStream) -> T,
    ) -> Result<(), WatchFailure> {
        let [reference, subject] = [of(&self.streams[0]), of(&self.streams[1])];
        if reference == subject {
            return Ok(());
        }
        let asked = &self.created;
        Err(WatchFailure(format!(
            "{what} differ\n  asked:     {asked:?}\n  reference: {reference:?}\n  subject:   {subject:?}"
        )))
    }
}

fn both(
    outcome: (Result<(), String>, Result<(), String>),
    context: impl FnOnce() -> String,
) -> Result<(), WatchFailure> {
    match outcome {
        (Ok(()), Ok(())) => Ok(()),
        (reference, subject) => Err(WatchFailure(format!(
            "{}\n  reference: {}\n  subject:   {}",
            context(),
            reference.map_or_else(|error| error, |()| "as it should".into()),
            subject.map_or_else(|error| error, |()| "as it should".into()),
        ))),
    }
}
