//! Dashboards and alerts made for etcd find what they look for: every metric of a real etcd, with its type and its labels, and
//! moved by the same load. Skipped where there is no real etcd.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keelson_tests::harness::{Binary, Client, Options, Server, connect, http_get, ours, reference, reference_with_v2};
use proto::etcdserverpb as pb;
use tonic::codegen::tokio_stream;

/// What a real etcd shows and ours does not, and why. A name that ends in `*` stands for all that begin so.
const ABSENT: &[(&str, &str)] = &[
    ("go_*", "there is no Go runtime"),
    ("promhttp_*", "counted by a Go library about itself"),
    ("etcd_server_go_version", "there is no Go"),
    ("etcd_debugging_disk_backend_commit_*", "steps of a commit of bbolt, which is not used"),
    ("etcd_debugging_store_*", "inner life of etcd's v2 store; requests of the v2 API are in etcd_http_*"),
    ("etcd_grpc_proxy_*", "a member of a cluster is no proxy; etcd shows zeros for ever"),
];

/// What the load moves in a real etcd and need not move here, and why.
const STILL: &[(&str, &str)] = &[
    ("etcd_debugging_snap_save_*", "the first snapshot is due later than the load ends"),
    ("etcd_snap_*", "the first snapshot is due later than the load ends"),
    ("etcd_mvcc_db_open_read_transactions", "moves only while a read is on its way"),
    ("etcd_debugging_mvcc_watch*", "moves only while a watch is open"),
    ("etcd_debugging_mvcc_compact_revision", "etcd 3.4 shows it late"),
    ("process_virtual_memory_max_bytes", "a limit of the system"),
];

fn is_listed(list: &[(&str, &str)], name: &str) -> bool {
    list.iter().any(|(listed, _)| listed.strip_suffix('*').map_or(*listed == name, |prefix| name.starts_with(prefix)))
}

/// A family of metrics as `/metrics` shows it.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    labels: BTreeSet<String>,
    /// Some sample is not zero.
    moved: bool,
}

fn parse(answer: &str) -> BTreeMap<String, Family> {
    let (_, text) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let mut families = BTreeMap::<String, Family>::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').expect("a name and a type");
            families.entry(name.into()).or_default().kind = kind.into();
            current = name.into();
        } else if !line.starts_with('#') && !line.is_empty() {
            let family = families.get_mut(&current).expect("the type comes first");
            let (sample, value) = line.rsplit_once(' ').expect("a sample and a value");
            if let Some((_, labels)) = sample.split_once('{') {
                // Values of labels are names, numbers and codes here: none holds a comma or a quote.
                let names = labels.trim_end_matches('}').split(',').filter_map(|label| label.split_once('='));
                family.labels.extend(names.map(|(name, _)| name.to_owned()).filter(|name| name != "le"));
            }
            family.moved |= value != "0";
        }
    }
    families
}

/// A little of everything that moves a metric.
async fn load(client: &mut Client) -> Result<(), tonic::Status> {
    for number in 0..20u8 {
        let put =
            pb::PutRequest { key: vec![b'k', number].into(), value: vec![b'v'; 100].into(), ..Default::default() };
        client.kv.put(put.clone()).await?;
        let put = pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) };
        client.kv.txn(pb::TxnRequest { success: vec![put], ..Default::default() }).await?;
    }
    let all = pb::RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
    client.kv.range(all.clone()).await?;
    client.kv.range(pb::RangeRequest { serializable: true, ..all }).await?;
    client.kv.delete_range(pb::DeleteRangeRequest { key: vec![b'k', 1].into(), ..Default::default() }).await?;
    let watch =
        pb::WatchCreateRequest { key: "k".into(), range_end: "l".into(), start_revision: 2, ..Default::default() };
    let watch = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(watch)) };
    let (keep_open, requests) = tokio::sync::mpsc::unbounded_channel();
    keep_open.send(watch).expect("the stream takes it");
    let requests = tokio_stream::wrappers::UnboundedReceiverStream::new(requests);
    let mut events = client.watch.watch(requests).await?.into_inner();
    let mut seen = 0;
    while seen < 41 {
        seen += events.message().await?.map_or(41, |response| response.events.len());
    }
    let lease = client.lease.lease_grant(pb::LeaseGrantRequest { ttl: 100, id: 0 }).await?.into_inner().id;
    let renewal = tokio_stream::once(pb::LeaseKeepAliveRequest { id: lease });
    client.lease.lease_keep_alive(renewal).await?.into_inner().message().await?;
    client.lease.lease_revoke(pb::LeaseRevokeRequest { id: lease }).await?;
    client.kv.compact(pb::CompactionRequest { revision: 20, physical: true }).await?;
    client.maintenance.defragment(pb::DefragmentRequest::default()).await?;
    client.maintenance.hash_kv(pb::HashKvRequest::default()).await?;
    client.maintenance.hash(pb::HashRequest::default()).await?;
    let mut snapshot = client.maintenance.snapshot(pb::SnapshotRequest::default()).await?.into_inner();
    while snapshot.message().await?.is_some() {}
    // The stream of the watch is open to the end.
    drop(events);
    drop(keep_open);
    Ok(())
}

