//! `mkvmm serve` as its users drive it: commands, `curl`, many at once.
//!
//! | module | behaviour |
//! |---|---|
//! | `session` | a session as a new user would type it, and what is refused |
//! | `serving` | configuration, the socket, signals |
//! | `wire` | HTTP itself: curl, consoles, events, the description |
//! | `pool_views` | the pool's map and log |
//! | `metrics` | what is counted, and in which format |
//! | `crowd` | 64 clients at once, legal and illegal, with audits throughout |
//! | `server` | what they share |
//!
//! Without a usable `/dev/kvm` the tests that need one say that they are
//! skipped; with `MKVMM_REQUIRE_KVM=1` they fail instead.

mod crowd;
mod metrics;
mod pool_views;
mod server;
mod serving;
mod session;
mod wire;
