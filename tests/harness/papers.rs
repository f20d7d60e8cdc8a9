//! The files of a cluster that speaks TLS everywhere, as an operator would lay them out.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use tls::{Connector, Settings};

use super::authority::{Authority, Leaf, Pair};

/// Certificates, keys and lists in a directory that vanishes with them. All members show one certificate, good for
/// everything on 127.0.0.1.
#[derive(Debug)]
pub struct Papers {
    dir: TempDir,
    /// Who has signed them.
    pub authority: Authority,
}

impl Papers {
    /// Of one authority, with a client named `root`.
    pub fn new() -> Papers {
        let dir = tempfile::Builder::new().prefix("keelson-papers-").tempdir().expect("a directory can be made");
        let papers = Papers { dir, authority: Authority::new("ca") };
        papers.write("ca", &papers.authority.pem());
        papers.write_pair("server", &papers.authority.sign(&Self::server()));
        papers.write_pair("client", &papers.authority.sign(&Leaf::named("root", &[])));
        papers.write("crl", &papers.authority.revoke(&[]));
        papers
    }

    /// What the members' certificate says.
    pub fn server() -> Leaf {
        Leaf::named("member", &["127.0.0.1", "localhost"])
    }

    /// Where the file of this name is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name).with_extension("pem")
    }

    /// Replaces a file in one step, as everybody should.
    pub fn write(&self, name: &str, pem: &str) {
        let next = self.dir.path().join("next");
        fs::write(&next, pem).and_then(|()| fs::rename(&next, self.path(name))).expect("a file can be written");
    }

    /// Replaces a certificate and its key, one after the other.
    pub fn write_pair(&self, name: &str, pair: &Pair) {
        self.write(name, &pair.cert);
        self.write(&format!("{name}-key"), &pair.key);
    }

    fn flag(&self, flag: &str, name: &str) -> OsString {
        let mut text = OsString::from(format!("--{flag}="));
        text.push(self.path(name));
        text
    }

    /// Flags of a server that shows a certificate to clients and wants one of them.
    pub fn client_port_flags(&self) -> Vec<OsString> {
        vec![
            self.flag("cert-file", "server"),
            self.flag("key-file", "server-key"),
            self.flag("trusted-ca-file", "ca"),
            self.flag("client-crl-file", "crl"),
            "--client-cert-auth".into(),
        ]
    }

    /// The same for members.
    pub fn peer_port_flags(&self) -> Vec<OsString> {
        vec![
            self.flag("peer-cert-file", "server"),
            self.flag("peer-key-file", "server-key"),
            self.flag("peer-trusted-ca-file", "ca"),
            self.flag("peer-crl-file", "crl"),
            "--peer-client-cert-auth".into(),
        ]
    }

    /// Flags of `etcdctl` for the client of this name.
    pub fn tool_flags(&self, client: &str) -> Vec<OsString> {
        vec![self.flag("cacert", "ca"), self.flag("cert", client), self.flag("key", &format!("{client}-key"))]
    }

    /// How the client of this name connects.
    pub fn connector(&self, client: &str, protocols: &[&str]) -> Arc<Connector> {
        let text = |name: &str| self.path(name).display().to_string();
        let settings = Settings {
            cert_file: text(client),
            key_file: text(&format!("{client}-key")),
            trusted_ca_file: text("ca"),
            ..Settings::default()
        };
        Arc::new(Connector::new(&settings, protocols).expect("the files are good"))
    }
}

impl Default for Papers {
    fn default() -> Self {
        Papers::new()
    }
}
