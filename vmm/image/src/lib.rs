//! Images: recognised by content, checked whole, unpacked.
//!
//! [`KernelImage::parse`] turns bytes into an image whose every offset has
//! been checked. Where its parts go is decided by placement; copying them is
//! the machine's business.

mod blocks;
pub mod bzimage;
pub mod cache;
pub mod cmdline;
pub mod decompress;
pub mod elf;
pub mod field;
pub mod image;
pub mod initramfs;
mod le;
mod lz4_legacy;
mod lzop;
pub mod source;
mod version;

pub use cache::{CacheCounters, ImageCache, ImageInfo};
pub use image::{ImageError, KernelFormat, KernelImage};
pub use initramfs::Initramfs;
pub use mkvmm_base::image_facts::BootMode;
pub use source::ImageSource;
