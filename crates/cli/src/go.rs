//! How Go writes and reads numbers, strings and durations: scripts depend on these texts.

use crate::raw;
use std::fmt::Write as _;
use std::time::Duration;

/// Why Go could not read a number. Displays as Go's error.
pub fn number_error(function: &str, text: &str, reason: &str) -> String {
    format!("strconv.{function}: parsing {}: {reason}", quote(text.as_bytes()))
}

const SYNTAX: &str = "invalid syntax";
const RANGE: &str = "value out of range";

/// A number of this radix, as `strconv.ParseInt` reads it. Radix 0: by prefix (`0x`, `0o`, `0b`, `0`), underscores allowed.
pub fn parse_int(text: &str, radix: u32) -> Result<i64, String> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let magnitude = magnitude(digits, radix).map_err(|reason| number_error("ParseInt", text, reason))?;
    let number = if negative { -i128::from(magnitude) } else { i128::from(magnitude) };
    i64::try_from(number).map_err(|_| number_error("ParseInt", text, RANGE))
}

/// A number of this radix, as `strconv.ParseUint` reads it.
pub fn parse_uint(text: &str, radix: u32) -> Result<u64, String> {
    magnitude(text, radix).map_err(|reason| number_error("ParseUint", text, reason))
}

fn magnitude(digits: &str, radix: u32) -> Result<u64, &'static str> {
    let lower = match radix {
        0 => without_underscores(digits)?,
        _ => digits.to_ascii_lowercase(),
    };
    let (digits, radix) = match (radix, lower.get(..2)) {
        (0, Some("0x")) => (&lower[2..], 16),
        (0, Some("0o")) => (&lower[2..], 8),
        (0, Some("0b")) => (&lower[2..], 2),
        (0, Some(two)) if two.starts_with('0') => (&lower[1..], 8),
        (0, _) => (lower.as_str(), 10),
        (radix, _) => (lower.as_str(), radix),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(SYNTAX);
    }
    u64::from_str_radix(digits, radix).map_err(|_| RANGE)
}

/// Underscores may stand between digits, and between a prefix and the first digit.
fn without_underscores(digits: &str) -> Result<String, &'static str> {
    let digits = digits.to_ascii_lowercase();
    let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_hexdigit());
    let mut before = None;
    let mut rest = digits.chars();
    let starts_with_prefix = digits.starts_with('0');
    while let Some(c) = rest.next() {
        let follows = is_digit(before) || starts_with_prefix && matches!(before, Some('x' | 'o'));
        if c == '_' && !(follows && is_digit(rest.clone().next())) {
            return Err(SYNTAX);
        }
        before = Some(c);
    }
    Ok(digits.replace('_', ""))
}

/// A truth value as `strconv.ParseBool` reads it.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(number_error("ParseBool", text, SYNTAX)),
    }
}

/// A duration as `time.ParseDuration` reads it: `1h2m3.5s`, `300ms`. Ours cannot be negative.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {}", quote(text.as_bytes()));
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(|| format!("time: missing unit in duration {}", quote(text.as_bytes())))?;
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(invalid()),
        };
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| invalid())?;
        total = total.checked_add(part).ok_or_else(invalid)?;
        rest = &rest[unit..];
    }
    Ok(total)
}

/// A duration as Go prints it: `1.5ms`, `2m0.25s`.
pub fn duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    let scaled = |unit_nanos: u128, unit: &str| {
        let mut text =
            format!("{}.{:0width$}", nanos / unit_nanos, nanos % unit_nanos, width = unit_nanos.ilog10() as usize);
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
        text + unit
    };
    match nanos {
        0..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => scaled(1_000, "µs"),
        1_000_000..1_000_000_000 => scaled(1_000_000, "ms"),
        1_000_000_000..60_000_000_000 => scaled(1_000_000_000, "s"),
        _ => {
            let minutes = duration.as_secs() / 60;
            let rest = Duration::new(duration.as_secs() % 60, duration.subsec_nanos());
            let seconds = if rest.as_secs() > 0 || rest.is_zero() {
                self::duration(rest)
            } else {
                format!("{}s", rest.as_secs_f64())
            };
            if minutes < 60 {
                format!("{minutes}m{seconds}")
            } else {
                format!("{}h{}m{seconds}", minutes / 60, minutes % 60)
            }
        }
    }
}

/// Bytes as a quoted string, as `%q` prints them.
pub fn quote(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 2);
    out.push('"');
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\x07' => out.push_str("\\a"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x0b' => out.push_str("\\v"),
                c if is_printable(c) => out.push(c),
                c if (c as u32) < 0x80 => push_hex(&mut out, "\\x", c as u32, 2),
                c if (c as u32) < 0x10000 => push_hex(&mut out, "\\u", c as u32, 4),
                c => push_hex(&mut out, "\\U", c as u32, 8),
            }
        }
        for byte in chunk.invalid() {
            push_hex(&mut out, "\\x", u32::from(*byte), 2);
        }
    }
    out.push('"');
    out
}

