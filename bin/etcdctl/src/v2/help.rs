//! The texts of `--help`, in the shape that `urfave/cli` gives them.

use super::app::{Action, Command, GLOBAL_FLAGS, HELP_FLAG, NAME, VERSION, VERSION_FLAG};
use super::flag::Flag;
use cli::flags::Kind;

/// Rows of two columns, the first as wide as its widest.
fn columns(rows: &[(String, String)], end: &str) -> String {
    let width = rows.iter().map(|(left, _)| left.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(left, right)| format!("   {left:<width$}  {right}{end}")).collect()
}

fn listed(commands: &[Command]) -> Vec<(String, String)> {
    commands.iter().map(|command| (command.name.to_owned(), command.about.to_owned())).collect()
}

/// What is typed for a flag, and what it does.
fn row(flag: &Flag) -> (String, String) {
    let spelled = |name: &&str| {
        let dashes = if name.len() == 1 { "-" } else { "--" };
        let space = if flag.placeholder.is_empty() { "" } else { " " };
        format!("{dashes}{name}{space}{}", flag.placeholder)
    };
    let left = flag.names.iter().map(spelled).collect::<Vec<_>>().join(", ");
    let right = match flag.kind {
        Kind::Number | Kind::Duration => format!("{} (default: {})", flag.help, flag.default),
        Kind::Text if !flag.default.is_empty() => format!("{} (default: {:?})", flag.help, flag.default),
        _ => flag.help.to_owned(),
    };
    (left, right)
}

fn rows(flags: &[Flag]) -> Vec<(String, String)> {
    flags.iter().map(row).collect()
}

fn app(name: &str, about: &str, commands: Vec<(String, String)>, flags: &[Flag]) -> String {
    format!(
        "NAME:\n   {name} - {about}\n\nUSAGE:\n   {name} [global options] command [command options] [arguments...]\n\n\
         VERSION:\n   {VERSION}\n\nCOMMANDS:\n{}\nGLOBAL OPTIONS:\n{}",
        columns(&commands, "\n"),
        columns(&rows(flags), "\n"),
    )
}

/// Of the program.
pub fn of_program(commands: &[Command]) -> String {
    let mut listed = listed(commands);
    listed.push(("help, h".to_owned(), HELP_ABOUT.to_owned()));
    let flags = [GLOBAL_FLAGS, &[HELP_FLAG, VERSION_FLAG]].concat();
    app(NAME, "works with the keys of an etcd cluster by its v2 API", listed, &flags)
}

/// What `help` does.
const HELP_ABOUT: &str = "Shows the commands, or the help of one";

/// Of a group, as its own command `help` shows it.
pub fn of_group_as_program(group: &Command, commands: &[Command]) -> String {
    app(&format!("{NAME} {}", group.name), group.about, listed(commands), &[HELP_FLAG])
}

/// Of a group.
pub fn of_group(group: &Command, commands: &[Command]) -> String {
    let name = format!("{NAME} {}", group.name);
    format!(
        "NAME:\n   {name} - {}\n\nUSAGE:\n   {name} command [command options] [arguments...]\n\nCOMMANDS:\n{}\n\
         OPTIONS:\n{}   \n",
        group.about,
        columns(&listed(commands), "\n"),
        columns(&rows(&[HELP_FLAG]), "\n"),
    )
}

/// Of one command. `group` is the one that it belongs to.
pub fn of_command(group: Option<&Command>, command: &Command) -> String {
    let parent = group.map_or(NAME.to_owned(), |group| format!("{NAME} {}", group.name));
    let has_flags = matches!(command.action, Action::Run(_)) && !command.flags.is_empty();
    let arguments = if command.arguments.is_empty() { "[arguments...]" } else { command.arguments };
    let mut out = format!(
        "NAME:\n   {parent} {name} - {}\n\nUSAGE:\n   {parent} {name}{} {arguments}\n",
        command.about,
        if has_flags { " [command options]" } else { "" },
        name = command.name,
    );
    if !command.description.is_empty() {
        out.push_str(&format!("\nDESCRIPTION:\n   {}\n", command.description.replace('\n', "\n   ")));
        // What is indented above must not leave blanks on empty lines.
        out = out.replace("\n   \n", "\n\n");
    }
    if has_flags {
        out.push_str(&format!("\nOPTIONS:\n{}   \n", columns(&rows(command.flags), "\n")));
    }
    out
}

/// Of the command `help`: of the program, where it has no name of its own in `urfave/cli`, or of a group.
pub fn of_help(group: Option<&Command>) -> String {
    let name = group.map_or(String::new(), |group| format!("{NAME} {} help", group.name));
    format!("NAME:\n   {name} - {HELP_ABOUT}\n\nUSAGE:\n   {name} [command]\n")
}
