//! Compressions that come in blocks, read as one stream.

use std::io::{self, Read};

/// A [`Read`] over unpacked blocks, each made when the one before is used up.
#[derive(Debug)]
pub struct BlockReader<I> {
    blocks: I,
    block: Vec<u8>,
    /// What of `block` has been read.
    read: usize,
}

impl<I> BlockReader<I> {
    /// Reads `blocks` one after the other.
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

/// The first `N` bytes of `rest`, which is moved past them.
pub fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> io::Result<&'a [u8; N]> {
    let (first, after) = rest
        .split_first_chunk()
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    *rest = after;
    Ok(first)
}

/// The first `len` bytes of `rest`, which is moved past them.
pub fn take_slice<'a>(rest: &mut &'a [u8], len: u32) -> io::Result<&'a [u8]> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let (first, after) = rest
        .split_at_checked(len)
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    *rest = after;
    Ok(first)
}
