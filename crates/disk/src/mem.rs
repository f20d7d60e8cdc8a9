//! A disk in memory that can lose power, for tests and for the simulator.
//!
//! It keeps apart what has been written and what has been synced. A power cut ([`MemDisk::crash`]) gives a new disk on
//! which every write since the last sync may be there, be lost, or be torn at a sector boundary, in any order; names made,
//! removed or renamed since the last [`Disk::sync_dir`] may be lost as well. That is less than most file systems promise and
//! exactly what POSIX does, so code that survives here does not lean on the habits of one file system.
//!
//! Everything is deterministic: the same calls and the same seed give the same disk, bit for bit.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::{Disk, File, Open};

/// Bytes that a drive writes as a whole: a torn write is torn at multiples of this.
pub const SECTOR_BYTES: u64 = 512;

/// What a power cut does to everything that was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Nothing unsynced survives.
    LoseUnsynced,
    /// Everything survives, as when only the process dies.
    KeepEverything,
    /// Each unsynced sector and each directory change survives or not as the seed decides.
    Random {
        /// Same seed, same damage.
        seed: u64,
    },
}

/// A misbehaviour to come. Several may be armed at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// After `after` more syncs (of files or directories), the next one fails. As on Linux, the failed data counts as clean afterwards: a later
    /// sync succeeds without making it durable.
    SyncFails {
        /// Syncs that still succeed.
        after: usize,
    },
    /// After `after` more writes, the next one fails and writes nothing.
    WriteFails {
        /// Writes that still succeed.
        after: usize,
    },
    /// Reads of this file that touch this byte fail, until the fault is cleared.
    ReadFails {
        /// Which file.
        path: PathBuf,
        /// The unreadable byte.
        offset: u64,
    },
    /// The disk takes this many more bytes; then writes fail with "no space left", until the fault is cleared. A write that
    /// does not fit is cut at a sector's end, as file systems hand out whole blocks.
    Full {
        /// Bytes that still fit.
        after_bytes: u64,
    },
    /// After `after` more calls that write, sync or change names the power is off: nothing works any more, and
    /// [`MemDisk::is_off`] says so. What the disk then holds is for [`MemDisk::crash`] to tell.
    PowerFails {
        /// Calls that are still carried out.
        after: usize,
    },
}

/// One step of a recording: what had just been done, and the disk as it stood then.
#[derive(Clone, Debug)]
pub struct Moment {
    /// The call, such as `write wal/0.wal @512 +64`.
    pub what: String,
    /// The disk right after it, unsynced writes and all. Independent of the recorded disk.
    pub disk: MemDisk,
}

/// Counters of calls since the disk was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// `write_at` calls.
    pub writes: usize,
    /// Bytes given to `write_at`.
    pub bytes_written: u64,
    /// `sync` calls on files.
    pub syncs: usize,
}

/// A disk in memory; clones share it. See the module's text for its rules.
#[derive(Clone)]
pub struct MemDisk {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    tree: Tree,
    /// Open handles per file, so that a removed file lives as long as somebody reads it.
    handles: BTreeMap<NodeId, usize>,
    /// Which handle holds the lock of a file.
    locks: BTreeMap<NodeId, u64>,
    next_handle: u64,
    faults: Vec<Fault>,
    off: bool,
    calls: Calls,
    recording: Option<Vec<Moment>>,
}

type NodeId = u64;
const ROOT: NodeId = 0;

/// All files and directories. Cheap to clone: nodes and the chunks of files are shared until changed.
#[derive(Clone)]
struct Tree {
    nodes: BTreeMap<NodeId, Arc<Node>>,
    next: NodeId,
}

#[derive(Clone)]
enum Node {
    File(FileNode),
    Dir(DirNode),
}

#[derive(Clone, Default)]
struct FileNode {
    /// What readers see.
    current: Sparse,
    /// What the last sync made safe.
    durable: Sparse,
    /// What lies between, in order.
    pending: Vec<FileOp>,
    /// Syncs that failed so far. Every handle open at that time is told, once.
    failures: u64,
}

#[derive(Clone)]
enum FileOp {
    Write { offset: u64, data: Arc<[u8]> },
    Zero { offset: u64, len: u64 },
    SetLen(u64),
}

#[derive(Clone, Default)]
struct DirNode {
    current: BTreeMap<String, NodeId>,
    durable: BTreeMap<String, NodeId>,
    /// Unsynced changes, in order. One change is atomic: a rename inside a directory happens whole or not at all.
    pending: Vec<DirOp>,
}

/// Names to set (`Some`) or to remove (`None`), all at once.
type DirOp = Vec<(String, Option<NodeId>)>;

const CHUNK: u64 = 4096;

/// A file's bytes; chunks that were never written (or only with zeros) take no memory.
#[derive(Clone, Default)]
struct Sparse {
    len: u64,
    chunks: BTreeMap<u64, Arc<[u8; CHUNK as usize]>>,
}

