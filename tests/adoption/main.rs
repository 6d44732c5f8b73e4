//! The manager is killed, leaves, or is replaced by another program, and guests
//! do not notice.
//!
//! | module | what |
//! |---|---|
//! | `channels` | channels before and after a change of managers |
//! | `crash` | what comes back after the keeper is lost, and what does not |
//! | `guests` | guests of every kind before, during and after a change of managers |
//! | `hostile` | what guests' processes leave behind, and processes that do not end |
//! | `keeping` | the keeper alone, with the test as its manager |
//! | `refusals` | what a manager refuses to take over, and how it ends |
//! | `ring` | messages over a channel while its members and managers are killed |
//! | `systemd` | the units, with a real systemd |
//! | `upgrade` | another program continues |
//! | `walk` | the manager is killed at writes to its journal and at calls, verb by verb |
//! | `verb` | the verbs of the walk: asked for, looked at, made up for |
//! | `house` | a state directory with a neighbour, and what must be as before |
//!
//! | variable | what it sets |
//! |---|---|
//! | `MKVMM_FAULT_STRIDE` | how many calls and writes the walk goes on by; 1 visits all of them |
//! | `MKVMM_FAULT_VERBOSE=1` | prints each death with what came of it |
//! | `MKVMM_RING_MESSAGES` | the number of messages over a channel |
//! | `MKVMM_UPGRADE_GUESTS` | the number of guests that live through the upgrades |
//! | `MKVMM_OTHER` | another mkvmm for the upgrades, for example of an earlier commit |
//!
//! Managers that are killed at random are a target of their own, `adoption_deaths`.

mod channels;
mod crash;
mod guests;
mod hostile;
mod house;
mod keeping;
mod refusals;
mod ring;
mod systemd;
mod upgrade;
mod verb;
mod walk;
