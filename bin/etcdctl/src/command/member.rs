//! `member`: who belongs to the cluster.

use super::Command;
use crate::call::{Call, Failure, exit};
use crate::flags::{Flag, Kind, switch, text};
use crate::go;
use crate::output::cluster::MemberChange;
use crate::terminal;
use cli::Format;
use cli::Group;
use proto::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
    MemberUpdateRequest,
};

const PEER_URLS: Flag = Flag {
    name: "peer-urls",
    short: None,
    kind: Kind::Text,
    default: "",
    help: "Where other members reach this one, with commas between them.",
};

pub const MEMBER: Command = Command {
    name: "member",
    group: Group::Maintenance,
    about: "Membership related commands",
    commands: &[
        Command {
            name: "add",
            usage: "<memberName> [options]",
            about: "Adds a member into the cluster",
            example: "etcdctl member add n4 --peer-urls=http://10.0.0.4:2380 --learner",
            flags: &[PEER_URLS, switch("learner", "Let it learn before it votes.")],
            run: Some(add),
            ..Command::NONE
        },
        Command {
            name: "remove",
            usage: "<memberID>",
            about: "Removes a member from the cluster",
            example: "etcdctl member remove 8e9e05c52164694d",
            run: Some(remove),
            ..Command::NONE
        },
        Command {
            name: "update",
            usage: "<memberID> [options]",
            about: "Updates a member in the cluster",
            example: "etcdctl member update 8e9e05c52164694d --peer-urls=http://10.0.0.4:2380",
            flags: &[PEER_URLS],
            run: Some(update),
            ..Command::NONE
        },
        Command {
            name: "list",
            about: "Lists all members in the cluster",
            example: "etcdctl member list -w table",
            flags: &[text("consistency", "l", "Linearizable (l) or serializable (s).")],
            run: Some(list),
            ..Command::NONE
        },
        Command {
            name: "promote",
            usage: "<memberID>",
            about: "Promotes a non-voting member in the cluster",
            example: "etcdctl member promote 8e9e05c52164694d",
            run: Some(promote),
            ..Command::NONE
        },
    ],
    ..Command::NONE
};

fn member_id(call: &Call) -> Result<u64, Failure> {
    let [id] = call.args()[..] else { return Err(Failure::arguments("member ID is not provided")) };
    go::parse_uint(id, 16)
        .map_err(|reason| Failure::arguments(format!("bad member ID arg ({reason}), expecting ID in Hex")))
}

fn peer_urls(call: &Call) -> Result<Vec<String>, Failure> {
    let urls = call.parsed.text("peer-urls");
    if urls.is_empty() {
        return Err(Failure::arguments("member peer urls not provided"));
    }
    Ok(urls.split(',').map(str::to_owned).collect())
}

/// What etcd's client finds wrong with a member's URL, before it asks the server.
fn check_url(url: &str) -> Result<(), Failure> {
    let wrong = |text: String| Err(Failure::new(exit::ERROR, text));
    let Some((scheme @ ("http" | "https" | "unix" | "unixs"), rest)) = url.trim().split_once("://") else {
        return wrong(format!("URL scheme must be http, https, unix, or unixs: {url}"));
    };
    if scheme.starts_with("unix") {
        return Ok(());
    }
    let (address, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if !address.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && !port.contains(']')) {
        return wrong(format!("URL address does not have the form \"host:port\": {url}"));
    }
    if !path.is_empty() {
        return wrong(format!("URL must not contain a path: {url}"));
    }
    Ok(())
}

