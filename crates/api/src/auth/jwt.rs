//! Tokens that are signed statements: who, as of which revision of users and roles, and until when.
//!
//! Whoever has the private key may sign for anybody, so members of a cluster, and issuers beside it, share one. Key files are
//! read again when they change, so that keys can be replaced without a restart.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use parking_lot::{Mutex, RwLock};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    RsaKeyPair,
};
use serde::{Deserialize, Serialize};
use state::Error;

use super::AuthOptionsError;

/// How long a token lasts if `ttl` does not say.
const TTL: Duration = Duration::from_secs(300);

/// What a token says.
#[derive(Debug)]
pub(crate) struct Claims {
    pub(crate) user: Arc<str>,
    pub(crate) revision: u64,
    not_before: Option<u64>,
    expires: Option<u64>,
}

impl Claims {
    /// Whether it holds at this time, in seconds since 1970.
    pub(crate) fn are_good_at(&self, now: u64) -> bool {
        self.expires.is_none_or(|expires| now < expires) && self.not_before.is_none_or(|begin| now >= begin)
    }
}

/// The same on the wire, in etcd's words. Numbers are JSON's, which other issuers may write with a fraction.
#[derive(Debug, Serialize, Deserialize)]
struct WireClaims {
    username: String,
    revision: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbf: Option<f64>,
}

#[derive(Serialize)]
struct Signed<'a> {
    username: &'a str,
    revision: u64,
    exp: u64,
}

/// Signs and verifies.
#[derive(Debug)]
pub(crate) struct Jwt {
    method: Algorithm,
    ttl: Duration,
    files: Files,
    keys: RwLock<Arc<Keys>>,
    /// Counts the keys.
    generation: AtomicU64,
    /// How the files looked when they were last read.
    seen: Mutex<[Option<Look>; 2]>,
}

#[derive(Debug)]
struct Files {
    method_name: String,
    public: Option<String>,
    private: Option<String>,
}

/// By what a file that was replaced is told from what it was.
type Look = (SystemTime, u64);

struct Keys {
    /// None: whoever signs is somebody else.
    signing: Option<EncodingKey>,
    verifying: DecodingKey,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("can_sign", &self.signing.is_some()).finish_non_exhaustive()
    }
}

impl Jwt {
    /// From the options behind `jwt,`.
    pub(crate) fn new<'a>(options: impl Iterator<Item = &'a str>) -> Result<Self, AuthOptionsError> {
        let mut given = BTreeMap::new();
        for option in options {
            let (name, value) = option.split_once('=').ok_or(AuthOptionsError::Invalid)?;
            if value.contains('=') || given.insert(name, value).is_some() {
                return Err(AuthOptionsError::Invalid);
            }
        }
        let mut take = |name| given.remove(name).filter(|value: &&str| !value.is_empty());
        let ttl = match take("ttl") {
            None => TTL,
            Some(text) => duration(text).ok_or(AuthOptionsError::Invalid)?,
        };
        let method_name = take("sign-method").unwrap_or_default();
        let files = Files {
            method_name: method_name.to_owned(),
            public: take("pub-key").map(str::to_owned),
            private: take("priv-key").map(str::to_owned),
        };
        // etcd knows ES512 as well; ring does not know its curve.
        let method = method_name.parse().map_err(|_| AuthOptionsError::Method)?;
        if !given.is_empty() {
            tracing::warn!(keys = ?given.keys(), "unknown JWT options");
        }
        let seen = files.look();
        let keys = files.read(method)?;
        Ok(Self {
            method,
            ttl,
            files,
            keys: RwLock::new(Arc::new(keys)),
            generation: AtomicU64::new(0),
            seen: Mutex::new(seen),
        })
    }

    /// While this number stays the same, so do the keys.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Reads the key files again if they have changed.
    pub(crate) fn reload(&self) {
        let mut seen = self.seen.lock();
        let look = self.files.look();
        if *seen == look {
            return;
        }
        // Also when they cannot be used: once is enough to say so.
        *seen = look;
        match self.files.read(self.method) {
            Ok(keys) => {
                *self.keys.write() = Arc::new(keys);
                self.generation.fetch_add(1, Ordering::AcqRel);
                tracing::info!("reloaded the keys of signed tokens");
            }
            Err(error) => {
                tracing::warn!(%error, "cannot use the new keys of signed tokens; going on with the old ones")
            }
        }
    }

    /// Takes milliseconds with some methods.
    pub(crate) fn sign(&self, user: &str, revision: u64) -> Result<String, Error> {
        let keys = self.keys.read().clone();
        let Some(key) = &keys.signing else {
            return Err(Error::Internal("auth: token signing attempted with verify-only key".into()));
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let claims = Signed { username: user, revision, exp: (now + self.ttl).as_secs() };
        jsonwebtoken::encode(&Header::new(self.method), &claims, key)
            .map_err(|error| Error::Internal(format!("auth: {error}")))
    }

    /// What a token says, if it was signed with our key. Whether it has begun and not ended is left to [`Claims::are_good_at`].
    pub(crate) fn verify(&self, token: &str) -> Result<Claims, ()> {
        let keys = self.keys.read().clone();
        // Only our own method: a token must not choose how it is verified.
        let mut validation = Validation::new(self.method);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        let claims = jsonwebtoken::decode::<WireClaims>(token, &keys.verifying, &validation).map_err(|error| {
            tracing::warn!(%error, "failed to parse a JWT token");
        })?;
        let claims = claims.claims;
        // A negative or endless number becomes the nearest that there is.
        let seconds = |number: f64| number as u64;
        Ok(Claims {
            user: claims.username.into(),
            revision: claims.revision as u64,
            not_before: claims.nbf.map(seconds),
            expires: claims.exp.map(seconds),
        })
    }
}