fn push_hex(out: &mut String, prefix: &str, number: u32, width: usize) {
    // Writing to a String cannot fail.
    let _ok = write!(out, "{prefix}{number:0width$x}");
}

/// What Go calls printable, near enough: no controls, no blanks but the space, no formatting marks, no surrogate areas.
fn is_printable(c: char) -> bool {
    let invisible = matches!(c as u32, 0xad | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff | 0xfff0..=0xfffb | 0xe000..=0xf8ff | 0xe0000..);
    c == ' ' || !(c.is_control() || c.is_whitespace() || invisible)
}

/// Reads a quoted string at the beginning of `text`, in double quotes with Go's escapes or in back quotes without.
/// Gives what it says and what follows it.
pub fn unquote(text: &str) -> Option<(Vec<u8>, &str)> {
    if let Some(behind) = text.strip_prefix('`') {
        let (inside, rest) = behind.split_once('`')?;
        return Some((raw::bytes(inside).into(), rest));
    }
    let mut out = Vec::new();
    let mut rest = text.strip_prefix('"')?;
    loop {
        let mut chars = rest.chars();
        match chars.next()? {
            '"' => return Some((out, chars.as_str())),
            '\\' => {
                let escape = chars.next()?;
                rest = chars.as_str();
                let plain = match escape {
                    'a' => 7,
                    'b' => 8,
                    'f' => 12,
                    'n' => b'\n',
                    'r' => b'\r',
                    't' => b'\t',
                    'v' => 11,
                    '\\' | '"' => escape as u8,
                    'x' => u8::try_from(take_digits(&mut rest, 2, 16)?).ok()?,
                    'u' | 'U' => {
                        let number = take_digits(&mut rest, if escape == 'u' { 4 } else { 8 }, 16)?;
                        let c = char::from_u32(number)?;
                        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                        continue;
                    }
                    '0'..='7' => {
                        rest = &text[text.len() - rest.len() - 1..];
                        u8::try_from(take_digits(&mut rest, 3, 8)?).ok()?
                    }
                    _ => return None,
                };
                out.push(plain);
            }
            '\n' => return None,
            c => {
                raw::push(&mut out, c);
                rest = chars.as_str();
            }
        }
    }
}

fn take_digits(rest: &mut &str, count: usize, radix: u32) -> Option<u32> {
    let digits = rest.get(..count)?;
    *rest = &rest[count..];
    if !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

/// A number of bytes for people, in powers of 1000: `25 kB`, `2.1 GB`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let power = (bytes.ilog10() / 3) as usize;
    let value = (bytes as f64 / 1000f64.powi(power as i32) * 10.0 + 0.5).floor() / 10.0;
    if value < 10.0 { format!("{value:.1} {}", UNITS[power]) } else { format!("{value:.0} {}", UNITS[power]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print_as_in_go() {
        for text in ["1ns", "1.5µs", "700.25ms", "2s", "1m0s", "2m0.25s", "1h2m3s", "0s"] {
            assert_eq!(duration(parse_duration(text).unwrap()), text);
        }
        for text in ["", "x", "1", "1x", "-1s", "1e99h", "99999999999999999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_quoted_can_be_read_back() {
        for bytes in [&b"plain"[..], "中文".as_bytes(), b"\x00\x07\n\"\\\xff\x7f", "\u{200b}\u{10ffff}".as_bytes(), b""]
        {
            assert_eq!(unquote(&quote(bytes)).unwrap(), (bytes.to_vec(), ""));
        }
        assert_eq!(quote(b"a\xff\n"), r#""a\xff\n""#);
        assert_eq!(unquote(r#""\101" rest"#).unwrap(), (b"A".to_vec(), " rest"));
        for bad in ["", "x", "\"open", r#""\q""#, r#""\x4""#, r#""\uD800""#] {
            assert!(unquote(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_rounded_as_operators_know_them() {
        for (bytes, text) in
            [(0, "0 B"), (9, "9 B"), (10, "10 B"), (24_576, "25 kB"), (1_000, "1.0 kB"), (2_147_483_648, "2.1 GB")]
        {
            assert_eq!(human_bytes(bytes), text);
        }
    }

    #[test]
    fn numbers_follow_their_prefix_when_no_radix_is_given() {
        assert_eq!(parse_int("0x10", 0), Ok(16));
        assert_eq!(parse_int("-10", 0), Ok(-10));
        assert_eq!(parse_int("ff", 16), Ok(255));
        assert_eq!(parse_int("zzz", 16), Err("strconv.ParseInt: parsing \"zzz\": invalid syntax".to_owned()));
        assert!(parse_int("9223372036854775808", 10).unwrap_err().ends_with("value out of range"));
    }
}
