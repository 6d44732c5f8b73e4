//! The control socket: HTTP/1.1 with JSON over a Unix socket.
//!
//! ```text
//!   clients ─► control thread (tokio: server, http)       main thread (tokio, local)
//!              parses, checks ──── a request ────────────► Manager: look, or a task
//!              renders the reply ◄─ oneshot: its reply ──  of its own for a change
//! ```
//!
//! A request is a function on the manager that returns the type of its reply
//! (`Client::look`, `Client::change` in [`client`]), so no replies have to be
//! matched.
//!
//! | module | contents |
//! |---|---|
//! | [`client`] | passes requests to the manager |
//! | [`plan`] | predicts the result of a launch |
//! | [`apply`], `apply_channels` | makes the pool be what a fleet says |
//! | [`pool_map`] | the owners of all bytes of the pool |
//! | [`debug`] | registers, memory and translations |
//! | [`objects`] | conversion to the objects of `mkvmm-api` |
//! | [`error`], `apply_error` | errors, and the HTTP status of each class |
//! | [`http`] | routes and their description |
//! | [`metrics`] | OpenMetrics text |
//! | [`server`] | the socket and its thread |
//! | [`scrapes`] | the socket for metrics |
//! | `connections`, `places` | the maximum number of clients, and their timeouts |

pub mod apply;
mod apply_channels;
mod apply_error;
pub mod client;
mod connections;
pub mod debug;
pub mod doctor;
pub mod error;
pub mod http;
mod instance_metrics;
pub mod metrics;
pub mod objects;
mod places;
pub mod plan;
pub mod pool_map;
pub mod scrapes;
pub mod server;
mod shares;
