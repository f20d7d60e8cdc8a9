//! `--proxy`: a proxy of the v2 API, beside the one that a real etcd is.

use std::path::Path;
use std::time::{Duration, Instant};

use keelson_tests::harness::{
    Binary, Http, HttpReply, HttpRequest, Options, Seat, Server, free_addresses, ours, reference_with_v2,
};
use serde_json::json;

/// How long anything may take that is waited for.
const SOON: Duration = Duration::from_secs(20);

fn member() -> Server {
    let flags = vec!["--enable-v2=true".into()];
    Server::start(&ours(), Options { flags, ..Options::default() }).expect("it starts")
}

/// A proxy of a member, on the member's kind of flags.
fn proxy(binary: &Binary, flags: &[&str], member: &Server, data_dir: Option<&Path>) -> Server {
    let [client, peer] = free_addresses().expect("free ports");
    let initial_cluster = format!("{}={}", member.name(), member.peer_url());
    let seat = Seat { name: "proxy".into(), client, peer, namespace: None, initial_cluster };
    let flags = flags.iter().map(Into::into).collect();
    let options = Options { flags, data_dir: data_dir.map(Into::into), seat: Some(seat), ..Options::default() };
    Server::spawned(binary, options).expect("it can be started")
}

async fn ask(server: &Server, request: &HttpRequest) -> HttpReply {
    Http::new(server.client_addr()).ask(request).await.unwrap_or_else(|error| panic!("{request:?}: {error}"))
}

async fn get(server: &Server, path: &str) -> HttpReply {
    ask(server, &HttpRequest::new("GET", path)).await
}

