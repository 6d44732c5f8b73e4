//! Images in the manager: opened once, unpacked by another process, kept as
//! sealed memory files. Nothing here parses an image.
//!
//! ```text
//!  ImageSource ─ open ─► descriptor ─ size, identity ─┬─ kept already ───────────┐
//!   (path, fd:N)  (one look-up,                       ├─ being unpacked: join ───┤
//!                  beneath a directory)               └─ Unpackers::unpack ──────┤
//!                                                          │ answer is checked,  │
//!                                                          ▼ file is sealed      ▼
//!                                                     ImageStore ────► Arc<StoredImage>
//! ```
//!
//! Files, in the order in which they import each other: [`identity`],
//! [`source`] (the allowed names, and the single lookup), [`lock`] and [`disk`]
//! (disks, which are opened by the same lookup, and locked), [`memfile`] (the
//! unpacker's output, and its seals), [`stored`] (a stored image),
//! [`initramfs`] (several archives as one), `cache` (caching and eviction),
//! [`unpackers`] (the interface to unpacking processes) and [`store`] (which
//! ties them together).

mod cache;
pub mod disk;
pub mod identity;
pub mod initramfs;
pub mod lock;
pub mod memfile;
pub mod source;
pub mod store;
pub mod stored;
pub mod unpackers;

pub use cache::CacheCounters;
pub use initramfs::Initramfs;
pub use source::{Access, ImageDirs, ImageSource, SourceError};
pub use store::{Batch, Budget, BuiltIn, ImageStore, Loaded, SizeError, StoreError};
pub use stored::{ImageInfo, StoredImage};
pub use unpackers::{LateHash, Unpackers, UnpackersError};