impl Default for MemDisk {
    fn default() -> MemDisk {
        MemDisk::new()
    }
}

impl fmt::Debug for MemDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = self.shared.lock();
        let mut map = f.debug_map();
        shared.tree.walk(ROOT, Path::new("/"), &mut |path, node| {
            if let Node::File(file) = node {
                map.entry(&path, &format_args!("{} bytes, {} unsynced", file.current.len, file.pending.len()));
            }
        });
        map.finish()
    }
}

impl MemDisk {
    /// An empty disk.
    pub fn new() -> MemDisk {
        MemDisk::of(Tree::default())
    }

    fn of(tree: Tree) -> MemDisk {
        MemDisk { shared: Arc::new(Mutex::new(Shared { tree, ..Shared::default() })) }
    }

    /// Makes everything durable, names too: a starting point that no later crash touches.
    pub fn sync_all(&self) {
        let mut shared = self.shared.lock();
        for node in shared.tree.nodes.values_mut() {
            match Arc::make_mut(node) {
                Node::File(file) => {
                    file.durable = file.current.clone();
                    file.pending.clear();
                }
                Node::Dir(dir) => {
                    dir.durable = dir.current.clone();
                    dir.pending.clear();
                }
            }
        }
    }

    /// An independent copy of the disk as it stands, unsynced writes included; without locks, faults and recording.
    pub fn fork(&self) -> MemDisk {
        MemDisk::of(self.shared.lock().tree.clone())
    }

    /// The disk after a power cut at this moment. This disk itself stays as it is.
    pub fn crash(&self, how: Crash) -> MemDisk {
        let tree = &self.shared.lock().tree;
        MemDisk::of(match how {
            Crash::LoseUnsynced => tree.crashed(&mut |_, _| false, &mut |_, _| 0),
            Crash::KeepEverything => tree.crashed(&mut |_, _| true, &mut |_, pending| pending),
            Crash::Random { seed } => {
                let random = Mutex::new(Random(seed));
                // A mood per file makes the extremes (all kept, all lost) as likely as the mixtures.
                let mut moods = BTreeMap::new();
                tree.crashed(
                    &mut |file, _| {
                        let mut random = random.lock();
                        let keep_of_8 = *moods.entry(file).or_insert_with(|| random.below(9));
                        random.below(8) < keep_of_8
                    },
                    &mut |_, pending| random.lock().below(pending as u64 + 1) as usize,
                )
            }
        })
    }

    /// The interesting power cuts at this moment, each as the disk it leaves: everything unsynced lost, everything kept,
    /// every torn beginning of each unsynced file, single sectors missing (writes that overtook each other), directory changes
    /// lost with and without file contents, and a few random mixtures. Bounded: long files are sampled.
    pub fn crash_images(&self) -> Vec<MemDisk> {
        /// Cuts tried per file; beyond that they are spread evenly.
        const CUTS: u64 = 48;
        let mut images = vec![self.crash(Crash::LoseUnsynced), self.crash(Crash::KeepEverything)];
        let tree = self.shared.lock().tree.clone();
        for (&id, node) in &tree.nodes {
            match node.as_ref() {
                Node::File(file) if !file.pending.is_empty() => {
                    let pieces: u64 = file.pending.iter().map(|op| op.pieces().len() as u64).sum();
                    let step = pieces.div_ceil(CUTS).max(1);
                    for cut in (0..pieces).step_by(step as usize) {
                        let everything = &mut |_, pending| pending;
                        let torn = tree.crashed(&mut |file, piece| file != id || piece < cut, everything);
                        let holed = tree.crashed(&mut |file, piece| file != id || piece != cut, everything);
                        images.extend([MemDisk::of(torn), MemDisk::of(holed)]);
                    }
                }
                Node::Dir(dir) if !dir.pending.is_empty() => {
                    for kept in 0..=dir.pending.len() {
                        let changes = &mut |dir, pending| if dir == id { kept } else { pending };
                        let without = tree.crashed(&mut |_, _| false, changes);
                        let with = tree.crashed(&mut |_, _| true, changes);
                        images.extend([MemDisk::of(without), MemDisk::of(with)]);
                    }
                }
                _ => {}
            }
        }
        images.extend((1..=6).map(|seed| self.crash(Crash::Random { seed })));
        images
    }

    /// Remembers the disk after every call that changes it, until [`MemDisk::recorded`].
    pub fn record(&self) {
        self.shared.lock().recording = Some(Vec::new());
    }

    /// Ends a recording and returns its moments, oldest first.
    pub fn recorded(&self) -> Vec<Moment> {
        self.shared.lock().recording.take().unwrap_or_default()
    }

