//! The key index: every key with its versions, sorted by key, in memory.
//!
//! Memory per key decides how many keys a member can hold, so this is not a map of boxed keys. Keys lie in *leaves* of
//! up to [`LEAF_SLOTS`]; a leaf keeps the bytes of its keys end to end in one buffer, in order, and beside them where
//! each key ends and one slot of 48 bytes per key. An ordered map finds the leaf by its lower bound, two binary searches find the key. The
//! newest version sits in the slot; older ones (and the tombstones between them) in a queue beside it that most keys
//! never have.
//!
//! Measured with `examples/fill.rs`, 1 M keys of 41 bytes: 62 bytes a key beside the key itself when keys come in order, 74
//! in random order (a `BTreeMap` of boxed keys: 177 in all with 38-byte keys).
//!
//! # Invariants
//! - A leaf's keys are at or above its bound and below the next leaf's; the first leaf's bound is empty.
//! - A key's versions are in ascending revision order, and no revision occurs twice.
//! - Only [`Index::sweep`] removes versions.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use crate::{Found, KeyMeta, Location, Revision};

/// Most keys in a leaf.
const LEAF_SLOTS: usize = 128;

/// Key bytes at which a leaf is split early, so that inserting among long keys stays cheap.
const LEAF_KEY_BYTES: usize = 64 << 10;

/// Slots by which a leaf grows: less slack than doubling, still few moves.
const GROWTH_SLOTS: usize = 16;

const TOMBSTONE: u32 = 1 << 31;
const LEASED: u32 = 1 << 30;

/// One version of a key, or the tombstone that ends its life (then `create_revision` and `version` are 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    main: i64,
    create_revision: i64,
    version: i64,
    sub: u32,
    segment: u32,
    offset: u32,
    /// Two flags above the frame's length, which is below 1 GiB.
    length_and_flags: u32,
}

impl Version {
    /// A put.
    pub(crate) fn put(meta: KeyMeta, location: Location) -> Self {
        let leased = if meta.leased { LEASED } else { 0 };
        Self::new(meta.modified, meta.create_revision, meta.version, location, leased)
    }

    /// A delete.
    pub(crate) fn tombstone(revision: Revision, location: Location) -> Self {
        Self::new(revision, 0, 0, location, TOMBSTONE)
    }

    fn new(at: Revision, create_revision: i64, version: i64, location: Location, flags: u32) -> Self {
        assert!(location.len < LEASED, "a frame of {} bytes", location.len);
        Self {
            main: at.main,
            create_revision,
            version,
            sub: at.sub as u32,
            segment: location.segment,
            offset: location.offset,
            length_and_flags: location.len | flags,
        }
    }

    pub(crate) fn revision(&self) -> Revision {
        Revision { main: self.main, sub: i64::from(self.sub) }
    }

    pub(crate) fn is_tombstone(&self) -> bool {
        self.length_and_flags & TOMBSTONE != 0
    }

    pub(crate) fn location(&self) -> Location {
        Location { segment: self.segment, offset: self.offset, len: self.length_and_flags & !(TOMBSTONE | LEASED) }
    }

    fn relocate(&mut self, to: Location) {
        self.segment = to.segment;
        self.offset = to.offset;
    }

    pub(crate) fn meta(&self) -> KeyMeta {
        KeyMeta {
            create_revision: self.create_revision,
            modified: self.revision(),
            version: self.version,
            leased: self.length_and_flags & LEASED != 0,
        }
    }

    /// What a reader is told; `None` for a tombstone.
    pub(crate) fn found(&self) -> Option<Found> {
        (!self.is_tombstone()).then(|| Found { meta: self.meta(), location: self.location() })
    }

    /// Whether a compaction at `compacted` keeps this version, if it is its key's newest one at or below it. A
    /// tombstone exactly there is kept, so that a watcher starting at that revision sees it.
    fn outlives(&self, compacted: i64) -> bool {
        !self.is_tombstone() || self.main == compacted
    }
}

/// Older versions of a key, oldest first. Boxed, because most keys have none and 8 bytes then do for that.
type Older = Option<Box<VecDeque<Version>>>;

/// A key's place in a leaf.
#[derive(Debug)]
pub(crate) struct Slot {
    newest: Version,
    older: Older,
}

