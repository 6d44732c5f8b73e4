//! What can be wrong with the description of an instance.

use mkvmm_base::affinity::CpuSetError;
use mkvmm_base::{Class, Diagnose, InstanceName, NameError};

/// Why a description of an instance was refused.
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
        /// The keys that exist.
        known: &'static [&'static str],
    },
    /// A key that takes one value is given twice.
    #[error("`{key}` is given twice")]
    Repeated {
        /// The key that was given twice.
        key: String,
    },
    /// A key that is needed is not given.
    #[error("`{key}` is missing")]
    Missing {
        /// The key that is needed.
        key: &'static str,
    },
    /// There is no kernel.
    #[error("`kernel` is missing")]
    NoKernel,
    /// A value is not one of its key's.
    #[error("{key}={text}: {reason}")]
    Value {
        /// The key whose value it is.
        key: String,
        /// The value as it was given.
        text: String,
        /// What its type says.
        reason: String,
    },
    /// A value is wrong, of a key that is not known yet.
    #[error("{0}")]
    Reason(String),
    /// A generated name is not a name.
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
            Self::NoKernel => Some(
                "kernel=PATH, kernel=fd:N, or kernel=probe for the built-in test guest".to_owned(),
            ),
            Self::Value { key, .. } if key == "memory" => {
                Some("for instance memory=128M".to_owned())
            }
            _ => None,
        }
    }
}
