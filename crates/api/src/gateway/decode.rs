//! JSON to protobuf, by the rules of protobuf's JSON mapping as Go's `protojson` keeps them: fields by either of their names,
//! nulls as if they were not there, numbers as numbers or text, base64 of either alphabet, and names that nobody knows
//! passed over. What it refuses it refuses in Go's words, because etcd's clients see them.
//!
//! Nothing is kept of the text but the message, which is never larger; brackets of unknown fields take no stack.

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use proto::schema::{Field, Kind, Message};

/// Messages within messages. The protobuf side takes no more.
const MAX_DEPTH: usize = 100;
/// The largest number of digits of any integer.
const MAX_DIGITS: usize = 20;

/// The message in `text`, which must be one JSON value as [`crate::json::Scanner`] found it.
///
/// # Errors
/// In Go's words, with where in the text it is.
pub(crate) fn decode(text: &[u8], message: &'static Message) -> Result<Vec<u8>, String> {
    let mut parser = Parser { text, at: 0 };
    let mut out = Vec::new();
    parser.message(message, MAX_DEPTH, &mut out)?;
    Ok(out)
}

/// A piece of JSON, with where it begins.
#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    kind: Piece,
    raw: &'a [u8],
    at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Open,
    Close,
    OpenList,
    CloseList,
    String,
    Number,
    Bool,
    Null,
    End,
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Parser<'a> {
    /// The next piece; commas and colons are where they must be and say nothing.
    fn next(&mut self) -> Result<Token<'a>, String> {
        let between = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b',' | b':');
        self.at += self.text[self.at..].iter().take_while(|byte| between(byte)).count();
        let rest = &self.text[self.at..];
        let (kind, length) = match rest.first() {
            None => (Piece::End, 0),
            Some(b'{') => (Piece::Open, 1),
            Some(b'}') => (Piece::Close, 1),
            Some(b'[') => (Piece::OpenList, 1),
            Some(b']') => (Piece::CloseList, 1),
            Some(b'"') => (Piece::String, string_length(rest)),
            Some(b't') => (Piece::Bool, 4),
            Some(b'f') => (Piece::Bool, 5),
            Some(b'n') => (Piece::Null, 4),
            Some(_) => {
                let is_part = |byte: &&u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                (Piece::Number, rest.iter().take_while(is_part).count().max(1))
            }
        };
        let raw = &rest[..length.min(rest.len())];
        let token = Token { kind, raw, at: self.at };
        if kind == Piece::String {
            self.check_string(token)?;
        }
        self.at += raw.len();
        Ok(token)
    }

    fn peek(&mut self) -> Result<Token<'a>, String> {
        let before = self.at;
        let token = self.next();
        self.at = before;
        token
    }

    fn message(&mut self, message: &'static Message, depth: usize, out: &mut Vec<u8>) -> Result<(), String> {
        let Some(depth) = depth.checked_sub(1) else { return Err("proto: exceeded max recursion depth".into()) };
        let open = self.next()?;
        if open.kind != Piece::Open {
            return Err(self.unexpected(open));
        }
        // Messages have few fields, and none of etcd's has more than 64.
        let (mut seen, mut seen_oneofs) = (0_u64, 0_u64);
        loop {
            let name = self.next()?;
            match name.kind {
                Piece::Close => return Ok(()),
                Piece::String => {}
                _ => return Err(self.unexpected(name)),
            }
            let text = self.string(name);
            let by_name =
                |name: fn(&Field) -> &'static str| message.fields.iter().position(|field| name(field) == text);
            let Some(position) = by_name(|field| field.json_name).or_else(|| by_name(|field| field.name)) else {
                self.skip_value()?;
                continue;
            };
            let field = &message.fields[position];
            if seen & 1 << position != 0 {
                return Err(self.fault(name.at, &format!("duplicate field {}", show(name.raw))));
            }
            seen |= 1 << position;
            if self.peek()?.kind == Piece::Null {
                self.next()?;
                continue;
            }
            if field.is_repeated {
                self.list(field, depth, out)?;
                continue;
            }
            if let Some(oneof) = field.oneof {
                if seen_oneofs & 1 << oneof != 0 {
                    let oneof = message.oneofs[usize::from(oneof)];
                    let what = format!("error parsing {}, oneof {oneof} is already set", show(name.raw));
                    return Err(self.fault(name.at, &what));
                }
                seen_oneofs |= 1 << oneof;
            }
            match field.kind {
                Kind::Message(inner) => self.submessage(field.number, inner, depth, out)?,
                _ => {
                    let value = self.scalar(field)?;
                    value.write(field.number, field.has_presence(), out);
                }
            }
        }
    }

    fn submessage(
        &mut self,
        number: u32,
        message: &'static Message,
        depth: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        encode_key(number, WireType::LengthDelimited, out);
        let begin = out.len();
        self.message(message, depth, out)?;
        // How long it is shows only now.
        let length = (out.len() - begin) as u64;
        let mut prefix = Vec::with_capacity(encoded_len_varint(length));
        encode_varint(length, &mut prefix);
        out.splice(begin..begin, prefix);
        Ok(())
    }

    fn list(&mut self, field: &'static Field, depth: usize, out: &mut Vec<u8>) -> Result<(), String> {
        let open = self.next()?;
        if open.kind != Piece::OpenList {
            return Err(self.unexpected(open));
        }
        while self.peek()?.kind != Piece::CloseList {
            match field.kind {
                Kind::Message(inner) => self.submessage(field.number, inner, depth, out)?,
                // One by one instead of packed: every reader takes both.
                _ => self.scalar(field)?.write(field.number, true, out),
            }
        }
        self.next()?;
        Ok(())
    }

    fn scalar(&mut self, field: &'static Field) -> Result<Value<'a>, String> {
        let token = self.next()?;
        let value = match (field.kind, token.kind) {
            (Kind::Bool, Piece::Bool) => Some(Value::Varint(u64::from(token.raw == b"true"))),
            (Kind::Int32, _) => self.integer(token).and_then(|text| text.parse::<i32>().ok()).map(Value::signed),
            (Kind::Int64, _) => self.integer(token).and_then(|text| text.parse::<i64>().ok()).map(Value::signed),
            (Kind::Uint32, _) => {
                let number = self.integer(token).and_then(|text| text.parse::<u32>().ok());
                number.map(|number| Value::Varint(u64::from(number)))
            }
            (Kind::Uint64, _) => self.integer(token).and_then(|text| text.parse::<u64>().ok()).map(Value::Varint),
            (Kind::String, Piece::String) => Some(Value::Text(self.string(token))),
            (Kind::Bytes, Piece::String) => base64_of(&self.string(token)).map(Value::Bytes),
            (Kind::Enum(kind), Piece::String) => {
                let name = self.string(token);
                // A name that nobody knows is passed over, as an unknown field is.
                let known = kind.values.iter().find(|(known, _)| *known == name);
                Some(known.map_or(Value::Nothing, |(_, number)| Value::signed(*number)))
            }
            (Kind::Enum(_), Piece::Number) => {
                whole_number(token.raw).and_then(|text| text.parse::<i32>().ok()).map(Value::signed)
            }
            _ => None,
        };
        value.ok_or_else(|| {
            let what =
                format!("invalid value for {} field {}: {}", field.kind.name(), field.json_name, show(token.raw));
            self.fault(token.at, &what)
        })
    }

    /// The digits of an integer that stands as a number or in a string.
    fn integer(&self, token: Token<'a>) -> Option<String> {
        match token.kind {
            Piece::Number => whole_number(token.raw),
            Piece::String => whole_number(self.string(token).as_bytes()),
            _ => None,
        }
    }

    /// The text of a string.
    fn string(&self, token: Token<'a>) -> Cow<'a, str> {
        let inner = &token.raw[1..token.raw.len() - 1];
        // Checked when the piece was read.
        unescape(std::str::from_utf8(inner).unwrap_or_default()).unwrap_or_default()
    }

    /// What the scanner does not look at: whether the bytes are UTF-8, and no half of a surrogate pair stands alone.
    fn check_string(&self, token: Token<'a>) -> Result<(), String> {
        let Ok(text) = std::str::from_utf8(token.raw) else {
            return Err(self.syntax_fault(token.at, "invalid UTF-8 in string"));
        };
        match unescape(&text[1..text.len() - 1]) {
            Ok(_) => Ok(()),
            // Go looks at the six bytes where the other half ought to be, wherever the string ends.
            Err(behind) => Err(match self.text.get(token.at + 1 + behind..).and_then(|rest| rest.get(..6)) {
                None => "proto: unexpected EOF".into(),
                Some(code) => {
                    let what = format!("invalid escape code {:?} in string", String::from_utf8_lossy(code));
                    self.syntax_fault(token.at, &what)
                }
            }),
        }
    }

    fn skip_value(&mut self) -> Result<(), String> {
        let mut open = 0_usize;
        loop {
            match self.next()?.kind {
                Piece::Open | Piece::OpenList => open += 1,
                Piece::Close | Piece::CloseList => open = open.saturating_sub(1),
                Piece::End => return Ok(()),
                _ => {}
            }
            if open == 0 {
                return Ok(());
            }
        }
    }

    // --- faults ---

    /// Line and column, from one.
    fn position(&self, at: usize) -> (usize, usize) {
        let before = &self.text[..at];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let begin = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        (line, String::from_utf8_lossy(&before[begin..]).chars().count() + 1)
    }

    fn fault(&self, at: usize, what: &str) -> String {
        let (line, column) = self.position(at);
        format!("proto: (line {line}:{column}): {what}")
    }

    fn syntax_fault(&self, at: usize, what: &str) -> String {
        let (line, column) = self.position(at);
        format!("proto: syntax error (line {line}:{column}): {what}")
    }

    fn unexpected(&self, token: Token<'_>) -> String {
        self.syntax_fault(token.at, &format!("unexpected token {}", show(token.raw)))
    }
}

fn show(raw: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(raw)
}

/// A scalar on its way into the message.
enum Value<'a> {
    Varint(u64),
    Text(Cow<'a, str>),
    Bytes(Vec<u8>),
    /// It stands for nothing that is known.
    Nothing,
}

impl Value<'_> {
    fn signed(number: impl Into<i64>) -> Self {
        // Negative numbers are sign-extended to 64 bits, also those of 32.
        Self::Varint(number.into() as u64)
    }

    /// Appends it; a zero only if it `counts`.
    fn write(&self, number: u32, counts: bool, out: &mut Vec<u8>) {
        let bytes = match self {
            Self::Nothing => return,
            Self::Varint(value) => {
                if *value != 0 || counts {
                    encode_key(number, WireType::Varint, out);
                    encode_varint(*value, out);
                }
                return;
            }
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        };
        if !bytes.is_empty() || counts {
            encode_key(number, WireType::LengthDelimited, out);
            encode_varint(bytes.len() as u64, out);
            out.extend_from_slice(bytes);
        }
    }
}

