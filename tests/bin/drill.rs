//! `drill [--members BIN,BIN,BIN] [--etcdctl PATH]`
//!
//! A well-known tutorial's drill, step by step, on three hosts with its addresses (network namespaces, so it needs
//! root): write, remove the leader, see another one lead, add it back, start it on its old data directory, then on a
//! clean one. It prints what an operator would see, and ends with status 1 where something else happens.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use keelson_tests::harness::{Arguments, Binary, Cluster, Network, Place, Setup, etcdctl, ours, program};

/// How long a removed or refused member may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(30);
/// The cluster that the tutorial's URLs and token make.
const CLUSTER: &str = "f84185fa5f91bdf6";
/// Its first two members; the tutorial's third was another one by the time it was shown.
const MEMBERS: [&str; 2] = ["c88e2cccbb287a01", "773d30c9fc6640b4"];

struct Settings {
    members: Vec<Binary>,
    etcdctl: PathBuf,
}

fn main() -> ExitCode {
    program("drill", settings, drill)
}

fn settings(arguments: &mut Arguments) -> Result<Settings, String> {
    Network::available()?;
    Ok(Settings {
        members: arguments.binaries("--members").unwrap_or_else(|| vec![ours(); 3]),
        etcdctl: arguments.text("--etcdctl").map(Into::into).or_else(etcdctl).ok_or("no etcdctl: name one")?,
    })
}

/// One drill under way.
struct Drill {
    cluster: Cluster,
    etcdctl: PathBuf,
}

async fn drill(settings: &Settings) -> Result<&'static str, String> {
    let setup = Setup {
        place: Place::Namespaces,
        token: "docker-etcd".into(),
        flags: vec!["--initial-cluster-state=new".into()],
        ..Setup::new(settings.members.clone())
    };
    let mut drill = Drill { cluster: Cluster::start(setup).map_err(text)?, etcdctl: settings.etcdctl.clone() };

    let listed = drill.etcdctl(0, &["member", "list"])?;
    for (member, id) in MEMBERS.into_iter().enumerate() {
        let (node, host) = (member + 1, 100 + member);
        let line = format!("{id}, started, node{node}, http://192.168.99.{host}:2380, http://192.168.99.{host}:2379");
        must(listed.contains(&line), format!("a line with {line}"))?;
    }
    must(drill.etcdctl(0, &["put", "foo", "bar"])?.trim() == "OK", "OK")?;

    let leader = drill.cluster.wait_for_leader(&[0, 1, 2]).await.map_err(text)?;
    println!("# node{} leads", leader + 1);
    let (asked, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let id = format!("{:x}", drill.cluster.member_id(leader).await.map_err(text)?);
    let removed = drill.until_healthy(asked, &["member", "remove", &id]).await?;
    must(removed.trim() == format!("Member {id} removed from cluster {CLUSTER}"), "the tutorial's sentence")?;
    drill.ends(leader, 0, "the member that was removed")?;
    let next = drill.cluster.wait_for_leader(&[asked, other]).await.map_err(text)?;
    println!("# node{} leads", next + 1);
    must(drill.etcdctl(asked, &["member", "list"])?.lines().count() == 2, "two members")?;

    let (name, url) = (drill.cluster.servers()[leader].name().to_owned(), drill.cluster.servers()[leader].peer_url());
    let added = drill.until_healthy(asked, &["member", "add", &name, &format!("--peer-urls={url}")]).await?;
    must(added.contains(&format!("added to cluster {CLUSTER}")), "the tutorial's sentence")?;
    must(added.contains("ETCD_INITIAL_CLUSTER_STATE=\"existing\""), "what to start it with")?;
    let listed = drill.etcdctl(asked, &["member", "list"])?;
    must(listed.contains(&format!(", unstarted, , {url}, ,")), "an unstarted member")?;

    println!("# {name} starts on its old data directory");
    let flags = drill.cluster.member(leader).flags_mut();
    flags.retain(|flag| flag != "--initial-cluster-state=new");
    flags.push("--initial-cluster-state=existing".into());
    let before = drill.cluster.servers()[leader].log().len();
    drill.cluster.spawn(leader).map_err(text)?;
    let log = drill.ends(leader, before, "the member with the old data directory")?;
    must(log.contains("removed"), "a log line that says that it was removed")?;
    must(log.to_lowercase().contains("data-dir") || log.contains("data dir"), "a log line that says what to do")?;
    let listed = drill.etcdctl(asked, &["member", "list"])?;
    must(listed.contains("unstarted"), "a member that is still unstarted")?;

    println!("# {name} starts on a clean data directory");
    std::fs::remove_dir_all(drill.cluster.servers()[leader].data_dir()).map_err(text)?;
    drill.cluster.restart(leader).map_err(text)?;
    drill.cluster.must_be_equal().await.map_err(text)?;
    let listed = drill.etcdctl(asked, &["member", "list"])?;
    must(!listed.contains("unstarted") && !listed.contains(&id), "three started members, the new one with a new ID")?;
    must(drill.etcdctl(leader, &["get", "foo"])? == "foo\nbar\n", "what was written before")?;
    drill.etcdctl(leader, &["endpoint", "status", "--cluster", "-w", "table"])?;
    Ok("the drill went as in the tutorial\n")
}

impl Drill {
    /// Runs etcdctl on a member's host, and shows it.
    fn etcdctl(&self, member: usize, arguments: &[&str]) -> Result<String, String> {
        let (succeeded, output) = self.try_etcdctl(member, arguments)?;
        println!("node{}$ etcdctl {}\n{}", member + 1, arguments.join(" "), output.trim_end());
        must(succeeded, "success").map(|()| output)
    }

    /// The same, again while the cluster says that it is unhealthy: its members have to know each other for a while.
    async fn until_healthy(&self, member: usize, arguments: &[&str]) -> Result<String, String> {
        let mut waited = 0;
        loop {
            let (succeeded, output) = self.try_etcdctl(member, arguments)?;
            if succeeded || waited == 100 || !output.contains("unhealthy") {
                println!("node{}$ etcdctl {}\n{}", member + 1, arguments.join(" "), output.trim_end());
                return must(succeeded, "success").map(|()| output);
            }
            waited += 1;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn try_etcdctl(&self, member: usize, arguments: &[&str]) -> Result<(bool, String), String> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.cluster.network().namespace(member)]).arg(&self.etcdctl);
        let output = command.args(arguments).env("ETCDCTL_API", "3").output().map_err(text)?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    /// Waits until a member's process has ended, and shows what it logged since `before`.
    fn ends(&mut self, member: usize, before: usize, which: &str) -> Result<String, String> {
        let status = self.cluster.member(member).wait_ended(ENDS_WITHIN).map_err(text)?;
        let log = self.cluster.member(member).log().split_off(before);
        println!("# {which} ended with {status}; of its log:");
        let telling = ["removed", "data-dir", "data dir", "mismatch", "permanently"];
        let mut told = HashSet::new();
        for line in log.lines().filter(|line| telling.iter().any(|word| line.contains(word))) {
            let value: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            let field = |name: &str| value.get(name).and_then(|text| text.as_str()).unwrap_or_default();
            let said = format!("{} {} {}", field("level"), field("msg"), field("error"));
            // Each sentence once; lines that only happen to name the directory tell nothing.
            if telling.iter().any(|word| said.contains(word)) && told.insert(said.clone()) {
                println!("    {}", said.trim_end());
            }
        }
        Ok(log)
    }
}

/// An error that names what was missing.
fn must(holds: bool, what: impl fmt::Display) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("expected {what}")) }
}

fn text(problem: impl fmt::Display) -> String {
    problem.to_string()
}