impl Slot {
    /// The newest version or tombstone at or below `at`.
    pub(crate) fn at(&self, at: i64) -> Option<&Version> {
        if self.newest.main <= at {
            return Some(&self.newest);
        }
        let older = self.older.as_ref()?;
        older.get(older.partition_point(|v| v.main <= at).checked_sub(1)?)
    }

    fn version(&self, revision: Revision) -> Option<&Version> {
        if self.newest.revision() == revision {
            return Some(&self.newest);
        }
        let older = self.older.as_ref()?;
        let version = older.get(older.partition_point(|v| v.revision() < revision))?;
        (version.revision() == revision).then_some(version)
    }

    /// All versions and tombstones, oldest first.
    pub(crate) fn versions(&self) -> impl Iterator<Item = &Version> {
        self.older.iter().flat_map(|older| older.iter()).chain(std::iter::once(&self.newest))
    }

    /// Versions and tombstones at or above `from`, oldest first.
    pub(crate) fn versions_from(&self, from: i64) -> impl Iterator<Item = &Version> {
        let older = self.older.iter().flat_map(move |older| older.range(older.partition_point(|v| v.main < from)..));
        older.chain(std::iter::once(&self.newest).filter(move |newest| newest.main >= from))
    }

    /// Drops what a compaction at `compacted` drops, at most `budget` versions. Returns whether the key is gone and
    /// whether it is finished.
    fn sweep(&mut self, compacted: i64, budget: &mut usize, dropped: &mut dyn FnMut(&Version)) -> (bool, bool) {
        if let Some(older) = &mut self.older {
            let below = if self.newest.main <= compacted {
                older.len()
            } else {
                let below = older.partition_point(|v| v.main <= compacted);
                match below.checked_sub(1).and_then(|last| older.get(last)) {
                    Some(last) if last.outlives(compacted) => below - 1,
                    _ => below,
                }
            };
            let now = below.min(*budget);
            older.drain(..now).for_each(|version| dropped(&version));
            *budget -= now;
            if now < below {
                return (false, false);
            }
            if older.is_empty() {
                self.older = None;
            } else if older.capacity() > 2 * older.len() + 8 {
                older.shrink_to_fit();
            }
        }
        let gone = self.newest.main <= compacted && !self.newest.outlives(compacted);
        if gone {
            dropped(&self.newest);
        }
        (gone, true)
    }
}

/// Neighbouring keys.
#[derive(Debug, Default)]
struct Leaf {
    keys: Vec<u8>,
    /// Where each key ends in `keys`; it begins where the one before ends. Apart from the slots, because a search looks
    /// at many of these and at one slot.
    ends: Vec<u32>,
    slots: Vec<Slot>,
}

impl Leaf {
    fn key_start(&self, position: usize) -> usize {
        position.checked_sub(1).map_or(0, |before| self.ends[before] as usize)
    }

    fn key(&self, position: usize) -> &[u8] {
        &self.keys[self.key_start(position)..self.ends[position] as usize]
    }

