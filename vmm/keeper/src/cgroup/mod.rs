//! Accounting and limits per guest: which cgroups there are, one leaf for
//! each guest, and what its process used.
//!
//! Hosts have cgroup v2 alone, v1 controllers alone, or v1 controllers beside
//! a v2 tree that holds none. So each resource is looked for where it is:
//!
//! | resource | v2 | v1 | without a cgroup |
//! |---|---|---|---|
//! | CPU time | `cpu.stat`, `usage_usec` | `cpuacct.usage` | `/proc/PID/stat`, in ticks |
//! | memory | `memory.current` | `memory.usage_in_bytes` | `/proc/PID/smaps_rollup` (PSS), else `/proc/PID/statm` (resident, shared pages in full) |
//!
//! - **Pages are charged to whoever touches them first.** A worker is moved
//!   before it touches its guest's memory; memory that a cleaner populated
//!   beforehand is charged to the cleaner's cgroup, never to the guest's.
//! - **v2 gives controllers to the children of a cgroup only where it holds no
//!   process itself** (the root excepted). In a delegated unit the manager
//!   therefore has to sit in a child of its own; where it does not, leaves
//!   still account CPU time but take no limits, and the error says so.
//! - **Moving a process waits for the kernel's grace periods**, 10 to 30 ms for
//!   each hierarchy; one that is born in a leaf of v2 ([`Leaf::birthplace`]) does
//!   not. Making and removing leaves takes some 0.1 ms.
//! - A leaf is removed when it is dropped, once its last process is gone; what
//!   a process that was killed has left, its next one removes ([`remove_stale`]).
//!
//! Tests: the unit tests beside these files, from texts; `tests/children` on
//! the real trees of the host.

mod controller;
mod error;
mod leaf;
mod locate;
mod stale;
mod usage;

pub use controller::Controller;
pub use error::CgroupError;
pub use leaf::{Leaf, ResourceLimits};
pub use locate::{Base, Cgroups};
pub use stale::remove_stale;
pub use usage::{
    CpuSource, CpuTime, Memory, MemorySource, private_memory, process_cpu_time, process_memory,
};

#[cfg(test)]
mod tests;
