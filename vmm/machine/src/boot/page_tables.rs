//! The identity map on which a 64-bit kernel starts.
//!
//! The 64-bit boot protocol requires the kernel, boot_params and the command
//! line to be identity-mapped. Only the given ranges are mapped, in 2 MiB pages
//! (which every processor supports, unlike 1 GiB pages), so a kernel that
//! accesses anything else faults at once.
//!
//! Source: Intel SDM volume 3A, section 4.5 (4-level paging).

use std::collections::BTreeMap;

use mkpool::AddrRange;

use mkvmm_base::layout::{PAGE_SIZE, PAGE_TABLES_END, PAGE_TABLES_START};
use mkvmm_base::{Class, Diagnose};

/// The page-table entry flags present and writable.
const PRESENT_WRITABLE: u64 = 0x3;
/// The page-directory entry flag of a 2 MiB page.
const LARGE_PAGE: u64 = 0x80;
/// The base-2 logarithm of the size that one entry covers, for PML4, PDPT and
/// page directory.
const PML4_SHIFT: u32 = 39;
const PDPT_SHIFT: u32 = 30;
const PD_SHIFT: u32 = 21;
/// The highest address (exclusive) that 4-level tables can identity-map: the
/// lower half of the canonical address space.
const IDENTITY_LIMIT: u64 = 1 << 47;

/// A reason why no identity map could be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageTableError {
    /// The ranges need more page tables than there is space for.
    #[error("the identity map of the boot images needs {needed} page tables (limit: {room})")]
    NoRoom {
        /// The number of pages that the tables need.
        needed: u64,
        /// The number of pages between `PAGE_TABLES_START` and
        /// `PAGE_TABLES_END`.
        room: u64,
    },
    /// A range lies above the addresses that 4-level paging can identity-map.
    #[error("{range:?} lies above the {IDENTITY_LIMIT:#x} that 4-level paging can identity-map")]
    TooHigh {
        /// The range that lies too high.
        range: AddrRange,
    },
}

impl Diagnose for PageTableError {
    fn class(&self) -> Class {
        Class::NoRoom
    }
}

/// Builds tables for `ranges`. The first page is the PML4; CR3 is
/// [`PAGE_TABLES_START`].
///
/// # Errors
/// Returns a [`PageTableError`] with the numbers.
pub fn build(ranges: &[AddrRange]) -> Result<Vec<[u64; 512]>, PageTableError> {
    let mut tables = Tables::new();
    for &range in ranges {
        if range.last() >= IDENTITY_LIMIT {
            return Err(PageTableError::TooHigh { range });
        }
        tables.map(range);
    }
    let needed = tables.pages.len() as u64;
    let room = (PAGE_TABLES_END - PAGE_TABLES_START) / PAGE_SIZE;
    if needed > room {
        return Err(PageTableError::NoRoom { needed, room });
    }
    Ok(tables.pages)
}

/// The tables under construction.
struct Tables {
    pages: Vec<[u64; 512]>,
    /// Maps (level shift, address >> shift) of a table's parent entry to its
    /// page.
    index: BTreeMap<(u32, u64), usize>,
}

impl Tables {
    fn new() -> Self {
        Self {
            pages: vec![[0; 512]],
            index: BTreeMap::new(),
        }
    }

    fn map(&mut self, range: AddrRange) {
        for large in (range.start() >> PD_SHIFT)..=(range.last() >> PD_SHIFT) {
            let address = large << PD_SHIFT;
            let pdpt = self.child(0, PML4_SHIFT, address);
            let pd = self.child(pdpt, PDPT_SHIFT, address);
            self.pages[pd][entry(PD_SHIFT, address)] = address | PRESENT_WRITABLE | LARGE_PAGE;
        }
    }

    /// Returns the table below `table`'s entry for `address`, creating it if
    /// necessary.
    fn child(&mut self, table: usize, shift: u32, address: u64) -> usize {
        if let Some(&page) = self.index.get(&(shift, address >> shift)) {
            return page;
        }
        let page = self.pages.len();
        self.pages.push([0; 512]);
        self.pages[table][entry(shift, address)] =
            (PAGE_TABLES_START + page as u64 * PAGE_SIZE) | PRESENT_WRITABLE;
        self.index.insert((shift, address >> shift), page);
        page
    }
}

/// Returns the index into a table of the level with this `shift`: 9 bits.
fn entry(shift: u32, address: u64) -> usize {
    // The value 0x1ff fits every usize.
    usize::try_from(address >> shift & 0x1ff).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Translates an address by walking the tables, as the processor does.
    fn translate(tables: &[[u64; 512]], address: u64) -> Option<u64> {
        let mut table = 0;
        for shift in [PML4_SHIFT, PDPT_SHIFT] {
            let e = tables[table][entry(shift, address)];
            if e & 1 == 0 {
                return None;
            }
            table = usize::try_from(((e & !0xfff) - PAGE_TABLES_START) / PAGE_SIZE).unwrap();
        }
        let e = tables[table][entry(PD_SHIFT, address)];
        (e & 1 == 1).then_some((e & !0x1f_ffff) | (address & 0x1f_ffff))
    }

    fn range(start: u64, size: u64) -> AddrRange {
        AddrRange::with_size(start, size).unwrap()
    }

    #[test]
    fn every_named_address_maps_to_itself_and_nothing_else_is_mapped() {
        let ranges = [
            range(0, 1 << 20),
            range(0x1_3fe0_0000, 0x60_0000),
            range(0x80_0000_0000, 0x1000),
        ];
        let tables = build(&ranges).unwrap();
        for r in ranges {
            for address in [r.start(), r.start() + r.size() / 2, r.last()] {
                assert_eq!(translate(&tables, address), Some(address));
            }
        }
        assert_eq!(translate(&tables, 0x20_0000), None);
        assert_eq!(translate(&tables, 0x1_4060_0000), None);
        assert_eq!(translate(&tables, 0xc0_0000_0000), None);
    }

    #[test]
    fn too_many_gigabytes_are_refused_with_the_numbers() {
        let wide = range(0x1_0000_0000, 40 << 30);
        assert_eq!(
            build(&[wide]),
            Err(PageTableError::NoRoom {
                needed: 42,
                room: 23
            })
        );
        let high = range(1 << 47, 4096);
        assert_eq!(build(&[high]), Err(PageTableError::TooHigh { range: high }));
    }
}
