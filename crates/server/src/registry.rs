//! `--discovery-token` and `--discovery-endpoints`: members that do not know each other yet find each other at an etcd that
//! runs already, by keys of the v3 API.
//!
//! Whoever wants to found the cluster has put the number of its members under `/_etcd/registry/TOKEN/_config/size`. Each
//! member puts its `name=url` pairs under `/_etcd/registry/TOKEN/members/ID`, and waits until there are so many; those that
//! came first found the cluster.

use std::time::Duration;

use client::{Client, Credentials, Error, Get, Put, prefix_end};
use proto::etcdserverpb::WatchCreateRequest;
use proto::etcdserverpb::range_request::{SortOrder, SortTarget};

use crate::config;
use crate::discovery::DiscoveryError;

/// After the n-th failure in a row the registry is asked again in 2^n seconds, with n no greater than this.
const MAX_BACKOFF: u32 = 8;

/// Where a cluster's members register.
struct Registry {
    client: Client,
    token: String,
    failures: u32,
}

/// Registers this member and waits for the others. The founders come in the form of `--initial-cluster`.
pub(crate) async fn join(config: &config::Discovery, member_id: u64, pairs: &str) -> Result<String, DiscoveryError> {
    let mut registry = Registry::open(config)?;
    let own = format!("{}/{member_id:x}", registry.members());
    let size = registry.size().await?;
    let (known, _) = registry.registered().await;
    let is_known = |known: &[Registered]| known.iter().take(size).any(|member| member.key == own);
    if known.len() >= size && !is_known(&known) {
        return Err(DiscoveryError::Full);
    }
    registry.register(&own, pairs).await;
    loop {
        let (known, revision) = registry.registered().await;
        if known.len() >= size {
            if !is_known(&known) {
                return Err(DiscoveryError::Full);
            }
            let founders: Vec<String> = known.into_iter().take(size).map(|member| member.pairs).collect();
            tracing::info!(cluster = founders.join(","), "discovery joined cluster successfully");
            return Ok(founders.join(","));
        }
        tracing::info!("cluster-size" = size, "found-peers" = known.len(), "waiting for peers from discovery service");
        registry.wait(revision + 1).await;
    }
}

/// A member in the registry.
struct Registered {
    key: String,
    pairs: String,
}

impl Registry {
    fn open(config: &config::Discovery) -> Result<Self, DiscoveryError> {
        let unusable = |error: Error| DiscoveryError::Url(error.to_string());
        let (name, password) = match config.user.split_once(':') {
            Some((name, password)) if config.password.is_empty() => (name, password),
            _ => (config.user.as_str(), config.password.as_str()),
        };
        let credentials =
            (!name.is_empty()).then(|| Credentials { name: name.to_owned(), password: password.to_owned() });
        let client = Client::new(client::Config {
            dial_timeout: config.dial_timeout,
            keep_alive_time: config.keepalive_time,
            keep_alive_timeout: config.keepalive_timeout,
            credentials,
            ..client::Config::for_endpoints(config.endpoints.iter().map(String::as_str))
        });
        let client = client.map_err(unusable)?.with_timeout(Some(config.request_timeout));
        Ok(Self { client, token: config.token.clone(), failures: 0 })
    }

    fn members(&self) -> String {
        format!("/_etcd/registry/{}/members", self.token)
    }

    /// How many members found the cluster.
    async fn size(&mut self) -> Result<usize, DiscoveryError> {
        let key = format!("/_etcd/registry/{}/_config/size", self.token);
        let answer = loop {
            self.client.log_in().await.unwrap_or_else(|error| tracing::warn!(%error, "discovery: cannot log in"));
            match self.client.range(Get::key(key.clone())).await {
                Ok(answer) => break answer,
                Err(error) => self.pause("cluster status check", &error).await,
            }
        };
        self.failures = 0;
        let found = answer.kvs.first().ok_or(DiscoveryError::NoSize)?;
        let size = std::str::from_utf8(&found.value).ok().and_then(|text| text.parse().ok());
        size.filter(|size| *size > 0).ok_or(DiscoveryError::BadSize)
    }

    /// Who is there, in the order in which they came, and at which revision.
    async fn registered(&mut self) -> (Vec<Registered>, i64) {
        let prefix = self.members() + "/";
        let answer = loop {
            let get = Get::prefix(prefix.clone()).sorted(SortTarget::Create, SortOrder::Ascend);
            match self.client.range(get).await {
                Ok(answer) => break answer,
                Err(error) => self.pause("cluster status check", &error).await,
            }
        };
        self.failures = 0;
        let revision = answer.header.map_or(0, |header| header.revision);
        let members = answer.kvs.iter().filter_map(|kv| {
            let key = String::from_utf8_lossy(&kv.key).into_owned();
            let pairs = String::from_utf8_lossy(&kv.value).trim().to_owned();
            if !pairs.contains('=') {
                tracing::warn!("member-key" = key, "invalid peer info returned from discovery service");
                return None;
            }
            tracing::info!("member-key" = key, "member-info" = pairs, "found peer from discovery service");
            Some(Registered { key, pairs })
        });
        (members.collect(), revision)
    }

    async fn register(&mut self, key: &str, pairs: &str) {
        while let Err(error) = self.client.put(Put::new(key.to_owned(), pairs.to_owned())).await {
            self.pause("register member itself", &error).await;
        }
        self.failures = 0;
    }

    /// Waits until something changes from this revision on.
    async fn wait(&mut self, revision: i64) {
        let prefix = self.members() + "/";
        let request = WatchCreateRequest {
            range_end: prefix_end(prefix.as_bytes()),
            key: prefix.into(),
            start_revision: revision,
            ..WatchCreateRequest::default()
        };
        let mut watcher = self.client.watch(request, true);
        loop {
            match watcher.next().await {
                Ok(response) if response.events.is_empty() => {}
                Ok(_) => return,
                // The list is asked for again, which tells what was missed.
                Err(error) => return self.pause("wait for peers", &error).await,
            }
        }
    }

    /// What goes wrong there may be over in a while.
    async fn pause(&mut self, step: &str, error: &Error) {
        self.failures += 1;
        let pause = Duration::from_secs(1 << self.failures.min(MAX_BACKOFF));
        tracing::warn!(reason = step, backoff = ?pause, %error, "retry connecting to discovery service");
        tokio::time::sleep(pause).await;
    }
}
