//! Client certificates of X.509 version 1, which `openssl x509 -req` makes when it is told of no extensions. Go takes them,
//! so there are clusters that use them; webpki does not even read them.
//!
//! They have no extensions, so there is little to check: who has signed it, and when it is good. Only an authority itself can
//! have signed one; nothing between them is looked for.

use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, Error};
use x509_parser::oid_registry::{OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA};
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate, X509Version};

/// Reads a certificate, if it is of version 1.
fn read<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    let (rest, certificate) = X509Certificate::from_der(certificate).ok()?;
    (rest.is_empty() && certificate.version() == X509Version::V1).then_some(certificate)
}

/// Is the certificate of version 1, and good? None if it is of another version.
pub(crate) fn check(
    certificate: &CertificateDer<'_>,
    authorities: &[CertificateDer<'_>],
    now: UnixTime,
) -> Option<Result<(), Error>> {
    let certificate = read(certificate)?;
    let refuse = |reason| Some(Err(Error::InvalidCertificate(reason)));
    let now = ASN1Time::from_timestamp(i64::try_from(now.as_secs()).unwrap_or(i64::MAX)).ok()?;
    if now < certificate.validity().not_before {
        return refuse(CertificateError::NotValidYet);
    }
    if now > certificate.validity().not_after {
        return refuse(CertificateError::Expired);
    }
    let algorithm = &certificate.signature_algorithm.algorithm;
    if *algorithm == OID_PKCS1_SHA1WITHRSA || *algorithm == OID_SHA1_WITH_RSA {
        return refuse(CertificateError::UnknownIssuer);
    }
    let has_signed = |authority: &CertificateDer<'_>| {
        let Ok((_, authority)) = X509Certificate::from_der(authority) else { return false };
        authority.subject().as_raw() == certificate.issuer().as_raw()
            && authority.validity().is_valid_at(now)
            && certificate.verify_signature(Some(authority.public_key())).is_ok()
    };
    if authorities.iter().any(has_signed) { Some(Ok(())) } else { refuse(CertificateError::UnknownIssuer) }
}

/// The public key of a certificate of version 1.
pub(crate) fn public_key<'a>(certificate: &'a CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'a>> {
    Some(SubjectPublicKeyInfoDer::from(read(certificate)?.tbs_certificate.subject_pki.raw))
}
