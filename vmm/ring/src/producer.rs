//! The side that sends.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::data::Data;
use crate::error::{JoinError, ProtocolError, PushError};
use crate::layout::{RECORD_WORDS, max_message, max_messages, record_words, word};
use crate::memory::Memory;
use crate::reservation::{Cursor, Reservation};
use crate::side::{self, Control, Doorbell, Peer, State, Stats, increment};

/// The sending side of a ring. There must be only one at a time.
///
/// Dropping it, like dying, leaves the ring as it is: what was sent stays there, and a successor
/// joins behind it.
#[derive(Debug)]
pub struct Producer<M> {
    memory: M,
    /// The number of data words.
    capacity: u64,
    /// The published position. This and all other fields are private copies: the peer may be able
    /// to change those in the memory.
    cursor: Cursor,
    /// The consumer's last valid position that was seen.
    head: u64,
    doorbell: Doorbell,
    stats: Stats,
}

impl<M: Memory> Producer<M> {
    /// Joins a ring as its producer. If there was one before, which must have ended, this one
    /// continues after the last message that it has sent; [`Producer::sequence`] returns the number of
    /// the next one.
    ///
    /// # Errors
    /// Returns a [`JoinError`] if the memory is too small, is not a ring of the same size and version,
    /// or has contradictory positions.
    pub fn join(memory: M) -> Result<Self, JoinError> {
        let capacity = side::capacity(&memory)?;
        let (own, peer) = controls(&memory);
        own.check(capacity)?;
        peer.check(capacity)?;
        let head = peer.load(word::POSITION, Acquire);
        let tail = own.load(word::POSITION, Acquire);
        if tail.wrapping_sub(head) >= capacity {
            return Err(JoinError::Inconsistent(ProtocolError::Position {
                found: tail,
                from: head,
                to: head.wrapping_add(capacity.wrapping_sub(1)),
            }));
        }
        Ok(Self::start(memory, capacity, (head, tail), 0))
    }

    /// Joins a ring whatever its words are, when [`Producer::join`] reports that former sides have
    /// left contradictory ones. Messages that the consumer has not taken are dropped, and announced
    /// to it as lost: their number is an upper bound, that of all messages that fit.
    ///
    /// # Errors
    /// Returns [`JoinError::TooSmall`].
    pub fn reset(memory: M) -> Result<Self, JoinError> {
        let capacity = side::capacity(&memory)?;
        let (_, peer) = controls(&memory);
        let head = peer.load(word::POSITION, Acquire);
        let taken = peer.load(word::TAKEN, Acquire);
        let tail = match taken.wrapping_sub(head) {
            ahead if ahead < capacity => taken,
            _ => head,
        };
        let lost = max_messages(capacity);
        let producer = Self::start(memory, capacity, (head, tail), lost);
        let (own, _) = controls(&producer.memory);
        own.store(word::POSITION, tail, Release);
        Ok(producer)
    }

    fn start(memory: M, capacity: u64, (head, tail): (u64, u64), lost: u64) -> Self {
        let (own, _) = controls(&memory);
        let epoch = own.enrol(capacity);
        let number = Data::new(own.0, capacity).load(tail);
        Self {
            memory,
            capacity,
            cursor: Cursor {
                tail,
                number,
                lost,
                epoch,
            },
            head,
            doorbell: Doorbell::default(),
            stats: Stats::default(),
        }
    }

    /// Sends a message, and returns its sequence number.
    ///
    /// # Errors
    /// Returns [`PushError::Full`] while there is no room, [`PushError::TooLong`] if there can never
    /// be, or [`PushError::Protocol`]. Nothing is sent then.
    pub fn try_push(&mut self, bytes: &[u8]) -> Result<u64, PushError> {
        let len = self.make_room(self.cursor, bytes.len())?;
        let sequence = self.cursor.sequence();
        let next = self.write(self.cursor, len, bytes);
        self.cursor.advance(controls(&self.memory).0, next);
        self.stats.count(len);
        Ok(sequence)
    }

