//! A walk through a guest's page tables, as its processor would do it.
//!
//! ```text
//!   5-level   CR3 ► PML5E ► PML4E ► PDPTE ► PDE ► PTE ► page      9 bits each
//!   4-level   CR3 ─────────► PML4E ► PDPTE ► PDE ► PTE ► page     9 bits each
//!   PAE       CR3 ──────────────────► PDPTE ► PDE ► PTE ► page    2, 9, 9 bits
//!   32-bit    CR3 ───────────────────────────► PDE ► PTE ► page   10 bits each
//!   off       the address itself
//! ```
//!
//! The tables are the guest's, and hostile: a walk reads one entry at each
//! level and no more, whatever they hold, and reads it where its caller lets
//! it. Rights are reported, not enforced: what is asked is where an address
//! leads, not whether some access would be allowed.
//!
//! Source: Intel SDM volume 3A, chapter 5 (paging), tables 5-3 to 5-20.

use mkvmm_base::registers::Special;

use crate::debug::bits::{CR0_PG, CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA, EFER_NXE};

/// Entry: it is present.
const PRESENT: u64 = 1;
/// Entry: writes are allowed.
const WRITABLE: u64 = 1 << 1;
/// Entry: user mode may use it.
const USER: u64 = 1 << 2;
/// Entry above the last level: it maps a page itself.
const PAGE: u64 = 1 << 7;
/// Entry: nothing is fetched from there.
const NO_EXECUTE: u64 = 1 << 63;
/// Address bits of a 64-bit entry, whatever the processor's width: 51 to 12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// How the processor finds physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Not at all: they are the addresses.
    Off,
    /// Two levels of 32-bit entries.
    Bits32,
    /// Three levels of 64-bit entries, 32-bit addresses.
    Pae,
    /// Four levels of tables.
    Level4,
    /// Five levels of tables.
    Level5,
}

impl Mode {
    /// Returns its name in the API.
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

    /// Bytes of an entry.
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
    /// log2 of what one entry covers.
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

/// What a walk depends on besides memory.
#[derive(Debug, Clone, Copy)]
pub struct Walker {
    /// The kind of tables.
    pub mode: Mode,
    /// CR3 as it is.
    pub cr3: u64,
    /// Whether bit 63 of an entry has a meaning.
    pub no_execute: bool,
    /// Whether a page directory of 32-bit entries may map 4 MiB.
    pub large_pages: bool,
    /// Whether a PDPTE may map 1 GiB.
    pub huge_pages: bool,
    /// Bits of a physical address.
    pub address_bits: u32,
}

/// One entry on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which level's entry.
    pub level: &'static str,
    /// Its guest-physical address.
    pub addr: u64,
    /// What it holds; `None` where the guest has no memory there.
    pub entry: Option<u64>,
}

impl Step {
    /// What its low bits and the highest say.
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
        // In a PTE the bit is the PAT's.
        if entry & PAGE != 0 && self.level != "PTE" {
            flags.push("page".to_owned());
        }
        flags
    }
}

/// Where an address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The guest-physical address that the walk ended at.
    pub addr: u64,
    /// Bytes of the page; what is behind it must be looked up anew. With
    /// paging off, all there is.
    pub page_size: u64,
    /// Whether every level lets it be written.
    pub writable: bool,
    /// Whether every level lets user mode in.
    pub user: bool,
    /// Whether no level forbids to execute it.
    pub executable: bool,
}

/// Why an address leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is none in this mode.
    #[error("the address is not canonical")]
    NotCanonical,
    /// The processor uses 32 bits.
    #[error("the address has more than 32 bits")]
    TooLong,
    /// An entry maps nothing.
    #[error("the {level} is not present")]
    NotPresent {
        /// The level of the entry.
        level: &'static str,
    },
    /// An entry has bits set that must be clear.
    #[error("the {level} has reserved bits set: {bits:#x}")]
    Reserved {
        /// The level of the entry.
        level: &'static str,
        /// The bits that are set.
        bits: u64,
    },
    /// A table lies where the guest has no memory.
    #[error("the table of the {level} is not in the guest's memory")]
    NoMemory {
        /// Which entry could not be read.
        level: &'static str,
    },
}

/// A walk and its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// Every entry that was looked at, in order.
    pub steps: Vec<Step>,
    /// Where it led.
    pub end: Result<Target, Fault>,
}

impl Walker {
    /// For a processor with these registers.
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

    /// Follows `addr`. `read` reads so many bytes (4 or 8) of an entry at a
    /// guest-physical address, or nothing where the guest has no memory.
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
            // A PDPTE of PAE has no rights in it.
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
        // Only without levels does a walk come here.
        Ok(target)
    }

    /// Whether the processor would even look.
    fn check(&self, addr: u64) -> Result<(), Fault> {
        let width = match self.mode {
            Mode::Level4 => 48,
            Mode::Level5 => 57,
            _ if addr >> 32 != 0 => return Err(Fault::TooLong),
            _ => return Ok(()),
        };
        // Bits from `width` - 1 up are all alike.
        match addr >> (width - 1) {
            0 => Ok(()),
            high if high == u64::MAX >> (width - 1) => Ok(()),
            _ => Err(Fault::NotCanonical),
        }
    }

    fn root(&self) -> u64 {
        match self.mode {
            Mode::Bits32 => self.cr3 & 0xffff_f000,
            // Four entries of 8 bytes, aligned to their size.
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

    /// Bits that must be clear in an entry of a level.
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
            // Bits 62 to 52 are free to use only with 4 and 5 levels.
            bits |= 0x7ff << 52;
            if shift == 30 {
                bits |= 0x1e6 | NO_EXECUTE;
            }
        } else if shift > 21 && !is_page {
            // No page where none can be: always in PML5E and PML4E.
            bits |= PAGE;
        }
        if is_page && shift > 12 {
            // Bit 12 is the PAT's; then zeros up to the page's address.
            bits |= (1 << shift) - (1 << 13);
        }
        bits
    }

    /// The address in an entry.
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
