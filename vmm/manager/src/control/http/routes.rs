//! Routes that respond with one JSON object.

use std::rc::Rc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header::{CONTENT_TYPE, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use mkpool::AddrRange;
use mkvmm_api::bodies::{
    AllocBody, CreateBody, KillBody, PlanBody, StartBody, Upgrade, UpgradeBody,
};
use mkvmm_api::channel::ChannelBody;
use mkvmm_api::instance::{E820Row, Instance};
use mkvmm_api::plan::Plan;
use mkvmm_api::pool::{Audit, IomemRow, Pool, Version};
use mkvmm_api::{ImagesSpec, InstanceSpec, Range};
use mkvmm_base::state::Verb;
use mkvmm_base::{Class, Diagnose, InstanceName};
use mkvmm_keeper::cgroup::{Base, Cgroups};
use rustix::process::Pid;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::audit;
use crate::channels::ChannelConfig;
use crate::config::{InstanceConfig, cgroup_named};
use crate::control::client::{self, Change};
use crate::control::connections::Peer;
use crate::control::error::ControlError;
use crate::control::http::api::Api;
use crate::control::http::body::{
    AddrParam, CreateParams, DryRun, NameParam, Refusal, dry_run, json, json_or_default, name,
};
use crate::control::http::rights;
use crate::control::objects::{self, Measured};
use crate::control::plan::{self, Books, Planned};
use crate::images::Images;
use crate::manager::Manager;
use crate::registry::{Registry, RegistryError};
use crate::upgrade::{UpgradeError, UpgradeRequest};

/// The result of a handler.
type Answer = Result<Response, ControlError>;
/// The `{name}` of the path, as axum passes it.
type NamePath = Result<Path<String>, PathRejection>;
/// The query of a request that changes something.
type DryRunQuery = Result<Query<DryRun>, QueryRejection>;

/// The maximum number of instances of a plan.
const PLAN_INSTANCES: usize = 4096;
/// The maximum number of channels of a plan.
const PLAN_CHANNELS: usize = 512;
/// The default time between the power button and SIGKILL.
pub(super) const KILL_GRACE_MS: u32 = 5000;

/// Returns the current description of an instance.
fn shown(registry: &Registry, name: &InstanceName) -> Result<Measured, ControlError> {
    Ok(objects::instance(registry, registry.find(name)?)?)
}

fn change(action: &'static str, instance: &InstanceName) -> Change {
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
fn rendered(long: &impl Serialize) -> Answer {
    // Writing to memory does not fail, nor do our own types.
    let json = serde_json::to_vec(long).or(Err(ControlError::Ending))?;
    Ok(([(CONTENT_TYPE, "application/json")], json).into_response())
}

/// Creates an instance: `ready`, or `loaded` if there is a kernel. With the header
/// `If-None-Match: *`, an instance that was created by the same specification is the
/// answer, too, so that a request can be repeated whose answer was lost.
#[utoipa::path(post, path = "/v1/instances",
    params(CreateParams, ("If-None-Match" = Option<String>, Header, description = "`*`: an \
            instance by the same specification may exist already")),
    request_body = CreateBody,
    responses((status = 200, body = Instance,
               description = "dry run, or the instance existed already"),
              (status = 201, body = Instance), Refusal))]
pub async fn create(
    State(api): State<Api>,
    peer: Option<Extension<Peer>>,
    query: Result<Query<CreateParams>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let Query(query) = query?;
    let CreateBody(spec) = json(body).await?;
    let may_exist = headers.get(IF_NONE_MATCH).is_some_and(|tags| tags == "*");
    if !may_exist {
        return create_new(&api, peer, spec, query).await;
    }
    // What it names is not opened a second time.
    if let Some(instance) = created_before(&api, &spec).await? {
        return Ok(Json(instance.read()).into_response());
    }
    let created = create_new(&api, peer, spec.clone(), query).await;
    match created {
        Err(error) if error.class() == Class::Exists => {
            // Another request has created it meanwhile.
            let instance = created_before(&api, &spec).await?;
            Ok(Json(instance.ok_or(error)?.read()).into_response())
        }
        created => created,
    }
}

/// Returns the instance that was created by this specification, if there is one.
async fn created_before(api: &Api, spec: &InstanceSpec) -> Result<Option<Measured>, ControlError> {
    let Some(name) = spec.name.clone() else {
        return Ok(None);
    };
    let (spec, label) = (spec.clone(), change("create", &name));
    let look = async move |manager: Rc<Manager>| {
        loop {
            let changed = manager.changed();
            let found = {
                let registry = manager.registry();
                match registry.find(&name) {
                    Err(RegistryError::Unknown { .. }) => return Ok(None),
                    Err(error) => return Err(error.into()),
                    // It is being created.
                    Ok(guest) if guest.is_new => None,
                    Ok(guest) => {
                        let shown = objects::instance(&registry, guest)?;
                        let is_same = guest.config().spec == spec || shown.spec() == &spec;
                        Some(is_same.then_some(shown))
                    }
                }
            };
            match found {
                None => changed.await,
                Some(None) => return Err(RegistryError::Exists { name }.into()),
                Some(shown) => return Ok(shown),
            }
        }
    };
    api.client.change(label, look).await
}