/// Waits until it answers that.
async fn becomes(server: &Server, path: &str, wanted: impl Fn(&HttpReply) -> bool) -> HttpReply {
    let deadline = Instant::now() + SOON;
    loop {
        let last = Http::new(server.client_addr()).ask(&HttpRequest::new("GET", path)).await;
        match last {
            Ok(reply) if wanted(&reply) => return reply,
            other => assert!(Instant::now() < deadline, "{path}: {other:?}; {}", server.log_tail()),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn binaries() -> Vec<Binary> {
    let real = reference_with_v2();
    if real.is_none() {
        eprintln!("skipped in part: there is no etcd with a v2 API; .ci/peers fetches one");
    }
    [Some(ours()), real].into_iter().flatten().collect()
}

#[tokio::test]
async fn a_proxy_passes_requests_on_and_says_when_there_is_nobody_to_pass_them_to() {
    for binary in binaries() {
        let mut member = member();
        let mut proxy = proxy(&binary, &["--proxy=on", "--proxy-failure-wait=60000"], &member, None);
        let known = json!({"endpoints": [member.client_url()]});
        let shown = becomes(&proxy, "/v2/config/local/proxy", |reply| reply.json() == known).await;
        assert_eq!(shown.headers["content-type"], "text/plain; charset=utf-8");
        assert_eq!(ask(&proxy, &HttpRequest::new("PUT", "/v2/config/local/proxy")).await.status, 405);

        let set = HttpRequest::new("PUT", "/v2/keys/a").with_form("value=1");
        let written = ask(&proxy, &set).await;
        assert_eq!((written.status, &written.json()["node"]["value"]), (201, &json!("1")));
        assert_eq!(written.number("x-etcd-index"), get(&member, "/v2/keys/a").await.number("x-etcd-index"));
        assert_eq!(get(&proxy, "/v2/keys/none").await.json()["errorCode"], 100);
        let wait = HttpRequest::new("GET", "/v2/keys/a?wait=true");
        // The real one keeps the head of an answer back until there is a body.
        let mut waiting = match binary.name.as_str() {
            "ours" => Some(Http::new(proxy.client_addr()).begin(&wait).await.expect("a watch")),
            _ => None,
        };
        let changed = ask(&member, &HttpRequest::new("PUT", "/v2/keys/a?value=2")).await;
        if let Some(wait) = &mut waiting {
            assert!(wait.line().await.expect("an event").expect("a line").contains(r#""value":"2""#));
        }
        let index = changed.number("x-etcd-index").expect("an index");
        let past = get(&proxy, &format!("/v2/keys/a?wait=true&waitIndex={index}")).await;
        assert_eq!(past.json()["node"]["value"], "2", "{past:?}");

        let file = proxy.data_dir().join("proxy/cluster");
        let kept = std::fs::read_to_string(&file).expect("the cluster file");
        assert_eq!(kept, format!("{{\"PeerURLs\":[\"{}\"]}}", member.peer_url()));

        member.stop().expect("stopped");
        let lost = get(&proxy, "/v2/keys/a").await;
        let nobody = r#"{"message":"httpproxy: unable to get response from 1 endpoint(s)"}"#;
        assert_eq!((lost.status, lost.body.as_str()), (502, nobody));
        let none = get(&proxy, "/v2/keys/a").await;
        let nobody = r#"{"message":"httpproxy: zero endpoints currently available"}"#;
        assert_eq!((none.status, none.body.as_str()), (503, nobody));
        assert_eq!(none.headers["content-type"], "application/json");

        // What the directory is for counts more than the flag.
        member.spawn().and_then(|()| member.wait_ready()).expect("it serves again");
        proxy.stop().expect("stopped");
        proxy.flags_mut().clear();
        proxy.spawn().expect("started");
        becomes(&proxy, "/v2/keys/a", |reply| reply.json()["node"]["value"] == "2").await;
    }
}

#[tokio::test]
async fn a_proxy_that_is_readonly_refuses_everything_else() {
    for binary in binaries() {
        let member = member();
        let proxy = proxy(&binary, &["--proxy=readonly"], &member, None);
        becomes(&proxy, "/v2/keys/", |reply| reply.status == 200).await;
        for method in ["PUT", "POST", "DELETE", "HEAD"] {
            let refused = ask(&proxy, &HttpRequest::new(method, "/v2/keys/a?value=1")).await;
            assert_eq!((refused.status, refused.body.as_str()), (501, ""), "{method} by {binary:?}");
        }
        assert_eq!(get(&member, "/v2/keys/a").await.status, 404);
    }
}

#[tokio::test]
async fn a_directory_is_a_members_or_a_proxys() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir_all(dir.path().join("proxy")).expect("made");
    std::fs::create_dir_all(dir.path().join("member/wal")).expect("made");
    std::fs::write(dir.path().join("member/wal/0000000000000000-0000000000000000.wal"), "").expect("written");
    let member = member();
    let mut both = proxy(&ours(), &["--proxy=on"], &member, Some(dir.path()));
    assert!(!both.wait_ended(SOON).expect("it ends").success());
    assert!(both.log().contains("Both member and proxy directories exist."), "{}", both.log_tail());
}

#[tokio::test]
async fn who_comes_too_late_to_found_a_cluster_may_be_its_proxy() {
    let service = member();
    let size = ask(&service, &HttpRequest::new("PUT", "/v2/keys/token/_config/size?value=1")).await;
    assert_eq!(size.status, 201);
    let discovery = format!("--discovery={}/v2/keys/token", service.client_url());
    let seek = |name: &str| {
        let [client, peer] = free_addresses().expect("free ports");
        let seat = Seat { name: name.into(), client, peer, namespace: None, initial_cluster: String::new() };
        let flags = [discovery.as_str(), "--discovery-fallback=proxy", "--enable-v2=true"].map(Into::into).to_vec();
        Server::spawned(&ours(), Options { flags, seat: Some(seat), ..Options::default() }).expect("it can be started")
    };
    let mut founder = seek("first");
    founder.wait_ready().expect("it serves");
    ask(&founder, &HttpRequest::new("PUT", "/v2/keys/a?value=1")).await;
    let late = seek("late");
    becomes(&late, "/v2/keys/a", |reply| reply.json()["node"]["value"] == "1").await;
    assert!(late.log().contains("discovery cluster full, falling back to proxy"), "{}", late.log_tail());
    assert!(late.data_dir().join("proxy/cluster").is_file());
}
