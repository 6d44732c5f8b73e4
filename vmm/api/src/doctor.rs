//! What a host can do.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a host can do for mkvmm, as `mkvmm doctor` found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Findings {
    /// Whether `/dev/kvm` opens and has all that mkvmm needs.
    pub kvm: Answer,
    /// The module behind it: `kvm_intel`, `kvm_amd`, `kvm_pvm`, …; absent
    /// where that cannot be told.
    pub kvm_kind: Option<String>,
    /// Whether guests of mkvmm's own run.
    pub probe: Answer,
    /// Whether an unmodified Linux kernel would run.
    pub linux: Answer,
    /// Bits of a guest-physical address, where KVM is there.
    pub address_bits: Option<u32>,
    /// Memory slots a guest may have: its regions and the low window.
    pub memory_slots: Option<usize>,
    /// vCPUs that KVM gives to one guest.
    pub max_vcpus: Option<usize>,
    /// What the host can make a pool of.
    pub offers: Offers,
}

/// Yes, or no and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Answer {
    /// Yes or no.
    pub ok: bool,
    /// The reason, where `ok` is false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Answer {
    /// Returns a yes.
    pub fn yes() -> Self {
        Self {
            ok: true,
            why: None,
        }
    }

    /// Returns a no, and why.
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

/// Free pages of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Pages {
    /// The kind, as `--backing` names it.
    pub backing: String,
    /// Bytes of a page.
    pub page_size: u64,
    /// Bytes that a pool could have now; `None` where the kernel does not say.
    pub free: Option<u64>,
}

/// What the host offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Offers {
    /// By kind of page.
    pub pages: Vec<Pages>,
    /// `transparent_hugepage/shmem_enabled`: `--backing thp` needs more than `never`.
    pub shmem_thp: Option<String>,
    /// NUMA nodes, for `--numa-node`.
    pub numa_nodes: Vec<u32>,
    /// Descriptors a process may have (hard limit); each guest takes a handful.
    pub max_open_files: Option<u64>,
    /// Bytes a process may lock in memory, for `--lock`; `None` is no limit.
    pub max_locked: Option<u64>,
    /// Release of the host's kernel.
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
