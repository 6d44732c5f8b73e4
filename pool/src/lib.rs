//! Allocates address space: guest memory, physical ranges, device windows.
//!
//! A pool never touches the memory itself and knows nothing of files, of KVM or of Linux: it takes
//! numbers and returns numbers. Two things set it apart from other allocators. It returns exactly
//! the addresses that `gen_pool` (`lib/genalloc.c`) of Linux 6.12 returns for the same calls, and
//! no state of the pool makes it slow.
//!
//! ```text
//!   MainPool ── one range, a lock, many threads       4G        ┌─ window of A ─┐      5G
//!     │                                                [///|######|##############|......]
//!     ├─ InstancePool A ── chunks of the main pool          └┬────┘└──────┬──────┘
//!     │    └─ GenPool ── chunks, newest first            chunk 2       chunk 1
//!     │         └─ Chunk ── one range                        ▲
//!     │              └─ the set of its free granules         └─ searched first
//!     └─ InstancePool B …
//!   ResourceTree ── who holds what, by name, as /proc/iomem prints it
//! ```
//!
//! # Terms
//!
//! They are genalloc's. A *granule* is the smallest unit of allocation, `1 << order` bytes. A
//! *chunk* is one contiguous range that was added to a pool; allocations never cross from one
//! chunk into another, and the newest chunk is searched first. *avail* is the number of free bytes.
//! The algorithms ([`Algo`]) are genalloc's five and *last fit*. From the multikernel code: an
//! *instance* has a *sub-pool* ([`InstancePool`]) made of chunks of the [`MainPool`].
//!
//! # The modules
//!
//! | module | what it has |
//! |---|---|
//! | [`range`] | [`AddrRange`], half-open and never empty, and what merges them |
//! | [`pool`] | [`GenPool`], the allocator itself, its algorithms and errors |
//! | [`main_pool`] | [`MainPool`], one range shared by many threads |
//! | [`instance`] | [`InstancePool`], a sub-pool that gives its chunks back, and drafts of it |
//! | [`resource`] | a tree of named ranges |
//! | [`map`] | a map from ranges to kinds |
//! | [`param`] | sizes and addresses as text, `mkkernel_pool=SIZE[@ADDR]` |
//! | `linux` | feature `linux`: Linux's own behaviour, quirk for quirk |
//!
//! # An example
//!
//! ```
//! use mkpool::{AddrRange, Algo, InstancePool, MainPool};
//! use mkpool::{instance::ChunkPolicy, main_pool::PAGE_ORDER, resource::ResourceTree};
//!
//! let range = AddrRange::with_size(4 << 30, 1 << 30)?;
//! let main = MainPool::new(range, PAGE_ORDER)?;
//! let mut web = InstancePool::create(&main, 1, 256 << 20, PAGE_ORDER, ChunkPolicy::Rfc)?;
//! let kernel = web.alloc(32 << 20, 2 << 20)?;
//!
//! // The highest free megabyte of the low half.
//! let low = AddrRange::with_size(4 << 30, 128 << 20)?;
//! let initramfs = web.alloc_within(1 << 20, Algo::LastFit, low)?;
//! assert_eq!(initramfs.end(), low.end());
//!
//! let mut tree = ResourceTree::new();
//! let root = tree.insert(None, range, "Multikernel Memory Pool")?;
//! let region = tree.insert(Some(root), web.regions()[0], "mk-instance-1-web-region-0")?;
//! tree.insert(Some(region), kernel, "kernel")?;
//! print!("{tree}");
//!
//! // Freeing what is not allocated is an error that names the range, and changes nothing.
//! web.free(kernel)?;
//! assert!(web.free(kernel).is_err());
//! // The instance's memory goes back when its pool is dropped.
//! drop(web);
//! assert_eq!(main.avail(), 1 << 30);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it costs
//!
//! With *n* granules in a chunk, whatever the fragmentation:
//!
//! | call | steps |
//! |---|---|
//! | first fit, last fit, [`Algo::At`], free, avail, longest free extent, adding a chunk of any size | O(log n) |
//! | best fit | O(log n), after a first one that indexes the free runs there are |
//! | aligned first fit and last fit | O(log n), after a first one *for each alignment* that looks once at every run |
//! | any of these inside a limit | O(log n), but best fit looks at every extent inside it |
//!
//! Indexing is one pass over the free runs of that moment. Afterwards every change keeps the index
//! right, which makes changes more expensive: pools that only do first fit do not pay. Up to 40
//! alignments are kept at once. With several chunks, the newest that has a long enough run is found
//! in O(log chunks); an alignment or a limit may rule it out, and then the next one is asked.
//!
//! # Why this structure
//!
//! Free space is a radix tree of nodes with 64 children each, over leaves of 4096 granules. A free
//! run belongs, with all its length, to the place where it begins; leaves and nodes exist only
//! where some run begins, so memory follows fragmentation. For each child a node keeps one number,
//! the longest run that begins in it. First fit goes down to the first child whose number is large
//! enough, and a change goes up for as long as it changes a number; nothing needs to be said about
//! runs that cross a border. A leaf is a list of up to 24 runs in two lines of the processor's
//! cache, or a bitmap with the longest run of each word, so memory never exceeds about 1.6 bitmaps.
//!
//! The other design that was built and measured is one balanced tree (a treap) of free extents,
//! each node knowing the longest extent below it. It has the same bounds in time, and is quicker
//! where it is almost empty, but a node takes 40 bytes, and there can be one for every second
//! granule: 336 MB for 64 GiB with every other page free, where this tree takes 3.3 MB. That
//! decided it; `docs/performance.md` of the project has all numbers.
//!
//! # Features
//!
//! `std` (default) makes the main pool's lock a `std::sync::Mutex`; without it the crate is
//! `no_std` + `alloc` and the lock spins. `linux` adds the module `linux`. `serde` makes ranges,
//! algorithms, policies and parameters serializable (and brings in `std`). There is no `unsafe` code.

#![no_std]
#![forbid(unsafe_code)]
#![warn(clippy::arithmetic_side_effects)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, reason = "tests may panic")
)]

extern crate alloc;
#[cfg(any(feature = "std", loom, test))]
extern crate std;

// In the order in which they import each other.
pub mod range;

pub mod map;
pub mod param;
pub mod resource;

mod error;

mod free_set;

mod chunk;
mod ranking;

mod chunks;
mod fit;

pub mod pool;

mod lock;

pub mod main_pool;

mod draft;
pub mod instance;

#[cfg(feature = "linux")]
pub mod linux;

pub use instance::InstancePool;
pub use main_pool::MainPool;
pub use pool::{Algo, GenPool};
pub use range::AddrRange;

/// The README's example is a test as well.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
