//! One trait for every allocator, so that all of them perform the same operations.

use crate::extent_tree::ExtentTree;
use crate::{BASE, PAGE};
use mkpool::main_pool::PAGE_ORDER;
use mkpool::{AddrRange, GenPool, MainPool};
use offset_allocator::{Allocation, Allocator as OffsetAllocator};
use vm_allocator::{AddressAllocator, AllocPolicy, RangeInclusive};

/// An allocator of pages.
pub trait Rival: Sized {
    /// The information that freeing needs.
    type Token: Copy;
    const NAME: &'static str;
    /// Creates a pool of `pages` pages of which at most `live` extents will be allocated at once.
    fn new(pages: u64, live: u64) -> Self;
    fn alloc(&mut self, pages: u64) -> Option<Self::Token>;
    /// Allocates like `alloc`, in a pool from which nothing was freed so far.
    fn fill(&mut self, pages: u64) -> Option<Self::Token> {
        self.alloc(pages)
    }
    fn free(&mut self, token: Self::Token, pages: u64);
    /// Allocates the first `pages` pages and frees every other one of them.
    fn comb(&mut self, pages: u64);
}

fn range(start: u64, pages: u64) -> AddrRange {
    AddrRange::with_size(start, pages * PAGE).expect("not empty")
}

impl Rival for GenPool {
    type Token = u64;
    const NAME: &'static str = "mkpool GenPool";
    fn new(pages: u64, _live: u64) -> Self {
        let mut pool = GenPool::new(PAGE_ORDER).expect("a page");
        pool.add_chunk(range(BASE, pages), ()).expect("whole pages");
        pool
    }
    fn alloc(&mut self, pages: u64) -> Option<u64> {
        GenPool::alloc(self, pages * PAGE)
            .ok()
            .map(|range| range.start())
    }
    fn free(&mut self, token: u64, pages: u64) {
        GenPool::free(self, range(token, pages)).expect("allocated");
    }
    fn comb(&mut self, pages: u64) {
        GenPool::alloc(self, pages * PAGE).expect("fresh");
        for page in (0..pages).step_by(2) {
            GenPool::free(self, range(BASE + page * PAGE, 1)).expect("allocated");
        }
    }
}

impl Rival for MainPool {
    type Token = u64;
    const NAME: &'static str = "mkpool MainPool";
    fn new(pages: u64, _live: u64) -> Self {
        MainPool::new(range(BASE, pages), PAGE_ORDER).expect("whole pages")
    }
    fn alloc(&mut self, pages: u64) -> Option<u64> {
        MainPool::alloc(self, pages * PAGE)
            .ok()
            .map(|range| range.start())
    }
    fn free(&mut self, token: u64, pages: u64) {
        MainPool::free(self, range(token, pages)).expect("allocated");
    }
    fn comb(&mut self, pages: u64) {
        MainPool::alloc(self, pages * PAGE).expect("fresh");
        for page in (0..pages).step_by(2) {
            MainPool::free(self, range(BASE + page * PAGE, 1)).expect("allocated");
        }
    }
}

/// Returns other addresses than first fit, in constant time: the reference for speed.
impl Rival for OffsetAllocator<u32> {
    type Token = Allocation<u32>;
    const NAME: &'static str = "offset-allocator (other addresses)";
    fn new(pages: u64, live: u64) -> Self {
        // It creates all its nodes at once, with a free one beside every live one.
        let nodes = u32::try_from(live * 2 + 16).expect("fewer than 2^31");
        let pages = u32::try_from(pages).expect("below 16 TiB");
        OffsetAllocator::with_max_allocs(pages, nodes)
    }
    fn alloc(&mut self, pages: u64) -> Option<Self::Token> {
        self.allocate(u32::try_from(pages).ok()?)
    }
    fn free(&mut self, token: Self::Token, _pages: u64) {
        OffsetAllocator::free(self, token);
    }
    fn comb(&mut self, pages: u64) {
        let tokens: Vec<_> = (0..pages)
            .map(|_| self.allocate(1).expect("fresh"))
            .collect();
        for token in tokens.into_iter().step_by(2) {
            OffsetAllocator::free(self, token);
        }
    }
}

