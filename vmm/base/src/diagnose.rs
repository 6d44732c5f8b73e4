//! What an error means to whoever has to act on it.
//!
//! The enum that describes a failure also says what class it belongs to and
//! what would help. Those who report it only map the class: the command line
//! to an exit status, the control socket to an HTTP status, in one table each.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::state::State;

/// The class of an error, which is also its `code` on the control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Class {
    /// The request cannot be read.
    BadRequest,
    /// There is no such route.
    NoRoute,
    /// The route exists, but not for this method.
    NoMethod,
    /// The body of the request is too long.
    TooLarge,
    /// A value is wrong.
    Invalid,
    /// A name cannot be the name of an instance.
    Name,
    /// The host does not have the processors asked for.
    Affinity,
    /// There is no kernel where one is needed.
    NoKernel,
    /// A file cannot be used.
    File,
    /// There is no such instance.
    NoInstance,
    /// Nothing was allocated at this address.
    NoAllocation,
    /// There is an instance of this name already.
    Exists,
    /// The state of the instance does not allow it.
    WrongState,
    /// It is in use.
    Busy,
    /// The pool cannot hold it.
    NoRoom,
    /// The host has no descriptors, threads or mappings left for it.
    Exhausted,
    /// Too much is asked for at once; it may be asked for again.
    Overload,
    /// The instance has no memory at this address.
    NoMemory,
    /// The instance has no such vCPU.
    NoCpu,
    /// A virtual address is mapped to nothing.
    Unmapped,
    /// The VMM, the host or KVM failed.
    VmmFailed,
    /// The class is one that this version does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What was asked of a pool that could not give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The number of bytes requested.
    pub requested: u64,
    /// The number of bytes free.
    pub avail: u64,
    /// The number of bytes of the longest free extent.
    pub largest_free: u64,
}

/// An error that knows what it means.
pub trait Diagnose: std::error::Error {
    /// Returns the class of the error.
    fn class(&self) -> Class;

    /// Returns a hint for fixing the error, where there is one.
    fn hint(&self) -> Option<String> {
        None
    }

    /// Returns the numbers of an error of class [`Class::NoRoom`].
    fn room(&self) -> Option<Room> {
        None
    }

    /// Returns the state that does not allow what was asked for, of an error
    /// of class [`Class::WrongState`].
    fn state(&self) -> Option<State> {
        None
    }
}

impl<T: Diagnose> Diagnose for Box<T> {
    fn class(&self) -> Class {
        (**self).class()
    }

    fn hint(&self) -> Option<String> {
        (**self).hint()
    }

    fn room(&self) -> Option<Room> {
        (**self).room()
    }

    fn state(&self) -> Option<State> {
        (**self).state()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_written_as_codes() {
        assert_eq!(Class::NoRoom.to_string(), "no-room");
        assert_eq!(Class::VmmFailed.to_string(), "vmm-failed");
    }
}
