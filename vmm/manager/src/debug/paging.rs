//! Walks a guest's page tables as its processor would.
//!
//! ```text
//!   5-level   CR3 ► PML5E ► PML4E ► PDPTE ► PDE ► PTE ► page      9 bits each
//!   4-level   CR3 ─────────► PML4E ► PDPTE ► PDE ► PTE ► page     9 bits each
//!   PAE       CR3 ──────────────────► PDPTE ► PDE ► PTE ► page    2, 9, 9 bits
//!   32-bit    CR3 ───────────────────────────► PDE ► PTE ► page   10 bits each
//!   off       the address itself
//! ```
//!
//! The tables belong to the guest and are hostile: a walk reads only one entry
//! at each level, whatever they contain, and reads it through its caller's
//! function. Access rights are reported, not enforced: the question is what an
//! address maps to, not whether some access would be allowed.
//!
//! Source: Intel SDM volume 3A, chapter 5 (paging), tables 5-3 to 5-20.

use mkvmm_base::registers::Special;

use crate::debug::bits::{CR0_PG, CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA, EFER_NXE};

/// The entry bit for present.
const PRESENT: u64 = 1;
/// The entry bit that allows writes.
const WRITABLE: u64 = 1 << 1;
/// The entry bit that allows user mode.
const USER: u64 = 1 << 2;
/// The bit of an entry above the last level that maps a page itself.
const PAGE: u64 = 1 << 7;
/// The entry bit that forbids instruction fetches.
const NO_EXECUTE: u64 = 1 << 63;
/// The address bits of a 64-bit entry, whatever the processor's width: 51 to
/// 12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The paging mode of a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Paging is off: addresses are physical addresses.
    Off,
    /// There are two levels of 32-bit entries.
    Bits32,
    /// There are three levels of 64-bit entries, with 32-bit addresses.
    Pae,
    /// There are four levels of tables.
    Level4,
    /// There are five levels of tables.
    Level5,
}

impl Mode {
    /// Returns the name of the mode in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Bits32 => "32-bit",
            Self::Pae => "PAE",
            Self::Level4 => "4-level",
            Self::Level5 => "5-level",
        }
    }

    fn levels(self) -> &'static [Level] {
        match self {
            Self::Off => &[],
            Self::Bits32 => &LEVELS_32,
            Self::Pae => &LEVELS[2..],
            Self::Level4 => &LEVELS[1..],
            Self::Level5 => &LEVELS,
        }
    }

    /// Returns the size of an entry in bytes.
    const fn entry_size(self) -> u64 {
        match self {
            Self::Bits32 => 4,
            _ => 8,
        }
    }
}

/// One level of tables.
struct Level {
    name: &'static str,
    /// The base-2 logarithm of the size that one entry covers.
    shift: u32,
}

const LEVELS: [Level; 5] = [
    Level {
        name: "PML5E",
        shift: 48,
    },
    Level {
        name: "PML4E",
        shift: 39,
    },
    Level {
        name: "PDPTE",
        shift: 30,
    },
    Level {
        name: "PDE",
        shift: 21,
    },
    Level {
        name: "PTE",
        shift: 12,
    },
];

const LEVELS_32: [Level; 2] = [
    Level {
        name: "PDE",
        shift: 22,
    },
    Level {
        name: "PTE",
        shift: 12,
    },
];

/// The parameters of a walk besides memory.
#[derive(Debug, Clone, Copy)]
pub struct Walker {
    /// The paging mode of the processor.
    pub mode: Mode,
    /// The value of CR3.
    pub cr3: u64,
    /// True if bit 63 of an entry forbids execution.
    pub no_execute: bool,
    /// True if a page directory of 32-bit entries may map 4 MiB pages.
    pub large_pages: bool,
    /// True if a PDPTE may map 1 GiB pages.
    pub huge_pages: bool,
    /// The number of bits of a physical address.
    pub address_bits: u32,
}

/// One entry of a walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The name of the entry's level.
    pub level: &'static str,
    /// The guest-physical address of the entry.
    pub addr: u64,
    /// The value of the entry; `None` if the guest has no memory there.
    pub entry: Option<u64>,
}

