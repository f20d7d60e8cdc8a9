//! Puts, ranges and transactions by closed-loop clients.

use super::requests::{self, Counter, FillByTxn, TXN_OPERATIONS, Template, random};
use super::{CLIENTS, Settings, Target, VALUE_BYTES, measured};
use crate::error::BenchError;
use crate::load::{self, Requests, Until};
use crate::metric::Measured;
use crate::protobuf::{bytes, integer};
use crate::wire::Method;
use prost::Message;
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::{Compare, PutRequest, RequestOp, TxnRequest, request_op::Request};
use rand::Rng;
use rand::rngs::SmallRng;

/// Keys that puts are spread over.
pub const PUT_KEYS: u64 = 100_000;
/// Keys that are there to be read.
pub const RANGE_KEYS: u64 = 10_000;

/// Clients and connections that only bring keys in.
const FILL_CLIENTS: usize = 8;

/// Puts of 256 bytes to random keys.
pub async fn put(target: &mut Target<'_>, settings: &Settings, clients: usize) -> Result<Measured, BenchError> {
    let requests = |share: std::ops::Range<usize>| Mixture::new(share.start, false, 0, PUT_KEYS);
    let outcome = load::run(target.address, target.pid, clients, settings.until(), requests).await?;
    measured(&outcome, target)
}

/// Reads of single random keys, from a server started again after they were written: etcd 3.4 goes on copying the
/// buffer of the last large batch of writes for every read, which would make it several times slower than it need be.
pub async fn range(
    target: &mut Target<'_>,
    settings: &Settings,
    clients: usize,
    serializable: bool,
) -> Result<Measured, BenchError> {
    bring_in(target, RANGE_KEYS).await?;
    target.restart().await?;
    let requests = |share: std::ops::Range<usize>| Mixture::new(share.start, serializable, 100, RANGE_KEYS);
    let outcome = load::run(target.address, target.pid, clients, settings.until(), requests).await?;
    measured(&outcome, target)
}

/// Nine linearizable reads to one put, after a restart as for [`range`].
pub async fn mixed(target: &mut Target<'_>, settings: &Settings) -> Result<Measured, BenchError> {
    bring_in(target, RANGE_KEYS).await?;
    target.restart().await?;
    let requests = |share: std::ops::Range<usize>| Mixture::new(share.start, false, 90, RANGE_KEYS);
    let outcome = load::run(target.address, target.pid, CLIENTS, settings.until(), requests).await?;
    measured(&outcome, target)
}

/// Each client puts its own key if that key's revision is the one of its last put.
pub async fn compare_and_put(target: &mut Target<'_>, settings: &Settings) -> Result<Measured, BenchError> {
    let requests = |share: std::ops::Range<usize>| CompareAndPut {
        first: share.start as u64,
        revisions: vec![0; share.len()],
        value: requests::value(VALUE_BYTES),
    };
    let outcome = load::run(target.address, target.pid, CLIENTS, settings.until(), requests).await?;
    measured(&outcome, target)
}

/// Puts keys 0..`keys` (a multiple of [`TXN_OPERATIONS`]) as fast as it goes, and lets the server come to rest.
pub async fn bring_in(target: &Target<'_>, keys: u64) -> Result<(), BenchError> {
    let counter = Counter::new(keys / TXN_OPERATIONS);
    let requests = |_| FillByTxn::new(counter.clone());
    load::run(target.address, target.pid, FILL_CLIENTS, Until::Exhausted, requests).await?;
    target.rest().await
}

/// Ranges and puts of random keys.
pub struct Mixture {
    random: SmallRng,
    keys: u64,
    range_percent: u32,
    range: Template,
    put: Template,
    /// Whether the last request of a client was a range.
    ranged: Vec<bool>,
}

impl Mixture {
    /// `range_percent` of the requests are ranges, the others puts, over keys 0..`keys`.
    pub fn new(first_client: usize, serializable: bool, range_percent: u32, keys: u64) -> Mixture {
        let (range, put) = (Template::range(serializable), Template::put(VALUE_BYTES));
        Mixture { random: random(first_client), keys, range_percent, range, put, ranged: Vec::new() }
    }
}

impl Requests for Mixture {
    fn next(&mut self, client: usize, message: &mut Vec<u8>) -> Option<Method> {
        let number = self.random.random_range(0..self.keys);
        let range = self.range_percent > 0 && self.random.random_range(0..100) < self.range_percent;
        if self.ranged.len() <= client {
            self.ranged.resize(client + 1, false);
        }
        self.ranged[client] = range;
        let (template, method) = if range { (&self.range, Method::Range) } else { (&self.put, Method::Put) };
        template.write(number, message);
        Some(method)
    }

    fn accept(&mut self, client: usize, message: &[u8]) -> bool {
        // A range must have found its key: the answer is at least as long as the value.
        !message.is_empty() && (!self.ranged[client] || message.len() > VALUE_BYTES)
    }
}

struct CompareAndPut {
    first: u64,
    revisions: Vec<i64>,
    value: bytes::Bytes,
}

impl Requests for CompareAndPut {
    fn next(&mut self, client: usize, message: &mut Vec<u8>) -> Option<Method> {
        let key = requests::key(self.first + client as u64);
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(self.revisions[client])),
            ..Default::default()
        };
        let put = Request::RequestPut(PutRequest { key, value: self.value.clone(), ..Default::default() });
        let success = vec![RequestOp { request: Some(put) }];
        let txn = TxnRequest { compare: vec![compare], success, failure: vec![] };
        message.reserve(txn.encoded_len());
        txn.encode_raw(message);
        Some(Method::Txn)
    }

    fn accept(&mut self, client: usize, message: &[u8]) -> bool {
        // The put's revision is the store's revision right after it, which the header tells.
        self.revisions[client] = integer(bytes(message, 1), 3) as i64;
        integer(message, 2) == 1
    }
}
