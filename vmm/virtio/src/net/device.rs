//! The network device.

use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};
use vmm_sys_util::epoll::EventSet;

use super::frame::{ETHERNET, FRAME_MAX, Mac, TAG};
use super::link::{Drops, Front, Link, Sent};
use super::queues::{Delivered, Queues, RECEIVE, TRANSMIT};
use crate::broken::Broken;
use crate::counters::OwnCounts;
use crate::device::{Activation, VirtioDevice, Watch};
use crate::progress::Progress;

/// The largest size of each queue.
const SIZES: [u16; 2] = [256, 256];
/// The number of bytes that one call copies, at least: after that others have
/// their turn.
const BUDGET: usize = 256 << 10;
/// What a frame costs besides its bytes.
const FRAME_COST: usize = 1 << 10;
/// The number by which the link's descriptor is known.
const LINK: u32 = 0;

/// The settings of a device, which its driver reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetSettings {
    /// The address of the device.
    pub mac: Mac,
    /// The number of bytes of the largest packet in a frame, at most 65520.
    pub mtu: u16,
}

/// A network device.
#[derive(Debug)]
pub struct Net {
    settings: NetSettings,
    link: Box<dyn Link>,
    active: Option<Queues>,
    /// What the driver was last told of the link.
    was_up: bool,
}

impl Net {
    /// Creates a device that is connected to `link`.
    pub fn new(settings: NetSettings, link: Box<dyn Link>) -> Self {
        let was_up = link.is_up();
        Self {
            settings,
            link,
            active: None,
            was_up,
        }
    }

    /// Returns the counters of dropped frames.
    pub fn drops(&self) -> &Arc<Drops> {
        self.link.drops()
    }

    /// Returns the number of bytes of the largest frame.
    fn longest(&self) -> usize {
        (usize::from(self.settings.mtu) + ETHERNET + TAG).min(FRAME_MAX)
    }

    /// Returns the configuration space (virtio 1.2, 5.1.4).
    fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        let status = match self.link.is_up() {
            true => VIRTIO_NET_S_LINK_UP,
            false => 0,
        };
        let pairs = 1_u16;
        config[..6].copy_from_slice(&self.settings.mac.0);
        config[6..8].copy_from_slice(&status.to_le_bytes()[..2]);
        config[8..10].copy_from_slice(&pairs.to_le_bytes());
        config[10..].copy_from_slice(&self.settings.mtu.to_le_bytes());
        config
    }

    /// Tells the driver if the link went down or came up.
    fn tell(&mut self) {
        let is_up = self.link.is_up();
        if let Some(active) = &self.active
            && std::mem::replace(&mut self.was_up, is_up) != is_up
        {
            active.receive.interrupt().config_changed();
        }
    }

    /// Sends frames of the guest.
    fn transmit(&mut self) -> Result<Progress, Broken> {
        let longest = self.longest();
        let Some(active) = &mut self.active else {
            return Ok(Progress::Done);
        };
        let mut left = BUDGET;
        loop {
            active.transmit.disable_kicks()?;
            while left > 0
                && let Some(chain) = active.transmit.pop()?
            {
                match active.send(&chain, longest, self.link.as_mut()) {
                    Sent::Full => {
                        active.transmit.put_back(chain);
                        active.is_blocked = true;
                        active.transmit.signal()?;
                        return Ok(Progress::Done);
                    }
                    Sent::Dropped => active.transmit.counters().dropped(),
                    Sent::Done => {}
                }
                let length = usize::try_from(chain.readable_len()).unwrap_or(usize::MAX);
                let copied = length.min(FRAME_MAX) * self.link.copies();
                left = left.saturating_sub(copied + FRAME_COST);
                active.transmit.push(chain, 0)?;
            }
            active.transmit.signal()?;
            if left == 0 {
                return Ok(Progress::More);
            }
            if !active.transmit.enable_kicks()? {
                return Ok(Progress::Done);
            }
            // The next look may find none again.
            left = left.saturating_sub(FRAME_COST);
        }
    }

    /// Delivers frames to the guest.
    fn receive(&mut self) -> Result<Progress, Broken> {
        let longest = self.longest();
        let Some(active) = &mut self.active else {
            return Ok(Progress::Done);
        };
        let mut left = BUDGET;
        let mut progress = Progress::More;
        while left > 0 {
            let frame = match self.link.front() {
                Front::Frame(frame) => frame,
                Front::Empty => {
                    progress = Progress::Done;
                    break;
                }
                Front::Busy => break,
            };
            left = left.saturating_sub(frame.len() + FRAME_COST);
            let delivered = match frame.len() > longest {
                true => Delivered::TooLong,
                false => active.deliver(frame)?,
            };
            match delivered {
                Delivered::Done => self.link.pop(),
                Delivered::TooLong => {
                    self.link.pop();
                    self.link.drops().long();
                    active.receive.counters().dropped();
                }
                // It stays where it is until the driver rings.
                Delivered::NoRoom if active.receive.enable_kicks()? => {}
                Delivered::NoRoom => {
                    active.receive.signal()?;
                    return Ok(Progress::Done);
                }
            }
        }
        active.receive.signal()?;
        active.receive.disable_kicks()?;
        Ok(progress)
    }

    /// Does both, as far as there is something to do.
    fn both(&mut self) -> Result<Progress, Broken> {
        let received = self.receive()?;
        let is_blocked = self.active.as_mut().map(|active| &mut active.is_blocked);
        let sent = match is_blocked.is_some_and(std::mem::take) {
            true => self.transmit()?,
            false => Progress::Done,
        };
        Ok(match (received, sent) {
            (Progress::Done, Progress::Done) => Progress::Done,
            _ => Progress::More,
        })
    }
}