/// What a fresh server shows after the load.
fn families_of(binary: &Binary, flags: &[&str]) -> BTreeMap<String, Family> {
    let options = Options { flags: flags.iter().map(Into::into).collect(), ..Options::default() };
    let server = Server::start(binary, options).expect("the server starts");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut client = connect(server.client_addr()).await.expect("the server takes connections");
        let loaded = tokio::time::timeout(Duration::from_secs(60), load(&mut client)).await;
        loaded.expect("the load ends").expect("the server does what it is asked");
    });
    let get = |path| http_get(server.client_addr(), path).expect("the server answers");
    get("/health");
    get("/v2/keys/");
    parse(&get("/metrics"))
}

fn compare(reference: &Binary) {
    let flags = ["--metrics=extensive", "--enable-v2=true"];
    let ours = families_of(&ours(), &flags);
    let theirs = families_of(reference, &flags);
    let mut wrong = Vec::new();
    for (name, expected) in &theirs {
        let Some(family) = ours.get(name) else {
            if !is_listed(ABSENT, name) {
                wrong.push(format!("{name}: a {} that is not here", expected.kind));
            }
            continue;
        };
        if is_listed(ABSENT, name) {
            wrong.push(format!("{name}: is here although it is listed as absent"));
        }
        if family.kind != expected.kind {
            wrong.push(format!("{name}: a {} instead of a {}", family.kind, expected.kind));
        }
        // A family without a sample says nothing of its labels.
        if !family.labels.is_empty() && family.labels != expected.labels {
            wrong.push(format!("{name}: labels {:?} instead of {:?}", family.labels, expected.labels));
        }
        if expected.moved && !family.moved && !is_listed(STILL, name) {
            wrong.push(format!("{name}: is not moved"));
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", reference.name, wrong.join("\n"));
    assert!(theirs.len() > 100, "{} shows only {} families", reference.name, theirs.len());
}

#[test]
fn every_metric_of_etcd_3_5_is_here_and_alive() {
    match reference() {
        Some(reference) => compare(&reference),
        None => eprintln!("skipped: there is no real etcd; .ci/peers fetches one"),
    }
}

#[test]
fn every_metric_of_etcd_3_4_is_here_and_alive() {
    match reference_with_v2() {
        Some(reference) => compare(&reference),
        None => eprintln!("skipped: there is no real etcd with the v2 API; .ci/peers fetches one"),
    }
}

/// A slow request is told in the log with the parts of its time, which sum to the whole.
#[test]
fn slow_requests_are_logged_with_their_parts() {
    let flags = ["--warning-unary-request-duration=1ns", "--warning-apply-duration=1ns"];
    let options = Options { flags: flags.iter().map(Into::into).collect(), ..Options::default() };
    let server = Server::start(&ours(), options).expect("the server starts");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut client = connect(server.client_addr()).await.expect("the server takes connections");
        let put = pb::PutRequest { key: "slow".into(), value: "a secret".into(), ..Default::default() };
        client.kv.put(put).await.expect("the key is put");
        let range = pb::RangeRequest { key: "slow".into(), ..Default::default() };
        client.kv.range(range).await.expect("the key is read");
    });
    let log = server.log();
    assert!(!log.contains("a secret"), "values are not logged");
    let lines: Vec<serde_json::Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let find = |message: &str, field: &str, value: &str| {
        let is_it = |line: &&serde_json::Value| line["msg"] == message && line[field] == value;
        lines.iter().find(is_it).unwrap_or_else(|| panic!("{message} with {field} {value}: {log}"))
    };
    let put = find("request stats", "response type", "/etcdserverpb.KV/Put");
    assert_eq!(put["request content"], r#"key:"slow" value_size:8 "#);
    assert_eq!((&put["request count"], &put["request size"]), (&1.into(), &16.into()));
    let parts = ["queue", "fsync", "replicate", "wait", "apply", "send"];
    let sum: u128 = parts.iter().map(|part| nanos(&put[part])).sum();
    assert_eq!(sum, nanos(&put["time spent"]), "{put}");
    let range = find("request stats", "response type", "/etcdserverpb.KV/Range");
    let sum: u128 = ["queue", "read-index", "read"].iter().map(|part| nanos(&range[part])).sum();
    assert_eq!(sum, nanos(&range["time spent"]), "{range}");
    let read = find("apply request took too long", "prefix", "read-only range ");
    assert_eq!(read["request"], r#"key:"slow" "#);
    let applied = lines.iter().filter(|line| line["msg"] == "apply request took too long");
    let requests: Vec<&str> = applied.filter_map(|line| line["request"].as_str()).collect();
    assert!(requests.iter().any(|r| r.ends_with(r#"put:<key:"slow" value_size:8 >"#)), "{requests:?}");
}

/// A duration as it is logged, `1.5ms`.
fn nanos(value: &serde_json::Value) -> u128 {
    let text = value.as_str().unwrap_or_else(|| panic!("{value} is no duration"));
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').expect("a unit");
    let scale: u128 = match &text[digits..] {
        "ns" => 1,
        "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        unit => panic!("unit {unit}"),
    };
    // In whole numbers, so that nothing is rounded.
    let (whole, fraction) = text[..digits].split_once('.').unwrap_or((&text[..digits], ""));
    let whole: u128 = whole.parse().expect("a number");
    let fraction_value: u128 = if fraction.is_empty() { 0 } else { fraction.parse().expect("a number") };
    whole * scale + fraction_value * scale / 10u128.pow(fraction.len() as u32)
}
