//! Accesses to memory that a guest does not own, and the response to them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The response to a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum ViolationPolicy {
    /// The violation is counted and logged; the guest continues.
    #[default]
    Log,
    /// The guest is stopped.
    Stop,
}

/// The direction of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Access {
    /// A read, which returns all ones.
    Read,
    /// A write, which is ignored.
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
    /// The direction of the access.
    pub access: Access,
}
