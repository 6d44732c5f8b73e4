//! What the consumer gets: messages, and what is known about them.

use crate::data::{Data, copy};

/// What becomes of messages that a dead consumer had taken and not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InDoubt {
    /// They are skipped: no message is delivered twice.
    Lose,
    /// They are delivered again, marked as [`Received::is_repeated`]: no message is missed.
    Redeliver,
}

/// What is known about a message that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The length in bytes.
    pub len: usize,
    /// The number of the message. Numbers begin with 0, and each is one more than the one before,
    /// plus the number of messages that were lost between the two.
    pub sequence: u64,
    /// The number of messages that the producer has lost between the message before this one and this
    /// one. After a reset of the producer it is an upper bound.
    pub lost: u32,
    /// The low 16 bits of the epoch of the producer that sent it. A message with another epoch than
    /// the one before is the first one of a successor.
    pub epoch: u16,
    /// Whether a former consumer had taken it and may have processed it.
    pub is_repeated: bool,
}

/// Messages that were skipped by [`Consumer::resync`](crate::Consumer::resync),
/// according to the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skipped {
    /// The number of the message that was expected next.
    pub from: u64,
    /// The number of the message that is expected now. If it is lower than `from`, the producer
    /// counts anew, and it is not known how many were skipped.
    pub to: u64,
}

/// A message that was taken, whose content is still in the shared memory.
///
/// Each byte is copied once, so whatever a hostile producer changes meanwhile, what was read and
/// checked stays the same. What is not read is skipped.
#[derive(Debug)]
pub struct Message<'c> {
    data: Data<'c>,
    received: Received,
    /// The position of its first word.
    position: u64,
    /// The number of bytes that were read.
    read: usize,
    /// The word that was read in part.
    partial: [u8; 8],
}

impl<'c> Message<'c> {
    /// Returns the message whose payload begins at `position`.
    pub(crate) fn new(data: Data<'c>, position: u64, received: Received) -> Self {
        Self {
            data,
            received,
            position,
            read: 0,
            partial: [0; 8],
        }
    }

    /// Returns what is known about the message.
    pub fn received(&self) -> Received {
        self.received
    }

    /// Returns the number of bytes that were not read yet.
    pub fn remaining(&self) -> usize {
        self.received.len.saturating_sub(self.read)
    }

    /// Copies the next bytes to the start of `buffer`, and returns their number. Zero means that all
    /// bytes were read, or that the buffer is empty.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        let count = buffer.len().min(self.remaining());
        let (buffer, _) = buffer.split_at_mut(count);
        let used = self.read % 8;
        let left = if used == 0 {
            0
        } else {
            8_usize.saturating_sub(used)
        };
        let (first, rest) = buffer.split_at_mut(count.min(left));
        copy(first, self.partial.get(used..).unwrap_or_default());
        let from = self.read.saturating_add(first.len());
        let (whole, last) = rest.split_at_mut(rest.len() & !7);
        let position = self.position.wrapping_add(from as u64 / 8);
        self.data.read(position, whole);
        if !last.is_empty() {
            let word = self
                .data
                .load(position.wrapping_add(whole.len() as u64 / 8));
            self.partial = word.to_ne_bytes();
            copy(last, &self.partial);
        }
        self.read = self.read.saturating_add(count);
        count
    }
}
