//! The cgroup controllers used for accounting and limiting guests.

use std::fmt;

/// A controller that accounts for or limits a resource of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    /// Limits CPU time; also accounts for it under v2.
    Cpu,
    /// Accounts for CPU time under v1.
    CpuAcct,
    /// Accounts for memory and limits it.
    Memory,
    /// Limits the number of threads.
    Pids,
}

impl Controller {
    /// All controllers for which leaves are created.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::CpuAcct, Self::Memory, Self::Pids];

    /// Returns the kernel's name of the controller.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::CpuAcct => "cpuacct",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
