//! The input ring: typing on the manager's side, and consuming on the worker's.

use std::sync::atomic::{Ordering, fence};

use super::file::{Console, INPUT_CAPACITY, word};
use crate::shared::bell::Bell;

/// The manager's side of the input ring. There is only one at a time.
#[derive(Debug)]
pub struct Typist {
    console: Console,
    bell: Bell,
    /// The total number of bytes typed, and the position before which they are
    /// discarded. These are private copies, since the worker can write to the
    /// shared ones.
    typed: u64,
    discard: u64,
}

impl Typist {
    pub(super) fn new(console: Console, bell: Bell) -> Self {
        let load = |index| console.word(index).load(Ordering::Relaxed);
        let (typed, discard) = (load(word::TYPED), load(word::DISCARD));
        Self {
            console,
            bell,
            typed,
            discard,
        }
    }

    /// Writes as much of `bytes` as there is room for, and returns how much
    /// that was.
    pub fn type_in(&mut self, bytes: &[u8]) -> usize {
        let bytes = bytes.get(..self.room()).unwrap_or(bytes);
        if bytes.is_empty() {
            return 0;
        }
        // Discarded bytes may be overwritten while the worker copies them: it
        // must then see that they were discarded.
        fence(Ordering::Release);
        self.console.input().put(self.typed, bytes);
        self.typed = self.typed.wrapping_add(bytes.len() as u64);
        let typed = self.console.word(word::TYPED);
        typed.store(self.typed, Ordering::Release);
        self.console.notify(word::INPUT_AWAITED, &self.bell);
        bytes.len()
    }

    /// Returns the number of bytes for which there is room. A worker that
    /// claims to have consumed more than was typed gets no room.
    pub fn room(&self) -> usize {
        // Acquire: bytes that were consumed were copied before they are
        // overwritten.
        let taken = self.console.word(word::TAKEN).load(Ordering::Acquire);
        let waiting = self.typed.wrapping_sub(taken.max(self.discard));
        let waiting = usize::try_from(waiting).unwrap_or(INPUT_CAPACITY);
        INPUT_CAPACITY.saturating_sub(waiting)
    }

    /// Requests a ring of the doorbell when input is consumed. Returns whether
    /// to wait for it; false means that there is room already.
    pub fn will_wait_for_room(&self) -> bool {
        self.console.announce(word::ROOM_AWAITED);
        self.room() == 0
    }

    /// Discards input that was typed and not consumed, because its guest has
    /// ended.
    pub fn clear(&mut self) {
        self.discard = self.typed;
        let discard = self.console.word(word::DISCARD);
        discard.store(self.discard, Ordering::Release);
    }
}

/// The worker's side of the input ring.
#[derive(Debug)]
pub struct Input {
    console: Console,
    bell: Bell,
    /// The total number of bytes consumed.
    taken: u64,
}

impl Input {
    pub(super) fn new(console: Console, bell: Bell) -> Self {
        let taken = console.word(word::TAKEN).load(Ordering::Relaxed);
        Self {
            console,
            bell,
            taken,
        }
    }

    /// Consumes up to `most` typed bytes, in the order in which they were
    /// typed.
    pub fn take(&mut self, most: usize) -> Vec<u8> {
        let (start, waiting) = self.waiting();
        let count = waiting.min(most);
        if count == 0 {
            return Vec::new();
        }
        let mut bytes = self.console.input().get(start, count);
        fence(Ordering::Acquire);
        let discard = self.console.word(word::DISCARD).load(Ordering::Relaxed);
        let discarded = usize::try_from(discard.saturating_sub(start)).unwrap_or(count);
        bytes.drain(..discarded.min(count));
        self.taken = start.wrapping_add(count as u64);
        let taken = self.console.word(word::TAKEN);
        taken.store(self.taken, Ordering::Release);
        self.console.notify(word::ROOM_AWAITED, &self.bell);
        bytes
    }

    /// Requests a ring of the doorbell when something is typed. Returns whether
    /// to wait for it; false means that input is available already.
    pub fn will_wait(&self) -> bool {
        self.console.announce(word::INPUT_AWAITED);
        self.waiting().1 == 0
    }

    /// Returns the position of the next byte and the number of bytes available.
    fn waiting(&self) -> (u64, usize) {
        let typed = self.console.word(word::TYPED).load(Ordering::Acquire);
        let discard = self.console.word(word::DISCARD).load(Ordering::Relaxed);
        let start = self.taken.max(discard);
        let waiting = usize::try_from(typed.wrapping_sub(start)).unwrap_or(usize::MAX);
        // An honest manager never types more than the ring holds.
        (
            start,
            if waiting <= INPUT_CAPACITY {
                waiting
            } else {
                0
            },
        )
    }
}