impl Rival for AddressAllocator {
    type Token = RangeInclusive;
    const NAME: &'static str = "vm-allocator (first match)";
    fn new(pages: u64, _live: u64) -> Self {
        AddressAllocator::new(BASE, pages * PAGE).expect("a range")
    }
    fn alloc(&mut self, pages: u64) -> Option<RangeInclusive> {
        self.allocate(pages * PAGE, PAGE, AllocPolicy::FirstMatch)
            .ok()
    }
    fn free(&mut self, token: RangeInclusive, _pages: u64) {
        AddressAllocator::free(self, &token).expect("allocated");
    }
    fn comb(&mut self, pages: u64) {
        for page in (1..pages).step_by(2) {
            let place = AllocPolicy::ExactMatch(BASE + page * PAGE);
            self.allocate(PAGE, PAGE, place).expect("fresh");
        }
    }
}

/// First fit over one bit per page, like `bitmap_find_next_zero_area` in genalloc; a set bit is a
/// page in use.
pub struct Bitmap {
    words: Vec<u64>,
    pages: u64,
    filled: u64,
}

impl Bitmap {
    /// Returns the next bit that is set, or clear, from `from` on; `limit` if there is none before
    /// that.
    fn next(&self, from: u64, set: bool, limit: u64) -> u64 {
        let mut skip = !0_u64 << (from % 64);
        for i in from as usize / 64..limit.div_ceil(64) as usize {
            let word = if set { self.words[i] } else { !self.words[i] } & skip;
            if word != 0 {
                return (i as u64 * 64 + u64::from(word.trailing_zeros())).min(limit);
            }
            skip = !0;
        }
        limit
    }

    fn set(&mut self, from: u64, pages: u64, used: bool) {
        for i in from / 64..(from + pages).div_ceil(64) {
            let low = from.max(i * 64) - i * 64;
            let high = (from + pages).min(i * 64 + 64) - i * 64;
            let mask = (!0_u64 << low) & (!0_u64 >> (64 - high));
            if used {
                self.words[i as usize] |= mask
            } else {
                self.words[i as usize] &= !mask
            }
        }
    }
}

impl Rival for Bitmap {
    type Token = u64;
    const NAME: &'static str = "bitmap first fit (as genalloc)";
    fn new(pages: u64, _live: u64) -> Self {
        Self {
            words: vec![0; pages.div_ceil(64) as usize],
            pages,
            filled: 0,
        }
    }
    fn alloc(&mut self, pages: u64) -> Option<u64> {
        let mut from = 0;
        loop {
            let start = self.next(from, false, self.pages);
            if start + pages > self.pages {
                return None;
            }
            let used = self.next(start, true, start + pages);
            if used >= start + pages {
                self.set(start, pages, true);
                return Some(start);
            }
            from = used + 1;
        }
    }
    fn fill(&mut self, pages: u64) -> Option<u64> {
        // Start where the search would end, without the minutes that it takes in a terabyte.
        let start = self.filled;
        self.filled += pages;
        self.set(start, pages, true);
        Some(start)
    }
    fn free(&mut self, token: u64, pages: u64) {
        assert!(
            self.next(token, false, token + pages) >= token + pages,
            "allocated"
        );
        self.set(token, pages, false);
    }
    fn comb(&mut self, pages: u64) {
        self.set(0, pages, true);
        for page in (0..pages).step_by(2) {
            self.set(page, 1, false);
        }
    }
}

/// The alternative design that was rejected: one balanced tree of free extents.
impl Rival for ExtentTree {
    type Token = u64;
    const NAME: &'static str = "tree of extents (the rejected design)";
    fn new(pages: u64, _live: u64) -> Self {
        ExtentTree::with_pages(pages)
    }
    fn alloc(&mut self, pages: u64) -> Option<u64> {
        self.first_fit(pages)
    }
    fn free(&mut self, token: u64, pages: u64) {
        self.give(token, pages);
    }
    fn comb(&mut self, pages: u64) {
        self.first_fit(pages);
        for page in (0..pages).step_by(2) {
            self.give(page, 1);
        }
    }
}

/// No allocator at all: measures the cost of the loop and of the table of live allocations.
pub struct Nothing;

impl Rival for Nothing {
    type Token = u64;
    const NAME: &'static str = "(the loop alone)";
    fn new(_pages: u64, _live: u64) -> Self {
        Self
    }
    fn alloc(&mut self, pages: u64) -> Option<u64> {
        Some(std::hint::black_box(pages))
    }
    fn free(&mut self, token: u64, pages: u64) {
        std::hint::black_box((token, pages));
    }
    fn comb(&mut self, _pages: u64) {}
}
