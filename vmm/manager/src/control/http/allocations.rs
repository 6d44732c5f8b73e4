//! Routes that allocate memory for clients, and free it.

use std::rc::Rc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;

use mkpool::AddrRange;
use mkvmm_api::Range;
use mkvmm_api::bodies::AllocBody;
use mkvmm_base::InstanceName;

use crate::control::client::Change;
use crate::control::http::api::Api;
use crate::control::http::body::{AddrParam, DryRun, NameParam, Refusal, dry_run, json, name};
use crate::control::http::routes::{Answer, DryRunQuery, NamePath};
use crate::manager::Manager;

async fn allocate(
    api: &Api,
    instance: Option<InstanceName>,
    query: DryRunQuery,
    body: Body,
) -> Answer {
    let dry_run = dry_run(query)?;
    let AllocBody { size, align } = json(body).await?;
    let name = Change {
        action: "alloc",
        instance: instance.clone(),
    };
    let alloc = async move |manager: Rc<Manager>| {
        let mut registry = manager.registry_mut();
        let range = registry.alloc(instance.as_ref(), size.bytes(), align, dry_run)?;
        Ok(Range::from(range))
    };
    let range = api.client.change(name, alloc).await?;
    let status = if dry_run {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    Ok((status, Json(range)).into_response())
}

async fn give_back(
    api: &Api,
    instance: Option<InstanceName>,
    addr: u64,
    query: DryRunQuery,
) -> Answer {
    let dry_run = dry_run(query)?;
    let name = Change {
        action: "free",
        instance: instance.clone(),
    };
    let free = async move |manager: Rc<Manager>| {
        let mut registry = manager.registry_mut();
        let range: AddrRange = registry.free(instance.as_ref(), addr, dry_run)?;
        Ok(Range::from(range))
    };
    Ok(Json(api.client.change(name, free).await?).into_response())
}

/// Allocates memory from the main pool.
#[utoipa::path(post, path = "/v1/pool/allocations", params(DryRun), request_body = AllocBody,
    responses((status = 200, body = Range, description = "dry run"),
              (status = 201, body = Range), Refusal))]
pub async fn pool_alloc(State(api): State<Api>, query: DryRunQuery, body: Body) -> Answer {
    allocate(&api, None, query, body).await
}

/// Frees an allocation of the main pool and scrubs it.
#[utoipa::path(delete, path = "/v1/pool/allocations/{addr}",
    params(AddrParam, DryRun),
    responses((status = 200, body = Range), Refusal))]
pub async fn pool_free(
    State(api): State<Api>,
    path: Result<Path<u64>, PathRejection>,
    query: DryRunQuery,
) -> Answer {
    give_back(&api, None, path?.0, query).await
}

/// Allocates memory from an instance's sub-pool, or, once its guest runs, from
/// its control block.
#[utoipa::path(post, path = "/v1/instances/{name}/allocations",
    params(NameParam, DryRun), request_body = AllocBody,
    responses((status = 200, body = Range, description = "dry run"),
              (status = 201, body = Range), Refusal))]
pub async fn alloc(
    State(api): State<Api>,
    path: NamePath,
    query: DryRunQuery,
    body: Body,
) -> Answer {
    let name = name(path)?;
    allocate(&api, Some(name), query, body).await
}

/// Frees an allocation of an instance.
#[utoipa::path(delete, path = "/v1/instances/{name}/allocations/{addr}",
    params(NameParam, AddrParam,
           DryRun),
    responses((status = 200, body = Range), Refusal))]
pub async fn free(
    State(api): State<Api>,
    path: Result<Path<(String, u64)>, PathRejection>,
    query: DryRunQuery,
) -> Answer {
    let Path((name, addr)) = path?;
    give_back(&api, Some(name.parse()?), addr, query).await
}
