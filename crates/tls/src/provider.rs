//! Which algorithms are used.

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, KeyProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::{PrivateKeyDer, SignatureVerificationAlgorithm};
use rustls::sign::SigningKey;
use rustls::{CipherSuite, Error, SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion, version};

use crate::p521::{self, P521};
use crate::settings::{Settings, Version};
use crate::{TlsError, words};

type Algorithm = &'static dyn SignatureVerificationAlgorithm;

static EVERY: LazyLock<Vec<Algorithm>> = LazyLock::new(|| {
    let mut all = ring::default_provider().signature_verification_algorithms.all.to_vec();
    all.extend([&P521::Sha256 as Algorithm, &P521::Sha384, &P521::Sha512]);
    all
});

static BY_SCHEME: LazyLock<Vec<(SignatureScheme, &'static [Algorithm])>> = LazyLock::new(|| {
    let with = |(scheme, algorithms): (SignatureScheme, &'static [Algorithm])| {
        let further: Option<Algorithm> = match scheme {
            SignatureScheme::ECDSA_NISTP256_SHA256 => Some(&P521::Sha256),
            SignatureScheme::ECDSA_NISTP384_SHA384 => Some(&P521::Sha384),
            _ => None,
        };
        // Made once, and used as long as the process lives. Behind the others: TLS 1.3 looks at the first only.
        let algorithms: &'static [Algorithm] = algorithms.iter().copied().chain(further).collect::<Vec<_>>().leak();
        (scheme, algorithms)
    };
    let known = ring::default_provider().signature_verification_algorithms.mapping;
    // Last, because in TLS 1.2 it does not say which curve, and ring has no SHA-512 on the others.
    let p521: (SignatureScheme, &'static [Algorithm]) = (SignatureScheme::ECDSA_NISTP521_SHA512, &[&P521::Sha512]);
    known.iter().copied().map(with).chain([p521]).collect()
});

/// ring's keys, and those of P-521.
#[derive(Debug)]
struct Keys;

impl KeyProvider for Keys {
    fn load_private_key(&self, der: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
        match p521::load(&der) {
            Some(key) => Ok(key),
            None => ring::default_provider().key_provider.load_private_key(der),
        }
    }
}

/// Go's name of a cipher suite of TLS 1.2, and its number.
const SUITES: [(&str, CipherSuite); 8] = [
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

fn number(name: &str) -> Option<CipherSuite> {
    SUITES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// Can the cipher suite of this (Go's) name be used? Those of TLS 1.3 always are, named or not.
pub fn is_supported(name: &str) -> bool {
    number(name).is_some() || name.starts_with("TLS_AES_") || name == "TLS_CHACHA20_POLY1305_SHA256"
}

/// The algorithms for these settings. As in Go, the suites of TLS 1.3 are not a matter of choice.
pub(crate) fn provider(settings: &Settings) -> Result<Arc<CryptoProvider>, TlsError> {
    let mut provider = ring::default_provider();
    provider.key_provider = &Keys;
    provider.signature_verification_algorithms = WebPkiSupportedAlgorithms { all: &EVERY, mapping: &BY_SCHEME };
    if !settings.cipher_suites.is_empty() {
        let wanted: Vec<CipherSuite> = settings.cipher_suites.iter().filter_map(|name| number(name)).collect();
        let is_tls13 = |suite: &SupportedCipherSuite| suite.tls13().is_some();
        let mut suites: Vec<_> = provider.cipher_suites.iter().filter(|suite| is_tls13(suite)).copied().collect();
        let find = |number: &CipherSuite| provider.cipher_suites.iter().find(|suite| suite.suite() == *number).copied();
        suites.extend(wanted.iter().filter_map(find));
        if wanted.is_empty() && !settings.cipher_suites.iter().any(|name| is_supported(name)) {
            return Err(TlsError::CipherSuites(words::list(&settings.cipher_suites)));
        }
        provider.cipher_suites = suites;
    }
    Ok(Arc::new(provider))
}

/// The versions for these settings.
pub(crate) fn versions(settings: &Settings) -> Vec<&'static SupportedProtocolVersion> {
    let has_tls12 = |name: &String| number(name).is_some();
    let offers_tls12 = settings.cipher_suites.is_empty() || settings.cipher_suites.iter().any(has_tls12);
    let all = [(Version::Tls13, &version::TLS13), (Version::Tls12, &version::TLS12)];
    let within = |version: Version| settings.min_version <= version && version <= settings.max_version;
    all.into_iter()
        .filter(|(version, _)| within(*version) && (*version == Version::Tls13 || offers_tls12))
        .map(|(_, version)| version)
        .collect()
}
