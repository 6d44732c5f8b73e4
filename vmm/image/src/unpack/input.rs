//! Reads an image once, in pieces, and hashes what was read afterwards.

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use mkvmm_base::unpacking::ContentHash;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Stat, fstat};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use sha2::{Digest, Sha256};

use super::failure::Failure;
use crate::image::ImageError;

/// The maximum time without data from a stream: 5 s.
const DATA_TIMEOUT: Duration = Duration::from_secs(5);
/// The size of a file's beginning that must contain all headers: 1 MiB.
pub const HEAD: usize = 1 << 20;
/// The number of bytes that are read at a time: 256 KiB.
const PIECE: usize = 256 << 10;

/// An image that was read as far as it is used, and has not been hashed.
#[derive(Debug)]
pub struct Read {
    size: u64,
    unhashed: Unhashed,
}

/// Where the bytes are that were read: the same ones are hashed, whatever the file
/// has become since.
#[derive(Debug)]
enum Unhashed {
    /// All of them in memory.
    Bytes(Vec<u8>),
    /// The head in memory and what follows it up to `end` in the output; nobody has
    /// used the others, which are still in the file.
    Output {
        head: Vec<u8>,
        end: u64,
        before: Times,
    },
}

/// An open image whose head has been read.
#[derive(Debug)]
pub struct Input<'a> {
    /// The bytes read so far: the head of a file, or all of a stream.
    bytes: Vec<u8>,
    /// The file that the rest is read from, and its size and times before it
    /// was read.
    rest: Option<(&'a File, Times)>,
    len: u64,
}

/// The size and timestamps of a file, which change when it is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Times {
    len: u64,
    changed: [(i64, u64); 2],
}

impl Times {
    fn of(stat: &Stat) -> Self {
        Self {
            // The size is never negative.
            len: u64::try_from(stat.st_size).unwrap_or(0),
            changed: [
                (stat.st_mtime, stat.st_mtime_nsec),
                (stat.st_ctime, stat.st_ctime_nsec),
            ],
        }
    }
}

/// Calls `fstat` directly: the call that std uses is forbidden in a confined
/// process.
fn stat(file: &File) -> Result<Stat, Failure> {
    fstat(file).map_err(|errno| Failure::Read(errno.into()))
}

impl<'a> Input<'a> {
    /// Reads the head of `file`, which may have up to `limit` bytes.
    ///
    /// # Errors
    /// Returns a [`Failure`]; a file that is too large is refused before it is
    /// read.
    pub fn open(file: &'a File, limit: u64) -> Result<Self, Failure> {
        let stat = stat(file)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Self::open_file(file, Times::of(&stat), limit),
            kind @ (FileType::Fifo | FileType::Socket) => {
                let socket = kind == FileType::Socket;
                let mut stream = Stream { file, socket };
                Self::open_stream(&mut stream, limit, DATA_TIMEOUT)
            }
            _ => Err(Failure::NotAFile),
        }
    }

    fn open_file(file: &'a File, before: Times, limit: u64) -> Result<Self, Failure> {
        let len = before.len;
        if len > limit {
            return Err(Failure::Input {
                size: len,
                stream: false,
                limit,
            });
        }
        if len == 0 {
            return Err(ImageError::Empty.into());
        }
        let mut head = vec![0; usize::try_from(len).unwrap_or(HEAD).min(HEAD)];
        read_exact_at(file, &mut head, 0)?;
        Ok(Self {
            bytes: head,
            rest: Some((file, before)),
            len,
        })
    }

    /// Reads a stream to its end, since its length is unknown until then.
    fn open_stream(
        stream: &mut Stream<'_>,
        limit: u64,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let bytes = stream.read(limit, timeout)?;
        if bytes.is_empty() {
            return Err(ImageError::Empty.into());
        }
        Ok(Self {
            len: bytes.len() as u64,
            bytes,
            rest: None,
        })
    }

    /// Returns the first [`HEAD`] bytes, or all of a shorter image.
    pub fn head(&self) -> &[u8] {
        self.bytes.get(..HEAD).unwrap_or(&self.bytes)
    }

    /// Returns the image's size in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Passes the first `end` bytes to `take`, in order and in pieces, each with its
    /// offset. What it is passed must be in the output when [`Read::sha256`] is called.
    ///
    /// # Errors
    /// Returns the error of `take`, or [`Failure::Changing`] if the file was
    /// written to meanwhile.
    pub fn read(
        self,
        end: u64,
        mut take: impl FnMut(u64, &[u8]) -> Result<(), Failure>,
    ) -> Result<Read, Failure> {
        let end = end.min(self.len);
        let whole = usize::try_from(end).unwrap_or(usize::MAX);
        take(0, self.bytes.get(..whole).unwrap_or(&self.bytes))?;
        let unhashed = match self.rest {
            Some((file, before)) if self.len > self.bytes.len() as u64 => {
                let start = self.bytes.len() as u64;
                read_pieces(file, start..end, &mut take)?;
                check_unchanged(file, before)?;
                Unhashed::Output {
                    head: self.bytes,
                    end,
                    before,
                }
            }
            _ => {
                if let Some((file, before)) = self.rest {
                    check_unchanged(file, before)?;
                }
                Unhashed::Bytes(self.bytes)
            }
        };
        Ok(Read {
            size: self.len,
            unhashed,
        })
    }

    /// Reads all bytes into memory.
    ///
    /// # Errors
    /// Returns [`Failure::Changing`] if the file was written to meanwhile, or another
    /// [`Failure`].
    pub fn read_whole(mut self) -> Result<Read, Failure> {
        if let Some((file, before)) = self.rest {
            let start = self.bytes.len();
            let len = usize::try_from(self.len).unwrap_or(usize::MAX);
            self.bytes.try_reserve_exact(len.saturating_sub(start))?;
            self.bytes.resize(len, 0);
            let more = self.bytes.get_mut(start..).unwrap_or_default();
            read_exact_at(file, more, start as u64)?;
            check_unchanged(file, before)?;
        }
        Ok(Read {
            size: self.len,
            unhashed: Unhashed::Bytes(self.bytes),
        })
    }
}

