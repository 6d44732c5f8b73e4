//! The manager is killed at every write to its journal, at every call, and at random.
//!
//! These tests take long and are not part of `cargo test`:
//! `cargo test -p mkvmm --test adoption_deaths`.
//!
//! | module | what |
//! |---|---|
//! | `walk` | the manager is killed at every write to its journal and every call, verb by verb |
//! | `verb` | the verbs of the walk: asked for, looked at, made up for |
//! | `house` | a state directory with a neighbour, and what must be as before |
//! | `kills` | the manager is killed at random while clients use it |
//!
//! | variable | what it sets |
//! |---|---|
//! | `MKVMM_FAULT_STRIDE` | how many calls the walk goes on by; 1 visits all of them |
//! | `MKVMM_FAULT_VERBOSE=1` | prints each death with what came of it |
//! | `MKVMM_KILLS` | the number of random kills; from 1000 on with 50 guests and 8 clients |

mod house;
mod kills;
mod verb;
mod walk;
