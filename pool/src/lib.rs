//! Allocates address space: guest memory, physical ranges, device windows.
//!
//! A pool never touches the memory itself and knows nothing of files, KVM or Linux: it takes
//! numbers and returns numbers. Two properties distinguish it from other allocators. It returns
//! exactly the addresses that `gen_pool` (`lib/genalloc.c`) of Linux 6.12 returns for the same
//! calls, and no state of the pool makes it slow.
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
//! | module | contents |
//! |---|---|
//! | [`range`] | [`AddrRange`], half-open and never empty, and a function that merges them |
//! | [`pool`] | [`GenPool`], the allocator itself, its algorithms and errors |
//! | [`main_pool`] | [`MainPool`], one range shared by many threads |
//! | [`instance`] | [`InstancePool`], a sub-pool that frees its chunks, and its drafts |
//! | [`resource`] | a tree of named ranges |
//! | [`map`] | a map from ranges to kinds |
//! | [`param`] | sizes and addresses as text, `mkkernel_pool=SIZE[@ADDR]` |
//! | `linux` | feature `linux`: Linux's own behaviour, including its quirks |
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
//! // The instance's memory is freed when its pool is dropped.
//! drop(web);
//! assert_eq!(main.avail(), 1 << 30);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it costs
//!
//! With *n* granules in a chunk, regardless of the fragmentation:
//!
//! | call | steps |
//! |---|---|
//! | first fit, last fit, [`Algo::At`], free, avail, longest free extent, adding a chunk of any size | O(log n) |
//! | best fit | O(log n), after a first one that indexes the existing free runs |
//! | aligned first fit and last fit | O(log n), after a first one *for each alignment* that visits every run once |
//! | any of these inside a limit | O(log n), but best fit visits every extent inside it |
//!
//! Indexing is one pass over the free runs of that moment. Afterwards every change updates the
//! index, which makes changes more expensive: pools that only do first fit do not pay for it. Up to
//! 40 alignments are indexed at once. With several chunks, the newest that has a long enough run is
//! found in O(log chunks); if an alignment or a limit rules it out, the next one is tried.
//!
//! # Why this structure
//!
//! Free space is a radix tree of nodes with 64 children each, over leaves of 4096 granules. A free
//! run belongs, with all its length, to the place where it begins; leaves and nodes exist only
//! where some run begins, so memory follows fragmentation. For each child a node stores one number,
//! the length of the longest run that begins in it. First fit descends to the first child whose
//! number is large enough, and a change ascends as long as it changes a number; runs that cross a
//! boundary need no special treatment. A leaf is a list of up to 24 runs in two cache lines, or a
//! bitmap with the longest run of each word, so memory never exceeds about 1.6 bitmaps.
//!
//! The alternative design that was built and measured is one balanced tree (a treap) of free
//! extents, in which each node stores the longest extent below it. It has the same time bounds, and
//! is quicker where it is almost empty, but a node takes 40 bytes, and there can be one for every
//! second granule: 336 MB for 64 GiB with every other page free, where this tree takes 3.3 MB. That
//! was decisive; `docs/performance.md` of the project has all numbers.
//!
//! # Features
//!
//! `std` (default) makes the main pool's lock a `std::sync::Mutex`; without it the crate is
//! `no_std` + `alloc` and the lock spins. `linux` adds the module `linux`. `serde` makes ranges,
//! algorithms, policies and parameters serializable (and enables `std`). There is no `unsafe` code.

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

// The modules are in the order in which they import each other.
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

/// Compiles the README's example as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
