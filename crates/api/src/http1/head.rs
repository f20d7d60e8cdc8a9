//! The head of a request: what is asked, and how long the body is that follows.
//!
//! Where two readers could see the end of a request in two places, a proxy in front of us and we might disagree about
//! where the next one begins; such requests are refused (RFC 9112, sections 5 and 6).

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version};
use memchr::memchr_iter;

/// Fields that a head may have.
const MAX_FIELDS: usize = 128;

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// After so many bytes.
    Known(u64),
    /// As its last chunk says.
    Chunked,
}

/// A request without its body.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) parts: Parts,
    pub(super) length: Length,
    /// The connection may be used again.
    pub(super) keep_alive: bool,
    /// The client waits for leave to send the body.
    pub(super) waits_for_leave: bool,
}

/// Why a request is refused unread: the status, and what Go says besides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault(pub(super) StatusCode, pub(super) &'static str);

impl Fault {
    const fn bad(text: &'static str) -> Self {
        Self(StatusCode::BAD_REQUEST, text)
    }
}

/// The end of the head with which `input` begins, if it is there; `seen` bytes of it have been looked at before.
pub(super) fn end(input: &[u8], seen: usize) -> Option<usize> {
    let from = seen.saturating_sub(3);
    // A line's end that follows another one's.
    memchr_iter(b'\n', &input[from..]).map(|at| from + at + 1).find_map(|at| match &input[at..] {
        [b'\n', ..] => Some(at + 1),
        [b'\r', b'\n', ..] => Some(at + 2),
        _ => None,
    })
}

/// Understands a whole head.
pub(super) fn parse(head: Bytes) -> Result<Head, Fault> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(&head, &mut fields) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(Fault::bad("")),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Fault(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, ""));
        }
        Err(httparse::Error::Version) => {
            return Err(Fault(StatusCode::HTTP_VERSION_NOT_SUPPORTED, ": unsupported protocol version"));
        }
        Err(_) => return Err(Fault::bad("")),
    }
    let is_1_1 = request.version == Some(1);
    let method = Method::from_bytes(request.method.unwrap_or_default().as_bytes()).map_err(|_| Fault::bad(""))?;
    let target = head.slice_ref(request.path.unwrap_or_default().as_bytes());
    let uri = Uri::from_maybe_shared(target).map_err(|_| Fault::bad(""))?;
    let mut headers = HeaderMap::with_capacity(request.headers.len());
    for field in request.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Fault::bad(": invalid header name"))?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value));
        headers.append(name, value.map_err(|_| Fault::bad(": invalid header value"))?);
    }
    let hosts = headers.get_all(HOST).iter().count();
    if hosts > 1 {
        return Err(Fault::bad(": too many Host headers"));
    }
    if is_1_1 && hosts == 0 {
        return Err(Fault::bad(": missing required Host header"));
    }
    let length = length(&headers, is_1_1)?;
    let says = |word: &str| {
        let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case(word))
    };
    let keep_alive = if is_1_1 { !says("close") } else { says("keep-alive") };
    let waits_for_leave = match headers.get(EXPECT) {
        None => false,
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => is_1_1,
        Some(_) => return Err(Fault(StatusCode::EXPECTATION_FAILED, "")),
    };
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = method;
    parts.uri = uri;
    parts.version = if is_1_1 { Version::HTTP_11 } else { Version::HTTP_10 };
    parts.headers = headers;
    Ok(Head { parts, length, keep_alive, waits_for_leave })
}

