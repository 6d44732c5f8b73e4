//! The e820 map of one guest, derived from the live ledger.
//!
//! Only this module builds one. It is rebuilt at every start and never stored:
//! the map that the guest prints as `BIOS-e820:` was built from the ledger
//! immediately before the first vCPU ran.
//!
//! Source: ACPI 6.5, section 15 (address range types); the wording is that of
//! Linux's `e820__print_table`.

use std::fmt;

use mkpool::AddrRange;
use mkpool::map::MemoryMap;
use mkpool::range::RangeError;

use mkvmm_base::layout;

/// The address range type of an e820 entry that mkvmm publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum E820Type {
    /// The range is RAM that the kernel may use.
    Usable,
    /// The range belongs to the firmware, the VMM, or another instance.
    Reserved,
}

impl E820Type {
    /// Returns the number of the type in the table.
    pub const fn raw(self) -> u32 {
        match self {
            Self::Usable => 1,
            Self::Reserved => 2,
        }
    }

    /// Returns the type with a number; everything that is not usable is
    /// reserved.
    pub const fn from_raw(raw: u32) -> Self {
        match raw {
            1 => Self::Usable,
            _ => Self::Reserved,
        }
    }
}

impl fmt::Display for E820Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Usable => "usable",
            Self::Reserved => "reserved",
        })
    }
}

/// One row of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct E820Entry {
    /// The guest-physical addresses of the row.
    pub range: AddrRange,
    /// The type of the addresses.
    pub kind: E820Type,
}

/// Formats as Linux does: `BIOS-e820: [mem 0x…-0x…] usable`, with an inclusive
/// end.
impl fmt::Display for E820Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "BIOS-e820: [mem {:#018x}-{:#018x}] {}",
            self.range.start(),
            self.range.last(),
            self.kind
        )
    }
}

/// The inputs of the map of one instance.
#[derive(Debug, Clone, Copy)]
pub struct E820Facts<'a> {
    /// The range of the whole pool.
    pub pool: AddrRange,
    /// The instance's own chunks, in any order, adjacent ones merged or not.
    pub chunks: &'a [AddrRange],
    /// The pieces of the instance that are not RAM to the guest: the low
    /// window's backing and the control block.
    pub withheld: &'a [AddrRange],
}

/// Builds the map: sorted, disjoint, with equal neighbours merged.
///
/// The low window is RAM up to the EBDA and reserved from there on. The pool is
/// reserved except for the instance's own chunks, which are RAM except for the
/// withheld pieces.
///
/// # Errors
/// A [`RangeError`] cannot occur with the constants of [`layout`]; it is
/// returned anyway instead of panicking.
pub fn build(facts: &E820Facts<'_>) -> Result<Vec<E820Entry>, RangeError> {
    let mut map = MemoryMap::new();
    map.overwrite(facts.pool, E820Type::Reserved);
    for &chunk in facts.chunks {
        map.overwrite(chunk, E820Type::Usable);
    }
    for &piece in facts.withheld {
        map.overwrite(piece, E820Type::Reserved);
    }
    map.overwrite(AddrRange::new(0, layout::EBDA_START)?, E820Type::Usable);
    map.overwrite(
        AddrRange::new(layout::EBDA_START, layout::LOW_WINDOW_SIZE)?,
        E820Type::Reserved,
    );
    Ok(map
        .iter()
        .map(|(range, kind)| E820Entry { range, kind })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, size: u64) -> AddrRange {
        AddrRange::with_size(start, size).unwrap()
    }

    fn lines(facts: &E820Facts<'_>) -> Vec<String> {
        let entries = build(facts).unwrap();
        entries.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn own_chunk_is_usable_and_the_rest_of_the_pool_reserved() {
        let facts = E820Facts {
            pool: range(0x1_0000_0000, 1 << 30),
            chunks: &[range(0x1_1000_0000, 0x1000_0000)],
            withheld: &[range(0x1_1000_0000, 0x20_0000)],
        };
        assert_eq!(
            lines(&facts),
            [
                "BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable",
                "BIOS-e820: [mem 0x000000000009fc00-0x00000000000fffff] reserved",
                "BIOS-e820: [mem 0x0000000100000000-0x00000001101fffff] reserved",
                "BIOS-e820: [mem 0x0000000110200000-0x000000011fffffff] usable",
                "BIOS-e820: [mem 0x0000000120000000-0x000000013fffffff] reserved",
            ]
        );
    }

    #[test]
    fn adjacent_chunks_make_one_row() {
        let facts = E820Facts {
            pool: range(0x4000_0000, 1 << 20),
            chunks: &[range(0x4004_0000, 0x4_0000), range(0x4000_0000, 0x4_0000)],
            withheld: &[],
        };
        assert_eq!(build(&facts).unwrap().len(), 4);
    }

    #[test]
    fn a_pool_right_above_the_low_window_merges_with_its_reserved_end() {
        let facts = E820Facts {
            pool: range(0x10_0000, 1 << 30),
            chunks: &[range(0x20_0000, 0x10_0000)],
            withheld: &[],
        };
        assert_eq!(
            lines(&facts)[1],
            "BIOS-e820: [mem 0x000000000009fc00-0x00000000001fffff] reserved"
        );
    }
}
