//! `cluster-health`: asks every member whether it is well.

use super::app::{Action as Does, Command};
use super::context::{Context, Exit, exit};
use super::endpoint::Endpoint;
use super::flag::switch;
use super::http::{self, Connection, Deadlines, Request};
use super::json::{self, Member};
use super::secure::Tls;
use super::watch::end_well_when_interrupted;
use cli::terminal;
use serde::Deserialize;
use std::time::{Duration, Instant};

/// How long `--forever` pauses.
const PAUSE: Duration = Duration::from_secs(10);
/// How long a member may take to answer. One that has lost its leader only knows that after a request's time limit.
const PATIENCE: Duration = Duration::from_secs(30);

pub const CLUSTER_HEALTH: Command = Command {
    name: "cluster-health",
    about: "ask all members whether they are well",
    arguments: " ",
    flags: &[switch(&["forever", "f"], "Ask again every 10 seconds until CTRL+C")],
    action: Does::Run(cluster_health),
    ..Command::NONE
};

fn cluster_health(context: &Context) -> Result<(), Exit> {
    let forever = context.command.is("forever");
    if forever {
        end_well_when_interrupted()?;
    }
    let tls = context.tls().map_err(|error| Exit::error(exit::SERVER_ERROR, error))?;
    let mut client = context.client_without_sync()?;
    let members = client.members().map_err(|error| {
        terminal::say("cluster may be unhealthy: failed to list members");
        Exit::cluster(exit::SERVER_ERROR, &error)
    })?;
    loop {
        let healthy = members.iter().filter(|member| is_healthy(member, &tls)).count();
        let (word, code) = match healthy {
            _ if healthy == members.len() => ("healthy", 0),
            0 => ("unavailable", exit::NOT_HEALTHY),
            _ => ("degraded", exit::NOT_HEALTHY),
        };
        terminal::say(&format!("cluster is {word}"));
        if !forever {
            return if code == 0 { Ok(()) } else { Err(Exit::silent(code)) };
        }
        terminal::say("\nnext check after 10 second...\n");
        std::thread::sleep(PAUSE);
    }
}

/// Asks a member at its URLs, one after the other, until it answers; says what it said.
fn is_healthy(member: &Member, tls: &Tls) -> bool {
    let id = &member.id;
    let urls = member.client_urls.as_deref().unwrap_or_default();
    if urls.is_empty() {
        terminal::say(&format!("member {id} is unreachable: no available published client urls"));
        return false;
    }
    for url in urls {
        match ask(url, tls) {
            Ok(true) => {
                terminal::say(&format!("member {id} is healthy: got healthy result from {url}"));
                return true;
            }
            Ok(false) => {
                terminal::say(&format!("member {id} is unhealthy: got unhealthy result from {url}"));
                return false;
            }
            Err(error) => {
                terminal::say(&format!("failed to check the health of member {id} on {url}: {error}"));
            }
        }
    }
    terminal::say(&format!("member {id} is unreachable: [{}] are all unreachable", urls.join(" ")));
    false
}

/// `"true"` since etcd 2.1, `true` before.
#[derive(Deserialize)]
#[serde(untagged)]
enum Health {
    Word(String),
    Truth(bool),
}

#[derive(Deserialize)]
struct Answer {
    health: Option<Health>,
}

fn ask(url: &str, tls: &Tls) -> Result<bool, String> {
    let whole = format!("{url}/health");
    let named = |error: http::Error| format!("Get {whole:?}: {error}");
    let endpoint = Endpoint::parse(&whole)?;
    let deadlines = Deadlines { head: None, whole: Some(Instant::now() + PATIENCE) };
    let request = Request { method: "GET", target: endpoint.path.clone(), ..Request::default() };
    let mut connection = Connection::open(&endpoint, tls, deadlines).map_err(named)?;
    let response = connection.call(&endpoint.host, &request, deadlines).map_err(named)?;
    let answer: Answer = json::read(&response.body)?;
    Ok(match answer.health {
        Some(Health::Word(word)) => word == "true",
        Some(Health::Truth(truth)) => truth,
        None => false,
    })
}
