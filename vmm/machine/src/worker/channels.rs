//! Takes the channels that the manager gives to the guest.

use std::os::fd::OwnedFd;

use mkpool::AddrRange;
use mkpool::range::RangeError;
use mkvmm_wire::messages::ChannelOrder;
use mkvmm_wire::shared::SharedError;
use mkvmm_wire::shared::bell::Bell;
use mkvmm_wire::shared::members::Members;

use crate::devices::pci::channel_port::Port;
use crate::kvm::device::from_event;
use crate::memory::{MemoryError, MemoryPart, SharedMemory};

/// A reason why a channel cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The number of descriptors does not match the order.
    #[error("internal error: a channel came without its descriptors")]
    Descriptors,
    /// The page with the members' states cannot be opened.
    #[error("the states of a channel's members")]
    Members(#[from] SharedError),
    /// The memory is at an impossible place.
    #[error("the memory of a channel")]
    Range(#[from] RangeError),
    /// The memory cannot be mapped.
    #[error("the memory of a channel")]
    Memory(#[from] MemoryError),
}

/// Maps a channel, whose memory has pages of `page` bytes, and huge ones if
/// `huge_pages`.
///
/// # Errors
/// Returns a [`ChannelError`]; nothing is left then.
pub fn open(
    order: &ChannelOrder,
    files: Vec<OwnedFd>,
    page: usize,
    huge_pages: bool,
) -> Result<(Port, SharedMemory), ChannelError> {
    let mut files = files.into_iter();
    let parts = order.extents.iter().zip(&mut files).map(|(extent, file)| {
        let range = AddrRange::with_size(extent.start, extent.len)?;
        Ok(MemoryPart { range, file })
    });
    let parts = parts.collect::<Result<Vec<_>, RangeError>>()?;
    let shared = SharedMemory::new(&parts, page, huge_pages, order.read_only)?;
    let mut one = || files.next().ok_or(ChannelError::Descriptors);
    let (states, news) = (Members::open(one()?)?, Bell::from(one()?));
    let mut doorbells = Vec::new();
    for _member in 0..order.members {
        let own = (0..order.doorbells).map(|_doorbell| Ok(from_event(one()?)));
        doorbells.push(own.collect::<Result<Vec<_>, ChannelError>>()?);
    }
    let port = Port {
        id: order.id,
        range: shared.range(),
        is_read_only: order.read_only,
        member: order.member,
        states,
        news,
        doorbells,
    };
    Ok((port, shared))
}
