//! The communication between mkvmm's processes.
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
//! [`channel`] carries requests, answers and notifications: typed messages of
//! at most 192 KiB and 253 descriptors each, with a version and sequence
//! numbers. [`shared`] holds data that must outlive its writer or is too large
//! for messages: a sealed file that both sides map, so that the last output of
//! a dead worker can still be read.
//!
//! # Trust
//!
//! A guest may have compromised its worker, so nothing that arrives from a
//! worker is trusted: messages decode into typed values or into a
//! [`WireError`], never into a panic or an allocation beyond their own size.
//! Shared memory is copied out through atomics, indices are read once and
//! masked, and every call is bounded in time and memory whatever the memory
//! contains. A worker does trust its manager, but the same code serves both
//! directions.

pub mod channel;
pub mod devices;
pub mod keeping;
pub mod messages;
#[cfg(feature = "tokio")]
pub mod ready;
pub mod settings;
pub mod shared;

pub use channel::error::WireError;
