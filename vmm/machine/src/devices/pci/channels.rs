//! The channels of a guest as a PCI function: doorbells of their members, and the
//! members' states.
//!
//! ```text
//!   BAR 0   0x000  registers of ivshmem: mask, status, position, doorbell
//!           0x010  version of what follows, number of positions
//!           0x018  for drivers without MSI-X: which vectors have rung, and are muted
//!           0x100  for each position 0x80 bytes: the memory of its channel, the
//!                  members' states; zero if there is none
//!   BAR 1   0x000  the table of MSI-X, from 0x800 on the pending bits
//!   BAR 2          the channel area, if the pool has one
//! ```
//!
//! A doorbell is an eventfd: KVM signals the ringing member's number at the
//! doorbell register, and turns it into a message of the other's guest. No process
//! is on the way. While the receiver masks the vector, KVM does not listen, and any
//! number of rings becomes one interrupt later; so does what was rung while no guest
//! was there. This process never waits for these eventfds, which another worker could make
//! block.
//!
//! A driver that cannot use MSI-X, as Linux's `uio_pci_generic`, enables the line
//! instead. This process listens to the doorbells then, as [`DoorbellLine`] says.
//!
//! Channels come and go while the guest runs, each at one of eight positions. The
//! last vector of a position tells of that, and of changes of the members' states.
//!
//! The memory itself is a memory slot at its address in the pool, whether the
//! function decodes or not: it is the same address for all members.
//!
//! Source of the first registers: QEMU, docs/specs/ivshmem-spec.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, EventSubscriber, Events};
use mkpool::AddrRange;
use mkvmm_base::layout::pci_slot_line;
use mkvmm_wire::messages::CHANNELS_MAX;
use mkvmm_wire::shared::bell::Rung;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::device::lock;
use crate::devices::pci::channel_config::{BAR_SIZE, ChannelConfig, PENDING, REGISTERS, VECTORS};
use crate::devices::pci::channel_port::{
    CHANNEL_SIZE, CHANNEL_VECTORS, DOORBELLS, Port, STATE_VECTOR,
};
use crate::devices::pci::config::{Decoded, Windows};
use crate::devices::pci::doorbell_line::DoorbellLine;
use crate::devices::pci::function::Function;
use crate::devices::pci::line::Lines;
use crate::devices::pci::msix::Msix;
use crate::devices::pci::wiring::Wiring;
use crate::kvm::device::take_signal;

/// Offsets of registers in the first BAR.
const ENABLE: u64 = 0x00;
const STATUS: u64 = 0x04;
const POSITION: u64 = 0x08;
const DOORBELL: u64 = 0x0c;
const VERSION: u64 = 0x10;
const RUNG: u64 = 0x18;
const MUTED: u64 = 0x20;
const RUNG_HIGH: u64 = RUNG + 4;
const MUTED_HIGH: u64 = MUTED + 4;
/// The first channel.
const FIRST: u64 = 0x100;
/// The version of the registers from [`VERSION`] on.
const THIS_VERSION: u64 = 1;

const _: () = assert!(FIRST + CHANNEL_SIZE * CHANNELS_MAX as u64 <= BAR_SIZE);
const _: () = assert!(16 * (CHANNELS_MAX * CHANNEL_VECTORS) as u64 <= PENDING);

/// The token of a change of the channels in the event loop.
const CHANGED: u32 = u32::MAX;
/// A channel whose notifications the event loop is to watch from now on, or no
/// longer, with its position.
#[derive(Debug)]
enum Watch {
    Begin(u32, Arc<Port>),
    End(u32, Arc<Port>),
}

/// The channels of a guest, by position.
#[derive(Debug)]
struct Ports {
    all: [Option<Arc<Port>>; CHANNELS_MAX],
    /// The address of the doorbell register, if it decodes.
    register: Option<u64>,
    /// The numbers that are connected there.
    connected: BTreeSet<u32>,
    /// What the event loop has not seen yet.
    watches: Vec<Watch>,
    /// The doorbells that the event loop listens to, by vector.
    heard: BTreeMap<u32, Arc<Port>>,
}

/// The channels of a guest, in a slot.
#[derive(Debug)]
pub struct ChannelFunction {
    config: Mutex<ChannelConfig>,
    msix: Msix,
    line: DoorbellLine,
    ports: Mutex<Ports>,
    wiring: Arc<dyn Wiring>,
    /// Signalled when there are new watches.
    changed: EventFd,
}

