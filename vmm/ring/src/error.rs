//! The errors of a ring. Each has the numbers that were found and expected.

/// A value in shared memory that an honest peer would not have written.
///
/// The call had no effect. The next call reads the memory again, so the error disappears if the
/// peer, or its successor, writes a sensible value; a consumer can also skip to the producer's
/// position ([`Consumer::resync`](crate::Consumer::resync)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The peer's position is not between two of this side.
    #[error("the peer's position is {found:#x}, which is not from {from:#x} to {to:#x}")]
    Position {
        /// The position that was found, in words since the beginning.
        found: u64,
        /// The lowest valid position.
        from: u64,
        /// The highest valid position.
        to: u64,
    },
    /// The next record has another sequence number than the one expected.
    #[error("the next record is number {found}, and {expected} was expected")]
    Sequence {
        /// The sequence number that was expected.
        expected: u64,
        /// The sequence number that was found.
        found: u64,
    },
    /// The next record is longer than everything that the producer has published.
    #[error("the next record has {words} words, and only {available} words were published")]
    Length {
        /// The length of the record with its header, in words.
        words: u64,
        /// The number of words that were published.
        available: u64,
    },
}

/// A reason why a side cannot join a ring. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The memory is too small.
    #[error(
        "a ring needs parts of {producer_min} and {consumer_min} words, and these have {producer} \
         and {consumer}"
    )]
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
    #[error("the memory begins with {found:#018x}, a ring begins with {expected:#018x}")]
    Format {
        /// The first word of a ring of this version.
        expected: u64,
        /// The word that was found.
        found: u64,
    },
    /// A part was written by another version of the protocol.
    #[error("the ring has version {found}, and this side knows version {expected}")]
    Version {
        /// The version of this side.
        expected: u8,
        /// The version that was found.
        found: u8,
    },
    /// A part was written by a side that sees a ring of another size.
    #[error("the ring has {found} words of data according to the memory, and {expected} here")]
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
    #[error("the positions in the ring contradict each other: {0}")]
    Inconsistent(#[source] ProtocolError),
}

/// A reason why a message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// There is no room yet.
    #[error("a message of {len} bytes needs {needed} words, and {free} words are free")]
    Full {
        /// The length of the message in bytes.
        len: usize,
        /// The number of words that it needs.
        needed: u64,
        /// The number of free words.
        free: u64,
    },
    /// The ring could not hold the message even if it were empty, or a reservation is exceeded.
    #[error("a message of {len} bytes does not fit, the longest has {max} bytes")]
    TooLong {
        /// The length of the message in bytes.
        len: usize,
        /// The maximum length in bytes.
        max: usize,
    },
    /// The consumer wrote a value that an honest one would not have written.
    #[error("the consumer violated the protocol: {0}")]
    Protocol(#[from] ProtocolError),
}

/// A reason why no message was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PopError {
    /// The buffer is shorter than the next message, which stays in the ring.
    #[error("the next message has {len} bytes, and the buffer {buffer}")]
    TooSmall {
        /// The length of the message in bytes.
        len: usize,
        /// The length of the buffer in bytes.
        buffer: usize,
    },
    /// The producer wrote a value that an honest one would not have written.
    #[error("the producer violated the protocol: {0}")]
    Protocol(#[from] ProtocolError),
}