impl Step {
    /// Returns the names of the flags in its low bits and in the highest bit.
    pub fn flags(&self) -> Vec<String> {
        const BITS: [(u32, &str); 9] = [
            (0, "present"),
            (1, "writable"),
            (2, "user"),
            (3, "write-through"),
            (4, "uncached"),
            (5, "accessed"),
            (6, "dirty"),
            (8, "global"),
            (63, "no-execute"),
        ];
        let Some(entry) = self.entry else {
            return Vec::new();
        };
        let mut flags = crate::debug::bits::names(entry, &BITS);
        // In a PTE this bit belongs to the PAT.
        if entry & PAGE != 0 && self.level != "PTE" {
            flags.push("page".to_owned());
        }
        flags
    }
}

/// The page that an address maps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The guest-physical address of the byte.
    pub addr: u64,
    /// The size of the page in bytes; addresses beyond it must be translated
    /// separately. With paging off, this is the whole address space.
    pub page_size: u64,
    /// True if every level allows writes.
    pub writable: bool,
    /// True if every level allows user mode.
    pub user: bool,
    /// True if no level forbids execution.
    pub executable: bool,
}

/// A reason why an address is not mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The address is not canonical in this mode.
    #[error("the address is not canonical")]
    NotCanonical,
    /// The processor uses 32-bit addresses in this mode.
    #[error("the address has more than 32 bits")]
    TooLong,
    /// An entry is not present.
    #[error("the {level} is not present")]
    NotPresent {
        /// The level of the entry.
        level: &'static str,
    },
    /// An entry has reserved bits set.
    #[error("the {level} has reserved bits set: {bits:#x}")]
    Reserved {
        /// The level of the entry.
        level: &'static str,
        /// The bits that are set.
        bits: u64,
    },
    /// A table is outside of the guest's memory.
    #[error("the table of the {level} is not in the guest's memory")]
    NoMemory {
        /// The level of the entry that could not be read.
        level: &'static str,
    },
}

/// A walk and its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// The entries that were read, in order.
    pub steps: Vec<Step>,
    /// The result of the walk.
    pub end: Result<Target, Fault>,
}

impl Walker {
    /// Creates a walker for a processor with these registers.
    pub fn new(sregs: &Special, address_bits: u32, huge_pages: bool) -> Self {
        let mode = if sregs.cr0 & CR0_PG == 0 {
            Mode::Off
        } else if sregs.efer & EFER_LMA != 0 {
            if sregs.cr4 & CR4_LA57 != 0 {
                Mode::Level5
            } else {
                Mode::Level4
            }
        } else if sregs.cr4 & CR4_PAE != 0 {
            Mode::Pae
        } else {
            Mode::Bits32
        };
        Self {
            mode,
            cr3: sregs.cr3,
            no_execute: sregs.efer & EFER_NXE != 0,
            large_pages: sregs.cr4 & CR4_PSE != 0,
            huge_pages: huge_pages && matches!(mode, Mode::Level4 | Mode::Level5),
            address_bits: address_bits.clamp(32, 52),
        }
    }

    /// Walks the tables for `addr`. `read` returns the given number of bytes (4
    /// or 8) of an entry at a guest-physical address, or nothing if the guest
    /// has no memory there.
    pub fn walk(&self, addr: u64, read: impl Fn(u64, u64) -> Option<u64>) -> Walk {
        let mut steps = Vec::new();
        let end = self.follow(addr, read, &mut steps);
        Walk { steps, end }
    }