/// How many bytes the string takes that `text` begins with, with its quotes.
fn string_length(text: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

/// Resolves escapes. The error is where the text goes on behind half a surrogate pair that stands alone.
fn unescape(text: &str) -> Result<Cow<'_, str>, usize> {
    if !text.contains('\\') {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let kind = rest.as_bytes().get(at + 1);
        rest = rest.get(at + 2..).unwrap_or_default();
        out.push(match kind {
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let code = |text: &str| text.get(..4).and_then(|digits| u32::from_str_radix(digits, 16).ok());
                let first = code(rest).unwrap_or_default();
                rest = rest.get(4..).unwrap_or_default();
                match char::from_u32(first) {
                    Some(char) => char,
                    None => {
                        let behind = text.len() - rest.len();
                        let second = rest.strip_prefix("\\u").and_then(code).ok_or(behind)?;
                        rest = &rest[6..];
                        let is_pair = (0xd800..0xdc00).contains(&first) && (0xdc00..0xe000).contains(&second);
                        let pair = is_pair.then(|| 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00));
                        pair.and_then(char::from_u32).ok_or(behind)?
                    }
                }
            }
            // A quote, a backslash or a slash; the scanner lets nothing else pass.
            other => char::from(*other.unwrap_or(&b'\\')),
        });
    }
    out.push_str(rest);
    Ok(Cow::Owned(out))
}

