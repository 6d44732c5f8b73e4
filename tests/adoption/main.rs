//! The manager is killed, leaves, or is replaced by another program, and guests
//! do not notice.
//!
//! | module | what |
//! |---|---|
//! | `guests` | guests of every kind before, during and after a change of managers |
//! | `refusals` | what a manager refuses to take over, and how it ends |
//! | `upgrade` | another program continues |
//!
//! `MKVMM_UPGRADE_GUESTS` sets the number of guests that live through the upgrades.
//! The long tests are a target of their own, `adoption_deaths`.

mod guests;
mod refusals;
mod upgrade;
