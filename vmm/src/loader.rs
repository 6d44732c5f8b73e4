//! Images and how they are loaded.

pub use mkvmm_image::*;
pub use mkvmm_machine::loading::{BootEntry, LoadError, load, write};