/// Bytes of base64 text: of the alphabet for URLs if it shows that by one of its signs, without padding if its length says
/// so. Line ends do not count, and neither do bits that are left over.
fn base64_of(text: &str) -> Option<Vec<u8>> {
    const fn engine(alphabet: &base64::alphabet::Alphabet, padding: DecodePaddingMode) -> GeneralPurpose {
        let config = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
        GeneralPurpose::new(alphabet, config.with_decode_padding_mode(padding))
    }
    use DecodePaddingMode::{RequireCanonical, RequireNone};
    static ENGINES: [GeneralPurpose; 4] = [
        engine(&STANDARD, RequireCanonical),
        engine(&STANDARD, RequireNone),
        engine(&URL_SAFE, RequireCanonical),
        engine(&URL_SAFE, RequireNone),
    ];
    let for_urls = text.contains(['-', '_']);
    let is_padded = text.len().is_multiple_of(4);
    let engine = &ENGINES[usize::from(for_urls) * 2 + usize::from(!is_padded)];
    if text.contains(['\r', '\n']) {
        return engine.decode(text.replace(['\r', '\n'], "")).ok();
    }
    engine.decode(text).ok()
}

/// The integer that a JSON number is, as digits with a sign: `1`, `1.0`, `10e-1` and `0.1e1` are the same. None: it is no
/// integer, no number, or has more digits than any integer has.
fn whole_number(raw: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(raw).ok()?;
    let (minus, text) = match text.strip_prefix('-') {
        Some(text) => ("-", text),
        None => ("", text),
    };
    let (number, exponent) = match text.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, Some(exponent)),
        None => (text, None),
    };
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (number, None),
    };
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_number = is_digits(whole) && (whole == "0" || !whole.starts_with('0')) && fraction.is_none_or(is_digits);
    if !is_number {
        return None;
    }
    let exponent: i32 = match exponent {
        None => 0,
        Some(exponent) => {
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            is_digits(digits).then(|| exponent.parse().ok())??
        }
    };
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.unwrap_or("").trim_end_matches('0');
    if whole.is_empty() && fraction.is_empty() {
        return Some("0".into());
    }
    let digits = match usize::try_from(exponent) {
        Ok(exponent) => {
            if fraction.len() > exponent || whole.len().checked_add(exponent)? > MAX_DIGITS {
                return None;
            }
            format!("{whole}{fraction}{}", "0".repeat(exponent - fraction.len()))
        }
        Err(_) => {
            let shift = exponent.unsigned_abs() as usize;
            let kept = whole.len().checked_sub(shift).filter(|_| fraction.is_empty())?;
            let (kept, cut) = whole.split_at(kept);
            if cut.bytes().any(|byte| byte != b'0') {
                return None;
            }
            if kept.is_empty() { "0".into() } else { kept.to_owned() }
        }
    };
    Some(format!("{minus}{digits}"))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
