//! Reads block-compressed formats as one stream.

use std::io::{self, Read};

/// A [`Read`] over unpacked blocks, each produced when the previous one is used
/// up.
#[derive(Debug)]
pub struct BlockReader<I> {
    blocks: I,
    block: Vec<u8>,
    /// The number of bytes of `block` that were read.
    read: usize,
}

impl<I> BlockReader<I> {
    /// Creates a reader of `blocks`, one after the other.
    pub fn new(blocks: I) -> Self {
        Self {
            blocks,
            block: Vec::new(),
            read: 0,
        }
    }
}

impl<I: Iterator<Item = io::Result<Vec<u8>>>> Read for BlockReader<I> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.read == self.block.len() {
            let Some(block) = self.blocks.next() else {
                return Ok(0);
            };
            self.block = block?;
            self.read = 0;
        }
        let mut unread = self.block.get(self.read..).unwrap_or_default();
        let n = unread.read(out)?;
        self.read += n;
        Ok(n)
    }
}

/// Splits off the first `N` bytes of `rest`.
pub fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> io::Result<&'a [u8; N]> {
    let (first, after) = rest
        .split_first_chunk()
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    *rest = after;
    Ok(first)
}

/// Splits off the first `len` bytes of `rest`.
pub fn take_slice<'a>(rest: &mut &'a [u8], len: u32) -> io::Result<&'a [u8]> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let (first, after) = rest
        .split_at_checked(len)
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    *rest = after;
    Ok(first)
}