impl Read {
    /// Returns the size of the image in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the bytes that are in memory: all of an image that was read whole, or
    /// that is small.
    pub fn bytes(&self) -> &[u8] {
        match &self.unhashed {
            Unhashed::Bytes(bytes) => bytes,
            Unhashed::Output { .. } => &[],
        }
    }

    /// Returns the SHA-256 of the whole image, which was read from `image` and
    /// written to `output`.
    ///
    /// # Errors
    /// Returns [`Failure::Changing`] if the part of the file that nobody has used was
    /// written to meanwhile.
    pub(super) fn sha256(&self, image: &File, output: &File) -> Result<ContentHash, Failure> {
        let mut hash = Sha256::new();
        match &self.unhashed {
            Unhashed::Bytes(bytes) => hash.update(bytes),
            Unhashed::Output { head, end, before } => {
                hash.update(head);
                let start = head.len() as u64;
                let end = start.max(*end);
                let mut update = |_, piece: &[u8]| {
                    hash.update(piece);
                    Ok(())
                };
                read_pieces(output, start..end, &mut update)?;
                read_pieces(image, end..self.size, &mut update)?;
                check_unchanged(image, *before)?;
            }
        }
        Ok(ContentHash(hash.finalize().into()))
    }
}

/// Passes a part of a file to `take`, in order and in pieces, each with its offset.
fn read_pieces(
    file: &File,
    part: Range<u64>,
    take: &mut impl FnMut(u64, &[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut at = part.start;
    let mut buffer = vec![0; PIECE];
    while at < part.end {
        let left = usize::try_from(part.end - at).unwrap_or(PIECE);
        let (piece, _) = buffer.split_at_mut(left.min(PIECE));
        read_exact_at(file, piece, at)?;
        take(at, piece)?;
        at += piece.len() as u64;
    }
    Ok(())
}

fn check_unchanged(file: &File, before: Times) -> Result<(), Failure> {
    match Times::of(&stat(file)?) == before {
        true => Ok(()),
        false => Err(Failure::Changing),
    }
}

fn read_exact_at(file: &File, bytes: &mut [u8], at: u64) -> Result<(), Failure> {
    match file.read_exact_at(bytes, at) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Failure::Changing),
        other => other.map_err(Failure::Read),
    }
}

/// A stream of bytes of unknown length.
#[derive(Debug)]
struct Stream<'a> {
    /// A pipe opened in non-blocking mode, or a stream socket.
    file: &'a File,
    socket: bool,
}

impl Stream<'_> {
    /// Reads the stream to its end.
    ///
    /// # Errors
    /// Returns a [`Failure`] for more than `limit` bytes, or after `timeout`
    /// without data.
    fn read(&mut self, limit: u64, timeout: Duration) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        loop {
            let read = bytes.len() as u64;
            if !self.wait(timeout)? {
                return Err(Failure::Stalled { read, timeout });
            }
            bytes.try_reserve(PIECE)?;
            match self.read_some(&mut bytes) {
                Ok(0) => return Ok(bytes),
                Ok(_) if bytes.len() as u64 > limit => {
                    return Err(Failure::Input {
                        size: bytes.len() as u64,
                        stream: true,
                        limit,
                    });
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::Read(error)),
            }
        }
    }

    /// Returns whether data or the end of the stream arrived before `timeout`
    /// was over. A FIFO that nobody has opened for writing yet has neither.
    fn wait(&self, timeout: Duration) -> Result<bool, Failure> {
        let timeout = Timespec::try_from(timeout)
            .map_err(io::Error::other)
            .map_err(Failure::Read)?;
        let mut fds = [PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(true), // the read will show
            Err(error) => Err(Failure::Read(error.into())),
        }
    }

    /// Appends the available bytes; returns 0 at the end.
    fn read_some(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        let len = bytes.len();
        bytes.resize(len + PIECE, 0);
        let room = bytes.get_mut(len..).unwrap_or_default();
        let result = if self.socket {
            rustix::net::recv(self.file, room, RecvFlags::DONTWAIT)
                .map(|(_, n)| n)
                .map_err(io::Error::from)
        } else {
            let mut file = self.file;
            file.read(room)
        };
        bytes.truncate(len + result.as_ref().copied().unwrap_or(0));
        result
    }
}

#[cfg(test)]
#[path = "input_tests.rs"]
mod tests;
