//! Starts, watches and reaps mkvmm's processes.
//!
//! ```text
//!   parent                                     child: the same binary, by exec
//!
//!   Spawn::start ─── /proc/self/exe ─────────▶ child::role  "am I one?"
//!      │             descriptor 0: channel     child::enter  session, signals,
//!      ▼             environment: role, parent    │          descriptors, parent's death
//!   Child ── pidfd: kill, wait, poll ──           ▼
//!      │                                       its work, over the channel
//!      └── dropped: killed and reaped
//! ```
//!
//! Children are created by exec, not by fork alone: each has its own address
//! layout and stack canary, inherits nothing but what is listed, and no Rust
//! code runs between fork and exec. A child receives its work over its channel.
//! The one exception is in [`copy`].
//!
//! [`cgroup`] has a leaf for each guest, if accounting and limits by cgroup are
//! wanted; without one, the child's own CPU clock is used.
//!
//! This crate parses no untrusted data, and does not know about guests. The
//! process that uses it is the parent and reaper of all others: the manager, or
//! a keeper process ([`server`]) that outlives its managers, who use it through
//! a [`client`].

mod birth;
pub mod cgroup;
pub mod child;
pub mod client;
pub mod copy;
mod exit;
pub mod process;
mod reaper;
pub mod server;
mod sys;
