//! The kinds of memory that can back the pool.

use std::fmt;
use std::str::FromStr;

use mkvmm_base::{Class, Diagnose};

/// The kind of page that backs the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backing {
    /// Pages of 4 KiB.
    #[default]
    Normal,
    /// Pages of 4 KiB that the kernel may merge into 2 MiB ones as they are
    /// allocated.
    Thp,
    /// Pages of 2 MiB from the hugetlb pool.
    Hugetlb2M,
    /// Pages of 1 GiB from the hugetlb pool.
    Hugetlb1G,
}

/// The kinds and their names.
const KINDS: [(Backing, &str); 4] = [
    (Backing::Normal, "normal"),
    (Backing::Thp, "thp"),
    (Backing::Hugetlb2M, "hugetlb-2M"),
    (Backing::Hugetlb1G, "hugetlb-1G"),
];

/// The text is not the name of a kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown backing `{text}` (normal, thp, hugetlb-2M or hugetlb-1G)")]
pub struct BackingError {
    text: String,
}

impl Diagnose for BackingError {
    fn class(&self) -> Class {
        Class::Invalid
    }
}

impl FromStr for Backing {
    type Err = BackingError;

    fn from_str(text: &str) -> Result<Self, BackingError> {
        let kind = KINDS.iter().find(|(_, name)| *name == text);
        kind.map(|(kind, _)| *kind).ok_or_else(|| BackingError {
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = KINDS
            .iter()
            .find(|(kind, _)| kind == self)
            .map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

impl Backing {
    /// Returns the base-2 logarithm of the page size, which is the pool's
    /// granule.
    pub const fn page_order(self) -> u32 {
        match self {
            Self::Normal | Self::Thp => 12,
            Self::Hugetlb2M => 21,
            Self::Hugetlb1G => 30,
        }
    }

    /// Returns the size of a page in bytes.
    pub const fn page_size(self) -> u64 {
        1 << self.page_order()
    }

    /// Returns whether the pages come from the hugetlb pool.
    pub const fn is_hugetlb(self) -> bool {
        matches!(self, Self::Hugetlb2M | Self::Hugetlb1G)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_backings_are_read_as_they_are_written() {
        for (kind, name) in KINDS {
            assert_eq!(name.parse(), Ok(kind));
            assert_eq!(kind.to_string(), name);
        }
        "huge".parse::<Backing>().unwrap_err();
    }
}
