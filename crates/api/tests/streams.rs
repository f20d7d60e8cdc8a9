//! What a client sees of watches, locks and elections.

mod support;

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use keelson_api::Limits;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::watch_client::WatchClient;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::v3electionpb as election;
use proto::v3electionpb::election_client::ElectionClient;
use proto::v3lockpb as lock;
use proto::v3lockpb::lock_client::LockClient;
use support::Server;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

/// Requests as a test sends them.
struct Requests(mpsc::UnboundedReceiver<pb::WatchRequest>);

impl tonic::codegen::tokio_stream::Stream for Requests {
    type Item = pb::WatchRequest;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

struct Watch {
    ask: mpsc::UnboundedSender<pb::WatchRequest>,
    responses: Streaming<pb::WatchResponse>,
}

impl Watch {
    async fn open(channel: Channel) -> Self {
        let (ask, requests) = mpsc::unbounded_channel();
        let client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
        let responses = { client }.watch(Requests(requests)).await.expect("accepted").into_inner();
        Self { ask, responses }
    }

    fn ask(&self, request: RequestUnion) {
        self.ask.send(pb::WatchRequest { request_union: Some(request) }).expect("the stream stands");
    }

    fn create(&self, request: pb::WatchCreateRequest) {
        self.ask(RequestUnion::CreateRequest(request));
    }

    async fn next(&mut self) -> pb::WatchResponse {
        let next = tokio::time::timeout(Duration::from_secs(10), self.responses.message());
        next.await.expect("in time").expect("no error").expect("not the end")
    }

    /// The next response, which must confirm a watch.
    async fn created(&mut self) -> pb::WatchResponse {
        let response = self.next().await;
        assert!(response.created && !response.canceled && response.events.is_empty(), "{response:?}");
        response
    }

    /// Events until there are `count`, shown as `PUT key=value@revision`.
    async fn events(&mut self, count: usize) -> Vec<String> {
        let mut events = Vec::new();
        while events.len() < count {
            events.extend(self.next().await.events.iter().map(shown));
        }
        events
    }
}

fn shown(event: &proto::mvccpb::Event) -> String {
    let kv = event.kv.as_ref().expect("present");
    let (key, value) = (String::from_utf8_lossy(&kv.key), String::from_utf8_lossy(&kv.value));
    let previous = event.prev_kv.as_ref().map(|kv| format!(" was {}", String::from_utf8_lossy(&kv.value)));
    let kind = event.r#type().as_str_name();
    format!("{kind} {key}={value}@{}{}", kv.mod_revision, previous.unwrap_or_default())
}

fn on(key: &str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: key.to_owned().into(), ..Default::default() }
}

fn everything() -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() }
}

async fn put(channel: &Channel, key: &str, value: &str) -> i64 {
    let request = pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
    let response = KvClient::new(channel.clone()).put(request).await.expect("accepted").into_inner();
    response.header.expect("present").revision
}

async fn delete(channel: &Channel, key: &str) {
    let request = pb::DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() };
    KvClient::new(channel.clone()).delete_range(request).await.expect("accepted");
}

#[tokio::test]
async fn a_watch_is_confirmed_and_then_sees_what_happens_to_its_key() {
    let server = Server::start();
    let channel = server.channel().await;
    let mut watch = Watch::open(channel.clone()).await;
    watch.create(pb::WatchCreateRequest { prev_kv: true, ..on("a") });
    let created = watch.created().await;
    assert_eq!((created.watch_id, created.header.expect("present").revision), (0, 1));
    put(&channel, "a", "1").await;
    put(&channel, "b", "other").await;
    put(&channel, "a", "2").await;
    delete(&channel, "a").await;
    assert_eq!(watch.events(3).await, ["PUT a=1@2", "PUT a=2@4 was 1", "DELETE a=@5 was 2"]);
}

#[tokio::test]
async fn a_watch_from_the_past_replays_history_and_goes_on() {
    let server = Server::start();
    let channel = server.channel().await;
    put(&channel, "a", "1").await;
    put(&channel, "b", "2").await;
    let mut watch = Watch::open(channel.clone()).await;
    watch.create(pb::WatchCreateRequest { start_revision: 2, ..everything() });
    watch.created().await;
    assert_eq!(watch.events(2).await, ["PUT a=1@2", "PUT b=2@3"]);
    put(&channel, "c", "3").await;
    assert_eq!(watch.events(1).await, ["PUT c=3@4"]);
}

#[tokio::test]
async fn many_watches_share_a_stream_and_end_one_by_one() {
    let server = Server::start();
    let channel = server.channel().await;
    let mut watch = Watch::open(channel.clone()).await;
    watch.create(on("a"));
    assert_eq!(watch.created().await.watch_id, 0);
    watch.create(pb::WatchCreateRequest { watch_id: 7, ..on("a") });
    assert_eq!(watch.created().await.watch_id, 7);
    watch.create(pb::WatchCreateRequest { watch_id: 7, ..on("a") });
    let rejected = watch.next().await;
    assert!(rejected.created && rejected.canceled && rejected.watch_id == -1, "{rejected:?}");
    assert_eq!(rejected.cancel_reason, "mvcc: duplicate watch ID provided on the WatchStream");

    // Nobody has this ID, so the next response is already the answer to the second request.
    watch.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 99 }));
    watch.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 7 }));
    let canceled = watch.next().await;
    assert!(canceled.canceled && !canceled.created && canceled.watch_id == 7, "{canceled:?}");
    put(&channel, "a", "1").await;
    let event = watch.next().await;
    assert_eq!((event.watch_id, event.events.len()), (0, 1));
}

