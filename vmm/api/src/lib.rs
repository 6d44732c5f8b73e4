//! The objects that travel over the control socket of mkvmm, for its server and
//! for any client: HTTP/1.1 with JSON over a Unix socket.
//!
//! | module | what it holds |
//! |---|---|
//! | [`spec`] | [`InstanceSpec`], the description of an instance, and [`ImagesSpec`] |
//! | [`devices`], [`disk`] | the devices of an instance |
//! | [`bodies`] | bodies of requests |
//! | [`channel`] | channels between instances |
//! | [`instance`], [`pool`], [`plan`], [`apply`], [`events`], [`debug`], [`doctor`] | bodies of responses |
//! | [`error`] | errors |
//! | [`reader`] | a reader of `KEY=VAL,…` for any struct of this crate |
//! | [`number`], [`size`], [`range`](mod@range), [`hex`], [`source`] | the values in them |
//!
//! Sizes and addresses are numbers of bytes that fit in 53 bits; a [`Range`] is
//! written `{start, size}` wherever one occurs. Values that may use all 64
//! bits, above all registers, are text in hexadecimal digits; see [`Hex`].
//! Sizes in requests may also be text that the kernel's `memparse` accepts, for
//! example `"32M"`.
//!
//! With the feature `schema`, every type describes itself for OpenAPI.

pub mod apply;
pub mod bodies;
pub mod channel;
pub mod debug;
pub mod devices;
pub mod disk;
pub mod doctor;
pub mod error;
pub mod events;
pub mod hex;
pub mod instance;
mod label;
pub mod net;
pub mod number;
mod options;
pub mod plan;
pub mod pool;
pub mod range;
pub mod reader;
pub mod size;
pub mod source;
pub mod spec;
mod spec_error;

pub use error::{ErrorBody, ErrorObject};
pub use hex::Hex;
pub use instance::Instance;
pub use label::Label;
pub use options::OptionError;
pub use range::Range;
pub use size::Size;
pub use source::{KernelSource, Source};
pub use spec::{ImagesSpec, InstanceSpec, MINE};
pub use spec_error::SpecError;

/// The protocol to which the connection of a console is upgraded: bytes in both
/// directions.
pub const CONSOLE_PROTOCOL: &str = "mkvmm-console";
/// The protocol to which the connection of a lease is upgraded: the client sends a byte
/// to renew it, the VMM sends none.
pub const LEASE_PROTOCOL: &str = "mkvmm-lease";
