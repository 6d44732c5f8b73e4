//! A virtio device as a PCI function.
//!
//! vCPUs access its registers; the event loop serves its queues. Both take the
//! same lock, so calls of the device never overlap.
//!
//! ```text
//!            driver ready             driver writes 0
//!    Idle ────────────────► Active ─────────────────────► Idle, or Draining
//!     ▲                       │ broken: NEEDS_RESET          until nothing is
//!     └───────────────────────┴─────────────────────────► under way
//! ```

use std::io;
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, EventSubscriber, Events};
use mkvmm_base::chain;
use mkvmm_base::layout::{pci_slot_line, pci_slot_start};
use mkvmm_virtio::ring::RingContext;
use mkvmm_virtio::{
    Activation, Broken, Interrupt, Memory, Progress, QueueCounters, Ring, VirtioDevice,
};
use mkvmm_wire::shared::board::DeviceWriter;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::device::lock;
use crate::devices::pci::config::{Bar, ConfigSpace, Decoded, Identity, Windows};
use crate::devices::pci::function::Function;
use crate::devices::pci::line::Lines;
use crate::devices::pci::msix::{Msix, Place};
use crate::devices::pci::wiring::Wiring;
use crate::devices::virtio::interrupts::Interrupts;
use crate::devices::virtio::registers::{self, Effect, Registers};

/// The vendor of all virtio devices, and the number of the first modern one.
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;

/// The only BAR, and what lies where in it: a page for each part, so that a
/// guest can map doorbells alone.
const BAR: u8 = 0;
const BAR_SIZE: u64 = 0x8000;
const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;
const PART: u64 = 0x1000;
/// The bytes between the doorbells of two queues.
const NOTIFY_STEP: u64 = 4;

/// The vendor-specific capability, and the types of virtio's (virtio 1.2,
/// section 4.1.4).
const VENDOR_CAPABILITY: u8 = 9;
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_WINDOW: u8 = 5;
/// The offset of the data in the capability of [`TYPE_WINDOW`].
const WINDOW_DATA: u8 = 16;

/// Tokens of the event loop: the function's own turn, its doorbells, and the
/// device's descriptors.
const TURN: u32 = 0;
const DOORBELLS: u32 = 1;
const DESCRIPTORS: u32 = 0x1_0000;

/// What a function needs of its machine.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// The slot of the function.
    pub slot: u8,
    /// The guest's memory.
    pub memory: Memory,
    /// The connections to KVM.
    pub wiring: Arc<dyn Wiring>,
    /// The interrupt lines of the bus.
    pub lines: &'a Arc<Lines>,
    /// The place of the device's counters on the board.
    pub counters: DeviceWriter,
}

#[derive(Debug)]
struct Space {
    config: ConfigSpace,
    msix: u8,
    window: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Active,
    Draining,
}

#[derive(Debug)]
struct Core {
    device: Box<dyn VirtioDevice>,
    registers: Registers,
    phase: Phase,
    /// True while a reset by the driver is under way.
    is_resetting: bool,
    /// True from the activation until the loop has looked at all queues.
    is_fresh: bool,
    /// True while the loop watches the device's descriptors.
    is_watched: bool,
    /// Queues and descriptors that have more to do.
    queues_left: Vec<u16>,
    tokens_left: Vec<u32>,
    faults: u64,
    writer: DeviceWriter,
}

/// A virtio device in a slot.
#[derive(Debug)]
pub struct VirtioFunction {
    name: String,
    space: Mutex<Space>,
    interrupts: Arc<Interrupts>,
    counters: Vec<Arc<QueueCounters>>,
    doorbells: Vec<EventFd>,
    /// Where doorbells are connected: an address for each queue.
    connected: Mutex<Vec<Option<u64>>>,
    /// Wakes the loop for what only it can do.
    turn: EventFd,
    memory: Memory,
    wiring: Arc<dyn Wiring>,
    core: Mutex<Core>,
}

