//! The output ring: printing, and looking at what was printed.
//!
//! A viewer copies bytes while the printer may overwrite them. The printer
//! therefore says first how far it is going to get (`BEGIN`), then stores the
//! bytes, then says that they are there (`END`). A viewer reads `END`, copies,
//! and reads `BEGIN`: whatever lies a whole ring behind `BEGIN` may have been
//! overwritten meanwhile, and is dropped. If the copy has seen any byte stored
//! after a value of `BEGIN`, the release fence between them and the viewer's
//! acquire fence make it see that value, or a later one.

use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::Duration;

use super::file::{Console, word};
use crate::shared::bell::Bell;

/// The first pause of a printer that waits for room, and the last: short
/// enough for a fast reader, and to notice soon that it is to stop.
const PAUSE: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(10));

/// Prints for a guest. There is one for each console, on the worker's side;
/// vCPU threads share it behind a lock of theirs.
#[derive(Debug)]
pub struct Printer {
    console: Console,
    bell: Bell,
    /// Bytes ever printed. Its own copy: it trusts no index it has written.
    end: u64,
}

impl Printer {
    pub(super) fn new(console: Console, bell: Bell) -> Self {
        let end = console.word(word::END).load(Ordering::Relaxed);
        Self { console, bell, end }
    }

    /// Prints `bytes`, and returns how many. If the console is lossless it
    /// waits while the ring is full of what was not acknowledged, for as long
    /// as `should_stop` says false; what is left then is dropped and counted.
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

    /// Returns how many bytes may be printed now.
    fn room(&self) -> usize {
        let capacity = self.console.capacity();
        if self.console.word(word::LOSSLESS).load(Ordering::Relaxed) == 0 {
            return capacity;
        }
        // Acquire: bytes acknowledged were copied before they are overwritten.
        let read = self.console.word(word::READ).load(Ordering::Acquire);
        let kept = usize::try_from(self.end.wrapping_sub(read)).unwrap_or(capacity);
        capacity.saturating_sub(kept)
    }

    /// Stores at most a ring of bytes and publishes them.
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

/// Looks at what a guest has printed, on the manager's side. Also when the
/// worker is dead.
///
/// A hostile worker can make positions jump and bytes be anything. Each call
/// still returns at most a ring of bytes and takes no longer than copying one.
#[derive(Debug, Clone)]
pub struct Viewer {
    console: Console,
}

impl Viewer {
    pub(super) fn new(console: Console) -> Self {
        Self { console }
    }

    /// Returns the number of bytes ever printed: the position after the last.
    pub fn printed(&self) -> u64 {
        self.console.word(word::END).load(Ordering::Acquire)
    }

    /// Returns how many bytes the worker dropped since it had to stop while it
    /// waited for room.
    pub fn dropped(&self) -> u64 {
        self.console.word(word::DROPPED).load(Ordering::Relaxed)
    }

    /// Copies the bytes from position `from` on, or from the oldest that is
    /// kept; returns them with the position after the last. A position that
    /// lies ahead yields nothing and the position that output has got to.
    pub fn since(&self, from: u64) -> (Vec<u8>, u64) {
        let capacity = self.console.capacity() as u64;
        let end = self.printed();
        let start = from.clamp(end.saturating_sub(capacity), end);
        // At most a ring by the line above, whatever `end` is.
        let count = usize::try_from(end - start).unwrap_or(0);
        let mut bytes = self.console.output().get(start, count);
        fence(Ordering::Acquire);
        let begin = self.console.word(word::BEGIN).load(Ordering::Relaxed);
        let oldest = begin.saturating_sub(capacity);
        let overwritten = usize::try_from(oldest.saturating_sub(start)).unwrap_or(count);
        bytes.drain(..overwritten.min(count));
        (bytes, end)
    }

    /// Asks for a ring of the bell at the next output after `position`.
    /// Returns whether to wait for it; false means that there is some already.
    pub fn will_wait(&self, position: u64) -> bool {
        self.console.announce(word::OUTPUT_AWAITED);
        self.printed() == position
    }

    /// Says whether printing waits for [`Self::acknowledge`] instead of
    /// overwriting. Turning it on begins at the output so far; turning it off
    /// releases a printer that waits.
    pub fn set_lossless(&self, lossless: bool) {
        if lossless {
            self.acknowledge(self.printed());
        }
        let flag = self.console.word(word::LOSSLESS);
        flag.store(u64::from(lossless), Ordering::Release);
    }

    /// Lets a lossless console overwrite what lies before `position`. With
    /// several viewers, their slowest decides.
    pub fn acknowledge(&self, position: u64) {
        // Release: whoever overwrites, does so after the copy.
        self.console
            .word(word::READ)
            .store(position, Ordering::Release);
    }
}
