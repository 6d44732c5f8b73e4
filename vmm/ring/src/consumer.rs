//! The side that receives.

use core::ops::Range;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::data::Data;
use crate::error::{JoinError, PopError, ProtocolError};
use crate::layout::{Header, RECORD_WORDS, max_message, max_messages, record_words, word};
use crate::memory::Memory;
use crate::message::{InDoubt, Message, Received, Skipped};
use crate::side::{self, Control, Doorbell, Peer, State, Stats, increment};

/// A record that was checked.
#[derive(Debug, Clone, Copy)]
struct Record {
    position: u64,
    /// The position after it.
    end: u64,
    header: Header,
}

/// The receiving side of a ring. There must be only one at a time.
///
/// A message counts as taken when it is returned, and as acknowledged when the next one is asked for
/// ([`Consumer::acknowledge`]). Dropping the consumer, like dying, leaves the message that was taken
/// last in doubt.
#[derive(Debug)]
pub struct Consumer<M> {
    memory: M,
    /// The number of data words.
    capacity: u64,
    /// The published position: everything before it is acknowledged. This and all other fields are
    /// private copies: the peer may be able to change those in the memory.
    head: u64,
    /// The position of the next record.
    next: u64,
    /// The published position up to which records were taken, by this side or its predecessor.
    taken: u64,
    /// The producer's last valid position that was seen.
    tail: u64,
    /// The number in the first word of the next record.
    expected: u64,
    in_doubt: Range<u64>,
    /// The number of lost messages in shared memory, and how many more will be reported there.
    lost: u64,
    unreported: u64,
    epoch: u64,
    doorbell: Doorbell,
    stats: Stats,
}

impl<M: Memory> Consumer<M> {
    /// Joins a ring as its consumer. If there was one before, which must have ended, this one
    /// continues after the last message that it has acknowledged. What it had taken in addition is
    /// in doubt: see [`Consumer::in_doubt`].
    ///
    /// # Errors
    /// Returns a [`JoinError`] if the memory is too small, is not a ring of the same size and version,
    /// or has contradictory positions.
    pub fn join(memory: M, policy: InDoubt) -> Result<Self, JoinError> {
        let capacity = side::capacity(&memory)?;
        let (own, peer) = controls(&memory);
        own.check(capacity)?;
        peer.check(capacity)?;
        // Acquire: a predecessor's loads, and so the values that it saw, are before its positions.
        let head = own.load(word::POSITION, Acquire);
        let taken = own.load(word::TAKEN, Acquire);
        let tail = peer.load(word::POSITION, Acquire);
        check_position(tail, head, head.wrapping_add(capacity.wrapping_sub(1)))
            .map_err(JoinError::Inconsistent)?;
        check_position(taken, head, tail).map_err(JoinError::Inconsistent)?;
        // The first word of a record is the number after the message before it. The producer does not
        // change it before the record is acknowledged, nor that at its own position.
        let data = Data::new(peer.0, capacity);
        let in_doubt = data.load(head)..data.load(taken);
        if in_doubt.start > in_doubt.end {
            return Err(JoinError::Inconsistent(ProtocolError::Sequence {
                expected: in_doubt.start,
                found: in_doubt.end,
            }));
        }
        let next = match policy {
            InDoubt::Lose => taken,
            InDoubt::Redeliver => head,
        };
        let mut consumer = Self::start(memory, capacity, (head, next), taken, in_doubt);
        consumer.tail = tail;
        Ok(consumer)
    }

    /// Joins a ring whatever its words are, when [`Consumer::join`] reports that former sides have
    /// left contradictory ones. All messages in the ring are skipped; [`Consumer::in_doubt`] is an
    /// upper bound of what was lost.
    ///
    /// # Errors
    /// Returns [`JoinError::TooSmall`].
    pub fn reset(memory: M) -> Result<Self, JoinError> {
        let capacity = side::capacity(&memory)?;
        let (_, peer) = controls(&memory);
        let tail = peer.load(word::POSITION, Acquire);
        let number = Data::new(peer.0, capacity).load(tail);
        let in_doubt = number.saturating_sub(max_messages(capacity))..number;
        let mut consumer = Self::start(memory, capacity, (tail, tail), tail, in_doubt);
        consumer.report_lost();
        consumer.publish();
        Ok(consumer)
    }

