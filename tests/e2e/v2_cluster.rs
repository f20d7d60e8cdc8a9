//! The v2 API on three members, one tree whoever is asked, leads, was away or is a real etcd; and after `kill -9`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use keelson_tests::harness::{
    Binary, Cluster, Http, HttpReply, HttpRequest, OpenReply, Options, Server, Setup, ours, reference_with_v2,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

/// How long members may take to agree.
const AGREED_WITHIN: Duration = Duration::from_secs(30);

fn start(members: Vec<Binary>, flags: &[&str]) -> Cluster {
    let mut setup = Setup::new(members);
    setup.flags = ["--enable-v2=true"].iter().chain(flags).map(Into::into).collect();
    Cluster::start(setup).unwrap_or_else(|problem| panic!("the cluster starts: {problem}"))
}

async fn ask(server: &Server, method: &'static str, path: &str) -> HttpReply {
    let request = HttpRequest::new(method, path);
    let reply = Http::new(server.client_addr()).ask(&request).await;
    reply.unwrap_or_else(|problem| panic!("{request:?} of {}: {problem}", server.name()))
}

/// Writes until the member says that it was done: without a leader it says that it was not.
async fn surely(server: &Server, method: &'static str, path: &str) -> HttpReply {
    let deadline = Instant::now() + AGREED_WITHIN;
    loop {
        let reply = ask(server, method, path).await;
        if reply.status != 500 {
            return reply;
        }
        assert!(Instant::now() < deadline, "{method} {path}: {reply:?}");
    }
}

fn index(reply: &HttpReply) -> u64 {
    reply.number("x-etcd-index").unwrap_or_else(|| panic!("an index in {reply:?}"))
}

/// Waits until a member has applied all changes up to this index.
async fn reach(server: &Server, wanted: u64) {
    let deadline = Instant::now() + AGREED_WITHIN;
    loop {
        let reached = index(&ask(server, "GET", "/v2/keys/").await);
        if reached >= wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{} is at {reached} of {wanted}", server.name());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The whole tree as a member has it, and the events from `since` to `last`, which must be one of a key that is not
/// hidden: nobody can wait for others. What is left of TTLs depends on the time and is left out.
async fn everything(server: &Server, since: u64, last: u64) -> (Value, Vec<Value>) {
    let mut tree = ask(server, "GET", "/v2/keys/?recursive=true&sorted=true").await.json();
    forget_ttls(&mut tree);
    let mut events = Vec::new();
    let mut next = since;
    while next <= last {
        let event = ask(server, "GET", &format!("/v2/keys/?wait=true&recursive=true&waitIndex={next}")).await;
        assert_eq!(event.status, 200, "{event:?}");
        let mut event = event.json();
        next = event["node"]["modifiedIndex"].as_u64().expect("an index") + 1;
        forget_ttls(&mut event);
        events.push(event);
    }
    (tree, events)
}

fn forget_ttls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("ttl");
            fields.values_mut().for_each(forget_ttls);
        }
        Value::Array(list) => list.iter_mut().for_each(forget_ttls),
        _ => {}
    }
}

/// Checks that all started members have the same tree and, from `since` on, the same past.
async fn must_be_equal(cluster: &Cluster, since: u64) {
    let last = surely(&cluster.servers()[cluster.started()[0]], "PUT", "/v2/keys/last?value=1").await;
    let last = index(&last);
    let mut first = None;
    for member in cluster.started() {
        let server = &cluster.servers()[member];
        reach(server, last).await;
        let found = everything(server, since, last).await;
        let first = first.get_or_insert_with(|| found.clone());
        assert_eq!(*first, found, "{} differs", server.name());
    }
}

