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
pub(super) fn syntax_fault(text: &[u8]) -> Option<String> {
    let mut scanner = Scanner { rest: text };
    scanner.value().and_then(|()| scanner.end()).err()
}

/// Reads the JSON value that a text begins with. What follows it is not looked at.
pub(super) fn first_value(text: &[u8]) -> Result<Value, String> {
    let mut scanner = Scanner { rest: text };
    scanner.value()?;
    let read = text.len() - scanner.rest.len();
    decode(&text[..read])
}

/// Decodes a text without a [`syntax_fault`].
pub(super) fn decode(text: &[u8]) -> Result<Value, String> {
    serde_json::from_str(&String::from_utf8_lossy(text)).map_err(|error| error.to_string())
}

/// Go's name for a kind of value.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

struct Scanner<'a> {
    rest: &'a [u8],
}

impl Scanner<'_> {
    fn next(&mut self) -> Result<u8, String> {
        let (&byte, rest) = self.rest.split_first().ok_or("unexpected end of JSON input")?;
        self.rest = rest;
        Ok(byte)
    }

    fn skip_blanks(&mut self) {
        while let [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    fn end(&mut self) -> Result<(), String> {
        self.skip_blanks();
        match self.rest.first() {
            Some(&byte) => Err(unexpected(byte, "after top-level value")),
            None => Ok(()),
        }
    }

    /// Walks over one value.
    fn value(&mut self) -> Result<(), String> {
        let mut open: Vec<u8> = Vec::new();
        let mut expect = Expect::Value;
        loop {
            self.skip_blanks();
            let byte = self.next()?;
            expect = match (expect, byte) {
                (Expect::ElementOrEnd, b']') | (Expect::KeyOrEnd, b'}') => {
                    open.pop();
                    match self.after_value(&mut open)? {
                        Some(next) => next,
                        None => return Ok(()),
                    }
                }
                (Expect::Value | Expect::ElementOrEnd, b'{' | b'[') => {
                    if open.len() == MAX_DEPTH {
                        return Err("exceeded max depth".into());
                    }
                    open.push(byte);
                    if byte == b'{' { Expect::KeyOrEnd } else { Expect::ElementOrEnd }
                }
                (Expect::Value | Expect::ElementOrEnd, _) => {
                    self.scalar(byte)?;
                    match self.after_value(&mut open)? {
                        Some(next) => next,
                        None => return Ok(()),
                    }
                }
                (Expect::Key | Expect::KeyOrEnd, b'"') => {
                    self.string()?;
                    Expect::Colon
                }
                (Expect::Key | Expect::KeyOrEnd, _) => {
                    return Err(unexpected(byte, "looking for beginning of object key string"));
                }
                (Expect::Colon, b':') => Expect::Value,
                (Expect::Colon, _) => return Err(unexpected(byte, "after object key")),
            };
        }
    }

    /// Reads what follows a value, with the ends of all that ends there. None: nothing is open any more.
    fn after_value(&mut self, open: &mut Vec<u8>) -> Result<Option<Expect>, String> {
        while let Some(&bracket) = open.last() {
            self.skip_blanks();
            match (bracket, self.next()?) {
                (b'{', b',') => return Ok(Some(Expect::Key)),
                (_, b',') => return Ok(Some(Expect::Value)),
                (b'{', b'}') | (b'[', b']') => drop(open.pop()),
                (b'{', byte) => return Err(unexpected(byte, "after object key:value pair")),
                (_, byte) => return Err(unexpected(byte, "after array element")),
            }
        }
        Ok(None)
    }

    fn scalar(&mut self, first: u8) -> Result<(), String> {
        match first {
            b'"' => self.string(),
            b'-' | b'0'..=b'9' => self.number(first),
            b't' => self.literal("true"),
            b'f' => self.literal("false"),
            b'n' => self.literal("null"),
            byte => Err(unexpected(byte, "looking for beginning of value")),
        }
    }

    fn literal(&mut self, name: &str) -> Result<(), String> {
        for expected in name.bytes().skip(1) {
            let byte = self.next()?;
            if byte != expected {
                return Err(unexpected(byte, &format!("in literal {name} (expecting {})", quoted(expected))));
            }
        }
        Ok(())
    }

    /// What follows the opening quote.
    fn string(&mut self) -> Result<(), String> {
        loop {
            match self.next()? {
                b'"' => return Ok(()),
                b'\\' => match self.next()? {
                    b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => {}
                    b'u' => {
                        for _ in 0..4 {
                            let byte = self.next()?;
                            if !byte.is_ascii_hexdigit() {
                                return Err(unexpected(byte, "in \\u hexadecimal character escape"));
                            }
                        }
                    }
                    byte => return Err(unexpected(byte, "in string escape code")),
                },
                byte if byte < b' ' => return Err(unexpected(byte, "in string literal")),
                _ => {}
            }
        }
    }

    fn number(&mut self, first: u8) -> Result<(), String> {
        let first = if first == b'-' { self.digit("in numeric literal")? } else { first };
        if first != b'0' {
            self.digits();
        }
        if let [b'.', rest @ ..] = self.rest {
            self.rest = rest;
            self.digit("after decimal point in numeric literal")?;
            self.digits();
        }
        if let [b'e' | b'E', rest @ ..] = self.rest {
            self.rest = rest;
            if let [b'+' | b'-', rest @ ..] = self.rest {
                self.rest = rest;
            }
            self.digit("in exponent of numeric literal")?;
            self.digits();
        }
        Ok(())
    }

    fn digit(&mut self, place: &str) -> Result<u8, String> {
        let byte = self.next()?;
        if byte.is_ascii_digit() { Ok(byte) } else { Err(unexpected(byte, place)) }
    }

    fn digits(&mut self) {
        while let [b'0'..=b'9', rest @ ..] = self.rest {
            self.rest = rest;
        }
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
