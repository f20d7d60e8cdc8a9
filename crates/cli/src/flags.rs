//! Flags: declared in tables, read by the rules of Go's `pflag`.

use crate::go;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing, or `=true` and `=false`.
    Switch,
    /// A whole number.
    Number,
    /// A whole number that is not negative.
    Unsigned,
    /// Any text.
    Text,
    /// A duration in Go's form.
    Duration,
    /// Texts with commas between them; given again, they add up.
    List,
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Its name, without dashes.
    pub name: &'static str,
    /// Its one-letter name.
    pub short: Option<char>,
    /// What it takes.
    pub kind: Kind,
    /// What it is when it is not given, as one would type it.
    pub default: &'static str,
    /// For `--help`.
    pub help: &'static str,
}

/// A switch that is off.
pub const fn switch(name: &'static str, help: &'static str) -> Flag {
    Flag { name, short: None, kind: Kind::Switch, default: "false", help }
}

/// A flag with a text.
pub const fn text(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, short: None, kind: Kind::Text, default, help }
}

/// A flag with a number.
pub const fn number(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, short: None, kind: Kind::Number, default, help }
}

/// A flag with a number that is not negative.
pub const fn unsigned(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, short: None, kind: Kind::Unsigned, default, help }
}

/// A flag with a duration.
pub const fn duration(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, short: None, kind: Kind::Duration, default, help }
}

impl Flag {
    /// The same flag with a one-letter name.
    pub const fn or(self, short: char) -> Flag {
        Flag { short: Some(short), ..self }
    }

    /// As it is named in errors.
    fn spelled(&self) -> String {
        match self.short {
            Some(short) => format!("-{short}, --{}", self.name),
            None => format!("--{}", self.name),
        }
    }

    /// What a text means for this flag, or why it means nothing.
    pub fn read(&self, text: &str) -> Result<Value, String> {
        Ok(match self.kind {
            Kind::Switch => Value::Switch(go::parse_bool(text)?),
            Kind::Number => Value::Number(go::parse_int(text, 0)?),
            Kind::Unsigned => Value::Unsigned(go::parse_uint(text, 0)?),
            Kind::Text => Value::Text(text.to_owned()),
            Kind::Duration => Value::Duration(go::parse_duration(text)?),
            Kind::List if text.is_empty() => Value::List(Vec::new()),
            Kind::List => Value::List(text.split(',').map(str::to_owned).collect()),
        })
    }
}

/// The value of a flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Of a switch.
    Switch(bool),
    /// Of a number.
    Number(i64),
    /// Of a number that is not negative.
    Unsigned(u64),
    /// Of a text.
    Text(String),
    /// Of a duration.
    Duration(Duration),
    /// Of a list.
    List(Vec<String>),
}

/// What a command line said.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    values: BTreeMap<&'static str, Value>,
    given: BTreeSet<&'static str>,
    /// What is no flag.
    pub args: Vec<String>,
    /// How many of `args` stood before `--`, if there was one.
    pub before_dashes: Option<usize>,
}

/// Why a command line makes no sense, in pflag's words.
#[derive(Debug, PartialEq, Eq)]
pub enum FlagError {
    /// `-h` or `--help`.
    Help,
    /// Anything else.
    Usage(String),
}

/// Reads flags and arguments, which may be mixed.
pub fn parse(flags: &[Flag], words: &[String]) -> Result<Parsed, FlagError> {
    let mut parsed = Parsed::default();
    for flag in flags {
        let Ok(default) = flag.read(flag.default) else { unreachable!("the default of {} is no value", flag.name) };
        parsed.values.insert(flag.name, default);
    }
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--" {
            parsed.before_dashes = Some(parsed.args.len());
            parsed.args.extend(words.by_ref().cloned());
        } else if let Some(body) = word.strip_prefix("--") {
            parse_long(flags, body, &mut words, &mut parsed)?;
        } else if let Some(body) = word.strip_prefix('-').filter(|body| !body.is_empty()) {
            parse_short(flags, body, &mut words, &mut parsed)?;
        } else {
            parsed.args.push(word.clone());
        }
    }
    Ok(parsed)
}

fn usage<T>(text: String) -> Result<T, FlagError> {
    Err(FlagError::Usage(text))
}

fn parse_long<'w>(
    flags: &[Flag],
    body: &str,
    words: &mut impl Iterator<Item = &'w String>,
    parsed: &mut Parsed,
) -> Result<(), FlagError> {
    let (name, value) = match body.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (body, None),
    };
    if name.is_empty() || name.starts_with('-') {
        return usage(format!("bad flag syntax: --{body}"));
    }
    let Some(flag) = flags.iter().find(|flag| flag.name == name) else {
        return if name == "help" { Err(FlagError::Help) } else { usage(format!("unknown flag: --{name}")) };
    };
    match value {
        Some(value) => parsed.set(flag, value),
        None if flag.kind == Kind::Switch => parsed.set(flag, "true"),
        None => match words.next() {
            Some(value) => parsed.set(flag, value),
            None => usage(format!("flag needs an argument: --{name}")),
        },
    }
}

