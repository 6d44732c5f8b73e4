//! Routes of the VMM itself, and of instances that are there.

use std::rc::Rc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use mkvmm_api::ImagesSpec;
use mkvmm_api::bodies::{KillBody, StartBody, Upgrade, UpgradeBody};
use mkvmm_api::instance::{E820Row, Instance};
use mkvmm_api::pool::Version;
use mkvmm_base::InstanceName;
use mkvmm_base::state::Verb;
use mkvmm_keeper::cgroup::{Base, Cgroups};
use rustix::process::Pid;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::config::cgroup_named;
use crate::control::client::{self, Change};
use crate::control::connections::Peer;
use crate::control::error::ControlError;
use crate::control::http::api::Api;
use crate::control::http::body::{
    DryRun, NameParam, Refusal, dry_run, json, json_or_default, name,
};
use crate::control::http::rights;
use crate::control::objects::{self, Measured};
use crate::images::Images;
use crate::manager::Manager;
use crate::registry::Registry;
use crate::upgrade::{UpgradeError, UpgradeRequest};

/// The result of a handler.
pub(super) type Answer = Result<Response, ControlError>;
/// The `{name}` of the path, as axum passes it.
pub(super) type NamePath = Result<Path<String>, PathRejection>;
/// The query of a request that changes something.
pub(super) type DryRunQuery = Result<Query<DryRun>, QueryRejection>;

/// The default time between the power button and SIGKILL.
pub(super) const KILL_GRACE_MS: u32 = 5000;

/// Returns the current description of an instance.
pub(super) fn shown(registry: &Registry, name: &InstanceName) -> Result<Measured, ControlError> {
    Ok(objects::instance(registry, registry.find(name)?)?)
}

pub(super) fn change(action: &'static str, instance: &InstanceName) -> Change {
    Change {
        action,
        instance: Some(instance.clone()),
    }
}

/// The version of the VMM and of this API.
#[utoipa::path(get, path = "/v1/version", responses((status = 200, body = Version), Refusal))]
pub async fn version(State(api): State<Api>) -> Result<Json<Version>, ControlError> {
    let ask = |manager: &Rc<Manager>| {
        let mut version = Version::current();
        if let Some(continuity) = manager.continuity.get() {
            version.manager = continuity.ordinal;
            version.keeper = Some(continuity.keeper.clone());
        }
        version.warm = objects::warm(&manager.stock);
        Ok(version)
    };
    Ok(Json(api.client.ask(ask).await?))
}

/// Continues with another program, which takes over all guests. It is started in
/// place of this one if it accepts the journal.
#[utoipa::path(post, path = "/v1/upgrade", request_body = UpgradeBody,
    responses((status = 202, body = Upgrade), Refusal))]
pub async fn upgrade(State(api): State<Api>, body: Body) -> Answer {
    let UpgradeBody { binary } = json(body).await?;
    let change = Change {
        action: "upgrade",
        instance: None,
    };
    let upgrade = api.client.change(change, |manager| async move {
        let continuity = manager.continuity.get().ok_or(UpgradeError::NoStateDir)?;
        let (reply, replied) = oneshot::channel();
        let request = UpgradeRequest { binary, reply };
        let sent = continuity.upgrades.send(request);
        sent.map_err(|_ending| ControlError::Ending)?;
        let answer = replied.await.map_err(|_ending| ControlError::Ending)?;
        Ok(answer?)
    });
    let upgrade = upgrade.await?;
    Ok((StatusCode::ACCEPTED, Json(upgrade)).into_response())
}

/// All instances, ordered by number.
#[utoipa::path(get, path = "/v1/instances", responses((status = 200, body = [Instance]), Refusal))]
pub async fn list(State(api): State<Api>) -> Answer {
    let look = |registry: &Registry| Ok(objects::instances(registry)?);
    let all = api.client.look(look).await?;
    let read = move || {
        let all: Vec<Instance> = all.into_iter().map(Measured::read).collect();
        rendered(&all)
    };
    let read = tokio::task::spawn_blocking(read).await;
    read.map_err(|_cancelled| ControlError::Ending)?
}

