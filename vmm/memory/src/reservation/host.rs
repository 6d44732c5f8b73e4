//! Checks that the host has the memory that a pool requires.

use std::fs;

use crate::reservation::backing::Backing;
use crate::reservation::error::ReservationError;

impl Backing {
    /// Returns the bytes of free pages of this kind; `None` if the kernel does
    /// not tell.
    pub fn free(self) -> Option<u64> {
        if self.is_hugetlb() {
            let dir = format!(
                "/sys/kernel/mm/hugepages/hugepages-{}kB",
                self.page_size() >> 10
            );
            let read = |file| {
                fs::read_to_string(format!("{dir}/{file}"))
                    .ok()?
                    .trim()
                    .parse::<u64>()
                    .ok()
            };
            // Pages that others have reserved are free, but not available to
            // us.
            let free = read("free_hugepages")?.saturating_sub(read("resv_hugepages")?);
            free.checked_mul(self.page_size())
        } else {
            parse_mem_available(&fs::read_to_string("/proc/meminfo").ok()?)
        }
    }

    /// Checks that the host can provide a pool of this size now.
    ///
    /// A reservation is a promise, so it is checked against the free memory
    /// (`MemAvailable`: what the kernel can provide without swapping), although
    /// ordinary pages are allocated lazily.
    ///
    /// # Errors
    /// Returns [`ReservationError::TooLarge`] with both numbers, or
    /// [`ReservationError::NoThp`] if huge pages of this kind are disabled.
    pub fn check_host_can_give(self, requested: u64) -> Result<(), ReservationError> {
        if self == Self::Thp && !shmem_thp_is_on() {
            return Err(ReservationError::NoThp);
        }
        // The kernel has no free hugetlb pages of a size that it does not
        // support.
        let none = if self.is_hugetlb() { Some(0) } else { None };
        match self.free().or(none) {
            Some(available) if requested > available => Err(ReservationError::TooLarge {
                requested,
                available,
                backing: self,
            }),
            _ => Ok(()),
        }
    }
}

/// Returns `MemAvailable` of `/proc/meminfo` in bytes; `None` if there is no
/// such line, in which case nothing is refused.
fn parse_mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Returns the active setting of a file such as `always [madvise] never`.
pub fn chosen(setting: &str) -> Option<&str> {
    setting
        .split_whitespace()
        .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

/// Returns whether the kernel uses huge pages for shared memory on request.
pub fn shmem_thp_is_on() -> bool {
    fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
        .is_ok_and(|text| !matches!(chosen(&text), None | Some("never" | "deny")))
}

/// Raises the soft limit of open files to the hard limit: each guest needs a
/// few, and the usual soft limit of 1,024 would only allow about 200 guests.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::warn!("the limit of open files cannot be raised: {error}");
    }
}

/// Makes the table of open files as long as thousands of guests need it. In a
/// process with several threads every growth waits until all processors have noticed,
/// 5 to 10 ms each time; before there are others it waits for nobody.
pub fn reserve_descriptor_table() {
    /// Guests need nine each; the table takes eight bytes an entry.
    const LEN: u64 = 32_768;
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(LEN);
    let Ok(last) = i32::try_from(LEN.min(limit).saturating_sub(1)) else {
        return;
    };
    // It fails if there is no memory; the table grows later then.
    drop(rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), last));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_kib() {
        let text = "MemTotal:       100 kB\nMemAvailable:    42 kB\n";
        assert_eq!(parse_mem_available(text), Some(42 * 1024));
        assert_eq!(parse_mem_available("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn the_setting_in_effect_is_the_one_in_brackets() {
        assert_eq!(chosen("always within_size [advise] never"), Some("advise"));
        assert_eq!(chosen("nothing chosen"), None);
    }

    #[test]
    fn more_than_the_host_has_is_refused() {
        for kind in [
            Backing::Normal,
            Backing::Thp,
            Backing::Hugetlb2M,
            Backing::Hugetlb1G,
        ] {
            Backing::check_host_can_give(kind, 1 << 60).unwrap_err();
        }
    }
}
