//! Tests of `mkvmm serve` from the point of view of its users: commands,
//! `curl`, many at once.
//!
//! | module | behaviour |
//! |---|---|
//! | `apply` | fleets that are applied, undone and dumped |
//! | `session` | a session as a new user would type it, and refusals |
//! | `serving` | configuration, the socket, signals |
//! | `wire` | HTTP itself: curl, consoles, events, the description |
//! | `pipes` | standard output that nobody reads |
//! | `pool_views` | the pool's map and log |
//! | `metrics` | the metrics and their format |
//! | `scrapes` | metrics over TCP, a Prometheus, and the log |
//! | `tutorial` | docs/tutorial.md, command by command |
//! | `usage` | processes, CPU time, memory and cgroups of guests |
//! | `debug` | registers, memory, translations, the doctor |
//! | `consoles` | logs, and terminals that are restored afterwards |
//! | `guide` | the examples of docs/control.md |
//! | `granules` | sizes that are multiples, and what schedulers ask |
//! | `leases` | instances that end with their clients, and `run --on` |
//! | `tenants` | owners, repeated requests, labels, events of one instance |
//! | `install` | examples, man pages, completions, packages |
//! | `limits` | limits of what one client or guest can use |
//! | `restarts` | guests that reset, and kills meanwhile |
//! | `verbs` | several names, restarts, waiting, output printed again |
//! | `rust_client` | the client crate, for programs of others |
//! | `stalls` | stalled processes |
//! | `crowd` | 64 clients at once, legal and illegal, with audits throughout |
//!
//! Without a usable `/dev/kvm` the tests that need it report that they are
//! skipped; with `MKVMM_REQUIRE_KVM=1` they fail instead.

mod apply;
mod consoles;
mod crowd;
mod debug;
mod granules;
mod guide;
mod install;
mod leases;
mod limits;
mod metrics;
mod pipes;
mod pool_views;
mod restarts;
mod rust_client;
mod scrapes;
mod serving;
mod session;
mod spec;
mod stalls;
mod tenants;
mod tutorial;
mod usage;
mod verbs;
mod wire;

use mkvmm_test_harness::server;
