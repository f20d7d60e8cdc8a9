//! Signatures on the curve P-521, which `ring` does not know: etcd's `--auto-tls` makes such keys, so that members with
//! fixtures of an etcd, and clients of one, meet them.

use std::fmt;
use std::sync::Arc;

use p521::ecdsa::signature::Signer as _;
use p521::ecdsa::signature::hazmat::PrehashVerifier as _;
use p521::ecdsa::{DerSignature, Signature, SigningKey, VerifyingKey};
use p521::pkcs8::DecodePrivateKey as _;
use rustls::pki_types::{
    AlgorithmIdentifier, InvalidSignature, PrivateKeyDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer,
    alg_id,
};
use rustls::sign::{self, public_key_to_spki};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// ECDSA with one of the three hashes. In TLS 1.2 a hash may come with any curve, and Go's server takes the first that the client
/// names.
#[derive(Debug)]
pub(crate) enum P521 {
    Sha256,
    Sha384,
    Sha512,
}

/// A coordinate of a point, in bytes.
const FIELD_BYTES: usize = 66;

impl P521 {
    /// The hash as a number as long as a coordinate, which is longer than any of them.
    fn hash(&self, message: &[u8]) -> [u8; FIELD_BYTES] {
        fn padded(hash: &[u8]) -> [u8; FIELD_BYTES] {
            let mut number = [0; FIELD_BYTES];
            number[FIELD_BYTES - hash.len()..].copy_from_slice(hash);
            number
        }
        match self {
            Self::Sha256 => padded(&Sha256::digest(message)),
            Self::Sha384 => padded(&Sha384::digest(message)),
            Self::Sha512 => padded(&Sha512::digest(message)),
        }
    }
}

impl SignatureVerificationAlgorithm for P521 {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let key = VerifyingKey::from_sec1_bytes(public_key).map_err(|_| InvalidSignature)?;
        let signature = Signature::from_der(signature).map_err(|_| InvalidSignature)?;
        key.verify_prehash(&self.hash(message), &signature).map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P521
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        match self {
            Self::Sha256 => alg_id::ECDSA_SHA256,
            Self::Sha384 => alg_id::ECDSA_SHA384,
            Self::Sha512 => alg_id::ECDSA_SHA512,
        }
    }
}

/// A private key.
#[derive(Clone)]
struct Key(Arc<SigningKey>);

impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("P-521 key")
    }
}

/// The key, if it is one of this curve.
pub(crate) fn load(der: &PrivateKeyDer<'_>) -> Option<Arc<dyn sign::SigningKey>> {
    let key = match der {
        PrivateKeyDer::Pkcs8(der) => p521::SecretKey::from_pkcs8_der(der.secret_pkcs8_der()).ok()?,
        PrivateKeyDer::Sec1(der) => p521::SecretKey::from_sec1_der(der.secret_sec1_der()).ok()?,
        _ => return None,
    };
    let key = SigningKey::from_slice(&key.to_bytes()).ok()?;
    Some(Arc::new(Key(Arc::new(key))))
}

impl sign::SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn sign::Signer>> {
        let is_offered = offered.contains(&SignatureScheme::ECDSA_NISTP521_SHA512);
        is_offered.then(|| Box::new(self.clone()) as Box<dyn sign::Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        let key = VerifyingKey::from(&*self.0);
        Some(public_key_to_spki(&alg_id::ECDSA_P521, key.to_encoded_point(false).as_bytes()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl sign::Signer for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signature: Signature = self.0.try_sign(message).map_err(|error| Error::General(error.to_string()))?;
        Ok(DerSignature::from(signature).as_bytes().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP521_SHA512
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::pem::PemObject as _;

    /// Made by Go's `ecdsa.GenerateKey(elliptic.P521(), ...)` and `x509.MarshalECPrivateKey`, as etcd writes them.
    const KEY_OF_GO: &str = "-----BEGIN EC PRIVATE KEY-----
MIHcAgEBBEIAg+Blfoh82sMDqmjsueJKojSaiFNpC/FDGoZY8VwY+dkibMmjvh+x
tJJg2ul3O7T5LDs4o+QHlhACVCKNt5YXvAmgBwYFK4EEACOhgYkDgYYABAHES+40
81VDAh/B1nKk3G457oOtDy8QyFCT4gsSr5b6PxwDqvgdwjDy9wUjr2IQ1XBNHnqu
2f1p7z0FdRjNpDWjLgBEKtB3A/1r8NeMOkNEeEQOq4Gd0ZEOWi1xPV082BhY6YE+
yhjMcKo9k/dOarN3ZxLKrZrcVWcIK5XhpVH11ekb5w==
-----END EC PRIVATE KEY-----
";

    #[test]
    fn a_key_as_etcd_writes_it_signs_what_its_public_half_verifies() {
        let der = PrivateKeyDer::from_pem_slice(KEY_OF_GO.as_bytes()).unwrap();
        let key = load(&der).unwrap();
        let signer = key.choose_scheme(&[SignatureScheme::ECDSA_NISTP521_SHA512]).unwrap();
        assert!(key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]).is_none());
        let signature = signer.sign(b"message").unwrap();
        let secret = p521::SecretKey::from_sec1_der(match &der {
            PrivateKeyDer::Sec1(der) => der.secret_sec1_der(),
            other => panic!("{other:?}"),
        });
        let public = VerifyingKey::from(&SigningKey::from_slice(&secret.unwrap().to_bytes()).unwrap());
        let point = public.to_encoded_point(false);
        P521::Sha512.verify_signature(point.as_bytes(), b"message", &signature).unwrap();
        assert!(P521::Sha512.verify_signature(point.as_bytes(), b"massage", &signature).is_err());
        assert!(P521::Sha384.verify_signature(b"", b"message", b"").is_err());
    }
}