/// Returns the class of a device, for drivers that look for one.
fn class(id: u16) -> u32 {
    match id {
        1 => 0x02_00_00, // network, Ethernet
        2 => 0x01_80_00, // mass storage, other
        3 => 0x07_80_00, // communication, other
        _ => 0x00_ff_00,
    }
}

/// Returns a virtio capability without its first two bytes.
fn capability(kind: u8, offset: u64, length: u64, more: &[u8]) -> Vec<u8> {
    let len = u8::try_from(16 + more.len()).unwrap_or(u8::MAX);
    let mut body = vec![len, kind, BAR, 0, 0, 0];
    // Both are far below 4 GiB.
    for value in [offset, length] {
        body.extend(u32::try_from(value).unwrap_or(0).to_le_bytes());
    }
    body.extend_from_slice(more);
    body
}

impl Space {
    fn new(id: u16, slot: u8, queues: u64, msix: &Msix) -> Self {
        let identity = Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE.wrapping_add(id),
            class: class(id),
            revision: 1,
            subsystem_vendor: VENDOR,
            subsystem: FIRST_DEVICE.wrapping_add(id),
        };
        let mut config = ConfigSpace::new(identity, Some(pci_slot_line(slot)));
        let bar = Bar {
            index: BAR,
            size: BAR_SIZE,
            wide: false,
        };
        config.add_bar(bar, pci_slot_start(slot));
        let step = u32::try_from(NOTIFY_STEP).unwrap_or(0).to_le_bytes();
        for (kind, offset, length, more) in [
            (TYPE_COMMON, COMMON, registers::LENGTH, &[][..]),
            (TYPE_NOTIFY, NOTIFY, NOTIFY_STEP * queues, &step[..]),
            (TYPE_ISR, ISR, 1, &[]),
            (TYPE_DEVICE, DEVICE, PART, &[]),
        ] {
            let body = capability(kind, offset, length, more);
            config.add_capability(VENDOR_CAPABILITY, &body, &[]);
        }
        let body = capability(TYPE_WINDOW, 0, 0, &[0; 4]);
        // BAR, offset, length and data can be written.
        let mut writable = vec![0, 0, 0xff, 0, 0, 0];
        writable.extend([0xff; 12]);
        let window = config.add_capability(VENDOR_CAPABILITY, &body, &writable);
        let place = Place {
            bar: BAR,
            // Both are below the size of the BAR.
            table: u32::try_from(TABLE).unwrap_or(0),
            pending: u32::try_from(PENDING).unwrap_or(0),
        };
        let msix = msix.add_to(&mut config, place);
        Self {
            config,
            msix,
            window,
        }
    }

    /// Returns the offset in the BAR that the window's data stands for, and the
    /// number of bytes; `None` if an access at `offset` is not one to the data,
    /// or the driver has set the window up wrongly.
    fn window(&self, offset: u8) -> Option<(u64, usize)> {
        if offset != self.window + WINDOW_DATA {
            return None;
        }
        let [bar, ..] = self.config.dword(self.window + 4).to_le_bytes();
        let at = u64::from(self.config.dword(self.window + 8));
        let length = u64::from(self.config.dword(self.window + 12));
        let is_sound = bar == BAR
            && matches!(length, 1 | 2 | 4)
            && at % length == 0
            && at + length <= BAR_SIZE;
        let bytes = usize::try_from(length).unwrap_or(0);
        is_sound.then_some((at, bytes))
    }
}

