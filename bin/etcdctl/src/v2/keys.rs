//! The commands that read and change keys: `get`, `ls`, `set`, `mk`, `update`, `rm`, and those for directories.

use super::app::{Action as Does, Command};
use super::cluster::{Action, Body, Cluster};
use super::context::{Context, Exit, exit};
use super::flag::{Flag, number, switch, text};
use super::json::{Event, Node};
use cli::{raw, terminal};
use std::io::Read;

const TTL: Flag = number(&["ttl"], "Seconds that the key lives");
const QUORUM: Flag = switch(&["quorum", "q"], "Read what a majority agrees on");
const SORT: Flag = switch(&["sort"], "Sort by name");

pub const MK: Command = Command {
    name: "mk",
    about: "make a key that does not exist yet",
    arguments: "<key> <value>",
    flags: &[switch(&["in-order"], "Make a key with the next number as its name in directory <key>"), TTL],
    action: Does::Run(|context| {
        let in_order = Change { method: "POST", ..SET_ANYWAY };
        change_value(context, if context.command.is("in-order") { in_order } else { CREATE })
    }),
    ..Command::NONE
};

pub const MKDIR: Command = Command {
    name: "mkdir",
    about: "make a directory that does not exist yet",
    arguments: "<key>",
    flags: &[TTL],
    action: Does::Run(|context| change_directory(context, CREATE)),
    ..Command::NONE
};

pub const RM: Command = Command {
    name: "rm",
    about: "remove a key or a directory",
    arguments: "<key>",
    flags: &[
        switch(&["dir"], "Also if it is an empty directory"),
        switch(&["recursive", "r"], "Also if it is a directory, with all that is in it"),
        text(&["with-value"], "", "Only if this is its value"),
        number(&["with-index"], "Only if this is the index of its last change"),
    ],
    action: Does::Run(|context| {
        let flags = &context.command;
        let (with_index, with_value) = (index(flags.number("with-index")), flags.text("with-value").to_owned());
        remove(context, flags.is("dir"), flags.is("recursive"), with_index, with_value)
    }),
    ..Command::NONE
};

pub const RMDIR: Command = Command {
    name: "rmdir",
    about: "remove a key or an empty directory",
    arguments: "<key>",
    action: Does::Run(|context| remove(context, true, false, String::new(), String::new())),
    ..Command::NONE
};

pub const GET: Command = Command {
    name: "get",
    about: "show the value of a key",
    arguments: "<key>",
    flags: &[SORT, QUORUM],
    action: Does::Run(get),
    ..Command::NONE
};

pub const LS: Command = Command {
    name: "ls",
    about: "list a directory",
    arguments: "[key]",
    flags: &[
        SORT,
        switch(&["recursive", "r"], "Also what is in its directories"),
        switch(&["p"], "Put a slash (/) behind the names of directories"),
        QUORUM,
    ],
    action: Does::Run(ls),
    ..Command::NONE
};

pub const SET: Command = Command {
    name: "set",
    about: "give a key a value",
    arguments: "<key> <value>",
    description: "Gives a key a value, which is read from stdin if it is not typed.\n\n\
                  A <value> that looks like one of the flags goes behind two dashes:\n\n\
                  $ etcdctl set -- <key> --ttl",
    flags: &[
        TTL,
        text(&["swap-with-value"], "", "Only if this is its value"),
        number(&["swap-with-index"], "Only if this is the index of its last change"),
    ],
    action: Does::Run(|context| {
        let flags = &context.command;
        let previous = [
            ("prevIndex", index(flags.number("swap-with-index"))),
            ("prevValue", flags.text("swap-with-value").to_owned()),
        ];
        change_value(context, Change { previous: previous.into(), ..SET_ANYWAY })
    }),
};

pub const SETDIR: Command = Command {
    name: "setdir",
    about: "make a directory, or give one another TTL",
    arguments: "<key>",
    flags: &[TTL],
    action: Does::Run(|context| change_directory(context, SET_ANYWAY)),
    ..Command::NONE
};

pub const UPDATE: Command = Command {
    name: "update",
    about: "give a key that exists a value",
    arguments: "<key> <value>",
    flags: &[TTL],
    action: Does::Run(|context| change_value(context, UPDATE_EXISTING)),
    ..Command::NONE
};

pub const UPDATEDIR: Command = Command {
    name: "updatedir",
    about: "give a directory that exists another TTL",
    arguments: "<key> <value>",
    flags: &[TTL],
    action: Does::Run(|context| change_directory(context, UPDATE_EXISTING)),
    ..Command::NONE
};

