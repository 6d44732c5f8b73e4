//! Images as the manager handles them: looked up once, unpacked by somebody
//! else, kept as sealed memory files. Nothing here parses an image.
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
//! [`source`] (what may be named, and its one look-up), [`memfile`] (the
//! unpacker's output, and its seals), [`stored`] (what is kept of an image),
//! [`initramfs`] (several archives as one), `cache` (what is kept, and for how
//! long), [`unpackers`] (who unpacks) and [`store`] (the whole).

mod cache;
pub mod identity;
pub mod initramfs;
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
pub use unpackers::{Unpackers, UnpackersError};
