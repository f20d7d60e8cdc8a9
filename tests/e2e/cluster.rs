//! Three members: they elect, replicate, survive their leader, and let members come and go as etcd does.

use std::time::{Duration, Instant};

use bytes::Bytes;
use keelson_tests::harness::{Cluster, Network, Place, Server, Setup, ours};
use proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseTimeToLiveRequest, MemberAddRequest, MemberPromoteRequest,
    MemberRemoveRequest, MemberUpdateRequest, PutRequest, RangeRequest,
};
use tonic::{Code, Status};

/// How long a member that has been removed may take to notice and end.
const GONE_WITHIN: Duration = Duration::from_secs(20);
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(20);

fn three() -> Setup {
    Setup::new(vec![ours(), ours(), ours()])
}

fn start(setup: Setup) -> Cluster {
    Cluster::start(setup).unwrap_or_else(|problem| panic!("the cluster starts: {problem}"))
}

async fn put(cluster: &Cluster, member: usize, key: &str, value: &str) -> i64 {
    let mut client = cluster.client(member).await.expect("a connection");
    let put = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() };
    let answer = client.kv.put(put).await.unwrap_or_else(|status| panic!("put through member {member}: {status}"));
    answer.into_inner().header.expect("a header").revision
}

async fn get(cluster: &Cluster, member: usize, key: &str) -> Bytes {
    let mut client = cluster.client(member).await.expect("a connection");
    let range = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
    let answer = client.kv.range(range).await.unwrap_or_else(|status| panic!("read from member {member}: {status}"));
    answer.into_inner().kvs.first().map(|pair| pair.value.clone()).unwrap_or_default()
}

/// The refusal that `outcome` is.
fn refusal<T>(outcome: Result<T, Status>) -> (Code, String) {
    match outcome {
        Ok(_) => panic!("it was not refused"),
        Err(status) => (status.code(), status.message().to_owned()),
    }
}

/// A write through any member is read from any other at once, whatever happens to one of them.
#[tokio::test]
async fn every_member_serves_and_the_cluster_survives_its_leader() {
    let mut cluster = start(three());
    for written in 0..3 {
        put(&cluster, written, "k", &format!("through {written}")).await;
        for read in 0..3 {
            assert_eq!(get(&cluster, read, "k").await, format!("through {written}"), "read from {read}");
        }
    }
    // A lease granted by one member is kept alive through another, and known to all.
    let mut client = cluster.client(0).await.expect("a connection");
    let granted = client.lease.lease_grant(LeaseGrantRequest { ttl: 600, id: 77 }).await.expect("a lease").into_inner();
    for member in 0..3 {
        let mut client = cluster.client(member).await.expect("a connection");
        let keep_alive = tonic::codegen::tokio_stream::iter([LeaseKeepAliveRequest { id: granted.id }]);
        let mut kept = client.lease.lease_keep_alive(keep_alive).await.expect("a stream").into_inner();
        assert_eq!(kept.message().await.expect("an answer").expect("one answer").ttl, 600, "through {member}");
        let asked = LeaseTimeToLiveRequest { id: granted.id, keys: false };
        let asked = client.lease.lease_time_to_live(asked).await.expect("an answer").into_inner();
        assert!((1..=600).contains(&asked.ttl), "member {member} says {asked:?}");
    }

    let leader = cluster.wait_for_leader(&[0, 1, 2]).await.expect("a leader");
    cluster.member(leader).kill().expect("killed");
    let others: Vec<usize> = (0..3).filter(|member| *member != leader).collect();
    let next = cluster.wait_for_leader(&others).await.expect("another leader");
    assert_ne!(next, leader);
    for member in others {
        put(&cluster, member, "k", &format!("without a leader of old, through {member}")).await;
    }
    let revision = put(&cluster, next, "last", "before it comes back").await;
    cluster.restart(leader).expect("it comes back");
    assert_eq!(get(&cluster, leader, "last").await, "before it comes back");
    let equal_at = cluster.must_be_equal().await.expect("all members are equal");
    assert!(equal_at >= revision, "{equal_at} is before {revision}");

    // Leadership can be handed over to any member, by asking the one that leads.
    for to in 0..3 {
        cluster.move_leader(to).await.expect("the leadership moves");
        put(&cluster, (to + 1) % 3, "k", &format!("under {to}")).await;
    }
    // The whole cluster stops and starts, and knows everything.
    for member in 0..3 {
        cluster.member(member).stop().expect("SIGTERM ends it");
    }
    for member in 0..3 {
        cluster.spawn(member).expect("it starts again");
    }
    cluster.wait_ready().expect("it serves again");
    assert_eq!(get(&cluster, 0, "k").await, "under 2");
    cluster.must_be_equal().await.expect("all members are equal");
}

