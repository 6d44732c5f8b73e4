//! The manager is killed at random.
//!
//! This takes long and is not part of `cargo test`:
//! `cargo test -p mkvmm --test adoption_deaths`, or `scripts/soak --kills N`.
//!
//! | module | what |
//! |---|---|
//! | `kills` | the manager is killed at random while clients use it |
//!
//! `MKVMM_KILLS` sets the number of kills; from 1000 on with 50 guests and 8 clients.

mod kills;
