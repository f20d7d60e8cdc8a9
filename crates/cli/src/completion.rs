//! Completion in shells. The scripts ask the program itself what may come next, so they know every command and flag there is.

use crate::command::{self, Command, Group};
use crate::flags::Kind;

/// A shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shell {
    /// GNU bash.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
    /// PowerShell.
    PowerShell,
}

const BASH: &str = r#"_PROGRAM() {
    local IFS=$'\n'
    COMPREPLY=($(compgen -W "$(PROGRAM __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _PROGRAM PROGRAM
"#;
const ZSH: &str = r#"#compdef PROGRAM
_PROGRAM() {
    local -a candidates
    candidates=(${(f)"$(PROGRAM __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    compadd -a candidates
}
compdef _PROGRAM PROGRAM
"#;
const FISH: &str = r#"complete -c PROGRAM -f -a '(PROGRAM __complete -- (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'
"#;
const POWERSHELL: &str = r#"Register-ArgumentCompleter -Native -CommandName PROGRAM -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $words = @($commandAst.CommandElements | Select-Object -Skip 1 | ForEach-Object { "$_" })
    if ($wordToComplete -eq '') { $words += '' }
    PROGRAM __complete -- @words 2>$null | Where-Object { $_ -like "$wordToComplete*" } |
        ForEach-Object { [System.Management.Automation.CompletionResult]::new($_) }
}
"#;

/// What the shell has to read so that it completes the commands of `program`. The program must have a hidden command
/// `__complete` that prints the [`candidates`] for its arguments.
pub fn script(shell: Shell, program: &str) -> String {
    let template = match shell {
        Shell::Bash => BASH,
        Shell::Zsh => ZSH,
        Shell::Fish => FISH,
        Shell::PowerShell => POWERSHELL,
    };
    template.replace("PROGRAM", program)
}

/// What the last word may become, after the words before it.
pub fn candidates<C>(root: &'static Command<C>, words: &[String]) -> Vec<String> {
    let Some((last, before)) = words.split_last() else { return Vec::new() };
    let found = command::find(root, before);
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
