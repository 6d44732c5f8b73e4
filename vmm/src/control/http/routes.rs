//! Routes that answer with one JSON object.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::control::action::{Action, Planned, Reply};
use crate::control::error::ControlError;
use crate::control::http::Api;
use crate::control::http::body::{
    AddrParam, DryRun, NameParam, Refusal, dry_run, json, json_or_default, name,
};
use crate::instance::InstanceName;
use crate::instance::state::Verb;
use crate::spec::{ImagesSpec, InstanceSpec, instance};
use mkvmm_api::Range;
use mkvmm_api::bodies::{AllocBody, CreateBody, KillBody, PlanBody};
use mkvmm_api::instance::{E820Row, Instance};
use mkvmm_api::plan::Plan;
use mkvmm_api::pool::{Audit, IomemRow, Pool, Version};

/// What a handler answers with.
type Answer = Result<Response, ControlError>;
/// `{name}` of the path, as axum hands it over.
type NamePath = Result<Path<String>, PathRejection>;
/// The query of a change.
type DryRunQuery = Result<Query<DryRun>, QueryRejection>;

/// How long a guest has between its power button and force.
const KILL_GRACE_MS: u32 = 5000;

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        match self {
            Self::Pool(pool) => Json(pool).into_response(),
            Self::PoolMap(map) => Json(map).into_response(),
            Self::PoolLog(records) => Json(records).into_response(),
            Self::Iomem(rows) => Json(rows).into_response(),
            Self::Audit(audit) => Json(audit).into_response(),
            Self::Instances(instances) => Json(instances).into_response(),
            Self::Instance(instance) => Json(instance).into_response(),
            Self::E820(rows) => Json(rows).into_response(),
            Self::Plan(plan) => Json(plan).into_response(),
            Self::Allocation(allocation) => Json(allocation).into_response(),
            // Handed to `pool_routes::metrics` and nobody else.
            Self::Metrics(_) => ControlError::NoRoute.into_response(),
            Self::Debug(reply) => reply.into_response(),
            // Handed to `streams::console` and nobody else.
            Self::Console(..) => ControlError::NoUpgrade.into_response(),
        }
    }
}

/// Version of the VMM and of this API.
#[utoipa::path(get, path = "/v1/version", responses((status = 200, body = Version)))]
pub async fn version() -> Json<Version> {
    Json(Version::current())
}

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "OpenAPI")))]
pub async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(super::openapi())
}

/// The pool.
#[utoipa::path(get, path = "/v1/pool", responses((status = 200, body = Pool), Refusal))]
pub async fn pool(State(api): State<Api>) -> Answer {
    Ok(api.call(Action::Pool, false).await?.into_response())
}

/// The resource tree, in the order of `/proc/iomem`.
#[utoipa::path(get, path = "/v1/iomem", responses((status = 200, body = [IomemRow]), Refusal))]
pub async fn iomem(State(api): State<Api>) -> Answer {
    Ok(api.call(Action::Iomem, false).await?.into_response())
}

/// Proof that allocators, resource tree, memory slots and memory maps agree.
#[utoipa::path(get, path = "/v1/audit", responses((status = 200, body = Audit), Refusal))]
pub async fn audit(State(api): State<Api>) -> Answer {
    Ok(api.call(Action::Audit, false).await?.into_response())
}

async fn allocate(
    api: &Api,
    instance: Option<InstanceName>,
    query: DryRunQuery,
    body: Body,
) -> Answer {
    let dry_run = dry_run(query)?;
    let AllocBody { size, align } = json(body).await?;
    let action = Action::Alloc {
        instance,
        size: size.bytes(),
        align,
    };
    let reply = api.call(action, dry_run).await?;
    let status = if dry_run {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    Ok((status, reply).into_response())
}

/// Takes memory out of the main pool.
#[utoipa::path(post, path = "/v1/pool/allocations", params(DryRun), request_body = AllocBody,
    responses((status = 200, body = Range, description = "dry run"),
              (status = 201, body = Range), Refusal))]
