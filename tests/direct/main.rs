//! Tests of probe guests on this host's own KVM, through the `mkvmm` binary.
//!
//! | module | behaviour |
//! |---|---|
//! | `maps` | each guest gets its own memory map, as announced |
//! | `launches` | the effects of a launch, up to two hundred guests at once |
//! | `isolation` | guests that access their neighbour's memory |
//! | `platform` | vCPUs, manifest, marks and timeline |
//! | `images` | kernels and initramfs from all kinds of sources |
//! | `backing` | the pool's backing, and parts that are held back |
//! | `ends` | how mkvmm ends, and with which status |
//! | `deaths` | the rows of docs/ends.md |
//! | `reasons` | all reasons of ends, and restarts |
//! | `terminals` | what guests print on a terminal |
//! | `bad_pools`, `bad_guests`, `bad_files` | refusals: one line, a status, nothing left |
//!
//! Without a usable `/dev/kvm` the tests that need it report that they are
//! skipped; with `MKVMM_REQUIRE_KVM=1` they fail instead.

mod backing;
mod bad_files;
mod bad_guests;
mod bad_pools;
mod deaths;
mod ends;
mod images;
mod isolation;
mod job;
mod launches;
mod maps;
mod platform;
mod reasons;
mod terminals;