    /// Runs `action` and returns every disk that a power cut during it could leave: [`MemDisk::crash_images`] before it and
    /// after each of its calls, with a description.
    pub fn crash_images_during<T>(&self, action: impl FnOnce() -> T) -> (T, Vec<(String, MemDisk)>) {
        let before = Moment { what: "the start".to_owned(), disk: self.fork() };
        self.record();
        let result = action();
        let moments = std::iter::once(before).chain(self.recorded());
        let images = moments.flat_map(|moment| {
            let images = moment.disk.crash_images().into_iter().enumerate();
            images.map(move |(number, image)| (format!("after {}, image {number}", moment.what), image))
        });
        (result, images.collect())
    }

    /// Overwrites bytes of a file behind everybody's back: a medium that forgets, or a write that was meant for another place.
    /// Power cuts do not undo it. Only what is inside the file is changed.
    ///
    /// # Errors
    /// There is no such file.
    pub fn damage(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut shared = self.shared.lock();
        let id = shared.tree.find(path)?;
        let file = shared.tree.file_mut(id)?;
        for content in [&mut file.current, &mut file.durable] {
            let fits = content.len.saturating_sub(offset).min(bytes.len() as u64);
            content.write_at(&bytes[..fits as usize], offset);
        }
        Ok(())
    }

    /// Arms a fault.
    pub fn inject(&self, fault: Fault) {
        self.shared.lock().faults.push(fault);
    }

    /// Disarms all faults.
    pub fn clear_faults(&self) {
        self.shared.lock().faults.clear();
    }

    /// Whether [`Fault::PowerFails`] has struck.
    pub fn is_off(&self) -> bool {
        self.shared.lock().off
    }

    /// How often the disk was called so far.
    pub fn calls(&self) -> Calls {
        self.shared.lock().calls
    }

    /// The whole content of a file, as readers see it.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open(path, Open::Read)?;
        let mut bytes = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
        file.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Puts a durable file in place, with its directories, replacing what was there. Other unsynced changes in its
    /// directories become durable with it.
    pub fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            self.create_dir_all(parent)?;
        }
        let file = self.open(path, Open::Truncate)?;
        file.write_at(content, 0)?;
        file.sync()?;
        path.ancestors().skip(1).try_for_each(|dir| self.sync_dir(dir))
    }

    /// Flips one bit of a file, as rotting media would: unnoticed, and durable at once.
    ///
    /// # Panics
    /// If there is no such byte: a test that means to damage something should.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) {
        let mut shared = self.shared.lock();
        let id = shared.tree.find(path).expect("the file to damage exists");
        let file = shared.tree.file_mut(id).expect("the thing to damage is a file");
        assert!(offset < file.current.len, "{} has no byte {offset}", path.display());
        for content in [&mut file.current, &mut file.durable] {
            let mut byte = [0];
            if content.read_at(&mut byte, offset) == 1 {
                content.write_at(&[byte[0] ^ (1 << (bit % 8))], offset);
            }
        }
    }
}