    fn find(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.slots.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.key(middle).cmp(key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }

    fn is_full_for(&self, key: &[u8]) -> bool {
        !self.slots.is_empty() && (self.slots.len() >= LEAF_SLOTS || self.keys.len() + key.len() > LEAF_KEY_BYTES)
    }

    fn insert(&mut self, position: usize, key: &[u8], newest: Version, older: Older) {
        if self.slots.len() == self.slots.capacity() {
            self.slots.reserve_exact(GROWTH_SLOTS);
            self.ends.reserve_exact(GROWTH_SLOTS);
        }
        if self.keys.len() + key.len() > self.keys.capacity() {
            self.keys.reserve_exact(key.len().max(self.keys.len() / 8 + GROWTH_SLOTS * 4));
        }
        let start = self.key_start(position);
        self.keys.extend_from_slice(key);
        self.keys[start..].rotate_right(key.len());
        let end = u32::try_from(start + key.len()).expect("a leaf's keys are shorter than 4 GiB");
        for later in &mut self.ends[position..] {
            *later += key.len() as u32;
        }
        self.ends.insert(position, end);
        self.slots.insert(position, Slot { newest, older });
    }

    /// Moves the slots from `position` on into a new leaf.
    fn split_off(&mut self, position: usize) -> Leaf {
        let start = self.key_start(position);
        let mut right = Leaf {
            keys: self.keys.split_off(start),
            ends: self.ends.split_off(position),
            slots: self.slots.split_off(position),
        };
        for end in &mut right.ends {
            *end -= start as u32;
        }
        self.shrink();
        right
    }

    /// Takes over the keys of `right`, all of which are above ours.
    fn absorb(&mut self, right: Leaf) {
        let start = self.keys.len() as u32;
        self.keys.extend_from_slice(&right.keys);
        self.ends.extend(right.ends.iter().map(|end| end + start));
        self.slots.extend(right.slots);
        self.shrink();
    }

    /// Removes the slots at `gone`, which is sorted.
    fn remove(&mut self, gone: &[usize]) {
        let old = std::mem::take(self);
        let mut gone = gone.iter().peekable();
        let mut start = 0;
        for (position, (slot, end)) in old.slots.into_iter().zip(old.ends).enumerate() {
            if gone.next_if(|&&g| g == position).is_none() {
                self.keys.extend_from_slice(&old.keys[start..end as usize]);
                self.ends.push(self.keys.len() as u32);
                self.slots.push(slot);
            }
            start = end as usize;
        }
        self.shrink();
    }

    fn shrink(&mut self) {
        self.slots.shrink_to(self.slots.len() + 1);
        self.ends.shrink_to(self.slots.len() + 1);
        self.keys.shrink_to(self.keys.len() + 32);
    }
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Index {
    leaves: BTreeMap<Box<[u8]>, Leaf>,
    keys: usize,
}

/// Keys that can be visited under one hold of the lock.
pub(crate) struct Chunk<'a> {
    leaf: &'a Leaf,
    from: usize,
    /// Where to go on.
    pub next: Option<&'a [u8]>,
}

impl<'a> Chunk<'a> {
    /// The keys of this chunk in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a Slot)> + use<'a> {
        let leaf = self.leaf;
        let mut start = leaf.key_start(self.from);
        leaf.slots[self.from..].iter().zip(&leaf.ends[self.from..]).map(move |(slot, &end)| {
            let key = &leaf.keys[start..end as usize];
            start = end as usize;
            (key, slot)
        })
    }
}

impl Index {
    pub(crate) fn new() -> Self {
        Self { leaves: BTreeMap::from([(Box::from(&[][..]), Leaf::default())]), keys: 0 }
    }

    /// How many keys it holds, deleted ones that are not compacted yet included.
    pub(crate) fn len(&self) -> usize {
        self.keys
    }

    fn leaf(&self, key: &[u8]) -> &Leaf {
        let (_, leaf) = self
            .leaves
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()
            .expect("the first leaf's bound is the empty key");
        leaf
    }

    fn leaf_mut(&mut self, key: &[u8]) -> &mut Leaf {
        let (_, leaf) = self
            .leaves
            .range_mut::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()
            .expect("the first leaf's bound is the empty key");
        leaf
    }

    /// A key's slot.
    pub(crate) fn slot(&self, key: &[u8]) -> Option<&Slot> {
        let leaf = self.leaf(key);
        leaf.find(key).ok().map(|position| &leaf.slots[position])
    }

    /// The newest version or tombstone of `key` at or below `at`.
    pub(crate) fn at(&self, key: &[u8], at: i64) -> Option<&Version> {
        self.slot(key)?.at(at)
    }

    /// Whether `revision` of `key` is still there after a compaction at `compacted`, carried out or not.
    pub(crate) fn survives(&self, key: &[u8], revision: Revision, compacted: i64) -> bool {
        revision.main > compacted
            || self.at(key, compacted).is_some_and(|v| v.revision() == revision && v.outlives(compacted))
    }

