//! Deterministic mutants of a header.

use std::fmt;

/// A little-endian field: offset in the file, width in bytes (1 to 8).
pub type Field = (usize, usize);

/// All mutants of a file, by number.
pub struct Mutants<'a> {
    fields: &'a [Field],
    /// The values that are likely to cause errors.
    values: Vec<u64>,
}

impl<'a> Mutants<'a> {
    /// Creates mutants of `fields` of `file`, with values around the ends of
    /// the file, of the fields and of other fields, so that ranges overlap and
    /// sums wrap.
    pub fn new(file: &[u8], fields: &'a [Field]) -> Self {
        let len = file.len() as u64;
        let mut values = vec![0, 1, 2, 3, 4, 0x1ff, 0x200, 0xfff, 0x1000, 0x1001];
        values.extend([len / 2, len - 1, len, len + 1, len / 16, len / 16 + 1]);
        for bits in [7, 8, 15, 16, 20, 24, 30, 31, 32, 40, 52, 63] {
            values.extend([(1 << bits) - 1, 1 << bits, (1 << bits) + 1]);
        }
        values.extend([u64::MAX, u64::MAX - 1, u64::MAX - len, u64::MAX - 0xfff]);
        for &field in fields {
            let value = read(file, field);
            values.extend([value, value.wrapping_sub(1), value.wrapping_add(0x1000)]);
        }
        Self { fields, values }
    }

    /// Returns the mutant with this number: one to three fields changed.
    pub fn number(&self, number: u64) -> Mutant {
        let mut random = Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let count = 1 + random.below(3);
        let change = |_| {
            let field = self.fields[random.below(self.fields.len())];
            (field, self.values[random.below(self.values.len())])
        };
        Mutant((0..count).map(change).collect())
    }
}

/// The changed fields and their new values.
pub struct Mutant(Vec<(Field, u64)>);

impl Mutant {
    /// Returns `file` with the changes.
    pub fn apply(&self, file: &[u8]) -> Vec<u8> {
        let mut bytes = file.to_vec();
        for &((at, width), value) in &self.0 {
            bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        bytes
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, ((at, width), value)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{width} bytes at {at:#x} = {value:#x}")?;
        }
        Ok(())
    }
}

fn read(file: &[u8], (at, width): Field) -> u64 {
    let mut bytes = [0; 8];
    bytes[..width].copy_from_slice(&file[at..at + width]);
    u64::from_le_bytes(bytes)
}

/// A generator of pseudo-random numbers (xorshift64), the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let bound = bound as u64;
        usize::try_from((self.0 >> 11) % bound).expect("it is below a usize")
    }
}
