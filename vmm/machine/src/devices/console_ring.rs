//! One guest's console: what it printed, and what is typed to it.
//!
//! Output goes into a bounded ring from the first byte; viewers read at their
//! own pace by position, so that a slow one loses old bytes rather than
//! holding up the guest. Input waits in a bounded queue until the serial
//! port has room; who types waits for the queue instead of losing bytes.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

/// Typed bytes that may wait for the guest; behind that the typist waits.
const INPUT_MAX: usize = 64 << 10;

#[derive(Debug, Default)]
struct Output {
    bytes: VecDeque<u8>,
    /// Bytes ever printed: the position behind the newest byte.
    end: u64,
}

/// The console of one guest.
#[derive(Debug)]
pub struct ConsoleRing {
    capacity: usize,
    output: Mutex<Output>,
    /// Tells viewers the position behind the newest byte.
    printed: watch::Sender<u64>,
    input: Mutex<VecDeque<u8>>,
    /// Tells typists that there may be room.
    room: Notify,
}

impl ConsoleRing {
    /// A ring that keeps the last `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            output: Mutex::default(),
            printed: watch::Sender::new(0),
            input: Mutex::default(),
            room: Notify::new(),
        }
    }

    /// The bytes it keeps, oldest first.
    pub fn bytes(&self) -> Vec<u8> {
        lock(&self.output).bytes.iter().copied().collect()
    }

    /// Bytes ever printed.
    pub fn printed(&self) -> u64 {
        lock(&self.output).end
    }

    /// The bytes from position `from` on, or from the oldest that is kept;
    /// and the position behind them.
    pub fn since(&self, from: u64) -> (Vec<u8>, u64) {
        let output = lock(&self.output);
        let kept = output.bytes.len();
        let wanted = usize::try_from(output.end.saturating_sub(from)).unwrap_or(kept);
        let skip = kept - wanted.min(kept);
        (output.bytes.range(skip..).copied().collect(), output.end)
    }

    /// For viewers: changes whenever something is printed.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.printed.subscribe()
    }

    /// Output of the guest.
    pub fn push(&self, bytes: &[u8]) {
        let mut output = lock(&self.output);
        output.bytes.extend(bytes);
        let over = output.bytes.len().saturating_sub(self.capacity);
        output.bytes.drain(..over);
        output.end += bytes.len() as u64;
        let end = output.end;
        drop(output);
        self.printed.send_replace(end);
    }

    /// Takes as much of `bytes` as there is room for; returns how much.
    pub fn type_in(&self, bytes: &[u8]) -> usize {
        let mut input = lock(&self.input);
        let taken = bytes.len().min(INPUT_MAX - input.len().min(INPUT_MAX));
        input.extend(bytes.iter().take(taken));
        taken
    }

    /// Waits until [`Self::type_in`] may have room again.
    pub async fn room(&self) {
        let notified = self.room.notified();
        if lock(&self.input).len() < INPUT_MAX {
            return;
        }
        notified.await;
    }

    /// Up to `most` typed bytes for the serial port.
    pub fn take_input(&self, most: usize) -> Vec<u8> {
        let mut input = lock(&self.input);
        let count = most.min(input.len());
        let bytes = input.drain(..count).collect();
        drop(input);
        if count > 0 {
            self.room.notify_waiters();
        }
        bytes
    }

    /// Forgets what was typed and not yet read: its guest has ended.
    pub fn clear_input(&self) {
        lock(&self.input).clear();
        self.room.notify_waiters();
    }
}

/// Bytes are bytes, whatever panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last_bytes_and_knows_their_positions() {
        let ring = ConsoleRing::new(8);
        ring.push(b"hello ");
        assert_eq!(ring.since(0), (b"hello ".to_vec(), 6));
        ring.push(b"world");
        assert_eq!(ring.bytes(), b"lo world");
        assert_eq!(ring.since(6), (b"world".to_vec(), 11));
        assert_eq!(ring.since(0), (b"lo world".to_vec(), 11));
        assert_eq!(ring.since(11), (Vec::new(), 11));
        assert_eq!(ring.since(99), (Vec::new(), 11));
    }

    #[test]
    fn input_is_bounded_and_comes_out_in_order() {
        let ring = ConsoleRing::new(8);
        let paste: Vec<u8> = (0..10 << 20).map(|i: u32| i.to_le_bytes()[0]).collect();
        let (mut sent, mut seen) = (0, Vec::new());
        while seen.len() < paste.len() {
            sent += ring.type_in(&paste[sent..]);
            assert!(sent - seen.len() <= INPUT_MAX);
            seen.extend(ring.take_input(4096));
        }
        assert!(seen == paste);
    }
}
