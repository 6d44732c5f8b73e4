//! Where each word is. `docs/ring.md` of the project has the same as a picture.
//!
//! Words are in the byte order of the machine. Positions count words of 8 bytes since the ring was
//! zeroed, and never wrap in practice: 64 bits of them take centuries. The index in the data area is
//! the position masked by the capacity, which is a power of two.

/// The first word of a part: seven letters, and the version of the protocol.
pub const FORMAT: u64 = u64::from_ne_bytes(*b"mkvmRNG\x01");
/// The version of the protocol, the last byte of [`FORMAT`].
pub const VERSION: u8 = 1;

/// The number of control words of each part: four lines of 128 bytes, because processors fetch
/// pairs of cache lines.
pub const CONTROL_WORDS: usize = 64;
/// The minimum number of data words.
pub const MIN_CAPACITY: u64 = 8;

/// The indices of the control words. Those of both parts are the same.
pub mod word {
    /// The line that changes only when a side joins or leaves: [`FORMAT`](super::FORMAT).
    pub const FORMAT: usize = 0;
    /// The number of data words.
    pub const CAPACITY: usize = 1;
    /// The epoch of the side, shifted left by 8, and the number of its state in the low 8 bits.
    pub const STATE: usize = 2;
    /// The line that changes with messages. The producer's *tail* is the position after the last
    /// published record; the consumer's *head* is that after the last acknowledged one.
    pub const POSITION: usize = 16;
    /// The line that changes when a side waits: ring its doorbell when the other side's position
    /// passes this one.
    pub const EVENT: usize = 32;
    /// The line that only successors read: the position after the last record that the consumer has
    /// taken.
    pub const TAKEN: usize = 48;
    /// The number of messages that consumers have reported as lost since the ring was zeroed.
    pub const LOST: usize = 49;
}

/// The number of words before the payload of a record: its number, and its [`Header`].
pub const RECORD_WORDS: u64 = 2;

/// The second word of a record. The first is the sequence number after the message before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bits 0 to 23: the length of the payload in bytes.
    pub len: u32,
    /// Bits 24 to 47: the number of messages that were lost between the message before this one and
    /// this one.
    pub lost: u32,
    /// Bits 48 to 63: the low bits of the epoch of the producer that wrote it.
    pub epoch: u16,
}

impl Header {
    /// The maximum of a length in bytes, and of a number of lost messages.
    pub const MAX: u32 = (1 << 24) - 1;

    /// Returns the word. Length and losses beyond [`Header::MAX`] are cut to it.
    pub fn pack(self) -> u64 {
        let (len, lost) = (self.len.min(Self::MAX), self.lost.min(Self::MAX));
        u64::from(len) | u64::from(lost) << 24 | u64::from(self.epoch) << 48
    }

    /// Returns what a word says. Every word is a header.
    pub fn unpack(word: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
        Self {
            len: u32::from_le_bytes([a, b, c, 0]),
            lost: u32::from_le_bytes([d, e, f, 0]),
            epoch: u16::from_le_bytes([g, h]),
        }
    }
}

/// Returns the number of words of a record with `len` bytes of payload.
pub fn record_words(len: u32) -> u64 {
    RECORD_WORDS.saturating_add(u64::from(len.div_ceil(8)))
}

/// Returns the length in bytes of the longest message in a ring of `capacity` words.
///
/// The word after a record is never that of another one: it has the number of the next record.
pub fn max_message(capacity: u64) -> u32 {
    let words = capacity.saturating_sub(RECORD_WORDS.saturating_add(1));
    let bytes = u32::try_from(words.saturating_mul(8)).unwrap_or(u32::MAX);
    bytes.min(Header::MAX)
}

/// Returns the most messages that a ring of `capacity` words can hold.
pub fn max_messages(capacity: u64) -> u64 {
    capacity.div_ceil(RECORD_WORDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_packing() {
        for (len, lost, epoch) in [(0, 0, 0), (1, 2, 3), (Header::MAX, Header::MAX, u16::MAX)] {
            let header = Header { len, lost, epoch };
            assert_eq!(Header::unpack(header.pack()), header);
        }
        let excess = Header {
            len: u32::MAX,
            lost: u32::MAX,
            epoch: 7,
        };
        let cut = Header::unpack(excess.pack());
        assert_eq!(
            (cut.len, cut.lost, cut.epoch),
            (Header::MAX, Header::MAX, 7)
        );
    }

    #[test]
    fn every_word_is_a_header() {
        for word in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
            assert_eq!(Header::unpack(word).pack(), word);
        }
    }

    #[test]
    fn the_longest_message_leaves_room_for_the_next_number() {
        assert_eq!(max_message(8), 40);
        assert_eq!(record_words(max_message(8)) + 1, 8);
        assert_eq!(max_message(1 << 40), Header::MAX);
        assert_eq!(max_message(0), 0);
        assert_eq!(record_words(0), 2);
        assert_eq!(record_words(1), 3);
        assert_eq!(record_words(u32::MAX), 2 + (1 << 29));
    }

    #[test]
    fn the_format_ends_with_the_version() {
        assert_eq!(FORMAT.to_ne_bytes()[7], VERSION);
        assert_eq!(&FORMAT.to_ne_bytes()[..7], b"mkvmRNG");
    }
}