impl VirtioDevice for Net {
    fn name(&self) -> &'static str {
        "net"
    }

    fn id(&self) -> u16 {
        // The number is 1.
        u16::try_from(VIRTIO_ID_NET).unwrap_or_default()
    }

    fn features(&self) -> u64 {
        [
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_MRG_RXBUF,
        ]
        .into_iter()
        .fold(0, |features, bit| features | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let config = config.get(begin..).unwrap_or_default();
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = config.get(index).copied().unwrap_or(0);
        }
    }

    fn activate(&mut self, active: Activation) -> Result<(), Broken> {
        let is_mergeable = active.has(1 << VIRTIO_NET_F_MRG_RXBUF);
        let mut queues = active.queues.into_iter();
        if let (Some(receive), Some(transmit)) = (queues.next(), queues.next()) {
            self.active = Some(Queues::new(receive, transmit, is_mergeable));
        }
        self.was_up = self.link.is_up();
        Ok(())
    }

    fn on_queue(&mut self, queue: u16) -> Result<Progress, Broken> {
        self.link.on_event();
        let progress = match queue {
            RECEIVE => self.receive(),
            TRANSMIT => self.transmit(),
            _ => Ok(Progress::Done),
        };
        self.tell();
        progress
    }

    fn descriptors(&self) -> Vec<Watch<'_>> {
        let (descriptor, events) = self.link.descriptor();
        vec![Watch {
            descriptor,
            events,
            token: LINK,
        }]
    }

    fn on_descriptor(&mut self, _token: u32, _events: EventSet) -> Result<Progress, Broken> {
        self.link.on_event();
        let progress = self.both();
        self.tell();
        progress
    }

    /// Returns the frames that were dropped, by reason: malformed, foreign, unknown,
    /// full, down and long.
    fn counts(&self) -> OwnCounts {
        let drops = self.link.drops().counts();
        [
            drops.malformed,
            drops.foreign,
            drops.unknown,
            drops.full,
            drops.down,
            drops.long,
            0,
        ]
    }

    fn reset(&mut self) -> Progress {
        // Frames that the link has stay there for the next driver.
        self.active = None;
        Progress::Done
    }
}
