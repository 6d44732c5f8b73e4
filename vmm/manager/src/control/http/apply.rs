//! The route that makes the pool be what a fleet says.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::{Extension, Json};
use mkvmm_api::apply::{Applied, ApplyBody};

use crate::control::apply::{Fleet, Prepared, prepare};
use crate::control::client::Change;
use crate::control::connections::Peer;
use crate::control::error::ControlError;
use crate::control::http::api::Api;
use crate::control::http::body::{DryRun, Refusal, dry_run, json};
use crate::control::http::create::{channel_configs, configured_all};
use crate::control::http::routes::KILL_GRACE_MS;
use crate::manager::Manager;

/// Makes the channels and instances be those of the body: creates, replaces and boots
/// what differs, and, with `prune`, deletes all others. If a step fails, the earlier ones
/// are undone; a guest that was ended for them is booted again, and a channel that was
/// deleted for them is there again, but empty. What does not differ is not touched.
#[utoipa::path(post, path = "/v1/apply", params(DryRun), request_body = ApplyBody,
    responses((status = 200, body = Applied), Refusal))]
pub async fn apply(
    State(api): State<Api>,
    peer: Option<Extension<Peer>>,
    query: Result<Query<DryRun>, QueryRejection>,
    body: Body,
) -> Result<Json<Applied>, ControlError> {
    let dry_run = dry_run(query)?;
    let ApplyBody {
        channels,
        instances,
        prune,
        grace_ms,
    } = json(body).await?;
    let fleet = Fleet {
        channels: channel_configs(channels)?,
        instances: configured_all(&api, peer, instances).await?,
        prune,
        grace: Duration::from_millis(grace_ms.unwrap_or(KILL_GRACE_MS).into()),
        log_dirs: Arc::clone(&api.log_dirs),
    };
    let change = Change {
        action: "apply",
        instance: None,
    };
    let compare = async move |manager: Rc<Manager>| prepare(&manager, fleet).await;
    let apply = async move |manager: Rc<Manager>, prepared: Prepared| match dry_run {
        true => Ok(prepared.plan(&manager).await?.1),
        false => prepared.carry_out(&manager).await,
    };
    let applied = api.client.prepare_and_change(change, compare, apply);
    Ok(Json(applied.await?))
}
