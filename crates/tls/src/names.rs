//! Whom a certificate is for.

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use tokio::net::lookup_host;
use tokio::task::spawn_blocking;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::files::without_zeros;
use crate::words;

/// What a certificate says of whoever shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// The subject's common name; empty if it has none.
    pub(crate) common_name: String,
    pub(crate) dns_names: Vec<String>,
    pub(crate) ip_addresses: Vec<IpAddr>,
    /// Without zeros in front.
    pub(crate) serial: Vec<u8>,
}

impl Names {
    /// Reads a certificate; none if that is no certificate.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        // Go keeps the last if there are several.
        let common_name = certificate.subject().iter_common_name().last();
        let common_name = common_name.map(|name| match name.as_str() {
            Ok(name) => name.to_owned(),
            Err(_) => String::from_utf8_lossy(name.as_slice()).into_owned(),
        });
        let mut names = Self {
            common_name: common_name.unwrap_or_default(),
            serial: without_zeros(certificate.raw_serial()),
            ..Self::default()
        };
        let alternatives = certificate.subject_alternative_name().ok().flatten();
        for name in alternatives.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::DNSName(name) => names.dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => names.ip_addresses.extend(address(bytes)),
                _ => {}
            }
        }
        Some(names)
    }

    /// Checks that a peer's certificate is for where the peer connects from: an address of the certificate is that
    /// one, or a name of it stands for it. A certificate without either is for everywhere. The error is etcd's.
    pub(crate) async fn check_source(&self, from: IpAddr) -> Result<(), String> {
        let from = from.to_canonical();
        if self.ip_addresses.contains(&from) || (self.ip_addresses.is_empty() && self.dns_names.is_empty()) {
            return Ok(());
        }
        if self.dns_names.is_empty() {
            let addresses: Vec<String> = self.ip_addresses.iter().map(IpAddr::to_string).collect();
            return Err(format!("x509: certificate is valid for {}, not {from}", words::list(&addresses)));
        }
        let mut trouble = String::new();
        if let Some(name) = name_of(from).await {
            let stands_for_it = |pattern: &String| match pattern.strip_prefix('*') {
                Some(domain) if domain.starts_with('.') => name.ends_with(domain),
                _ => *pattern == name,
            };
            if self.dns_names.iter().any(stands_for_it) {
                return Ok(());
            }
        }
        for name in self.dns_names.iter().filter(|name| !name.starts_with("*.")) {
            match lookup_host((name.as_str(), 0)).await {
                Ok(mut addresses) => {
                    if addresses.any(|address| address.ip().to_canonical() == from) {
                        return Ok(());
                    }
                }
                Err(error) => trouble = format!(" (lookup {name}: {error})"),
            }
        }
        let names = words::quoted(&self.dns_names);
        Err(format!("tls: \"{from}\" does not match any of DNSNames {names}{trouble}"))
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The name that the system has for an address.
async fn name_of(address: IpAddr) -> Option<String> {
    let name = spawn_blocking(move || dns_lookup::lookup_addr(&address)).await.ok()?.ok()?;
    // Without a name, the address comes back.
    let name = name.strip_suffix('.').unwrap_or(&name).to_owned();
    name.parse::<IpAddr>().is_err().then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dns: &[&str], ips: &[&str]) -> Names {
        Names {
            dns_names: dns.iter().map(|name| (*name).to_owned()).collect(),
            ip_addresses: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..Names::default()
        }
    }

    #[tokio::test]
    async fn a_certificate_is_for_the_addresses_and_names_in_it_or_for_everywhere() {
        let here: IpAddr = "127.0.0.1".parse().unwrap();
        names(&[], &[]).check_source(here).await.unwrap();
        names(&[], &["10.0.0.1", "127.0.0.1"]).check_source(here).await.unwrap();
        names(&[], &["127.0.0.1"]).check_source("::ffff:127.0.0.1".parse().unwrap()).await.unwrap();
        names(&["localhost"], &["10.0.0.1"]).check_source(here).await.unwrap();
        let refused = names(&[], &["10.0.0.1"]).check_source(here).await.unwrap_err();
        assert_eq!(refused, "x509: certificate is valid for 10.0.0.1, not 127.0.0.1");
        let refused = names(&["*.example.invalid"], &[]).check_source(here).await.unwrap_err();
        assert_eq!(refused, "tls: \"127.0.0.1\" does not match any of DNSNames [\"*.example.invalid\"]");
    }

    #[test]
    fn what_is_no_certificate_has_no_names() {
        assert_eq!(Names::of(&CertificateDer::from(vec![0x30, 0x80, 1, 2, 3])), None);
    }
}
