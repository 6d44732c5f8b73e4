//! Checks that the information from the VMM is true.

use crate::Probe;
use crate::console::print_line;
use crate::memory::PAGE;
use crate::pure::crc32::crc32;
use crate::pure::e820::USABLE;
use crate::pure::range::{List, Range, subtract};

/// The lowest address at which memory of the pool can begin.
pub const LOW_WINDOW: u64 = 1 << 20;
/// The number of foreign ranges of the pool that are read; each read is an MMIO
/// exit.
const STRETCHES: usize = 16;

impl Probe {
    pub fn check(&mut self) {
        for entry in self.boot_params.e820() {
            print_line("", format_args!("{entry}"));
        }
        if let Some(complaint) = self.boot_params.complaint {
            bad!(self, "{complaint}");
        }
        self.check_map();
        self.check_manifest();
        self.check_bss();
        self.check_usable();
        self.check_fresh();
        self.check_initramfs();
        self.check_reserved();
    }

    /// Checks that the map is ascending without overlaps, covers the whole
    /// pool, and has RAM only in the instance's own chunks.
    fn check_map(&mut self) {
        let Some(pool) = self.pool else {
            bad!(self, "no pool");
            return;
        };
        if self.chunks.lost() > 0 {
            bad!(self, "{} chunks too many", self.chunks.lost());
        }
        let mut last_end = 0;
        let mut named = pool.start;
        for entry in self.boot_params.e820() {
            let Some(range) = entry.range() else {
                bad!(self, "e820 entry at {:#x} is empty or wraps", entry.addr);
                continue;
            };
            if range.start < last_end {
                bad!(
                    self,
                    "e820 entry at {:#x} overlaps the one before",
                    range.start
                );
            }
            last_end = last_end.max(range.end);
            if range.start <= named {
                named = named.max(range.end);
            }
            if entry.kind == USABLE
                && let Some(high) = Range::new(range.start.max(LOW_WINDOW), range.end)
                && let Some(foreign) = subtract(high, self.chunks.as_slice()).next()
            {
                bad!(
                    self,
                    "usable {:#x}-{:#x} is not in our chunks",
                    foreign.start,
                    foreign.end - 1
                );
            }
        }
        if named < pool.end {
            bad!(self, "e820 does not name {named:#x} of the pool");
        }
    }

    fn check_bss(&mut self) {
        if let Some(addr) = self.first_not(self.memory.untouched(), 0) {
            bad!(self, "bss is not zero at {addr:#x}");
        }
    }

    fn check_usable(&mut self) {
        for entry in self.boot_params.e820().filter(|e| e.kind == USABLE) {
            let Some(range) = entry.range() else { continue };
            let mut ok = true;
            for page in [first_page(range), last_page(range)] {
                // Modifying the running probe itself is not a test of memory.
                let write = !page.overlaps(self.memory.image);
                for addr in [
                    page.start,
                    (page.start + page.size() / 2) & !7,
                    (page.end - 8) & !7,
                ] {
                    ok &= self.check_word(addr, write);
                }
            }
            if ok {
                say!("usable {} first and last page ok", Mem(range));
            }
        }
    }

    /// Reads, writes, and restores the old value. Nothing notices the change,
    /// since nothing else runs in this guest.
    fn check_word(&mut self, addr: u64, write: bool) -> bool {
        let Some(before) = self.memory.peek(addr) else {
            bad!(self, "usable {addr:#x} is out of reach");
            return false;
        };
        if !write {
            return true;
        }
        let pattern = !before ^ addr.rotate_left(32);
        self.memory.poke(addr, pattern);
        let read = self.memory.peek(addr);
        self.memory.poke(addr, before);
        let after = self.memory.peek(addr);
        if read != Some(pattern) || after != Some(before) {
            let read = read.unwrap_or_default();
            bad!(
                self,
                "usable {addr:#x} wrote {pattern:#018x} read {read:#018x}"
            );
            return false;
        }
        true
    }