/// Renders what is long where that may take its time.
pub(super) fn rendered(long: &impl Serialize) -> Answer {
    // Writing to memory does not fail, nor do our own types.
    let json = serde_json::to_vec(long).or(Err(ControlError::Ending))?;
    Ok(([(CONTENT_TYPE, "application/json")], json).into_response())
}

/// Returns the cgroup of a client.
pub(super) fn cgroup_of(peer: Option<Extension<Peer>>) -> Result<Base, ControlError> {
    let peer = peer.and_then(|Extension(peer)| Pid::from_raw(peer.pid));
    peer.map(Base::Process).ok_or(ControlError::NoPeer)
}

/// Finds a cgroup in the hierarchies of the host.
pub(super) async fn found(base: Base) -> Result<Cgroups, ControlError> {
    let found = tokio::task::spawn_blocking(move || Cgroups::find(&base)).await;
    Ok(found.map_err(|_cancelled| ControlError::Ending)??)
}

/// The current state of one instance.
#[utoipa::path(get, path = "/v1/instances/{name}",
    params(NameParam), responses((status = 200, body = Instance), Refusal))]
pub async fn show(State(api): State<Api>, path: NamePath) -> Result<Json<Instance>, ControlError> {
    let name = name(path)?;
    let look = move |registry: &Registry| shown(registry, &name);
    Ok(Json(api.client.look(look).await?.read()))
}

/// Carries out a verb that needs no parameter but the name.
async fn carry_out(api: &Api, verb: Verb, path: NamePath, query: DryRunQuery) -> Answer {
    let (name, dry_run) = (name(path)?, dry_run(query)?);
    let label = Change {
        action: verb.word(),
        instance: Some(name.clone()),
    };
    let carry_out = async move |manager: Rc<Manager>| {
        if dry_run {
            manager.registry().check(&name, verb)?;
            return shown(&manager.registry(), &name);
        }
        // The state before: after a deletion there is nothing to describe.
        let last = shown(&manager.registry(), &name)?;
        match verb {
            Verb::Pause => manager.pause(&name).await?,
            Verb::Resume => manager.resume(&name).await?,
            Verb::Unload => manager.unload(&name).await?,
            Verb::Delete => {
                manager.delete(&name).await?;
                return Ok(last);
            }
            // They have more parameters, and routes of their own.
            Verb::Load | Verb::Start | Verb::Kill => {}
        }
        shown(&manager.registry(), &name)
    };
    let shown = api.client.change(label, carry_out).await?;
    Ok(Json(shown.read()).into_response())
}

/// Deletes an instance and frees its memory; responds with its last state.
#[utoipa::path(delete, path = "/v1/instances/{name}",
    params(NameParam, DryRun),
    responses((status = 200, body = Instance), Refusal))]
pub async fn delete(State(api): State<Api>, path: NamePath, query: DryRunQuery) -> Answer {
    carry_out(&api, Verb::Delete, path, query).await
}

/// Loads images into an instance's memory, replacing earlier ones.
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
    if client::user().is_some() {
        rights::check_images(&wanted, api.has_image_dirs().await?)?;
    }
    let label = change("load", &name);
    let of_read = name.clone();
    let read = async move |manager: Rc<Manager>| {
        // Check that the instance exists before reading any files.
        let memory = manager.registry().find(&of_read)?.sub_pool().size();
        Ok(manager.read_images(&of_read, wanted, memory).await?)
    };
    let load = async move |manager: Rc<Manager>, images: Images| {
        match dry_run {
            true => manager.check_load(&name, &images)?,
            false => manager.load(&name, images).await?,
        }
        shown(&manager.registry(), &name)
    };
    let loaded = api.client.prepare_and_change(label, read, load).await?;
    Ok(Json(loaded.read()).into_response())
}

