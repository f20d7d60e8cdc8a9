//! The JSON gateway of a real process, asked by clients that are not ours. Each test says when its client is not installed.

use std::process::{Command, Stdio};

use keelson_tests::harness::{Options, Server, ours};

/// What a client prints; none if it is not installed.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(program).args(arguments).stdin(Stdio::null()).output() {
        Ok(output) => {
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{program} {arguments:?}: {errors}");
            Some(String::from_utf8(output.stdout).expect("text"))
        }
        Err(error) => {
            eprintln!("skipped: {program}: {error}");
            None
        }
    }
}

#[test]
fn a_python_script_puts_watches_and_leases() {
    let server = Server::start(&ours(), Options::default()).expect("the server starts");
    let (host, port) = (server.client_addr().ip().to_string(), server.client_addr().port().to_string());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/gateway.py");
    if let Some(said) = run("python3", &[script, &host, &port]) {
        assert_eq!(said, "ok\n");
    }
}

/// As etcd's documentation has it.
#[test]
fn curl_puts_and_reads() {
    let server = Server::start(&ours(), Options::default()).expect("the server starts");
    let url = |path: &str| format!("http://{}{path}", server.client_addr());
    for http in ["--http1.1", "--http2-prior-knowledge"] {
        let curl = |path: &str, body: &str| run("curl", &["-sS", http, "-L", &url(path), "-X", "POST", "-d", body]);
        let Some(put) = curl("/v3/kv/put", r#"{"key": "Zm9v", "value": "YmFy"}"#) else { return };
        assert!(put.contains(r#""revision":""#), "{put}");
        let found = curl("/v3/kv/range", r#"{"key": "Zm9v"}"#).expect("it was there a moment ago");
        assert!(found.contains(r#""value":"YmFy"}],"count":"1"}"#), "{found}");
    }
}
