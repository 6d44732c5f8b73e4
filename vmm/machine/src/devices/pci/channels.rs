//! The channels of a guest as a PCI function: doorbells of their members, and the
//! members' states.
//!
//! ```text
//!   BAR 0   0x000  registers of ivshmem, revision 1: position, doorbell
//!           0x010  version of what follows, number of channels
//!           0x100  for each channel 0x80 bytes: its memory, its members' states
//!   BAR 1   0x000  the table of MSI-X, from 0x800 on the pending bits
//! ```
//!
//! A doorbell is an eventfd: KVM signals the ringing member's number at the
//! doorbell register, and turns it into a message of the other's guest. No process
//! is on the way. While the receiver masks the vector, KVM does not listen, and any
//! number of rings becomes one interrupt later; so does what was rung while no guest
//! was there. This process never reads or writes these eventfds, which another
//! worker could make block.
//!
//! The memory itself is a memory slot at its address in the pool, whether the
//! function decodes or not: it is the same address for all members.
//!
//! Source of the first registers: QEMU, docs/specs/ivshmem-spec.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, EventSubscriber, Events};
use mkpool::AddrRange;
use mkvmm_base::layout::pci_slot_start;
use mkvmm_wire::messages::{CHANNELS_MAX, DOORBELLS_MAX};
use mkvmm_wire::shared::bell::{Bell, Rung};
use mkvmm_wire::shared::members::{MEMBERS_MAX, Members};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::device::lock;
use crate::devices::pci::config::{Bar, ConfigSpace, Decoded, Identity, Windows};
use crate::devices::pci::function::Function;
use crate::devices::pci::msix::{Msix, Place};
use crate::devices::pci::wiring::Wiring;

/// Shared memory between virtual machines, as QEMU's ivshmem says it: class 05
/// (memory), subclass 00 (RAM). The subsystem tells it from QEMU's, which has a
/// second BAR for the memory.
const IDENTITY: Identity = Identity {
    vendor: 0x1af4,
    device: 0x1110,
    class: 0x05_00_00,
    revision: 1,
    subsystem_vendor: 0x1af4,
    subsystem: 0x6d6b,
};

/// The BARs: registers, and MSI-X.
const REGISTERS: u8 = 0;
const VECTORS: u8 = 1;
const BAR_SIZE: u64 = 0x1000;
const PENDING: u64 = 0x800;

/// Offsets of registers in the first BAR.
const POSITION: u64 = 0x08;
const DOORBELL: u64 = 0x0c;
const VERSION: u64 = 0x10;
/// The first channel, and the bytes of each.
const FIRST: u64 = 0x100;
const CHANNEL: u64 = 0x80;
/// The words of the members' states, in a channel.
const STATES: u64 = 0x40;
/// The version of the registers from [`VERSION`] on.
const THIS_VERSION: u64 = 1;

/// The vectors of a channel: its doorbells, and the last one for changes of the
/// members' states.
const CHANNEL_VECTORS: usize = 8;
const STATE_VECTOR: usize = CHANNEL_VECTORS - 1;

const _: () = assert!((DOORBELLS_MAX as usize) <= STATE_VECTOR);
const _: () = assert!(STATES + 8 * MEMBERS_MAX as u64 <= CHANNEL);
const _: () = assert!(FIRST + CHANNEL * CHANNELS_MAX as u64 <= BAR_SIZE);
const _: () = assert!(16 * (CHANNELS_MAX * CHANNEL_VECTORS) as u64 <= PENDING);

/// One channel of a guest.
#[derive(Debug)]
pub struct Port {
    /// The number of the channel.
    pub id: u32,
    /// The addresses of its memory.
    pub range: AddrRange,
    /// Whether this guest can only read the memory.
    pub is_read_only: bool,
    /// The number of this guest among the members.
    pub member: u8,
    /// The states of all members.
    pub states: Members,
    /// Rung by the manager when a state has changed.
    pub news: Bell,
    /// The doorbells of all members.
    pub doorbells: Vec<Vec<EventFd>>,
}

