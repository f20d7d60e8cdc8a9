//! One operation on a server and its answer.

use proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, HashKvRequest, HashKvResponse,
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
    PutRequest, PutResponse, RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse, request_op,
};
use tonic::{Code, Status};

use crate::harness::Client;

/// What to do on both servers.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// A read; with `streamed`, a server that has `RangeStream` answers through it, and the merged answer counts.
    Range {
        /// What to read.
        request: RangeRequest,
        /// Whether to use `RangeStream` where it exists.
        streamed: bool,
    },
    /// A write of one key.
    Put(PutRequest),
    /// A deletion.
    Delete(DeleteRangeRequest),
    /// A transaction, perhaps with transactions inside.
    Txn(TxnRequest),
    /// A compaction, which may be invalid.
    Compact(CompactionRequest),
    /// A lease with an ID of our choice, so that it is the same on both servers.
    Grant(LeaseGrantRequest),
    /// A lease with an ID of the server's choice, revoked at once: the ID itself cannot be compared.
    GrantAndRevoke {
        /// The TTL asked for, in seconds.
        ttl: i64,
    },
    /// The end of a lease.
    Revoke(LeaseRevokeRequest),
    /// One renewal on a stream of its own.
    KeepAlive(LeaseKeepAliveRequest),
    /// A look at one lease.
    TimeToLive(LeaseTimeToLiveRequest),
    /// All leases.
    Leases,
    /// The checksum over the history up to a revision.
    HashKv(HashKvRequest),
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // one variant per kind of response
pub enum Answer {
    Range(RangeResponse),
    Put(PutResponse),
    Delete(DeleteRangeResponse),
    Txn(TxnResponse),
    Compact(CompactionResponse),
    Grant(LeaseGrantResponse),
    GrantAndRevoke(LeaseGrantResponse, LeaseRevokeResponse),
    Revoke(LeaseRevokeResponse),
    KeepAlive(Option<LeaseKeepAliveResponse>),
    TimeToLive(LeaseTimeToLiveResponse),
    Leases(LeaseLeasesResponse),
    HashKv(HashKvResponse),
    Failed { code: Code, text: String },
}

impl Operation {
    /// The kind, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Operation::Range { streamed: false, .. } => "range",
            Operation::Range { streamed: true, .. } => "range stream",
            Operation::Put(_) => "put",
            Operation::Delete(_) => "delete range",
            Operation::Txn(_) => "txn",
            Operation::Compact(_) => "compact",
            Operation::Grant(_) => "lease grant",
            Operation::GrantAndRevoke { .. } => "lease grant, server's ID",
            Operation::Revoke(_) => "lease revoke",
            Operation::KeepAlive(_) => "lease keep-alive",
            Operation::TimeToLive(_) => "lease time to live",
            Operation::Leases => "lease list",
            Operation::HashKv(_) => "hash kv",
        }
    }

    /// Does it on one server. `has_range_stream` says whether the server knows that method (3.7 and later).
    pub async fn perform(&self, client: &Client, has_range_stream: bool) -> Answer {
        let outcome = self.try_perform(client.clone(), has_range_stream).await;
        outcome.unwrap_or_else(|status| Answer::Failed { code: status.code(), text: status.message().to_owned() })
    }

    async fn try_perform(&self, mut client: Client, has_range_stream: bool) -> Result<Answer, Status> {
        Ok(match self.clone() {
            Operation::Range { request, streamed: true } if has_range_stream => {
                let mut stream = client.kv.range_stream(request).await?.into_inner();
                let mut whole = RangeResponse::default();
                while let Some(chunk) = stream.message().await? {
                    let chunk = chunk.range_response.unwrap_or_default();
                    whole.kvs.extend(chunk.kvs);
                    (whole.header, whole.more, whole.count) = (chunk.header, chunk.more, chunk.count);
                }
                Answer::Range(whole)
            }
            Operation::Range { request, .. } => Answer::Range(client.kv.range(request).await?.into_inner()),
            Operation::Put(request) => Answer::Put(client.kv.put(request).await?.into_inner()),
            Operation::Delete(request) => Answer::Delete(client.kv.delete_range(request).await?.into_inner()),
            Operation::Txn(request) => Answer::Txn(client.kv.txn(request).await?.into_inner()),
            Operation::Compact(request) => Answer::Compact(client.kv.compact(request).await?.into_inner()),
            Operation::Grant(request) => Answer::Grant(client.lease.lease_grant(request).await?.into_inner()),
            Operation::GrantAndRevoke { ttl } => {
                let granted = client.lease.lease_grant(LeaseGrantRequest { ttl, id: 0 }).await?.into_inner();
                let revoked = client.lease.lease_revoke(LeaseRevokeRequest { id: granted.id }).await?.into_inner();
                Answer::GrantAndRevoke(granted, revoked)
            }
            Operation::Revoke(request) => Answer::Revoke(client.lease.lease_revoke(request).await?.into_inner()),
            Operation::KeepAlive(request) => {
                let requests = tonic::codegen::tokio_stream::iter([request]);
                let mut answers = client.lease.lease_keep_alive(requests).await?.into_inner();
                Answer::KeepAlive(answers.message().await?)
            }
            Operation::TimeToLive(request) => {
                Answer::TimeToLive(client.lease.lease_time_to_live(request).await?.into_inner())
            }
            Operation::Leases => Answer::Leases(client.lease.lease_leases(LeaseLeasesRequest {}).await?.into_inner()),
            Operation::HashKv(request) => Answer::HashKv(client.maintenance.hash_kv(request).await?.into_inner()),
        })
    }
}

