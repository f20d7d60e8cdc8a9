//! A client that writes its own keys, one write after the other, and remembers what it was told.

use std::time::Duration;

use bytes::Bytes;
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::{DeleteRangeRequest, LeaseGrantRequest, PutRequest, RequestOp, TxnRequest};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::Acknowledged;
use crate::harness::Client;

/// The lease that some keys are attached to; it lives far longer than any run.
pub const LEASE: LeaseGrantRequest = LeaseGrantRequest { ttl: 1_000_000, id: 0x7151 };

/// How many keys a writer has: few, so that they are overwritten and deleted often.
const KEYS: usize = 6;

/// A write that was sent.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Who sent it.
    pub writer: usize,
    /// What was put, in order: key, lease.
    pub puts: Vec<(Bytes, i64)>,
    /// What was deleted in the same transaction, after the puts.
    pub deletes: Vec<Bytes>,
    /// The value of every put of this attempt and of no other.
    pub value: Bytes,
    /// What was acknowledged to anyone before it was sent, so that it has to come after that.
    pub floor: i64,
    /// The revision of the answer, if there was one.
    pub acknowledged: Option<i64>,
}

impl Attempt {
    /// Sends it, and notes what is known before and told after.
    pub async fn send(&mut self, client: &mut Client, within: Duration, acknowledged: &Acknowledged) {
        self.floor = acknowledged.revision();
        let put = |(key, lease): &(Bytes, i64)| PutRequest {
            key: key.clone(),
            value: self.value.clone(),
            lease: *lease,
            ..PutRequest::default()
        };
        let answer = async {
            if self.puts.len() + self.deletes.len() == 1 {
                return client.kv.put(put(&self.puts[0])).await.map(|response| response.into_inner().header);
            }
            let puts = self.puts.iter().map(|pair| Request::RequestPut(put(pair)));
            let deletes = self.deletes.iter().map(|key| {
                Request::RequestDeleteRange(DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() })
            });
            let success = puts.chain(deletes).map(|request| RequestOp { request: Some(request) }).collect();
            let request = TxnRequest { success, ..TxnRequest::default() };
            client.kv.txn(request).await.map(|response| response.into_inner().header)
        };
        let answer = tokio::time::timeout(within, answer).await;
        self.acknowledged = answer.ok().and_then(Result::ok).map(|header| header.map_or(0, |header| header.revision));
        acknowledged.reached(self.acknowledged.unwrap_or(0));
    }
}

/// The `key`-th key of a writer.
fn key_of(writer: usize, key: usize) -> Bytes {
    Bytes::from(format!("writer{writer:02}/{key}"))
}

/// Any key of any of so many writers.
pub fn any_key(writers: usize, random: &mut SmallRng) -> Bytes {
    key_of(random.random_range(0..writers), random.random_range(0..KEYS))
}

/// One writer; it lives through all rounds.
#[derive(Debug)]
pub struct Writer {
    number: usize,
    random: SmallRng,
    attempts: Vec<Attempt>,
    acknowledged: Acknowledged,
    sent: u64,
}

impl Writer {
    /// The `number`-th writer of those that share `acknowledged`.
    pub fn new(number: usize, seed: u64, acknowledged: Acknowledged) -> Writer {
        let random = SmallRng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(number as u64));
        Writer { number, random, attempts: Vec::new(), acknowledged, sent: 0 }
    }

    /// Writes until a write fails, which is when the server has been killed: its outcome is unknown.
    pub async fn write_until_the_server_is_gone(mut self, mut client: Client) -> Writer {
        while self.write(&mut client, Duration::MAX).await {}
        self
    }

    /// One write; `false` if its outcome is unknown, for instance because there was no answer in time.
    pub async fn write(&mut self, client: &mut Client, within: Duration) -> bool {
        let mut attempt = self.next();
        attempt.send(client, within, &self.acknowledged).await;
        let done = attempt.acknowledged.is_some();
        self.attempts.push(attempt);
        done
    }

    /// What was sent since the last time.
    pub fn take_attempts(&mut self) -> Vec<Attempt> {
        std::mem::take(&mut self.attempts)
    }

    fn next(&mut self) -> Attempt {
        self.sent += 1;
        let mut keys: Vec<usize> = (0..KEYS).collect();
        let mut key = || {
            let place = self.random.random_range(0..keys.len());
            key_of(self.number, keys.swap_remove(place))
        };
        let (first, second, third) = (key(), key(), key());
        let lease = if self.random.random_ratio(1, 4) { LEASE.id } else { 0 };
        let (puts, deletes) = match self.random.random_range(0..10) {
            0..6 => (vec![(first, lease)], vec![]),
            6..8 => (vec![(first, lease), (second, 0)], vec![]),
            _ => (vec![(first, lease)], vec![second, third]),
        };
        // Some values are large enough that a kill can fall into the middle of one.
        let padding = if self.random.random_ratio(1, 20) { 20_000 } else { 10 };
        let value = format!("{}-{}-{}", self.number, self.sent, "x".repeat(padding)).into();
        Attempt { writer: self.number, puts, deletes, value, floor: 0, acknowledged: None }
    }
}
