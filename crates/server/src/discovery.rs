//! `--discovery`: members that do not know each other yet find each other at a v2 server.
//!
//! The URL names a directory there, the *token*. Whoever wants to found the cluster has put the number of its members
//! into `TOKEN/_config/size`. Each member adds a key named after its own ID with its `name=url` pairs as the value, and
//! waits until there are so many; the first of them, in the order in which they came, found the cluster. The URL also is the
//! cluster's token, of which IDs are made, so that a member can name itself before it knows the others.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::thread::sleep;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tls::Connector;

/// How long opening a connection, or an answer that does not wait for others, may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a wait for other members goes on before it is begun again: a connection that is dead without knowing it
/// must not hold up a member for ever.
const WAIT: Duration = Duration::from_secs(60);
/// The longest answer.
const MAX_ANSWER_BYTES: u64 = 16 << 20;
/// The longest answer of an HTTP proxy to the wish for a tunnel.
const MAX_TUNNEL_HEAD_BYTES: usize = 16 << 10;
/// After the n-th failure in a row a server is asked again in 2^n seconds, with n no greater than this.
const MAX_BACKOFF: u32 = 8;

/// Why no cluster was found. Texts are etcd's.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The URL cannot be used.
    #[error("{0}")]
    Url(String),
    /// The size is no number, or none that makes a cluster.
    #[error("discovery: size key is bad")]
    BadSize,
    /// Nobody has said how many members there will be.
    #[error("discovery: size key not found")]
    NoSize,
    /// There were others enough.
    #[error("discovery: cluster is full")]
    Full,
    /// This member has registered before.
    #[error("discovery: found duplicate id")]
    DuplicateId,
    /// Two members have the same name.
    #[error("discovery: found duplicate name")]
    DuplicateName,
    /// What answers there is no v2 server.
    #[error("discovery: bad discovery endpoint")]
    NoService,
    /// The server refuses.
    #[error("{code}: {message} ({cause}) [{index}]")]
    Refused {
        /// etcd's number of the error.
        code: u32,
        /// Its text.
        message: String,
        /// What it is about.
        cause: String,
        /// The index of the server's tree.
        index: u64,
    },
}

/// A call that did not succeed.
#[derive(Debug)]
enum CallError {
    /// It may work later.
    Away(io::Error),
    Final(DiscoveryError),
}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> Self {
        Self::Away(error)
    }
}

impl From<DiscoveryError> for CallError {
    fn from(error: DiscoveryError) -> Self {
        Self::Final(error)
    }
}

/// A place where members find each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// `host:port` of the server.
    server: String,
    /// The path of the token, without a slash at its end.
    token: String,
    /// `host:port` of the HTTP proxy on the way there.
    proxy: Option<String>,
    /// The server is reached in TLS.
    is_secure: bool,
}

/// `host:port` and path of a URL, and whether it is `https`.
fn split(url: &str) -> Result<(String, String, bool), DiscoveryError> {
    let refuse = |what: String| Err(DiscoveryError::Url(what));
    let Some((scheme, rest)) = url.split_once("://").filter(|(scheme, _)| !scheme.is_empty()) else {
        return refuse(format!("parse {url:?}: missing protocol scheme"));
    };
    let (is_secure, default_port) = match scheme {
        "http" => (false, 80),
        "https" => (true, 443),
        _ => return refuse(format!("unsupported protocol scheme {scheme:?}")),
    };
    let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    // A query is not part of the token, in etcd either.
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    let server = if has_port { host.to_owned() } else { format!("{host}:{default_port}") };
    if !host.bytes().chain(path.bytes()).all(|byte| byte.is_ascii_graphic()) || host.is_empty() {
        return refuse(format!("parse {url:?}: invalid character in URL"));
    }
    Ok((server, path.trim_end_matches('/').to_owned(), is_secure))
}

impl Place {
    /// Reads `--discovery` and `--discovery-proxy`, which may be empty.
    pub(crate) fn parse(url: &str, proxy: &str) -> Result<Self, DiscoveryError> {
        let (server, token, is_secure) = split(url)?;
        let with_scheme = if proxy.contains("://") { proxy.to_owned() } else { format!("http://{proxy}") };
        let proxy = if proxy.is_empty() { None } else { Some(split(&with_scheme)?.0) };
        Ok(Self { server, token, proxy, is_secure })
    }

    /// Registers this member and waits for the others. `own` are its `name=url` pairs. Returns the pairs of all founders.
    ///
    /// Takes as long as the others do, and goes on trying while the server is away.
    pub(crate) fn join(&self, own_id: u64, own: &str) -> Result<String, DiscoveryError> {
        let own_name = format!("{own_id:x}");
        // Whoever comes too late must not register.
        self.insistently("cluster status check", || self.look(&own_name))?;
        self.insistently("registering", || self.register(&own_name, own))?;
        let mut found = self.insistently("cluster status check", || self.look(&own_name))?;
        tracing::info!("discovery-url" = %self.server, "self" = %own_name, "found self from discovery server");
        while found.members.len() < found.size {
            let missing = found.size - found.members.len();
            tracing::info!("discovery-url" = %self.server, "needed-peers" = missing, "waiting for peers from discovery server");
            let since = found.index + 1;
            self.insistently("waiting for other nodes", || self.wait(since))?;
            found = self.insistently("cluster status check", || self.look(&own_name))?;
        }
        tracing::info!("discovery-url" = %self.server, "found-peers" = found.size, "found all needed peers from discovery server");
        combine(&found)
    }

