//! The commands of the v2 tool, and how a command line finds one: by the rules of `urfave/cli`.

use super::context::{Context, Exit};
use super::flag::{self, Flag, FlagError, Parsed, duration, reorder, switch, text};
use super::{auth, backup, health, help, keys, member, watch};
use cli::terminal;

/// What the program is called.
pub const NAME: &str = "etcdctl";
/// The etcd whose v2 tool this is: the last line that had all of it.
pub const VERSION: &str = "3.4.23";

/// What a command does.
pub type Run = fn(&Context) -> Result<(), Exit>;

/// A command, or a group of them.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// What is typed.
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// Its arguments, for the usage line.
    pub arguments: &'static str,
    /// More about it.
    pub description: &'static str,
    /// Its flags.
    pub flags: &'static [Flag],
    /// What it does.
    pub action: Action,
}

/// What a command does.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// This.
    Run(Run),
    /// One of these.
    Group(&'static [Command]),
}

impl Command {
    /// A command to be filled in with `..`.
    pub const NONE: Command =
        Command { name: "", about: "", arguments: "", description: "", flags: &[], action: Action::Group(&[]) };
}

/// The flags of all commands. They stand before the command.
pub const GLOBAL_FLAGS: &[Flag] = &[
    switch(&["debug"], "Show each request as a curl command on stderr"),
    switch(&["no-sync"], "Use the endpoints as given, without asking the cluster for its members first"),
    Flag {
        placeholder: "simple",
        ..text(&["output", "o"], "simple", "Format of answers: simple, `extended` or `json`")
    },
    text(&["discovery-srv", "D"], "", "Domain whose SRV records name the endpoints"),
    switch(&["insecure-discovery"], "Accept SRV records of endpoints without TLS"),
    text(&["peers", "C"], "", "Old name of --endpoints"),
    text(&["endpoint"], "", "Old name of --endpoints"),
    text(
        &["endpoints"],
        "",
        "URLs of members, with commas between them (default: \"http://127.0.0.1:2379,http://127.0.0.1:4001\")",
    ),
    text(&["cert-file"], "", "File with this client's certificate"),
    text(&["key-file"], "", "File with the key of that certificate"),
    text(&["ca-file"], "", "File with the certificates that servers are checked against"),
    text(&["username", "u"], "", "username[:password]; asks for a password that is not given"),
    duration(&["timeout"], "2s", "How long one member may take to begin its answer"),
    duration(&["total-timeout"], "5s", "How long the command may take; watches are not bounded"),
];

/// Every command has it.
pub const HELP_FLAG: Flag = switch(&["help", "h"], "show help");
/// The program has it.
pub const VERSION_FLAG: Flag = switch(&["version", "v"], "print the version");

/// All commands, in the order of the help.
const COMMANDS: &[Command] = &[
    backup::BACKUP,
    health::CLUSTER_HEALTH,
    keys::MK,
    keys::MKDIR,
    keys::RM,
    keys::RMDIR,
    keys::GET,
    keys::LS,
    keys::SET,
    keys::SETDIR,
    keys::UPDATE,
    keys::UPDATEDIR,
    watch::WATCH,
    watch::EXEC_WATCH,
    member::MEMBER,
    auth::USER,
    auth::ROLE,
    auth::AUTH,
];

