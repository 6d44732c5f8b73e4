//! The disk: a virtio block device over a file or a block device of the host.
//!
//! ```text
//!   driver's queues ─► request ─► device ─► engine ─► the host's kernel
//!                                   │          ├ ring: io_uring
//!                    flights ◄──────┘          └ threads: preadv, pwritev
//!                    flushes ◄──────┘
//! ```
//!
//! | file | what it is |
//! |---|---|
//! | `config` | size and shape of a disk, and the configuration space |
//! | `request` | what a chain asks for, checked against the disk |
//! | `counters` | what a queue has done so far |
//! | `engine` | operations on the backing file, off the event loop |
//! | `flights` | requests that the engine works on |
//! | `flushes` | which flushes a synchronisation of the file answers |
//! | `session` | a disk in use by a driver |
//! | `device` | the virtio device |
//!
//! # What a completed request means
//!
//! - A write is in the host's page cache: it survives the end of the worker, and
//!   of the manager, not that of the host.
//! - A flush that succeeds was answered by an `fdatasync` that *began* after the
//!   driver made the flush available, so it covers every write that was
//!   completed before.
//! - If an `fdatasync` fails, the kernel forgets what it could not write, and
//!   reports that once. All flushes that wait at that time therefore fail, not
//!   just those that the `fdatasync` was to answer.
//! - A driver that does not use flushes (`VIRTIO_BLK_F_FLUSH` not agreed on)
//!   has each write on stable storage when it completes.
//!
//! # Buffers
//!
//! The engine's buffers are the guest's memory. An operation in flight keeps
//! that memory mapped ([`crate::Memory`]), and a reset of the device is complete
//! only when nothing is in flight: a disk of the host that does not answer
//! delays its own guest's driver, nobody else, and no memory is written after a
//! reset.
//!
//! Source: virtio 1.2, section 5.2.

pub mod config;
pub mod counters;
pub mod device;
pub mod engine;
mod flights;
mod flushes;
pub mod request;
mod session;

pub use config::{BlockSettings, DiskId, Geometry};
pub use counters::{BlockCounters, BlockCounts};
pub use device::Block;
pub use engine::{Engine, PreparedRing, RingEngine, ThreadEngine};
