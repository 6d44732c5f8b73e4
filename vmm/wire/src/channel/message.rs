//! What may travel over a channel, and how large it may be.

use std::fmt::Debug;
use std::ops::RangeInclusive;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest encoded envelope, in bytes: a boot order with the longest command
/// line, once as such and once in the manifest, fits.
pub const MESSAGE_MAX: usize = 192 << 10;
/// The most descriptors that one message can carry: `SCM_MAX_FD` of Linux.
pub const DESCRIPTORS_MAX: usize = 253;

/// One direction's messages.
///
/// A type that implements it must not be recursive (a packet would decide how
/// deep the stack goes), and must not contain lists of values that encode to
/// no bytes at all (`Vec<()>`: ten bytes could claim 2^60 of them, and decoding
/// would count them one by one) nor hash maps (they reserve what they are
/// promised, up to a MiB).
pub trait Message: Serialize + DeserializeOwned + Debug {
    /// The most descriptors that any message of this type brings along. With
    /// 0, the kernel drops uninvited descriptors before this process has them.
    const DESCRIPTORS_MAX: usize = 0;

    /// Returns how many descriptors belong to this very message.
    fn descriptors(&self) -> RangeInclusive<usize> {
        0..=0
    }
}
