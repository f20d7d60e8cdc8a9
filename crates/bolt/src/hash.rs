//! etcd's hash over a whole backend: CRC-32C over every bucket's name, keys and values, in byte order.

use crate::error::ReadError;
use crate::read::{ReadAt, Reader};

/// Which hash is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashScope {
    /// The one of `Maintenance.Hash`: without the keys of bucket `meta` that may differ between members that agree
    /// (`consistent_index`, `term`, `storageVersion`).
    Members,
    /// The one of `etcdctl snapshot status`: every byte.
    File,
}

/// A hash in the making: buckets in byte order, each with its items in byte order.
#[derive(Clone, Debug)]
pub struct Hash {
    scope: HashScope,
    sum: u32,
    in_meta: bool,
}

impl Hash {
    /// The hash of nothing.
    pub fn new(scope: HashScope) -> Self {
        Hash { scope, sum: 0, in_meta: false }
    }

    /// The items that follow belong to this bucket. A bucket counts even if it is empty.
    pub fn bucket(&mut self, name: &[u8]) {
        self.in_meta = name == b"meta";
        self.sum = crc32c::crc32c_append(self.sum, name);
    }

    /// The next item of the bucket.
    pub fn item(&mut self, key: &[u8], value: &[u8]) {
        let differs_between_members = self.in_meta && matches!(key, b"consistent_index" | b"term" | b"storageVersion");
        if differs_between_members && self.scope == HashScope::Members {
            return;
        }
        self.sum = crc32c::crc32c_append(self.sum, key);
        self.sum = crc32c::crc32c_append(self.sum, value);
    }

    /// The hash of all that was given.
    pub fn finish(self) -> u32 {
        self.sum
    }
}

/// The hash of a whole file.
pub fn hash<R: ReadAt>(file: &Reader<R>, scope: HashScope) -> Result<u32, ReadError> {
    let mut hash = Hash::new(scope);
    for bucket in file.buckets() {
        let bucket = bucket?;
        hash.bucket(bucket.name());
        for item in bucket.items() {
            let (key, value) = item?;
            hash.item(&key, &value);
        }
    }
    Ok(hash.finish())
}