#[tokio::test]
async fn a_watch_below_the_compaction_is_told_where_history_begins() {
    let server = Server::start();
    let channel = server.channel().await;
    for i in 0..5 {
        put(&channel, "a", &i.to_string()).await;
    }
    let request = pb::CompactionRequest { revision: 4, physical: false };
    KvClient::new(channel.clone()).compact(request).await.expect("accepted");
    let mut watch = Watch::open(channel).await;
    watch.create(pb::WatchCreateRequest { start_revision: 2, ..on("a") });
    watch.created().await;
    let canceled = watch.next().await;
    assert!(canceled.canceled && canceled.compact_revision == 4, "{canceled:?}");
}

#[tokio::test]
async fn filters_leave_out_what_was_not_asked_for() {
    let server = Server::start();
    let channel = server.channel().await;
    let mut watch = Watch::open(channel.clone()).await;
    let no_put = vec![pb::watch_create_request::FilterType::Noput.into()];
    watch.create(pb::WatchCreateRequest { filters: no_put, ..on("a") });
    watch.created().await;
    put(&channel, "a", "1").await;
    delete(&channel, "a").await;
    assert_eq!(watch.events(1).await, ["DELETE a=@3"]);
}

#[tokio::test]
async fn a_progress_request_tells_up_to_where_everything_was_sent() {
    let server = Server::start();
    let channel = server.channel().await;
    let mut watch = Watch::open(channel.clone()).await;
    watch.create(on("a"));
    watch.created().await;
    let revision = put(&channel, "b", "1").await;
    watch.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
    let progress = watch.next().await;
    assert_eq!((progress.watch_id, progress.events.len()), (-1, 0));
    assert_eq!(progress.header.expect("present").revision, revision);
}

#[tokio::test]
async fn a_response_larger_than_a_message_may_be_comes_in_fragments_if_asked() {
    let server = Server::with_limits(Limits { max_request_bytes: 300_000, ..Limits::default() });
    let channel = server.channel().await;
    for _ in 0..4 {
        put(&channel, "a", &"x".repeat(290_000)).await;
    }
    let mut watch = Watch::open(channel.clone()).await;
    watch.create(pb::WatchCreateRequest { start_revision: 2, fragment: true, ..on("a") });
    watch.created().await;
    let (first, second) = (watch.next().await, watch.next().await);
    assert_eq!((first.fragment, first.events.len(), second.fragment, second.events.len()), (true, 2, false, 2));

    // Without asking, it comes whole.
    watch.create(pb::WatchCreateRequest { start_revision: 2, ..on("a") });
    watch.created().await;
    let whole = watch.next().await;
    assert_eq!((whole.fragment, whole.events.len()), (false, 4));
}

/// A client that does not read is detached: it costs the server one window, keeps nobody waiting, and misses nothing.
#[tokio::test]
async fn a_client_that_does_not_read_hinders_nobody_and_misses_nothing() {
    const EVENTS: usize = 600;
    let server = Server::start();
    let (slow_channel, channel) = (server.channel().await, server.channel().await);
    let mut slow = Watch::open(slow_channel).await;
    slow.create(on("a"));
    slow.created().await;
    let mut quick = Watch::open(channel.clone()).await;
    quick.create(on("a"));
    quick.created().await;
    let value = "x".repeat(10_000);
    for _ in 0..EVENTS {
        put(&channel, "a", &value).await;
        quick.events(1).await;
    }
    // 6 MB were written; of those only windows and buffers are under way, and the hub knows.
    server.wait_for_metric("etcd_debugging_mvcc_slow_watcher_total 1").await;
    let seen = slow.events(EVENTS).await;
    let revisions: Vec<_> = seen.iter().map(|event| event.rsplit_once('@').expect("shown so").1.to_owned()).collect();
    let expected: Vec<_> = (0..EVENTS).map(|i| (i + 2).to_string()).collect();
    assert!(revisions == expected, "{revisions:?}");
    server.wait_for_metric("etcd_debugging_mvcc_slow_watcher_total 0").await;
}

#[tokio::test]
async fn a_stream_whose_client_has_gone_is_forgotten() {
    let server = Server::start();
    let mut watch = Watch::open(server.channel().await).await;
    watch.create(on("a"));
    watch.created().await;
    server.wait_for_metric("etcd_debugging_mvcc_watcher_total 1").await;
    drop(watch);
    server.wait_for_metric("etcd_debugging_mvcc_watcher_total 0").await;
    server.wait_for_metric("etcd_debugging_mvcc_watch_stream_total 0").await;
}

