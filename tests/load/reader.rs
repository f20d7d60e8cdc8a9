//! A read and what it was answered, for the history to judge.

use bytes::Bytes;
use proto::etcdserverpb::RangeRequest;
use proto::mvccpb::KeyValue;
use tonic::Status;

use super::Acknowledged;
use crate::harness::Client;

/// One key as it was read.
#[derive(Clone, Debug)]
pub struct Read {
    /// Which key.
    pub key: Bytes,
    /// The revision that the answer says it is from.
    pub at: i64,
    /// The pair, if there was one.
    pub pair: Option<KeyValue>,
    /// Nothing older may be answered: what was acknowledged before it was sent, or 0 for a serializable read.
    pub floor: i64,
    /// Who answered.
    pub member: usize,
}

/// Reads one key from one member.
pub async fn read(
    client: &mut Client,
    member: usize,
    key: Bytes,
    serializable: bool,
    acknowledged: &Acknowledged,
) -> Result<Read, Status> {
    let floor = if serializable { 0 } else { acknowledged.revision() };
    let request = RangeRequest { key: key.clone(), serializable, ..RangeRequest::default() };
    let mut answer = client.kv.range(request).await?.into_inner();
    let at = answer.header.unwrap_or_default().revision;
    if !serializable {
        // What one client has read, no other may miss afterwards.
        acknowledged.reached(at);
    }
    Ok(Read { key, at, pair: answer.kvs.pop(), floor, member })
}
