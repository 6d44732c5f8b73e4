//! Access to physical memory by address.
//!
//! Virtual addresses equal physical ones. Pages are mapped on first use, by 1
//! GiB if the processor supports it and by 2 MiB otherwise, into tables in our
//! own user-accessible bss: adding an entry that was not present needs neither
//! ring 0 nor a TLB flush. When the tables are used up, the mappings are
//! dropped and created again on demand, so that few tables suffice however
//! large and scattered the pool is.

// UNSAFETY: a kernel accesses physical memory by address.
#![expect(unsafe_code, reason = "physical memory by address")]

use core::arch::asm;
use core::arch::x86_64::_rdtsc;
use core::sync::atomic::AtomicU64;

use crate::entry;
use crate::pure::range::Range;
use crate::service::{self, cpuid};

pub const PAGE: u64 = 4096;
const PAGE_2M: u64 = 2 << 20;
/// The flags of a table: present, writable, user.
const TABLE: u64 = 0x7;
/// The flags of an entry that maps a page itself: present, writable, user, page
/// size.
const LARGE_PAGE: u64 = 0x87;

pub struct Memory {
    page_tables: u64,
    next_table: u64,
    /// The index of the first table that may be reused.
    first_spare: u64,
    /// The range of the probe itself.
    pub image: Range,
    huge_pages: bool,
    /// The first address beyond those of the processor.
    limit: u64,
}

impl Memory {
    pub fn new(page_tables: u64, next_table: u64, image: Range) -> Self {
        let extended = cpuid(0x8000_0000).eax;
        let huge_pages = cpuid(0x8000_0001).edx & (1 << 26) != 0;
        let width = match extended {
            0x8000_0008.. => cpuid(0x8000_0008).eax & 0xff,
            _ => 36,
        };
        Self {
            page_tables,
            next_table,
            first_spare: next_table,
            image,
            huge_pages,
            // Half of the virtual addresses is available: 47 bits.
            limit: 1 << width.min(47),
        }
    }

    /// Returns the last page of our bss that has not been touched yet.
    pub fn untouched(&self) -> Range {
        let end = self.tables_end();
        Range {
            start: end - PAGE,
            end,
        }
    }

    fn tables_end(&self) -> u64 {
        self.page_tables + entry::PAGE_TABLES as u64 * PAGE
    }

    /// Makes the current mappings permanent.
    pub fn keep(&mut self) {
        self.first_spare = self.next_table;
    }

    /// Makes `range` accessible until the next call. Returns false if the
    /// processor has no such address or the range is too large for our tables.
    pub fn map(&mut self, range: Range) -> bool {
        range.end <= self.limit
            && (self.try_map(range) || {
                self.drop_mappings();
                self.try_map(range)
            })
    }

    fn try_map(&mut self, range: Range) -> bool {
        (range.start & !(PAGE_2M - 1)..range.end)
            .step_by(PAGE_2M as usize)
            .all(|at| self.map_one(at))
    }

    /// Empties the spare tables and removes them from the permanent ones.
    fn drop_mappings(&mut self) {
        let spare = self.first_spare..self.tables_end();
        for slot in (self.page_tables..self.next_table).step_by(8) {
            let entry = load(slot);
            // Writes to live tables may be slow, so write only where an entry
            // is present.
            let points_to_spare =
                entry & LARGE_PAGE == TABLE && spare.contains(&(entry & !(PAGE - 1)));
            if entry != 0 && (slot >= spare.start || points_to_spare) {
                store(slot, 0);
            }
        }
        self.next_table = spare.start;
        service::flush();
    }

    fn map_one(&mut self, addr: u64) -> bool {
        let mut table = self.page_tables;
        for shift in [39, 30, 21] {
            let slot = table + 8 * ((addr >> shift) & 511);
            let entry = load(slot);
            if entry & LARGE_PAGE == LARGE_PAGE {
                return true;
            }
            if shift == 21 || shift == 30 && entry == 0 && self.huge_pages {
                store(slot, addr >> shift << shift | LARGE_PAGE);
                return true;
            }
            table = if entry != 0 {
                entry & !(PAGE - 1)
            } else {
                let new = self.next_table;
                if new >= self.tables_end() {
                    return false;
                }
                self.next_table += PAGE;
                store(slot, new | TABLE);
                new
            };
        }
        true
    }

