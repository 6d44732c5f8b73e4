//! The control socket: HTTP/1.1 with JSON over a Unix socket.
//!
//! ```text
//!   clients ─► control thread (tokio: server, http)       main thread (tokio, local)
//!              parses, checks ──── a request ────────────► Manager: look, or a task
//!              renders the reply ◄─ oneshot: its reply ──  of its own for a change
//! ```
//!
//! A request is a function of the manager with the type of its reply
//! (`Client::look`, `Client::change` in [`client`]): there is nothing to take apart.
//!
//! | module | what it knows |
//! |---|---|
//! | [`client`] | how requests reach the manager |
//! | [`plan`] | what a launch would do |
//! | [`pool_map`] | who has which bytes of the pool |
//! | [`debug`] | registers, memory and translations |
//! | [`objects`] | the objects of `mkvmm-api`, made out of what there is |
//! | [`error`] | refusals, and the HTTP status of each class |
//! | [`http`] | routes and their description |
//! | [`metrics`] | OpenMetrics text |
//! | [`server`] | the socket and its thread |
//! | `connections`, `places` | clients: how many, and how long each may take |

pub mod client;
mod connections;
pub mod debug;
pub mod doctor;
pub mod error;
pub mod http;
pub mod metrics;
pub mod objects;
mod places;
pub mod plan;
pub mod pool_map;
pub mod server;