    fn start(
        memory: M,
        capacity: u64,
        (head, next): (u64, u64),
        taken: u64,
        in_doubt: Range<u64>,
    ) -> Self {
        let (own, _) = controls(&memory);
        let count = in_doubt.end.saturating_sub(in_doubt.start);
        let is_lost = next == taken;
        Self {
            head,
            next,
            taken,
            tail: next,
            expected: if is_lost {
                in_doubt.end
            } else {
                in_doubt.start
            },
            lost: own.load(word::LOST, Relaxed),
            unreported: if is_lost { count } else { 0 },
            epoch: own.enrol(capacity),
            doorbell: Doorbell::default(),
            stats: Stats {
                lost: if is_lost { count } else { 0 },
                ..Stats::default()
            },
            memory,
            capacity,
            in_doubt,
        }
    }

    /// Returns the sequence numbers of the messages that the former consumer had taken, and that it
    /// may or may not have processed. A successor that dies before it has received or acknowledged
    /// anything reports the same range again.
    pub fn in_doubt(&self) -> Range<u64> {
        self.in_doubt.clone()
    }

    /// Acknowledges the message before, takes the next one and copies it to the start of `buffer`.
    /// Returns `None` if the ring is empty.
    ///
    /// # Errors
    /// Returns [`PopError::TooSmall`] if the buffer is shorter than the message, which then stays in
    /// the ring, or [`PopError::Protocol`].
    pub fn try_pop(&mut self, buffer: &mut [u8]) -> Result<Option<Received>, PopError> {
        self.acknowledge();
        let Some(record) = self.peek()? else {
            return Ok(None);
        };
        let bytes = fitting(buffer, &record)?;
        let received = self.take(&record);
        self.data().read(payload_of(&record), bytes);
        Ok(Some(received))
    }

    /// Acknowledges the messages before, and takes those that are in the ring now, one after the
    /// other; `each` gets the content of each, which was copied to `buffer`. Their room is given back
    /// by the next call, all at once. Returns their number.
    ///
    /// # Errors
    /// Returns a [`PopError`] as [`Consumer::try_pop`] does, if not even the first message was taken.
    pub fn try_pop_batch(
        &mut self,
        buffer: &mut [u8],
        mut each: impl FnMut(Received, &[u8]),
    ) -> Result<usize, PopError> {
        self.acknowledge();
        // The position is loaded once, so a fast producer does not keep this loop busy.
        self.see_tail()?;
        let mut count: usize = 0;
        while count == 0 || self.next != self.tail {
            let checked = self.peek().map_err(PopError::from);
            match checked.and_then(|it| it.map(|it| Ok((it, fitting(buffer, &it)?))).transpose()) {
                Ok(Some((record, bytes))) => {
                    let received = self.take(&record);
                    self.data().read(payload_of(&record), bytes);
                    each(received, bytes);
                    count = count.saturating_add(1);
                }
                Err(error) if count == 0 => return Err(error),
                Ok(None) | Err(_) => break,
            }
        }
        Ok(count)
    }

