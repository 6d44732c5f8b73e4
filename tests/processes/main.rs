//! One process per guest: what becomes of one is nobody else's matter.
//!
//! | module | behaviour |
//! |---|---|
//! | `deaths` | guests that die in every way beside one that counts |
//! | `early` | the first worker of `run`, which is made before anything is read |
//! | `kills` | workers killed from outside at random moments of every verb |
//! | `soak` | instances made and taken down again and again |
//! | `user` | an ordinary user of the group that has `/dev/kvm` |
//!
//! Workers that lie, flood or stand still are the manager's own tests.
//!
//! Without a usable `/dev/kvm` the tests that need one say that they are
//! skipped; with `MKVMM_REQUIRE_KVM=1` they fail instead.

mod deaths;
mod early;
mod kills;
mod soak;
mod user;
