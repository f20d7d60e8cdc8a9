//! The headers by which members recognise one another, and the checks of them.

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Response, StatusCode};

use crate::outlet::Body;
use crate::transport::Config;

pub(crate) const CLUSTER_ID: HeaderName = HeaderName::from_static("x-etcd-cluster-id");
pub(crate) const SERVER_FROM: HeaderName = HeaderName::from_static("x-server-from");
pub(crate) const SERVER_VERSION: HeaderName = HeaderName::from_static("x-server-version");
pub(crate) const MIN_CLUSTER_VERSION: HeaderName = HeaderName::from_static("x-min-cluster-version");
pub(crate) const RAFT_TO: HeaderName = HeaderName::from_static("x-raft-to");
pub(crate) const PEER_URLS: HeaderName = HeaderName::from_static("x-peerurls");

/// What a member that does not tell its version is taken for.
const SILENT_VERSION: &str = "2.0.0";

pub(crate) const INCOMPATIBLE_VERSION: &str = "incompatible version";
pub(crate) const CLUSTER_MISMATCH: &str = "cluster ID mismatch";

/// A version's parts that decide whether two members understand one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MajorMinor(pub u64, pub u64);

impl MajorMinor {
    /// Parses `major.minor.patch`, with `-pre-release` and `+build` behind it if they are there.
    pub(crate) fn parse(version: &str) -> Option<Self> {
        let core = version.split(['-', '+']).next()?;
        let mut parts = core.split('.').map(|part| match part.bytes().all(|byte| byte.is_ascii_digit()) {
            true => part.parse::<u64>().ok(),
            false => None,
        });
        let parsed = Self(parts.next()??, parts.next()??);
        parts.next()??;
        parts.next().is_none().then_some(parsed)
    }
}

/// What comes of looking at a request's headers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Answer with 412 and this text.
    Precondition(&'static str),
    /// The version cannot be read: every etcd closes the connection without an answer.
    Hang,
}

/// Checks version and cluster, in etcd's order.
pub(crate) fn check_cluster(config: &Config, headers: &HeaderMap) -> Result<(), Refusal> {
    let version = |name| {
        let text = headers.get(name).map_or(Some(SILENT_VERSION), |value| value.to_str().ok())?;
        MajorMinor::parse(if text.is_empty() { SILENT_VERSION } else { text })
    };
    let server = version(SERVER_VERSION).ok_or(Refusal::Hang)?;
    let least = version(MIN_CLUSTER_VERSION).ok_or(Refusal::Hang)?;
    let (local, local_least) =
        (MajorMinor::parse(config.server_version), MajorMinor::parse(config.min_cluster_version));
    if Some(server) < local_least || Some(least) > local {
        return Err(Refusal::Precondition(INCOMPATIBLE_VERSION));
    }
    if id(headers, CLUSTER_ID) != Some(config.cluster_id) {
        return Err(Refusal::Precondition(CLUSTER_MISMATCH));
    }
    Ok(())
}

/// A header that holds an ID in hex. `None` if it is absent or not one.
pub(crate) fn id(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    u64::from_str_radix(headers.get(name)?.to_str().ok()?, 16).ok()
}

/// The sender and its URLs, if it told both.
pub(crate) fn sender(headers: &HeaderMap) -> Option<(u64, Vec<String>)> {
    let urls = headers.get(PEER_URLS)?.to_str().ok()?;
    let urls: Vec<String> = urls.split(',').filter(|url| !url.is_empty()).map(str::to_owned).collect();
    (!urls.is_empty()).then_some((id(headers, SERVER_FROM)?, urls))
}

/// The headers by which this member introduces itself, in the spelling that Go gives them.
pub(crate) fn introduction(config: &Config) -> Vec<(HeaderName, String)> {
    let mut headers = vec![
        (SERVER_FROM, format!("{:x}", config.member_id)),
        (SERVER_VERSION, config.server_version.to_owned()),
        (MIN_CLUSTER_VERSION, config.min_cluster_version.to_owned()),
        (CLUSTER_ID, format!("{:x}", config.cluster_id)),
    ];
    if !config.peer_urls.is_empty() {
        headers.push((PEER_URLS, config.peer_urls.join(",")));
    }
    headers
}

/// An answer as Go's `http.Error` gives it: text, a newline, and no guessing of the type.
pub(crate) fn error(status: StatusCode, text: impl std::fmt::Display) -> Response<Body> {
    let mut response = Response::new(Body::text(format!("{text}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// An answer with a body of a type.
pub(crate) fn answer(content_type: &'static str, body: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Whole(Some(body.into())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_go_semver_reads_them() {
        assert_eq!(MajorMinor::parse("3.7.1"), Some(MajorMinor(3, 7)));
        assert_eq!(MajorMinor::parse("3.8.0-alpha.0+dev"), Some(MajorMinor(3, 8)));
        for bad in ["", "3", "3.7", "3.7.1.2", "3.x.1", "+3.7.1", "v3.7.1", "3. 7.1", "3.7."] {
            assert_eq!(MajorMinor::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn version_is_checked_before_cluster() {
        let config = Config::new(0xabc, 1, Vec::new(), "3.7.1");
        let check = |pairs: &[(HeaderName, &'static str)]| {
            let headers = pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
            check_cluster(&config, &headers)
        };
        let incompatible = Err(Refusal::Precondition(INCOMPATIBLE_VERSION));
        let mismatch = Err(Refusal::Precondition(CLUSTER_MISMATCH));
        assert_eq!(check(&[]), incompatible);
        assert_eq!(check(&[(SERVER_VERSION, "2.3.8"), (CLUSTER_ID, "abc")]), incompatible);
        assert_eq!(
            check(&[(SERVER_VERSION, "3.9.0"), (MIN_CLUSTER_VERSION, "3.8.0"), (CLUSTER_ID, "abc")]),
            incompatible
        );
        assert_eq!(check(&[(SERVER_VERSION, "3.0.0")]), mismatch);
        assert_eq!(check(&[(SERVER_VERSION, "3.4.23"), (CLUSTER_ID, "abd")]), mismatch);
        assert_eq!(check(&[(SERVER_VERSION, "3.4.23"), (CLUSTER_ID, "zz")]), mismatch);
        assert_eq!(check(&[(SERVER_VERSION, "three"), (CLUSTER_ID, "abc")]), Err(Refusal::Hang));
        assert_eq!(check(&[(SERVER_VERSION, "3.4.23"), (MIN_CLUSTER_VERSION, "3.0.0"), (CLUSTER_ID, "abc")]), Ok(()));
    }
}
