//! A client of a running mkvmm: `mkvmm serve` listens on a Unix socket, and this crate
//! sends its requests, which are those of `docs/openapi.json`, with the types of
//! [`mkvmm_api`]. The command line is built on it.
//!
//! | module | what it holds |
//! |---|---|
//! | [`client`] | [`Client`], which waits for each answer, and is all that most programs need |
//! | [`streams`] | what arrives over time: events, output, a console, a lease |
//! | [`call`] | [`Call`], any request, also those without a function of their own |
//! | [`connection`], [`events`], [`lease`] | the same for programs with a runtime of tokio |
//! | [`socket`] | where the control socket is |
//! | [`error`] | [`ClientError`]: what the VMM refused and why, or that it does not answer |
//!
//! A connection is made for each request, so that a client needs no care when the VMM is
//! upgraded or restarted; only streams end then. An example, which is a program (`examples/fleet.rs`) and which a
//! test runs:
#![doc = "```no_run"]
#![doc = include_str!("../examples/fleet.rs")]
#![doc = "```"]

pub mod call;
pub mod client;
pub mod connection;
pub mod error;
pub mod events;
pub mod lease;
pub mod socket;
pub mod streams;

pub use call::{Call, escape};
pub use client::Client;
pub use error::ClientError;
pub use events::Since;
