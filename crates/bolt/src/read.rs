//! Walking a bbolt file without trusting it.

use crate::error::{Fault, MetaFault, ReadError};
use crate::page::{
    BRANCH, BUCKET_FLAG, BUCKET_HEADER, ELEMENT, FIRST_DATA_PAGE, LEAF, MAX_DEPTH, MAX_KEY_BYTES, META_BYTES, Meta,
    PAGE_HEADER, PAGE_SIZES, u16_at, u32_at, u64_at,
};
use bytes::Bytes;
use std::io;
use std::sync::Arc;

/// Where a file's bytes come from.
pub trait ReadAt {
    /// Exactly `len` bytes from `offset`; an error where the source ends before.
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes>;
    /// Length of the source in bytes.
    fn size_bytes(&self) -> io::Result<u64>;
}

impl ReadAt for Bytes {
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let start = usize::try_from(offset).ok().filter(|start| *start <= self.len());
        match start {
            Some(start) if len <= self.len() - start => Ok(self.slice(start..start + len)),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl ReadAt for Arc<dyn disk::File> {
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut buffer = vec![0; len];
        if disk::File::read_at(self.as_ref(), &mut buffer, offset)? < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Bytes::from(buffer))
    }

    fn size_bytes(&self) -> io::Result<u64> {
        self.len()
    }
}

/// An open bbolt file. It must not change while it is read: etcd locks its file while it runs, so open a copy or a
/// snapshot, or take the lock.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    meta: Meta,
}

impl<R: ReadAt> Reader<R> {
    /// Finds the newest valid meta page. Bytes after the last page in use are ignored, so the SHA-256 at the end of a
    /// snapshot file does no harm.
    pub fn open(source: R) -> Result<Self, ReadError> {
        let len = source.size_bytes().map_err(|source| ReadError::Io { offset: 0, len: 0, source })?;
        let at = |offset: u64| -> Result<Result<Meta, MetaFault>, ReadError> {
            if len < offset + META_BYTES as u64 {
                return Ok(Err(MetaFault::Missing));
            }
            Ok(Meta::decode(&read(&source, offset, META_BYTES)?))
        };
        let first = at(0)?;
        // Page 1 stands one page size further. If page 0 is damaged, its page size is too, so each one is tried.
        let second = match first {
            Ok(meta) => at(meta.page_size)?,
            Err(_) => {
                let mut found = Err(MetaFault::Missing);
                for size in PAGE_SIZES {
                    match at(size)? {
                        Ok(meta) if meta.page_size == size => {
                            found = Ok(meta);
                            break;
                        }
                        Ok(meta) => found = Err(MetaFault::PageSize(meta.page_size as u32)),
                        Err(fault) if size == crate::PAGE_SIZE as u64 => found = Err(fault),
                        Err(_) => {}
                    }
                }
                found
            }
        };
        let meta = match (first, second) {
            (Ok(first), Ok(second)) if second.transaction > first.transaction => second,
            (Ok(first), _) => first,
            (Err(_), Ok(second)) => second,
            (Err(first), Err(second)) => return Err(ReadError::NoMeta { first, second }),
        };
        if meta.pages * meta.page_size > len {
            return Err(ReadError::CutOff { pages: meta.pages, page_size: meta.page_size, found: len });
        }
        Ok(Reader { source, meta })
    }

    /// Bytes in use, counted in whole pages, free pages included. What follows in the file is not part of the data.
    pub fn size_bytes(&self) -> u64 {
        self.meta.pages * self.meta.page_size
    }

    /// The transaction that wrote the meta page in force.
    pub fn transaction(&self) -> u64 {
        self.meta.transaction
    }