/// A write through any member is read from every other with `quorum=true` at once, and waits anywhere see it.
#[tokio::test]
async fn every_member_answers_for_all() {
    let cluster = start(vec![ours(), ours(), ours()], &[]);
    let first = index(&ask(&cluster.servers()[0], "GET", "/v2/keys/?quorum=true").await) + 1;
    for (n, writer) in cluster.servers().iter().enumerate() {
        let mut waits = Vec::new();
        for server in cluster.servers() {
            let wait = HttpRequest::new("GET", format!("/v2/keys/k?wait=true&waitIndex={}", first + n as u64));
            waits.push(Http::new(server.client_addr()).begin(&wait).await.expect("a watch"));
        }
        let written = ask(writer, "PUT", &format!("/v2/keys/k?value={n}")).await;
        assert_eq!((index(&written), written.status), (first + n as u64, if n == 0 { 201 } else { 200 }));
        for server in cluster.servers() {
            let read = ask(server, "GET", "/v2/keys/k?quorum=true").await.json();
            assert_eq!(read["node"], written.json()["node"], "from {}", server.name());
        }
        for wait in &mut waits {
            let event = wait.line().await.expect("an answer").expect("an event");
            assert_eq!(serde_json::from_str::<Value>(&event).expect("JSON"), written.json());
        }
    }
    let swapped = ask(&cluster.servers()[1], "PUT", "/v2/keys/k?value=3&prevValue=2").await;
    assert_eq!(swapped.json()["action"], "compareAndSwap");
    let refused = ask(&cluster.servers()[2], "PUT", "/v2/keys/k?value=4&prevValue=2").await;
    assert_eq!((refused.status, &refused.json()["cause"]), (412, &json!("[2 != 3]")));
    must_be_equal(&cluster, first).await;
}

/// What runs out does so by an entry of the log: at the same index everywhere, also when the leader dies before it can
/// say so.
#[tokio::test]
async fn nodes_run_out_at_the_same_index_on_all_members_and_without_the_old_leader() {
    const NODES: u64 = 20;
    let mut cluster = start(vec![ours(), ours(), ours()], &[]);
    let leader = cluster.wait_for_leader(&[0, 1, 2]).await.expect("a leader");
    let survivors: Vec<usize> = (0..3).filter(|member| *member != leader).collect();
    let server = &cluster.servers()[survivors[0]];
    let made = ask(server, "PUT", "/v2/keys/dir/in?value=1").await;
    for n in 0..NODES {
        ask(server, "PUT", &format!("/v2/keys/k{n}?value=1&ttl={}", 2 + n % 3)).await;
    }
    let last = index(&ask(server, "PUT", "/v2/keys/dir?dir=true&prevExist=true&ttl=3").await);
    let mut watches: Vec<OpenReply> = Vec::new();
    for member in &survivors {
        reach(&cluster.servers()[*member], last).await;
        let watch = HttpRequest::new("GET", "/v2/keys/?wait=true&recursive=true&stream=true");
        let watch = Http::new(cluster.servers()[*member].client_addr()).begin(&watch).await;
        watches.push(watch.expect("a watch"));
    }
    cluster.member(leader).kill().expect("killed");
    for expected in last + 1..=last + NODES + 1 {
        let mut seen = Vec::new();
        for watch in &mut watches {
            let event: Value =
                serde_json::from_str(&watch.line().await.expect("in time").expect("an event")).expect("JSON");
            assert_eq!((&event["action"], event["node"]["modifiedIndex"].as_u64()), (&json!("expire"), Some(expected)));
            seen.push(event);
        }
        assert_eq!(seen[0], seen[1]);
    }
    let left = ask(&cluster.servers()[survivors[0]], "GET", "/v2/keys/?recursive=true").await.json();
    assert_eq!(left["node"].get("nodes"), None, "{left}");
    cluster.restart(leader).expect("it comes back");
    must_be_equal(&cluster, index(&made)).await;
}