impl Disk for MemDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let mut shared = self.shared.lock();
        match how {
            Open::Read | Open::Write => shared.readable()?,
            Open::CreateNew | Open::Truncate => shared.power()?,
        }
        let (dir, name) = shared.tree.parent_of(path)?;
        let found = shared.tree.dir(dir)?.current.get(&name).copied();
        let id = match (found, how) {
            (Some(_), Open::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (None, Open::Read | Open::Write) => return Err(io::ErrorKind::NotFound.into()),
            (Some(id), _) => {
                let file = shared.tree.file_mut(id)?;
                if how == Open::Truncate && file.current.len > 0 {
                    file.apply(FileOp::SetLen(0));
                    shared.moment(|| format!("truncate {}", path.display()));
                }
                id
            }
            (None, Open::CreateNew | Open::Truncate) => {
                let id = shared.tree.add(Node::File(FileNode::default()));
                shared.tree.dir_mut(dir)?.apply(vec![(name, Some(id))]);
                shared.moment(|| format!("create {}", path.display()));
                id
            }
        };
        shared.next_handle += 1;
        *shared.handles.entry(id).or_default() += 1;
        let handle = shared.next_handle;
        let writable = how != Open::Read;
        let told = AtomicU64::new(shared.tree.file(id)?.failures);
        Ok(Arc::new(MemFile { shared: self.shared.clone(), id, handle, writable, told, path: path.to_owned() }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let shared = self.shared.lock();
        shared.readable()?;
        let id = shared.tree.find(dir)?;
        Ok(shared.tree.dir(id)?.current.keys().cloned().collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        match self.shared.lock().tree.find(path) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut shared = self.shared.lock();
        shared.power()?;
        let mut at = ROOT;
        for name in names(dir)? {
            at = match shared.tree.dir(at)?.current.get(&name) {
                Some(&id) => id,
                None => {
                    let id = shared.tree.add(Node::Dir(DirNode::default()));
                    shared.tree.dir_mut(at)?.apply(vec![(name.clone(), Some(id))]);
                    shared.moment(|| format!("make directory {name} of {}", dir.display()));
                    id
                }
            };
        }
        shared.tree.dir(at).map(|_| ())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut shared = self.shared.lock();
        shared.power()?;
        let (from_dir, from_name) = shared.tree.parent_of(from)?;
        let (to_dir, to_name) = shared.tree.parent_of(to)?;
        let Some(&id) = shared.tree.dir(from_dir)?.current.get(&from_name) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if let Some(&target) = shared.tree.dir(to_dir)?.current.get(&to_name) {
            match (shared.tree.node(id)?, shared.tree.node(target)?) {
                (Node::File(_), Node::File(_)) => {}
                (Node::Dir(_), Node::Dir(dir)) if dir.current.is_empty() => {}
                (Node::Dir(_), Node::Dir(_)) => return Err(io::ErrorKind::DirectoryNotEmpty.into()),
                (Node::File(_), Node::Dir(_)) => return Err(io::ErrorKind::IsADirectory.into()),
                (Node::Dir(_), Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
            }
        }
        if from_dir == to_dir {
            shared.tree.dir_mut(from_dir)?.apply(vec![(from_name, None), (to_name, Some(id))]);
        } else {
            shared.tree.dir_mut(to_dir)?.apply(vec![(to_name, Some(id))]);
            shared.tree.dir_mut(from_dir)?.apply(vec![(from_name, None)]);
        }
        shared.moment(|| format!("rename {} to {}", from.display(), to.display()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut shared = self.shared.lock();
        shared.power()?;
        let (dir, name) = shared.tree.parent_of(path)?;
        let Some(&id) = shared.tree.dir(dir)?.current.get(&name) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if matches!(shared.tree.node(id)?, Node::Dir(_)) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        shared.tree.dir_mut(dir)?.apply(vec![(name, None)]);
        shared.moment(|| format!("remove {}", path.display()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut shared = self.shared.lock();
        shared.power()?;
        shared.sync_fault()?;
        let id = shared.tree.find(dir)?;
        let node = shared.tree.dir_mut(id)?;
        node.durable = node.current.clone();
        node.pending.clear();
        let Shared { tree, handles, .. } = &mut *shared;
        tree.forget_unreachable(handles);
        shared.moment(|| format!("sync directory {}", dir.display()));
        Ok(())
    }
}

struct MemFile {
    shared: Arc<Mutex<Shared>>,
    id: NodeId,
    handle: u64,
    writable: bool,
    /// How many failures of the file this handle has been told of.
    told: AtomicU64,
    path: PathBuf,
}

impl fmt::Debug for MemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemFile({})", self.path.display())
    }
}

impl MemFile {
    fn writable(&self) -> io::Result<()> {
        if self.writable {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, "the file is open for reading only"))
        }
    }
}

impl File for MemFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let shared = self.shared.lock();
        shared.readable()?;
        let end = offset.saturating_add(buf.len() as u64);
        for fault in &shared.faults {
            if let Fault::ReadFails { path, offset: bad } = fault {
                let same = shared.tree.find(path).is_ok_and(|id| id == self.id);
                if same && (offset..end).contains(bad) {
                    return Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
                }
            }
        }
        Ok(shared.tree.file(self.id)?.current.read_at(buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.writable()?;
        let mut shared = self.shared.lock();
        shared.power()?;
        shared.calls.writes += 1;
        shared.calls.bytes_written += buf.len() as u64;
        let room = shared.write_fault(buf.len() as u64)?;
        let mut fitting = buf;
        if room < buf.len() as u64 {
            let end = (offset + room) / SECTOR_BYTES * SECTOR_BYTES;
            fitting = &buf[..end.saturating_sub(offset) as usize];
        }
        if !fitting.is_empty() {
            let file = shared.tree.file_mut(self.id)?;
            file.apply(if fitting.iter().all(|&byte| byte == 0) {
                FileOp::Zero { offset, len: fitting.len() as u64 }
            } else {
                FileOp::Write { offset, data: fitting.into() }
            });
        }
        shared.moment(|| format!("write {} @{offset} +{}", self.path.display(), fitting.len()));
        if fitting.len() < buf.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.shared.lock().tree.file(self.id)?.current.len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writable()?;
        let mut shared = self.shared.lock();
        shared.power()?;
        shared.tree.file_mut(self.id)?.apply(FileOp::SetLen(len));
        shared.moment(|| format!("set length {} of {}", len, self.path.display()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut shared = self.shared.lock();
        shared.power()?;
        shared.calls.syncs += 1;
        let fails = shared.sync_fault().is_err();
        let file = shared.tree.file_mut(self.id)?;
        let pending = std::mem::take(&mut file.pending);
        file.failures += u64::from(fails);
        if self.told.swap(file.failures, Ordering::Relaxed) < file.failures {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
        }
        for op in &pending {
            file.durable.apply(op);
        }
        shared.moment(|| format!("sync {}", self.path.display()));
        Ok(())
    }

    fn try_lock(&self) -> io::Result<bool> {
        let mut shared = self.shared.lock();
        let holder = *shared.locks.entry(self.id).or_insert(self.handle);
        Ok(holder == self.handle)
    }
}

impl Drop for MemFile {
    fn drop(&mut self) {
        let mut shared = self.shared.lock();
        if shared.locks.get(&self.id) == Some(&self.handle) {
            shared.locks.remove(&self.id);
        }
        if let Some(count) = shared.handles.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                shared.handles.remove(&self.id);
            }
        }
    }
}

impl Shared {
    /// Notes a step of the recording, if one runs.
    fn moment(&mut self, what: impl FnOnce() -> String) {
        if let Some(recording) = &mut self.recording {
            recording.push(Moment { what: what(), disk: MemDisk::of(self.tree.clone()) });
        }
    }

    /// Counts a call that changes the disk, which fails without power.
    fn power(&mut self) -> io::Result<()> {
        let fails = self.count_down(|fault| match fault {
            Fault::PowerFails { after } => Some(after),
            _ => None,
        });
        self.off |= fails;
        self.readable()
    }

    /// Whether anything can be had from the disk at all.
    fn readable(&self) -> io::Result<()> {
        if self.off { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }

    /// Whether this sync fails.
    fn sync_fault(&mut self) -> io::Result<()> {
        let fails = self.count_down(|fault| match fault {
            Fault::SyncFails { after } => Some(after),
            _ => None,
        });
        if fails { Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())) } else { Ok(()) }
    }

    /// How many bytes of this write are taken.
    fn write_fault(&mut self, bytes: u64) -> io::Result<u64> {
        let fails = self.count_down(|fault| match fault {
            Fault::WriteFails { after } => Some(after),
            _ => None,
        });
        if fails {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
        }
        let mut room = bytes;
        for fault in &mut self.faults {
            if let Fault::Full { after_bytes } = fault {
                room = room.min(*after_bytes);
                *after_bytes -= room;
            }
        }
        Ok(room)
    }

    /// Counts one call against the first fault that `counter` knows; a fault that reaches its turn strikes and is gone.
    fn count_down(&mut self, counter: impl Fn(&mut Fault) -> Option<&mut usize>) -> bool {
        for number in 0..self.faults.len() {
            if let Some(left) = counter(&mut self.faults[number]) {
                if *left == 0 {
                    self.faults.remove(number);
                    return true;
                }
                *left -= 1;
                return false;
            }
        }
        false
    }
}

impl Default for Tree {
    fn default() -> Tree {
        Tree { nodes: BTreeMap::from([(ROOT, Arc::new(Node::Dir(DirNode::default())))]), next: ROOT + 1 }
    }
}

impl Tree {
    fn add(&mut self, node: Node) -> NodeId {
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, Arc::new(node));
        id
    }

    fn node(&self, id: NodeId) -> io::Result<&Node> {
        self.nodes.get(&id).map(AsRef::as_ref).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn dir(&self, id: NodeId) -> io::Result<&DirNode> {
        match self.node(id)? {
            Node::Dir(dir) => Ok(dir),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn file(&self, id: NodeId) -> io::Result<&FileNode> {
        match self.node(id)? {
            Node::File(file) => Ok(file),
            Node::Dir(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn dir_mut(&mut self, id: NodeId) -> io::Result<&mut DirNode> {
        match self.nodes.get_mut(&id).map(Arc::make_mut) {
            Some(Node::Dir(dir)) => Ok(dir),
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn file_mut(&mut self, id: NodeId) -> io::Result<&mut FileNode> {
        match self.nodes.get_mut(&id).map(Arc::make_mut) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Dir(_)) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<NodeId> {
        let mut at = ROOT;
        for name in names(path)? {
            at = *self.dir(at)?.current.get(&name).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    /// The directory that holds (or would hold) this path, and the last name.
    fn parent_of(&self, path: &Path) -> io::Result<(NodeId, String)> {
        let mut names = names(path)?;
        let last = names.pop().ok_or(io::ErrorKind::InvalidInput)?;
        let mut at = ROOT;
        for name in names {
            at = *self.dir(at)?.current.get(&name).ok_or(io::ErrorKind::NotFound)?;
        }
        self.dir(at)?;
        Ok((at, last))
    }

    fn walk(&self, id: NodeId, path: &Path, visit: &mut dyn FnMut(&Path, &Node)) {
        let Some(node) = self.nodes.get(&id) else { return };
        visit(path, node);
        if let Node::Dir(dir) = node.as_ref() {
            for (name, &child) in &dir.current {
                self.walk(child, &path.join(name), visit);
            }
        }
    }

    /// The tree after a power cut. `keep_piece` is asked for each sector-sized piece of the unsynced writes of a file, in
    /// order; `keep_changes` for how many of a directory's unsynced changes survive.
    fn crashed(
        &self,
        keep_piece: &mut dyn FnMut(NodeId, u64) -> bool,
        keep_changes: &mut dyn FnMut(NodeId, usize) -> usize,
    ) -> Tree {
        let mut tree = self.clone();
        for (&id, node) in &mut tree.nodes {
            match node.as_ref() {
                // With nothing pending, current may still be ahead of durable: a sync has failed.
                Node::File(file) => {
                    let mut durable = file.durable.clone();
                    for (number, piece) in (0..).zip(file.pending.iter().flat_map(FileOp::pieces)) {
                        if keep_piece(id, number) {
                            durable.apply(&piece);
                        }
                    }
                    *node = Arc::new(Node::File(FileNode {
                        current: durable.clone(),
                        durable,
                        pending: Vec::new(),
                        failures: 0,
                    }));
                }
                Node::Dir(dir) => {
                    let mut durable = dir.durable.clone();
                    let kept = keep_changes(id, dir.pending.len());
                    for change in &dir.pending[..kept.min(dir.pending.len())] {
                        set_names(&mut durable, change);
                    }
                    *node = Arc::new(Node::Dir(DirNode { current: durable.clone(), durable, pending: Vec::new() }));
                }
            }
        }
        tree.forget_unreachable(&BTreeMap::new());
        tree
    }

    /// Drops nodes that no name (current, durable or in between) and no handle leads to.
    fn forget_unreachable(&mut self, handles: &BTreeMap<NodeId, usize>) {
        let mut reachable: std::collections::BTreeSet<NodeId> = handles.keys().copied().collect();
        let mut todo = vec![ROOT];
        while let Some(id) = todo.pop() {
            if reachable.insert(id)
                && let Some(Node::Dir(dir)) = self.nodes.get(&id).map(AsRef::as_ref)
            {
                todo.extend(dir.current.values().chain(dir.durable.values()));
                todo.extend(dir.pending.iter().flatten().filter_map(|(_, id)| *id));
            }
        }
        self.nodes.retain(|id, _| reachable.contains(id));
    }
}

impl FileNode {
    fn apply(&mut self, op: FileOp) {
        self.current.apply(&op);
        self.pending.push(op);
    }
}

impl DirNode {
    fn apply(&mut self, change: DirOp) {
        set_names(&mut self.current, &change);
        self.pending.push(change);
    }
}

fn set_names(names: &mut BTreeMap<String, NodeId>, change: &DirOp) {
    for (name, id) in change {
        match id {
            Some(id) => names.insert(name.clone(), *id),
            None => names.remove(name),
        };
    }
}

impl FileOp {
    /// The parts that a drive may write or lose separately.
    fn pieces(&self) -> Vec<FileOp> {
        /// Long runs of zeros (a segment written ahead) are split more coarsely, or they would drown everything else.
        const LONG_RUN: u64 = 1 << 20;
        match self {
            FileOp::SetLen(len) => vec![FileOp::SetLen(*len)],
            FileOp::Zero { offset, len } => {
                let unit = if *len >= LONG_RUN { 128 * SECTOR_BYTES } else { SECTOR_BYTES };
                split(*offset, *len, unit).map(|(offset, len)| FileOp::Zero { offset, len }).collect()
            }
            FileOp::Write { offset: start, data } => split(*start, data.len() as u64, SECTOR_BYTES)
                .map(|(offset, len)| {
                    let from = (offset - start) as usize;
                    FileOp::Write { offset, data: data[from..from + len as usize].into() }
                })
                .collect(),
        }
    }
}

/// Splits `len` bytes at `offset` on multiples of `unit`.
fn split(offset: u64, len: u64, unit: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let next = ((at / unit + 1) * unit).min(end);
            let part = (at, next - at);
            at = next;
            part
        })
    })
}

impl Sparse {
    fn apply(&mut self, op: &FileOp) {
        match op {
            FileOp::Write { offset, data } => self.write_at(data, *offset),
            FileOp::Zero { offset, len } => {
                self.zero(*offset, *len);
                self.len = self.len.max(offset + len);
            }
            FileOp::SetLen(len) => {
                if *len < self.len {
                    self.zero(*len, self.len - len);
                }
                self.len = *len;
            }
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> usize {
        let wanted = (buf.len() as u64).min(self.len.saturating_sub(offset));
        for (at, len) in split(offset, wanted, CHUNK) {
            let target = &mut buf[(at - offset) as usize..][..len as usize];
            match self.chunks.get(&(at / CHUNK)) {
                Some(chunk) => target.copy_from_slice(&chunk[(at % CHUNK) as usize..][..len as usize]),
                None => target.fill(0),
            }
        }
        wanted as usize
    }

    fn write_at(&mut self, data: &[u8], offset: u64) {
        for (at, len) in split(offset, data.len() as u64, CHUNK) {
            let part = &data[(at - offset) as usize..][..len as usize];
            let chunk = self.chunks.entry(at / CHUNK).or_insert_with(|| Arc::new([0; CHUNK as usize]));
            Arc::make_mut(chunk)[(at % CHUNK) as usize..][..len as usize].copy_from_slice(part);
        }
        self.len = self.len.max(offset + data.len() as u64);
    }

    /// Zeroes a range without touching the length. Bytes past the end are always zero.
    fn zero(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        let numbers: Vec<u64> = self.chunks.range(offset / CHUNK..end.div_ceil(CHUNK)).map(|(&n, _)| n).collect();
        for number in numbers {
            let from = offset.max(number * CHUNK) - number * CHUNK;
            let to = end.min((number + 1) * CHUNK) - number * CHUNK;
            if from == 0 && to == CHUNK {
                self.chunks.remove(&number);
            } else if let Some(chunk) = self.chunks.get_mut(&number) {
                Arc::make_mut(chunk)[from as usize..to as usize].fill(0);
            }
        }
    }
}

/// The names along a path; the root, `/` and `.` are the same place.
fn names(path: &Path) -> io::Result<Vec<String>> {
    path.components()
        .filter_map(|component| match component {
            Component::RootDir | Component::CurDir => None,
            Component::Normal(name) => Some(Ok(name.to_string_lossy().into_owned())),
            Component::ParentDir | Component::Prefix(_) => Some(Err(io::ErrorKind::InvalidInput.into())),
        })
        .collect()
}

/// SplitMix64: enough randomness for choosing damage, and no dependency.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_with(path: &str, content: &[u8]) -> (MemDisk, Arc<dyn File>) {
        let disk = MemDisk::new();
        disk.write(Path::new(path), content).unwrap();
        let file = disk.open(Path::new(path), Open::Write).unwrap();
        (disk, file)
    }

    #[test]
    fn only_synced_bytes_survive_the_worst_crash() {
        let (disk, file) = disk_with("/d/a", b"old");
        file.write_at(b"new", 0).unwrap();
        assert_eq!(disk.crash(Crash::LoseUnsynced).read(Path::new("/d/a")).unwrap(), b"old");
        assert_eq!(disk.crash(Crash::KeepEverything).read(Path::new("/d/a")).unwrap(), b"new");
        file.sync().unwrap();
        assert_eq!(disk.crash(Crash::LoseUnsynced).read(Path::new("/d/a")).unwrap(), b"new");
    }

    #[test]
    fn a_new_name_survives_only_after_its_directory_is_synced() {
        let disk = MemDisk::new();
        let file = disk.open(Path::new("/a"), Open::CreateNew).unwrap();
        file.write_at(b"x", 0).unwrap();
        file.sync().unwrap();
        assert!(!disk.crash(Crash::LoseUnsynced).exists(Path::new("/a")).unwrap());
        disk.sync_dir(Path::new("/")).unwrap();
        assert_eq!(disk.crash(Crash::LoseUnsynced).read(Path::new("/a")).unwrap(), b"x");
    }

    #[test]
    fn a_rename_happens_whole_or_not_at_all() {
        let (disk, _) = disk_with("/d.tmp/a", b"x");
        for image in disk.crash_images_during(|| disk.rename(Path::new("/d.tmp"), Path::new("/d")).unwrap()).1 {
            let names = image.1.list(Path::new("/")).unwrap();
            assert!(names == ["d"] || names == ["d.tmp"], "{}: {names:?}", image.0);
            assert_eq!(image.1.read(&Path::new("/").join(&names[0]).join("a")).unwrap(), b"x");
        }
    }

    #[test]
    fn a_torn_write_is_torn_at_sectors() {
        let (disk, file) = disk_with("/a", &[1; 2048]);
        let (_, images) = disk.crash_images_during(|| file.write_at(&[2; 2048], 0).unwrap());
        let mut seen = std::collections::BTreeSet::new();
        for (what, image) in images {
            let content = image.read(Path::new("/a")).unwrap();
            for sector in content.chunks(SECTOR_BYTES as usize) {
                assert!(sector.iter().all(|&b| b == sector[0]), "{what}: a sector is torn");
            }
            seen.insert(content.chunks(SECTOR_BYTES as usize).map(|s| s[0]).collect::<Vec<_>>());
        }
        for wanted in [[1, 1, 1, 1], [2, 1, 1, 1], [2, 2, 2, 1], [1, 2, 2, 2], [2, 1, 2, 2], [2, 2, 2, 2]] {
            assert!(seen.contains(wanted.as_slice()), "{wanted:?} is missing");
        }
    }

    #[test]
    fn a_failed_sync_loses_the_data_though_the_next_one_succeeds() {
        let (disk, file) = disk_with("/a", b"old");
        disk.inject(Fault::SyncFails { after: 0 });
        file.write_at(b"new", 0).unwrap();
        assert!(file.sync().is_err());
        file.sync().unwrap();
        assert_eq!(disk.read(Path::new("/a")).unwrap(), b"new", "the page cache still shows it");
        assert_eq!(disk.crash(Crash::KeepEverything).read(Path::new("/a")).unwrap(), b"old");
    }

    #[test]
    fn every_handle_is_told_of_a_failed_sync_once() {
        let (disk, file) = disk_with("/a", b"old");
        let other = disk.open(Path::new("/a"), Open::Write).unwrap();
        disk.inject(Fault::SyncFails { after: 0 });
        file.write_at(b"new", 0).unwrap();
        assert!(other.sync().is_err());
        assert!(file.sync().is_err(), "it was this one's data");
        file.sync().unwrap();
        disk.open(Path::new("/a"), Open::Write).unwrap().sync().unwrap();
    }

    #[test]
    fn a_full_disk_takes_what_fits() {
        let (disk, file) = disk_with("/a", b"");
        disk.inject(Fault::Full { after_bytes: 1000 });
        assert_eq!(file.write_at(&[1; 2000], 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.read(Path::new("/a")).unwrap(), [1; 512]);
        assert!(file.write_at(b"c", 512).is_err());
        disk.clear_faults();
        file.write_at(b"c", 512).unwrap();
    }

    #[test]
    fn without_power_nothing_is_written_or_read() {
        let (disk, file) = disk_with("/a", b"old");
        disk.inject(Fault::PowerFails { after: 2 });
        file.write_at(b"new", 0).unwrap();
        file.sync().unwrap();
        assert!(!disk.is_off());
        assert!(file.write_at(b"lost", 0).is_err() && disk.is_off());
        assert!(file.sync().is_err() && file.read_at(&mut [0; 3], 0).is_err() && disk.list(Path::new("/")).is_err());
        assert_eq!(disk.crash(Crash::KeepEverything).read(Path::new("/a")).unwrap(), b"new");
    }

    #[test]
    fn an_unreadable_byte_fails_only_reads_that_touch_it() {
        let (disk, file) = disk_with("/a", b"abcdef");
        disk.inject(Fault::ReadFails { path: "/a".into(), offset: 3 });
        let mut buf = [0; 3];
        assert_eq!(file.read_at(&mut buf, 0).unwrap(), 3);
        assert!(file.read_at(&mut buf, 1).is_err());
    }

    #[test]
    fn damage_is_there_for_everybody_and_for_ever() {
        let (disk, file) = disk_with("/a", b"abcdef");
        file.write_at(b"X", 0).unwrap();
        disk.damage(Path::new("/a"), 4, b"???").unwrap();
        assert_eq!(disk.read(Path::new("/a")).unwrap(), b"Xbcd??");
        assert_eq!(disk.crash(Crash::LoseUnsynced).read(Path::new("/a")).unwrap(), b"abcd??");
        assert!(disk.damage(Path::new("/b"), 0, b"?").is_err());
    }

    #[test]
    fn a_lock_belongs_to_one_handle_until_it_is_dropped() {
        let (disk, first) = disk_with("/a", b"");
        let second = disk.open(Path::new("/a"), Open::Write).unwrap();
        assert!(first.try_lock().unwrap() && first.try_lock().unwrap());
        assert!(!second.try_lock().unwrap());
        drop(first);
        assert!(second.try_lock().unwrap());
    }

    #[test]
    fn a_removed_file_stays_readable_through_its_handle() {
        let (disk, file) = disk_with("/a", b"abc");
        disk.remove(Path::new("/a")).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        let mut buf = [0; 3];
        assert_eq!(file.read_at(&mut buf, 0).unwrap(), 3);
        assert!(disk.open(Path::new("/a"), Open::Read).is_err());
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        /// The sparse file agrees with a plain vector, whatever is done to both.
        #[test]
        fn sparse_files_behave_like_vectors(ops in proptest::collection::vec((0u8..3, 0u64..12_000, 0usize..6_000), 1..30)) {
            let (disk, file) = disk_with("/a", b"");
            let mut model: Vec<u8> = Vec::new();
            for (number, (kind, offset, len)) in ops.into_iter().enumerate() {
                match kind {
                    0 | 1 => {
                        let fill = if kind == 0 { 0 } else { number as u8 + 1 };
                        if len > 0 {
                            let end = offset as usize + len;
                            if model.len() < end { model.resize(end, 0); }
                            model[offset as usize..end].fill(fill);
                        }
                        file.write_at(&vec![fill; len], offset).unwrap();
                    }
                    _ => { model.resize(offset as usize, 0); file.set_len(offset).unwrap(); }
                }
                proptest::prop_assert_eq!(&disk.read(Path::new("/a")).unwrap(), &model);
            }
            proptest::prop_assert_eq!(&disk.crash(Crash::KeepEverything).read(Path::new("/a")).unwrap(), &model);
        }
    }
}
