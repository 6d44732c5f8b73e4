//! What a chain asks of a disk, checked completely before anything is done.
//!
//! Source: virtio 1.2, section 5.2.6. The layout of a chain is free (2.7.4): the
//! header is the first 16 readable bytes, and the status is the last writable
//! one, whatever the descriptors are.

use std::ops::Range;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::GuestMemoryMmap;

use crate::block::config::{DiskId, RANGE_MAX, SECTOR, SEG_MAX, SIZE_MAX};
use crate::chain::{Chain, Part};

/// The size of a request's header in bytes: type, a reserved word, the sector.
const HEADER: usize = 16;
/// The size of the description of a range in bytes: sector, length, flags.
const RANGE: usize = 16;

/// What a request does, with positions and lengths in bytes, all within the
/// disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Reads from the disk into `data`, a range of the chain's writable bytes.
    Read {
        /// The first byte of the disk.
        at: u64,
        /// The range of the chain's bytes.
        data: Range<u64>,
    },
    /// Writes `data`, a range of the chain's readable bytes, to the disk.
    Write {
        /// The first byte of the disk.
        at: u64,
        /// The range of the chain's bytes.
        data: Range<u64>,
    },
    /// Puts on stable storage what was written.
    Flush,
    /// Declares a range unused; it may contain anything afterwards.
    Discard {
        /// The first byte of the disk.
        at: u64,
        /// The number of bytes, not 0.
        len: u64,
    },
    /// Makes a range read as zeros.
    Zero {
        /// The first byte of the disk.
        at: u64,
        /// The number of bytes, not 0.
        len: u64,
        /// Whether the range may lose its place on the disk.
        unmap: bool,
    },
    /// Reads the identification of the disk.
    Identify,
}

/// The answer to a request that cannot be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The request does not fit the disk: beyond its end, too large, not a
    /// multiple of a sector, or a write to a read-only disk.
    Invalid,
    /// The request is of a kind that the device does not know.
    Unknown,
}

impl Refusal {
    /// Returns the status byte.
    pub fn status(self) -> u8 {
        let status = match self {
            Self::Invalid => VIRTIO_BLK_S_IOERR,
            Self::Unknown => VIRTIO_BLK_S_UNSUPP,
        };
        // Both are below 256.
        u8::try_from(status).unwrap_or(u8::MAX)
    }
}

/// A chain that has no header or no room for a status, so that it cannot even be
/// refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRequest(pub &'static str);

/// The part of a disk's properties that requests are checked against.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The size of the disk in bytes.
    pub bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// Returns what `chain` asks for.
///
/// # Errors
/// Returns [`NoRequest`] if it is no request of this device at all, and within
/// the result the [`Refusal`] of one that is not possible.
pub fn parse(
    chain: &Chain,
    memory: &GuestMemoryMmap,
    limits: Limits,
) -> Result<Result<Request, Refusal>, NoRequest> {
    let mut header = [0; HEADER];
    if chain.read_at(memory, 0, &mut header) < HEADER {
        return Err(NoRequest("a request has no complete header"));
    }
    let Some(room) = chain.writable_len().checked_sub(1) else {
        return Err(NoRequest("a request has no room for its status"));
    };
    let [a, b, c, d, _, _, _, _, sector @ ..] = header;
    let kind = u32::from_le_bytes([a, b, c, d]);
    let sector = u64::from_le_bytes(sector);
    let chain = Parsed {
        chain,
        memory,
        limits,
        data: HEADER as u64..chain.readable_len(),
        room,
    };
    Ok(chain.request(kind, sector))
}

struct Parsed<'a> {
    chain: &'a Chain,
    memory: &'a GuestMemoryMmap,
    limits: Limits,
    /// The driver's data among the readable bytes.
    data: Range<u64>,
    /// The number of writable bytes before the status.
    room: u64,
}

impl Parsed<'_> {
    fn request(&self, kind: u32, sector: u64) -> Result<Request, Refusal> {
        match kind {
            VIRTIO_BLK_T_IN => {
                let data = 0..self.room;
                let at = self.transfer(sector, &data, self.chain.writable())?;
                Ok(Request::Read { at, data })
            }
            VIRTIO_BLK_T_OUT => {
                self.may_write()?;
                let data = self.data.clone();
                let at = self.transfer(sector, &data, self.chain.readable())?;
                Ok(Request::Write { at, data })
            }
            VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
            VIRTIO_BLK_T_GET_ID if self.room >= DiskId::SIZE as u64 => Ok(Request::Identify),
            VIRTIO_BLK_T_GET_ID => Err(Refusal::Invalid),
            VIRTIO_BLK_T_DISCARD => {
                let (at, len, flags) = self.range()?;
                // The unmap flag has no meaning here and must be clear.
                match flags {
                    0 => Ok(Request::Discard { at, len }),
                    _ => Err(Refusal::Unknown),
                }
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                let (at, len, flags) = self.range()?;
                if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
                    return Err(Refusal::Unknown);
                }
                let unmap = flags != 0;
                Ok(Request::Zero { at, len, unmap })
            }
            _ => Err(Refusal::Unknown),
        }
    }

    fn may_write(&self) -> Result<(), Refusal> {
        match self.limits.read_only {
            true => Err(Refusal::Invalid),
            false => Ok(()),
        }
    }

    /// Returns the position of a transfer whose `data` is in `parts`.
    fn transfer(&self, sector: u64, data: &Range<u64>, parts: &[Part]) -> Result<u64, Refusal> {
        let len = data.end - data.start;
        // One segment more for a header or status of its own; and one may be
        // longer by a header or status that it contains.
        let is_small = |part: &Part| u64::from(part.len) <= u64::from(SIZE_MAX) + HEADER as u64;
        if parts.len() > SEG_MAX as usize + 1 || !parts.iter().all(is_small) {
            return Err(Refusal::Invalid);
        }
        self.position(sector, len)
    }

    /// Returns the position of `len` bytes at `sector`, which must be whole
    /// sectors on the disk, at least one.
    fn position(&self, sector: u64, len: u64) -> Result<u64, Refusal> {
        let at = sector.checked_mul(SECTOR).ok_or(Refusal::Invalid)?;
        let end = at.checked_add(len).ok_or(Refusal::Invalid)?;
        if len == 0 || !len.is_multiple_of(SECTOR) || end > self.limits.bytes {
            return Err(Refusal::Invalid);
        }
        Ok(at)
    }

    /// Returns position, length and flags of the one range that a discard or a
    /// request for zeros may have.
    fn range(&self) -> Result<(u64, u64, u32), Refusal> {
        self.may_write()?;
        let mut range = [0; RANGE];
        let is_one = self.data.end - self.data.start == RANGE as u64;
        let start = self.data.start;
        if !is_one || self.chain.read_at(self.memory, start, &mut range) < RANGE {
            return Err(Refusal::Invalid);
        }
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = range;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let count = u32::from_le_bytes([n0, n1, n2, n3]);
        if count > RANGE_MAX {
            return Err(Refusal::Invalid);
        }
        let len = u64::from(count) * SECTOR;
        let at = self.position(sector, len)?;
        Ok((at, len, u32::from_le_bytes(flags)))
    }
}
