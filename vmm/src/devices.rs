//! The devices of a guest, and what its console is logged to.

pub use mkvmm_machine::devices::*;

pub use crate::console_log;
