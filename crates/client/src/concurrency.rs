//! Locks and elections, by the keys of etcd's Go package `concurrency`.
//!
//! Everybody who waits owns a key `<name>/<lease>`; whose key is oldest has the lock, or leads. Each waits only for the
//! one before to go, so that an unlock wakes one waiter and not all.

use crate::call::Client;
use crate::error::Error;
use crate::ops::{Condition, Delete, Get, Put, Txn};
use bytes::Bytes;
use proto::etcdserverpb::compare::CompareResult::Equal;
use proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use proto::etcdserverpb::{
    LeaseGrantRequest, LeaseRevokeRequest, RangeRequest, ResponseHeader, WatchCreateRequest, response_op::Response,
};
use proto::mvccpb::{KeyValue, event::EventType};
use std::ops::ControlFlow;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A lease that is kept alive in the background for as long as this value lives.
pub struct Session {
    client: Client,
    lease: i64,
    renewals: JoinHandle<()>,
    ended: watch::Receiver<bool>,
}

impl Session {
    /// Grants a lease of `ttl_seconds` and begins to renew it. Needs a tokio runtime.
    pub async fn begin(client: &Client, ttl_seconds: i64) -> Result<Session, Error> {
        let lease = client.lease_grant(LeaseGrantRequest { ttl: ttl_seconds, id: 0 }).await?.id;
        let (report, ended) = watch::channel(false);
        let mut keep_alive = client.with_timeout(None).keep_alive(lease);
        let renewals = tokio::spawn(async move {
            while keep_alive.next().await.is_ok() {}
            report.send_replace(true);
        });
        Ok(Session { client: client.clone(), lease, renewals, ended })
    }

    /// The lease's ID.
    pub fn lease(&self) -> i64 {
        self.lease
    }

    /// Returns when the lease has ended.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error means that the task is gone, and the renewals with it.
        let _gone = ended.wait_for(|ended| *ended).await;
    }

    /// Revokes the lease: every key of the session goes at once.
    pub async fn end(self) -> Result<(), Error> {
        self.renewals.abort();
        self.client.lease_revoke(LeaseRevokeRequest { id: self.lease }).await.map(drop)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.renewals.abort();
    }
}

/// What a waiter owns once it is its turn.
#[derive(Clone, Debug)]
pub struct Held {
    /// The key.
    pub key: Bytes,
    /// The revision that created the key. It orders the waiters, and makes a good fencing token.
    pub revision: i64,
    /// The header of the answer that made it our turn.
    pub header: Option<ResponseHeader>,
}

/// A lock that one session at a time can hold.
pub struct Mutex<'s> {
    session: &'s Session,
    prefix: String,
}

impl<'s> Mutex<'s> {
    /// The lock of this name. Nothing happens yet.
    pub fn new(session: &'s Session, name: &str) -> Self {
        Mutex { session, prefix: format!("{name}/") }
    }

    /// Waits for the lock. Dropping the future leaves the waiter's key behind until the session ends.
    pub async fn lock(&self) -> Result<Held, Error> {
        let place = queue_up(self.session, &self.prefix, Bytes::new()).await?;
        wait_for_turn(self.session, &self.prefix, place).await
    }

    /// Gives it back.
    pub async fn unlock(&self, held: &Held) -> Result<(), Error> {
        self.session.client.delete(Delete::key(held.key.clone())).await.map(drop)
    }
}

/// An election that one session at a time can win.
pub struct Election<'s> {
    session: &'s Session,
    prefix: String,
}

impl<'s> Election<'s> {
    /// The election of this name. Nothing happens yet.
    pub fn new(session: &'s Session, name: &str) -> Self {
        Election { session, prefix: format!("{name}/") }
    }

    /// Waits to be elected, with `value` for all to see.
    pub async fn campaign(&self, value: impl Into<Bytes>) -> Result<Held, Error> {
        let value = value.into();
        let place = queue_up(self.session, &self.prefix, value.clone()).await?;
        if place.existing.as_ref().is_some_and(|existing| existing.value != value) {
            let proclaim = Txn::new()
                .when(Condition::create_revision(place.key.clone(), Equal, place.revision))
                .then(Put::new(place.key.clone(), value).lease(self.session.lease));
            self.session.client.txn(proclaim).await?;
        }
        wait_for_turn(self.session, &self.prefix, place).await
    }

    /// Steps down.
    pub async fn resign(&self, held: &Held) -> Result<(), Error> {
        let resign = Txn::new()
            .when(Condition::create_revision(held.key.clone(), Equal, held.revision))
            .then(Delete::key(held.key.clone()));
        self.session.client.txn(resign).await.map(drop)
    }

