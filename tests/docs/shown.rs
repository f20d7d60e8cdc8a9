//! What a document shows, and what came.

use std::collections::HashMap;

/// IDs that a document shows, and those that stand for them in this run.
#[derive(Clone, Debug, Default)]
pub struct Names(HashMap<String, String>);

impl Names {
    /// A command with this run's IDs.
    pub fn translate(&self, command: &str) -> String {
        self.0.iter().fold(command.to_owned(), |command, (shown, own)| command.replace(shown, own))
    }

    /// Whether output is as shown: the same lines, in any order, and in them
    /// - `…` stands for anything,
    /// - an ID (16 hexadecimal digits, or some less and blanks in their place) for itself or another one, but always the same,
    /// - a time for any time, a duration for any duration, and, in JSON, a number for any number of its kind.
    ///
    /// If so, new IDs are remembered.
    pub fn fit(&mut self, shown: &[String], came: &[String]) -> bool {
        let shown: Vec<String> = shown.iter().flat_map(|line| apart(line)).collect();
        let came: Vec<String> = came.iter().flat_map(|line| apart(line)).collect();
        if shown.len() != came.len() {
            return false;
        }
        match assign(&shown, &came, &mut vec![false; came.len()], self) {
            Some(names) => {
                *self = names;
                true
            }
            None => false,
        }
    }

    fn fit_line(&self, shown: &str, came: &str) -> Option<Names> {
        let mut names = self.clone();
        names.fit_parts(shown, came, shown.starts_with('{')).then_some(names)
    }

    fn fit_parts(&mut self, shown: &str, came: &str, is_json: bool) -> bool {
        if let Some(rest) = shown.strip_prefix('…') {
            let ends = came.char_indices().map(|(at, _)| at).chain([came.len()]);
            for at in ends {
                let mut names = self.clone();
                if names.fit_parts(rest, &came[at..], is_json) {
                    *self = names;
                    return true;
                }
            }
            return false;
        }
        let Some(first) = shown.chars().next() else { return came.is_empty() };
        let word = word(shown);
        // etcd's tools fill up an ID that is short by blanks.
        let came = if kind(word) == Kind::Id { came.trim_start_matches(' ') } else { came };
        let other = self::word(came);
        if word.is_empty() {
            return came
                .strip_prefix(first)
                .is_some_and(|came| self.fit_parts(&shown[first.len_utf8()..], came, is_json));
        }
        let fits = match (kind(word), kind(other)) {
            (Kind::Id, Kind::Id) => self.bind(word, other),
            (Kind::Time, Kind::Time) | (Kind::Duration, Kind::Duration) => true,
            (Kind::Number | Kind::Fraction, Kind::Number | Kind::Fraction) if is_json => true,
            _ => word == other,
        };
        fits && self.fit_parts(&shown[word.len()..], &came[other.len()..], is_json)
    }

    /// Whether an ID may stand for the one that is shown.
    fn bind(&mut self, shown: &str, own: &str) -> bool {
        match self.0.get(shown) {
            Some(known) => known == own,
            None if self.0.values().any(|known| known == own) => false,
            None => self.0.insert(shown.to_owned(), own.to_owned()).is_none(),
        }
    }
}

/// Finds for each line that is shown one that came.
fn assign(shown: &[String], came: &[String], taken: &mut Vec<bool>, names: &Names) -> Option<Names> {
    let Some((first, rest)) = shown.split_first() else { return Some(names.clone()) };
    for at in 0..came.len() {
        if taken[at] {
            continue;
        }
        if let Some(names) = names.fit_line(first, &came[at]) {
            taken[at] = true;
            if let Some(all) = assign(rest, came, taken, &names) {
                return Some(all);
            }
            taken[at] = false;
        }
    }
    None
}

