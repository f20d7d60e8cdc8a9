//! The tree of commands: finding one, and explaining it. By the rules of Go's `cobra`, which scripts and fingers know.

use crate::call::{Call, Failure};
use crate::flags::{self, Flag, FlagError, Kind, Parsed};
use std::fmt::Write as _;

/// What a command does.
pub type Run = fn(&Call) -> Result<(), Failure>;

/// A heading of the list of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Keys and values.
    KeyValue,
    /// Members and their state.
    Maintenance,
    /// Locks and elections.
    Concurrency,
    /// Users and roles.
    Auth,
    /// Everything else.
    Utility,
    /// Not shown.
    Hidden,
}

/// The headings, in the order of the help.
const GROUPS: [(Group, &str); 5] = [
    (Group::KeyValue, "Key-value commands"),
    (Group::Maintenance, "Cluster maintenance commands"),
    (Group::Concurrency, "Concurrency commands"),
    (Group::Auth, "Authentication commands"),
    (Group::Utility, "Utility commands"),
];

/// One command, or a group of commands.
#[derive(Debug)]
pub struct Command {
    /// What is typed.
    pub name: &'static str,
    /// What may be typed instead.
    pub aliases: &'static [&'static str],
    /// Where it is listed.
    pub group: Group,
    /// Its arguments, for the usage line.
    pub usage: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// What to type, and what comes of it.
    pub example: &'static str,
    /// Its flags; those of a group are its commands' as well.
    pub flags: &'static [Flag],
    /// What it does. A group without this shows its help.
    pub run: Option<Run>,
    /// The commands of a group.
    pub commands: &'static [Command],
}

impl Command {
    /// A plain command; the rest is filled in with `..`.
    pub const NONE: Command = Command {
        name: "",
        aliases: &[],
        group: Group::Utility,
        usage: "",
        about: "",
        example: "",
        flags: &[],
        run: None,
        commands: &[],
    };

    fn answers_to(&self, word: &str) -> bool {
        self.name == word || self.aliases.contains(&word)
    }

    /// The command of a group that a word means: by name, by alias, or by a beginning that fits only one.
    fn find(&'static self, word: &str) -> Option<&'static Command> {
        if let Some(exact) = self.commands.iter().find(|command| command.answers_to(word)) {
            return Some(exact);
        }
        let fits = |command: &&Command| {
            command.group != Group::Hidden
                && (command.name.starts_with(word) || command.aliases.iter().any(|alias| alias.starts_with(word)))
        };
        let mut fitting = self.commands.iter().filter(fits);
        fitting.next().filter(|_| fitting.next().is_none())
    }
}

/// The command that was meant.
pub struct Found {
    /// From the program down to the command.
    pub path: Vec<&'static Command>,
    /// All words but the command's.
    pub words: Vec<String>,
    /// Whether it was asked for with `help` in front.
    wants_help: bool,
}

/// What a command line comes to.
pub enum Asked {
    /// Run this command.
    Run(Run, Box<Parsed>),
    /// Show this and end well.
    Help(String),
    /// Show this as an error and end with 1.
    Mistake(String),
}

/// Finds the command in `words`. Flags may stand before it.
pub fn find(root: &'static Command, words: &[String]) -> Found {
    let mut found = Found { path: vec![root], words: words.to_vec(), wants_help: false };
    loop {
        let Some(at) = first_argument(&found) else { return found };
        if found.path.len() == 1 && !found.wants_help && found.words[at] == "help" {
            found.words.remove(at);
            found.wants_help = true;
            continue;
        }
        let Some(next) = found.command().find(&found.words[at]) else { return found };
        found.words.remove(at);
        found.path.push(next);
    }
}

/// The first word that is neither a flag nor a flag's value. A flag that is not known here is taken to have a value.
fn first_argument(found: &Found) -> Option<usize> {
    let flags = found.flags();
    let stands_alone =
        |named: &dyn Fn(&Flag) -> bool| flags.iter().any(|flag| named(flag) && flag.kind == Kind::Switch);
    let mut at = 0;
    while let Some(word) = found.words.get(at) {
        let has_value = match word.strip_prefix('-') {
            None if word.is_empty() => false,
            None => return Some(at),
            Some("-") => return None,
            Some(_) if word.contains('=') => false,
            Some(body) => match body.strip_prefix('-') {
                Some(name) => name != "help" && !stands_alone(&|flag| flag.name == name),
                None => body.len() == 1 && body != "h" && !stands_alone(&|flag| flag.short == body.chars().next()),
            },
        };
        at += if has_value { 2 } else { 1 };
    }
    None
}

impl Found {
    /// The command itself.
    pub fn command(&self) -> &'static Command {
        // The path begins with the program.
        self.path[self.path.len() - 1]
    }