    fn insistently<T>(
        &self,
        reason: &str,
        mut call: impl FnMut() -> Result<T, CallError>,
    ) -> Result<T, DiscoveryError> {
        let mut failures: u32 = 0;
        loop {
            match call() {
                Ok(done) => return Ok(done),
                Err(CallError::Final(error)) => return Err(error),
                Err(CallError::Away(error)) => {
                    failures = (failures + 1).min(MAX_BACKOFF);
                    let backoff = Duration::from_secs(1 << failures);
                    tracing::warn!("discovery-url" = %self.server, %error, "failed to get from discovery server");
                    tracing::info!(url = %self.server, reason, backoff = ?backoff, "retry connecting to discovery service");
                    sleep(backoff);
                }
            }
        }
    }

    /// The pairs of all founders, for somebody who is none of them.
    pub(crate) fn founders(&self) -> Result<String, DiscoveryError> {
        combine(&self.insistently("cluster status check", || self.registered())?)
    }

    /// Who has registered so far. An error if others have taken all places.
    fn look(&self, own_name: &str) -> Result<Found, CallError> {
        let found = self.registered()?;
        if found.members.len() == found.size && !found.members.iter().any(|node| node.name() == own_name) {
            return Err(DiscoveryError::Full.into());
        }
        Ok(found)
    }

    /// Who has registered so far.
    fn registered(&self) -> Result<Found, CallError> {
        let size = self.call("GET", "/_config/size", None, ANSWER)?;
        let size = size.node.value.parse().ok().filter(|size| *size > 0).ok_or(DiscoveryError::BadSize)?;
        let listed = self.call("GET", "", None, ANSWER)?;
        let mut members: Vec<Registered> = listed.node.nodes.into_iter().filter(|node| !node.dir).collect();
        members.sort_by_key(|node| node.created);
        members.truncate(size);
        Ok(Found { size, members, index: listed.index })
    }

    fn register(&self, own_name: &str, own: &str) -> Result<(), CallError> {
        let form = format!("value={}", utf8_percent_encode(own, NON_ALPHANUMERIC));
        match self.call("PUT", &format!("/{own_name}?prevExist=false"), Some(&form), ANSWER) {
            Ok(_) => Ok(()),
            Err(CallError::Final(DiscoveryError::Refused { code: 105, .. })) => Err(DiscoveryError::DuplicateId.into()),
            Err(error) => Err(error),
        }
    }

