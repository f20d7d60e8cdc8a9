//! What a member asks another one outside of raft: who is there, which version it is, and what only a leader may do.

use std::future::Future;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use prost::Message as _;
use proto::etcdserverpb as pb;
use proto::leasepb::{LeaseInternalRequest, LeaseInternalResponse};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::headers::CLUSTER_ID;
use crate::io::{Dialer, Wire, handshake};
use crate::local::RemainingLease;
use crate::url::PeerUrl;

/// Longest answer. A lease may have many keys.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// How much of a refusal is kept.
const MAX_REFUSAL_BYTES: usize = 4 << 10;

/// Where a member says what its v2 tree was like. Not etcd's; one that is asked for it answers 404.
pub(crate) const V2_DIGEST: &str = "/members/v2digest";

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The URL is not one that a member can be called at.
    #[error("cannot use URL {0}")]
    Url(String),
    /// The connection could not be opened or broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The answer is not HTTP, or is cut off.
    #[error("{0}")]
    Http(String),
    /// No answer in time.
    #[error("no answer in time")]
    TimedOut,
    /// The peer refused.
    #[error("{status}: {text}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// What the peer said, without the newline at its end.
        text: String,
    },
    /// The peer's answer cannot be understood.
    #[error("cannot understand the answer: {0}")]
    Malformed(String),
}

impl CallError {
    /// The status, if the peer answered and refused.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// A member as `GET /members` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Member {
    /// Its ID.
    pub id: u64,
    /// Where peers reach it.
    #[serde(rename = "peerURLs", default)]
    pub peer_urls: Vec<String>,
    /// Does it not vote yet?
    #[serde(rename = "isLearner", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_learner: bool,
    /// Empty until it has started.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where clients reach it; empty until it has started.
    #[serde(rename = "clientURLs", default, skip_serializing_if = "Vec::is_empty")]
    pub client_urls: Vec<String>,
}

/// Who is in a cluster, as one of its members sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// The cluster.
    pub cluster_id: u64,
    /// Its members.
    pub members: Vec<Member>,
}

/// A member's answer to `GET /version`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Version {
    /// Of the member itself.
    #[serde(rename = "etcdserver")]
    pub server: String,
    /// Of the cluster; `not_decided` at first.
    #[serde(rename = "etcdcluster", default)]
    pub cluster: String,
    /// Of what is stored (3.6 and later).
    #[serde(default)]
    pub storage: Option<String>,
}

/// The hash of all keys at a revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashKv {
    /// The newest revision.
    pub revision: i64,
    /// The hash.
    pub hash: u32,
    /// Compacted up to here; -1 = never.
    pub compact_revision: i64,
    /// The revision that the hash is of; absent from older members' answers.
    pub hash_revision: Option<i64>,
}

#[derive(Deserialize, Serialize)]
struct HashJson {
    header: HashHeader,
    hash: u32,
    compact_revision: i64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    hash_revision: Option<i64>,
}

#[derive(Default, Deserialize, Serialize)]
struct HashHeader {
    #[serde(default)]
    revision: i64,
}

/// The body of an answer to `GET /members/hashkv`.
pub(crate) fn hash_body(hash: &HashKv) -> Vec<u8> {
    let HashKv { revision, hash, compact_revision, hash_revision } = *hash;
    let json = HashJson { header: HashHeader { revision }, hash, compact_revision, hash_revision };
    serde_json::to_vec(&json).unwrap_or_default() // numbers under fixed names have no way to fail
}

/// Runs a call where there is no event loop, as while a member starts.
///
/// # Errors
/// When an event loop cannot be made.
///
/// # Panics
/// Inside an event loop, which it would block.
pub fn blocking<T>(call: impl Future<Output = T>) -> io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(call))
}

/// Calls other members. Every call opens a connection of its own: calls are rare.
#[derive(Clone, Debug)]
pub struct Caller {
    timeout: Duration,
    dialer: Dialer,
}

