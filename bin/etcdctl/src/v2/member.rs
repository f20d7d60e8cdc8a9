//! `member`: who is in the cluster.

use super::app::{Action as Does, Command};
use super::cluster::{Action, Body, Cluster, Error};
use super::context::{Context, Exit};
use super::endpoint::Endpoint;
use super::json::Member;
use cli::json::{Object, push_text};
use cli::{go, terminal};

pub const MEMBER: Command = Command {
    name: "member",
    about: "list, add, remove and update members",
    action: Does::Group(&[
        Command { name: "list", about: "list the members", arguments: " ", action: Does::Run(list), ..Command::NONE },
        Command {
            name: "add",
            about: "add a member",
            arguments: "<name> <peerURL>",
            action: Does::Run(add),
            ..Command::NONE
        },
        Command {
            name: "remove",
            about: "remove a member",
            arguments: "<memberID>",
            action: Does::Run(remove),
            ..Command::NONE
        },
        Command {
            name: "update",
            about: "give a member other peer URLs",
            arguments: "<memberID> <peerURLs>",
            action: Does::Run(update),
            ..Command::NONE
        },
    ]),
    ..Command::NONE
};

fn peer_urls(member: &Member) -> &[String] {
    member.peer_urls.as_deref().unwrap_or_default()
}

fn list(context: &Context) -> Result<(), Exit> {
    if !context.args().is_empty() {
        return Err(Exit::plain("No arguments accepted"));
    }
    let mut client = context.client()?;
    let members = client.members().map_err(Exit::plain)?;
    let leader = leader(&mut client).map_err(|error| Exit::plain(format!("Failed to get leader:  {error}")))?;
    let mut out = String::new();
    for member in &members {
        let (id, name, peer_urls) = (&member.id, &member.name, peer_urls(member).join(","));
        if name.is_empty() {
            out.push_str(&format!("{id}[unstarted]: peerURLs={peer_urls}\n"));
        } else {
            let client_urls = member.client_urls.as_deref().unwrap_or_default().join(",");
            let is_leader = *id == leader.id;
            out.push_str(&format!(
                "{id}: name={name} peerURLs={peer_urls} clientURLs={client_urls} isLeader={is_leader}\n"
            ));
        }
    }
    terminal::print(out.as_bytes());
    Ok(())
}

fn leader(client: &mut Cluster) -> Result<Member, Error> {
    let action = Action { method: "GET", path: "/v2/members/leader".to_owned(), ..Action::default() };
    client.call(&action)?.expect(&[200])?.json()
}

/// Refuses URLs that no member can be reached at, in the words of the server.
fn check_peer_urls(urls: &[&str]) -> Result<(), String> {
    for url in urls {
        let parsed = Endpoint::parse(url.trim())?;
        match parsed.scheme.as_str() {
            "http" | "https" if !parsed.host.contains(':') => {
                return Err(format!("URL address does not have the form \"host:port\": {url}"));
            }
            "http" | "https" | "unix" | "unixs" => {}
            _ => return Err(format!("URL scheme must be http, https, unix, or unixs: {url}")),
        }
        if !parsed.path.is_empty() {
            return Err(format!("URL must not contain a path: {url}"));
        }
    }
    Ok(())
}

/// `{"peerURLs":[…]}`, in the order in which the original sends them.
fn with_peer_urls(urls: &[&str]) -> Body {
    let mut urls: Vec<&str> = urls.iter().map(|url| url.trim()).collect();
    urls.sort_unstable();
    let mut out = String::new();
    let mut object = Object::begin(&mut out);
    object.list("peerURLs", &urls, |out, url| push_text(out, url));
    object.end();
    Body::Json(out)
}

fn add(context: &Context) -> Result<(), Exit> {
    let [name, url] = context.args() else {
        return Err(Exit::plain("Provide a name and a single member peerURL"));
    };
    let mut client = context.client()?;
    check_peer_urls(&[url]).map_err(Exit::plain)?;
    let body = with_peer_urls(&[url]);
    let action = Action { method: "POST", path: "/v2/members".to_owned(), body, ..Action::default() };
    let added =
        client.call(&action).and_then(|response| response.expect(&[201, 409])?.expect_or_message(&[201])?.json());
    let added: Member = added.map_err(Exit::plain)?;
    terminal::say(&format!("Added member named {name} with ID {} to cluster", added.id));
    let members = client.members().map_err(Exit::plain)?;
    let cluster: Vec<String> = members
        .iter()
        .flat_map(|member| {
            let name = if member.id == added.id { name } else { &member.name };
            peer_urls(member).iter().map(move |url| format!("{name}={url}"))
        })
        .collect();
    terminal::print(
        format!(
            "\nETCD_NAME={}\nETCD_INITIAL_CLUSTER={}\nETCD_INITIAL_CLUSTER_STATE=\"existing\"\n",
            go::quote(name.as_bytes()),
            go::quote(cluster.join(",").as_bytes()),
        )
        .as_bytes(),
    );
    Ok(())
}

fn remove(context: &Context) -> Result<(), Exit> {
    let [id] = context.args() else {
        return Err(Exit::plain("Provide a single member ID"));
    };
    let mut client = context.client()?;
    let members = client
        .members()
        .map_err(|error| Exit::plain(format!("Error while verifying ID against known members: {error}")))?;
    for member in members.iter().filter(|member| member.name == *id) {
        eprintln!(
            "Found a member named {}; if this is correct, please use its ID, eg:\n\tetcdctl member remove {}",
            member.name, member.id
        );
        eprintln!(
            "For more details, read the documentation at \
             https://github.com/etcd-io/etcd/blob/master/Documentation/runtime-configuration.md#remove-a-member\n"
        );
    }
    if !members.iter().any(|member| member.id == *id) {
        return Err(Exit::plain(format!("Couldn't find a member in the cluster with an ID of {id}.")));
    }
    let action = Action { method: "DELETE", path: format!("/v2/members/{id}"), ..Action::default() };
    let removed = client.call(&action).and_then(|response| response.expect(&[204, 410]));
    removed
        .map_err(|error| Exit { code: 1, text: format!("Received an error trying to remove member {id}: {error}") })?;
    terminal::say(&format!("Removed member {id} from cluster"));
    Ok(())
}

fn update(context: &Context) -> Result<(), Exit> {
    let [id, urls] = context.args() else {
        return Err(Exit::plain(
            "Provide an ID and a list of comma separated peerURL (0xabcd http://example.com,http://example1.com)",
        ));
    };
    let mut client = context.client()?;
    let urls: Vec<&str> = urls.split(',').collect();
    check_peer_urls(&urls).map_err(Exit::plain)?;
    let (path, body) = (format!("/v2/members/{id}"), with_peer_urls(&urls));
    let updated = client.call(&Action { method: "PUT", path, body, ..Action::default() });
    updated.and_then(|response| response.expect(&[204, 404, 409])?.expect_or_message(&[204])).map_err(Exit::plain)?;
    terminal::say(&format!("Updated member with ID {id} in cluster"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_urls_are_checked_before_they_are_sent() {
        for (url, error) in [
            ("x", "URL scheme must be http, https, unix, or unixs: x"),
            ("http://a", "URL address does not have the form \"host:port\": http://a"),
            ("http://a:1/b", "URL must not contain a path: http://a:1/b"),
        ] {
            assert_eq!(check_peer_urls(&[url]).unwrap_err(), error);
        }
        assert_eq!(check_peer_urls(&["http://a:1", "https://b:2", "unix://c"]), Ok(()));
    }
}
