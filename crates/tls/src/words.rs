//! What went wrong, in the words of Go's packages `crypto/tls` and `crypto/x509`.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

/// `a, b`
pub(crate) fn list(items: &[String]) -> String {
    items.join(", ")
}

/// `["a" "b"]`, as Go prints a list with `%q`.
pub(crate) fn quoted(items: &[String]) -> String {
    format!("[{}]", items.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(" "))
}

/// An error of a file or a socket.
pub(crate) fn of_io(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::ConnectionReset => "connection reset by peer".into(),
        io::ErrorKind::BrokenPipe => "broken pipe".into(),
        _ => error.to_string(),
    }
}

/// Why a handshake failed, given what rustls made an [`io::Error`] of.
pub(crate) fn of_handshake(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => of_tls(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "EOF".into(),
        None => of_io(error),
    }
}

fn of_tls(error: &Error) -> String {
    match error {
        Error::NoCertificatesPresented => "tls: client didn't provide a certificate".into(),
        Error::AlertReceived(alert) => format!("remote error: tls: {}", of_alert(*alert)),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "tls: first record does not look like a TLS handshake".into()
        }
        Error::InvalidCertificate(error) => of_certificate(error),
        Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon) => {
            "tls: no cipher suite supported by both client and server".into()
        }
        Error::PeerIncompatible(PeerIncompatible::NoSignatureSchemesInCommon) => {
            "tls: peer doesn't support any of the certificate's signature algorithms".into()
        }
        Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired,
        ) => "tls: the other side supports none of the versions that are allowed here".into(),
        Error::NoApplicationProtocol => "tls: client requested unsupported application protocols".into(),
        other => format!("tls: {other}"),
    }
}

fn of_certificate(error: &CertificateError) -> String {
    let reason = match error {
        CertificateError::UnknownIssuer => "certificate signed by unknown authority".into(),
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => of_dates(error),
        CertificateError::NotValidForName => "certificate is not valid for the name that was dialled".into(),
        CertificateError::NotValidForNameContext { expected, presented } if presented.is_empty() => {
            format!("certificate is not valid for any names, but wanted to match {}", expected.to_str())
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<String> = presented.iter().map(|name| bare(name)).collect();
            format!("certificate is valid for {}, not {}", list(&names), expected.to_str())
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "certificate specifies an incompatible key usage".into()
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "cannot verify signature: algorithm unimplemented".into()
        }
        // From this crate's own verifiers, which speak for themselves.
        CertificateError::ApplicationVerificationFailure => return "client certificate authentication failed".into(),
        CertificateError::Other(other) => return other.0.to_string(),
        other => other.to_string(),
    };
    format!("tls: failed to verify certificate: x509: {reason}")
}

/// `DnsName("a")` and `IpAddress(1.2.3.4)` without what is around the name.
fn bare(name: &str) -> String {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    inner.trim_matches('"').to_owned()
}

fn of_dates(error: &CertificateError) -> String {
    let rfc3339 = |time: &rustls::pki_types::UnixTime| {
        let time = i64::try_from(time.as_secs()).ok().and_then(|s| time::OffsetDateTime::from_unix_timestamp(s).ok());
        let text = time.and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok());
        text.unwrap_or_default()
    };
    let about = match error {
        CertificateError::ExpiredContext { time, not_after } => {
            format!(": current time {} is after {}", rfc3339(time), rfc3339(not_after))
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            format!(": current time {} is before {}", rfc3339(time), rfc3339(not_before))
        }
        _ => String::new(),
    };
    format!("certificate has expired or is not yet valid{about}")
}

fn of_alert(alert: AlertDescription) -> String {
    let text = match alert {
        AlertDescription::UnexpectedMessage => "unexpected message",
        AlertDescription::BadRecordMac => "bad record MAC",
        AlertDescription::RecordOverflow => "record overflow",
        AlertDescription::HandshakeFailure => "handshake failure",
        AlertDescription::BadCertificate => "bad certificate",
        AlertDescription::UnsupportedCertificate => "unsupported certificate",
        AlertDescription::CertificateRevoked => "revoked certificate",
        AlertDescription::CertificateExpired => "expired certificate",
        AlertDescription::CertificateUnknown => "unknown certificate",
        AlertDescription::IllegalParameter => "illegal parameter",
        AlertDescription::UnknownCA => "unknown certificate authority",
        AlertDescription::AccessDenied => "access denied",
        AlertDescription::DecodeError => "error decoding message",
        AlertDescription::DecryptError => "error decrypting message",
        AlertDescription::ProtocolVersion => "protocol version not supported",
        AlertDescription::InsufficientSecurity => "insufficient security level",
        AlertDescription::InternalError => "internal error",
        AlertDescription::UserCanceled => "user canceled",
        AlertDescription::MissingExtension => "missing extension",
        AlertDescription::UnsupportedExtension => "unsupported extension",
        AlertDescription::UnrecognisedName => "unrecognized name",
        AlertDescription::CertificateRequired => "certificate required",
        AlertDescription::NoApplicationProtocol => "no application protocol",
        other => return format!("{other:?}"),
    };
    text.into()
}
