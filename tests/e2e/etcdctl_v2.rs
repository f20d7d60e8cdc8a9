//! The v2 tool does and says what Debian's etcdctl 3.4 does and says. Skipped where that is not installed (`.ci/peers`).

use keelson_tests::harness::{Binary, Options, Server, etcdctl, our_etcdctl, ours, reference_with_v2};
use rustix::process::{Pid, Signal, kill_process};
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// The command lines.
const LINES: &str = include_str!("etcdctl_v2.txt");

/// How long a command may take.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// One line of the file.
#[derive(Debug, Default)]
struct Line {
    environment: Vec<(String, String)>,
    words: Vec<String>,
    stdin: String,
}

impl Line {
    fn read(text: &str) -> Line {
        let mut line = Line::default();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (word, after) = if let Some(quoted) = rest.strip_prefix('\'') {
                let (word, after) = quoted.split_once('\'').expect("a quote is closed");
                (word.to_owned(), after)
            } else if rest.starts_with('"') {
                let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
                let word = values.next().expect("a text").expect("JSON's escapes");
                (word, &rest[values.byte_offset()..])
            } else {
                let (word, after) = rest.split_at(rest.find(' ').unwrap_or(rest.len()));
                (word.to_owned(), after)
            };
            rest = after.trim_start();
            match word.split_once('=') {
                Some((name, value)) if line.words.is_empty() => line.environment.push((name.into(), value.into())),
                _ => line.words.push(word),
            }
        }
        if let Some(at) = line.words.iter().position(|word| word == "<<<") {
            line.stdin = line.words.split_off(at).pop().expect("stdin follows");
        }
        assert_eq!(line.words.remove(0), "etcdctl", "{text}");
        line
    }

    /// What the tool at `path` writes, and how it ends, with what differs from server to server replaced.
    fn run(&self, path: &Path, server: &Server) -> String {
        let address = server.client_addr().to_string();
        let fill = |text: &str| text.replace("URL", &server.client_url()).replace("ADDRESS", &address);
        let mut command = Command::new(path);
        command.env("ETCDCTL_API", "2").env("ETCDCTL_ENDPOINTS", server.client_url());
        for (name, value) in &self.environment {
            if value.is_empty() {
                command.env_remove(name)
            } else {
                command.env(name, fill(value))
            };
        }
        command.args(self.words.iter().map(|word| fill(word)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the tool starts");
        // A tool that does not read its input may have ended.
        let _may_be_gone = child.stdin.take().expect("stdin is a pipe").write_all(self.stdin.as_bytes());
        let Some(output) = end_of(child) else { return "does not end".to_owned() };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&address, "ADDRESS");
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        let stdout = match help_at(&stdout) {
            Some(at) => format!("{}{}", &stdout[..at], without_descriptions(&stdout[at..])),
            None => self.normal(&stdout.replace(&server.peer_url(), "PEER")),
        };
        format!("exit {:?}\n--- stdout\n{stdout}\n--- stderr\n{}", output.status.code(), self.normal(&stderr))
    }

    /// Without what no two runs have in common: times, IDs, the order of listings that nobody asked to sort.
    fn normal(&self, text: &str) -> String {
        let mut lines: Vec<String> = text.lines().map(without_times_and_ids).collect();
        // Debian's tool runs `stty` for a password also where there is no terminal.
        lines.retain(|line| !line.starts_with("stty: "));
        if self.words.iter().any(|word| word == "ls") && !self.words.iter().any(|word| word == "--sort") {
            lines.sort();
        }
        lines.join("\n")
    }
}

/// What a program wrote, if it ends in time.
fn end_of(child: Child) -> Option<Output> {
    let pid = Pid::from_child(&child);
    let (sender, receiver) = mpsc::channel();
    let waiting = std::thread::spawn(move || sender.send(child.wait_with_output().expect("the tool ends")));
    let output = receiver.recv_timeout(ENDS_WITHIN).ok();
    if output.is_none() {
        kill_process(pid, Signal::KILL).expect("the tool still runs");
    }
    // Whoever gave up on it does not receive.
    let _received = waiting.join().expect("the tool is waited for");
    output
}

/// Numbers behind these words depend on when they are asked for.
fn without_times_and_ids(line: &str) -> String {
    let mut out = line.to_owned();
    for (before, after) in [("\"expiration\":\"", '"'), ("\"ttl\":", '}')] {
        let mut from = 0;
        while let Some(at) = out[from..].find(before).map(|at| from + at + before.len()) {
            let end = out[at..].find(after).map_or(out.len(), |end| at + end);
            out.replace_range(at..end, "*");
            from = at;
        }
    }
    if out.starts_with("TTL: ") && out != "TTL: 0" {
        out = "TTL: *".to_owned();
    }
    // What a resolver says, and which it is, is the system's.
    if let Some(at) = out.find("dial tcp: lookup ") {
        out.truncate(at);
    }
    let is_id = |word: &str| (15..=16).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    out.split(' ').map(|word| if is_id(word.trim_end_matches(':')) { "ID" } else { word }).collect::<Vec<_>>().join(" ")
}

fn help_at(text: &str) -> Option<usize> {
    text.find("NAME:\n").filter(|_| text.contains("\nUSAGE:\n"))
}

/// Help has the shape of the original's, in words of its own: what stands on the left must be equal.
fn without_descriptions(help: &str) -> String {
    let mut section = "";
    let mut out = Vec::new();
    for line in help.lines() {
        if line.ends_with(':') && !line.starts_with(' ') {
            section = line;
        }
        let left = match section {
            "DESCRIPTION:" => continue,
            "NAME:" => line.split(" - ").next(),
            "COMMANDS:" | "OPTIONS:" | "GLOBAL OPTIONS:" => {
                let indent = line.len() - line.trim_start().len();
                line.get(indent..).and_then(|line| line.split("  ").next())
            }
            _ => Some(line),
        };
        out.push(left.unwrap_or_default());
    }
    out.join("\n")
}

/// Gives both tools all lines, each tool with a server of its own.
fn compare(server: &Binary) {
    let Some(theirs) = etcdctl() else {
        eprintln!("skipped: there is no etcdctl to compare with; .ci/peers fetches it");
        return;
    };
    let start = || {
        let flags = vec!["--enable-v2=true".into()];
        Server::start(server, Options { flags, ..Options::default() }).expect("the server starts")
    };
    let servers = [start(), start()];
    let tools = [theirs, our_etcdctl()];
    let mut compared = 0;
    let mut different = Vec::new();
    for text in LINES.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let line = Line::read(text);
        let [theirs, ours] = [0, 1].map(|i| line.run(&tools[i], &servers[i]));
        compared += 1;
        if theirs != ours {
            different.push(format!("$ {text}\n=== theirs: {theirs}\n=== ours: {ours}\n"));
        }
    }
    assert!(compared > 500, "only {compared} lines were compared");
    assert!(different.is_empty(), "{} of {compared} differ:\n{}", different.len(), different.join("\n"));
}

#[test]
fn the_v2_tool_is_debians_with_a_real_etcd() {
    match reference_with_v2() {
        Some(server) => compare(&server),
        None => eprintln!("skipped: there is no etcd 3.4; .ci/peers fetches it"),
    }
}

#[test]
fn the_v2_tool_is_debians_with_our_etcd() {
    compare(&ours());
}
