//! Flags by the rules of Go's `flag` package and of `urfave/cli`, which scripts for the v2 tool know: one dash is as good
//! as two, names have no short form but may have several, and a command's flags are looked for among its arguments.

use cli::flags::{Kind, Value};
use cli::go;
use std::collections::BTreeMap;
use std::time::Duration;

/// One flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Its names, without dashes; the first is the one that commands ask for.
    pub names: &'static [&'static str],
    /// What it takes.
    pub kind: Kind,
    /// What it is when it is not given, as one would type it.
    pub default: &'static str,
    /// What stands for its value in the help.
    pub placeholder: &'static str,
    /// For the help.
    pub help: &'static str,
}

/// A switch.
pub const fn switch(names: &'static [&'static str], help: &'static str) -> Flag {
    Flag { names, kind: Kind::Switch, default: "false", placeholder: "", help }
}

/// A flag with a text.
pub const fn text(names: &'static [&'static str], default: &'static str, help: &'static str) -> Flag {
    Flag { names, kind: Kind::Text, default, placeholder: "value", help }
}

/// A flag with a number, which is 0 by default.
pub const fn number(names: &'static [&'static str], help: &'static str) -> Flag {
    Flag { names, kind: Kind::Number, default: "0", placeholder: "value", help }
}

/// A flag with a duration.
pub const fn duration(names: &'static [&'static str], default: &'static str, help: &'static str) -> Flag {
    Flag { names, kind: Kind::Duration, default, placeholder: "value", help }
}

/// A flag that may be given several times.
pub const fn list(names: &'static [&'static str], help: &'static str) -> Flag {
    Flag { names, kind: Kind::List, default: "", placeholder: "value", help }
}

impl Flag {
    /// What a text means for this flag; else Go's word for what is wrong with it.
    fn read(&self, text: &str) -> Result<Value, &'static str> {
        const SYNTAX: &str = "parse error";
        Ok(match self.kind {
            Kind::Switch => Value::Switch(go::parse_bool(text).map_err(|_| SYNTAX)?),
            Kind::Number => Value::Number(
                go::parse_int(text, 0)
                    .map_err(|reason| if reason.ends_with("out of range") { "value out of range" } else { SYNTAX })?,
            ),
            Kind::Unsigned => Value::Unsigned(go::parse_uint(text, 0).map_err(|_| SYNTAX)?),
            Kind::Text => Value::Text(text.to_owned()),
            // No timeout is negative, and to wait for less than nothing is to wait for nothing.
            Kind::Duration => match text.strip_prefix('-') {
                Some(amount) => go::parse_duration(amount).map(|_| Value::Duration(Duration::ZERO)),
                None => go::parse_duration(text).map(Value::Duration),
            }
            .map_err(|_| SYNTAX)?,
            Kind::List => Value::List(vec![text.to_owned()]),
        })
    }
}

/// What a command line said.
#[derive(Debug, Default)]
pub struct Parsed {
    values: BTreeMap<&'static str, Value>,
    /// What is no flag.
    pub args: Vec<String>,
}

/// Why a command line makes no sense, in the words of Go's `flag` and of `urfave/cli`.
#[derive(Debug, PartialEq, Eq)]
pub enum FlagError {
    /// A flag is not known or its value is no value.
    Usage(String),
    /// The same flag by two of its names.
    TwoForms(String),
}

impl FlagError {
    /// The error itself.
    pub fn text(&self) -> &str {
        match self {
            FlagError::Usage(text) | FlagError::TwoForms(text) => text,
        }
    }
}

/// Reads flags up to the first word that is none.
pub fn parse(flags: &[Flag], words: &[String]) -> Result<Parsed, FlagError> {
    let mut reading = Reading { typed: Vec::new(), parsed: Parsed::default() };
    for flag in flags {
        let default = match flag.kind {
            Kind::List => Ok(Value::List(Vec::new())),
            _ => flag.read(flag.default),
        };
        let Ok(default) = default else { unreachable!("the default of {:?} is no value", flag.names) };
        reading.parsed.values.insert(flag.names[0], default);
    }
    let done = reading.read(flags, words);
    // Go's parser has already stopped at its own error when urfave/cli looks for two names, and the latter comes first.
    for flag in flags {
        let mut typed = flag.names.iter().filter(|name| reading.typed.contains(name));
        if let (Some(first), Some(second)) = (typed.next(), typed.next()) {
            return Err(FlagError::TwoForms(format!("Cannot use two forms of the same flag: {second} {first}")));
        }
    }
    done.map(|()| reading.parsed).map_err(FlagError::Usage)
}

struct Reading {
    /// The names as they were typed.
    typed: Vec<&'static str>,
    parsed: Parsed,
}

impl Reading {
    fn read(&mut self, flags: &[Flag], words: &[String]) -> Result<(), String> {
        let mut words = words.iter();
        while let Some(word) = words.clone().next() {
            let Some(body) = word.strip_prefix('-').filter(|body| !body.is_empty()) else { break };
            words.next();
            if body == "-" {
                break;
            }
            let body = body.strip_prefix('-').unwrap_or(body);
            if body.is_empty() || body.starts_with(['-', '=']) {
                return Err(format!("bad flag syntax: {word}"));
            }
            let (name, value) = match body.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (body, None),
            };
            let known = flags.iter().find_map(|flag| Some((flag, *flag.names.iter().find(|known| **known == name)?)));
            let Some((flag, name)) = known else { return Err(format!("flag provided but not defined: -{name}")) };
            let value = match (flag.kind, value) {
                (_, Some(value)) => value,
                (Kind::Switch, None) => "true",
                (_, None) => words.next().ok_or_else(|| format!("flag needs an argument: -{name}"))?,
            };
            self.set(flag, name, value)?;
        }
        self.parsed.args = words.cloned().collect();
        Ok(())
    }

    fn set(&mut self, flag: &Flag, name: &'static str, text: &str) -> Result<(), String> {
        let value = flag.read(text).map_err(|reason| {
            let text = go::quote(text.as_bytes());
            match flag.kind {
                Kind::Switch => format!("invalid boolean value {text} for -{name}: {reason}"),
                _ => format!("invalid value {text} for flag -{name}: {reason}"),
            }
        })?;
        self.typed.push(name);
        match (self.parsed.values.get_mut(flag.names[0]), value) {
            (Some(Value::List(so_far)), Value::List(more)) => so_far.extend(more),
            (_, value) => drop(self.parsed.values.insert(flag.names[0], value)),
        }
        Ok(())
    }
}

