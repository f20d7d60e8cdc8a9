//! Command line and environment, by the rules of Go's `flag` package.

use super::check::ConfigError;
use super::flags::{FLAGS, Flag, Typed};
use super::notice::Notice;
use std::collections::{BTreeMap, BTreeSet};

/// Why a command line could not be taken in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ArgumentError {
    /// `-h` or `--help`.
    Help,
    /// Anything else; the text is Go's.
    Usage(String),
}

/// What a command line held.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// The flags that were given.
    pub given: BTreeSet<&'static str>,
    /// The first argument that is no flag.
    pub stray: Option<String>,
}

/// Puts every flag of a command line into `typed`. Parsing ends at the first argument that is no flag, as in Go.
pub(super) fn parse(arguments: &[String], typed: &mut Typed) -> Result<Parsed, ArgumentError> {
    let usage = |text: String| Err(ArgumentError::Usage(text));
    let mut parsed = Parsed::default();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let Some(body) = argument.strip_prefix('-').filter(|body| !body.is_empty()) else {
            parsed.stray = Some(argument.clone());
            break;
        };
        if body == "-" {
            parsed.stray = arguments.next().cloned();
            break;
        }
        let body = body.strip_prefix('-').unwrap_or(body);
        if body.starts_with(['-', '=']) {
            return usage(format!("bad flag syntax: {argument}"));
        }
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        };
        let Some(flag) = Flag::named(name) else {
            if name == "h" || name == "help" {
                return Err(ArgumentError::Help);
            }
            return usage(format!("flag provided but not defined: -{name}"));
        };
        let value = match value {
            Some(value) => value,
            None if flag.slot.stands_alone() => "true",
            None => match arguments.next() {
                Some(value) => value.as_str(),
                None => return usage(format!("flag needs an argument: -{name}")),
            },
        };
        if let Err(reason) = flag.set(typed, value) {
            return usage(if flag.slot.stands_alone() {
                format!("invalid boolean value {value:?} for -{name}: {reason}")
            } else {
                format!("invalid value {value:?} for flag -{name}: {reason}")
            });
        }
        parsed.given.insert(flag.name);
    }
    Ok(parsed)
}

/// Puts every `ETCD_*` variable into `typed` whose flag was not given.
pub(super) fn apply_environment(
    environment: &BTreeMap<String, String>,
    given: &BTreeSet<&'static str>,
    typed: &mut Typed,
    notices: &mut Vec<Notice>,
) -> Result<(), ConfigError> {
    let mut used = BTreeSet::new();
    if let Some(value) = environment.get("ETCD_VERSION").filter(|value| !value.is_empty()) {
        notices.push(Notice::SpecialVariable { name: "ETCD_VERSION".into(), value: value.clone() });
        used.insert("ETCD_VERSION".to_owned());
    }
    // Flags in the order of their names, which is the order of etcd's log lines.
    let mut by_name: Vec<_> = FLAGS.iter().filter(|flag| !given.contains(flag.name)).collect();
    by_name.sort_by_key(|flag| flag.name);
    for flag in by_name {
        let variable = flag.variable();
        let Some(value) = environment.get(&variable).filter(|value| !value.is_empty()) else { continue };
        if !used.insert(variable.clone()) {
            continue;
        }
        if let Err(reason) = flag.set(typed, value) {
            return Err(ConfigError::Environment { variable, value: value.clone(), reason });
        }
        notices.push(Notice::Environment { name: variable, value: value.clone() });
    }
    for (name, value) in environment.iter().filter(|(name, _)| !used.contains(*name)) {
        if FLAGS.iter().any(|flag| given.contains(flag.name) && flag.variable() == *name) {
            return Err(ConfigError::ShadowedVariable(name.clone()));
        }
        // ETCD_UNSUPPORTED_ARCH and ETCD_VERIFY are looked at elsewhere; etcd warns about them all the same.
        if name.starts_with("ETCD_") && !value.is_empty() {
            notices.push(Notice::UnknownVariable(format!("{name}={value}")));
        }
    }
    Ok(())
}

/// A truth value as Go's `strconv.ParseBool` reads it.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A whole number as Go's flags read it: decimal, or with 0x, 0o, 0b or a leading 0 in front.
pub(super) fn parse_int(text: &str) -> Result<i128, &'static str> {
    const SYNTAX: &str = "parse error";
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0o") => (8, &lower[2..]),
        Some("0b") => (2, &lower[2..]),
        Some(two) if two.starts_with('0') => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    if digits.is_empty() || digits.starts_with(['+', '-']) || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(SYNTAX);
    }
    let number = i128::from_str_radix(digits, radix).map_err(|_| "value out of range")?;
    Ok(if negative { -number } else { number })
}
