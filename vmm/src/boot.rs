//! What a kernel finds when it starts.

pub use mkvmm_machine::boot::*;
pub use mkvmm_memory::e820;