/// Moves a command's flags in front of its arguments, as `urfave/cli` does: a word behind a flag without `=` goes with
/// it, even behind a switch; unknown flags stay where they are.
pub fn reorder(flags: &[Flag], words: &[String]) -> Vec<String> {
    let (mut in_front, mut behind) = (Vec::new(), Vec::new());
    let mut may_be_value = false;
    for (at, word) in words.iter().enumerate() {
        if is_flag(flags, word) {
            may_be_value = !word.contains('=');
            in_front.push(word.clone());
        } else if std::mem::take(&mut may_be_value) {
            in_front.push(word.clone());
        } else if word == "--" {
            behind.insert(0, word.clone());
            behind.extend_from_slice(&words[at + 1..]);
            break;
        } else {
            behind.push(word.clone());
        }
    }
    in_front.append(&mut behind);
    in_front
}

fn is_flag(flags: &[Flag], word: &str) -> bool {
    let Some(body) = word.strip_prefix('-').filter(|body| !matches!(*body, "" | "-")) else { return false };
    // Of `--name` two dashes are taken away, wherever they are found, and of what is left one more.
    let name = match body.strip_prefix('-') {
        Some(name) => name.strip_prefix('-').unwrap_or(name),
        None => body,
    };
    let name = name.split('=').next().unwrap_or_default();
    flags.iter().any(|flag| flag.names.contains(&name))
}

impl Parsed {
    fn value(&self, name: &str) -> &Value {
        let Some(value) = self.values.get(name) else { panic!("--{name} is no flag of this command") };
        value
    }

    /// A switch.
    pub fn is(&self, name: &str) -> bool {
        let Value::Switch(value) = self.value(name) else { panic!("--{name} is no switch") };
        *value
    }

    /// A number.
    pub fn number(&self, name: &str) -> i64 {
        let Value::Number(value) = self.value(name) else { panic!("--{name} is no number") };
        *value
    }

    /// A text.
    pub fn text(&self, name: &str) -> &str {
        let Value::Text(value) = self.value(name) else { panic!("--{name} is no text") };
        value
    }

    /// A duration.
    pub fn duration(&self, name: &str) -> Duration {
        let Value::Duration(value) = self.value(name) else { panic!("--{name} is no duration") };
        *value
    }

    /// A list.
    pub fn list(&self, name: &str) -> &[String] {
        let Value::List(value) = self.value(name) else { panic!("--{name} is no list") };
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        switch(&["recursive", "r"], ""),
        switch(&["quorum", "q"], ""),
        number(&["ttl"], ""),
        list(&["roles"], ""),
        duration(&["timeout"], "2s", ""),
    ];

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn parsed(line: &str) -> Result<Parsed, FlagError> {
        parse(FLAGS, &reorder(FLAGS, &words(line)))
    }

    #[test]
    fn flags_may_follow_arguments_and_one_dash_is_enough() {
        let parsed = parsed("/a -ttl 5 b --roles x -roles=y,z").unwrap();
        assert_eq!((parsed.number("ttl"), parsed.list("roles").join(" ").as_str()), (5, "x y,z"));
        assert_eq!(parsed.args, ["/a", "b"]);
        assert_eq!(parsed.duration("timeout"), Duration::from_secs(2));
    }

    /// What `urfave/cli` takes for the value of a switch ends the flags.
    #[test]
    fn a_word_behind_a_switch_stays_with_it() {
        let parsed = parsed("-r /e -- sh -c x").unwrap();
        assert!(parsed.is("recursive"));
        assert_eq!(parsed.args, ["/e", "--", "sh", "-c", "x"]);
    }

    #[test]
    fn behind_two_dashes_nothing_is_a_flag() {
        assert_eq!(parsed("/a -- -5").unwrap().args, ["/a", "-5"]);
        assert_eq!(parsed("-- /a --ttl").unwrap().args, ["/a", "--ttl"]);
        assert_eq!(parsed("/a -5").unwrap().args, ["/a", "-5"], "an unknown flag among arguments is an argument");
    }

    #[test]
    fn mistakes_are_named_in_gos_words() {
        for (line, text) in [
            ("-x", "flag provided but not defined: -x"),
            ("--ttl", "flag needs an argument: -ttl"),
            ("--ttl x", "invalid value \"x\" for flag -ttl: parse error"),
            ("--ttl 99999999999999999999", "invalid value \"99999999999999999999\" for flag -ttl: value out of range"),
            ("--timeout 5", "invalid value \"5\" for flag -timeout: parse error"),
            ("--quorum=x", "invalid boolean value \"x\" for -quorum: parse error"),
            ("---ttl 3", "bad flag syntax: ---ttl"),
        ] {
            assert_eq!(parsed(line).unwrap_err(), FlagError::Usage(text.to_owned()));
        }
        let two = "Cannot use two forms of the same flag: r recursive";
        assert_eq!(parsed("-r --recursive").unwrap_err(), FlagError::TwoForms(two.to_owned()));
    }
}
