//! Checks that need nothing but the request: done before it is logged or read.

use proto::etcdserverpb as pb;

use crate::Error;

/// Checks a range request.
pub fn range(_request: &pb::RangeRequest) -> Result<(), Error> {
    todo!()
}
/// Checks a put request.
pub fn put(_request: &pb::PutRequest) -> Result<(), Error> {
    todo!()
}
/// Checks a delete request.
pub fn delete_range(_request: &pb::DeleteRangeRequest) -> Result<(), Error> {
    todo!()
}
/// Checks a txn: its size, its compares, every operation, and that no key is written twice.
pub fn txn(_request: &pb::TxnRequest, _max_ops: usize) -> Result<(), Error> {
    todo!()
}
/// Checks a lease grant.
pub fn lease_grant(_request: &pb::LeaseGrantRequest) -> Result<(), Error> {
    todo!()
}
/// Checks a range-stream request: a range without sorting or revision filters.
pub fn range_stream(_request: &pb::RangeRequest) -> Result<(), Error> {
    todo!()
}
