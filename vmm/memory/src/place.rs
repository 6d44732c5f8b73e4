//! ① The machine that all guests share: where a pool may lie.
//!
//! All guests share one guest-physical address space: a low window, a machine
//! RAM window below the 32-bit hole and one above it (`boot/layout.rs`). A pool
//! lies entirely in one of the two RAM windows.

use mkpool::AddrRange;
use mkpool::param::{ParamError, PoolParam};
use mkpool::range::RangeError;
use mkvmm_base::{Class, Diagnose};

use mkvmm_base::layout::{
    CONTROL_BLOCK_SIZE, DYNAMIC_POOL_MIN, HOLE_END, HOLE_START, KERNEL_ALIGN, LOW_WINDOW_SIZE,
};

/// The minimum size of a pool: the low window, the control block and a kernel.
pub const MIN_POOL: u64 = LOW_WINDOW_SIZE + CONTROL_BLOCK_SIZE + KERNEL_ALIGN;

/// A reason why a pool cannot lie at the requested place, with the numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// The parameter cannot be parsed, or its address is not page-aligned.
    #[error(transparent)]
    Param(#[from] ParamError),
    /// The size and address do not form a valid range.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The pool is too small for any guest.
    #[error("{size} bytes are too few; a guest needs at least {MIN_POOL}")]
    TooSmall {
        /// The number of bytes requested.
        size: u64,
    },
    /// The pool lies in the first MiB.
    #[error("the pool at {start:#x} overlaps the low window below {LOW_WINDOW_SIZE:#x}")]
    LowWindow {
        /// The first byte of the pool.
        start: u64,
    },
    /// The pool lies in the hole or across it.
    #[error("the pool {range:?} overlaps the 32-bit hole {HOLE_START:#x}-{HOLE_END:#x}")]
    Hole {
        /// The requested range of the pool.
        range: AddrRange,
    },
    /// The pool lies above the processor's addresses.
    #[error("the pool ends at {end:#x}, above this machine's {bits}-bit addresses")]
    AddressWidth {
        /// The end (exclusive) of the pool.
        end: u64,
        /// The number of bits of a physical address.
        bits: u32,
    },
}

impl Diagnose for MachineError {
    fn class(&self) -> Class {
        Class::Invalid
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::TooSmall { .. } => Some(format!("the minimum is {}M", MIN_POOL >> 20)),
            Self::LowWindow { .. } => Some(format!(
                "the lowest address is {LOW_WINDOW_SIZE:#x}; or omit the address"
            )),
            Self::Hole { range } => Some(hole_help(range.size())),
            Self::AddressWidth { bits, .. } => {
                Some(format!("addresses end at {:#x}", limit(*bits)))
            }
            Self::Param(ParamError::Unaligned { start, granule }) => Some(format!(
                "the next valid address is {:#x}",
                start.checked_next_multiple_of(*granule)?
            )),
            Self::Param(_) | Self::Range(_) => None,
        }
    }
}

fn hole_help(size: u64) -> String {
    let above = format!("place it at or above {HOLE_END:#x}");
    match HOLE_START.checked_sub(size) {
        Some(start) if start >= LOW_WINDOW_SIZE => {
            format!("{above}, or at {start:#x} at most")
        }
        _ => above,
    }
}

/// Returns the first address beyond `bits` bits.
fn limit(bits: u32) -> u64 {
    1_u64.checked_shl(bits).unwrap_or(u64::MAX)
}

