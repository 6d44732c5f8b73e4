//! Routes of channels.

use std::rc::Rc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use mkpool::AddrRange;
use mkvmm_api::channel::{Channel, ChannelBody, Member};
use mkvmm_base::InstanceName;

use crate::channels::{self, ChannelConfig};
use crate::control::client::Change;
use crate::control::error::ControlError;
use crate::control::http::api::Api;
use crate::control::http::body::{ChannelParam, DryRun, Refusal, dry_run, json, name};
use crate::manager::Manager;
use crate::registry::Registry;

fn change(action: &'static str) -> Change {
    Change {
        action,
        instance: None,
    }
}

fn object(channel: &channels::Channel) -> Channel {
    let members = channel.members().iter().map(|member| Member {
        name: member.name.to_string(),
        read_only: member.read_only,
        present: member.run.is_some(),
        boots: member.boots,
    });
    Channel {
        id: channel.id(),
        name: channel.name().to_string(),
        range: channel.range().into(),
        doorbells: channel.doorbells(),
        members: members.collect(),
    }
}

/// Returns the channel that `config` would make in `range`.
fn would_be(config: &ChannelConfig, range: AddrRange) -> Channel {
    let members = config.members.iter().map(|(name, read_only)| Member {
        name: name.to_string(),
        read_only: *read_only,
        present: false,
        boots: 0,
    });
    Channel {
        id: 0,
        name: config.name.to_string(),
        range: range.into(),
        doorbells: config.doorbells,
        members: members.collect(),
    }
}

fn shown(registry: &Registry, name: &InstanceName) -> Result<Channel, ControlError> {
    Ok(object(registry.channel(name)?))
}

/// All channels, ordered by number.
#[utoipa::path(get, path = "/v1/channels", responses((status = 200, body = [Channel]), Refusal))]
pub async fn list(State(api): State<Api>) -> Result<Json<Vec<Channel>>, ControlError> {
    let look = |registry: &Registry| Ok(registry.channels().map(object).collect());
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
    let body: ChannelBody = json(body).await?;
    let members = body.between.into_iter();
    let config = ChannelConfig {
        name: body.name,
        size: body.size.bytes(),
        doorbells: body.doorbells,
        members: members.map(|it| (it.name, it.read_only)).collect(),
    };
    let create = async move |manager: Rc<Manager>| {
        if dry_run {
            let range = manager.rehearse_channel(&config)?;
            return Ok(would_be(&config, range));
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

/// Deletes a channel that no guest has, and scrubs its memory.
#[utoipa::path(delete, path = "/v1/channels/{name}", params(ChannelParam, DryRun),
    responses((status = 200, body = Channel), Refusal))]
pub async fn delete(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<DryRun>, QueryRejection>,
) -> Result<Json<Channel>, ControlError> {
    let (name, dry_run) = (name(path)?, dry_run(query)?);
    let delete = async move |manager: Rc<Manager>| {
        let channel = shown(&manager.registry(), &name)?;
        match dry_run {
            true => manager.registry().channel(&name)?.check_unused()?,
            false => manager.delete_channel(&name).await?,
        }
        Ok(channel)
    };
    let deleted = api.client.change(change("delete-channel"), delete).await?;
    Ok(Json(deleted))
}
