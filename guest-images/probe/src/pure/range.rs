//! Half-open address ranges, and lists of them without an allocator.

/// The addresses from `start` up to, but not including, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// The first address of the range.
    pub start: u64,
    /// The first address after the range.
    pub end: u64,
}

impl Range {
    /// Returns the range, or `None` if it would be empty or end before its
    /// start.
    #[must_use]
    pub fn new(start: u64, end: u64) -> Option<Self> {
        (start < end).then_some(Self { start, end })
    }

    /// Returns the range of `size` bytes at `start`, unless it is empty or
    /// wraps.
    #[must_use]
    pub fn sized(start: u64, size: u64) -> Option<Self> {
        Self::new(start, start.checked_add(size)?)
    }

    /// Returns the number of bytes.
    #[must_use]
    pub fn size(self) -> u64 {
        self.end - self.start
    }

    /// Returns whether the two ranges share an address.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// A list of up to `N` ranges. Those that do not fit are counted, to be
/// reported.
#[derive(Clone, Debug)]
pub struct List<const N: usize> {
    ranges: [Range; N],
    len: usize,
    lost: usize,
}

impl<const N: usize> List<N> {
    /// Creates an empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            ranges: [Range { start: 0, end: 0 }; N],
            len: 0,
            lost: 0,
        }
    }

    /// Appends a range; `None` appends nothing.
    pub fn push(&mut self, range: Option<Range>) {
        let Some(range) = range else { return };
        match self.ranges.get_mut(self.len) {
            Some(place) => {
                *place = range;
                self.len += 1;
            }
            None => self.lost += 1,
        }
    }

    /// Returns the number of ranges that did not fit.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.lost
    }

    /// Returns the ranges in the order they were pushed, or ascending after
    /// [`List::sort`].
    #[must_use]
    pub fn as_slice(&self) -> &[Range] {
        self.ranges.get(..self.len).unwrap_or(&[])
    }

    /// Orders the ranges by address.
    pub fn sort(&mut self) {
        if let Some(ranges) = self.ranges.get_mut(..self.len) {
            ranges.sort_unstable();
        }
    }
}

impl<const N: usize> Default for List<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns the rest of `whole` without `holes`, which must be in ascending
/// order; they may overlap each other and exceed `whole`.
pub fn subtract(whole: Range, holes: &[Range]) -> impl Iterator<Item = Range> + '_ {
    let mut at = whole.start;
    let mut holes = holes.iter();
    core::iter::from_fn(move || {
        while at < whole.end {
            match holes.next() {
                Some(hole) => {
                    let left = Range::new(at, hole.start.min(whole.end));
                    at = at.max(hole.end);
                    if left.is_some() {
                        return left;
                    }
                }
                None => {
                    let left = Range::new(at, whole.end);
                    at = whole.end;
                    return left;
                }
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r(start: u64, end: u64) -> Range {
        Range { start, end }
    }

    fn left(whole: Range, holes: &[Range]) -> Vec<Range> {
        subtract(whole, holes).collect()
    }

    #[test]
    fn nothing_taken_leaves_the_whole() {
        assert_eq!(left(r(10, 20), &[]), [r(10, 20)]);
        assert_eq!(left(r(10, 20), &[r(0, 10), r(20, 30)]), [r(10, 20)]);
    }

    #[test]
    fn holes_split_trim_and_swallow() {
        assert_eq!(
            left(r(10, 20), &[r(12, 14), r(16, 17)]),
            [r(10, 12), r(14, 16), r(17, 20)]
        );
        assert_eq!(left(r(10, 20), &[r(5, 12), r(18, 30)]), [r(12, 18)]);
        assert_eq!(left(r(10, 20), &[r(0, 40)]), []);
        assert_eq!(left(r(10, 20), &[r(10, 14), r(14, 20)]), []);
    }

    #[test]
    fn overlapping_holes_count_once() {
        assert_eq!(
            left(r(0, 20), &[r(2, 10), r(4, 6), r(9, 12)]),
            [r(0, 2), r(12, 20)]
        );
    }

    #[test]
    fn every_small_case_agrees_with_sets() {
        for (a, b, c, d) in (0..7u64.pow(4)).map(|n| (n % 7, n / 7 % 7, n / 49 % 7, n / 343)) {
            let mut holes: Vec<Range> = [Range::new(a, b), Range::new(c, d)]
                .into_iter()
                .flatten()
                .collect();
            holes.sort();
            let bytes: Vec<u64> = left(r(1, 6), &holes)
                .iter()
                .flat_map(|x| x.start..x.end)
                .collect();
            let expected: Vec<u64> = (1..6)
                .filter(|at| !holes.iter().any(|h| (h.start..h.end).contains(at)))
                .collect();
            assert_eq!(bytes, expected, "{holes:?}");
        }
    }

    #[test]
    fn empty_and_wrapping_ranges_do_not_exist() {
        assert_eq!(Range::new(5, 5), None);
        assert_eq!(Range::sized(u64::MAX, 2), None);
        assert_eq!(Range::sized(8, 0), None);
    }

    #[test]
    fn lists_count_what_they_cannot_hold() {
        let mut list = List::<2>::new();
        for n in [3, 1, 2] {
            list.push(Range::sized(n, 1));
        }
        list.push(None);
        list.sort();
        assert_eq!((list.as_slice(), list.lost()), (&[r(1, 2), r(3, 4)][..], 1));
    }
}
