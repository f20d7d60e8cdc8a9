//! What a call costs the worker that serves it, in CPU time. Run it by hand, with `--release --ignored --nocapture`.

mod support;

use std::time::Instant;

use bytes::Bytes;
use http::Request;
use proto::etcdserverpb as pb;
use support::{Server, frame};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const CALLS: usize = 100_000;
const STREAMS_AT_ONCE: usize = 64;
const CONNECTIONS: usize = 4;

/// Calls `path` over and over on one connection, many streams at a time.
async fn load(address: std::net::SocketAddr, path: &'static str, body: Bytes) {
    let stream = TcpStream::connect(address).await.expect("the server listens");
    stream.set_nodelay(true).expect("a TCP socket");
    let (client, connection) = h2::client::handshake(stream).await.expect("it speaks HTTP/2");
    tokio::spawn(connection);
    let mut lanes = JoinSet::new();
    for _ in 0..STREAMS_AT_ONCE {
        let (client, body) = (client.clone(), body.clone());
        lanes.spawn(async move {
            let mut client = client.ready().await.expect("the connection stands");
            for _ in 0..CALLS / CONNECTIONS / STREAMS_AT_ONCE {
                let request = Request::post(format!("http://{address}{path}"));
                let request = request.header("content-type", "application/grpc").header("te", "trailers");
                let (response, mut send) = client.send_request(request.body(()).expect("ok"), false).expect("sent");
                send.send_data(body.clone(), true).expect("sent");
                let mut body = response.await.expect("answered").into_body();
                while let Some(chunk) = body.data().await {
                    body.flow_control().release_capacity(chunk.expect("whole").len()).expect("received");
                }
                assert_eq!(body.trailers().await.expect("whole").expect("present")["grpc-status"], "0");
            }
        });
    }
    lanes.join_all().await;
}

async fn measure(server: &Server, name: &str, path: &'static str, body: Vec<u8>) {
    let (begun, spent) = (Instant::now(), server.worker_cpu());
    let mut connections = JoinSet::new();
    for _ in 0..CONNECTIONS {
        connections.spawn(load(server.address, path, body.clone().into()));
    }
    connections.join_all().await;
    let (elapsed, spent) = (begun.elapsed(), server.worker_cpu() - spent);
    let calls = (CALLS / CONNECTIONS / STREAMS_AT_ONCE) * CONNECTIONS * STREAMS_AT_ONCE;
    let each = spent.as_secs_f64() * 1e6 / calls as f64;
    println!("{name}: {each:.2} us of worker CPU per call, {:.0} calls/s", calls as f64 / elapsed.as_secs_f64());
}

#[tokio::test]
#[ignore = "a measurement, not a test"]
async fn what_a_call_costs() {
    let server = Server::start();
    let put = pb::PutRequest { key: "key-0001".into(), value: vec![b'v'; 256].into(), ..Default::default() };
    let get = pb::RangeRequest { key: "key-0001".into(), ..Default::default() };
    for round in 1..=2 {
        println!("round {round}");
        measure(&server, "put", "/etcdserverpb.KV/Put", frame(&put)).await;
        measure(&server, "range", "/etcdserverpb.KV/Range", frame(&get)).await;
        let nothing = proto::healthpb::HealthCheckRequest::default();
        measure(&server, "health check", "/grpc.health.v1.Health/Check", frame(&nothing)).await;
    }
}