#[derive(Debug)]
struct Space {
    config: ConfigSpace,
    msix: u8,
}

/// The channels of a guest, in a slot.
#[derive(Debug)]
pub struct ChannelFunction {
    space: Mutex<Space>,
    msix: Msix,
    ports: Vec<Port>,
    wiring: Arc<dyn Wiring>,
    /// The address of the doorbell register, and the numbers that are connected
    /// there.
    connected: Mutex<Option<(u64, Vec<u32>)>>,
}

impl Port {
    /// Returns the vectors of this guest: its own doorbells, and those that nobody
    /// else signals.
    fn events(&self) -> io::Result<Vec<Option<EventFd>>> {
        let mut events = Vec::new();
        let own = self.doorbells.get(usize::from(self.member));
        for event in own.into_iter().flatten().take(STATE_VECTOR) {
            events.push(Some(event.try_clone()?));
        }
        events.resize_with(CHANNEL_VECTORS, || None);
        Ok(events)
    }

    /// Returns 8 bytes of the channel's registers; `index` is the position of the
    /// channel.
    fn word(&self, index: u64, offset: u64) -> u64 {
        let members = self.doorbells.len() as u64;
        let doorbells = self.doorbells.first().map_or(0, Vec::len) as u64;
        match offset {
            0x00 => self.range.start(),
            0x08 => self.range.size(),
            0x10 => u64::from(self.id) | u64::from(self.is_read_only) << 32,
            0x18 => u64::from(self.member) | members << 32,
            0x20 => doorbells | (index * CHANNEL_VECTORS as u64) << 32,
            STATES.. => match usize::try_from((offset - STATES) / 8) {
                Ok(member) if member < self.doorbells.len() => self.states.get(member).word(),
                _ => 0,
            },
            _ => 0,
        }
    }
}

impl ChannelFunction {
    /// Creates the function in slot `slot`, with a channel for each of `ports`, at
    /// most [`CHANNELS_MAX`].
    ///
    /// # Errors
    /// Fails if the host has run out of file descriptors.
    pub fn new(slot: u8, ports: Vec<Port>, wiring: Arc<dyn Wiring>) -> io::Result<Arc<Self>> {
        let mut events = Vec::new();
        for port in &ports {
            events.extend(port.events()?);
        }
        let msix = Msix::with_events(events, Arc::clone(&wiring))?;
        let mut config = ConfigSpace::new(IDENTITY, None);
        for index in [REGISTERS, VECTORS] {
            let bar = Bar {
                index,
                size: BAR_SIZE,
                wide: false,
            };
            config.add_bar(bar, pci_slot_start(slot) + u64::from(index) * BAR_SIZE);
        }
        let place = Place {
            bar: VECTORS,
            table: 0,
            // Below the size of the BAR.
            pending: u32::try_from(PENDING).unwrap_or(0),
        };
        let msix_at = msix.add_to(&mut config, place);
        Ok(Arc::new(Self {
            space: Mutex::new(Space {
                config,
                msix: msix_at,
            }),
            msix,
            ports,
            wiring,
            connected: Mutex::default(),
        }))
    }

    /// Returns all doorbells, with the numbers that ring them: the position of the
    /// channel, the member, and the doorbell.
    fn doorbells(&self) -> impl Iterator<Item = (u32, &EventFd)> {
        self.ports.iter().zip(0_u32..).flat_map(|(port, index)| {
            let members = port.doorbells.iter().zip(0_u32..);
            members.flat_map(move |(doorbells, member)| {
                let numbers = (index << 8 | member) << 16..;
                numbers.zip(doorbells)
            })
        })
    }

    fn word(&self, offset: u64) -> u64 {
        let position = || self.ports.first().map_or(0, |port| port.member);
        match offset {
            POSITION => u64::from(position()),
            VERSION => THIS_VERSION | (self.ports.len() as u64) << 32,
            FIRST.. => {
                let index = (offset - FIRST) / CHANNEL;
                let port = usize::try_from(index)
                    .ok()
                    .and_then(|at| self.ports.get(at));
                port.map_or(0, |port| port.word(index, (offset - FIRST) % CHANNEL))
            }
            _ => 0,
        }
    }

