//! `mkvmm serve` as its users drive it: commands, `curl`, many at once.
//!
//! | module | behaviour |
//! |---|---|
//! | `session` | a session as a new user would type it, and what is refused |
//! | `serving` | configuration, the socket, signals |
//! | `wire` | HTTP itself: curl, consoles, events, the description |
//! | `pool_views` | the pool's map and log |
//! | `metrics` | what is counted, and in which format |
//! | `usage` | processes, CPU time, memory and cgroups of guests |
//! | `debug` | registers, memory, translations, the doctor |
//! | `consoles` | logs, and terminals that are as they were afterwards |
//! | `guide` | the examples of docs/control.md |
//! | `limits` | what one client or guest may cost others, and refusals before crashes |
//! | `restarts` | guests that reset, and those that are killed meanwhile |
//! | `stalls` | processes that stand still |
//! | `crowd` | 64 clients at once, legal and illegal, with audits throughout |
//!
//! Without a usable `/dev/kvm` the tests that need one say that they are
//! skipped; with `MKVMM_REQUIRE_KVM=1` they fail instead.

mod consoles;
mod crowd;
mod debug;
mod guide;
mod limits;
mod metrics;
mod pool_views;
mod restarts;
mod serving;
mod session;
mod spec;
mod stalls;
mod usage;
mod wire;

use mkvmm_test_harness::server;
