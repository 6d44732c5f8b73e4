//! What the refusals of the ledger mean.

use mkpool::{AllocError, CreateError};
use mkvmm_base::{Class, Diagnose, Room};

use super::HostPoolError;

impl Diagnose for HostPoolError {
    fn class(&self) -> Class {
        match self {
            Self::Carve {
                source: CreateError::BadOrder { .. } | CreateError::ZeroSize { .. },
                ..
            } => Class::Invalid,
            Self::Carve { .. }
            | Self::TooManyRegions { .. }
            | Self::Alloc(AllocError::NoRoom { .. }) => Class::NoRoom,
            Self::Placement(error) => error.class(),
            Self::Alloc(_) | Self::Hold { .. } => Class::Invalid,
            Self::NoAllocation { .. } => Class::NoAllocation,
            Self::ControlBusy { .. } | Self::Published { .. } => Class::Busy,
            Self::Pool(_) | Self::Free(_) | Self::Stale(_) | Self::Tree(_) | Self::Destroy(_) => {
                Class::VmmFailed
            }
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Placement(error) => error.hint(),
            _ => self.room().map(|room| {
                let (avail, largest) = (room.avail, room.largest_free);
                format!("{avail} bytes are free, {largest} of them in one piece")
            }),
        }
    }

    fn room(&self) -> Option<Room> {
        let (requested, avail, largest_free) = match self {
            Self::Carve {
                memory,
                avail,
                largest_free,
                ..
            } => (*memory, *avail, *largest_free),
            Self::Alloc(AllocError::NoRoom {
                requested,
                avail,
                largest_free,
                ..
            }) => (*requested, *avail, *largest_free),
            _ => return None,
        };
        Some(Room {
            requested,
            avail,
            largest_free,
        })
    }
}
