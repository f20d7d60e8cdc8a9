//! `--discovery-srv`: the founding members by DNS.
//!
//! The records `_etcd-server-ssl._tcp.DOMAIN` and `_etcd-server._tcp.DOMAIN` name the peer addresses of all members. They say
//! nothing of names: this member knows itself by its own address, the others are numbered, which is all that is needed of
//! them before they tell their names themselves.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use srv::Target;

use crate::config::{Config, Url};

/// Asks for the targets of a service.
pub(crate) type LookUp<'a> = &'a dyn Fn(&str) -> io::Result<Vec<Target>>;
/// The address that `host:port` stands for.
pub(crate) type Resolve<'a> = &'a dyn Fn(&str) -> io::Result<SocketAddr>;

/// The founding members in the form of `--initial-cluster`.
pub(crate) fn founders(config: &Config, look_up: LookUp<'_>, resolve: Resolve<'_>) -> Result<String, String> {
    let suffix = match config.discovery.srv_name.as_str() {
        "" => String::new(),
        name => format!("-{name}"),
    };
    let mut own = BTreeMap::new();
    for url in &config.advertise_peer_urls {
        let address = resolve(url.address()).map_err(|error| format!("{url}: {error}"))?;
        own.insert(address, url);
    }
    let mut members = Vec::new();
    let mut failures = Vec::new();
    let mut next_number = 0;
    for (service, scheme) in [("etcd-server-ssl", "https"), ("etcd-server", "http")] {
        let service = format!("{service}{suffix}");
        let found = look_up(&format!("_{service}._tcp.{}", config.discovery.srv)).and_then(|targets| {
            let mut listed = Vec::new();
            let mut failure = Ok(());
            for target in targets {
                match name(config, &own, &target, scheme, resolve, &mut next_number) {
                    Ok(name) => listed.push(format!("{name}={scheme}://{}", target.address())),
                    Err(error) => failure = Err(error),
                }
            }
            if listed.is_empty() { failure.map(|()| listed) } else { Ok(listed) }
        });
        match found {
            Ok(listed) => members.extend(listed),
            Err(error) => {
                let failure = format!("error querying DNS SRV records for _{service} {error}");
                tracing::warn!("service-scheme" = scheme, "service-name" = service, error = %failure, "SRV discovery");
                failures.push(failure);
            }
        }
    }
    if members.is_empty() {
        return Err(failures.join(" and "));
    }
    for node in &members {
        tracing::info!(node, "got bootstrap from DNS for etcd-server");
    }
    if !members.iter().any(|member| member.split_once('=').is_some_and(|(name, _)| name == config.name)) {
        return Err(format!("cannot find local etcd member {:?} in SRV records", config.name));
    }
    Ok(members.join(","))
}

/// This member's name if a target is this member, else the next number.
fn name(
    config: &Config,
    own: &BTreeMap<SocketAddr, &Url>,
    target: &Target,
    scheme: &str,
    resolve: Resolve<'_>,
    next_number: &mut usize,
) -> io::Result<String> {
    let Some(url) = own.get(&resolve(&target.address())?) else {
        *next_number += 1;
        return Ok((*next_number - 1).to_string());
    };
    if !url.to_string().starts_with(&format!("{scheme}://")) {
        return Err(io::Error::other(format!(
            "bootstrap at {} from DNS for {scheme} has scheme mismatch with expected peer {url}",
            target.address()
        )));
    }
    Ok(config.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(advertised: &str) -> Config {
        let mut config = Config { name: "m2".into(), ..Config::default() };
        config.advertise_peer_urls = Url::parse_list(advertised).unwrap();
        config.discovery.srv = "example".into();
        config
    }

    fn records(name: &str) -> io::Result<Vec<Target>> {
        let target = |host: &str| Target { priority: 0, weight: 0, port: 2380, host: host.to_owned() };
        match name {
            "_etcd-server._tcp.example" => Ok(["a.example", "b.example", "c.example"].map(target).into()),
            _ => Err(io::Error::other("no such host")),
        }
    }

    fn hosts(address: &str) -> io::Result<SocketAddr> {
        let number = ["a.example:2380", "b.example:2380", "c.example:2380"].iter().position(|host| *host == address);
        number.map_or_else(
            || address.parse().map_err(|_| io::Error::other("no such host")),
            |number| Ok(SocketAddr::from(([10, 0, 0, number as u8], 2380))),
        )
    }

    #[test]
    fn a_member_knows_itself_by_its_address_and_the_others_are_numbered() {
        let found = founders(&config("http://10.0.0.1:2380"), &records, &hosts).unwrap();
        assert_eq!(found, "0=http://a.example:2380,m2=http://b.example:2380,1=http://c.example:2380");
    }

    #[test]
    fn who_is_not_in_the_records_is_told_so() {
        let error = founders(&config("http://10.0.0.9:2380"), &records, &hosts).unwrap_err();
        assert_eq!(error, "cannot find local etcd member \"m2\" in SRV records");
        let error = founders(&config("http://10.0.0.1:2380"), &|_| Err(io::Error::other("no such host")), &hosts);
        assert_eq!(
            error.unwrap_err(),
            "error querying DNS SRV records for _etcd-server-ssl no such host and \
             error querying DNS SRV records for _etcd-server no such host"
        );
    }
}
