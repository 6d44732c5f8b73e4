//! What it means that the host cannot give the pool.

use mkvmm_base::{Class, Diagnose};

use super::ReservationError;

impl Diagnose for ReservationError {
    fn class(&self) -> Class {
        match self {
            Self::NoNode { .. } | Self::NoThp => Class::Invalid,
            Self::TooLarge { .. }
            | Self::AddressSpace { .. }
            | Self::Map { .. }
            | Self::Prealloc { .. }
            | Self::Lock { .. } => Class::NoRoom,
            _ => Class::VmmFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::TooLarge {
                available,
                backing,
                requested,
            } if backing.is_hugetlb() => {
                let pages = requested.div_ceil(backing.page_size());
                format!(
                    "{} free; {pages} pages are needed: write a number to \
                     /sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages",
                    available / backing.page_size(),
                    backing.page_size() >> 10
                )
            }
            Self::TooLarge { available, .. } => format!("at most {}M fit now", available >> 20),
            Self::NoThp => "write `advise` to /sys/kernel/mm/transparent_hugepage/shmem_enabled, \
                            or omit --backing thp"
                .to_owned(),
            Self::Lock { .. } => {
                "raise the limit of locked memory (ulimit -l), or omit --lock".to_owned()
            }
            _ => return None,
        })
    }
}
