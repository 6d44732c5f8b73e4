//! Probe guests on this host's own KVM, through the `mkvmm` binary.
//!
//! | module | behaviour |
//! |---|---|
//! | `maps` | each guest gets its own memory map, and the one that was announced |
//! | `launches` | what a launch does, up to two hundred guests at once |
//! | `isolation` | what happens to a guest that touches its neighbour |
//! | `platform` | vCPUs, manifest, marks and timeline |
//! | `images` | kernels and initramfs from wherever they may come |
//! | `backing` | what the pool is made of, and what is held back of it |
//! | `ends` | how mkvmm ends, and with which status |
//! | `reasons` | each way in which a guest ends, and starting again |
//! | `bad_pools`, `bad_guests`, `bad_files` | refusals: one line, a status, nothing left |
//!
//! Without a usable `/dev/kvm` the tests that need one say that they are
//! skipped; with `MKVMM_REQUIRE_KVM=1` they fail instead.

mod backing;
mod bad_files;
mod bad_guests;
mod bad_pools;
mod ends;
mod images;
mod isolation;
mod launches;
mod maps;
mod platform;
mod reasons;