fn length(headers: &HeaderMap, is_1_1: bool) -> Result<Length, Fault> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let given = lengths.next();
    if given.is_some_and(|first| lengths.any(|other| other != first)) {
        return Err(Fault::bad(": different values of Content-Length"));
    }
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let Some(encoding) = encodings.next() else {
        let Some(given) = given else { return Ok(Length::Known(0)) };
        // Digits and nothing else: no sign, no list.
        let digits = given.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let length = digits.and_then(|text| text.parse().ok()).ok_or(Fault::bad(": bad Content-Length"))?;
        return Ok(Length::Known(length));
    };
    if given.is_some() || !is_1_1 {
        return Err(Fault::bad(": Transfer-Encoding beside Content-Length, or in HTTP/1.0"));
    }
    if encodings.next().is_some() || !encoding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return Err(Fault(StatusCode::NOT_IMPLEMENTED, ": unsupported transfer encoding"));
    }
    Ok(Length::Chunked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(fields: &str) -> Result<Head, Fault> {
        parse(Bytes::from(format!("PUT /v2/keys/a HTTP/1.1\r\nHost: h\r\n{fields}\r\n")))
    }

    #[test]
    fn a_head_ends_with_an_empty_line_however_it_arrives() {
        for (text, expected) in [
            ("GET / HTTP/1.1\r\n\r\nbody", Some(18)),
            ("GET / HTTP/1.1\n\nbody", Some(16)),
            ("GET / HTTP/1.1\r\nA: b\n\r\n", Some(23)),
            ("GET / HTTP/1.1\r\nA: b\r\n\r", None),
            ("GET / HTTP/1.1\r\nA: b\r\nB: c\r\n", None),
        ] {
            let text = text.as_bytes();
            assert_eq!(end(text, 0), expected);
            // One byte after the other.
            let found = (1..=text.len()).find_map(|length| end(&text[..length], length - 1));
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_body_is_as_long_as_its_head_says() {
        for (fields, expected) in [
            ("", Length::Known(0)),
            ("Content-Length: 7\r\n", Length::Known(7)),
            ("Content-Length: 7\r\ncontent-length: 7\r\n", Length::Known(7)),
            ("Transfer-Encoding: Chunked\r\n", Length::Chunked),
        ] {
            assert_eq!(parsed(fields).expect(fields).length, expected, "{fields}");
        }
    }

    /// What makes two readers of one connection disagree.
    #[test]
    fn a_request_that_could_be_read_in_two_ways_is_refused() {
        for fields in [
            "Content-Length: 7\r\nContent-Length: 8\r\n",
            "Content-Length: 7, 7\r\n",
            "Content-Length: +7\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 0x7\r\n",
            "Content-Length: \r\n",
            "Content-Length: 18446744073709551616\r\n",
            "Content-Length : 7\r\n",
            "Content-Length: 7\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 7\r\n",
            "A: b\r\n folded: c\r\n",
            "A: b\0\r\n",
            "A: b\rc\r\n",
            "A b: c\r\n",
            ": c\r\n",
            "Host: other\r\n",
        ] {
            assert_eq!(parsed(fields).map_err(|Fault(status, _)| status.as_u16()).expect_err(fields), 400, "{fields}");
        }
        for fields in [
            "Transfer-Encoding: gzip\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: \x0bchunked\r\n",
        ] {
            let status = parsed(fields).map_err(|Fault(status, _)| status.as_u16()).expect_err(fields);
            assert!([400, 501].contains(&status), "{fields}: {status}");
        }
        let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(parse(old.into()).expect_err("not in HTTP/1.0").0, 400);
        assert_eq!(parse("GET / HTTP/1.1\r\n\r\n".into()).expect_err("whom?").0, 400);
        assert_eq!(parse("GET / HTTP/2.0\r\n\r\n".into()).expect_err("not here").0, 505);
        assert_eq!(parsed("Expect: miracles\r\n").expect_err("what?").0, 417);
        assert_eq!(parsed(&"A: b\r\n".repeat(MAX_FIELDS)).expect_err("too many").0, 431);
    }

    #[test]
    fn whether_a_connection_is_used_again_depends_on_the_version_and_what_it_says() {
        let keeps = |version: &str, fields: &str| {
            let head = format!("GET / HTTP/{version}\r\nHost: h\r\n{fields}\r\n");
            parse(head.into()).expect("a head").keep_alive
        };
        assert!(keeps("1.1", "") && !keeps("1.1", "Connection: Close\r\n"));
        assert!(!keeps("1.1", "Connection: te, close\r\n"));
        assert!(!keeps("1.0", "") && keeps("1.0", "Connection: Keep-Alive\r\n"));
    }
}
