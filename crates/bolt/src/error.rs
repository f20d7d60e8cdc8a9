//! What can go wrong, told so that a file can be looked at with a hex editor.

use std::io;

/// Why a bbolt file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The medium failed.
    #[error("reading {len} bytes at byte {offset}")]
    Io {
        /// Where the read began.
        offset: u64,
        /// How much was asked for.
        len: usize,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Neither meta page can be used: not a bbolt file, or its first two pages are damaged.
    #[error("no valid meta page: page 0: {first}; page 1: {second}")]
    NoMeta {
        /// What is wrong with page 0.
        first: MetaFault,
        /// What is wrong with page 1.
        second: MetaFault,
    },
    /// The file ends before the last page in use.
    #[error("the file is cut off: {pages} pages of {page_size} bytes are in use, but it has only {found} bytes")]
    CutOff {
        /// Pages in use, by the meta page.
        pages: u64,
        /// Bytes in a page.
        page_size: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// A page does not follow the format.
    #[error("page {page}, byte {offset} of the file: {fault}")]
    Page {
        /// The page. An inline bucket counts as part of the page that holds it.
        page: u64,
        /// Byte in the file where the trouble stands.
        offset: u64,
        /// What is wrong there.
        fault: Fault,
    },
}

/// What is wrong with a meta page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MetaFault {
    /// The file is too short to have it.
    #[error("missing")]
    Missing,
    /// The magic number is not bbolt's.
    #[error("magic number {0:08x} instead of ed0cdaed")]
    Magic(u32),
    /// A format version that this crate does not know.
    #[error("format version {0} instead of 2")]
    Version(u32),
    /// The checksum does not match.
    #[error("checksum {found:016x} instead of {expected:016x}")]
    Checksum {
        /// The sum of the bytes.
        expected: u64,
        /// The sum that is written there.
        found: u64,
    },
    /// The page size is not a power of two from 1 KiB to 64 KiB, or not where the page stands.
    #[error("impossible page size {0}")]
    PageSize(u32),
    /// The root bucket or the number of pages points outside the file.
    #[error("root page {root} with {pages} pages in use")]
    Root {
        /// Page of the root bucket.
        root: u64,
        /// Pages in use.
        pages: u64,
    },
}

/// What is wrong at one place of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A page id is not that of a data page in use.
    #[error("refers to page {id}, but data pages are 2 to {last}")]
    PageId {
        /// The page referred to.
        id: u64,
        /// The last page in use.
        last: u64,
    },
    /// The page says it is another one.
    #[error("the page calls itself {0}")]
    WrongId(u64),
    /// The overflow count reaches past the pages in use.
    #[error("{0} overflow pages reach past the last page in use")]
    Overflow(u32),
    /// Neither a branch nor a leaf where one must be.
    #[error("page flags {0:#06x}, neither branch nor leaf")]
    Flags(u16),
    /// A page lies inside one of its own ancestors.
    #[error("the page overlaps page {0}, which leads to it")]
    Loop(u64),
    /// More levels than any tree of this size can have.
    #[error("the tree is more than {0} levels deep")]
    Depth(usize),
    /// A page without elements that is not the root of its bucket.
    #[error("the page is empty")]
    Empty,
    /// More elements than fit.
    #[error("{count} elements do not fit into {len} bytes")]
    Count {
        /// Elements, by the page header.
        count: usize,
        /// Bytes in the page.
        len: usize,
    },
    /// A key or value lies outside its page or inside the element table.
    #[error("element {index}: key and value lie outside the page (position {position}, {len} bytes)")]
    Element {
        /// Which element of the page.
        index: usize,
        /// Position relative to the element.
        position: u32,
        /// Key and value together.
        len: u64,
    },
    /// A key has no bytes or too many.
    #[error("element {index}: a key of {len} bytes")]
    KeySize {
        /// Which element of the page.
        index: usize,
        /// Bytes of the key.
        len: u32,
    },
    /// Keys do not ascend.
    #[error("element {index}: its key is not greater than the one before")]
    Order {
        /// Which element of the page.
        index: usize,
    },
    /// The root bucket holds a plain value.
    #[error("element {index}: a plain value where a bucket must be")]
    NotABucket {
        /// Which element of the page.
        index: usize,
    },
    /// A bucket inside a bucket, which etcd never makes.
    #[error("element {index}: a bucket inside a bucket")]
    NestedBucket {
        /// Which element of the page.
        index: usize,
    },
    /// A bucket's value is too short.
    #[error("element {index}: a bucket header of {len} bytes")]
    BucketHeader {
        /// Which element of the page.
        index: usize,
        /// Bytes of the value.
        len: usize,
    },
}

/// Why a bbolt file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The receiver of the bytes failed.
    #[error("writing page {page}")]
    Io {
        /// The page that was being written.
        page: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A bucket's name is not greater than the one before.
    #[error("bucket {name:?} comes after a bucket that sorts behind it")]
    BucketOrder {
        /// The offending name, as text where it is text.
        name: String,
    },
    /// A key is not greater than the one before.
    #[error("bucket {bucket:?}: key {key:02x?} is not greater than the one before")]
    KeyOrder {
        /// The bucket.
        bucket: String,
        /// The offending key.
        key: Vec<u8>,
    },
    /// A key is empty or longer than the format allows.
    #[error("bucket {bucket:?}: a key of {len} bytes")]
    KeySize {
        /// The bucket.
        bucket: String,
        /// Bytes of the key.
        len: usize,
    },
    /// A value is longer than the format allows.
    #[error("bucket {bucket:?}: a value of {len} bytes")]
    ValueSize {
        /// The bucket.
        bucket: String,
        /// Bytes of the value.
        len: usize,
    },
    /// What was written is not what was planned. The file so far is worthless.
    #[error("planned {planned_pages} pages with the root at {planned_root}, wrote {pages} with the root at {root}")]
    OffPlan {
        /// Pages that the plan counted.
        planned_pages: u64,
        /// Where the plan put the root bucket.
        planned_root: u64,
        /// Pages written or about to be written.
        pages: u64,
        /// Where the root bucket came to lie; 0 if it never came to that.
        root: u64,
    },
}
