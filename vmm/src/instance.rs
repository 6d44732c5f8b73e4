//! Instances: names, states, times and memory.

pub use mkvmm_base::{InstanceId, InstanceName, NameError, RunId, state, timeline};
pub use mkvmm_memory::instance_memory as memory;

pub use crate::boot_spans;
