//! What `etcdctl` does before it talks to anybody: texts, streams and exit codes that scripts depend on.

use std::net::TcpListener;
use std::process::Command;

/// Exit code, stdout and stderr without log lines.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_etcdctl"));
    command.env_clear().envs(variables.iter().copied()).args(arguments).stdin(std::process::Stdio::null());
    let output = command.output().expect("etcdctl starts");
    let stderr = String::from_utf8(output.stderr).expect("stderr is UTF-8");
    let is_log = |line: &&str| line.starts_with("{\"level\":");
    let stderr = stderr.lines().filter(|line| !is_log(line)).map(|line| format!("{line}\n")).collect();
    (output.status.code().expect("it exits"), String::from_utf8(output.stdout).expect("stdout is UTF-8"), stderr)
}

/// An address at which nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound").to_string()
}

#[test]
fn version_and_help_go_to_stdout() {
    assert_eq!(run(&["version"], &[]), (0, "etcdctl version: 3.7.1\nAPI version: 3.7\n".into(), String::new()));
    for words in
        [&[][..], &["help"], &["help", "put"], &["get", "-h"], &["member"], &["member", "nosuch"], &["options"]]
    {
        let (code, stdout, stderr) = run(words, &[]);
        assert_eq!((code, stderr.as_str(), stdout.is_empty()), (0, "", false), "{words:?}");
    }
}

#[test]
fn each_kind_of_mistake_has_its_exit_code() {
    for (words, code, message) in [
        (&["nosuch"][..], 1, "unknown command \"nosuch\" for \"etcdctl\""),
        (&["get", "a", "--nosuch"], 1, "unknown flag: --nosuch"),
        (&["get"], 128, "get command needs one argument as key and an optional argument as range_end"),
        (&["get", "a", "--order", "x"], 4, "bad sort order x"),
        (&["-w", "x", "get", "a"], 4, "unsupported output format"),
        (&["--endpoints", "", "get", "a"], 2, "etcdclient: no available endpoints"),
        (&["--cacert", "/none", "get", "a"], 128, "open /none: no such file or directory"),
        (&["txn"], 3, "EOF"),
        (
            &["lease", "revoke", "zz"],
            128,
            "bad lease ID arg (strconv.ParseInt: parsing \"zz\": invalid syntax), expecting ID in Hex",
        ),
    ] {
        let (found, stdout, stderr) = run(words, &[]);
        assert_eq!((found, stdout.as_str()), (code, ""), "{words:?}: {stderr}");
        assert_eq!(stderr.lines().next(), Some(format!("Error: {message}").as_str()));
    }
}

#[test]
fn a_flag_that_is_also_a_variable_is_refused() {
    let variables = [("ETCDCTL_ENDPOINTS", "127.0.0.1:1")];
    assert_eq!(run(&["--endpoints", "127.0.0.1:1", "get", "a"], &variables), (1, String::new(), String::new()));
}

/// The text that scripts look for comes last; before it, a log line says which endpoint and why.
#[test]
fn an_endpoint_where_nobody_listens_is_named() {
    let endpoint = nobody();
    let mut command = Command::new(env!("CARGO_BIN_EXE_etcdctl"));
    command.env_clear().args(["--endpoints", &endpoint, "--command-timeout", "300ms", "put", "a", "b"]);
    let output = command.output().expect("etcdctl starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains(&format!("dial tcp {endpoint}: connect: connection refused")), "{stderr}");
    assert!(stderr.ends_with("Error: context deadline exceeded\n"), "{stderr}");
}