/// Boots an instance.
#[utoipa::path(post, path = "/v1/instances/{name}/start",
    params(NameParam, DryRun), request_body = Option<StartBody>,
    responses((status = 200, body = Instance), Refusal))]
pub async fn start(
    State(api): State<Api>,
    peer: Option<Extension<Peer>>,
    path: NamePath,
    query: DryRunQuery,
    body: Body,
) -> Answer {
    let (name, dry_run) = (name(path)?, dry_run(query)?);
    let body: Option<StartBody> = json_or_default(body).await?;
    let cgroup = body.unwrap_or_default().cgroup;
    if client::user().is_some() {
        rights::check_cgroup(cgroup.as_deref())?;
    }
    let cgroup = match cgroup {
        Some(path) => Some(found(cgroup_named(&path, || cgroup_of(peer))?).await?),
        None => None,
    };
    let label = change("start", &name);
    let start = async move |manager: Rc<Manager>| {
        if dry_run {
            manager.registry().check(&name, Verb::Start)?;
        } else {
            manager.start_in(&name, cgroup).await?;
        }
        shown(&manager.registry(), &name)
    };
    Ok(Json(api.client.change(label, start).await?.read()).into_response())
}

/// Boots an instance: the former name of `start`, which the next release
/// removes.
#[utoipa::path(post, path = "/v1/instances/{name}/exec",
    params(NameParam, DryRun),
    responses((status = 200, body = Instance), Refusal))]
#[deprecated = "it is called start"]
pub async fn exec(
    state: State<Api>,
    peer: Option<Extension<Peer>>,
    path: NamePath,
    query: DryRunQuery,
) -> Answer {
    start(state, peer, path, query, Body::empty()).await
}

/// Pauses an instance's vCPUs.
#[utoipa::path(post, path = "/v1/instances/{name}/pause",
    params(NameParam, DryRun),
    responses((status = 200, body = Instance), Refusal))]
pub async fn pause(State(api): State<Api>, path: NamePath, query: DryRunQuery) -> Answer {
    carry_out(&api, Verb::Pause, path, query).await
}

/// Resumes a paused instance.
#[utoipa::path(post, path = "/v1/instances/{name}/resume",
    params(NameParam, DryRun),
    responses((status = 200, body = Instance), Refusal))]
pub async fn resume(State(api): State<Api>, path: NamePath, query: DryRunQuery) -> Answer {
    carry_out(&api, Verb::Resume, path, query).await
}

/// Ends an instance, by its power button and then by force; responds when it
/// has ended. Has no effect on an instance that has ended already.
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
    let label = change("kill", &name);
    let kill = async move |manager: Rc<Manager>| {
        match dry_run {
            true => drop(manager.registry().check(&name, Verb::Kill)?),
            false => manager.kill(&name, grace).await?,
        }
        shown(&manager.registry(), &name)
    };
    let shown = api.client.change(label, kill).await?;
    Ok(Json(shown.read()).into_response())
}

/// Removes the images from an instance's memory.
#[utoipa::path(post, path = "/v1/instances/{name}/unload",
    params(NameParam, DryRun),
    responses((status = 200, body = Instance), Refusal))]
pub async fn unload(State(api): State<Api>, path: NamePath, query: DryRunQuery) -> Answer {
    carry_out(&api, Verb::Unload, path, query).await
}

/// An instance's memory map, computed from the current ledger.
#[utoipa::path(get, path = "/v1/instances/{name}/e820",
    params(NameParam), responses((status = 200, body = [E820Row]), Refusal))]
pub async fn e820(
    State(api): State<Api>,
    path: NamePath,
) -> Result<Json<Vec<E820Row>>, ControlError> {
    let name = name(path)?;
    let look = move |registry: &Registry| {
        let map = registry.find(&name)?.e820(registry.pool())?;
        Ok(map.iter().map(objects::e820_row).collect())
    };
    Ok(Json(api.client.look(look).await?))
}
