//! What requests carry, taken apart with errors of our own.

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use utoipa::{IntoParams, IntoResponses};

use crate::control::error::ControlError;
use mkvmm_api::ErrorBody;
use mkvmm_base::InstanceName;

/// Longest body of a request, bytes.
const BODY_MAX: usize = 64 << 10;
/// The same of a plan: fleets may have thousands of instances.
const PLAN_MAX: usize = 4 << 20;
/// The route of plans.
const PLAN: &str = "/v1/plan";

/// `?dry_run=true`: say what would come of it, and do nothing.
#[derive(Debug, Clone, Copy, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DryRun {
    /// Say what would come of it, and do nothing.
    #[serde(default)]
    #[param(required = false)]
    pub dry_run: bool,
}

/// The instance that a path names: what its documentation says of it.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "describes a parameter, is never one")]
pub struct NameParam {
    /// The name of the instance.
    #[param(pattern = "^[0-9A-Za-z][0-9A-Za-z._-]{0,31}$", example = "web")]
    name: String,
}

/// The allocation that a path names, likewise.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "describes a parameter, is never one")]
pub struct AddrParam {
    /// Its first byte, decimal.
    #[param(minimum = 0, maximum = 4_503_599_627_370_495_u64)]
    addr: u64,
}

/// Which events are asked for.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Only events with numbers above this.
    #[serde(default)]
    #[param(required = false, minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    pub since: u64,
    /// Whether to wait for further ones.
    #[serde(default)]
    #[param(required = false)]
    pub follow: bool,
}

/// Which records are asked for.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// Only the last so many; all that are kept (4096) when absent.
    #[serde(default)]
    #[param(required = false, value_type = Option<u64>, minimum = 0, maximum = 4_294_967_295_u64)]
    pub limit: Option<u32>,
}

/// The refusals that every route may answer with.
#[derive(Debug, IntoResponses)]
#[expect(dead_code, reason = "describes responses, is never one")]
pub enum Refusal {
    /// The request cannot be read.
    #[response(status = 400)]
    BadRequest(ErrorBody),
    /// There is no such route, instance or allocation.
    #[response(status = 404)]
    NotFound(ErrorBody),
    /// The state of the instance does not allow it.
    #[response(status = 409)]
    Conflict(ErrorBody),
    /// The route does not know the method; the header `allow` says which it
    /// knows.
    #[response(status = 405)]
    NoMethod(ErrorBody),
    /// The body is too long.
    #[response(status = 413)]
    TooLarge(ErrorBody),
    /// A value cannot be, or a file cannot be used.
    #[response(status = 422)]
    Invalid(ErrorBody),
    /// KVM or the host failed.
    #[response(status = 500)]
    Failed(ErrorBody),
    /// Too much is asked for at once; it may be asked for again.
    #[response(status = 503)]
    Overload(ErrorBody),
    /// The pool or the host cannot hold it.
    #[response(status = 507)]
    NoRoom(ErrorBody),
}

/// A request with all of its body, also for a route that has no use for one: a
/// client that is still sending when the answer comes would find the connection
/// closed, and perhaps never read it.
pub async fn received(request: Request) -> Result<Request, ControlError> {
    let (head, body) = request.into_parts();
    let max = if head.uri.path() == PLAN {
        PLAN_MAX
    } else {
        BODY_MAX
    };
    let bytes = bounded(body, max).await?;
    Ok(Request::from_parts(head, Body::from(bytes)))
}

async fn bounded(body: Body, max: usize) -> Result<Bytes, ControlError> {
    let bytes = to_bytes(body, max).await;
    bytes.map_err(|_too_long| ControlError::Body { max })
}

/// The JSON of a body that was [`received`].
pub async fn json<T: DeserializeOwned>(body: Body) -> Result<T, ControlError> {
    let bytes = bounded(body, PLAN_MAX).await?;
    serde_json::from_slice(&bytes).map_err(|error| match error.classify() {
        Category::Data => ControlError::Data(error),
        _ => ControlError::Syntax(error),
    })
}

/// The same where an empty body stands for the default.
pub async fn json_or_default<T: DeserializeOwned + Default>(body: Body) -> Result<T, ControlError> {
    let bytes = bounded(body, PLAN_MAX).await?;
    if bytes.is_empty() {
        return Ok(T::default());
    }
    json(Body::from(bytes)).await
}

/// The instance that a path names.
pub fn name(path: Result<Path<String>, PathRejection>) -> Result<InstanceName, ControlError> {
    Ok(path?.0.parse()?)
}

/// Whether a query asks for a dry run.
pub fn dry_run(query: Result<Query<DryRun>, QueryRejection>) -> Result<bool, ControlError> {
    Ok(query?.0.dry_run)
}
