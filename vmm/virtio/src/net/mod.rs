//! A network device (virtio 1.2, section 5.1): one pair of queues, frames of up to
//! 65535 bytes, and no offloads.
//!
//! ```text
//!   driver ── transmit queue ──► Net ── Link::send ──► passt, or other guests
//!          ◄── receive queue ──      ◄── Link::front ─┘
//! ```
//!
//! Nothing waits and nothing piles up: a frame that its receiver has no room for
//! stays where it is (in the ring, or in the kernel's buffer of a socket), or is
//! dropped and counted. A call handles a bounded number of bytes.
//!
//! | file | what it is |
//! |---|---|
//! | `frame` | addresses and sizes of Ethernet frames |
//! | `link` | the interface of what a device is connected to |
//! | `stream` | a link to a process behind a stream socket, such as passt |
//! | `segment` | a link to other guests, a socket for each of them |
//! | `queues` | the two queues: frames in chains |
//! | `device` | the device |

mod device;
mod frame;
mod link;
mod queues;
mod segment;
mod stream;

pub use device::{Net, NetSettings};
pub use frame::{FRAME_MAX, Mac};
pub use link::{DropCounts, Drops, Front, HEADROOM, Link, Sent};
pub use segment::{Change, Changes, MEMBERS_MAX, Member, Segment};
pub use stream::Stream;