    /// Checks memory that nobody has used yet: the middle of the largest free
    /// range.
    fn check_fresh(&mut self) {
        let mut taken = List::<2>::new();
        taken.push(Some(self.memory.image));
        taken.push(self.boot_params.initramfs());
        taken.sort();
        let largest = (self.boot_params.e820())
            .filter(|entry| entry.kind == USABLE)
            .filter_map(|entry| Range::new(entry.addr.max(LOW_WINDOW), entry.range()?.end))
            .flat_map(|range| subtract(range, taken.as_slice()))
            .filter_map(|free| {
                Range::new(free.start.next_multiple_of(PAGE), free.end & !(PAGE - 1))
            })
            .max_by_key(|free| free.size());
        let Some(free) = largest else {
            bad!(self, "no free page above 1 MiB");
            return;
        };
        let start = (free.start + free.size() / 2) & !(PAGE - 1);
        let page = Range {
            start,
            end: start + PAGE,
        };
        match self.first_not(page, 0) {
            None => say!("fresh memory zero ok"),
            Some(addr) => bad!(self, "fresh memory is not zero at {addr:#x}"),
        }
    }

    /// Returns the first of the words of `range` that is not `value`.
    pub fn first_not(&mut self, range: Range, value: u64) -> Option<u64> {
        (range.start..range.end)
            .step_by(8)
            .find(|&addr| self.memory.peek(addr) != Some(value))
    }

    fn check_initramfs(&mut self) {
        let (range, size, want) = match (self.boot_params.initramfs(), self.initrd) {
            (None, None) => {
                say!("initramfs none");
                return;
            }
            (Some(range), Some((size, crc32))) => (range, size, crc32),
            (there, _) => {
                let (is, is_not) = match there {
                    Some(_) => ("boot_params", "command line"),
                    None => ("command line", "boot_params"),
                };
                bad!(self, "initramfs is in the {is} and not in the {is_not}");
                return;
            }
        };
        if range.size() != size {
            bad!(self, "initramfs has {} bytes, want {size}", range.size());
        }
        let Some(data) = self.memory.bytes(range) else {
            bad!(self, "initramfs {} is out of reach", Mem(range));
            return;
        };
        let is = crc32(data);
        if is == want {
            say!("initramfs {} crc32 {is:08x} ok", Mem(range));
        } else {
            say!(
                "initramfs {} crc32 {is:08x} MISMATCH want {want:08x}",
                Mem(range)
            );
            self.problems += 1;
        }
    }

    /// Checks that the rest of the pool does not exist in this guest.
    fn check_reserved(&mut self) {
        let Some(pool) = self.pool else { return };
        // Ranges that exceed the list are not read, and are reported.
        let mut stretches = List::<STRETCHES>::new();
        for outside in subtract(pool, self.chunks.as_slice()) {
            for stretch in subtract(outside, self.channels.as_slice()) {
                stretches.push(Some(stretch));
            }
        }
        for &stretch in stretches.as_slice() {
            let mut ok = true;
            for addr in [
                stretch.start,
                (stretch.start + stretch.size() / 2) & !7,
                stretch.end - 8,
            ] {
                let read = self.memory.peek(addr);
                if read != Some(u64::MAX) {
                    bad!(
                        self,
                        "reserved {addr:#x} reads {:#018x}",
                        read.unwrap_or_default()
                    );
                    ok = false;
                }
            }
            if ok {
                say!("reserved {} reads all ones", Mem(stretch));
            }
        }
        if stretches.lost() > 0 {
            say!("reserved {} further stretches not read", stretches.lost());
        }
    }
}

pub fn first_page(range: Range) -> Range {
    let end = range.end.min((range.start & !(PAGE - 1)) + PAGE);
    Range { end, ..range }
}

pub fn last_page(range: Range) -> Range {
    let start = range.start.max((range.end - 1) & !(PAGE - 1));
    Range { start, ..range }
}

/// A range in Linux's format for resources, with the last address instead of
/// the end.
pub struct Mem(pub Range);

impl core::fmt::Display for Mem {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "[mem {:#018x}-{:#018x}]", self.0.start, self.0.end - 1)
    }
}
