//! Routes that look at the pool as a whole, and at everything in numbers.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::control::action::{Action, Reply};
use crate::control::error::ControlError;
use crate::control::http::Api;
use crate::control::http::body::{LogQuery, Refusal};
use crate::control::metrics;
use mkvmm_api::pool::{PoolMap, PoolRecord};

/// Who has which bytes of the pool, without a gap.
#[utoipa::path(get, path = "/v1/pool/map", responses((status = 200, body = PoolMap), Refusal))]
pub async fn map(State(api): State<Api>) -> Result<Response, ControlError> {
    Ok(api.call(Action::PoolMap, false).await?.into_response())
}

/// The last allocations of the pool, oldest first: who asked, and why some
/// were refused. Dry runs and plans are not among them.
#[utoipa::path(get, path = "/v1/pool/log", params(LogQuery),
    responses((status = 200, body = [PoolRecord]), Refusal))]
pub async fn log(
    State(api): State<Api>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Response, ControlError> {
    let limit = query?.0.limit;
    let action = Action::PoolLog { limit };
    Ok(api.call(action, false).await?.into_response())
}

/// Metrics in OpenMetrics text.
#[utoipa::path(get, path = "/v1/metrics", responses(
    (status = 200, body = String,
     content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8"), Refusal))]
pub async fn metrics(State(api): State<Api>) -> Result<Response, ControlError> {
    let facts = match api.call(Action::Metrics, false).await? {
        Reply::Metrics(facts) => facts,
        other => return Ok(other.into_response()),
    };
    // Long with a thousand instances, and others want answers meanwhile.
    let images = api.images.counters();
    let text = tokio::task::spawn_blocking(move || metrics::render(&facts, images));
    match text.await.map_err(|_cancelled| ControlError::Ending)? {
        Ok(text) => Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()),
        Err(error) => {
            log::error!("metrics: {error}");
            Err(ControlError::Ending)
        }
    }
}
