//! What is told of a plan.

use serde::{Deserialize, Serialize};

use crate::error::ErrorObject;
use crate::instance::Instance;
use crate::pool::Pool;
use crate::range::Range;

/// The result of creating instances one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Plan {
    /// Whether all of them fit.
    pub fits: bool,
    /// The instances that fit, as they would be, up to the first that does not.
    pub instances: Vec<Instance>,
    /// The places of their pieces; as many lists as there are instances.
    pub pieces: Vec<Vec<Piece>>,
    /// The pool as it would be then.
    pub pool: Pool,
    /// The first instance that does not fit, and why.
    pub problem: Option<PlanProblem>,
}

/// A piece of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Piece {
    /// The name of the piece: `low window`, `control block`, `kernel` or `initramfs`.
    pub name: String,
    /// The addresses of the piece.
    #[serde(flatten)]
    pub range: Range,
}

/// Why a plan does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PlanProblem {
    /// The name of the instance.
    pub name: String,
    /// The error that its creation would be refused with.
    pub error: ErrorObject,
    /// Up to 8 instances, the smallest first, of which deleting any one would make room for
    /// the whole plan.
    pub delete_one_of: Vec<String>,
}
