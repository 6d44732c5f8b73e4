//! What travels over the control socket of mkvmm, for its server and for any
//! client: HTTP/1.1 with JSON over a Unix socket.
//!
//! | module | what it holds |
//! |---|---|
//! | [`spec`] | [`InstanceSpec`], the one description of an instance, and [`ImagesSpec`] |
//! | [`bodies`] | what requests carry |
//! | [`instance`], [`pool`], [`plan`], [`events`], [`debug`], [`doctor`] | what answers carry |
//! | [`error`] | refusals |
//! | [`reader`] | a reader of `KEY=VAL,…` for any struct of this crate |
//! | [`number`], [`size`], [`range`](mod@range), [`hex`], [`source`] | the values in them |
//!
//! Sizes and addresses are numbers of bytes, which fit 53 bits; a [`Range`] is
//! written `{start, size}` wherever one occurs. What a guest or the processor
//! may set to any 64 bits, registers above all, is text in hexadecimal digits,
//! see [`Hex`]. Sizes in requests may also be text as the kernel's `memparse`
//! reads it, for instance `"32M"`.
//!
//! With the feature `schema`, every type describes itself for OpenAPI.

pub mod bodies;
pub mod debug;
pub mod doctor;
pub mod error;
pub mod events;
pub mod hex;
pub mod instance;
pub mod number;
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
pub use range::Range;
pub use size::Size;
pub use source::{KernelSource, Source};
pub use spec::{ImagesSpec, InstanceSpec, MINE};
pub use spec_error::SpecError;