impl Ports {
    /// Connects or disconnects the doorbells of a position.
    fn connect(&mut self, wiring: &dyn Wiring, position: u32, port: &Port) {
        let Some(addr) = self.register else {
            return;
        };
        for (number, event) in port.numbers(position) {
            match wiring.connect_number(event, addr, number) {
                Ok(()) => {
                    self.connected.insert(number);
                }
                // The only way to it is through KVM.
                Err(error) => log::warn!("channels: doorbell {number:#x}: {error}"),
            }
        }
    }

    fn disconnect(&mut self, wiring: &dyn Wiring, position: u32, port: &Port) {
        let Some(addr) = self.register else {
            return;
        };
        for (number, event) in port.numbers(position) {
            if self.connected.remove(&number)
                && let Err(error) = wiring.disconnect_number(event, addr, number)
            {
                log::debug!("channels: doorbell {number:#x}: {error}");
            }
        }
    }

    /// Returns the channels with their positions.
    fn present(&self) -> Vec<(u32, Arc<Port>)> {
        let all = self.all.iter().zip(0..);
        let present =
            all.filter_map(|(port, position)| Some((position, Arc::clone(port.as_ref()?))));
        present.collect()
    }
}

impl ChannelFunction {
    /// Creates the function in slot `slot`, without channels; `area` is the part of the
    /// pool that all of them will be in, if there is one.
    ///
    /// # Errors
    /// Fails if the host has run out of file descriptors.
    pub fn new(
        slot: u8,
        area: Option<AddrRange>,
        wiring: Arc<dyn Wiring>,
        lines: &Arc<Lines>,
    ) -> io::Result<Arc<Self>> {
        let vectors = 0..CHANNELS_MAX * CHANNEL_VECTORS;
        let foreign = vectors.map(|vector| vector % CHANNEL_VECTORS != STATE_VECTOR);
        let msix = Msix::on_demand(foreign, Arc::clone(&wiring));
        Ok(Arc::new(Self {
            config: Mutex::new(ChannelConfig::new(slot, area, &msix)),
            msix,
            line: DoorbellLine::new(lines.line(pci_slot_line(slot), slot)),
            ports: Mutex::new(Ports {
                all: Default::default(),
                register: None,
                connected: BTreeSet::new(),
                watches: Vec::new(),
                heard: BTreeMap::new(),
            }),
            wiring,
            changed: EventFd::new(EFD_NONBLOCK)?,
        }))
    }

    /// Gives the guest a channel, whose memory it has already, at the first free
    /// position.
    ///
    /// # Errors
    /// Fails if there is no free position, or the host has run out of file
    /// descriptors; nothing has changed then.
    pub fn add(&self, port: Port) -> io::Result<()> {
        let own = port.own().map(EventFd::try_clone);
        let own = own.collect::<io::Result<Vec<_>>>()?;
        let port = Arc::new(port);
        let mut ports = lock(&self.ports);
        let mut places = ports.all.iter_mut().zip(0_u32..);
        let Some((place, position)) = places.find(|(place, _)| place.is_none()) else {
            return Err(io::ErrorKind::QuotaExceeded.into());
        };
        *place = Some(Arc::clone(&port));
        ports.connect(&*self.wiring, position, &port);
        ports.watches.push(Watch::Begin(position, port));
        drop(ports);
        for (event, doorbell) in own.into_iter().zip(0..) {
            self.msix.attach(vector(position, doorbell), Some(event));
        }
        self.tell(position);
        Ok(())
    }

    /// Returns the memory of the channel with this number, if the guest has it.
    pub fn range(&self, id: u32) -> Option<AddrRange> {
        let ports = lock(&self.ports);
        let mut all = ports.all.iter().flatten();
        Some(all.find(|port| port.id == id)?.range)
    }

    /// Takes the channel with this number away from the guest, which has its memory
    /// no longer. One that it does not have is ignored.
    pub fn remove(&self, id: u32) {
        let mut ports = lock(&self.ports);
        let mut places = ports.all.iter_mut().zip(0_u32..);
        let is_it = |place: &Option<Arc<Port>>| place.as_ref().is_some_and(|port| port.id == id);
        let found = places.find(|(place, _)| is_it(place));
        let Some((port, position)) = found.and_then(|(place, at)| Some((place.take()?, at))) else {
            return;
        };
        ports.disconnect(&*self.wiring, position, &port);
        ports.watches.push(Watch::End(position, port));
        drop(ports);
        for doorbell in 0..STATE_VECTOR {
            self.msix.attach(vector(position, doorbell), None);
        }
        self.tell(position);
    }