    /// Every flag that can be given.
    pub fn flags(&self) -> Vec<Flag> {
        self.path.iter().flat_map(|command| command.flags.iter().copied()).collect()
    }

    fn name(&self) -> String {
        self.path.iter().map(|command| command.name).collect::<Vec<_>>().join(" ")
    }

    /// Reads the flags and decides what is to be done.
    pub fn ask(&self) -> Asked {
        if self.wants_help {
            return Asked::Help(self.help());
        }
        if let [root] = self.path[..]
            && let Some(at) = first_argument(self)
        {
            return Asked::Mistake(unknown_command(root, &self.words[at]));
        }
        match flags::parse(&self.flags(), &self.words) {
            Ok(parsed) => match self.command().run {
                Some(run) => Asked::Run(run, Box::new(parsed)),
                None => Asked::Help(self.help()),
            },
            Err(FlagError::Help) => Asked::Help(self.help()),
            Err(FlagError::Usage(text)) => Asked::Mistake(format!("Error: {text}\n{}", self.usage())),
        }
    }

    /// The text of `--help`.
    pub fn help(&self) -> String {
        format!("{}\n\n{}", self.command().about, self.usage())
    }

    fn usage(&self) -> String {
        let command = self.command();
        let name = self.name();
        let mut out = "Usage:\n".to_owned();
        let mut say = |text: std::fmt::Arguments<'_>| {
            // Writing to a String cannot fail.
            let _ok = out.write_fmt(text);
        };
        if command.run.is_some() {
            let space = if command.usage.is_empty() { "" } else { " " };
            say(format_args!("  {name}{space}{} [flags]\n", command.usage));
        }
        if !command.commands.is_empty() {
            say(format_args!("  {name} [command]\n"));
        }
        if !command.aliases.is_empty() {
            say(format_args!("\nAliases:\n  {}, {}\n", command.name, command.aliases.join(", ")));
        }
        if !command.example.is_empty() {
            say(format_args!("\nExamples:\n"));
            command.example.lines().for_each(|line| say(format_args!("  {line}\n")));
        }
        let groups: &[(Group, &str)] =
            if self.path.len() == 1 { &GROUPS } else { &[(Group::Utility, "Available Commands")] };
        for (group, title) in groups {
            let members = || command.commands.iter().filter(|member| member.group == *group || self.path.len() > 1);
            if members().next().is_none() {
                continue;
            }
            say(format_args!("\n{title}:\n"));
            members().for_each(|member| say(format_args!("  {:<15} {}\n", member.name, member.about)));
        }
        let own: Vec<Flag> = self.path[1..].iter().flat_map(|command| command.flags).copied().collect();
        say(format_args!("\nFlags:\n{}", list_flags(&own, true)));
        if !command.commands.is_empty() {
            say(format_args!("\nUse \"{name} [command] --help\" for more information about a command.\n"));
        }
        say(format_args!(
            "\nUse \"etcdctl options\" for a list of global command-line options (applies to all commands).\n"
        ));
        out
    }
}

