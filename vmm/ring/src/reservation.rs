//! What the producer gets: room for a message, and where it is.

use core::fmt;
use core::sync::atomic::Ordering::Release;

use crate::data::{Data, copy};
use crate::error::PushError;
use crate::layout::{Header, RECORD_WORDS, record_words, word};
use crate::side::{Control, Stats};

/// Where the next record will be, and its number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor {
    pub tail: u64,
    /// The sequence number after the last message. The word at `tail` in the ring is the same.
    pub number: u64,
    /// The number of messages that were lost since then and are not announced yet.
    pub lost: u64,
    /// The epoch of the producer.
    pub epoch: u64,
}

impl Cursor {
    /// Returns the number of lost messages that the next record announces.
    fn announced(&self) -> u32 {
        u32::try_from(self.lost).map_or(Header::MAX, |lost| lost.min(Header::MAX))
    }

    /// Returns the sequence number of the next message.
    pub fn sequence(&self) -> u64 {
        self.number.wrapping_add(u64::from(self.announced()))
    }
    /// Writes the two words before a payload, and the number of the record that will follow. Returns
    /// the cursor after the record.
    pub fn seal(self, data: Data<'_>, len: u32) -> Self {
        let [low, high, ..] = self.epoch.to_le_bytes();
        let header = Header {
            len,
            lost: self.announced(),
            epoch: u16::from_le_bytes([low, high]),
        };
        let next = Self {
            tail: self.tail.wrapping_add(record_words(len)),
            number: self.sequence().wrapping_add(1),
            lost: self.lost.saturating_sub(u64::from(header.lost)),
            epoch: self.epoch,
        };
        // The first word has this value already, unless somebody has overwritten it.
        data.store(self.tail, self.number);
        data.store(self.tail.wrapping_add(1), header.pack());
        data.store(next.tail, next.number);
        next
    }

    /// Publishes the records before `next`. Release: whoever sees the position sees the records.
    pub fn advance(&mut self, own: Control<'_>, next: Self) {
        own.store(word::POSITION, next.tail, Release);
        *self = next;
    }
}

/// Room in the ring for one message, which is written directly into the shared memory.
///
/// Nothing is sent before [`Reservation::commit`]; dropping the reservation gives up the message.
#[derive(Debug)]
#[must_use = "a reservation that is dropped sends nothing"]
pub struct Reservation<'p> {
    pub(crate) control: Control<'p>,
    pub(crate) data: Data<'p>,
    pub(crate) cursor: &'p mut Cursor,
    pub(crate) stats: &'p mut Stats,
    /// The maximum length in bytes.
    pub(crate) reserved: u32,
    /// The number of bytes so far.
    pub(crate) len: u32,
    /// The bytes of the last word, if it is not full. They are not read back from the memory.
    pub(crate) partial: [u8; 8],
}

impl Reservation<'_> {
    /// Appends bytes to the message.
    ///
    /// # Errors
    /// Returns [`PushError::TooLong`] if the message would get longer than the reservation. Nothing
    /// is appended then.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), PushError> {
        let before = self.len as usize;
        let len = before.saturating_add(bytes.len());
        let excess = PushError::TooLong {
            len,
            max: self.reserved as usize,
        };
        let new_len = u32::try_from(len).or(Err(excess))?;
        if new_len > self.reserved {
            return Err(excess);
        }
        let payload = self.cursor.tail.wrapping_add(RECORD_WORDS);
        let at = |byte: usize| payload.wrapping_add(byte as u64 / 8);
        let filled = before % 8;
        let missing = if filled == 0 {
            0
        } else {
            8_usize.saturating_sub(filled)
        };
        let (first, rest) = bytes.split_at(bytes.len().min(missing));
        if !first.is_empty() {
            copy(self.partial.get_mut(filled..).unwrap_or_default(), first);
            self.data
                .store(at(before), u64::from_ne_bytes(self.partial));
        }
        if !rest.is_empty() {
            self.data
                .write(at(before.saturating_add(first.len())), rest);
            self.partial = [0; 8];
            copy(&mut self.partial, rest.as_chunks::<8>().1);
        }
        self.len = new_len;
        Ok(())
    }

    /// Returns the number of bytes that were appended.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Returns whether nothing was appended.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of bytes that can still be appended.
    pub fn remaining(&self) -> usize {
        self.reserved.saturating_sub(self.len) as usize
    }

    /// Sends the message, and returns its sequence number.
    pub fn commit(self) -> u64 {
        let sequence = self.cursor.sequence();
        let next = self.cursor.seal(self.data, self.len);
        self.cursor.advance(self.control, next);
        self.stats.count(self.len);
        sequence
    }
}

/// Formats text directly into the ring.
impl fmt::Write for Reservation<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.append(text.as_bytes()).or(Err(fmt::Error))
    }
}
