//! Half-open ranges of addresses that are never empty: the only place for address arithmetic.
//!
//! A range that exists is well formed, so code that has an [`AddrRange`] never has to consider
//! wrapping or empty ranges. The price is that the last byte of the 64-bit address space cannot be
//! part of any range; no machine has memory there.

use alloc::vec::Vec;
use core::fmt;

/// The reason why two numbers do not form a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// The range would be empty.
    #[error("the range at {start:#x} is empty")]
    Empty {
        /// The address at which the range would start.
        start: u64,
    },
    /// The end lies before the start.
    #[error("the range ends at {end:#x}, before its start {start:#x}")]
    Inverted {
        /// The first address of the range.
        start: u64,
        /// The exclusive end that was given.
        end: u64,
    },
    /// `start + size` does not fit 64 bits.
    #[error("{size:#x} bytes from {start:#x} on reach past the end of the address space")]
    Wraps {
        /// The first address of the range.
        start: u64,
        /// The length of the range in bytes.
        size: u64,
    },
}

/// A half-open range of addresses, `start..end`, in bytes; never empty.
///
/// With the feature `serde` it is serialized as `{"start": …, "end": …}` and checked when it is
/// deserialized.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Unchecked"))]
pub struct AddrRange {
    start: u64,
    end: u64,
}

/// A deserialized range before it is checked.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Unchecked {
    start: u64,
    end: u64,
}

#[cfg(feature = "serde")]
impl TryFrom<Unchecked> for AddrRange {
    type Error = RangeError;

    fn try_from(range: Unchecked) -> Result<Self, RangeError> {
        Self::new(range.start, range.end)
    }
}

impl AddrRange {
    /// Returns the range from `start` up to and excluding `end`.
    ///
    /// # Errors
    ///
    /// Returns [`RangeError::Empty`] if both are equal, [`RangeError::Inverted`] if `end` is
    /// smaller.
    pub const fn new(start: u64, end: u64) -> Result<Self, RangeError> {
        if end == start {
            return Err(RangeError::Empty { start });
        }
        if end < start {
            return Err(RangeError::Inverted { start, end });
        }
        Ok(Self { start, end })
    }

    /// Returns the range of `size` bytes from `start` on.
    ///
    /// # Errors
    ///
    /// Returns [`RangeError::Empty`] if `size` is 0, [`RangeError::Wraps`] if the end does not fit
    /// `u64`.
    pub const fn with_size(start: u64, size: u64) -> Result<Self, RangeError> {
        if size == 0 {
            return Err(RangeError::Empty { start });
        }
        match start.checked_add(size) {
            Some(end) => Ok(Self { start, end }),
            None => Err(RangeError::Wraps { start, size }),
        }
    }

    /// Returns the first address of the range.
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// Returns the first address after the range (its exclusive end).
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Returns the last address of the range (its inclusive end, as `/proc/iomem` prints it).
    #[must_use]
    pub const fn last(&self) -> u64 {
        // A range is never empty, so the end is at least 1.
        self.end.wrapping_sub(1)
    }

    /// Returns the length of the range in bytes, at least 1.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.end.wrapping_sub(self.start)
    }

    /// Returns whether `addr` lies inside the range.
    #[must_use]
    pub const fn contains(&self, addr: u64) -> bool {
        self.start <= addr && addr < self.end
    }

    /// Returns whether all of `other` lies inside the range.
    #[must_use]
    pub const fn contains_range(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Returns whether the two ranges share at least one byte.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Returns the bytes that lie in both ranges, if there are any.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        Self::new(self.start.max(other.start), self.end.min(other.end)).ok()
    }
}

impl fmt::Debug for AddrRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.end)
    }
}

impl fmt::Display for AddrRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.end)
    }
}

/// Sorts `ranges` and joins those that overlap or touch.
///
/// The result is the shortest list of ranges that covers the same bytes, such as an instance's
/// memory slots and rows of its e820 map.
///
/// ```
/// use mkpool::range::{AddrRange, merge_adjacent};
/// let page = |n: u64| AddrRange::with_size(n << 12, 4096).unwrap();
/// let merged = merge_adjacent([page(5), page(3), page(4), page(9)]);
/// assert_eq!(merged, [AddrRange::new(0x3000, 0x6000).unwrap(), page(9)]);
/// ```
#[must_use]
pub fn merge_adjacent(ranges: impl IntoIterator<Item = AddrRange>) -> Vec<AddrRange> {
    let mut sorted: Vec<AddrRange> = ranges.into_iter().collect();
    sorted.sort_unstable();
    let mut merged: Vec<AddrRange> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    fn r(start: u64, end: u64) -> AddrRange {
        AddrRange::new(start, end).unwrap()
    }

    #[test]
    fn empty_inverted_and_wrapping_ranges_are_refused() {
        assert_eq!(AddrRange::new(7, 7), Err(RangeError::Empty { start: 7 }));
        assert_eq!(
            AddrRange::new(7, 6),
            Err(RangeError::Inverted { start: 7, end: 6 })
        );
        assert_eq!(
            AddrRange::with_size(7, 0),
            Err(RangeError::Empty { start: 7 })
        );
        assert_eq!(
            AddrRange::with_size(u64::MAX, 1),
            Err(RangeError::Wraps {
                start: u64::MAX,
                size: 1
            })
        );
        assert_eq!(
            AddrRange::with_size(u64::MAX - 1, 1),
            Ok(r(u64::MAX - 1, u64::MAX))
        );
    }

    #[test]
    fn ends_are_half_open() {
        let range = r(0x1000, 0x3000);
        assert_eq!(
            (range.start(), range.end(), range.last()),
            (0x1000, 0x3000, 0x2fff)
        );
        assert_eq!(range.size(), 0x2000);
        assert!(range.contains(0x1000) && range.contains(0x2fff));
        assert!(!range.contains(0xfff) && !range.contains(0x3000));
        assert_eq!(format!("{range} {range:?}"), "0x1000-0x3000 0x1000-0x3000");
    }

    #[test]
    fn touching_ranges_do_not_overlap() {
        assert!(!r(0, 4).overlaps(&r(4, 8)) && !r(4, 8).overlaps(&r(0, 4)));
        assert!(r(0, 5).overlaps(&r(4, 8)) && r(4, 8).overlaps(&r(0, 5)));
        assert_eq!(r(0, 5).intersection(&r(4, 8)), Some(r(4, 5)));
        assert_eq!(r(0, 4).intersection(&r(4, 8)), None);
        assert_eq!(r(0, 4).intersection(&r(6, 8)), None);
    }

    #[test]
    fn containment_includes_both_edges() {
        assert!(r(2, 8).contains_range(&r(2, 8)) && r(2, 8).contains_range(&r(3, 4)));
        assert!(!r(2, 8).contains_range(&r(1, 8)) && !r(2, 8).contains_range(&r(2, 9)));
    }

    #[test]
    fn merging_sorts_and_joins_what_touches_or_overlaps() {
        assert_eq!(
            merge_adjacent([r(8, 9), r(1, 2), r(2, 4), r(3, 6), r(5, 6), r(10, 12)]),
            [r(1, 6), r(8, 9), r(10, 12)]
        );
        assert_eq!(merge_adjacent([]), []);
    }
}
