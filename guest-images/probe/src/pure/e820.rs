//! The firmware memory map as `boot_params` contains it, and as Linux prints
//! it.

use core::fmt;

use super::range::Range;

/// The size of one packed entry in bytes: address, size, type.
pub const ENTRY_LEN: usize = 20;

/// The type of usable RAM.
pub const USABLE: u32 = 1;
/// The type of reserved memory.
pub const RESERVED: u32 = 2;

/// One entry of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The first address of the entry.
    pub addr: u64,
    /// The size of the entry in bytes.
    pub size: u64,
    /// The type: [`USABLE`], [`RESERVED`] or another type of the firmware.
    pub kind: u32,
}

impl Entry {
    /// Parses an entry from its representation in memory.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; ENTRY_LEN]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        let (kinds, _) = rest.as_chunks::<4>();
        Self {
            addr: words.first().map_or(0, |w| u64::from_le_bytes(*w)),
            size: words.get(1).map_or(0, |w| u64::from_le_bytes(*w)),
            kind: kinds.first().map_or(0, |k| u32::from_le_bytes(*k)),
        }
    }

    /// Returns the range of addresses, unless it is empty or wraps.
    #[must_use]
    pub fn range(self) -> Option<Range> {
        Range::sized(self.addr, self.size)
    }
}

/// Formats the entry exactly as Linux prints it at boot.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.addr.wrapping_add(self.size).wrapping_sub(1);
        write!(f, "BIOS-e820: [mem {:#018x}-{last:#018x}] ", self.addr)?;
        match self.kind {
            USABLE => f.write_str("usable"),
            RESERVED => f.write_str("reserved"),
            3 => f.write_str("ACPI data"),
            4 => f.write_str("ACPI NVS"),
            5 => f.write_str("unusable"),
            kind @ (7 | 12) => write!(f, "persistent (type {kind})"),
            0xefff_ffff => f.write_str("soft reserved"),
            kind => write!(f, "type {kind}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(addr: u64, size: u64, kind: u32) -> String {
        Entry { addr, size, kind }.to_string()
    }

    #[test]
    fn lines_are_those_of_linux() {
        assert_eq!(
            line(0, 0x9fc00, 1),
            "BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable"
        );
        assert_eq!(
            line(0x9fc00, 0x400, 2),
            "BIOS-e820: [mem 0x000000000009fc00-0x000000000009ffff] reserved"
        );
        assert_eq!(
            line(0x1_0000_0000, 0x4000_0000, 1),
            "BIOS-e820: [mem 0x0000000100000000-0x000000013fffffff] usable"
        );
    }

    #[test]
    fn types_have_the_words_of_linux() {
        let word = |kind| {
            line(0x1000, 0x1000, kind)
                .rsplit_once("] ")
                .map(|(_, w)| w.to_owned())
                .unwrap()
        };
        assert_eq!(word(3), "ACPI data");
        assert_eq!(word(4), "ACPI NVS");
        assert_eq!(word(5), "unusable");
        assert_eq!(word(7), "persistent (type 7)");
        assert_eq!(word(9), "type 9");
    }

    #[test]
    fn entries_are_read_packed_and_little_endian() {
        let mut bytes = [0; ENTRY_LEN];
        bytes[4] = 1;
        bytes[9] = 0x10;
        bytes[16] = 2;
        assert_eq!(
            Entry::from_bytes(&bytes),
            Entry {
                addr: 0x1_0000_0000,
                size: 0x1000,
                kind: 2
            }
        );
    }

    #[test]
    fn an_entry_without_bytes_has_no_range() {
        assert_eq!(
            Entry {
                addr: 8,
                size: 0,
                kind: 1
            }
            .range(),
            None
        );
    }
}