    /// Adds a version. One that is there already gets the new location, and the old one is returned: recovery sees
    /// versions again, in the log and in merged segments.
    pub(crate) fn insert(&mut self, key: &[u8], version: Version) -> Option<Location> {
        let leaf = self.leaf_mut(key);
        match leaf.find(key) {
            Ok(position) => {
                let slot = &mut leaf.slots[position];
                if slot.newest.revision() < version.revision() {
                    slot.older.get_or_insert_default().push_back(slot.newest);
                    slot.newest = version;
                    return None;
                }
                if slot.newest.revision() == version.revision() {
                    let old = slot.newest.location();
                    slot.newest.relocate(version.location());
                    return Some(old);
                }
                let older = slot.older.get_or_insert_default();
                let place = older.partition_point(|v| v.revision() < version.revision());
                match older.get_mut(place) {
                    Some(same) if same.revision() == version.revision() => {
                        let old = same.location();
                        same.relocate(version.location());
                        Some(old)
                    }
                    _ => {
                        older.insert(place, version);
                        None
                    }
                }
            }
            Err(position) => {
                if !leaf.is_full_for(key) {
                    leaf.insert(position, key, version, None);
                    self.keys += 1;
                    return None;
                }
                // Keys that come in order leave full leaves behind; others leave two halves.
                let at = if position == leaf.slots.len() { position } else { leaf.slots.len() / 2 };
                let mut right = leaf.split_off(at);
                let bound: Box<[u8]> = if right.slots.is_empty() { key.into() } else { right.key(0).into() };
                let half = if key < &*bound { leaf } else { &mut right };
                let position = half.find(key).unwrap_or_else(|free| free);
                half.insert(position, key, version, None);
                self.leaves.insert(bound, right);
                self.keys += 1;
                None
            }
        }
    }

    /// Adds a key above all that are there, with its versions oldest first, or more versions of the last key. `false`
    /// if anything is out of order.
    pub(crate) fn push(&mut self, key: &[u8], mut versions: VecDeque<Version>) -> bool {
        let ordered = versions.iter().zip(versions.iter().skip(1)).all(|(a, b)| a.revision() < b.revision());
        let (Some(first), Some(newest)) = (versions.front().copied(), versions.pop_back()) else { return false };
        let mut entry = self.leaves.last_entry().expect("there is a first leaf");
        let leaf = entry.get_mut();
        let last = leaf.slots.len().checked_sub(1);
        match last.map(|position| leaf.key(position).cmp(key)) {
            None | Some(std::cmp::Ordering::Less) => {}
            Some(std::cmp::Ordering::Greater) => return false,
            Some(std::cmp::Ordering::Equal) => {
                let Some(slot) = leaf.slots.last_mut() else { return false };
                if !ordered || slot.newest.revision() >= first.revision() {
                    return false;
                }
                let older = slot.older.get_or_insert_default();
                older.push_back(std::mem::replace(&mut slot.newest, newest));
                older.append(&mut versions);
                return true;
            }
        }
        if !ordered {
            return false;
        }
        self.keys += 1;
        let older = (!versions.is_empty()).then(|| Box::new(versions));
        if leaf.is_full_for(key) {
            let mut leaf = Leaf::default();
            leaf.insert(0, key, newest, older);
            self.leaves.insert(key.into(), leaf);
        } else {
            leaf.insert(leaf.slots.len(), key, newest, older);
        }
        true
    }

    /// Whether `revision` of `key` is at `location`.
    pub(crate) fn is_at(&self, key: &[u8], revision: Revision, location: Location) -> bool {
        let version = self.slot(key).and_then(|slot| slot.version(revision));
        version.is_some_and(|version| version.location() == location)
    }

    /// Points a version at its copy. `false` if it is not at `from` (any more).
    pub(crate) fn relocate(&mut self, key: &[u8], revision: Revision, from: Location, to: Location) -> bool {
        let leaf = self.leaf_mut(key);
        let Ok(position) = leaf.find(key) else { return false };
        let slot = &mut leaf.slots[position];
        let version = if slot.newest.revision() == revision {
            Some(&mut slot.newest)
        } else {
            slot.older.as_mut().and_then(|older| {
                let place = older.partition_point(|v| v.revision() < revision);
                older.get_mut(place)
            })
        };
        match version {
            Some(version) if version.revision() == revision && version.location() == from => {
                version.relocate(to);
                true
            }
            _ => false,
        }
    }

