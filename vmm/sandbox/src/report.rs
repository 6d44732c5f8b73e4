//! The actual result of applying a sandbox.

use std::fmt;

use crate::profile::{Mode, Profile};

/// A layer of the sandbox, in the order in which layers are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The resource limits (`setrlimit`).
    Limits,
    /// Supplementary groups, group and user ids.
    Identity,
    /// The capability sets, which are emptied.
    Capabilities,
    /// Whether processes of the same user may inspect this one.
    Dumpable,
    /// The parent-death signal SIGKILL.
    ParentDeath,
    /// The flag that prevents execve from adding privileges.
    NoNewPrivs,
    /// The Landlock domain of the process.
    Landlock,
    /// The seccomp filter of the process.
    Seccomp,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Limits => "limits",
            Self::Identity => "identity",
            Self::Capabilities => "capabilities",
            Self::Dumpable => "dumpable",
            Self::ParentDeath => "parent-death signal",
            Self::NoNewPrivs => "no_new_privs",
            Self::Landlock => "Landlock",
            Self::Seccomp => "seccomp",
        })
    }
}

/// The result of applying one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The layer is in force as designed.
    Applied,
    /// The layer was switched off.
    SwitchedOff,
    /// Processes of this kind do not have this layer.
    NotInProfile,
    /// Supplementary groups remain, since only root can drop them. They matter
    /// for opening paths, which a confined process cannot do.
    GroupsKept {
        /// The number of groups kept.
        count: usize,
    },
    /// The bounding set is unchanged, since CAP_SETPCAP is missing. With
    /// `no_new_privs` it has no effect anyway.
    BoundingSetKept,
    /// No parent was given.
    NoParentNamed,
    /// The kernel lacks parts of Landlock.
    LandlockPartial {
        /// The kernel's Landlock version; 0 if it has none.
        abi: u32,
        /// The actions that this layer therefore does not deny.
        missing: Vec<&'static str>,
    },
    /// The filter only logs and denies nothing.
    LogsOnly,
    /// Processes of the same user may inspect this one, by request.
    Debuggable,
}

impl Outcome {
    /// Returns whether the layer is weaker than designed in a way that must be
    /// reported to the user in any case.
    pub fn is_loud(&self) -> bool {
        matches!(
            self,
            Self::SwitchedOff | Self::LandlockPartial { .. } | Self::LogsOnly | Self::Debuggable
        )
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied => f.write_str("applied"),
            Self::SwitchedOff => f.write_str("SWITCHED OFF"),
            Self::NotInProfile => f.write_str("not part of this profile"),
            Self::GroupsKept { count } => {
                write!(f, "applied; {count} supplementary groups kept (not root)")
            }
            Self::BoundingSetKept => {
                f.write_str("applied; bounding set kept (no CAP_SETPCAP), without effect")
            }
            Self::NoParentNamed => f.write_str("no parent given"),
            Self::LandlockPartial { abi, missing } => {
                write!(f, "PARTIAL (kernel has version {abi}), ")?;
                write!(f, "not denied: {}", missing.join(", "))
            }
            Self::LogsOnly => f.write_str("LOGS ONLY, DOES NOT CONFINE"),
            Self::Debuggable => {
                f.write_str("DEBUGGABLE: any unconfined process of this user can inspect it")
            }
        }
    }
}

/// The results of all layers. It is printed as one line per layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The kind of process.
    pub profile: Profile,
    /// The response to forbidden system calls.
    pub mode: Mode,
    /// The layers, in the order in which they were applied.
    pub layers: Vec<(Layer, Outcome)>,
}

impl Report {
    pub(crate) fn new(profile: Profile, mode: Mode) -> Self {
        Self {
            profile,
            mode,
            layers: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, layer: Layer, outcome: Outcome) {
        self.layers.push((layer, outcome));
    }

    /// Returns the result of `layer`; `None` if it was not reached.
    pub fn outcome(&self, layer: Layer) -> Option<&Outcome> {
        let found = self.layers.iter().find(|(each, _)| *each == layer);
        found.map(|(_, outcome)| outcome)
    }

    /// Returns one line for each layer that is weaker than designed. The caller
    /// must show them in any case.
    pub fn warnings(&self) -> Vec<String> {
        let loud = self.layers.iter().filter(|(_, outcome)| outcome.is_loud());
        loud.map(|(layer, outcome)| format!("sandbox of this {}: {layer}: {outcome}", self.profile))
            .collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sandbox of this {} (mode {})", self.profile, self.mode)?;
        for (layer, outcome) in &self.layers {
            write!(f, "\n  {layer}: {outcome}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_weakens_the_sandbox_is_a_warning() {
        let mut report = Report::new(Profile::Worker, Mode::Log);
        report.add(Layer::Identity, Outcome::Applied);
        report.add(Layer::Dumpable, Outcome::Debuggable);
        report.add(Layer::Seccomp, Outcome::LogsOnly);
        let warnings = report.warnings();
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].contains("DEBUGGABLE"));
        assert!(warnings[1].contains("DOES NOT CONFINE"));
    }

    #[test]
    fn a_partial_landlock_names_what_it_does_not_deny() {
        let outcome = Outcome::LandlockPartial {
            abi: 4,
            missing: vec!["signals", "abstract sockets"],
        };
        let printed = outcome.to_string();
        assert!(printed.contains("version 4"));
        assert!(printed.ends_with("signals, abstract sockets"));
    }
}
