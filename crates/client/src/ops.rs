//! Requests on keys, put together step by step.

use bytes::Bytes;
use proto::etcdserverpb::{
    self as pb, compare::CompareResult, compare::CompareTarget, compare::TargetUnion, range_request::SortOrder,
    range_request::SortTarget, request_op::Request,
};

/// The end of the range that holds every key with this prefix. A prefix of only `0xff` has none: `\0`, "to the end".
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(b"\0")
}

/// First key and end of "every key with this prefix"; an empty prefix is every key there is.
fn prefix_range(prefix: Bytes) -> (Bytes, Bytes) {
    if prefix.is_empty() {
        return (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
    }
    let end = prefix_end(&prefix);
    (prefix, end)
}

/// First key and end of "every key from this one on".
fn from_range(key: Bytes) -> (Bytes, Bytes) {
    let zero = Bytes::from_static(b"\0");
    (if key.is_empty() { zero.clone() } else { key }, zero)
}

/// Reads keys.
#[derive(Clone, Debug, Default)]
pub struct Get(pb::RangeRequest);

impl Get {
    /// One key.
    pub fn key(key: impl Into<Bytes>) -> Self {
        Get(pb::RangeRequest { key: key.into(), ..Default::default() })
    }

    /// The keys from `key` up to, not including, `end`.
    pub fn range(key: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Get(pb::RangeRequest { key: key.into(), range_end: end.into(), ..Default::default() })
    }

    /// Every key with this prefix.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let (key, end) = prefix_range(prefix.into());
        Get::range(key, end)
    }

    /// Every key from this one on.
    pub fn from_key(key: impl Into<Bytes>) -> Self {
        let (key, end) = from_range(key.into());
        Get::range(key, end)
    }

    /// As it was at this revision.
    pub fn revision(mut self, revision: i64) -> Self {
        self.0.revision = revision;
        self
    }

    /// At most so many keys.
    pub fn limit(mut self, limit: i64) -> Self {
        self.0.limit = limit;
        self
    }

    /// In this order.
    pub fn sorted(mut self, by: SortTarget, order: SortOrder) -> Self {
        self.0.sort_target = by as i32;
        self.0.sort_order = order as i32;
        self
    }

    /// Possibly stale, from whichever member answers.
    pub fn serializable(mut self) -> Self {
        self.0.serializable = true;
        self
    }

    /// Without the values.
    pub fn keys_only(mut self) -> Self {
        self.0.keys_only = true;
        self
    }

    /// Only how many there are.
    pub fn count_only(mut self) -> Self {
        self.0.count_only = true;
        self
    }
}

/// Stores a value under a key.
#[derive(Clone, Debug, Default)]
pub struct Put(pb::PutRequest);

impl Put {
    /// This value under this key.
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Put(pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() })
    }

    /// To go when this lease ends.
    pub fn lease(mut self, lease: i64) -> Self {
        self.0.lease = lease;
        self
    }
}

/// Deletes keys.
#[derive(Clone, Debug, Default)]
pub struct Delete(pb::DeleteRangeRequest);

impl Delete {
    /// One key.
    pub fn key(key: impl Into<Bytes>) -> Self {
        Delete(pb::DeleteRangeRequest { key: key.into(), ..Default::default() })
    }

    /// The keys from `key` up to, not including, `end`.
    pub fn range(key: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Delete(pb::DeleteRangeRequest { key: key.into(), range_end: end.into(), ..Default::default() })
    }

    /// Every key with this prefix.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let (key, end) = prefix_range(prefix.into());
        Delete::range(key, end)
    }

    /// Every key from this one on.
    pub fn from_key(key: impl Into<Bytes>) -> Self {
        let (key, end) = from_range(key.into());
        Delete::range(key, end)
    }

    /// Answered with what was deleted.
    pub fn returning(mut self) -> Self {
        self.0.prev_kv = true;
        self
    }
}

/// What must hold for a transaction's first half to run.
#[derive(Clone, Debug)]
pub struct Condition(pb::Compare);

impl Condition {
    fn new(key: Bytes, target: CompareTarget, result: CompareResult, value: TargetUnion) -> Self {
        Condition(pb::Compare {
            result: result as i32,
            target: target as i32,
            key,
            range_end: Bytes::new(),
            target_union: Some(value),
        })
    }

    /// How often the key was written since it was created.
    pub fn version(key: impl Into<Bytes>, is: CompareResult, version: i64) -> Self {
        Self::new(key.into(), CompareTarget::Version, is, TargetUnion::Version(version))
    }

    /// The revision that created the key; 0 while there is none.
    pub fn create_revision(key: impl Into<Bytes>, is: CompareResult, revision: i64) -> Self {
        Self::new(key.into(), CompareTarget::Create, is, TargetUnion::CreateRevision(revision))
    }

    /// The revision that wrote the key last.
    pub fn mod_revision(key: impl Into<Bytes>, is: CompareResult, revision: i64) -> Self {
        Self::new(key.into(), CompareTarget::Mod, is, TargetUnion::ModRevision(revision))
    }

    /// The value.
    pub fn value(key: impl Into<Bytes>, is: CompareResult, value: impl Into<Bytes>) -> Self {
        Self::new(key.into(), CompareTarget::Value, is, TargetUnion::Value(value.into()))
    }

    /// The lease; 0 for none.
    pub fn lease(key: impl Into<Bytes>, is: CompareResult, lease: i64) -> Self {
        Self::new(key.into(), CompareTarget::Lease, is, TargetUnion::Lease(lease))
    }
}

/// A transaction: if all conditions hold, the `then` operations, else the `otherwise` ones, all at one revision.
#[derive(Clone, Debug, Default)]
pub struct Txn(pb::TxnRequest);

impl Txn {
    /// Nothing yet.
    pub fn new() -> Self {
        Txn::default()
    }

    /// One more condition.
    pub fn when(mut self, condition: Condition) -> Self {
        self.0.compare.push(condition.0);
        self
    }

    /// One more operation for when all conditions hold.
    pub fn then(mut self, operation: impl Into<Request>) -> Self {
        self.0.success.push(pb::RequestOp { request: Some(operation.into()) });
        self
    }

    /// One more operation for when one does not.
    pub fn otherwise(mut self, operation: impl Into<Request>) -> Self {
        self.0.failure.push(pb::RequestOp { request: Some(operation.into()) });
        self
    }
}

/// Each builder becomes its message, and an operation of a transaction.
macro_rules! becomes {
    ($($builder:ident => $message:ident, $variant:ident;)*) => {$(
        impl From<$builder> for pb::$message {
            fn from(builder: $builder) -> Self {
                builder.0
            }
        }
        impl From<$builder> for Request {
            fn from(builder: $builder) -> Self {
                Request::$variant(builder.0)
            }
        }
    )*};
}

becomes! {
    Get => RangeRequest, RequestRange;
    Put => PutRequest, RequestPut;
    Delete => DeleteRangeRequest, RequestDeleteRange;
    Txn => TxnRequest, RequestTxn;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_key_that_does_not_have_it() {
        assert_eq!(prefix_end(b"a").as_ref(), b"b");
        assert_eq!(prefix_end(b"a\xff").as_ref(), b"b");
        assert_eq!(prefix_end(b"\xff\xff").as_ref(), b"\0");
        assert_eq!(prefix_range(Bytes::new()), (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")));
    }
}