impl Answer {
    /// The store's revision as the header gives it.
    pub fn revision(&self) -> Option<i64> {
        self.header().map(|header| header.revision)
    }

    fn header(&self) -> Option<&ResponseHeader> {
        match self {
            Answer::Range(response) => response.header.as_ref(),
            Answer::Put(response) => response.header.as_ref(),
            Answer::Delete(response) => response.header.as_ref(),
            Answer::Txn(response) => response.header.as_ref(),
            Answer::Compact(response) => response.header.as_ref(),
            Answer::Grant(response) | Answer::GrantAndRevoke(response, _) => response.header.as_ref(),
            Answer::Revoke(response) => response.header.as_ref(),
            Answer::KeepAlive(response) => response.as_ref().and_then(|response| response.header.as_ref()),
            Answer::TimeToLive(response) => response.header.as_ref(),
            Answer::Leases(response) => response.header.as_ref(),
            Answer::HashKv(response) => response.header.as_ref(),
            Answer::Failed { .. } => None,
        }
    }

    /// Every header of the answer, for wiping what belongs to the member and not to the answer.
    pub fn headers_mut(&mut self) -> Vec<&mut ResponseHeader> {
        let headers: Vec<Option<&mut ResponseHeader>> = match self {
            Answer::Range(response) => vec![response.header.as_mut()],
            Answer::Put(response) => vec![response.header.as_mut()],
            Answer::Delete(response) => vec![response.header.as_mut()],
            Answer::Txn(response) => vec![response.header.as_mut()],
            Answer::Compact(response) => vec![response.header.as_mut()],
            Answer::Grant(response) => vec![response.header.as_mut()],
            Answer::GrantAndRevoke(granted, revoked) => vec![granted.header.as_mut(), revoked.header.as_mut()],
            Answer::Revoke(response) => vec![response.header.as_mut()],
            Answer::KeepAlive(response) => vec![response.as_mut().and_then(|response| response.header.as_mut())],
            Answer::TimeToLive(response) => vec![response.header.as_mut()],
            Answer::Leases(response) => vec![response.header.as_mut()],
            Answer::HashKv(response) => vec![response.header.as_mut()],
            Answer::Failed { .. } => vec![],
        };
        headers.into_iter().flatten().collect()
    }
}

/// Calls `visit` for every range that `operation` has done, nested ones too, with its part of the answer.
pub fn for_each_range(
    operation: &Operation,
    answer: &mut Answer,
    visit: &mut dyn FnMut(&RangeRequest, &mut RangeResponse),
) {
    match (operation, answer) {
        (Operation::Range { request, .. }, Answer::Range(response)) => visit(request, response),
        (Operation::Txn(request), Answer::Txn(response)) => ranges_of_txn(request, response, visit),
        _ => {}
    }
}

fn ranges_of_txn(
    request: &TxnRequest,
    response: &mut TxnResponse,
    visit: &mut dyn FnMut(&RangeRequest, &mut RangeResponse),
) {
    use proto::etcdserverpb::response_op::Response;
    use request_op::Request;
    let done = if response.succeeded { &request.success } else { &request.failure };
    for (request, response) in done.iter().zip(&mut response.responses) {
        match (&request.request, &mut response.response) {
            (Some(Request::RequestRange(request)), Some(Response::ResponseRange(response))) => {
                visit(request, response);
            }
            (Some(Request::RequestTxn(request)), Some(Response::ResponseTxn(response))) => {
                ranges_of_txn(request, response, visit);
            }
            _ => {}
        }
    }
}
