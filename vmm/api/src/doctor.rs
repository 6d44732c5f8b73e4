//! The findings about a host.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a host supports, as found by `mkvmm doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Findings {
    /// Whether `/dev/kvm` can be opened and has every feature that mkvmm needs.
    pub kvm: Answer,
    /// The kernel module behind it: `kvm_intel`, `kvm_amd`, `kvm_pvm`, …;
    /// absent if unknown.
    pub kvm_kind: Option<String>,
    /// Whether mkvmm's own test guests run.
    pub probe: Answer,
    /// Whether an unmodified Linux kernel would run.
    pub linux: Answer,
    /// The number of bits of a guest-physical address, if KVM is available.
    pub address_bits: Option<u32>,
    /// The number of memory slots that a guest may have, including the low
    /// window.
    pub memory_slots: Option<usize>,
    /// The maximum number of vCPUs of a guest.
    pub max_vcpus: Option<usize>,
    /// The resources that the host offers for a pool.
    pub offers: Offers,
}

/// An answer of yes, or of no with a reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Answer {
    /// True if the answer is yes.
    pub ok: bool,
    /// The reason, if the answer is no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Answer {
    /// Creates a positive answer.
    pub fn yes() -> Self {
        Self {
            ok: true,
            why: None,
        }
    }

    /// Creates a negative answer with its reason.
    pub fn no(why: impl Into<String>) -> Self {
        Self {
            ok: false,
            why: Some(why.into()),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            None => f.write_str("yes"),
            Some(why) => write!(f, "no: {why}"),
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<18}{}", "/dev/kvm:", self.kvm)?;
        let kind = self.kvm_kind.as_deref().unwrap_or("unknown");
        writeln!(f, "{:<18}{kind}", "kind of KVM:")?;
        for (label, number) in [
            ("address bits:", self.address_bits.map(u64::from)),
            ("memory slots:", self.memory_slots.map(|n| n as u64)),
            ("vCPUs per guest:", self.max_vcpus.map(|n| n as u64)),
        ] {
            if let Some(number) = number {
                writeln!(f, "{label:<18}{number}")?;
            }
        }
        writeln!(f, "{:<18}{}", "probe guests:", self.probe)?;
        writeln!(f, "{:<18}{}", "unmodified Linux:", self.linux)?;
        self.offers.fmt(f)
    }
}

/// The free pages of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Pages {
    /// The kind, as `--backing` names it.
    pub backing: String,
    /// The size of a page in bytes.
    pub page_size: u64,
    /// The number of bytes available for a pool now; `None` if the kernel does
    /// not tell.
    pub free: Option<u64>,
}

/// The resources that the host offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Offers {
    /// The available pages of each kind.
    pub pages: Vec<Pages>,
    /// The value of `transparent_hugepage/shmem_enabled`; with `never`,
    /// `--backing thp` has no effect.
    pub shmem_thp: Option<String>,
    /// The numbers of the NUMA nodes, for `--numa-node`.
    pub numa_nodes: Vec<u32>,
    /// The hard limit on open files of a process; each guest takes a few.
    pub max_open_files: Option<u64>,
    /// The number of bytes that a process may lock, for `--lock`; `None` if
    /// unlimited.
    pub max_locked: Option<u64>,
    /// The release of the host's kernel.
    pub kernel: Option<String>,
}

impl fmt::Display for Offers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for pages in &self.pages {
            let label = format!("{} pages:", pages.backing);
            match pages.free {
                Some(free) => writeln!(f, "{label:<18}{} MiB free", free >> 20)?,
                None => writeln!(f, "{label:<18}unknown")?,
            }
        }
        let thp = self.shmem_thp.as_deref().unwrap_or("unknown");
        writeln!(f, "{:<18}{thp}", "thp (shmem):")?;
        let nodes: Vec<String> = self.numa_nodes.iter().map(u32::to_string).collect();
        writeln!(f, "{:<18}{}", "NUMA nodes:", nodes.join(" "))?;
        writeln!(f, "{:<18}{}", "open files:", limit(self.max_open_files))?;
        let locked = self.max_locked.map(|bytes| bytes >> 10);
        writeln!(f, "{:<18}{} KiB", "locked memory:", limit(locked))?;
        let kernel = self.kernel.as_deref().unwrap_or("unknown");
        writeln!(f, "{:<18}{kernel}", "host kernel:")
    }
}

fn limit(value: Option<u64>) -> String {
    value.map_or_else(|| "unlimited".to_owned(), |n| n.to_string())
}
