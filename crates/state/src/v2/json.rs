//! JSON as Go writes it, and times in it.

/// Whether every byte stands for itself, which is so for nearly all keys and values; a character at a time costs ten times
/// as much. Nothing in a chunk depends on what came before it, so that the compiler looks at all of it at once.
fn is_plain(text: &[u8]) -> bool {
    let special = |byte: u8| {
        u8::from(byte.wrapping_sub(b' ') > b'~' - b' ')
            | u8::from(byte == b'"')
            | u8::from(byte == b'\\')
            | u8::from(byte == b'<')
            | u8::from(byte == b'>')
            | u8::from(byte == b'&')
    };
    let any = |bytes: &[u8]| bytes.iter().fold(0, |found, byte| found | special(*byte)) != 0;
    let (chunks, rest) = text.as_chunks::<32>();
    !chunks.iter().any(|chunk| any(chunk)) && !any(rest)
}

/// Appends a string. What could be taken for HTML or ends a line in JavaScript is escaped, as are bytes that are no
/// UTF-8.
pub(crate) fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    if is_plain(text) {
        out.extend_from_slice(text);
        out.push(b'"');
        return;
    }
    for chunk in text.utf8_chunks() {
        let valid = chunk.valid();
        let mut plain = 0;
        for (at, c) in valid.char_indices() {
            let escape = match c {
                '"' => "\\\"",
                '\\' => "\\\\",
                '\n' => "\\n",
                '\r' => "\\r",
                '\t' => "\\t",
                '\u{2028}' => "\\u2028",
                '\u{2029}' => "\\u2029",
                '<' | '>' | '&' | '\0'..='\x1f' => "",
                _ => continue,
            };
            out.extend_from_slice(&valid.as_bytes()[plain..at]);
            plain = at + c.len_utf8();
            if escape.is_empty() {
                out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes());
            } else {
                out.extend_from_slice(escape.as_bytes());
            }
        }
        out.extend_from_slice(&valid.as_bytes()[plain..]);
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
    out.push(b'"');
}

const SECOND: i64 = 1_000_000_000;
const DAY: i64 = 86_400;
/// What Go calls the zero time; here it means "never".
pub(super) const ZERO: &str = "0001-01-01T00:00:00Z";

/// A time in nanoseconds since 1970 as RFC 3339 in UTC, with as many digits as it needs.
pub(super) fn time(nanoseconds: i64) -> String {
    let (seconds, fraction) = (nanoseconds.div_euclid(SECOND), nanoseconds.rem_euclid(SECOND));
    let (days, rest) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    // Howard Hinnant's civil_from_days: years that begin in March, in eras of 400.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", rest / 3_600, rest / 60 % 60, rest % 60);
    if fraction != 0 {
        text.push_str(format!(".{fraction:09}").trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// Reads such a time, in any zone; 0 for Go's zero time and for what a counter of nanoseconds cannot hold.
pub(super) fn parse_time(text: &str) -> Option<i64> {
    if text == ZERO {
        return Some(0);
    }
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let marks = text.as_bytes().get(4)? == &b'-' && text.as_bytes().get(10)? == &b'T';
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let clock = number(11..13)? * 3_600 + number(14..16)? * 60 + number(17..19)?;
    if !marks || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut fraction = 0;
    if let Some(digits) = rest.strip_prefix('.') {
        let count = digits.bytes().take_while(u8::is_ascii_digit).count();
        let kept = count.min(9);
        fraction = digits[..kept].parse::<i64>().ok()? * 10_i64.pow(9 - u32::try_from(kept).ok()?);
        rest = &digits[count..];
    }
    let offset = match rest.as_bytes() {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), zone @ ..] if zone.len() == 5 && zone[2] == b':' => {
            let zone = std::str::from_utf8(zone).ok()?;
            let seconds = zone[..2].parse::<i64>().ok()? * 3_600 + zone[3..].parse::<i64>().ok()? * 60;
            if *sign == b'+' { seconds } else { -seconds }
        }
        _ => return None,
    };
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    let days = era * 146_097 + doe - 719_468;
    let seconds = days * DAY + clock - offset;
    Some(seconds.checked_mul(SECOND).and_then(|ns| ns.checked_add(fraction)).unwrap_or(0))
}