    /// All buckets in the order of their names.
    pub fn buckets(&self) -> Buckets<'_, R> {
        Buckets { file: self, walk: Walk::new(Root::Page(self.meta.root)) }
    }

    /// The bucket of this name, if there is one.
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Bucket<'_, R>>, ReadError> {
        let mut buckets = Buckets { file: self, walk: Walk::from(Root::Page(self.meta.root), name) };
        match buckets.next().transpose()? {
            Some(bucket) if bucket.name == name => Ok(Some(bucket)),
            _ => Ok(None),
        }
    }

    /// Reads a branch or leaf page whose id stands at byte `named_at` of page `named_by`.
    fn page(&self, id: u64, named_by: u64, named_at: u64) -> Result<Page, ReadError> {
        let size = self.meta.page_size;
        if !(FIRST_DATA_PAGE..self.meta.pages).contains(&id) {
            let fault = Fault::PageId { id, last: self.meta.pages - 1 };
            return Err(ReadError::Page { page: named_by, offset: named_at, fault });
        }
        let offset = id * size; // cannot wrap: id < pages, and all pages fit into the file
        let bad = |at: u64, fault| Err(ReadError::Page { page: id, offset: offset + at, fault });
        let header = read(&self.source, offset, PAGE_HEADER)?;
        let overflow = u32_at(&header, 12);
        if u64::from(overflow) >= self.meta.pages - id {
            return bad(12, Fault::Overflow(overflow));
        }
        if u64_at(&header, 0) != id {
            return bad(0, Fault::WrongId(u64_at(&header, 0)));
        }
        let slots = u64::from(overflow) + 1;
        let Ok(len) = usize::try_from(slots * size) else {
            return bad(12, Fault::Overflow(overflow));
        };
        let bytes = read(&self.source, offset, len)?;
        Page { id, slots, offset, bytes, is_leaf: false, count: 0 }.checked()
    }
}

/// The buckets of a file, in the order of their names. Ends after the first error.
pub struct Buckets<'f, R> {
    file: &'f Reader<R>,
    walk: Walk,
}

impl<'f, R: ReadAt> Iterator for Buckets<'f, R> {
    type Item = Result<Bucket<'f, R>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.walk.next(self.file).transpose()?;
        let bucket = next.and_then(|found| bucket_of(self.file, found));
        if bucket.is_err() {
            self.walk.stop();
        }
        Some(bucket)
    }
}

/// One bucket.
#[derive(Debug)]
pub struct Bucket<'f, R> {
    file: &'f Reader<R>,
    name: Bytes,
    sequence: u64,
    root: Root,
}

impl<'f, R: ReadAt> Bucket<'f, R> {
    /// Its name.
    pub fn name(&self) -> &Bytes {
        &self.name
    }

    /// The counter that bbolt keeps with each bucket; etcd does not use it.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// All items in the order of their keys.
    pub fn items(&self) -> Items<'f, R> {
        Items { file: self.file, walk: Walk::new(self.root.clone()), offset: 0 }
    }

    /// The items from key `start` on.
    pub fn items_from(&self, start: &[u8]) -> Items<'f, R> {
        Items { file: self.file, walk: Walk::from(self.root.clone(), start), offset: 0 }
    }

    /// The value under this key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        match self.items_from(key).next().transpose()? {
            Some((found, value)) if found == key => Ok(Some(value)),
            _ => Ok(None),
        }
    }
}

/// The items of a bucket in the order of their keys; each key is greater than the one before. Ends after the first
/// error. Keys and values share the memory of their page.
pub struct Items<'f, R> {
    file: &'f Reader<R>,
    walk: Walk,
    offset: u64,
}

impl<R> Items<'_, R> {
    /// Byte of the file at which the table entry of the last item stands, for messages about what is in it.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

impl<R: ReadAt> Iterator for Items<'_, R> {
    type Item = Result<(Bytes, Bytes), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.walk.next(self.file) {
            Ok(None) => None,
            Err(error) => Some(Err(error)),
            Ok(Some(found)) if found.is_bucket => {
                self.walk.stop();
                Some(Err(found.bad(Fault::NestedBucket { index: found.index })))
            }
            Ok(Some(found)) => {
                self.offset = found.offset;
                Some(Ok((found.key, found.value)))
            }
        }
    }
}

/// Where a bucket's tree starts.
#[derive(Clone, Debug)]
enum Root {
    Page(u64),
    Inline(Page),
}

/// A branch or leaf page whose header and element table fit into it. Keys and values are checked as they are met.
#[derive(Clone, Debug)]
struct Page {
    id: u64,
    /// Page slots that it takes, overflow included.
    slots: u64,
    /// Byte of the file at which `bytes` starts.
    offset: u64,
    bytes: Bytes,
    is_leaf: bool,
    count: usize,
}

