//! Errors in the specification of an instance.

use mkvmm_base::affinity::CpuSetError;
use mkvmm_base::{Class, Diagnose, InstanceName, NameError};

use crate::devices::DEVICES_MAX;
use crate::size::{MIN_MEMORY, Size};

/// A reason why the specification of an instance was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The text between two commas is not of the form KEY=VAL.
    #[error("`{text}` is not KEY=VAL")]
    NoValue {
        /// The text between the commas.
        text: String,
    },
    /// The key does not exist.
    #[error("unknown key `{key}`")]
    UnknownKey {
        /// The key that was given.
        key: String,
        /// All keys that exist.
        known: &'static [&'static str],
    },
    /// A key that takes one value is given twice.
    #[error("`{key}` is given twice")]
    Repeated {
        /// The key that was given twice.
        key: String,
    },
    /// A required key is not given.
    #[error("`{key}` is missing")]
    Missing {
        /// The name of the required key.
        key: &'static str,
    },
    /// Images are given without a kernel.
    #[error("`kernel` is missing")]
    NoKernel,
    /// The value of a key is invalid.
    #[error("{key}={text}: {reason}")]
    Value {
        /// The key of the value.
        key: String,
        /// The value as it was given.
        text: String,
        /// The reason that the value's type gives.
        reason: String,
    },
    /// A value is invalid; its key is not known yet.
    #[error("{0}")]
    Reason(String),
    /// No guest can run in so little memory.
    #[error("memory={}: no guest runs in less than {}", .memory.exact_text(), MIN_MEMORY.exact_text())]
    TooSmall {
        /// The memory that was given.
        memory: Size,
    },
    /// There are more devices than PCI slots.
    #[error("{count} devices are too many (limit: {DEVICES_MAX})")]
    Devices {
        /// The number of devices.
        count: usize,
    },
    /// A generated name is not valid.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Two instances have the same name.
    #[error("two guests are named {name}")]
    SameName {
        /// The name that both have.
        name: InstanceName,
    },
    /// The host does not have the processors.
    #[error("cpus-affinity")]
    Affinity(#[from] CpuSetError),
}

impl Diagnose for SpecError {
    fn class(&self) -> Class {
        match self {
            Self::NoKernel => Class::NoKernel,
            Self::Affinity(error) => error.class(),
            Self::TooSmall { .. } => Class::NoRoom,
            _ => Class::Invalid,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownKey { known, .. } => Some(format!(
                "the keys are {}; a comma inside a value is written `,,`",
                known.join(", ")
            )),
            Self::NoValue { .. } => Some("a comma inside a value is written `,,`".to_owned()),
            Self::TooSmall { .. } => Some(
                "4M is enough for the built-in test guest; a Linux needs 64M or more".to_owned(),
            ),
            Self::NoKernel => Some(
                "kernel=PATH, kernel=fd:N, or kernel=probe for the built-in test guest".to_owned(),
            ),
            Self::Value { key, .. } if key == "memory" => {
                Some("for example memory=128M".to_owned())
            }
            _ => None,
        }
    }
}
