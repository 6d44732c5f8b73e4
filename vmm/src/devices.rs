//! The devices of a guest, and what its console is queued, kept and logged in.

pub use mkvmm_machine::devices::*;

pub use crate::console_queue as console;
pub use crate::{console_log, console_ring};
