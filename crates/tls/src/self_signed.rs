//! `--auto-tls`: a certificate that a member makes for itself.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use time::{Duration, OffsetDateTime};

use crate::TlsError;

/// What a certificate is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A server that shows it to clients.
    Server,
    /// A member that shows it to members, in both directions.
    Peer,
}

/// The paths of a certificate for these hosts and of its key, in `dir`. They are made if there are none; those that are there,
/// also an etcd's, are used as they are. Other than etcd's, the key is on P-256, which every library knows and which signs
/// ten times as fast.
///
/// # Errors
/// When they cannot be made or written.
pub fn self_signed(dir: &Path, hosts: &[String], years: u64, purpose: Purpose) -> Result<(String, String), TlsError> {
    let failed = |error: io::Error| TlsError::Make(format!("{}: {error}", dir.display()));
    if years == 0 {
        return Err(TlsError::Make("selfSignedCertValidity is invalid,it should be greater than 0".into()));
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let dir = fs::canonicalize(dir).map_err(failed)?;
    let (cert_path, key_path) = (dir.join("cert.pem"), dir.join("key.pem"));
    let paths = (cert_path.display().to_string(), key_path.display().to_string());
    if cert_path.exists() && key_path.exists() {
        return Ok(paths);
    }
    let (cert, key) = make(hosts, years, purpose).map_err(|error| TlsError::Make(error.to_string()))?;
    let write = |path: &Path, pem: &str, mode: u32| -> io::Result<()> {
        let mut file = File::options().write(true).create(true).truncate(true).mode(mode).open(path)?;
        file.write_all(pem.as_bytes())?;
        file.sync_all()
    };
    write(&cert_path, &cert, 0o644).map_err(failed)?;
    tracing::info!(path = paths.0, "created cert file");
    write(&key_path, &key, 0o600).map_err(failed)?;
    tracing::info!(path = paths.1, "created key file");
    Ok(paths)
}

/// A certificate and its key, in PEM.
fn make(hosts: &[String], years: u64, purpose: Purpose) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "etcd");
    let now = OffsetDateTime::now_utc();
    params.not_before = now;
    let days = years.saturating_mul(365).min(365 * 1000);
    params.not_after = now.saturating_add(Duration::days(i64::try_from(days).unwrap_or(i64::MAX)));
    tracing::warn!(
        "certificate-validity-bound-not-after" = %params.not_after,
        "automatically generate certificates"
    );
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    if purpose == Purpose::Peer {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    for host in hosts.iter().filter(|host| !host.is_empty()) {
        params.subject_alt_names.push(match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(Ia5String::try_from(host.clone())?),
        });
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}
