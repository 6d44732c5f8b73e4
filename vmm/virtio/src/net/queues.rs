//! The two queues of a network device: frames in chains.

use std::collections::VecDeque;
use std::sync::Arc;

use super::frame::{ETHERNET, FRAME_MAX};
use super::link::{HEADROOM, Link, Sent};
use crate::broken::Broken;
use crate::chain::Chain;
use crate::ring::Ring;

/// The number of the queue of frames for the guest.
pub const RECEIVE: u16 = 0;
/// The number of the queue of frames of the guest.
pub const TRANSMIT: u16 = 1;
/// The bytes of `struct virtio_net_hdr_v1`, before each frame in a chain.
const HEADER: usize = 12;
/// The offset of the number of chains in it.
const BUFFERS: usize = 10;

// A link has the header's bytes for its own.
const _: () = assert!(HEADER == HEADROOM);

/// The queues of a device with a driver.
#[derive(Debug)]
pub struct Queues {
    /// The queue of frames for the guest.
    pub receive: Ring,
    /// The queue of frames of the guest.
    pub transmit: Ring,
    is_mergeable: bool,
    /// A chain as it was read: the header, and a frame.
    packet: Box<[u8]>,
    /// True while the link has no room.
    pub is_blocked: bool,
    /// Buffers that the guest has offered, for the next frames.
    buffers: VecDeque<Chain>,
    /// The number of bytes of these.
    room: usize,
}

/// What became of a frame for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivered {
    /// The guest has it.
    Done,
    /// The guest has no buffers for it now.
    NoRoom,
    /// The guest's buffers are too small for it.
    TooLong,
}

impl Queues {
    /// Takes the queues of a driver that has just set them up. With `is_mergeable`
    /// it accepts a frame in several buffers.
    pub fn new(receive: Ring, transmit: Ring, is_mergeable: bool) -> Self {
        Self {
            receive,
            transmit,
            is_mergeable,
            packet: vec![0; HEADER + FRAME_MAX].into(),
            // What the link has reported before was not seen.
            is_blocked: true,
            buffers: VecDeque::new(),
            room: 0,
        }
    }

    /// Sends the frame of a chain, which has at most `longest` bytes.
    pub fn send(&mut self, chain: &Chain, longest: usize, link: &mut dyn Link) -> Sent {
        let length = chain.readable_len();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let is_frame = (HEADER + ETHERNET..=HEADER + longest).contains(&length);
        let packet = self.packet.get_mut(..length).filter(|_| is_frame);
        let Some(packet) = packet else {
            link.drops().malformed();
            return Sent::Dropped;
        };
        let read = chain.read_at(self.transmit.memory().guest(), 0, packet);
        // Flags and the type of an offload: none was offered.
        if read != length || !packet.starts_with(&[0, 0]) {
            link.drops().malformed();
            return Sent::Dropped;
        }
        link.send(packet)
    }

    /// Puts a frame into the guest's buffers. Those that it has offered stay here
    /// until there are enough.
    ///
    /// # Errors
    /// Returns what is wrong with the queue.
    pub fn deliver(&mut self, frame: &[u8]) -> Result<Delivered, Broken> {
        let needed = HEADER + frame.len();
        // At most as often as the queue has entries.
        while self.room < needed {
            let Some(chain) = self.receive.pop()? else {
                let is_all = self.receive.in_flight() == self.receive.size();
                return Ok(match is_all && self.receive.is_enabled() {
                    true => Delivered::TooLong,
                    false => Delivered::NoRoom,
                });
            };
            let room = room_of(&chain);
            if room < HEADER {
                return Err(Broken::Request {
                    queue: RECEIVE,
                    what: "a receive buffer has no room for a header",
                });
            }
            self.room += room;
            self.buffers.push_back(chain);
            if !self.is_mergeable {
                break;
            }
        }
        let first = self.buffers.front().map_or(0, room_of);
        if !self.is_mergeable && first < needed {
            return Ok(Delivered::TooLong);
        }
        self.write(frame)?;
        Ok(Delivered::Done)
    }

    /// Writes header and frame into as many of the buffers as they need, and
    /// returns these.
    fn write(&mut self, frame: &[u8]) -> Result<(), Broken> {
        let needed = HEADER + frame.len();
        let mut room = 0;
        let is_needed = |chain: &&Chain| {
            let is_needed = room < needed;
            room += room_of(chain);
            is_needed
        };
        let count = self.buffers.iter().take_while(is_needed).count();
        let mut header = [0; HEADER];
        // The queue has at most 256 entries.
        let number = u16::try_from(count).unwrap_or(u16::MAX);
        header[BUFFERS..].copy_from_slice(&number.to_le_bytes());
        let memory = Arc::clone(self.receive.memory());
        let mut rest = frame;
        let mut begin = HEADER;
        let mut filled = Vec::with_capacity(count);
        for chain in self.buffers.drain(..count) {
            let room = room_of(&chain);
            self.room = self.room.saturating_sub(room);
            if begin > 0 {
                chain.write_at(memory.guest(), 0, &header);
            }
            let (piece, more) = rest.split_at(rest.len().min(room - begin));
            chain.write_at(memory.guest(), begin as u64, piece);
            // A frame and its header have less than 2^17 bytes.
            let written = u32::try_from(begin + piece.len()).unwrap_or(u32::MAX);
            filled.push((chain, written));
            (rest, begin) = (more, 0);
        }
        self.receive.push_all(filled)
    }
}

/// Returns the number of bytes of a buffer.
fn room_of(chain: &Chain) -> usize {
    usize::try_from(chain.writable_len()).unwrap_or(usize::MAX)
}
