//! Finds what the host offers for a pool: pages, nodes and limits.

use std::fs;

use mkvmm_api::doctor::{Offers, Pages};
use mkvmm_memory::reservation::backing::Backing;
use mkvmm_memory::reservation::host::chosen;
use rustix::process::{Resource, getrlimit};

/// Examines the host's resources other than KVM.
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