/// How a key is changed.
struct Change {
    method: &'static str,
    /// `prevExist`: whether the key must or must not exist.
    exists: Option<&'static str>,
    /// What the key must be before.
    previous: Vec<(&'static str, String)>,
    /// Whether only one member is asked.
    once: bool,
}

const SET_ANYWAY: Change = Change { method: "PUT", exists: None, previous: Vec::new(), once: false };
const UPDATE_EXISTING: Change = Change { method: "PUT", exists: Some("true"), previous: Vec::new(), once: false };
// Asked twice, the second time would fail because of the first.
const CREATE: Change = Change { method: "PUT", exists: Some("false"), previous: Vec::new(), once: true };

/// An index as it is sent; none for 0. Negative ones wrap around, as in the original.
fn index(index: i64) -> String {
    if index == 0 { String::new() } else { (index as u64).to_string() }
}

/// The path of a key.
pub fn path(key: &str) -> String {
    format!("/v2/keys/{key}")
}

impl Change {
    /// The request that changes `key` to `value`, or without one to a directory.
    fn request(self, key: &str, value: Option<String>, ttl: i64) -> Action {
        let mut fields = Vec::new();
        // Go's durations are nanoseconds in 64 bits.
        let nanos = ttl.wrapping_mul(1_000_000_000);
        if nanos > 0 {
            fields.push(("ttl", (nanos / 1_000_000_000).to_string()));
        }
        let mut query: Vec<_> = self.previous.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        query.extend(self.exists.map(|exists| ("prevExist", exists.to_owned())));
        match value {
            Some(value) => fields.push(("value", value)),
            None => query.push(("dir", "true".to_owned())),
        }
        let (method, path, body) = (self.method, path(key), Body::Form(fields));
        Action { method, path, query, body, once: self.once, waits: false }
    }
}

/// Sends a request and takes its answer.
fn send(client: &mut Cluster, action: &Action) -> Result<Event, Exit> {
    client.key(action).map_err(|error| Exit::cluster(exit::SERVER_ERROR, &error))
}

fn change_value(context: &Context, change: Change) -> Result<(), Exit> {
    // As in the original, the cluster is asked for its members before the arguments are looked at.
    let mut client = context.client()?;
    let key = context.key()?;
    let value = value(context.args().get(1))?;
    let event = send(&mut client, &change.request(key, Some(value), context.command.number("ttl")))?;
    context.show(&event);
    Ok(())
}

fn change_directory(context: &Context, change: Change) -> Result<(), Exit> {
    let mut client = context.client()?;
    let key = context.key()?;
    let event = send(&mut client, &change.request(key, None, context.command.number("ttl")))?;
    if context.format() != "simple" {
        context.show(&event);
    }
    Ok(())
}

/// A value that was typed, or stdin.
fn value(typed: Option<&String>) -> Result<String, Exit> {
    if let Some(typed) = typed {
        return Ok(typed.clone());
    }
    let mut input = Vec::new();
    match std::io::stdin().lock().read_to_end(&mut input) {
        Ok(_) if !input.is_empty() => Ok(raw::text(&input)),
        _ => Err(Exit::error(exit::BAD_ARGUMENTS, "value required")),
    }
}

fn remove(context: &Context, dir: bool, recursive: bool, index: String, value: String) -> Result<(), Exit> {
    let mut client = context.client()?;
    let key = context.key()?;
    let switches = [("dir", dir), ("recursive", recursive)];
    let mut query: Vec<_> =
        switches.iter().filter(|(_, is_on)| *is_on).map(|(name, _)| (*name, "true".to_owned())).collect();
    let previous = [("prevIndex", index), ("prevValue", value)];
    query.extend(previous.into_iter().filter(|(_, value)| !value.is_empty()));
    let event =
        send(&mut client, &Action { method: "DELETE", path: path(key), query, once: true, ..Action::default() })?;
    let is_directory = event.node.as_ref().is_some_and(|node| node.dir);
    if !is_directory || context.format() != "simple" {
        context.show(&event);
    }
    Ok(())
}

fn read(client: &mut Cluster, context: &Context, key: &str, recursive: bool) -> Result<Event, Exit> {
    let flags = &context.command;
    let query = [("recursive", recursive), ("sorted", flags.is("sort")), ("quorum", flags.is("quorum"))];
    let query = query.iter().map(|(name, is_on)| (*name, is_on.to_string())).collect();
    send(client, &Action { method: "GET", path: path(key), query, ..Action::default() })
}

fn get(context: &Context) -> Result<(), Exit> {
    let mut client = context.client()?;
    let event = read(&mut client, context, context.key()?, false)?;
    if let Some(node) = event.node.as_ref().filter(|node| node.dir) {
        return Err(Exit::plain(format!("{}: is a directory", node.key)));
    }
    context.show(&event);
    Ok(())
}

fn ls(context: &Context) -> Result<(), Exit> {
    let mut client = context.client()?;
    let key = context.args().first().map_or("/", String::as_str);
    let event = read(&mut client, context, key, context.command.is("recursive"))?;
    if context.format() != "simple" {
        context.show(&event);
        return Ok(());
    }
    let node = event.node.unwrap_or_default();
    let mut out = String::new();
    if !node.dir {
        out.push_str(&node.key);
        out.push('\n');
    }
    list(&mut out, node.nodes.as_deref().unwrap_or_default(), context.command.is("p"));
    terminal::print(out.as_bytes());
    Ok(())
}

fn list(out: &mut String, nodes: &[Node], with_slashes: bool) {
    for node in nodes {
        out.push_str(&node.key);
        out.push_str(if node.dir && with_slashes { "/\n" } else { "\n" });
        list(out, node.nodes.as_deref().unwrap_or_default(), with_slashes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_sent_if_there_is_one() {
        let sent = |ttl| match SET_ANYWAY.request("k", Some("v".to_owned()), ttl).body {
            Body::Form(fields) => fields,
            _ => panic!("no form"),
        };
        assert_eq!(sent(0), [("value", "v".to_owned())]);
        assert_eq!(sent(-5), [("value", "v".to_owned())]);
        assert_eq!(sent(5), [("ttl", "5".to_owned()), ("value", "v".to_owned())]);
        assert_eq!(sent(i64::MAX), [("value", "v".to_owned())], "what Go's durations cannot hold is lost");
    }

    #[test]
    fn a_directory_has_no_value() {
        let action = CREATE.request("k", None, 0);
        assert_eq!(action.query, [("prevExist", "false".to_owned()), ("dir", "true".to_owned())]);
        assert!(matches!(action.body, Body::Form(fields) if fields.is_empty()));
        assert!(action.once, "made twice, it would be in its own way");
    }
}
