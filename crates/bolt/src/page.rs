//! The numbers of the format that reader and writer share.

use crate::error::MetaFault;

/// Bytes in a page of the files that we write: the page size of nearly every machine that etcd runs on. Files with
/// other page sizes are read as well; a bbolt file carries its page size.
pub const PAGE_SIZE: usize = 4096;
/// The longest key that bbolt takes, in bytes.
pub const MAX_KEY_BYTES: usize = 32768;
/// The longest value that bbolt takes, in bytes.
pub const MAX_VALUE_BYTES: usize = (1 << 31) - 2;

pub(crate) const BRANCH: u16 = 0x01;
pub(crate) const LEAF: u16 = 0x02;
pub(crate) const META: u16 = 0x04;

/// Bytes of the header that starts every page: id u64, flags u16, count u16, overflow u32.
pub(crate) const PAGE_HEADER: usize = 16;
/// Bytes of one entry of a page's element table.
pub(crate) const ELEMENT: usize = 16;
/// Bytes of the header that starts a bucket's value: root page u64, sequence u64.
pub(crate) const BUCKET_HEADER: usize = 16;
/// Bytes of a meta page that matter: header and contents.
pub(crate) const META_BYTES: usize = PAGE_HEADER + 64;
/// Element flag of a value that is a bucket.
pub(crate) const BUCKET_FLAG: u32 = 1;
/// The first page that can hold data.
pub(crate) const FIRST_DATA_PAGE: u64 = 2;
/// A branch page names at least two children, so a tree of this many levels would need 2^64 pages.
pub(crate) const MAX_DEPTH: usize = 64;
/// Page sizes that bbolt can have been built for.
pub(crate) const PAGE_SIZES: [u64; 7] = [1024, 2048, 4096, 8192, 16384, 32768, 65536];

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// Stands for "the list of free pages is not in the file"; etcd always works so.
const NO_FREELIST: u64 = u64::MAX;

/// What a meta page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub page_size: u64,
    /// Page of the root bucket.
    pub root: u64,
    /// Pages in use, the two meta pages included: the first page id that was never given out.
    pub pages: u64,
    pub transaction: u64,
}

impl Meta {
    /// Reads the first [`META_BYTES`] of a meta page. It must have stood at a place that fits: page 0 at byte 0, page 1
    /// one page size further.
    pub fn decode(page: &[u8]) -> Result<Self, MetaFault> {
        if page.len() < META_BYTES {
            return Err(MetaFault::Missing);
        }
        let body = &page[PAGE_HEADER..];
        let magic = u32_at(body, 0);
        if magic != MAGIC {
            return Err(MetaFault::Magic(magic));
        }
        let version = u32_at(body, 4);
        if version != VERSION {
            return Err(MetaFault::Version(version));
        }
        let (expected, found) = (fnv1a(&body[..56]), u64_at(body, 56));
        if expected != found {
            return Err(MetaFault::Checksum { expected, found });
        }
        let page_size = u32_at(body, 8);
        if !PAGE_SIZES.contains(&u64::from(page_size)) {
            return Err(MetaFault::PageSize(page_size));
        }
        let meta = Meta {
            page_size: u64::from(page_size),
            root: u64_at(body, 16),
            pages: u64_at(body, 40),
            transaction: u64_at(body, 48),
        };
        let addressable = meta.pages <= u64::MAX / meta.page_size;
        if meta.root < FIRST_DATA_PAGE || meta.root >= meta.pages || !addressable {
            return Err(MetaFault::Root { root: meta.root, pages: meta.pages });
        }
        Ok(meta)
    }

    /// Appends a whole meta page with this id.
    pub fn encode(&self, id: u64, into: &mut Vec<u8>) {
        let start = into.len();
        page_header(id, META, 0, 0, into);
        let body = into.len();
        into.extend(MAGIC.to_le_bytes());
        into.extend(VERSION.to_le_bytes());
        into.extend((self.page_size as u32).to_le_bytes()); // one of PAGE_SIZES
        into.extend(0u32.to_le_bytes());
        into.extend(self.root.to_le_bytes());
        into.extend(0u64.to_le_bytes()); // the root bucket's sequence, unused by etcd
        into.extend(NO_FREELIST.to_le_bytes());
        into.extend(self.pages.to_le_bytes());
        into.extend(self.transaction.to_le_bytes());
        into.extend(fnv1a(&into[body..]).to_le_bytes());
        into.resize(start + self.page_size as usize, 0);
    }
}

/// Appends a page header.
pub(crate) fn page_header(id: u64, flags: u16, count: u16, overflow: u32, into: &mut Vec<u8>) {
    into.extend(id.to_le_bytes());
    into.extend(flags.to_le_bytes());
    into.extend(count.to_le_bytes());
    into.extend(overflow.to_le_bytes());
}

/// The little-endian number at `at`. The caller has checked the length.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The little-endian number at `at`. The caller has checked the length.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The little-endian number at `at`. The caller has checked the length.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// The 64-bit FNV-1a sum, which guards the meta pages.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
