//! What a running command has at hand: its flags, the environment, and a client.

use super::cluster::{Cluster, Error, NO_ENDPOINTS};
use super::endpoint::Endpoint;
use super::flag::Parsed;
use super::json::Event;
use super::secure::Tls;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cli::{raw, terminal};
use std::os::unix::ffi::OsStrExt;
use tls::{Settings, TlsError};

/// The exit codes of the v2 tool.
pub mod exit {
    /// The arguments make no sense; also every failure of the commands for members and users.
    pub const BAD_ARGUMENTS: u8 = 1;
    /// No connection.
    pub const BAD_CONNECTION: u8 = 2;
    /// A member refused.
    pub const SERVER_ERROR: u8 = 4;
    /// Not all members are healthy.
    pub const NOT_HEALTHY: u8 = 5;
}

/// How a command ended that did not end well.
#[derive(Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code.
    pub code: u8,
    /// What goes to stderr.
    pub text: String,
}

impl Exit {
    /// With code 1 and a line.
    pub fn plain(text: impl std::fmt::Display) -> Exit {
        Exit { code: exit::BAD_ARGUMENTS, text: format!("{text}\n") }
    }

    /// With a line that begins with `Error:`.
    pub fn error(code: u8, text: impl std::fmt::Display) -> Exit {
        Exit { code, text: format!("Error:  {text}\n") }
    }

    /// The same for an error of the cluster, with all that is known about it.
    pub fn cluster(code: u8, error: &Error) -> Exit {
        let detail = error.detail().map_or(String::new(), |detail| format!("{detail}\n"));
        Exit { code, text: format!("Error:  {error}\n{detail}") }
    }

    /// All has been said.
    pub fn silent(code: u8) -> Exit {
        Exit { code, text: String::new() }
    }
}

/// What a running command has at hand.
pub struct Context<'a> {
    /// The flags before the command.
    pub globals: &'a Parsed,
    /// Its own flags and arguments.
    pub command: Parsed,
}

/// A variable of the environment; empty if it is not set.
fn variable(name: &str) -> String {
    std::env::var_os(name).map_or(String::new(), |value| raw::text(value.as_bytes()))
}

