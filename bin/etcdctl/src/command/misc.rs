//! `version`, `options` and `completion`.

use crate::call::{Call, Failure, GLOBAL_FLAGS};
use crate::cli::{self, Command, Group, list_flags};
use crate::flags::Kind;
use crate::terminal;
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
            run: Some(|_| script(BASH)),
            ..Command::NONE
        },
        Command {
            name: "zsh",
            about: "Generate the script for zsh",
            example: "source <(etcdctl completion zsh)",
            run: Some(|_| script(ZSH)),
            ..Command::NONE
        },
        Command {
            name: "fish",
            about: "Generate the script for fish",
            example: "etcdctl completion fish | source",
            run: Some(|_| script(FISH)),
            ..Command::NONE
        },
        Command {
            name: "powershell",
            about: "Generate the script for powershell",
            example: "etcdctl completion powershell | Out-String | Invoke-Expression",
            run: Some(|_| script(POWERSHELL)),
            ..Command::NONE
        },
    ],
    ..Command::NONE
};

/// The scripts ask the program itself what may come next, so they know every command and flag there is.
const BASH: &str = r#"_etcdctl() {
    local IFS=$'\n'
    COMPREPLY=($(compgen -W "$(etcdctl __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _etcdctl etcdctl
"#;
const ZSH: &str = r#"#compdef etcdctl
_etcdctl() {
    local -a candidates
    candidates=(${(f)"$(etcdctl __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    compadd -a candidates
}
compdef _etcdctl etcdctl
"#;
const FISH: &str = r#"complete -c etcdctl -f -a '(etcdctl __complete -- (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'
"#;
const POWERSHELL: &str = r#"Register-ArgumentCompleter -Native -CommandName etcdctl -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $words = @($commandAst.CommandElements | Select-Object -Skip 1 | ForEach-Object { "$_" })
    if ($wordToComplete -eq '') { $words += '' }
    etcdctl __complete -- @words 2>$null | Where-Object { $_ -like "$wordToComplete*" } |
        ForEach-Object { [System.Management.Automation.CompletionResult]::new($_) }
}
"#;

fn script(text: &str) -> Result<(), Failure> {
    terminal::print(text.as_bytes());
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
    candidates(&call.parsed.args).iter().for_each(|candidate| terminal::say(candidate));
    Ok(())
}

/// What the last word may become, after the words before it.
fn candidates(words: &[String]) -> Vec<String> {
    let Some((last, before)) = words.split_last() else { return Vec::new() };
    let found = cli::find(&super::ROOT, before);
    let mut all: Vec<String> = if last.starts_with('-') {
        let flags = found.flags();
        flags
            .iter()
            .map(|flag| format!("--{}{}", flag.name, if flag.kind == Kind::Switch { "" } else { "=" }))
            .collect()
    } else {
        let shown = found.command().commands.iter().filter(|command| command.group != Group::Hidden);
        shown.map(|command| command.name.to_owned()).collect()
    };
    all.retain(|candidate| candidate.starts_with(last.as_str()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_flags_complete() {
        let complete = |line: &str| candidates(&line.split(' ').map(str::to_owned).collect::<Vec<_>>()).join(" ");
        assert_eq!(complete("co"), "compaction completion");
        assert_eq!(complete("-w json member pr"), "promote");
        assert_eq!(complete("get --pre"), "--prefix");
        assert_eq!(complete("put k v"), "");
    }
}
