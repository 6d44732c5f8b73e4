//! Confinement and accounting of mkvmm's processes.
#![forbid(unsafe_code)]

pub mod cgroup;
mod domain;
mod enter;
mod error;
mod identity;
pub mod limits;
mod profile;
mod report;
mod seccomp;

pub use error::SandboxError;
pub use profile::{Confinement, Identity, Layers, Limits, Mode, Profile};
pub use report::{Layer, Outcome, Report};
