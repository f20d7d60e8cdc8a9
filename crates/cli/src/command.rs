//! The tree of commands: finding one, and explaining it. By the rules of Go's `cobra`, which scripts and fingers know.
//!
//! A tool with a command `options` lists its global flags there; others show them in the help of every command.

use crate::failure::Failure;
use crate::flags::{self, Flag, FlagError, Kind, Parsed};
use std::fmt::Write as _;

/// What a command does, with what its tool hands to it.
pub type Run<C> = fn(&C) -> Result<(), Failure>;

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

impl Group {
    /// Whether its commands stand under a heading of their own.
    fn has_title(self) -> bool {
        !matches!(self, Group::Utility | Group::Hidden)
    }
}

/// The headings, in the order of the help. A tool without the first four has no headings.
const GROUPS: [(Group, &str); 5] = [
    (Group::KeyValue, "Key-value commands"),
    (Group::Maintenance, "Cluster maintenance commands"),
    (Group::Concurrency, "Concurrency commands"),
    (Group::Auth, "Authentication commands"),
    (Group::Utility, "Utility commands"),
];

/// One command, or a group of commands.
#[derive(Debug)]
pub struct Command<C: 'static> {
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
    /// Which of them must be given.
    pub required: &'static [&'static str],
    /// What it does. A group without this shows its help.
    pub run: Option<Run<C>>,
    /// The commands of a group.
    pub commands: &'static [Command<C>],
}

impl<C> Command<C> {
    /// A plain command; the rest is filled in with `..`.
    pub const NONE: Self = Command {
        name: "",
        aliases: &[],
        group: Group::Utility,
        usage: "",
        about: "",
        example: "",
        flags: &[],
        required: &[],
        run: None,
        commands: &[],
    };

    fn answers_to(&self, word: &str) -> bool {
        self.name == word || self.aliases.contains(&word)
    }

    /// The command of a group that a word means: by name, by alias, or by a beginning that fits only one.
    fn find(&'static self, word: &str) -> Option<&'static Self> {
        if let Some(exact) = self.commands.iter().find(|command| command.answers_to(word)) {
            return Some(exact);
        }
        let fits = |command: &&Self| {
            command.group != Group::Hidden
                && (command.name.starts_with(word) || command.aliases.iter().any(|alias| alias.starts_with(word)))
        };
        let mut fitting = self.commands.iter().filter(fits);
        fitting.next().filter(|_| fitting.next().is_none())
    }
}

/// The command that was meant.
pub struct Found<C: 'static> {
    /// From the program down to the command.
    pub path: Vec<&'static Command<C>>,
    /// All words but the command's.
    pub words: Vec<String>,
    /// Whether it was asked for with `help` in front.
    wants_help: bool,
}

/// What a command line comes to.
pub enum Asked<C> {
    /// Run this command.
    Run(Run<C>, Box<Parsed>),
    /// Show this and end well.
    Help(String),
    /// Show this as an error and end with 1.
    Mistake(String),
}

/// Finds the command in `words`. Flags may stand before it.
pub fn find<C>(root: &'static Command<C>, words: &[String]) -> Found<C> {
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
fn first_argument<C>(found: &Found<C>) -> Option<usize> {
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

impl<C> Found<C> {
    /// The command itself.
    pub fn command(&self) -> &'static Command<C> {
        // The path begins with the program.
        self.path[self.path.len() - 1]
    }

    /// Every flag that can be given.
    pub fn flags(&self) -> Vec<Flag> {
        self.path.iter().flat_map(|command| command.flags.iter().copied()).collect()
    }

    /// What was typed to get there, in full.
    pub fn name(&self) -> String {
        self.path.iter().map(|command| command.name).collect::<Vec<_>>().join(" ")
    }

    /// Reads the flags and decides what is to be done.
    pub fn ask(&self) -> Asked<C> {
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
                Some(run) => match self.missing(&parsed) {
                    None => Asked::Run(run, Box::new(parsed)),
                    Some(missing) => self.mistake(&format!("required flag(s) {missing} not set")),
                },
                None => Asked::Help(self.help()),
            },
            Err(FlagError::Help) => Asked::Help(self.help()),
            Err(FlagError::Usage(text)) => self.mistake(&text),
        }
    }

    fn mistake(&self, text: &str) -> Asked<C> {
        Asked::Mistake(format!("Error: {text}\n{}", self.usage()))
    }

    /// The required flags that were not given, in quotes.
    fn missing(&self, parsed: &Parsed) -> Option<String> {
        let missing: Vec<_> =
            self.command().required.iter().filter(|name| !parsed.has(name)).map(|name| format!("{name:?}")).collect();
        if missing.is_empty() { None } else { Some(missing.join(", ")) }
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
        let has_groups = self.path.len() == 1 && command.commands.iter().any(|member| member.group.has_title());
        let groups: &[(Group, &str)] = if has_groups { &GROUPS } else { &[(Group::Utility, "Available Commands")] };
        for (group, title) in groups {
            let belongs = |member: &&Command<C>| match has_groups {
                true => member.group == *group,
                false => member.group != Group::Hidden,
            };
            let members = || command.commands.iter().filter(belongs);
            if members().next().is_none() {
                continue;
            }
            say(format_args!("\n{title}:\n"));
            members().for_each(|member| say(format_args!("  {:<15} {}\n", member.name, member.about)));
        }
        let lists_options = self.path[0].commands.iter().any(|member| member.name == "options");
        let own_from = if lists_options { 1 } else { self.path.len() - 1 };
        let flags_of =
            |path: &[&Command<C>]| path.iter().flat_map(|command| command.flags).copied().collect::<Vec<Flag>>();
        let (inherited, own) = (flags_of(&self.path[..own_from]), flags_of(&self.path[own_from..]));
        say(format_args!("\nFlags:\n{}", list_flags(&own, true)));
        if !lists_options && !inherited.is_empty() {
            say(format_args!("\nGlobal Flags:\n{}", list_flags(&inherited, false)));
        }
        if !command.commands.is_empty() {
            say(format_args!("\nUse \"{name} [command] --help\" for more information about a command.\n"));
        }
        if lists_options {
            say(format_args!(
                "\nUse \"{} options\" for a list of global command-line options (applies to all commands).\n",
                self.path[0].name
            ));
        }
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
            Kind::Number | Kind::Unsigned | Kind::Duration => format!("={}", flag.default),
            Kind::List => format!("=[{}]", flag.default),
        };
        format!("  {short}--{}{value}", flag.name)
    };
    let width = flags.iter().map(|flag| left(flag).len()).max().unwrap_or(0);
    flags.iter().map(|flag| format!("{:<width$}   {}\n", left(flag), flag.help)).collect()
}

fn unknown_command<C>(root: &Command<C>, word: &str) -> String {
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
