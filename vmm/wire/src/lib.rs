//! What mkvmm's processes say to each other.
//!
//! ```text
//!            manager                                     worker of one guest
//!  ┌──────────────────────────┐   channel (seqpacket)  ┌─────────────────────────┐
//!  │ Channel<ToWorker, From…> │ ◀────────────────────▶ │ Channel<From…, ToWorker>│  decisions, news,
//!  │                          │   messages+descriptors │                         │  descriptors
//!  │                          │                        │                         │
//!  │ Viewer, Typist           │ ◀──────── memfd ─────▶ │ Printer, Input          │  every byte printed
//!  │                          │   sealed shared memory │                         │  or typed
//!  │ BoardReader              │ ◀──────── memfd ────── │ BoardWriter             │  last registers,
//!  │                          │                        │                         │  counters, times
//!  │ Bell                     │ ◀────── 1 byte ──────▶ │ Bell                    │  "look again"
//!  └──────────────────────────┘                        └─────────────────────────┘
//! ```
//!
//! [`channel`] carries what has to be answered or decided: typed messages, at
//! most 192 KiB and 253 descriptors each, with a version and sequence numbers.
//! [`shared`] holds what must outlive its writer or is too much for messages:
//! a sealed file that both sides map, so that the last words of a dead worker
//! are still there.
//!
//! # Who trusts whom
//!
//! A guest may have taken over its worker. Nothing that arrives from one is
//! believed: messages decode into typed values or into a [`WireError`], never
//! into a panic and never into an allocation beyond their own size; shared
//! memory is copied out through atomics, indices are read once and masked, and
//! every call is bounded in time and memory whatever the memory says. A worker
//! does trust its manager, but the same code serves both directions.

pub mod channel;
pub mod messages;
#[cfg(feature = "tokio")]
pub mod ready;
pub mod settings;
pub mod shared;

pub use channel::error::WireError;