impl Page {
    fn checked(mut self) -> Result<Self, ReadError> {
        let flags = u16_at(&self.bytes, 8);
        self.is_leaf = match flags {
            BRANCH => false,
            LEAF => true,
            _ => return Err(self.bad(8, Fault::Flags(flags))),
        };
        self.count = usize::from(u16_at(&self.bytes, 10));
        if PAGE_HEADER + self.count * ELEMENT > self.bytes.len() {
            return Err(self.bad(10, Fault::Count { count: self.count, len: self.bytes.len() }));
        }
        Ok(self)
    }

    fn bad(&self, at: usize, fault: Fault) -> ReadError {
        ReadError::Page { page: self.id, offset: self.offset + at as u64, fault }
    }

    /// Byte of the page at which an element's table entry starts.
    fn entry(&self, index: usize) -> usize {
        debug_assert!(index < self.count);
        PAGE_HEADER + index * ELEMENT
    }

    /// Where an element's key and value are: (start, key length, value length), all inside the page.
    fn span(&self, index: usize) -> Result<(usize, usize, usize), ReadError> {
        let entry = self.entry(index);
        let (position, key_len, value_len) = if self.is_leaf {
            (u32_at(&self.bytes, entry + 4), u32_at(&self.bytes, entry + 8), u32_at(&self.bytes, entry + 12))
        } else {
            (u32_at(&self.bytes, entry), u32_at(&self.bytes, entry + 4), 0)
        };
        if key_len == 0 || key_len as usize > MAX_KEY_BYTES {
            return Err(self.bad(entry, Fault::KeySize { index, len: key_len }));
        }
        let len = u64::from(key_len) + u64::from(value_len);
        let start = entry as u64 + u64::from(position);
        let table_end = (PAGE_HEADER + self.count * ELEMENT) as u64;
        if start < table_end || start + len > self.bytes.len() as u64 {
            return Err(self.bad(entry, Fault::Element { index, position, len }));
        }
        Ok((start as usize, key_len as usize, value_len as usize))
    }

    fn key(&self, index: usize) -> Result<&[u8], ReadError> {
        let (start, key_len, _) = self.span(index)?;
        Ok(&self.bytes[start..start + key_len])
    }

    /// The first element whose key is not less than `key`; `count` if there is none. Bisects, so it never takes long
    /// on a page whose keys are out of order; it then merely ends up somewhere.
    fn lower_bound(&self, key: &[u8]) -> Result<usize, ReadError> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.key(middle)? < key { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }
}

/// An element of a leaf.
struct Found {
    page: u64,
    /// Byte of the file at which the element's table entry stands.
    offset: u64,
    /// Byte of the file at which the value stands.
    value_offset: u64,
    index: usize,
    is_bucket: bool,
    key: Bytes,
    value: Bytes,
}

impl Found {
    fn bad(&self, fault: Fault) -> ReadError {
        ReadError::Page { page: self.page, offset: self.offset, fault }
    }
}

/// A position in a tree: the way down to a leaf.
struct Walk {
    state: State,
    /// The way from the root: pages, each with the next element to visit. At most [`MAX_DEPTH`] and without overlaps,
    /// so together they are no larger than the file.
    path: Vec<(Page, usize)>,
    /// The key given out last. The next one must be greater: this is what ends a walk over pages that are
    /// linked in circles, or many times over.
    last: Option<Bytes>,
}

enum State {
    /// Not begun: where, and the least key wanted.
    Fresh(Root, Vec<u8>),
    Walking,
    Done,
}

impl Walk {
    fn new(root: Root) -> Self {
        Walk::from(root, &[])
    }

    fn from(root: Root, start: &[u8]) -> Self {
        Walk { state: State::Fresh(root, start.to_vec()), path: Vec::new(), last: None }
    }

    fn stop(&mut self) {
        self.state = State::Done;
        self.path.clear();
    }

    fn next<R: ReadAt>(&mut self, file: &Reader<R>) -> Result<Option<Found>, ReadError> {
        let step = self.step(file);
        if !matches!(step, Ok(Some(_))) {
            self.stop();
        }
        step
    }

