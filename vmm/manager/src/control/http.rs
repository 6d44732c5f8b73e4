//! Routes and their description: converts requests to actions, and replies to
//! JSON.
//!
//! Everything that may block, such as reading files, happens here and not on
//! the event loop's thread.

mod allocations;
mod api;
mod apply;
mod body;
mod channels;
mod create;
mod debug;
mod debug_query;
mod doctor;
mod lease;
mod output;
mod pool_routes;
mod rights;
mod routes;
mod streams;
mod upgrades;

pub use api::Api;
pub(crate) use body::received;
pub(crate) use pool_routes::metrics as scrape;

use axum::Router;
use axum::response::{IntoResponse, Response};
use mkvmm_api::{ErrorBody, ErrorObject};
use mkvmm_base::Diagnose;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::control::error::{ControlError, status};
use crate::event_log::Event;

/// The description of the API except its paths, which the router adds.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "mkvmm control socket",
        description = "Several guest kernels from one reserved memory pool, on KVM. \
                       HTTP/1.1 with JSON over a Unix socket.",
        version = "1",
        license(name = "Apache-2.0 OR BSD-3-Clause")
    ),
    servers((url = "/")),
    components(schemas(ErrorBody, Event))
)]
struct Description;

impl IntoResponse for ControlError {
    fn into_response(self) -> Response {
        let error = ErrorObject::from(&self);
        (status(self.class()), axum::Json(ErrorBody { error })).into_response()
    }
}

#[expect(deprecated, reason = "`exec` is served for one release more")]
fn described() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(routes::version))
        .routes(routes!(routes::upgrade))
        .routes(routes!(describe))
        .routes(routes!(pool_routes::pool))
        .routes(routes!(pool_routes::capacity))
        .routes(routes!(pool_routes::health))
        .routes(routes!(pool_routes::map))
        .routes(routes!(pool_routes::log))
        .routes(routes!(pool_routes::iomem))
        .routes(routes!(pool_routes::audit))
        .routes(routes!(pool_routes::metrics))
        .routes(routes!(doctor::examine))
        .routes(routes!(allocations::pool_alloc))
        .routes(routes!(allocations::pool_free))
        .routes(routes!(channels::list, channels::create))
        .routes(routes!(channels::show, channels::delete))
        .routes(routes!(channels::join))
        .routes(routes!(channels::leave))
        .routes(routes!(create::plan))
        .routes(routes!(apply::apply))
        .routes(routes!(streams::events))
        .routes(routes!(routes::list, create::create))
        .routes(routes!(routes::show, routes::delete))
        .routes(routes!(routes::load))
        .routes(routes!(routes::start))
        .routes(routes!(routes::exec))
        .routes(routes!(routes::pause))
        .routes(routes!(routes::resume))
        .routes(routes!(routes::kill))
        .routes(routes!(routes::unload))
        .routes(routes!(routes::e820))
        .routes(routes!(debug::regs))
        .routes(routes!(debug::memory))
        .routes(routes!(debug::translate))
        .routes(routes!(streams::console))
        .routes(routes!(output::output))
        .routes(routes!(lease::lease))
        .routes(routes!(allocations::alloc))
        .routes(routes!(allocations::free))
}

/// The OpenAPI description of this API.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "OpenAPI")))]
async fn describe() -> axum::Json<utoipa::openapi::OpenApi> {
    axum::Json(openapi())
}

/// Returns the OpenAPI document, as it is served.
pub fn openapi() -> utoipa::openapi::OpenApi {
    described().into_openapi()
}

/// Returns all routes, with the parts of `api` that each needs. Requests must
/// have been `received`.
pub fn router(api: Api) -> Router {
    let (router, _) = described().split_for_parts();
    router
        .fallback(|| async { ControlError::NoRoute })
        .method_not_allowed_fallback(|| async { ControlError::NoMethod })
        .layer(axum::middleware::from_fn(rights::with_rights))
        .with_state(api)
}
