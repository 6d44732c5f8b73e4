//! What the host has to give to a pool: pages, nodes, limits.

use std::fmt;
use std::fs;

use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use utoipa::ToSchema;

use crate::reservation::backing::{Backing, chosen};

/// Free pages of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Pages {
    /// The kind, as `--backing` names it.
    pub backing: String,
    /// Bytes of a page.
    pub page_size: u64,
    /// Bytes that a pool could have now; `None` where the kernel does not say.
    pub free: Option<u64>,
}

/// What the host offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
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

/// Looks.
pub fn look() -> Offers {
    let kinds = [Backing::Normal, Backing::Hugetlb2M, Backing::Hugetlb1G];
    let read = |path: &str| fs::read_to_string(path).ok();
    let thp = read("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    Offers {
        pages: kinds
            .into_iter()
            .map(|backing| Pages {
                backing: backing.to_string(),
                page_size: backing.page_size(),
                free: backing.free(),
            })
            .collect(),
        shmem_thp: thp.as_deref().and_then(chosen).map(str::to_owned),
        numa_nodes: numa_nodes(),
        max_open_files: getrlimit(Resource::Nofile).maximum,
        max_locked: getrlimit(Resource::Memlock).current,
        kernel: read("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
    }
}

fn numa_nodes() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/sys/devices/system/node") else {
        return Vec::new();
    };
    let number = |name: &str| name.strip_prefix("node")?.parse().ok();
    let mut nodes: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| number(entry.file_name().to_str()?))
        .collect();
    nodes.sort_unstable();
    nodes
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_page_is_listed() {
        let offers = look();
        let sizes: Vec<u64> = offers.pages.iter().map(|p| p.page_size).collect();
        assert_eq!(sizes, [4096, 2 << 20, 1 << 30]);
        let text = offers.to_string();
        assert!(text.contains("hugetlb-2M pages:"), "{text}");
    }
}