/// A line per flag, in the order of their names.
pub fn list_flags(flags: &[Flag], with_help: bool) -> String {
    let help = flags::switch("help", "Show this text.").or('h');
    let mut flags: Vec<&Flag> = flags.iter().chain(with_help.then_some(&help)).collect();
    flags.sort_by_key(|flag| flag.name);
    let left = |flag: &Flag| {
        let short = flag.short.map_or("    ".to_owned(), |short| format!("-{short}, "));
        let value = match flag.kind {
            Kind::Switch if flag.default == "false" => String::new(),
            Kind::Switch => format!("[={}]", flag.default),
            Kind::Text => format!("=\"{}\"", flag.default),
            Kind::Number | Kind::Duration => format!("={}", flag.default),
            Kind::List => format!("=[{}]", flag.default),
        };
        format!("  {short}--{}{value}", flag.name)
    };
    let width = flags.iter().map(|flag| left(flag).len()).max().unwrap_or(0);
    flags.iter().map(|flag| format!("{:<width$}   {}\n", left(flag), flag.help)).collect()
}

fn unknown_command(root: &Command, word: &str) -> String {
    let mut out = format!("Error: unknown command {:?} for {:?}\n", word, root.name);
    let suggestions: Vec<_> = root
        .commands
        .iter()
        .filter(|command| command.group != Group::Hidden)
        .map(|command| command.name)
        .filter(|name| distance(word, name) <= 2 || name.starts_with(&word.to_lowercase()))
        .collect();
    if !suggestions.is_empty() {
        out.push_str("\nDid you mean this?\n");
        suggestions.iter().for_each(|name| out.push_str(&format!("\t{name}\n")));
        out.push('\n');
    }
    out + &format!("Run '{} --help' for usage.\n", root.name)
}

/// How many letters must be added, removed or replaced to get from one word to the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(!a.eq_ignore_ascii_case(b));
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::ROOT;

    fn ask(line: &str) -> (String, Asked) {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let found = find(&ROOT, &words);
        (found.name(), found.ask())
    }

    fn mistake(line: &str) -> String {
        match ask(line).1 {
            Asked::Mistake(text) => text,
            _ => panic!("{line} is no mistake"),
        }
    }

    #[test]
    fn a_command_is_found_between_its_flags_and_by_a_clear_beginning() {
        assert_eq!(ask("-w json get --prefix a").0, "etcdctl get");
        assert_eq!(ask("--endpoints x member list").0, "etcdctl member list");
        assert_eq!(ask("mem li").0, "etcdctl member list");
        assert_eq!(ask("endpoint --cluster health").0, "etcdctl endpoint health");
        assert_eq!(ask("compact 3").0, "etcdctl compaction");
        assert_eq!(ask("-- get").0, "etcdctl");
    }

    #[test]
    fn an_unknown_command_is_answered_with_what_is_close_to_it() {
        assert_eq!(
            mistake("set a b"),
            "Error: unknown command \"set\" for \"etcdctl\"\n\nDid you mean this?\n\tget\n\tput\n\tdel\n\tuser\n\nRun 'etcdctl --help' for usage.\n"
        );
        assert_eq!(mistake("ls"), "Error: unknown command \"ls\" for \"etcdctl\"\nRun 'etcdctl --help' for usage.\n");
        assert!(mistake("--bogus get a").contains("\"a\" for"), "an unknown flag is taken to have a value");
    }

    #[test]
    fn a_group_alone_shows_its_help_and_a_wrong_flag_the_usage() {
        assert!(matches!(ask("member nosuch").1, Asked::Help(text) if text.contains("promote")));
        assert!(mistake("put a --bogus").starts_with("Error: unknown flag: --bogus\nUsage:\n  etcdctl put "));
    }

    /// Every command can be explained: it says what it does, and shows an example.
    #[test]
    fn every_command_has_help_with_an_example() {
        fn walk(command: &Command) {
            for member in command.commands {
                assert!(!member.about.is_empty(), "{}", member.name);
                let is_hidden = member.group == Group::Hidden;
                assert!(member.run.is_none() || is_hidden || !member.example.is_empty(), "{}", member.name);
                walk(member);
            }
        }
        walk(&ROOT);
    }
}