    /// Waits for the next change below the token, or until it is time to look again.
    fn wait(&self, since: u64) -> Result<(), CallError> {
        match self.call("GET", &format!("?recursive=true&wait=true&waitIndex={since}"), None, WAIT) {
            // So much has happened that the history no longer knows; the next look shows what.
            Ok(_) | Err(CallError::Final(DiscoveryError::Refused { code: 401, .. })) => Ok(()),
            Err(CallError::Away(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// One request, on a connection of its own: HTTP/1.0, whose answers end with their connection.
    fn call(&self, method: &str, path: &str, form: Option<&str>, limit: Duration) -> Result<Answer, CallError> {
        let at = self.proxy.as_ref().unwrap_or(&self.server);
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        let mut connected = None;
        for address in at.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, ANSWER) {
                Ok(socket) => {
                    connected = Some(socket);
                    break;
                }
                Err(error) => last = error,
            }
        }
        let mut socket = connected.ok_or(last)?;
        socket.set_read_timeout(Some(limit))?;
        socket.set_write_timeout(Some(ANSWER))?;
        if self.is_secure {
            if self.proxy.is_some() {
                self.ask_for_tunnel(&mut socket)?;
            }
            let host = self.server.rsplit_once(':').map_or(self.server.as_str(), |(host, _)| host);
            let connector = Connector::new(&tls::Settings::default(), &[]).map_err(io::Error::other)?;
            let socket = connector.connect_blocking(socket, host.trim_matches(['[', ']']))?;
            return self.exchange(socket, method, "", path, form);
        }
        let origin = if self.proxy.is_some() { format!("http://{}", self.server) } else { String::new() };
        self.exchange(socket, method, &origin, path, form)
    }

    /// Has the HTTP proxy at the other end pass everything on to the server.
    fn ask_for_tunnel(&self, socket: &mut TcpStream) -> io::Result<()> {
        let server = &self.server;
        socket.write_all(format!("CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n\r\n").as_bytes())?;
        let mut head = Vec::new();
        // Byte by byte: what comes behind the head is the server's.
        while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_TUNNEL_HEAD_BYTES {
            let mut byte = [0];
            socket.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        match head.split(' ').nth(1) {
            Some("200") => Ok(()),
            _ => Err(io::Error::other(head.lines().next().unwrap_or_default().to_owned())),
        }
    }

    fn exchange(
        &self,
        mut socket: impl Read + Write,
        method: &str,
        origin: &str,
        path: &str,
        form: Option<&str>,
    ) -> Result<Answer, CallError> {
        let mut request = format!("{method} {origin}{}{path} HTTP/1.0\r\nHost: {}\r\n", self.token, self.server);
        if let Some(form) = form {
            let kind = "application/x-www-form-urlencoded";
            request.push_str(&format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", form.len()));
        }
        request.push_str("\r\n");
        request.push_str(form.unwrap_or_default());
        socket.write_all(request.as_bytes())?;
        socket.flush()?;
        let mut answer = Vec::new();
        socket.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
        read(&answer)
    }
}

/// Members that have registered, the earliest first.
#[derive(Debug)]
struct Found {
    /// How many found the cluster.
    size: usize,
    members: Vec<Registered>,
    /// The index of the server's tree at that moment.
    index: u64,
}

fn combine(found: &Found) -> Result<String, DiscoveryError> {
    let mut names: Vec<&str> = found.members.iter().filter_map(|node| node.value.split('=').next()).collect();
    names.sort_unstable();
    names.dedup();
    if names.len() != found.size {
        return Err(DiscoveryError::DuplicateName);
    }
    Ok(found.members.iter().map(|node| node.value.as_str()).collect::<Vec<_>>().join(","))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Registered {
    key: String,
    value: String,
    dir: bool,
    #[serde(rename = "createdIndex")]
    created: u64,
    nodes: Vec<Registered>,
}

impl Registered {
    fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or_default()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Body {
    node: Registered,
    #[serde(rename = "errorCode")]
    error_code: u32,
    message: String,
    cause: String,
    index: u64,
}

#[derive(Debug)]
struct Answer {
    node: Registered,
    index: u64,
}

/// Reads a whole answer.
fn read(answer: &[u8]) -> Result<Answer, CallError> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok()).unwrap_or(0);
    let body = &answer[end + 4..];
    // A proxy that cannot reach the server, or a server that has no leader.
    if status >= 500 {
        return Err(io::Error::other(format!("status {status}")).into());
    }
    let body: Body = serde_json::from_slice(body).map_err(|_| DiscoveryError::NoService)?;
    if body.error_code != 0 {
        let Body { error_code: code, message, cause, index, .. } = body;
        return Err(DiscoveryError::Refused { code, message, cause, index }.into());
    }
    let index = head.lines().find_map(|line| line.strip_prefix("x-etcd-index:")?.trim().parse().ok());
    Ok(Answer { node: body.node, index: index.unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_server_and_a_token() {
        let place = Place::parse("http://127.0.0.1:2379/v2/keys/reg/token/", "").expect("a place");
        assert_eq!((place.server.as_str(), place.token.as_str()), ("127.0.0.1:2379", "/v2/keys/reg/token"));
        let place = Place::parse("http://discovery.example/token", "proxy:3128").expect("a place");
        assert_eq!((place.server.as_str(), place.proxy.as_deref()), ("discovery.example:80", Some("proxy:3128")));
        let place = Place::parse("http://user:secret@h:1/token?x=/y#z", "").expect("a place");
        assert_eq!((place.server.as_str(), place.token.as_str()), ("h:1", "/token"));
        assert_eq!(Place::parse("://x", "").unwrap_err().to_string(), r#"parse "://x": missing protocol scheme"#);
        let place = Place::parse("https://discovery.etcd.io/x", "").expect("a place");
        assert_eq!((place.server.as_str(), place.is_secure), ("discovery.etcd.io:443", true));
        assert!(Place::parse("ftp://discovery.etcd.io/x", "").is_err());
        assert!(["http://h/a b", "http://h\r\nx/a", "http:///a"].iter().all(|url| Place::parse(url, "").is_err()));
    }

    #[test]
    fn refusals_are_told_as_etcd_tells_them() {
        let answer = b"HTTP/1.0 404 Not Found\r\nX-Etcd-Index: 3\r\n\r\n\
            {\"errorCode\":100,\"message\":\"Key not found\",\"cause\":\"/reg\",\"index\":3}\n";
        match read(answer) {
            Err(CallError::Final(error)) => assert_eq!(error.to_string(), "100: Key not found (/reg) [3]"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(read(b"HTTP/1.0 200 OK\r\n\r\n<html>"), Err(CallError::Final(DiscoveryError::NoService))));
        assert!(matches!(read(b"HTTP/1.0 503 Away\r\n\r\n{}"), Err(CallError::Away(_))));
        assert!(matches!(read(b"HTTP/1.0"), Err(CallError::Away(_))));
    }

    #[test]
    fn names_must_differ() {
        let node = |value: &str| Registered { value: value.into(), ..Registered::default() };
        let found = |values: [&str; 2]| Found { size: 2, members: values.map(node).into(), index: 0 };
        assert_eq!(combine(&found(["a=u", "b=v,b=w"])).expect("a cluster"), "a=u,b=v,b=w");
        assert!(matches!(combine(&found(["a=u", "a=v"])), Err(DiscoveryError::DuplicateName)));
    }
}
