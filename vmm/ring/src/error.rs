//! The errors of a ring. Each has the numbers that were found and expected.

use core::error::Error;
use core::fmt;

/// A value in shared memory that an honest peer would not have written.
///
/// The call had no effect. The next call reads the memory again, so the error disappears if the
/// peer, or its successor, writes a sensible value; a consumer can also skip to the producer's
/// position ([`Consumer::resync`](crate::Consumer::resync)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The peer's position is not between two of this side.
    Position {
        /// The position that was found, in words since the beginning.
        found: u64,
        /// The lowest valid position.
        from: u64,
        /// The highest valid position.
        to: u64,
    },
    /// The next record has another sequence number than the one expected.
    Sequence {
        /// The sequence number that was expected.
        expected: u64,
        /// The sequence number that was found.
        found: u64,
    },
    /// The next record is longer than everything that the producer has published.
    Length {
        /// The length of the record with its header, in words.
        words: u64,
        /// The number of words that were published.
        available: u64,
    },
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Position { found, from, to } => write!(
                f,
                "the peer's position is {found:#x}, which is not from {from:#x} to {to:#x}"
            ),
            Self::Sequence { expected, found } => write!(
                f,
                "the next record is number {found}, and {expected} was expected"
            ),
            Self::Length { words, available } => write!(
                f,
                "the next record has {words} words, and only {available} words were published"
            ),
        }
    }
}

impl Error for ProtocolError {}

/// A reason why a side cannot join a ring. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum JoinError {
    /// The memory is too small.
    TooSmall {
        /// The length of the producer's part in words.
        producer: usize,
        /// The minimum of that length.
        producer_min: usize,
        /// The length of the consumer's part in words.
        consumer: usize,
        /// The minimum of that length.
        consumer_min: usize,
    },
    /// A part has neither zeroes at its start nor the magic of a ring.
    Format {
        /// The first word of a ring of this version.
        expected: u64,
        /// The word that was found.
        found: u64,
    },
    /// A part was written by another version of the protocol.
    Version {
        /// The version of this side.
        expected: u8,
        /// The version that was found.
        found: u8,
    },
    /// A part was written by a side that sees a ring of another size.
    Capacity {
        /// The number of words of data of this side.
        expected: u64,
        /// The number of words that was found.
        found: u64,
    },
    /// The positions in the memory contradict each other, so a former side was hostile or broken.
    ///
    /// `reset` of [`Producer`](crate::Producer::reset) or [`Consumer`](crate::Consumer::reset) joins
    /// such a ring nevertheless.
    Inconsistent(ProtocolError),
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall {
                producer,
                producer_min,
                consumer,
                consumer_min,
            } => write!(
                f,
                "a ring needs parts of {producer_min} and {consumer_min} words, and these have \
                 {producer} and {consumer}"
            ),
            Self::Format { expected, found } => write!(
                f,
                "the memory begins with {found:#018x}, a ring begins with {expected:#018x}"
            ),
            Self::Version { expected, found } => write!(
                f,
                "the ring has version {found}, and this side knows version {expected}"
            ),
            Self::Capacity { expected, found } => write!(
                f,
                "the ring has {found} words of data according to the memory, and {expected} here"
            ),
            Self::Inconsistent(error) => write!(
                f,
                "the positions in the ring contradict each other: {error}"
            ),
        }
    }
}

impl Error for JoinError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Inconsistent(error) => Some(error),
            _ => None,
        }
    }
}

/// A reason why a message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PushError {
    /// There is no room yet.
    Full {
        /// The length of the message in bytes.
        len: usize,
        /// The number of words that it needs.
        needed: u64,
        /// The number of free words.
        free: u64,
    },
    /// The ring could not hold the message even if it were empty, or a reservation is exceeded.
    TooLong {
        /// The length of the message in bytes.
        len: usize,
        /// The maximum length in bytes.
        max: usize,
    },
    /// The consumer wrote a value that an honest one would not have written.
    Protocol(ProtocolError),
}

impl fmt::Display for PushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { len, needed, free } => write!(
                f,
                "a message of {len} bytes needs {needed} words, and {free} words are free"
            ),
            Self::TooLong { len, max } => write!(
                f,
                "a message of {len} bytes does not fit, the longest has {max} bytes"
            ),
            Self::Protocol(error) => write!(f, "the consumer violated the protocol: {error}"),
        }
    }
}

impl Error for PushError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Protocol(error) => Some(error),
            _ => None,
        }
    }
}

impl From<ProtocolError> for PushError {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

/// A reason why no message was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PopError {
    /// The buffer is shorter than the next message, which stays in the ring.
    TooSmall {
        /// The length of the message in bytes.
        len: usize,
        /// The length of the buffer in bytes.
        buffer: usize,
    },
    /// The producer wrote a value that an honest one would not have written.
    Protocol(ProtocolError),
}

impl fmt::Display for PopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall { len, buffer } => write!(
                f,
                "the next message has {len} bytes, and the buffer {buffer}"
            ),
            Self::Protocol(error) => write!(f, "the producer violated the protocol: {error}"),
        }
    }
}

impl Error for PopError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Protocol(error) => Some(error),
            _ => None,
        }
    }
}

impl From<ProtocolError> for PopError {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}
