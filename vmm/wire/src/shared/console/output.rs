//! The output ring: printing on the worker's side, and reading on the
//! manager's.
//!
//! A viewer copies bytes while the printer may overwrite them. The printer
//! therefore first publishes the position up to which it is about to write
//! (`BEGIN`), then stores the bytes, then publishes the end (`END`). A viewer
//! reads `END`, copies, and reads `BEGIN`: bytes a whole ring or more behind
//! `BEGIN` may have been overwritten meanwhile, and are dropped. If the copy
//! has seen any byte stored after a value of `BEGIN`, the release fence between
//! them and the viewer's acquire fence make it see that value, or a later one.

use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::Duration;

use super::file::{Console, word};
use crate::shared::bell::Bell;

/// The first and the longest pause of a printer that waits for room: short
/// enough for a fast reader, and to notice soon that it should stop.
const PAUSE: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(10));

/// The worker's side of the output ring. There is one for each console; vCPU
/// threads share it under a lock of their own.
#[derive(Debug)]
pub struct Printer {
    console: Console,
    bell: Bell,
    /// The total number of bytes printed. This is a private copy, since the
    /// shared one may have been modified.
    end: u64,
}

impl Printer {
    pub(super) fn new(console: Console, bell: Bell) -> Self {
        let end = console.word(word::END).load(Ordering::Relaxed);
        Self { console, bell, end }
    }

    /// Prints `bytes`, and returns how many. If the console is lossless, it
    /// waits while the ring is full of unacknowledged output, as long as
    /// `should_stop` returns false; the rest is then dropped and counted.
    pub fn print(&mut self, bytes: &[u8], should_stop: &dyn Fn() -> bool) -> usize {
        let mut rest = bytes;
        let mut pause = PAUSE.0;
        while !rest.is_empty() {
            let room = self.room();
            if room > 0 {
                let (now, later) = rest.split_at(rest.len().min(room));
                self.put(now);
                (rest, pause) = (later, PAUSE.0);
            } else if should_stop() {
                self.drop_rest(rest.len());
                break;
            } else {
                thread::sleep(pause);
                pause = PAUSE.1.min(pause * 2);
            }
        }
        bytes.len() - rest.len()
    }

    /// Returns the number of bytes that may be printed now.
    fn room(&self) -> usize {
        let capacity = self.console.capacity();
        if self.console.word(word::LOSSLESS).load(Ordering::Relaxed) == 0 {
            return capacity;
        }
        // Acquire: bytes that were acknowledged were copied before they are
        // overwritten.
        let read = self.console.word(word::READ).load(Ordering::Acquire);
        let kept = usize::try_from(self.end.wrapping_sub(read)).unwrap_or(capacity);
        capacity.saturating_sub(kept)
    }

    /// Stores at most a whole ring of bytes and publishes them.
    fn put(&mut self, bytes: &[u8]) {
        let end = self.end.wrapping_add(bytes.len() as u64);
        self.console.word(word::BEGIN).store(end, Ordering::Relaxed);
        fence(Ordering::Release);
        self.console.output().put(self.end, bytes);
        self.console.word(word::END).store(end, Ordering::Release);
        self.end = end;
        self.console.notify(word::OUTPUT_AWAITED, &self.bell);
    }

    fn drop_rest(&self, count: usize) {
        let dropped = self.console.word(word::DROPPED);
        dropped.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// The manager's side of the output ring. It can be read even when the worker
/// is dead.
///
/// A hostile worker can make positions jump and write arbitrary bytes. Each
/// call still returns at most a whole ring of bytes and takes no longer than
/// copying one.
#[derive(Debug, Clone)]
pub struct Viewer {
    console: Console,
}

impl Viewer {
    pub(super) fn new(console: Console) -> Self {
        Self { console }
    }

    /// Returns the total number of bytes printed, which is the position after
    /// the last.
    pub fn printed(&self) -> u64 {
        self.console.word(word::END).load(Ordering::Acquire)
    }

    /// Returns the number of bytes that the worker dropped because it had to
    /// stop while waiting for room.
    pub fn dropped(&self) -> u64 {
        self.console.word(word::DROPPED).load(Ordering::Relaxed)
    }

    /// Copies the bytes from position `from` on, or from the oldest one kept;
    /// returns them with the position after the last. For a position in the
    /// future it returns nothing and the current end.
    pub fn since(&self, from: u64) -> (Vec<u8>, u64) {
        let capacity = self.console.capacity() as u64;
        let end = self.printed();
        let start = from.clamp(end.saturating_sub(capacity), end);
        // This is at most a ring by the line above, whatever `end` is.
        let count = usize::try_from(end - start).unwrap_or(0);
        let mut bytes = self.console.output().get(start, count);
        fence(Ordering::Acquire);
        let begin = self.console.word(word::BEGIN).load(Ordering::Relaxed);
        let oldest = begin.saturating_sub(capacity);
        let overwritten = usize::try_from(oldest.saturating_sub(start)).unwrap_or(count);
        bytes.drain(..overwritten.min(count));
        (bytes, end)
    }

    /// Notes that the output up to `position` is in a log file, which has `len`
    /// bytes now.
    pub fn note_logged(&self, position: u64, len: u64) {
        let word = |index| self.console.word(index);
        word(word::LOGGED).store(position, Ordering::Relaxed);
        word(word::LOG_LEN).store(len, Ordering::Release);
    }

    /// Returns the position up to which output is in a log file of `len` bytes:
    /// what was noted, and what was written after that.
    pub fn logged(&self, len: u64) -> u64 {
        let noted_len = self.console.word(word::LOG_LEN).load(Ordering::Acquire);
        let noted = self.console.word(word::LOGGED).load(Ordering::Relaxed);
        let more = len.saturating_sub(noted_len);
        noted.saturating_add(more).min(self.printed())
    }

    /// Requests a ring of the doorbell at the next output after `position`.
    /// Returns whether to wait for it; false means that there is output
    /// already.
    pub fn will_wait(&self, position: u64) -> bool {
        self.console.announce(word::OUTPUT_AWAITED);
        self.printed() == position
    }

    /// Sets whether printing waits for [`Self::acknowledge`] instead of
    /// overwriting. Turning it on takes effect from the current end of the
    /// output; turning it off releases a waiting printer.
    pub fn set_lossless(&self, lossless: bool) {
        if lossless {
            self.acknowledge(self.printed());
        }
        let flag = self.console.word(word::LOSSLESS);
        flag.store(u64::from(lossless), Ordering::Release);
    }

    /// Allows a lossless console to overwrite everything before `position`.
    /// With several viewers, the slowest one determines it.
    pub fn acknowledge(&self, position: u64) {
        // Release: the printer overwrites these bytes only after they were
        // copied.
        self.console
            .word(word::READ)
            .store(position, Ordering::Release);
    }
}