impl Files {
    fn look(&self) -> [Option<Look>; 2] {
        let look = |file: &Option<String>| {
            let metadata = fs::metadata(file.as_ref()?).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        [look(&self.public), look(&self.private)]
    }

    fn read(&self, method: Algorithm) -> Result<Keys, AuthOptionsError> {
        let private = self.private.as_ref().map(|file| Ok((file, read(file)?))).transpose()?;
        let public = self.public.as_ref().map(|file| Ok((file, read(file)?))).transpose()?;
        if let Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 = method {
            let (_, secret) = private.filter(|(_, secret)| !secret.is_empty()).ok_or(AuthOptionsError::MissingKey)?;
            let signing = Some(EncodingKey::from_secret(&secret));
            return Ok(Keys { signing, verifying: DecodingKey::from_secret(&secret) });
        }
        let bad = |file: &str, what: String| AuthOptionsError::Key {
            file: file.to_owned(),
            method: self.method_name.clone(),
            what,
        };
        let public = match public {
            None => None,
            Some((file, pem)) => Some(public_key(method, &pem).map_err(|error| bad(file, error.to_string()))?),
        };
        let Some((file, pem)) = private else {
            let verifying = public.ok_or(AuthOptionsError::MissingKey)?;
            return Ok(Keys { signing: None, verifying });
        };
        let (signing, own) = private_key(method, &pem).map_err(|what| bad(file, what))?;
        let keys = Keys { signing: Some(signing), verifying: public.unwrap_or(own) };
        if keys.fit(method) { Ok(keys) } else { Err(AuthOptionsError::KeyMismatch) }
    }
}

impl Keys {
    /// Whether one verifies what the other signs.
    fn fit(&self, method: Algorithm) -> bool {
        let Some(signing) = &self.signing else { return true };
        let message = b"do these belong together?";
        let signed = jsonwebtoken::crypto::sign(message, signing, method);
        signed.is_ok_and(|signature| {
            jsonwebtoken::crypto::verify(&signature, message, &self.verifying, method).unwrap_or(false)
        })
    }
}

fn read(file: &str) -> Result<Vec<u8>, AuthOptionsError> {
    fs::read(file).map_err(|source| AuthOptionsError::File { file: file.to_owned(), source })
}

fn public_key(method: Algorithm, pem: &[u8]) -> Result<DecodingKey, jsonwebtoken::errors::Error> {
    match method {
        Algorithm::ES256 | Algorithm::ES384 => DecodingKey::from_ec_pem(pem),
        Algorithm::EdDSA => DecodingKey::from_ed_pem(pem),
        _ => DecodingKey::from_rsa_pem(pem),
    }
}

/// A private key, and the public one that belongs to it.
fn private_key(method: Algorithm, pem: &[u8]) -> Result<(EncodingKey, DecodingKey), String> {
    let blocks = pem::parse_many(pem).map_err(|error| error.to_string())?;
    // `openssl ecparam -genkey` writes the parameters before the key.
    let block = blocks.iter().find(|block| block.tag().ends_with("PRIVATE KEY")).ok_or("no private key in it")?;
    let der = block.contents();
    let rejected = |error: ring::error::KeyRejected| error.to_string();
    match method {
        Algorithm::ES256 | Algorithm::ES384 => {
            let (curve, oid): (_, &[u8]) = match method {
                Algorithm::ES256 => (&ECDSA_P256_SHA256_FIXED_SIGNING, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7]),
                _ => (&ECDSA_P384_SHA384_FIXED_SIGNING, &[0x2b, 0x81, 4, 0, 0x22]),
            };
            let wrapped = if block.tag() == "EC PRIVATE KEY" { pkcs8_of_sec1(der, oid) } else { der.to_vec() };
            let pair = EcdsaKeyPair::from_pkcs8(curve, &wrapped, &ring::rand::SystemRandom::new()).map_err(rejected)?;
            Ok((EncodingKey::from_ec_der(&wrapped), DecodingKey::from_ec_der(pair.public_key().as_ref())))
        }
        Algorithm::EdDSA => {
            let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(rejected)?;
            Ok((EncodingKey::from_ed_der(der), DecodingKey::from_ed_der(pair.public_key().as_ref())))
        }
        _ => {
            let pair = match block.tag() {
                "RSA PRIVATE KEY" => RsaKeyPair::from_der(der),
                _ => RsaKeyPair::from_pkcs8(der),
            };
            let pair = pair.map_err(rejected)?;
            let signing = EncodingKey::from_rsa_pem(pem).map_err(|error| error.to_string())?;
            Ok((signing, DecodingKey::from_rsa_der(pair.public_key().as_ref())))
        }
    }
}