/// A member that was away for longer than the log is kept gets the tree, its past and its counters as a snapshot.
#[tokio::test]
async fn a_snapshot_brings_the_tree_with_its_past() {
    let flags = ["--snapshot-count=100", "--experimental-snapshot-catchup-entries=50"];
    let mut cluster = start(vec![ours(), ours(), ours()], &flags);
    let leader = cluster.wait_for_leader(&[0, 1, 2]).await.expect("a leader");
    let away = (leader + 1) % 3;
    ask(&cluster.servers()[leader], "PUT", "/v2/keys/gone/by/then?value=1").await;
    cluster.member(away).stop().expect("stopped");
    let mut http = Http::new(cluster.servers()[leader].client_addr());
    let mut last = 0;
    for n in 0..1_200 {
        let path = match n % 4 {
            0 => format!("/v2/keys/dir{}/k?value={n}", n % 7),
            1 => format!("/v2/keys/_hidden/{}?value={n}", n % 5),
            2 => format!("/v2/keys/t{}?value={n}&ttl=100000", n % 50),
            _ => format!("/v2/keys/k{}?value={n}", n % 100),
        };
        last = index(&http.ask(&HttpRequest::new("PUT", path)).await.expect("an answer"));
    }
    ask(&cluster.servers()[leader], "DELETE", "/v2/keys/gone?recursive=true").await;
    cluster.restart(away).expect("it comes back");
    must_be_equal(&cluster, last - 900).await;
    let log = cluster.servers()[away].log();
    assert!(log.contains("saved the leader's snapshot"), "it came by the log, which is no test of snapshots");
    let hidden = ask(&cluster.servers()[away], "GET", "/v2/keys/_hidden?sorted=true").await.json();
    assert_eq!(hidden, ask(&cluster.servers()[leader], "GET", "/v2/keys/_hidden?sorted=true").await.json());
    // All of them start again, from snapshots and what is left of their logs.
    let before = everything(&cluster.servers()[away], last - 900, last).await;
    for member in 0..3 {
        cluster.member(member).stop().expect("stopped");
    }
    for member in 0..3 {
        cluster.spawn(member).expect("started");
    }
    cluster.wait_ready().expect("it serves");
    assert_eq!(everything(&cluster.servers()[away], last - 900, last).await, before);
    must_be_equal(&cluster, last - 900).await;
}

/// The data directory of a real etcd keeps its v2 tree, with indexes and past, when ours takes it over.
#[tokio::test]
async fn a_real_etcds_tree_is_taken_over() {
    let Some(real) = reference_with_v2() else {
        eprintln!("skipped: there is no etcd with a v2 API; .ci/peers fetches one");
        return;
    };
    // A snapshot in the middle, so that some of the tree comes from there and some from the log.
    let flags = ["--enable-v2=true", "--snapshot-count=100"].map(Into::into).to_vec();
    let home = tempfile::tempdir().expect("a directory");
    let options = Options { flags, data_dir: Some(home.path().join("data")), ..Options::default() };
    let mut before = Server::start(&real, options.clone()).expect("the real one starts");
    let mut http = Http::new(before.client_addr());
    for n in 0..250 {
        let path = format!("/v2/keys/d{}/_h{}?value=%C3%A4{n}&ttl=100000", n % 3, n % 2);
        http.ask(&HttpRequest::new("PUT", path)).await.expect("an answer");
        http.ask(&HttpRequest::new("POST", "/v2/keys/queue?value=x")).await.expect("an answer");
        http.ask(&HttpRequest::new("DELETE", format!("/v2/keys/d{}/nothing", n % 3))).await.expect("an answer");
    }
    let last = index(&ask(&before, "PUT", "/v2/keys/last?value=1").await);
    let theirs = everything(&before, last - 400, last).await;
    let hidden = ask(&before, "GET", "/v2/keys/d1/_h1").await.json();
    let counters = ask(&before, "GET", "/v2/stats/store").await.json();
    before.stop().expect("stopped");
    let after = Server::start(&ours(), options).expect("ours takes it over");
    assert_eq!(everything(&after, last - 400, last).await, theirs);
    let mut hidden = hidden;
    let mut ours = ask(&after, "GET", "/v2/keys/d1/_h1").await.json();
    forget_ttls(&mut hidden);
    forget_ttls(&mut ours);
    assert_eq!(ours, hidden);
    let now = ask(&after, "GET", "/v2/stats/store").await.json();
    for name in ["deleteFail", "createSuccess", "expireCount"] {
        assert_eq!(now[name], counters[name], "{name} in {now}");
    }
}

