//! What a ring needs of the memory that it is in.

use crate::layout::CONTROL_WORDS;
use crate::word::Word;

/// Shared memory with a ring in it, which has a part of each side.
///
/// Each side writes to its own part only. The parts must be the same memory on both sides, aligned
/// to 8 bytes, and each method must return the same slice whenever it is called: otherwise messages
/// are garbled, but nothing worse.
///
/// A mapping that is owned by the ring implements this in a few lines:
///
/// ```
/// use mkvmm_ring::{Memory, Producer, Word};
///
/// struct Mapping(Box<[Word]>);
///
/// impl Memory for Mapping {
///     fn producer_part(&self) -> &[Word] {
///         self.0.producer_part()
///     }
///     fn consumer_part(&self) -> &[Word] {
///         self.0.consumer_part()
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
impl Memory for [Word] {
    fn producer_part(&self) -> &[Word] {
        self.get(CONTROL_WORDS..).unwrap_or_default()
    }

    fn consumer_part(&self) -> &[Word] {
        self.get(..CONTROL_WORDS).unwrap_or_default()
    }
}

impl<M: Memory + ?Sized> Memory for &M {
    fn producer_part(&self) -> &[Word] {
        (**self).producer_part()
    }

    fn consumer_part(&self) -> &[Word] {
        (**self).consumer_part()
    }
}

#[cfg(feature = "alloc")]
impl<M: Memory + ?Sized> Memory for alloc::sync::Arc<M> {
    fn producer_part(&self) -> &[Word] {
        (**self).producer_part()
    }

    fn consumer_part(&self) -> &[Word] {
        (**self).consumer_part()
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

impl<P: AsRef<[Word]>, C: AsRef<[Word]>> Memory for Parts<P, C> {
    fn producer_part(&self) -> &[Word] {
        self.producer.as_ref()
    }

    fn consumer_part(&self) -> &[Word] {
        self.consumer.as_ref()
    }
}
