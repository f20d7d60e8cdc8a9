//! `version`, `options` and `completion`.

use super::Command;
use crate::call::{Call, Failure, GLOBAL_FLAGS};
use crate::terminal;
use cli::completion::{self, Shell, candidates};
use cli::{Group, list_flags};
use proto::{API_VERSION, ETCD_VERSION};

pub const VERSION_COMMAND: Command = Command {
    name: "version",
    about: "Prints the version of etcdctl",
    example: "etcdctl version",
    run: Some(|_| {
        terminal::say(&format!("etcdctl version: {ETCD_VERSION}\nAPI version: {API_VERSION}"));
        Ok(())
    }),
    ..Command::NONE
};

pub const OPTIONS: Command = Command {
    name: "options",
    about: "List global command-line options",
    example: "etcdctl options",
    run: Some(|_| {
        let flags = list_flags(GLOBAL_FLAGS, false);
        terminal::print(
            format!(
                "The following options can be passed to any command:\n\n{flags}\n\
                 Each can also be set as ETCDCTL_<NAME>, for instance ETCDCTL_ENDPOINTS.\n"
            )
            .as_bytes(),
        );
        Ok(())
    }),
    ..Command::NONE
};

pub const COMPLETION: Command = Command {
    name: "completion",
    about: "Generate completion script",
    commands: &[
        Command {
            name: "bash",
            about: "Generate the script for bash",
            example: "source <(etcdctl completion bash)",
            run: Some(|_| script(Shell::Bash)),
            ..Command::NONE
        },
        Command {
            name: "zsh",
            about: "Generate the script for zsh",
            example: "source <(etcdctl completion zsh)",
            run: Some(|_| script(Shell::Zsh)),
            ..Command::NONE
        },
        Command {
            name: "fish",
            about: "Generate the script for fish",
            example: "etcdctl completion fish | source",
            run: Some(|_| script(Shell::Fish)),
            ..Command::NONE
        },
        Command {
            name: "powershell",
            about: "Generate the script for powershell",
            example: "etcdctl completion powershell | Out-String | Invoke-Expression",
            run: Some(|_| script(Shell::PowerShell)),
            ..Command::NONE
        },
    ],
    ..Command::NONE
};

fn script(shell: Shell) -> Result<(), Failure> {
    terminal::print(completion::script(shell, "etcdctl").as_bytes());
    Ok(())
}

pub const COMPLETE: Command = Command {
    name: "__complete",
    group: Group::Hidden,
    about: "Says what may come next, for the completion scripts",
    run: Some(complete),
    ..Command::NONE
};

fn complete(call: &Call) -> Result<(), Failure> {
    candidates(&super::ROOT, &call.parsed.args).iter().for_each(|candidate| terminal::say(candidate));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_flags_complete() {
        let complete = |line: &str| {
            candidates(&super::super::ROOT, &line.split(' ').map(str::to_owned).collect::<Vec<_>>()).join(" ")
        };
        assert_eq!(complete("co"), "compaction completion");
        assert_eq!(complete("-w json member pr"), "promote");
        assert_eq!(complete("get --pre"), "--prefix");
        assert_eq!(complete("put k v"), "");
    }
}
