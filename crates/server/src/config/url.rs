//! URLs that a member listens on or can be reached at: a scheme and an address, nothing else.

use std::fmt;
use std::net::IpAddr;

/// How to speak at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// Plain TCP.
    Http,
    /// TLS over TCP.
    Https,
    /// A plain Unix socket.
    Unix,
    /// TLS over a Unix socket.
    Unixs,
}

impl Scheme {
    fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Unix => "unix",
            Scheme::Unixs => "unixs",
        }
    }

    /// Whether TLS is spoken.
    pub fn is_secure(self) -> bool {
        matches!(self, Scheme::Https | Scheme::Unixs)
    }

    /// Whether the address is a Unix socket.
    pub fn is_unix(self) -> bool {
        matches!(self, Scheme::Unix | Scheme::Unixs)
    }
}

/// Why a URL was refused, in etcd's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// A scheme that etcd does not know, or none.
    #[error("URL scheme must be http, https, unix, or unixs: {0}")]
    Scheme(String),
    /// No host or no port.
    #[error("URL address does not have the form \"host:port\": {0}")]
    Address(String),
    /// Something after the address.
    #[error("URL must not contain a path: {0}")]
    Path(String),
    /// Characters that cannot stand in a URL.
    #[error("parse {0:?}: invalid character in URL")]
    Character(String),
}

/// A URL of a member. For Unix sockets, `address` is a path or `host:port` that stands for a file name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url {
    scheme: Scheme,
    address: String,
}

impl Url {
    /// Reads one URL; blanks around it are ignored.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        if text.chars().any(|c| c.is_control() || c == ' ') {
            return Err(UrlError::Character(text.to_owned()));
        }
        let refuse = |make: fn(String) -> UrlError| Err(make(text.to_owned()));
        let Some((scheme, rest)) = text.split_once("://") else { return refuse(UrlError::Scheme) };
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" => return Ok(Url { scheme: Scheme::Unix, address: rest.to_owned() }),
            "unixs" => return Ok(Url { scheme: Scheme::Unixs, address: rest.to_owned() }),
            _ => return refuse(UrlError::Scheme),
        };
        let (address, path) = match rest.find(['/', '?', '#']) {
            Some(end) => rest.split_at(end),
            None => (rest, ""),
        };
        if split_host_port(address).is_none() {
            return refuse(UrlError::Address);
        }
        if path.starts_with('/') {
            return refuse(UrlError::Path);
        }
        Ok(Url { scheme, address: address.to_owned() })
    }

    /// Reads a comma-separated list: sorted, each URL once.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, UrlError> {
        let mut urls = text.split(',').map(Url::parse).collect::<Result<Vec<_>, _>>()?;
        urls.sort_by_key(Url::to_string);
        urls.dedup();
        Ok(urls)
    }

    /// How to speak there.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// `host:port`, or the socket's path.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The host, without brackets; for Unix sockets what stands before the last colon, if anything does.
    pub fn host(&self) -> &str {
        split_host_port(&self.address).map_or("", |(host, _)| host)
    }

    /// The port, empty if there is none.
    pub fn port(&self) -> &str {
        split_host_port(&self.address).map_or("", |(_, port)| port)
    }

    /// The same URL at another host.
    pub fn with_host(&self, host: IpAddr, port: &str) -> Self {
        let address = match host {
            IpAddr::V4(host) => format!("{host}:{port}"),
            IpAddr::V6(host) => format!("[{host}]:{port}"),
        };
        Url { scheme: self.scheme, address }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.name(), self.address)
    }
}

/// Splits `host:port` and `[host]:port` as Go's `net.SplitHostPort` does.
fn split_host_port(address: &str) -> Option<(&str, &str)> {
    if let Some(rest) = address.strip_prefix('[') {
        let (host, port) = rest.split_once("]:")?;
        return (!port.contains([':', '[', ']'])).then_some((host, port));
    }
    let (host, port) = address.rsplit_once(':')?;
    (!host.contains([':', '[', ']'])).then_some((host, port))
}

/// The URLs as text, for lists in messages and log lines.
pub fn texts(urls: &[Url]) -> Vec<String> {
    urls.iter().map(Url::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_refused_in_etcds_words() {
        for (text, error) in [
            ("foo", "URL scheme must be http, https, unix, or unixs: foo"),
            ("", "URL scheme must be http, https, unix, or unixs: "),
            ("ftp://127.0.0.1:1", "URL scheme must be http, https, unix, or unixs: ftp://127.0.0.1:1"),
            ("http://127.0.0.1", "URL address does not have the form \"host:port\": http://127.0.0.1"),
            ("http://::1:2379", "URL address does not have the form \"host:port\": http://::1:2379"),
            ("http://127.0.0.1:1/foo", "URL must not contain a path: http://127.0.0.1:1/foo"),
            ("http://127.0.0.1:1/", "URL must not contain a path: http://127.0.0.1:1/"),
        ] {
            assert_eq!(Url::parse(text).unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn a_list_is_sorted_and_holds_nothing_twice() {
        let urls = Url::parse_list("http://b:1, https://a:1,http://a:1,http://b:1").unwrap();
        assert_eq!(texts(&urls), ["http://a:1", "http://b:1", "https://a:1"]);
    }

    #[test]
    fn hosts_and_ports_come_apart() {
        for (text, host, port) in [
            ("http://h:1", "h", "1"),
            ("https://[::1]:2379", "::1", "2379"),
            ("http://:1", "", "1"),
            ("unix:///a", "", ""),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!((url.host(), url.port()), (host, port));
            assert_eq!(url.to_string(), text);
        }
    }
}
