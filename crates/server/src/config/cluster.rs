//! `--initial-cluster`: who founds the cluster. Looked at only by a member without a log of its own.

use super::url::{Url, UrlError, texts};
use super::{ClusterState, Config};
use std::collections::BTreeMap;
use std::net::{IpAddr, ToSocketAddrs};

/// Why the initial cluster does not work, in etcd's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// The list cannot be read.
    #[error("error setting up initial cluster: {0}")]
    Url(#[from] UrlError),
    /// This member is not on the list.
    #[error("couldn't find local name {0:?} in the initial cluster configuration")]
    NoLocalName(String),
    /// Two members share a URL.
    #[error("initial cluster {0} has duplicate url")]
    DuplicateUrl(String),
    /// The list has more for this member than it advertises.
    #[error(
        "--initial-cluster has {missing} but missing from --initial-advertise-peer-urls={advertised} ({difference})"
    )]
    NotAdvertised {
        /// `name=url` of what is missing.
        missing: String,
        /// What is advertised.
        advertised: String,
        /// What differs after names have been looked up.
        difference: String,
    },
    /// This member advertises more than the list has.
    #[error("--initial-advertise-peer-urls has {missing} but missing from --initial-cluster={listed}")]
    NotListed {
        /// The URLs that are missing.
        missing: String,
        /// The list as it stands for this member.
        listed: String,
    },
}

/// How to look up a host's address: the network's name service, or a table in tests.
pub type Resolve<'a> = &'a dyn Fn(&str) -> std::io::Result<IpAddr>;

impl Config {
    /// The members of the initial cluster with their peer URLs, by name, after etcd's checks: this member is among them,
    /// under the URLs that it advertises. Looks up host names where the texts differ.
    ///
    /// A member that has lived before is not checked: its log says who it is. It gets what the flags say all the same,
    /// because that log may end before its first entry.
    pub fn initial_members(&self) -> Result<BTreeMap<String, Vec<Url>>, ClusterError> {
        if self.is_initialized() {
            return Ok(parse(&self.initial_cluster).unwrap_or_default());
        }
        self.initial_members_with(&look_up)
    }

    /// The members of the initial cluster, for somebody who is none of them.
    pub(crate) fn other_members(&self) -> Result<BTreeMap<String, Vec<Url>>, ClusterError> {
        parse(&self.initial_cluster)
    }

    /// What the IDs of the members and of the cluster are made of, besides URLs: a cluster that finds itself at a discovery
    /// service has its URL there, or its token there, as the token.
    pub fn cluster_token(&self) -> &str {
        let discovery = &self.discovery;
        [&discovery.url, &discovery.token]
            .into_iter()
            .find(|token| !token.is_empty())
            .unwrap_or(&self.initial_cluster_token)
    }

    /// [`Config::initial_members`] with a given way of looking up hosts.
    pub fn initial_members_with(&self, resolve: Resolve<'_>) -> Result<BTreeMap<String, Vec<Url>>, ClusterError> {
        let members = parse(&self.initial_cluster)?;
        let Some(listed) = members.get(&self.name) else {
            return Err(ClusterError::NoLocalName(self.name.clone()));
        };
        let mut all: Vec<_> = members.values().flatten().collect();
        all.sort();
        if all.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(ClusterError::DuplicateUrl(show(&members)));
        }
        // A member that joins is known to the cluster under the list's URLs; its own may differ by now.
        if self.initial_cluster_state == ClusterState::New {
            self.match_advertised(listed, resolve)?;
        }
        Ok(members)
    }

    fn match_advertised(&self, listed: &[Url], resolve: Resolve<'_>) -> Result<(), ClusterError> {
        let advertised = &self.advertise_peer_urls;
        let Some(difference) = difference(advertised, listed, resolve) else { return Ok(()) };
        let lacking =
            |from: &[Url], of: &[Url]| texts(of).into_iter().filter(|url| !texts(from).contains(url)).collect();
        let missing: Vec<String> = lacking(advertised, listed);
        if !missing.is_empty() {
            let missing: Vec<_> = missing.iter().map(|url| format!("{}={url}", self.name)).collect();
            let (missing, advertised) = (missing.join(","), texts(advertised).join(","));
            return Err(ClusterError::NotAdvertised { missing, advertised, difference });
        }
        let missing: Vec<String> = lacking(listed, advertised);
        let listed: Vec<_> = listed.iter().map(|url| format!("{}={url}", self.name)).collect();
        Err(ClusterError::NotListed { missing: missing.join(","), listed: listed.join(",") })
    }
}

/// Reads `name=url,name=url`; the URLs of one name add up.
fn parse(list: &str) -> Result<BTreeMap<String, Vec<Url>>, ClusterError> {
    let mut members: BTreeMap<String, Vec<Url>> = BTreeMap::new();
    for pair in list.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (name, url) = pair.split_once('=').unwrap_or((pair, ""));
        members.entry(name.to_owned()).or_default().push(Url::parse(url)?);
    }
    for urls in members.values_mut() {
        urls.sort_by_key(Url::to_string);
    }
    Ok(members)
}

