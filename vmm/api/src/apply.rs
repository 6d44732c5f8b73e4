//! Objects for making the pool be what a fleet says.

use serde::{Deserialize, Serialize};

use crate::bodies::CreateBody;
use crate::channel::ChannelBody;
use crate::number::optional;
use crate::plan::Plan;

/// The body of `POST /v1/apply`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ApplyBody {
    /// The channels that are to be there, which are created before the instances.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<ChannelBody>,
    /// The instances that are to be there, in the order in which they are created.
    pub instances: Vec<CreateBody>,
    /// True to delete all other instances and channels.
    #[serde(default)]
    pub prune: bool,
    /// The number of milliseconds that guests have to shut down, where one must
    /// end; 5000 when absent.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional::<u32, 0, 0xffff_ffff, _>"
    )]
    #[cfg_attr(feature = "schema", schema(value_type = Option<u64>, minimum = 0, maximum = 4_294_967_295_u64))]
    pub grace_ms: Option<u32>,
}

/// What was done to make the pool be what a fleet says, or would be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Applied {
    /// What happens to each channel: those of the fleet first, in its order.
    #[serde(default)]
    pub channels: Vec<FleetChange>,
    /// What happens to each instance: those of the fleet first, in its order.
    pub changes: Vec<FleetChange>,
    /// The placement of the channels and instances that are created, in the order of
    /// their creation, as it was computed beforehand.
    pub plan: Plan,
}

/// What happens to one instance or channel when a fleet is applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FleetChange {
    /// The name of the instance or channel.
    pub name: String,
    /// The kind of the change.
    pub action: FleetAction,
    /// The keys whose values differ, for a replacement.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
    /// True if the instance is booted.
    pub starts: bool,
    /// True if a guest that runs is ended, or a channel is taken away from one.
    pub ends: bool,
}

impl FleetChange {
    /// Returns whether the instance or channel stays as it is.
    pub const fn is_none(&self) -> bool {
        matches!(self.action, FleetAction::Keep | FleetAction::Leave)
    }
}

/// The kind of a change of a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum FleetAction {
    /// The instance or channel is as the fleet says.
    Keep,
    /// The instance or channel is created.
    Create,
    /// The instance or channel differs from what the fleet says: it is deleted and created
    /// again.
    Replace,
    /// The instance is only booted.
    Start,
    /// The fleet does not have the instance or channel, and it is deleted.
    Delete,
    /// The fleet does not have the instance or channel, and it stays.
    Leave,
}

/// A key whose value differs from what a fleet says. Values are written as in a
/// fleet file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Difference {
    /// The key of the specification.
    pub key: String,
    /// The present value; absent if the key is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The value in the fleet; absent if the key is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}