    fn step<R: ReadAt>(&mut self, file: &Reader<R>) -> Result<Option<Found>, ReadError> {
        match std::mem::replace(&mut self.state, State::Walking) {
            State::Fresh(Root::Page(id), start) => self.descend(file, id, (0, 0), &start)?,
            State::Fresh(Root::Inline(page), start) => {
                let first = page.lower_bound(&start)?;
                self.path.push((page, first));
            }
            State::Walking => {}
            State::Done => return Ok(None),
        }
        while let Some((page, next)) = self.path.last_mut() {
            if *next >= page.count {
                self.path.pop();
                continue;
            }
            let index = *next;
            *next += 1;
            if page.is_leaf {
                return self.take(index).map(Some);
            }
            let entry = page.entry(index);
            let (child, named) = (u64_at(&page.bytes, entry + 8), (page.id, page.offset + entry as u64 + 8));
            self.descend(file, child, named, &[])?;
        }
        Ok(None)
    }

    /// Gives out an element of the leaf at the end of the path.
    fn take(&mut self, index: usize) -> Result<Found, ReadError> {
        let (leaf, _) = self.path.last().expect("take is called with a leaf at the end of the path");
        let entry = leaf.entry(index);
        let (start, key_len, value_len) = leaf.span(index)?;
        let key = leaf.bytes.slice(start..start + key_len);
        if self.last.as_ref().is_some_and(|last| *last >= key) {
            return Err(leaf.bad(entry, Fault::Order { index }));
        }
        self.last = Some(key.clone());
        let value_start = start + key_len;
        Ok(Found {
            page: leaf.id,
            offset: leaf.offset + entry as u64,
            value_offset: leaf.offset + value_start as u64,
            index,
            is_bucket: u32_at(&leaf.bytes, entry) & BUCKET_FLAG != 0,
            key,
            value: leaf.bytes.slice(value_start..value_start + value_len),
        })
    }

    /// Extends the path from page `id` (named at this page and byte) to the leaf that would hold `start`.
    fn descend<R: ReadAt>(
        &mut self,
        file: &Reader<R>,
        mut id: u64,
        mut named: (u64, u64),
        start: &[u8],
    ) -> Result<(), ReadError> {
        loop {
            let page = file.page(id, named.0, named.1)?;
            let overlaps = |above: &Page| page.id < above.id + above.slots && above.id < page.id + page.slots;
            if let Some((above, _)) = self.path.iter().find(|(above, _)| overlaps(above)) {
                return Err(page.bad(0, Fault::Loop(above.id)));
            }
            if self.path.len() == MAX_DEPTH {
                return Err(page.bad(0, Fault::Depth(MAX_DEPTH)));
            }
            // Only a bucket without any items has a page without elements: its root.
            if page.count == 0 && !(self.path.is_empty() && page.is_leaf) {
                return Err(page.bad(10, Fault::Empty));
            }
            let at = page.lower_bound(start)?;
            if page.is_leaf {
                self.path.push((page, at));
                return Ok(());
            }
            // A branch names each child with its first key: `start` is in the last child whose key is not greater.
            let exact = at < page.count && page.key(at)? == start;
            let index = if exact { at } else { at.saturating_sub(1) };
            let entry = page.entry(index);
            (id, named) = (u64_at(&page.bytes, entry + 8), (page.id, page.offset + entry as u64 + 8));
            self.path.push((page, index + 1));
        }
    }
}

/// The bucket that an element of the root bucket describes.
fn bucket_of<R: ReadAt>(file: &Reader<R>, found: Found) -> Result<Bucket<'_, R>, ReadError> {
    if !found.is_bucket {
        return Err(found.bad(Fault::NotABucket { index: found.index }));
    }
    let header = |len| found.bad(Fault::BucketHeader { index: found.index, len });
    if found.value.len() < BUCKET_HEADER {
        return Err(header(found.value.len()));
    }
    let root = match u64_at(&found.value, 0) {
        0 if found.value.len() < BUCKET_HEADER + PAGE_HEADER => return Err(header(found.value.len())),
        0 => {
            let page = Page {
                id: found.page,
                slots: 0,
                offset: found.value_offset + BUCKET_HEADER as u64,
                bytes: found.value.slice(BUCKET_HEADER..),
                is_leaf: true,
                count: 0,
            }
            .checked()?;
            if !page.is_leaf {
                return Err(page.bad(8, Fault::Flags(BRANCH)));
            }
            Root::Inline(page)
        }
        id => Root::Page(id),
    };
    Ok(Bucket { file, name: found.key, sequence: u64_at(&found.value, 8), root })
}

fn read<R: ReadAt>(source: &R, offset: u64, len: usize) -> Result<Bytes, ReadError> {
    source.read_at(offset, len).map_err(|source| ReadError::Io { offset, len, source })
}
