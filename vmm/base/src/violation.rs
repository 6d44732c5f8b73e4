//! Accesses to memory that a guest does not own: what they are, and what
//! follows them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What follows a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum ViolationPolicy {
    /// It is counted and logged; the guest goes on.
    #[default]
    Log,
    /// The guest is stopped.
    Stop,
}

/// Read or write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Access {
    /// A read, which is answered with all ones.
    Read,
    /// A write, which changes nothing.
    Write,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// One access to memory that the guest does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The guest-physical address of the first byte.
    pub addr: u64,
    /// The number of bytes accessed.
    pub len: usize,
    /// What it was.
    pub access: Access,
}
