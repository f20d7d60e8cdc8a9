//! Parameters of a request to keys: from the query, and from a form in the body, whose values win.

use std::borrow::Cow;

use http::Method;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use memchr::memchr;
use proto::v2pb;
use state::v2::{self, Code, Error, KEYS};

use super::unescape;

/// A name or a value: a piece of the request unless something in it had to be decoded.
type Piece<'a> = Cow<'a, [u8]>;

/// Names and values in the order in which they count.
#[derive(Debug, Default)]
struct Form<'a> {
    fields: Vec<(Piece<'a>, Piece<'a>)>,
    /// What was wrong first; the other fields were read all the same.
    fault: Option<String>,
}

impl<'a> Form<'a> {
    fn parse(&mut self, text: &'a [u8]) {
        let mut rest = Some(text);
        while let Some(text) = rest {
            let pair;
            (pair, rest) = match memchr(b'&', text) {
                Some(at) => (&text[..at], Some(&text[at + 1..])),
                None => (text, None),
            };
            if memchr(b';', pair).is_some() {
                self.fault.get_or_insert_with(|| "invalid semicolon separator in query".into());
                continue;
            }
            if pair.is_empty() {
                continue;
            }
            let (name, value) = match memchr(b'=', pair) {
                Some(at) => (&pair[..at], &pair[at + 1..]),
                None => (pair, &[][..]),
            };
            match (unescape(name, true), unescape(value, true)) {
                (Ok(name), Ok(value)) => self.fields.push((name, value)),
                (Err(bad), _) | (_, Err(bad)) => {
                    self.fault.get_or_insert_with(|| format!("invalid URL escape {bad:?}"));
                }
            }
        }
    }

    fn get(&self, name: &str) -> Option<&[u8]> {
        self.fields.iter().find(|(known, _)| **known == *name.as_bytes()).map(|(_, value)| &**value)
    }

    fn number(&self, name: &str, code: Code) -> Result<Option<u64>, Error> {
        let Some(value) = self.get(name) else { return Ok(None) };
        // Go takes digits only: no sign.
        let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        let number = digits.and_then(|text| text.parse().ok());
        number.map(Some).ok_or_else(|| Error::new(code, format!("invalid value for {name:?}"), 0))
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, ()> {
        match self.get(name) {
            None => Ok(None),
            Some(b"1" | b"t" | b"T" | b"TRUE" | b"true" | b"True") => Ok(Some(true)),
            Some(b"0" | b"f" | b"F" | b"FALSE" | b"false" | b"False") => Ok(Some(false)),
            Some(_) => Err(()),
        }
    }

    fn plain_flag(&self, name: &str) -> Result<bool, Error> {
        let flag = self.flag(name).map_err(|()| invalid(format!("invalid value for {name:?}")))?;
        Ok(flag.unwrap_or(false))
    }
}

fn invalid(cause: impl Into<String>) -> Error {
    Error::new(Code::InvalidField, cause, 0)
}

/// Whether the body of such a request is read as a form.
pub(super) fn has_form(head: &Parts) -> bool {
    let kind = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim();
    let may = head.method == Method::POST || head.method == Method::PUT || head.method == Method::PATCH;
    may && kind.eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// A request, understood. The log entry has no ID yet.
#[derive(Debug)]
pub(super) struct KeyRequest {
    pub(super) entry: v2pb::Request,
    /// The answer to a change says only what was done.
    pub(super) no_value_on_success: bool,
}

/// Understands a request for `key`. `now` is in nanoseconds since 1970. The order of the checks is etcd's.
pub(super) fn parse(head: &Parts, key: &str, body: &[u8], now: i64) -> Result<KeyRequest, Error> {
    let mut form = Form::default();
    form.parse(body);
    form.parse(head.uri.query().unwrap_or("").as_bytes());
    if let Some(fault) = form.fault.take() {
        return Err(Error::new(Code::InvalidForm, fault, 0));
    }
    let prev_index = form.number("prevIndex", Code::IndexNotANumber)?.unwrap_or(0);
    let since = form.number("waitIndex", Code::IndexNotANumber)?.unwrap_or(0);
    let recursive = form.plain_flag("recursive")?;
    let sorted = form.plain_flag("sorted")?;
    let wait = form.plain_flag("wait")?;
    let dir = form.plain_flag("dir")?;
    let quorum = form.plain_flag("quorum")?;
    let stream = form.plain_flag("stream")?;
    if wait && head.method != Method::GET {
        return Err(invalid("\"wait\" can only be used with GET requests"));
    }
    let prev_value = form.get("prevValue");
    if prev_value.is_some_and(<[u8]>::is_empty) {
        return Err(Error::new(Code::PrevValueRequired, "\"prevValue\" cannot be empty", 0));
    }
    let no_value_on_success = form.plain_flag("noValueOnSuccess")?;
    // An empty TTL is none.
    let ttl = match form.get("ttl") {
        Some(b"") => None,
        _ => form.number("ttl", Code::TtlNotANumber)?,
    };
    let prev_exist = form.flag("prevExist").map_err(|()| invalid("invalid value for prevExist"))?;
    let refresh = form.flag("refresh").map_err(|()| invalid("invalid value for refresh"))?;
    let value = form.get("value").unwrap_or_default();
    if refresh == Some(true) {
        if !value.is_empty() {
            return Err(Error::new(Code::RefreshValue, "A value was provided on a refresh", 0));
        }
        if ttl.is_none() {
            return Err(Error::new(Code::RefreshTtlRequired, "No TTL value set", 0));
        }
    }
    // Go's integers wrap.
    let expiration = ttl.map_or(0, |ttl| (ttl as i64).wrapping_mul(1_000_000_000).wrapping_add(now));
    let method = if head.method == Method::GET && quorum { "QGET" } else { head.method.as_str() };
    let key = key.trim_matches('/');
    let path = if key.is_empty() { KEYS.to_owned() } else { [KEYS, "/", key].concat() };
    let entry = v2pb::Request {
        dir: Some(dir),
        prev_value: Some(prev_value.unwrap_or_default().to_vec().into()),
        prev_index: Some(prev_index),
        prev_exist,
        expiration: Some(expiration),
        wait: Some(wait),
        since: Some(since),
        recursive: Some(recursive),
        sorted: Some(sorted),
        quorum: Some(quorum),
        time: Some(now),
        stream: Some(stream),
        refresh,
        ..v2::request(method, path, value.to_vec())
    };
    Ok(KeyRequest { entry, no_value_on_success })
}
