//! Making a bbolt file in one pass, front to back.
//!
//! The first bytes of a file name its last page, so the data is gone through twice: once as lengths only ([`Plan`]), once
//! as bytes ([`Writer`]). Both run the same [`Builder`], the first into nothing, so they cannot disagree about
//! where a page ends.

use crate::error::WriteError;
use crate::page::{
    BRANCH, BUCKET_FLAG, BUCKET_HEADER, ELEMENT, FIRST_DATA_PAGE, LEAF, MAX_KEY_BYTES, MAX_VALUE_BYTES, Meta,
    PAGE_HEADER, PAGE_SIZE, page_header,
};
use std::io::{self, Write};

/// bbolt's rule for buckets that live in their own value: no more than a quarter of a page.
const MAX_INLINE: usize = PAGE_SIZE / 4;

/// The first pass: learns the lengths of everything and works out the size of the file.
///
/// ```
/// # fn main() -> Result<(), bolt::WriteError> {
/// let mut plan = bolt::Plan::new();
/// plan.bucket(b"members")?;
/// plan.item(b"id".len(), b"{}".len())?;
/// let layout = plan.finish()?;
///
/// let mut writer = bolt::Writer::new(Vec::new(), layout)?;
/// writer.bucket(b"members")?;
/// writer.item(b"id", b"{}")?;
/// let file = writer.finish()?;
/// assert_eq!(file.len() as u64, layout.size_bytes());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Plan {
    builder: Builder<io::Empty>,
}

/// The result of a [`Plan`]: the shape of the file to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pages: u64,
    root: u64,
}

impl Layout {
    /// Length of the file in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.pages * PAGE_SIZE as u64
    }
}

impl Default for Plan {
    fn default() -> Self {
        Plan::new()
    }
}

impl Plan {
    /// A file without buckets.
    pub fn new() -> Self {
        Plan { builder: Builder::new(io::empty(), None) }
    }

    /// The items that follow belong to this bucket. Buckets come in byte order of their names.
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), WriteError> {
        self.builder.bucket(name)
    }

    /// The next item of the bucket: the lengths of key and value in bytes.
    pub fn item(&mut self, key_len: usize, value_len: usize) -> Result<(), WriteError> {
        self.builder.item(key_len, value_len, &[], &[])
    }

    /// The shape of the file.
    pub fn finish(self) -> Result<Layout, WriteError> {
        let (_, root, pages) = self.builder.finish()?;
        Ok(Layout { pages, root })
    }
}

/// The second pass: writes the file. Must be given what the plan was told of: whatever would give the file another shape
/// is an error, at the latest from [`Writer::finish`].
#[derive(Debug)]
pub struct Writer<W: Write> {
    builder: Builder<W>,
    last_key: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Writes the two meta pages. `out` receives many small writes; hand in something that buffers.
    pub fn new(mut out: W, layout: Layout) -> Result<Self, WriteError> {
        let mut meta = Meta { page_size: PAGE_SIZE as u64, root: layout.root, pages: layout.pages, transaction: 2 };
        let mut pages = Vec::with_capacity(2 * PAGE_SIZE);
        meta.encode(0, &mut pages);
        meta.transaction = 1; // bbolt writes meta pages in turn, so page 1 belongs to odd transactions
        meta.encode(1, &mut pages);
        out.write_all(&pages).map_err(|source| WriteError::Io { page: 0, source })?;
        Ok(Writer { builder: Builder::new(out, Some(layout)), last_key: Vec::new() })
    }

