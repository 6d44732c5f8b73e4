//! Routes that look at the pool as a whole.

use axum::extract::State;
use axum::response::{IntoResponse, Response};

use crate::control::action::Action;
use crate::control::error::ControlError;
use crate::control::http::Api;
use crate::control::http::body::Refusal;
use crate::control::pool_map::PoolMap;

/// Who has which bytes of the pool, without a gap.
#[utoipa::path(get, path = "/v1/pool/map", responses((status = 200, body = PoolMap), Refusal))]
pub async fn map(State(api): State<Api>) -> Result<Response, ControlError> {
    Ok(api.call(Action::PoolMap, false).await?.into_response())
}
