//! `watch` and `exec-watch`: wait for changes, and show them or hand them to a program.

use super::app::{Action as Does, Command};
use super::cluster::{Action, Cluster, Error};
use super::context::{Context, Exit, exit};
use super::flag::{Flag, number, switch};
use super::json::Event;
use super::keys;
use cli::{go, raw, terminal};
use std::process::Command as Program;

const AFTER_INDEX: Flag = number(&["after-index"], "Begin behind this index, not with the next change");

pub const WATCH: Command = Command {
    name: "watch",
    about: "show the next change of a key",
    arguments: "<key>",
    flags: &[
        switch(&["forever", "f"], "Show all changes until CTRL+C"),
        AFTER_INDEX,
        switch(&["recursive", "r"], "Also of what is in the directory"),
    ],
    action: Does::Run(watch),
    ..Command::NONE
};

pub const EXEC_WATCH: Command = Command {
    name: "exec-watch",
    about: "run a program for every change of a key",
    arguments: "<key> <command> [args...]",
    description: "The program finds the change in ETCD_WATCH_ACTION, ETCD_WATCH_KEY, ETCD_WATCH_VALUE and\n\
                  ETCD_WATCH_MODIFIED_INDEX.\n\n$ etcdctl exec-watch --recursive /config -- sh -c 'echo $ETCD_WATCH_KEY'",
    flags: &[AFTER_INDEX, switch(&["recursive", "r"], "Also of what is in the directory")],
    action: Does::Run(exec_watch),
};

/// Waits for one change after the other.
struct Watcher {
    client: Cluster,
    path: String,
    recursive: bool,
    /// The index of the next change.
    index: u64,
}

impl Watcher {
    fn new(client: Cluster, context: &Context, key: &str) -> Watcher {
        let after = context.command.number("after-index") as u64;
        let index = if after > 0 { after.wrapping_add(1) } else { 0 };
        Watcher { client, path: keys::path(key), recursive: context.command.is("recursive"), index }
    }

    fn next(&mut self) -> Result<Event, Exit> {
        loop {
            let query = [
                ("wait", "true".to_owned()),
                ("waitIndex", self.index.to_string()),
                ("recursive", self.recursive.to_string()),
            ];
            let (path, query) = (self.path.clone(), query.into());
            match self.client.key(&Action { method: "GET", path, query, waits: true, ..Action::default() }) {
                // A member that stops, or a proxy that is tired, ends the answer without an event.
                Err(Error::EmptyBody) => {}
                Err(error) => return Err(Exit::cluster(exit::SERVER_ERROR, &error)),
                Ok(event) => {
                    self.index = event.node.as_ref().map_or(0, |node| node.modified_index) + 1;
                    return Ok(event);
                }
            }
        }
    }
}

/// Ends the program well when it is interrupted, as the original does where waiting is all it is for.
pub fn end_well_when_interrupted() -> Result<(), Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(Exit::plain)?;
    let interrupted = {
        let _entered = runtime.enter();
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).map_err(Exit::plain)?
    };
    std::thread::spawn(move || {
        let mut interrupted = interrupted;
        runtime.block_on(interrupted.recv());
        std::process::exit(0);
    });
    Ok(())
}

fn watch(context: &Context) -> Result<(), Exit> {
    let client = context.client()?;
    let mut watcher = Watcher::new(client, context, context.key()?);
    end_well_when_interrupted()?;
    loop {
        let event = watcher.next()?;
        let node = event.node.clone().unwrap_or_default();
        if node.dir {
            continue;
        }
        if watcher.recursive {
            terminal::say(&format!("[{}] {}", event.action, node.key));
        }
        context.show(&event);
        if !context.command.is("forever") {
            return Ok(());
        }
    }
}

/// The key and the program. Without `--` between them the key comes last, because that is where the original looks.
fn key_and_program(args: &[String]) -> Option<(&str, &[String])> {
    if args.len() < 2 {
        return None;
    }
    if args[1..].iter().any(|word| word == "--") {
        return Some((&args[0], args.get(2..)?));
    }
    let (key, program) = args.split_last()?;
    Some((key, program))
}

fn exec_watch(context: &Context) -> Result<(), Exit> {
    let client = context.client()?;
    let missing = || Exit::error(exit::BAD_ARGUMENTS, "key and command to exec required");
    let (key, program) = key_and_program(context.args()).ok_or_else(missing)?;
    let (name, arguments) = program.split_first().ok_or_else(missing)?;
    let mut watcher = Watcher::new(client, context, key);
    end_well_when_interrupted()?;
    loop {
        let event = watcher.next()?;
        let node = event.node.unwrap_or_default();
        if node.dir {
            eprintln!("Ignored dir {} change", node.key);
            continue;
        }
        let mut program = Program::new(raw::argument(name));
        program.args(arguments.iter().map(|argument| raw::argument(argument)));
        program.env("ETCD_WATCH_ACTION", &event.action);
        program.env("ETCD_WATCH_MODIFIED_INDEX", node.modified_index.to_string());
        program.env("ETCD_WATCH_KEY", &node.key);
        program.env("ETCD_WATCH_VALUE", &node.value);
        match program.spawn() {
            // Programs for later changes do not wait for it.
            Ok(mut child) => drop(std::thread::spawn(move || child.wait())),
            Err(_) if !name.contains('/') => {
                let name = go::quote(&raw::bytes(name));
                return Err(Exit { code: 1, text: format!("exec: {name}: executable file not found in $PATH") });
            }
            Err(error) => {
                let reason = terminal::open_error(name, &error);
                let reason = reason.rsplit(": ").next().unwrap_or_default();
                return Err(Exit { code: 1, text: format!("fork/exec {name}: {reason}") });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_comes_first_before_dashes_and_else_last() {
        let split = |line: &str| {
            let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
            key_and_program(&args).map(|(key, program)| format!("{key}: {}", program.join(" ")))
        };
        assert_eq!(split("/e -- sh -c x").as_deref(), Some("/e: sh -c x"));
        assert_eq!(split("sh -c x /e").as_deref(), Some("/e: sh -c x"));
        assert_eq!(split("/e"), None);
    }
}
