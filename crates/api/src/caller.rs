//! Who calls: what a connection and a request say about it, before anybody has checked it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};

/// What is known of whoever is at the other end of a connection. Holds for all of its calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// The subject's common name in the client certificate, if one was presented and verified against the trusted CA, and
    /// `--client-cert-auth` says that this is how clients show who they are.
    pub common_name: Option<Arc<str>>,
    /// The connection is in TLS.
    pub is_secure: bool,
    /// Its address.
    pub remote: Option<SocketAddr>,
}

/// Who makes a call, as far as the call says: nothing of it has been checked.
#[derive(Clone, Default)]
pub struct Caller {
    token: Option<HeaderValue>,
    common_name: Option<Arc<str>>,
    remote: Option<SocketAddr>,
}

impl Caller {
    /// Of a gRPC call with this metadata. A call that says of itself that it was translated from JSON (by etcd's own gateway,
    /// which calls with the certificate of the server) never gets its rights from a certificate.
    pub fn of_grpc(metadata: &HeaderMap, client: &Client) -> Self {
        let token = metadata.get("token").or_else(|| metadata.get(AUTHORIZATION)).cloned();
        let is_translated = metadata.contains_key("grpcgateway-accept");
        Self { token, common_name: client.common_name.clone().filter(|_| !is_translated), remote: client.remote }
    }

    /// Of a request to the JSON gateway with these headers. Certificates do not count there (CVE-2018-16886), so it does not ask
    /// for the connection's client.
    pub fn of_gateway(headers: &HeaderMap) -> Self {
        // grpc-gateway makes metadata of each header that begins so.
        let token = headers.get("grpc-metadata-token").or_else(|| headers.get(AUTHORIZATION)).cloned();
        Self { token, common_name: None, remote: None }
    }

    /// The token that came with the call. One that is no text is the empty token, which nobody has.
    pub fn token(&self) -> Option<&str> {
        let token = self.token.as_ref()?.to_str().unwrap_or_default();
        Some(token.strip_prefix("Bearer ").unwrap_or(token))
    }

    /// The address that the call came from.
    pub fn remote(&self) -> Option<SocketAddr> {
        self.remote
    }

    /// The name in the certificate of the connection, if it may stand for a user.
    pub fn common_name(&self) -> Option<&Arc<str>> {
        self.common_name.as_ref()
    }
}

/// Without the token: it is as good as a password while it lasts.
impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "...");
        f.debug_struct("Caller").field("token", &token).field("common_name", &self.common_name).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |&(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value));
        list.iter().map(pair).collect()
    }

    fn alice() -> Client {
        Client { common_name: Some("alice".into()), is_secure: true, remote: None }
    }

    #[test]
    fn a_token_is_found_by_either_name_with_or_without_bearer() {
        let of = |list: &[_]| Caller::of_grpc(&headers(list), &Client::default());
        assert_eq!(of(&[]).token(), None);
        assert_eq!(of(&[("token", "abc.1")]).token(), Some("abc.1"));
        assert_eq!(of(&[("authorization", "Bearer abc.1")]).token(), Some("abc.1"));
        assert_eq!(of(&[("authorization", "abc.1"), ("token", "xyz.2")]).token(), Some("xyz.2"));
        assert_eq!(Caller::of_gateway(&headers(&[("authorization", "abc.1")])).token(), Some("abc.1"));
        assert_eq!(Caller::of_gateway(&headers(&[("grpc-metadata-token", "abc.1")])).token(), Some("abc.1"));
    }

    /// CVE-2018-16886: a request through the gateway took its rights from a certificate that was not its client's.
    #[test]
    fn a_certificate_gives_no_rights_through_the_gateway() {
        assert_eq!(Caller::of_grpc(&headers(&[]), &alice()).common_name().map(AsRef::as_ref), Some("alice"));
        let translated = headers(&[("grpcgateway-accept", "*/*")]);
        assert_eq!(Caller::of_grpc(&translated, &alice()).common_name(), None);
        assert_eq!(Caller::of_gateway(&headers(&[])).common_name(), None);
    }

    #[test]
    fn a_token_is_not_shown() {
        let caller = Caller::of_grpc(&headers(&[("token", "secret.1")]), &alice());
        assert!(!format!("{caller:?}").contains("secret"));
    }
}
