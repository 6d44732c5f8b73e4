//! The representation of sizes in requests.

use std::fmt;
use std::str::FromStr;

use mkpool::param::{ParamError, parse_size};
use mkvmm_base::Bytes;
use mkvmm_base::layout::{CONTROL_BLOCK_SIZE, LOW_WINDOW_SIZE, PAGE_SIZE};
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::number::exact;

/// A number of bytes that is not zero and can be rounded up to whole pages in
/// 64 bits.
///
/// It is written as a number, and read as text that the kernel's `memparse`
/// takes, for instance `32M`, or as a number of at most 2^52: no processor has
/// more address bits, and JSON's numbers are exact up to there. One that is
/// larger is written as text, so that what is written can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

/// A reason why a size was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The text is not a size.
    #[error(transparent)]
    Text(#[from] ParamError),
    /// The size is zero or larger than any address space.
    #[error("{size} bytes is out of range (1..={max})")]
    OutOfRange {
        /// The number of bytes.
        size: u64,
        /// The largest size allowed.
        max: u64,
    },
}

/// The smallest memory of an instance in which anything can run: the low window, the
/// control block and a page for a kernel.
pub const MIN_MEMORY: Size = Size(LOW_WINDOW_SIZE + CONTROL_BLOCK_SIZE + PAGE_SIZE);

impl Size {
    /// The largest size that can be written as a number: 2^52.
    pub const MAX_NUMBER: Self = Self(1 << 52);
    /// The largest size, a whole number of pages.
    const MAX: u64 = u64::MAX - 4095;

    /// Returns the size of `mib` MiB, at least 1.
    pub const fn mib(mib: u16) -> Self {
        let mib = if mib == 0 { 1 } else { mib };
        Self((mib as u64) << 20)
    }

    fn within(size: u64, max: u64) -> Result<Self, SizeError> {
        if (1..=max).contains(&size) {
            Ok(Self(size))
        } else {
            Err(SizeError::OutOfRange { size, max })
        }
    }

    /// Returns the number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Returns the shortest text for exactly this size, such as `32M`.
    pub fn exact_text(self) -> String {
        match Bytes(self.0).whole() {
            Some((count, unit)) => format!("{count}{unit}"),
            None => self.0.to_string(),
        }
    }
}

impl TryFrom<u64> for Size {
    type Error = SizeError;

    fn try_from(size: u64) -> Result<Self, SizeError> {
        Self::within(size, Self::MAX)
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        Self::try_from(parse_size(text)?)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if *self <= Self::MAX_NUMBER {
            serializer.serialize_u64(self.0)
        } else {
            serializer.collect_str(self)
        }
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of bytes or a size such as 32M")
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Size, E> {
        Size::within(value, Size::MAX_NUMBER.0).map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Size, E> {
        match u64::try_from(value) {
            Ok(value) => self.visit_u64(value),
            Err(_negative) => Err(E::invalid_value(Unexpected::Signed(value), &self)),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Size, E> {
        match exact(value) {
            Some(value) => self.visit_u64(value),
            None => Err(E::invalid_value(Unexpected::Float(value), &self)),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
        text.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

#[cfg(feature = "schema")]
mod schema {
    use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
    use utoipa::openapi::{Object, RefOr};

    use super::Size;

    impl utoipa::PartialSchema for Size {
        fn schema() -> RefOr<Schema> {
            let number = ObjectBuilder::new()
                .schema_type(Type::Integer)
                .minimum(Some(1_u64))
                .maximum(Some(Self::MAX_NUMBER.0));
            let text: Object = ObjectBuilder::new()
                .schema_type(Type::String)
                .pattern(Some("^([1-9][0-9]{0,5}[KkMmGg]?|0x[1-9a-f][0-9a-f]{0,9})$"))
                .build();
            OneOfBuilder::new()
                .description(Some(
                    "A number of bytes, at most 2^52, or a size as the kernel's memparse reads \
                     it, for instance `32M`.",
                ))
                .item(number)
                .item(text)
                .examples([33_554_432])
                .into()
        }
    }

    impl utoipa::ToSchema for Size {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_or_text() {
        let read = |json: &str| serde_json::from_str::<Size>(json).map(Size::bytes);
        for json in [
            "8388608",
            "8388608.0",
            r#""8M""#,
            r#""8MiB""#,
            r#""0x800000""#,
        ] {
            assert_eq!(read(json).unwrap(), 8 << 20, "{json}");
        }
        assert_eq!(serde_json::to_string(&Size::mib(8)).unwrap(), "8388608");
        for text in ["1", "4095", "4K", "1025K", "8M", "3G", "2T", "1P", "1024P"] {
            assert_eq!(text.parse::<Size>().unwrap().exact_text(), text);
        }
        // As far as text goes, what is written is read again.
        for text in ["4503599627370496", "4503599627370497", "0xfffffffffffff000"] {
            let size: Size = text.parse().unwrap();
            let json = serde_json::to_string(&size).unwrap();
            assert_eq!(read(&json).unwrap(), size.bytes(), "{json}");
        }
        for bad in [
            "0",
            "-1",
            "1.5",
            r#""0""#,
            r#""1Q""#,
            r#""16E""#,
            "4503599627370497",
            "null",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
