//! What can be wrong with a channel.

use std::io;

use mkvmm_base::{Class, Diagnose, InstanceName, Room, is_shortage};
use mkvmm_keeper::client::KeeperError;
use mkvmm_memory::host_pool::HostPoolError;
use mkvmm_memory::reservation::ReservationError;
use mkvmm_wire::messages::{CHANNELS_MAX, DOORBELLS_MAX};
use mkvmm_wire::shared::SharedError;
use mkvmm_wire::shared::members::MEMBERS_MAX;

use crate::budget::Shortage;
use crate::worker::WorkerError;

/// A reason why a channel cannot be created, shown or deleted.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// There is no channel of that name.
    #[error("there is no channel {name}")]
    Unknown {
        /// The name that was requested.
        name: InstanceName,
    },
    /// The number of members is out of range.
    #[error("{count} members are out of range (2..={MEMBERS_MAX})")]
    Members {
        /// The number of members requested.
        count: usize,
    },
    /// A member is listed twice.
    #[error("{member} is listed twice")]
    Twice {
        /// The name of the member.
        member: InstanceName,
    },
    /// The number of doorbells is out of range.
    #[error("{count} doorbells are out of range (1..={DOORBELLS_MAX})")]
    Doorbells {
        /// The number of doorbells requested.
        count: u8,
    },
    /// The instance is not a member of the channel.
    #[error("{member} is not a member of channel {name}")]
    NoMember {
        /// The name of the channel.
        name: InstanceName,
        /// The name that was requested.
        member: InstanceName,
    },
    /// The member is joining or leaving already.
    #[error("{member} is joining or leaving channel {name}")]
    Moving {
        /// The name of the channel.
        name: InstanceName,
        /// The name of the member.
        member: InstanceName,
    },
    /// The worker of a member was started by a version that knows no channels.
    #[error("the process of {member} is of a version without channels")]
    OldWorker {
        /// The name of the member.
        member: InstanceName,
    },
    /// The process of a member did not carry it out.
    #[error("the process of {member}")]
    Worker {
        /// The name of the member.
        member: InstanceName,
        /// The underlying error.
        #[source]
        source: WorkerError,
    },
    /// The process of a member is stopped.
    #[error("the process of {member} is stopped; it joins or leaves when it continues")]
    Stalled {
        /// The name of the member.
        member: InstanceName,
    },
    /// A member has too many channels.
    #[error("{member} is a member of {CHANNELS_MAX} channels, which is the limit")]
    Full {
        /// The name of the member.
        member: InstanceName,
    },
    /// A member's process has the memory.
    #[error("{member} has the memory of channel {name}")]
    InUse {
        /// The name of the channel.
        name: InstanceName,
        /// The name of the member.
        member: InstanceName,
    },
    /// The channel is being deleted.
    #[error("channel {name} is being deleted")]
    Ending {
        /// The name of the channel.
        name: InstanceName,
    },
    /// The memory is in more files than a message can carry.
    #[error("the memory is in {count} files, more than {limit}")]
    Files {
        /// The number of files.
        count: usize,
        /// The number that a message carries.
        limit: usize,
    },
    /// The keeper was started by a version that knows no channels.
    #[error("the keeper process is of a version without channels")]
    OldKeeper,
    /// The ledger refused it.
    #[error("the pool")]
    Pool(#[from] HostPoolError),
    /// The memory cannot be provided, or cannot be cleaned.
    #[error("the memory of the channel")]
    Memory(#[from] ReservationError),
    /// The page of the members' states, or a doorbell, cannot be made.
    #[error("the doorbells of the channel")]
    Shared(#[from] SharedError),
    /// The host gives no descriptor.
    #[error("a descriptor of the channel")]
    Io(#[from] io::Error),
    /// The host lacks a resource.
    #[error(transparent)]
    Shortage(#[from] Shortage),
    /// The keeper does not hold a descriptor.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The manager is shutting down.
    #[error("mkvmm is shutting down")]
    Stopping,
}

impl Diagnose for ChannelError {
    fn class(&self) -> Class {
        match self {
            Self::Unknown { .. } | Self::NoMember { .. } => Class::NoChannel,
            Self::Members { .. } | Self::Twice { .. } | Self::Doorbells { .. } => Class::Invalid,
            Self::InUse { .. }
            | Self::Ending { .. }
            | Self::Moving { .. }
            | Self::Stalled { .. }
            | Self::OldWorker { .. } => Class::Busy,
            Self::Pool(error) => error.class(),
            Self::Memory(error) => error.class(),
            Self::Shortage(error) => error.class(),
            Self::Full { .. } | Self::Files { .. } => Class::Exhausted,
            Self::Shared(_) | Self::Io(_) | Self::Keeper(_) | Self::Worker { .. }
                if is_shortage(self) =>
            {
                Class::Exhausted
            }
            Self::Stopping => Class::Lost,
            _ => Class::VmmFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::InUse { name, member } => Some(format!(
                "kill {member}, or take the channel away from it: mkvmm channel leave {name} \
                 {member}, or delete --force"
            )),
            Self::OldWorker { member } => Some(format!("kill and start {member}")),
            Self::Pool(error) => error.hint(),
            Self::Memory(error) => error.hint(),
            Self::Shortage(error) => error.hint(),
            Self::OldKeeper => {
                Some("end all guests and the keeper, and start `mkvmm serve` again".to_owned())
            }
            _ => None,
        }
    }

    fn room(&self) -> Option<Room> {
        match self {
            Self::Pool(error) => error.room(),
            _ => None,
        }
    }
}
