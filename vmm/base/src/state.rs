//! The life cycle of an instance: its states, the verbs that each allows, and
//! the reasons why it ends.
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
//! [`State::after`] is the complete transition table; all other code uses it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The reason why a vCPU, and with it the instance, has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum EndReason {
    /// The guest powered itself off (ACPI soft-off).
    Poweroff,
    /// The guest requested a reset (i8042 or ACPI).
    Reboot,
    /// Every vCPU is halted with interrupts disabled; nothing can wake it.
    Halt,
    /// The VMM ended it, on request.
    Killed,
    /// The guest's kernel panicked and said so (pvpanic, or its console before
    /// it reset).
    Panic,
    /// The guest caused an exception that it could not handle.
    TripleFault,
    /// The guest accessed memory it does not own, and its policy is to stop.
    Violation,
    /// KVM could not continue: the guest did something that KVM cannot run.
    KvmError,
    /// The worker process failed: it exited without a reason, was killed from
    /// outside, or violated the protocol.
    Vmm,
}

impl EndReason {
    /// The list of all reasons, in the order of their numbers.
    const ALL: [Self; 9] = [
        Self::Poweroff,
        Self::Reboot,
        Self::Halt,
        Self::Killed,
        Self::Panic,
        Self::TripleFault,
        Self::Violation,
        Self::KvmError,
        Self::Vmm,
    ];

    /// Returns the number of the reason in shared memory, from 1.
    pub const fn number(self) -> u64 {
        self as u64 + 1
    }

    /// Returns the reason with this number, if there is one.
    pub fn from_number(number: u64) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|reason| reason.number() == number)
    }

    /// Returns the state after this end: `failed` or `stopped`.
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

/// The response when a guest's process does not make progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnStall {
    /// The instance is `stalled` until the process continues, or somebody kills
    /// it.
    #[default]
    Wait,
    /// The process is killed, and the instance has failed.
    Kill,
}

/// The response when a guest ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum OnEnd {
    /// The instance stays stopped.
    #[default]
    Stop,
    /// The instance is booted again from the images it was loaded with.
    Restart,
}

/// The state of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum State {
    /// The instance has a sub-pool and no images.
    Ready,
    /// The images are in the instance's memory.
    Loaded,
    /// The vCPUs of the instance run.
    Active,
    /// The vCPUs wait until they are resumed.
    Paused,
    /// The instance ended normally.
    Stopped,
    /// The instance ended with an error.
    Failed,
    /// The instance is being deleted; its memory is scrubbed before it is
    /// reused.
    Cleaning,
    /// The instance's process does not respond, because a signal, a cgroup
    /// freezer or a debugger stopped it.
    Stalled,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// An operation on an existing instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Verb {
    /// Load images into its memory, replacing earlier ones.
    Load,
    /// Boot the images that are loaded.
    Start,
    /// Pause its vCPUs.
    Pause,
    /// Resume its vCPUs.
    Resume,
    /// End the guest, by its power button or by force.
    Kill,
    /// Remove the images from its memory.
    Unload,
    /// Delete the instance and free its memory.
    Delete,
}

/// All verbs, in the order of an instance's life.
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
    /// Returns the name of the verb in the API and in messages.
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

/// The effect of a verb on the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The instance is in this state at once.
    Now(State),
    /// The instance is `stopped` or `failed` once the guest has ended.
    Ends,
    /// The instance no longer exists.
    Gone,
}

impl State {
    /// Returns the effect of `verb` in this state; `None` if it is illegal.
    ///
    /// `kill` is also legal after the end, where it does nothing, so that a
    /// caller who was a moment too late does not get an error.
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

    /// Returns the verbs that are legal in this state.
    pub fn legal(self) -> impl Iterator<Item = Verb> {
        let legal = move |verb: &Verb| self.after(*verb).is_some();
        VERBS.into_iter().filter(legal)
    }

    /// Returns the hint that lists the verbs that are legal in this state.
    pub fn legal_hint(self) -> String {
        let verbs: Vec<String> = self.legal().map(|verb| verb.to_string()).collect();
        format!("legal now: {}", verbs.join(", "))
    }

    /// Returns whether vCPUs exist, which means that the guest owns its RAM.
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
