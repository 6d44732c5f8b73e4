//! ⑧ The control socket: HTTP/1.1 with JSON over a Unix socket.
//!
//! ```text
//!   clients ─► control thread (tokio: server, http)          main thread
//!              reads files, builds an Action ── channel+eventfd ─► Controller
//!              renders the Reply ◄──────────── oneshot ─────────── (dispatch)
//! ```
//!
//! | module | what it knows |
//! |---|---|
//! | [`action`] | what can be asked for, and the answers |
//! | [`dispatch`] | the one place that carries actions out |
//! | [`plan`] | what a launch would do |
//! | [`pool_map`] | who has which bytes of the pool |
//! | [`debug`] | registers, memory and translations |
//! | [`objects`] | the objects of `mkvmm-api`, made out of what there is |
//! | [`error`] | refusals, and the HTTP status of each class |
//! | [`http`] | routes and their description |
//! | [`images`] | the image cache as requests share it |
//! | [`metrics`] | OpenMetrics text |
//! | [`server`] | the socket and its thread |

pub mod action;
pub mod debug;
pub mod dispatch;
pub mod error;
pub mod http;
pub mod images;
pub mod metrics;
pub mod objects;
pub mod plan;
pub mod pool_map;
pub mod server;
