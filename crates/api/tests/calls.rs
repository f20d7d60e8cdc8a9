//! What a client sees of the unary calls.

mod support;

use proto::etcdserverpb as pb;
use proto::etcdserverpb::cluster_client::ClusterClient;
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::lease_client::LeaseClient;
use proto::etcdserverpb::maintenance_client::MaintenanceClient;
use proto::healthpb::health_client::HealthClient;
use std::sync::atomic::Ordering;
use support::{CLUSTER_ID, MEMBER_ID, Server, frame};
use tonic::Code;

const GRPC: (&str, &str) = ("content-type", "application/grpc");

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

fn prefix(key: &str, end: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), ..Default::default() }
}

#[tokio::test]
async fn what_is_put_is_read_and_every_header_says_who_answered() {
    let server = Server::start();
    let mut kv = KvClient::new(server.channel().await);
    let written = kv.put(put("a", "1")).await.expect("accepted").into_inner();
    let expected = pb::ResponseHeader { cluster_id: CLUSTER_ID, member_id: MEMBER_ID, revision: 2, raft_term: 2 };
    assert_eq!(written.header, Some(expected));

    let read = kv.range(get("a")).await.expect("accepted").into_inner();
    assert_eq!(read.header, Some(expected));
    assert_eq!((read.count, read.more, read.kvs.len()), (1, false, 1));
    assert_eq!((read.kvs[0].value.as_ref(), read.kvs[0].mod_revision), (b"1".as_ref(), 2));

    let deleted = pb::DeleteRangeRequest { key: "a".into(), prev_kv: true, ..Default::default() };
    let deleted = kv.delete_range(deleted).await.expect("accepted").into_inner();
    assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (1, 1));
    assert_eq!(deleted.header.map(|header| header.revision), Some(3));
}

#[tokio::test]
async fn a_transaction_answers_with_a_whole_header_and_bare_inner_ones() {
    let server = Server::start();
    let mut kv = KvClient::new(server.channel().await);
    let op = pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put("a", "1"))) };
    let txn = pb::TxnRequest { success: vec![op], ..Default::default() };
    let response = kv.txn(txn).await.expect("accepted").into_inner();
    let header = response.header.expect("present");
    assert_eq!((header.cluster_id, header.revision), (CLUSTER_ID, 2));
    let Some(pb::response_op::Response::ResponsePut(inner)) = &response.responses[0].response else {
        panic!("a put answers a put")
    };
    let inner = inner.header.expect("present");
    assert_eq!((inner.cluster_id, inner.revision), (0, 2));
}

#[tokio::test]
async fn a_refusal_carries_etcds_code_and_text() {
    let server = Server::start();
    let mut kv = KvClient::new(server.channel().await);
    let refused = kv.put(put("", "1")).await.expect_err("no key");
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "etcdserver: key is not provided"));

    let future = pb::RangeRequest { revision: 99, ..get("a") };
    let refused = kv.range(future).await.expect_err("not there yet");
    let text = "etcdserver: mvcc: required revision is a future revision";
    assert_eq!((refused.code(), refused.message()), (Code::OutOfRange, text));

    let refused = kv.put(put("a", &"x".repeat(1_600_000))).await.expect_err("larger than a log entry may be");
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "etcdserver: request is too large"));
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_before_it_is_read() {
    let server = Server::start();
    let mut kv = KvClient::new(server.channel().await);
    let refused = kv.put(put("a", &"x".repeat(3_000_000))).await.expect_err("too large");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.message(), "grpc: received message larger than max (3000008 vs. 2097152)");
}

#[tokio::test]
async fn a_value_of_a_megabyte_goes_in_and_comes_out() {
    let server = Server::start();
    let mut kv = KvClient::new(server.channel().await);
    let value: String = (0..1_000_000).map(|i| char::from(b'a' + (i % 26) as u8)).collect();
    kv.put(put("big", &value)).await.expect("accepted");
    let read = kv.range(get("big")).await.expect("accepted").into_inner();
    assert!(read.kvs[0].value == value.as_bytes());
}

#[tokio::test]
async fn a_wide_range_comes_whole_and_so_does_its_stream() {
    let server = Server::start();
    let mut kv = KvClient::new(server.channel().await);
    for i in 0..1500 {
        kv.put(put(&format!("k{i:05}"), "v")).await.expect("accepted");
    }
    let read = kv.range(prefix("k", "l")).await.expect("accepted").into_inner();
    assert_eq!((read.count, read.kvs.len()), (1500, 1500));
    assert!(read.kvs.is_sorted_by(|a, b| a.key < b.key));

    let mut stream = kv.range_stream(prefix("k", "l")).await.expect("accepted").into_inner();
    let mut streamed = Vec::new();
    let mut last = None;
    while let Some(response) = stream.message().await.expect("whole") {
        let range = response.range_response.expect("present");
        streamed.extend(range.kvs);
        last = Some((range.header.is_some(), range.count));
    }
    assert!(streamed == read.kvs);
    assert_eq!(last, Some((true, 1500)));
}