fn show(members: &BTreeMap<String, Vec<Url>>) -> String {
    let pairs = members.iter().flat_map(|(name, urls)| urls.iter().map(move |url| format!("{name}={url}")));
    pairs.collect::<Vec<_>>().join(",")
}

/// What differs between two lists of URLs once hosts have been looked up; none if they lead to the same places.
fn difference(a: &[Url], b: &[Url], resolve: Resolve<'_>) -> Option<String> {
    let (a_texts, b_texts) = (texts(a), texts(b));
    if a.len() != b.len() {
        return Some(format!("len({a_texts:?}) != len({b_texts:?})"));
    }
    if a_texts == b_texts {
        return None;
    }
    let resolved = |urls: &[Url]| {
        let mut pairs: Vec<_> = urls.iter().map(|url| (resolved(url, resolve), url.to_string())).collect();
        pairs.sort();
        pairs
    };
    resolved(a)
        .into_iter()
        .zip(resolved(b))
        .find(|(a, b)| a.0 != b.0)
        .map(|((a_at, a), (b_at, b))| format!("{a_at:?}(resolved from {a:?}) != {b_at:?}(resolved from {b:?})"))
}

/// The URL with its host looked up; as it is where that fails, or where there is nothing to look up.
fn resolved(url: &Url, resolve: Resolve<'_>) -> String {
    let host = url.host();
    if url.scheme().is_unix() || host == "localhost" || host.parse::<IpAddr>().is_ok() {
        return url.to_string();
    }
    resolve(host).map_or_else(|_| url.to_string(), |address| url.with_host(address, url.port()).to_string())
}

fn look_up(host: &str) -> std::io::Result<IpAddr> {
    let mut addresses: Vec<_> = (host, 0u16).to_socket_addrs()?.map(|address| address.ip()).collect();
    // As Go: IPv4 where there is a choice.
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses.into_iter().next().ok_or_else(|| std::io::ErrorKind::AddrNotAvailable.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str, cluster: &str, advertised: &str) -> Config {
        Config {
            name: name.into(),
            initial_cluster: cluster.into(),
            advertise_peer_urls: Url::parse_list(advertised).unwrap(),
            ..Config::default()
        }
    }

    fn no_names(_: &str) -> std::io::Result<IpAddr> {
        Err(std::io::ErrorKind::NotFound.into())
    }

    /// The texts are those of 3.5.1 for the same flags.
    #[test]
    fn a_member_must_be_on_the_list_under_the_urls_that_it_advertises() {
        for (name, cluster, advertised, error) in [
            (
                "abc",
                "x=http://localhost:2380",
                "http://localhost:2380",
                "couldn't find local name \"abc\" in the initial cluster configuration",
            ),
            (
                "default",
                "default=http://localhost:2381",
                "http://localhost:2380",
                "--initial-cluster has default=http://localhost:2381 but missing from \
                 --initial-advertise-peer-urls=http://localhost:2380 \
                 (\"http://localhost:2380\"(resolved from \"http://localhost:2380\") != \
                 \"http://localhost:2381\"(resolved from \"http://localhost:2381\"))",
            ),
            (
                "a",
                "a=http://h:1",
                "http://h:1,http://h:2",
                "--initial-advertise-peer-urls has http://h:2 but missing from --initial-cluster=a=http://h:1",
            ),
            (
                "default",
                "default=",
                "http://localhost:2380",
                "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: ",
            ),
        ] {
            let config = config(name, cluster, advertised);
            assert_eq!(config.initial_members_with(&no_names).unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn names_that_lead_to_the_same_place_are_equal() {
        let config = config("a", "a=http://a.example:2380,b=http://b.example:2380", "http://10.0.0.1:2380");
        let members = config.initial_members_with(&|_| Ok("10.0.0.1".parse().unwrap())).unwrap();
        assert_eq!(members.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert!(config.initial_members_with(&no_names).is_err());
    }

    #[test]
    fn the_same_url_twice_is_refused() {
        let config = config("a", "a=http://h:1,b=http://h:1", "http://h:1");
        let error = config.initial_members_with(&no_names).unwrap_err();
        assert_eq!(error.to_string(), "initial cluster a=http://h:1,b=http://h:1 has duplicate url");
    }

    #[test]
    fn urls_of_one_name_add_up() {
        let config = config("a", "a=http://h:2,a=http://h:1", "http://h:1,http://h:2");
        let members = config.initial_members_with(&no_names).unwrap();
        assert_eq!(texts(&members["a"]), ["http://h:1", "http://h:2"]);
    }
}
