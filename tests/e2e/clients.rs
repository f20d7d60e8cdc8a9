//! Clients that people use, against our server and a real etcd: the same program must see the same.
//!
//! Skipped where the language or its package registry is missing.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use keelson_tests::harness::{Binary, Options, Server, ours, reference};

/// How long a program may take for everything.
const WITHIN: Duration = Duration::from_secs(240);
/// A program asks for this, and goes on when it has read a line.
const RESTART: &str = "> restart";

fn folder(language: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(language)
}

/// Ends the program with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Runs `program` against a fresh server and gives what it writes.
fn run(mut program: Command, server: &Binary) -> Vec<String> {
    let mut server = Server::start(server, Options::default()).expect("the server starts");
    program.arg("-endpoints").arg(server.client_url());
    let child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = Running(child.expect("the program starts"));
    let mut input = child.0.stdin.take().expect("stdin is a pipe");
    let output = BufReader::new(child.0.stdout.take().expect("stdout is a pipe"));
    let (sender, said) = mpsc::channel();
    std::thread::spawn(move || {
        let lines = output.lines().map_while(Result::ok);
        lines.take_while(|line| sender.send(line.clone()).is_ok()).for_each(drop);
    });
    let until = Instant::now() + WITHIN;
    let mut lines = Vec::new();
    // An error means that it has ended, or that its time is over; either shows in what it wrote last.
    while let Ok(line) = said.recv_timeout(until.saturating_duration_since(Instant::now())) {
        if line == RESTART {
            server.kill().expect("the server is killed");
            server.spawn().and_then(|()| server.wait_ready()).expect("the server starts again");
            input.write_all(b"done\n").expect("the program waits");
        }
        lines.push(line);
    }
    if lines.last().map(String::as_str) != Some("== end") {
        child.0.kill().ok();
        let mut complaints = String::new();
        if let Some(mut stderr) = child.0.stderr.take() {
            stderr.read_to_string(&mut complaints).ok();
        }
        panic!("{}: {}\n{complaints}\n{}", server.name(), lines.join("\n"), server.log_tail());
    }
    lines
}

/// Compares what the program sees on our server with what it sees on a real etcd, if there is one.
fn compare(program: impl Fn() -> Command) {
    let seen = run(program(), &ours());
    let Some(real) = reference() else {
        eprintln!("not compared: there is no real etcd; .ci/peers fetches one");
        return;
    };
    let expected = run(program(), &real);
    for (number, (ours, theirs)) in seen.iter().zip(&expected).enumerate() {
        assert_eq!(ours, theirs, "line {number}, after {:?}", &seen[number.saturating_sub(5)..number]);
    }
    assert_eq!(seen.len(), expected.len());
}

/// etcd's own client, and what a kube-apiserver asks through it.
#[test]
fn the_go_client_sees_what_it_sees_on_a_real_etcd() {
    let target = tempfile::tempdir().expect("a directory");
    let program = target.path().join("clients");
    let mut build = Command::new("go");
    build.arg("build").arg("-o").arg(&program).arg(".").current_dir(folder("go"));
    match build.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
            // Without the modules there is nothing to run; anything else is wrong with the program.
            let is_offline = ["dial tcp", "no such host", "module lookup disabled", "i/o timeout", "requires go >="]
                .iter()
                .any(|sign| complaints.contains(sign));
            assert!(is_offline, "{complaints}");
            return eprintln!("skipped: the modules cannot be fetched: {complaints}");
        }
        Err(problem) => return eprintln!("skipped: there is no go: {problem}"),
    }
    compare(|| Command::new(&program));
}
