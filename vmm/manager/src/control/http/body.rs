//! Extracts the parts of requests, with mkvmm's own errors.

use std::error::Error;
use std::num::NonZeroU32;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request};
use http_body_util::LengthLimitError;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use utoipa::{IntoParams, IntoResponses};

use crate::control::error::ControlError;
use mkvmm_api::ErrorBody;
use mkvmm_base::InstanceName;

/// The maximum size of a request's body in bytes.
const BODY_MAX: usize = 64 << 10;
/// The maximum size of a plan's body in bytes: fleets may have thousands of
/// instances.
const PLAN_MAX: usize = 4 << 20;
/// The routes whose bodies are fleets.
const FLEETS: [&str; 2] = ["/v1/plan", "/v1/apply"];

/// The query parameter `?dry_run=true`: validate only, change nothing.
#[derive(Debug, Clone, Copy, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DryRun {
    /// Validate only; change nothing (dry run).
    #[serde(default)]
    #[param(required = false)]
    pub dry_run: bool,
}

/// The query of the route that creates an instance.
#[derive(Debug, Clone, Copy, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CreateParams {
    /// Validate only; change nothing (dry run).
    #[serde(default)]
    #[param(required = false)]
    pub dry_run: bool,
    /// True if the instance is to exist only as long as somebody holds its lease, which
    /// is to be taken within ten seconds.
    #[serde(default)]
    #[param(required = false)]
    pub lease: bool,
}

/// The query of the route of a lease.
#[derive(Debug, Clone, Copy, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LeaseQuery {
    /// The number of milliseconds within which the lease has to be renewed, by a byte
    /// on the connection; it lasts as long as the connection when absent.
    #[serde(default)]
    #[param(required = false, value_type = Option<u64>, minimum = 1, maximum = 4_294_967_295_u64)]
    pub limit_ms: Option<NonZeroU32>,
}

/// The documentation of the instance in a path.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "describes a parameter, is never one")]
pub struct NameParam {
    /// The name of the instance.
    #[param(pattern = "^[0-9A-Za-z][0-9A-Za-z._-]{0,31}$", example = "web")]
    name: String,
}

/// The documentation of the channel in a path.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "describes a parameter, is never one")]
pub struct ChannelParam {
    /// The name of the channel.
    #[param(pattern = "^[0-9A-Za-z][0-9A-Za-z._-]{0,31}$", example = "ab")]
    name: String,
}

/// The query of the route that deletes a channel.
#[derive(Debug, Clone, Copy, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EndParams {
    /// Validate only; change nothing (dry run).
    #[serde(default)]
    #[param(required = false)]
    pub dry_run: bool,
    /// True to take the channel away from guests that have it.
    #[serde(default)]
    #[param(required = false)]
    pub force: bool,
}

/// The documentation of the allocation in a path.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "describes a parameter, is never one")]
pub struct AddrParam {
    /// The address of its first byte, in decimal.
    #[param(minimum = 0, maximum = 4_503_599_627_370_495_u64)]
    addr: u64,
}

/// The first of the events that are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Since {
    /// Those with numbers above this one.
    Number(u64),
    /// Those from now on.
    Now,
}

impl Default for Since {
    fn default() -> Self {
        Self::Number(0)
    }
}

impl TryFrom<String> for Since {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "now" => Ok(Self::Now),
            number => {
                let number = number.parse();
                number.map_or(Err("expected a number or `now`"), |n| Ok(Self::Number(n)))
            }
        }
    }
}

/// The query of the events route.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Return only events with numbers above this one, or, if it is `now`, those from
    /// now on.
    #[serde(default)]
    #[param(required = false, value_type = String, pattern = "^(now|[0-9]{1,15})$")]
    pub since: Since,
    /// Return only events of instances with this name.
    #[serde(default)]
    #[param(required = false, value_type = String, pattern = "^[0-9A-Za-z][0-9A-Za-z._-]{0,31}$")]
    pub name: Option<InstanceName>,
    /// True to wait for further events.
    #[serde(default)]
    #[param(required = false)]
    pub follow: bool,
}

