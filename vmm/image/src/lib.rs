//! Kernel and initramfs images: detecting, checking and unpacking them.
//!
//! [`unpack::unpack`] is the job of a confined process: it turns an image file
//! into a memory file and facts about it. [`KernelImage::parse`] does the same
//! in memory. Placement decides where an image's parts go; the machine copies
//! them.

mod blocks;
pub mod bzimage;
pub mod child;
pub mod decompress;
pub mod elf;
mod facts;
pub mod field;
mod foreign;
pub mod image;
mod le;
mod lz4_legacy;
mod lzop;
pub mod program;
mod program_header;
pub mod unpack;
mod version;

pub use image::{ImageError, KernelFormat, KernelImage};
pub use mkvmm_base::image_facts::BootMode;
