//! The errors of a channel.

use std::ops::RangeInclusive;

use rustix::io::Errno;

use super::message::{DESCRIPTORS_MAX, MESSAGE_MAX};

/// The reasons why a channel could not be made, or a message not be sent,
/// received or understood.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The kernel gave no socket pair.
    #[error("making or inspecting the socket of a channel failed")]
    Setup(#[source] Errno),
    /// The descriptor is not a connected Unix socket of packets.
    #[error("the descriptor is no Unix socket of type SOCK_SEQPACKET")]
    NotSeqpacket,
    /// The socket is full, or empty; waiting may help.
    #[error("the channel is not ready: the operation would block")]
    WouldBlock,
    /// The deadline passed first.
    #[error("the peer did not become ready before the deadline")]
    TimedOut,
    /// The peer has closed its end, or is dead.
    #[error("the peer has closed the channel")]
    Closed,
    /// The user has too many descriptors in sockets that nobody has received
    /// yet (`RLIMIT_NOFILE` bounds them). Sending again later may help.
    #[error("{count} descriptors cannot be sent: too many are in flight already")]
    DescriptorsInFlight {
        /// How many were to be sent.
        count: usize,
    },
    /// Sending failed for another reason.
    #[error("sending {bytes} bytes and {descriptors} descriptors failed")]
    Send {
        /// The length of the packet.
        bytes: usize,
        /// The number of descriptors.
        descriptors: usize,
        /// The error of sendmsg.
        #[source]
        source: Errno,
    },
    /// The kernel refused to receive, for another reason than those above.
    #[error("receiving from the channel failed")]
    Receive(#[source] Errno),
    /// The kernel refused to poll the socket.
    #[error("polling the channel failed")]
    Poll(#[source] Errno),
    /// Registering with, or waiting in, the asynchronous runtime failed.
    #[error("waiting for the channel in the event loop failed")]
    Async(#[source] std::io::Error),
    /// The message to be sent cannot be encoded.
    #[error("the message cannot be encoded")]
    Encode(#[source] postcard::Error),
    /// A packet is larger than any may be.
    #[error("a message of {bytes} bytes exceeds the limit of {MESSAGE_MAX}")]
    TooLong {
        /// The length of the packet.
        bytes: usize,
    },
    /// A message has the wrong number of descriptors, at either end.
    #[error(
        "a message with {found} descriptors should have {} to {}, and never more than {DESCRIPTORS_MAX}",
        .expected.start(), .expected.end()
    )]
    Descriptors {
        /// The number that came, or was to be sent.
        found: usize,
        /// The numbers that this message allows.
        expected: RangeInclusive<usize>,
    },
    /// Descriptors were cut off on the way: the peer sent more than any
    /// message has, or this process has no free descriptors left.
    #[error(
        "descriptors were cut off: more came than the {expected} that any message has here, \
         or this process has reached its limit"
    )]
    DescriptorsCut {
        /// The most that any message of the type has.
        expected: usize,
    },
    /// The peer's first packet is no hello.
    #[error("the peer's first packet ({bytes} bytes) does not say that it speaks mkvmm's wire")]
    NoHello {
        /// The length of that packet.
        bytes: usize,
    },
    /// The peer is of another version.
    #[error("the peer speaks version {theirs} of the wire, this program speaks version {ours}")]
    Version {
        /// This program's version.
        ours: u32,
        /// The peer's version.
        theirs: u32,
    },
    /// A packet was lost, repeated or made up.
    #[error("message number {found} came where number {expected} was due")]
    Sequence {
        /// The number due.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// The packet is no message of the expected type.
    #[error("a packet of {bytes} bytes cannot be decoded")]
    Decode {
        /// The length of the packet.
        bytes: usize,
        /// The error of the decoder.
        #[source]
        source: postcard::Error,
    },
    /// The packet goes on after its message.
    #[error("a packet has {bytes} bytes after its message")]
    Trailing {
        /// How many bytes are left over.
        bytes: usize,
    },
}

impl WireError {
    /// Tells whether the peer broke the protocol, and so deserves no further
    /// hearing. The others come from this side, from the kernel, or from time.
    pub fn is_violation(&self) -> bool {
        match self {
            Self::TooLong { .. }
            | Self::Descriptors { .. }
            | Self::NoHello { .. }
            | Self::Version { .. }
            | Self::Sequence { .. }
            | Self::Decode { .. }
            | Self::Trailing { .. } => true,
            // Where descriptors are due, this process may be short of them.
            Self::DescriptorsCut { expected } => *expected == 0,
            Self::Setup(_)
            | Self::NotSeqpacket
            | Self::WouldBlock
            | Self::TimedOut
            | Self::Closed
            | Self::DescriptorsInFlight { .. }
            | Self::Send { .. }
            | Self::Receive(_)
            | Self::Poll(_)
            | Self::Async(_)
            | Self::Encode(_) => false,
        }
    }
}