/// Reads that arrive while a barrier is under way must not use it: it may stand for a moment before they were asked.
#[tokio::test]
async fn linearizable_reads_share_the_next_barrier() {
    let server = Server::start();
    server.member.local_reads.store(false, Ordering::Relaxed);
    let channel = server.channel().await;
    let read = |key: &'static str| {
        let mut kv = KvClient::new(channel.clone());
        tokio::spawn(async move { kv.range(get(key)).await })
    };
    let barriers =
        |count: usize| move |member: &support::FakeMember| member.barriers.lock().expect("ok").len() == count;

    let first = read("a");
    server.wait_until("the first read's barrier", barriers(1)).await;
    let later = [read("b"), read("c"), read("d")];
    server
        .wait_for_metric(
            r#"grpc_server_msg_received_total{grpc_method="Range",grpc_service="etcdserverpb.KV",grpc_type="unary"} 4"#,
        )
        .await;
    assert_eq!(server.member.barriers.lock().expect("ok").len(), 1);

    server.pass_barriers();
    first.await.expect("joined").expect("accepted");
    server.wait_until("one barrier for the three", barriers(1)).await;
    assert!(later.iter().all(|read| !read.is_finished()));
    server.pass_barriers();
    for read in later {
        read.await.expect("joined").expect("accepted");
    }
}

#[tokio::test]
#[allow(clippy::await_holding_lock)] // the lock is what keeps the other thread from applying
async fn a_call_that_outlives_its_deadline_is_refused_and_its_answer_dropped() {
    let server = Server::start();
    let gate = server.member.gate.clone();
    let closed = gate.lock().expect("ok");
    let (seen, _) =
        server.raw_call("/etcdserverpb.KV/Put", &[GRPC, ("grpc-timeout", "50m")], frame(&put("a", "1"))).await;
    assert_eq!(seen["grpc-status"], "4");
    assert_eq!(seen["grpc-message"], "etcdserver: context deadline exceeded");
    drop(closed);
    // It was proposed all the same, and its late answer hits nobody.
    let mut kv = KvClient::new(server.channel().await);
    let written = kv.put(put("a", "2")).await.expect("accepted").into_inner();
    assert_eq!(written.header.map(|header| header.revision), Some(3));
}

#[tokio::test]
async fn what_is_not_understood_is_refused_in_the_words_of_the_original() {
    let server = Server::start();
    let refusal = async |path: &str, headers: &[(&str, &str)], body: Vec<u8>| {
        let (seen, _) = server.raw_call(path, headers, body).await;
        (seen["grpc-status"].to_str().expect("a number").to_owned(), seen["grpc-message"].clone())
    };
    let (code, text) = refusal("/etcdserverpb.KV/Nope", &[GRPC], Vec::new()).await;
    assert_eq!((code.as_str(), text.as_bytes()), ("12", b"unknown method Nope for service etcdserverpb.KV".as_ref()));
    let (code, text) = refusal("/foo.Bar/Baz", &[GRPC], Vec::new()).await;
    assert_eq!((code.as_str(), text.as_bytes()), ("12", b"unknown service foo.Bar".as_ref()));
    let mut compressed = frame(&get("a"));
    compressed[0] = 1;
    let (code, text) = refusal("/etcdserverpb.KV/Range", &[GRPC, ("grpc-encoding", "gzip")], compressed).await;
    let expected = b"grpc: Decompressor is not installed for grpc-encoding \"gzip\"";
    assert_eq!((code.as_str(), text.as_bytes()), ("12", expected.as_ref()));
    let (code, _) = refusal("/etcdserverpb.KV/Range", &[GRPC], vec![0, 0, 0, 0, 2, 0xff, 0xff]).await;
    assert_eq!(code, "13");
}

#[tokio::test]
async fn a_client_that_requires_a_leader_is_told_when_there_is_none() {
    let server = Server::start();
    server.member.leader.store(0, Ordering::Relaxed);
    let (seen, _) =
        server.raw_call("/etcdserverpb.KV/Put", &[GRPC, ("hasleader", "true")], frame(&put("a", "1"))).await;
    assert_eq!(
        (&seen["grpc-status"], &seen["grpc-message"]),
        (&"14".parse().expect("ok"), &"etcdserver: no leader".parse().expect("ok"))
    );
}

#[tokio::test]
async fn a_learner_serves_only_what_needs_no_vote() {
    let server = Server::start();
    server.member.learner.store(true, Ordering::Relaxed);
    let mut kv = KvClient::new(server.channel().await);
    let refused = kv.put(put("a", "1")).await.expect_err("a learner does not write");
    assert_eq!(refused.message(), "etcdserver: rpc not supported for learner");
    kv.range(get("a")).await.expect_err("nor read what is newest");
    kv.range(pb::RangeRequest { serializable: true, ..get("a") }).await.expect("but what it has");
    MaintenanceClient::new(server.channel().await).status(pb::StatusRequest {}).await.expect("and its status");
}

