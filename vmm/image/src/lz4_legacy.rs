//! The legacy frame format of lz4, which `lz4 -l` and Linux's build write.
//!
//! Source: the LZ4 frame format description, "Legacy frame", and Linux's
//! lib/decompress_unlz4.c. The magic number is followed by blocks, each
//! preceded by its little-endian length; frames may follow each other.

use std::io;

use crate::blocks::{take, take_slice};

/// The magic number of the legacy frame, as stored in the file.
pub const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// The unpacked size of every block of a legacy frame except the last: 8 MiB.
pub const BLOCK: usize = 8 << 20;

/// An iterator over the unpacked blocks of a stream.
#[derive(Debug)]
pub struct Blocks<'a> {
    rest: &'a [u8],
}

impl<'a> Blocks<'a> {
    /// Returns the blocks of `stream`, which starts with the magic number.
    pub fn new(stream: &'a [u8]) -> Self {
        Self { rest: stream }
    }

    fn next_block(&mut self) -> io::Result<Vec<u8>> {
        let length = u32::from_le_bytes(*take(&mut self.rest)?);
        let packed = take_slice(&mut self.rest, length)?;
        lz4_flex::block::decompress(packed, BLOCK)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

impl Iterator for Blocks<'_> {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(rest) = self.rest.strip_prefix(&MAGIC) {
            self.rest = rest;
        }
        (!self.rest.is_empty()).then(|| self.next_block())
    }
}
