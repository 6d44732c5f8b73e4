//! Channels: memory that several guests share at one address, with doorbells.

use std::fmt;
use std::str::FromStr;

use mkvmm_base::{InstanceName, NameError};
use serde::{Deserialize, Serialize};

use crate::number::bounded;
use crate::{Range, Size};

/// The body that creates a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ChannelBody {
    /// The name of the channel.
    #[cfg_attr(
        feature = "schema",
        schema(value_type = String, pattern = "^[0-9A-Za-z][0-9A-Za-z._-]{0,31}$")
    )]
    pub name: InstanceName,
    /// The number of bytes, rounded up to whole granules.
    pub size: Size,
    /// The members: from 2 to 8 names of instances, which need not exist, each
    /// followed by `:ro` if it can only read the memory.
    #[cfg_attr(feature = "schema", schema(min_items = 2, max_items = 8))]
    pub between: Vec<MemberSpec>,
    /// The number of doorbells that each member has, from 1 to 4; 1 when absent.
    #[serde(default = "one", deserialize_with = "bounded::<u8, 1, 4, _>")]
    #[cfg_attr(feature = "schema", schema(value_type = u64, minimum = 1, maximum = 4))]
    pub doorbells: u8,
}

const fn one() -> u8 {
    1
}

/// The body of `…/join` and `…/leave`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MemberBody {
    /// The name of the member.
    #[cfg_attr(
        feature = "schema",
        schema(value_type = String, pattern = "^[0-9A-Za-z][0-9A-Za-z._-]{0,31}$")
    )]
    pub member: InstanceName,
}

/// A member as users write it: `NAME`, `NAME:ro` or `NAME:rw`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberSpec {
    /// The name of the instance.
    pub name: InstanceName,
    /// Whether it can only read.
    pub read_only: bool,
}

impl FromStr for MemberSpec {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (name, read_only) = match text.strip_suffix(":ro") {
            Some(name) => (name, true),
            None => (text.strip_suffix(":rw").unwrap_or(text), false),
        };
        Ok(Self {
            name: name.parse()?,
            read_only,
        })
    }
}

impl fmt::Display for MemberSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.read_only { ":ro" } else { "" };
        write!(f, "{}{access}", self.name)
    }
}

impl Serialize for MemberSpec {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MemberSpec {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "schema")]
impl utoipa::PartialSchema for MemberSpec {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::Type::String)
            .description(Some(
                "The name of an instance, with `:ro` if it can only read.",
            ))
            .pattern(Some("^[0-9A-Za-z][0-9A-Za-z._-]{0,31}(:r[ow])?$"))
            .into()
    }
}

#[cfg(feature = "schema")]
impl utoipa::ToSchema for MemberSpec {}

/// A channel with its members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Channel {
    /// The number of the channel, which is never used again.
    pub id: u32,
    /// The name of the channel.
    pub name: String,
    /// The addresses of its memory, in the pool and in all members.
    #[serde(flatten)]
    pub range: Range,
    /// The number of doorbells that each member has.
    pub doorbells: u8,
    /// The members, in the order of their numbers, from 0 on.
    pub members: Vec<Member>,
}

/// A member of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = ChannelMember))]
pub struct Member {
    /// The name of the instance.
    pub name: String,
    /// True if it can only read the memory.
    pub read_only: bool,
    /// True if its guest has the memory at present.
    pub present: bool,
    /// The number of times that its guest got the memory: at boots, and while it ran.
    pub boots: u32,
}

/// A channel of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct OwnChannel {
    /// The name of the channel.
    pub name: String,
    /// The addresses of its memory, in the pool and in all members.
    #[serde(flatten)]
    pub range: Range,
    /// The number of the instance among the members, from 0 on.
    pub member: u8,
    /// True if the instance can only read the memory.
    pub read_only: bool,
    /// True if the instance's guest has the memory at present.
    pub present: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_written_as_they_are_read() {
        let read = |text: &str| text.parse::<MemberSpec>().map(|member| member.to_string());
        assert_eq!(read("web").unwrap(), "web");
        assert_eq!(read("web:rw").unwrap(), "web");
        assert_eq!(read("a.b:ro").unwrap(), "a.b:ro");
        for bad in ["", ":ro", "web:wo", "web:ro:ro", "a b"] {
            read(bad).unwrap_err();
        }
    }
}
