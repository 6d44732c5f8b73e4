//! Linux's gen_pool behaviour (work in progress).
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
mod error;
mod fit;
mod free_set;
mod lock;
mod main_pool;
mod map;
mod param;
mod pool;
mod range;
mod resource;
mod sub_pool;

pub use chunk::Chunk;
pub use error::{AllocError, Busy, FreeError, PoolError};
pub use fit::{Algo, Mode};
pub use main_pool::{MainPool, PAGE_ORDER};
pub use map::{MemoryMap, OverlapError};
pub use param::{ParamError, ParamMode, PoolParam, memparse, parse_addr, parse_size};
pub use pool::GenPool;
pub use range::{AddrRange, RangeError, merge_adjacent};
pub use resource::{Resource, ResourceError, ResourceId, ResourceTree};
pub use sub_pool::{ChunkPolicy, CreateError, DestroyError, InstancePool};
