//! Requests to continue with another program.

use std::io;
use std::path::PathBuf;

use mkvmm_api::bodies::Upgrade;
use mkvmm_api::pool::KeeperVersion;
use mkvmm_base::{Class, Diagnose};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

/// A request to continue with the program at `binary`.
#[derive(Debug)]
pub struct UpgradeRequest {
    /// The path of the new program.
    pub binary: PathBuf,
    /// The receiver of the answer, which is given before the new program takes
    /// over.
    pub reply: oneshot::Sender<Result<Upgrade, UpgradeError>>,
}

/// What connects the manager of a state directory with earlier and later ones.
#[derive(Debug)]
pub struct Continuity {
    /// The number of the manager, from 1.
    pub ordinal: u32,
    /// The version of the keeper.
    pub keeper: KeeperVersion,
    /// Takes requests for an upgrade.
    pub upgrades: UnboundedSender<UpgradeRequest>,
}

/// A reason why the manager does not continue with another program.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// Its guests would end with it.
    #[error("this mkvmm has no --state-dir, so its guests would end with it")]
    NoStateDir,
    /// The program cannot be started.
    #[error("{} cannot be executed", .path.display())]
    Execute {
        /// The path of the program.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// The new program does not accept the journal, or does not go on with it.
    #[error("{} cannot continue: {text}", .path.display())]
    Refused {
        /// The path of the program.
        path: PathBuf,
        /// What it said.
        text: String,
    },
}

impl Diagnose for UpgradeError {
    fn class(&self) -> Class {
        match self {
            Self::NoStateDir => Class::WrongState,
            Self::Execute { .. } => Class::File,
            Self::Refused { .. } => Class::Invalid,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoStateDir => Some("start it with --state-dir".to_owned()),
            Self::Execute { .. } => None,
            Self::Refused { .. } => Some("nothing has changed; the guests run on".to_owned()),
        }
    }
}
