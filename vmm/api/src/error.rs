//! Errors, as clients see them.

use mkvmm_base::state::{State, Verb};
use mkvmm_base::{Class, Diagnose, causes, chain};
use serde::{Deserialize, Serialize};

/// The body of an error response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// The description of the error.
    pub error: ErrorObject,
}

/// The description of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ErrorObject {
    /// The class of the error, as one word for programs.
    pub code: Class,
    /// The error and its causes, on one line for people.
    pub message: String,
    /// What the error and each of its causes say, down to the last one, if there are
    /// several: also those that `message` leaves out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// A hint for fixing the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The number of bytes requested, if the pool has no room for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested: Option<u64>,
    /// The number of bytes free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avail: Option<u64>,
    /// The number of bytes of the longest free extent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub largest_free: Option<u64>,
    /// The state of the instance, if it does not allow the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// The verbs that the state allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub legal: Option<Vec<Verb>>,
}

impl<E: Diagnose> From<&E> for ErrorObject {
    fn from(error: &E) -> Self {
        let (room, state) = (error.room(), error.state());
        let causes = Some(causes(error)).filter(|all| all.len() > 1);
        Self {
            code: error.class(),
            message: chain(error),
            causes: causes.unwrap_or_default(),
            help: error.hint(),
            requested: room.map(|room| room.requested),
            avail: room.map(|room| room.avail),
            largest_free: room.map(|room| room.largest_free),
            state,
            legal: state.map(|state| state.legal().collect()),
        }
    }
}