/// One-letter flags, which may stand together: `-iw json`.
fn parse_short<'w>(
    flags: &[Flag],
    body: &str,
    words: &mut impl Iterator<Item = &'w String>,
    parsed: &mut Parsed,
) -> Result<(), FlagError> {
    let mut letters = body.chars();
    while let Some(letter) = letters.next() {
        let Some(flag) = flags.iter().find(|flag| flag.short == Some(letter)) else {
            return match letter {
                'h' => Err(FlagError::Help),
                _ => usage(format!("unknown shorthand flag: '{letter}' in -{body}")),
            };
        };
        let rest = letters.as_str();
        if let Some(value) = rest.strip_prefix('=') {
            return parsed.set(flag, value);
        }
        if flag.kind == Kind::Switch {
            parsed.set(flag, "true")?;
            continue;
        }
        if !rest.is_empty() {
            return parsed.set(flag, rest);
        }
        return match words.next() {
            Some(value) => parsed.set(flag, value),
            None => usage(format!("flag needs an argument: '{letter}' in -{body}")),
        };
    }
    Ok(())
}

impl Parsed {
    fn set(&mut self, flag: &Flag, text: &str) -> Result<(), FlagError> {
        let value = match flag.read(text) {
            Ok(value) => value,
            Err(reason) => {
                let text = go::quote(text.as_bytes());
                return usage(format!("invalid argument {text} for \"{}\" flag: {reason}", flag.spelled()));
            }
        };
        let is_first = self.given.insert(flag.name);
        match (self.values.get_mut(flag.name), value) {
            (Some(Value::List(so_far)), Value::List(more)) if !is_first => so_far.extend(more),
            (_, value) => drop(self.values.insert(flag.name, value)),
        }
        Ok(())
    }

    /// Gives a flag a value that was not typed (from the environment).
    pub fn preset(&mut self, flag: &Flag, value: Value) {
        self.values.insert(flag.name, value);
    }

    /// Whether the flag was typed.
    pub fn has(&self, name: &str) -> bool {
        self.given.contains(name)
    }

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

    /// A number that is not negative.
    pub fn unsigned(&self, name: &str) -> u64 {
        let Value::Unsigned(value) = self.value(name) else { panic!("--{name} is no unsigned number") };
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
        switch("prefix", ""),
        switch("interactive", "").or('i'),
        number("limit", "0", ""),
        text("write-out", "simple", "").or('w'),
        Flag { name: "endpoints", short: None, kind: Kind::List, default: "a,b", help: "" },
    ];

    fn parsed(line: &str) -> Result<Parsed, FlagError> {
        parse(FLAGS, &line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn flags_and_arguments_mix_until_two_dashes() {
        let parsed = parsed("a --prefix b --limit=0x10 -iw json -- -x c").unwrap();
        assert!(parsed.is("prefix") && parsed.is("interactive"));
        assert_eq!((parsed.number("limit"), parsed.text("write-out")), (16, "json"));
        assert_eq!((parsed.args.join(" ").as_str(), parsed.before_dashes), ("a b -x c", Some(2)));
        assert!(parsed.has("prefix") && !parsed.has("endpoints"));
    }

    #[test]
    fn a_list_replaces_its_default_and_then_adds_up() {
        assert_eq!(parsed("").unwrap().list("endpoints"), ["a", "b"]);
        assert_eq!(parsed("--endpoints c --endpoints d,e").unwrap().list("endpoints"), ["c", "d", "e"]);
        assert!(parsed("--endpoints=").unwrap().list("endpoints").is_empty());
    }

    #[test]
    fn mistakes_are_named_in_the_words_that_people_know() {
        for (line, words) in [
            ("--nosuch", "unknown flag: --nosuch"),
            ("-x", "unknown shorthand flag: 'x' in -x"),
            ("-ix", "unknown shorthand flag: 'x' in -ix"),
            ("--limit", "flag needs an argument: --limit"),
            ("-w", "flag needs an argument: 'w' in -w"),
            ("--=x", "bad flag syntax: --=x"),
            ("--limit=x", r#"invalid argument "x" for "--limit" flag: strconv.ParseInt: parsing "x": invalid syntax"#),
        ] {
            assert_eq!(parsed(line).unwrap_err(), FlagError::Usage(words.to_owned()));
        }
        assert_eq!(parsed("-h").unwrap_err(), FlagError::Help);
    }
}
