//! What an operator says about TLS.

use std::fmt;

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 1.2
    #[default]
    Tls12,
    /// 1.3
    Tls13,
}

/// TLS of one kind of listener and of connections to it, which etcd calls `TLSInfo`. Paths and lists may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The certificate that is shown to whoever connects, with those between it and its authority.
    pub cert_file: String,
    /// Its key.
    pub key_file: String,
    /// The certificate that is shown where this side connects; `cert_file` if empty.
    pub client_cert_file: String,
    /// Its key.
    pub client_key_file: String,
    /// Who may sign the other side's certificates; the system's authorities if empty.
    pub trusted_ca_file: String,
    /// Clients must show a certificate. A `trusted_ca_file` says the same.
    pub client_cert_auth: bool,
    /// Serial numbers of clients' certificates that are not good any more.
    pub crl_file: String,
    /// Common names that are let in; all if empty.
    pub allowed_cns: Vec<String>,
    /// Alternative names that are let in; all if empty.
    pub allowed_hostnames: Vec<String>,
    /// Go's names of the cipher suites of TLS 1.2; all if empty.
    pub cipher_suites: Vec<String>,
    /// The lowest version.
    pub min_version: Version,
    /// The highest version.
    pub max_version: Version,
    /// Connect to whoever shows any certificate.
    pub insecure_skip_verify: bool,
    /// The name that the server's certificate must have, if not the one that was dialled.
    pub server_name: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cert_file: String::new(),
            key_file: String::new(),
            client_cert_file: String::new(),
            client_key_file: String::new(),
            trusted_ca_file: String::new(),
            client_cert_auth: false,
            crl_file: String::new(),
            allowed_cns: Vec::new(),
            allowed_hostnames: Vec::new(),
            cipher_suites: Vec::new(),
            min_version: Version::Tls12,
            max_version: Version::Tls13,
            insecure_skip_verify: false,
            server_name: String::new(),
        }
    }
}

impl Settings {
    /// Is there nothing to show to whoever connects?
    pub fn is_empty(&self) -> bool {
        self.cert_file.is_empty() && self.key_file.is_empty()
    }
}

/// In the words of etcd's log.
impl fmt::Display for Settings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "cert = {}, key = {}, client-cert={}, client-key={}, trusted-ca = {}, client-cert-auth = {}, crl-file = {}",
            self.cert_file,
            self.key_file,
            self.client_cert_file,
            self.client_key_file,
            self.trusted_ca_file,
            self.client_cert_auth,
            self.crl_file
        )
    }
}
