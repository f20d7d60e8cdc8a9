//! URLs of members: read and written as Go's `net/url` does, as far as a member's can differ.

use cli::{go, raw};

/// A URL of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// `http`, `https`, `unix` or `unixs`; what else it may be cannot be connected to.
    pub scheme: String,
    /// Host and port as they stand in the URL.
    pub host: String,
    /// What stands in front of every request's path.
    pub path: String,
    /// `?…`, as it was given.
    query: String,
}

impl Endpoint {
    /// Reads a URL, or says what is wrong with it in Go's words.
    pub fn parse(text: &str) -> Result<Endpoint, String> {
        let fail = |reason: &str| Err(format!("parse {}: {reason}", go::quote(&raw::bytes(text))));
        if text.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
            return fail("net/url: invalid control character in URL");
        }
        let (scheme, rest) = match scheme_length(text) {
            Some(0) => return fail("missing protocol scheme"),
            Some(length) => (text[..length].to_ascii_lowercase(), &text[length + 1..]),
            None => (String::new(), text),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let (rest, query) = match rest.find('?') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if scheme.is_empty() && !rest.starts_with('/') {
            // `127.0.0.1:2379` would be a path, whose first part must not look like a scheme.
            if rest.split('/').next().unwrap_or_default().contains(':') {
                return fail("first path segment in URL cannot contain colon");
            }
        }
        let (host, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            None => ("", rest),
        };
        let host = host.rsplit('@').next().unwrap_or_default();
        let may_stand = |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:[]<>\"%".contains(c);
        if let Some(wrong) = host.chars().find(|c| !may_stand(*c)) {
            return fail(&format!("invalid character {} in host name", go::quote(wrong.to_string().as_bytes())));
        }
        if let Some(port) = port_of(host).filter(|port| !port.bytes().all(|byte| byte.is_ascii_digit())) {
            return fail(&format!("invalid port {} after host", go::quote(format!(":{port}").as_bytes())));
        }
        let path = unescape(path).map_err(|escape| {
            format!("parse {}: invalid URL escape {}", go::quote(&raw::bytes(text)), go::quote(escape.as_bytes()))
        })?;
        Ok(Endpoint { scheme, host: host.to_owned(), path, query: query.to_owned() })
    }

    /// Host and port to connect to.
    pub fn address(&self) -> String {
        match port_of(&self.host) {
            Some(port) if !port.is_empty() => self.host.clone(),
            _ => {
                let port = if self.scheme == "https" { 443 } else { 80 };
                format!("{}:{port}", self.host.trim_end_matches(':'))
            }
        }
    }

    /// The host without its port: the name that a certificate must have.
    pub fn host_name(&self) -> &str {
        let host = match port_of(&self.host) {
            Some(port) => &self.host[..self.host.len() - port.len() - 1],
            None => &self.host,
        };
        host.trim_matches(['[', ']'])
    }

    /// The URL of a path on this member.
    pub fn url_of(&self, path: &str, query: &str) -> String {
        let mark = if query.is_empty() { "" } else { "?" };
        format!("{}://{}{path}{mark}{query}", self.scheme, self.host)
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.scheme.is_empty() {
            write!(f, "{}:", self.scheme)?;
        }
        if !self.scheme.is_empty() || !self.host.is_empty() {
            // What was read as a path without a slash becomes a host, if it is read again.
            let slashes = if self.host.is_empty() && self.path.is_empty() { "" } else { "//" };
            write!(f, "{slashes}{}", self.host)?;
        }
        write!(f, "{}{}", escape_path(&self.path), self.query)
    }
}

/// Where a scheme ends; `Some(0)`: a colon stands where one should begin.
fn scheme_length(text: &str) -> Option<usize> {
    for (at, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if at > 0 => {}
            ':' => return Some(at),
            _ => return None,
        }
    }
    None
}

/// What stands behind the last colon that is not inside of brackets.
fn port_of(host: &str) -> Option<&str> {
    let behind = host.rfind(']').map_or(0, |at| at + 1);
    host[behind..].rsplit_once(':').map(|(_, port)| port)
}

fn unescape(text: &str) -> Result<String, String> {
    let bytes = raw::bytes(text);
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte != b'%' {
            out.push(byte);
            at += 1;
            continue;
        }
        let escape = &bytes[at..bytes.len().min(at + 3)];
        let digits = escape.get(1..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => out.push(byte),
            None => return Err(String::from_utf8_lossy(escape).into_owned()),
        }
        at += 3;
    }
    Ok(raw::text(&out))
}

fn escape(text: &str, stays: impl Fn(u8) -> bool) -> String {
    let mut out = String::new();
    for &byte in raw::bytes(text).iter() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || stays(byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A path as it stands in a URL.
pub fn escape_path(path: &str) -> String {
    escape(path, |byte| b"$&+,/:;=@".contains(&byte))
}

/// Names and values as they stand behind a `?` or in a form, in the order of the names.
pub fn form(fields: &[(&str, &str)]) -> String {
    let mut fields = fields.to_vec();
    fields.sort_unstable();
    let escaped = |text: &str| escape(text, |byte| byte == b' ').replace(' ', "+");
    fields.iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value))).collect::<Vec<_>>().join("&")
}

/// A path without `.`, `..` and doubled slashes. A slash at its end stays.
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let end = if path.ends_with('/') && !parts.is_empty() { "/" } else { "" };
    format!("/{}{end}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_written_as_it_was_read() {
        for url in
            ["http://127.0.0.1:2379", "https://[::1]:2379/a%20b", "unix://localhost:1", "http://host", "http:///x"]
        {
            assert_eq!(Endpoint::parse(url).unwrap().to_string(), url);
        }
        assert_eq!(Endpoint::parse("HTTP://Host:1/a?b#c").unwrap().to_string(), "http://Host:1/a?b");
    }

    #[test]
    fn what_is_no_url_is_refused_in_gos_words() {
        for (url, reason) in [
            ("127.0.0.1:1", "parse \"127.0.0.1:1\": first path segment in URL cannot contain colon"),
            ("::bad", "parse \"::bad\": missing protocol scheme"),
            ("http://a:b", "parse \"http://a:b\": invalid port \":b\" after host"),
            ("http://a b", "parse \"http://a b\": invalid character \" \" in host name"),
            ("http://a/%zz", "parse \"http://a/%zz\": invalid URL escape \"%zz\""),
        ] {
            assert_eq!(Endpoint::parse(url).unwrap_err(), reason);
        }
    }

    #[test]
    fn a_missing_port_is_that_of_the_scheme() {
        for (url, address) in [("http://a", "a:80"), ("https://[::1]", "[::1]:443"), ("http://a:5", "a:5")] {
            assert_eq!(Endpoint::parse(url).unwrap().address(), address);
        }
    }

    #[test]
    fn paths_and_forms_are_escaped_as_in_go() {
        assert_eq!(escape_path("/a b?%é"), "/a%20b%3F%25%C3%A9");
        assert_eq!(form(&[("value", "a b&\"é"), ("ttl", "5")]), "ttl=5&value=a+b%26%22%C3%A9");
        for (given, cleaned) in [("/v2/keys//a/../b/", "/v2/keys/b/"), ("/..", "/"), ("", "/"), ("/a/.", "/a")] {
            assert_eq!(clean(given), cleaned);
        }
    }
}