pub async fn pool_alloc(State(api): State<Api>, query: DryRunQuery, body: Body) -> Answer {
    allocate(&api, None, query, body).await
}

/// Gives it back, scrubbed.
#[utoipa::path(delete, path = "/v1/pool/allocations/{addr}",
    params(AddrParam, DryRun),
    responses((status = 200, body = Range), Refusal))]
pub async fn pool_free(
    State(api): State<Api>,
    path: Result<Path<u64>, PathRejection>,
    query: DryRunQuery,
) -> Answer {
    let action = Action::Free {
        instance: None,
        addr: path?.0,
    };
    Ok(api.call(action, dry_run(query)?).await?.into_response())
}

/// All instances by number.
#[utoipa::path(get, path = "/v1/instances", responses((status = 200, body = [Instance]), Refusal))]
pub async fn list(State(api): State<Api>) -> Answer {
    Ok(api.call(Action::List, false).await?.into_response())
}

/// Makes an instance: `ready`, or `loaded` where there is a kernel.
#[utoipa::path(post, path = "/v1/instances", params(DryRun), request_body = CreateBody,
    responses((status = 200, body = Instance, description = "dry run"),
              (status = 201, body = Instance), Refusal))]
pub async fn create(State(api): State<Api>, query: DryRunQuery, body: Body) -> Answer {
    let dry_run = dry_run(query)?;
    let CreateBody(spec) = json(body).await?;
    let Planned { config, images } = planned(&api, spec, dry_run).await?;
    let reply = api.call(Action::Create { config, images }, dry_run).await?;
    let status = if dry_run {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    Ok((status, reply).into_response())
}

/// Checks what is to be made and reads its images.
async fn planned(api: &Api, spec: InstanceSpec, dry_run: bool) -> Result<Planned, ControlError> {
    let wanted = spec.images()?;
    let mut config = instance(spec)?;
    let images = match wanted {
        Some(images) => Some(api.read_images(config.name.clone(), images).await?),
        None => None,
    };
    if let Some(path) = config.spec.console_log.clone() {
        config.console_log = api.console_log(path, dry_run).await?;
    }
    Ok(Planned { config, images })
}

/// What would come of making instances one after the other, to the byte.
#[utoipa::path(post, path = "/v1/plan", request_body = PlanBody,
    responses((status = 200, body = Plan), Refusal))]
pub async fn plan(State(api): State<Api>, body: Body) -> Answer {
    let PlanBody { instances } = json(body).await?;
    let mut wanted = Vec::new();
    for CreateBody(spec) in instances {
        wanted.push(planned(&api, spec, true).await?);
    }
    Ok(api.call(Action::Plan(wanted), false).await?.into_response())
}

/// One instance.
#[utoipa::path(get, path = "/v1/instances/{name}",
    params(NameParam), responses((status = 200, body = Instance), Refusal))]
pub async fn show(State(api): State<Api>, path: NamePath) -> Answer {
    Ok(api
        .call(Action::Show(name(path)?), false)
        .await?
        .into_response())
}

async fn carry_out(api: &Api, verb: Verb, path: NamePath, query: DryRunQuery) -> Answer {
    let name = name(path)?;
    let action = Action::Do { verb, name };
    Ok(api.call(action, dry_run(query)?).await?.into_response())
}

/// Gives an instance's memory back; answers with what it was.
#[utoipa::path(delete, path = "/v1/instances/{name}",
    params(NameParam, DryRun),
    responses((status = 200, body = Instance), Refusal))]
pub async fn delete(State(api): State<Api>, path: NamePath, query: DryRunQuery) -> Answer {
    carry_out(&api, Verb::Delete, path, query).await
}

/// Puts images into an instance's memory, in place of those it has.
#[utoipa::path(post, path = "/v1/instances/{name}/load",
    params(NameParam, DryRun), request_body = ImagesSpec,
    responses((status = 200, body = Instance), Refusal))]