impl Caller {
    /// A caller that gives each call so long, from beginning to end.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, dialer: Dialer::default() }
    }

    /// The same, connecting this way.
    pub fn through(self, dialer: &Dialer) -> Self {
        Self { dialer: dialer.clone(), ..self }
    }

    /// Who is in the cluster that the member at `url` belongs to.
    ///
    /// # Errors
    /// See [`CallError`]; so for all calls.
    pub async fn members(&self, url: &str) -> Result<Members, CallError> {
        let (head, body) = self.call(url, get("/members")).await?;
        let cluster_id = crate::headers::id(&head.headers, CLUSTER_ID)
            .ok_or_else(|| CallError::Malformed("no cluster ID in the header".into()))?;
        Ok(Members { cluster_id, members: from_json(&body)? })
    }

    /// Which version the member at `url` is.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn version(&self, url: &str) -> Result<Version, CallError> {
        from_json(&self.call(url, get("/version")).await?.1)
    }

    /// Is a downgrade under way? A member older than 3.5 does not know the question; the answer is then false.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn downgrade_enabled(&self, url: &str) -> Result<bool, CallError> {
        let body = match self.call(url, get("/downgrade/enabled")).await {
            Ok((_, body)) => body,
            Err(CallError::Refused { status: 404, .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        match body.trim_ascii() {
            b"true" => Ok(true),
            b"false" => Ok(false),
            other => Err(CallError::Malformed(String::from_utf8_lossy(other).into_owned())),
        }
    }

    /// Keeps a lease alive at the leader at `url`; gives the TTL in seconds. Status 404: no such lease; 400: that member
    /// does not lead; 408: it is not ready yet.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn renew_lease(&self, url: &str, id: i64) -> Result<i64, CallError> {
        let request = pb::LeaseKeepAliveRequest { id };
        let (_, body) = self.call(url, post("/leases", request.encode_to_vec())).await?;
        let response = pb::LeaseKeepAliveResponse::decode(body).map_err(malformed)?;
        if response.id != id {
            return Err(CallError::Malformed("lease: renew id mismatch".into()));
        }
        Ok(response.ttl)
    }

    /// What remains of a lease, and with `keys` which keys it has, from the leader at `url`. Statuses as in
    /// [`Caller::renew_lease`].
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn remaining_lease(&self, url: &str, id: i64, keys: bool) -> Result<RemainingLease, CallError> {
        let request =
            LeaseInternalRequest { lease_time_to_live_request: Some(pb::LeaseTimeToLiveRequest { id, keys }) };
        let (_, body) = self.call(url, post("/leases/internal", request.encode_to_vec())).await?;
        let response = LeaseInternalResponse::decode(body).map_err(malformed)?.lease_time_to_live_response;
        let lease = response.ok_or_else(|| CallError::Malformed("no lease in the answer".into()))?;
        if lease.id != id {
            return Err(CallError::Malformed("lease: renew id mismatch".into()));
        }
        Ok(RemainingLease { id, ttl: lease.ttl, granted_ttl: lease.granted_ttl, keys: lease.keys })
    }

    /// Has the leader at `url` promote a learner; gives the members afterwards. Status 404: no such member; 412: the text
    /// says which condition it does not meet.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn promote(&self, url: &str, id: u64) -> Result<Vec<Member>, CallError> {
        let mut request = Request::new(Full::default());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = format!("/members/promote/{id}").try_into().map_err(malformed)?;
        from_json(&self.call(url, request).await?.1)
    }

    /// The hash of all keys of the member at `url` at a revision. It is asked only if it belongs to this cluster,
    /// as far as its version checks that. Status 400: compacted or still to come, see the text.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn hash_kv(&self, url: &str, cluster_id: u64, revision: i64) -> Result<HashKv, CallError> {
        let mut request = get("/members/hashkv");
        *request.body_mut() = Full::from(format!(r#"{{"revision":{revision}}}"#));
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CLUSTER_ID, cluster_header(cluster_id)?);
        let answer: HashJson = from_json(&self.call(url, request).await?.1)?;
        Ok(HashKv {
            revision: answer.header.revision,
            hash: answer.hash,
            compact_revision: answer.compact_revision,
            hash_revision: answer.hash_revision,
        })
    }

    /// What users had in the v2 tree of the member at `url` after a log entry; see [`crate::Local::v2_digest`]. Status
    /// 404: it is an etcd, which does not tell; 409: it does not know that any more, or not yet.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn v2_digest(&self, url: &str, cluster_id: u64, log_index: u64) -> Result<u64, CallError> {
        let mut request = get(V2_DIGEST);
        *request.uri_mut() = format!("{V2_DIGEST}?log_index={log_index}").try_into().map_err(malformed)?;
        request.headers_mut().insert(CLUSTER_ID, cluster_header(cluster_id)?);
        let (_, body) = self.call(url, request).await?;
        let digits = std::str::from_utf8(&body).map_err(malformed)?;
        u64::from_str_radix(digits, 16).map_err(malformed)
    }

    async fn call(
        &self,
        url: &str,
        request: Request<Full<Bytes>>,
    ) -> Result<(http::response::Parts, Bytes), CallError> {
        let url = PeerUrl::parse(url).ok_or_else(|| CallError::Url(url.to_owned()))?;
        timeout(self.timeout, exchange(&self.dialer, &url, self.timeout, request))
            .await
            .map_err(|_| CallError::TimedOut)?
    }
}

fn cluster_header(cluster_id: u64) -> Result<HeaderValue, CallError> {
    HeaderValue::try_from(format!("{cluster_id:x}")).map_err(malformed)
}

/// One request on a connection of its own.
async fn exchange(
    dialer: &Dialer,
    url: &PeerUrl,
    dial_timeout: Duration,
    mut request: Request<Full<Bytes>>,
) -> Result<(http::response::Parts, Bytes), CallError> {
    let broken = |error: hyper::Error| CallError::Http(error.to_string());
    request.headers_mut().insert(HOST, HeaderValue::try_from(&url.authority).map_err(malformed)?);
    let wire = Wire::connect(dialer, url, dial_timeout).await?;
    let (mut sender, connection) = handshake(wire).await.map_err(broken)?;
    let call = async {
        let (head, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
        let is_good = head.status == StatusCode::OK;
        let limit = if is_good { MAX_ANSWER_BYTES } else { MAX_REFUSAL_BYTES };
        let body = Limited::new(body, limit).collect().await.map_err(|error| CallError::Http(error.to_string()));
        if is_good {
            return Ok((head, body?.to_bytes()));
        }
        // The text of a refusal is good to have; the status alone will do.
        let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim_end().to_owned()).unwrap_or_default();
        Err(CallError::Refused { status: head.status.as_u16(), text })
    };
    let drive = async {
        // Its end wakes the call, which then knows what came of it.
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        outcome = call => outcome,
        never = drive => never,
    }
}

fn get(path: &'static str) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::default());
    *request.uri_mut() = http::Uri::from_static(path);
    request
}

fn post(path: &'static str, body: Vec<u8>) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::from(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static(path);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/protobuf"));
    request
}

fn from_json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, CallError> {
    serde_json::from_slice(body).map_err(malformed)
}

fn malformed(error: impl std::fmt::Display) -> CallError {
    CallError::Malformed(error.to_string())
}
