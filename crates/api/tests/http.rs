//! What plain HTTP clients see.

mod support;

use std::sync::atomic::Ordering;
use support::Server;

/// Status line, body.
async fn get(server: &Server, path: &str) -> (String, String) {
    split(&server.http1("GET", path).await)
}

fn split(answer: &str) -> (String, String) {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head ends with an empty line");
    (head.lines().next().expect("a status line").trim_start_matches("HTTP/1.1 ").to_owned(), body.to_owned())
}

fn pair(status: &str, body: &str) -> (String, String) {
    (status.to_owned(), body.to_owned())
}

#[tokio::test]
async fn health_is_the_leader_the_alarms_and_a_read() {
    let server = Server::start();
    assert_eq!(get(&server, "/health").await, pair("200 OK", r#"{"health":"true","reason":""}"#));
    server.member.leader.store(0, Ordering::Relaxed);
    let ill = pair("503 Service Unavailable", "{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n");
    assert_eq!(get(&server, "/health").await, ill);
    assert_eq!(get(&server, "/health?serializable=true").await.0, "200 OK");
}

#[tokio::test]
async fn probes_answer_ok_and_in_detail_when_asked() {
    let server = Server::start();
    assert_eq!(get(&server, "/livez").await, pair("200 OK", "ok\n"));
    assert_eq!(get(&server, "/livez?verbose").await, pair("200 OK", "[+]serializable_read ok\nok\n"));
    assert_eq!(get(&server, "/livez/serializable_read").await, pair("200 OK", "ok\n"));
    let (_, ready) = get(&server, "/readyz?verbose&exclude=non_learner").await;
    assert_eq!(ready, "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\nok\n");
    server.member.learner.store(true, Ordering::Relaxed);
    let failed = pair("503 Service Unavailable", "[-]non_learner failed: not supported for learner\n\n");
    assert_eq!(get(&server, "/readyz/non_learner").await, failed);
}

#[tokio::test]
async fn the_version_is_three_fields_in_order() {
    let server = Server::start();
    let expected = r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#;
    assert_eq!(get(&server, "/version").await, pair("200 OK", expected));
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_refused() {
    let server = Server::start();
    for path in ["/", "/config", "/livez/nope", "/debug/pprof/"] {
        assert_eq!(get(&server, path).await, pair("404 Not Found", "404 page not found\n"), "{path}");
    }
    let refused = server.http1("POST", "/health").await;
    assert!(refused.to_lowercase().contains("\r\nallow: get\r\n"), "{refused}");
    assert_eq!(split(&refused), pair("405 Method Not Allowed", "Method Not Allowed\n"));
}

#[tokio::test]
async fn the_same_paths_answer_over_http2() {
    let server = Server::start();
    let (seen, _) = server.raw_call("/health", &[], Vec::new()).await;
    assert_eq!(seen["http-status"], "405");
    assert_eq!(seen["access-control-allow-origin"], "*");
}

#[tokio::test]
async fn metrics_count_calls_by_method_and_code() {
    let server = Server::start();
    let grpc = [("content-type", "application/grpc"), ("client-api-version", "3.5.1")];
    let request = proto::etcdserverpb::RangeRequest { key: "a".into(), ..Default::default() };
    server.raw_call("/etcdserverpb.KV/Range", &grpc, support::frame(&request)).await;
    server
        .raw_call("/etcdserverpb.KV/Range", &grpc, support::frame(&proto::etcdserverpb::RangeRequest::default()))
        .await;
    let (_, metrics) = get(&server, "/metrics").await;
    for line in [
        r#"grpc_server_started_total{grpc_method="Range",grpc_service="etcdserverpb.KV",grpc_type="unary"} 2"#,
        r#"grpc_server_handled_total{grpc_code="OK",grpc_method="Range",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
        r#"grpc_server_handled_total{grpc_code="InvalidArgument",grpc_method="Range",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#,
        r#"etcd_server_client_requests_total{client_api_version="3.5.1",type="unary"} 2"#,
        "etcd_server_has_leader 1",
        "etcd_server_is_leader 1",
        r#"etcd_server_version{server_version="3.7.1"} 1"#,
        r#"etcd_cluster_version{cluster_version="3.7"} 1"#,
        "etcd_mvcc_range_total 1",
        "etcd_debugging_mvcc_current_revision 1",
        "etcd_disk_wal_fsync_duration_seconds_count 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is missing in:\n{metrics}");
    }
    for name in ["process_open_fds ", "process_resident_memory_bytes ", "os_fd_limit ", "process_cpu_seconds_total "] {
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        assert!(value.parse::<f64>().is_ok_and(|value| value >= 0.0), "{name}{value}");
    }
}
