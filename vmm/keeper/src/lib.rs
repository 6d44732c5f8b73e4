//! Makes, holds and reaps mkvmm's processes.
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
//! Children are made by exec, not by fork alone: each has an address layout
//! and a stack canary of its own, inherits nothing but what is listed, and no
//! code runs between fork and exec. What a child is to work on reaches it over
//! its channel. The one exception is in [`copy`].
//!
//! [`cgroup`] has a leaf for each guest, where accounting and limits by cgroup
//! are wanted; without one a child's own clock tells what it used.
//!
//! Nothing here parses what others wrote, and nothing here knows of guests.
//! The process that uses it is parent and reaper of all others; it can be the
//! manager, or a keeper of its own below it.

mod birth;
pub mod cgroup;
pub mod child;
pub mod copy;
pub mod process;
mod sys;
