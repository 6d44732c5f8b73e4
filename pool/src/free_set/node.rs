//! An inner node: what is known about its eight children, and how that adds up.

use super::leaf::{self, Summary, short_bit};

/// log2 of [`FAN`].
pub(super) const FAN_BITS: u32 = 3;
/// Children of a node.
pub(super) const FAN: usize = 1 << FAN_BITS;

/// What hangs below a place: everything free, everything used, or a node or leaf by its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link(u32);

/// A [`Link`], opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Below {
    Free,
    Used,
    Mixed(u32),
}

impl Link {
    const FREE: Self = Self(u32::MAX);
    const USED: Self = Self(u32::MAX - 1);

    pub(super) const fn uniform(free: bool) -> Self {
        if free { Self::FREE } else { Self::USED }
    }

    pub(super) const fn mixed(id: u32) -> Self {
        Self(id)
    }

    #[inline]
    pub(super) const fn open(self) -> Below {
        match self {
            Self::FREE => Below::Free,
            Self::USED => Below::Used,
            Self(id) => Below::Mixed(id),
        }
    }
}

/// log2 of the granules below each child of a node at `level`; leaves are level 0.
#[inline]
pub(super) const fn child_bits(level: u32) -> u32 {
    leaf::BITS + (level - 1) * FAN_BITS
}

/// Eight children; the fields of their summaries lie side by side.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub links: [Link; FAN],
    pub pre: [u64; FAN],
    pub suf: [u64; FAN],
    pub max: [u64; FAN],
    pub short: [u64; FAN],
}

impl Default for Node {
    fn default() -> Self {
        Self::uniform(false, 0)
    }
}

impl Node {
    /// A node whose children, of `span` granules each, are all free or all used.
    pub(super) fn uniform(free: bool, span: u64) -> Self {
        let len = if free { span } else { 0 };
        Self {
            links: [Link::uniform(free); FAN],
            pre: [len; FAN],
            suf: [len; FAN],
            max: [len; FAN],
            short: [0; FAN],
        }
    }

    /// Puts a child in its place; whether its summary has changed by that.
    pub(super) fn set(&mut self, i: usize, link: Link, new: Summary) -> bool {
        let old = Summary {
            pre: self.pre[i],
            suf: self.suf[i],
            max: self.max[i],
            short: self.short[i],
        };
        self.links[i] = link;
        if old == new {
            return false;
        }
        (self.pre[i], self.suf[i]) = (new.pre, new.suf);
        (self.max[i], self.short[i]) = (new.max, new.short);
        true
    }

    /// The whole node, from its children of `span` granules.
    pub(super) fn summary(&self, span: u64) -> Summary {
        let mut sum = Summary::USED;
        // The free run that reaches the border before child `i`, and whether it began inside.
        let (mut carry, mut inside) = (0, false);
        for i in 0..FAN {
            let run = carry + self.pre[i];
            sum.max = sum.max.max(self.max[i]).max(run);
            sum.short |= self.short[i];
            if self.pre[i] == span {
                carry = run;
                continue;
            }
            if inside {
                sum.short |= short_bit(run);
            } else {
                sum.pre = run;
                inside = true;
            }
            carry = self.suf[i];
        }
        sum.suf = carry;
        if !inside {
            sum.pre = carry;
        }
        sum
    }
}