impl Context<'_> {
    /// The arguments.
    pub fn args(&self) -> &[String] {
        &self.command.args
    }

    /// The first argument, or the complaint that there is none.
    pub fn key(&self) -> Result<&str, Exit> {
        let missing = || Exit::error(exit::BAD_ARGUMENTS, "key required");
        self.args().first().map(String::as_str).ok_or_else(missing)
    }

    /// A global flag, or the variable that stands for it.
    fn setting(&self, flag: &str, name: &str) -> String {
        Some(self.globals.text(flag).to_owned()).filter(|text| !text.is_empty()).unwrap_or_else(|| variable(name))
    }

    /// `-o`.
    pub fn format(&self) -> &str {
        self.globals.text("output")
    }

    /// Whether requests are shown.
    pub fn is_debug(&self) -> bool {
        self.globals.is("debug")
    }

    fn endpoints(&self) -> Result<Vec<Endpoint>, String> {
        let mut urls = self.discovered()?;
        if urls.is_empty() {
            let from =
                [("endpoints", "ETCDCTL_ENDPOINTS"), ("endpoint", "ETCDCTL_ENDPOINT"), ("peers", "ETCDCTL_PEERS")];
            let given = from.iter().map(|(flag, name)| self.setting(flag, name)).find(|text| !text.is_empty());
            let given = given.unwrap_or_else(|| "http://127.0.0.1:2379,http://127.0.0.1:4001".to_owned());
            urls = given.split(',').map(str::to_owned).collect();
        }
        urls.iter()
            .map(|url| {
                let mut endpoint = Endpoint::parse(url)?;
                if endpoint.scheme.is_empty() {
                    "http".clone_into(&mut endpoint.scheme);
                }
                // What was read as a path may be a host once a scheme stands before it.
                Endpoint::parse(&endpoint.to_string())
            })
            .collect()
    }

    /// The endpoints that a domain's SRV records name, if one is given.
    fn discovered(&self) -> Result<Vec<String>, String> {
        let domain = self.setting("discovery-srv", "ETCDCTL_DISCOVERY_SRV");
        if domain.is_empty() {
            return Ok(Vec::new());
        }
        let found = srv::client_endpoints(&domain, &variable("ETCDCTL_DISCOVERY_SRV_NAME"), false)?;
        let url = |found: &srv::Endpoint| format!("{}://{}", found.scheme, found.target.address());
        let found: Vec<String> = found.iter().map(url).collect();
        if self.accepts_insecure() {
            return Ok(found);
        }
        let (insecure, secure): (Vec<_>, Vec<_>) = found.into_iter().partition(|url| url.starts_with("http://"));
        for url in insecure {
            eprintln!("ignoring discovered insecure endpoint {url:?}");
        }
        Ok(secure)
    }

    /// TLS towards members that say so.
    pub fn tls(&self) -> Result<Tls, TlsError> {
        let domain = self.setting("discovery-srv", "ETCDCTL_DISCOVERY_SRV");
        Tls::new(Settings {
            trusted_ca_file: self.setting("ca-file", "ETCDCTL_CA_FILE"),
            cert_file: self.setting("cert-file", "ETCDCTL_CERT_FILE"),
            key_file: self.setting("key-file", "ETCDCTL_KEY_FILE"),
            server_name: if self.accepts_insecure() { String::new() } else { domain },
            ..Settings::default()
        })
    }

    /// Whether a domain may name endpoints without TLS.
    fn accepts_insecure(&self) -> bool {
        self.globals.is("insecure-discovery") || !variable("ETCDCTL_INSECURE_DISCOVERY").is_empty()
    }

    /// A client of the endpoints as they are configured.
    pub fn client_without_sync(&self) -> Result<Cluster, Exit> {
        let cluster = self.configured()?;
        if self.is_debug() {
            eprintln!("Cluster-Endpoints: {}", cluster.endpoints(", "));
        }
        Ok(cluster)
    }

    fn configured(&self) -> Result<Cluster, Exit> {
        let endpoints = self.endpoints().map_err(Exit::plain)?;
        let tls = self.tls().map_err(Exit::plain)?;
        let user = self.setting("username", "ETCDCTL_USERNAME");
        let authorization = if user.is_empty() {
            None
        } else {
            let (name, password) = name_and_password("Password: ", &user).map_err(Exit::plain)?;
            let plain = raw::bytes(&format!("{name}:{password}"));
            Some(name).filter(|name| !name.is_empty()).map(|_| format!("Basic {}", BASE64_STANDARD.encode(plain)))
        };
        let timeouts = (self.globals.duration("timeout"), self.globals.duration("total-timeout"));
        Ok(Cluster::new(endpoints, tls, authorization, timeouts, self.is_debug()))
    }

    /// A client of the cluster's members, or with `--no-sync` of the endpoints as they are configured.
    pub fn client(&self) -> Result<Cluster, Exit> {
        let mut cluster = self.configured()?;
        if !self.globals.is("no-sync") {
            if self.is_debug() {
                eprintln!("start to sync cluster using endpoints({})", cluster.endpoints(","));
            }
            match cluster.sync() {
                Err(error) if error.to_string() == NO_ENDPOINTS => {
                    eprintln!("etcd cluster has no published client endpoints.");
                    let endpoints = cluster.endpoints(",");
                    eprintln!("Try '--no-sync' if you want to access non-published client endpoints({endpoints}).");
                    return Err(Exit::cluster(exit::SERVER_ERROR, &error));
                }
                Err(error) if error.is_connection() => return Err(Exit::cluster(exit::BAD_CONNECTION, &error)),
                // A member that cannot tell its members may still know its keys.
                Ok(()) | Err(_) => {}
            }
            if self.is_debug() {
                eprintln!("got endpoints({}) after sync", cluster.endpoints(","));
            }
        }
        if self.is_debug() {
            eprintln!("Cluster-Endpoints: {}", cluster.endpoints(", "));
        }
        Ok(cluster)
    }

    /// Shows an answer in the chosen format.
    pub fn show(&self, event: &Event) {
        let node = event.node.clone().unwrap_or_default();
        let previous = event.previous.as_ref().map(|node| node.value.as_str());
        let is_delete = event.action == "delete";
        match self.format() {
            "simple" if is_delete => terminal::say(&format!("PrevNode.Value: {}", previous.unwrap_or_default())),
            "simple" => terminal::say(&node.value),
            "extended" => {
                let mut text = format!(
                    "Key: {}\nCreated-Index: {}\nModified-Index: {}\n",
                    node.key, node.created_index, node.modified_index
                );
                if let Some(previous) = previous {
                    text.push_str(&format!("PrevNode.Value: {previous}\n"));
                }
                text.push_str(&format!("TTL: {}\nIndex: {}\n", node.ttl, event.index));
                if !is_delete {
                    text.push_str(&format!("\n{}\n", node.value));
                }
                terminal::print(text.as_bytes());
            }
            "json" => terminal::say(&event.to_json()),
            format => eprintln!("Unsupported output format: {format}"),
        }
    }
}

/// `name[:password]`; asks for a password that is missing.
pub fn name_and_password(prompt: &str, user: &str) -> std::io::Result<(String, String)> {
    match user.split_once(':') {
        Some((name, password)) => Ok((name.to_owned(), password.to_owned())),
        None => Ok((user.to_owned(), terminal::ask_password(prompt)?)),
    }
}
