//! What is in the files: certificates and keys, authorities, revocation lists.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _};

use crate::{TlsError, version1};

/// A certificate, those that follow it in its file, and its key.
pub(crate) fn identity(
    (cert_path, cert): (&str, &[u8]),
    (key_path, key): (&str, &[u8]),
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let refuse = |path: &str, reason: String| TlsError::Content { path: path.to_owned(), reason };
    let certs = certificates(cert_path, cert)?;
    if certs.is_empty() {
        return Err(refuse(cert_path, "tls: failed to find any PEM data in certificate input".into()));
    }
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| refuse(key_path, "tls: failed to find any PEM data in key input".into()))?;
    let unusable = |error: rustls::Error| refuse(key_path, format!("tls: failed to parse private key: {error}"));
    let pair = CertifiedKey::new(certs, provider.key_provider.load_private_key(key).map_err(unusable)?);
    let fits = match version1::public_key(&pair.cert[0]) {
        Some(public) => pair.key.public_key().is_none_or(|own| own == public),
        None => match pair.keys_match() {
            Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => true,
            Err(Error::InconsistentKeys(_)) => false,
            Err(error) => return Err(refuse(cert_path, format!("x509: {error}"))),
        },
    };
    if !fits {
        return Err(refuse(key_path, "tls: private key does not match public key".into()));
    }
    Ok(pair)
}

fn certificates(path: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    certs.map_err(|error| TlsError::Content { path: path.to_owned(), reason: error.to_string() })
}

/// Who may sign.
#[derive(Debug)]
pub(crate) struct Authorities {
    /// In the form that chains of certificates are checked against.
    pub(crate) store: Arc<RootCertStore>,
    /// As they are. Who shows exactly one of these needs no signature, as in Go: `--auto-tls` makes certificates that are
    /// authorities themselves.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
}

/// The authorities in a file.
pub(crate) fn authorities(path: &str, pem: &[u8]) -> Result<Authorities, TlsError> {
    let certificates = certificates(path, pem)?;
    let mut store = RootCertStore::empty();
    for certificate in &certificates {
        store
            .add(certificate.clone())
            .map_err(|error| TlsError::Content { path: path.to_owned(), reason: error.to_string() })?;
    }
    if store.is_empty() {
        return Err(TlsError::Content { path: path.to_owned(), reason: "no certificate in this file".into() });
    }
    Ok(Authorities { store: Arc::new(store), certificates })
}

/// The authorities that this system trusts.
pub(crate) fn of_the_system() -> Authorities {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "cannot read one of the system's certificates");
    }
    let mut store = RootCertStore::empty();
    // Such a bundle always has some that are too old to be of use.
    store.add_parsable_certificates(found.certs);
    Authorities { store: Arc::new(store), certificates: Vec::new() }
}

/// The serial numbers in a revocation list, in PEM or DER. As in etcd, a number counts whoever has signed the list and
/// whichever authority the certificate is of.
pub(crate) fn revoked(path: &str, bytes: &[u8]) -> Result<BTreeSet<Vec<u8>>, TlsError> {
    let refuse = |reason: String| TlsError::Content { path: path.to_owned(), reason };
    let lists: Vec<Vec<u8>> = if bytes.starts_with(b"\x30") {
        vec![bytes.to_vec()]
    } else {
        let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(bytes).collect();
        lists.map_err(|error| refuse(error.to_string()))?.into_iter().map(|list| list.to_vec()).collect()
    };
    if lists.is_empty() {
        return Err(refuse("x509: malformed crl: no list in this file".into()));
    }
    let mut serials = BTreeSet::new();
    for list in &lists {
        let (_, list) = CertificateRevocationList::from_der(list)
            .map_err(|error| refuse(format!("x509: malformed crl: {error}")))?;
        serials.extend(list.iter_revoked_certificates().map(|revoked| without_zeros(revoked.raw_serial())));
    }
    Ok(serials)
}

/// A serial number as a number: DER puts a zero in front of a high bit.
pub(crate) fn without_zeros(serial: &[u8]) -> Vec<u8> {
    serial.iter().copied().skip_while(|byte| *byte == 0).collect()
}