pub async fn load(
    State(api): State<Api>,
    path: NamePath,
    query: DryRunQuery,
    body: Body,
) -> Answer {
    let (name, dry_run) = (name(path)?, dry_run(query)?);
    let wanted: ImagesSpec = json(body).await?;
    // Nobody needs to wait for files of an instance that is not there.
    api.call(Action::Show(name.clone()), false).await?;
    let images = api.read_images(name.clone(), wanted).await?;
    let action = Action::Load { name, images };
    Ok(api.call(action, dry_run).await?.into_response())
}

/// Boots an instance.
#[utoipa::path(post, path = "/v1/instances/{name}/start",
    params(NameParam, DryRun),
    responses((status = 200, body = Instance), Refusal))]
pub async fn start(State(api): State<Api>, path: NamePath, query: DryRunQuery) -> Answer {
    carry_out(&api, Verb::Start, path, query).await
}

/// Boots an instance: the former name of `start`, which the next release does not have.
#[utoipa::path(post, path = "/v1/instances/{name}/exec",
    params(NameParam, DryRun),
    responses((status = 200, body = Instance), Refusal))]
#[deprecated = "it is called start"]
pub async fn exec(State(api): State<Api>, path: NamePath, query: DryRunQuery) -> Answer {
    carry_out(&api, Verb::Start, path, query).await
}

/// Stops an instance's vCPUs for a while.
#[utoipa::path(post, path = "/v1/instances/{name}/pause",
    params(NameParam, DryRun),
    responses((status = 200, body = Instance), Refusal))]
pub async fn pause(State(api): State<Api>, path: NamePath, query: DryRunQuery) -> Answer {
    carry_out(&api, Verb::Pause, path, query).await
}

/// Lets them go on.
#[utoipa::path(post, path = "/v1/instances/{name}/resume",
    params(NameParam, DryRun),
    responses((status = 200, body = Instance), Refusal))]
pub async fn resume(State(api): State<Api>, path: NamePath, query: DryRunQuery) -> Answer {
    carry_out(&api, Verb::Resume, path, query).await
}

/// Ends an instance, by its power button and then by force; answers when it
/// has ended. Without effect on one that has ended already.
#[utoipa::path(post, path = "/v1/instances/{name}/kill",
    params(NameParam, DryRun), request_body = Option<KillBody>,
    responses((status = 200, body = Instance), Refusal))]
pub async fn kill(
    State(api): State<Api>,
    path: NamePath,
    query: DryRunQuery,
    body: Body,
) -> Answer {
    let (name, dry_run) = (name(path)?, dry_run(query)?);
    let body: Option<KillBody> = json_or_default(body).await?;
    let KillBody { force, grace_ms } = body.unwrap_or_default();
    let grace = if force {
        Duration::ZERO
    } else {
        Duration::from_millis(grace_ms.unwrap_or(KILL_GRACE_MS).into())
    };
    let action = Action::Kill { name, grace };
    Ok(api.call(action, dry_run).await?.into_response())
}

/// Takes the images out of an instance's memory.
#[utoipa::path(post, path = "/v1/instances/{name}/unload",
    params(NameParam, DryRun),
    responses((status = 200, body = Instance), Refusal))]
pub async fn unload(State(api): State<Api>, path: NamePath, query: DryRunQuery) -> Answer {
    carry_out(&api, Verb::Unload, path, query).await
}

/// An instance's memory map, from the ledger as it stands.
#[utoipa::path(get, path = "/v1/instances/{name}/e820",
    params(NameParam), responses((status = 200, body = [E820Row]), Refusal))]
pub async fn e820(State(api): State<Api>, path: NamePath) -> Answer {
    Ok(api
        .call(Action::E820(name(path)?), false)
        .await?
        .into_response())
}

/// Takes memory out of an instance's sub-pool, or, once its guest runs, out
/// of its control block.
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

/// Gives it back.
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
    let action = Action::Free {
        instance: Some(name.parse()?),
        addr,
    };
    Ok(api.call(action, dry_run(query)?).await?.into_response())
}
