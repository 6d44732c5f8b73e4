//! The pool of a host: its place, its backing, the owners of its parts, and the
//! placement of an instance's pieces.
//!
//! | module | what it knows |
//! |---|---|
//! | [`place`] | where a pool may lie in the address space of all guests |
//! | [`reservation`] | the kinds of memory that back the pool |
//! | [`memory_file`], [`pool_memory`] | the host memory behind the pool, as files with one owner each |
//! | [`cleaning`] | how memory is made to read as zero |
//! | [`placement`] | where the pieces of an instance go (pure) |
//! | [`host_pool`] | the ledger: allocator, resource tree and memory as one |
//! | [`e820`] | the memory map of an instance, computed from the ledger |

pub mod cleaning;
pub mod e820;
pub mod host_pool;
pub mod memory_file;
pub mod place;
pub mod placement;
pub mod pool_memory;
pub mod reservation;
