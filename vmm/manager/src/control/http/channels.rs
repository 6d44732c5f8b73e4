//! Routes of channels.

use std::rc::Rc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use mkvmm_api::channel::{Channel, ChannelBody, MemberBody};
use mkvmm_base::InstanceName;

use crate::channels::ChannelConfig;
use crate::control::client::Change;
use crate::control::error::ControlError;
use crate::control::http::api::Api;
use crate::control::http::body::{ChannelParam, DryRun, EndParams, Refusal, dry_run, json, name};
use crate::control::objects;
use crate::manager::Manager;
use crate::registry::Registry;

fn change(action: &'static str) -> Change {
    Change {
        action,
        instance: None,
    }
}

fn shown(registry: &Registry, name: &InstanceName) -> Result<Channel, ControlError> {
    Ok(objects::channel(registry.channel(name)?))
}

/// All channels, ordered by number.
#[utoipa::path(get, path = "/v1/channels", responses((status = 200, body = [Channel]), Refusal))]
pub async fn list(State(api): State<Api>) -> Result<Json<Vec<Channel>>, ControlError> {
    let look = |registry: &Registry| Ok(registry.channels().map(objects::channel).collect());
    Ok(Json(api.client.look(look).await?))
}

/// A channel with its members.
#[utoipa::path(get, path = "/v1/channels/{name}", params(ChannelParam),
    responses((status = 200, body = Channel), Refusal))]
pub async fn show(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Channel>, ControlError> {
    let name = name(path)?;
    let look = move |registry: &Registry| shown(registry, &name);
    Ok(Json(api.client.look(look).await?))
}

/// Creates a channel. Its members have it from their next boots on.
#[utoipa::path(post, path = "/v1/channels", params(DryRun), request_body = ChannelBody,
    responses((status = 200, body = Channel, description = "dry run"),
              (status = 201, body = Channel), Refusal))]
pub async fn create(
    State(api): State<Api>,
    query: Result<Query<DryRun>, QueryRejection>,
    body: Body,
) -> Result<Response, ControlError> {
    let dry_run = dry_run(query)?;
    let config = ChannelConfig::from(json::<ChannelBody>(body).await?);
    let create = async move |manager: Rc<Manager>| {
        if dry_run {
            let (id, range) = manager.rehearse_channel(&config)?;
            return Ok(objects::rehearsed_channel(&config, id, range));
        }
        let name = config.name.clone();
        manager.create_channel(config).await?;
        shown(&manager.registry(), &name)
    };
    let channel = api.client.change(change("create-channel"), create).await?;
    let status = match dry_run {
        true => StatusCode::OK,
        false => StatusCode::CREATED,
    };
    Ok((status, Json(channel)).into_response())
}

/// Deletes a channel and scrubs its memory. Guests that have it are an error, unless
/// `force` takes it away from them.
#[utoipa::path(delete, path = "/v1/channels/{name}", params(ChannelParam, EndParams),
    responses((status = 200, body = Channel), Refusal))]
pub async fn delete(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<EndParams>, QueryRejection>,
) -> Result<Json<Channel>, ControlError> {
    let (name, Query(EndParams { dry_run, force })) = (name(path)?, query?);
    let delete = async move |manager: Rc<Manager>| {
        let channel = shown(&manager.registry(), &name)?;
        match (dry_run, force) {
            (true, true) => {}
            (true, false) => manager.registry().channel(&name)?.check_unused()?,
            (false, true) => manager.end_channel(&name).await?,
            (false, false) => manager.delete_channel(&name).await?,
        }
        Ok(channel)
    };
    let deleted = api.client.change(change("delete-channel"), delete).await?;
    Ok(Json(deleted))
}

/// A change of one member.
#[derive(Debug, Clone, Copy)]
enum Move {
    Join,
    Leave,
}

/// What [`join`] and [`leave`] have in common.
async fn move_member(
    api: &Api,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<DryRun>, QueryRejection>,
    body: Body,
    to: Move,
) -> Result<Json<Channel>, ControlError> {
    let (name, dry_run) = (name(path)?, dry_run(query)?);
    let MemberBody { member } = json(body).await?;
    let action = match to {
        Move::Join => "join-channel",
        Move::Leave => "leave-channel",
    };
    let carry_out = async move |manager: Rc<Manager>| {
        match (dry_run, to) {
            (true, _) => manager.registry().channel(&name)?.check_member(&member)?,
            (false, Move::Join) => manager.join_channel(&name, &member).await?,
            (false, Move::Leave) => manager.leave_channel(&name, &member).await?,
        }
        shown(&manager.registry(), &name)
    };
    Ok(Json(api.client.change(change(action), carry_out).await?))
}

/// Gives a channel to one of its members: at once if it runs, and at its boots from
/// now on.
#[utoipa::path(post, path = "/v1/channels/{name}/join", params(ChannelParam, DryRun),
    request_body = MemberBody, responses((status = 200, body = Channel), Refusal))]
pub async fn join(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<DryRun>, QueryRejection>,
    body: Body,
) -> Result<Json<Channel>, ControlError> {
    move_member(&api, path, query, body, Move::Join).await
}

/// Takes a channel away from one of its members: at once if it runs, and until it
/// joins again.
#[utoipa::path(post, path = "/v1/channels/{name}/leave", params(ChannelParam, DryRun),
    request_body = MemberBody, responses((status = 200, body = Channel), Refusal))]
pub async fn leave(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<DryRun>, QueryRejection>,
    body: Body,
) -> Result<Json<Channel>, ControlError> {
    move_member(&api, path, query, body, Move::Leave).await
}