    /// Tells the guest, and the event loop, of a change at a position.
    fn tell(&self, position: u32) {
        self.wake();
        self.interrupt(position);
    }

    fn interrupt(&self, position: u32) {
        let vector = vector(position, STATE_VECTOR);
        self.msix.trigger(u16::try_from(vector).unwrap_or(u16::MAX));
        self.line.ring(u32::try_from(vector).unwrap_or(u32::MAX));
    }

    fn word(&self, offset: u64) -> u64 {
        let ports = lock(&self.ports);
        let first = || ports.all.iter().flatten().next();
        match offset {
            ENABLE => self.line.enabled().into(),
            RUNG => self.line.rung(),
            MUTED => self.line.muted(),
            POSITION => first().map_or(0, |port| port.member.into()),
            VERSION => THIS_VERSION | (CHANNELS_MAX as u64) << 32,
            FIRST.. => {
                let position = (offset - FIRST) / CHANNEL_SIZE;
                let place = usize::try_from(position)
                    .ok()
                    .and_then(|at| ports.all.get(at));
                let port = place.and_then(Option::as_ref);
                port.map_or(0, |port| {
                    port.word(position, (offset - FIRST) % CHANNEL_SIZE)
                })
            }
            _ => 0,
        }
    }

    /// Has the event loop watch what it is to watch now.
    fn follow(&self, ops: &mut EventOps<'_>) {
        let watches = std::mem::take(&mut lock(&self.ports).watches);
        for watch in watches {
            let events = |position, port: &Port| {
                Events::with_data(&port.news.as_fd(), position, EventSet::IN)
            };
            let followed = match &watch {
                Watch::Begin(position, port) => ops.add(events(*position, port)),
                Watch::End(position, port) => ops.remove(events(*position, port)),
            };
            if let Err(error) = followed {
                log::warn!("channels: changes of states cannot be followed: {error}");
            }
        }
        self.listen(ops);
    }

    /// Has the event loop listen to the doorbells that are to be heard now, and to no
    /// others.
    fn listen(&self, ops: &mut EventOps<'_>) {
        let mut ports = lock(&self.ports);
        let bits = self.line.heard();
        let all = ports.present().into_iter().flat_map(|(position, port)| {
            let vectors = (0..port.own().count()).map(move |doorbell| vector(position, doorbell));
            let vectors = vectors.filter_map(|vector| u32::try_from(vector).ok());
            vectors.map(move |vector| (vector, Arc::clone(&port)))
        });
        let due: BTreeMap<u32, Arc<Port>> = all
            .filter(|(vector, _)| bits.checked_shr(*vector).unwrap_or(0) & 1 != 0)
            .collect();
        ports.heard.retain(|vector, port| {
            let is_due = due.get(vector).is_some_and(|due| Arc::ptr_eq(due, port));
            if let Some(events) = port.events(*vector).filter(|_| !is_due)
                && let Err(error) = ops.remove(events)
            {
                log::debug!("channels: a doorbell: {error}");
            }
            is_due
        });
        for (vector, port) in due {
            if ports.heard.contains_key(&vector) {
                continue;
            }
            match port.events(vector).map(|events| ops.add(events)) {
                Some(Err(error)) => log::warn!("channels: a doorbell cannot be heard: {error}"),
                _ => drop(ports.heard.insert(vector, port)),
            }
        }
    }

    /// Takes a doorbell that has rung, and asserts the line. Nobody listens to it
    /// until the guest has acknowledged it.
    fn hear(&self, vector: u32, ops: &mut EventOps<'_>) {
        let port = lock(&self.ports).heard.get(&vector).cloned();
        // One that was taken away meanwhile is not heard much longer.
        if let Some(event) = port.as_ref().and_then(|port| port.doorbell_of(vector)) {
            // Another who has it may have taken the signal.
            let _ = take_signal(event);
            self.line.ring(vector);
        }
        self.listen(ops);
    }