impl VirtioFunction {
    /// Creates the function of `device`.
    ///
    /// # Errors
    /// Fails if the host has run out of file descriptors.
    pub fn new(device: Box<dyn VirtioDevice>, of: Surroundings<'_>) -> io::Result<Arc<Self>> {
        let sizes = device.queue_sizes().to_vec();
        let vectors = u16::try_from(sizes.len() + 1).unwrap_or(u16::MAX);
        let msix = Msix::new(vectors, Arc::clone(&of.wiring))?;
        let space = Space::new(device.id(), of.slot, sizes.len() as u64, &msix);
        let line = of.lines.line(pci_slot_line(of.slot), of.slot);
        let event = |_size| EventFd::new(EFD_NONBLOCK);
        let core = Core {
            registers: Registers::new(device.features(), &sizes),
            phase: Phase::Idle,
            is_resetting: false,
            is_fresh: false,
            is_watched: false,
            queues_left: Vec::new(),
            tokens_left: Vec::new(),
            faults: 0,
            writer: of.counters,
            device,
        };
        Ok(Arc::new(Self {
            name: format!("{} in slot {}", core.device.name(), of.slot),
            space: Mutex::new(space),
            interrupts: Interrupts::new(msix, line, sizes.len()),
            counters: sizes.iter().map(|_| Arc::default()).collect(),
            doorbells: sizes.iter().map(event).collect::<io::Result<_>>()?,
            connected: Mutex::new(vec![None; sizes.len()]),
            turn: EventFd::new(EFD_NONBLOCK)?,
            memory: of.memory,
            wiring: of.wiring,
            core: Mutex::new(core),
        }))
    }

    /// Writes a common register, with its effect.
    fn write_common(&self, offset: u64, data: &[u8]) {
        let mut core = lock(&self.core);
        if core.is_resetting {
            return;
        }
        match core.registers.write(offset, data, &self.interrupts) {
            Effect::Nothing => return,
            Effect::Reset => {
                core.is_resetting = true;
                self.drain(&mut core);
            }
            Effect::Activate => self.activate(&mut core),
        }
        self.wake();
    }

    fn activate(&self, core: &mut Core) {
        let interrupt = Arc::clone(&self.interrupts) as Arc<dyn Interrupt>;
        let context = |counters| RingContext {
            memory: Arc::clone(&self.memory),
            interrupt: Arc::clone(&interrupt),
            counters: Arc::clone(counters),
            event_index: core.registers.has_event_index(),
        };
        let queues = core.registers.queues().zip(&self.counters).zip(0..);
        let rings = queues.map(|(((largest, setup), counters), index)| {
            Ring::new(index, largest, setup, context(counters))
        });
        let rings = rings.collect::<Result<Vec<_>, Broken>>();
        let activated = rings.and_then(|queues| {
            core.device.activate(Activation {
                features: core.registers.features(),
                memory: Arc::clone(&self.memory),
                queues,
            })
        });
        core.phase = Phase::Active;
        core.is_fresh = true;
        if let Err(broken) = activated {
            self.stop(core, &broken);
        }
    }

    /// Stops a device whose driver, or host, did what it cannot go on after.
    fn stop(&self, core: &mut Core, broken: &Broken) {
        core.faults += 1;
        core.writer.set_faults(core.faults);
        match core.faults {
            1 => log::warn!("{} is stopped: {}", self.name, chain(broken)),
            _ => log::debug!("{} is stopped: {}", self.name, chain(broken)),
        }
        core.registers.break_down();
        self.drain(core);
        self.interrupts.config_changed();
        self.wake();
    }

    /// Resets the device, as far as it is possible now.
    fn drain(&self, core: &mut Core) {
        core.queues_left.clear();
        core.tokens_left.clear();
        core.is_fresh = false;
        core.phase = match core.phase {
            Phase::Idle => Phase::Idle,
            Phase::Active | Phase::Draining => match core.device.reset() {
                Progress::Done => Phase::Idle,
                Progress::More => Phase::Draining,
            },
        };
        if core.phase == Phase::Idle && core.is_resetting {
            core.is_resetting = false;
            core.registers.reset();
            self.interrupts.reset();
        }
    }

    /// Serves a queue of an active device.
    fn serve(&self, core: &mut Core, queue: u16) {
        if core.phase != Phase::Active {
            return;
        }
        match core.device.on_queue(queue) {
            Ok(Progress::Done) => {}
            Ok(Progress::More) if core.queues_left.contains(&queue) => {}
            Ok(Progress::More) => core.queues_left.push(queue),
            Err(broken) => self.stop(core, &broken),
        }
        self.publish(core);
    }