    /// Calls `seen` with the leader's key and value now, and whenever either changes, until it breaks.
    pub async fn observe(
        client: &Client,
        name: &str,
        mut seen: impl FnMut(&KeyValue) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let prefix = format!("{name}/");
        loop {
            let oldest = client.range(oldest_under(&prefix)).await?;
            let header_revision = oldest.header.as_ref().map_or(0, |header| header.revision);
            let leader = match oldest.kvs.into_iter().next() {
                Some(leader) => leader,
                None => first_put(client, &prefix, header_revision + 1).await?,
            };
            if seen(&leader).is_break() {
                return Ok(());
            }
            // Until the leader's key goes, only its own value can change.
            let follow = WatchCreateRequest {
                key: leader.key.clone(),
                start_revision: header_revision.max(leader.mod_revision) + 1,
                ..Default::default()
            };
            let mut watcher = client.watch(follow, false);
            'term: loop {
                for event in watcher.next().await?.events {
                    match (event.r#type(), event.kv) {
                        (EventType::Delete, _) => break 'term,
                        (EventType::Put, Some(kv)) if seen(&kv).is_break() => return Ok(()),
                        (EventType::Put, _) => {}
                    }
                }
            }
        }
    }
}

/// A waiter's place in the queue.
struct Place {
    key: Bytes,
    revision: i64,
    header: Option<ResponseHeader>,
    /// The key as this session had left it before, if it had.
    existing: Option<KeyValue>,
    is_first: bool,
}

fn oldest_under(prefix: &str) -> Get {
    Get::prefix(prefix.to_owned()).sorted(SortTarget::Create, SortOrder::Ascend).limit(1)
}

async fn queue_up(session: &Session, prefix: &str, value: Bytes) -> Result<Place, Error> {
    let key = Bytes::from(format!("{prefix}{:x}", session.lease));
    let enter = Txn::new()
        .when(Condition::create_revision(key.clone(), Equal, 0))
        .then(Put::new(key.clone(), value).lease(session.lease))
        .then(oldest_under(prefix))
        .otherwise(Get::key(key.clone()))
        .otherwise(oldest_under(prefix));
    let answer = session.client.txn(enter).await?;
    let mut responses = answer.responses.into_iter().filter_map(|response| response.response);
    let existing = match responses.next() {
        Some(Response::ResponseRange(range)) => range.kvs.into_iter().next(),
        _ => None,
    };
    let oldest = match responses.next() {
        Some(Response::ResponseRange(range)) => range.kvs.into_iter().next(),
        _ => None,
    };
    let entered_at = answer.header.as_ref().map_or(0, |header| header.revision);
    let revision = existing.as_ref().map_or(entered_at, |existing| existing.create_revision);
    let is_first = oldest.is_none_or(|oldest| oldest.create_revision == revision);
    Ok(Place { key, revision, header: answer.header, existing, is_first })
}

async fn wait_for_turn(session: &Session, prefix: &str, place: Place) -> Result<Held, Error> {
    let held = Held { key: place.key, revision: place.revision, header: place.header };
    if place.is_first {
        return Ok(held);
    }
    let client = session.client.with_timeout(None);
    let before = RangeRequest {
        max_create_revision: held.revision - 1,
        ..Get::prefix(prefix.to_owned()).sorted(SortTarget::Create, SortOrder::Descend).limit(1).into()
    };
    loop {
        let answer = client.range(before.clone()).await?;
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        let Some(ahead) = answer.kvs.into_iter().next() else { break };
        let request = WatchCreateRequest { key: ahead.key, start_revision: revision + 1, ..Default::default() };
        let mut watcher = client.watch(request, false);
        'ahead: loop {
            let response = tokio::select! {
                response = watcher.next() => response?,
                () = session.ended() => return Err(Error::SessionExpired),
            };
            for event in response.events {
                if event.r#type() == EventType::Delete {
                    break 'ahead;
                }
            }
        }
    }
    // The session may have ended while we waited, and our key with it.
    let own = client.range(Get::key(held.key.clone())).await?;
    if own.kvs.is_empty() {
        return Err(Error::SessionExpired);
    }
    Ok(Held { header: own.header, ..held })
}

/// The first key that is put under the prefix from this revision on.
async fn first_put(client: &Client, prefix: &str, from_revision: i64) -> Result<KeyValue, Error> {
    let range: RangeRequest = Get::prefix(prefix.to_owned()).into();
    let request = WatchCreateRequest {
        key: range.key,
        range_end: range.range_end,
        start_revision: from_revision,
        ..Default::default()
    };
    let mut watcher = client.watch(request, false);
    loop {
        for event in watcher.next().await?.events {
            if let (EventType::Put, Some(kv)) = (event.r#type(), event.kv) {
                return Ok(kv);
            }
        }
    }
}