    /// The items that follow belong to this bucket. Buckets come in byte order of their names.
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), WriteError> {
        self.last_key.clear();
        self.builder.bucket(name)
    }

    /// The next item of the bucket. Keys ascend.
    pub fn item(&mut self, key: &[u8], value: &[u8]) -> Result<(), WriteError> {
        if key <= self.last_key.as_slice() && !key.is_empty() {
            return Err(WriteError::KeyOrder { bucket: self.builder.name(), key: key.to_vec() });
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        self.builder.item(key.len(), value.len(), key, value)
    }

    /// The shape that the file was planned to have.
    pub fn layout(&self) -> Layout {
        self.builder.plan.expect("a writer always has a plan")
    }

    /// What has been handed to `out` so far stays there; a caller whose `out` is a `Vec` can take it away here.
    pub fn out_mut(&mut self) -> &mut W {
        &mut self.builder.out
    }

    /// Writes what is left and hands back `out`, not flushed.
    pub fn finish(self) -> Result<W, WriteError> {
        let plan = self.layout();
        let (out, root, pages) = self.builder.finish()?;
        if (root, pages) != (plan.root, plan.pages) {
            return Err(WriteError::OffPlan { planned_pages: plan.pages, planned_root: plan.root, pages, root });
        }
        Ok(out)
    }
}

/// Builds one bucket's tree after the other, then the root bucket's. A page is given out as soon as it is full,
/// branches as well, so only the page in the making is held per level.
#[derive(Debug)]
struct Builder<W> {
    out: W,
    /// What must not be exceeded; none while planning.
    plan: Option<Layout>,
    next_page: u64,
    bucket: Option<(Vec<u8>, Tree)>,
    /// The finished buckets: items of the root bucket.
    finished: Vec<(Vec<u8>, BucketValue)>,
    scratch: Vec<u8>,
}

/// The value of a finished bucket in the root bucket.
#[derive(Debug)]
struct BucketValue {
    len: usize,
    /// Empty while planning, if the bucket is inline.
    bytes: Vec<u8>,
}

impl<W: Write> Builder<W> {
    fn new(out: W, plan: Option<Layout>) -> Self {
        Builder { out, plan, next_page: FIRST_DATA_PAGE, bucket: None, finished: Vec::new(), scratch: Vec::new() }
    }

    /// The bucket in the making, for errors.
    fn name(&self) -> String {
        self.bucket.as_ref().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).unwrap_or_default()
    }

    fn bucket(&mut self, name: &[u8]) -> Result<(), WriteError> {
        self.finish_bucket()?;
        let shown = String::from_utf8_lossy(name).into_owned();
        if name.is_empty() || name.len() > MAX_KEY_BYTES {
            return Err(WriteError::KeySize { bucket: shown, len: name.len() });
        }
        if self.finished.last().is_some_and(|(before, _)| before.as_slice() >= name) {
            return Err(WriteError::BucketOrder { name: shown });
        }
        self.bucket = Some((name.to_vec(), Tree::new(0)));
        Ok(())
    }

    /// Adds an item to the current bucket. While planning, the bytes are empty and only the lengths count.
    fn item(&mut self, key_len: usize, value_len: usize, key: &[u8], value: &[u8]) -> Result<(), WriteError> {
        if key_len == 0 || key_len > MAX_KEY_BYTES {
            return Err(WriteError::KeySize { bucket: self.name(), len: key_len });
        }
        if value_len > MAX_VALUE_BYTES {
            return Err(WriteError::ValueSize { bucket: self.name(), len: value_len });
        }
        let (name, mut tree) = self.bucket.take().expect("an item comes after its bucket");
        let added = tree.add(self, key_len, value_len, key, value);
        self.bucket = Some((name, tree));
        added
    }

    fn finish_bucket(&mut self) -> Result<(), WriteError> {
        let Some((name, tree)) = self.bucket.take() else { return Ok(()) };
        let value = match tree.inline() {
            Some(value) => value,
            None => {
                let root = tree.finish(self)?;
                let bytes: Vec<u8> = [root.to_le_bytes(), 0u64.to_le_bytes()].concat();
                BucketValue { len: bytes.len(), bytes }
            }
        };
        self.finished.push((name, value));
        Ok(())
    }

    /// (out, page of the root bucket, pages in the file)
    fn finish(mut self) -> Result<(W, u64, u64), WriteError> {
        self.finish_bucket()?;
        let mut tree = Tree::new(BUCKET_FLAG);
        for (name, value) in std::mem::take(&mut self.finished) {
            tree.add(&mut self, name.len(), value.len, &name, &value.bytes)?;
        }
        let root = tree.finish(&mut self)?;
        Ok((self.out, root, self.next_page))
    }

    /// Gives out a page and returns its id.
    fn emit(&mut self, node: &Node) -> Result<u64, WriteError> {
        let id = self.next_page;
        let slots = node.len.div_ceil(PAGE_SIZE);
        self.next_page += slots as u64;
        let Some(plan) = self.plan else { return Ok(id) };
        if self.next_page > plan.pages {
            let (planned_pages, planned_root) = (plan.pages, plan.root);
            return Err(WriteError::OffPlan { planned_pages, planned_root, pages: self.next_page, root: 0 });
        }
        self.scratch.clear();
        node.encode_head(id, slots - 1, &mut self.scratch);
        let io = |source| WriteError::Io { page: id, source };
        self.out.write_all(&self.scratch).map_err(io)?;
        self.out.write_all(&node.data).map_err(io)?;
        self.out.write_all(&[0; PAGE_SIZE][..slots * PAGE_SIZE - node.len]).map_err(io)?;
        Ok(id)
    }
}