/// Ours and real etcds in one cluster: writes through each, each leading, and a death in between.
#[tokio::test]
async fn a_mixed_cluster_has_one_tree() {
    let Some(real) = reference_with_v2() else {
        eprintln!("skipped: there is no etcd with a v2 API; .ci/peers fetches one");
        return;
    };
    let mut cluster = start(vec![ours(), real.clone(), real], &[]);
    let first = index(&surely(&cluster.servers()[0], "PUT", "/v2/keys/begin?value=1").await);
    for leader in [0, 1, 2, 0] {
        cluster.move_leader(leader).await.expect("the leadership moves");
        for (n, server) in cluster.servers().iter().enumerate() {
            for path in [
                format!("/v2/keys/led-by-{leader}/through-{n}?value=a%26b"),
                format!("/v2/keys/led-by-{leader}/through-{n}?value=c&prevValue=a%26b"),
                format!("/v2/keys/dir-{n}?dir=true&prevExist=false"),
                format!("/v2/keys/short-{n}?value=1&ttl=1"),
                format!("/v2/keys/long-{n}?value=1&ttl=100000"),
                format!("/v2/keys/long-{n}?refresh=true&prevExist=true&ttl=200000"),
            ] {
                surely(server, "PUT", &path).await;
            }
            surely(server, "POST", "/v2/keys/queue?value=x").await;
        }
        surely(&cluster.servers()[0], "DELETE", &format!("/v2/keys/led-by-{leader}?recursive=true")).await;
    }
    cluster.member(1).kill().expect("killed");
    surely(&cluster.servers()[0], "PUT", "/v2/keys/without-one?value=1&ttl=1").await;
    cluster.restart(1).expect("it comes back");
    surely(&cluster.servers()[1], "PUT", "/v2/keys/after?value=1").await;
    // The short ones run out, which moves the index; two looks that agree say that this is over.
    let deadline = Instant::now() + AGREED_WITHIN;
    loop {
        let left = ask(&cluster.servers()[0], "GET", "/v2/keys/?quorum=true").await;
        if !left.body.contains("short-") && !left.body.contains("without-one") {
            break;
        }
        assert!(Instant::now() < deadline, "{left:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    must_be_equal(&cluster, first).await;
}

/// Writes in-order keys until the server is gone; returns the index and value of each that was acknowledged.
async fn write_until_the_server_is_gone(server: std::net::SocketAddr, writer: String) -> Vec<(u64, String)> {
    let mut http = Http::new(server);
    let mut acknowledged = Vec::new();
    loop {
        let value = format!("{writer}-{}", acknowledged.len());
        let request = HttpRequest::new("POST", format!("/v2/keys/queue?value={value}"));
        match http.ask(&request).await {
            Ok(reply) if reply.status == 201 => acknowledged.push((index(&reply), value)),
            _ => return acknowledged,
        }
    }
}

/// An acknowledged write is there after `kill -9`, at the index that its answer named; one without an answer is there
/// once or not at all.
#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let flags = ["--enable-v2=true", "--snapshot-count=500"].map(Into::into).to_vec();
    let mut server = Server::start(&ours(), Options { flags, ..Options::default() }).expect("it starts");
    let mut acknowledged: Vec<(u64, String)> = Vec::new();
    for round in 0..6 {
        let writer = |n| write_until_the_server_is_gone(server.client_addr(), format!("{round}-{n}"));
        let writers: Vec<_> = (0..16).map(|n| tokio::spawn(writer(n))).collect();
        tokio::time::sleep(Duration::from_millis(40 + 170 * round)).await;
        server.kill().expect("killed");
        for writer in writers {
            acknowledged.extend(writer.await.expect("no writer panics"));
        }
        server.spawn().expect("started");
        server.wait_ready().expect("it serves");
        let found = ask(&server, "GET", "/v2/keys/queue").await;
        let found = found.json();
        let nodes = found["node"]["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
        let values: BTreeMap<&str, u64> = nodes
            .iter()
            .map(|node| (node["value"].as_str().expect("a value"), node["createdIndex"].as_u64().expect("an index")))
            .collect();
        assert_eq!(values.len(), nodes.len(), "a value is there twice");
        for (index, value) in &acknowledged {
            assert_eq!(values.get(value.as_str()), Some(index), "{value} was acknowledged, round {round}");
        }
    }
    assert!(acknowledged.len() > 100, "{} writes are no load", acknowledged.len());
}

/// Users are keys of the v2 tree. A name that leads out of their directory would name a key that anybody may have
/// written: a user of his own making, with the password and the roles that he likes. etcd 3.4 lets him in.
#[tokio::test]
async fn nobody_becomes_a_user_by_writing_a_key() {
    /// bcrypt of the password `known`.
    const HASH: &str = "$2a$04$abcdefghijklmnopqrstuuges0.lCvw6dVHoVkOV0ih0Cvqc9/S82";
    let cluster = start(vec![ours()], &[]);
    let server = &cluster.servers()[0];
    let ask_as = async |user: &str, method: &'static str, path: &str, body: Option<String>| {
        let credentials = BASE64_STANDARD.encode(user);
        let headers =
            vec![("Authorization", format!("Basic {credentials}")), ("Content-Type", "application/json".into())];
        let request = HttpRequest { headers, body, ..HttpRequest::new(method, path) };
        Http::new(server.client_addr()).ask(&request).await.expect("an answer").status
    };
    for user in ["root", "a"] {
        let body = json!({"user": user, "password": "known"}).to_string();
        assert_eq!(ask_as("", "PUT", &format!("/v2/auth/users/{user}"), Some(body)).await, 201);
    }
    // Written while everybody may write everywhere.
    let paths = ["/x", "/a/b", "/users/x", "/root/x"];
    for path in paths {
        let user = json!({"user": "root", "password": HASH, "roles": ["root"]}).to_string();
        let form = format!("value={}", utf8_percent_encode(&user, NON_ALPHANUMERIC));
        let set = HttpRequest::new("PUT", format!("/v2/keys{path}")).with_form(form);
        let written = Http::new(server.client_addr()).ask(&set).await.expect("an answer");
        assert_eq!(written.status, 201, "{written:?}");
    }
    assert_eq!(ask_as("root:known", "PUT", "/v2/auth/enable", None).await, 200);
    assert_eq!(ask_as("root:known", "GET", "/v2/auth/users", None).await, 200);
    assert_eq!(ask_as("root:wrong", "GET", "/v2/auth/users", None).await, 401);
    for path in paths {
        for name in [format!("../../1{path}"), format!("a/../../../1{path}"), format!("/../../1{path}")] {
            assert_eq!(ask_as(&format!("{name}:known"), "GET", "/v2/auth/users", None).await, 401, "{name}");
            assert_eq!(ask_as(&format!("{name}:known"), "PUT", "/v2/keys/y?value=1", None).await, 401, "{name}");
        }
    }
    for name in ["a/b", "../x", "..", ".", "", "./root", "root/", "//root", "x/../root"] {
        assert_eq!(ask_as(&format!("{name}:known"), "GET", "/v2/auth/users", None).await, 401, "{name:?}");
    }
    // Nor is a path made a user.
    for (path, expected) in [("a%2Fb", 400), ("a/b", 400), ("..%2Fx", 301), ("%2E%2E/x", 301)] {
        let body = json!({"user": "a/b", "password": "known"}).to_string();
        let status = ask_as("root:known", "PUT", &format!("/v2/auth/users/{path}"), Some(body)).await;
        assert_eq!(status, expected, "{path}");
    }
}
