//! The route of leases: the connection is the lease.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use crate::control::client::{Change, Client};
use crate::control::error::ControlError;
use crate::control::http::api::Api;
use crate::control::http::body::{LeaseQuery, NameParam, Refusal, name};
use crate::control::http::upgrades::asks_for;
use crate::control::places::Answering;
use crate::lease::Holder;
use crate::manager::Manager;
use mkvmm_api::LEASE_PROTOCOL;

/// Takes the lease of an instance that was created with `lease=true`. The connection is
/// the lease from then on: when it ends, the instance is killed and deleted.
#[utoipa::path(post, path = "/v1/instances/{name}/lease",
    params(NameParam, LeaseQuery),
    responses((status = 101, description = "the connection is the lease"), Refusal))]
pub async fn lease(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<LeaseQuery>, QueryRejection>,
    mut request: Request,
) -> Result<Response, ControlError> {
    let (name, Query(query)) = (name(path)?, query?);
    let limit = query
        .limit_ms
        .map(|ms| Duration::from_millis(ms.get().into()));
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let (Some(upgrade), true) = (upgrade, asks_for(&request, LEASE_PROTOCOL)) else {
        return Err(ControlError::NoUpgrade {
            protocol: LEASE_PROTOCOL,
        });
    };
    let change = Change {
        action: "lease",
        instance: Some(name.clone()),
    };
    let take = async move |manager: Rc<Manager>| Ok(manager.take_lease(&name, limit)?);
    let holder = api.client.change(change, take).await?;
    // The connection belongs to this task now, and so does its place.
    let place = request.extensions_mut().remove::<Answering>();
    tokio::spawn(async move {
        let client = api.client;
        let held = match upgrade.await.map(Upgraded::downcast::<TokioIo<UnixStream>>) {
            Ok(Ok(parts)) => hold(parts.io.into_inner(), &client, holder).await,
            Ok(Err(_other)) => Err(io::ErrorKind::Unsupported.into()),
            Err(error) => Err(io::Error::other(error)),
        };
        if let Err(error) = held {
            log::debug!("a lease has ended: {error}");
        }
        // Without a manager, another one ends it.
        let end = client.ask(move |manager| {
            manager.end_lease(holder);
            Ok(())
        });
        let _ = end.await;
        drop(place);
    });
    let headers = [
        (header::CONNECTION, "upgrade"),
        (header::UPGRADE, LEASE_PROTOCOL),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// Renews a lease with each byte that comes, until its client is gone or the lease has
/// ended.
async fn hold(mut stream: UnixStream, client: &Client, holder: Holder) -> io::Result<()> {
    let mut bytes = [0; 64];
    while stream.read(&mut bytes).await? > 0 {
        let renew = client.ask(move |manager| Ok(manager.renew_lease(holder)));
        if !renew.await.unwrap_or(false) {
            break;
        }
    }
    Ok(())
}
