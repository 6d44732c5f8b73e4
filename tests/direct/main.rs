//! Probe guests on this host's own KVM, through the `mkvmm` binary.
//!
//! | module | behaviour |
//! |---|---|
//! | `maps` | each guest gets its own memory map, and the one that was announced |
//! | `launches` | what a launch does, up to two hundred guests at once |
//! | `isolation` | what happens to a guest that touches its neighbour |
//! | `ends` | how guests and mkvmm end, and with which status |
//! | `bad_pools`, `bad_guests`, `bad_files` | refusals: one line, a status, nothing left |
//!
//! Without a usable `/dev/kvm` the tests that need one say that they are
//! skipped; with `MKVMM_REQUIRE_KVM=1` they fail instead.

mod bad_files;
mod bad_guests;
mod bad_pools;
mod ends;
mod isolation;
mod launches;
mod maps;
