//! What documents name has to exist: files and headings that links lead to, flags, commands of `etcdctl`, metrics.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use keelson_tests::docs::{documents, workspace};
use keelson_tests::harness::{Cluster, Setup, etcdutl, http_get, our_etcdctl, ours};
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::{AlarmRequest, AlarmType};

/// How long it may take until each metric is told.
const TOLD_WITHIN: Duration = Duration::from_secs(60);

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|problem| panic!("{path:?}: {problem}"))
}

/// Lines of a document outside of code blocks.
fn prose(document: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    document.lines().filter(move |line| {
        let is_fence = line.starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// Where the links of a document lead.
fn links(document: &str) -> Vec<String> {
    let parts = prose(document).flat_map(|line| line.split("](").skip(1));
    parts.filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
}

/// A heading as links name it.
fn anchor(heading: &str) -> String {
    let kept =
        heading.trim_start_matches('#').trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn links_lead_somewhere() {
    let mut faults = Vec::new();
    let mut seen = 0;
    for path in documents() {
        for link in links(&read(&path)) {
            seen += 1;
            if link.contains("://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((&link, ""));
            let folder = path.parent().expect("a file is in a folder");
            let target = if file.is_empty() { path.clone() } else { folder.join(file) };
            if !target.exists() {
                faults.push(format!("{}: {link}", path.display()));
            } else if !heading.is_empty() {
                let text = read(&target);
                if !prose(&text).filter(|line| line.starts_with('#')).any(|line| anchor(line) == heading) {
                    faults.push(format!("{}: {link}: no such heading", path.display()));
                }
            }
        }
    }
    assert!(seen > 20, "only {seen} links were found");
    assert!(faults.is_empty(), "{faults:#?}");
}

fn says(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).env_remove("ETCDCTL_API").output();
    let output = output.unwrap_or_else(|problem| panic!("{program:?}: {problem}"));
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// The flags that a help text lists.
fn flags_in(help: &str) -> BTreeSet<String> {
    let words = help.lines().filter(|line| line.trim_start().starts_with('-')).flat_map(|line| {
        line.split(|c: char| c.is_whitespace() || matches!(c, ',' | '=' | '[')).filter(|word| word.starts_with("--"))
    });
    words.map(|word| word.trim_start_matches('-').to_owned()).collect()
}

/// Commands of a program in the blocks of a document: the words behind its name, lines that go on joined.
fn commands(document: &str, program: &str) -> Vec<Vec<String>> {
    let mut is_code = false;
    let mut lines = Vec::new();
    for line in document.replace("\\\n", " ").lines() {
        if line.starts_with("```") {
            is_code = !is_code && matches!(line, "```sh" | "```console");
        } else if is_code {
            lines.push(line.to_owned());
        }
    }
    let mut found = Vec::new();
    for line in lines {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        // Only what is typed: the program first, behind a prompt, or in a container.
        let is_typed =
            |at: usize| at == 0 || words[at - 1].ends_with('$') || ["etcd", "keelson"].contains(&&*words[at - 1]);
        let is_program = |word: &str| word == program || word.ends_with(&format!("bin/{program}"));
        if let Some(at) = (0..words.len()).find(|at| is_program(&words[*at]) && is_typed(*at)) {
            let rest = words[at + 1..].iter().take_while(|word| !matches!(word.as_str(), "|" | "&" | "#" | "2>&1"));
            found.push(rest.cloned().collect());
        }
    }
    found
}

#[test]
fn flags_and_commands_exist() {
    let etcd = flags_in(&says(&ours().path, &["--help"]));
    assert!(etcd.contains("data-dir"));
    let tools = [("etcdctl", our_etcdctl()), ("etcdutl", etcdutl())];
    let (mut faults, mut seen) = (Vec::new(), 0);
    for path in documents() {
        let document = read(&path);
        let flags = |words: &[String]| -> Vec<String> {
            let flags = words.iter().filter_map(|word| word.strip_prefix("--"));
            flags
                .map(|flag| flag.split('=').next().unwrap_or_default().to_owned())
                .filter(|flag| !flag.is_empty())
                .collect()
        };
        for words in commands(&document, "etcd") {
            for flag in flags(&words) {
                seen += 1;
                if !etcd.contains(&flag) && !["help", "version"].contains(&flag.as_str()) {
                    faults.push(format!("{}: etcd --{flag}", path.display()));
                }
            }
        }
        for (name, tool) in &tools {
            let global = flags_in(&says(tool, &["options"]));
            for words in commands(&document, name) {
                let is_v2 = document.contains(&format!("ETCDCTL_API=2 etcd etcdctl {}", words.join(" ")));
                let is_name =
                    |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-');
                let options = words.iter().map(String::as_str).skip_while(|word| word.starts_with('-'));
                let named: Vec<&str> = options.take_while(is_name).collect();
                if is_v2 || named.is_empty() {
                    continue;
                }
                seen += 1;
                // What follows a command's name may be an argument in small letters.
                let help = (1..=named.len()).rev().find_map(|length| {
                    let help = says(tool, &[&named[..length], &["--help"]].concat());
                    help.contains(&format!("{name} {}", named[..length].join(" "))).then_some(help)
                });
                let Some(help) = help else {
                    faults.push(format!("{}: {name} {}", path.display(), named.join(" ")));
                    continue;
                };
                let known = flags_in(&help);
                for flag in flags(&words).into_iter().filter(|flag| !known.contains(flag) && !global.contains(flag)) {
                    faults.push(format!("{}: {name} {} --{flag}", path.display(), named.join(" ")));
                }
            }
        }
    }
    assert!(seen > 60, "only {seen} flags and commands were found");
    assert!(faults.is_empty(), "{faults:#?}");
}

/// Names of metrics in a text, without what a histogram adds.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| ["etcd_", "grpc_server_", "process_"].iter().any(|begin| word.starts_with(begin)));
    ours.map(|word| word.trim_end_matches("_bucket").to_owned()).collect()
}

/// Each metric of the alerts, the dashboard and the documents is there on a member of a cluster.
#[tokio::test(flavor = "current_thread")]
async fn metrics_exist() {
    let cluster = Cluster::start(Setup::new(vec![ours(); 3])).unwrap_or_else(|problem| panic!("{problem}"));
    let leader = cluster.wait_for_leader(&[0, 1, 2]).await.expect("a leader");
    let mut client = cluster.client(leader).await.expect("it answers");
    // Some are only there when there is something to tell.
    let raise = AlarmRequest { action: AlarmAction::Activate as i32, member_id: 0, alarm: AlarmType::Nospace as i32 };
    client.maintenance.alarm(raise).await.expect("an alarm can be raised by hand");
    client
        .kv
        .range(proto::etcdserverpb::RangeRequest { key: "a".into(), ..Default::default() })
        .await
        .expect("a range");
    let mut named = BTreeSet::new();
    for file in ["deploy/monitoring/alerts.yaml", "deploy/monitoring/dashboard.json", "docs/operations.md"] {
        let found = metrics(&read(&workspace().join(file)));
        assert!(!found.is_empty(), "{file} names no metrics");
        named.extend(found);
    }
    // The round trip to the others is measured every few seconds.
    let deadline = Instant::now() + TOLD_WITHIN;
    loop {
        let page = http_get(cluster.servers()[leader].client_addr(), "/metrics").expect("metrics");
        let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        let there: BTreeSet<String> = types.map(str::to_owned).collect();
        let missing: Vec<_> = named.difference(&there).collect();
        if missing.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "nobody tells {missing:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Each alert is in the operator's table, and the table has no others.
#[test]
fn every_alert_is_explained() {
    let alerts = read(&workspace().join("deploy/monitoring/alerts.yaml"));
    let alerts: BTreeSet<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let document = read(&workspace().join("docs/operations.md"));
    let rows = document.lines().filter(|line| line.starts_with("| Etcd")).flat_map(|line| {
        let cell = line.trim_start_matches("| ").split(" |").next().unwrap_or_default();
        cell.split(", ").map(|name| name.split(' ').next().unwrap_or_default()).collect::<Vec<_>>()
    });
    let explained: BTreeSet<&str> = rows.collect();
    let unexplained: Vec<_> = alerts.difference(&explained).collect();
    assert!(unexplained.is_empty(), "{unexplained:?}");
    assert_eq!(explained.difference(&alerts).collect::<Vec<_>>(), Vec::<&&str>::new(), "there are no such alerts");
}