    /// Handles the event of a descriptor.
    fn handle(&self, core: &mut Core, token: u32, events: EventSet) {
        if core.phase == Phase::Idle {
            return;
        }
        match core.device.on_descriptor(token, events) {
            Ok(Progress::Done) => {}
            Ok(Progress::More) if core.tokens_left.contains(&token) => {}
            Ok(Progress::More) => core.tokens_left.push(token),
            Err(broken) if core.phase == Phase::Active => self.stop(core, &broken),
            Err(_draining_already) => {}
        }
        if core.phase == Phase::Draining {
            self.drain(core);
        }
        self.publish(core);
    }

    fn publish(&self, core: &Core) {
        core.writer.set_own(&core.device.counts());
        for (index, counters) in self.counters.iter().enumerate() {
            let counts = counters.counts();
            core.writer.set_queue(
                index,
                &[
                    counts.kicks,
                    counts.requests,
                    counts.read_bytes,
                    counts.written_bytes,
                    counts.interrupts,
                    counts.dropped,
                    counts.failed,
                ],
            );
        }
    }

    /// Does what only the loop can do: watches descriptors, and serves what is
    /// left.
    fn take_turn(&self, core: &mut Core, ops: &mut EventOps<'_>) {
        self.watch(core, ops);
        if core.phase == Phase::Active && std::mem::take(&mut core.is_fresh) {
            let enabled = core.registers.queues().zip(0..);
            let enabled = enabled.filter(|((_, setup), _)| setup.is_some());
            core.queues_left = enabled.map(|(_, index)| index).collect();
            let watches = core.device.descriptors();
            core.tokens_left = watches.iter().map(|watch| watch.token).collect();
        }
        for queue in std::mem::take(&mut core.queues_left) {
            self.serve(core, queue);
        }
        for token in std::mem::take(&mut core.tokens_left) {
            self.handle(core, token, EventSet::empty());
        }
    }

    fn watch(&self, core: &mut Core, ops: &mut EventOps<'_>) {
        let wanted = core.phase != Phase::Idle;
        if wanted == core.is_watched {
            return;
        }
        core.is_watched = wanted;
        for watch in core.device.descriptors() {
            let token = DESCRIPTORS.saturating_add(watch.token);
            let events = Events::with_data(&watch.descriptor, token, watch.events);
            let done = match wanted {
                true => ops.add(events),
                false => ops.remove(events),
            };
            if let Err(error) = done {
                log::warn!("{}: a descriptor cannot be watched: {error}", self.name);
            }
        }
    }

    fn wake(&self) {
        // A full counter wakes the loop as well.
        let _ = self.turn.write(1);
    }

    fn write_bar(&self, offset: u64, data: &[u8]) {
        match offset / PART * PART {
            COMMON => self.write_common(offset, data),
            DEVICE => lock(&self.core).device.write_config(offset - DEVICE, data),
            NOTIFY => {
                let queue = usize::try_from((offset - NOTIFY) / NOTIFY_STEP);
                if let Some(doorbell) = self.doorbells.get(queue.unwrap_or(usize::MAX)) {
                    let _ = doorbell.write(1);
                }
            }
            TABLE => self.interrupts.msix().write_table(offset - TABLE, data),
            _ => {}
        }
    }

    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset / PART * PART {
            COMMON => lock(&self.core)
                .registers
                .read(offset, data, &self.interrupts),
            ISR => {
                if let (ISR, Some(byte)) = (offset, data.first_mut()) {
                    *byte = self.interrupts.take_isr();
                }
            }
            DEVICE => lock(&self.core).device.read_config(offset - DEVICE, data),
            TABLE => self.interrupts.msix().read_table(offset - TABLE, data),
            PENDING => self.interrupts.msix().read_pending(offset - PENDING, data),
            _ => {}
        }
    }
}

