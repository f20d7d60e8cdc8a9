//! Who calls, after it has been looked at: passwords, tokens and certificates.
//!
//! A [`Caller`](crate::Caller) is what a call says of itself. Here it becomes an [`Access`], the user that it is and the revision
//! of its credentials, and is held against what its request needs ([`state::auth::needs`]). Nothing here decides who may do what.
//!
//! - `access`: from a caller to an access, without a lock and without an allocation while permissions do not count
//! - `password`: verified and hashed away from the reactor, and quickly the second time
//! - `jwt`: signed tokens, whose keys may be replaced while we run

mod access;
mod jwt;
mod password;

use std::time::Duration;

use rand::Rng as _;

pub(crate) use access::{Access, Denied, Known};
pub(crate) use password::Passwords;

use jwt::Jwt;

/// Settings of authentication.
#[derive(Clone, Debug)]
pub struct AuthOptions {
    /// `--auth-token`: `simple`, or `jwt,` with `sign-method=`, `pub-key=`, `priv-key=` and `ttl=`.
    pub token: String,
    /// `--auth-token-ttl`: how long a simple token lasts without being used.
    pub token_ttl: Duration,
    /// `--bcrypt-cost`.
    pub bcrypt_cost: u32,
}

impl Default for AuthOptions {
    fn default() -> Self {
        Self { token: "simple".into(), token_ttl: Duration::from_secs(300), bcrypt_cost: 10 }
    }
}

/// Why `--auth-token` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthOptionsError {
    /// It does not follow the form.
    #[error("auth: invalid auth options")]
    Invalid,
    /// `sign-method` names none that there is.
    #[error("auth: invalid auth signature method")]
    Method,
    /// A key file is missing for what the method needs.
    #[error("auth: missing key data")]
    MissingKey,
    /// Both keys were given, and one is not the other's.
    #[error("auth: public and private keys don't match")]
    KeyMismatch,
    /// A key file cannot be read.
    #[error("{file}: {source}")]
    File {
        /// Which.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// A key file holds no key of the kind that the method needs.
    #[error("{file}: not a key for {method}: {what}")]
    Key {
        /// Which.
        file: String,
        /// The signing method.
        method: String,
        /// What is wrong.
        what: String,
    },
}

/// What tokens there are.
#[derive(Debug)]
pub(crate) enum TokenKind {
    /// Nobody gets any.
    None,
    /// Random names for entries of the log.
    Simple,
    /// Signed statements.
    Jwt(Jwt),
}

/// Verifies passwords, and gives and reads tokens. One for all workers.
#[derive(Debug)]
pub struct Authenticator {
    pub(crate) tokens: TokenKind,
    pub(crate) token_ttl_ms: u64,
    pub(crate) passwords: Passwords,
}

impl Authenticator {
    /// Reads the options, and the key files that they name.
    pub fn new(options: &AuthOptions) -> Result<Self, AuthOptionsError> {
        let mut parts = options.token.split(',');
        let tokens = match parts.next() {
            Some("") => TokenKind::None,
            Some("simple") => TokenKind::Simple,
            Some("jwt") => TokenKind::Jwt(Jwt::new(parts)?),
            _ => return Err(AuthOptionsError::Invalid),
        };
        let token_ttl = if options.token_ttl.is_zero() { AuthOptions::default().token_ttl } else { options.token_ttl };
        Ok(Self {
            tokens,
            token_ttl_ms: u64::try_from(token_ttl.as_millis()).unwrap_or(u64::MAX),
            passwords: Passwords::new(options.bcrypt_cost),
        })
    }

    /// How long a simple token lasts without being used, in milliseconds.
    pub fn token_ttl_ms(&self) -> u64 {
        self.token_ttl_ms
    }

    /// Looks whether key files have been replaced. To be called now and then; what cannot be read is left as it was.
    pub fn reload_keys(&self) {
        if let TokenKind::Jwt(jwt) = &self.tokens {
            jwt.reload();
        }
    }

    /// The first part of a new simple token, which nobody can guess; empty where tokens are signed.
    pub(crate) fn new_token_name(&self) -> String {
        const LETTERS: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
        match self.tokens {
            TokenKind::Simple => {
                let mut random = rand::rng();
                (0..16).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect()
            }
            TokenKind::None | TokenKind::Jwt(_) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authenticator(token: &str) -> Result<Authenticator, AuthOptionsError> {
        Authenticator::new(&AuthOptions { token: token.into(), ..AuthOptions::default() })
    }

    #[test]
    fn options_that_mean_nothing_are_refused_at_the_start() {
        assert!(authenticator("simple").is_ok());
        assert!(authenticator("").is_ok());
        for bad in ["complex", "jwt", "jwt,sign-method", "jwt,sign-method=RS256,sign-method=RS256", "jwt,ttl=x"] {
            assert!(matches!(authenticator(bad), Err(AuthOptionsError::Invalid | AuthOptionsError::Method)), "{bad}");
        }
        assert!(matches!(authenticator("jwt,sign-method=RS256"), Err(AuthOptionsError::MissingKey)));
        assert!(matches!(authenticator("jwt,sign-method=HS256,priv-key=/none"), Err(AuthOptionsError::File { .. })));
    }

    #[test]
    fn token_names_are_sixteen_letters_and_never_the_same() {
        let authenticator = authenticator("simple").expect("good options");
        let (a, b) = (authenticator.new_token_name(), authenticator.new_token_name());
        assert_eq!(a.len(), 16);
        assert!(a.bytes().all(|letter| letter.is_ascii_alphabetic()));
        assert_ne!(a, b);
    }
}
