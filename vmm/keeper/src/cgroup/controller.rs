//! The controllers that guests are accounted and limited by.

use std::fmt;

/// A controller that accounts or limits what a guest uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    /// CPU time limits; accounting as well under v2.
    Cpu,
    /// CPU time accounting of v1.
    CpuAcct,
    /// Memory use, accounted and limited.
    Memory,
    /// Number of threads.
    Pids,
}

impl Controller {
    /// All controllers that leaves are made for.
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