    /// Acknowledges the message before, and takes the next one, whose content can be read in pieces.
    /// Returns `None` if the ring is empty.
    ///
    /// # Errors
    /// Returns a [`ProtocolError`] if the producer has violated the protocol.
    pub fn receive(&mut self) -> Result<Option<Message<'_>>, ProtocolError> {
        self.acknowledge();
        let Some(record) = self.peek()? else {
            return Ok(None);
        };
        let received = self.take(&record);
        let position = payload_of(&record);
        Ok(Some(Message::new(self.data(), position, received)))
    }

    /// Acknowledges all messages that were taken: they are processed, and their room is free. Asking
    /// for the next message does the same.
    pub fn acknowledge(&mut self) {
        if self.head != self.next {
            self.report_lost();
            self.head = self.next;
            let (own, _) = controls(&self.memory);
            // Release: our copies are made before the producer overwrites the records.
            own.store(word::POSITION, self.head, Release);
        }
    }

    /// Skips everything that the producer has published, after a [`ProtocolError`] that does not
    /// disappear. Returns the numbers of the messages that were skipped, according to the memory.
    pub fn resync(&mut self) -> Skipped {
        let (_, peer) = controls(&self.memory);
        let tail = peer.load(word::POSITION, Acquire);
        let skipped = Skipped {
            from: self.expected,
            to: self.data().load(tail),
        };
        let count = skipped.to.saturating_sub(skipped.from);
        self.stats.lost = self.stats.lost.saturating_add(count);
        self.unreported = self.unreported.saturating_add(count);
        self.report_lost();
        self.expected = skipped.to;
        (self.head, self.next) = (tail, tail);
        (self.taken, self.tail) = (tail, tail);
        self.publish();
        skipped
    }

    /// Returns the length in bytes of the longest message that fits into the ring: a buffer of this
    /// size is never too small.
    pub fn max_message(&self) -> usize {
        max_message(self.capacity) as usize
    }

    /// Returns the size of the data area in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity.saturating_mul(8)
    }

    /// Returns the number of bytes of records that were published and not taken yet.
    ///
    /// # Errors
    /// Returns a [`ProtocolError`] if the producer's position is not valid.
    pub fn available(&mut self) -> Result<u64, ProtocolError> {
        self.see_tail()?;
        Ok(self.tail.wrapping_sub(self.next).saturating_mul(8))
    }

    /// Returns whether the producer waits for room that was given back since the last call, so that
    /// its doorbell must be rung. To be called after receiving, and before sleeping. The first call
    /// returns true, because a predecessor may have died before it could ring.
    pub fn needs_doorbell(&mut self) -> bool {
        let (_, peer) = controls(&self.memory);
        let needed = self.doorbell.is_needed(peer, self.head);
        self.stats.doorbells = self.stats.doorbells.wrapping_add(u64::from(needed));
        needed
    }

    /// Acknowledges all messages that were taken, and asks the producer for a ring of the doorbell
    /// when it sends the next one. Returns whether to wait for it; false means that there is a message
    /// already.
    ///
    /// # Errors
    /// Returns a [`ProtocolError`] if the producer's position is not valid.
    pub fn will_wait(&mut self) -> Result<bool, ProtocolError> {
        self.acknowledge();
        let (own, _) = controls(&self.memory);
        own.arm(self.next);
        self.see_tail()?;
        Ok(self.tail == self.next)
    }

    /// Returns what the producer has written about itself. Everything that a producer has sent before
    /// it left can be received once this has returned [`State::Left`].
    pub fn peer(&self) -> Peer {
        controls(&self.memory).1.peer()
    }

    /// Returns the number of times that consumers have joined this ring, this one included.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the counters of this side.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Acknowledges all messages that were taken, and leaves the ring in an orderly way, which the
    /// producer can see.
    pub fn leave(mut self) -> M {
        self.acknowledge();
        controls(&self.memory).0.set_state(State::Left, self.epoch);
        self.memory
    }

    fn data(&self) -> Data<'_> {
        Data::new(self.memory.producer_part(), self.capacity)
    }

    /// Loads the producer's position, which may move from the last one that was seen to a whole ring
    /// after our own.
    fn see_tail(&mut self) -> Result<(), ProtocolError> {
        let (_, peer) = controls(&self.memory);
        // Acquire: the records before it are written.
        let found = peer.load(word::POSITION, Acquire);
        let to = self.head.wrapping_add(self.capacity.wrapping_sub(1));
        if let Err(error) = check_position(found, self.tail, to) {
            // Perhaps the producer was misled by a position of ours that somebody has overwritten.
            self.publish();
            return Err(self.violation(error));
        }
        self.tail = found;
        Ok(())
    }

    /// Returns the next record, if there is one. Its two words are loaded once.
    fn peek(&mut self) -> Result<Option<Record>, ProtocolError> {
        if self.next == self.tail {
            self.see_tail()?;
            if self.next == self.tail {
                increment(&mut self.stats.refused);
                return Ok(None);
            }
        }
        let position = self.next;
        let available = self.tail.wrapping_sub(position);
        let data = self.data();
        let found = data.load(position);
        let header = Header::unpack(data.load(position.wrapping_add(1)));
        if found != self.expected {
            let expected = self.expected;
            return Err(self.violation(ProtocolError::Sequence { expected, found }));
        }
        let words = record_words(header.len);
        if words > available {
            return Err(self.violation(ProtocolError::Length { words, available }));
        }
        Ok(Some(Record {
            position,
            end: position.wrapping_add(words),
            header,
        }))
    }

    /// Takes a record: from now on it is in doubt, until it is acknowledged.
    fn take(&mut self, record: &Record) -> Received {
        let Header { len, lost, epoch } = record.header;
        // How far this side is behind what its predecessor had taken.
        let behind = self.taken.wrapping_sub(self.next);
        let is_repeated = (1..self.capacity).contains(&behind);
        if !is_repeated || record.end.wrapping_sub(self.next) > behind {
            self.taken = record.end;
            let (own, _) = controls(&self.memory);
            // Release: a successor that sees it also sees which records were published.
            own.store(word::TAKEN, self.taken, Release);
        }
        let sequence = self.expected.wrapping_add(u64::from(lost));
        self.next = record.end;
        self.expected = sequence.wrapping_add(1);
        self.stats.count(len);
        self.stats.lost = self.stats.lost.saturating_add(u64::from(lost));
        Received {
            len: len as usize,
            sequence,
            lost,
            epoch,
            is_repeated,
        }
    }

    fn violation(&mut self, error: ProtocolError) -> ProtocolError {
        increment(&mut self.stats.violations);
        error
    }

    /// Adds what was lost to the number in shared memory. This precedes the acknowledgement, so a
    /// consumer that dies between the two is counted twice, and never not at all.
    fn report_lost(&mut self) {
        if self.unreported > 0 {
            self.lost = self.lost.wrapping_add(self.unreported);
            self.unreported = 0;
            let (own, _) = controls(&self.memory);
            own.store(word::LOST, self.lost, Relaxed);
        }
    }

    /// Stores both positions.
    fn publish(&self) {
        let (own, _) = controls(&self.memory);
        own.store(word::TAKEN, self.taken, Release);
        own.store(word::POSITION, self.head, Release);
    }
}

/// Returns the consumer's control words, then the producer's part.
fn controls<M: Memory>(memory: &M) -> (Control<'_>, Control<'_>) {
    (
        Control(memory.consumer_part()),
        Control(memory.producer_part()),
    )
}

/// Checks that a position is in a range, both ends included.
fn check_position(found: u64, from: u64, to: u64) -> Result<(), ProtocolError> {
    if found.wrapping_sub(from) <= to.wrapping_sub(from) {
        Ok(())
    } else {
        Err(ProtocolError::Position { found, from, to })
    }
}

fn payload_of(record: &Record) -> u64 {
    record.position.wrapping_add(RECORD_WORDS)
}

/// Returns the start of the buffer that a record fills.
fn fitting<'b>(buffer: &'b mut [u8], record: &Record) -> Result<&'b mut [u8], PopError> {
    let (len, length) = (record.header.len as usize, buffer.len());
    buffer.get_mut(..len).ok_or(PopError::TooSmall {
        len,
        buffer: length,
    })
}
