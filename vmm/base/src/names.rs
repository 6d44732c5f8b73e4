//! Names and numbers of instances and of their runs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The number of an instance, never reused while the VMM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(pub u32);

/// Identifies one run of an instance, so that events from an earlier run are
/// recognised as stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RunId {
    /// The instance that runs.
    pub id: InstanceId,
    /// The number of the boot, from 1.
    pub epoch: u32,
}

impl InstanceId {
    /// The number of the first instance.
    pub const FIRST: Self = Self(1);
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The maximum length of an instance's name in bytes.
const NAME_MAX: usize = 32;

/// A validated name: 1 to 32 letters, digits, `.`, `_` and `-`, beginning with
/// a letter or digit, so that it is safe in a resource tree, a path and a line
/// of output.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceName(String);

/// A reason why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not an instance name: {}", .name.escape_debug(), "1 to 32 letters, digits, `.`, `_`, `-`, the first a letter or digit")]
pub struct NameError {
    name: String,
}

impl FromStr for InstanceName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let first = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if first && name.len() <= NAME_MAX && name.chars().all(legal) {
            Ok(Self(name.to_owned()))
        } else {
            Err(NameError {
                name: name.to_owned(),
            })
        }
    }
}

impl TryFrom<String> for InstanceName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        name.parse()
    }
}

impl From<InstanceName> for String {
    fn from(name: InstanceName) -> Self {
        name.0
    }
}

#[cfg(feature = "schema")]
impl utoipa::PartialSchema for InstanceName {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::Type::String)
            .description(Some(
                "The name of an instance: 1 to 32 letters, digits, `.`, `_`, `-`, the first a \
                 letter or digit.",
            ))
            .pattern(Some("^[0-9A-Za-z][0-9A-Za-z._-]{0,31}$"))
            .examples([Some("web")])
            .into()
    }
}

#[cfg(feature = "schema")]
impl utoipa::ToSchema for InstanceName {}

impl InstanceName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_a_line_and_a_tree_can_carry() {
        for good in ["web", "db-1", "0", "a.b_c", &"x".repeat(32)] {
            assert!(good.parse::<InstanceName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a b", "a:b", "ä", "a\n", &"x".repeat(33)] {
            assert!(bad.parse::<InstanceName>().is_err(), "{bad:?}");
        }
    }
}