/// A list in JSON, an element per line: their order is that of IDs, which are others each time.
fn apart(line: &str) -> Vec<String> {
    let list = line.strip_prefix(r#"{"members":["#).and_then(|rest| rest.strip_suffix("]}"));
    let followers = line.split_once(r#","followers":{"#);
    match (list, followers) {
        (Some(list), _) => list.replace("},{", "}\n{").lines().map(str::to_owned).collect(),
        (_, Some((leader, followers))) => {
            let each = followers.replace("}},\"", "}}\n\"");
            [leader.to_owned()]
                .into_iter()
                .chain(each.lines().map(|line| format!("{{{}", line.trim_end_matches('}'))))
                .collect()
        }
        _ => vec![line.to_owned()],
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Id,
    Time,
    Duration,
    Number,
    Fraction,
    Other,
}

/// The letters, digits, and signs between digits, with which a text begins.
fn word(text: &str) -> &str {
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return "";
    }
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '_');
    let end = text.find(|c: char| !is_part(c)).unwrap_or(text.len());
    // A sign at the end belongs to what follows.
    text[..end].trim_end_matches(['.', '-', ':', '_'])
}

fn kind(word: &str) -> Kind {
    let all = |text: &str, is: fn(u8) -> bool| !text.is_empty() && text.bytes().all(is);
    if all(word, |byte| byte.is_ascii_digit()) {
        return Kind::Number;
    }
    if (12..=16).contains(&word.len()) && all(word, |byte| byte.is_ascii_hexdigit()) {
        return Kind::Id;
    }
    if word.len() >= 20 && word.ends_with('Z') && word.as_bytes()[4] == b'-' && word.as_bytes()[10] == b'T' {
        return Kind::Time;
    }
    if word.starts_with(|c: char| c.is_ascii_digit()) && word.parse::<f64>().is_ok() {
        return Kind::Fraction;
    }
    let is_duration = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'h' | b'm' | b's' | b'n' | b'u');
    if word.starts_with(|c: char| c.is_ascii_digit()) && word.ends_with('s') && all(word, is_duration) {
        return Kind::Duration;
    }
    Kind::Other
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(names: &mut Names, shown: &str, came: &str) -> bool {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        names.fit(&lines(shown), &lines(came))
    }

    #[test]
    fn what_differs_from_run_to_run_may_differ_and_nothing_else() {
        for (shown, came, expected) in [
            ("OK", "OK", true),
            ("OK", "OK2", false),
            ("a … z", "a b c z", true),
            ("a … z", "a b c", false),
            ("took = …", "took = 3.2ms", true),
            ("b\na", "a\nb", true),
            ("a", "a\nb", false),
            (r#"{"n":17,"t":0.001}"#, r#"{"n":4,"t":0.25}"#, true),
            (r#"{"n":17}"#, r#"{"m":17}"#, false),
            (r#"{"n":17}"#, r#"{"n":"17"}"#, false),
            ("17", "18", false),
            (r#"{"uptime":"36m45.4s"}"#, r#"{"uptime":"1.2s"}"#, true),
            (r#"{"at":"2017-12-25T06:00:28.8Z"}"#, r#"{"at":"2026-01-02T03:04:05.123Z"}"#, true),
            (r#"{"at":"2017-12-25T06:00:28.8Z"}"#, r#"{"at":"yesterday"}"#, false),
        ] {
            assert_eq!(fits(&mut Names::default(), shown, came), expected, "{shown} / {came}");
        }
    }

    #[test]
    fn an_id_stands_for_the_same_one_throughout() {
        let mut names = Names::default();
        assert!(fits(
            &mut names,
            "22b0de6ffcd98f00: a\nc88e2cccbb287a01: b",
            "c88e2cccbb287a01: b\nffb0de6ffcd98f00: a"
        ));
        assert!(fits(&mut names, "22b0de6ffcd98f00", "ffb0de6ffcd98f00"));
        assert!(!fits(&mut names, "22b0de6ffcd98f00", "c88e2cccbb287a01"));
        assert!(!fits(&mut names, "1111111111111111", "ffb0de6ffcd98f00"), "it stands for another one");
        assert!(fits(&mut Names::default(), "Member 22b0de6ffcd98f00 added", "Member  a79cfd883937fee added"));
        assert_eq!(names.translate("remove 22b0de6ffcd98f00"), "remove ffb0de6ffcd98f00");
    }
}
