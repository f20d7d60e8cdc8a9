//! bbolt files: the format of etcd's `member/snap/db` and of every snapshot file.
//!
//! Our own store is something else (see `store`); this crate only moves data in and out. [`Reader`] walks a file that
//! somebody else wrote and trusts none of it. [`Plan`] and [`Writer`] make a file in one pass, front to back, so that it
//! can be sent while it is made.
//!
//! # The format in short
//! A file is a row of pages. Pages 0 and 1 are *meta* pages: the valid one with the higher transaction id says where the
//! root bucket is and how many pages are in use. A bucket is a B+tree of *branch* and *leaf* pages; the root bucket's
//! values are the other buckets. A small bucket lives *inline* in its value. A page too large for one slot runs on into
//! the following *overflow* slots. All numbers are little-endian.
//!
//! # Invariants
//! - Reading: every offset, length and page id is checked before use; memory is bounded by the size of the file; a walk
//!   ends, because keys must ascend strictly from its first item to its last.
//! - Writing: memory is one page per tree level, however large the data. The file's exact size is known before its
//!   first byte. Every branch page has at least two children, which bbolt needs to delete from the tree later.
//!
//! # Absent
//! No page is ever changed in place, and there are no transactions. What the keys and values of etcd's buckets mean is
//! not known here, except for the three keys that etcd leaves out of a hash ([`hash`]).

mod error;
mod hash;
mod page;
mod read;
mod write;

pub use error::{Fault, MetaFault, ReadError, WriteError};
pub use hash::{Hash, HashScope, hash};
pub use page::{MAX_KEY_BYTES, MAX_VALUE_BYTES, PAGE_SIZE};
pub use read::{Bucket, Buckets, Items, ReadAt, Reader};
pub use write::{Layout, Plan, Writer};