    fn follow(
        &self,
        addr: u64,
        read: impl Fn(u64, u64) -> Option<u64>,
        steps: &mut Vec<Step>,
    ) -> Result<Target, Fault> {
        self.check(addr)?;
        let mut target = Target {
            addr,
            page_size: 1 << 32,
            writable: true,
            user: true,
            executable: true,
        };
        let mut table = self.root();
        for &Level { name: level, shift } in self.mode.levels() {
            let at = table + self.index(addr, shift) * self.mode.entry_size();
            let entry = read(at, self.mode.entry_size());
            steps.push(Step {
                level,
                addr: at,
                entry,
            });
            let entry = entry.ok_or(Fault::NoMemory { level })?;
            if entry & PRESENT == 0 {
                return Err(Fault::NotPresent { level });
            }
            let is_page = shift == 12 || self.maps_page(entry, shift);
            let bits = entry & self.reserved(shift, is_page);
            if bits != 0 {
                return Err(Fault::Reserved { level, bits });
            }
            // A PDPTE of PAE has no access rights.
            if self.mode != Mode::Pae || shift < 30 {
                target.writable &= entry & WRITABLE != 0;
                target.user &= entry & USER != 0;
                target.executable &= entry & NO_EXECUTE == 0;
            }
            if is_page {
                let offset = (1 << shift) - 1;
                target.addr = self.frame(entry, shift) & !offset | addr & offset;
                target.page_size = 1 << shift;
                return Ok(target);
            }
            table = self.frame(entry, 12);
        }
        // This is only reached with paging off.
        Ok(target)
    }

    /// Checks that the processor would translate the address at all.
    fn check(&self, addr: u64) -> Result<(), Fault> {
        let width = match self.mode {
            Mode::Level4 => 48,
            Mode::Level5 => 57,
            _ if addr >> 32 != 0 => return Err(Fault::TooLong),
            _ => return Ok(()),
        };
        // Bits from `width` - 1 up must be equal.
        match addr >> (width - 1) {
            0 => Ok(()),
            high if high == u64::MAX >> (width - 1) => Ok(()),
            _ => Err(Fault::NotCanonical),
        }
    }

    fn root(&self) -> u64 {
        match self.mode {
            Mode::Bits32 => self.cr3 & 0xffff_f000,
            // The table has four entries of 8 bytes, and is aligned to its
            // size.
            Mode::Pae => self.cr3 & 0xffff_ffe0,
            _ => self.cr3 & ADDRESS,
        }
    }

    fn index(&self, addr: u64, shift: u32) -> u64 {
        let bits = match self.mode {
            Mode::Bits32 => 10,
            Mode::Pae if shift == 30 => 2,
            _ => 9,
        };
        addr >> shift & ((1 << bits) - 1)
    }

    fn maps_page(&self, entry: u64, shift: u32) -> bool {
        let allowed = match (self.mode, shift) {
            (Mode::Bits32, 22) => self.large_pages,
            (Mode::Level4 | Mode::Level5 | Mode::Pae, 21) => true,
            (_, 30) => self.huge_pages,
            _ => false,
        };
        allowed && entry & PAGE != 0
    }

    /// Returns the reserved bits of an entry of a level.
    fn reserved(&self, shift: u32, is_page: bool) -> u64 {
        if self.mode == Mode::Bits32 {
            // PSE-36: bits 20 to 13 are address bits 39 to 32.
            return if is_page && shift == 22 { 1 << 21 } else { 0 };
        }
        let mut bits = ADDRESS & !((1 << self.address_bits) - 1);
        if !self.no_execute {
            bits |= NO_EXECUTE;
        }
        if self.mode == Mode::Pae {
            // Bits 62 to 52 are available to software only with 4 and 5 levels.
            bits |= 0x7ff << 52;
            if shift == 30 {
                bits |= 0x1e6 | NO_EXECUTE;
            }
        } else if shift > 21 && !is_page {
            // This level cannot map pages, as always with PML5E and PML4E.
            bits |= PAGE;
        }
        if is_page && shift > 12 {
            // Bit 12 belongs to the PAT; the bits from there to the page's
            // address are zero.
            bits |= (1 << shift) - (1 << 13);
        }
        bits
    }

    /// Returns the address in an entry.
    fn frame(&self, entry: u64, shift: u32) -> u64 {
        match self.mode {
            Mode::Bits32 if shift == 22 => entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32,
            Mode::Bits32 => entry & 0xffff_f000,
            _ => entry & ADDRESS,
        }
    }
}

#[cfg(test)]
#[path = "paging_tests.rs"]
mod tests;
