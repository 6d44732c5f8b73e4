//! 64-bit numbers, which JSON numbers cannot represent exactly.

use std::fmt;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number that may have any 64-bit value, such as a register: `0x` and 1 to
/// 16 hexadecimal digits as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x").unwrap_or_default();
        // `from_str_radix` accepts a sign, which is not allowed here.
        let digits = if digits.starts_with('+') { "" } else { digits };
        u64::from_str_radix(digits, 16)
            .map(Self)
            .map_err(D::Error::custom)
    }
}

#[cfg(feature = "schema")]
impl utoipa::PartialSchema for Hex {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::Type::String)
            .description(Some("A number of up to 64 bits in hexadecimal digits."))
            .pattern(Some("^0x[0-9a-f]{1,16}$"))
            .into()
    }
}

#[cfg(feature = "schema")]
impl utoipa::ToSchema for Hex {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bits_survive() {
        for value in [0, 0x7000, u64::MAX] {
            let json = serde_json::to_string(&Hex(value)).unwrap();
            assert_eq!(json, format!("\"{value:#x}\""));
            assert_eq!(serde_json::from_str::<Hex>(&json).unwrap(), Hex(value));
        }
        for bad in [
            "\"7000\"",
            "\"0x\"",
            "\"0x+1\"",
            "1",
            "\"0x10000000000000000\"",
        ] {
            assert!(serde_json::from_str::<Hex>(bad).is_err(), "{bad}");
        }
    }
}
