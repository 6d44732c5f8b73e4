//! Tests that each guest has its own process, whose death affects no other
//! guest.
//!
//! | module | behaviour |
//! |---|---|
//! | `deaths` | guests that die in every way beside one that counts |
//! | `early` | the first worker of `run`, which is made before anything is read |
//! | `kills` | workers killed from outside at random moments of every verb |
//! | `soak` | instances created and deleted repeatedly |
//! | `stock` | workers that wait for a guest |
//! | `storm` | random load, kills and hostile clients, with pauses in which all is deleted |
//! | `user` | an ordinary user of the group that has `/dev/kvm` |
//!
//! Tests of workers that lie, flood or hang are part of the manager's crate.
//!
//! Without a usable `/dev/kvm` the tests that need it report that they are
//! skipped; with `MKVMM_REQUIRE_KVM=1` they fail instead.

mod deaths;
mod early;
mod kills;
mod soak;
mod stock;
mod storm;
mod user;