fn add(call: &Call) -> Result<(), Failure> {
    let name = match call.args()[..] {
        [] => return Err(Failure::arguments("member name not provided")),
        [name] => name.to_owned(),
        [_, ref more @ ..] => {
            let urls = more.iter().filter(|word| word.starts_with("http"));
            let hints: String = urls.map(|url| format!(", did you mean --peer-urls={url}")).collect();
            return Err(Failure::arguments(format!("too many arguments{hints}")));
        }
    };
    let urls = peer_urls(call)?;
    urls.iter().try_for_each(|url| check_url(url))?;
    let is_learner = call.parsed.is("learner");
    call.block_on(async {
        let request = MemberAddRequest { peer_ur_ls: urls.clone(), is_learner };
        let answer = call.client().await?.member_add(request).await?;
        let printer = call.printer()?;
        let (cluster, _) = ids(answer.header.as_ref());
        let member = answer.member.as_ref().map_or(0, |member| member.id);
        let role = if is_learner { "added as learner to" } else { "added to" };
        printer.show(&MemberChange {
            text: format!("Member {member:16x} {role} cluster {cluster:16x}"),
            message: &answer,
            header: answer.header.as_ref(),
            member: answer.member.as_ref(),
            members: &answer.members,
        })?;
        if printer.format == Format::Simple {
            terminal::print(settings(&name, &answer, &urls).as_bytes());
        }
        Ok(())
    })
}

/// The settings that the new member is to be started with.
fn settings(name: &str, answer: &MemberAddResponse, urls: &[String]) -> String {
    let new_id = answer.member.as_ref().map(|member| member.id);
    let mut cluster = Vec::new();
    for member in &answer.members {
        let name = if Some(member.id) == new_id { name } else { &member.name };
        cluster.extend(member.peer_ur_ls.iter().map(|url| format!("{name}={url}")));
    }
    format!(
        "\nETCD_NAME=\"{name}\"\nETCD_INITIAL_CLUSTER=\"{}\"\nETCD_INITIAL_ADVERTISE_PEER_URLS=\"{}\"\n\
         ETCD_INITIAL_CLUSTER_STATE=\"existing\"\n",
        cluster.join(","),
        urls.join(",")
    )
}

/// The IDs of cluster and member in a header.
fn ids(header: Option<&proto::etcdserverpb::ResponseHeader>) -> (u64, u64) {
    header.map_or((0, 0), |header| (header.cluster_id, header.member_id))
}

fn remove(call: &Call) -> Result<(), Failure> {
    let id = member_id(call)?;
    call.block_on(async {
        let answer = call.client().await?.member_remove(MemberRemoveRequest { id }).await?;
        let (cluster, _) = ids(answer.header.as_ref());
        call.printer()?.show(&MemberChange {
            text: format!("Member {id:16x} removed from cluster {cluster:16x}"),
            message: &answer,
            header: answer.header.as_ref(),
            member: None,
            members: &answer.members,
        })
    })
}

fn update(call: &Call) -> Result<(), Failure> {
    let id = member_id(call)?;
    let peer_ur_ls = peer_urls(call)?;
    peer_ur_ls.iter().try_for_each(|url| check_url(url))?;
    call.block_on(async {
        let answer = call.client().await?.member_update(MemberUpdateRequest { id, peer_ur_ls }).await?;
        let (cluster, _) = ids(answer.header.as_ref());
        call.printer()?.show(&MemberChange {
            text: format!("Member {id:16x} updated in cluster {cluster:16x}"),
            message: &answer,
            header: answer.header.as_ref(),
            member: None,
            members: &answer.members,
        })
    })
}

fn promote(call: &Call) -> Result<(), Failure> {
    let id = member_id(call)?;
    call.block_on(async {
        let answer = call.client().await?.member_promote(MemberPromoteRequest { id }).await?;
        let (cluster, _) = ids(answer.header.as_ref());
        call.printer()?.show(&MemberChange {
            text: format!("Member {id:16x} promoted in cluster {cluster:16x}"),
            message: &answer,
            header: answer.header.as_ref(),
            member: None,
            members: &answer.members,
        })
    })
}

fn list(call: &Call) -> Result<(), Failure> {
    let linearizable = match call.parsed.text("consistency") {
        "l" => true,
        "s" => false,
        other => {
            let text = format!("unknown consistency flag {}", go::quote(other.as_bytes()));
            return Err(Failure::new(exit::BAD_FEATURE, text));
        }
    };
    call.block_on(async {
        let answer = call.client().await?.member_list(MemberListRequest { linearizable }).await?;
        call.printer()?.show(&answer)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_url_has_a_scheme_and_a_port_and_no_path() {
        for good in ["http://a:1", "https://[::1]:2", "unix://x"] {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
        for bad in ["bad", "ftp://a:1", "http://a", "http://[::1]", "http://a:1/x"] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }
}
