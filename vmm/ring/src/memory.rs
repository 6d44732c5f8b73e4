//! What a ring needs of the memory that it is in.

use core::ops::Deref;

use crate::layout::CONTROL_WORDS;
use crate::word::Word;

/// Shared memory with a ring in it, which has a part of each side.
///
/// Each side writes to its own part only. The parts must be the same memory on both sides, aligned
/// to 8 bytes, and each method must return the same slice whenever it is called: otherwise messages
/// are garbled, but nothing worse.
///
/// Everything that lends words implements it: a slice, `Arc<[Word]>`, and a mapping that is owned by
/// the ring. The consumer's part comes first then.
///
/// ```
/// use std::ops::Deref;
///
/// use mkvmm_ring::{Producer, Word};
///
/// struct Mapping(Box<[Word]>);
///
/// impl Deref for Mapping {
///     type Target = [Word];
///
///     fn deref(&self) -> &[Word] {
///         &self.0
///     }
/// }
///
/// let mapping = Mapping((0..1024).map(|_| Word::new(0)).collect());
/// let producer = Producer::join(mapping)?;
/// # Ok::<(), mkvmm_ring::JoinError>(())
/// ```
pub trait Memory {
    /// Returns the words that the producer writes: 512 bytes of control words, then the data.
    ///
    /// The capacity of the ring is the largest power of two of words that the data have.
    fn producer_part(&self) -> &[Word];

    /// Returns the words that the consumer writes: 512 bytes.
    fn consumer_part(&self) -> &[Word];
}

/// One range of memory: the consumer's part, then the producer's.
impl<T: Deref<Target = [Word]>> Memory for T {
    fn producer_part(&self) -> &[Word] {
        self.get(CONTROL_WORDS..).unwrap_or_default()
    }

    fn consumer_part(&self) -> &[Word] {
        self.get(..CONTROL_WORDS).unwrap_or_default()
    }
}

/// Two ranges of memory, one for each side.
///
/// The other side's range may be mapped without the right to write: each side can then be sure that
/// nobody but itself changes its own part.
#[derive(Debug, Clone, Copy)]
pub struct Parts<P, C> {
    /// The words that the producer writes.
    pub producer: P,
    /// The words that the consumer writes.
    pub consumer: C,
}

impl<P: Deref<Target = [Word]>, C: Deref<Target = [Word]>> Memory for Parts<P, C> {
    fn producer_part(&self) -> &[Word] {
        &self.producer
    }

    fn consumer_part(&self) -> &[Word] {
        &self.consumer
    }
}
