//! The representation of ranges of addresses.

use mkpool::AddrRange;
use serde::{Deserialize, Serialize};

/// A non-empty range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Range {
    /// The address of the first byte.
    pub start: u64,
    /// The number of bytes.
    pub size: u64,
}

impl Range {
    /// Returns the address of the last byte.
    pub const fn last(&self) -> u64 {
        self.start.saturating_add(self.size.saturating_sub(1))
    }
}

impl From<AddrRange> for Range {
    fn from(range: AddrRange) -> Self {
        Self {
            start: range.start(),
            size: range.size(),
        }
    }
}
