//! JSON as Go's `encoding/json` writes it: fields in the order of the message, zeros left out, bytes in base64.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// An object that is being written.
pub struct Object<'a> {
    out: &'a mut String,
    is_empty: bool,
}

impl<'a> Object<'a> {
    /// Opens an object.
    pub fn begin(out: &'a mut String) -> Self {
        out.push('{');
        Object { out, is_empty: true }
    }

    /// Closes it.
    pub fn end(self) {
        self.out.push('}');
    }

    fn name(&mut self, name: &str) -> &mut String {
        if !self.is_empty {
            self.out.push(',');
        }
        self.is_empty = false;
        push_text(self.out, name);
        self.out.push(':');
        self.out
    }

    /// A number.
    pub fn number(&mut self, name: &str, number: impl Into<i128>) {
        let text = number.into().to_string();
        self.name(name).push_str(&text);
    }

    /// A number that is left out when it is 0.
    pub fn some_number(&mut self, name: &str, number: impl Into<i128>) {
        let number = number.into();
        if number != 0 {
            self.number(name, number);
        }
    }

    /// A truth value.
    pub fn flag(&mut self, name: &str, flag: bool) {
        self.name(name).push_str(if flag { "true" } else { "false" });
    }

    /// A truth value that is left out when it is false.
    pub fn some_flag(&mut self, name: &str, flag: bool) {
        if flag {
            self.flag(name, flag);
        }
    }

    /// A text.
    pub fn text(&mut self, name: &str, text: &str) {
        push_text(self.name(name), text);
    }

    /// A text that is left out when it is empty.
    pub fn some_text(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            self.text(name, text);
        }
    }

    /// Bytes that are left out when they are none.
    pub fn some_bytes(&mut self, name: &str, bytes: &[u8]) {
        if !bytes.is_empty() {
            push_base64(self.name(name), bytes);
        }
    }

    /// Something else.
    pub fn value(&mut self, name: &str, write: impl FnOnce(&mut String)) {
        write(self.name(name));
    }

    /// An object in it.
    pub fn object(&mut self, name: &str, write: impl FnOnce(&mut Object<'_>)) {
        let mut inner = Object::begin(self.name(name));
        write(&mut inner);
        inner.end();
    }

    /// A list.
    pub fn list<T>(&mut self, name: &str, items: &[T], write: impl FnMut(&mut String, &T)) {
        push_list(self.name(name), items, write);
    }

    /// A list that is left out when it is empty.
    pub fn some_list<T>(&mut self, name: &str, items: &[T], write: impl FnMut(&mut String, &T)) {
        if !items.is_empty() {
            self.list(name, items, write);
        }
    }

    /// A list that is `null` when it is empty, as a slice is in Go that nothing was put into.
    pub fn nullable_list<T>(&mut self, name: &str, items: &[T], write: impl FnMut(&mut String, &T)) {
        if items.is_empty() {
            self.name(name).push_str("null");
        } else {
            self.list(name, items, write);
        }
    }
}

/// A list.
pub fn push_list<T>(out: &mut String, items: &[T], mut write: impl FnMut(&mut String, &T)) {
    out.push('[');
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        write(out, item);
    }
    out.push(']');
}

/// A text in quotes. Go also escapes what HTML could trip over.
pub fn push_text(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..='\x1f' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Bytes in base64, in quotes.
pub fn push_base64(out: &mut String, bytes: &[u8]) {
    out.push('"');
    BASE64_STANDARD.encode_string(bytes, out);
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_html_could_trip_over_is_escaped_as_in_go() {
        let mut out = String::new();
        push_text(&mut out, "<a&b>\n\x01\"");
        assert_eq!(out, "\"\\u003ca\\u0026b\\u003e\\n\\u0001\\\"\"");
    }
}
