//! Segments: which guests reach each other.
//!
//! Each network device on a segment has a socket pair with each other one, and a
//! channel over which its worker gets the sockets. The manager makes the pairs and
//! keeps none of the ends, so that frames never concern it, nor its death. Another
//! manager makes all pairs anew: the one before may have been killed between the
//! two ends of one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use mkvmm_base::mac::Mac;
use mkvmm_base::{Class, Diagnose, InstanceId, InstanceName, chain, is_shortage};
use mkvmm_wire::WireError;
use mkvmm_wire::channel::asynchronous::{AsyncChannel, AsyncSender};
use mkvmm_wire::messages::{SegmentNews, SegmentReport};
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::sync::Notify;

/// The maximum number of devices on a segment: each has a socket for each other
/// one.
pub const MEMBERS_MAX: usize = 64;
/// The buffer for frames from one member to another in bytes, as far as the host
/// allows it: a few of the longest.
const BUFFER: usize = 1 << 19;

/// A reason why a device cannot be on a segment.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// There are too many devices on it.
    #[error("segment {segment} has {MEMBERS_MAX} devices, which is the limit")]
    Full {
        /// The name of the segment.
        segment: InstanceName,
    },
    /// Another device has the address.
    #[error("another device on segment {segment} has the address {mac}")]
    Taken {
        /// The name of the segment.
        segment: InstanceName,
        /// The address of both devices.
        mac: Mac,
    },
    /// The host refuses sockets.
    #[error("segment {segment}: the host refuses a pair of sockets")]
    Sockets {
        /// The name of the segment.
        segment: InstanceName,
        /// The underlying error.
        #[source]
        source: std::io::Error,
    },
    /// The channel to the device failed.
    #[error("the channel to a network device failed")]
    Wire(#[from] WireError),
}

impl Diagnose for SegmentError {
    fn class(&self) -> Class {
        match self {
            Self::Full { .. } => Class::Exhausted,
            Self::Taken { .. } => Class::Invalid,
            Self::Sockets { .. } | Self::Wire(_) if is_shortage(self) => Class::Exhausted,
            Self::Sockets { .. } | Self::Wire(_) => Class::VmmFailed,
        }
    }
}

/// A device on a segment.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The name of the segment.
    pub segment: InstanceName,
    /// The number of the instance.
    pub id: InstanceId,
    /// The position of the device among those of its instance.
    pub device: u8,
    /// The address of the device.
    pub mac: Mac,
}

impl Place {
    /// Returns the number by which other members know it.
    fn number(&self) -> u64 {
        u64::from(self.id.0) << 8 | u64::from(self.device)
    }
}

type Channel = AsyncChannel<SegmentNews, SegmentReport>;

/// What a member is still to be told: the addresses of others, and sockets to them.
type Pending = RefCell<BTreeMap<u64, (Mac, OwnedFd)>>;

#[derive(Debug)]
struct Port {
    mac: Mac,
    pending: Pending,
    is_gone: Cell<bool>,
    changed: Notify,
}

/// The devices on all segments of a pool.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    segments: RefCell<BTreeMap<InstanceName, BTreeMap<u64, Rc<Port>>>>,
}

impl Segments {
    /// Connects a device, whose worker has the other end of `channel`, with all
    /// others on its segment. It takes the place of the same device of an earlier
    /// boot. Must be called in a `LocalSet`.
    ///
    /// # Errors
    /// Returns a [`SegmentError`]; nothing has changed then.
    pub fn join(&self, place: &Place, channel: Channel) -> Result<(), SegmentError> {
        let number = place.number();
        let mut segments = self.segments.borrow_mut();
        let others = segments.get(&place.segment);
        let others = others.into_iter().flatten();
        let others: Vec<_> = others.filter(|(other, _)| **other != number).collect();
        if others.len() >= MEMBERS_MAX {
            let segment = place.segment.clone();
            return Err(SegmentError::Full { segment });
        }
        if others.iter().any(|(_, port)| port.mac == place.mac) {
            return Err(SegmentError::Taken {
                segment: place.segment.clone(),
                mac: place.mac,
            });
        }
        let pairs = others.iter().map(|_other| pair());
        let pairs = pairs.collect::<Result<Vec<_>, _>>();
        let pairs = pairs.map_err(|source| SegmentError::Sockets {
            segment: place.segment.clone(),
            source,
        })?;
        let port = Rc::new(Port {
            mac: place.mac,
            pending: RefCell::default(),
            is_gone: Cell::new(false),
            changed: Notify::new(),
        });
        for ((other, its_port), (ours, theirs)) in others.into_iter().zip(pairs) {
            port.pending
                .borrow_mut()
                .insert(*other, (its_port.mac, ours));
            let news = (place.mac, theirs);
            its_port.pending.borrow_mut().insert(number, news);
            its_port.changed.notify_one();
        }
        tokio::task::spawn_local(Rc::clone(&port).tell(channel.sender));
        let members = segments.entry(place.segment.clone()).or_default();
        if let Some(former) = members.insert(number, port) {
            former.close();
        }
        Ok(())
    }

    /// Forgets the devices of an instance, whose worker is gone: the others find
    /// the ends of their sockets closed.
    pub fn leave(&self, id: InstanceId) {
        let mut segments = self.segments.borrow_mut();
        for members in segments.values_mut() {
            members.retain(|number, port| {
                let is_its = number >> 8 == u64::from(id.0);
                if is_its {
                    port.close();
                }
                !is_its
            });
        }
        segments.retain(|_, members| !members.is_empty());
    }
}

impl Port {
    fn close(&self) {
        self.is_gone.set(true);
        self.changed.notify_one();
    }

    /// Tells a worker of other members, as soon as its channel has room: one that
    /// takes nothing holds nobody up, and what waits for it is bounded by the number
    /// of members.
    async fn tell(self: Rc<Self>, mut sender: AsyncSender<SegmentNews>) {
        while !self.is_gone.get() {
            let Some((id, (mac, socket))) = self.pending.borrow_mut().pop_first() else {
                self.changed.notified().await;
                continue;
            };
            let mac = mac.bytes();
            let news = SegmentNews { id, mac };
            match sender.send(&news, &[socket.as_fd()]).await {
                Ok(()) => {}
                Err(WireError::Closed) => return,
                Err(error) => {
                    log::error!("a network device: {}", chain(&error));
                    return;
                }
            }
        }
    }
}

/// Creates the sockets of two members, which preserve frames.
fn pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    for end in [&pair.0, &pair.1] {
        set_socket_send_buffer_size(end, BUFFER)?;
    }
    Ok(pair)
}

#[cfg(test)]
mod tests;
