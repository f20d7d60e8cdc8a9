//! `--discovery` and `--discovery-token`: members find each other at a server that runs already, which may be ours.

use std::time::Duration;

use keelson_tests::harness::{
    Binary, Http, HttpReply, HttpRequest, Options, Seat, Server, connect, free_addresses, ours, reference,
    reference_with_v2,
};
use proto::etcdserverpb::PutRequest;

/// How long a member that cannot take part may take to end.
const ENDED_WITHIN: Duration = Duration::from_secs(20);

async fn ask(server: &Server, method: &'static str, path: &str) -> HttpReply {
    Http::new(server.client_addr()).ask(&HttpRequest::new(method, path)).await.expect("an answer")
}

/// A member that looks for the others at `token` of the service.
fn seeker(binary: &Binary, name: &str, service: &Server, token: &str) -> Server {
    let [client, peer] = free_addresses().expect("free ports");
    let seat = Seat { name: name.into(), client, peer, namespace: None, initial_cluster: String::new() };
    let discovery = format!("--discovery={}/v2/keys/{token}", service.client_url());
    let flags = [discovery.as_str(), "--discovery-fallback=exit", "--enable-v2=true"].map(Into::into).to_vec();
    Server::spawned(binary, Options { flags, seat: Some(seat), ..Options::default() }).expect("it can be started")
}

async fn must_form(service: &Server, token: &str, binaries: [&Binary; 3]) {
    let size = ask(service, "PUT", &format!("/v2/keys/{token}/_config/size?value=3")).await;
    assert_eq!(size.status, 201, "{size:?}");
    let mut members: Vec<Server> = Vec::new();
    for (n, binary) in binaries.into_iter().enumerate() {
        members.push(seeker(binary, &format!("m{n}"), service, token));
    }
    for member in &mut members {
        member.wait_ready().expect("it serves");
    }
    let written = ask(&members[0], "PUT", "/v2/keys/k?value=together").await;
    assert_eq!(written.status, 201, "{written:?}");
    for member in &members {
        let read = ask(member, "GET", "/v2/keys/k?quorum=true").await;
        assert_eq!(read.json()["node"]["value"], "together", "{read:?}");
    }
    let mut late = seeker(binaries[0], "late", service, token);
    let status = late.wait_ended(ENDED_WITHIN).expect("there is no place for it");
    assert!(!status.success());
    assert!(late.log().contains("discovery: cluster is full"), "{}", late.log_tail());
    // Who has lived before needs no discovery.
    members[1].stop().expect("stopped");
    members[1].spawn().expect("started");
    members[1].wait_ready().expect("it serves again");
}

#[tokio::test]
async fn members_find_each_other_at_our_own_v2_keys() {
    let flags = vec!["--enable-v2=true".into()];
    let service = Server::start(&ours(), Options { flags, ..Options::default() }).expect("it starts");
    let ours = ours();
    must_form(&service, "registry/one", [&ours, &ours, &ours]).await;
    let Some(real) = reference_with_v2() else {
        eprintln!("skipped in part: there is no etcd with a v2 API; .ci/peers fetches one");
        return;
    };
    must_form(&service, "registry/two", [&ours, &real, &real]).await;
}

#[tokio::test]
async fn our_members_find_each_other_at_a_real_etcd() {
    let Some(real) = reference_with_v2() else {
        eprintln!("skipped: there is no etcd with a v2 API; .ci/peers fetches one");
        return;
    };
    let flags = vec!["--enable-v2=true".into()];
    let service = Server::start(&real, Options { flags, ..Options::default() }).expect("it starts");
    let ours = ours();
    must_form(&service, "registry/one", [&ours, &real, &ours]).await;
    let mut lost = seeker(&ours, "lost", &service, "registry/none");
    assert!(!lost.wait_ended(ENDED_WITHIN).expect("there is no such token").success());
    assert!(lost.log().contains("100: Key not found (/registry/none)"), "{}", lost.log_tail());
}

/// By keys of the v3 API, which real etcds understand as members since 3.6, and as the place to meet since 3.0.
async fn must_meet(service: &Server, token: &str) {
    let mut client = connect(service.client_addr()).await.expect("the service can be reached");
    let size = PutRequest {
        key: format!("/_etcd/registry/{token}/_config/size").into(),
        value: "3".into(),
        ..PutRequest::default()
    };
    client.kv.put(size).await.expect("the size is written");
    let seeker = |name: &str, token: &str| {
        let [client, peer] = free_addresses().expect("free ports");
        let seat = Seat { name: name.into(), client, peer, namespace: None, initial_cluster: String::new() };
        let endpoints = format!("--discovery-endpoints={}", service.client_addr());
        let flags = [format!("--discovery-token={token}"), endpoints].map(Into::into).to_vec();
        Server::spawned(&ours(), Options { flags, seat: Some(seat), ..Options::default() }).expect("it can be started")
    };
    let mut members: Vec<Server> = ["m0", "m1", "m2"].map(|name| seeker(name, token)).into();
    for member in &mut members {
        member.wait_ready().expect("it serves");
    }
    for (n, member) in members.iter().enumerate() {
        let mut client = connect(member.client_addr()).await.expect("it can be reached");
        let put = PutRequest { key: "k".into(), ..PutRequest::default() };
        let answer = client.kv.put(put).await.expect("they are one cluster").into_inner();
        assert_eq!(answer.header.expect("a header").revision, n as i64 + 2);
    }
    let mut late = seeker("late", token);
    assert!(!late.wait_ended(ENDED_WITHIN).expect("there is no place for it").success());
    assert!(late.log().contains("discovery: cluster is full"), "{}", late.log_tail());
    let mut lost = seeker("lost", "nosuch");
    assert!(!lost.wait_ended(ENDED_WITHIN).expect("there is no such token").success());
    assert!(lost.log().contains("discovery: size key not found"), "{}", lost.log_tail());
    members[1].stop().expect("stopped");
    members[1].spawn().expect("started");
    members[1].wait_ready().expect("it serves again");
}

#[tokio::test]
async fn members_meet_by_keys_of_the_v3_api() {
    let service = Server::start(&ours(), Options::default()).expect("it starts");
    must_meet(&service, "one").await;
    let Some(real) = reference() else {
        eprintln!("skipped in part: there is no real etcd; .ci/peers fetches one");
        return;
    };
    let service = Server::start(&real, Options::default()).expect("it starts");
    must_meet(&service, "one").await;
}
