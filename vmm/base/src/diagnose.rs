//! The class of an error, and a hint for fixing it.
//!
//! The enum that describes a failure also determines its class and its hint.
//! Reporting code only maps the class: the command line to an exit status, the
//! control socket to an HTTP status, in one table each.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::state::State;

/// The class of an error, which is also its `code` on the control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Class {
    /// The request cannot be parsed.
    BadRequest,
    /// There is no such route.
    NoRoute,
    /// The route does not support this method.
    NoMethod,
    /// The body of the request is too large.
    TooLarge,
    /// A value is invalid.
    Invalid,
    /// The name of an instance is invalid.
    Name,
    /// The requested processors are not available on the host.
    Affinity,
    /// A cgroup cannot be used, or cannot enforce a limit.
    Cgroup,
    /// A kernel is required and was not given.
    NoKernel,
    /// A file cannot be used.
    File,
    /// There is no such instance.
    NoInstance,
    /// There is no allocation at this address.
    NoAllocation,
    /// The instance has no console with this number.
    NoConsole,
    /// There is no such channel.
    NoChannel,
    /// An instance of this name exists already.
    Exists,
    /// The state of the instance does not allow the request.
    WrongState,
    /// The instance or resource is in use.
    Busy,
    /// The pool does not have enough free memory.
    NoRoom,
    /// The host has run out of descriptors, threads or mappings.
    Exhausted,
    /// Too many requests at once; the request can be retried.
    Overload,
    /// The instance has no memory at this address.
    NoMemory,
    /// The instance does not have this vCPU.
    NoCpu,
    /// A virtual address is not mapped.
    Unmapped,
    /// The client may not do this, or not with this instance.
    Forbidden,
    /// The VMM, the host or KVM failed.
    VmmFailed,
    /// The VMM does not answer, or no longer: the request may succeed elsewhere.
    Lost,
    /// The class is not known to this version.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// The numbers of an allocation that a pool could not satisfy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The number of bytes requested.
    pub requested: u64,
    /// The number of bytes free.
    pub avail: u64,
    /// The number of bytes of the longest free extent.
    pub largest_free: u64,
}

/// An error that has a class and can suggest a fix.
pub trait Diagnose: std::error::Error {
    /// Returns the class of the error.
    fn class(&self) -> Class;

    /// Returns a hint for fixing the error, if there is one.
    fn hint(&self) -> Option<String> {
        None
    }

    /// Returns the numbers for an error of class [`Class::NoRoom`].
    fn room(&self) -> Option<Room> {
        None
    }

    /// Returns what the error and each of its causes say, if another process has told
    /// it. Else the error has its causes itself.
    fn told(&self) -> Option<&[String]> {
        None
    }

    /// Returns the state that does not allow the request, for an error of class
    /// [`Class::WrongState`].
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
