//! Whether the other side's certificate is good enough: rustls' checks, and etcd's on top of them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::files::Authorities;
use crate::names::Names;
use crate::settings::Settings;
use crate::version1;

/// A certificate whose serial number is in the revocation list.
#[derive(Debug, thiserror::Error)]
#[error("transport: certificate serial {0} revoked")]
struct Revoked(String);

/// Whose certificates are let in, of those that are good.
#[derive(Clone, Debug, Default)]
pub(crate) struct Allowed {
    common_names: Vec<String>,
    hostnames: Vec<ServerName<'static>>,
}

impl Allowed {
    pub(crate) fn of(settings: &Settings) -> Self {
        let hostname = |name: &String| ServerName::try_from(name.clone()).ok();
        Self {
            common_names: settings.allowed_cns.clone(),
            hostnames: settings.allowed_hostnames.iter().filter_map(hostname).collect(),
        }
    }

    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let names_are_free = self.common_names.is_empty() && self.hostnames.is_empty();
        let has_common_name =
            || Names::of(certificate).is_some_and(|names| self.common_names.contains(&names.common_name));
        let has_hostname = || {
            let parsed = rustls::server::ParsedCertificate::try_from(certificate);
            parsed.is_ok_and(|parsed| {
                self.hostnames.iter().any(|name| rustls::client::verify_server_name(&parsed, name).is_ok())
            })
        };
        if names_are_free || has_common_name() || has_hostname() {
            return Ok(());
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }
}

/// A certificate that is itself among the authorities needs to be in time and for the purpose, and no more.
fn check_trusted_itself(certificate: &CertificateDer<'_>, now: UnixTime, is_server: bool) -> Result<(), Error> {
    let refuse = |reason| Err(Error::InvalidCertificate(reason));
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return refuse(CertificateError::BadEncoding) };
    let at = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if at < parsed.validity().not_before.timestamp() {
        return refuse(CertificateError::NotValidYet);
    }
    if at > parsed.validity().not_after.timestamp() {
        return refuse(CertificateError::Expired);
    }
    let fits = match parsed.extended_key_usage() {
        Ok(None) => true,
        Ok(Some(usage)) => {
            usage.value.any || (if is_server { usage.value.server_auth } else { usage.value.client_auth })
        }
        Err(_) => false,
    };
    if fits { Ok(()) } else { refuse(CertificateError::InvalidPurpose) }
}

/// Checks clients' certificates.
pub(crate) struct ClientVerifier {
    chains: Arc<dyn ClientCertVerifier>,
    trusted: Vec<CertificateDer<'static>>,
    allowed: Allowed,
    /// Serial numbers, without zeros in front.
    revoked: BTreeSet<Vec<u8>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientVerifier {
    /// Checks against these authorities.
    pub(crate) fn new(
        authorities: &Authorities,
        allowed: Allowed,
        revoked: BTreeSet<Vec<u8>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let chains = WebPkiClientVerifier::builder_with_provider(authorities.store.clone(), provider.clone());
        let chains = chains.build().map_err(|error| Error::General(error.to_string()))?;
        let algorithms = provider.signature_verification_algorithms;
        Ok(Self { chains, trusted: authorities.certificates.clone(), allowed, revoked, algorithms })
    }
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ClientVerifier").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if let Err(error) = self.chains.verify_client_cert(certificate, between, now) {
            match version1::check(certificate, &self.trusted, now) {
                Some(outcome) => outcome?,
                None if self.trusted.contains(certificate) => check_trusted_itself(certificate, now, false)?,
                None => return Err(error),
            }
        }
        for shown in std::iter::once(certificate).chain(between) {
            let serial = Names::of(shown).map(|names| names.serial).unwrap_or_default();
            if self.revoked.contains(&serial) {
                let hex = serial.iter().map(|byte| format!("{byte:02x}")).collect();
                let reason = CertificateError::Other(OtherError(Arc::new(Revoked(hex))));
                return Err(Error::InvalidCertificate(reason));
            }
        }
        self.allowed.check(certificate)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match version1::public_key(certificate) {
            // Those schemes that both versions of TLS have are checked in the same way.
            Some(key) => verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms),
            None => self.chains.verify_tls12_signature(message, certificate, signed),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match version1::public_key(certificate) {
            Some(key) => verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms),
            None => self.chains.verify_tls13_signature(message, certificate, signed),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Which chains of certificates are good.
enum Chains {
    /// Every certificate will do, as long as whoever shows it has its key.
    Any,
    /// None is: this system has no authorities.
    None,
    Of(Arc<WebPkiServerVerifier>),
}

/// Checks servers' certificates.
pub(crate) struct ServerVerifier {
    chains: Chains,
    trusted: Vec<CertificateDer<'static>>,
    allowed: Allowed,
    provider: Arc<CryptoProvider>,
}

impl ServerVerifier {
    /// Checks against these authorities, or nothing but the key if there are none.
    pub(crate) fn new(
        authorities: Option<&Authorities>,
        allowed: Allowed,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let chains = match authorities {
            None => Chains::Any,
            Some(authorities) if authorities.store.is_empty() => Chains::None,
            Some(authorities) => {
                let builder = WebPkiServerVerifier::builder_with_provider(authorities.store.clone(), provider.clone());
                Chains::Of(builder.build().map_err(|error| Error::General(error.to_string()))?)
            }
        };
        let trusted = authorities.map(|authorities| authorities.certificates.clone()).unwrap_or_default();
        Ok(Self { chains, trusted, allowed, provider: provider.clone() })
    }
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ServerVerifier").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chains = match &self.chains {
            Chains::Any => return Ok(ServerCertVerified::assertion()),
            Chains::None => return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)),
            Chains::Of(chains) => chains,
        };
        if let Err(error) = chains.verify_server_cert(certificate, between, name, ocsp, now) {
            if !self.trusted.contains(certificate) {
                return Err(error);
            }
            check_trusted_itself(certificate, now, true)?;
            let parsed = rustls::server::ParsedCertificate::try_from(certificate)?;
            rustls::client::verify_server_name(&parsed, name)?;
        }
        self.allowed.check(certificate)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
