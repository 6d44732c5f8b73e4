//! Linux's `gen_pool`, address for address, at logarithmic cost.
//!
//! A pool hands out pieces of address space. It never touches the memory itself and knows
//! nothing of files, of KVM or of Linux: give it numbers, and it gives back numbers. What makes
//! it more than another allocator is that it answers exactly as `lib/genalloc.c` of Linux 6.12
//! does, every algorithm and, on request, every quirk, and that no state of the pool makes it
//! slow.
//!
//! ```text
//!   MainPool ── one range, a lock, first fit           4G        ┌─ window of A ─┐      5G
//!     │                                                [///|######|##############|......]
//!     ├─ InstancePool A ── chunks of the main pool          └┬────┘└──────┬──────┘
//!     │    └─ GenPool ── chunks, newest first            chunk 2       chunk 1
//!     │         └─ Chunk ── one span                         ▲
//!     │              └─ FreeSet ── which granules            └─ searched first
//!     └─ InstancePool B …
//!   ResourceTree ── who holds what, by name, as /proc/iomem prints it
//! ```
//!
//! # Words
//!
//! They are genalloc's. A *granule* is the smallest piece, `1 << min_alloc_order` bytes. A
//! *chunk* is one contiguous span that was added to a pool; allocations never cross from one
//! into another, and the newest is searched first. *avail* is what is free, in bytes. The
//! algorithms ([`Algo`]) are *first fit*, *first fit align*, *first fit order align*, *best fit*
//! and *fixed*. From the multikernel code: an *instance* has a *sub-pool* ([`InstancePool`])
//! made of chunks of the [`MainPool`].
//!
//! # An example
//!
//! ```
//! use mkpool::{AddrRange, ChunkPolicy, InstancePool, MainPool, PAGE_ORDER, ResourceTree};
//!
//! let range = AddrRange::with_size(4 << 30, 1 << 30)?;
//! let main = MainPool::new(range, PAGE_ORDER)?;
//! let mut web = InstancePool::create(&main, 1, 256 << 20, PAGE_ORDER, ChunkPolicy::Rfc)?;
//! let kernel = web.alloc(32 << 20, 2 << 20)?;
//!
//! let mut tree = ResourceTree::new();
//! let root = tree.insert(None, range, "Multikernel Memory Pool")?;
//! let region = tree.insert(Some(root), web.regions()[0], "mk-instance-1-web-region-0")?;
//! tree.insert(Some(region), kernel, "kernel")?;
//! print!("{tree}");
//!
//! // Freeing what is not allocated is an error that names the range, and changes nothing.
//! assert!(web.free(kernel.end(), 4096).is_err());
//! web.free(kernel.start(), kernel.size())?;
//! web.destroy(&main)?;
//! assert_eq!(main.avail(), 1 << 30);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Strict and Linux
//!
//! [`Mode::Strict`], the default, refuses what cannot be right: chunks that overlap, are not
//! whole granules or start at address 0, alignments that are no power of two, pieces of an
//! instance below its granule. [`Mode::Linux`] does what Linux does, down to an `align` that is
//! a C `int`; it exists so that recorded results of the real code can be replayed. Where Linux
//! stops the machine (`BUG`) both modes return an error and change nothing.
//!
//! # What it costs
//!
//! With *n* granules in a chunk, whatever the fragmentation:
//!
//! | call | steps |
//! |---|---|
//! | first fit, fixed, free, `avail`, longest free extent, adding a chunk of any size | O(log n) |
//! | best fit | O(log n), after a first one that indexes the free runs there are |
//! | aligned and order-aligned first fit | O(log n), after a first one *for each alignment* that looks once at every run |
//! | Linux mode with an alignment that is no power of two | O(extents · log n) |
//!
//! Indexing is one pass over the free runs of that moment, and afterwards every change keeps
//! the index right, which makes changes dearer: pools that only do first fit do not pay. Up to
//! 40 alignments are kept at once. With several chunks, the newest that has a long enough run is
//! found in O(log chunks); with an alignment or a fixed place it may not do, and then the next
//! one is asked.
//!
//! # Why this structure
//!
//! Free space is a radix tree of nodes with 64 children each, over leaves of 4096 granules. A
//! free run belongs, with all its length, to the place where it begins; leaves and nodes are
//! there only where some run begins, so memory follows fragmentation. For each child a node keeps
//! one number, the longest run that begins in it. First fit goes down to the first child whose
//! number is large enough, and a change goes up for as long as it changes a number; nothing is to
//! be said about runs that cross a border. A leaf is a list of up to 24 runs in two lines of the
//! processor's cache, or a bitmap with the longest run of each word, so memory never exceeds
//! about 1.6 bitmaps. With what an algorithm asks for instead of the length (the room from an
//! aligned place on, the set of short lengths) the same tree answers for the others.
//!
//! The other design we built and measured is one balanced tree (a treap) of free extents, each
//! node knowing the longest extent below it. It has the same bounds in time, and is quicker
//! where there is next to nothing in it, but a node is 40 bytes, and there can be one for every
//! second granule:
//!
//! | 64 GiB pool, one run of `scripts/bench pool` (2 shared CPUs, AMD EPYC) | this tree | tree of extents |
//! |---|---|---|
//! | 4 KiB out of a fresh pool, and back: ns per call | 56 | 5 |
//! | 4 KiB to 4 MiB at 90 % full: ns per call | 95 | 301 |
//! | every other page free, 1 MiB at the end: ns per pair | 198 | 249 |
//! | bytes of metadata at 90 % full | 668,432 | 657,408 |
//! | bytes of metadata with every other page free | 3,298,952 | 335,544,320 |
//!
//! The hundredfold memory in the worst case decided it.
//!
//! # Features
//!
//! `std` (default) makes the main pool's lock a `std::sync::Mutex`; without it the crate is
//! `no_std` + `alloc` and the lock spins. There is no `unsafe` either way.

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

mod chunk;
mod draft;
mod error;
mod fit;
mod free_set;
mod lock;
mod main_pool;
mod map;
mod param;
mod pool;
mod range;
mod ranking;
mod resource;
mod sub_pool;

pub use chunk::Chunk;
pub use draft::{Draft, StaleDraft};
pub use error::{AllocError, Busy, FreeError, PoolError};
pub use fit::{Algo, Mode};
pub use main_pool::{MainPool, PAGE_ORDER};
pub use map::{MemoryMap, OverlapError};
pub use param::{ParamError, ParamMode, PoolParam, memparse, parse_addr, parse_size};
pub use pool::GenPool;
pub use range::{AddrRange, RangeError, merge_adjacent};
pub use resource::{Resource, ResourceError, ResourceId, ResourceTree};
pub use sub_pool::{ChunkPolicy, CreateError, DestroyError, InstancePool};

/// The README's example is a test as well.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
