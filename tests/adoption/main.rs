//! The manager is killed, leaves, or is replaced by another program, and guests
//! do not notice.
//!
//! | module | what |
//! |---|---|
//! | `guests` | guests of every kind before, during and after a change of managers |
//! | `walk` | the manager is killed at every write to its journal and every call, verb by verb |
//! | `verb` | the verbs of the walk: asked for, looked at, made up for |
//! | `house` | a state directory with a neighbour, and what must be as before |
//! | `kills` | the manager is killed at random while clients use it |
//! | `refusals` | what a manager refuses to take over, and how it ends |
//! | `upgrade` | another program continues |
//!
//! | variable | what it sets |
//! |---|---|
//! | `MKVMM_FAULT_STRIDE` | how many calls the walk goes on by; 1 visits all of them |
//! | `MKVMM_FAULT_VERBOSE=1` | prints each death with what came of it |
//! | `MKVMM_KILLS` | the number of random kills; from 1000 on with 50 guests and 8 clients |
//! | `MKVMM_UPGRADE_GUESTS` | the number of guests that live through the upgrades |

mod guests;
mod house;
mod kills;
mod refusals;
mod upgrade;
mod verb;
mod walk;