fn find(commands: &'static [Command], name: &str) -> Option<&'static Command> {
    commands.iter().find(|command| command.name == name)
}

fn is_help(name: &str) -> bool {
    matches!(name, "help" | "h")
}

/// A command line that makes no sense: the help goes to stdout, what is wrong to stderr.
fn mistake(introduction: &str, error: &FlagError, help: &str) -> Result<(), Exit> {
    let introduction = match error {
        FlagError::TwoForms(_) if introduction == PROGRAM_MISTAKE => error.text().to_owned(),
        _ => format!("{introduction}{}", error.text()),
    };
    terminal::print(format!("{introduction}\n\n{help}").as_bytes());
    Err(Exit::plain(error.text()))
}

const PROGRAM_MISTAKE: &str = "Incorrect Usage. ";
const COMMAND_MISTAKE: &str = "Incorrect Usage: ";

fn show(text: &str) -> Result<(), Exit> {
    terminal::print(text.as_bytes());
    Ok(())
}

/// Runs the command that the words mean.
pub fn run(words: &[String]) -> Result<(), Exit> {
    let flags = [GLOBAL_FLAGS, &[HELP_FLAG, VERSION_FLAG]].concat();
    let globals = match flag::parse(&flags, words) {
        Ok(globals) => globals,
        Err(error @ FlagError::TwoForms(_)) => {
            terminal::print(format!("{}\n{}", error.text(), help::of_program(COMMANDS)).as_bytes());
            return Err(Exit::plain(error.text()));
        }
        Err(error) => return mistake(PROGRAM_MISTAKE, &error, &help::of_program(COMMANDS)),
    };
    if globals.is("help") {
        return show(&help::of_program(COMMANDS));
    }
    if globals.is("version") {
        return show(&format!("etcdctl version: {VERSION}\nAPI version: 2\n"));
    }
    let Some((name, rest)) = globals.args.split_first() else { return show(&help::of_program(COMMANDS)) };
    match find(COMMANDS, name) {
        Some(group @ Command { action: Action::Group(commands), .. }) => run_group(&globals, group, commands, rest),
        Some(command) => run_command(&globals, None, command, rest),
        None if is_help(name) => run_help(None, COMMANDS, rest),
        None => no_help_for(name),
    }
}

fn run_group(
    globals: &Parsed,
    group: &'static Command,
    commands: &'static [Command],
    words: &[String],
) -> Result<(), Exit> {
    let parsed = match flag::parse(&[HELP_FLAG], words) {
        Ok(parsed) => parsed,
        Err(error) => return mistake(PROGRAM_MISTAKE, &error, &help::of_group(group, commands)),
    };
    let name = parsed.args.first().filter(|_| !parsed.is("help"));
    let Some(name) = name else { return show(&help::of_group(group, commands)) };
    match find(commands, name) {
        Some(command) => run_command(globals, Some(group), command, &parsed.args[1..]),
        None if is_help(name) => run_help(Some(group), commands, &parsed.args[1..]),
        None => no_help_for(name),
    }
}

fn run_command(
    globals: &Parsed,
    group: Option<&Command>,
    command: &'static Command,
    words: &[String],
) -> Result<(), Exit> {
    let flags = [command.flags, &[HELP_FLAG]].concat();
    let parsed = match flag::parse(&flags, &reorder(&flags, words)) {
        Ok(parsed) => parsed,
        Err(error) => return mistake(COMMAND_MISTAKE, &error, &help::of_command(group, command)),
    };
    match command.action {
        Action::Run(run) if !parsed.is("help") => run(&Context { globals, command: parsed }),
        _ => show(&help::of_command(group, command)),
    }
}

/// `help`, of the program or of a group.
fn run_help(group: Option<&'static Command>, commands: &'static [Command], words: &[String]) -> Result<(), Exit> {
    let parsed = match flag::parse(&[HELP_FLAG], &reorder(&[HELP_FLAG], words)) {
        Ok(parsed) if parsed.is("help") => return show(&help::of_help(group)),
        Ok(parsed) => parsed,
        Err(error) => return mistake(COMMAND_MISTAKE, &error, &help::of_help(group)),
    };
    match (parsed.args.first(), group) {
        (Some(name), _) if is_help(name) => show(&help::of_help(group)),
        (Some(name), _) => match find(commands, name) {
            Some(command) => show(&help::of_command(group, command)),
            None => no_help_for(name),
        },
        (None, Some(group)) => show(&help::of_group_as_program(group, commands)),
        (None, None) => show(&help::of_program(commands)),
    }
}

fn no_help_for(name: &str) -> Result<(), Exit> {
    Err(Exit { code: 3, text: format!("No help topic for '{name}'\n") })
}