async fn create_new(
    api: &Api,
    peer: Option<Extension<Peer>>,
    spec: InstanceSpec,
    query: CreateParams,
) -> Answer {
    let CreateParams { dry_run, lease } = query;
    let wanted = spec.images()?;
    let mut config = configured(api, peer, spec, dry_run).await?;
    config.is_leased = lease;
    let name = config.name.clone();
    let read = async move |manager: Rc<Manager>| planned(&manager, config, wanted).await;
    let create = async move |manager: Rc<Manager>, planned: Planned| {
        if dry_run {
            let instance = plan::dry_create(&mut manager.registry_mut(), &planned)?;
            return Ok(instance.into());
        }
        let Planned { config, images } = planned;
        let name = config.name.clone();
        manager.create(config, images).await?;
        shown(&manager.registry(), &name)
    };
    let label = change("create", &name);
    let made = api.client.prepare_and_change(label, read, create).await?;
    let instance = made.read();
    let status = if dry_run {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    Ok((status, Json(instance)).into_response())
}

/// Validates the instances of a fleet; opens nothing for them yet.
pub(super) async fn configured_all(
    api: &Api,
    peer: Option<Extension<Peer>>,
    instances: Vec<CreateBody>,
) -> Result<Vec<(InstanceConfig, Option<ImagesSpec>)>, ControlError> {
    let (count, limit) = (instances.len(), PLAN_INSTANCES);
    if count > limit {
        return Err(ControlError::PlanSize { count, limit });
    }
    let mut wanted = Vec::new();
    for CreateBody(spec) in instances {
        let images = spec.images()?;
        wanted.push((configured(api, peer, spec, true).await?, images));
    }
    Ok(wanted)
}

/// Returns the channels of a fleet.
///
/// # Errors
/// Returns [`ControlError::PlanSize`] for too many.
pub(super) fn channel_configs(
    channels: Vec<ChannelBody>,
) -> Result<Vec<ChannelConfig>, ControlError> {
    let (count, limit) = (channels.len(), PLAN_CHANNELS);
    match count > limit {
        true => Err(ControlError::PlanSize { count, limit }),
        false => Ok(channels.into_iter().map(Into::into).collect()),
    }
}

/// Validates the specification, opens its console log and finds its cgroup.
async fn configured(
    api: &Api,
    peer: Option<Extension<Peer>>,
    spec: InstanceSpec,
    dry_run: bool,
) -> Result<InstanceConfig, ControlError> {
    let mut config = InstanceConfig::of(spec)?;
    if let Some(user) = client::user() {
        rights::check_spec(&config.spec, api.has_image_dirs().await?)?;
        config.owner = user;
    }
    if let Some(path) = config.spec.console_log.clone() {
        config.console_log = api.console_log(path, dry_run).await?;
    }
    if !dry_run {
        config.devices = api.devices(config.spec.clone()).await?;
    }
    if let Some(base) = config.cgroup_base(|| cgroup_of(peer))? {
        config.cgroup = Some(found(base).await?);
    }
    Ok(config)
}

/// Returns the cgroup of a client.
fn cgroup_of(peer: Option<Extension<Peer>>) -> Result<Base, ControlError> {
    let peer = peer.and_then(|Extension(peer)| Pid::from_raw(peer.pid));
    peer.map(Base::Process).ok_or(ControlError::NoPeer)
}

/// Finds a cgroup in the hierarchies of the host.
async fn found(base: Base) -> Result<Cgroups, ControlError> {
    let found = tokio::task::spawn_blocking(move || Cgroups::find(&base)).await;
    Ok(found.map_err(|_cancelled| ControlError::Ending)??)
}

/// Reads the images of the specification.
async fn planned(
    manager: &Rc<Manager>,
    config: InstanceConfig,
    wanted: Option<ImagesSpec>,
) -> Result<Planned, ControlError> {
    manager.until_unmade(&config.name).await;
    manager.registry().check_free(&config.name)?;
    let images = match wanted {
        Some(spec) => Some(
            manager
                .read_images(&config.name, spec, config.memory())
                .await?,
        ),
        None => None,
    };
    Ok(Planned { config, images })
}

/// The exact result of creating instances one after the other, without creating
/// them.
#[utoipa::path(post, path = "/v1/plan", request_body = PlanBody,
    responses((status = 200, body = Plan), Refusal))]
pub async fn plan(State(api): State<Api>, peer: Option<Extension<Peer>>, body: Body) -> Answer {
    let PlanBody {
        channels,
        instances,
    } = json(body).await?;
    let channels = channel_configs(channels)?;
    let wanted = configured_all(&api, peer, instances).await?;
    let name = Change {
        action: "plan",
        instance: None,
    };
    let read = async move |manager: Rc<Manager>| {
        let mut all = Vec::new();
        for (config, images) in wanted {
            all.push(planned(&manager, config, images).await?);
            tokio::task::consume_budget().await;
        }
        Ok(all)
    };
    let rehearse = async move |manager: Rc<Manager>, all: Vec<Planned>| {
        // The semaphore is never closed.
        let _turn = manager.rehearsals.acquire().await.ok();
        let books = Books::copy(&manager.registry(), &channels, &all)?;
        let rehearse = move || rendered(&books.plan(&channels, &all)?);
        let rehearsed = tokio::task::spawn_blocking(rehearse).await;
        rehearsed.map_err(|_cancelled| ControlError::Ending)?
    };
    api.client.prepare_and_change(name, read, rehearse).await
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
