//! What is answered, before it is framed: over HTTP/1.1, where its fields go out as they are, or over HTTP/2.

use std::fmt::{self, Write};

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use crate::v2::Body;

/// Room for the fields of an answer about a key.
const USUAL_BYTES: usize = 512;

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) fields: Fields,
    pub(crate) body: Body,
}

impl Answer {
    pub(crate) fn new(status: StatusCode, content_type: &str, body: Body) -> Self {
        let mut fields = Fields::default();
        fields.add("Content-Type", content_type);
        Self { status, fields, body }
    }
}

impl From<Response<Body>> for Answer {
    fn from(response: Response<Body>) -> Self {
        let (head, body) = response.into_parts();
        Self { status: head.status, fields: Fields::from(&head.headers), body }
    }
}

impl From<Response<Bytes>> for Answer {
    fn from(response: Response<Bytes>) -> Self {
        response.map(Body::Whole).into()
    }
}

impl From<Answer> for Response<Body> {
    fn from(Answer { status, fields, body }: Answer) -> Self {
        let length = if let Body::Whole(body) = &body { Some(body.len()) } else { None };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = fields.to_map();
        if let Some(length) = length {
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        response
    }
}

/// Fields as they go out. An answer about a key has nine of them: making a map of those only to write them one after the
/// other cost a third of the request.
#[derive(Default)]
pub(crate) struct Fields(BytesMut);

impl Fields {
    /// Adds a field. `name` is spelt as Go spells it: scripts look for that. `value` must be free of line ends.
    pub(crate) fn add(&mut self, name: &str, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        debug_assert!(!value.iter().any(|byte| matches!(byte, b'\r' | b'\n')), "{name} would be two fields");
        self.begin(name, value.len());
        self.0.extend_from_slice(value);
        self.0.extend_from_slice(b"\r\n");
    }

    /// The same, for what is yet to be formatted.
    pub(crate) fn add_formatted(&mut self, name: &str, value: fmt::Arguments<'_>) {
        self.begin(name, 0);
        // Memory does not fail.
        let _ = self.0.write_fmt(value);
        self.0.extend_from_slice(b"\r\n");
    }

    fn begin(&mut self, name: &str, more: usize) {
        self.0.reserve(USUAL_BYTES.max(name.len() + more + 4));
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b": ");
    }

    fn to_map(&self) -> HeaderMap {
        let lines = self.as_bytes().split(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\r"));
        let pairs = lines.filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            Some((
                HeaderName::from_bytes(&line[..colon]).ok()?,
                HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?,
            ))
        });
        pairs.collect()
    }

    /// All of them, each with its line's end.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&HeaderMap> for Fields {
    /// The length is left out: it is told when the body is framed.
    fn from(headers: &HeaderMap) -> Self {
        let mut this = Self::default();
        for (name, value) in headers.iter().filter(|(name, _)| *name != CONTENT_LENGTH) {
            let at = this.0.len();
            this.add(name.as_str(), value);
            capitalise(&mut this.0[at..at + name.as_str().len()]);
        }
        this
    }
}

/// Spells a name as Go does.
fn capitalise(name: &mut [u8]) {
    let mut begins = true;
    for byte in name {
        if begins {
            byte.make_ascii_uppercase();
        }
        begins = *byte == b'-';
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_spelt_as_go_spells_them_and_come_back_as_a_map() {
        let mut map = HeaderMap::new();
        map.insert("x-etcd-index", HeaderValue::from_static("7"));
        map.insert("content-length", HeaderValue::from_static("3"));
        let mut fields = Fields::from(&map);
        fields.add("Content-Type", "text/plain");
        fields.add_formatted("X-Raft-Term", format_args!("{}", 9));
        assert_eq!(fields.as_bytes(), b"X-Etcd-Index: 7\r\nContent-Type: text/plain\r\nX-Raft-Term: 9\r\n");
        let answer = Answer { status: StatusCode::CREATED, fields, body: Body::Whole("abc".into()) };
        let response = Response::<Body>::from(answer);
        let map = response.headers();
        assert_eq!((response.status(), map.len()), (StatusCode::CREATED, 4));
        assert_eq!(
            (&map["x-etcd-index"], &map["x-raft-term"], &map["content-length"]),
            (&HeaderValue::from_static("7"), &HeaderValue::from_static("9"), &HeaderValue::from_static("3"),)
        );
    }
}
