//! Writes the unpacked image in order, up to a limit.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::failure::Failure;
use super::input::HEAD;

/// A file that is written sequentially from its beginning.
#[derive(Debug)]
pub struct Output<'a> {
    file: &'a File,
    limit: u64,
    len: u64,
    /// The first bytes that were written, if they are to be kept.
    head: Option<Vec<u8>>,
}

impl<'a> Output<'a> {
    /// Creates an output to `file` of at most `limit` bytes.
    pub fn new(file: &'a File, limit: u64) -> Self {
        Self {
            file,
            limit,
            len: 0,
            head: None,
        }
    }

    /// Returns the maximum number of bytes that may be written.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns the number of bytes written so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Checks, before anything is written, that `what` with `size` bytes does
    /// not exceed the limit.
    pub fn expect(&self, what: &'static str, size: u64) -> Result<(), Failure> {
        if size <= self.limit {
            return Ok(());
        }
        Err(Failure::Output {
            what,
            size,
            limit: self.limit,
        })
    }

    /// Keeps the first [`HEAD`] bytes that are written from now on.
    pub fn keep_head(&mut self) {
        self.head = Some(Vec::new());
    }

    /// Returns the bytes that were kept.
    pub fn head(&self) -> &[u8] {
        self.head.as_deref().unwrap_or_default()
    }

    /// Appends `piece` to the output.
    pub fn write(&mut self, piece: &[u8]) -> Result<(), Failure> {
        let end = self.len + piece.len() as u64;
        self.expect("the output", end)?;
        if let Some(head) = &mut self.head {
            let room = HEAD - head.len();
            head.extend_from_slice(piece.get(..room).unwrap_or(piece));
        }
        let written = self.file.write_all_at(piece, self.len);
        written.map_err(Failure::Write)?;
        self.len = end;
        Ok(())
    }

    /// Truncates the output to its first `len` bytes.
    pub fn truncate(&mut self, len: u64) {
        self.len = self.len.min(len);
    }

    /// Sets the file's length to that of the output, and returns it.
    pub fn finish(&self) -> Result<u64, Failure> {
        self.file.set_len(self.len).map_err(Failure::Write)?;
        Ok(self.len)
    }
}
