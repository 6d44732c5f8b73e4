//! Routes that create instances, or plan that.

use std::rc::Rc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::IF_NONE_MATCH;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::{Extension, Json};

use mkvmm_api::bodies::{CreateBody, PlanBody};
use mkvmm_api::channel::ChannelBody;
use mkvmm_api::instance::Instance;
use mkvmm_api::plan::Plan;
use mkvmm_api::{ImagesSpec, InstanceSpec};
use mkvmm_base::{Class, Diagnose};

use crate::channels::ChannelConfig;
use crate::config::InstanceConfig;
use crate::control::client::{self, Change};
use crate::control::connections::Peer;
use crate::control::error::ControlError;
use crate::control::http::api::Api;
use crate::control::http::body::{CreateParams, Refusal, json};
use crate::control::http::rights;
use crate::control::http::routes::{Answer, cgroup_of, change, found, rendered, shown};
use crate::control::objects::{self, Measured};
use crate::control::plan::{self, Books, Planned};
use crate::manager::Manager;
use crate::registry::RegistryError;

/// The maximum number of instances of a plan.
const PLAN_INSTANCES: usize = 4096;
/// The maximum number of channels of a plan.
const PLAN_CHANNELS: usize = 512;

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
