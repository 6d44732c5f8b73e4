//! Objects that describe plans.

use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::error::ErrorObject;
use crate::instance::Instance;
use crate::pool::Pool;
use crate::range::Range;

/// The result of creating instances one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Plan {
    /// True if all channels and instances fit.
    pub fits: bool,
    /// The channels that fit, as they would be created, up to the first that does
    /// not fit.
    #[serde(default)]
    pub channels: Vec<Channel>,
    /// The instances that fit, as they would be created.
    pub instances: Vec<Instance>,
    /// The pieces of each instance, in the order of `instances`.
    pub pieces: Vec<Vec<Piece>>,
    /// The state of the pool afterwards.
    pub pool: Pool,
    /// The first channel or instance that does not fit, and the reason.
    pub problem: Option<PlanProblem>,
    /// All that do not fit beside those that do, with the reasons.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<PlanProblem>,
    /// The size of a pool that would have room for the whole plan and for what is
    /// there now, if this one does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_size: Option<u64>,
}

/// A part of an instance's memory with one purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Piece {
    /// The name of the piece: `low window`, `control block`, `kernel` or `initramfs`.
    pub name: String,
    /// The pool addresses of the piece.
    #[serde(flatten)]
    pub range: Range,
}

/// The reason why a plan does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PlanProblem {
    /// The name of the channel or instance.
    pub name: String,
    /// The error that creating it would return.
    pub error: ErrorObject,
    /// Up to 8 instances, the smallest first, each of which alone would make
    /// room for the whole plan if deleted. Only with the first that does not fit.
    pub delete_one_of: Vec<String>,
}
