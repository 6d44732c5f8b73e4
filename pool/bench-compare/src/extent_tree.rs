//! A treap of free extents by address, in which each node stores the longest extent below it: also
//! first fit in O(log n), but with one node per extent.

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Node {
    start: u64,
    len: u64,
    longest: u64,
    rank: u32,
    left: u32,
    right: u32,
}

pub struct ExtentTree {
    nodes: Vec<Node>,
    vacant: Vec<u32>,
    root: u32,
    seed: u32,
}

impl ExtentTree {
    pub fn with_pages(pages: u64) -> Self {
        let mut tree = Self {
            nodes: Vec::new(),
            vacant: Vec::new(),
            root: NONE,
            seed: 1,
        };
        tree.insert(0, pages);
        tree
    }

    fn longest(&self, id: u32) -> u64 {
        if id == NONE {
            0
        } else {
            self.nodes[id as usize].longest
        }
    }

    fn pull(&mut self, id: u32) {
        let node = self.nodes[id as usize];
        let longest = node
            .len
            .max(self.longest(node.left))
            .max(self.longest(node.right));
        self.nodes[id as usize].longest = longest;
    }

    /// Splits the tree into the extents that start below `at`, and the rest.
    fn split(&mut self, id: u32, at: u64) -> (u32, u32) {
        if id == NONE {
            return (NONE, NONE);
        }
        let node = self.nodes[id as usize];
        let parts = if node.start < at {
            let (low, high) = self.split(node.right, at);
            self.nodes[id as usize].right = low;
            (id, high)
        } else {
            let (low, high) = self.split(node.left, at);
            self.nodes[id as usize].left = high;
            (low, id)
        };
        self.pull(id);
        parts
    }

    fn merge(&mut self, low: u32, high: u32) -> u32 {
        if low == NONE || high == NONE {
            return if low == NONE { high } else { low };
        }
        let (a, b) = (self.nodes[low as usize], self.nodes[high as usize]);
        if a.rank > b.rank {
            self.nodes[low as usize].right = self.merge(a.right, high);
            self.pull(low);
            low
        } else {
            self.nodes[high as usize].left = self.merge(low, b.left);
            self.pull(high);
            high
        }
    }

    fn insert(&mut self, start: u64, len: u64) {
        // This is xorshift32.
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 17;
        self.seed ^= self.seed << 5;
        let node = Node {
            start,
            len,
            longest: len,
            rank: self.seed,
            left: NONE,
            right: NONE,
        };
        let id = match self.vacant.pop() {
            Some(id) => {
                self.nodes[id as usize] = node;
                id
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        let (low, high) = self.split(self.root, start);
        let low = self.merge(low, id);
        self.root = self.merge(low, high);
    }

    /// Removes the extent that starts at `start`, and returns its length.
    fn remove(&mut self, start: u64) -> u64 {
        let (low, rest) = self.split(self.root, start);
        let (this, high) = self.split(rest, start + 1);
        self.root = self.merge(low, high);
        self.vacant.push(this);
        self.nodes[this as usize].len
    }

    /// Sets the start and length of the extent at `start` without moving it in the tree.
    fn reshape(&mut self, id: u32, start: u64, new: (u64, u64)) {
        let node = self.nodes[id as usize];
        if node.start == start {
            (self.nodes[id as usize].start, self.nodes[id as usize].len) = new;
        } else {
            self.reshape(
                if start < node.start {
                    node.left
                } else {
                    node.right
                },
                start,
                new,
            );
        }
        self.pull(id);
    }

    pub fn first_fit(&mut self, pages: u64) -> Option<u64> {
        if self.longest(self.root) < pages {
            return None;
        }
        let mut id = self.root;
        loop {
            let node = self.nodes[id as usize];
            if self.longest(node.left) >= pages {
                id = node.left;
            } else if node.len >= pages {
                if node.len == pages {
                    self.remove(node.start);
                } else {
                    let rest = (node.start + pages, node.len - pages);
                    self.reshape(self.root, node.start, rest);
                }
                return Some(node.start);
            } else {
                id = node.right;
            }
        }
    }

    pub fn give(&mut self, start: u64, pages: u64) {
        let (mut below, mut above) = (None, None);
        let mut id = self.root;
        while id != NONE {
            let node = self.nodes[id as usize];
            if node.start < start {
                assert!(node.start + node.len <= start, "allocated");
                below = Some((node.start, node.len));
                id = node.right;
            } else {
                assert!(start + pages <= node.start, "allocated");
                above = Some((node.start, node.len));
                id = node.left;
            }
        }
        let below = below.filter(|(s, len)| s + len == start);
        let above = above.filter(|(s, _)| start + pages == *s);
        match (below, above) {
            (Some((s, len)), Some((t, more))) => {
                self.remove(t);
                self.reshape(self.root, s, (s, len + pages + more));
            }
            (Some((s, len)), None) => self.reshape(self.root, s, (s, len + pages)),
            (None, Some((t, more))) => self.reshape(self.root, t, (start, pages + more)),
            (None, None) => self.insert(start, pages),
        }
    }
}