#[tokio::test]
async fn a_stream_that_requires_a_leader_ends_when_there_is_none_for_long() {
    let server = Server::with_limits(Limits { election_timeout_ms: 20, ..Limits::default() });
    let (_ask, requests) = mpsc::unbounded_channel();
    let mut request = tonic::Request::new(Requests(requests));
    request.metadata_mut().insert("hasleader", "true".parse().expect("ASCII"));
    let mut responses = WatchClient::new(server.channel().await).watch(request).await.expect("a leader").into_inner();
    server.member.leader.store(0, Ordering::Relaxed);
    let ended = tokio::time::timeout(Duration::from_secs(10), responses.message()).await.expect("in time");
    let status = ended.expect_err("no leader");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
}

#[tokio::test]
async fn a_lock_is_held_by_one_at_a_time_in_order() {
    let server = Server::start();
    let channel = server.channel().await;
    let acquire = || {
        let mut client = LockClient::new(channel.clone());
        tokio::spawn(async move { client.lock(lock::LockRequest { name: "l".into(), lease: 0 }).await })
    };
    let first = acquire().await.expect("joined").expect("free").into_inner();
    assert!(first.key.starts_with(b"l/"));
    let second = acquire();
    let in_line = async || {
        let range = pb::RangeRequest { key: "l/".into(), range_end: "l0".into(), ..Default::default() };
        KvClient::new(channel.clone()).range(range).await.expect("accepted").into_inner().count
    };
    while in_line().await < 2 {
        tokio::task::yield_now().await;
    }
    assert!(!second.is_finished());
    LockClient::new(channel.clone()).unlock(lock::UnlockRequest { key: first.key }).await.expect("accepted");
    let second = second.await.expect("joined").expect("its turn").into_inner();
    assert!(second.header.expect("present").revision > first.header.expect("present").revision);
}

#[tokio::test]
async fn who_stops_waiting_for_a_lock_leaves_the_line() {
    let server = Server::start();
    let channel = server.channel().await;
    let mut client = LockClient::new(channel.clone());
    client.lock(lock::LockRequest { name: "l".into(), lease: 0 }).await.expect("free");
    let request = lock::LockRequest { name: "l".into(), lease: 0 };
    let grpc = [("content-type", "application/grpc"), ("grpc-timeout", "100m")];
    let (seen, _) = server.raw_call("/v3lockpb.Lock/Lock", &grpc, support::frame(&request)).await;
    assert_eq!(seen["grpc-status"], "4");
    let range = pb::RangeRequest { key: "l/".into(), range_end: "l0".into(), ..Default::default() };
    assert_eq!(KvClient::new(channel).range(range).await.expect("accepted").into_inner().count, 1);
}

#[tokio::test]
async fn an_election_is_won_proclaimed_observed_and_resigned() {
    let server = Server::start();
    let channel = server.channel().await;
    let mut client = ElectionClient::new(channel.clone());
    let name = || election::LeaderRequest { name: "e".into() };
    let none = client.leader(name()).await.expect_err("nobody yet");
    assert_eq!((none.code(), none.message()), (Code::Unknown, "election: no leader"));

    let mut observed = client.observe(name()).await.expect("accepted").into_inner();
    let campaign = election::CampaignRequest { name: "e".into(), lease: 0, value: "one".into() };
    let won = client.campaign(campaign).await.expect("nobody else").into_inner();
    let leader = won.leader.expect("present");
    let proclaim = election::ProclaimRequest { leader: Some(leader.clone()), value: "two".into() };
    client.proclaim(proclaim).await.expect("in office");
    let seen = client.leader(name()).await.expect("somebody").into_inner().kv.expect("present");
    assert_eq!((seen.value.as_ref(), seen.create_revision), (b"two".as_ref(), leader.rev));

    // A second candidate waits, and follows when the first resigns.
    let mut rival = ElectionClient::new(channel.clone());
    let campaign = election::CampaignRequest { name: "e".into(), lease: 0, value: "three".into() };
    let rival = tokio::spawn(async move { rival.campaign(campaign).await });
    let stale = election::LeaderKey { rev: leader.rev + 100, ..leader.clone() };
    let stale = election::ProclaimRequest { leader: Some(stale), value: "x".into() };
    assert_eq!(client.proclaim(stale).await.expect_err("not in office").message(), "election: not leader");
    let resign = election::ResignRequest { leader: Some(leader) };
    let missing = client.resign(election::ResignRequest { leader: None }).await.expect_err("of what");
    assert_eq!(missing.message(), "\"leader\" field must be provided");
    client.resign(resign).await.expect("accepted");
    rival.await.expect("joined").expect("its turn");

    let mut values = Vec::new();
    while values.len() < 3 {
        let next = tokio::time::timeout(Duration::from_secs(10), observed.message());
        let response = next.await.expect("in time").expect("no error").expect("not the end");
        values.push(String::from_utf8(response.kv.expect("present").value.to_vec()).expect("text"));
    }
    assert_eq!(values, ["one", "two", "three"]);
}