/// Puts a key of an elliptic curve as SEC 1 writes it into the frame that PKCS #8 puts around every kind of key.
fn pkcs8_of_sec1(key: &[u8], curve: &[u8]) -> Vec<u8> {
    const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
    let algorithm = [element(6, EC_PUBLIC_KEY), element(6, curve)].concat();
    element(0x30, &[element(2, &[0]), element(0x30, &algorithm), element(4, key)].concat())
}

/// An element of DER.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut element = vec![tag];
    match length {
        0..0x80 => element.push(length as u8),
        0x80..0x100 => element.extend([0x81, length as u8]),
        _ => element.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    element.extend_from_slice(content);
    element
}

/// A duration as Go writes it, such as `5m` or `1h30m`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let unit_end = rest[number_end..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| number_end + at);
        let unit = match &rest[number_end..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += rest[..number_end].parse::<f64>().ok()? * unit;
        rest = &rest[unit_end..];
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(total).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    use ring::rand::SystemRandom;

    const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a directory"))
        }

        fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
            let path = self.0.path().join(name);
            fs::write(&path, content).expect("written");
            path
        }

        fn pem(&self, name: &str, tag: &str, der: impl Into<Vec<u8>>) -> PathBuf {
            self.write(name, pem::encode(&pem::Pem::new(tag, der)))
        }
    }

    fn ec_key() -> Vec<u8> {
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        key.expect("random").as_ref().to_vec()
    }

    /// The public half of a key, in the frame that files have.
    fn ec_public(pkcs8: &[u8]) -> Vec<u8> {
        const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &SystemRandom::new());
        let pair = pair.expect("a key");
        let algorithm = element(0x30, &[element(6, EC_PUBLIC_KEY), element(6, P256)].concat());
        let bits = element(3, &[&[0], pair.public_key().as_ref()].concat());
        element(0x30, &[algorithm, bits].concat())
    }

    fn jwt(method: &str, private: Option<&Path>, public: Option<&Path>) -> Result<Jwt, AuthOptionsError> {
        let mut options = vec![format!("sign-method={method}"), "ttl=1m".to_owned()];
        options.extend(private.map(|file| format!("priv-key={}", file.display())));
        options.extend(public.map(|file| format!("pub-key={}", file.display())));
        Jwt::new(options.iter().map(String::as_str))
    }

    fn now() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
    }

    #[test]
    fn what_is_signed_is_read_again_with_every_kind_of_key() {
        let dir = Dir::new();
        let p384 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &SystemRandom::new());
        let ed = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("random");
        let keys = [
            ("HS256", dir.write("hs", "a secret")),
            ("HS512", dir.write("hs", "a secret")),
            ("ES256", dir.pem("es256", "PRIVATE KEY", ec_key())),
            ("ES384", dir.pem("es384", "PRIVATE KEY", p384.expect("random").as_ref())),
            ("EdDSA", dir.pem("ed", "PRIVATE KEY", ed.as_ref())),
        ];
        for (method, key) in &keys {
            let jwt = jwt(method, Some(key), None).unwrap_or_else(|error| panic!("{method}: {error}"));
            let claims = jwt.verify(&jwt.sign("alice", 7).expect("signed")).expect("our own");
            assert_eq!((claims.user.as_ref(), claims.revision), ("alice", 7), "{method}");
            assert!(claims.are_good_at(now()) && !claims.are_good_at(now() + 61), "{method}");
        }
    }

    /// `openssl ecparam -genkey` writes elliptic keys in their own frame, behind their parameters.
    #[test]
    fn an_elliptic_key_is_read_in_its_old_frame() {
        let dir = Dir::new();
        let pkcs8 = ec_key();
        // The last element of the outer frame, a string of octets, is the inner one.
        let inner = pkcs8.windows(2).position(|pair| pair == [0x04, 0x6d]).map(|at| pkcs8[at + 2..].to_vec());
        let inner = inner.expect("a key of this curve is 109 bytes long");
        let parameters = pem::encode(&pem::Pem::new("EC PARAMETERS", element(6, P256)));
        let file = dir.write("sec1", parameters + &pem::encode(&pem::Pem::new("EC PRIVATE KEY", inner)));
        let old = jwt("ES256", Some(&file), None).expect("the same key");
        let new = jwt("ES256", Some(&dir.pem("pkcs8", "PRIVATE KEY", pkcs8)), None).expect("a key");
        assert!(new.verify(&old.sign("alice", 1).expect("signed")).is_ok());
    }

    #[test]
    fn only_our_key_and_our_method_count() {
        let dir = Dir::new();
        let (ours, other) = (ec_key(), ec_key());
        let public = dir.pem("public", "PUBLIC KEY", ec_public(&ours));
        let jwt_of = |name, key: &[u8]| jwt("ES256", Some(&dir.pem(name, "PRIVATE KEY", key)), None).expect("a key");
        let (us, others) = (jwt_of("ours", &ours), jwt_of("other", &other));
        let token = us.sign("root", 1).expect("signed");
        assert!(us.verify(&token).is_ok());
        assert!(others.verify(&token).is_err());
        assert!(us.verify(&others.sign("root", 1).expect("signed")).is_err());
        // Signed with what everybody knows, in a method that takes any secret.
        let confused = jwt("HS256", Some(&public), None).expect("a secret").sign("root", 1).expect("signed");
        assert!(us.verify(&confused).is_err());
        // {"alg":"none"} and no signature.
        let payload = token.split('.').nth(1).expect("three parts");
        assert!(us.verify(&format!("eyJhbGciOiJub25lIn0.{payload}.")).is_err());
        for damaged in ["", ".", "..", "a.b.c", &token[..token.len() - 2]] {
            assert!(us.verify(damaged).is_err(), "{damaged}");
        }
    }

    #[test]
    fn who_has_the_public_key_alone_reads_and_does_not_sign() {
        let dir = Dir::new();
        let key = ec_key();
        let (private, public) =
            (dir.pem("private", "PRIVATE KEY", &key[..]), dir.pem("public", "PUBLIC KEY", ec_public(&key)));
        let token = jwt("ES256", Some(&private), Some(&public)).expect("they fit").sign("alice", 1).expect("signed");
        let reader = jwt("ES256", None, Some(&public)).expect("enough to read");
        assert!(reader.verify(&token).is_ok());
        let refused = reader.sign("alice", 1).expect_err("nothing to sign with");
        assert_eq!(refused.to_string(), "auth: token signing attempted with verify-only key");
        let other = dir.pem("other", "PRIVATE KEY", ec_key());
        assert!(matches!(jwt("ES256", Some(&other), Some(&public)), Err(AuthOptionsError::KeyMismatch)));
        assert!(matches!(jwt("ES256", None, None), Err(AuthOptionsError::MissingKey)));
        assert!(matches!(jwt("RS256", Some(&private), None), Err(AuthOptionsError::Key { .. })));
    }

    #[test]
    fn a_replaced_key_counts_and_a_broken_one_does_not() {
        let dir = Dir::new();
        let file = dir.write("secret", "one");
        let jwt = jwt("HS256", Some(&file), None).expect("a secret");
        let old = jwt.sign("alice", 1).expect("signed");
        jwt.reload();
        assert_eq!(jwt.generation(), 0, "nothing has changed");
        dir.write("secret", "another");
        jwt.reload();
        assert_eq!(jwt.generation(), 1);
        assert!(jwt.verify(&old).is_err());
        let new = jwt.sign("alice", 1).expect("signed");
        dir.write("secret", "");
        jwt.reload();
        assert!(jwt.verify(&new).is_ok(), "what cannot be used changes nothing");
    }

    #[test]
    fn durations_are_gos() {
        assert_eq!(duration("5m"), Some(Duration::from_secs(300)));
        assert_eq!(duration("1h30m1.5s"), Some(Duration::from_millis(5_401_500)));
        for bad in ["", "5", "m", "5x", "-1s"] {
            assert_eq!(duration(bad), None, "{bad:?}");
        }
    }
}
