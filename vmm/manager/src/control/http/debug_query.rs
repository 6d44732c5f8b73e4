//! The queries of the routes that inspect guests.

use std::num::ParseIntError;

use serde::{Deserialize, Deserializer};
use utoipa::IntoParams;

use mkvmm_api::number::optional;

/// An address in a query: `0x` and up to 16 hexadecimal digits, or up to 19
/// decimal ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address(pub u64);

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        address(&text).map_err(serde::de::Error::custom)
    }
}

fn address(text: &str) -> Result<Address, ParseIntError> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // `from_str_radix` accepts a sign, which is not allowed here.
    let digits = if digits.starts_with('+') { "" } else { digits };
    u64::from_str_radix(digits, radix).map(Address)
}

/// The query of the registers route.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RegsQuery {
    /// Return only this vCPU, from 0; all when absent.
    #[serde(default, deserialize_with = "optional::<u8, 0, 63, _>")]
    #[param(required = false, minimum = 0, maximum = 63)]
    pub cpu: Option<u8>,
}

/// The query of the memory route.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct MemoryQuery {
    /// The address of the first byte, in hexadecimal with `0x`, or decimal.
    #[param(value_type = String, pattern = "^(0x[0-9a-fA-F]{1,16}|[0-9]{1,19})$", example = "0x7000")]
    pub addr: Address,
    /// The number of bytes to read.
    #[param(minimum = 1, maximum = 1_048_576)]
    pub len: u64,
    /// True if the address is virtual and must be translated through the page
    /// tables.
    #[serde(default, rename = "virtual")]
    #[param(required = false)]
    pub is_virtual: bool,
    /// The vCPU whose page tables are used; 0 when absent.
    #[serde(default, deserialize_with = "optional::<u8, 0, 63, _>")]
    #[param(required = false, minimum = 0, maximum = 63)]
    pub cpu: Option<u8>,
}

/// The query of the translation route.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TranslateQuery {
    /// The virtual address, in hexadecimal with `0x`, or decimal.
    #[param(value_type = String, pattern = "^(0x[0-9a-fA-F]{1,16}|[0-9]{1,19})$", example = "0x7000")]
    pub addr: Address,
    /// The vCPU whose page tables are walked; 0 when absent.
    #[serde(default, deserialize_with = "optional::<u8, 0, 63, _>")]
    #[param(required = false, minimum = 0, maximum = 63)]
    pub cpu: Option<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hexadecimal_or_decimal() {
        let read = |text: &str| address(text).ok().map(|addr| addr.0);
        assert_eq!(read("0x7000"), Some(0x7000));
        assert_eq!(read("0xffffFFFF81000000"), Some(0xffff_ffff_8100_0000));
        assert_eq!(read("28672"), Some(28672));
        for bad in [
            "",
            "0x",
            "+1",
            "-1",
            "0x+1",
            "7000h",
            "1M",
            "0x10000000000000000",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