#[tokio::test]
async fn a_lease_is_granted_renewed_listed_and_revoked_with_its_keys() {
    let server = Server::start();
    let channel = server.channel().await;
    let (mut kv, mut leases) = (KvClient::new(channel.clone()), LeaseClient::new(channel));
    let granted = leases.lease_grant(pb::LeaseGrantRequest { ttl: 100, id: 0 }).await.expect("ok").into_inner();
    assert!(granted.id > 0 && granted.ttl == 100);
    kv.put(pb::PutRequest { lease: granted.id, ..put("a", "1") }).await.expect("accepted");

    let requests = tokio_stream(vec![granted.id, 4711]);
    let mut answers = leases.lease_keep_alive(requests).await.expect("ok").into_inner();
    let renewed = answers.message().await.expect("ok").expect("one answer per request");
    assert_eq!((renewed.id, renewed.ttl), (granted.id, 100));
    let unknown = answers.message().await.expect("ok").expect("one answer per request");
    assert_eq!((unknown.id, unknown.ttl), (4711, 0));
    assert!(answers.message().await.expect("ends with OK").is_none());

    let request = pb::LeaseTimeToLiveRequest { id: granted.id, keys: true };
    let left = leases.lease_time_to_live(request).await.expect("ok").into_inner();
    assert_eq!((left.granted_ttl, left.keys.as_slice()), (100, ["a".into()].as_slice()));
    let left = leases.lease_time_to_live(pb::LeaseTimeToLiveRequest { id: 4711, keys: false }).await.expect("ok");
    assert_eq!(left.into_inner().ttl, -1);

    let listed = leases.lease_leases(pb::LeaseLeasesRequest {}).await.expect("ok").into_inner();
    assert_eq!(listed.leases, [pb::LeaseStatus { id: granted.id }]);
    leases.lease_revoke(pb::LeaseRevokeRequest { id: granted.id }).await.expect("ok");
    assert_eq!(kv.range(get("a")).await.expect("ok").into_inner().count, 0);
    let refused = leases.lease_revoke(pb::LeaseRevokeRequest { id: granted.id }).await.expect_err("gone");
    assert_eq!((refused.code(), refused.message()), (Code::NotFound, "etcdserver: requested lease not found"));
}

/// A stream of keep-alive requests that ends.
fn tokio_stream(ids: Vec<i64>) -> impl tonic::IntoStreamingRequest<Message = pb::LeaseKeepAliveRequest> {
    Requests(ids.into_iter())
}

struct Requests(std::vec::IntoIter<i64>);

impl tonic::codegen::tokio_stream::Stream for Requests {
    type Item = pb::LeaseKeepAliveRequest;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Ready(self.0.next().map(|id| pb::LeaseKeepAliveRequest { id }))
    }
}

#[tokio::test]
async fn the_cluster_and_the_health_of_its_member_can_be_seen() {
    let server = Server::start();
    let channel = server.channel().await;
    let members = ClusterClient::new(channel.clone()).member_list(pb::MemberListRequest { linearizable: true }).await;
    let header = members.expect("ok").into_inner().header.expect("present");
    assert_eq!((header.member_id, header.revision), (MEMBER_ID, 0));
    let status = MaintenanceClient::new(channel.clone()).status(pb::StatusRequest {}).await.expect("ok").into_inner();
    assert_eq!((status.version.as_str(), status.leader, status.db_size), ("3.7.1", MEMBER_ID, 20480));
    let check = |service: &str| proto::healthpb::HealthCheckRequest { service: service.into() };
    let mut health = HealthClient::new(channel);
    assert_eq!(health.check(check("")).await.expect("ok").into_inner().status, 1);
    assert_eq!(health.check(check("x")).await.expect_err("unknown").code(), Code::NotFound);
}

#[tokio::test]
async fn a_snapshot_ends_with_the_digest_of_what_came_before() {
    use sha2::Digest;
    let server = Server::start();
    let mut maintenance = MaintenanceClient::new(server.channel().await);
    let mut stream = maintenance.snapshot(pb::SnapshotRequest {}).await.expect("ok").into_inner();
    let (mut image, mut remaining) = (Vec::new(), Vec::new());
    while let Some(piece) = stream.message().await.expect("whole") {
        assert_eq!((piece.header, piece.version.as_str()), (None, "3.7.0"));
        remaining.push(piece.remaining_bytes);
        image.extend(piece.blob);
    }
    let digest = image.split_off(image.len() - 32);
    assert_eq!(image.len(), 45_000);
    assert_eq!(digest, sha2::Sha256::digest(&image).as_slice());
    assert_eq!(remaining, [12_232, 5_000, 0, 0]);
}