    fn disconnect(&self, addr: u64, numbers: &[u32]) {
        for (number, event) in self.doorbells() {
            if numbers.contains(&number)
                && let Err(error) = self.wiring.disconnect_number(event, addr, number)
            {
                log::debug!("channels: doorbell {number:#x}: {error}");
            }
        }
    }

    fn connect(&self, addr: u64) -> Vec<u32> {
        let connected = self.doorbells().filter_map(|(number, event)| {
            match self.wiring.connect_number(event, addr, number) {
                Ok(()) => Some(number),
                Err(error) => {
                    // The only way to it is through KVM.
                    log::warn!("channels: doorbell {number:#x}: {error}");
                    None
                }
            }
        });
        connected.collect()
    }
}

impl Function for ChannelFunction {
    fn name(&self) -> &str {
        "channels"
    }

    fn read_config(&self, offset: u8, data: &mut [u8]) {
        lock(&self.space).config.read(offset, data);
    }

    fn write_config(&self, offset: u8, data: &[u8]) {
        let mut space = lock(&self.space);
        space.config.write(offset, data);
        self.msix.on_config(&space.config, space.msix);
    }

    fn decoded(&self, windows: &Windows) -> Vec<Decoded> {
        lock(&self.space).config.decoded(windows)
    }

    fn moved(&self, decoded: &[Decoded]) {
        let bar = decoded.iter().find(|decoded| decoded.bar == REGISTERS);
        let addr = bar.map(|bar| bar.start + DOORBELL);
        let mut connected = lock(&self.connected);
        if connected.as_ref().map(|(addr, _)| *addr) == addr {
            return;
        }
        if let Some((addr, numbers)) = connected.take() {
            self.disconnect(addr, &numbers);
        }
        *connected = addr.map(|addr| (addr, self.connect(addr)));
    }

    fn read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        match (bar, offset) {
            (REGISTERS, _) => {
                let mut known = None;
                for (byte, at) in data.iter_mut().zip(offset..) {
                    let start = at - at % 8;
                    // Each word is read once, as it may change between two reads.
                    let word = match known {
                        Some((place, word)) if place == start => word,
                        _ => self.word(start),
                    };
                    known = Some((start, word));
                    let index = usize::try_from(at % 8).unwrap_or(0);
                    *byte = word.to_le_bytes().get(index).copied().unwrap_or(0);
                }
            }
            (_, PENDING..) => self.msix.read_pending(offset - PENDING, data),
            _ => self.msix.read_table(offset, data),
        }
    }

    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        match (bar, offset) {
            (VECTORS, ..PENDING) => self.msix.write_table(offset, data),
            // Doorbells that exist never come here.
            _ => {}
        }
    }

    fn subscriber(self: Arc<Self>) -> Option<Arc<dyn EventSubscriber + Send + Sync>> {
        Some(self)
    }
}

impl EventSubscriber for ChannelFunction {
    fn process(&self, events: Events, ops: &mut EventOps<'_>) {
        let index = usize::try_from(events.data()).unwrap_or(usize::MAX);
        let Some(port) = self.ports.get(index) else {
            return;
        };
        if port.news.answer() == Rung::Closed
            && let Err(error) = ops.remove(events)
        {
            log::warn!("channels: {error}");
        }
        let vector = index * CHANNEL_VECTORS + STATE_VECTOR;
        self.msix.trigger(u16::try_from(vector).unwrap_or(u16::MAX));
    }

    fn init(&self, ops: &mut EventOps<'_>) {
        for (port, index) in self.ports.iter().zip(0..) {
            let events = Events::with_data(&port.news.as_fd(), index, EventSet::IN);
            if let Err(error) = ops.add(events) {
                log::error!("channels: changes cannot be watched: {error}");
            }
        }
    }
}

#[cfg(test)]
#[path = "channels_tests.rs"]
mod tests;