/// Determines the range of the pool.
///
/// With an address, the pool lies exactly there or the call fails. Without one,
/// it lies at 16 MiB, or at the next page of the backing, if it ends below the
/// hole from there, and otherwise at 4 GiB. The size is rounded up to whole
/// pages; compare it with the parameter's to report that.
///
/// `bits` is the width of a physical address on this machine, `page` the page
/// size of the backing.
///
/// # Errors
/// Returns a [`MachineError`] with the numbers.
pub fn place_pool(param: PoolParam, bits: u32, page: u64) -> Result<AddrRange, MachineError> {
    if param.size < MIN_POOL {
        return Err(MachineError::TooSmall { size: param.size });
    }
    let param = param.rounded_to(page)?;
    let lowest = DYNAMIC_POOL_MIN.next_multiple_of(page);
    let start = match param.start {
        Some(start) => start,
        None if param.size <= HOLE_START - lowest => lowest,
        None => HOLE_END,
    };
    let range = AddrRange::with_size(start, param.size)?;
    if start < LOW_WINDOW_SIZE {
        return Err(MachineError::LowWindow { start });
    }
    if range.overlaps(&AddrRange::new(HOLE_START, HOLE_END)?) {
        return Err(MachineError::Hole { range });
    }
    if range.end() > limit(bits) {
        let end = range.end();
        return Err(MachineError::AddressWidth { end, bits });
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Result<AddrRange, MachineError> {
        place_on(text, 4096)
    }

    fn place_on(text: &str, page: u64) -> Result<AddrRange, MachineError> {
        place_pool(PoolParam::parse(text).unwrap(), 46, page)
    }

    #[test]
    fn a_given_address_is_kept() {
        for (text, start, end) in [
            ("1G@0x100000000", 0x1_0000_0000, 0x1_4000_0000),
            ("512M@0x40000000", 0x4000_0000, 0x6000_0000),
            ("4M@1M", 0x10_0000, 0x50_0000),
            ("1G@2G", 0x8000_0000, 0xc000_0000),
        ] {
            let range = place(text).unwrap();
            assert_eq!((range.start(), range.end()), (start, end), "{text}");
        }
    }

    #[test]
    fn a_pool_without_address_lies_at_16_mib_or_above_the_hole() {
        assert_eq!(place("512M").unwrap().start(), 16 << 20);
        assert_eq!(place("3056M").unwrap().end(), HOLE_START);
        assert_eq!(place("3060M").unwrap().start(), HOLE_END);
    }

    #[test]
    fn huge_pages_align_the_place_and_round_the_size() {
        let range = place_on("1500M", 1 << 30).unwrap();
        assert_eq!((range.start(), range.size()), (1 << 30, 2 << 30));
        assert_eq!(place_on("3G", 1 << 30).unwrap().start(), HOLE_END);
        assert!(place_on("1G@0x110000000", 1 << 30).is_err_and(|e| e.hint().is_some()));
    }

    #[test]
    fn sizes_are_rounded_up_to_pages() {
        assert_eq!(place("4194305@4G").unwrap().size(), (4 << 20) + 4096);
    }

    #[test]
    fn places_that_no_pool_may_have_are_refused() {
        assert!(matches!(
            place("1"),
            Err(MachineError::TooSmall { size: 1 })
        ));
        assert!(matches!(
            place("4M@0x1001"),
            Err(MachineError::Param(ParamError::Unaligned { .. }))
        ));
        assert!(matches!(
            place("4M@0x1000"),
            Err(MachineError::LowWindow { .. })
        ));
        for hole in ["1G@0xb0000000", "4M@0xfee00000", "4G@1G", "4M@0xfffff000"] {
            assert!(
                matches!(place(hole), Err(MachineError::Hole { .. })),
                "{hole}"
            );
        }
        assert!(matches!(
            place("64T"),
            Err(MachineError::AddressWidth { .. })
        ));
        assert!(matches!(
            place("4M@0x3fffffe00000"),
            Err(MachineError::AddressWidth { bits: 46, .. })
        ));
    }

    #[test]
    fn the_hint_names_what_would_work() {
        let help = |text| place(text).unwrap_err().hint().unwrap();
        assert_eq!(
            help("1G@0xb0000000"),
            "place it at or above 0x100000000, or at 0x80000000 at most"
        );
        assert_eq!(
            help("4M@0x100001001"),
            "the next valid address is 0x100002000"
        );
    }
}
