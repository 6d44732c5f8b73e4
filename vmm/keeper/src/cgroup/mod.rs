//! Accounting and limits per guest: finds the host's cgroups, creates one leaf
//! for each guest, and reads what its process used.
//!
//! Hosts have cgroup v2 alone, v1 controllers alone, or v1 controllers beside a
//! v2 hierarchy without controllers. So each resource is looked up where it is
//! available:
//!
//! | resource | v2 | v1 | without a cgroup |
//! |---|---|---|---|
//! | CPU time | `cpu.stat`, `usage_usec` | `cpuacct.usage` | `/proc/PID/stat`, in ticks |
//! | memory | `memory.current` | `memory.usage_in_bytes` | `/proc/PID/smaps_rollup` (PSS), else `/proc/PID/statm` (resident, shared pages in full) |
//!
//! - **Pages are charged to the cgroup that first touches them.** A worker is
//!   moved before it touches its guest's memory; memory that a cleaner
//!   populated beforehand is charged to the cleaner's cgroup, never to the
//!   guest's.
//! - **v2 enables controllers for the children of a cgroup only if it contains
//!   no process itself** (except the root). In a delegated unit the manager
//!   therefore has to be in a child cgroup of its own; otherwise leaves still
//!   account for CPU time but support no limits, and the error says so.
//! - **Moving a process waits for the kernel's grace periods**, 10 to 30 ms for
//!   each hierarchy; starting it in a v2 leaf ([`Leaf::birthplace`]) does not.
//!   Creating and removing leaves takes about 0.1 ms.
//! - A leaf is removed when it is dropped, once its last process is gone;
//!   leaves of a process that was killed are removed by the next one
//!   ([`remove_stale`]).
//!
//! Tests: the unit tests beside these files use texts; `tests/children` uses
//! the real hierarchies of the host.

mod controller;
mod error;
mod leaf;
mod locate;
mod stale;
mod usage;

pub use controller::Controller;
pub use error::CgroupError;
pub use leaf::{Leaf, ResourceLimits, keep_leaves, name_after};
pub use locate::{Base, Cgroups};
pub use stale::remove_stale;
pub use usage::{
    CpuSource, CpuTime, Memory, MemorySource, private_memory, process_cpu_time, process_memory,
    process_state,
};

#[cfg(test)]
mod tests;
