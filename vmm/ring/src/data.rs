//! Copying in and out of the data area, word by word, each word once.

use core::sync::atomic::Ordering::Relaxed;

use crate::layout::CONTROL_WORDS;
use crate::word::Word;

/// The data area of a ring. All accesses are `Relaxed`: the positions order them.
#[derive(Debug, Clone, Copy)]
pub struct Data<'a> {
    words: &'a [Word],
    /// The capacity, a power of two, minus 1.
    mask: u64,
}

impl<'a> Data<'a> {
    /// Returns the first `capacity` data words of the producer's part; `capacity` is a power of two
    /// for which there is room.
    pub fn new(producer_part: &'a [Word], capacity: u64) -> Self {
        let words = producer_part.get(CONTROL_WORDS..).unwrap_or_default();
        let count = usize::try_from(capacity).unwrap_or(usize::MAX);
        Self {
            words: words.get(..count).unwrap_or_default(),
            mask: capacity.saturating_sub(1),
        }
    }

    /// Returns the index of a position, which is below the capacity.
    fn index(&self, position: u64) -> usize {
        usize::try_from(position & self.mask).unwrap_or(usize::MAX)
    }

    /// Returns the word at a position.
    pub fn load(&self, position: u64) -> u64 {
        let word = self.words.get(self.index(position));
        word.map_or(0, |word| word.load(Relaxed))
    }

    /// Stores a word at a position.
    pub fn store(&self, position: u64, value: u64) {
        if let Some(word) = self.words.get(self.index(position)) {
            word.store(value, Relaxed);
        }
    }

    /// Returns the words from a position to the end of the area, and those before it.
    fn split(&self, position: u64) -> (&'a [Word], &'a [Word]) {
        let (before, from) = self
            .words
            .split_at_checked(self.index(position))
            .unwrap_or_default();
        (from, before)
    }

    /// Stores bytes from a position on; the last word is filled up with zeroes.
    pub fn write(&self, position: u64, bytes: &[u8]) {
        let (whole, rest) = bytes.as_chunks::<8>();
        let (from, before) = self.split(position);
        let (now, later) = whole.split_at(whole.len().min(from.len()));
        store_all(from, now);
        store_all(before, later);
        if !rest.is_empty() {
            let mut last = [0; 8];
            copy(&mut last, rest);
            self.store(
                position.wrapping_add(whole.len() as u64),
                u64::from_ne_bytes(last),
            );
        }
    }

    /// Copies the bytes from a position on into `bytes`.
    pub fn read(&self, position: u64, bytes: &mut [u8]) {
        let (whole, rest) = bytes.as_chunks_mut::<8>();
        let count = whole.len() as u64;
        let (from, before) = self.split(position);
        let (now, later) = whole.split_at_mut(whole.len().min(from.len()));
        load_all(from, now);
        load_all(before, later);
        if !rest.is_empty() {
            let last = self.load(position.wrapping_add(count));
            copy(rest, &last.to_ne_bytes());
        }
    }
}

fn store_all(words: &[Word], chunks: &[[u8; 8]]) {
    for (word, chunk) in words.iter().zip(chunks) {
        word.store(u64::from_ne_bytes(*chunk), Relaxed);
    }
}

fn load_all(words: &[Word], chunks: &mut [[u8; 8]]) {
    for (word, chunk) in words.iter().zip(chunks) {
        *chunk = word.load(Relaxed).to_ne_bytes();
    }
}

/// Copies as many bytes as both slices have.
pub fn copy(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn part(capacity: usize) -> Vec<Word> {
        (0..CONTROL_WORDS + capacity)
            .map(|_| Word::new(0))
            .collect()
    }

    #[test]
    fn what_is_written_is_read_at_every_position_and_length() {
        let part = part(8);
        let data = Data::new(&part, 8);
        let bytes: Vec<u8> = (1..=64).collect();
        for position in 0..if cfg!(miri) { 9 } else { 20 } {
            for len in (0..=64).step_by(if cfg!(miri) { 7 } else { 1 }) {
                data.write(position, &bytes[..len]);
                let mut back = [0; 64];
                data.read(position, &mut back[..len]);
                assert_eq!(back[..len], bytes[..len], "{len} bytes at {position}");
            }
        }
    }

    #[test]
    fn bytes_keep_their_order_in_memory() {
        let part = part(8);
        let data = Data::new(&part, 8);
        data.write(7, b"abcdefghij");
        assert_eq!(&data.load(7).to_ne_bytes(), b"abcdefgh");
        assert_eq!(&data.load(0).to_ne_bytes(), b"ij\0\0\0\0\0\0");
        assert_eq!(data.load(15), data.load(7));
        data.store(u64::MAX, 5);
        assert_eq!(data.load(7), 5);
    }

    #[test]
    fn memory_that_shrinks_reads_as_zero() {
        let part = part(4);
        let data = Data::new(&part, 8);
        data.write(0, &[1; 64]);
        let mut back = [7; 64];
        data.read(0, &mut back[60..]);
        assert_eq!(back[60..], [0; 4]);
    }
}