    /// Applies a write of a register. The event loop listens anew after those that
    /// change what is to be heard.
    fn set(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 8];
        let len = data.len().min(bytes.len());
        bytes
            .iter_mut()
            .zip(data)
            .for_each(|(to, from)| *to = *from);
        let value = u64::from_le_bytes(bytes);
        let low = u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0);
        match (offset, len) {
            (ENABLE, 4 | 8) => self.line.set_enabled(low),
            (RUNG, 8) => self.line.acknowledge(value),
            (RUNG, 4) => self.line.acknowledge(low.into()),
            (RUNG_HIGH, 4) => self.line.acknowledge(u64::from(low) << 32),
            (MUTED, 8) => self.line.mute(value),
            (MUTED, 4) => self
                .line
                .mute(self.line.muted() >> 32 << 32 | u64::from(low)),
            (MUTED_HIGH, 4) => {
                let rest = self.line.muted() & u64::from(u32::MAX);
                self.line.mute(rest | u64::from(low) << 32);
            }
            _ => return,
        }
        self.wake();
    }

    /// Has the event loop look at what has changed.
    fn wake(&self) {
        // A full counter wakes the loop as well.
        let _ = self.changed.write(1);
    }
}

/// Returns the vector of a doorbell, or the last one, of a position.
fn vector(position: u32, doorbell: usize) -> usize {
    let position = usize::try_from(position).unwrap_or(usize::MAX);
    position
        .saturating_mul(CHANNEL_VECTORS)
        .saturating_add(doorbell)
}

impl Function for ChannelFunction {
    fn name(&self) -> &str {
        "channels"
    }

    fn read_config(&self, offset: u8, data: &mut [u8]) {
        lock(&self.config).read(offset, data, self.line.is_pending());
    }

    fn write_config(&self, offset: u8, data: &[u8]) {
        let mut config = lock(&self.config);
        config.write(offset, data, &self.msix);
        let is_enabled = config.is_line_enabled();
        self.line.on_config(is_enabled, self.msix.is_enabled());
        drop(config);
        self.wake();
    }

    fn decoded(&self, windows: &Windows) -> Vec<Decoded> {
        lock(&self.config).decoded(windows)
    }

    fn moved(&self, decoded: &[Decoded]) {
        let bar = decoded.iter().find(|decoded| decoded.bar == REGISTERS);
        let addr = bar.map(|bar| bar.start + DOORBELL);
        let mut ports = lock(&self.ports);
        if ports.register == addr {
            return;
        }
        let present = ports.present();
        for (position, port) in &present {
            ports.disconnect(&*self.wiring, *position, port);
        }
        ports.register = addr;
        for (position, port) in &present {
            ports.connect(&*self.wiring, *position, port);
        }
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
                // The only register that is changed by being read.
                if let Some(at) = STATUS
                    .checked_sub(offset)
                    .and_then(|at| usize::try_from(at).ok())
                    && let Some(byte) = data.get_mut(at)
                {
                    *byte = u8::try_from(self.line.take()).unwrap_or(0);
                    self.wake();
                }
            }
            (VECTORS, PENDING..) => self.msix.read_pending(offset - PENDING, data),
            (VECTORS, _) => self.msix.read_table(offset, data),
            // The area elsewhere than in the pool.
            _ => data.fill(0xff),
        }
    }

    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        match bar {
            VECTORS if offset < PENDING => self.msix.write_table(offset, data),
            // Doorbells that exist never come here.
            REGISTERS => self.set(offset, data),
            _ => {}
        }
    }

    fn subscriber(self: Arc<Self>) -> Option<Arc<dyn EventSubscriber + Send + Sync>> {
        Some(self)
    }
}

impl EventSubscriber for ChannelFunction {
    fn process(&self, events: Events, ops: &mut EventOps<'_>) {
        let position = events.data();
        if position == CHANGED {
            let _ = self.changed.read();
            return self.follow(ops);
        }
        if let Some(vector) = position.checked_sub(DOORBELLS) {
            return self.hear(vector, ops);
        }
        let port = {
            let ports = lock(&self.ports);
            let index = usize::try_from(position).unwrap_or(usize::MAX);
            ports.all.get(index).cloned().flatten()
        };
        // One that was taken away meanwhile is not watched much longer.
        let Some(port) = port else {
            return;
        };
        if port.news.answer() == Rung::Closed
            && let Err(error) = ops.remove(events)
        {
            log::warn!("channels: {error}");
        }
        self.interrupt(position);
    }

    fn init(&self, ops: &mut EventOps<'_>) {
        let events = Events::with_data(&self.changed, CHANGED, EventSet::IN);
        if let Err(error) = ops.add(events) {
            log::error!("channels: changes cannot be watched: {error}");
        }
        self.follow(ops);
    }
}

#[cfg(test)]
#[path = "channels_tests.rs"]
mod tests;