/// Every refusal is etcd's, with its words; then a member is replaced as the tutorial does it.
#[tokio::test]
async fn members_come_and_go_with_etcds_checks_and_errors() {
    let mut cluster = start(three());
    put(&cluster, 0, "k", "v").await;
    let leader = cluster.wait_for_leader(&[0, 1, 2]).await.expect("a leader");
    let mut client = cluster.client(leader).await.expect("a connection");
    let in_use = MemberAddRequest { peer_ur_ls: vec![cluster.member(1).peer_url()], is_learner: false };
    let in_use = cluster.while_unhealthy(leader, async |mut client| {
        Ok(refusal(client.cluster.member_add(in_use.clone()).await)).and_then(healthy)
    });
    assert_eq!(
        in_use.await.expect("an answer"),
        (Code::FailedPrecondition, "etcdserver: Peer URLs already exists".into())
    );
    let unknown = (Code::NotFound, "etcdserver: member not found".to_owned());
    assert_eq!(refusal(client.cluster.member_remove(MemberRemoveRequest { id: 0xbad }).await), unknown);
    assert_eq!(refusal(client.cluster.member_promote(MemberPromoteRequest { id: 0xbad }).await), unknown);
    let update = MemberUpdateRequest { id: 0xbad, peer_ur_ls: vec!["http://127.0.0.1:1".into()] };
    assert_eq!(refusal(client.cluster.member_update(update).await), unknown);
    let voter = cluster.member_id((leader + 1) % 3).await.expect("an ID");
    assert_eq!(
        refusal(client.cluster.member_promote(MemberPromoteRequest { id: voter }).await),
        (Code::FailedPrecondition, "etcdserver: can only promote a learner member".into())
    );

    // A learner catches up and becomes a voter.
    let learner = cluster.add(&ours(), leader, true).await.expect("a learner is added");
    let listed = cluster.member_list(leader).await.expect("a list");
    let listed = listed.iter().find(|member| member.is_learner).expect("the learner is listed as one").clone();
    let second = MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:1".into()], is_learner: true };
    let second = cluster.while_unhealthy(leader, async |mut client| {
        Ok(refusal(client.cluster.member_add(second.clone()).await)).and_then(healthy)
    });
    assert_eq!(
        second.await.expect("an answer"),
        (Code::FailedPrecondition, "etcdserver: too many learner members in cluster".into())
    );
    let promoted = cluster.while_unhealthy(leader, async |mut client| {
        let deadline = Instant::now() + CAUGHT_UP_WITHIN;
        loop {
            match client.cluster.member_promote(MemberPromoteRequest { id: listed.id }).await {
                Err(status) if status.message().contains("in sync with leader") && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await
                }
                outcome => return outcome,
            }
        }
    });
    promoted.await.expect("a learner that has caught up is promoted");
    cluster.member(learner).wait_ready().expect("a voter serves");
    assert_eq!(get(&cluster, learner, "k").await, "v");
    put(&cluster, learner, "k", "through the new voter").await;
    cluster.must_be_equal().await.expect("all four are equal");

    // A removed member ends by itself, and its data directory is refused from then on.
    let removed = (leader + 1) % 3;
    let id = cluster.member_id(removed).await.expect("an ID");
    cluster
        .while_unhealthy(leader, async |mut client| client.cluster.member_remove(MemberRemoveRequest { id }).await)
        .await
        .expect("it is removed");
    cluster.member(removed).wait_ended(GONE_WITHIN).expect("a removed member ends");
    let before = cluster.member(removed).log().len();
    cluster.spawn(removed).expect("a process");
    cluster.member(removed).wait_ended(GONE_WITHIN).expect("a removed member is refused");
    let log = cluster.member(removed).log().split_off(before);
    assert!(log.contains("removed"), "it says why:\n{log}");
    assert_eq!(cluster.member_list(leader).await.expect("a list").len(), 3);
    cluster.must_be_equal().await.expect("the others are equal");

    // Its address may come back as a new member with an empty directory; until it starts it has no name.
    let url = cluster.member(removed).peer_url();
    let add = MemberAddRequest { peer_ur_ls: vec![url], is_learner: false };
    cluster
        .while_unhealthy(leader, async |mut client| client.cluster.member_add(add.clone()).await)
        .await
        .expect("it is added again");
    let listed = cluster.member_list(leader).await.expect("a list");
    assert_eq!((listed[0].name.as_str(), listed.len()), ("", 4), "{listed:?}");
    assert_ne!(listed[0].id, id, "a member that comes back is another one");
    rejoin_clean(&mut cluster, removed);
    assert_eq!(get(&cluster, removed, "k").await, "through the new voter");
    cluster.must_be_equal().await.expect("all four are equal");
}