/// A B+tree that grows at its right edge: the leaf in the making, and above it the branches in the making.
#[derive(Debug)]
struct Tree {
    leaf: Node,
    branches: Vec<Node>,
}

impl Tree {
    fn new(element_flags: u32) -> Self {
        Tree { leaf: Node::new(Kind::Leaf { element_flags }), branches: Vec::new() }
    }

    fn add<W: Write>(
        &mut self,
        builder: &mut Builder<W>,
        key_len: usize,
        value_len: usize,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), WriteError> {
        // An item that is larger than a page has a page of its own, with overflow.
        if !self.leaf.cells.is_empty() && self.leaf.len + ELEMENT + key_len + value_len > PAGE_SIZE {
            let page = builder.emit(&self.leaf)?;
            let child = self.leaf.as_child(page);
            self.leaf.clear();
            self.add_child(builder, 0, child)?;
        }
        self.leaf.push(Cell { key_len, value_len, child: 0 }, &[key, value]);
        Ok(())
    }

    /// Tells the branch at this level of a finished page below it.
    fn add_child<W: Write>(&mut self, builder: &mut Builder<W>, level: usize, child: Child) -> Result<(), WriteError> {
        if level == self.branches.len() {
            self.branches.push(Node::new(Kind::Branch));
        }
        let branch = &mut self.branches[level];
        let full = branch.len + ELEMENT + child.key_len > PAGE_SIZE;
        // The last child moves on to the next page, so that neither page can end with fewer than two: bbolt stops with
        // an assertion when it deletes from a leaf that has no siblings. With fewer than three, which takes keys of
        // more than a kilobyte, the page overflows instead.
        if full && branch.cells.len() >= 3 {
            let carried = branch.pop();
            let page = builder.emit(branch)?;
            let emitted = branch.as_child(page);
            branch.clear();
            branch.push(carried.cell(), &[&carried.key]);
            self.add_child(builder, level + 1, emitted)?;
        }
        self.branches[level].push(child.cell(), &[&child.key]);
        Ok(())
    }

    /// The value of the bucket if it is small enough to live in the root bucket.
    fn inline(&self) -> Option<BucketValue> {
        let fits = self.branches.is_empty() && self.leaf.len <= MAX_INLINE;
        fits.then(|| {
            let mut bytes = vec![0; BUCKET_HEADER];
            self.leaf.encode_head(0, 0, &mut bytes);
            bytes.extend_from_slice(&self.leaf.data);
            BucketValue { len: BUCKET_HEADER + self.leaf.len, bytes }
        })
    }

