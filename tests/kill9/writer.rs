//! A client that writes its own keys, one write after the other, and remembers what it was told.

use bytes::Bytes;
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RequestOp, TxnRequest};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::LEASE;
use crate::harness::Client;

/// How many keys a writer has: few, so that they are overwritten and deleted often.
const KEYS: usize = 6;

/// A write that was sent.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Who sent it.
    pub writer: usize,
    /// It is this writer's n-th.
    pub number: u64,
    /// What was put, in order: key, lease.
    pub puts: Vec<(Bytes, i64)>,
    /// What was deleted in the same transaction, after the puts.
    pub deletes: Vec<Bytes>,
    /// The value of every put of this attempt and of no other.
    pub value: Bytes,
    /// The revision of the answer, if there was one.
    pub acknowledged: Option<i64>,
}

/// One writer; it lives through all rounds.
#[derive(Debug)]
pub struct Writer {
    number: usize,
    random: SmallRng,
    attempts: Vec<Attempt>,
    sent: u64,
}

impl Writer {
    /// The `number`-th writer.
    pub fn new(number: usize, seed: u64) -> Writer {
        let random = SmallRng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(number as u64));
        Writer { number, random, attempts: Vec::new(), sent: 0 }
    }

    /// Writes until a write fails, which is when the server has been killed: its outcome is unknown.
    pub async fn write_until_the_server_is_gone(mut self, mut client: Client) -> Writer {
        loop {
            let mut attempt = self.next();
            let put = |(key, lease): &(Bytes, i64)| PutRequest {
                key: key.clone(),
                value: attempt.value.clone(),
                lease: *lease,
                ..PutRequest::default()
            };
            let answer = if attempt.puts.len() + attempt.deletes.len() == 1 {
                client.kv.put(put(&attempt.puts[0])).await.map(|response| response.into_inner().header)
            } else {
                let puts = attempt.puts.iter().map(|pair| Request::RequestPut(put(pair)));
                let deletes = attempt.deletes.iter().map(|key| {
                    Request::RequestDeleteRange(DeleteRangeRequest {
                        key: key.clone(),
                        ..DeleteRangeRequest::default()
                    })
                });
                let success = puts.chain(deletes).map(|request| RequestOp { request: Some(request) }).collect();
                let request = TxnRequest { success, ..TxnRequest::default() };
                client.kv.txn(request).await.map(|response| response.into_inner().header)
            };
            let gone = answer.is_err();
            attempt.acknowledged = answer.ok().map(|header| header.map_or(0, |header| header.revision));
            self.attempts.push(attempt);
            if gone {
                return self;
            }
        }
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
            Bytes::from(format!("writer{:02}/{}", self.number, keys.swap_remove(place)))
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
        Attempt { writer: self.number, number: self.sent, puts, deletes, value, acknowledged: None }
    }
}
