//! Libraries that still speak the v2 API do their everyday work on our server, and, where there is one, on a real etcd, which
//! shows that the work is right. Skipped where they are not installed; `.ci/peers` fetches them.

use std::path::{Path, PathBuf};
use std::process::Command;

use keelson_tests::harness::{Options, Server, ours, peers, reference_with_v2};

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

/// Runs a client on our server and on a real one.
fn work(mut command: impl FnMut(&Server) -> Command, done: &str) {
    for binary in [Some(ours()), reference_with_v2()].into_iter().flatten() {
        let options = Options { flags: vec!["--enable-v2=true".into()], ..Options::default() };
        let server = Server::start(&binary, options).expect("the server starts");
        let output = command(&server).output().expect("the client starts");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && said.contains(done), "on {}: {said}", binary.name);
    }
}

/// Whether a command succeeds; says which package is missing otherwise.
fn is_there(command: &mut Command, package: &str) -> bool {
    let there = command.output().is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("skipped: {package} is not installed");
    }
    there
}

#[test]
fn python_etcd() {
    let python = || {
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", peers().join("python"));
        command
    };
    if is_there(python().args(["-c", "import etcd; etcd.Client"]), "python-etcd") {
        let command = |server: &Server| {
            let (host, port) = (server.client_addr().ip().to_string(), server.client_addr().port().to_string());
            let mut command = python();
            command.arg(scripts().join("python_etcd.py")).args([host, port]);
            command
        };
        work(command, "python-etcd works");
    }
}

#[test]
fn node_etcd() {
    let node = || {
        let mut command = Command::new("node");
        command.env("NODE_PATH", peers().join("node/node_modules"));
        command
    };
    if is_there(node().args(["-e", "require('node-etcd')"]), "node-etcd") {
        let command = |server: &Server| {
            let mut command = node();
            command.arg(scripts().join("node_etcd.js")).arg(server.client_url());
            command
        };
        work(command, "node-etcd works");
    }
}
