//! Reasons why a fleet was not applied.

use mkvmm_base::state::State;
use mkvmm_base::{Class, Diagnose, InstanceName, Room};

use crate::transaction::TransactionError;

/// A reason why a fleet was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Others have changed the instances between the plan and its execution.
    #[error("the instances or channels have changed meanwhile")]
    Changed,
    /// A step failed, and everything is as before.
    #[error("nothing has changed{}", exceptions(.rebooted, .emptied))]
    RolledBack {
        /// The guests that had to be booted again for that.
        rebooted: Vec<InstanceName>,
        /// The channels whose contents are gone.
        emptied: Vec<InstanceName>,
        /// The error of the step.
        #[source]
        source: Box<TransactionError>,
    },
    /// A step failed, and so did undoing another one.
    #[error("not all steps could be undone ({})", .problems.join("; "))]
    Stuck {
        /// What could not be undone.
        problems: Vec<String>,
        /// The error of the step.
        #[source]
        source: Box<TransactionError>,
    },
}

fn exceptions(rebooted: &[InstanceName], emptied: &[InstanceName]) -> String {
    let rebooted = match rebooted {
        [] => None,
        [one] => Some(format!("{one} was booted again")),
        several => Some(format!("these were booted again: {}", list(several))),
    };
    let emptied = match emptied {
        [] => None,
        [one] => Some(format!("channel {one} is empty")),
        several => Some(format!("these channels are empty: {}", list(several))),
    };
    let exceptions: Vec<String> = rebooted.into_iter().chain(emptied).collect();
    match exceptions.is_empty() {
        true => String::new(),
        false => format!(", but {}", exceptions.join("; ")),
    }
}

fn list(names: &[InstanceName]) -> String {
    let names: Vec<&str> = names.iter().map(InstanceName::as_str).collect();
    names.join(", ")
}

impl ApplyError {
    fn inner(&self) -> Option<&dyn Diagnose> {
        match self {
            Self::Changed => None,
            Self::RolledBack { source, .. } | Self::Stuck { source, .. } => Some(&**source),
        }
    }
}

impl Diagnose for ApplyError {
    fn class(&self) -> Class {
        self.inner().map_or(Class::Busy, Diagnose::class)
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Changed => Some("apply it again".to_owned()),
            Self::RolledBack { .. } => self.inner()?.hint(),
            Self::Stuck { .. } => {
                Some("mend what it says, and apply it again: it continues from there".to_owned())
            }
        }
    }

    fn room(&self) -> Option<Room> {
        self.inner()?.room()
    }

    fn state(&self) -> Option<State> {
        self.inner()?.state()
    }
}