    /// Returns the 8 bytes at `addr`.
    pub fn peek(&mut self, addr: u64) -> Option<u64> {
        self.map(Range::sized(addr, 8)?).then(|| load(addr))
    }

    /// Writes 8 bytes at `addr`.
    pub fn poke(&mut self, addr: u64, value: u64) -> Option<()> {
        self.map(Range::sized(addr, 8)?).then(|| store(addr, value))
    }

    /// Reads `width` bytes (1, 2, 4 or 8) at `addr` by one access.
    pub fn read(&mut self, addr: u64, width: u8) -> Option<u64> {
        self.map(Range::sized(addr, width.into())?)
            .then(|| load_some(addr, width))
    }

    /// Writes `width` bytes (1, 2, 4 or 8) at `addr` by one access.
    pub fn write(&mut self, addr: u64, width: u8, value: u64) -> Option<()> {
        self.map(Range::sized(addr, width.into())?)
            .then(|| store_some(addr, width, value))
    }

    /// Returns the memory of `range`, which must not change any more, for use
    /// before the next range is mapped or [`Memory::keep`] is called.
    pub fn bytes(&mut self, range: Range) -> Option<&'static [u8]> {
        if range.start == 0 || !self.map(range) {
            return None;
        }
        let pointer = core::ptr::with_exposed_provenance(range.start as usize);
        // SAFETY: it was just mapped and, by the contract above, is not
        // accessed once it is no longer mapped; it is not null, and is shorter
        // than half of the address space. Callers read data of the loader that
        // the probe does not change, or restores after changing it.
        Some(unsafe { core::slice::from_raw_parts(pointer, range.size() as usize) })
    }

    /// Returns the words of `range`, which others may change at any time, and makes
    /// their mapping permanent.
    pub fn words(&mut self, range: Range) -> Option<&'static [AtomicU64]> {
        if range.start == 0 || range.start % 8 != 0 || !self.map(range) {
            return None;
        }
        self.keep();
        let pointer = core::ptr::with_exposed_provenance(range.start as usize);
        // SAFETY: it was just mapped, permanently; it is aligned, is not null, and is
        // shorter than half of the address space. Atomics have no invalid values, and
        // whoever writes there meanwhile does not break them.
        Some(unsafe { core::slice::from_raw_parts(pointer, (range.size() / 8) as usize) })
    }
}

/// Uses assembly because address 0 is legal here, and 8 bytes must be one
/// access.
fn load(addr: u64) -> u64 {
    let value;
    // SAFETY: callers have mapped the address; reading has no effect on memory.
    unsafe {
        asm!("mov {}, [{}]", out(reg) value, in(reg) addr, options(nostack, preserves_flags))
    };
    value
}

fn store(addr: u64, value: u64) {
    // SAFETY: callers have mapped the address and write only to their own page
    // tables, to RAM outside the image, and to addresses that the user
    // specified.
    unsafe { asm!("mov [{}], {}", in(reg) addr, in(reg) value, options(nostack, preserves_flags)) };
}

fn load_some(addr: u64, width: u8) -> u64 {
    let value: u64;
    // SAFETY: callers have mapped the address; reading has no effect on memory.
    unsafe {
        match width {
            1 => asm!("movzx {:e}, byte ptr [{}]", out(reg) value, in(reg) addr, options(nostack)),
            2 => asm!("movzx {:e}, word ptr [{}]", out(reg) value, in(reg) addr, options(nostack)),
            4 => asm!("mov {:e}, [{}]", out(reg) value, in(reg) addr, options(nostack)),
            _ => value = load(addr),
        }
    };
    value
}

fn store_some(addr: u64, width: u8, value: u64) {
    // SAFETY: callers have mapped the address, and write to addresses that the
    // user specified.
    unsafe {
        match width {
            1 => asm!("mov [{}], {}", in(reg) addr, in(reg_byte) value as u8, options(nostack)),
            2 => asm!("mov [{}], {:x}", in(reg) addr, in(reg) value, options(nostack)),
            4 => asm!("mov [{}], {:e}", in(reg) addr, in(reg) value, options(nostack)),
            _ => store(addr, value),
        }
    };
}

/// Returns the time stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has it, and CR4.TSD is clear.
    unsafe { _rdtsc() }
}
