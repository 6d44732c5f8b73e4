//! Sizes as people read them.

use std::fmt;

/// The units of sizes, the largest first.
const UNITS: [(u32, &str); 5] = [(50, "P"), (40, "T"), (30, "G"), (20, "M"), (10, "K")];

/// A number of bytes, which is displayed exactly and as short as possible: `512M`, or
/// `4097 bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl Bytes {
    /// Returns the largest unit of which this is a whole number, and that number.
    pub fn whole(self) -> Option<(u64, &'static str)> {
        let Self(bytes) = self;
        let is_whole = |(order, _): &&(u32, &str)| bytes > 0 && bytes.is_multiple_of(1 << order);
        let (order, unit) = UNITS.iter().find(is_whole)?;
        Some((bytes >> order, unit))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.whole() {
            Some((count, unit)) => write!(f, "{count}{unit}"),
            None if self.0 == 0 => f.write_str("0"),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact_and_short() {
        for (bytes, text) in [
            (0, "0"),
            (1, "1 bytes"),
            (4096, "4K"),
            (4097, "4097 bytes"),
            (512 << 20, "512M"),
            ((1 << 30) + (1 << 29), "1536M"),
            (1 << 40, "1T"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
