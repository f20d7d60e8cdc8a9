//! JSON as Go's parser reads it: field names in any case, nulls without effect, and its words for what is wrong, which
//! etcd hands on to its clients.

use serde_json::Value;

/// How deep brackets may nest; Go's bound.
const MAX_DEPTH: usize = 10_000;

/// What comes next in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Value,
    /// The first of an array, or its end.
    ElementOrEnd,
    /// The first of an object, or its end.
    KeyOrEnd,
    Key,
    Colon,
}

/// What is wrong with the text, if it is not one JSON value with nothing but blanks around it.
pub(crate) fn syntax_fault(text: &[u8]) -> Option<String> {
    let end = match end_of_value(text) {
        Ok(end) => end,
        Err(fault) => return Some(fault),
    };
    let after = text[end..].iter().find(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
    after.map(|byte| unexpected(*byte, "after top-level value"))
}

/// Reads the JSON value that a text begins with. What follows it is not looked at.
pub(crate) fn first_value(text: &[u8]) -> Result<Value, String> {
    decode(&text[..end_of_value(text)?])
}

fn end_of_value(text: &[u8]) -> Result<usize, String> {
    let mut scanner = Scanner::default();
    match scanner.scan(text)? {
        Some(end) => Ok(end),
        None if scanner.may_end() => Ok(text.len()),
        None => Err("unexpected end of JSON input".into()),
    }
}

/// Decodes a text without a [`syntax_fault`].
pub(crate) fn decode(text: &[u8]) -> Result<Value, String> {
    serde_json::from_str(&String::from_utf8_lossy(text)).map_err(|error| error.to_string())
}

/// Go's name for a kind of value.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Reads a JSON value as it arrives.
#[derive(Clone, Debug)]
pub(crate) struct Scanner {
    state: State,
    /// The brackets that are open.
    open: Vec<u8>,
    /// The string that is being read is an object's key.
    is_key: bool,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { state: State::Expect(Expect::Value), open: Vec::new(), is_key: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Expect(Expect),
    /// Behind a value inside of brackets.
    Behind,
    String,
    Escape,
    /// So many digits of a `\u` are missing.
    Hex(u8),
    /// Inside of `true`, `false` or `null`, behind so many bytes.
    Literal(&'static str, usize),
    Number(Number),
    /// The value has come to its end.
    End,
}

/// Where in a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Minus,
    /// Behind a leading zero, which no digit follows.
    Zero,
    Digits,
    Point,
    Fraction,
    E,
    ESign,
    Exponent,
}

impl Number {
    /// What comes behind `byte`; none if the number does not go on with it.
    fn next(self, byte: u8) -> Result<Option<Self>, String> {
        Ok(Some(match (self, byte) {
            (Self::Minus, b'0') => Self::Zero,
            (Self::Minus | Self::Digits, b'0'..=b'9') => Self::Digits,
            (Self::Minus, _) => return Err(unexpected(byte, "in numeric literal")),
            (Self::Zero | Self::Digits, b'.') => Self::Point,
            (Self::Point | Self::Fraction, b'0'..=b'9') => Self::Fraction,
            (Self::Point, _) => return Err(unexpected(byte, "after decimal point in numeric literal")),
            (Self::Zero | Self::Digits | Self::Fraction, b'e' | b'E') => Self::E,
            (Self::E, b'+' | b'-') => Self::ESign,
            (Self::E | Self::ESign | Self::Exponent, b'0'..=b'9') => Self::Exponent,
            (Self::E | Self::ESign, _) => return Err(unexpected(byte, "in exponent of numeric literal")),
            _ => return Ok(None),
        }))
    }

    fn may_end(self) -> bool {
        matches!(self, Self::Zero | Self::Digits | Self::Fraction | Self::Exponent)
    }
}

impl Scanner {
    /// Reads on. `Some`: the value ends behind so many of these bytes.
    pub(crate) fn scan(&mut self, text: &[u8]) -> Result<Option<usize>, String> {
        let mut at = 0;
        while let Some(&byte) = text.get(at) {
            if self.state == State::String {
                // Most of what comes: in one go over all that means nothing here.
                let plain = text[at..].iter().take_while(|byte| !matches!(byte, b'"' | b'\\' | 0..b' ')).count();
                at += plain;
                if plain > 0 {
                    continue;
                }
            }
            let used = self.step(byte)?;
            at += usize::from(used);
            if self.state == State::End {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// Whether nothing but blanks has come.
    pub(crate) fn is_blank(&self) -> bool {
        self.state == State::Expect(Expect::Value) && self.open.is_empty()
    }

    /// Whether what has come is a whole value, if nothing follows: a number does not say where it ends.
    pub(crate) fn may_end(&self) -> bool {
        matches!(self.state, State::Number(number) if self.open.is_empty() && number.may_end())
    }

    /// Takes a byte, or, at the end of a number, only looks at it: `false`.
    fn step(&mut self, byte: u8) -> Result<bool, String> {
        let is_blank = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        self.state = match self.state {
            State::Expect(_) | State::Behind if is_blank => return Ok(true),
            State::Expect(expect) => self.begin(expect, byte)?,
            State::Behind => match (self.open.last(), byte) {
                (Some(b'{'), b',') => State::Expect(Expect::Key),
                (Some(b'['), b',') => State::Expect(Expect::Value),
                (Some(b'{'), b'}') | (Some(b'['), b']') => self.close(),
                (Some(b'{'), _) => return Err(unexpected(byte, "after object key:value pair")),
                _ => return Err(unexpected(byte, "after array element")),
            },
            State::String => match byte {
                b'"' if self.is_key => State::Expect(Expect::Colon),
                b'"' => self.behind(),
                b'\\' => State::Escape,
                0..b' ' => return Err(unexpected(byte, "in string literal")),
                _ => State::String,
            },
            State::Escape => match byte {
                b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => State::String,
                b'u' => State::Hex(4),
                _ => return Err(unexpected(byte, "in string escape code")),
            },
            State::Hex(missing) => match byte {
                _ if !byte.is_ascii_hexdigit() => {
                    return Err(unexpected(byte, "in \\u hexadecimal character escape"));
                }
                _ if missing > 1 => State::Hex(missing - 1),
                _ => State::String,
            },
            State::Literal(name, at) => {
                let expected = name.as_bytes()[at];
                if byte != expected {
                    return Err(unexpected(byte, &format!("in literal {name} (expecting {})", quoted(expected))));
                }
                if at + 1 < name.len() { State::Literal(name, at + 1) } else { self.behind() }
            }
            State::Number(number) => match number.next(byte)? {
                Some(number) => State::Number(number),
                None => {
                    self.state = self.behind();
                    return Ok(false);
                }
            },
            State::End => State::End,
        };
        Ok(true)
    }

    fn begin(&mut self, expect: Expect, byte: u8) -> Result<State, String> {
        Ok(match (expect, byte) {
            (Expect::ElementOrEnd, b']') | (Expect::KeyOrEnd, b'}') => self.close(),
            (Expect::Value | Expect::ElementOrEnd, b'{' | b'[') => {
                if self.open.len() == MAX_DEPTH {
                    return Err("exceeded max depth".into());
                }
                self.open.push(byte);
                State::Expect(if byte == b'{' { Expect::KeyOrEnd } else { Expect::ElementOrEnd })
            }
            (Expect::Value | Expect::ElementOrEnd, _) => match byte {
                b'"' => {
                    self.is_key = false;
                    State::String
                }
                b'-' => State::Number(Number::Minus),
                b'0' => State::Number(Number::Zero),
                b'1'..=b'9' => State::Number(Number::Digits),
                b't' => State::Literal("true", 1),
                b'f' => State::Literal("false", 1),
                b'n' => State::Literal("null", 1),
                _ => return Err(unexpected(byte, "looking for beginning of value")),
            },
            (Expect::Key | Expect::KeyOrEnd, b'"') => {
                self.is_key = true;
                State::String
            }
            (Expect::Key | Expect::KeyOrEnd, _) => {
                return Err(unexpected(byte, "looking for beginning of object key string"));
            }
            (Expect::Colon, b':') => State::Expect(Expect::Value),
            (Expect::Colon, _) => return Err(unexpected(byte, "after object key")),
        })
    }

    fn close(&mut self) -> State {
        self.open.pop();
        self.behind()
    }

    fn behind(&self) -> State {
        if self.open.is_empty() { State::End } else { State::Behind }
    }
}

fn unexpected(byte: u8, place: &str) -> String {
    format!("invalid character {} {place}", quoted(byte))
}

/// A byte as Go shows it: as the Unicode character of that number.
fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".into(),
        b'"' => "'\"'".into(),
        b'\\' => r"'\\'".into(),
        0x07 => r"'\a'".into(),
        0x08 => r"'\b'".into(),
        0x0b => r"'\v'".into(),
        0x0c => r"'\f'".into(),
        b'\n' => r"'\n'".into(),
        b'\r' => r"'\r'".into(),
        b'\t' => r"'\t'".into(),
        0x00..0x20 | 0x7f => format!("'\\x{byte:02x}'"),
        0x80..=0xa0 | 0xad => format!("'\\u{byte:04x}'"),
        _ => format!("'{}'", char::from(byte)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each text with what etcd 3.4.23 answered.
    #[test]
    fn faults_are_told_in_gos_words() {
        let table: &[(&str, &str)] = &[
            ("", "unexpected end of JSON input"),
            ("x", "invalid character 'x' looking for beginning of value"),
            ("'x'", r"invalid character '\'' looking for beginning of value"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            (r#"{"a":1,}"#, "invalid character '}' looking for beginning of object key string"),
            ("{a:1}", "invalid character 'a' looking for beginning of object key string"),
            (r#"{"a" 1}"#, "invalid character '1' after object key"),
            (r#"{"a":1 "b"}"#, r#"invalid character '"' after object key:value pair"#),
            (r#"{"a":[1}"#, "invalid character '}' after array element"),
            (r#"{"a":[1"#, "unexpected end of JSON input"),
            (r#"{"a":tru}"#, "invalid character '}' in literal true (expecting 'e')"),
            (r#"{"a":01}"#, "invalid character '1' after object key:value pair"),
            (r#"{"a":-}"#, "invalid character '}' in numeric literal"),
            (r#"{"a":1.}"#, "invalid character '}' after decimal point in numeric literal"),
            (r#"{"a":1e}"#, "invalid character '}' in exponent of numeric literal"),
            (r#"{"a":"\x"}"#, "invalid character 'x' in string escape code"),
            (r#"{"a":"\u12x"}"#, r"invalid character 'x' in \u hexadecimal character escape"),
            ("{\"a\":\"\t\"}", r"invalid character '\t' in string literal"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("{\"a\":é}", "invalid character 'Ã' looking for beginning of value"),
        ];
        for (text, fault) in table {
            assert_eq!(syntax_fault(text.as_bytes()).as_deref(), Some(*fault), "{text}");
        }
    }

    #[test]
    fn what_is_json_has_no_fault() {
        for text in [
            "{}",
            " [] ",
            r#"{"a":[1,-0.5e+7,"x\u00e9",{"b":null}],"c":true}"#,
            "0",
            "\"\"",
            "[[],[{}]]",
            "[[[1]]]",
            r#"{"a":["b"]}"#,
        ] {
            assert_eq!(syntax_fault(text.as_bytes()), None, "{text}");
        }
    }

    /// A value that arrives byte by byte is the same value, with the same faults.
    #[test]
    fn it_does_not_matter_in_which_pieces_a_value_arrives() {
        for text in
            [r#"{"a":[1,-0.5e+7,"x\u00e9\"",{"b":null}],"c":true} {"#, "12 ", "[1,]", r#"{"a":tru}"#, "01", "-x"]
        {
            let whole = Scanner::default().scan(text.as_bytes());
            let mut scanner = Scanner::default();
            let pieces = text.bytes().enumerate().find_map(|(at, byte)| match scanner.scan(&[byte]) {
                Ok(None) => None,
                Ok(Some(used)) => Some(Ok(Some(at + used))),
                Err(fault) => Some(Err(fault)),
            });
            assert_eq!(pieces.unwrap_or(Ok(None)), whole, "{text}");
        }
    }

    #[test]
    fn brackets_without_end_are_refused() {
        assert_eq!(syntax_fault(&vec![b'['; 20_000]).as_deref(), Some("exceeded max depth"));
    }

    #[test]
    fn what_follows_the_first_value_is_not_looked_at() {
        assert_eq!(first_value(b"{\"a\":[1]}nonsense"), Ok(serde_json::json!({"a": [1]})));
        assert!(first_value(b"{").is_err());
    }
}
