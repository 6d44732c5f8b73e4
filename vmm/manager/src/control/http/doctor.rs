//! The route that examines the host.

use axum::Json;
use axum::extract::State;
use mkvmm_api::doctor::Findings;

use crate::control::error::ControlError;
use crate::control::http::api::Api;
use crate::control::http::body::Refusal;

/// What this host supports, found out by experiment, like `mkvmm doctor
/// --json`. It runs two guests of a few MiB beside the pool, one caller at a
/// time.
#[utoipa::path(get, path = "/v1/doctor", responses((status = 200, body = Findings), Refusal))]
pub async fn examine(State(api): State<Api>) -> Result<Json<Findings>, ControlError> {
    Ok(Json(api.doctor.examine().await?))
}