    /// Sends messages until one does not fit, and publishes all of them at once. Returns their
    /// number. A message that does not fit is consumed from the iterator; the next `try_push` of it
    /// returns the reason.
    ///
    /// # Errors
    /// Returns a [`PushError`] if not even the first message was sent.
    pub fn try_push_batch<'b>(
        &mut self,
        messages: impl IntoIterator<Item = &'b [u8]>,
    ) -> Result<usize, PushError> {
        let (mut next, mut stats) = (self.cursor, self.stats);
        let mut count: usize = 0;
        for bytes in messages {
            match self.make_room(next, bytes.len()) {
                Ok(len) => {
                    next = self.write(next, len, bytes);
                    stats.count(len);
                    count = count.saturating_add(1);
                }
                Err(error) if count == 0 => return Err(error),
                Err(_) => break,
            }
        }
        (stats.refused, stats.violations) = (self.stats.refused, self.stats.violations);
        self.stats = stats;
        self.cursor.advance(controls(&self.memory).0, next);
        Ok(count)
    }

    /// Reserves room for a message of at most `len` bytes, to be written in pieces.
    ///
    /// # Errors
    /// Returns a [`PushError`] as [`Producer::try_push`] does.
    pub fn reserve(&mut self, len: usize) -> Result<Reservation<'_>, PushError> {
        let reserved = self.make_room(self.cursor, len)?;
        let part = self.memory.producer_part();
        Ok(Reservation {
            control: Control(part),
            data: Data::new(part, self.capacity),
            cursor: &mut self.cursor,
            stats: &mut self.stats,
            reserved,
            len: 0,
            partial: [0; 8],
        })
    }

    /// Counts messages that were not sent, for example because the ring was full. The consumer
    /// learns their number together with the next message. A producer that dies before that takes
    /// the number with it.
    pub fn lose(&mut self, messages: u64) {
        self.cursor.lost = self.cursor.lost.saturating_add(messages);
        self.stats.lost = self.stats.lost.saturating_add(messages);
    }

    /// Returns the sequence number that the next message will get.
    pub fn sequence(&self) -> u64 {
        self.cursor.sequence()
    }

    /// Returns the length in bytes of the longest message that fits into an empty ring.
    pub fn max_message(&self) -> usize {
        max_message(self.capacity) as usize
    }

    /// Returns the length in bytes of the longest message that fits now, or `None` if not even an
    /// empty one does.
    ///
    /// # Errors
    /// Returns a [`ProtocolError`] if the consumer's position is not valid.
    pub fn room(&mut self) -> Result<Option<usize>, ProtocolError> {
        self.see_head()?;
        let free = self.free(self.cursor).saturating_sub(1);
        Ok(free.checked_sub(RECORD_WORDS).map(|words| {
            let bytes = usize::try_from(words.saturating_mul(8)).unwrap_or(usize::MAX);
            bytes.min(self.max_message())
        }))
    }

    /// Returns the size of the data area in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity.saturating_mul(8)
    }

    /// Returns whether the consumer waits for something that was sent since the last call, so that its
    /// doorbell must be rung. To be called after each message, or after some of them. The first call
    /// returns true, because a predecessor may have died before it could ring.
    pub fn needs_doorbell(&mut self) -> bool {
        let (_, peer) = controls(&self.memory);
        let needed = self.doorbell.is_needed(peer, self.cursor.tail);
        self.stats.doorbells = self.stats.doorbells.wrapping_add(u64::from(needed));
        needed
    }

    /// Asks the consumer for a ring of the doorbell as soon as there is room for a message of `len`
    /// bytes. Returns whether to wait for it; false means that there is room already.
    ///
    /// # Errors
    /// Returns [`PushError::TooLong`] if there will never be room, or [`PushError::Protocol`].
    pub fn will_wait(&mut self, len: usize) -> Result<bool, PushError> {
        let needed = needed_words(self.checked_len(len)?);
        // There is room once the head is this far, which is when it passes the word before.
        let target = self
            .cursor
            .tail
            .wrapping_add(needed)
            .wrapping_sub(self.capacity);
        let (own, _) = controls(&self.memory);
        own.arm(target.wrapping_sub(1));
        self.see_head()?;
        Ok(self.free(self.cursor) < needed)
    }

    /// Returns what the consumer has written about itself.
    pub fn peer(&self) -> Peer {
        controls(&self.memory).1.peer()
    }

    /// Returns the number of messages that consumers have reported as lost, or in doubt, since the
    /// ring was zeroed. The number is the consumers' word.
    pub fn lost_by_consumers(&self) -> u64 {
        controls(&self.memory).1.load(word::LOST, Relaxed)
    }

    /// Returns the number of times that producers have joined this ring, this one included.
    pub fn epoch(&self) -> u64 {
        self.cursor.epoch
    }

    /// Returns the counters of this side.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Leaves the ring in an orderly way, which the consumer can see. What was sent stays there.
    pub fn leave(self) -> M {
        controls(&self.memory)
            .0
            .set_state(State::Left, self.cursor.epoch);
        self.memory
    }

    fn data(&self) -> Data<'_> {
        Data::new(self.memory.producer_part(), self.capacity)
    }

    /// Returns the number of free words if the next record is written at `cursor`.
    fn free(&self, cursor: Cursor) -> u64 {
        let used = cursor.tail.wrapping_sub(self.head);
        self.capacity.saturating_sub(used)
    }

    fn checked_len(&self, len: usize) -> Result<u32, PushError> {
        let max = max_message(self.capacity);
        match u32::try_from(len) {
            Ok(len) if len <= max => Ok(len),
            _ => Err(PushError::TooLong {
                len,
                max: max as usize,
            }),
        }
    }

    /// Checks that a record with `len` bytes fits at `cursor`, and returns the length.
    fn make_room(&mut self, cursor: Cursor, len: usize) -> Result<u32, PushError> {
        let checked = self.checked_len(len)?;
        let needed = needed_words(checked);
        if needed <= self.free(cursor) {
            return Ok(checked);
        }
        self.see_head()?;
        let free = self.free(cursor);
        if needed <= free {
            return Ok(checked);
        }
        increment(&mut self.stats.refused);
        Err(PushError::Full { len, needed, free })
    }

    /// Loads the consumer's position, which may move from the last one that was seen to our own.
    fn see_head(&mut self) -> Result<(), ProtocolError> {
        let (own, peer) = controls(&self.memory);
        // Acquire: what the consumer has copied was copied before we overwrite it.
        let found = peer.load(word::POSITION, Acquire);
        let (from, to) = (self.head, self.cursor.tail);
        if found.wrapping_sub(from) > to.wrapping_sub(from) {
            increment(&mut self.stats.violations);
            // Perhaps the consumer was misled by a position of ours that somebody has overwritten.
            own.store(word::POSITION, to, Release);
            return Err(ProtocolError::Position { found, from, to });
        }
        self.head = found;
        Ok(())
    }

    /// Writes a record at `cursor`, for which there is room, and returns the cursor after it.
    fn write(&self, cursor: Cursor, len: u32, bytes: &[u8]) -> Cursor {
        let payload = cursor.tail.wrapping_add(RECORD_WORDS);
        self.data().write(payload, bytes);
        cursor.seal(self.data(), len)
    }
}

/// Returns the producer's control words, then the consumer's.
fn controls<M: Memory>(memory: &M) -> (Control<'_>, Control<'_>) {
    (
        Control(memory.producer_part()),
        Control(memory.consumer_part()),
    )
}

/// Returns the number of words that a message needs: its record, and the number of the next one.
fn needed_words(len: u32) -> u64 {
    record_words(len).saturating_add(1)
}