    /// The keys from `cursor` on, as many as one hold of the lock should visit.
    pub(crate) fn chunk(&self, cursor: &[u8]) -> Option<Chunk<'_>> {
        let mut from = self.leaf(cursor).find(cursor).unwrap_or_else(|free| free);
        let mut leaf = self.leaf(cursor);
        let mut above = self.leaves.range::<[u8], _>((Bound::Excluded(cursor), Bound::Unbounded));
        loop {
            let next = above.next();
            if from < leaf.slots.len() {
                return Some(Chunk { leaf, from, next: next.map(|(bound, _)| &**bound) });
            }
            (from, leaf) = (0, next?.1);
        }
    }

    /// Drops what a compaction at `compacted` drops, from `cursor` on, looking at about `budget` keys and dropping at
    /// most as many versions. Returns where to go on.
    pub(crate) fn sweep(
        &mut self,
        cursor: &[u8],
        compacted: i64,
        mut budget: usize,
        dropped: &mut dyn FnMut(&Version),
    ) -> Option<Box<[u8]>> {
        let (bound, _) = self
            .leaves
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(cursor)))
            .next_back()
            .expect("the first leaf's bound is the empty key");
        let mut bound = bound.clone();
        let mut cursor = Some(cursor);
        loop {
            let leaf = self.leaves.get_mut(&bound).expect("the bound was just read");
            let from = cursor.take().map_or(0, |cursor| leaf.find(cursor).unwrap_or_else(|free| free));
            let mut gone = Vec::new();
            let mut stopped_at = None;
            for position in from..leaf.slots.len() {
                let (is_gone, finished) = leaf.slots[position].sweep(compacted, &mut budget, dropped);
                if is_gone {
                    gone.push(position);
                }
                if !finished {
                    stopped_at = Some(Box::from(leaf.key(position)));
                    break;
                }
            }
            budget = budget.saturating_sub(leaf.slots.len() - from);
            self.keys -= gone.len();
            if !gone.is_empty() {
                leaf.remove(&gone);
            }
            let next = self.leaves.range::<[u8], _>((Bound::Excluded(&*bound), Bound::Unbounded)).next();
            let next = next.map(|(bound, _)| bound.clone());
            if !gone.is_empty() {
                self.join_left(&bound);
            }
            if stopped_at.is_some() {
                return stopped_at;
            }
            bound = next?;
            if budget == 0 {
                return Some(bound);
            }
        }
    }

    /// Joins the leaf at `bound` with its left neighbour if both are rather empty, or drops it if it is empty.
    fn join_left(&mut self, bound: &[u8]) {
        if bound.is_empty() {
            return;
        }
        let Some(leaf) = self.leaves.remove(bound) else { return };
        if leaf.slots.is_empty() {
            return;
        }
        let (_, left) = self
            .leaves
            .range_mut::<[u8], _>((Bound::Unbounded, Bound::Excluded(bound)))
            .next_back()
            .expect("the first leaf's bound is the empty key");
        if left.slots.len() + leaf.slots.len() <= LEAF_SLOTS * 3 / 4
            && left.keys.len() + leaf.keys.len() <= LEAF_KEY_BYTES
        {
            left.absorb(leaf);
        } else {
            self.leaves.insert(bound.into(), leaf);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    type Model = BTreeMap<Vec<u8>, Vec<Version>>;

    fn version(main: i64, deleted: bool) -> Version {
        let revision = Revision { main, sub: 0 };
        let location = Location { segment: 1, offset: main as u32, len: 30 };
        if deleted {
            return Version::tombstone(revision, location);
        }
        Version::put(KeyMeta { create_revision: main, modified: revision, version: 1, leased: main % 3 == 0 }, location)
    }

    fn check(index: &Index, model: &Model) {
        assert_eq!(index.len(), model.len());
        let mut seen = 0;
        let mut cursor = Vec::new();
        let mut expected = model.iter();
        while let Some(chunk) = index.chunk(&cursor) {
            for (key, slot) in chunk.iter() {
                let (model_key, versions) = expected.next().unwrap();
                assert_eq!(key, model_key);
                assert!(slot.versions().eq(versions), "{key:?}");
                assert!(index.slot(key).unwrap().versions().eq(versions));
                seen += 1;
            }
            let Some(next) = chunk.next else { break };
            cursor = next.to_vec();
        }
        assert_eq!(seen, model.len());
        for (bound, leaf) in &index.leaves {
            assert!(leaf.slots.len() <= LEAF_SLOTS && leaf.slots.len() == leaf.ends.len());
            assert_eq!(leaf.ends.last().map_or(0, |&end| end as usize), leaf.keys.len());
            assert!(leaf.slots.is_empty() == (bound.is_empty() && leaf.keys.is_empty()) || !leaf.slots.is_empty());
            assert!((0..leaf.slots.len()).all(|position| leaf.key(position) >= &**bound));
        }
    }

    fn compact(model: &mut Model, compacted: i64) -> usize {
        let before: usize = model.values().map(Vec::len).sum();
        model.retain(|_, versions| {
            let below = versions.partition_point(|v| v.main <= compacted);
            let kept = below.checked_sub(1).filter(|&last| versions[last].outlives(compacted));
            versions.drain(..kept.unwrap_or(below));
            !versions.is_empty()
        });
        before - model.values().map(Vec::len).sum::<usize>()
    }

    /// Thousands of keys of all lengths come, change, go and come again, in order and out of order; leaves split and join.
    #[test]
    fn an_index_holds_what_a_map_of_lists_holds() {
        for seed in 0..8 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut index = Index::new();
            let mut model = Model::new();
            let mut main = 1;
            for round in 0..6 {
                for step in 0..3000 {
                    main += 1;
                    let number = if seed % 2 == 0 { round * 1500 + step / 2 } else { random.random_range(0..5000) };
                    let long = if number % 500 == 7 { 20_000 } else { 0 };
                    let key = format!("/some/common/prefix/{number:06}{}", "x".repeat(long)).into_bytes();
                    let new = version(main, random.random_bool(0.2));
                    assert_eq!(index.insert(&key, new), None);
                    model.entry(key).or_default().push(new);
                }
                check(&index, &model);
                let compacted = main - random.random_range(0..4000);
                let mut dropped = 0;
                let mut cursor = Some(Box::from(&[][..]));
                while let Some(from) = cursor {
                    cursor = index.sweep(&from, compacted, random.random_range(1..300), &mut |_| dropped += 1);
                }
                assert_eq!(dropped, compact(&mut model, compacted));
                check(&index, &model);
            }
            // A checkpoint hands keys over in order, and a long history in pieces.
            let mut copy = Index::new();
            for (key, versions) in &model {
                for some in versions.chunks(2) {
                    assert!(copy.push(key, some.iter().copied().collect()));
                }
            }
            check(&copy, &model);
            assert!(!copy.push(b"/", VecDeque::from([version(1, false)])), "out of order");
            // Deleting nearly everything leaves few leaves.
            let keys: Vec<_> = model.keys().cloned().collect();
            for key in keys.iter().filter(|_| random.random_bool(0.97)) {
                main += 1;
                index.insert(key, version(main, true));
                model.entry(key.clone()).or_default().push(version(main, true));
            }
            index.sweep(b"", main + 1, usize::MAX, &mut |_| {});
            compact(&mut model, main + 1);
            check(&index, &model);
            assert!(index.leaves.len() <= 2 + index.len() / 16, "{} leaves for {}", index.leaves.len(), index.len());
        }
    }

    /// Versions may come again and out of order when a checkpoint and the log overlap, and copies have new places.
    #[test]
    fn taking_versions_in_twice_changes_nothing_but_their_place() {
        let mut index = Index::new();
        for main in [5, 3, 9, 7] {
            assert_eq!(index.insert(b"k", version(main, main == 7)), None);
        }
        for main in [3, 5, 7, 9] {
            assert_eq!(index.insert(b"k", version(main, main == 7)), Some(version(main, false).location()));
        }
        let mains: Vec<_> = index.slot(b"k").unwrap().versions().map(|v| v.main).collect();
        assert_eq!(mains, [3, 5, 7, 9]);
        assert_eq!(index.at(b"k", 8).unwrap().found(), None);
        assert_eq!(index.slot(b"k").unwrap().versions_from(5).count(), 3);
        let (from, to) = (version(5, false).location(), Location { segment: 2, offset: 77, len: 30 });
        let revision = Revision { main: 5, sub: 0 };
        assert!(index.is_at(b"k", revision, from));
        assert!(index.relocate(b"k", revision, from, to));
        assert!(!index.relocate(b"k", revision, from, to));
        assert!(index.is_at(b"k", revision, to));
        assert!(index.survives(b"k", revision, 6) && !index.survives(b"k", revision, 7));
    }
}
