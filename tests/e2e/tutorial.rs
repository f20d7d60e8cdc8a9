//! The tutorial, typed as it is written, in both languages: on three hosts that are network namespaces, and in Docker. Each is
//! skipped, with a message, where it cannot be.

use std::time::{Duration, Instant};

use keelson_tests::docs::hosts::Hosts;
use keelson_tests::docs::session::{self, Step};
use keelson_tests::docs::shown::Names;
use keelson_tests::docs::workspace;

/// How long a cluster may take until a command shows what it must.
const SHOWN_WITHIN: Duration = Duration::from_secs(60);
/// Pause before a command is typed again.
const AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Commands that change something are typed once.
const CHANGES: [&str; 9] =
    ["docker run", "docker wait", " rm ", "member remove", "member add", "move-leader", " put ", "-XPUT", "-XDELETE"];

fn steps(document: &str) -> Vec<Step> {
    let path = workspace().join("docs").join(document);
    session::steps(&std::fs::read_to_string(&path).unwrap_or_else(|problem| panic!("{path:?}: {problem}")))
}

fn follow(document: &str, hosts: Result<Hosts, String>) {
    let hosts = match hosts {
        Ok(hosts) => hosts,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let steps = steps(document);
    assert!(steps.len() > 30, "{document} has {} commands", steps.len());
    let mut names = Names::default();
    for Step { line, host, command, shown } in steps {
        let deadline = Instant::now() + SHOWN_WITHIN;
        let typed = names.translate(&command);
        loop {
            let came = hosts.type_on(host, &typed).unwrap_or_else(|problem| panic!("{document}:{line}: {problem}"));
            let lines: Vec<String> = came.lines().map(str::to_owned).collect();
            if names.fit(&shown, &lines) {
                println!("node{}$ {typed}\n{}", host + 1, came.trim_end());
                break;
            }
            // Members have to know each other for a while before one may go, and one that starts has to catch up.
            let may_wait = !CHANGES.iter().any(|change| command.contains(change)) || came.contains("unhealthy cluster");
            assert!(
                may_wait && Instant::now() < deadline,
                "{document}:{line}: node{}$ {typed}\ncame:\n{came}\nshown:\n{}\n",
                host + 1,
                shown.join("\n")
            );
            std::thread::sleep(AGAIN_AFTER);
        }
    }
}

#[test]
fn the_tutorial_in_network_namespaces() {
    follow("tutorial.md", Hosts::namespaces());
}

#[test]
fn the_chinese_tutorial_in_network_namespaces() {
    follow("tutorial.zh.md", Hosts::namespaces());
}

#[test]
fn the_tutorial_in_docker() {
    follow("tutorial.md", Hosts::docker());
}

/// What is typed, and what is shown but for comments, is the same in both.
#[test]
fn both_languages_type_the_same() {
    let without_lines = |steps: Vec<Step>| steps.into_iter().map(|step| Step { line: 0, ..step }).collect::<Vec<_>>();
    assert_eq!(without_lines(steps("tutorial.md")), without_lines(steps("tutorial.zh.md")));
}
