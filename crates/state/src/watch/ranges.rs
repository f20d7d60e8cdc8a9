//! Which watched ranges contain a key.
//!
//! A treap ordered by where a range starts; every node knows the farthest end below it, so that whole branches that end
//! before the key are passed over. Watchers of equal ranges share a node: thousands may watch the same prefix.

use bytes::Bytes;

/// Where a range ends: `None` is beyond every key.
type End = Option<Bytes>;

/// "No node".
const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Node {
    start: Bytes,
    end: End,
    /// The farthest end in this branch.
    farthest: End,
    watchers: Vec<u32>,
    priority: u32,
    left: u32,
    right: u32,
}

/// Watched ranges with their watchers.
#[derive(Debug)]
pub(super) struct Ranges {
    nodes: Vec<Node>,
    free: Vec<u32>,
    root: u32,
    /// State of the generator of priorities; a fixed seed, so that equal histories give equal trees.
    random: u32,
}

impl Default for Ranges {
    fn default() -> Self {
        Self { nodes: Vec::new(), free: Vec::new(), root: NONE, random: 0x9e37_79b9 }
    }
}

/// Whether an end lies beyond a key.
fn beyond(end: &End, key: &[u8]) -> bool {
    end.as_ref().is_none_or(|end| key < end.as_ref())
}

/// The order of nodes: by start, then by end, open ends last.
fn precedes(a: (&Bytes, &End), b: (&Bytes, &End)) -> bool {
    match a.0.cmp(b.0) {
        std::cmp::Ordering::Equal => match (a.1, b.1) {
            (Some(a), Some(b)) => a < b,
            (Some(_), None) => true,
            (None, _) => false,
        },
        order => order.is_lt(),
    }
}

impl Ranges {
    fn node(&self, at: u32) -> &Node {
        &self.nodes[at as usize]
    }

    fn node_mut(&mut self, at: u32) -> &mut Node {
        &mut self.nodes[at as usize]
    }

    /// Adds a watcher of a range.
    pub(super) fn insert(&mut self, start: &Bytes, end: &End, watcher: u32) {
        if let Some(at) = self.find(start, end) {
            return self.node_mut(at).watchers.push(watcher);
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        let node = Node {
            start: start.clone(),
            end: end.clone(),
            farthest: end.clone(),
            watchers: vec![watcher],
            priority: self.random,
            left: NONE,
            right: NONE,
        };
        let new = match self.free.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        };
        let (left, right) = self.split(self.root, start, end);
        let left = self.merge(left, new);
        self.root = self.merge(left, right);
    }

    /// Removes a watcher of a range.
    pub(super) fn remove(&mut self, start: &Bytes, end: &End, watcher: u32) {
        let Some(at) = self.find(start, end) else { return };
        let node = self.node_mut(at);
        node.watchers.retain(|other| *other != watcher);
        if node.watchers.is_empty() {
            self.root = self.without(self.root, at);
            let node = self.node_mut(at);
            (node.start, node.end, node.farthest) = (Bytes::new(), None, None);
            self.free.push(at);
        }
    }

    /// Adds the watchers of all ranges that contain the key to `found`.
    pub(super) fn find_containing(&self, key: &[u8], found: &mut Vec<u32>) {
        self.visit(self.root, key, found);
    }

    fn visit(&self, at: u32, key: &[u8], found: &mut Vec<u32>) {
        if at == NONE {
            return;
        }
        let node = self.node(at);
        if !beyond(&node.farthest, key) {
            return;
        }
        self.visit(node.left, key, found);
        if node.start.as_ref() <= key {
            if beyond(&node.end, key) {
                found.extend_from_slice(&node.watchers);
            }
            self.visit(node.right, key, found);
        }
    }

    fn find(&self, start: &Bytes, end: &End) -> Option<u32> {
        let mut at = self.root;
        while at != NONE {
            let node = self.node(at);
            at = if precedes((start, end), (&node.start, &node.end)) {
                node.left
            } else if precedes((&node.start, &node.end), (start, end)) {
                node.right
            } else {
                return Some(at);
            };
        }
        None
    }

    fn update(&mut self, at: u32) {
        let node = self.node(at);
        let mut farthest = node.end.clone();
        for child in [node.left, node.right] {
            if child == NONE || farthest.is_none() {
                continue;
            }
            let other = &self.node(child).farthest;
            if other.is_none() || *other > farthest {
                farthest = other.clone();
            }
        }
        self.node_mut(at).farthest = farthest;
    }

    /// The nodes before (start, end), and the others.
    fn split(&mut self, at: u32, start: &Bytes, end: &End) -> (u32, u32) {
        if at == NONE {
            return (NONE, NONE);
        }
        let node = self.node(at);
        if precedes((&node.start, &node.end), (start, end)) {
            let (left, right) = self.split(node.right, start, end);
            self.node_mut(at).right = left;
            self.update(at);
            (at, right)
        } else {
            let (left, right) = self.split(node.left, start, end);
            self.node_mut(at).left = right;
            self.update(at);
            (left, at)
        }
    }

    /// One tree of two, all of `a` before all of `b`.
    fn merge(&mut self, a: u32, b: u32) -> u32 {
        if a == NONE || b == NONE {
            return if a == NONE { b } else { a };
        }
        if self.node(a).priority > self.node(b).priority {
            let merged = self.merge(self.node(a).right, b);
            self.node_mut(a).right = merged;
            self.update(a);
            a
        } else {
            let merged = self.merge(a, self.node(b).left);
            self.node_mut(b).left = merged;
            self.update(b);
            b
        }
    }

    /// The tree at `at` without the node `gone`.
    fn without(&mut self, at: u32, gone: u32) -> u32 {
        if at == gone {
            let node = self.node(at);
            return self.merge(node.left, node.right);
        }
        let (node, target) = (self.node(at), self.node(gone));
        if precedes((&target.start, &target.end), (&node.start, &node.end)) {
            let left = self.without(node.left, gone);
            self.node_mut(at).left = left;
        } else {
            let right = self.without(node.right, gone);
            self.node_mut(at).right = right;
        }
        self.update(at);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// The tree finds what looking at every range finds.
    #[test]
    fn the_tree_agrees_with_a_list() {
        let mut random = StdRng::seed_from_u64(7);
        let mut tree = Ranges::default();
        let mut list: Vec<(Bytes, End, u32)> = Vec::new();
        let key = |random: &mut StdRng| {
            let len = random.random_range(1..4);
            Bytes::from((0..len).map(|_| random.random_range(b'a'..b'e')).collect::<Vec<u8>>())
        };
        for step in 0..5_000 {
            if !list.is_empty() && random.random_bool(0.45) {
                let (start, end, watcher) = list.swap_remove(random.random_range(0..list.len()));
                tree.remove(&start, &end, watcher);
            } else {
                let start = key(&mut random);
                let end = if random.random_bool(0.2) { None } else { Some(key(&mut random)) };
                tree.insert(&start, &end, step);
                list.push((start, end, step));
            }
            let probe = key(&mut random);
            let mut found = Vec::new();
            tree.find_containing(&probe, &mut found);
            found.sort_unstable();
            let contains = |(start, end, _): &&(Bytes, End, u32)| *start <= probe && beyond(end, &probe);
            let mut expected: Vec<u32> = list.iter().filter(contains).map(|(_, _, watcher)| *watcher).collect();
            expected.sort_unstable();
            assert_eq!(found, expected, "step {step}, key {probe:?}");
        }
        for (start, end, watcher) in list {
            tree.remove(&start, &end, watcher);
        }
        assert_eq!(tree.root, NONE);
    }
}
