//! The space quota: what a request would cost, estimated as etcd does.

use proto::etcdserverpb as pb;
use proto::etcdserverpb::request_op::Request as Op;

/// Used when none is configured.
const DEFAULT_BYTES: i64 = 2 << 30;
/// What a put costs besides its key and value: the index entry, frames and a revision.
const PUT_OVERHEAD: u64 = 256;
const LEASE_COST: u64 = 64;

/// The quota in bytes that a setting means; 0 = none.
pub(crate) fn limit(setting: i64) -> i64 {
    match setting {
        0 => DEFAULT_BYTES,
        negative if negative < 0 => 0,
        bytes => bytes,
    }
}

/// Bytes that a request would add at most; 0 for those that may free space and must always pass.
pub(crate) fn cost(request: &pb::InternalRaftRequest) -> u64 {
    if let Some(request) = &request.put {
        put(request)
    } else if let Some(request) = &request.txn {
        txn(request)
    } else if request.lease_grant.is_some() {
        LEASE_COST
    } else {
        0
    }
}

fn put(request: &pb::PutRequest) -> u64 {
    PUT_OVERHEAD + (request.key.len() + request.value.len()) as u64
}

/// The dearer of the two branches.
fn txn(request: &pb::TxnRequest) -> u64 {
    let branch = |ops: &[pb::RequestOp]| -> u64 {
        let costs = ops.iter().map(|op| match &op.request {
            Some(Op::RequestPut(request)) => put(request),
            Some(Op::RequestTxn(request)) => txn(request),
            _ => 0,
        });
        costs.sum()
    };
    branch(&request.success).max(branch(&request.failure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_txn_costs_what_its_dearer_branch_puts() {
        let put = |value: &'static str| {
            let request = pb::PutRequest { key: "k".into(), value: value.into(), ..Default::default() };
            pb::RequestOp { request: Some(Op::RequestPut(request)) }
        };
        let nested = pb::TxnRequest { success: vec![put("123")], ..Default::default() };
        let nested = pb::RequestOp { request: Some(Op::RequestTxn(nested)) };
        let request = pb::TxnRequest { success: vec![put("1")], failure: vec![put(""), nested], ..Default::default() };
        assert_eq!(txn(&request), 257 + 260);
    }

    #[test]
    fn deletes_and_reads_cost_nothing() {
        let request =
            pb::InternalRaftRequest { delete_range: Some(pb::DeleteRangeRequest::default()), ..Default::default() };
        assert_eq!(cost(&request), 0);
        assert_eq!([limit(0), limit(-1), limit(7)], [2 << 30, 0, 7]);
    }
}
