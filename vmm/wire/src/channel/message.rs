//! The messages that a channel may carry, and their size limits.

use std::fmt::Debug;
use std::ops::RangeInclusive;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The maximum size of an encoded envelope in bytes: enough for a boot order
/// with the longest command line, which occurs in it twice, once in the
/// manifest.
pub const MESSAGE_MAX: usize = 192 << 10;
/// The maximum number of descriptors of one message: Linux's `SCM_MAX_FD`.
pub const DESCRIPTORS_MAX: usize = 253;

/// The messages of one direction.
///
/// An implementing type must not be recursive (a packet would decide how deep
/// the stack gets). It must not contain lists of values that encode to zero
/// bytes (`Vec<()>`: ten bytes could announce 2^60 of them, and decoding would
/// count them one by one) nor hash maps (they reserve the announced capacity,
/// up to a MiB).
pub trait Message: Serialize + DeserializeOwned + Debug {
    /// The maximum number of descriptors of any message of this type. With 0,
    /// the kernel discards unexpected descriptors before this process receives
    /// them.
    const DESCRIPTORS_MAX: usize = 0;

    /// Returns the allowed number of descriptors of this particular message.
    fn descriptors(&self) -> RangeInclusive<usize> {
        0..=0
    }
}