impl Function for VirtioFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_config(&self, offset: u8, data: &mut [u8]) {
        let window = {
            let mut space = lock(&self.space);
            space.config.show_line(self.interrupts.is_pending());
            space.config.read(offset, data);
            space.window(offset)
        };
        if let Some((at, bytes)) = window {
            let bytes = bytes.min(data.len());
            self.read_bar(at, data.get_mut(..bytes).unwrap_or_default());
        }
    }

    fn write_config(&self, offset: u8, data: &[u8]) {
        let (window, line_is_enabled) = {
            let mut space = lock(&self.space);
            space.config.write(offset, data);
            self.interrupts.msix().on_config(&space.config, space.msix);
            (space.window(offset), space.config.is_line_enabled())
        };
        self.interrupts.on_config(line_is_enabled);
        if let Some((at, bytes)) = window
            && let Some(data) = data.get(..bytes)
        {
            self.write_bar(at, data);
        }
    }

    fn decoded(&self, windows: &Windows) -> Vec<Decoded> {
        lock(&self.space).config.decoded(windows)
    }

    fn moved(&self, decoded: &[Decoded]) {
        let base = decoded.first().map(|decoded| decoded.start + NOTIFY);
        let mut connected = lock(&self.connected);
        for ((place, doorbell), queue) in connected.iter_mut().zip(&self.doorbells).zip(0..) {
            if let Some(addr) = place.take()
                && let Err(error) = self.wiring.disconnect_doorbell(doorbell, addr)
            {
                log::debug!("{}: doorbell at {addr:#x}: {error}", self.name);
            }
            let Some(addr) = base.map(|base| base + NOTIFY_STEP * queue) else {
                continue;
            };
            match self.wiring.connect_doorbell(doorbell, addr) {
                Ok(()) => *place = Some(addr),
                // It is rung by the bridge instead, which takes longer.
                Err(error) => log::debug!("{}: doorbell at {addr:#x}: {error}", self.name),
            }
        }
    }

    fn read(&self, _bar: u8, offset: u64, data: &mut [u8]) {
        self.read_bar(offset, data);
    }

    fn write(&self, _bar: u8, offset: u64, data: &[u8]) {
        self.write_bar(offset, data);
    }

    fn subscriber(self: Arc<Self>) -> Option<Arc<dyn EventSubscriber + Send + Sync>> {
        Some(self)
    }
}

impl EventSubscriber for VirtioFunction {
    fn process(&self, events: Events, ops: &mut EventOps<'_>) {
        let token = events.data();
        let mut core = lock(&self.core);
        if token == TURN {
            let _ = self.turn.read();
            self.take_turn(&mut core, ops);
        } else if let Some(token) = token.checked_sub(DESCRIPTORS) {
            self.handle(&mut core, token, events.event_set());
        } else if let Ok(queue) = u16::try_from(token - DOORBELLS)
            && let Some(doorbell) = self.doorbells.get(usize::from(queue))
        {
            let _ = doorbell.read();
            if let Some(counters) = self.counters.get(usize::from(queue)) {
                counters.kicked();
            }
            self.serve(&mut core, queue);
        }
        // What changed may end, or begin, the watch of its descriptors.
        self.watch(&mut core, ops);
        if !core.queues_left.is_empty() || !core.tokens_left.is_empty() {
            self.wake();
        }
    }

    fn init(&self, ops: &mut EventOps<'_>) {
        let turn = std::iter::once((&self.turn, TURN));
        let doorbells = self.doorbells.iter().zip(DOORBELLS..);
        for (event, token) in turn.chain(doorbells) {
            let events = Events::with_data(event, token, EventSet::IN);
            if let Err(error) = ops.add(events) {
                log::error!("{}: a doorbell cannot be watched: {error}", self.name);
            }
        }
    }
}

#[cfg(test)]
#[path = "function_tests.rs"]
mod tests;