/// A refusal that a cluster gives only for the moment is an error again, so that it is asked once more.
fn healthy(refusal: (Code, String)) -> Result<(Code, String), Status> {
    match refusal {
        (Code::Unavailable, text) => Err(Status::unavailable(text)),
        refusal => Ok(refusal),
    }
}

/// Starts a member that was added again on an empty directory.
fn rejoin_clean(cluster: &mut Cluster, member: usize) {
    let names: Vec<String> =
        cluster.servers().iter().map(|server| format!("{}={}", server.name(), server.peer_url())).collect();
    let server: &mut Server = cluster.member(member);
    std::fs::remove_dir_all(server.data_dir()).expect("removed");
    server.seat_mut().initial_cluster = names.join(",");
    server.flags_mut().extend(["--initial-cluster-state".into(), "existing".into()]);
    server.spawn().and_then(|()| server.wait_ready()).expect("it joins");
}

/// IDs are made from peer URLs and the token as etcd makes them: these are the tutorial's.
#[tokio::test]
async fn the_tutorials_addresses_give_the_tutorials_ids() {
    if let Err(reason) = Network::available() {
        eprintln!("skipped: {reason}");
        return;
    }
    let cluster = start(Setup { place: Place::Namespaces, token: "docker-etcd".into(), ..three() });
    let mut ids = Vec::new();
    for member in 0..3 {
        let header = cluster.status(member).await.expect("it answers").header.expect("a header");
        assert_eq!(header.cluster_id, 0xf84185fa5f91bdf6);
        ids.push(header.member_id);
    }
    assert_eq!(ids[..2], [0xc88e2cccbb287a01, 0x773d30c9fc6640b4]);
    put(&cluster, 0, "foo", "bar").await;
    assert_eq!(get(&cluster, 2, "foo").await, "bar");
}

/// The leader is cut off from the others, but not from its clients: it must not answer from what it last knew.
#[tokio::test]
async fn a_leader_that_is_cut_off_serves_no_stale_read() {
    if let Err(reason) = Network::available() {
        eprintln!("skipped: {reason}");
        return;
    }
    let cluster = start(Setup { place: Place::Namespaces, ..three() });
    put(&cluster, 0, "k", "old").await;
    let leader = cluster.wait_for_leader(&[0, 1, 2]).await.expect("a leader");
    let others: Vec<usize> = (0..3).filter(|member| *member != leader).collect();
    for other in &others {
        cluster.network().cut_both(leader, *other).expect("cut");
    }
    let mut client = cluster.client(leader).await.expect("clients reach it");
    let read = tokio::spawn(async move {
        let range = RangeRequest { key: Bytes::from_static(b"k"), ..RangeRequest::default() };
        client.kv.range(range).await.map(|answer| answer.into_inner().kvs[0].value.clone())
    });
    cluster.wait_for_leader(&others).await.expect("another leader");
    put(&cluster, others[0], "k", "new").await;
    cluster.network().heal().expect("healed");
    let answer = read.await.expect("the read does not panic");
    assert!(answer.as_ref().map_or(true, |value| value == "new"), "{answer:?}");
    assert_eq!(get(&cluster, leader, "k").await, "new");
    cluster.must_be_equal().await.expect("all members are equal");
}
