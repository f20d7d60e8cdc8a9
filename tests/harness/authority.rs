//! Certificates for tests, made when they are needed: none lies around until it expires.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use time::{Duration, OffsetDateTime};

/// Somebody who signs certificates.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// What a certificate says.
#[derive(Clone, Debug, Default)]
pub struct Leaf {
    /// The subject's common name; none if empty.
    pub common_name: String,
    /// Host names and addresses.
    pub names: Vec<String>,
    /// A number of one's own choice; drawn if 0.
    pub serial: u64,
    /// It was good until yesterday.
    pub is_expired: bool,
}

impl Leaf {
    /// Of this name, for these hosts and addresses.
    pub fn named(common_name: &str, names: &[&str]) -> Leaf {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Leaf { common_name: common_name.to_owned(), names, ..Leaf::default() }
    }
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

impl Authority {
    /// With a certificate of its own.
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().expect("a key can be made");
        Authority(CertifiedIssuer::self_signed(params, key).expect("a certificate can be made"))
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a server, a client or a member, which is both.
    pub fn sign(&self, leaf: &Leaf) -> Pair {
        let mut params = CertificateParams::new(leaf.names.clone()).expect("the names are names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        if !leaf.common_name.is_empty() {
            params.distinguished_name.push(DnType::CommonName, leaf.common_name.as_str());
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if leaf.serial > 0 {
            params.serial_number = Some(SerialNumber::from(leaf.serial));
        }
        let now = OffsetDateTime::now_utc();
        params.not_before = now - Duration::days(10);
        params.not_after = now + Duration::days(if leaf.is_expired { -1 } else { 10 });
        let key = KeyPair::generate().expect("a key can be made");
        let cert = params.signed_by(&key, &self.0).expect("a certificate can be signed");
        Pair { cert: cert.pem(), key: key.serialize_pem() }
    }

    /// A certificate of version 1, without extensions, as `openssl x509 -req` makes them by default: what [`Authority::sign`]
    /// makes, with the version and the extensions cut out, and signed again.
    pub fn sign_version_1(&self, leaf: &Leaf) -> Pair {
        let Pair { cert, key } = self.sign(leaf);
        let der = pem::parse(cert).expect("it is PEM").into_contents();
        let (_, whole, _) = value(&der);
        let (_, body, after_body) = value(whole);
        let (mut kept, mut rest) = (Vec::new(), body);
        while !rest.is_empty() {
            let (tag, _, after) = value(rest);
            // [0] is the version, [3] the extensions.
            if tag != 0xa0 && tag != 0xa3 {
                kept.extend_from_slice(&rest[..rest.len() - after.len()]);
            }
            rest = after;
        }
        let body = wrapped(0x30, &kept);
        let signature = rcgen::SigningKey::sign(self.0.key(), &body).expect("it can be signed");
        let (_, _, after_algorithm) = value(after_body);
        let algorithm = &after_body[..after_body.len() - after_algorithm.len()];
        let bits = wrapped(0x03, &[&[0], signature.as_slice()].concat());
        let cert = wrapped(0x30, &[body.as_slice(), algorithm, &bits].concat());
        Pair { cert: pem::encode(&pem::Pem::new("CERTIFICATE", cert)), key }
    }

    /// A list of the certificates that are not good any more, in PEM.
    pub fn revoke(&self, serials: &[u64]) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now,
            next_update: now + Duration::days(1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.0).expect("a list can be signed").pem().expect("and written")
    }
}

/// Tag and contents of the first value in DER, and what follows it.
fn value(der: &[u8]) -> (u8, &[u8], &[u8]) {
    let (length, start) = match der[1] {
        short @ 0..=0x7f => (usize::from(short), 2),
        long => {
            let bytes = usize::from(long & 0x7f);
            (der[2..2 + bytes].iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), 2 + bytes)
        }
    };
    (der[0], &der[start..start + length], &der[start + length..])
}

/// A value in DER.
fn wrapped(tag: u8, contents: &[u8]) -> Vec<u8> {
    let length = contents.len().to_be_bytes();
    let length = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    match contents.len() {
        0..=0x7f => [&[tag], length, contents].concat(),
        _ => [&[tag, 0x80 | length.len() as u8], length, contents].concat(),
    }
}