/// The query of the output route.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OutputQuery {
    /// Return only the last `tail` lines of what was printed before; all that
    /// is kept when absent.
    #[serde(default)]
    #[param(required = false, value_type = Option<u64>, minimum = 0, maximum = 4_294_967_295_u64)]
    pub tail: Option<u32>,
    /// True to wait for further output, until the instance is deleted.
    #[serde(default)]
    #[param(required = false)]
    pub follow: bool,
}

/// The query of a console's route.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConsoleQuery {
    /// The number of the console: 0 for the serial port, others from 1 on.
    #[serde(default)]
    #[param(required = false, minimum = 0, maximum = 255)]
    pub number: u8,
}

/// The query of the allocation log's route.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// Return only the last `limit` records; all that are kept (4096) when
    /// absent.
    #[serde(default)]
    #[param(required = false, value_type = Option<u64>, minimum = 0, maximum = 4_294_967_295_u64)]
    pub limit: Option<u32>,
}

/// The errors that every route may respond with.
#[derive(Debug, IntoResponses)]
#[expect(dead_code, reason = "describes responses, is never one")]
pub enum Refusal {
    /// The request cannot be parsed.
    #[response(status = 400)]
    BadRequest(ErrorBody),
    /// The client may not do this, or not with this instance.
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// There is no such route, instance or allocation.
    #[response(status = 404)]
    NotFound(ErrorBody),
    /// The state of the instance does not allow the request.
    #[response(status = 409)]
    Conflict(ErrorBody),
    /// The route does not support the method; the header `allow` lists those it
    /// supports.
    #[response(status = 405)]
    NoMethod(ErrorBody),
    /// The body is too large.
    #[response(status = 413)]
    TooLarge(ErrorBody),
    /// A value is invalid, or a file cannot be used.
    #[response(status = 422)]
    Invalid(ErrorBody),
    /// KVM or the host failed.
    #[response(status = 500)]
    Failed(ErrorBody),
    /// Too many requests at once; the request can be retried.
    #[response(status = 503)]
    Overload(ErrorBody),
    /// The pool or the host lacks the memory or another resource.
    #[response(status = 507)]
    NoRoom(ErrorBody),
}

/// Returns a request with its complete body, even for a route that ignores it:
/// a client that is still sending when the response arrives would find the
/// connection closed, and might never read it.
pub async fn received(request: Request) -> Result<Request, ControlError> {
    let (head, body) = request.into_parts();
    let max = if FLEETS.contains(&head.uri.path()) {
        PLAN_MAX
    } else {
        BODY_MAX
    };
    let bytes = bounded(body, max).await?;
    Ok(Request::from_parts(head, Body::from(bytes)))
}

async fn bounded(body: Body, max: usize) -> Result<Bytes, ControlError> {
    to_bytes(body, max).await.map_err(|error| {
        let cause = error.source();
        if cause.is_some_and(|cause| cause.is::<LengthLimitError>()) {
            ControlError::Body { max }
        } else {
            ControlError::Broken(error)
        }
    })
}

/// Parses the JSON of a body that was [`received`].
pub async fn json<T: DeserializeOwned>(body: Body) -> Result<T, ControlError> {
    let bytes = bounded(body, PLAN_MAX).await?;
    serde_json::from_slice(&bytes).map_err(|error| match error.classify() {
        Category::Data => ControlError::Data(error),
        _ => ControlError::Syntax(error),
    })
}

/// Parses the JSON of a body that was [`received`]; an empty body stands for
/// the default.
pub async fn json_or_default<T: DeserializeOwned + Default>(body: Body) -> Result<T, ControlError> {
    let bytes = bounded(body, PLAN_MAX).await?;
    if bytes.is_empty() {
        return Ok(T::default());
    }
    json(Body::from(bytes)).await
}

/// Parses the instance name in a path.
pub fn name(path: Result<Path<String>, PathRejection>) -> Result<InstanceName, ControlError> {
    Ok(path?.0.parse()?)
}

/// Returns whether a query requests a dry run.
pub fn dry_run(query: Result<Query<DryRun>, QueryRejection>) -> Result<bool, ControlError> {
    Ok(query?.0.dry_run)
}
