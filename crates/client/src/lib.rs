//! A client for etcd's v3 API: what `etcdctl`, the benches and the tests speak with.
//!
//! A [`Client`] is a handle on one cluster. It knows several endpoints, connects when it is first needed, spreads its
//! calls over the endpoints that answer, and goes on with another one when a member goes away:
//!
//! - a call that never left is sent again, whatever it is;
//! - a call that may have arrived is sent again only if repeating it changes nothing (reads), as etcd's own client does;
//! - a call without a timeout waits until some endpoint answers. [`Client::with_timeout`] sets one.
//!
//! ```no_run
//! # async fn example() -> Result<(), client::Error> {
//! use client::{Client, Config, Get, Put};
//! let client = Client::new(Config::for_endpoints(["10.0.0.1:2379", "10.0.0.2:2379"]))?;
//! client.put(Put::new("greeting", "hello")).await?;
//! let answer = client.range(Get::prefix("greet").limit(10)).await?;
//! # let _ = answer; Ok(()) }
//! ```
//!
//! Long-lived things are types of their own: [`Watcher`] (resumes where it was), [`KeepAlive`], and on top of them
//! [`Session`], [`Mutex`] and [`Election`], which use the same keys as etcd's Go package `concurrency`, so that
//! programs of both kinds can share a lock.

mod balance;
mod call;
mod concurrency;
mod endpoint;
mod error;
mod lease;
mod ops;
mod watch;

pub use call::{Answers, Client};
pub use concurrency::{Election, Held, Mutex, Session};
pub use endpoint::Endpoint;
pub use error::Error;
pub use lease::KeepAlive;
pub use ops::{Condition, Delete, Get, Put, Txn, prefix_end};
pub use watch::Watcher;

use std::sync::Arc;
use std::time::Duration;

/// Who asks.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The user's name.
    pub name: String,
    /// The password, in clear.
    pub password: String,
}

/// TLS towards the endpoints. Paths may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Who may have signed the servers' certificates; the system's authorities if empty.
    pub cacert: String,
    /// The certificate that is shown to servers.
    pub cert: String,
    /// Its key.
    pub key: String,
    /// Take every certificate: whoever is on the way can read and change everything.
    pub insecure_skip_verify: bool,
    /// The name that servers' certificates must have, if not the one in the endpoint.
    pub server_name: String,
}

/// Told when no endpoint can be reached: of each its name and the reason.
pub type OnTrouble = Arc<dyn Fn(&str, &str) + Send + Sync>;

/// How to reach a cluster.
#[derive(Clone)]
pub struct Config {
    /// `host:port`, `http://host:port`, `https://host:port`, `unix://path` or `unixs://path`.
    pub endpoints: Vec<String>,
    /// TLS. It is used where an endpoint says so (`https`, `unixs`), and, if there is anything here, where an endpoint names no
    /// scheme, as in etcd's client.
    pub tls: Option<Tls>,
    /// How long one attempt to connect may take.
    pub dial_timeout: Duration,
    /// After how much silence a connection is pinged.
    pub keep_alive_time: Duration,
    /// How long a ping may stay unanswered before the connection is given up.
    pub keep_alive_timeout: Duration,
    /// The largest request that is sent, in bytes.
    pub max_request_bytes: usize,
    /// The largest answer that is taken, in bytes.
    pub max_response_bytes: usize,
    /// User and password, exchanged for a token when first needed.
    pub credentials: Option<Credentials>,
    /// A token that was obtained elsewhere; used instead of credentials.
    pub token: Option<String>,
    /// Who wants to know about endpoints that cannot be reached.
    pub on_trouble: Option<OnTrouble>,
}

impl Config {
    /// etcd's default bound of a request, in bytes.
    pub const MAX_REQUEST_BYTES: usize = 2 << 20;

    /// etcd's defaults, for these endpoints.
    pub fn for_endpoints<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Self {
        Config {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            tls: None,
            dial_timeout: Duration::from_secs(2),
            keep_alive_time: Duration::from_secs(2),
            keep_alive_timeout: Duration::from_secs(6),
            max_request_bytes: Self::MAX_REQUEST_BYTES,
            max_response_bytes: i32::MAX as usize,
            credentials: None,
            token: None,
            on_trouble: None,
        }
    }
}
