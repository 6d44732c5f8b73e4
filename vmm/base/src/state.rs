//! The life of an instance: which states there are, which verbs each allows,
//! and how it may end.
//!
//! ```text
//!   create        load          start         pause
//!     ───► ready ──────► loaded ─────► active ──────► paused
//!           ▲  ▲            │           │  ▲            │ │
//!           │  └── unload ──┘     the guest └── resume ─┘ │ kill
//!           │                     ends,  ▼                ▼
//!           └────── unload ────── kill  stopped (poweroff, reboot, halt, killed)
//!                                       failed  (panic, triple-fault, violation, kvm-error)
//!                                         │  start boots again from the kept images
//!                                         └► active
//! ```
//!
//! [`State::after`] is the whole table; everything else asks it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a vCPU, and with it the instance, came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum EndReason {
    /// The guest turned itself off (ACPI soft-off).
    Poweroff,
    /// The guest asked for a reset (i8042 or ACPI).
    Reboot,
    /// Every vCPU sleeps with interrupts off: nothing can wake it any more.
    Halt,
    /// The VMM ended it, on request.
    Killed,
    /// The guest's kernel panicked and said so (pvpanic).
    Panic,
    /// An exception that the guest could not handle.
    TripleFault,
    /// It touched what is not its own, and its policy says stop.
    Violation,
    /// KVM could not go on: the guest did something KVM cannot run.
    KvmError,
    /// The worker process failed: it ended without saying why, was killed from
    /// outside, or broke the protocol.
    Vmm,
}

impl EndReason {
    /// `failed` or `stopped`.
    pub const fn state(self) -> State {
        match self {
            Self::Poweroff | Self::Reboot | Self::Halt | Self::Killed => State::Stopped,
            Self::Panic | Self::TripleFault | Self::Violation | Self::KvmError | Self::Vmm => {
                State::Failed
            }
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What follows when the process of a guest stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnStall {
    /// The instance is `stalled` until the process goes on, or somebody kills
    /// it.
    #[default]
    Wait,
    /// The process is killed, and the instance has failed.
    Kill,
}

/// What follows when a guest ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum OnEnd {
    /// Nothing: it stays ended.
    #[default]
    Stop,
    /// It is booted again from the images it was loaded with.
    Restart,
}

/// Where an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum State {
    /// It has its sub-pool.
    Ready,
    /// Its images are in its memory.
    Loaded,
    /// Its vCPUs run.
    Active,
    /// Its vCPUs wait to be let go on.
    Paused,
    /// It ended as a guest may end.
    Stopped,
    /// It ended badly.
    Failed,
    /// It is being deleted, and its memory cleaned for others.
    Cleaning,
    /// Its process stands still: it did not answer an order, since a signal, a
    /// freezer or a debugger stopped it.
    Stalled,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What can be asked of an instance that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Verb {
    /// Put images into its memory, in place of those that are there.
    Load,
    /// Boot the images that are loaded.
    Start,
    /// Stop its vCPUs for a while.
    Pause,
    /// Let them go on.
    Resume,
    /// End the guest, by its power button or by force.
    Kill,
    /// Take the images out of its memory.
    Unload,
    /// Give its memory back; then it is gone.
    Delete,
}

/// Every verb there is.
pub const VERBS: [Verb; 7] = [
    Verb::Load,
    Verb::Start,
    Verb::Pause,
    Verb::Resume,
    Verb::Kill,
    Verb::Unload,
    Verb::Delete,
];

impl Verb {
    /// Returns the word that stands for it everywhere.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Kill => "kill",
            Self::Unload => "unload",
            Self::Delete => "delete",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Where a verb leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// At once to this state.
    Now(State),
    /// To `stopped` or `failed`, when the guest has ended.
    Ends,
    /// The instance is gone.
    Gone,
}

impl State {
    /// Where `verb` leads from here; `None` where it is not legal.
    ///
    /// `kill` is legal after the end as well and does nothing there, so that
    /// repeating it is never an error of whoever was a moment too late.
    pub const fn after(self, verb: Verb) -> Option<Outcome> {
        use State::{Active, Failed, Loaded, Paused, Ready, Stalled, Stopped};
        Some(match (self, verb) {
            (Ready | Loaded | Stopped | Failed, Verb::Load) => Outcome::Now(Loaded),
            (Loaded | Stopped | Failed, Verb::Start) => Outcome::Now(Active),
            (Active, Verb::Pause) => Outcome::Now(Paused),
            (Paused, Verb::Resume) => Outcome::Now(Active),
            (Active | Paused | Stalled, Verb::Kill) => Outcome::Ends,
            (Stopped | Failed, Verb::Kill) => Outcome::Now(self),
            (Loaded | Stopped | Failed, Verb::Unload) => Outcome::Now(Ready),
            (Ready | Loaded | Stopped | Failed, Verb::Delete) => Outcome::Gone,
            _ => return None,
        })
    }

    /// The verbs that are legal here.
    pub fn legal(self) -> impl Iterator<Item = Verb> {
        let legal = move |verb: &Verb| self.after(*verb).is_some();
        VERBS.into_iter().filter(legal)
    }

    /// Returns the hint that names the verbs that are legal here.
    pub fn legal_hint(self) -> String {
        let verbs: Vec<String> = self.legal().map(|verb| verb.to_string()).collect();
        format!("legal now: {}", verbs.join(", "))
    }

    /// Whether vCPUs exist: the guest owns its RAM.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Active | Self::Paused | Self::Stalled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_allows_exactly_what_the_table_says() {
        for (state, verbs) in [
            (State::Ready, "load delete"),
            (State::Loaded, "load start unload delete"),
            (State::Active, "pause kill"),
            (State::Paused, "resume kill"),
            (State::Stalled, "kill"),
            (State::Cleaning, ""),
            (State::Stopped, "load start kill unload delete"),
            (State::Failed, "load start kill unload delete"),
        ] {
            let legal: Vec<String> = state.legal().map(|verb| verb.to_string()).collect();
            assert_eq!(legal.join(" "), verbs, "{state}");
        }
    }

    #[test]
    fn only_a_live_instance_ends_and_killing_a_dead_one_changes_nothing() {
        for state in [State::Active, State::Paused, State::Stalled] {
            assert!(state.is_live());
            assert_eq!(state.after(Verb::Kill), Some(Outcome::Ends));
        }
        for state in [State::Stopped, State::Failed] {
            assert_eq!(state.after(Verb::Kill), Some(Outcome::Now(state)));
        }
    }
}
