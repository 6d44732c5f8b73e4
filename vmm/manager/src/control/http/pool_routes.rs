//! Routes about the pool as a whole, and the metrics.

use std::rc::Rc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};

use axum::Json;
use mkvmm_api::pool::{Audit, Capacity, Health, IomemRow, Pool, PoolMap, PoolRecord};

use crate::audit;
use crate::control::error::ControlError;
use crate::control::http::api::Api;
use crate::control::http::body::{LogQuery, Refusal};
use crate::control::metrics::{self, MetricsFacts};
use crate::control::objects;
use crate::control::pool_map::pool_map;
use crate::manager::Manager;
use crate::registry::Registry;

/// The current state of the pool.
#[utoipa::path(get, path = "/v1/pool", responses((status = 200, body = Pool), Refusal))]
pub async fn pool(State(api): State<Api>) -> Result<Json<Pool>, ControlError> {
    let look = |registry: &Registry| Ok(objects::pool_of(registry));
    Ok(Json(api.client.look(look).await?))
}

/// The resource tree, in the order of `/proc/iomem`.
#[utoipa::path(get, path = "/v1/iomem", responses((status = 200, body = [IomemRow]), Refusal))]
pub async fn iomem(State(api): State<Api>) -> Result<Json<Vec<IomemRow>>, ControlError> {
    let look = |registry: &Registry| Ok(objects::iomem(registry));
    Ok(Json(api.client.look(look).await?))
}

/// A check that allocators, resource tree, memory slots and memory maps agree.
#[utoipa::path(get, path = "/v1/audit", responses((status = 200, body = Audit), Refusal))]
pub async fn audit(State(api): State<Api>) -> Result<Json<Audit>, ControlError> {
    let look = |registry: &Registry| Ok(objects::audit(audit::audit(registry)));
    Ok(Json(api.client.look(look).await?))
}

/// What the pool has, counted in granules, for schedulers.
#[utoipa::path(get, path = "/v1/capacity", responses((status = 200, body = Capacity), Refusal))]
pub async fn capacity(State(api): State<Api>) -> Result<Json<Capacity>, ControlError> {
    let look = |registry: &Registry| Ok(objects::capacity(registry));
    Ok(Json(api.client.look(look).await?))
}

/// Whether the VMM answers, and has all that it needs.
#[utoipa::path(get, path = "/v1/health", responses((status = 200, body = Health), Refusal))]
pub async fn health(State(api): State<Api>) -> Result<Json<Health>, ControlError> {
    let ask = |manager: &Rc<Manager>| match manager.is_ending() {
        true => Err(ControlError::Ending),
        false => Ok(objects::health(&manager.registry())),
    };
    Ok(Json(api.client.ask(ask).await?))
}

/// The owners of all bytes of the pool, without gaps.
#[utoipa::path(get, path = "/v1/pool/map", responses((status = 200, body = PoolMap), Refusal))]
pub async fn map(State(api): State<Api>) -> Result<Json<PoolMap>, ControlError> {
    let look = |registry: &Registry| Ok(pool_map(registry));
    Ok(Json(api.client.look(look).await?))
}

/// The last allocations of the pool, oldest first, with their callers and the
/// reasons of refusals. Dry runs and plans are not included.
#[utoipa::path(get, path = "/v1/pool/log", params(LogQuery),
    responses((status = 200, body = [PoolRecord]), Refusal))]
pub async fn log(
    State(api): State<Api>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Json<Vec<PoolRecord>>, ControlError> {
    let limit = query?.0.limit.and_then(|limit| usize::try_from(limit).ok());
    let look = move |registry: &Registry| {
        let records = registry.pool().log().last(limit.unwrap_or(usize::MAX));
        Ok(records.map(objects::pool_record).collect())
    };
    Ok(Json(api.client.look(look).await?))
}

/// Metrics in the OpenMetrics text format.
#[utoipa::path(get, path = "/v1/metrics", responses(
    (status = 200, body = String,
     content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8"), Refusal))]
pub async fn metrics(State(api): State<Api>) -> Result<Response, ControlError> {
    let ask = |manager: &Rc<Manager>| {
        let facts = MetricsFacts::of(&manager.registry(), &manager.stock);
        Ok((facts, manager.images.counters()))
    };
    // This takes long with a thousand instances, and must not delay other
    // requests.
    let (facts, images) = api.client.ask(ask).await?;
    let text = tokio::task::spawn_blocking(move || metrics::render(facts, images));
    match text.await.map_err(|_cancelled| ControlError::Ending)? {
        Ok(text) => Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()),
        Err(error) => {
            log::error!("metrics: {error}");
            Err(ControlError::Ending)
        }
    }
}
