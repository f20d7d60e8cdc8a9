//! The program as a shell sees it: exit codes, and what goes to stdout and stderr. Where a real etcd is on the path (or in
//! the directory that `REAL_ETCD_DIR` names), the same command lines are given to it, and must end the same way.

use rustix::process::{Pid, Signal};
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// Runs a program that is expected to end by itself, in an empty directory.
fn run(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD_")) {
        command.env_remove(name);
    }
    command.args(arguments).envs(environment.iter().copied()).current_dir(dir.path()).output().unwrap()
}

fn ours() -> PathBuf {
    env!("CARGO_BIN_EXE_etcd").into()
}

fn real() -> Option<PathBuf> {
    let path = std::env::var_os("REAL_ETCD_DIR").map_or_else(|| "etcd".into(), |dir| Path::new(&dir).join("etcd"));
    let answers = Command::new(&path).arg("--version").output().is_ok();
    if !answers {
        eprintln!("not compared with a real etcd: there is none on the path");
    }
    answers.then_some(path)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A command line that cannot be read ends with 2, Go's sentence and the usage.
#[test]
fn a_command_line_that_cannot_be_read_ends_with_2() {
    let real = real();
    for arguments in [
        &["--nope"][..],
        &["---name=x"],
        &["--heartbeat-interval=abc"],
        &["--heartbeat-interval"],
        &["--pre-vote=maybe"],
        &["--grpc-keepalive-timeout=5"],
        &["--listen-client-urls=foo"],
        &["--listen-client-urls=http://127.0.0.1"],
        &["--initial-cluster-state=foo"],
        &["--snapshot-count=-5"],
        &["--max-wals=x"],
    ] {
        let output = run(&ours(), arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty());
        assert!(stderr(&output).contains("\nUsage:\n"), "{arguments:?}: {}", stderr(&output));
        if let Some(real) = &real {
            let theirs = run(real, arguments, &[]);
            assert_eq!(theirs.status.code(), Some(2), "{arguments:?}");
            assert_eq!(stderr(&output).lines().next(), stderr(&theirs).lines().next(), "{arguments:?}");
        }
    }
}

/// A member that cannot be run as asked ends with 1, and the last line says why.
#[test]
fn what_does_not_work_ends_with_1() {
    let real = real();
    for (arguments, environment, reason) in [
        (&["stray"][..], &[][..], "is not a valid flag"),
        (&["--heartbeat-interval=0"], &[], "--heartbeat-interval must be >0 (set to 0ms)"),
        (&["--election-timeout=100"], &[], "should be at least as 5 times as --heartbeat-interval[100ms]"),
        (&["--listen-client-urls=http://127.0.0.1:1"], &[], "--advertise-client-urls is required"),
        (&["--listen-peer-urls=http://foo.bar:1"], &[], "expected IP in URL for binding (http://foo.bar:1)"),
        (&["--advertise-client-urls=http://:1"], &[], "must be \\\"host:port\\\" (unexpected empty host (http://:1))"),
        (&["--auto-compaction-mode=foo"], &[], "unknown auto-compaction-mode \\\"foo\\\""),
        (&["--logger=foo"], &[], "unknown logger option \\\"foo\\\""),
        (&["--config-file=/nope"], &[], "open /nope: no such file or directory"),
        (&[], &[("ETCD_HEARTBEAT_INTERVAL", "x")], "invalid value \\\"x\\\" for ETCD_HEARTBEAT_INTERVAL: parse error"),
        (&["--name=y"], &[("ETCD_NAME", "x")], "conflicting environment variable"),
        (&["--log-outputs=/nope/x"], &[], "couldn't open sink \\\"/nope/x\\\": open /nope/x: "),
    ] {
        let output = run(&ours(), arguments, environment);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(
            text.lines().any(|line| line.starts_with("{\"level\":") && line.contains(reason)),
            "{arguments:?}: {text}"
        );
        // 3.4 without --logger=zap ignores --log-outputs.
        if let Some(real) = real.as_ref().filter(|_| !arguments[..].iter().any(|a| a.starts_with("--log-outputs"))) {
            assert_eq!(run(real, arguments, environment).status.code(), Some(1), "{arguments:?}");
        }
    }
}

#[test]
fn help_and_version_end_with_0() {
    let help = run(&ours(), &["-h"], &[]);
    assert_eq!(help.status.code(), Some(0));
    assert!(stderr(&help).starts_with("Usage:"));
    assert!(String::from_utf8_lossy(&help.stdout).contains("\n  --data-dir '${name}.etcd'\n"));
    let version = run(&ours(), &["--version"], &[]);
    assert_eq!(version.status.code(), Some(0));
    let lines: Vec<_> = String::from_utf8_lossy(&version.stdout).lines().map(str::to_owned).collect();
    assert_eq!(lines[0], "etcd Version: 3.7.1");
    for (line, name) in lines.iter().zip(["etcd Version: ", "Git SHA: ", "Go Version: ", "Go OS/Arch: "]) {
        assert!(line.starts_with(name), "{line}");
    }
}

/// A first member that is not in its own list, or under another address, must not found a cluster.
#[test]
fn a_member_outside_of_its_cluster_does_not_start() {
    for (arguments, reason) in [
        (["--name=abc", "--initial-cluster=x=http://127.0.0.8:1"], "couldn't find local name \\\"abc\\\""),
        (
            ["--name=x", "--initial-cluster=x=http://127.0.0.8:1"],
            "--initial-cluster has x=http://127.0.0.8:1 but missing",
        ),
    ] {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--listen-peer-urls=http://127.0.0.8:0", "--listen-client-urls=http://127.0.0.8:0"]);
        arguments.extend(["--advertise-client-urls=http://127.0.0.8:1"]);
        let output = run(&ours(), &arguments, &[]);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("{\"level\":\"fatal\"") && last.contains("\"msg\":\"discovery failed\""), "{last}");
        assert!(last.contains(reason), "{last}");
    }
}

/// A running member, killed when the test ends before it does.
struct Member(Child);

impl Drop for Member {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// After a clean stop the process ends by the signal that asked for it, as supervisors expect.
#[test]
fn a_member_ends_by_the_signal_that_stopped_it() {
    for (signal, name) in [(Signal::TERM, "terminated"), (Signal::INT, "interrupt")] {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(ours());
        command.arg("--data-dir").arg(dir.path().join("data"));
        command.args(["--listen-peer-urls=http://127.0.0.8:0", "--listen-client-urls=http://127.0.0.8:0"]);
        command.args(["--advertise-client-urls=http://127.0.0.8:1"]);
        let mut member = Member(command.stderr(Stdio::piped()).spawn().unwrap());
        let mut lines = BufReader::new(member.0.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("ready to serve client requests")), "it ended before it was ready");

        rustix::process::kill_process(Pid::from_child(&member.0), signal).unwrap();
        let rest: Vec<_> = lines.collect();
        let told = format!("\"received signal; shutting down\",\"signal\":\"{name}\"");
        assert!(rest.iter().any(|line| line.contains(&told)), "{rest:#?}");
        assert!(rest.iter().any(|line| line.contains("closed etcd server")), "{rest:#?}");
        assert_eq!(member.0.wait().unwrap().signal(), Some(signal.as_raw()));
    }
}
