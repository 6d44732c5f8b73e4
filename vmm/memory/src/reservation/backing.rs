//! What the pool is made of.

use std::fmt;
use std::str::FromStr;

use mkvmm_base::{Class, Diagnose};

/// Kind of page behind the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backing {
    /// 4 KiB pages.
    #[default]
    Normal,
    /// 4 KiB pages that the kernel may join to 2 MiB ones as they come.
    Thp,
    /// 2 MiB pages of the hugetlb pool.
    Hugetlb2M,
    /// 1 GiB pages of the hugetlb pool.
    Hugetlb1G,
}

/// The kinds and their names.
const KINDS: [(Backing, &str); 4] = [
    (Backing::Normal, "normal"),
    (Backing::Thp, "thp"),
    (Backing::Hugetlb2M, "hugetlb-2M"),
    (Backing::Hugetlb1G, "hugetlb-1G"),
];

/// Not the name of a kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no backing: there are normal, thp, hugetlb-2M and hugetlb-1G")]
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
    /// log2 of the page: the pool's granule.
    pub const fn page_order(self) -> u32 {
        match self {
            Self::Normal | Self::Thp => 12,
            Self::Hugetlb2M => 21,
            Self::Hugetlb1G => 30,
        }
    }

    /// Bytes of a page.
    pub const fn page_size(self) -> u64 {
        1 << self.page_order()
    }

    /// Whether the pages come from the hugetlb pool.
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
