//! The errors of a channel.

use std::ops::RangeInclusive;

use rustix::io::Errno;

use super::message::{DESCRIPTORS_MAX, MESSAGE_MAX};

/// A reason why a channel could not be created, or a message could not be sent,
/// received or decoded.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The kernel could not create or inspect a socket.
    #[error("creating or inspecting the socket of a channel failed")]
    Setup(#[source] Errno),
    /// The descriptor is not a connected Unix socket that preserves packets.
    #[error("the descriptor is not a Unix socket of type SOCK_SEQPACKET")]
    NotSeqpacket,
    /// The socket is full, or empty; a retry may succeed.
    #[error("the channel is not ready: the operation would block")]
    WouldBlock,
    /// The deadline passed before the peer was ready.
    #[error("the peer did not become ready before the deadline")]
    TimedOut,
    /// The peer has closed its end, or has died.
    #[error("the peer has closed the channel")]
    Closed,
    /// The user has too many descriptors in sockets that have not been received
    /// yet (`RLIMIT_NOFILE` limits them). A later retry may succeed.
    #[error("{count} descriptors cannot be sent: too many are in flight already")]
    DescriptorsInFlight {
        /// The number of descriptors of the message.
        count: usize,
    },
    /// Sending failed for another reason.
    #[error("sending {bytes} bytes and {descriptors} descriptors failed")]
    Send {
        /// The length of the packet in bytes.
        bytes: usize,
        /// The number of descriptors of the message.
        descriptors: usize,
        /// The error that sendmsg returned.
        #[source]
        source: Errno,
    },
    /// Receiving failed for another reason.
    #[error("receiving from the channel failed")]
    Receive(#[source] Errno),
    /// Polling the socket failed.
    #[error("polling the channel failed")]
    Poll(#[source] Errno),
    /// Registering with the asynchronous runtime, or waiting in it, failed.
    #[error("waiting for the channel in the event loop failed")]
    Async(#[source] std::io::Error),
    /// The message to send cannot be encoded.
    #[error("the message cannot be encoded")]
    Encode(#[source] postcard::Error),
    /// A packet exceeds the size limit.
    #[error("a message of {bytes} bytes exceeds the limit of {MESSAGE_MAX}")]
    TooLong {
        /// The length of the packet in bytes.
        bytes: usize,
    },
    /// A message has an invalid number of descriptors, at either end.
    #[error(
        "a message has {found} descriptors instead of {} to {}, and never more than {DESCRIPTORS_MAX}",
        .expected.start(), .expected.end()
    )]
    Descriptors {
        /// The number received, or to be sent.
        found: usize,
        /// The numbers allowed for this message.
        expected: RangeInclusive<usize>,
    },
    /// Descriptors were truncated: the peer sent more than any message has, or
    /// this process has no free descriptors left.
    #[error(
        "descriptors were truncated: more arrived than the {expected} that any message has here, \
         or this process has reached its limit"
    )]
    DescriptorsCut {
        /// The maximum for any message of the type.
        expected: usize,
    },
    /// The peer's first packet is not a hello.
    #[error("the peer's first packet ({bytes} bytes) is not a hello of mkvmm's wire protocol")]
    NoHello {
        /// The length of that packet in bytes.
        bytes: usize,
    },
    /// The peer has another version.
    #[error("the peer has version {theirs} of the wire protocol, this program has version {ours}")]
    Version {
        /// The version of this program.
        ours: u32,
        /// The version of the peer.
        theirs: u32,
    },
    /// A packet was lost, repeated or forged.
    #[error("received message number {found} instead of {expected}")]
    Sequence {
        /// The expected sequence number.
        expected: u64,
        /// The received sequence number.
        found: u64,
    },
    /// The packet is not a message of the expected type.
    #[error("a packet of {bytes} bytes cannot be decoded")]
    Decode {
        /// The length of the packet in bytes.
        bytes: usize,
        /// The error that the decoder returned.
        #[source]
        source: postcard::Error,
    },
    /// The packet continues after its message.
    #[error("a packet has {bytes} trailing bytes after its message")]
    Trailing {
        /// The number of trailing bytes.
        bytes: usize,
    },
}

impl WireError {
    /// Returns whether the peer violated the protocol, so that the channel must
    /// be closed. Other errors come from this side, the kernel, or a timeout.
    pub fn is_violation(&self) -> bool {
        match self {
            Self::TooLong { .. }
            | Self::Descriptors { .. }
            | Self::NoHello { .. }
            | Self::Version { .. }
            | Self::Sequence { .. }
            | Self::Decode { .. }
            | Self::Trailing { .. } => true,
            // If descriptors are expected, this process may have run out of
            // them.
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