    /// Gives out the pages in the making, lowest first. Returns the page of the root.
    fn finish<W: Write>(mut self, builder: &mut Builder<W>) -> Result<u64, WriteError> {
        let mut done = self.leaf.as_child(builder.emit(&self.leaf)?);
        // A level exists because a page below it was full, and the page that is finished here is another one.
        let mut level = 0;
        while level < self.branches.len() {
            self.add_child(builder, level, done)?;
            let branch = &self.branches[level];
            assert!(branch.cells.len() >= 2, "a branch page at level {level} has {} children", branch.cells.len());
            done = branch.as_child(builder.emit(branch)?);
            level += 1;
        }
        Ok(done.page)
    }
}

/// A child of a branch.
#[derive(Debug)]
struct Child {
    page: u64,
    key_len: usize,
    /// Its first key; empty while planning.
    key: Vec<u8>,
}

impl Child {
    fn cell(&self) -> Cell {
        Cell { key_len: self.key_len, value_len: 0, child: self.page }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Branch,
    Leaf { element_flags: u32 },
}

/// One element of a page.
#[derive(Debug, Clone, Copy)]
struct Cell {
    key_len: usize,
    /// Leaves only.
    value_len: usize,
    /// Branches only.
    child: u64,
}

/// A page in the making.
#[derive(Debug)]
struct Node {
    kind: Kind,
    cells: Vec<Cell>,
    /// Keys and values in the order of the cells, without gaps; empty while planning.
    data: Vec<u8>,
    /// Bytes that the page will have without padding: header, element table and data.
    len: usize,
}

impl Node {
    fn new(kind: Kind) -> Self {
        Node { kind, cells: Vec::new(), data: Vec::new(), len: PAGE_HEADER }
    }

    fn clear(&mut self) {
        self.cells.clear();
        self.data.clear();
        self.data.shrink_to(16 * PAGE_SIZE); // after an unusually large value
        self.len = PAGE_HEADER;
    }

    fn push(&mut self, cell: Cell, data: &[&[u8]]) {
        self.len += ELEMENT + cell.key_len + cell.value_len;
        self.cells.push(cell);
        for part in data {
            self.data.extend_from_slice(part);
        }
    }

    /// Takes the last child off a branch.
    fn pop(&mut self) -> Child {
        let cell = self.cells.pop().expect("only a page with elements is asked for its last");
        self.len -= ELEMENT + cell.key_len;
        let kept = self.data.len().saturating_sub(cell.key_len);
        Child { page: cell.child, key_len: cell.key_len, key: self.data.split_off(kept) }
    }

    /// What a branch needs to know of this node once it is page `page`.
    fn as_child(&self, page: u64) -> Child {
        let key_len = self.cells.first().map_or(0, |cell| cell.key_len);
        Child { page, key_len, key: self.data[..key_len.min(self.data.len())].to_vec() }
    }

    /// Appends the page's header and element table.
    fn encode_head(&self, id: u64, overflow: usize, into: &mut Vec<u8>) {
        let flags = if self.kind == Kind::Branch { BRANCH } else { LEAF };
        let count = u16::try_from(self.cells.len()).expect("a page of 4 KiB has far fewer than 2^16 elements");
        let overflow = u32::try_from(overflow).expect("a value of 2 GiB has far fewer than 2^32 pages");
        page_header(id, flags, count, overflow, into);
        let mut data = self.cells.len() * ELEMENT;
        for (index, cell) in self.cells.iter().enumerate() {
            let position = (data - index * ELEMENT) as u32; // < 2^32: keys and values before it are in the same page
            match self.kind {
                Kind::Branch => {
                    into.extend(position.to_le_bytes());
                    into.extend((cell.key_len as u32).to_le_bytes());
                    into.extend(cell.child.to_le_bytes());
                }
                Kind::Leaf { element_flags } => {
                    into.extend(element_flags.to_le_bytes());
                    into.extend(position.to_le_bytes());
                    into.extend((cell.key_len as u32).to_le_bytes());
                    into.extend((cell.value_len as u32).to_le_bytes());
                }
            }
            data += cell.key_len + cell.value_len;
        }
    }
}
