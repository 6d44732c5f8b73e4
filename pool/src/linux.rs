//! Linux's own behaviour, including its quirks: the reference for recorded results of the real
//! code.
//!
//! Feature `linux`, off by default. [`GenPool`] is `gen_pool` of `lib/genalloc.c` in Linux 6.12,
//! [`Instance`] the memory code of the multikernel RFC on top of it, and [`memparse`] and
//! [`parse_pool_param`] parse what a kernel command line contains. They share the free set and the
//! order of chunks with the rest of the crate and differ in what they accept:
//!
//! | Linux | [`crate::GenPool`] and the others |
//! |---|---|
//! | chunks may overlap, wrap, be unaligned, start at 0 | are refused |
//! | granules that are aligned relative to an unaligned chunk | chunks start at a multiple of the granule |
//! | `align` is a C `int` and need not be a power of two | any power of two |
//! | `fixed` takes an offset into each chunk | [`crate::Algo::At`] takes an address |
//! | address 0 means failure, even if something was allocated | is never allocated |
//! | an instance may get chunks without a whole granule | no chunk is smaller than the granule |
//! | numbers wrap, junk after an address is ignored | are refused |
//!
//! Where Linux stops the machine (`BUG`) these return an error and change nothing.
//!
//! ```
//! use mkpool::linux::{Algo, GenPool};
//! let mut pool = GenPool::create(12)?;
//! pool.add(0x10_0800, 1 << 20);
//! assert_eq!(pool.alloc(1), Some(0x10_0800));
//! // An `int` of 0 after truncation: nothing is aligned to that.
//! assert_eq!(pool.alloc_algo(1, Algo::FirstFitAlign { align: 1 << 32 }), None);
//! pool.free(0x10_0800, 1)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod fit;
mod instance;
mod pool;

pub use fit::Algo;
pub use instance::Instance;
pub use pool::GenPool;

pub use crate::param::{memparse, parse_linux as parse_pool_param};

#[cfg(test)]
#[path = "linux_tests.rs"]
mod tests;
